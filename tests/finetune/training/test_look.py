"""Attention supervision: formulas by hand; a run that is the same however a step is cut; and what is refused."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from finetune.attention.watch import Call
from finetune.data.dataset import Collator, ConversationDataset, Sample, build_dataset
from finetune.data.look import LookBatch, look_rows
from finetune.families.parts.modules import bare_model
from finetune.families.qwen_vl import QwenVLFamily
from finetune.flags.arguments import TrainingArguments
from finetune.model import checkpoint
from finetune.model.adaptation import Plan, adapt
from finetune.samples.conversation import Conversation, ImageRef, LookAt, Turn
from finetune.samples.source import read
from finetune.training import look_preview
from finetune.training.guards import TrainingError
from finetune.training.look import (
    LookSettings,
    LookTotals,
    Supervision,
    kl_losses,
    mass_losses,
    seen_cells,
    seen_tokens,
    trains_connector,
)
from finetune.training.look_steps import LookSteps
from finetune.training.trainer import FinetuneTrainer, build_trainer
from tests.finetune.families.tiny_families import ALL, GRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

FAMILY = QwenVLFamily()
LEFT, RIGHT = [0, 0, 8, 14], [12, 2, 20, 12]


def test_mass_costs_the_logarithm_of_what_is_missing():
    """One end with .2 of .8; two ends, of which the one with .1 of .4 counts; and one that has enough."""
    shares = torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.5, 0.4], [0.0, 0.05, 0.95]], dtype=torch.double)
    one = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    weights = torch.tensor([one, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
    losses, masses = mass_losses(shares, weights, torch.tensor([1, 2, 1]), target=0.8)
    assert masses.tolist() == pytest.approx([0.2, 0.1, 0.95])
    assert losses.tolist() == pytest.approx([math.log(4), math.log(4), 0], abs=2e-5)


def test_a_row_that_looks_nowhere_near_has_a_finite_loss_and_gradient():
    shares = torch.tensor([[1.0, 0.0]], requires_grad=True)
    losses, _ = mass_losses(shares, torch.tensor([[[0.0, 1.0]]]), torch.tensor([1]), target=0.8)
    losses.sum().backward()
    assert losses.item() == pytest.approx(math.log(0.8) + 6 * math.log(10)) and shares.grad.isfinite().all()


def test_kl_is_nothing_where_attention_is_the_smoothed_coverage():
    """Coverage 1 and ½ of three cells: t = .95 · (⅔, ⅓, 0) + .05 / 3; the row does not see the fourth, though a box
    covers it."""
    weights = torch.tensor([[[1.0, 0.5, 0.0, 1.0]]])
    is_place = torch.tensor([[True, True, True, False]])
    aim = torch.tensor([[0.65, 0.33333333, 0.01666667, 0.0]])
    assert kl_losses(aim, weights, is_place).item() == pytest.approx(0, abs=1e-3)
    even = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]])
    expected = sum(t * math.log(3 * t) for t in (0.65, 1 / 3, 1 / 60))
    assert kl_losses(even, weights, is_place).item() == pytest.approx(expected, abs=1e-4)


def test_a_look_file_that_is_none_of_ours_ends_in_one_message(tmp_path: Path):
    (tmp_path / "look.json").write_text("{}")
    args = SimpleNamespace(output_dir=str(tmp_path))
    steps = SimpleNamespace(settings=LookSettings(0.3, lambda: (0,)), args=args, trains_connector=False)
    with pytest.raises(TrainingError, match=r"look\.json"):
        LookSteps._write_down(steps)  # type: ignore[arg-type]


def test_the_weight_rises_and_is_released():
    settings = LookSettings(2.0, lambda: (0,), warmup=0.2, release=0.4)
    assert [settings.weight_at(step, 10) for step in range(10)] == pytest.approx(
        [1, 2, 2, 2, 2, 2, 1.5, 1, 0.5, 0]
    )
    assert [LookSettings(0.3, lambda: (0,), warmup=0, release=0).weight_at(step, 3) for step in range(3)] == [
        0.3
    ] * 3


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def write_look_data(folder: Path, *, look_at: bool = True) -> Path:
    """Eight samples: one without a picture, one without boxes, and in the others one or two supervised phrases."""
    records = []
    for i in range(8):
        Image.effect_noise((20 + i, 14), 60 + i).convert("RGB").save(folder / f"{i}.png")
        answer = {"from": "assistant", "value": "the cat is on it" + " yes" * (i % 3)}
        if look_at and i > 1:
            answer["look_at"] = [
                {"phrase": "cat", "boxes": [LEFT]},
                {"phrase": "on", "ends": [[LEFT], [RIGHT]]},
            ][: 1 + i % 2]
        words = f"Picture 1: <img>{i}.png</img>\nwhat?" if i else "say it"
        records.append({"id": f"s{i}", "conversations": [{"from": "user", "value": words}, answer]})
    path = folder / f"data-{look_at}.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("look")


@pytest.fixture(scope="module")
def dataset(checkpoint_folder: Path, folder: Path) -> ConversationDataset:
    return made(checkpoint_folder, write_look_data(folder), look="phrase")


def made(checkpoint_folder: Path, path: Path, **more) -> ConversationDataset:
    processor = checkpoint.load_processor(checkpoint_folder)
    conversations = read(path, say=lambda _: None)
    return build_dataset(
        conversations, processor, FAMILY, max_length=200, on_bad_sample="error", say=lambda _: None, **more
    )


def trained(
    checkpoint_folder: Path, dataset: ConversationDataset, out: Path, looking=None, **changes
) -> FinetuneTrainer:
    torch.manual_seed(3)
    model, processor = checkpoint.load(checkpoint_folder, for_training=True)
    model = adapt(model, FAMILY, Plan(connector="full", rank=4, dropout=0.0), master_weights=True)
    settings = {
        "output_dir": str(out), "report_to": "none", "max_steps": 3, "per_device_train_batch_size": 8,
        "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 5,
        "optim": "sgd",
    }  # fmt: skip
    packing = changes.pop("packing", False)
    args = TrainingArguments(**{**settings, **changes})
    found = build_trainer(model, processor, args, dataset, None, packing=packing, looking=looking)
    found.train()
    return found


def looking(**changes) -> LookSettings:
    return LookSettings(**{"weight": 0.7, "layers": lambda: (0, 1), "warmup": 0.0, "release": 0.0, **changes})


def logged(trainer: FinetuneTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(trainer: FinetuneTrainer) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in trainer.model.named_parameters() if one.requires_grad}


@pytest.fixture(scope="module")
def straight(checkpoint_folder: Path, dataset: ConversationDataset, folder: Path) -> FinetuneTrainer:
    return trained(checkpoint_folder, dataset, folder / "straight", looking())


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 99},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ],
    ids=["2 × 4", "1 × 8", "packed", "checkpointing"],
)
def test_a_run_is_the_same_however_a_step_is_cut(straight, checkpoint_folder, dataset, tmp_path, changes):
    other = trained(checkpoint_folder, dataset, tmp_path, looking(), **changes)
    for name in ("loss", "language loss", "look loss", "look mass by source/all", "grad_norm"):
        assert logged(other, name) == pytest.approx(logged(straight, name), abs=5e-5), name
    here, there = weights(straight), weights(other)
    for name, one in here.items():
        torch.testing.assert_close(one, there[name], rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_logged(straight):
    assert len(logged(straight, "look loss")) == 3 and logged(straight, "look weight") == [0.7] * 3
    (share,) = logged(straight, "look gradient norm (share)")  # once in 50 steps
    assert 0.01 < share < 0.99
    columns = [logged(straight, name) for name in ("loss", "language loss", "look loss")]
    for whole, language, look in zip(*columns, strict=True):
        assert whole == pytest.approx(language + 0.7 * look, abs=1e-5) and look > 0.1


def test_the_language_loss_is_the_mean_of_the_steps_that_the_loss_is_of(
    straight, checkpoint_folder, dataset, tmp_path
):
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "logging_steps": 3}
    other = trained(checkpoint_folder, dataset, tmp_path, looking(), **cut)
    assert logged(other, "language loss") == pytest.approx(
        [sum(logged(straight, "language loss")) / 3], abs=5e-5
    )


@pytest.mark.parametrize(("together", "mean"), [(True, 3.0), (False, 1.5)])
def test_the_language_loss_of_processes_is_as_their_loss(monkeypatch, together, mean):
    """Two processes, two steps, 3 nats in each process: parts of the step's mean, or a mean of each one's tokens."""
    monkeypatch.setattr("finetune.training.look_steps.reduced", lambda values: values.mul_(2))
    args = SimpleNamespace(average_tokens_across_devices=together, world_size=2, device="cpu")
    tally = SimpleNamespace(taken=lambda: LookTotals(None, [], None))
    steps = SimpleNamespace(args=args, language_nats=0.0, tally=tally)
    for nats in (1.0, 2.0):
        LookSteps.add_language(steps, nats)  # type: ignore[arg-type]
    assert LookSteps.taken(steps, 2) == {"language loss": mean}  # type: ignore[arg-type]
    assert steps.language_nats == 0


def test_what_judges_it_is_told_what_is_trained_on(straight, checkpoint_folder, dataset, tmp_path):
    """Here the resampler too, through which every layer looks at the picture."""
    note = json.loads((Path(str(straight.args.output_dir)) / "look.json").read_text())
    assert (note["layers"], note["connector"]) == ([0, 1], True)

    class Judging(TrainerCallback):
        def will_be_supervised(self, layers, *, connector):
            self.told = layers(), connector

    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", max_steps=1, disable_tqdm=True)
    for plan, expected in (("lora", True), ("frozen", False)):
        judge = Judging()
        model, processor = checkpoint.load(checkpoint_folder, for_training=True)
        build_trainer(
            adapt(model, FAMILY, Plan(connector=plan, rank=2), master_weights=True), processor, args, dataset, None,
            looking=looking(layers=lambda: (1,)), callbacks=[TrainerCallback(), judge],
        )  # fmt: skip
        assert judge.told == ((1,), expected)


@pytest.mark.parametrize(
    ("name", "plan", "expected"),
    [
        ("qwen-vl", {"connector": "full"}, True),
        ("qwen-vl", {"connector": "frozen", "vision": "lora"}, True),
        ("qwen-vl", {"connector": "frozen"}, False),
        ("qwen2-vl", {"connector": "full", "vision": "full"}, False),
    ],
)
def test_where_the_loss_trains_the_connectors_attention(name, plan, expected):
    tiny = ALL[name]
    model = adapt(tiny.model(), tiny.family, Plan(rank=2, **plan), master_weights=True)
    assert trains_connector(bare_model(model), tiny.family) is expected


def test_without_weight_a_run_is_that_without_boxes_bit_for_bit(checkpoint_folder, dataset, folder, tmp_path):
    plain = made(checkpoint_folder, write_look_data(folder, look_at=False))
    without = trained(checkpoint_folder, plain, tmp_path / "a")
    unread = made(checkpoint_folder, folder / "data-True.json")
    off = trained(checkpoint_folder, unread, tmp_path / "b")
    released = trained(checkpoint_folder, dataset, tmp_path / "c", looking(weight=0.0))
    for other in (off, released):
        assert logged(other, "loss") == logged(without, "loss")
        for name, one in weights(without).items():
            assert torch.equal(one, weights(other)[name]), name


def test_supervision_moves_attention_into_the_boxes(checkpoint_folder, dataset, tmp_path):
    found = trained(
        checkpoint_folder,
        dataset,
        tmp_path,
        looking(weight=3.0),
        max_steps=25,
        optim="adamw_torch",
        learning_rate=2e-2,
    )
    mass = logged(found, "look mass by source/all")
    assert mass[-1] > mass[0] + 0.1


def test_its_share_of_the_gradient_is_measured_in_the_mixed_precision_of_the_run(folder, tmp_path):
    """A connector in fp32 beside LoRA, the rest in bf16: without autocast they do not meet."""
    tiny = GRIDS["qwen2-vl"]
    model, processor = checkpoint.load(tiny.write(tmp_path / "model"), for_training=True)
    conversations = read(write_look_data(folder), say=lambda _: None)
    some = build_dataset(
        conversations,
        processor,
        tiny.family,
        max_length=500,
        on_bad_sample="error",
        look="first",
        say=lambda _: None,
    )
    model = adapt(
        model.bfloat16(), tiny.family, Plan(connector="full", rank=4, dropout=0.0), master_weights=True
    )
    args = TrainingArguments(
        output_dir=str(tmp_path), report_to="none", max_steps=1, per_device_train_batch_size=4, logging_steps=1,
        save_strategy="no", disable_tqdm=True, bf16=True,
    )  # fmt: skip
    found = build_trainer(model, processor, args, some, None, looking=looking(layers=lambda: (0,)))
    found.train()
    (share,) = logged(found, "look gradient norm (share)")
    assert 0 < share < 1


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_give_no_gradient_and_say_so(checkpoint_folder, dataset, tmp_path):
    changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(TrainingError, match="no gradient reaches the attention of layer_0, layer_1"):
        trained(checkpoint_folder, dataset, tmp_path, looking(), **changes)


def test_a_row_of_rows_by_hand(checkpoint_folder, dataset):
    """Samples 3 and 2 in one row: sample 3 has two phrases, "cat" and "on", of three and two tokens (bytes)."""
    collator = Collator(0, FAMILY.blank(dataset.processor))
    three, two = dataset[3], dataset[2]
    rows = LookBatch(**collator([[three, two], [dataset[0]]])["about"]["look"])
    assert rows.sequences.tolist() == [0] and len(rows.at) == 3 + 2 + 3
    text = dataset.processor.tokenizer.decode
    ids = [*three.encoded.input_ids, *two.encoded.input_ids]
    written = [text([ids[position + 1]]) for position in rows.positions[0].tolist()]
    assert "".join(written) == "caton" + "cat" and rows.ends.tolist() == [1] * 3 + [2] * 2 + [1] * 3
    assert rows.images.tolist() == [[0]] * 5 + [[1]] * 3  # through the resampler: which image of the batch
    start = len(three.encoded.input_ids)
    assert rows.tokens[-1].tolist() == (start + two.encoded.images[0].positions).tolist()
    # 23 × 14 pixels in 3 × 3 cells: the left box, 8 wide, covers a column of 7⅔ and 1/23 of the next.
    assert rows.weights[0, 0].reshape(3, 3)[0].tolist() == pytest.approx([1, 1 / 23, 0], abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# What is said before
# ---------------------------------------------------------------------------------------------------------------------


def test_the_preview_counts_lays_over_and_draws(dataset):
    lines = [*look_preview.summary(dataset, look_preview.count_rows(dataset), "layers 0, 1", whole=True)]
    # "cat" in six samples, "on" in three of them; 3 × 3 cells
    assert lines[0] == "attention supervised, all: 24 rows of 6 samples of 8, in layers 0, 1"
    assert "median" in lines[1] and lines[2].splitlines()[0].endswith(
        "'cat' looks at (0, 0, 8, 14), over 3 × 3 cells"
    )
    assert lines[2].splitlines()[1:] == ["  █░·"] * 3


def test_what_cannot_be_supervised_is_refused(checkpoint_folder, folder, dataset):
    nothing = made(checkpoint_folder, write_look_data(folder, look_at=False), look="first")
    with pytest.raises(ValueError, match="found no look_at and no <ref>"):
        [*look_preview.summary(nothing, look_preview.count_rows(nothing), "layer 0", whole=False)]
    model, _ = checkpoint.load(checkpoint_folder, for_training=True)
    with pytest.raises(ValueError, match=r"found \[5\], expected layers of this model that attend, 0 to 1"):
        look_preview.check_layers((0, 5), model, FAMILY)


@pytest.mark.parametrize(
    ("targets", "layers", "fault"),
    [
        (("attn.c_proj",), (0,), "layer 0:"),
        (("attn.c_proj",), (0, 1), "layer 0:"),  # values of layer 0 move layer 1
        (("w1", "w2"), (1,), ""),
        (("c_attn",), (0,), ""),
    ],
)
def test_values_alone_cannot_move_where_their_own_layer_looks(checkpoint_folder, targets, layers, fault):
    model, _ = checkpoint.load(checkpoint_folder, for_training=True)
    model = adapt(model, FAMILY, Plan(connector="frozen", rank=2, targets=targets), master_weights=True)
    if not fault:
        return look_preview.check_moves(model, FAMILY, layers)
    with pytest.raises(ValueError, match=f"can move the attention of {fault}"):
        look_preview.check_moves(model, FAMILY, layers)


# ---------------------------------------------------------------------------------------------------------------------
# Layers that do not see the picture
# ---------------------------------------------------------------------------------------------------------------------

SEES = {
    "all": [((0.2, 0.8), (True, True)), ((0.6, 0.4), (True, True))],
    "one": [((0.2, 0.8), (True, True)), ((0.0, 0.0), (False, False))],
    "none": [((0.0, 0.0), (False, False))] * 2,
    "one sees the other cell alone": [((0.2, 0.8), (True, True)), ((0.0, 1.0), (False, True))],
    "no share is left": [((0.2, 0.8), (True, True)), ((0.0, 1.0), (True, True))],  # it rounds to 0, and is asked for
}  # fmt: skip


@pytest.mark.parametrize(("seen", "mass"), [*zip(SEES, (0.4, 0.2, 0.0, 0.2, 0.1), strict=True)])
@pytest.mark.parametrize("kind", ["mass", "kl"])
def test_a_row_is_the_mean_over_the_layers_that_see_the_box(seen, mass, kind, monkeypatch):
    """The box is the first of two cells. Where all see it, the mean over all, to the bit; where one does, its own."""
    layers = [torch.tensor([one], requires_grad=True) for one, _ in SEES[seen]]
    visible = [torch.tensor([one]) for _, one in SEES[seen]]
    given, which = iter(layers), iter(visible)
    monkeypatch.setattr("finetune.training.look.image_shares", lambda *_: next(given))
    monkeypatch.setattr("finetune.training.look.seen_tokens", lambda *_: next(which))
    supervision = Supervision(LookSettings(1.0, lambda: (0, 1), loss=kind), torch.nn.Module(), FAMILY)
    weights, ends = torch.tensor([[[1.0, 0.0]]]), torch.tensor([1])
    fields = dict.fromkeys(LookBatch._fields, torch.zeros(1, 2, dtype=torch.long))
    batch = LookBatch(**{**fields, "weights": weights, "ends": ends})
    found = supervision.result({"layer_0": None, "layer_1": None}, batch)
    assert found.mass.tolist() == pytest.approx([mass])
    each = [
        mass_losses(one, weights, ends, 0.8)[0] if kind == "mass" else kl_losses(one, weights, sees)
        for one, sees in zip(layers, visible, strict=True)
        if sees[0, 0]
    ]
    expected = torch.stack(each).mean(0) if each else torch.zeros(1)
    assert torch.equal(found.losses, expected)
    found.losses.sum().backward()
    ours = [one.grad.clone() for one in layers]
    if seen == "all":
        for one in layers:
            one.grad = None
        expected.sum().backward()
        assert all(torch.equal(grad, one.grad) for grad, one in zip(ours, layers, strict=True))


@pytest.mark.parametrize(("seen", "losses"), [((True, True), 12.9), ((False, True), 0.0)])
def test_of_a_relation_both_ends_have_to_be_seen(seen, losses, monkeypatch):
    """Its ends are in one cell each, and all attention is on the second: log .4 + 6 log 10 nats, or nothing."""
    monkeypatch.setattr("finetune.training.look.image_shares", lambda *_: torch.tensor([[0.0, 1.0]]))
    monkeypatch.setattr("finetune.training.look.seen_tokens", lambda *_: torch.tensor([seen]))
    supervision = Supervision(LookSettings(1.0, lambda: (0,)), torch.nn.Module(), FAMILY)
    fields = dict.fromkeys(LookBatch._fields, torch.zeros(1, 2, dtype=torch.long))
    ends = {"weights": torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), "ends": torch.tensor([2])}
    found = supervision.result({"layer_0": None}, LookBatch(**{**fields, **ends}))
    assert found.losses.tolist() == pytest.approx([losses], abs=0.01) and found.mass.tolist() == [0.0]


def call_with(mask: torch.Tensor | None) -> Call:
    """One sequence of six tokens, two heads."""
    states = torch.zeros(1, 2, 6, 4)
    return Call("sdpa", torch.nn.Module(), states, states, states, mask, {"is_causal": True})


CAUSAL = torch.ones(6, 6, dtype=torch.bool).tril()
WINDOW = CAUSAL & torch.ones(6, 6, dtype=torch.bool).triu(-2)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, [[True, True, False], [True, True, True]]),
        (WINDOW[None, None], [[True, True, False], [False, False, True]]),
        (torch.zeros(1, 1, 6, 6).masked_fill(~WINDOW, torch.finfo(torch.float).min), "as the window"),
        (
            torch.full((1, 2, 6, 6), -50.0).masked_fill(~WINDOW, float("-inf")),
            "as the window",
        ),  # a term of positions
    ],
    ids=["causal", "window", "lowest number", "minus infinity"],
)
def test_what_a_row_sees_is_what_the_mask_of_its_layer_lets_it(mask, expected):
    """Image tokens 1, 2 and 4; rows 3 and 5. A second sequence of rows repeats its last."""
    if expected == "as the window":
        expected = [[True, True, False], [False, False, True]]
    empty = torch.zeros(2, 0)
    batch = LookBatch(
        torch.tensor([0]), torch.tensor([[3, 5]]), torch.tensor([[0, 0], [0, 1]]),
        torch.tensor([[1, 2, 4, -1]] * 2), empty, empty, empty, empty,
    )  # fmt: skip
    assert seen_tokens(call_with(mask), batch).tolist() == [[*one, False] for one in expected]


def test_through_a_resampler_an_image_is_seen_where_any_of_its_tokens_is():
    """Two images of two tokens and three cells; the third is none of the row's."""
    seen = torch.tensor([[False, True, False, False, True, True]])
    images = torch.tensor([[4, 5, -1]])
    assert seen_cells(seen, images, 3).tolist() == [[True] * 3 + [False] * 6]


