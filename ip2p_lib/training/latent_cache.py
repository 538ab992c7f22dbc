"""Latents of a dataset on disk, encoded by all processes of a run together (3.2).

The VAE costs as much as the network that is trained, so its output is stored: each
process encodes its shard of the pairs once, and all of them read all shards. A run that
is resumed, or repeated with another learning rate, encodes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ip2p_lib import checkpoint
from ip2p_lib.config import Source
from ip2p_lib.dataset.dataset import MANIFEST, PairDataset
from ip2p_lib.dataset.pairs import Pair
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.distributed import rank, world_size
from ip2p_lib.files import sha256_of
from ip2p_lib.images import to_tensor
from ip2p_lib.training.latents import Latents, encode_pairs, index_distinct

VAE_BATCH = 16  # pairs encoded in one call
POLL_SECONDS = 0.5  # between two checks for the shards of other processes


def cached_latents(
    backbone: StableDiffusion,
    data: Path,
    rows: range,
    resolution: int,
    source: Source,
    folder: Path,
) -> Latents:
    """Encode what ``folder`` does not hold yet, then read all of it.

    Every process of the run must call it; each waits for the others' shards.

    Args:
        backbone: the frozen networks, loaded from ``source``.
        data: folder of the pairs, of which ``rows`` are encoded.
        resolution: side of the square images, pixels.
        source: a shard of another source, or of other arguments, is encoded anew.
        folder: of the shards; created if missing.
    Returns:
        On the CPU, in half precision, with token ids for text: hidden states of many
        instructions are larger than their latents. ``train`` needs ``encode`` with it.
    """
    cache_key = _cache_key(data, rows, resolution, source)
    if _read(folder, rank(), cache_key) is None:
        own = torch.arange(rows.start, rows.stop).tensor_split(world_size())[rank()]
        encoded, texts = _encode(backbone, PairDataset(data), own, resolution)
        state = cache_key | {"instructions": texts}
        checkpoint.save(folder / f"shard-{rank():03d}", encoded, state)
    parts = [_wait_for(folder, shard, cache_key) for shard in range(world_size())]
    distinct, index = index_distinct(
        [text for part in parts for text in part.state["instructions"]]
    )
    names = ("target_mean", "target_logvar", "condition")
    return Latents(
        **{name: torch.cat([part.tensors[name] for part in parts]) for name in names},
        instruction=index,
        text=backbone.tokenize(distinct, truncate=True).cpu(),
        null_text=backbone.null_text.cpu(),
        scaling_factor=backbone.scaling_factor,
    )


def crop_to_squares(pairs: Sequence[Pair], resolution: int) -> tuple[Tensor, Tensor]:
    """Both images of B pairs, each (B, 3, resolution, resolution) in [-1, 1].

    Resized with Lanczos, as the released ``edit_dataset.py`` does, and cropped at the
    centre.
    """
    size, method = (resolution, resolution), Image.Resampling.LANCZOS
    before, after = (
        to_tensor([ImageOps.fit(getattr(p, side), size, method) for p in pairs])
        for side in ("before", "after")
    )
    return before, after


def _cache_key(
    data: Path, rows: range, resolution: int, source: Source
) -> dict[str, Any]:
    """Whatever the latents depend on, but not where the folders are."""
    vae = sorted(Path(source.path_or_id).glob("vae/*.safetensors"))
    return {
        "data": sha256_of(data / MANIFEST),
        "rows": [rows.start, rows.stop],
        "backbone": source.revision or sha256_of(*vae),
        "resolution": resolution,
        "processes": world_size(),
    }


def _encode(
    backbone: StableDiffusion, dataset: PairDataset, rows: Tensor, resolution: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Encode rows of a dataset; returns their latents and their instructions."""
    texts = list[str]()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part in rows.split(VAE_BATCH):
            pairs = [dataset[i] for i in part.tolist()]
            texts.extend(pair.instruction for pair in pairs)
            yield crop_to_squares(pairs, resolution)

    return encode_pairs(backbone, batches()), texts


def _read(
    folder: Path, shard: int, cache_key: dict[str, Any]
) -> checkpoint.Checkpoint | None:
    """Read a shard if it is there, intact and of this cache key."""
    try:
        stored = checkpoint.load(folder / f"shard-{shard:03d}")
    except (FileNotFoundError, checkpoint.CheckpointError):
        return None
    return stored if cache_key.items() <= stored.state.items() else None


def _wait_for(
    folder: Path, shard: int, cache_key: dict[str, Any]
) -> checkpoint.Checkpoint:
    """Read a shard once it is there; its process may still be writing it."""
    while (stored := _read(folder, shard, cache_key)) is None:
        time.sleep(POLL_SECONDS)
    return stored
