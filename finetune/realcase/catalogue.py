"""What the pictures show, in two languages: cut-outs by name, some of them held out; landmarks, some much alike.

The packages name their pictures too, in many languages; several of their Chinese names are of other things (a lion is
"an onion", a bear "a pear"), so all names here are our own.
"""

from __future__ import annotations

from typing import NamedTuple

STAMPS_FOLDER = "usr/share/tuxpaint/stamps"
MONUMENTS_FILE = "usr/share/gcompris-qt/rcc/explore_monuments.rcc"


class Thing(NamedTuple):
    """Something that can be cut out of a photograph."""

    english: str
    chinese: str
    trained: tuple[str, ...]
    """Cut-outs of training scenes, below ``STAMPS_FOLDER``."""
    held_out: tuple[str, ...] = ()
    """Cut-outs that are never trained."""


class Landmark(NamedTuple):
    """A photograph of a landmark."""

    english: str
    chinese: str
    picture: str
    """Below ``resource/`` of the resource file, without its ending."""
    box: tuple[float, float, float, float]
    """x0 y0 x1 y1 of the landmark, as fractions of the photograph."""
    alike: str = ""
    """Landmarks with the same word here look alike."""


_BIRDS, _MAMMALS, _TOOLS = "animals/birds", "animals/mammals", "household/tools"

THINGS = (
    Thing("frog", "青蛙", ("animals/amphibians/frog.png",), ("animals/amphibians/frog-1.png",)),
    Thing("duck", "鸭子", (f"{_BIRDS}/duck.png",), (f"{_BIRDS}/drake.png",)),
    Thing("penguin", "企鹅", (f"{_BIRDS}/penguin.png", f"{_BIRDS}/magellanic_penguin.png"),
          (f"{_BIRDS}/little-penguin.png",)),
    Thing("chicken", "鸡", (f"{_BIRDS}/hen.png",), (f"{_BIRDS}/chicken_profile.png",)),
    Thing("seagull", "海鸥", (f"{_BIRDS}/silver-gull.png",), (f"{_BIRDS}/seagull.png",)),
    Thing("owl", "猫头鹰", (f"{_BIRDS}/owl.png",)),
    Thing("bear", "熊", (f"{_MAMMALS}/bears/european-bear.png",), (f"{_MAMMALS}/bears/bear.png",)),
    Thing("cow", "牛", (f"{_MAMMALS}/bovines/cow.png",), (f"{_MAMMALS}/bovines/cow_white.png",)),
    Thing("sheep", "绵羊", (f"{_MAMMALS}/bovines/sheep.png",), (f"{_MAMMALS}/bovines/ram.png",)),
    Thing("lion", "狮子", (f"{_MAMMALS}/cats/lion-2.png",), (f"{_MAMMALS}/cats/lion.png",)),
    Thing("tiger", "老虎", (f"{_MAMMALS}/cats/tiger.png",), (f"{_MAMMALS}/cats/tiger_sumatran.png",)),
    Thing("deer", "鹿", (f"{_MAMMALS}/deer/deer.png", f"{_MAMMALS}/deer/doe.png"), (f"{_MAMMALS}/deer/wapiti.png",)),
    Thing("donkey", "驴", (f"{_MAMMALS}/equines/donkey.png",), (f"{_MAMMALS}/equines/donkey_eating.png",)),
    Thing("horse", "马", (f"{_MAMMALS}/equines/horse.png",)),
    Thing("zebra", "斑马", (f"{_MAMMALS}/equines/zebra.png",)),
    Thing("elephant", "大象", (f"{_MAMMALS}/elephant.png",)),
    Thing("giraffe", "长颈鹿", (f"{_MAMMALS}/giraffe.png",)),
    Thing("pig", "猪", (f"{_MAMMALS}/pig.png", f"{_MAMMALS}/pig_golden.png"), (f"{_MAMMALS}/pig_golden2.png",)),
    Thing("rabbit", "兔子", (f"{_MAMMALS}/rodents/rabbit-2.png", f"{_MAMMALS}/rabbit_little.png"),
          (f"{_MAMMALS}/rodents/rabbit.png",)),
    Thing("squirrel", "松鼠", (f"{_MAMMALS}/rodents/squirrel.png",)),
    Thing("camel", "骆驼", (f"{_MAMMALS}/camel/camel.png",), (f"{_MAMMALS}/camel/dromedary.png",)),
    Thing("orange", "橙子", ("food/fruit/orange_seville.png",), ("food/fruit/orange.png",)),
    Thing("mushroom", "蘑菇", ("plants/mushrooms/cep.png", "plants/mushrooms/cep-2.png"),
          ("plants/mushrooms/cep-1.png",)),
    Thing("guitar", "吉他", ("hobbies/music/string/guitar_classical.png", "hobbies/music/string/guitar2.png"),
          ("hobbies/music/string/guitar_electric.png",)),
    Thing("camera", "相机", ("hobbies/camera_35mm.png",)),
    Thing("toolbox", "工具箱", (f"{_TOOLS}/toolbox.png",)),
    Thing("wrench", "扳手", (f"{_TOOLS}/wrench_plumbers.png",), (f"{_TOOLS}/wrench.png",)),
    Thing("fireman", "消防员", ("people/fireman200b.png",), ("people/fireman240a.png",)),
    Thing("basketball", "篮球", ("sports/basketball.png",)),
    Thing("car", "汽车", ("vehicles/auto/sedan.png",), ("vehicles/auto/beetle.png",)),
    Thing("airplane", "飞机", ("vehicles/flight/planes/747.png",)),
    Thing("sailboat", "帆船", ("vehicles/ship/chineseJunk.png",), ("vehicles/ship/walnutBoat.png",)),
)  # fmt: skip

