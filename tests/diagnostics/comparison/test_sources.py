from diagnostics.comparison.sources import order_warnings


def test_checkpoints_out_of_order_are_told():
    """A shell sorts checkpoint-1000 before checkpoint-200."""
    [line] = order_warnings(
        ["base", "out/checkpoint-1000", "out/checkpoint-200", "out/checkpoint-900", "out"]
    )
    assert line.startswith("checkpoint-1000 is given before checkpoint-200: ")
    assert order_warnings(["base", "out/checkpoint-200", "out/checkpoint-1000", "out"]) == []
    assert order_warnings(["a/attention/step-000220", "b/attention/step-000110"]) == []  # of two runs
    [line] = order_warnings(["a/step-000000", "a/step-000220", "a/step-000110"])
    assert line.startswith("step-000220 is given before step-000110")
