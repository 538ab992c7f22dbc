"""The U-Net's stage of pretraining, on stored latents and stored text.

The autoencoder and the text encoder are frozen, so each picture and caption goes
through them once. Several processes may train together, each on its own pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.distributed import local_shard
from ip2p_lib.miniature.render import OBJECT_COLUMNS, SCENE_COLUMNS
from ip2p_lib.rng import integers, key, uniform
from jobs.miniature.loop import Progress, fit
from jobs.miniature.losses import unet_loss
from jobs.miniature.stages import Stage, token_ids

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPModel, CLIPTokenizer

_CAPTION_DROPOUT = 0.1  # for classifier-free guidance
_OBJECT_WEIGHT = 4  # of a place with an object, in the loss


@torch.no_grad()
def store_text(
    clip: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str], device: torch.device
) -> Tensor:
    """Last hidden states of many texts, (n, 77, D) in half precision on ``device``."""
    encoder = clip.text_model.to(device).eval()
    states = []
    for ids in token_ids(tokenizer, texts, 77).split(512):
        with torch.autocast(device.type, torch.float16, device.type == "cuda"):
            found = encoder(input_ids=ids.to(device).long()).last_hidden_state
        states.append(found.half())
    return torch.cat(states)


def object_cells(codes: Tensor) -> Tensor:
    """Weight of each place of a latent: more where objects stand.

    Args:
        codes: (n, 20) from ``render.encode``.
    Returns:
        (n, 16, 16) uint8: ``_OBJECT_WEIGHT`` in the square of an object, else 1.
    """
    centre = torch.arange(16, device=codes.device) * 8 + 4  # of a cell, pixels
    inside = torch.zeros(len(codes), 16, 16, dtype=torch.bool, device=codes.device)
    for first in (SCENE_COLUMNS, SCENE_COLUMNS + OBJECT_COLUMNS):
        name, x, base, size = codes[:, first : first + 4, None].unbind(1)
        across = (centre - x).abs() <= size / 2
        down = (centre <= base) & (centre >= base - size)
        inside |= (name >= 0)[..., None] & down[:, :, None] & across[:, None, :]
    return 1 + (_OBJECT_WEIGHT - 1) * inside.to(torch.uint8)


@dataclass(frozen=True)
class Pictures:
    """What the U-Net learns from: ``n`` pictures as latents, and their captions."""

    latents: Tensor  # (n, 4, 16, 16) half precision, scaled to unit variance
    cells: Tensor  # (n, 16, 16) weight of each place
    text: Tensor  # (n, 77, D) half precision
    null_text: Tensor  # (1, 77, D)


def train_unet(
    unet: UNet2DConditionModel, pictures: Pictures, stage: Stage, work: Path
) -> Iterator[Progress]:
    """Prepare the ``unet`` stage; consuming the progress trains.

    Args:
        unet: on the device of the pictures; changed in place.
        pictures: several processes hold each their own.
        stage: budget and batch size.
        work: folder of the resumable state.
    """
    latents, device = pictures.latents, pictures.latents.device
    schedule, each = Schedule.scaled_linear().to(device), torch.arange(stage.batch)

    def loss_of(step: int) -> Tensor:
        """Loss of one batch; its draws hang on the step alone."""
        ids = local_shard(each).to(device)
        rows = integers(key("unet", step), ids, len(latents))
        lost = uniform(key("unet drop", step), ids) < _CAPTION_DROPOUT
        text = torch.where(lost[:, None, None], pictures.null_text, pictures.text[rows])
        chosen = latents[rows].float(), text.float(), pictures.cells[rows].float()
        return unet_loss(unet, schedule, *chosen, ids, step)

    return fit(unet, loss_of, stage.budget, work)
