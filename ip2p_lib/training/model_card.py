"""Save a trained editor with its model card, and upload it to the Hub (section 3.2).

``model_card`` fills a template with numbers that come from the run. ``save_editor``
writes weights and card as one folder, which stock ``diffusers`` reads, and
``push_to_hub`` uploads that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ip2p_lib.config import Editing, Source, Training
from ip2p_lib.diffusion.lora import merge_lora
from ip2p_lib.files import atomic_directory
from ip2p_lib.training.state import TrainState
from ip2p_lib.training.validation import COLUMNS, ValidationResult

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
{% for name, value in training.items() %}| {{ name }} | {{ value }} |
{% endfor %}
## Loading

`FOLDER` is where this file is.

```python
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("FOLDER", subfolder="unet")
pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained("{{ base }}", unet=unet)
edited = pipe("make it winter", image=image, guidance_scale={{ editing.text_scale }},
              image_guidance_scale={{ editing.image_scale }}).images[0]
```

## Licence

{{ license }}
"""


@dataclass(frozen=True)
class RunSummary:
    """What a model card says about a run."""

    base: Source  # the text-to-image model that training started from
    data: str  # name of the dataset: as on the Hub, or in words
    pairs: int
    settings: Training
    run_seed: int
    steps: int  # taken
    validation: ValidationResult | None  # the last
    editing: Editing  # recommended guidance scales
    provenance: Mapping[str, Any]  # from ``results.provenance``


def model_card(run: RunSummary, *, name: str, license: str) -> str:
    """Fill the model card."""
    from huggingface_hub import ModelCard, ModelCardData

    base, local = run.base.path_or_id, run.base.revision is None
    header = ModelCardData(
        model_name=name,
        license=license,
        language="en",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["instruct-pix2pix", "image-editing"],
        base_model=None if local else base,  # paths of a machine are not published
    )
    filled = ModelCard.from_template(
        header,
        template_str=TEMPLATE,
        editing=run.editing,
        base=Path(base).name if local else base,
        training=_training_rows(run),
        license=license,
    )
    return str(filled)


def _training_rows(run: RunSummary) -> dict[str, Any]:
    provenance = dict(run.provenance)
    versions = provenance.pop("versions", {})
    rows = {
        "base revision": run.base.revision or "none",
        "data": f"{run.data}, {run.pairs:,} pairs",
        "run seed": run.run_seed,
        "steps taken": run.steps,
        **{name.replace("_", " "): value for name, value in vars(run.settings).items()},
    }
    if run.validation:
        similarities = [getattr(run.validation, column) for column in COLUMNS[1:]]
        rows["CLIP image and directional similarity of fixed edits"] = ", ".join(
            f"{value:.4f}" for value in similarities
        )
    return rows | provenance | versions


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
        merge_lora(nn.Module.to(unet, dtype=torch.float32))
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
