#!/usr/bin/env bash
# LoRA on one GPU, or on the CPU, without DeepSpeed.
#   bash scripts/finetune_lora_single_gpu.sh --model_name_or_path Qwen/Qwen-VL-Chat --data_path data.json --output_dir out
# Flags are those of finetune.py and win over the defaults here.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
set_up
look_at_machine

usual_flags 1 8
launch plain "${FLAGS[@]}" --use_lora True --given "$@"
