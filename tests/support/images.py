"""Smooth images, since networks and resizers treat noise roughly, and CLIP of them."""

import numpy as np
import torch
from PIL import Image


def smooth_image(width=64, height=64, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def smooth_images(n, size=(64, 64), seed=0):
    """As many different ones."""
    return [smooth_image(*size, seed=n * seed + i) for i in range(n)]


def clip_reference(folder, images, texts):
    """Unit embeddings by transformers' model and Pillow processor."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(**pixels, **tokens)
    return pixels["pixel_values"], out.image_embeds, out.text_embeds
