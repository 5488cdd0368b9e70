"""A small transformer on every process's share of a text, its parameters and states divided by fully_shard.

    torchrun --nproc-per-node 2 examples/train_fsdp2.py --steps 20 --checkpoint /tmp/run
    torchrun --nproc-per-node 4 examples/train_fsdp2.py --steps 40 --checkpoint /tmp/run    # goes on from step 20

It runs on CPUs, and on GPUs where there is one for every process.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import optgen_optim
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

TEXT = Path(__file__).read_bytes()  # a byte is a token
CONTEXT = 64


class Model(nn.Module):
    """A transformer that predicts the next byte."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, length); logits: (batch, length, 256)."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        result: Tensor = self.head(x)
        return result


def batch(step: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """This process's share of a step's batch: the same whenever the step is taken."""
    source = torch.Generator().manual_seed(1000 * step + rank)
    begins = torch.randint(len(TEXT) - CONTEXT - 1, (8,), generator=source)
    pieces = torch.stack([torch.tensor(list(TEXT[i : i + CONTEXT + 1])) for i in begins.tolist()]).to(device)
    return pieces[:, :-1], pieces[:, 1:]


def main() -> None:
    """Train, save, and go on from what was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="AdamW8bit", help="a class of optgen_optim")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, help="a folder to go on from, and to save to")
    args = parser.parse_args()

    gpu = torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)

    torch.manual_seed(0)
    model: Any = Model().to(device)
    mesh = init_device_mesh(device.type, (size,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = getattr(optgen_optim, args.optimizer)(model.parameters(), lr=args.lr, max_grad_norm=1.0)

    first = 0
    if args.checkpoint is not None and (args.checkpoint / ".metadata").exists():
        states, optimizer_states = get_state_dict(model, optimizer)
        saved = {"model": states, "optimizer": optimizer_states, "step": 0}
        dcp.load(saved, checkpoint_id=args.checkpoint)
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        first = int(saved["step"])

    for step in range(first, args.steps):
        tokens, following = batch(step, rank, device)
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dist.all_reduce(loss.detach_(), dist.ReduceOp.SUM)
        if rank == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {loss.item() / size:.3f}", flush=True)

    if args.checkpoint is not None:
        states, optimizer_states = get_state_dict(model, optimizer)
        dcp.save({"model": states, "optimizer": optimizer_states, "step": args.steps}, checkpoint_id=args.checkpoint)
    if rank == 0:
        print(f"{args.optimizer}: {optimizer.state_bytes()} bytes of states on each of {size} processes")
    dist.barrier()  # none ends while another still takes part in what came before
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
