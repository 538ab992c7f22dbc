"""The pretrained text-to-image model the paper starts from (3.2), as one record.

Two conventions are decided here alone. The latent to be denoised is scaled to unit
variance by ``scaling_factor``, a number of the autoencoder's configuration. The latent
of the *conditioning* image is the mode and unscaled, as in ``ddpm_edit.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ip2p_lib.checks import each_text
from ip2p_lib.config import Source
from ip2p_lib.device import pick_device, pick_dtype, without_cudnn_attention
from ip2p_lib.diffusion.loading import explain_missing, load_network, locate
from ip2p_lib.diffusion.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass
class StableDiffusion:
    """Text encoder and autoencoder, frozen, and the U-Net, which may be trained.

    The parts are those of a ``StableDiffusionPipeline``; ``schedule`` is the U-Net's.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    schedule: Schedule

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vae.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, and of what the two encoders return."""
        return self.vae.dtype

    @property
    def scaling_factor(self) -> float:
        """Factor that gives target latents unit variance: 0.18215 for SD 1.5."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent at the size the U-Net was trained for."""
        size = self.unet.config.sample_size
        return self.vae.config.latent_channels, size, size

    @property
    def resolution(self) -> int:
        """Side in pixels of the images that ``latent_shape`` decodes to."""
        return self.latent_factor * self.latent_shape[-1]

    @property
    def latent_factor(self) -> int:
        """Pixels on the side of one element of a latent: 8 for Stable Diffusion."""
        halvings: int = len(self.vae.config.block_out_channels) - 1
        return 2**halvings

    @cached_property
    def null_text(self) -> Tensor:
        """(1, L, D) embedding of the empty text, the null conditioning of 3.2.1."""
        return self.encode_text([""])

    @property
    def context_length(self) -> int:
        """Tokens the text encoder reads, start and end token included: 77 for CLIP."""
        return int(self.text_encoder.config.max_position_embeddings)

    def fits_context(self, texts: Sequence[str]) -> list[bool]:
        """Whether the text encoder reads each text whole."""
        ids = self.tokenizer(list(texts)).input_ids
        return [len(tokens) <= self.context_length for tokens in ids]

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Texts to (B, L) int64 token ids, padded to the text encoder's length.

        Raises ValueError for a text that is too long, unless ``truncate``, and for one
        lone text, as ``checks.each_text``.
        """
        texts, limit = list(each_text("texts", texts)), self.context_length
        ids = self.tokenizer(
            texts, padding="max_length", max_length=limit, truncation=truncate
        ).input_ids
        for text, tokens in zip(texts, ids, strict=True):
            if len(tokens) > limit:
                raise ValueError(
                    f"{text[:60]!r}... is {len(tokens)} tokens long, start and end "
                    f"token included; the text encoder reads {limit}. Shorten it."
                )
        return torch.tensor(ids, device=self.device)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts to (B, L, D) embeddings, one vector a token; errors as ``tokenize``."""
        hidden: Tensor = self.text_encoder(self.tokenize(texts)).last_hidden_state
        return hidden

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to unscaled condition latents (B, C, h, w)."""
        return self.encode_moments(images)[0]

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (B, C, h, w) each, of the images' unscaled latents.

        A training target is ``scaling_factor * (mean + exp(logvar / 2) * noise)``.
        """
        moments = self.vae.encode(images.to(self.device, self.dtype)).latent_dist
        return moments.mean, moments.logvar

    @torch.no_grad()
    @without_cudnn_attention()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to float32 images (B, 3, H, W) in [-1, 1]."""
        unscaled = (latents / self.scaling_factor).to(self.device, self.dtype)
        images: Tensor = self.vae.decode(unscaled).sample
        return images.to(torch.promote_types(self.dtype, torch.float32)).clamp(-1, 1)


def load_stable_diffusion(
    source: str | Path | Source,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> StableDiffusion:
    """Load a Stable Diffusion model for inference. Only safetensors files are read.

    ``source`` is a local folder, or a ``config.Source`` with a Hub id and a revision;
    ``device`` None picks the GPU where there is one, ``dtype`` None float32 on a CPU
    and float16 on a GPU.

    Raises:
        FileNotFoundError: the folder holds no model, or the Hub is out of reach.
        ValueError: weights are missing, the model does not predict epsilon under a
            scaled linear schedule, or device or dtype do not fit this machine.
    """
    place = pick_device(device)
    precision = pick_dtype(place, dtype)
    where = locate(source, "model_index.json", "There is no model in {folder}.")
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizerFast

    def part(network: Any, name: str) -> Any:
        model = load_network(network, {**where, "subfolder": name})
        # torch's own ``to``: that of diffusers logs a warning about a dtype, always.
        return nn.Module.to(model, place, precision).eval()

    with explain_missing(where):
        scheduler = DDIMScheduler.load_config(**where, subfolder="scheduler")
        return StableDiffusion(
            # The slow tokenizer splits Chinese wrongly, before transformers 5.
            tokenizer=CLIPTokenizerFast.from_pretrained(**where, subfolder="tokenizer"),
            text_encoder=part(CLIPTextModel, "text_encoder").requires_grad_(False),
            vae=part(AutoencoderKL, "vae").requires_grad_(False),
            unet=part(UNet2DConditionModel, "unet"),
            schedule=_schedule(scheduler),
        )


def _schedule(config: dict[str, Any]) -> Schedule:
    kinds = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
    if kinds != ("scaled_linear", "epsilon"):
        raise ValueError(
            "The model must predict epsilon under a scaled_linear schedule, as Stable "
            f"Diffusion 1.x does; its scheduler says {kinds}."
        )
    return Schedule.scaled_linear(
        config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    )
