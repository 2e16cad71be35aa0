"""What does the web demo's attention cost? Replies with attention beside the same replies without, in turns.

python benchmarks/web_capture.py                                      the embedded demo on this machine
python benchmarks/web_capture.py --checkpoint Qwen/Qwen-VL-Chat --tokens 128

Prints one JSON object: medians and ratios. ``answer`` is the model's own answer to the question, ``long`` one that is
not let end before ``--tokens`` tokens; ``seconds`` until the last token is told, ``cpu_seconds`` what the process spent
on it (which a busy machine does not change), ``look_after_seconds`` from there until the look is there.
``slider_p95_ms`` is how long one map takes, at the 95th percentile, over layers, heads and tokens.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from diagnostics.web import maps
from diagnostics.web.engine import Engine
from diagnostics.web.look import Look
from finetune.conversation import ImageRef, Turn

ROOT = Path(__file__).parent.parent


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    watching = Engine.load(args.checkpoint, mode="full", cpu_only=args.cpu_only)
    plain = Engine(watching.model, watching.processor, mode="text")
    question = (
        Turn("user", ("Picture 1: ", ImageRef(str(args.picture), args.picture), f"\n{args.question}")),
    )
    engines = {"plain": plain, "watching": watching}
    report = {"answer": in_turns(engines, question, 256, args.repeats)}
    for engine in engines.values():
        never_ending(engine)
    report["long"] = in_turns(engines, question, args.tokens, args.repeats)
    look = replied(watching, question, args.tokens).look
    assert look is not None
    print(json.dumps(header(args) | report | {"slider_p95_ms": slider_milliseconds(look)}, indent=1))


def never_ending(engine: Engine) -> None:
    """Let no token end a reply."""
    vocabulary = engine.model.get_output_embeddings().weight.shape[0]

    class NeverEnding(type(engine.family)):
        def stop_token_ids(self, processor: object) -> tuple[int, ...]:
            return (vocabulary - 1,)  # embeddings outnumber tokens: one that is never chosen

    engine.family = NeverEnding()


def in_turns(
    engines: dict[str, Engine], question: tuple[Turn, ...], tokens: int, repeats: int
) -> dict[str, object]:
    """Seconds until the text is complete, taken in turns so that a busy moment hits both alike."""
    replies: dict[str, list[Reply]] = {name: [] for name in engines}
    for turn in range(repeats + 2):
        for name, engine in sorted(engines.items(), reverse=bool(turn % 2)):
            replies[name].append(replied(engine, question, tokens))
    plain, watching = replies["plain"][2:], replies["watching"][2:]  # the first two warm up
    assert {one.text for one in plain} == {one.text for one in watching}, "watching changed the answer"
    return {
        "seconds": ratios([one.told for one in plain], [one.told for one in watching]),
        "cpu_seconds": ratios([one.cpu for one in plain], [one.cpu for one in watching]),
        "look_after_seconds": round(statistics.median(one.whole - one.told for one in watching), 5),
        "repeats": repeats,
    }


def ratios(plain: list[float], watching: list[float]) -> dict[str, float]:
    pairs = [watched / alone for alone, watched in zip(plain, watching, strict=True)]
    medians = statistics.median(plain), statistics.median(watching)
    return {
        "plain": round(medians[0], 5),
        "watching": round(medians[1], 5),
        "watching_over_plain": round(medians[1] / medians[0], 4),
        "median_of_pairs": round(statistics.median(pairs), 4),
    }


class Reply(NamedTuple):
    """Seconds, and seconds of all cores, until the last token was told; seconds until the look came."""

    told: float
    cpu: float
    whole: float
    look: Look | None
    text: str


def replied(engine: Engine, question: tuple[Turn, ...], tokens: int) -> Reply:
    start, cpu = time.perf_counter(), time.process_time()
    for partial in engine.reply(question, stop=threading.Event(), max_new_tokens=tokens):
        if not partial.done:
            told, spent = time.perf_counter() - start, time.process_time() - cpu
    return Reply(told, spent, time.perf_counter() - start, partial.look, partial.text)


def slider_milliseconds(look: Look) -> dict[str, float]:
    """One map of each kind, for every layer and head and some tokens: 95th percentile."""
    spent: dict[str, list[float]] = {}
    some = look.answer[:: max(len(look.answer) // 5, 1)]
    for layer, head, token in product(look.layers, range(-1, look.heads), some):
        for name, way in ways(look, layer, head, token).items():
            start = time.perf_counter()
            way()
            spent.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
    return {name: round(float(np.percentile(times, 95)), 3) for name, times in spent.items()}


def ways(look: Look, layer: int, head: int, token: int) -> dict[str, Callable[[], object]]:
    """Every kind of map, the answer's overview and a box among them."""
    width, height = look.images[0].tokens.image_size_pixels
    box = (width / 5, height / 4, width / 2, height / 2)
    few = look.answer[:6]
    return {
        "text_map": lambda: maps.text_map(look, layer, head, (0, len(look.tokens))),
        "image_map": lambda: maps.image_map(look, layer, head, [token], with_sinks=False),
        "cross_maps": lambda: maps.cross_maps(look, layer, head, few),
        "who_looks": lambda: maps.who_looks(look, layer, head, 3),
        "overview": lambda: maps.overview(look, look.answer),
        "box_numbers": lambda: maps.box_numbers(look, box),
    }


def header(args: argparse.Namespace) -> dict[str, object]:
    on_gpu = torch.cuda.is_available() and not args.cpu_only
    return {
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "checkpoint": "the embedded demo" if args.checkpoint is None else args.checkpoint,
        "long_tokens": args.tokens,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="None: the embedded demo")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "tower.png")
    parser.add_argument("--question", default="这座塔是什么?")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-only", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
