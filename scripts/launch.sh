# Sourced by the training scripts: sets up, and runs finetune.py on all GPUs, or on the CPU.
#   look_at_machine              sets GPUS, CORES, PRECISION
#   launch deepspeed|plain ...   finetune.py with these flags; --given parts the usual ones from the caller's
# GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT say where (GPUS_PER_NODE: processes, on a CPU too). On several
# machines the same command is given on each, with its own NODE_RANK; scripts/slurm.sbatch does that.
# SIGTERM and SIGUSR1 save and stop: the status is 143 or 138, and the last line says how to go on.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

look_at_machine() {
    local facts
    # Loading torch takes seconds: not where the system shows no device of NVIDIA (WSL, Jetson) or AMD at all.
    facts="$("$VENV/bin/python" -c '
import glob, runpy, socket, sys
gpus = 0
if any(map(glob.glob, ("/dev/nvidia*", "/dev/dxg", "/dev/nvgpu*", "/dev/nvhost*", "/dev/nvmap", "/dev/kfd"))):
    import torch
    gpus = torch.cuda.device_count()
cores = runpy.run_path(sys.argv[1])["usable_cores"]()
precision = "none" if not gpus else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
port = socket.socket()
port.bind(("127.0.0.1", 0))
print(gpus, cores, precision, port.getsockname()[1])' "$ROOT/finetune/threads.py")" || return 1
    read -r GPUS CORES PRECISION PORT <<<"$facts"
}

launch() {
    local engine="$1"
    shift
    local processes="${GPUS_PER_NODE:-$((GPUS > 0 ? GPUS : 1))}" nodes="${NNODES:-1}"
    if ! [[ $processes =~ ^[1-9][0-9]{0,3}$ && $nodes =~ ^[1-9][0-9]{0,4}$ ]]; then
        echo "launch: found GPUS_PER_NODE=$processes NNODES=$nodes, expected whole numbers of at least 1" >&2
        exit 1
    fi
    if [ "$engine" = plain ]; then
        processes=1 nodes=1
        # With several GPUs in view, transformers would split each batch over them.
        export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"
    fi
    if [ "$GPUS" = 0 ]; then
        export DS_ACCELERATOR=cpu
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((CORES > processes ? CORES / processes : 1))}"
        # A thread that spins while it waits takes its core from the one that it waits for.
        export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
    fi
    if [ "$processes" = 1 ] && [ "$nodes" = 1 ]; then
        if [ "$engine" = deepspeed ]; then
            # What torchrun would set for its only process, without the second Python that it is.
            export RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=1
            export MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}" MASTER_PORT="${MASTER_PORT:-$PORT}"
        fi
        exec "$VENV/bin/python" "$ROOT/finetune.py" "$@"
    fi
    # One node takes any free port; several must agree on one beforehand.
    if [ "$nodes" != 1 ]; then
        PORT=6001
        : "${NODE_RANK:?is not set: NNODES=$nodes machines need a number each, NODE_RANK=0 to $((nodes - 1))}"
        : "${MASTER_ADDR:?is not set: NNODES=$nodes machines need the address of the one with NODE_RANK=0}"
    fi
    # Without the --, torchrun takes --monitor for a beginning of its own --monitor-interval. Without --log-dir, each of
    # its starts leaves an empty folder torchelastic_* in TMPDIR.
    stoppable "$VENV/bin/torchrun" --log-dir /dev/null --nproc_per_node "$processes" --nnodes "$nodes" --node_rank "${NODE_RANK:-0}" \
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-$PORT}" -- "$ROOT/finetune.py" "$@"
}

# Runs torchrun, which by itself dies of SIGUSR1, gives its processes 30 s after SIGTERM, and then ends with status 1.
stoppable() {
    local status=0 stopped=0
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}" # seconds to save in
    "$@" &
    local child=$!
    trap 'stopped=143; kill -TERM $child' TERM
    trap 'stopped=138; kill -TERM $child' USR1
    trap 'stopped=130' INT # a terminal sends it to torchrun too
    wait "$child" || status=$?
    # A signal ends wait before its time.
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    exit "$((status != 0 && stopped != 0 ? stopped : status))"
}

# The default flags of Qwen-VL's scripts, into FLAGS.  usual_flags BATCH_SIZE ACCUMULATION [bf16|fp16]
usual_flags() {
    FLAGS=(
        --model_name_or_path "${MODEL:-Qwen/Qwen-VL-Chat}"
        --fix_vit True
        --output_dir output_qwen
        --num_train_epochs 5
        --per_device_train_batch_size "$1"
        --per_device_eval_batch_size 1
        --gradient_accumulation_steps "$2"
        --eval_strategy no
        --save_strategy steps
        --save_steps 1000
        --save_total_limit 10
        --learning_rate 1e-5
        --weight_decay 0.1
        --adam_beta2 0.95
        --warmup_steps 0.01
        --lr_scheduler_type cosine
        --logging_steps 1
        --report_to tensorboard
        --model_max_length 2048
        --gradient_checkpointing True
    )
    if [ -n "${DATA:-}" ]; then FLAGS+=(--data_path "$DATA"); fi
    local precision="${3:-$PRECISION}"
    # Pictures are decoded by other processes, so that a GPU need not wait for them.
    if [ "$PRECISION" != none ]; then FLAGS+=("--$precision" True --dataloader_num_workers 4); fi
}

# Is a model or data named: among the flags, in MODEL or DATA, or in a file of flags (which is not read here)? As in
# finetune.py, a flag's name may be written with dashes, and its value after "=".
names_model_or_data() {
    if [ -n "${MODEL:-}${DATA:-}" ]; then return 0; fi
    local flag name
    for flag in "$@"; do
        name="${flag#--}" name="${name%%=*}"
        if [ "$name" = "$flag" ]; then continue; fi
        case "--${name//-/_}" in --model_name_or_path | --data_path | --corrective_data | --replay_data | --config) return 0 ;; esac
    done
    return 1
}
