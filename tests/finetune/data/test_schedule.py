import itertools

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard

from finetune.data.schedule import EpochRows, Schedule, StepShape

TOKENS = np.array([3, 9, 4, 7, 2, 8, 5, 6, 1, 10, 4])


def by_chance(epoch: int) -> np.ndarray:
    return np.random.default_rng([5, epoch]).permutation(len(TOKENS))


def schedule(rows: int = 2, processes: int = 1, accumulation: int = 1, **changes) -> Schedule:
    settings = {"tokens": TOKENS, "seed": 5, **changes}
    return Schedule(by_chance, StepShape(rows, processes, accumulation), **settings)


def samples(batches: list[list[tuple[int, ...]]]) -> list[int]:
    return [sample for batch in batches for row in batch for sample in row]


def steps_of_all_processes(planned: Schedule, epoch: int) -> list[list[int]]:
    """Samples of each step, as accelerate deals the micro-batches out to the processes."""
    planned.set_epoch(epoch)
    shape = planned.shape
    each = [
        list(BatchSamplerShard(planned, num_processes=shape.processes, process_index=rank))
        if shape.processes > 1
        else list(planned)
        for rank in range(shape.processes)
    ]
    assert {len(one) for one in each} == {planned.micro_batches(epoch)}
    at = range(0, len(each[0]), shape.accumulation)
    return [sorted(samples([b for one in each for b in one[i : i + shape.accumulation]])) for i in at]


def test_rows_by_hand():
    rows = EpochRows(np.array([5, 2, 7, 1, 0, 3]), np.array([0, 2, 3, 6]))
    assert [rows.row(i) for i in range(len(rows))] == [(5, 2), (7,), (1, 0, 3)]
    exchanged = rows.exchanged(0, 2)
    assert [exchanged.row(i) for i in range(3)] == [(1, 0, 3), (7,), (5, 2)]
    assert [rows.exchanged(1, 1).row(i) for i in range(3)] == [rows.row(i) for i in range(3)]


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
@pytest.mark.parametrize("capacity", [None, 12])
def test_a_step_has_the_same_samples_however_it_is_shared_out(strategy, capacity):
    if capacity and strategy == "group_by_length":
        return
    for epoch in (0, 1):
        shapes = [(4, 1, 1), (2, 2, 1), (1, 2, 2), (1, 4, 1), (1, 1, 4), (2, 1, 2)]
        steps = [
            steps_of_all_processes(schedule(*shape, strategy=strategy, capacity=capacity), epoch)
            for shape in shapes
        ]
        assert all(one == steps[0] for one in steps[1:])
        # Each sample once: none is repeated to fill the last step of an epoch.
        assert sorted(itertools.chain(*steps[0])) == list(range(len(TOKENS)))


def test_the_last_step_may_leave_a_process_without_samples():
    planned = schedule(1, 4, longest_first=False)
    assert [len(batch) for batch in planned] == [1] * 11 + [0]
    assert [[*map(len, batch)] for batch in planned][-1] == []
    assert len(list(schedule(1, 4, drop_last=True))) == 8


def test_the_longest_comes_first_and_only_in_the_run_s_first_epoch():
    first = samples(list(schedule()))
    chance = by_chance(0).tolist()
    place = chance.index(9)  # of 10 tokens
    chance[0], chance[place] = chance[place], chance[0]
    assert first == chance
    later = schedule()
    later.set_epoch(1)
    assert samples(list(later)) == by_chance(1).tolist()
    packed = schedule(capacity=12)
    rows = packed.rows(0)
    sizes = [sum(TOKENS[list(rows.row(i))]) for i in range(len(rows))]
    assert sizes[0] == max(sizes)


def test_orders_differ_by_epoch_and_come_again():
    planned = schedule(strategy="group_by_length")
    orders = []
    for epoch in (0, 1, 0):
        planned.set_epoch(epoch)
        orders.append(samples(list(planned)))
    assert orders[0] == orders[2] != orders[1]
    assert samples(list(schedule(strategy="sequential", longest_first=False))) == list(range(11))


def test_groups_are_of_like_length_within_their_window():
    tokens = np.random.default_rng(0).integers(1, 1000, 4000)
    planned = Schedule(lambda _: np.arange(4000), StepShape(4, 2), tokens=tokens, strategy="group_by_length")
    planned.set_epoch(1)
    order = np.array(samples(list(planned)))
    padded = tokens[order].reshape(-1, 4).max(1).sum() * 4
    assert padded < 1.02 * tokens.sum()
    chance = tokens.reshape(-1, 4).max(1).sum() * 4
    assert chance > 1.5 * tokens.sum()
    # Not sorted as a whole: a window of 50 steps of 8 samples holds its own 400, in the order of chance.
    assert sorted(order[:400]) == list(range(400))
    means = tokens[order[:400]].reshape(-1, 8).mean(1)
    assert not (np.diff(means) <= 0).all()


def test_packed_rows_are_full_and_lose_nothing():
    planned = schedule(1, capacity=12)
    rows = [row for batch in planned for row in batch]
    assert sorted(itertools.chain(*rows)) == list(range(11))
    assert all(sum(TOKENS[list(row)]) <= 12 for row in rows) and max(map(len, rows)) > 1
    assert len(planned) == planned.micro_batches(0) == len(rows)


def test_steps_of_a_run_whose_epochs_have_different_numbers_of_rows():
    planned = schedule(1, 1, 2, capacity=15)
    counts = [len(planned.rows(epoch)) for epoch in range(4)]
    assert len(set(counts)) > 1, "the case is about epochs that differ"
    steps = [-(-count // 2) for count in counts]
    assert [planned.steps(epoch) for epoch in range(4)] == steps
    assert planned.steps_of(3) == sum(steps[:3]) and planned.steps_of(0.5) == -(-steps[0] // 2)
    assert planned.place(0) == (0, 0) and planned.place(steps[0]) == (1, 0)
    assert planned.place(steps[0] + steps[1] + 1) == (2, 1)
    # What the first steps had is known without having trained them.
    trained = np.concatenate([*planned.trained(steps[0] + 1)])
    planned.set_epoch(1)
    second = samples(list(itertools.islice(planned, 2)))
    assert trained.tolist() == planned.rows(0).samples.tolist() + second


def test_too_few_samples_for_a_batch_of_each_process_are_an_error():
    with pytest.raises(
        ValueError, match=r"11 samples do not fill one batch of 6 rows × 2 processes.*drop_last"
    ):
        len(schedule(6, 2, drop_last=True))
