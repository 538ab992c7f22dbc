"""The words of the miniature world, in English and Chinese.

Every value of a scene's attribute stands here once, with the words that captions have
for it; ``data/phrasings`` has those of instructions. The order of each table is the
order of the codes that the renderer reads, so the tables are frozen: models are trained
on them.
"""

import csv
from typing import NamedTuple

from ip2p_lib.config import DATA

ART_SETS = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat")
ART_STYLES = {  # what a caption may call them
    "en": dict(zip(ART_SETS, ("soft", "plain", "glossy", "flat"), strict=True)),
    "zh": dict(zip(ART_SETS, ("柔和", "朴素", "立体", "扁平"), strict=True)),
}


class Words(NamedTuple):
    """One value of an attribute as captions say it; "" says nothing."""

    captions: tuple[str, str]
    zh: str


def _read_objects() -> dict[str, tuple[str, str]]:
    """The objects in the order of the atlases."""
    with (DATA / "emoji" / "objects.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["english"]: (row["sprite"], row["chinese"]) for row in rows}


OBJECTS = _read_objects()  # English noun -> sprite in the emoji sets, Chinese noun

PLACES: dict[str, Words] = {
    "meadow": Words(("in a meadow", "on the grass"), "草地上"),
    "beach": Words(("on a beach", "on the sand by the sea"), "海滩上"),
    "desert": Words(("in a desert", "among sand dunes"), "沙漠里"),
    "mountains": Words(("in the mountains", "below high peaks"), "群山中"),
    "city": Words(("in a city", "on a city street"), "城市里"),
    "forest": Words(("in a forest", "among fir trees"), "森林里"),
    "lake": Words(("by a lake", "on the shore of a lake"), "湖边"),
    "village": Words(("in a village", "by village houses"), "村庄里"),
    "canyon": Words(("in a canyon", "among red rocks"), "峡谷里"),
    "farm": Words(("on a farm", "by a red barn"), "农场里"),
}
TIMES: dict[str, Words] = {
    "day": Words(("", "during the day"), "白天"),
    "sunset": Words(("at sunset", "in the evening glow"), "日落"),
    "night": Words(("at night", "under the moon"), "夜晚"),
}
WEATHERS: dict[str, Words] = {
    "clear": Words(("", "in clear weather"), "晴天"),
    "snow": Words(("in the snow", "in winter"), "下雪的冬天"),
    "rain": Words(("in the rain", "in rainy weather"), "雨天"),
    "fog": Words(("in the fog", "in foggy weather"), "雾天"),
    "autumn": Words(("in autumn", "among autumn leaves"), "秋天"),
    "spring": Words(("in spring", "among spring blossoms"), "春天"),
}
MEDIA: dict[str, Words] = {
    "photo": Words(("", "a photo"), "彩色照片"),
    "pixel art": Words(("pixel art", "a pixel art picture"), "像素画"),
    "line drawing": Words(("a line drawing", "a pencil sketch"), "线描画"),
    "black and white": Words(
        ("a black and white photo", "a monochrome photo"), "黑白照片"
    ),
    "watercolour": Words(("a watercolour", "a watercolour painting"), "水彩画"),
    "oil painting": Words(("an oil painting", "a painting in oil"), "油画"),
}
COLOURLESS = ("black and white", "line drawing")  # media that hide every finish
# The attributes of a whole scene that captions describe, in the order of the codes.
SCENE: dict[str, dict[str, Words]] = {
    "place": PLACES,
    "time": TIMES,
    "weather": WEATHERS,
    "medium": MEDIA,
}
MATERIALS: dict[str, Words] = {
    "gold": Words(("golden {}", "{} made of gold"), "金"),
    "wood": Words(("wooden {}", "{} made of wood"), "木头"),
    "stone": Words(("stone {}", "{} made of stone"), "石头"),
    "ice": Words(("icy {}", "{} made of ice"), "冰"),
}
COLOURS: dict[str, Words] = {
    "red": Words(("red {}", "bright red {}"), "红色"),
    "blue": Words(("blue {}", "bright blue {}"), "蓝色"),
    "green": Words(("green {}", "bright green {}"), "绿色"),
    "purple": Words(("purple {}", "bright purple {}"), "紫色"),
}
MATERIALS_AND_COLOURS: dict[str, Words] = {**MATERIALS, **COLOURS}
ACCESSORIES: dict[str, Words] = {
    "top hat": Words(("wearing a top hat", "with a top hat"), "礼帽"),
    "crown": Words(("wearing a crown", "with a crown"), "皇冠"),
    "sunglasses": Words(("wearing sunglasses", "with sunglasses"), "墨镜"),
    "bow": Words(("wearing a bow", "with a bow"), "蝴蝶结"),
}
_ACCESSORY_ICONS = ("top-hat", "crown", "sunglasses", "ribbon")

# Sprites of an atlas in order: all objects, then all accessories.
SPRITES: tuple[str, ...] = (*(icon for icon, _ in OBJECTS.values()), *_ACCESSORY_ICONS)