CUTOUTS = tuple(one for thing in THINGS for one in thing.trained + thing.held_out)

RIDERS = (
    "frog",
    "duck",
    "penguin",
    "chicken",
    "seagull",
    "owl",
    "rabbit",
    "squirrel",
    "orange",
    "basketball",
)
CARRIERS = ("toolbox", "car", "camera", "mushroom")
"""What things stand on: flat above, or nearly so."""

LANDMARKS = (
    Landmark(
        "Great Pyramid of Giza",
        "吉萨大金字塔",
        "egypt/greatPyramidOfGiza",
        (0.01, 0.08, 0.99, 0.90),
        "pyramid",
    ),
    Landmark("Bent Pyramid", "弯曲金字塔", "egypt/bentPyramid", (0.20, 0.22, 0.86, 0.60), "pyramid"),
    Landmark("Red Pyramid", "红金字塔", "egypt/redPyramid", (0.02, 0.30, 0.99, 0.70), "pyramid"),
    Landmark("Meidum Pyramid", "美杜姆金字塔", "egypt/meidumPyramid", (0.05, 0.22, 0.95, 0.80), "pyramid"),
    Landmark("Charminar", "查尔米纳塔", "india/charminar", (0.03, 0.02, 0.97, 0.99), "minaret"),
    Landmark("Qutub Minar", "库特卜塔", "india/qutubMinar", (0.30, 0.16, 0.62, 0.98), "minaret"),
    Landmark("Eiffel Tower", "埃菲尔铁塔", "france/eiffelTower", (0.40, 0.06, 0.62, 0.94)),
    Landmark("Taj Mahal", "泰姬陵", "wonders/tajMahal", (0.14, 0.22, 0.88, 0.76)),
    Landmark("Colosseum", "罗马斗兽场", "wonders/colosseum", (0.06, 0.10, 0.93, 0.85)),
    Landmark("Petra", "佩特拉", "wonders/petra", (0.13, 0.06, 0.88, 0.97)),
    Landmark("Brandenburg Gate", "勃兰登堡门", "germany/brandenburgGate", (0.05, 0.06, 0.95, 0.93)),
    Landmark("Neuschwanstein Castle", "新天鹅堡", "germany/neuschwansteinCastle", (0.20, 0.14, 0.74, 0.80)),
    Landmark("Statue of Liberty", "自由女神像", "usa/statueofLiberty", (0.34, 0.01, 0.72, 0.98)),
    Landmark("Mont Saint-Michel", "圣米歇尔山", "france/montStMichel", (0.42, 0.10, 0.90, 0.60)),
    Landmark("Hawa Mahal", "风之宫", "india/hawaMahal", (0.01, 0.03, 0.99, 0.96)),
    Landmark("Chichen Itza", "奇琴伊察", "wonders/chichenItza", (0.10, 0.18, 0.90, 0.92)),
)

BACKGROUNDS = (
    "usa/canyondeChelly", "usa/georgeWashingtonBirthplace", "usa/lincolnMemorial", "usa/navajo", "usa/mountRushmore",
    "usa/castillodeSanMarcos", "usa/fortSumter", "usa/castleClinton", "india/greatStupa", "india/gatewayofIndia",
    "india/konarkSunTemple", "india/rangGhar", "india/victoriaMemorial", "india/mysorePalace", "india/goldenTemple",
    "india/ajantaCave", "france/chateaudeChambord", "france/pontduGard", "france/palaisdesPapes",
    "france/reimsCathedral", "france/citedeCarcassonne", "france/arlesAmphitheater", "france/chateaudeChenonceau",
    "france/rocamadour",
)  # fmt: skip
HELD_OUT_BACKGROUNDS = (
    "germany/berlinCathedral", "germany/schwerinPalace", "germany/trierImperialBaths", "germany/aulaPalatina",
    "germany/wormsCathedral", "wonders/machuPicchu", "wonders/greatWallofChina", "wonders/christTheRedeemer",
)  # fmt: skip


def monument_entry(picture: str) -> str:
    """The path of a photograph within the resource file."""
    return f"gcompris/src/activities/explore_monuments/resource/{picture}.webp"
