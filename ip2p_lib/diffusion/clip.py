"""CLIP embeddings of images and texts, for the filter (3.1.2) and the metrics (4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ip2p_lib.device import pick_device, pick_dtype, without_cudnn_attention
from ip2p_lib.diffusion.loading import explain_missing, load_network, locate
from ip2p_lib.images import resize_and_crop

if TYPE_CHECKING:
    from ip2p_lib.config import Source


@dataclass
class ClipScorer:
    """A ``CLIPModel``, its tokenizer, and the (3,) mean and deviation of its images.

    ``released_range`` repeats a slip of the released ``compute_metrics.py``, to compare
    with the paper's curves: CLIP sees [-1, 1] where [0, 1] is meant.
    """

    model: Any
    tokenizer: Any
    mean: Tensor
    std: Tensor
    released_range: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise (B, 3, H, W) in [-1, 1] to (B, 3, S, S) float32.

        As CLIP's own processor does it: smoothed, and cropped in the middle. The
        released ``clip_similarity.py`` squeezes images to a square without smoothing.
        """
        x = images.to(self.device, torch.float32)
        size = self.model.config.vision_config.image_size
        if self.released_range:
            x = resize_and_crop(x, size)
        else:  # clamped twice: bicubic overshoots at edges, 8-bit images cannot
            x = resize_and_crop((x / 2 + 0.5).clamp(0, 1), size).clamp(0, 1)
        return (x - self.mean.to(x)[:, None, None]) / self.std.to(x)[:, None, None]

    @torch.no_grad()
    @without_cudnn_attention()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embed (B, 3, H, W) in [-1, 1] as (B, D) float32 of unit length."""
        pixels = self.preprocess(images).to(self.model.dtype)
        return _unit(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    @without_cudnn_attention()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed B texts as (B, D) float32 of unit length; overlong ones are cut."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        features = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return _unit(features)


def _unit(features: Any) -> Tensor:
    """Scale to unit length; transformers 5 wraps the features in an output record."""
    features = getattr(features, "pooler_output", features)
    return functional.normalize(features.float(), dim=-1)


def load_clip(
    source: str | Path | Source,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> ClipScorer:
    """Load CLIP for inference; arguments and errors as ``load_stable_diffusion``."""
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin

    place = pick_device(device)
    precision = pick_dtype(place, dtype)
    where = locate(source, "config.json", "There is no CLIP in {folder}.")
    with explain_missing(where):
        model = load_network(transformers.CLIPModel, where)
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(**where)
        # Only its numbers: the processor itself asks for torchvision.
        images, _ = ImageProcessingMixin.get_image_processor_dict(**where)
    model = model.to(place, precision).eval().requires_grad_(False)
    mean, std = torch.tensor(images["image_mean"]), torch.tensor(images["image_std"])
    return ClipScorer(model, tokenizer, mean, std)
