"""The shell entry points, over a Python that only writes down what it is asked."""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINING = sorted(path.name for path in (ROOT / "scripts").glob("finetune_*.sh"))

PYTHON = f"""#!/usr/bin/env bash
# A Python that makes empty environments and installs nothing, and tells what it was asked.
here="$(cd "$(dirname "$0")" && pwd)"
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/torchrun" && echo "made venv" >>"$LOG" ;;
    "-m pip") echo "pip ${{*:3}}" >>"$LOG"; echo "Collecting torch==2 (from x)"; echo "WARNING: a mirror"
        sleep "${{PIP_SECONDS:-0}}"
        [ -z "${{PIP_EXIT:-}}" ] || echo "no matching distribution"; exit "${{PIP_EXIT:-0}}" ;;
    "-c "*usable_cores*) echo "${{MACHINE:-0 8 none 4321}}" ;;
    "-c "*) exec {sys.executable} "$@" ;;
    *) echo "$(basename "$0") $*"; env | grep -E "^(OMP|RANK|WORLD|DS_|MASTER|CUDA_V)" | sort ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts in a folder of their own, with requirements that are never read."""
    folder = tmp_path / "a project"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("requirements.txt", "requirements-dev.txt"):
        (folder / name).write_text(f"nothing of {name}\n")
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return folder


