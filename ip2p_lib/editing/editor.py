"""Edit images by instruction with a trained editor (sections 3.2.1 and 4).

``load_editor().edit(image, "make it winter")`` is a batch of one, ``edit_batch`` fits
images of any size, and ``sample_edits`` does the work: it encodes image and
instruction, and runs a sampler under equation 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ip2p_lib.checks import check_number, check_whole, is_visible
from ip2p_lib.config import SCALES, Editing, Scale, Source, preset
from ip2p_lib.diffusion.guidance import edit_denoiser
from ip2p_lib.diffusion.loading import load_network, locate
from ip2p_lib.diffusion.samplers import Step, timesteps, trajectory
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.files import read_json
from ip2p_lib.images import check_images, fit, load, to_pil, to_tensor
from ip2p_lib.rng import key, normal

_SD15_TEXT_WIDTH = 768  # of its text encoder's vectors
MAX_SCALE = 10_000  # of guidance; far beyond it, images overflow
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

    def check(self, model: StableDiffusion, sampler: str) -> None:
        """Raise ValueError for what cannot be done, before any image is encoded."""
        for text in self.instructions:
            if not isinstance(text, str) or not is_visible(text):
                raise ValueError(f"The instruction is {text!r}: say what to change.")
            if text != text.encode(errors="replace").decode():
                raise ValueError(f"The instruction {text!r} is no Unicode text.")
        check_whole("steps", self.steps)
        for name in ("text_scale", "image_scale"):
            for scale in getattr(self, name):
                check_number(name, scale, high=MAX_SCALE)
        for seed in self.seed:
            check_whole("seed", seed, -(2**63))
        timesteps(model.schedule, self.steps, sampler)  # refuses more than there are
        model.tokenize(self.instructions or [""])  # refuses what is too long

    def rows(self, indices: Sequence[int]) -> EditOptions:
        """The options of some of the images."""
        lists = {name: x for name, x in vars(self).items() if name != "steps"}
        rows: dict[str, Any] = {k: [x[i] for i in indices] for k, x in lists.items()}
        return replace(self, **rows)


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _one_per_image(name: str, values: Any, n: int) -> list[Any]:
    if isinstance(values := _plain(values), int | float):
        return [values] * n
    if not isinstance(values, list | tuple) or len(values) != n:
        raise ValueError(f"{name}: give a list of {n}, one for each image.")
    return [_plain(value) for value in values]


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
        width = self.backbone.text_encoder.config.hidden_size
        if (reads := self.backbone.unet.config.cross_attention_dim) != width:
            raise ValueError(
                f"The U-Net takes text vectors of {reads} numbers, not {width}: it was "
                "trained on another pipeline. Use replace(preset(...), backbone=...)."
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
        """Edit one image.

        Args:
            image: is fitted to the editor's resolution and keeps its aspect, as in the
                released ``edit_cli.py``.
            text_scale: s_T, how strongly to follow the instruction; paper 5 to 10.
            image_scale: s_I, how strongly to keep the input; paper 1 to 1.5.
            steps, seed: denoising steps; another seed is another attempt.
        Raises:
            ValueError: a value is missing or out of range; half precision overflowed.
        """
        options = {"text_scale": text_scale, "image_scale": image_scale, "steps": steps}
        return self.edit_batch([image], [instruction], seed=seed, **options)[0]

    def edit_batch(
        self, images: Sequence[Image], instructions: Sequence[str], **options: Any
    ) -> list[Image]:
        """Edit images of any sizes, each by its instruction.

        Options, defaults and errors are those of ``edit``; a scale or seed may be one
        value for all images, or one for each.
        """
        resolved = self._options(len(images), instructions, options)
        fitted = [self.fit(image) for image in images]
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
        """Edit (B, 3, H, W) in [-1, 1], not resized; options as in ``edit_batch``.

        Raises ImageError for other shapes, types and ranges, and for sides that are no
        multiples of what one element of a latent covers.
        """
        check_images(before, multiple=self.backbone.latent_factor)
        return self._edit(before, self._options(len(before), instructions, options))

    def trajectory(
        self, before: Tensor, instructions: Sequence[str], **options: Any
    ) -> Iterator[Step]:
        """The steps of ``edit_tensors``: for progress, previews, or to stop early."""
        check_images(before, multiple=self.backbone.latent_factor)
        resolved = self._options(len(before), instructions, options)
        return sample_edits(self, before, resolved)

    def _options(
        self, n: int, instructions: Sequence[str], given: dict[str, Any]
    ) -> EditOptions:
        """The options of n images, checked, with defaults for None."""
        values = vars(self.settings) | {"seed": 0}
        sampler = values.pop("sampler")
        if unknown := given.keys() - values.keys():
            names = ", ".join(values)
            raise TypeError(f"edit has no option {min(unknown)!r}; it has {names}.")
        values |= {name: x for name, x in given.items() if x is not None}
        steps = _plain(values.pop("steps"))
        values["instructions"] = instructions
        lists = {name: _one_per_image(name, x, n) for name, x in values.items()}
        resolved = EditOptions(**lists, steps=steps)
        resolved.check(self.backbone, sampler)
        return resolved

    def fit(self, image: Image) -> Image:
        """The image as it is edited: upright, RGB, resized and slightly cropped.

        It has the size of its edit, which can be laid over it. Sides are multiples of
        an eighth of the resolution: of 64 pixels for 512.
        """
        if not isinstance(image, Image):
            raise ValueError(f"edit needs a PIL image, not {type(image).__name__}.")
        return fit(load(image), self.resolution, multiple=self.resolution // 8)

    def _edit(self, before: Tensor, options: EditOptions) -> Tensor:
        """Edit images of one size, as many at once as memory allows."""
        at_once = max(1, MAX_PIXELS // (before.shape[-2] * before.shape[-1]))
        edits = []
        for rows in torch.arange(len(before)).split(at_once):
            steps = sample_edits(self, before[rows], options.rows(rows.tolist()))
            last = deque(steps, maxlen=1)[0]  # the others are not kept in memory
            edits.append(self.backbone.decode(last.x))
        return torch.cat(edits)


def sample_edits(
    editor: Editor, before: Tensor, options: EditOptions
) -> Iterator[Step]:
    """Sample edited latents step by step (section 3.2.1, equation 3).

    From input images (B, 3, H, W) in [-1, 1]. The last step's ``x`` decodes to the
    edits, every ``x0`` to a preview.
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


