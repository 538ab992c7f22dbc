"""Edit images by instruction with a trained editor (sections 3.2.1 and 4).

``load_editor().edit(image, "make it winter")`` is a batch of one, ``edit_batch`` fits
images of any size, and ``sample_edits`` does the work: it encodes image and
instruction, and runs a sampler under equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ip2p_lib.config import Editing, Scale, preset
from ip2p_lib.diffusion.guidance import edit_denoiser
from ip2p_lib.diffusion.loading import load_network, locate
from ip2p_lib.diffusion.samplers import Step, trajectory
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.images import fit, load, to_pil, to_tensor
from ip2p_lib.rng import key, normal

MAX_PIXELS = 4 * 512 * 512  # edited at once: four large images, or more small ones


def noise_of_seeds(step: int, seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unit normal noise (B, *shape) of a step; step -1 is the initial noise."""
    return normal(key("edit", step), seeds, shape)


@dataclass(frozen=True)
class EditOptions:
    """What to do to each of B images."""

    instructions: list[str]
    text_scale: list[float]  # s_T
    image_scale: list[float]  # s_I
    seed: list[int]
    steps: int

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before any image is encoded."""
        for text in self.instructions:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"The instruction is {text!r}: say what to change.")
        if self.steps < 1:
            raise ValueError(f"An edit takes 1 step or more, not {self.steps}.")
        for name in ("text_scale", "image_scale"):
            if bad := [s for s in getattr(self, name) if not 0 <= s < math.inf]:
                raise ValueError(f"{name} must be 0 or more, not {bad[0]}.")

    def rows(self, indices: Sequence[int]) -> EditOptions:
        """The options of some of the images."""
        lists = {name: x for name, x in vars(self).items() if isinstance(x, list)}
        rows: dict[str, Any] = {k: [x[i] for i in indices] for k, x in lists.items()}
        return replace(self, **rows)


def _one_per_image(name: str, values: Any, n: int) -> list[Any]:
    values = [values] * n if isinstance(values, int | float) else values
    if isinstance(values, str) or len(values) != n:
        raise ValueError(f"Give a list of {n} {name}, one an image.")
    return list(values)


@dataclass
class Editor:
    """A trained editor and its defaults.

    An edit does not depend on the batch it is computed in, but for rounding. ``noise``
    is a field so that an edit can be compared with another program's, draw by draw.
    """

    backbone: StableDiffusion  # its U-Net takes 8 channels
    settings: Editing  # sampler, and the defaults of steps and scales
    resolution: int  # pixels of the long side, about
    noise: Callable[[int, Tensor, tuple[int, ...]], Tensor] = noise_of_seeds

    def __post_init__(self) -> None:
        """Refuse a U-Net without channels for the input image."""
        if (channels := self.backbone.unet.config.in_channels) != 8:
            raise ValueError(f"An editor's U-Net has 8 channels, not {channels}.")

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
        """Edit one image.

        Args:
            image: is fitted to the editor's resolution and keeps its aspect, as in the
                released ``edit_cli.py``.
            instruction: what to change, such as ``"make it winter"``.
            text_scale: s_T, how strongly to follow the instruction; paper 5 to 10.
            image_scale: s_I, how strongly to keep the input; paper 1 to 1.5.
            steps, seed: denoising steps; another seed is another attempt.
        Raises:
            ValueError: a value is missing or out of range; half precision overflowed.
        """
        scales = {"text_scale": text_scale, "image_scale": image_scale}
        options: dict[str, Any] = {**scales, "steps": steps, "seed": seed}
        return self.edit_batch([image], [instruction], **options)[0]

    def edit_batch(
        self, images: Sequence[Image], instructions: Sequence[str], **options: Any
    ) -> list[Image]:
        """Edit images of any sizes, each by its instruction.

        Options, defaults and errors are those of ``edit``; a scale or seed may be one
        value for all images, or one for each.
        """
        resolved = self._options(len(images), instructions, **options)
        fitted = [self._fit(image) for image in images]
        edits: dict[int, Image] = {}
        for size in {image.size for image in fitted}:
            rows = [i for i, image in enumerate(fitted) if image.size == size]
            before = to_tensor([fitted[i] for i in rows])
            after = self._edit(before, resolved.rows(rows))
            edits |= zip(rows, to_pil(after), strict=True)
        return [edits[i] for i in range(len(images))]

    def edit_tensors(
        self, before: Tensor, instructions: Sequence[str], **options: Any
    ) -> Tensor:
        """Edit (B, 3, H, W) in [-1, 1], not resized; options as in ``edit_batch``."""
        return self._edit(before, self._options(len(before), instructions, **options))

    def trajectory(
        self, before: Tensor, instructions: Sequence[str], **options: Any
    ) -> Iterator[Step]:
        """The steps of ``edit_tensors``: for progress, previews, or to stop early."""
        resolved = self._options(len(before), instructions, **options)
        return sample_edits(self, before, resolved)

    def _options(
        self,
        n: int,
        instructions: Sequence[str],
        *,
        text_scale: float | Sequence[float] | None = None,
        image_scale: float | Sequence[float] | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
    ) -> EditOptions:
        """The options of n images, with defaults for None."""
        own = self.settings
        s_T = own.text_scale if text_scale is None else text_scale
        s_I = own.image_scale if image_scale is None else image_scale
        return EditOptions(
            _one_per_image("instructions", instructions, n),
            _one_per_image("text scales", s_T, n),
            _one_per_image("image scales", s_I, n),
            _one_per_image("seeds", seed, n),
            own.steps if steps is None else steps,
        )

    def _fit(self, image: Image) -> Image:
        """Resize, keeping the aspect to an eighth: to multiples of 64 for 512."""
        if not isinstance(image, Image):
            raise ValueError(f"edit needs a PIL image, not {type(image).__name__}.")
        return fit(load(image), self.resolution, multiple=self.resolution // 8)

    def _edit(self, before: Tensor, options: EditOptions) -> Tensor:
        """Edit images of one size, as many at once as memory allows."""
        at_once = max(1, MAX_PIXELS // (before.shape[-2] * before.shape[-1]))
        edits = []
        for rows in torch.arange(len(before)).split(at_once):
            *_, last = sample_edits(self, before[rows], options.rows(rows.tolist()))
            edits.append(self.backbone.decode(last.x))
        return torch.cat(edits)


def sample_edits(
    editor: Editor, before: Tensor, options: EditOptions
) -> Iterator[Step]:
    """Sample edited latents step by step (section 3.2.1, equation 3).

    Args:
        editor: its networks, sampler and noise are used.
        before: (B, 3, H, W) input images in [-1, 1].
        options: of the B images.
    Yields:
        Steps; the last one's ``x`` decodes to the edits, every ``x0`` to a preview.
    """
    model = editor.backbone
    condition = model.encode(before)  # c_I: the mode, unscaled
    device, shape = condition.device, tuple(condition.shape[1:])
    seeds = torch.tensor(options.seed, device=device)
    scales = torch.tensor([options.text_scale, options.image_scale], device=device)
    denoise = edit_denoiser(
        model.unet,
        condition,
        model.encode_text(options.instructions),  # c_T
        model.null_text,
        *scales.float(),
    )
    return trajectory(
        editor.settings.sampler,
        denoise,
        editor.noise(-1, seeds, shape),
        model.schedule,
        options.steps,
        step_noise=lambda step: editor.noise(step, seeds, shape),
    )


def load_editor(
    scale: str | Scale = "miniature", device: str | torch.device | None = None
) -> Editor:
    """Load the editor of one size of the project, with that size's tuned defaults.

    Args:
        scale: a name; or a changed copy of a preset, such as one with other weights.
            "smoke" and "miniature" ship with the repository; the others are downloaded.
        device: None picks the GPU where there is one.
    Raises:
        ValueError: no such scale; the message names the nearest.
        FileNotFoundError: the weights are not here and cannot be downloaded.
    """
    from diffusers import UNet2DConditionModel

    size = scale if isinstance(scale, Scale) else preset(scale)
    if size.editor.revision is not None:  # a whole pipeline of the Hub
        backbone = load_stable_diffusion(size.editor, device=device)
        return Editor(backbone, size.editing, size.resolution)
    # A U-Net of our own training; the frozen parts are its backbone's.
    backbone = load_stable_diffusion(size.backbone, device=device)
    problem = "There is no trained editor in {folder}: train one (notebook 05)."
    where = locate(size.editor, "config.json", problem)
    unet = load_network(UNet2DConditionModel, where).to(backbone.device).eval()
    backbone = replace(backbone, unet=unet.type(backbone.dtype))
    return Editor(backbone, size.editing, size.resolution)
