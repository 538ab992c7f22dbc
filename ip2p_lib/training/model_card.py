"""Save a trained editor with its model card, and upload it to the Hub (section 3.2).

``model_card`` fills a template with numbers that come from the run. ``save_editor``
writes weights and card as one folder, which stock ``diffusers`` reads, and
``push_to_hub`` uploads that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ip2p_lib.config import Source
from ip2p_lib.files import atomic_directory
from ip2p_lib.training.lora import merge_editor_lora
from ip2p_lib.training.loss_weighting import bin_means, bin_names
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.validation import ValidationResult

if TYPE_CHECKING:
    from ip2p_lib.config import Training

WINDOW = 0.1  # share of the steps at either end whose mean loss the card gives
UPLOADED = ("README.md", "unet/*.json", "unet/*.safetensors")  # and nothing else
TEMPLATE = """\
---
{{ card_data }}
---

# {{ model_name }}

Edits an image by an instruction (InstructPix2Pix, arXiv 2211.09800): `{{ base }}`,
whose U-Net was given four more input channels and trained on {{ pairs }} pairs of
images.

## Training

| what | value |
| --- | --- |
{% for name, value in training %}| {{ name }} | {{ value }} |
{% endfor %}
## Loss by timestep

| timesteps | first {{ window }} steps | last {{ window }} steps |
| --- | --- | --- |
{% for name, first, last in losses %}| {{ name }} | {{ first }} | {{ last }} |
{% endfor %}
## Validation
{% if validation %}
Means over the same fixed edits: similarity to the input, and of the change to that of
the captions.

| step | CLIP image similarity | CLIP directional similarity |
| --- | --- | --- |
{% for r in validation -%}
| {{ r.step }} | {{ "%.4f" % r.image_similarity }} |{{ " " -}}
{{ "%.4f" % r.directional_similarity }} |
{% endfor %}{% else %}
The run had no validation.
{% endif %}
## Loading

`FOLDER` is where this file is.

```python
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("FOLDER", subfolder="unet")
pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained("{{ base }}", unet=unet)
edited = pipe("make it winter", image=picture, guidance_scale={{ text_scale }},
              image_guidance_scale={{ image_scale }}).images[0]
```

## Licence

{{ licence }} {{ attribution }}
"""


@dataclass(frozen=True)
class RunSummary:
    """What a model card says about a run."""

    base: Source  # the text-to-image model that training started from
    data: str  # name of the dataset: as on the Hub, or in words
    pairs: int
    settings: Training
    run_seed: int
    bins: Tensor  # (n, 2, K) of all n steps, as ``Run.bins``
    validation: Sequence[ValidationResult]
    text_scale: float  # recommended for editing
    image_scale: float
    provenance: Mapping[str, Any]  # from ``results.provenance``


def model_card(
    run: RunSummary,
    *,
    name: str,
    license: str,
    license_link: str | None = None,
    attribution: str = "No attribution required.",
) -> str:
    """Markdown under a YAML header, as the Hub reads it.

    Args:
        run: what was trained, how, and how well.
        name: of the editor.
        license: as the Hub spells it; weights usually inherit that of their base.
        license_link: where its text is; needed with ``license="other"``.
        attribution: whom to name, and for what.

    Raises:
        ValueError: the license is ``"other"``, without a link; or no step was taken.
    """
    from huggingface_hub import ModelCard

    if license == "other" and license_link is None:
        raise ValueError("license='other' needs a license_link to its text.")
    if not len(run.bins):
        raise ValueError("The run has taken no step yet: there is nothing to report.")
    window = max(1, round(WINDOW * len(run.bins)))
    means = bin_means(run.bins, window)[[window - 1, -1]]
    on_hub = run.base.revision is not None
    card = ModelCard.from_template(
        _metadata(run, name, license, license_link),
        template_str=TEMPLATE,
        base=run.base.path_or_id if on_hub else Path(run.base.path_or_id).name,
        pairs=f"{run.pairs:,}",
        training=_training_rows(run),
        window=window,
        losses=[
            (bin_name, f"{first:.4f}", f"{last:.4f}")
            for bin_name, first, last in zip(bin_names(), *means, strict=True)
        ],
        validation=run.validation,
        text_scale=run.text_scale,
        image_scale=run.image_scale,
        licence=f"{license_link or license}.",
        attribution=attribution,
    )
    return str(card)


def _metadata(
    run: RunSummary, name: str, license: str, license_link: str | None
) -> Any:
    """YAML header with license, base model (no local path) and similarities."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-to-image",
            dataset_type="fixed-edits",
            dataset_name="fixed validation edits",
            metric_type="clip",
            metric_name=f"CLIP {kind} similarity",
            metric_value=round(getattr(result, f"{kind}_similarity"), 4),
        )
        for result in run.validation[-1:]
        for kind in ("image", "directional")
    ]
    return ModelCardData(
        model_name=name,
        license=license,
        license_link=license_link,
        language="en",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["instruct-pix2pix", "image-editing"],
        base_model=run.base.path_or_id if run.base.revision is not None else None,
        eval_results=results or None,
    )


