"""Imagic: fine-tune the model on one image, then sample its edit (arXiv 2210.09276).

A baseline that is trained anew for every edit. ``fit_imagic`` does the first two of its
stages, ``Imagic.edit`` the third:

1. optimise the text embedding, from the edited caption's, until the frozen U-Net
   reconstructs the image from it
2. fine-tune the U-Net to reconstruct the image from the optimised embedding
3. interpolate between the optimised embedding and the caption's, and sample
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image
from torch import Tensor

from ip2p_lib.diffusion.schedule import add_noise
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.evaluation.sdedit import (
    check_text_to_image,
    initial_noise,
    preprocess,
    sample_from,
)
from ip2p_lib.images import to_pil
from ip2p_lib.rng import integers, key, normal


@dataclass(frozen=True)
class Stage:
    """How long and how fast a stage trains."""

    steps: int
    learning_rate: float
    batch: int = 4  # noise levels at once


# For the miniature; for Stable Diffusion as in diffusers' community pipeline.
EMBEDDING, UNET = Stage(100, 1e-2), Stage(60, 1e-4)
SD_STAGES = {"embedding": Stage(500, 1e-3, 1), "unet": Stage(1000, 2e-6, 1)}


@dataclass(frozen=True)
class Imagic:
    """A model fine-tuned on one image; from ``fit_imagic``."""

    finetuned: StableDiffusion  # its U-Net is the fine-tuned copy
    target_embedding: Tensor  # (1, L, D) of the edited caption
    optimized_embedding: Tensor  # (1, L, D) of the image
    latent: Tensor  # (1, 4, h, w) of the image
    losses: tuple[float, ...]  # of all steps, first those of the embedding

    def edit(self, eta: float, *, cfg_scale: float, steps: int, seed: int = 0) -> Image:
        """Sample between the image (eta 0) and the edited caption (eta 1), stage 3.

        The paper has eta 0.6 to 0.8. The sampling is that of ``sdedit_tensors``.
        """
        text = torch.lerp(self.optimized_embedding, self.target_embedding, eta)
        noise = initial_noise([seed], self.latent)
        return to_pil(sample_from(self.finetuned, noise, text, cfg_scale, steps))[0]


def fit_imagic(
    backbone: StableDiffusion,
    image: Image,
    edited_caption: str,
    *,
    embedding: Stage = EMBEDDING,
    unet: Stage = UNET,
    seed: int = 0,
) -> Imagic:
    """Stages 1 and 2. The model stays as it is; a copy of its U-Net is trained.

    Args:
        backbone: a text-to-image model, else ValueError; the copy is float32.
        image: fitted to the model's resolution, keeping its aspect.
        edited_caption: what the edited image shows.
        embedding, unet: settings of stage 1 and stage 2.
        seed: of the noise that is drawn while training.
    """
    check_text_to_image(backbone)
    clean = backbone.encode(preprocess(backbone, image)).float()
    latent = backbone.scaling_factor * clean
    network = copy.deepcopy(backbone.unet).float().requires_grad_(False)
    finetuned = replace(backbone, unet=network)
    target = backbone.encode_text([edited_caption]).float()
    text = target.clone().requires_grad_()
    losses = [*_train(finetuned, latent, text, [text], embedding, seed)]
    text = text.detach()
    weights = [*network.requires_grad_().parameters()]
    losses += _train(finetuned, latent, text, weights, unet, seed + 1)
    network.requires_grad_(False)
    return Imagic(finetuned, target, text, latent, tuple(losses))


def _train(
    backbone: StableDiffusion,
    latent: Tensor,
    text: Tensor,
    weights: Iterable[Tensor],
    stage: Stage,
    seed: int,
) -> Iterator[float]:
    """Minimise the denoising loss of one latent and one text; yields it each step."""
    optimizer = torch.optim.Adam(weights, stage.learning_rate)
    schedule, n = backbone.schedule.to(latent.device), stage.batch
    ids = torch.arange(n, device=latent.device)
    for step in range(stage.steps):
        levels = len(schedule.alphas_cumprod)
        t = integers(key("imagic", "timestep", seed, step), ids, levels)
        noise = normal(key("imagic", "noise", seed, step), ids, tuple(latent.shape[1:]))
        x = add_noise(schedule, latent.expand(n, -1, -1, -1), noise, t)
        rows = text.expand(n, -1, -1)
        eps = backbone.unet(x, t, encoder_hidden_states=rows, return_dict=False)[0]
        loss = (eps.float() - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())