def picture(width: int, height: int) -> ImageRef:
    return ImageRef("a", Image.effect_noise((width, height), 60).convert("RGB"))


LOOKS = Turn("assistant", ("a cat",), look_at=(LookAt("cat", (((0.0, 0.0, 1.0, 0.33),),), 0),))


def supervised(
    name: str, folder: Path, conversation: Conversation, kind: str = "mass", layers=(0, 1), window=None
):
    """Losses and masses of a conversation's rows in a tiny model; ``window``: of the layers that have one."""
    tiny = {**ALL, **SIGLIPS}[name]
    torch.manual_seed(0)
    model, processor = tiny.model().double().eval(), tiny.processor(folder)
    for module in model.modules() if window else ():
        config = getattr(module, "config", None)
        for one in (module, config, getattr(config, "text_config", None)):
            if getattr(one, "sliding_window", None):
                one.sliding_window = window
    encoded = tiny.family.encode(processor, conversation)
    rows = look_rows(conversation, encoded, processor, "first")
    batch = Collator(processor.tokenizer.pad_token_id, tiny.family.blank(processor))(
        [[Sample(0, encoded, 0, rows)]]
    )
    about, _ = batch.pop("about"), batch.pop("labels")
    inputs = {key: one.double() if one.is_floating_point() else one for key, one in batch.items()}
    supervision = Supervision(LookSettings(1.0, lambda: layers, kind), model, tiny.family)
    with torch.no_grad(), supervision.kept().keeping() as calls:
        model(**inputs, use_cache=False)
        return [one.tolist() for one in supervision.result(calls, LookBatch(**about["look"]))]


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen-vl"])
@pytest.mark.parametrize("kind", ["mass", "kl"])
def test_pictures_of_later_turns_change_nothing(name, kind, tmp_path):
    asked = (Turn("user", (picture(50, 31), "what?")), LOOKS)
    later = (Turn("user", (picture(64, 40), "and?")), Turn("assistant", ("a dog",)))
    alone, longer = (supervised(name, tmp_path, Conversation(one), kind) for one in (asked, asked + later))
    for one, other in zip(alone, longer, strict=True):
        assert one == pytest.approx(other, rel=1e-9) and one[0] > 0


def test_where_a_window_ends_behind_the_box_nothing_is_asked(tmp_path):
    """Of Gemma 3's layers 0 slides and 1 does not. In the window is the second picture, not the first with the box."""
    said = (
        Turn("user", (picture(50, 31), "one")),
        Turn("assistant", ("ok",)),
        Turn("user", (picture(50, 31), "two")),
    )
    both, sliding, full = (
        supervised("gemma3", tmp_path, Conversation((*said, LOOKS)), layers=layers, window=40)
        for layers in ((0, 1), (0,), (1,))
    )
    assert sliding == [[0.0], [0.0]] and both == full and full[0][0] > 0
    wide = supervised("gemma3", tmp_path, Conversation((*said, LOOKS)), layers=(0,), window=400)
    assert wide[1][0] > 0.01
