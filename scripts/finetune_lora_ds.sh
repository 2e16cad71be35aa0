#!/usr/bin/env bash
# LoRA with DeepSpeed ZeRO-2, on every GPU or on the CPU. Without flags: the embedded demo.
#   bash scripts/finetune_lora_ds.sh
#   bash scripts/finetune_lora_ds.sh --model_name_or_path Qwen/Qwen-VL-Chat --data_path data.json --output_dir out
# Flags are those of finetune.py and win over the defaults here. GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT
# say where it runs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
set_up
look_at_machine

FLAGS=()
if names_model_or_data "$@"; then
    usual_flags 2 8
    FLAGS+=(--use_lora True)
fi
launch deepspeed "${FLAGS[@]}" --deepspeed "$ROOT/ds_config_zero2.json" --given "$@"
