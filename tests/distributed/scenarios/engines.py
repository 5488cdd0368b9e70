"""Models under PyTorch's own engines (DDP, FSDP2, tensor parallelism, FSDP1, ZeRO), to be held against one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

import optgen_optim
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from distributed.scenarios.parts import CLASSES, equal, furthest, maker
from distributed.scenarios.world import Scenario, Scenarios, World, train_plain, whole
from optgen.runtime.step import fsdp1 as fsdp1_modules

STEPS = 3


class Net(nn.Module):
    """Two layers and a vector whose sizes no number of processes divides."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 20), nn.Linear(20, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 6)."""
        result: Tensor = self.down(torch.tanh(self.up(x))) * self.scale
        return result


def net() -> Net:
    """The same one on every process."""
    torch.manual_seed(5)
    return Net()


def batches() -> list[tuple[Tensor, Tensor]]:
    """Inputs and wanted outputs of a step each, the same on every process."""
    source = torch.Generator().manual_seed(11)
    return [(torch.randn(8, 6, generator=source), torch.randn(8, 3, generator=source)) for _ in range(STEPS)]


Read = Callable[[], list[Tensor]]


def train(model: nn.Module, optimizer: Any, share: tuple[int, int], grads: Read) -> list[list[Tensor]]:
    """Every process takes its share of each batch; the engine averages gradients over processes.

    Returns the gradients of each step, whole.
    """
    seen = []
    for x, y in batches():
        own = slice(share[0] * len(x) // share[1], (share[0] + 1) * len(x) // share[1])
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[own]), y[own]).backward()
        seen.append(grads())
        optimizer.step()
    return seen


def compared(make: Callable[[Any], Any], model: nn.Module, share: tuple[int, int], optimizer: Any = None) -> float:
    """Train, and give the gradients that the engine made to one process: how far apart they come, see `furthest`."""
    params = list(model.parameters())
    optimizer = make(params) if optimizer is None else optimizer
    begin = [param.detach() for param in net().parameters()]
    seen = train(model, optimizer, share, lambda: [whole(param.grad) for param in params])
    found = [whole(param) for param in params]
    assert not any(torch.equal(a, b) for a, b in zip(found, begin, strict=True)), "something has not trained"
    return furthest(found, train_plain(make, begin, seen), begin, STEPS)


def ddp(world: World, case: str, target: str) -> float:
    """DistributedDataParallel: every process has everything."""
    model = DistributedDataParallel(net())
    return compared(maker(case, target=target), model, (world.rank, world.size))


def zero(world: World, case: str, target: str) -> float:
    """ZeroRedundancyOptimizer over DDP: every process has some parameters, whole ones."""
    make = maker(case, target=target)
    model = DistributedDataParallel(net())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), lambda params, **_: make(params))
    return compared(make, model, (world.rank, world.size), optimizer)


def zero_at_random(world: World) -> None:
    """Stochastic rounding inside ZeroRedundancyOptimizer draws by positions among a process's own parameters."""
    make = maker("adamw", rounding="stochastic", seed=3)
    begin = [torch.ones(40, 40, dtype=torch.bfloat16) for _ in range(2)]
    params = [nn.Parameter(value.clone()) for value in begin]
    optimizer = ZeroRedundancyOptimizer(params, lambda own, **_: make(own))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    wanted = train_plain(make, begin, [[torch.ones_like(value) for value in begin]])
    equal([params[0].detach()], wanted[:1])
    assert not torch.equal(params[1], wanted[1])
    alone = train_plain(make, begin[1:], [[torch.ones_like(begin[1])]])
    equal([params[1].detach()], alone)


def _fully_sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp2(world: World, case: str, target: str, mesh: tuple[int, ...] = ()) -> float:
    """fully_shard; over a mesh of two dimensions hybrid: sharded over the second, replicated over the first."""
    model = _fully_sharded(net(), world.mesh(*mesh))
    return compared(maker(case, target=target), model, (world.rank, world.size))


