#!/usr/bin/env bash
# accelerate 1.15.0: FSDP2 that is asked for on the CPU becomes DDP, without an error or a warning.
#
# PyTorch's fully_shard runs on the CPU over gloo, and whoever tries a sharded fit on a laptop or in
# CI asks for it as on GPUs: Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(
# fsdp_version=2)). The plugin is dropped from the state, prepare() wraps the model in
# DistributedDataParallel, and every process holds all weights, gradients and optimizer state: a test
# that is to show that a loss or a checkpoint works when weights are sharded shows it of whole ones.
# fully_shard called by hand on the same model, in the same process group, does shard it.
#
# Ends with 0 while accelerate does so and fully_shard shards, and with 1 when either differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet accelerate==1.15.0
cd "$folder"
RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29581 \
  "$folder/env/bin/python" - <<'PY'
import sys
import warnings

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    wrapped, _ = accelerator.prepare(model, optimizer)
by_hand = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
fully_shard(by_hand, mesh=mesh)

about_it = [str(w.message) for w in told if "fsdp" in str(w.message).lower()]
print("asked for FSDP2; distributed type:", accelerator.distributed_type)
print("plugin in the state:", getattr(accelerator.state, "fsdp_plugin", None))
print("prepared model:", type(wrapped).__name__)
print("warnings that name FSDP:", about_it)
shards = all(isinstance(p, DTensor) for p in by_hand.parameters())
print("fully_shard by hand:", isinstance(by_hand, FSDPModule), "parameters are DTensors:", shards)
as_found = (
    type(wrapped) is torch.nn.parallel.DistributedDataParallel
    and getattr(accelerator.state, "fsdp_plugin", None) is None
    and not about_it
    and shards
)
torch.distributed.destroy_process_group()
sys.exit(not as_found)
PY
