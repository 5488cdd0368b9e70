"""Checkpoints that are kept in tests/runtime/data/checkpoints, for versions to come to load.

    PYTHONPATH=tests python -m runtime.checkpoints.kept FOLDER

writes all of them as the version at hand has them. Those that are kept stay as they are: another codec or form gets
another file.
"""

from __future__ import annotations

import copy
import gzip
import importlib
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optgen_optim
import torch
import torch.distributed as dist
from torch import Tensor, nn

from optgen.runtime.settings.storage import asked_codec
from optgen.runtime.states.torch_codecs import decode

FOLDER = Path(__file__).parents[1] / "data" / "checkpoints"
SHAPES = ((3, 100), (7,))  # the first has two blocks of 256, and 8-bit states; the other has 32-bit ones
SMALL = {"min_8bit_size": 256}
DIVIDED = ((5, 60), (4, 3, 70), (5, 1))  # unevenly among two processes, as their blocks are
STEPS = 2


@dataclass(frozen=True)
class Kept:
    """Content of a kept checkpoint.

    Attributes:
        name: The class.
        library: Library that wrote it, if another.
        settings: Of the class that has written it, and of ours that loads it.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    library: str = ""

    def make(self, params: Sequence[Tensor]) -> Any:
        """An optimizer of ours over these parameters."""
        return getattr(optgen_optim, self.name)(params, target="torch", **self.settings)


CASES: dict[str, Kept] = {
    **{codec: Kept("AdamW", SMALL | {"codec": codec}) for codec in ("fp32", "bf16", "fp16")},
    **{
        f"{codec}-{how}": Kept("AdamW", SMALL | {"codec": codec} | settings)
        for codec in ("int8", "int4", "fp8", "companded8")
        for how, settings in (("blocks", {}), ("64", {"block_size": 64}), ("whole", {"block_wise": False}))
    },
    "paged": Kept("PagedAdamW8bit", SMALL),
    "rows-and-columns": Kept("Adafactor", SMALL | {"optim_bits": 8, "beta1": 0.9, "percentile_clipping": 50}),
    **{
        rounding: Kept("AdamW8bit", SMALL | {"rounding": rounding}, torch.bfloat16)
        for rounding in ("kahan", "split8", "split16")
    },
    "torch": Kept("AdamW", {"lr": 0.01, "amsgrad": True}, library="torch.optim"),
    "bitsandbytes": Kept("AdamW8bit", SMALL | {"lr": 0.01}, library="bitsandbytes.optim"),
    "bitsandbytes-32": Kept("AdamW", {"lr": 0.01}, library="bitsandbytes.optim"),
}
# Of two processes: how parameters are divided, and settings.
SHARDS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{how}-{codec}{name}": (how, {"min_8bit_size": 0, "codec": codec, **settings})
    for how in ("rows", "columns")
    for codec, name, settings in (
        ("int8", "", {}),
        ("int4", "", {}),
        ("fp8", "-64", {"block_size": 64}),
        ("int4", "-whole", {"block_wise": False}),
        ("bf16", "", {}),
    )
}


def params_of(case: Kept) -> list[nn.Parameter]:
    """The same values at every call: whole numbers over 8, which depend on no generator."""
    return [nn.Parameter(value.to(case.dtype)) for value in _values(SHAPES)]


def _values(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    return [(torch.arange(torch.Size(shape).numel()) * 37 % 64 - 32).reshape(shape) / 8 for shape in shapes]


def _gradient(param: Tensor, step: int) -> Tensor:
    numbers = torch.arange(param.numel()) * (2 * step + 11) % 61 - 30
    return numbers.reshape(param.shape) * 2.0 ** (step - 6)


def train(opt: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps `first` to `last`."""
    for step in range(first, last + 1):
        for param in opt.param_groups[0]["params"]:
            param.grad = _gradient(param, step).to(param.dtype)
        opt.step()


def write(case: Kept, file: Path) -> None:
    """Train, and write the checkpoint, the parameters with it, and those after one more step."""
    params = params_of(case)
    if case.library:
        opt = getattr(importlib.import_module(case.library), case.name)(params, **case.settings)
    else:
        opt = case.make(params)
    train(opt, 1, STEPS)
    checkpoint, before = opt.state_dict(), [param.detach().clone() for param in params]
    content = copy.deepcopy({"checkpoint": checkpoint, "before": before})
    train(opt, STEPS + 1, STEPS + 1)
    content["after"] = [param.detach() for param in params]
    with gzip.open(file, "wb") as packed:
        torch.save(content, packed)


def divided(names: Sequence[str] = tuple(SHARDS)) -> dict[str, Any]:
    """Optimizers whose parameters are divided among all processes, by the name of their case."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    result = {}
    for name in names:
        how, settings = SHARDS[name]
        params = []
        for value in _values(DIVIDED):
            placed = [Shard(0 if how == "rows" else value.dim() - 1)]
            params.append(nn.Parameter(distribute_tensor(value, mesh, placed, src_data_rank=None).detach().clone()))
        result[name] = optgen_optim.AdamW(params, **settings)
    return result


def train_divided(opt: Any, first: int, last: int) -> None:
    """Steps `first` to `last`, of gradients that are divided as their parameters."""
    from torch.distributed.tensor import distribute_tensor

    for step in range(first, last + 1):
        for param in opt.param_groups[0]["params"]:
            whole = _gradient(param, step)
            param.grad = distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None)
        opt.step()


def stored_by(optimizers: Mapping[str, Any]) -> dict[str, Any]:
    """The states of each optimizer as torch.distributed.checkpoint takes them."""
    return {
        name: {str(key): entry for key, entry in opt.state_dict()["state"].items()} for name, opt in optimizers.items()
    }


def own_entries(opt: Any) -> list[dict[str, Tensor]]:
    """States that this process has."""
    return [dict(opt.state[param]) for param in opt.param_groups[0]["params"]]


def values_of(opt: Any) -> list[dict[str, Tensor]]:
    """Values of the states, whole and decoded."""
    from torch.distributed.tensor import DTensor

    codec, result = asked_codec(opt.param_groups[0]), []
    for param in opt.param_groups[0]["params"]:
        entry, own, found = opt.state[param], param.to_local().shape, {}
        for state in opt.rule.element_states:
            if state.name in entry:
                value = decode(codec, entry[state.name], entry.get(f"{state.name}_absmax"), state.signed, own)
                shape = {"shape": param.shape, "stride": param.stride()}
                found[state.name] = DTensor.from_local(value, param.device_mesh, param.placements, **shape)
        result.append({name: value.full_tensor() for name, value in found.items()})
    return result


def write_shards(rank: int, folder: Path) -> None:
    """As one of two processes: states by torch.distributed.checkpoint, beside them what each process had."""
    import torch.distributed.checkpoint as dcp

    store = dist.FileStore(str(folder.parent / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    optimizers = divided()
    for opt in optimizers.values():
        train_divided(opt, 1, STEPS)
    dcp.save(stored_by(optimizers), checkpoint_id=folder)
    torch.save({name: own_entries(opt) for name, opt in optimizers.items()}, folder / f"own{rank}.pt")
    values = {name: values_of(opt) for name, opt in optimizers.items()}
    if rank == 0:
        torch.save(values, folder / "values.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    to = Path(sys.argv[1])
    for case_name, each in CASES.items():
        write(each, to / f"{case_name}.pt.gz")
    with tempfile.TemporaryDirectory() as temporary:
        torch.multiprocessing.spawn(write_shards, (Path(temporary) / "shards",), nprocs=2)
        shutil.make_archive(str(to / "shards"), "xztar", temporary, "shards")
