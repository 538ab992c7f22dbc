"""Edit pictures by instruction with a trained editor (sections 3.2.1 and 4).

``load_editor().edit(image, "make it winter")`` is the whole interface. Inside, read
``guided_denoiser`` first: three predictions a step, mixed by equation 3. Sampler, steps
and scales default to the settings of the editor's size (``config.Editing``).

    c_I  ``condition``, the input picture's latent: VAE mode, unscaled
    c_T  ``text``, the instruction's hidden states     s_I, s_T  the two scales

A picture depends on its own input, instruction, scales and seed, and never (up to
rounding) on the batch it is edited in.
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

from ip2p_lib import diffusion
from ip2p_lib.backbone import Backbone, load_backbone
from ip2p_lib.config import Editing, Source, preset
from ip2p_lib.diffusion import Denoiser, Step
from ip2p_lib.draws import key, normal
from ip2p_lib.guidance import combine
from ip2p_lib.images import fit, load, to_pil, to_tensor

PIXELS = (
    4 * 512 * 512
)  # edited at once: four pictures of 512 x 512, or more smaller ones


class Knobs(TypedDict, total=False):
    """What an edit can be asked for, as one value for all pictures or one for each."""

    text_scale: float | Sequence[float] | None  # s_T; None is the size's default
    image_scale: float | Sequence[float] | None  # s_I
    steps: int | None
    seed: int | Sequence[int]


def guided_denoiser(
    unet: Callable[..., Any],
    condition: Tensor,
    text: Tensor,
    null_text: Tensor,
    text_scale: Tensor,
    image_scale: Tensor,
) -> Denoiser:
    """Predict noise guided by image and instruction (section 3.2.1, equation 3).

    The branches e(0, 0), e(c_I, 0) and e(c_I, c_T) share one batch. As a sum, equation
    3 gives them the weights 1 - s_I, s_I - s_T and s_T: a branch whose weight is zero
    for every picture is left out, which is exact and saves a third of the work.

    Args:
        unet: called as (8-channel sample, t, encoder_hidden_states=text).
        condition: (B, 4, h, w).
        text: (B, L, D).
        null_text: (1, L, D).
        text_scale: (B,) s_T.
        image_scale: (B,) s_I.
    """
    weights = (1 - image_scale, image_scale - text_scale, text_scale)
    used = [bool(weight.any()) for weight in weights]
    null, no_image = null_text.expand_as(text), torch.zeros_like(condition)
    branches = [(no_image, null), (condition, null), (condition, text)]
    kept = [branch for branch, needed in zip(branches, used, strict=True) if needed]
    image_rows, text_rows = (torch.cat(rows) for rows in zip(*kept, strict=True))
    # A branch left out takes a neighbour's value, so that its terms cancel.
    source = [max(sum(used[: i + 1]) - 1, 0) for i in range(3)]

    @torch.no_grad()
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        x_rows = x.repeat(len(kept), 1, 1, 1).to(image_rows.dtype)
        sample, t_rows = torch.cat([x_rows, image_rows], dim=1), t.repeat(len(kept))
        eps = unet(sample, t_rows, encoder_hidden_states=text_rows, return_dict=False)[
            0
        ]
        found = eps.to(x.dtype).chunk(len(kept))
        return combine(*(found[i] for i in source), text_scale, image_scale)

    return denoise


def _seeded_noise(
    name: str, step: int, seeds: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Unit normal noise, (B, *shape): a function of each picture's seed alone."""
    return normal(key("edit", name, step), seeds, shape)


