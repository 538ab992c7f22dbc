"""Save a trained editor with its model card, and upload it to the Hub (section 3.2).

``model_card`` fills a template with numbers of the run. ``save_editor`` writes weights
and card as one folder, which stock ``diffusers`` reads, and ``push_to_hub`` uploads it.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ip2p_lib.config import ROOT, Editing, Source
from ip2p_lib.diffusion.lora import merge_lora
from ip2p_lib.files import atomic_directory, check_replaceable
from ip2p_lib.training.state import TrainState

_EDITOR = r"README\.md|unet/(config\.json|\.ip2p|diffusion_pytorch_model[^/]*)"
_MARK = "unet/.ip2p"  # empty; only ``save_editor`` leaves it
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
{% for name, value in rows.items() %}| {{ name | replace("_", " ") }} | {{ value }} |
{% endfor %}
## Loading

`FOLDER` is where this file is, `image` a PIL image{{ place }}.

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


def model_card(
    name: str, rows: Mapping[str, Any], *, base: Source, editing: Editing, license: str
) -> str:
    """Fill the model card of an editor, by its name and the license of its weights.

    Args:
        rows: of the table about the run: data, settings, validation, and
            ``results.provenance``, whose ``versions`` become rows of their own.
        base: the text-to-image model that training started from.
        editing: recommended guidance scales.
    """
    from huggingface_hub import ModelCard, ModelCardData

    table = {"base revision": base.revision or "none", **rows}
    table |= table.pop("versions", {})
    # Paths of a machine are not published: only those from the repository's root.
    local, folder = base.revision is None, Path(base.path_or_id).resolve()
    inside = folder.is_relative_to(ROOT)
    shown = folder.relative_to(ROOT).as_posix() if inside else folder.name
    header = ModelCardData(
        model_name=name,
        license=license,
        language="en",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["instruct-pix2pix", "image-editing"],
        base_model=None if local else base.path_or_id,
    )
    card = ModelCard.from_template(
        header,
        template_str=TEMPLATE,
        editing=editing,
        base=shown if local else base.path_or_id,
        rows=table,
        license=license,
    )
    return str(card)


def check_editor_folder(folder: Path) -> None:
    """Raise FileExistsError if ``save_editor`` would, before a long run begins."""
    check_replaceable(folder, _EDITOR, _MARK)


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
        FileExistsError: ``folder`` holds something else, such as another's editor.
        FloatingPointError: a weight is not finite.
    """
    state.require_finite()
    unet: Any = copy.deepcopy(state.unet)
    state.ema.copy_to(unet)
    if state.options.lora_rank:
        merge_lora(nn.Module.to(unet, dtype=torch.float32))
    unet = unet.to("cpu", memory_format=torch.contiguous_format).type(dtype)
    size = sum(w.numel() * w.element_size() for w in unet.parameters())
    folder = Path(folder)
    with atomic_directory(folder, _EDITOR, _MARK, needed=size) as partial:
        unet.save_pretrained(partial / "unet")
        (partial / _MARK).touch()
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
