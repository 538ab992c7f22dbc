"""Every setting of the pipeline, in presets for the four sizes it runs at.

``preset("miniature")`` returns one frozen record. Values of the paper name its section,
values of the released code the file; where the two disagree, the field's comment says
which one is used.
"""

import difflib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
MODELS = DATA / "models"
RESULTS = DATA / "results"
# What notebooks write; each run of ``jobs.notebooks`` has a folder of its own.
GENERATED = Path(os.environ.get("IP2P_GENERATED") or DATA / "generated")
HELD_OUT = 10**9  # scene seeds of the miniature world from here on are never trained on


@dataclass(frozen=True)
class Source:
    """Where weights come from: a local folder, or a Hub id pinned to one commit."""

    path_or_id: str
    revision: str | None = None


@dataclass(frozen=True)
class Rendering:
    """Generating image pairs (section 3.1.2; released ``generate_img_dataset.py``)."""

    steps: int = 100
    p_min: float = 0.1  # share of steps with shared attention is U(p_min, p_max)
    p_max: float = 0.9
    cfg_min: float = 7.5  # released code: guidance is U(7.5, 15), redrawn per sample
    cfg_max: float = 15.0
    candidates: int = 100  # pairs generated for one triplet
    batch_size: int = 8  # candidates generated at once, four rows each
    sampler: str = "euler_ancestral"


@dataclass(frozen=True)
class Filtering:
    """CLIP thresholds (section 3.1.2 and appendix A.2)."""

    image: float = 0.75  # paper; the released script defaults to 0.7
    text: float = 0.2  # each image against its own caption
    direction: float = 0.2  # change between images against change between captions
    keep: int = 4  # keep the best pairs of one triplet, by direction


@dataclass(frozen=True)
class Training:
    """Training of the editor (section 3.2, appendix A.3; released ``train.yaml``)."""

    steps: int = 10_000  # paper; the released checkpoint is from step 22,000
    batch_size: int = 1024
    learning_rate: float = 1e-4
    warmup: int = 0
    decay: bool = False  # ours: a short run ends better with a falling rate
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0  # ours: the released code does not clip
    ema_decay: float = 0.9999
    drop: float = 0.05  # text only, both, image only: this share each (3.2.1)
    resolution: int = 256


@dataclass(frozen=True)
class Editing:
    """Sampling of an edit (section 3.2.1; released ``edit_cli.py``)."""

    steps: int = 100
    text_scale: float = 7.5
    image_scale: float = 1.5
    sampler: str = "euler_ancestral"


@dataclass(frozen=True)
class Evaluation:
    """The similarity curve of section 4.1 (released ``compute_metrics.py``)."""

    samples: int = 5000
    image_scales: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    sdedit_strengths: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Scale:
    """One size of the whole pipeline."""

    name: str
    resolution: int
    backbone: Source
    editor: Source  # the trained 8-channel U-Net, or a whole editing pipeline
    clip: Source
    language_model: Source
    triplets: int  # captions taken through the pipeline in one notebook run
    language_adapter: str | None = None  # of ``language_model``, a folder
    # To fine-tune with LoRA where ``language_model`` is a service and there is no key.
    open_language_model: Source | None = None
    language_samples: int = 1  # replies of a local model to a caption; the paper: one
    rendering: Rendering = field(default_factory=Rendering)
    filtering: Filtering = field(default_factory=Filtering)
    training: Training = field(default_factory=Training)
    editing: Editing = field(default_factory=Editing)
    evaluation: Evaluation = field(default_factory=Evaluation)


_MINIATURE = Scale(
    name="miniature",
    resolution=128,
    backbone=Source(str(MODELS / "miniature-sd")),
    editor=Source(str(MODELS / "miniature-ip2p" / "unet")),
    clip=Source(str(MODELS / "miniature-clip")),
    language_model=Source(str(MODELS / "miniature-lm")),
    language_adapter=str(MODELS / "miniature-lm" / "adapter"),
    language_samples=2,  # keep the better of two by log-likelihood
    triplets=8,
    rendering=Rendering(  # shipped pairs: p of 0.3 to 0.7, jobs/miniature/make_pairs
        steps=12, cfg_min=2.0, cfg_max=4.0, candidates=4, sampler="dpm_solver_pp"
    ),
    # Of held-out candidates as the pairs were drawn, 95 % that pass are good (n = 165):
    # results/filter-calibration-cross-attention.json.
    filtering=Filtering(image=0.5, text=0.75, direction=0.7, keep=3),
    # In two minutes on a laptop the first edits should show: small batches, a high rate
    # that falls, and an average short enough for so few steps.
    training=Training(
        steps=80,
        batch_size=8,
        learning_rate=4e-4,
        warmup=10,
        decay=True,
        ema_decay=0.9,
        resolution=128,
    ),
    editing=Editing(steps=8, text_scale=1.5, image_scale=1.5),
    evaluation=Evaluation(samples=32, image_scales=(1.0, 1.4, 1.8, 2.2)),
)
_SMOKE = replace(
    _MINIATURE,
    name="smoke",
    triplets=2,
    rendering=replace(_MINIATURE.rendering, steps=6, candidates=2),
    training=replace(_MINIATURE.training, steps=3, batch_size=4),
    editing=replace(_MINIATURE.editing, steps=6),
    evaluation=Evaluation(
        samples=6, image_scales=(1.0, 1.8), sdedit_strengths=(0.5, 0.9)
    ),
)
_PAPER = Scale(
    name="paper",
    resolution=512,
    backbone=Source(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
    editor=Source(
        "timbrooks/instruct-pix2pix", "31519b5cb02a7fd89b906d88731cd4d6a7bbf88d"
    ),
    clip=Source(
        "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
    ),
    language_model=Source("gpt-6-luna"),  # for the paper's GPT-3, no longer served
    triplets=454_445,
)
_SD15 = replace(
    _PAPER,
    name="sd15",
    triplets=8,
    # Apache-2.0; 3 GB in bfloat16, so that it trains beside its adapter on 16 GB.
    open_language_model=Source(
        "Qwen/Qwen2.5-1.5B-Instruct", "989aa7980e4cf806f80c7fef2b1adb7bc71aa306"
    ),
    rendering=replace(_PAPER.rendering, steps=50, candidates=4, batch_size=2),
    training=replace(_PAPER.training, steps=200, batch_size=16),
    editing=replace(_PAPER.editing, steps=50),
    evaluation=replace(_PAPER.evaluation, samples=32),
)
SCALES: dict[str, Scale] = {s.name: s for s in (_SMOKE, _MINIATURE, _SD15, _PAPER)}


def preset(scale: str) -> Scale:
    """Look up one size of the pipeline by name.

    Args:
        scale: ``"smoke"``, ``"miniature"``, ``"sd15"`` or ``"paper"``.

    Raises:
        ValueError: the name is none of these; the message names the nearest one.
    """
    if scale in SCALES:
        return SCALES[scale]
    near = difflib.get_close_matches(str(scale), SCALES, n=1, cutoff=0.0)
    names = ", ".join(SCALES)
    raise ValueError(
        f"There is no scale {scale!r}. Choose one of {names}; did you mean {near[0]!r}?"
    )