@dataclass
class Editor:
    """A trained editor: a backbone whose U-Net takes 8 channels, and its defaults.

    Attributes:
        backbone: text encoder, VAE, 8-channel U-Net and schedule.
        settings: steps, scales and sampler used where a call does not say.
        resolution: pictures are brought to about this many pixels on the long side.
    """

    backbone: Backbone
    settings: Editing
    resolution: int
    _noise: Callable[..., Tensor] = field(default=_seeded_noise, repr=False)

    def __post_init__(self) -> None:
        """Refuse a U-Net that cannot see the input picture."""
        if (channels := self.backbone.unet.config.in_channels) != 8:
            raise ValueError(
                f"An editor's U-Net takes 8 channels, this one {channels}. Widen it by "
                "surgery.widen_conv_in and train it."
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
            image: any picture; it is fitted to the editor's resolution and keeps its
                aspect, as in the released ``edit_cli.py``.
            instruction: what to change, such as ``"make it winter"``.
            text_scale: s_T, how strongly to follow the instruction; paper 5 to 10.
            image_scale: s_I, how strongly to keep the input; paper 1 to 1.5.
            steps: denoising steps.
            seed: another seed is another attempt.

        Raises:
            ValueError: not a picture, an empty or overlong instruction, a negative
                scale, less than one step.
            FloatingPointError: half precision overflowed.
        """
        knobs = Knobs(
            text_scale=text_scale, image_scale=image_scale, steps=steps, seed=seed
        )
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
            if not last.x.isfinite().all():
                raise FloatingPointError(
                    "The edit is not a number: half precision overflowed. Load the "
                    "backbone with dtype=torch.float32, or use smaller scales."
                )
            edited.append(self.backbone.decode(last.x))
        return torch.cat(edited)

    def trajectory(
        self, before: Tensor, instructions: Sequence[str], **knobs: Unpack[Knobs]
    ) -> Iterator[Step]:
        """Walk through ``edit_tensors`` step by step: for progress, previews, a stop.

        Yields ``diffusion.Step``. ``backbone.decode(step.x0)`` is a preview; decoding
        the last ``x`` gives the picture.
        """
        request = self._request(len(before), instructions, **knobs)
        backbone = self.backbone
        condition = backbone.encode(before)
        device, shape = condition.device, tuple(condition.shape[1:])
        seeds = torch.tensor(request["seed"], device=device)
        denoise = guided_denoiser(
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
            self._noise("start", 0, seeds, shape),
            backbone.schedule,
            request["steps"],
            step_noise=lambda step: self._noise("step", step, seeds, shape),
        )

    def _fit(self, image: Image) -> Image:
        """Resize, keeping the aspect to an eighth: to multiples of 64 for 512."""
        if not isinstance(image, Image):
            raise ValueError(
                f"edit needs a PIL picture, not {type(image).__name__}: open files with "
                "images.load and turn tensors into pictures with images.to_pil."
            )
        return fit(load(image), self.resolution, multiple=self.resolution // 8)

    def _request(
        self,
        rows: int,
        instructions: Sequence[str],
        *,
        text_scale: float | Sequence[float] | None = None,
        image_scale: float | Sequence[float] | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
    ) -> dict[str, Any]:
        """Fill in the defaults, one value for each picture, and check them all."""
        usual = self.settings
        if isinstance(instructions, str) or len(instructions) != rows:
            raise ValueError(
                f"Give a list of {rows} instructions, one for each picture."
            )
        steps = usual.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"An edit takes at least 1 step, not {steps}; try 20.")
        text_scale = usual.text_scale if text_scale is None else text_scale
        image_scale = usual.image_scale if image_scale is None else image_scale
        return {
            "instructions": [_checked_instruction(text) for text in instructions],
            "text_scale": _checked_scales("text_scale", text_scale, rows),
            "image_scale": _checked_scales("image_scale", image_scale, rows),
            "steps": steps,
            "seed": _per_row("seed", seed, rows),
        }


def _pick(request: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """The same request for some of the pictures."""
    return {
        name: [value[i] for i in rows] if isinstance(value, list) else value
        for name, value in request.items()
    }


def _checked_instruction(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"The instruction is {text!r}. Say what should change, for example "
            "'make it winter'."
        )
    return text


def _per_row(name: str, value: Any, rows: int) -> list[Any]:
    if isinstance(value, int | float):
        return [value] * rows
    if len(value) != rows:
        raise ValueError(f"Give one {name}, or one for each of {rows} pictures.")
    return list(value)


def _checked_scales(name: str, value: Any, rows: int) -> list[float]:
    scales = [float(scale) for scale in _per_row(name, value, rows)]
    for scale in scales:
        if not 0 <= scale < math.inf:
            raise ValueError(
                f"{name} must be 0 or more, not {scale}: 0 ignores the condition, 1 "
                "follows it as trained, more exaggerates it."
            )
    return scales


def load_editor(
    scale: str = "miniature", device: str | torch.device | None = None
) -> Editor:
    """Load the editor of one size of the project, with that size's tuned defaults.

    "smoke" and "miniature" ship with the repository; "sd15" and "paper" download the
    released model once, at a pinned revision.

    Raises:
        ValueError: no such scale; the message names the nearest.
        FileNotFoundError: the weights are not here and cannot be downloaded.
    """
    size = preset(scale)
    if size.editor.revision is None:
        backbone = load_backbone(size.backbone, device=device)
        backbone = replace(backbone, unet=_load_unet(size.editor, backbone))
    else:
        backbone = _load_from_hub(size.editor, device)
    return Editor(backbone, size.editing, size.resolution)


def _load_unet(source: Source, backbone: Backbone) -> Any:
    """A U-Net of our own training; the frozen parts are its backbone's."""
    from diffusers import UNet2DConditionModel

    folder = Path(source.path_or_id)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no trained editor in {folder}. Check out the repository's "
            "data/models folder, or train one (notebook 05)."
        )
    unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True)
    return unet.to(backbone.device).type(backbone.dtype).eval()


def _load_from_hub(source: Source, device: str | torch.device | None) -> Backbone:
    try:
        return load_backbone(source, device=device)
    except OSError as error:
        raise FileNotFoundError(
            f"{source.path_or_id} at revision {source.revision} is not in the local "
            "cache and cannot be downloaded. Connect to the network and try again, or "
            "use load_editor('miniature'), which ships with the repository."
        ) from error
