"""The words of the miniature world, in English and Chinese.

Every value of a scene's attribute stands here once, with the words a caption or an
instruction uses for it. The order of each table is the order of the codes that the
renderer reads, so the tables are frozen: models are trained on them.
"""

from __future__ import annotations

from dataclasses import dataclass

ART_SETS = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat")


@dataclass(frozen=True)
class Words:
    """One value of an attribute in words.

    ``captions`` are the ways a caption says it ("" says nothing), ``noun`` is the form
    an instruction uses, and ``zh`` serves both in Chinese.
    """

    captions: tuple[str, ...]
    noun: str
    zh: str


# Sprite name in the emoji sets, English noun, Chinese noun.
_OBJECT_ROWS = (
    ("cat", "cat", "猫"),
    ("dog", "dog", "狗"),
    ("rabbit", "rabbit", "兔子"),
    ("horse", "horse", "马"),
    ("cow", "cow", "奶牛"),
    ("pig", "pig", "猪"),
    ("ewe", "sheep", "绵羊"),
    ("goat", "goat", "山羊"),
    ("rooster", "rooster", "公鸡"),
    ("duck", "duck", "鸭子"),
    ("owl", "owl", "猫头鹰"),
    ("penguin", "penguin", "企鹅"),
    ("parrot", "parrot", "鹦鹉"),
    ("flamingo", "flamingo", "火烈鸟"),
    ("swan", "swan", "天鹅"),
    ("eagle", "eagle", "老鹰"),
    ("peacock", "peacock", "孔雀"),
    ("elephant", "elephant", "大象"),
    ("giraffe", "giraffe", "长颈鹿"),
    ("zebra", "zebra", "斑马"),
    ("kangaroo", "kangaroo", "袋鼠"),
    ("two-hump-camel", "camel", "骆驼"),
    ("rhinoceros", "rhinoceros", "犀牛"),
    ("hippopotamus", "hippo", "河马"),
    ("gorilla", "gorilla", "大猩猩"),
    ("monkey", "monkey", "猴子"),
    ("tiger", "tiger", "老虎"),
    ("leopard", "leopard", "豹子"),
    ("deer", "deer", "鹿"),
    ("llama", "llama", "羊驼"),
    ("fox", "fox", "狐狸"),
    ("bear", "bear", "熊"),
    ("panda", "panda", "熊猫"),
    ("koala", "koala", "考拉"),
    ("lion", "lion", "狮子"),
    ("frog", "frog", "青蛙"),
    ("turtle", "turtle", "乌龟"),
    ("crocodile", "crocodile", "鳄鱼"),
    ("snake", "snake", "蛇"),
    ("dragon", "dragon", "龙"),
    ("sauropod", "dinosaur", "恐龙"),
    ("spouting-whale", "whale", "鲸鱼"),
    ("dolphin", "dolphin", "海豚"),
    ("shark", "shark", "鲨鱼"),
    ("octopus", "octopus", "章鱼"),
    ("crab", "crab", "螃蟹"),
    ("lobster", "lobster", "龙虾"),
    ("tropical-fish", "fish", "热带鱼"),
    ("snail", "snail", "蜗牛"),
    ("butterfly", "butterfly", "蝴蝶"),
    ("lady-beetle", "ladybug", "瓢虫"),
    ("honeybee", "bee", "蜜蜂"),
    ("hedgehog", "hedgehog", "刺猬"),
    ("unicorn", "unicorn", "独角兽"),
    ("sunflower", "sunflower", "向日葵"),
    ("rose", "rose", "玫瑰"),
    ("tulip", "tulip", "郁金香"),
    ("hibiscus", "hibiscus", "木槿花"),
    ("lotus", "lotus", "莲花"),
    ("cactus", "cactus", "仙人掌"),
    ("palm-tree", "palm tree", "棕榈树"),
    ("evergreen-tree", "pine tree", "松树"),
    ("deciduous-tree", "oak tree", "橡树"),
    ("mushroom", "mushroom", "蘑菇"),
    ("potted-plant", "potted plant", "盆栽"),
    ("red-apple", "apple", "苹果"),
    ("banana", "banana", "香蕉"),
    ("grapes", "bunch of grapes", "葡萄"),
    ("strawberry", "strawberry", "草莓"),
    ("watermelon", "watermelon", "西瓜"),
    ("pineapple", "pineapple", "菠萝"),
    ("lemon", "lemon", "柠檬"),
    ("pear", "pear", "梨"),
    ("peach", "peach", "桃子"),
    ("avocado", "avocado", "牛油果"),
    ("carrot", "carrot", "胡萝卜"),
    ("broccoli", "broccoli", "西兰花"),
    ("ear-of-corn", "corn cob", "玉米"),
    ("eggplant", "eggplant", "茄子"),
    ("pizza", "pizza", "披萨"),
    ("hamburger", "hamburger", "汉堡"),
    ("hot-dog", "hot dog", "热狗"),
    ("doughnut", "donut", "甜甜圈"),
    ("cupcake", "cupcake", "纸杯蛋糕"),
    ("birthday-cake", "birthday cake", "生日蛋糕"),
    ("ice-cream", "ice cream", "冰淇淋"),
    ("cookie", "cookie", "饼干"),
    ("cheese-wedge", "cheese", "奶酪"),
    ("croissant", "croissant", "牛角包"),
    ("teapot", "teapot", "茶壶"),
    ("automobile", "car", "汽车"),
    ("bus", "bus", "公交车"),
    ("taxi", "taxi", "出租车"),
    ("tractor", "tractor", "拖拉机"),
    ("fire-engine", "fire truck", "消防车"),
    ("bicycle", "bicycle", "自行车"),
    ("motorcycle", "motorcycle", "摩托车"),
    ("sailboat", "sailboat", "帆船"),
    ("airplane", "airplane", "飞机"),
    ("helicopter", "helicopter", "直升机"),
    ("rocket", "rocket", "火箭"),
    ("locomotive", "steam train", "蒸汽火车"),
    ("flying-saucer", "flying saucer", "飞碟"),
    ("guitar", "guitar", "吉他"),
    ("violin", "violin", "小提琴"),
    ("drum", "drum", "鼓"),
    ("trumpet", "trumpet", "小号"),
    ("camera", "camera", "相机"),
    ("television", "television", "电视机"),
    ("alarm-clock", "alarm clock", "闹钟"),
    ("light-bulb", "light bulb", "灯泡"),
    ("umbrella", "umbrella", "雨伞"),
    ("balloon", "balloon", "气球"),
    ("teddy-bear", "teddy bear", "泰迪熊"),
    ("wrapped-gift", "gift box", "礼物盒"),
    ("trophy", "trophy", "奖杯"),
    ("soccer-ball", "soccer ball", "足球"),
    ("basketball", "basketball", "篮球"),
    ("chair", "chair", "椅子"),
    ("candle", "candle", "蜡烛"),
    ("bell", "bell", "铃铛"),
    ("backpack", "backpack", "背包"),
    ("red-paper-lantern", "lantern", "灯笼"),
    ("snowman", "snowman", "雪人"),
    ("robot", "robot", "机器人"),
    ("jack-o-lantern", "pumpkin", "南瓜灯"),
    ("tent", "tent", "帐篷"),
    ("castle", "castle", "城堡"),
    ("gem-stone", "diamond", "钻石"),
    ("anchor", "anchor", "船锚"),
    ("hourglass-not-done", "hourglass", "沙漏"),
    ("telescope", "telescope", "望远镜"),
)
OBJECTS: dict[str, tuple[str, str]] = {en: (icon, zh) for icon, en, zh in _OBJECT_ROWS}

