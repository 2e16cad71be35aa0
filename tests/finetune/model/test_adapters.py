"""An adapter is trained on, merged and compared over its own base, or refused at once, in one message."""

import json
import re
import shutil
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from finetune import export
from finetune.model import adapters, checkpoint
from finetune.samples import source
from tests.finetune.conftest import write_checkpoint
from tests.finetune.model.test_adaptation import batch, perturb
from tests.finetune.test_program import flags, program  # noqa: F401  (fixtures)

Run = Callable[..., list[str]]
LORA = (
    "--use_lora",
    "True",
    "--lora_r",
    "4",
    "--max_steps",
    "2",
    "--save_strategy",
    "no",
    "--report_to",
    "none",
)


@pytest.fixture(scope="module")
def trained(
    checkpoint_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """An adapter folder as the program leaves it, trained once for each choice of flags."""
    from tests.finetune.test_program import SMALL

    kept: dict[tuple[str, ...], Path] = {}

    def make(program: ModuleType, *more: str) -> Path:  # noqa: F811
        if more not in kept:
            out = tmp_path_factory.mktemp("adapter") / "out"
            sources = ["--model_name_or_path", str(checkpoint_folder), "--data_path", str(data_file)]
            assert program.main([*sources, "--output_dir", str(out), *SMALL, *LORA, *more]) == 0
            kept[more] = out
        return kept[more]

    return make


def on(adapter: Path, *more: str) -> tuple[str, ...]:
    return ("--model_name_or_path", str(adapter), *LORA[:2], *LORA[4:], *more)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_an_adapter_given_as_the_model_is_trained_on(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    first = trained(program, "--train_connector", "True")
    assert program.main([*flags(), *on(first, "--train_connector", "True")]) == 0
    assert f"continuing from the adapter {first}, on {checkpoint_folder}" in capsys.readouterr().out
    before, after = tensors(first), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".lora_B." in name for name in moved) and any("attn_pool" in name for name in moved)
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(checkpoint_folder)
    # It is the same as naming its base, and it beside that.
    other = ("--lora_weight_path", str(first), *LORA[:2], *LORA[4:], "--train_connector", "True")
    assert program.main([*flags(), *other, "--output_dir", str(tmp_path / "named")]) == 0
    again = tensors(tmp_path / "named")
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_training_starts_where_the_adapter_ended(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    tmp_path: Path,
):
    first = trained(program)
    still = ("--learning_rate", "0", "--max_steps", "1", "--warmup_steps", "0")
    assert program.main([*flags(), *on(first, *still)]) == 0
    before, after = tensors(first), tensors(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def refused(program: ModuleType, capsys: pytest.CaptureFixture, argv: list[str]) -> str:  # noqa: F811
    capsys.readouterr()
    out = Path(argv[argv.index("--output_dir") + 1])
    assert program.main(argv) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message and message.startswith("finetune.py: ") and len(message) < 2000
    assert not out.exists()
    return message


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", asked)


@pytest.mark.parametrize(
    ("made_with", "beside", "message"),
    [
        ((), ("--lora_r", "8"), "was trained with --lora_r 4, found --lora_r 8"),
        ((), ("--lora_alpha", "99"), "was trained with --lora_alpha 16, found --lora_alpha 99"),
        ((), ("--lora_r", "64"), "was trained with --lora_r 4, found --lora_r 64"),  # the default, but given
        ((), ("--lora_bias", "all"), "was trained with --lora_bias none, found --lora_bias all"),
        ((), ("--use_dora", "True"), "was trained without --use_dora; leave --use_dora out"),
        ((), ("--train_embeddings", "True"), "holds no word embeddings, found --train_embeddings True"),
        ((), ("--train_connector", "True"), "found language: adapters, expected connector: trained copy"),
        ((), ("--vision", "lora"), "found language: adapters, expected vision: adapters"),
        (
            (),
            ("--lora_target_modules", "c_attn"),
            "has adapters of attn.c_attn, attn.c_proj, mlp.w1, mlp.w2, found --lora_target_modules c_attn",
        ),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_a_flag_beside_an_adapter_that_it_cannot_obey_is_refused(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    made_with: tuple[str, ...],
    beside: tuple[str, ...],
    message: str,
):
    first = trained(program, *made_with)
    monkeypatch.setattr(
        checkpoint.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail()
    )
    argv = without(flags(), "--lora_r")
    said = refused(program, capsys, [*argv, "--lora_weight_path", str(first), *LORA[:2], *beside])
    assert f"--lora_weight_path {first}: " in said and message in said


def without(argv: list[str], flag: str) -> list[str]:
    at = argv.index(flag)
    return [*argv[:at], *argv[at + 2 :]]


def test_a_flag_beside_an_adapter_that_says_what_it_has_is_obeyed(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    first = trained(program, "--train_connector", "True")
    targets = ("--lora_target_modules", "c_attn", "attn.c_proj", "w1", "w2")
    beside = (*targets, "--lora_alpha", "16", "--lora_dropout", "0.25")
    assert program.main([*flags(), *on(first, *beside)]) == 0
    assert "no flag selects it: connector: trained copy" in capsys.readouterr().out
    before, after = tensors(first), tensors(tmp_path / "out")
    held = [name for name in before if "attn_pool" in name]
    assert held and all(torch.equal(before[name], after[name]) for name in held)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_dropout"] == 0.25


def test_full_training_of_an_adapter_is_refused_with_the_command_that_merges_it(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    capsys: pytest.CaptureFixture,
):
    first = trained(program)
    said = refused(program, capsys, [*flags(), "--model_name_or_path", str(first)])
    assert f"python -m finetune.export {first} --output_dir MERGED" in said and "--use_lora True" in said
    two = [
        *flags(),
        "--model_name_or_path",
        str(first),
        "--lora_weight_path",
        str(first),
        "--use_lora",
        "True",
    ]
    assert "two adapters" in refused(program, capsys, two)


@pytest.mark.parametrize("name", ["nothing", "some/where", "/gone/far/away", "."])
def test_an_adapter_that_is_not_there_asks_no_network(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    said = refused(program, capsys, [*flags(), "--use_lora", "True", "--lora_weight_path", name])
    assert "--lora_weight_path" in said and "expected an adapter folder" in said


# ---------------------------------------------------------------------------------------------------------------------
# Another base
# ---------------------------------------------------------------------------------------------------------------------


def test_an_adapter_beside_another_base_is_refused_unless_that_is_meant(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    """Of the same shapes, so that only its content tells."""
    first = trained(program)
    other = write_checkpoint(tmp_path / "other", seed=7)
    argv = without([*flags(), "--model_name_or_path", str(other), *LORA[:2]], "--lora_r")
    argv += ["--max_steps", "1", "--lora_weight_path", str(first)]
    said = refused(program, capsys, argv)
    assert f"{first}: this adapter was trained on other weights than {other}: found fingerprint" in said
    assert "--allow_other_base True" in said
    with pytest.raises(ValueError, match="this adapter was trained on other weights than"):
        export.export(first, tmp_path / "merged", base=str(other))
    assert not (tmp_path / "merged").exists()
    assert program.main([*argv, "--allow_other_base", "True"]) == 0
    export.export(first, tmp_path / "merged", base=str(other), allow_other_base=True, say=lambda _: None)


def test_a_base_that_was_moved_or_rounded_is_the_same_and_one_that_was_trained_is_not(
    program: ModuleType,  # noqa: F811
    trained: Callable[..., Path],
    checkpoint_folder: Path,
    tmp_path: Path,
):
    first = trained(program)
    moved = shutil.copytree(checkpoint_folder, tmp_path / "elsewhere")
    checkpoint.check(first, base=str(moved))
    content = load_file(moved / "model.safetensors")
    save_file({name: one.bfloat16() for name, one in content.items()}, moved / "model.safetensors")
    checkpoint.check(first, base=str(moved))
    name = "transformer.h.1.mlp.c_proj.weight"
    content[name] += 0.01
    save_file(content, moved / "model.safetensors")
    with pytest.raises(ValueError, match="other weights than"):
        checkpoint.check(first, base=str(moved))
    checkpoint.check(first, base=str(moved), allow_other_base=True)


def test_an_adapter_whose_base_was_trained_since_is_refused_everywhere(
    program: ModuleType,  # noqa: F811
    trained: Callable[..., Path],
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    from diagnostics import compare
    from diagnostics.web.checkpoints import check_checkpoints

    base = shutil.copytree(checkpoint_folder, tmp_path / "base")
    adapter = shutil.copytree(trained(program), tmp_path / "adapter")
    change(adapter, base_model_name_or_path=str(base))
    checkpoint.check(adapter)
    write_checkpoint(base, seed=3)
    for opened in (checkpoint.load, lambda one: check_checkpoints([one]), checkpoint.check):
        with pytest.raises(ValueError, match=r"other weights than .*--allow_other_base"):
            opened(adapter)
    assert export.main([str(adapter), "--output_dir", str(tmp_path / "merged")]) == 1
    sources = ["--before", str(base), "--after", str(adapter), "--output_dir", str(tmp_path / "compared")]
    with pytest.raises(SystemExit) as ended:
        compare.main(sources)
    assert ended.value.code == 2
    assert "other weights than" in capsys.readouterr().err
    assert not [*(tmp_path / "compared").glob("*")]


def on_the_hub(base: Path, cache: Path, *, revision: str = "a" * 40, max_shard_size: str = "5GB") -> Path:
    """A base as the hub's client keeps it, under the name org/tiny."""
    place = cache / "models--org--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    model, processor = checkpoint.load(base)
    model.save_pretrained(place / "snapshots" / revision, max_shard_size=max_shard_size)
    processor.save_pretrained(place / "snapshots" / revision)
    return place / "snapshots" / revision


def test_a_base_of_the_hub_that_is_not_whole_yet_refuses_no_adapter(checkpoint_folder: Path, tmp_path: Path):
    """An interrupted download: loading fetches the rest, and only then it is known which weights they are."""
    snapshot = on_the_hub(checkpoint_folder, tmp_path / "hub", max_shard_size="60KB")
    options: dict[str, Any] = {"cache_dir": str(tmp_path / "hub")}
    whole = adapters.fingerprint_of("org/tiny", **options)
    assert whole == adapters.fingerprint(checkpoint_folder)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/tiny"}')
    adapters.write_base(tmp_path / "adapter", "org/tiny", whole)
    first, *others = sorted(snapshot.glob("*.safetensors"))
    kept = {path: path.read_bytes() for path in others}
    for path in others:
        path.unlink()
    assert others and adapters.fingerprint_of("org/tiny", **options) is None
    adapters.check_base(tmp_path / "adapter", "org/tiny", **options)
    adapters.write_base(tmp_path / "adapter", "org/tiny", "cd" * 32)
    for path, content in kept.items():
        path.write_bytes(content)
    with pytest.raises(ValueError, match="other weights than org/tiny"):
        adapters.check_base(tmp_path / "adapter", "org/tiny", **options)
    next(snapshot.glob("*.index.json")).write_text("{")
    assert adapters.fingerprint_of("org/tiny", **options) is None


def test_a_base_that_is_fetched_when_it_is_loaded_is_checked_then(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """Before that, names were all that could be compared."""
    adapter = shutil.copytree(trained(program), tmp_path / "adapter")
    change(adapter, base_model_name_or_path="org/tiny")
    other = write_checkpoint(tmp_path / "other", seed=7)
    snapshot = on_the_hub(other, tmp_path / "hub", max_shard_size="60KB")
    last = sorted(snapshot.glob("*.safetensors"))[-1]
    content = last.read_bytes()
    original = checkpoint.AutoModelForImageTextToText.from_pretrained

    def fetched(*args: Any, **options: Any) -> Any:
        last.write_bytes(content)
        return original(*args, **options)

    monkeypatch.setattr(checkpoint.AutoModelForImageTextToText, "from_pretrained", fetched)
    cache = ("--cache_dir", str(tmp_path / "hub"))
    on_it = ("--model_name_or_path", "org/tiny", "--lora_weight_path", str(adapter), *LORA[:2])
    last.unlink()
    assert program.main([*without(flags(), "--lora_r"), *on_it, *cache]) == 1
    assert "other weights than org/tiny" in capsys.readouterr().err
    last.unlink()
    assert export.main([str(adapter), "--output_dir", str(tmp_path / "merged"), *cache]) == 1
    assert "other weights than org/tiny" in capsys.readouterr().err and not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT asks the hub about the vocabulary
def test_the_fingerprint_is_of_the_weights_in_the_runs_own_cache(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    checkpoint_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "usual"))
    on_the_hub(checkpoint_folder, tmp_path / "chosen")
    on_the_hub(write_checkpoint(tmp_path / "other", seed=7), tmp_path / "usual", revision="b" * 40)
    given = ("--model_name_or_path", "org/tiny", "--cache_dir", str(tmp_path / "chosen"))
    assert program.main([*flags(), *given, *LORA, "--save_strategy", "steps", "--save_steps", "1"]) == 0
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        written = json.loads((folder / adapters.BASE_FILE).read_text())["fingerprint"]
        assert written == adapters.fingerprint(checkpoint_folder)


def change(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_foreign_adapter_is_recognised_by_the_name_of_its_base(
    program: ModuleType,  # noqa: F811
    trained: Callable[..., Path],
    checkpoint_folder: Path,
    tmp_path: Path,
):
    adapter = shutil.copytree(trained(program), tmp_path / "adapter")
    (adapter / adapters.BASE_FILE).unlink()
    other = write_checkpoint(tmp_path / "other", seed=7)
    with pytest.raises(
        ValueError, match=r"this adapter was trained on another base: found .*other, expected .*tiny"
    ):
        checkpoint.check(adapter, base=str(other))
    change(adapter, base_model_name_or_path="Some/Model")
    with pytest.raises(ValueError, match="found .*other, expected Some/Model"):
        checkpoint.check(adapter, base=str(other), named_for_it=False)
    checkpoint.check(adapter, base=str(other))  # its place, as far as anyone can know
    change(adapter, base_model_name_or_path="Some/Other")
    checkpoint.check(adapter, base=str(other), named_for_it=False)  # the hub's name of that folder


def test_a_missing_base_is_reported_with_the_flag_for_its_folder(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    adapter = shutil.copytree(trained(program), tmp_path / "adapter")
    change(adapter, base_model_name_or_path="/gone/base/model")
    said = refused(program, capsys, [*flags(), *on(adapter)])
    assert "its base model '/gone/base/model' is missing; give its folder: --base FOLDER" in said
    assert "--model_name_or_path FOLDER --lora_weight_path ADAPTER" in said and said.count("\n") == 1
    assert program.main(without([*flags(), *LORA[:2], "--lora_weight_path", str(adapter)], "--lora_r")) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"r": "4"}, "r"),
        ({"r": None}, "r"),
        ({"r": 0}, "r"),
        ({"r": 2.5}, "r"),
        ({"r": True}, "r"),
        ({"lora_alpha": [16]}, "lora_alpha"),
        ({"lora_dropout": "none"}, "lora_dropout"),
        ({"lora_dropout": 3}, "lora_dropout"),
        ({"alora_invocation_tokens": [5, 7]}, "alora_invocation_tokens"),
        ({"target_modules": "("}, "target_modules"),
        ({"target_modules": {"a": 1}}, "target_modules"),
        ({"target_modules": [1, 2]}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": "nowhere"}, "target_modules"),
        ({"modules_to_save": 3}, "modules_to_save"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern"),
        ({"rank_pattern": {"a": "b"}}, "rank_pattern"),
        ({"alpha_pattern": {"a": None}}, "alpha_pattern"),
        ({"peft_type": "NOTHING"}, "peft_type"),
        ({"peft_type": 7}, "peft_type"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"task_type": 4}, "task_type"),
        ({"task_type": "DANCE"}, "task_type"),
        ({"bias": "some"}, "bias"),
        ({"use_dora": "yes"}, "use_dora"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path"),
        ({"megatron_config": {"a": 1}, "megatron_core": "no.such.module"}, "megatron_config"),
        ({"layers_to_transform": "x"}, "layers_to_transform"),
        ({"layers_pattern": 5}, "layers_pattern"),
        ({"layer_replication": [[0]]}, "layer_replication"),
        ({"loftq_config": 5}, "loftq_config"),
        ({"init_lora_weights": {}}, "init_lora_weights"),
        ({"trainable_token_indices": "a"}, "trainable_token_indices"),
        ({"runtime_config": 1}, "runtime_config"),
        ({"eva_config": 1}, "eva_config"),
        ({"exclude_modules": 1}, "exclude_modules"),
        ({"target_parameters": [1]}, "target_parameters"),
        ({"revision": 1}, "revision"),
        ({"auto_mapping": "x"}, "auto_mapping"),
        ({"alora_invocation_tokens": ["a"]}, "alora_invocation_tokens"),
        ({"use_bdlora": {}}, "use_bdlora"),
        ({"arrow_config": {"x": 1}}, "arrow_config"),
        ({"corda_config": {"x": 1}}, "corda_config"),
    ],
    ids=str,
)
def test_fields_that_mean_nothing_are_named_with_their_file(
    program: ModuleType,  # noqa: F811
    trained: Callable[..., Path],
    tmp_path: Path,
    fields: dict[str, Any],
    field: str,
):
    adapter = shutil.copytree(trained(program), tmp_path / "adapter")
    change(adapter, **fields)
    with pytest.raises(ValueError) as caught:
        checkpoint.check(adapter)
    message = str(caught.value)
    assert "adapter_config.json" in message and field in message and len(message) < 2000, message


@pytest.mark.parametrize(
    "kind", ["pissa", "pissa_niter_4", "OLoRA", "corda", "loftq", "lora_ga", "of_next_year"]
)
def test_an_adapter_that_is_opened_on_a_changed_base_is_refused(
    program: ModuleType,  # noqa: F811
    trained: Callable[..., Path],
    tmp_path: Path,
    kind: str,
):
    adapter = shutil.copytree(trained(program), tmp_path / "adapter")
    change(adapter, init_lora_weights=kind)
    expected = rf'adapter_config\.json: init_lora_weights: found "{kind}", .*path_initial_model_for_weight_conversion'
    for opened in (checkpoint.check, checkpoint.load):
        with pytest.raises(ValueError, match=expected):
            opened(adapter)


FOREIGN: dict[str, dict[str, Any]] = {
    **{str(kind): {"init_lora_weights": kind} for kind in (False, "gaussian", "orthogonal", "eva", "mica")},
    "biases of adapters": {"lora_bias": True, "target_modules": r"transformer\.h\.\d+\.attn\.c_attn"},
    "tokens": {"trainable_token_indices": {"wte": [5, 9]}},
}


def foreign(base: Path, folder: Path, fields: dict[str, Any]) -> torch.Tensor:
    """Writes an adapter as PEFT makes it, and returns its logits."""
    torch.manual_seed(3)
    model, _ = checkpoint.load(base)
    config = {"r": 4, "target_modules": r"transformer\.h\.\d+\.mlp\.w1", **fields}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PEFT takes biases of adapters for shards, and EVA for a waste of memory
        adapted = get_peft_model(model, LoraConfig(**config))
        perturb(adapted)
        adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted.eval()(**batch()).logits


@pytest.mark.filterwarnings("ignore:.*eva:UserWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_adapters_of_other_programs_are_opened_as_they_were_saved(
    checkpoint_folder: Path, tmp_path: Path, kind: str
):
    expected = foreign(checkpoint_folder, tmp_path / "adapter", FOREIGN[kind])
    model, _ = checkpoint.load(tmp_path / "adapter")
    base, _ = checkpoint.load(checkpoint_folder)
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, expected)
        with model.disable_adapter():
            assert torch.equal(model(**batch()).logits, base(**batch()).logits)


@pytest.mark.parametrize("kind", ["biases of adapters", "tokens"])
def test_their_tensors_are_missed_and_measured_too(checkpoint_folder: Path, tmp_path: Path, kind: str):
    foreign(checkpoint_folder, tmp_path / "adapter", FOREIGN[kind])
    saved = tensors(tmp_path / "adapter")
    name = next(name for name in saved if name.endswith((".lora_B.bias", ".trainable_tokens_delta")))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    wrong = saved[name][..., 1:].contiguous()
    shapes = f"{list(wrong.shape)} in the adapter, expected {list(saved[name].shape)}"
    for changed, message in (
        ({**saved, name: wrong}, f"{name}: found {shapes}"),
        ({one: saved[one] for one in saved if one != name}, f"{name}: found none in the adapter"),
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(ValueError, match=re.escape(message)):
            checkpoint.check(tmp_path / "adapter")
    save_file({**saved, name: saved[name] * float("nan")}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"a broken adapter:\n.*found NaN or infinity"):
        checkpoint.load(tmp_path / "adapter")


@pytest.mark.parametrize("content", ["", "[]", "3", "{", "null", "[" * 50_000, "\udcff"])
def test_a_configuration_that_is_none_is_named(
    program: ModuleType,  # noqa: F811
    trained: Callable[..., Path],
    tmp_path: Path,
    content: str,
):
    adapter = shutil.copytree(trained(program), tmp_path / "adapter")
    (adapter / "adapter_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"adapter_config\.json: ") as caught:
        checkpoint.load_config(adapter)
    assert len(str(caught.value)) < 2000


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    "harm", [cut, Path.unlink, lambda path: path.write_bytes(b"")], ids=["cut", "gone", "empty"]
)
@pytest.mark.parametrize("whose", ["adapter", "model"])
def test_truncated_or_missing_weights_are_reported_before_any_work(
    program: ModuleType,  # noqa: F811
    flags: Run,  # noqa: F811
    trained: Callable[..., Path],
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
    whose: str,
):
    folder = shutil.copytree(
        trained(program) if whose == "adapter" else checkpoint_folder, tmp_path / "harmed"
    )
    harm(folder / ("adapter_model.safetensors" if whose == "adapter" else "model.safetensors"))
    monkeypatch.setattr(source, "read", lambda *_, **__: pytest.fail())  # data may take long
    said = refused(program, capsys, [*flags(), *on(folder)])
    assert str(folder) in said and ("copy it again" in said or "copy the adapter again" in said)
    assert export.main([str(folder), "--output_dir", str(tmp_path / "new")]) == 1
    assert str(folder) in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_shard_that_the_index_names_is_missed(checkpoint_folder: Path, tmp_path: Path):
    model, _ = checkpoint.load(checkpoint_folder)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    checkpoint.check(tmp_path)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(
        ValueError, match=f"{lost.name}: is not there, and model.safetensors.index.json names it"
    ):
        checkpoint.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json: found a list of 0, expected an object"):
        checkpoint.load(tmp_path)
