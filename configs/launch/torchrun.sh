#!/usr/bin/env bash
# Several machines with a shared folder. Run on each of them, with the first machine's name as HEAD:
#     HEAD=node1 NODES=2 bash configs/launch/torchrun.sh configs/llama-1b.toml
# After a lost process or machine, torchrun restarts the run (three times at most), which resumes from
# the newest checkpoint. One machine: torchrun --standalone --nproc-per-node gpu -m train.pretrain RECIPE
set -euo pipefail
cd "$(dirname "$0")/../.."
exec .venv/bin/torchrun \
  --nnodes "${NODES:?number of machines}" --nproc-per-node "${GPUS:-gpu}" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:?name of the first machine}:${PORT:-29400}" \
  --rdzv-id "${RUN:-homegrown}" -m train.pretrain "$@"
