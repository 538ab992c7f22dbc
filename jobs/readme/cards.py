"""The cards of the shipped editor and of the shipped pairs, as the Hub shows them.

``python -m jobs.readme.table`` writes both; every figure comes from a result file or
is counted from the pairs.
"""

from ip2p_lib.config import DATA, MODELS
from ip2p_lib.dataset import write_card
from ip2p_lib.files import write_bytes

ATTRIBUTION = (
    "The scenes are drawn from Noto Emoji (Apache-2.0), Twemoji (CC BY 4.0), Fluent "
    "Emoji and Fluent Emoji Flat (MIT); `data/emoji/ATTRIBUTION.md` names the authors"
)
_MODEL_CARD = """\
---
license: mit
language:
- en
- zh
library_name: diffusers
pipeline_tag: image-to-image
tags:
- instruct-pix2pix
- image-editing
---

# The miniature editor

An InstructPix2Pix (arXiv 2211.09800) of 11 million parameters for one small drawn
world, 128 px, English and Chinese instructions. It exists to be read, run and measured
on a laptop. Of photographs, people and text in images it knows nothing.

## Data

It was trained on generated pairs alone, as the paper's was: `miniature-lm` wrote the
triplets, `miniature-sd` generated each as pairs of images, `miniature-clip` filtered
them. `results/miniature-training.json` has their number, `data/pairs/sample` is a
sample of them. It began as `miniature-sd`'s U-Net. What every stage took on a GPU
stands in `data/models/README.md`.

## Artwork and licences

{attribution}. Weights and code: MIT.

## How well it edits

Read by an independent classifier on held-out scenes, asked in held-out phrasings, at
{steps} steps, text scale {text_scale} and image scale {image_scale}; these were chosen
on other held-out scenes (`results/miniature-editor-scales.json`). *Edit done*: what was
asked for is there. *Rest kept*: everything else is as it was.

{table}

## Limits

- About every second edit fails in one of the two ways. The first of them:

![The first held-out edits that fail](../../../docs/failures.png)

- Replacing an object is hardest: often its neighbour or its art changes too.
- Indirect wordings ("long after bedtime") are understood less often than plain ones.
- Counting, moving and turning objects, and two changes at once, were never taught.
- Edits in a row add up their errors.
"""


def write_cards(table: str, editing: dict[str, object]) -> None:
    """Write both cards.

    Args:
        table: of the editor's results by edit type, Markdown.
        editing: the scale's ``config.Editing`` as a dictionary.
    """
    text = _MODEL_CARD.format(attribution=ATTRIBUTION, table=table, **editing)
    write_bytes(MODELS / "miniature-ip2p" / "README.md", text.encode())
    sample = DATA / "pairs" / "sample"
    name = "InstructPix2Pix miniature pairs, a sample"
    write_card(
        sample, sample, name=name, license="cc-by-4.0", attribution=f"{ATTRIBUTION}."
    )
