"""What an instruction editor has to beat (section 4.1, figures 8 and 9).

Three ways to edit without training. ``sdedit`` is told what the whole edited picture
shows, not what to change: it noises the input part of the way and denoises towards the
edited caption. The other two bound every metric: ``copy_input`` keeps all and edits
nothing, ``ignore_input`` follows the caption and keeps nothing.

All take a text-to-image ``Backbone``, whose U-Net has 4 channels. ``*_tensors`` are the
same for a batch. ``imagic`` and ``text2live`` train anew for every edit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from ip2p_lib.diffusion.denoising import caption_denoiser
from ip2p_lib.diffusion.samplers import add_noise, sample, timesteps
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.images import fit, load, to_pil, to_tensor
from ip2p_lib.rng import key, normal

SAMPLER = "ddim"


def copy_input(image: Image) -> Image:
    """Return the picture unchanged: the best consistency, no edit at all."""
    return load(image)


def ignore_input(
    backbone: Backbone,
    image: Image,
    edited_caption: str,
    *,
    cfg_scale: float,
    steps: int,
    seed: int = 0,
) -> Image:
    """Draw the edited caption afresh at the picture's size: all edit, no consistency.

    Arguments and errors as ``sdedit``.
    """
    after = ignore_input_tensors(
        backbone,
        prepared(backbone, image),
        [edited_caption],
        cfg_scale=cfg_scale,
        steps=steps,
        seeds=[seed],
    )
    return to_pil(after)[0]


def sdedit(
    backbone: Backbone,
    image: Image,
    edited_caption: str,
    *,
    strength: float,
    cfg_scale: float,
    steps: int,
    seed: int = 0,
) -> Image:
    """Edit one picture by noising and denoising it (Meng et al., arXiv 2108.01073).

    Args:
        backbone: a text-to-image model.
        image: fitted to the backbone's resolution, keeping its aspect.
        edited_caption: what the edited picture shows.
        strength: share of the steps taken, in (0, 1]; figure 8 has 0.3 to 0.9.
        cfg_scale: guidance by the caption.
        steps: of the whole walk from pure noise.
        seed: another seed is another attempt.

    Raises:
        ValueError: the strength lies outside (0, 1], or the U-Net is an editor's.
    """
    after = sdedit_tensors(
        backbone,
        prepared(backbone, image),
        [edited_caption],
        strength=strength,
        cfg_scale=cfg_scale,
        steps=steps,
        seeds=[seed],
    )
    return to_pil(after)[0]


def sdedit_tensors(
    backbone: Backbone,
    before: Tensor,
    edited_captions: Sequence[str],
    *,
    strength: float,
    cfg_scale: float,
    steps: int,
    seeds: Sequence[int],
) -> Tensor:
    """``sdedit`` of (B, 3, H, W) in [-1, 1], with a caption and a seed for each."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength is the share of steps, in (0, 1], not {strength}.")
    start = steps - max(1, round(steps * strength))
    latent = backbone.scaling * backbone.encode(before).float()
    noise = start_noise(seeds, latent)
    t = timesteps(backbone.schedule, steps, SAMPLER)[start]
    rows = torch.full((len(latent),), t, device=latent.device)
    noisy = add_noise(backbone.schedule.to(latent.device), latent, noise, rows)
    text = backbone.encode_text(edited_captions)
    return denoised(backbone, noisy, text, cfg_scale, steps, start)


def ignore_input_tensors(
    backbone: Backbone,
    before: Tensor,
    edited_captions: Sequence[str],
    *,
    cfg_scale: float,
    steps: int,
    seeds: Sequence[int],
) -> Tensor:
    """``ignore_input`` of (B, 3, H, W), of which only the size is used."""
    noise = start_noise(seeds, backbone.encode(before).float())
    text = backbone.encode_text(edited_captions)
    return denoised(backbone, noise, text, cfg_scale, steps, 0)


def require_text_to_image(backbone: Backbone) -> None:
    """Raise ValueError if the U-Net is an editor's."""
    if (channels := backbone.unet.config.in_channels) != 4:
        raise ValueError(
            f"This baseline needs a text-to-image U-Net of 4 channels, not {channels}: "
            "load the backbone the editor was made from."
        )


def prepared(backbone: Backbone, image: Image) -> Tensor:
    """(1, 3, H, W): a picture at the backbone's resolution, in its own aspect."""
    side = backbone.resolution
    return to_tensor(fit(load(image), side, multiple=side // 8))


def start_noise(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Unit normal noise, each row a function of its own seed."""
    ids = torch.tensor(list(seeds), device=like.device)
    return normal(key("baseline", "start"), ids, tuple(like.shape[1:]))


def denoised(
    backbone: Backbone,
    noisy: Tensor,
    text: Tensor,
    cfg_scale: float,
    steps: int,
    start: int,
) -> Tensor:
    """Walk from step ``start`` to the end, guided by (B, L, D) captions, and decode."""
    require_text_to_image(backbone)
    denoise = caption_denoiser(backbone.unet, text, backbone.null_text, cfg_scale)
    latent = sample(SAMPLER, denoise, noisy, backbone.schedule, steps, start=start)
    return backbone.decode(latent)
