"""Two layers divided among processes, columns of the one and rows of the other, trained by LAMB with 8-bit states.

    torchrun --nproc-per-node 2 examples/train_tensor_parallel.py

The norms of LAMB's trust ratios are those of whole layers, whatever part of them a process has: every number of
processes prints the same losses.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from optgen_optim import LAMB
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def main() -> None:
    """Fit a function of two numbers."""
    dist.init_process_group("gloo")
    size = int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 512), nn.Tanh(), nn.Linear(512, 1))
    parallelize_module(model, init_device_mesh("cpu", (size,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = LAMB(model.parameters(), lr=1e-2, optim_bits=8, block_wise=False, min_8bit_size=1024)
    x = torch.rand(256, 2) * 2 - 1
    y = (3 * x[:, :1] * x[:, 1:]).sin()
    for step in range(100):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 25 == 0 and dist.get_rank() == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    dist.barrier()  # none ends while another still takes part in what came before
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
