"""Shape errors are found in the first calls of a test, and in later ones now and then."""

import numpy as np
import pytest

from diagnostics.measures import attention
from diagnostics.records.record import AttentionRecord
from tests import annotations


def test_functions_and_methods_of_the_modules_are_checked():
    flat = np.full(6, 1 / 6, np.float32)
    with pytest.raises(Exception, match="Type-check error"):
        attention.jensen_shannon_nats(flat, np.full((2, 3), 1 / 6, np.float32).tolist())
    assert AttentionRecord.save.__code__.co_name == "call"  # the wrapper that counts


def test_every_so_many_calls_are_checked_and_a_new_test_begins_anew():
    checked, plain = [], []

    def function():
        plain.append(1)

    def with_checks():
        checked.append(1)

    with_checks.__wrapped__ = function
    call = annotations.thinned(with_checks)
    for _ in range(10 * annotations.THEN_EVERY):
        call()
    assert len(checked) == annotations.FIRST_CALLS + 10
    assert len(plain) == 10 * annotations.THEN_EVERY - annotations.FIRST_CALLS - 10
    annotations.next_test()
    call()
    assert len(checked) == annotations.FIRST_CALLS + 11
