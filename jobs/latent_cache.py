"""Latents of a dataset on disk, encoded by all processes of a run together (3.2).

The VAE costs as much as the network that is trained, so its output is stored: each
process encodes its shard of the pairs once, and all of them read all shards. A run that
is resumed, or repeated with another learning rate, encodes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ip2p_lib import checkpoint
from ip2p_lib.config import Source
from ip2p_lib.dataset.dataset import MANIFEST, PairDataset, stack
from ip2p_lib.dataset.pairs import Pair
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.distributed import rank, world_size
from ip2p_lib.files import sha256_of
from ip2p_lib.training.latents import (
    LATENTS,
    Latents,
    add_instructions,
    encode_pairs,
)

VAE_BATCH = 16  # pairs encoded in one call
POLL_SECONDS = 0.5  # between two checks for the shards of other processes


def cached_latents(
    backbone: StableDiffusion,
    data: Path,
    rows: range,
    resolution: int,
    source: Source,
    folder: Path,
    flips: bool = True,
) -> Latents:
    """Encode what ``folder`` does not hold yet, then read all of it.

    Every process of the run must call it; each waits for the others' shards.

    Args:
        backbone: the frozen networks, loaded from ``source``.
        data: folder of the pairs, of which ``rows`` are encoded.
        resolution: side of the square images, pixels.
        source: a shard of another source, or of other arguments, is encoded anew.
        folder: of the shards; created if missing.
        flips: store the mirrored images too, see ``add_instructions``.
    Returns:
        On the CPU, in half precision, with token ids for text.
    """
    cache_key = _cache_key(data, rows, resolution, source, flips)
    if _read(folder, rank(), cache_key) is None:
        own = torch.arange(rows.start, rows.stop).tensor_split(world_size())[rank()]
        encoded, texts, cut = _encode(backbone, data, own, resolution, flips)
        state = cache_key | {"instructions": texts, "cut": cut}
        checkpoint.save(folder / f"shard-{rank():03d}", encoded, state)
    parts = list[checkpoint.Checkpoint]()
    while len(parts) < world_size():
        if part := _read(folder, len(parts), cache_key):
            parts.append(part)
        else:
            time.sleep(POLL_SECONDS)  # its process is still encoding
    pairs = {name: torch.cat([p.tensors[name] for p in parts]) for name in LATENTS}
    texts = [text for part in parts for text in part.state["instructions"]]
    if rank() == 0:
        _tell_losses(backbone, texts, sum(part.state["cut"] for part in parts))
    return add_instructions(backbone, pairs, texts, as_tokens=True)


def _tell_losses(backbone: StableDiffusion, texts: list[str], cut: float) -> None:
    """Say how much of the images, ``cut`` of them in all, and of the texts is lost."""
    if share := cut / max(len(texts), 1):
        print(f"Cropping pairs to squares leaves out {share:.1%} of their area.")
    if texts and (fits := backbone.fits_context(texts)).count(False):
        first = texts[fits.index(False)]
        print(
            f"{fits.count(False)} instructions are longer than the "
            f"{backbone.context_length} tokens that the text encoder reads, and lose "
            f"their ends; the first is {first[:60]!r}..."
        )


def crop_to_squares(pairs: Sequence[Pair], resolution: int) -> tuple[Tensor, Tensor]:
    """Both images of B pairs, each (B, 3, resolution, resolution) in [-1, 1].

    Resized with Lanczos, as the released ``edit_dataset.py`` does, and cropped at the
    centre.
    """
    size, lanczos = (resolution, resolution), Image.Resampling.LANCZOS
    fit = partial(ImageOps.fit, size=size, method=lanczos)
    return stack([replace(p, before=fit(p.before), after=fit(p.after)) for p in pairs])


def _cache_key(
    data: Path, rows: range, resolution: int, source: Source, flips: bool
) -> dict[str, Any]:
    """Whatever the latents depend on, but not where the folders are."""
    vae = sorted(Path(source.path_or_id).glob("vae/*.safetensors"))
    return {
        "data": sha256_of(data / MANIFEST),
        "rows": [rows.start, rows.stop],
        "backbone": source.revision or sha256_of(*vae),
        "resolution": resolution,
        "flips": flips,
        "processes": world_size(),
    }


def _encode(
    backbone: StableDiffusion,
    data: Path,
    rows: Tensor,
    resolution: int,
    flips: bool,
) -> tuple[dict[str, Tensor], list[str], float]:
    """Encode rows of a dataset.

    Returns:
        Their latents, their instructions, and the sum over them of the share of an
        image that cropping to a square leaves out.
    """
    dataset, texts, cut = PairDataset(data), list[str](), 0.0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        """(before, after) of some pairs at a time; their texts and cuts are noted."""
        nonlocal cut
        for part in rows.split(VAE_BATCH):
            pairs = [dataset[i] for i in part.tolist()]
            texts.extend(pair.instruction for pair in pairs)
            cut += sum(1 - min(p.before.size) / max(p.before.size) for p in pairs)
            yield crop_to_squares(pairs, resolution)

    return encode_pairs(backbone, batches(), flips=flips), texts, cut


def _read(
    folder: Path, shard: int, cache_key: dict[str, Any]
) -> checkpoint.Checkpoint | None:
    """Read a shard if it is there, intact and of this cache key."""
    try:
        stored = checkpoint.load(folder / f"shard-{shard:03d}")
    except (FileNotFoundError, checkpoint.CheckpointError):
        return None
    return stored if cache_key.items() <= stored.state.items() else None
