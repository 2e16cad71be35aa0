"""Accuracy on a probe file without the monitor, for the base model's card.

The margin of a probe is log p(answer) - log p(foil), each summed over its tokens and the one that ends it, in nats;
accuracy is the share of probes with a positive margin.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from finetune import families
from finetune.samples.conversation import Conversation, ImageRef, Turn


def group_accuracy(
    model: nn.Module, processor: Any, probe_file: Path, *, progress: bool = True
) -> dict[str, float]:
    """Accuracy, 0 to 1, by group of the probe file."""
    probes = json.loads(probe_file.read_text(encoding="utf-8"))["probes"]
    right: dict[str, list[bool]] = defaultdict(list)
    for probe in tqdm(probes, desc="probing", unit="probe", disable=not progress):
        right[probe["group"]].append(margin_nats(model, processor, probe, probe_file.parent) > 0)
    return {group: sum(values) / len(values) for group, values in right.items()}


def margin_nats(model: nn.Module, processor: Any, probe: dict[str, Any], folder: Path) -> float:
    """log p(answer) - log p(foil) of one element of a probe file, in nats."""
    parts: list[str | ImageRef] = []
    for number, image in enumerate(probe["images"], start=1):
        parts += [f"Picture {number}: ", ImageRef(image, folder / image), "\n"]
    parts.append(probe["question"])
    answer = probe["answer"][0] if isinstance(probe["answer"], list) else probe["answer"]
    right, wrong = (_answer_nats(model, processor, parts, reply) for reply in (answer, probe["foil"]))
    return right - wrong


@torch.no_grad()
def _answer_nats(model: nn.Module, processor: Any, parts: Sequence[str | ImageRef], answer: str) -> float:
    family = families.family_of(families.bare_model(model).config)
    conversation = Conversation((Turn("user", tuple(parts)), Turn("assistant", (answer,))))
    encoded = family.encode(processor, conversation)
    start, end = encoded.turn_spans[-1][0], encoded.turn_spans[-1][1] + 1  # through the end of the turn
    ids = torch.from_numpy(encoded.input_ids)[None]
    logits = model(input_ids=ids, **encoded.media).logits[0, start - 1 : end - 1].float()
    return float(logits.log_softmax(-1).gather(-1, ids[0, start:end, None]).sum())
