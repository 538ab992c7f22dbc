"""Images for CLIP, and its embeddings as transformers computes them."""

import numpy as np
import torch
from PIL import Image


def smooth_images(n, size=(64, 64), seed=0):
    """Smooth random images: noise would make the two resizers' rounding matter."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC) for p in small]


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
