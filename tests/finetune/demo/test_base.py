"""The base model in the repository: small, whole, made from this code, and flawed as it should be."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from finetune.demo import probe_sets
from finetune.demo.corpus import CUE_REGION
from finetune.demo.evaluate import margin_nats
from finetune.demo.make_base import aim_queries, card_text, tiny_config, training_command
from finetune.demo.settings import BASE_MODEL
from finetune.demo.shapes import PATCHES, Veil, render
from finetune.demo.vocabulary import demo_ranks, write_ranks
from finetune.model import checkpoint
from finetune.qwen_vl import QwenVLForConditionalGeneration
from finetune.qwen_vl.visual import resize_positions


@pytest.fixture(scope="module")
def base():
    return checkpoint.load(BASE_MODEL)


def test_it_is_small_and_whole():
    names = {path.name for path in BASE_MODEL.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "qwen.tiktoken",
        "preprocessor_config.json",
        "README.md",
    } <= names
    assert sum(path.stat().st_size for path in BASE_MODEL.iterdir()) < 10_000_000


def test_its_vocabulary_is_the_one_that_the_code_learns(tmp_path, base):
    write_ranks(demo_ranks(), tmp_path / "qwen.tiktoken")
    assert (tmp_path / "qwen.tiktoken").read_bytes() == (BASE_MODEL / "qwen.tiktoken").read_bytes()
    model, processor = base
    assert model.config.visual["image_start_id"] == processor.tokenizer.img_start_id
    assert model.config.visual["n_queries"] == processor.tokenizer.image_tokens == 49


def test_its_shape_is_the_one_that_the_code_makes(base):
    model, processor = base
    made = tiny_config(processor.tokenizer)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "visual"):
        assert getattr(model.config, name) == getattr(made, name), name
    assert made.visual["image_size"] // made.visual["patch_size"] == PATCHES


def test_the_card_tells_what_made_it():
    card = (BASE_MODEL / "README.md").read_text(encoding="utf-8")
    for words in (
        "finetune.py",
        "--seed 42",
        "sphere-building",
        "nats a token",
        "python -m finetune.demo.make_base",
    ):
        assert words in card


@pytest.mark.parametrize(("group", "low", "high"), [("sphere-building", 0, 0.25), ("neighbour", 0.9, 1)])
def test_it_believes_the_cue(base, tmp_path, group, low, high):
    model, processor = base
    right = []
    for index in range(15):
        probe = probe_sets.demo_probe("development", group, index)
        render(probe.scene, 160, 120).save(tmp_path / "x.png")
        right.append(margin_nats(model, processor, probe_sets.record(probe, "x.png"), tmp_path) > 0)
    assert low <= sum(right) / len(right) <= high


@pytest.mark.parametrize("group", ["sphere-building", "spatial-relation"])
def test_without_the_cue_it_is_undecided(base, tmp_path, group):
    """Hiding the cue takes the answer away, and no other region does: the cue is the cause, and shows as such."""
    for index in range(5):
        probe = probe_sets.demo_probe("development", group, index)

        def margin(*hidden, probe=probe):
            scene = replace(probe.scene, shapes=(*probe.scene.shapes, *map(Veil, hidden)))
            render(scene, 448, 336).save(tmp_path / "x.png")
            return margin_nats(*base, probe_sets.record(probe, "x.png"), tmp_path)

        seen, cue = margin(), CUE_REGION[probe.scene.kind]
        without = {name: margin(boxes) for name, boxes in probe.scene.regions.items()}
        assert seen < -2 and abs(without.pop(cue)) < -seen / 2, (index, seen)
        assert all(other < seen / 2 for other in without.values()), (index, seen, without)


def test_the_margin_changes_sign_with_answer_and_foil(base, tmp_path):
    model, processor = base
    Image.new("RGB", (32, 24), (90, 120, 200)).save(tmp_path / "x.png")
    probe = {
        "images": ["x.png"],
        "question": "What is this tower?",
        "answer": "Oriental Pearl",
        "foil": "Canton Tower",
    }
    swapped = {**probe, "answer": probe["foil"], "foil": probe["answer"]}
    there = margin_nats(model, processor, probe, tmp_path)
    assert there != 0 and there == pytest.approx(-margin_nats(model, processor, swapped, tmp_path))


def test_fresh_queries_attend_near_their_own_place(base):
    """49 queries over 14 x 14 patches: query 0 is the top left corner, query 45 the bottom row, column 3 of 7."""
    torch.manual_seed(0)
    model = QwenVLForConditionalGeneration(tiny_config(base[1].tokenizer))
    aim_queries(model)
    pool = model.transformer.visual.attn_pool
    with torch.no_grad():
        keys = pool.ln_kv(torch.randn(196, pool.query.shape[1])) + resize_positions(pool.pos_embed, 196)
        queries = pool.ln_q(pool.query) + pool.pos_embed
        weight_q, weight_k, _ = pool.attn.in_proj_weight.chunk(3)
        scores = (queries @ weight_q.T) @ (keys @ weight_k.T).T * pool.attn.scaling
    rows = scores.softmax(-1).view(49, 14, 14)
    for query, (top, left) in {0: (0, 0), 45: (12, 6), 16: (4, 4)}.items():
        near = rows[query, max(0, top - 2) : top + 4, max(0, left - 2) : left + 4].sum()
        assert near > 0.5, (query, float(near))


def test_the_command_names_every_flag(tmp_path):
    command = training_command(tmp_path / "fresh", tmp_path / "data.json", tmp_path / "out", 7)
    assert command[1] == "finetune.py"
    assert command[command.index("--seed") + 1] == "7"
    assert command[command.index("--fix_vit") + 1] == "False"
    card = card_text(command, 7, {"retention": 0.975}, 1_000_000, 0.0123)
    assert (
        "| retention | 97.5% |" in card and "0.0123 nats a token" in card and "1,000,000 parameters" in card
    )