PLACES: dict[str, Words] = {
    "meadow": Words(("in a meadow", "on the grass"), "a meadow", "草地上"),
    "beach": Words(("on a beach", "on the sand by the sea"), "a beach", "海滩上"),
    "desert": Words(("in a desert", "among sand dunes"), "a desert", "沙漠里"),
    "mountains": Words(
        ("in the mountains", "below high peaks"), "the mountains", "群山中"
    ),
    "city": Words(("in a city", "on a city street"), "a city", "城市里"),
    "forest": Words(("in a forest", "among fir trees"), "a forest", "森林里"),
    "lake": Words(("by a lake", "on the shore of a lake"), "a lake", "湖边"),
    "village": Words(("in a village", "by village houses"), "a village", "村庄里"),
    "canyon": Words(("in a canyon", "among red rocks"), "a canyon", "峡谷里"),
    "farm": Words(("on a farm", "by a red barn"), "a farm", "农场里"),
}
TIMES: dict[str, Words] = {
    "day": Words(("", "during the day"), "daytime", "白天"),
    "sunset": Words(("at sunset", "in the evening glow"), "sunset", "日落"),
    "night": Words(("at night", "under the moon"), "night", "夜晚"),
}
WEATHERS: dict[str, Words] = {
    "clear": Words(("", "in clear weather"), "a clear day", "晴天"),
    "snow": Words(("in the snow", "in winter"), "a snowy winter", "下雪的冬天"),
    "rain": Words(("in the rain", "in rainy weather"), "a rainy day", "雨天"),
    "fog": Words(("in the fog", "in foggy weather"), "a foggy day", "雾天"),
    "autumn": Words(("in autumn", "among autumn leaves"), "autumn", "秋天"),
    "spring": Words(("in spring", "among spring blossoms"), "spring", "春天"),
}
MEDIA: dict[str, Words] = {
    "photo": Words(("", "a photo"), "a colour photo", "彩色照片"),
    "pixel art": Words(("pixel art", "a pixel art picture"), "pixel art", "像素画"),
    "line drawing": Words(
        ("a line drawing", "a pencil sketch"), "a line drawing", "线描画"
    ),
    "black and white": Words(
        ("a black and white photo", "a monochrome photo"),
        "a black and white photo",
        "黑白照片",
    ),
    "watercolour": Words(
        ("a watercolour", "a watercolour painting"), "a watercolour", "水彩画"
    ),
    "oil painting": Words(
        ("an oil painting", "a painting in oil"), "an oil painting", "油画"
    ),
}
MATERIALS: dict[str, Words] = {
    "gold": Words(("golden {}", "{} made of gold"), "gold", "金"),
    "wood": Words(("wooden {}", "{} made of wood"), "wood", "木头"),
    "stone": Words(("stone {}", "{} made of stone"), "stone", "石头"),
    "ice": Words(("icy {}", "{} made of ice"), "ice", "冰"),
}
COLOURS: dict[str, Words] = {
    "red": Words(("red {}", "bright red {}"), "red", "红色"),
    "blue": Words(("blue {}", "bright blue {}"), "blue", "蓝色"),
    "green": Words(("green {}", "bright green {}"), "green", "绿色"),
    "purple": Words(("purple {}", "bright purple {}"), "purple", "紫色"),
}
FINISHES: dict[str, Words] = {**MATERIALS, **COLOURS}
ACCESSORIES: dict[str, Words] = {
    "top hat": Words(("wearing a top hat", "with a top hat"), "a top hat", "礼帽"),
    "crown": Words(("wearing a crown", "with a crown"), "a crown", "皇冠"),
    "sunglasses": Words(
        ("wearing sunglasses", "with sunglasses"), "sunglasses", "墨镜"
    ),
    "bow": Words(("wearing a bow", "with a bow"), "a bow", "蝴蝶结"),
}
_ACCESSORY_ICONS = ("top-hat", "crown", "sunglasses", "ribbon")

# Sprites of an atlas in order: all objects, then all accessories.
SPRITES: tuple[str, ...] = (
    *(icon for icon, _, _ in _OBJECT_ROWS),
    *_ACCESSORY_ICONS,
)
