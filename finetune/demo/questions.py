"""What can be asked of a scene, in Chinese and English.

Chinese texts are written with `|` between words: the small vocabulary is learned from words, so that a heat map has
words on its axis and not whole sentences. Readers of the corpora see the text without it.
"""

from random import Random
from typing import NamedTuple

from finetune.demo.shapes import Scene

LANGUAGES = ("zh", "en")
SEPARATOR = "|"


class Topic(NamedTuple):
    """One kind of question and all its answers."""

    asked: dict[str, tuple[str, ...]]
    """Phrasings by language; `{thing}` is what is asked about."""
    answers: dict[str, tuple[str, str]]
    """Value of the fact -> the answer in Chinese and in English."""


class Ask(NamedTuple):
    """A topic that a scene can answer."""

    topic: str
    value: str
    """The true value, a key of the topic's answers."""
    thing: str | None = None
    """A key of THINGS, where the topic asks about one."""


class Question(NamedTuple):
    """A question in words, its answer, and a wrong answer to set against it."""

    topic: str
    language: str
    text: str
    answer: str
    foil: str


_COLOURS = {
    "red": ("红色", "red"), "green": ("绿色", "green"), "blue": ("蓝色", "blue"), "yellow": ("黄色", "yellow"),
    "purple": ("紫色", "purple"), "white": ("白色", "white"),
}  # fmt: skip
THINGS: dict[str, tuple[str, str]] = {
    name: (f"{chinese}|积木", f"{english} block")
    for name, (chinese, english) in _COLOURS.items()
    if name != "white"
}
_COLUMNS = {"left": ("左边", "left"), "middle": ("中间", "middle"), "right": ("右边", "right")}
_ROWS = {"top": ("上面", "top"), "middle": ("中间", "middle"), "bottom": ("下面", "bottom")}


TOPICS: dict[str, Topic] = {
    "tower": Topic(
        {
            "zh": ("这座|塔|是|什么|?", "图|中|的|塔|叫|什么|名字|?", "这|是|哪|座|塔|?"),
            "en": ("What is this tower?", "Which tower is this?", "What is the name of the tower?"),
        },
        {
            "pearl": ("东方明珠", "Oriental Pearl"),
            "canton": ("广州塔", "Canton Tower"),
            "pagoda": ("宝塔", "pagoda"),
            "lighthouse": ("灯塔", "lighthouse"),
            "eiffel": ("埃菲尔铁塔", "Eiffel Tower"),
        },
    ),
    "spheres": Topic(
        {"zh": ("这座|塔|有|球体|吗|?",), "en": ("Does this tower have spheres?",)},
        {"yes": ("有", "yes"), "no": ("没有", "no")},
    ),
    "relation": Topic(
        {
            "zh": ("猫|在|桌子|的|哪里|?", "猫|在|桌子|上面|还是|下面|?"),
            "en": ("Where is the cat?", "Is the cat on the table or under the table?"),
        },
        {"on": ("桌子|上面", "on the table"), "under": ("桌子|下面", "under the table")},
    ),
    "cat": Topic(
        {"zh": ("猫|是|什么|颜色|?",), "en": ("What colour is the cat?",)},
        {"black": ("黑色", "black"), "orange": ("橙色", "orange")},
    ),
    "row": Topic({"zh": ("{thing}|在|哪|一|行|?",), "en": ("Which row is the {thing} in?",)}, _ROWS),
    "column": Topic({"zh": ("{thing}|在|哪|一|列|?",), "en": ("Which column is the {thing} in?",)}, _COLUMNS),
    "time": Topic(
        {"zh": ("现在|是|白天|还是|夜晚|?",), "en": ("Is it day or night?",)},
        {"day": ("白天", "day"), "night": ("夜晚", "night")},
    ),
    "weather": Topic(
        {"zh": ("天气|怎么样|?",), "en": ("What is the weather like?",)},
        {"clear": ("晴天", "clear"), "rain": ("下雨", "rain"), "snow": ("下雪", "snow")},
    ),
    "house": Topic({"zh": ("房子|是|什么|颜色|?",), "en": ("What colour is the house?",)}, _COLOURS),
    "car": Topic({"zh": ("汽车|是|什么|颜色|?",), "en": ("What colour is the car?",)}, _COLOURS),
}


def plain(text: str) -> str:
    """The text as people read it."""
    return text.replace(SEPARATOR, "")


def answer_text(topic: str, value: str, language: str) -> str:
    return plain(TOPICS[topic].answers[value][LANGUAGES.index(language)])


def askable(scene: Scene) -> list[Ask]:
    """Every question that the scene's facts answer, the flawed one first. Spheres are not asked for here."""
    facts = scene.facts
    if scene.kind == "blocks":
        blocks: tuple[dict[str, str], ...] = facts["blocks"]  # type: ignore[assignment]
        return [Ask(topic, block[topic], block["colour"]) for block in blocks for topic in ("row", "column")]
    topics = {
        "tower": {"tower": "landmark", "time": "time"},
        "room": {"relation": "relation", "cat": "cat"},
        "landscape": {"time": "time", "weather": "weather", "house": "house", "car": "car"},
    }[scene.kind]
    return [Ask(topic, str(facts[fact])) for topic, fact in topics.items()]


def sphere_ask(scene: Scene) -> Ask:
    """Whether a tower has spheres, which only the corrective corpus asks."""
    return Ask("spheres", "yes" if scene.facts["spheres"] else "no")


def phrase(ask: Ask, language: str, rng: Random) -> Question:
    """The question in words, its phrasing and its foil chosen by `rng`."""
    topic = TOPICS[ask.topic]
    template = rng.choice(topic.asked[language])
    if ask.thing is not None:
        thing = THINGS[ask.thing][LANGUAGES.index(language)]
        template = template.format(thing=thing)
    foil = rng.choice([value for value in topic.answers if value != ask.value])
    answer, wrong = answer_text(ask.topic, ask.value, language), answer_text(ask.topic, foil, language)
    return Question(ask.topic, language, plain(template), answer, wrong)


def all_texts() -> list[str]:
    """Every phrasing, answer and thing, with the separators: what the vocabulary is learned from."""
    texts: list[str] = []
    for topic in TOPICS.values():
        for language, templates in topic.asked.items():
            names = [names[LANGUAGES.index(language)] for names in THINGS.values()]
            for template in templates:
                texts += (
                    [template.format(thing=name) for name in names] if "{thing}" in template else [template]
                )
        texts += [text for answers in topic.answers.values() for text in answers]
    return texts
