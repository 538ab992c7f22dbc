"""The losses of the miniature's networks, one function each.

``clip_loss``: CLIP's symmetric contrastive loss (Radford et al. 2021). ``vae_loss``:
reconstruction with a small KL term (Rombach et al. 2022, section 3.1). ``unet_loss``:
equation 2 of that paper, with weights over noise levels.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel

from ip2p_lib.diffusion.schedule import Schedule, add_noise
from ip2p_lib.rng import integers, key, normal

_CHANGE_SCALE = 14.0  # inverse temperature of instructions against changes
_DRIFT_WEIGHT = 30.0  # of the states of captions
_MAX_SNR = 5.0  # gamma of Hang et al. 2023
_MAX_WEIGHT = 30.0  # of a noise level


def _contrast(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """CLIP's symmetric cross-entropy between two lists of unit vectors, (B, D)."""
    logits = scale * a @ b.T
    labels = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def clip_embeddings(
    clip: CLIPModel, pixels: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit embeddings of images in [-1, 1] and of token ids, (B, D) each."""
    pooled = clip.vision_model(pixel_values=pixels).pooler_output
    images = clip.visual_projection(pooled)
    texts = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
    return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)


def clip_loss(
    clip: CLIPModel, pixels: Tensor, captions: Tensor, instructions: Tensor
) -> Tensor:
    """Captions against images, and instructions against what changed.

    The second term is ours: it gives the words of instructions a meaning, since the
    editor later reads them through this frozen text encoder.

    Args:
        clip: the model.
        pixels: (2B, 3, 128, 128), all images before, then all after their edit.
        captions: (2B, L) token ids.
        instructions: (B, L) token ids.
    """
    images, texts = clip_embeddings(clip, pixels, torch.cat([captions, instructions]))
    texts, words = texts[: len(pixels)], texts[len(pixels) :]
    loss = _contrast(images, texts, clip.logit_scale.exp().clamp(max=100))
    before, after = images.chunk(2)
    change = F.normalize(after - before, dim=-1)
    return loss + 0.3 * _contrast(change, words, _CHANGE_SCALE)


def instruction_loss(
    clip: CLIPModel,
    teacher: nn.Module,
    change: Tensor,
    captions: Tensor,
    instructions: Tensor,
) -> Tensor:
    """New instructions against what changed, while captions keep their states.

    So a text encoder learns phrasings after a U-Net was trained on its captions.

    Args:
        clip: the model; its text tower learns.
        teacher: a copy of the text tower as it was.
        change: (B, D) unit difference of the images' embeddings.
        captions: (B, L) token ids.
        instructions: (B, L) token ids.
    """
    n = len(captions)
    with torch.no_grad():
        states = teacher(input_ids=captions).last_hidden_state
    out = clip.text_model(input_ids=torch.cat([captions, instructions]))
    drift = F.mse_loss(out.last_hidden_state[:n].float(), states.float())
    words = clip.text_projection(out.pooler_output[n:])
    words = F.normalize(words.float(), dim=-1)
    return _contrast(change, words, _CHANGE_SCALE) + _DRIFT_WEIGHT * drift


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(out: Tensor, x: Tensor) -> Tensor:
    """Distance of images (B, 3, H, W) in [-1, 1], with weight on edges and slopes."""
    down, across = _slopes(x)
    # Most of an image is smooth: what the eye judges are outlines and small parts.
    edges = F.pad(down.abs(), (0, 0, 0, 1)) + F.pad(across.abs(), (0, 1, 0, 0))
    weight = 1 + 4 * F.avg_pool2d(edges.mean(1, keepdim=True), 5, 1, 2).clamp(max=0.5)
    error = (out - x).abs()
    pixels = (weight * (error + 2 * error.square())).mean()
    slopes = zip(_slopes(out), (down, across), strict=True)
    return pixels + sum((a - b).abs().mean() for a, b in slopes)


def _moments(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def vae_loss(vae: AutoencoderKL, x: Tensor, noise: Tensor, half: bool) -> Tensor:
    """Reconstruction and a small KL term.

    A latent at half its size should decode to the image at half its size: latents that
    scale as images do are easier for the U-Net (EQ-VAE, arXiv 2502.09509).

    Args:
        vae: the autoencoder.
        x: (B, 3, 128, 128) in [-1, 1].
        noise: (B, 4, 32, 32) standard normal, for the sample of the latent.
        half: whether to decode at half the size.
    """
    mean, logvar = _moments(vae, x)
    z = mean + torch.exp(0.5 * logvar) * noise
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    if half:
        z, x = F.avg_pool2d(z, 2), F.avg_pool2d(x, 2)
    out = vae.decoder(vae.post_quant_conv(z)).float()
    return reconstruction_loss(out, x) + 1e-4 * kl


def unet_loss(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    latents: Tensor,
    text: Tensor,
    weights: Tensor,
    ids: Tensor,
    step: int,
) -> Tensor:
    """Noise prediction, weighted over noise levels and over the image.

    The error of the predicted x0 counts by the SNR, held between 1 and ``_MAX_SNR``
    (Salimans & Ho 2022; Hang et al. 2023). Weights over the image change what is learnt
    first, not what is right: objects are small, and harder than skies.

    Args:
        unet: the network.
        schedule: SD 1.5's.
        latents: (B, 4, 32, 32), scaled.
        text: (B, 77, D), some of the rows holding the empty caption.
        weights: (B, 32, 32), of each spatial position.
        ids: (B,) with ``step``, they name the draws of noise and time.
        step: number of the step.
    """
    noise = normal(key("unet noise", step), ids, tuple(latents.shape[1:]))
    t = integers(key("unet time", step), ids, len(schedule.alphas_cumprod))
    noisy = add_noise(schedule, latents, noise, t).float()
    out = unet(noisy, t, encoder_hidden_states=text, return_dict=False)[0]
    alpha = schedule.alphas_cumprod[t].float()
    snr = alpha / (1 - alpha)
    by_level = (snr.clamp(1, _MAX_SNR) / snr).clamp(max=_MAX_WEIGHT)
    errors = (weights * (out.float() - noise).square().mean(1)).mean((1, 2))
    return (by_level * errors).mean() / (by_level.mean() * weights.mean())
