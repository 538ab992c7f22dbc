"""The pretrained text-to-image model the paper starts from (3.2), as one record.

Two conventions live here and nowhere else. The latent to be denoised is scaled to unit
variance by ``scaling``, a number of the autoencoder's own configuration; the latent of
the *conditioning* picture is the mode and unscaled, as in ``ddpm_edit.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ip2p_lib.config import Source
from ip2p_lib.device import pick_device, pick_dtype
from ip2p_lib.diffusion.attention import of_any_shape
from ip2p_lib.diffusion.loading import load_network
from ip2p_lib.diffusion.samplers import Schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass
class Backbone:
    """Text encoder and autoencoder, frozen, and the U-Net, which may be trained.

    The parts are those of a ``StableDiffusionPipeline``; ``schedule`` is the one the
    U-Net was trained with. Encoding and decoding keep no gradients.
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
    def scaling(self) -> float:
        """Factor that gives target latents unit variance: 0.18215 for SD 1.5."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent at the size the U-Net was trained for."""
        size = self.unet.config.sample_size
        return self.vae.config.latent_channels, size, size

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures that ``latent_shape`` decodes to."""
        factor: int = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return factor * self.latent_shape[-1]

    @cached_property
    def null_text(self) -> Tensor:
        """(1, L, D) embedding of the empty text, the null conditioning of 3.2.1."""
        return self.encode_text([""])

    def fits(self, texts: Sequence[str]) -> list[bool]:
        """Whether the text encoder reads each text whole, markers included."""
        length = self.text_encoder.config.max_position_embeddings
        return [len(ids) <= length for ids in self.tokenizer(list(texts)).input_ids]

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Texts to (B, L) int64 token ids, padded to the text encoder's length.

        Raises:
            ValueError: a text is too long and ``truncate`` is False; or one lone string
                was given, which would be read as a list of letters.
        """
        if isinstance(texts, str):
            raise ValueError(f"Give a list of texts, [{texts!r}], not one string.")
        length = self.text_encoder.config.max_position_embeddings
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=truncate
        ).input_ids
        _refuse_long_texts(texts, ids, length)
        return torch.tensor(ids, device=self.device)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Texts to (B, L, D) embeddings: the last hidden state, one vector a token.

        Raises:
            ValueError: as ``tokenize``.
        """
        ids = self.tokenize(texts, truncate=truncate)
        hidden: Tensor = self.text_encoder(ids).last_hidden_state
        return hidden

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to condition latents (B, C, h, w)."""
        return self.encode_moments(images)[0]

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the pictures' latents, unscaled.

        A training target is ``scaling * (mean + exp(logvar / 2) * noise)``; storing the
        two lets every epoch draw it anew.

        Args:
            images: (B, 3, H, W) in [-1, 1].
        Returns:
            Two (B, C, h, w).
        """
        moments = self.vae.encode(images.to(self.device, self.dtype)).latent_dist
        return moments.mean, moments.logvar

    @torch.no_grad()
    @of_any_shape()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to float32 pictures (B, 3, H, W) in [-1, 1]."""
        unscaled = (latents / self.scaling).to(self.device, self.dtype)
        images: Tensor = self.vae.decode(unscaled).sample
        return images.to(torch.promote_types(self.dtype, torch.float32)).clamp(-1, 1)


def _refuse_long_texts(texts: Sequence[str], ids: list[list[int]], limit: int) -> None:
    for text, tokens in zip(texts, ids, strict=True):
        if len(tokens) > limit:
            raise ValueError(
                f"{text[:60]!r}... is {len(tokens)} tokens long, markers included; the "
                f"text encoder reads {limit}. Shorten it, or pass truncate=True."
            )


def load_backbone(
    source: str | Path | Source,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """Load a Stable Diffusion model, ready for inference.

    Args:
        source: a local folder in ``diffusers`` layout; or a ``config.Source`` with a
            Hub id and a revision, so that the same weights come tomorrow.
        device: None picks the GPU where there is one.
        dtype: None is float32 on a CPU and float16 on a GPU.
    Returns:
        The backbone in evaluation mode. Only safetensors files are read.
    Raises:
        FileNotFoundError: a path that is no model folder, or a Hub id without revision.
        ValueError: weights are missing, the model does not predict epsilon under a
            scaled linear schedule, or device or dtype do not fit this machine.
    """
    place = pick_device(device)
    precision = pick_dtype(place, dtype)
    where = _locate(source)
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizerFast

    def part(kind: Any, name: str) -> Any:
        # torch's own ``to``: that of diffusers logs a warning about a dtype, always.
        network = load_network(kind, {**where, "subfolder": name})
        return nn.Module.to(network, place, precision).eval()

    return Backbone(
        # Before transformers 5 the other one parts Chinese, unless ftfy is installed.
        tokenizer=CLIPTokenizerFast.from_pretrained(**where, subfolder="tokenizer"),
        text_encoder=part(CLIPTextModel, "text_encoder").requires_grad_(False),
        vae=part(AutoencoderKL, "vae").requires_grad_(False),
        unet=part(UNet2DConditionModel, "unet"),
        schedule=_schedule(DDIMScheduler.load_config(**where, subfolder="scheduler")),
    )


def _locate(source: str | Path | Source) -> dict[str, Any]:
    """Arguments of ``from_pretrained``, to which a wrong path is a network error."""
    name = source.path_or_id if isinstance(source, Source) else source
    if isinstance(source, Source) and source.revision is not None:
        return {"pretrained_model_name_or_path": name, "revision": source.revision}
    folder = Path(name)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not a model folder: it has no model_index.json. For a model "
            "from the Hub pass config.Source(id, revision) with a commit as revision."
        )
    return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}


def _schedule(config: dict[str, Any]) -> Schedule:
    found = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
    if found != ("scaled_linear", "epsilon"):
        raise ValueError(
            "The model must predict epsilon under a scaled_linear schedule, as Stable "
            f"Diffusion 1.x does; its scheduler says {found}."
        )
    return Schedule.scaled_linear(
        config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    )
