"""The judge, an attribute classifier: reads an image and says which scene it shows.

It measures edits in the world's own attributes, where the paper has only CLIP (section
4.1). ``readings`` says which attributes those are.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ip2p_lib.config import MODELS
from ip2p_lib.device import pick_device
from ip2p_lib.files import read_json, write_bytes, write_json
from ip2p_lib.miniature.backdrop import RESOLUTION
from ip2p_lib.miniature.judge.readings import (
    ANSWERS,
    OBJECT,
    SCENE,
    SLOTS,
    Reading,
    readings_of,
)

WIDTHS = (64, 128, 256, 256)  # channels after each halving of the image
MIXERS = 2  # attention blocks over the cells that are left


class _Residual(nn.Module):
    """Two normalised 3 x 3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Judge(nn.Module):
    """A small convolutional network with attention between its last, 8 x 8, cells.

    Three attention maps pool the cells: for the scene and for the object in each slot.
    Both objects are named by the same layer, so that every image teaches both slots.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        """Start from random weights; ``widths`` are multiples of 8."""
        super().__init__()
        self.widths, width = tuple(widths), widths[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise((3, *widths)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [_Residual(after)]
        self.body = nn.Sequential(*layers)
        cells = (RESOLUTION >> len(self.widths)) ** 2
        self.places = nn.Parameter(0.1 * torch.randn(cells, width))
        mixers = (
            nn.TransformerEncoderLayer(
                width,
                nhead=4,
                dim_feedforward=2 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(MIXERS)
        )
        self.mixers = nn.Sequential(*mixers)
        self.norm = nn.LayerNorm(width)
        self.where = nn.Linear(width, 1 + len(SLOTS))
        self.scene_head = nn.Linear(width, sum(map(len, SCENE.values())))
        self.thing_head = nn.Linear(width, sum(map(len, OBJECT.values())))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every attribute, and of the cell in which each object is.

        From images (B, 3, 128, 128) in [-1, 1] to (B, answers) for each key of
        ``ANSWERS``; for ``left.where`` and ``right.where`` (B, 64), cells in reading
        order.
        """
        cells = self.body(images).flatten(2).transpose(1, 2) + self.places
        cells = self.norm(self.mixers(cells))
        maps = self.where(cells).transpose(1, 2)  # (B, 3, cells)
        scene, left, right = (maps.softmax(2) @ cells).unbind(1)
        heads = (self.scene_head(scene), self.thing_head(left), self.thing_head(right))
        sizes = [len(answers) for answers in ANSWERS.values()]
        logits = torch.cat(heads, dim=1).split(sizes, dim=1)
        where = {f"{slot}.where": maps[:, 1 + i] for i, slot in enumerate(SLOTS)}
        return dict(zip(ANSWERS, logits, strict=True)) | where

    @torch.inference_mode()
    def predict(self, images: Tensor, batch: int = 64) -> dict[str, Tensor]:
        """Logits of images on any device, as from ``forward`` but on the CPU.

        ``batch`` images are read at once. Raises ValueError for another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (3, RESOLUTION, RESOLUTION):
            raise ValueError(
                f"The judge reads images of shape (B, 3, {RESOLUTION}, {RESOLUTION}),"
                f" not {tuple(images.shape)}. Resize them, or add the batch's axis."
            )
        self.eval()
        parts = [self(part.to(self.places)) for part in images.split(batch)]
        return {name: torch.cat([p[name] for p in parts]).cpu() for name in parts[0]}

    def read(self, images: Tensor) -> list[Reading]:
        """Read images, as in ``predict``."""
        return list(readings_of(self.predict(images)))


def save_judge(judge: Judge, folder: Path) -> None:
    """Write ``config.json`` and half-precision weights, each whole or not at all."""
    half = {
        name: value.detach().cpu().half().contiguous()
        for name, value in judge.state_dict().items()
    }
    config = {"widths": judge.widths, "answers": ANSWERS}
    write_json(folder / "config.json", config)
    write_bytes(folder / "model.safetensors", save(half, metadata={"format": "pt"}))


def load_judge(
    folder: str | Path = MODELS / "miniature-judge",
    device: str | torch.device | None = None,
) -> Judge:
    """Open a saved judge in float32, by default on a GPU where there is one.

    Raises FileNotFoundError if a file is missing, and ValueError for a judge that was
    trained for another vocabulary.
    """
    folder = Path(folder)
    for path in (folder / "config.json", folder / "model.safetensors"):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing. The judge comes with the repository; restore it "
                "with git, or train it: python -m jobs.miniature.train_judge"
            )
    config = read_json(folder / "config.json")
    if config["answers"] != {name: list(ANSWERS[name]) for name in ANSWERS}:
        raise ValueError(
            f"The judge in {folder} answers other questions than this vocabulary's. "
            "Train it again: python -m jobs.miniature.train_judge"
        )
    judge = Judge(config["widths"])
    judge.load_state_dict(load_file(folder / "model.safetensors"))  # cast to float32
    return judge.eval().requires_grad_(False).to(device or pick_device())
