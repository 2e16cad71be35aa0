"""What is said before training about supervised attention."""

from types import SimpleNamespace
from typing import Any

import pytest

from attention_finetune.looking import _release_remarks


def arguments(release: float, *, stop_when: str | None = None, best: bool = False) -> Any:
    return SimpleNamespace(
        look=SimpleNamespace(look_release=release),
        monitor=SimpleNamespace(stop_when=stop_when),
        training=SimpleNamespace(load_best_model_at_end=best),
    )


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"stop_when": "corrected"}, "--stop_when corrected may"),
        ({"best": True}, "--load_best_model_at_end True may"),
        (
            {"stop_when": "corrected", "best": True},
            "--stop_when corrected and --load_best_model_at_end True may",
        ),
    ],
)
def test_weights_that_may_be_of_a_step_before_the_release(given: dict[str, Any], flags: str):
    (line,) = _release_remarks(arguments(0.2, **given))
    assert line.startswith("--look_release 0.2 ") and f"{flags} keep weights of a step before that" in line
    assert not [*_release_remarks(arguments(0.0, **given))]


def test_a_run_that_keeps_its_last_weights_is_told_nothing():
    assert not [*_release_remarks(arguments(0.2))]
