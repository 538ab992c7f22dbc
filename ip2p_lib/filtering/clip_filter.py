"""Keep the rendered pairs that show the edit (section 3.1.2 and appendix A.2).

Prompt-to-Prompt makes many candidates of one triplet and most are poor: too alike, too
different, or changed in some way nobody asked for. CLIP scores each candidate four
times and the paper keeps those above every threshold, at most four of one triplet.
Read ``score_pairs`` for the four numbers, then ``passes`` and ``keep_best``.

The numbers follow the released ``metrics/clip_similarity.py``, except that pictures
are resized as CLIP's own processor does it (smoothed, middle cropped); the released
file squeezes them to a square without smoothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ip2p_lib.diffusion.attention import of_any_shape
from ip2p_lib.images import resize_and_crop

if TYPE_CHECKING:
    from ip2p_lib.config import Filtering, Source


@dataclass
class ClipScorer:
    """A ``CLIPModel``, its tokenizer, and the (3,) mean and deviation of its pictures.

    ``released_range`` repeats a slip of the released ``compute_metrics.py``: CLIP sees
    [-1, 1] where [0, 1] is meant. Only for comparing with the paper's curves.
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

    def prepare(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise (B, 3, H, W) in [-1, 1] to (B, 3, S, S) float32.

        Raises:
            ValueError: not a batch of three-channel pictures.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"CLIP scores pictures of shape (B, 3, H, W), not "
                f"{tuple(images.shape)}. Stack them with images.to_tensor first."
            )
        x = images.to(self.device, torch.float32)
        size = self.model.config.vision_config.image_size
        if self.released_range:
            x = resize_and_crop(x, size)
        else:  # clamped twice: bicubic overshoots at edges, 8-bit pictures cannot
            x = resize_and_crop((x / 2 + 0.5).clamp(0, 1), size).clamp(0, 1)
        return (x - self.mean.to(x)[:, None, None]) / self.std.to(x)[:, None, None]

    @torch.no_grad()
    @of_any_shape()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embed (B, 3, H, W) in [-1, 1] as (B, D) float32 of unit length."""
        pixels = self.prepare(images).to(self.model.dtype)
        return _unit(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    @of_any_shape()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed B captions as (B, D) float32 of unit length; overlong ones are cut."""
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
    """Load CLIP from a folder, a Hub id or a ``config.Source``.

    The device defaults to a GPU if there is one, where the dtype is float16.

    Raises:
        FileNotFoundError: the folder or the Hub model cannot be read.
    """
    import transformers

    name = str(getattr(source, "path_or_id", source))
    pinned = {"revision": getattr(source, "revision", None)}
    try:
        model = transformers.CLIPModel.from_pretrained(
            name, **pinned, use_safetensors=True
        )
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(name, **pinned)
        # The Pillow class by name where it exists: the other asks for torchvision.
        processor = getattr(
            transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor
        ).from_pretrained(name, **pinned)
    except OSError as error:
        raise FileNotFoundError(
            f"CLIP cannot be loaded from {name!r}. If this is a folder, check that it "
            "holds config.json; if it is a Hub id, connect to the network once so that "
            "it can be downloaded, or use SCALE='miniature', which needs none."
        ) from error
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = model.to(device, dtype).eval().requires_grad_(False)
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return ClipScorer(model, tokenizer, mean, std)


@dataclass(frozen=True)
class Scores:
    """The four cosines of B pairs, each (B,) in [-1, 1], with their released names."""

    image: Tensor  # clip_sim_image: picture before against picture after
    before: Tensor  # clip_sim_0: picture before against its caption
    after: Tensor  # clip_sim_1: picture after against the edited caption
    direction: Tensor  # clip_sim_dir: change of pictures against change of captions


def score_pairs(
    clip: ClipScorer,
    before: Tensor,
    after: Tensor,
    captions: Sequence[str],
    edited_captions: Sequence[str],
) -> Scores:
    """Score B pairs in one pass of each tower (released ``clip_similarity.py``).

    The direction is cos(E(after) - E(before), T(edited) - T(caption)) with unit
    embeddings E of pictures and T of texts (Gal et al., StyleGAN-NADA).

    Args:
        clip: the scorer; the scores stay on its device.
        before: (B, 3, H, W) in [-1, 1], of ``captions``.
        after: (B, 3, H, W) in [-1, 1], of ``edited_captions``.
        captions: B texts.
        edited_captions: B texts.

    Raises:
        ValueError: the four arguments do not have the same length.
    """
    sides = (before, after, captions, edited_captions)
    if len(set(lengths := [len(side) for side in sides])) != 1:
        raise ValueError(
            "Each pair needs two pictures and two captions, but before, after, "
            f"captions and edited_captions hold {lengths} of them."
        )
    image_0, image_1 = clip.embed_images(torch.cat([before, after])).chunk(2)
    return score_embedded(clip, image_0, image_1, [*captions, *edited_captions])


def score_embedded(
    clip: ClipScorer, image_0: Tensor, image_1: Tensor, texts: Sequence[str]
) -> Scores:
    """The same for embedded pictures, each (B, D); captions before edited ones."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # many are shared
    text_0, text_1 = clip.embed_texts(list(row))[[row[t] for t in texts]].chunk(2)
    return Scores(
        image=functional.cosine_similarity(image_0, image_1),
        before=functional.cosine_similarity(image_0, text_0),
        after=functional.cosine_similarity(image_1, text_1),
        direction=functional.cosine_similarity(image_1 - image_0, text_1 - text_0),
    )


def _limits(thresholds: Filtering) -> dict[str, float]:
    """Name the threshold of each score, in the order the reasons are given."""
    return {
        "image": thresholds.image,
        "before": thresholds.text,
        "after": thresholds.text,
        "direction": thresholds.direction,
    }


def passes(scores: Scores, thresholds: Filtering) -> Tensor:
    """Tell, as (B,) bool, which pairs reach every threshold; NaN never does."""
    limits = _limits(thresholds)
    met = [getattr(scores, name) >= limit for name, limit in limits.items()]
    return torch.stack(met).all(0)


def drop_reasons(scores: Scores, thresholds: Filtering) -> list[str | None]:
    """Name the first threshold each pair misses (``"image 0.610 < 0.750"``) or None."""
    limits = _limits(thresholds)
    table = torch.stack([getattr(scores, name) for name in limits], 1).tolist()
    return [_first_miss(row, limits) for row in table]


def _first_miss(values: list[float], limits: dict[str, float]) -> str | None:
    for (name, limit), value in zip(limits.items(), values, strict=True):
        if not value >= limit:  # written so that NaN is a miss
            return f"{name} {value:.3f} < {limit:.3f}"
    return None


def keep_best(
    scores: Scores, groups: Sequence[Hashable], thresholds: Filtering
) -> list[int]:
    """Choose the best ``thresholds.keep`` passing pairs of every triplet.

    ``groups`` names each pair's triplet. Returns the rows to keep: triplets in the
    order they appear, within one the highest directional similarity first.
    """
    passed, direction = passes(scores, thresholds).tolist(), scores.direction.tolist()
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        if passed[row]:
            members.setdefault(group, []).append(row)
    return [
        row
        for rows in members.values()
        for row in sorted(rows, key=lambda r: -direction[r])[: thresholds.keep]
    ]
