"""Edit pictures by instruction with a trained editor (sections 3.2.1 and 4).

``load_editor().edit(image, "make it winter")`` is the whole interface; the work is in
``Editor.trajectory``. The input picture's latent (VAE mode, unscaled) and the hidden
states of the instruction guide a sampler by the two scales of equation 3, s_I and s_T.
A picture never depends on the batch it is edited in, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from PIL.Image import Image
from torch import Tensor

from ip2p_lib.config import Editing, Scale, Source, preset
from ip2p_lib.diffusion import samplers as diffusion
from ip2p_lib.diffusion.denoising import edit_denoiser
from ip2p_lib.diffusion.loading import load_network
from ip2p_lib.diffusion.samplers import Step
from ip2p_lib.diffusion.stable_diffusion import Backbone, load_backbone
from ip2p_lib.images import fit, load, to_pil, to_tensor
from ip2p_lib.rng import key, normal

PIXELS = 4 * 512 * 512  # edited at once: four large pictures, or more small ones


class Knobs(TypedDict, total=False):
    """What an edit can be asked for, as one value for all pictures or one for each."""

    text_scale: float | Sequence[float] | None  # s_T; None is the size's default
    image_scale: float | Sequence[float] | None  # s_I
    steps: int | None
    seed: int | Sequence[int]


def _noise_of_seeds(step: int, seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unit normal noise (B, *shape) of a step; the walk begins with step -1."""
    return normal(key("edit", step), seeds, shape)


