"""Images for CLIP, and its embeddings as transformers computes them."""

import torch

from tests.support.images import smooth_image


def smooth_images(n, size=(64, 64), seed=0):
    """Different smooth images: noise would make the two resizers' rounding matter."""
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
