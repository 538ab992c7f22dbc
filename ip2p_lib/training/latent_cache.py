"""Latents of a dataset on disk, encoded by all processes of a run together (3.2).

The VAE costs as much as the network that is trained, so its output is stored: each
process encodes its shard of the pairs once, and all of them read all shards. A run that
is resumed, or repeated with another learning rate, encodes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class CacheKey:
    """What is encoded: two equal keys have the same latents."""

    data: Path  # folder of the pairs
    rows: tuple[int, int]  # first and one past the last
    backbone: Source  # of the frozen networks
    resolution: int  # side of the square images, pixels

    def to_dict(self) -> dict[str, Any]:
        """The key as JSON values that do not depend on where the folders are."""
        vae = sorted(Path(self.backbone.path_or_id).glob("vae/*.safetensors"))
        return {
            "data": sha256_of(self.data / MANIFEST),
            "rows": list(self.rows),
            "backbone": self.backbone.revision or sha256_of(*vae),
            "resolution": self.resolution,
            "processes": world_size(),
        }


def cached_latents(
    backbone: StableDiffusion, cache_key: CacheKey, folder: str | Path
) -> Latents:
    """Encode what ``folder`` does not hold yet, then read all of it.

    Every process of the run must call it; each waits for the others' shards.

    Returns:
        On the CPU, in half precision, with token ids for text: hidden states of many
        instructions are larger than their latents. ``train`` needs ``encode`` with it.
    """
    folder, identity = Path(folder), cache_key.to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    if _read(folder, rank(), identity) is None:
        _encode(backbone, cache_key, folder, identity)
    parts = [_wait_for(folder, shard, identity) for shard in range(world_size())]
    names = ("target_mean", "target_logvar", "condition")
    distinct, index = index_distinct(
        [text for part in parts for text in part.state["instructions"]]
    )
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


def _encode(
    backbone: StableDiffusion,
    cache_key: CacheKey,
    folder: Path,
    identity: dict[str, Any],
) -> None:
    """Encode and store this process's shard."""
    dataset, texts = PairDataset(cache_key.data), list[str]()

    def batches(parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in parts:
            pairs = [dataset[i] for i in rows.tolist()]
            texts.extend(pair.instruction for pair in pairs)
            yield crop_to_squares(pairs, cache_key.resolution)

    own_rows = torch.arange(*cache_key.rows).tensor_split(world_size())[rank()]
    encoded = encode_pairs(backbone, batches(own_rows.split(VAE_BATCH)))
    state = identity | {"instructions": texts}
    checkpoint.save(folder / f"shard-{rank():03d}", encoded, state)


def _read(
    folder: Path, shard: int, identity: dict[str, Any]
) -> checkpoint.Checkpoint | None:
    """Read a shard if it is there, intact and of this cache key."""
    try:
        stored = checkpoint.load(folder / f"shard-{shard:03d}")
    except (FileNotFoundError, checkpoint.CheckpointError):
        return None
    return stored if identity.items() <= stored.state.items() else None


def _wait_for(
    folder: Path, shard: int, identity: dict[str, Any]
) -> checkpoint.Checkpoint:
    """Read a shard once it is there; its process may still be writing it."""
    while (stored := _read(folder, shard, identity)) is None:
        time.sleep(POLL_SECONDS)
    return stored