def _tensor_parallel(model: Net, mesh: DeviceMesh) -> None:
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def tensor_parallel(world: World, case: str, target: str) -> float:
    """A mesh whose processes have columns of one layer and rows of the next, and the same batch."""
    model = net()
    _tensor_parallel(model, world.mesh())
    return compared(maker(case, target=target), model, (0, 1))


def fsdp2_of_tensor_parallel(world: World, case: str, target: str) -> float:
    """Both: layers divided among the processes of a row of the mesh, and what they have among those of a column."""
    mesh = world.mesh(2, world.size // 2)
    model = net()
    _tensor_parallel(model, mesh["tensor"])
    _fully_sharded(model, mesh["data"])
    return compared(maker(case, target=target), model, (mesh.get_local_rank("data"), 2))


def fsdp1(world: World, case: str, target: str) -> float:
    """FullyShardedDataParallel with the model's own parameters."""
    make = maker(case, target=target)
    model = FSDP(net(), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = make(model.parameters())

    def grads() -> list[Tensor]:
        with FSDP.summon_full_params(model, with_grads=True):
            return [param.grad.clone() for param in model.parameters()]

    seen = train(model, optimizer, (world.rank, world.size), grads)
    with FSDP.summon_full_params(model):
        found = [param.detach().clone() for param in model.parameters()]
    begin = [param.detach() for param in net().parameters()]
    return furthest(found, train_plain(make, begin, seen), begin, STEPS)


class Large(nn.Module):
    """A tensor of 4096 elements, the least that is quantized unless `min_8bit_size` says otherwise, among smaller ones.

    On two and on four processes each stretch of it has fewer elements, and each process more than that in all.
    """

    def __init__(self) -> None:
        super().__init__()
        shapes = [(4095,), (4095,), (64, 64), (4095,), (4095,)]
        self.values = nn.ParameterList(torch.ones(shape) for shape in shapes)

    def forward(self) -> Tensor:
        """Their sum."""
        return torch.stack([value.sum() for value in self.values]).sum()


def fsdp1_quantized_by_whole_size(world: World) -> None:
    """min_8bit_size counts the elements of the whole tensor, not those of a stretch, nor of all that a process has."""
    model = FSDP(Large(), use_orig_params=True, device_id=torch.device("cpu"))
    params = list(model.parameters())
    optimizer = optgen_optim.AdamW8bit(params)
    model().backward()
    optimizer.step()
    large = params.pop(2)
    assert large.numel() == (0 if world.size == 4 and world.rank in (0, 3) else 2048)
    assert sum(param.numel() for param in params) + large.numel() > 4096
    assert optimizer.param_groups[0]["min_8bit_size"] == 4096
    for param, dtype in ((large, torch.uint8), *((param, torch.float32) for param in params)):
        for name in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[param][name]
            assert (state.dtype, state.numel()) == (dtype, param.numel())
    # Where one more is asked for, none is quantized.
    again = optgen_optim.AdamW8bit([large, *params], min_8bit_size=4097)
    again.step()
    assert all(again.state[param]["exp_avg"].dtype is torch.float32 for param in (large, *params))


def fsdp1_at_random(world: World, target: str) -> None:
    """Stochastic rounding of flat stretches: an element draws what it draws in one process."""
    make = maker("adamw", target=target, rounding="stochastic", seed=3)
    model = FSDP(net().bfloat16(), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = make(model.parameters())
    seen = []
    for step in range(STEPS):
        model(torch.ones(2, 6, dtype=torch.bfloat16) * (step + 1)).sum().backward()
        with FSDP.summon_full_params(model, with_grads=True):
            seen.append([param.grad.clone() for param in model.parameters()])
        optimizer.step()
        optimizer.zero_grad()
    with FSDP.summon_full_params(model):
        found = [param.detach().clone() for param in model.parameters()]
    wanted = train_plain(make, [param.detach() for param in net().bfloat16().parameters()], seen)
    equal(found, wanted)


def fsdp1_flat(world: World) -> float:
    """FullyShardedDataParallel with flat parameters: rules of elements, and sums over all parameters."""
    make = maker("adamw", max_grad_norm=0.1)
    model = FSDP(net(), device_id=torch.device("cpu"))
    (flat,) = model.parameters()

    def everywhere(own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(world.size)]
        dist.all_gather(parts, own.detach())
        return torch.cat(parts)

    begin = everywhere(flat)
    seen = train(model, make(model.parameters()), (world.rank, world.size), lambda: [everywhere(flat.grad)])
    return furthest([everywhere(flat)], train_plain(make, [begin], seen), [begin], STEPS)


def refusals(world: World) -> None:
    """Refusals of all that these engines leave no way to compute, with the reason, on every process."""

    def fails(model: nn.Module, optimizer: Any, words: str) -> None:
        (x, y), *_ = batches()
        nn.functional.mse_loss(model(x), y).backward()
        before = [param.detach().clone() for param in model.parameters()]
        try:
            optimizer.step()
        except (ValueError, RuntimeError) as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    def fsdp1_model(use_orig_params: bool) -> nn.Module:
        return FSDP(net(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))

    model = fsdp1_model(use_orig_params=True)
    fails(model, maker("adafactor")(model.parameters()), "flat shards, which have no rows and columns")
    model = fsdp1_model(use_orig_params=False)
    fails(model, maker("lamb")(model.parameters()), "use_orig_params=True")
    fails(model, optgen_optim.GrokAdamW(model.parameters()), "use_orig_params=True")
    model = fsdp1_model(use_orig_params=True)
    known, fsdp1_modules._MODULES = fsdp1_modules._MODULES, WeakSet()  # as if it had been wrapped before the import
    fails(model, maker("adamw")(model.parameters()), "import AdamW before the model is wrapped")
    fsdp1_modules._MODULES = known
    for make, words in (
        (maker("adamw", max_grad_norm=1.0), "sums over all parameters"),
        (optgen_optim.Prodigy, "sums over all parameters"),
        (optgen_optim.GrokAdamW, "depends on the position"),
    ):
        model = DistributedDataParallel(net())
        fails(model, ZeroRedundancyOptimizer(model.parameters(), lambda p, make=make, **_: make(p)), words)


def _cases(
    names: str, run: Callable[..., float], targets: tuple[str, ...] = ("cpu",), full: bool = False, **more: Any
) -> dict[str, Scenario]:
    chosen = list(CLASSES) if not names else names.split()
    return {
        f"{run.__name__}{' hybrid' if more else ''}, {case}, {target}": Scenario(
            partial(run, case=case, target=target, **more), full=full
        )
        for case in chosen
        for target in targets
    }


# precisions.py has every rule under every engine, on two and four processes.
SCENARIOS: Scenarios = {
    2: {
        **_cases("adamw_clipped lamb adafactor", ddp),
        **_cases("lamb adafactor", zero),
        **_cases("", fsdp2),
        **_cases("", tensor_parallel),
        **_cases("adamw adamw_clipped lamb lars stable_adamw", fsdp1, ("cpu", "torch")),
        "fsdp1, quantized by whole size": Scenario(fsdp1_quantized_by_whole_size),
        "fsdp1_flat": Scenario(fsdp1_flat),
        "fsdp1_at_random, cpu": Scenario(partial(fsdp1_at_random, target="cpu")),
        "fsdp1_at_random, torch": Scenario(partial(fsdp1_at_random, target="torch")),
        "refusals": Scenario(refusals),
        "zero_at_random": Scenario(zero_at_random),
    },
    4: {
        **_cases("adamw_clipped adafactor", fsdp2),
        **_cases("lamb adafactor", fsdp2, mesh=(2, 2)),
        **_cases("adamw_clipped adafactor", tensor_parallel),
        **_cases("", fsdp2_of_tensor_parallel),
        **_cases("adamw_clipped adafactor", fsdp2_of_tensor_parallel, ("torch",)),
        **_cases("adamw lamb lars stable_adamw", fsdp2_of_tensor_parallel, ("torch",), full=True),
        **_cases("adamw_clipped", fsdp1),
        "fsdp1, quantized by whole size": Scenario(fsdp1_quantized_by_whole_size),
    },
}
