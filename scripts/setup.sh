# Sourced by the other scripts: makes .venv in the project root, once.
#   set_up                  what training needs (requirements.txt)
#   set_up dev              and what the tests need (requirements-dev.txt)
# A second call finds a stamp and returns at once. An interrupted set-up is started over.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
SETUP_LOG="$ROOT/.venv.log"
export TORCH_EXTENSIONS_DIR="$VENV/torch_extensions"
export PATH="$VENV/bin:$PATH" # ninja, torchrun, tensorboard

set_up() {
    local files=("$ROOT/requirements.txt") name=run wanted
    if [ "${1:-}" = dev ]; then
        files+=("$ROOT/requirements-dev.txt")
        name=dev
    fi
    wanted="$(cat "${files[@]}" "$ROOT/scripts/setup.sh" | cksum)"
    if [ ! -e "$VENV/.installing" ] && [ "$(cat "$VENV/.stamp-$name" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    local python
    python="$(find_python)" || return 1
    (
        # The lock is on the open file: it goes with this subshell, whatever ends it.
        "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null 9>&9 || {
            echo "set-up: another one is running; waiting for it"
            "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 9>&9
        }
        if [ ! -e "$VENV/.installing" ] && [ "$(cat "$VENV/.stamp-$name" 2>/dev/null)" = "$wanted" ]; then
            exit 0
        fi
        install_into_venv "$python" "$name" "$wanted" "${files[@]}"
    ) 9>"$ROOT/.venv.lock"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "set-up: found no Python of at least 3.11 (looked for ${PYTHON:-python3, python3.13 … python3.11});" \
        "install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
    return 1
}

install_into_venv() {
    local python="$1" name="$2" wanted="$3"
    shift 3
    set -e
    if [ -e "$VENV/.installing" ]; then
        echo "set-up: the last one was interrupted; starting over"
        rm -rf "$VENV"
    fi
    : >"$SETUP_LOG"
    local begun=$SECONDS
    follow "$begun" "$BASHPID" &
    local follower=$!
    # Of this subshell, and whatever ends it: the line that follows must not outlive it.
    trap 'end_line "$follower"' EXIT
    if [ ! -x "$VENV/bin/python" ]; then
        "$python" -m venv "$VENV" >>"$SETUP_LOG" 2>&1 || {
            rm -rf "$VENV"
            failed "this Python cannot make virtual environments; on Debian: apt install python3-venv"
        }
    fi
    touch "$VENV/.installing"
    local file arguments=()
    for file in "$@"; do arguments+=(-r "$file"); done
    "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off "${arguments[@]}" \
        >>"$SETUP_LOG" 2>&1 || failed "pip could not install the packages"
    build_operators
    rm "$VENV/.installing"
    echo "$wanted" >"$VENV/.stamp-$name"
    # The tests' packages include those of training.
    if [ "$name" = dev ]; then cat "$ROOT/requirements.txt" "$ROOT/scripts/setup.sh" | cksum >"$VENV/.stamp-run"; fi
    end_line "$follower"
    trap - EXIT
    local where=""
    if [ -t 1 ]; then where=" (log: $SETUP_LOG)"; fi
    echo "set-up: done in $(minutes $((SECONDS - begun)))$where"
}

# One line that is written over while the log grows; where there is no terminal, one line in all.
follow() {
    local begun="$1" parent="$2" what="set-up: installing into $VENV, some minutes, once"
    if ! [ -t 1 ]; then
        echo "$what (log: $SETUP_LOG)"
        return
    fi
    local columns step
    columns="$(tput cols 2>/dev/null || echo 80)"
    while kill -0 "$parent" 2>/dev/null; do
        # What is being done; warnings about mirrors and the like are in the log.
        step="$(grep -E '^ *(Collecting|Processing|Downloading|Building|Installing|compiling)' "$SETUP_LOG" 2>/dev/null |
            tail -n 1 | tr -d '\r' | sed 's/^ *//; s/ (from .*//' || true)"
        step="$what: $(minutes $((SECONDS - begun)))  $step"
        printf '\r\033[K%s' "${step:0:$((columns - 1))}"
        sleep 0.5
    done
}

end_line() {
    { kill "$1" && wait "$1"; } 2>/dev/null || true
    if [ -t 1 ]; then printf '\r\033[K'; fi
}

minutes() {
    printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

# What the log ends with, why, and where the rest of it is.
failed() {
    if [ -t 1 ]; then printf '\r\033[K'; fi
    tail -n 20 "$SETUP_LOG" >&2
    echo "set-up: $1; the full output is in $SETUP_LOG" >&2
    exit 1
}

# DeepSpeed compiles its CPU communication on first use, which takes a minute or two: better here than during training.
build_operators() {
    if has_gpu; then return 0; fi
    if ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null; then
        failed "found no C++ compiler, which DeepSpeed needs on a CPU; on Debian: apt install g++"
    fi
    echo "compiling DeepSpeed's communication for this CPU" >>"$SETUP_LOG"
    # Through a file of its own: what it prints would be all that the line shows.
    DS_ACCELERATOR=cpu "$VENV/bin/python" -c '
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
ShareMemCommBuilder().load(verbose=False)' >"$VENV/operators.log" 2>&1 || {
        cat "$VENV/operators.log" >>"$SETUP_LOG"
        failed "compilation failed"
    }
}

has_gpu() {
    "$VENV/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}
