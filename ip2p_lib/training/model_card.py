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
whose U-Net was given four more input channels and trained on pairs of images.

## Training

| what | value |
| --- | --- |
{% for row in training %}| {{ row | join(" | ") }} |
{% endfor %}
## Loss by timestep

| timesteps | first {{ window }} steps | last {{ window }} steps |
| --- | --- | --- |
{% for name, a, b in losses %}| {{ name }} | {{ "%.4f" % a }} | {{ "%.4f" % b }} |
{% endfor %}
## Validation
{% if run.validation %}
Means over the same fixed edits: similarity of edit and input, and of the change of the
images and that of the captions.

| step | CLIP image and directional similarity |
| --- | --- |
{% for r in run.validation %}| {{ r.step }} | {{ "%.4f, %.4f" %
(r.image_similarity, r.directional_similarity) }} |
{% endfor %}{% else %}
The run had no validation.
{% endif %}
## Loading

`FOLDER` is where this file is.

```python
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("FOLDER", subfolder="unet")
pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained("{{ base }}", unet=unet)
edited = pipe("make it winter", image=picture, guidance_scale={{ run.text_scale }},
              image_guidance_scale={{ run.image_scale }}).images[0]
```

## Licence

{{ license_text }}
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
    """Fill the model card; license="other" needs a link to its text."""
    from huggingface_hub import ModelCard, ModelCardData

    if license == "other" and license_link is None:
        raise ValueError("license='other' needs a license_link to its text.")
    if not len(run.bins):
        raise ValueError("The run has taken no step yet: there is nothing to report.")
    window = max(1, round(WINDOW * len(run.bins)))
    first_and_last = bin_means(run.bins, window)[[window - 1, -1]].tolist()
    base, local = run.base.path_or_id, run.base.revision is None
    header = ModelCardData(
        model_name=name,
        license=license,
        license_link=license_link,
        language="en",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["instruct-pix2pix", "image-editing"],
        base_model=None if local else base,  # paths of a machine are not published
    )
    filled = ModelCard.from_template(
        header,
        template_str=TEMPLATE,
        run=run,
        base=Path(base).name if local else base,
        training=_training_rows(run),
        window=window,
        losses=list(zip(bin_names(), *first_and_last, strict=True)),
        license_text=f"{license_link or license}. {attribution}",
    )
    return str(filled)


def _training_rows(run: RunSummary) -> list[tuple[str, Any]]:
    settings, provenance = run.settings, dict(run.provenance)
    versions = provenance.pop("versions", {})
    steps = f"{len(run.bins):,} of {settings.steps:,}"
    decay = ", then half a cosine down to 0" if settings.decay else ""
    rate = f"{settings.learning_rate:g}, warm-up {settings.warmup}{decay}"
    return [
        ("base revision", run.base.revision or "none"),
        ("data", f"{run.data}, {run.pairs:,} pairs"),
        ("steps", f"{steps} of {settings.batch_size:,} examples"),
        ("learning rate", rate),
        ("EMA of the weights", f"decay {settings.ema_decay:g}, once a step"),
        ("conditioning dropout", f"{settings.drop:.0%} text, both, image each"),
        ("resolution", f"{settings.resolution} px"),
        ("run seed", run.run_seed),
        *provenance.items(),
        *versions.items(),
    ]


def save_editor(
    folder: str | Path,
    state: TrainState,
    card: str,
    *,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the averaged U-Net, LoRA merged, and its card; both or neither.

    An older editor in ``folder`` is replaced; ``state`` is not changed.

    Raises:
        FileExistsError: ``folder`` holds something else.
        FloatingPointError: a weight is not finite.
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
    """Upload what ``save_editor`` wrote, and nothing else; returns the files' names.

    A dry run only lists the files. ``huggingface_hub`` finds the token (``hf auth
    login``, or the environment); it is never an argument, so no notebook can show it.
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
