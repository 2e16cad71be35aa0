# The first command in a container: the demo, or your own model with flags behind it.
#   docker build -t attention-finetune .                                                    on any machine
#   docker build -t attention-finetune --build-arg TORCH_INDEX=ADDRESS .      torch from another index: its CPU wheels are a
#                                                                             tenth of those with CUDA
#   docker run --rm -v "$PWD:/work" attention-finetune
#   docker run --rm --gpus all -v "$PWD:/work" attention-finetune --model_name_or_path Qwen/Qwen2.5-VL-7B-Instruct \
#       --data_path data.json --output_dir output_towers
# The working directory is /work: what is mounted there is read and written as if nothing were between.
FROM python:3.11-slim-bookworm

# DeepSpeed compiles its communication on a CPU, and its kernels on a GPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git g++ \
    && rm -rf /var/lib/apt/lists/*

# Empty: torch with CUDA, which runs on a CPU too.
ARG TORCH_INDEX=
ENV PIP_EXTRA_INDEX_URL=${TORCH_INDEX} \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/work/.cache/huggingface

WORKDIR /app
# Packages alone first: a change of the code does not install them again.
COPY requirements.txt ./
COPY scripts ./scripts
RUN bash -c 'set -euo pipefail; source scripts/setup.sh; set_up'
COPY . .

WORKDIR /work
ENTRYPOINT ["bash", "/app/scripts/finetune_lora_ds.sh"]
