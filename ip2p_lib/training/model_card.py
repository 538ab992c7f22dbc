"""The card of a trained editor: what it learnt from, how, and how well (section 3.2).

Every number comes from the run; none is typed in. ``publishing`` puts the card beside
the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ip2p_lib.config import Source
from ip2p_lib.training.loss_weighting import band_means, band_names
from ip2p_lib.training.validation import Look

if TYPE_CHECKING:
    from ip2p_lib.config import Training

ENDS = 0.1  # share of the steps at either end whose mean loss the card gives
_LOADING = """\
```python
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("FOLDER", subfolder="unet")
pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained({base}, unet=unet)
edited = pipe("make it winter", image=picture, guidance_scale={text_scale},
              image_guidance_scale={image_scale}).images[0]
```
"""


@dataclass(frozen=True)
class RunFacts:
    """What a card tells of a run."""

    base: Source  # the text-to-image model that training started from
    data: str  # name of the data set: as on the Hub, or in words
    pairs: int
    settings: Training
    run_seed: int
    bands: Tensor  # (n, 2, K) of all n steps, as ``recovery.Run.bands``
    looks: Sequence[Look]
    text_scale: float  # to edit with
    image_scale: float
    made: Mapping[str, Any]  # ``results.provenance``


def _is_on_hub(source: Source) -> bool:
    return source.revision is not None


def _named(source: Source) -> str:
    """A Hub id, or the last part of a folder: where that lies is nobody's business."""
    return source.path_or_id if _is_on_hub(source) else Path(source.path_or_id).name


def card(
    facts: RunFacts,
    *,
    name: str,
    license: str,
    license_link: str | None = None,
    attribution: str = "Nobody is to be named.",
) -> str:
    """Write the card, Markdown under a YAML header.

    Args:
        facts: of the run.
        name: of the editor, for people.
        license: as the Hub spells it; weights usually inherit that of their base.
        license_link: where its text is; needed with ``license="other"``.
        attribution: whom to name, and for what.

    Raises:
        ValueError: the license is ``"other"``, without a link; or no step was taken.
    """
    if license == "other" and license_link is None:
        raise ValueError("license='other' needs a license_link to its text.")
    if not len(facts.bands):
        raise ValueError("The run has taken no step yet, so there is nothing to tell.")
    fields = {"model_name": name, "license": license, "license_link": license_link}
    about = (
        f"Edits a picture as an instruction says (InstructPix2Pix, arXiv 2211.09800): "
        f"`{_named(facts.base)}`, whose U-Net was given four more input channels and "
        f"trained on {facts.pairs:,} pairs of pictures.\n"
    )
    head = f"---\n{_header(facts, fields)}\n---\n\n# {name}\n\n{about}"
    licence = f"{license_link or license}. {attribution}\n"
    sections = _sections(facts) | {"Licence": licence}
    return "\n".join([head, *(f"## {title}\n\n{t}" for title, t in sections.items())])


def _sections(facts: RunFacts) -> dict[str, str]:
    loading = _LOADING.format(
        base=f'"{_named(facts.base)}"',
        text_scale=facts.text_scale,
        image_scale=facts.image_scale,
    )
    return {
        "Training": _table(("what", "value"), _training(facts)),
        "Loss by noise level": _losses(facts.bands),
        "Validation": _validation(facts.looks),
        "Loading": f"`FOLDER` is where this file is.\n\n{loading}",
    }


def _header(facts: RunFacts, fields: dict[str, Any]) -> str:
    """The YAML that the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    kinds = ("image_similarity", "directional_similarity")
    results = [
        EvalResult(
            task_type="image-to-image",
            dataset_type="fixed-edits",
            dataset_name="fixed validation edits",
            metric_type="clip",
            metric_name=f"CLIP {kind.replace('_', ' ')}",
            metric_value=round(getattr(look, kind), 4),
        )
        for look in facts.looks[-1:]
        for kind in kinds
    ]
    data = ModelCardData(
        language="en",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["instruct-pix2pix", "image-editing"],
        base_model=facts.base.path_or_id if _is_on_hub(facts.base) else None,
        eval_results=results or None,
        **fields,
    )
    return str(data.to_yaml()).rstrip()


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _training(facts: RunFacts) -> list[tuple[str, Any]]:
    settings, taken = facts.settings, len(facts.bands)
    revision = facts.base.revision or "no revision"
    steps = f"{taken:,} of {settings.steps:,} of {settings.batch_size:,} examples"
    end = "falls along half a cosine" if settings.decay else "constant"
    return [
        ("started from", f"`{_named(facts.base)}` at {revision}"),
        ("data", f"{facts.data}, {facts.pairs:,} pairs"),
        ("steps", steps),
        ("learning rate", f"{settings.learning_rate:g}, warm-up {settings.warmup}"),
        ("rate after that", end),
        ("average of the weights", f"decay {settings.ema_decay:g}, once a step"),
        ("conditions hidden", f"{settings.drop:.0%} text, both, image each"),
        ("resolution", f"{settings.resolution} px"),
        ("seed of the run", facts.run_seed),
        *((key, value) for key, value in facts.made.items() if key != "versions"),
        *facts.made.get("versions", {}).items(),
    ]


def _losses(bands: Tensor) -> str:
    """Mean loss of the first and of the last steps, by band of timesteps."""
    window = max(1, round(ENDS * len(bands)))
    means = band_means(bands, window)
    rows = zip(
        band_names(bands=means.shape[1]), means[window - 1], means[-1], strict=True
    )
    head = ("timesteps", f"first {window} steps", f"last {window} steps")
    return _table(head, [(name, f"{a:.4f}", f"{b:.4f}") for name, a, b in rows])


def _validation(looks: Sequence[Look]) -> str:
    if not looks:
        return "No edits were looked at.\n"
    head = ("step", "CLIP image similarity", "CLIP directional similarity")
    kinds = ("image_similarity", "directional_similarity")
    rows = [(k.step, *(f"{getattr(k, kind):.4f}" for kind in kinds)) for k in looks]
    told = "Means over the same fixed edits: nearness to the input, and to the wish."
    return f"{told}\n\n{_table(head, rows)}"