@dataclass
class Editor:
    """A trained editor and its defaults."""

    backbone: Backbone  # its U-Net takes 8 channels
    settings: Editing  # steps, scales and sampler where a call does not say
    resolution: int  # pixels of the long side, about
    _noise: Callable[..., Tensor] = field(default=_noise_of_seeds, repr=False)

    def __post_init__(self) -> None:
        """Refuse a U-Net that cannot see the input picture."""
        if (channels := self.backbone.unet.config.in_channels) != 8:
            raise ValueError(
                f"An editor's U-Net takes 8 channels, not {channels}: widen_conv_in it."
            )

    def edit(
        self,
        image: Image,
        instruction: str,
        *,
        text_scale: float | None = None,
        image_scale: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Image:
        """Edit one picture.

        Args:
            image: is fitted to the editor's resolution and keeps its aspect, as in the
                released ``edit_cli.py``.
            instruction: what to change, such as ``"make it winter"``.
            text_scale: s_T, how strongly to follow the instruction; paper 5 to 10.
            image_scale: s_I, how strongly to keep the input; paper 1 to 1.5.
            steps: denoising steps.
            seed: another seed is another attempt.

        Raises:
            ValueError: no picture, no instruction or one too long, a negative scale,
                less than one step; or half precision overflowed.
        """
        scales = Knobs(text_scale=text_scale, image_scale=image_scale)
        knobs: Knobs = {**scales, "steps": steps, "seed": seed}
        return self.edit_batch([image], [instruction], **knobs)[0]

    def edit_batch(
        self,
        images: Sequence[Image],
        instructions: Sequence[str],
        **knobs: Unpack[Knobs],
    ) -> list[Image]:
        """Edit pictures of any sizes, each by its instruction; errors as ``edit``."""
        request = self._request(len(images), instructions, **knobs)
        pictures = [self._fit(image) for image in images]
        edited: dict[int, Image] = {}
        for size in {picture.size for picture in pictures}:
            rows = [i for i, picture in enumerate(pictures) if picture.size == size]
            before = to_tensor([pictures[i] for i in rows])
            after = self.edit_tensors(before, **_pick(request, rows))
            edited |= zip(rows, to_pil(after), strict=True)
        return [edited[i] for i in range(len(pictures))]

    def edit_tensors(
        self, before: Tensor, instructions: Sequence[str], **knobs: Unpack[Knobs]
    ) -> Tensor:
        """Edit (B, 3, H, W) in [-1, 1] into the same, without resizing."""
        request = self._request(len(before), instructions, **knobs)
        size = max(1, PIXELS // (before.shape[-2] * before.shape[-1]))
        edited = []
        for rows in torch.arange(len(before)).split(size):
            *_, last = self.trajectory(before[rows], **_pick(request, rows.tolist()))
            edited.append(self.backbone.decode(last.x))
        return torch.cat(edited)

    def trajectory(
        self, before: Tensor, instructions: Sequence[str], **knobs: Unpack[Knobs]
    ) -> Iterator[Step]:
        """Walk through ``edit_tensors`` step by step: for progress, previews, a stop.

        Decoding a step's ``x0`` gives a preview, the last step's ``x`` the picture.
        """
        request = self._request(len(before), instructions, **knobs)
        backbone, condition = self.backbone, self.backbone.encode(before)
        device, shape = condition.device, tuple(condition.shape[1:])
        seeds = torch.tensor(request["seed"], device=device)
        denoise = edit_denoiser(
            backbone.unet,
            condition,
            backbone.encode_text(instructions),
            backbone.null_text,
            torch.tensor(request["text_scale"], device=device),
            torch.tensor(request["image_scale"], device=device),
        )
        return diffusion.trajectory(
            self.settings.sampler,
            denoise,
            self._noise(-1, seeds, shape),
            backbone.schedule,
            request["steps"],
            step_noise=lambda step: self._noise(step, seeds, shape),
        )

    def _fit(self, image: Image) -> Image:
        """Resize, keeping the aspect to an eighth: to multiples of 64 for 512."""
        if not isinstance(image, Image):
            raise ValueError(
                f"edit needs a PIL picture, not {type(image).__name__}. Open a file by "
                "images.load, turn a tensor into pictures by images.to_pil."
            )
        return fit(load(image), self.resolution, multiple=self.resolution // 8)

    def _request(
        self, rows: int, instructions: Sequence[str], **knobs: Unpack[Knobs]
    ) -> dict[str, Any]:
        """Fill in the defaults, one value for each picture, and check them all."""
        if unknown := knobs.keys() - Knobs.__annotations__:
            names = ", ".join(Knobs.__annotations__)
            raise TypeError(f"An edit has no {', '.join(unknown)}; it has {names}.")
        if isinstance(instructions, str) or len(instructions) != rows:
            raise ValueError(f"Give a list of {rows} instructions, one a picture.")
        asked = {name: value for name, value in knobs.items() if value is not None}
        values: dict[str, Any] = {"seed": 0, **vars(self.settings), **asked}
        if values["steps"] < 1:
            raise ValueError(f"An edit takes 1 step or more, not {values['steps']}.")
        return {
            "instructions": [_checked_instruction(text) for text in instructions],
            "text_scale": _checked_scales("text_scale", values["text_scale"], rows),
            "image_scale": _checked_scales("image_scale", values["image_scale"], rows),
            "seed": _per_row("seed", values["seed"], rows),
            "steps": values["steps"],
        }


def _pick(request: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """The same request for some of the pictures."""
    lists = {name: value for name, value in request.items() if isinstance(value, list)}
    return request | {name: [value[i] for i in rows] for name, value in lists.items()}


def _checked_instruction(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"The instruction is {text!r}. Say what should change, for example "
            "'make it winter'."
        )
    return text


def _per_row(name: str, value: Any, rows: int) -> list[Any]:
    values = [value] * rows if isinstance(value, int | float) else list(value)
    if len(values) != rows:
        raise ValueError(f"Give one {name}, or one for each of {rows} pictures.")
    return values


def _checked_scales(name: str, value: Any, rows: int) -> list[float]:
    scales = [float(scale) for scale in _per_row(name, value, rows)]
    if bad := [scale for scale in scales if not 0 <= scale < math.inf]:
        raise ValueError(
            f"{name} must be 0 or more, not {bad[0]}: 0 ignores, 1 follows as trained."
        )
    return scales


def load_editor(
    scale: str | Scale = "miniature", device: str | torch.device | None = None
) -> Editor:
    """Load the editor of one size of the project, with that size's tuned defaults.

    ``scale`` is a name, or a changed copy of a preset, such as one with other weights.

    "smoke" and "miniature" ship with the repository; the others are downloaded once.

    Raises:
        ValueError: no such scale; the message names the nearest.
        FileNotFoundError: the weights are not here and cannot be downloaded.
    """
    size = scale if isinstance(scale, Scale) else preset(scale)
    if size.editor.revision is None:
        backbone = load_backbone(size.backbone, device=device)
        backbone = replace(backbone, unet=_load_unet(size.editor, backbone))
        return Editor(backbone, size.editing, size.resolution)
    try:
        backbone = load_backbone(size.editor, device=device)
    except OSError as error:
        raise FileNotFoundError(
            f"{size.editor.path_or_id} at revision {size.editor.revision} is not in "
            "the local cache and cannot be downloaded. Connect to the network and try "
            "again, or use load_editor('miniature'), which ships with the repository."
        ) from error
    return Editor(backbone, size.editing, size.resolution)


def _load_unet(source: Source, backbone: Backbone) -> Any:
    """A U-Net of our own training; the frozen parts are its backbone's."""
    from diffusers import UNet2DConditionModel

    folder = Path(source.path_or_id)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no trained editor in {folder}: train one (notebook 05)."
        )
    unet = load_network(UNet2DConditionModel, {"pretrained_model_name_or_path": folder})
    return unet.to(backbone.device).type(backbone.dtype).eval()
