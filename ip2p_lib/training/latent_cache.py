"""Latents of a data set on disk, encoded by all processes of a run together (3.2).

The VAE costs as much as the network that is trained, so its output is kept: each
process encodes its share of the pairs, once, and all of them read all shares. A run
that is resumed, or repeated with another learning rate, encodes nothing.
"""

from __future__ import annotations

import hashlib
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
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.distributed import processes, rank
from ip2p_lib.images import to_tensor
from ip2p_lib.training.latents import Latents, encode_pairs

AT_ONCE = 16  # pairs that the VAE sees in one call
PATIENCE = 0.5  # seconds between looks for the shares of other processes


@dataclass(frozen=True)
class Order:
    """What is to be encoded: two equal orders have the same latents."""

    data: Path  # folder of the pairs
    rows: tuple[int, int]  # first and one past the last
    backbone: Source  # of the frozen networks
    resolution: int  # side of the squares, pixels

    def facts(self) -> dict[str, Any]:
        """What says the same of the same order, wherever the folders lie."""
        return {
            "data": _sha256([self.data / MANIFEST]),
            "rows": list(self.rows),
            "backbone": self.backbone.revision or _sha256(_weights_of(self.backbone)),
            "resolution": self.resolution,
            "processes": processes(),
        }


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _weights_of(source: Source) -> list[Path]:
    return sorted(Path(source.path_or_id).glob("vae/*.safetensors"))


def latents_of(backbone: Backbone, order: Order, folder: str | Path) -> Latents:
    """Encode what ``folder`` does not hold yet, and read the whole.

    Every process of the run must call it; each waits for the others' shares.

    Args:
        backbone: the frozen networks, on this process's device.
        order: the same in every process.
        folder: of the shares; made if missing.

    Returns:
        On the CPU, in half precision, with token ids for text: hidden states of many
        instructions are larger than their latents. ``train`` needs ``encode`` with it.

    Raises:
        DatasetError: a pair is damaged.
        FileNotFoundError: there is no data set.
        OSError: the disk is full.
    """
    folder, facts = Path(folder), order.facts()
    folder.mkdir(parents=True, exist_ok=True)
    if _kept(folder, rank(), facts) is None:
        _encode(backbone, order, folder / _name(rank()), facts)
    parts = [_wait_for(folder, share, facts) for share in range(processes())]
    texts = [text for part in parts for text in part.state["instructions"]]
    names = ("target_mean", "target_logvar", "condition")
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return Latents(
        **{name: torch.cat([part.tensors[name] for part in parts]) for name in names},
        instruction=torch.tensor([row[text] for text in texts]),
        text=backbone.tokenize(list(row), truncate=True).cpu(),
        null_text=backbone.null_text.cpu(),
        scaling=backbone.scaling,
    )


def squares(pairs: Sequence[Pair], resolution: int) -> tuple[Tensor, Tensor]:
    """Both pictures of B pairs, each (B, 3, resolution, resolution) in [-1, 1].

    What exceeds the square is cut evenly and alike; Lanczos, as the released
    ``edit_dataset.py`` resizes.
    """
    size, method = (resolution, resolution), Image.Resampling.LANCZOS
    before, after = (
        to_tensor([ImageOps.fit(getattr(p, side), size, method) for p in pairs])
        for side in ("before", "after")
    )
    return before, after


def _name(share: int) -> str:
    return f"share-{share:03d}"


def _encode(
    backbone: Backbone, order: Order, folder: Path, facts: dict[str, Any]
) -> None:
    """This process's share, checked and kept."""
    dataset, texts = PairDataset(order.data), list[str]()

    def batches(rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for part in rows:
            pairs = [dataset[i] for i in part.tolist()]
            texts.extend(pair.instruction for pair in pairs)
            yield squares(pairs, order.resolution)

    mine = torch.arange(*order.rows).tensor_split(processes())[rank()]
    coded = encode_pairs(backbone, batches(mine.split(AT_ONCE)))
    checkpoint.save(folder, coded, facts | {"instructions": texts})


def _kept(
    folder: Path, share: int, facts: dict[str, Any]
) -> checkpoint.Checkpoint | None:
    """A share that is there, whole, and of this order."""
    try:
        found = checkpoint.load(folder / _name(share))
    except (FileNotFoundError, checkpoint.CheckpointError):
        return None
    return found if facts.items() <= found.state.items() else None


def _wait_for(folder: Path, share: int, facts: dict[str, Any]) -> checkpoint.Checkpoint:
    """A process that fails ends the run, its launcher sees to that."""
    while (found := _kept(folder, share, facts)) is None:
        time.sleep(PATIENCE)
    return found
