"""The cost of the web demo's attention: replies with attention compared with the same replies without, in turns.

python benchmarks/web_capture.py                                      the embedded demo on this machine
python benchmarks/web_capture.py --checkpoint Qwen/Qwen-VL-Chat --tokens 128

Prints one JSON object. ``answer`` is the model's own answer to the question, ``long`` one that is not let end before
``--tokens`` tokens. Both count from the read prompt to the last token: ``seconds``, and ``cpu_seconds`` of the thread
that generates, which a busy machine changes little (with ``--threads`` above 1 those of the process). ``over_plain`` is
the median over pairs that ran one after the other, with the range that holds 95 % of 2,000 bootstrap medians.

plain       the reply alone
watching    with what the page shows of it; ``look_after_seconds`` is from the last token until it is there
matrices    what ``output_attentions=True`` costs beside it: eager attention, every matrix of every step returned
eager       eager attention alone, so that its own part is known

``slider_p95_ms`` is how long one map takes, at the 95th percentile, over layers, heads and tokens.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from diagnostics.web import maps
from diagnostics.web.engine import Engine
from diagnostics.web.trace import Trace
from finetune.families import bare_model
from finetune.samples.conversation import ImageRef, Turn

ROOT = Path(__file__).parent.parent


def main() -> None:
    args = arguments()
    with redirect_stdout(sys.stderr):  # what loading says
        report = measured(args)
    print(json.dumps(report, indent=1))


def measured(args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(args.threads)
    watching = Engine.load(args.checkpoint, mode="full", cpu_only=args.cpu_only)
    question = (
        Turn("user", ("Picture 1: ", ImageRef(str(args.picture), args.picture), f"\n{args.question}")),
    )
    clock = time.thread_time if args.threads == 1 else time.process_time
    arms = {
        "plain": Arm(Engine(watching.model, watching.processor, mode="text"), clock),
        "watching": Arm(watching, clock),
        "eager": Arm(eager(args), clock),
        "matrices": Arm(with_matrices(eager(args)), clock),
    }
    report: dict[str, object] = {"answer": both(arms, question, 256, args.pairs)}
    for arm in arms.values():
        never_ending(arm.engine)
    report["long"] = both(arms, question, args.tokens, args.long_pairs)
    trace = arms["watching"].reply(question, args.tokens).trace
    assert trace is not None
    return header(args) | report | {"slider_p95_ms": slider_milliseconds(trace)}


def eager(args: argparse.Namespace) -> Engine:
    """A model of its own, without attention kept, under the kernel that can return its matrices."""
    engine = Engine.load(args.checkpoint, mode="text", cpu_only=args.cpu_only)
    engine.model.set_attn_implementation("eager")
    return engine


def with_matrices(engine: Engine) -> Engine:
    model: Any = bare_model(engine.model)
    generate = model.generate

    def with_all(*, generation_config: GenerationConfig, **given: Any) -> Any:
        generation_config.update(output_attentions=True, return_dict_in_generate=True)
        return generate(generation_config=generation_config, **given)

    model.generate = with_all
    return engine


def never_ending(engine: Engine) -> None:
    """Let no token end a reply."""
    vocabulary = engine.model.get_output_embeddings().weight.shape[0]

    class NeverEnding(type(engine.family)):
        def stop_token_ids(self, processor: object) -> tuple[int, ...]:
            return (vocabulary - 1,)  # embeddings outnumber tokens: one that is never chosen

    engine.family = NeverEnding()


class Arm:
    """One way to answer, timed in the thread that generates: what follows the last token is not counted, and no wake-up
    of the thread that listens."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self.engine = engine
        self._clock = clock
        self._marks: list[tuple[float, float]] = []
        read, trace, done = engine._read, engine._trace, engine._generate

        def reading(turns: Sequence[Turn]) -> Any:
            prompt = read(turns)
            self._mark()
            return prompt

        def looking(*given: Any) -> Any:
            self._mark()  # watching ends here, its hooks taken off
            return trace(*given)

        def generating(*given: Any) -> Any:
            said = done(*given)
            if not engine.layers:
                self._mark()
            return said

        engine._read, engine._trace, engine._generate = reading, looking, generating

    def reply(self, question: tuple[Turn, ...], tokens: int) -> Reply:
        self._marks.clear()
        gc.collect()  # not in a reply, by chance of one arm more than of another
        *_, last = self.engine.reply(question, stop=threading.Event(), max_new_tokens=tokens)
        whole = time.perf_counter()
        (began, cpu_began), (ended, cpu_ended) = self._marks
        return Reply(ended - began, cpu_ended - cpu_began, whole - ended, last.trace, last.text)

    def _mark(self) -> None:
        self._marks.append((time.perf_counter(), self._clock()))


