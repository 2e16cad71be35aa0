"""Identifies a run by its untrained model, the content of its probes and its key layers.

A monitored training has an identity, kept with the records of step 0; every later step's records name it, and so does
every checkpoint's ``trainer_state.json``.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.records.probe_marks import probe_marks
from diagnostics.records.probes import Probe
from finetune.families import bare_model
from finetune.fields import NULL, TEXT, Shape, by_name, check, items, one_of, whole
from finetune.sharding import gathered, is_flat, whole_values

VERSION = 1
VALUES_READ = 65_536
"""Of a larger tensor this many evenly spaced values are read: 7 billion parameters take about a second."""


SHAPE: Shape = {
    "version": one_of(VERSION), "run": TEXT, "model_name": TEXT, "probes": by_name(TEXT), "key_layers": items(whole(0)),
    "model": dict.fromkeys(("shapes", "frozen", "trained"), TEXT | NULL),
}  # fmt: skip


@dataclass(frozen=True)
class ModelMarks:
    """SHA-256 of a model's parameters; None if they cannot be read (FSDP's flat shards).

    shapes    names and shapes of all parameters
    frozen    values of the frozen ones, the same until the end of the run
    trained   values of the trainable ones, before the first step
    """

    shapes: str | None
    frozen: str | None
    trained: str | None


@dataclass(frozen=True)
class Run:
    """What identifies one training over several starts.

    run           unique: two trainings of one model have different ones
    model         marks of the model before the first step
    model_name    how messages and figures call the model
    probes        probe id → SHA-256 of its content
    key_layers    language layers whose maps are kept
    """

    run: str
    model: ModelMarks
    model_name: str
    probes: Mapping[str, str]
    key_layers: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of a JSON file."""
        return {"version": VERSION, **vars(self), "model": vars(self.model)}

    @classmethod
    def from_json(cls, content: Any) -> Run:
        """Read what ``as_json`` gave. Raises ValueError for anything else."""
        check(content, SHAPE, "its model and probes are unknown", required=tuple(SHAPE))
        model = ModelMarks(**{one.name: content["model"].get(one.name) for one in fields(ModelMarks)})
        layers = tuple(int(layer) for layer in content["key_layers"])
        return cls(content["run"], model, content["model_name"], content["probes"], layers)

    def same_start(self, other: Run) -> bool:
        """Do both start from the same model and probes?"""
        return self.model == other.model and self.probes == other.probes


def new_run(model: ModelMarks, model_name: str, probes: Sequence[Probe], key_layers: Sequence[int]) -> Run:
    """A training that starts now."""
    return Run(uuid.uuid4().hex, model, model_name, probe_marks(probes), tuple(key_layers))


def model_difference(before: ModelMarks, now: ModelMarks) -> str | None:
    """How the model now differs from the one that was measured first; None if it does not.

    Trainable values have changed since and come from the checkpoint, so they are not compared.
    """
    if None in (before.shapes, now.shapes):
        return None
    if before.shapes != now.shapes:
        return "a different model: its parameters have other names or shapes"
    if before.frozen != now.frozen:
        return "a different model: its frozen weights differ"
    return None


def model_marks(model: nn.Module) -> ModelMarks:
    """The model's identity. Every rank must call this: sharded tensors (ZeRO-3, FSDP 2) are gathered one by one.

    The same on every device and rank, after a resume, and for weights stored in bf16 or as the same values in fp32.
    """
    shapes, frozen, trained = (hashlib.sha256() for _ in range(3))
    parameters = sorted(bare_model(model).named_parameters())
    if any(is_flat(parameter) for _, parameter in parameters):
        return ModelMarks(None, None, None)
    for name, parameter in parameters:
        with gathered([parameter]):
            whole = whole_values(parameter)
            shapes.update(f"{name} {tuple(whole.shape)}\n".encode())
            values = frozen if not parameter.requires_grad else trained
            values.update(name.encode())
            values.update(_some_values(whole))
    return ModelMarks(shapes.hexdigest(), frozen.hexdigest(), trained.hexdigest())


def _some_values(whole: Tensor) -> bytes:
    if whole.is_meta:  # offloaded to disk
        return b""
    flat = whole.detach().reshape(-1)
    if flat.numel() > VALUES_READ:
        places = torch.arange(VALUES_READ, device=flat.device) * flat.numel() // VALUES_READ
        flat = flat[places]
    return flat.float().cpu().numpy().tobytes()
