#!/usr/bin/env bash
# Several machines that see the same folder. On each of them, with the first one's name as HEAD:
#     HEAD=node1 NODES=2 bash configs/launch/torchrun.sh configs/llama-1b.toml
# A lost process or machine is started again (three times at most) and goes on from the newest
# checkpoint. One machine: torchrun --standalone --nproc-per-node gpu -m train.pretrain RECIPE
set -euo pipefail
cd "$(dirname "$0")/../.."
exec .venv/bin/torchrun \
  --nnodes "${NODES:?how many machines}" --nproc-per-node "${GPUS:-gpu}" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:?name of the first machine}:${PORT:-29400}" \
  --rdzv-id "${RUN:-homegrown}" -m train.pretrain "$@"