def _training_rows(run: RunSummary) -> list[tuple[str, Any]]:
    settings, steps = run.settings, f"{len(run.bins):,} of {run.settings.steps:,}"
    decay = "half a cosine down to 0" if settings.decay else "constant"
    facts = dict(run.provenance)
    versions = facts.pop("versions", {})
    return [
        ("base revision", run.base.revision or "none"),
        ("data", f"{run.data}, {run.pairs:,} pairs"),
        ("steps", f"{steps} of {settings.batch_size:,} examples"),
        ("learning rate", f"{settings.learning_rate:g}, warm-up {settings.warmup}"),
        ("learning rate after warm-up", decay),
        ("EMA of the weights", f"decay {settings.ema_decay:g}, once a step"),
        ("conditioning dropout", f"{settings.drop:.0%} text, both, image each"),
        ("resolution", f"{settings.resolution} px"),
        ("run seed", run.run_seed),
        *facts.items(),
        *versions.items(),
    ]


def save_editor(
    folder: str | Path,
    state: TrainState,
    card: str,
    *,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the averaged U-Net and its card, both or neither.

    Args:
        folder: missing, empty, or of an older editor, which is replaced.
        state: of a run; not changed. LoRA is merged into the saved weights.
        card: from ``model_card``.
        dtype: of the saved weights.

    Raises:
        FileExistsError: ``folder`` holds something else.
        FloatingPointError: a weight is not finite.
        OSError: the disk is full or write-protected.
    """
    state.require_finite()
    unet: Any = copy.deepcopy(state.unet)
    state.ema.copy_to(unet)
    if state.options.lora_rank:
        merge_editor_lora(unet)
    unet = unet.to("cpu", memory_format=torch.contiguous_format).type(dtype)
    size = sum(w.numel() * w.element_size() for w in unet.parameters())
    folder, own = Path(folder), r"unet|README\.md"
    with atomic_directory(folder, needed=size, replaces=own) as partial:
        unet.save_pretrained(partial / "unet")
        (partial / "README.md").write_text(card, "utf-8")
    return folder


def push_to_hub(
    folder: str | Path, repo_id: str, *, dry_run: bool, private: bool = True
) -> list[str]:
    """Upload what ``save_editor`` wrote, and nothing else that may lie beside it.

    ``huggingface_hub`` finds the token (``hf auth login``, or the environment); it is
    never an argument, so that no notebook can show it.

    Args:
        folder: with ``README.md`` and ``unet``.
        repo_id: ``"user/name"``; created if missing.
        dry_run: only list the files, and contact nobody.
        private: whether a new repository is.

    Returns:
        The files, by their names in the repository.
    Raises:
        FileNotFoundError: ``folder`` holds no saved editor.
    """
    folder = Path(folder)
    files = [path for pattern in UPLOADED for path in sorted(folder.glob(pattern))]
    if len({path.suffix for path in files}) < len(UPLOADED):
        raise FileNotFoundError(
            f"{folder} holds no editor with its card; save_editor writes one."
        )
    if not dry_run:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            allow_patterns=list(UPLOADED),
            commit_message="InstructPix2Pix editor with its model card",
        )
    return [path.relative_to(folder).as_posix() for path in files]
