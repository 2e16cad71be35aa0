"""The flags of the run without flags."""

from pathlib import Path

import pytest

from finetune.demo.prepare import data_files
from finetune.demo.settings import training_flags
from finetune.flags import parse


def _value(flags, name):
    return flags[flags.index(f"--{name}") + 1]


@pytest.mark.parametrize(("processes", "each"), [(1, "32"), (2, "16"), (8, "4")])
def test_the_global_batch_does_not_depend_on_the_processes(processes, each):
    flags = training_flags(data_files(Path("somewhere")), processes=processes)
    assert _value(flags, "per_device_train_batch_size") == each
    assert _value(flags, "gradient_accumulation_steps") == "1"


def test_processes_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="found 3 processes, expected a number that divides its batch of 32"):
        training_flags(data_files(Path("somewhere")), processes=3)


def test_finetune_reads_every_flag(tmp_path):
    files = data_files(tmp_path)
    for path in (files.corrective, files.probes, files.development):
        path.parent.mkdir()
        path.write_text("[]")
    parsed, lines = parse.parse([*training_flags(files, processes=1), "--output_dir", str(tmp_path / "out")])
    assert lines == []
    assert parsed.lora and parsed.train_connector and parsed.adaptation.fix_vit
    assert parsed.adaptation.lora_dropout == 0 and parsed.training.warmup_steps >= 1
    assert parsed.monitor.key_layers == "auto" and parsed.monitor.calibration_probes == str(files.development)
    assert 2 <= parsed.training.max_steps // parsed.training.save_steps <= 3
