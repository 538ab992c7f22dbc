"""SDEdit, and text-to-image: what an instruction editor has to beat (section 4.1).

SDEdit noises the input part of the way and denoises it towards a caption of the
*edited* image: it is given the whole image in words, not the change. ``text_to_image``
ignores the input. Both take a text-to-image ``StableDiffusion``, not an editor's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ip2p_lib.diffusion.guidance import caption_denoiser
from ip2p_lib.diffusion.samplers import sample, timesteps
from ip2p_lib.diffusion.schedule import add_noise
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.images import fit, load, to_pil, to_tensor
from ip2p_lib.rng import key, normal

SAMPLER = "ddim"


def sdedit(
    backbone: StableDiffusion,
    image: Image,
    edited_caption: str,
    *,
    seed: int = 0,
    **options: Any,
) -> Image:
    """Edit one image, fitted to the model's resolution; options: ``sdedit_tensors``."""
    before = preprocess(backbone, image)
    captions, seeds = [edited_caption], [seed]
    after = sdedit_tensors(backbone, before, captions, seeds=seeds, **options)
    return to_pil(after)[0]


def sdedit_tensors(
    backbone: StableDiffusion,
    before: Tensor,
    edited_captions: Sequence[str],
    *,
    strength: float,
    cfg_scale: float,
    steps: int,
    seeds: Sequence[int],
) -> Tensor:
    """Edit images by adding and removing noise (Meng et al., arXiv 2108.01073).

    Args:
        backbone, before: a text-to-image model; (B, 3, H, W) in [-1, 1].
        edited_captions, seeds: one an image; another seed is another attempt.
        strength: fraction of the steps taken, in (0, 1]; figure 8 has 0.3 to 0.9.
        cfg_scale, steps: guidance scale; steps of the whole trajectory from noise.
    Raises:
        ValueError: the strength lies outside (0, 1], or the U-Net is an editor's.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is the part of steps, in (0, 1], not {strength}.")
    start = steps - max(1, round(steps * strength))
    latent = backbone.scaling_factor * backbone.encode(before).float()
    t = timesteps(backbone.schedule, steps, SAMPLER)[start]
    rows = torch.full((len(latent),), t, device=latent.device)
    schedule = backbone.schedule.to(latent.device)
    noisy = add_noise(schedule, latent, initial_noise(seeds, latent), rows)
    text = backbone.encode_text(edited_captions)
    return sample_from(backbone, noisy, text, cfg_scale, steps, start)


def text_to_image(
    backbone: StableDiffusion,
    before: Tensor,
    captions: Sequence[str],
    *,
    cfg_scale: float,
    steps: int,
    seeds: Sequence[int],
) -> Tensor:
    """Generate images of the captions; of ``before`` (B, 3, H, W) only the size counts.

    Arguments, result and errors as ``sdedit_tensors``.
    """
    size = [side // backbone.latent_factor for side in before.shape[-2:]]
    shape = len(before), backbone.latent_shape[0], *size
    noise = initial_noise(seeds, torch.empty(shape, device=backbone.device))
    text = backbone.encode_text(captions)
    return sample_from(backbone, noise, text, cfg_scale, steps)


def preprocess(backbone: StableDiffusion, image: Image) -> Tensor:
    """(1, 3, H, W): an image at the model's resolution, in its own aspect."""
    side = backbone.resolution
    return to_tensor(fit(load(image), side, multiple=side // 8))


def initial_noise(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Unit normal noise, each row a function of its own seed."""
    ids = torch.tensor(list(seeds), device=like.device)
    return normal(key("baseline", "start"), ids, tuple(like.shape[1:]))


def sample_from(
    backbone: StableDiffusion,
    noisy: Tensor,
    text: Tensor,
    cfg_scale: float,
    steps: int,
    start: int = 0,
) -> Tensor:
    """Sample from step ``start`` on, guided by (B, L, D) captions, and decode."""
    check_text_to_image(backbone)
    denoise = caption_denoiser(backbone.unet, text, backbone.null_text, cfg_scale)
    latent = sample(SAMPLER, denoise, noisy, backbone.schedule, steps, start=start)
    return backbone.decode(latent)


def check_text_to_image(backbone: StableDiffusion) -> None:
    """Raise ValueError if the U-Net is an editor's."""
    if (channels := backbone.unet.config.in_channels) != 4:
        raise ValueError(f"A text-to-image U-Net has 4 channels, not {channels}.")
