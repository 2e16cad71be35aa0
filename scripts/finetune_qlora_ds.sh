#!/usr/bin/env bash
# LoRA over 4-bit language layers with DeepSpeed ZeRO-2, on every GPU or on the CPU.
#   bash scripts/finetune_qlora_ds.sh --model_name_or_path Qwen/Qwen-VL-Chat --data_path data.json --output_dir out
# Flags are those of finetune.py and win over the defaults here. GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT
# say where it runs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
set_up
look_at_machine

usual_flags 2 8 fp16
launch deepspeed "${FLAGS[@]}" --q_lora True --deepspeed "$ROOT/ds_config_zero2.json" --given "$@"