class Reply(NamedTuple):
    """Seconds, and seconds of the processor, from the read prompt to the last token; seconds from there to the look."""

    seconds: float
    cpu: float
    after: float
    trace: Trace | None
    text: str


def both(arms: Mapping[str, Arm], question: tuple[Turn, ...], tokens: int, pairs: int) -> dict[str, object]:
    """Watching beside plain by themselves, for what another model leaves in the caches costs whichever comes next; a
    third as many rounds show what costs more."""
    found: dict[str, object] = {}
    for name, few, count in (
        ("watching", ("plain", "watching"), pairs),
        ("full_matrices", ("plain", "eager", "matrices"), -(-pairs // 3)),
    ):
        found[name] = in_turns({one: arms[one] for one in few}, question, tokens, count)
    return found


def in_turns(
    arms: Mapping[str, Arm], question: tuple[Turn, ...], tokens: int, pairs: int
) -> dict[str, object]:
    """Every arm once in each round, and the order turned round after each, so that a busy moment hits all alike, and
    each comes as often after itself as the others do."""
    replies: dict[str, list[Reply]] = {name: [] for name in arms}
    for turn in range(pairs + 4):
        for name in [*arms] if turn % 2 else [*reversed(arms)]:
            replies[name].append(arms[name].reply(question, tokens))
    kept = {name: all_of_them[4:] for name, all_of_them in replies.items()}  # the first ones warm up
    assert len({one.text for many in kept.values() for one in many}) == 1, "the answer changed"
    told = {
        "pairs": pairs,
        "seconds": beside_plain({name: [one.seconds for one in many] for name, many in kept.items()}),
        "cpu_seconds": beside_plain({name: [one.cpu for one in many] for name, many in kept.items()}),
    }
    if "watching" in kept:
        told["look_after_seconds"] = round(statistics.median(one.after for one in kept["watching"]), 5)
    return told


def beside_plain(spent: Mapping[str, Sequence[float]]) -> dict[str, object]:
    plain = np.array(spent["plain"])
    return {
        name: {"median": round(float(np.median(times)), 5)}
        | ({} if name == "plain" else over(np.array(times) / plain))
        for name, times in spent.items()
    }


def over(ratios: np.ndarray) -> dict[str, object]:
    """The median of the ratios of pairs, and where it would lie had other pairs been drawn."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {
        "over_plain": round(float(np.median(ratios)), 4),
        "from_to": [round(float(low), 4), round(float(high), 4)],
    }


def slider_milliseconds(trace: Trace) -> dict[str, float]:
    """One map of each kind, for every layer and head and some tokens: 95th percentile."""
    spent: dict[str, list[float]] = {}
    some = trace.answer[:: max(len(trace.answer) // 5, 1)]
    for layer, head, token in product(trace.layers, range(-1, trace.heads), some):
        for name, way in ways(trace, layer, head, token).items():
            start = time.perf_counter()
            way()
            spent.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
    return {name: round(float(np.percentile(times, 95)), 3) for name, times in spent.items()}


def ways(trace: Trace, layer: int, head: int, token: int) -> dict[str, Callable[[], object]]:
    """Every kind of map, the answer's overview and a box among them."""
    width, height = trace.images[0].tokens.image_size_pixels
    box = (width / 5, height / 4, width / 2, height / 2)
    return {
        "text_map": lambda: maps.text_map(trace, layer, head, (0, len(trace.tokens))),
        "image_map": lambda: maps.image_map(trace, layer, head, [token], with_sinks=False),
        "who_looks": lambda: maps.who_looks(trace, layer, head, 3),
        "overview": lambda: maps.overview(trace, trace.answer),
        "box_numbers": lambda: maps.box_numbers(trace, box),
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
    parser.add_argument("--pairs", type=int, default=200, help="of the model's own answer")
    parser.add_argument("--long-pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-only", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
