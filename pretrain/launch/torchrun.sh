#!/usr/bin/env bash
# Pre-train with a process for each GPU of a machine, on one machine or on several.
#
# One machine, all its GPUs:
#   bash pretrain/launch/torchrun.sh --data DATASET --run RUN --config pretrain/configs/vit_b16.yaml
# Two processes on the CPU:
#   RANKS_PER_NODE=2 bash pretrain/launch/torchrun.sh --data DATASET --run RUN --device cpu
# Four machines, on each the same (MASTER_ADDR is the name or address of any one of them):
#   NODES=4 MASTER_ADDR=node0 bash pretrain/launch/torchrun.sh --data DATASET --run RUN
#
# The exit code is 0 when the run is finished. It is 1 when a process failed, and also after SIGTERM: torchrun passes it
# on, each process saves and ends with 0, and torchrun itself ends with 1. So "start again until it is 0" is the rule for
# whoever restarts it. Send SIGTERM once: after a second one torchrun does not wait for its processes.
set -euo pipefail

nodes=${NODES:-1}
ranks_per_node=${RANKS_PER_NODE:-gpu}
if [ -z "${PYTHON:-}" ]; then
    # The repository's own environment, if it is started there; else whichever is active.
    PYTHON=python
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi

# Torchrun would say so with a traceback. NVIDIA's devices, AMD's, those of Windows' Linux.
if [ "$ranks_per_node" = gpu ] && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null && [ ! -e /dev/kfd ] && [ ! -e /dev/dxg ]; then
    echo "$0: no GPU here: set RANKS_PER_NODE, as to 2 for two processes on the CPU" >&2
    exit 2
fi

# Seconds that torchrun waits for its processes after SIGTERM, then it kills: more than checkpoint.deadline_s. Older
# versions of torch do not read it and wait 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}
# Torchrun would set it, too, and tell at length. pretrain shares out the cores itself, see training/threads.py.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ "$nodes" = 1 ]; then
    meeting=(--standalone)
else
    meeting=(
        --rdzv_backend c10d
        --rdzv_endpoint "${MASTER_ADDR:?name or address of one of the machines}:${MASTER_PORT:-29500}"
        --rdzv_id "${RUN_ID:-pera}"
        # Seconds that a machine waits for the others: one that was taken away may be replaced after long.
        --rdzv_conf "join_timeout=${JOIN_TIMEOUT_S:-3600},read_timeout=${JOIN_TIMEOUT_S:-3600}${IS_HOST:+,is_host=$IS_HOST}"
    )
fi

# exec: signals are for torchrun. No restarts by torchrun itself: whoever started this starts it again.
exec "$PYTHON" -m torch.distributed.run \
    --nnodes "$nodes" --nproc_per_node "$ranks_per_node" --max_restarts 0 "${meeting[@]}" \
    -m -- pretrain "$@" # --: torchrun would take --run for an abbreviation of its own --run-path
