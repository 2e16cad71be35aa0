#!/usr/bin/env bash
# Full fine-tuning with DeepSpeed ZeRO-3, on every GPU or on the CPU.
#   bash scripts/finetune_ds.sh --model_name_or_path Qwen/Qwen-VL-Chat --data_path data.json --output_dir out
# Flags are those of finetune.py and win over the defaults here. GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT
# say where it runs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
set_up
look_at_machine

usual_flags 1 16
launch deepspeed "${FLAGS[@]}" --deepspeed "$ROOT/ds_config_zero3.json" --given "$@"