def find_scale(name: str | Path) -> Scale:
    """The preset of this name, or the one that fits the networks in a folder."""
    if not isinstance(name, str | Path):
        raise ValueError(f"An editor is a scale or a folder, not {name!r}.")
    folder = Path(name).expanduser()
    is_path = isinstance(name, Path) or "/" in name or folder.exists()
    if name in SCALES or not is_path:
        return preset(str(name))
    unet = folder if (folder / "config.json").is_file() else folder / "unet"
    if not (unet / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no editor: no config.json, nor a unet folder with one."
        )
    config = read_json(unet / "config.json")
    if not isinstance(config, dict) or "UNet" not in str(config.get("_class_name")):
        raise ValueError(f"{unet} holds another network, or a damaged config.json.")
    text_width = config.get("cross_attention_dim")
    size = preset("sd15" if text_width == _SD15_TEXT_WIDTH else "miniature")
    whole = (folder / "model_index.json").is_file()
    return replace(size, editor=Source(str(folder if whole else unet)))


def load_editor(
    scale: str | Path | Scale = "miniature", device: str | torch.device | None = None
) -> Editor:
    """Load the editor of one size of the project, or one in a folder.

    Args:
        scale: a name, whose tuned defaults the editor then has; or a changed copy of a
            preset, such as one with other weights. "smoke" and "miniature" ship with
            the repository; the others are downloaded. Or a folder with a pipeline of
            ``diffusers``; or with a U-Net of our own training, itself or as ``unet``,
            whose other networks and defaults are those of the scale that it fits.
        device: None picks the GPU where there is one.
    Raises:
        ValueError: no such scale; the message names the nearest.
        FileNotFoundError: the weights are not here and cannot be downloaded.
    """
    from diffusers import UNet2DConditionModel

    size = scale if isinstance(scale, Scale) else find_scale(scale)
    folder = size.editor.path_or_id
    if size.editor.revision is not None or Path(folder, "model_index.json").is_file():
        backbone = load_stable_diffusion(size.editor, device=device)  # a whole pipeline
        return Editor(backbone, size.editing, size.resolution)
    # A U-Net of our own training; the frozen parts are its backbone's.
    backbone = load_stable_diffusion(size.backbone, device=device)
    problem = "There is no trained editor in {folder}: train one (notebook 05)."
    where = locate(size.editor, "config.json", problem)
    unet = load_network(UNet2DConditionModel, where).to(backbone.device).eval()
    backbone = replace(backbone, unet=unet.type(backbone.dtype))
    return Editor(backbone, size.editing, size.resolution)