def call(project: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = {
        **kept,
        "PYTHON": str(project.parent / "python"),
        "LOG": str(project.parent / "log"),
        **variables,
    }
    # Compiling is DeepSpeed's own and takes minutes.
    prelude = "build_operators() { echo compiled >>$LOG; }; "
    return subprocess.run(
        ["bash", "-c", f"source scripts/setup.sh; {prelude}{command}"],
        cwd=project, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def log(project: Path) -> list[str]:
    path = project.parent / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_set_up_installs_once(project: Path):
    first = call(project, "set_up")
    begun, ended = first.stdout.splitlines()
    assert first.returncode == 0 and re.fullmatch(r"set-up: done in 0:\d\d", ended)
    assert begun.startswith("set-up: installing into ") and begun.endswith(f"(log: {project}/.venv.log)")
    made, installed, compiled = log(project)
    assert (made, compiled) == ("made venv", "compiled")
    assert installed.startswith("pip install ") and installed.endswith(f"-r {project}/requirements.txt")
    second = call(project, "set_up")
    assert (second.returncode, second.stdout, log(project)) == (0, "", [])


def test_on_a_terminal_one_line_is_written_over(project: Path):
    """pip's own lines are in the log; what ends the set-up is the only line that stays."""
    terminal, end = pty.openpty()
    done = subprocess.Popen(
        ["bash", "-c", "source scripts/setup.sh; build_operators() { :; }; set_up"], cwd=project, stdout=end,
        env={"PATH": os.environ["PATH"], "PYTHON": str(project.parent / "python"), "LOG": "/dev/null",
             "PIP_SECONDS": "1"},
    )  # fmt: skip
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # once the last writer has gone
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert done.wait(20) == 0
    *over, stays = re.split(r"\r\x1b\[K", shown.decode().removesuffix("\r\n"))
    assert len(over) >= 2 and not any("\n" in one for one in over)
    assert any(re.match(r"set-up: installing into \S+", one) and len(one) < 80 for one in over)
    shown_last = next(one for one in reversed(over) if one)
    assert "installing into" in shown_last and "WARNING" not in "".join(over)
    assert re.fullmatch(rf"set-up: done in 0:0\d \(log: {project}/.venv.log\)", stays)


def test_what_fails_is_shown_with_its_log(project: Path):
    done = call(project, "set_up", PIP_EXIT="1")
    assert done.returncode == 1 and "done" not in done.stdout
    assert done.stderr.splitlines()[-2:] == [
        "no matching distribution",
        f"set-up: pip could not install the packages; the full output is in {project}/.venv.log",
    ]


def test_the_tests_need_more_and_get_it_into_the_same_place(project: Path):
    call(project, "set_up")
    log(project)
    call(project, "set_up dev")
    installed, _ = log(project)
    assert installed.endswith(f"-r {project}/requirements.txt -r {project}/requirements-dev.txt")
    call(project, "set_up dev; set_up")
    assert log(project) == []


def test_new_requirements_are_installed(project: Path):
    call(project, "set_up")
    log(project)
    (project / "requirements.txt").write_text("something new\n")
    call(project, "set_up")
    assert [line.split()[0] for line in log(project)] == ["pip", "compiled"]


def test_an_interrupted_set_up_is_started_anew(project: Path):
    broken = call(project, "set_up", PIP_EXIT="1")
    assert broken.returncode != 0 and "done" not in broken.stdout
    log(project)
    (project / ".venv" / "half.txt").write_text("left behind")
    repaired = call(project, "set_up")
    assert repaired.returncode == 0 and "interrupted; starting over" in repaired.stdout
    assert log(project)[0] == "made venv"
    assert not (project / ".venv" / "half.txt").exists()


def test_two_set_ups_at_once_install_once(project: Path):
    both = call(project, "set_up & set_up & wait", PIP_SECONDS="1")
    assert "another one is running; waiting for it" in both.stdout
    assert [line.split()[0] for line in log(project)] == ["made", "pip", "compiled"]


def test_an_old_python_is_refused(project: Path):
    old = project.parent / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = call(project, "set_up", PYTHON=str(old))
    assert done.returncode != 0 and "found no Python of at least 3.11" in done.stderr
    assert not (project / ".venv").exists()


def run(project: Path, script: str, *flags: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    """What a training script would start: its words, and the variables that matter."""
    set_up = call(project, "set_up")
    assert set_up.returncode == 0, set_up.stderr
    words = " ".join(f"'{flag}'" for flag in flags)
    done = call(project, f"exec bash scripts/{script} {words}", **variables)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    return first.split(), dict(line.split("=", 1) for line in rest)


def value(words: list[str], flag: str) -> str:
    """The last value of a flag, which is the one that argparse takes."""
    return [words[i + 1] for i, word in enumerate(words[:-1]) if word == flag][-1]


def test_without_flags_finetune_py_chooses_the_demo(project: Path):
    words, variables = run(project, "finetune_lora_ds.sh")
    assert words[0] == "python" and "--model_name_or_path" not in words and "--use_lora" not in words
    assert any(word.endswith("ds_config_zero2.json") for word in words)
    assert variables["DS_ACCELERATOR"] == "cpu" and variables["OMP_NUM_THREADS"] == "8"
    assert variables["OMP_WAIT_POLICY"] == "passive"
    assert (variables["RANK"], variables["WORLD_SIZE"], variables["MASTER_PORT"]) == ("0", "1", "4321")


def test_the_users_own_threads_are_kept(project: Path):
    _, variables = run(project, "finetune_lora_ds.sh", OMP_NUM_THREADS="3", OMP_WAIT_POLICY="active")
    assert (variables["OMP_NUM_THREADS"], variables["OMP_WAIT_POLICY"]) == ("3", "active")


@pytest.mark.parametrize("script", TRAINING)
def test_flags_win_over_the_usual_ones(project: Path, script: str):
    words, _ = run(project, script, "--data_path", "d.json", "--learning_rate", "3e-4")
    assert value(words, "--model_name_or_path") == "Qwen/Qwen-VL-Chat"
    assert value(words, "--learning_rate") == "3e-4" and words.count("--learning_rate") == 2
    assert (value(words, "--weight_decay"), value(words, "--adam_beta2")) == ("0.1", "0.95")
    assert (value(words, "--num_train_epochs"), value(words, "--model_max_length")) == ("5", "2048")
    assert "--bf16" not in words and "--fp16" not in words  # no GPU here


@pytest.mark.parametrize(
    ("script", "size", "accumulation", "adapter", "engine", "precision"),
    [
        ("finetune_ds.sh", "1", "16", None, "ds_config_zero3.json", "--bf16"),
        ("finetune_lora_ds.sh", "2", "8", "--use_lora", "ds_config_zero2.json", "--bf16"),
        ("finetune_lora_single_gpu.sh", "1", "8", "--use_lora", None, "--bf16"),
        ("finetune_qlora_ds.sh", "2", "8", "--q_lora", "ds_config_zero2.json", "--fp16"),
        ("finetune_qlora_single_gpu.sh", "1", "8", "--q_lora", None, "--fp16"),
    ],
)
def test_the_usual_flags_of_each_script_on_a_gpu(
    project: Path,
    script: str,
    size: str,
    accumulation: str,
    adapter: str | None,
    engine: str | None,
    precision: str,
):
    words, variables = run(project, script, MACHINE="1 8 bf16 4321", DATA="d.json", MODEL="m")
    assert value(words, "--per_device_train_batch_size") == size
    assert value(words, "--gradient_accumulation_steps") == accumulation
    assert (value(words, "--data_path"), value(words, "--model_name_or_path")) == ("d.json", "m")
    assert [name for name in ("--use_lora", "--q_lora") if name in words] == ([adapter] if adapter else [])
    assert ("--deepspeed" in words) == (engine is not None)
    assert engine is None or any(word.endswith(engine) for word in words)
    assert value(words, precision) == "True"
    assert "DS_ACCELERATOR" not in variables
    assert (variables.get("CUDA_VISIBLE_DEVICES") == "0") == (engine is None)


@pytest.mark.parametrize("script", TRAINING)
def test_a_given_precision_replaces_the_usual_one(project: Path, script: str):
    """transformers refuses both: who gave one never asked for the other."""
    from finetune.flags.parse import expanded

    for usual, given in (("fp16", "--bf16"), ("bf16", "--fp16")):
        words, _ = run(project, script, "--data_path", "d.json", given, "True", MACHINE=f"1 8 {usual} 4321")
        first = next(at for at, word in enumerate(words) if word.startswith("--"))
        flags = expanded(words[first:])
        assert [flag for flag in flags if flag in ("--bf16", "--fp16")] == [given]


def test_every_gpu_gets_a_process(project: Path):
    words, _ = run(project, "finetune_lora_ds.sh", MACHINE="4 8 bf16 4321")
    assert words[0] == "torchrun" and value(words, "--nproc_per_node") == "4"
    assert value(words, "--master_port") == "4321"
    assert value(words, "--log-dir") == "/dev/null"  # no folder is left in TMPDIR
    # torchrun takes no flag of ours for one of its own.
    assert words.index("--") < words.index("--deepspeed")


def test_processes_and_nodes_are_the_callers(project: Path):
    words, variables = run(project, "finetune_lora_ds.sh", GPUS_PER_NODE="2")
    assert (value(words, "--nproc_per_node"), value(words, "--nnodes")) == ("2", "1")
    assert variables["OMP_NUM_THREADS"] == "4"
    nodes = {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.7", "GPUS_PER_NODE": "1"}
    words, _ = run(project, "finetune_ds.sh", "--data_path", "d", **nodes)
    assert (value(words, "--nnodes"), value(words, "--node_rank")) == ("3", "2")
    assert (value(words, "--master_addr"), value(words, "--master_port")) == ("10.0.0.7", "6001")


@pytest.mark.parametrize("name", ["NODE_RANK", "MASTER_ADDR"])
def test_several_machines_must_say_which_they_are(project: Path, name: str):
    call(project, "set_up")
    nodes = {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.7"}
    del nodes[name]
    done = call(project, "exec bash scripts/finetune_ds.sh --data_path d", **nodes)
    assert done.returncode != 0 and f"{name}: is not set: NNODES=3 machines need" in done.stderr


def test_shell_files_are_read_by_bash():
    for path in [*(ROOT / "scripts").glob("*.sh"), ROOT / "scripts" / "slurm.sbatch"]:
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_checks_end_with_what_was_skipped_and_why(project: Path):
    call(project, "set_up dev")
    for tool in ("ruff", "mypy"):
        shutil.copy(project / ".venv" / "bin" / "python", project / ".venv" / "bin" / tool)
    for module in (
        "finetune/__init__",
        "finetune/training/trainer",
        "finetune/model/checkpoint",
        "diagnostics/compare",
    ):
        path = project / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    done = call(project, "exec bash scripts/test.sh tests/test_x.py")
    assert done.returncode == 0, done.stderr
    assert (
        "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rfEs tests/test_x.py\n"
        in done.stdout.replace("== ", "")
    )


@pytest.mark.parametrize("variables", [{"GPUS_PER_NODE": "two"}, {"GPUS_PER_NODE": "0"}, {"NNODES": "-1"}])
def test_a_number_of_processes_that_is_none_is_refused(project: Path, variables: dict[str, str]):
    call(project, "set_up")
    done = call(project, "exec bash scripts/finetune_ds.sh --data_path d", **variables)
    assert done.returncode == 1 and "expected whole numbers of at least 1" in done.stderr


@pytest.mark.parametrize("script", ["finetune_lora_ds.sh", "finetune_lora_single_gpu.sh"])
@pytest.mark.parametrize(
    "given",
    [
        ("--model-name-or-path", "m"), ("--data-path", "d.json"), ("--data-path=d.json",), ("--data_path=d.json",),
        ("--corrective-data", "d.json"), ("--replay_data", "d.json"), ("--learning-rate", "3e-4", "--config=run.yaml"),
    ],
)  # fmt: skip
def test_flags_with_dashes_and_equals_name_model_and_data_too(
    project: Path, script: str, given: tuple[str, ...]
):
    """Every way of writing that finetune.py reads; what trained in full here was meant to train adapters."""
    words, _ = run(project, script, *given)
    assert value(words, "--use_lora") == "True" and value(words, "--num_train_epochs") == "5"
    assert words[words.index("--given") :] == ["--given", *given]


@pytest.mark.parametrize("given", [("--output-dir", "data_path"), ("--seed=7",), ("--max-steps", "3")])
def test_flags_that_name_neither_leave_the_demo_on(project: Path, given: tuple[str, ...]):
    words, _ = run(project, "finetune_lora_ds.sh", *given)
    assert "--use_lora" not in words and "--model_name_or_path" not in words


def test_a_script_and_the_program_agree_on_what_is_not_the_demo():
    """Were a flag known to one alone, the script would leave out its usual flags and the demo would be off."""
    from attention_finetune.inputs import NOT_OF_THE_DEMO

    named = re.search(
        r'case "--\$\{name//-/_\}" in (.*)\) return 0', (ROOT / "scripts" / "launch.sh").read_text()
    )
    assert named is not None
    assert {*named[1].split(" | ")} == {*(f"--{name}" for name in NOT_OF_THE_DEMO), "--config"}


def test_a_file_of_flags_names_model_and_data(project: Path):
    words, _ = run(project, "finetune_lora_ds.sh", "--config", "run.yaml")
    assert "--use_lora" in words and words[words.index("--given") :] == ["--given", "--config", "run.yaml"]


# What stands in for torchrun: it takes a while, ends as told, and says which signal it got.
PATIENT = """#!/usr/bin/env bash
trap 'echo got TERM >>"$LOG"; sleep 0.3; exit 1' TERM
echo started >>"$LOG"
for _ in $(seq 100); do sleep 0.1; done
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_reaches_every_process_and_its_end_is_waited_for(project: Path, number: int, status: int):
    call(project, "set_up")
    log(project)
    (project / ".venv" / "bin" / "torchrun").write_text(PATIENT)
    environment = {**os.environ, "LOG": str(project.parent / "log"), "GPUS_PER_NODE": "2"}
    with subprocess.Popen(
        ["bash", "scripts/finetune_ds.sh", "--data_path", "d"], cwd=project, env=environment
    ) as running:
        wait_for_log(project, "started", running)
        running.send_signal(number)
        assert running.wait(20) == status
    assert log(project) == ["started", "got TERM"]


def wait_for_log(project: Path, word: str, running: subprocess.Popen) -> None:
    end = time.monotonic() + 20
    path = project.parent / "log"
    while not (path.exists() and word in path.read_text()):
        assert running.poll() is None and time.monotonic() < end, "it did not begin"
        time.sleep(0.02)


SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    "show hostnames") printf '%s-node\\n' first second ;;
    requeue*) echo "$*" >>"$LOG" ;;
esac
"""
# Every task at once, as SLURM does, with its number; a signal goes to all of them.
SRUN = """#!/usr/bin/env bash
SLURM_NODEID=0 "$@" & a=$!
SLURM_NODEID=1 "$@" & b=$!
trap 'kill -TERM $a $b' TERM
status=0
wait $a || status=$?
while kill -0 $a 2>/dev/null || kill -0 $b 2>/dev/null; do wait $a || status=$?; wait $b || status=$?; done
exit $status
"""
TRAINING = """#!/usr/bin/env bash
echo "$NODE_RANK of $NNODES at $MASTER_ADDR:$MASTER_PORT, $GPUS_PER_NODE processes: $*" >>"$LOG"
trap 'exit 143' TERM
for _ in $(seq "${TENTHS:-0}"); do sleep 0.1; done
"""


@pytest.fixture
def cluster(project: Path) -> dict[str, str]:
    """A cluster of two machines that are this one, and a training script that only says where it runs."""
    call(project, "set_up")
    log(project)
    tools = project.parent / "bin"
    tools.mkdir()
    scripts = {
        tools / "srun": SRUN,
        tools / "scontrol": SCONTROL,
        project / "scripts" / "finetune_lora_ds.sh": TRAINING,
    }
    for path, text in scripts.items():
        path.write_text(text)
        path.chmod(0o755)
    return {
        **os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "LOG": str(project.parent / "log"),
        "PYTHON": str(project.parent / "python"), "SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "x[1-2]", "SLURM_JOB_ID": "123456", "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip


def test_slurm_starts_each_machine_with_its_number(project: Path, cluster: dict[str, str]):
    goes_on = ["--overwrite_output_dir", "False", "--resume_from_checkpoint", "True"]
    command = ["bash", str(project / "scripts" / "slurm.sbatch"), "--data_path", "a file.json", *goes_on]
    subprocess.run(command, env=cluster, check=True, timeout=30)
    assert sorted(log(project)) == [
        f"{rank} of 2 at first-node:33456, 8 processes: --data_path a file.json {' '.join(goes_on)}"
        for rank in (0, 1)
    ]


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--overwrite_output_dir", "True"], "--overwrite_output_dir"),
        (["--overwrite-output-dir=true", "--bf16"], "--overwrite_output_dir"),
        (["--save_only_model", "--data_path", "d.json"], "--save_only_model"),
        (["--resume_from_checkpoint", "Out/checkpoint-3"], "--resume_from_checkpoint Out/checkpoint-3"),
    ],
)
def test_slurm_refuses_a_command_that_starts_over_when_it_is_given_again(flags, refused):
    script = ["bash", str(ROOT / "scripts" / "slurm.sbatch")]
    found = subprocess.run([*script, *flags], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (found.returncode, found.stdout) == (2, "") and f"found {refused};" in found.stderr


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_goes_on_in_the_next_job_when_time_is_up_and_not_when_cancelled(
    project: Path, cluster: dict[str, str], number: int, again: bool
):
    command = ["bash", str(project / "scripts" / "slurm.sbatch")]
    with subprocess.Popen(command, env={**cluster, "TENTHS": "100"}, stdout=subprocess.DEVNULL) as job:
        wait_for_log(project, "1 of 2", job)
        wait_for_log(project, "0 of 2", job)
        time.sleep(0.2)
        job.send_signal(number)
        assert job.wait(20) == 143
    assert ("requeue 123456" in log(project)) is again


def test_the_deepspeed_files_leave_optimizer_and_schedule_to_the_flags():
    import json

    for stage in (2, 3):
        config = json.loads((ROOT / f"ds_config_zero{stage}.json").read_text())
        assert config["zero_optimization"]["stage"] == stage
        assert config["zero_optimization"]["overlap_comm"] is False  # it has given losses of 0 and NaN
        assert "optimizer" not in config and "scheduler" not in config
