"""Steps of processes with parts of parameters: placements, few bits, 16-bit parameters, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optgen_optim
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import optgen
from distributed.scenarios.world import (
    Scenario,
    Scenarios,
    World,
    check_strides,
    distribute_tensor,
    gradients,
    starts,
    train_parts,
    train_plain,
    whole,
)

STEPS = 4

# Sums in float64 differ by the order of their terms alone, which moves a float32 number that follows from them by one
# unit of its last place at most: the rate, the clipping, a factor each of row, column and matrix, a ratio of norms, and
# what percentile clipping multiplies by. The change of a parameter is no larger than the largest number on the way, and
# is off by as many units; the parameter itself is rounded once more. What earlier steps leave is counted a step each.
UNITS = 8.0

# Uneven ones, one with empty parts, a vector, one of four dimensions.
SHAPES = [(10, 7), (3, 5), (9,), (6, 4, 3, 3)]

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("AdamW", {"lr": 1e-2}),
    "adamw_clipped": ("AdamW", {"lr": 1e-2, "max_grad_norm": 1.0, "percentile_clipping": 50}),
    "lamb": ("LAMB", {"lr": 1e-2, "weight_decay": 1e-2}),
    "lars": ("LARS", {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-2}),
    "adafactor": ("Adafactor", {"beta1": 0.9}),
    "stable_adamw": ("StableAdamW", {"lr": 1e-2}),
}


def maker(name: str, **more: Any) -> Callable[[Any], Any]:
    """Maker of a case's optimizers."""
    cls, settings = CLASSES[name]
    return lambda params: getattr(optgen_optim, cls)(params, **{**settings, **more})


def furthest(results: list[Tensor], wanted: list[Tensor], begin: list[Tensor], steps: int = STEPS) -> float:
    """The largest difference, in units of float32's last place at the largest number on the way, a step; see UNITS."""
    worst = 0.0
    for a, b, c in zip(results, wanted, begin, strict=True):
        assert a.shape == b.shape
        scale = max(b.abs().max().item(), c.abs().max().item()) * 2.0**-23 * steps
        worst = max(worst, (a - b).abs().max().item() / scale)
    assert worst <= UNITS, worst
    return worst


def equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Bit for bit."""
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b), (a - b).abs().max()


def last(shape: tuple[int, ...]) -> Shard:
    """A tensor's last dimension divided."""
    return Shard(max(len(shape) - 1, 0))


DIVIDED: dict[str, tuple[tuple[int, ...], Callable[[tuple[int, ...]], list[Any]]]] = {
    "rows": ((), lambda shape: [Shard(0)]),
    "columns": ((), lambda shape: [last(shape)]),
    "both": ((2, 2), lambda shape: [Shard(0), last(shape)]),
    "replicated": ((2, 2), lambda shape: [Replicate(), Shard(0)]),
}


def against_one(world: World, case: str, kind: str, target: str) -> float:
    """Every parameter divided in the same way; returned is how far it is from one process, see `furthest`."""
    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)
    make = maker(case, target=target)
    shape, placed = DIVIDED[kind]
    results, optimizer = train_parts(make, begin, grads, world.mesh(*shape), [placed(own) for own in SHAPES])
    assert optimizer.engines() == {target: len(SHAPES)}, optimizer.engines()
    return furthest(results, train_plain(make, begin, grads), begin)


# States in few bits


def blocks_that_fit(world: World, bits: int) -> float:
    """Rows of whole blocks: parts have the very codes and scales of the whole tensor."""
    shapes = [(10, 256), (3, 512)]
    begin, grads = starts(shapes), gradients(shapes, STEPS)
    make = maker("lamb", target="cpu", optim_bits=bits, min_8bit_size=0, block_wise=True)
    results, optimizer = train_parts(make, begin, grads, world.mesh(), [[Shard(0)] for _ in shapes])
    assert all(entry["exp_avg"].dtype is torch.uint8 for entry in optimizer.state.values())
    return furthest(results, train_plain(make, begin, grads), begin)


def blocks_of_parts(world: World, target: str, bits: int, columns: bool = False) -> float:
    """Blocks begin with the part: of a rule of elements, each part is what one process makes of it alone."""
    shapes = [(10, 70), (3, 50), (9,), (6, 4, 5, 3)]
    begin, grads = starts(shapes), gradients(shapes, STEPS)
    make = maker("adamw", target=target, min_8bit_size=0, optim_bits=bits)
    placed = [[last(shape) if columns else Shard(0)] for shape in shapes]

    def own(values: list[Tensor]) -> list[Tensor]:
        pairs = zip(values, placed, strict=True)
        return [distribute_tensor(value, world.mesh(), place).to_local().clone() for value, place in pairs]

    results, _ = train_parts(make, begin, grads, world.mesh(), placed)
    begin, results, grads = own(begin), own(results), [own(step) for step in grads]
    # A part of one element is too few for 4 bits, which a tensor that is no part is then not stored in.
    alone = [i for i, value in enumerate(begin) if value.numel() > 1]
    wanted = train_plain(make, [begin[i] for i in alone], [[step[i] for i in alone] for step in grads])
    equal([results[i] for i in alone], wanted)
    return float(len(alone))


def quantized_by_whole_size(world: World) -> None:
    """min_8bit_size counts the elements of the whole tensor."""
    mesh = world.mesh()
    large, small = (nn.Parameter(distribute_tensor(torch.ones(n, 64), mesh, [Shard(0)])) for n in (64, 63))
    optimizer = maker("adamw", optim_bits=8)([large, small])
    for param in (large, small):
        param.grad = distribute_tensor(torch.ones(param.shape), mesh, [Shard(0)])
    optimizer.step()
    assert optimizer.state[large]["exp_avg"].dtype is torch.uint8
    assert optimizer.state[small]["exp_avg"].dtype is torch.float32
    assert optimizer.state[large]["exp_avg"].shape == large.to_local().shape


def rows_and_columns(world: World) -> None:
    """Every process keeps the states of all rows and columns of a matrix that it has a part of."""
    for placed in (Shard(0), Shard(1)):
        param = nn.Parameter(distribute_tensor(torch.ones(10, 7), world.mesh(), [placed]))
        param.grad = distribute_tensor(torch.ones(10, 7), world.mesh(), [placed])
        optimizer = maker("adafactor")([param])
        optimizer.step()
        entry = optimizer.state[param]
        assert (entry["exp_avg_sq_row"].shape, entry["exp_avg_sq_col"].shape) == ((10,), (7,))


def one_scale(world: World) -> None:
    """One scale for the tensor: the largest magnitude of all parts."""
    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)
    make = maker("adamw", target="cpu", optim_bits=8, min_8bit_size=0, block_wise=False)
    results, _ = train_parts(make, begin, grads, world.mesh(), [[Shard(0)] for _ in SHAPES])
    equal(results, train_plain(make, begin, grads))


# 16-bit parameters


def rounding(world: World, how: str, target: str, columns: bool = False) -> None:
    """Parameters are rounded as those of one process; random numbers follow from elements' places in the whole."""
    begin, grads = starts(SHAPES, torch.bfloat16), gradients(SHAPES, STEPS, torch.bfloat16)
    make = maker("adamw", target=target, rounding=how, **({"seed": 3} if how == "stochastic" else {}))
    placed = [[last(shape) if columns else Shard(0)] for shape in SHAPES]
    results, optimizer = train_parts(make, begin, grads, world.mesh(), placed)
    assert optimizer.engines() == {target: len(SHAPES)}, optimizer.engines()
    equal(results, train_plain(make, begin, grads))


# What is refused, and what processes must agree about


def begun(params: list[Tensor]) -> Any:
    """An optimizer with a state that begins with a norm."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "begun.yaml"
        path.write_text(
            "name: begun\nstates:\n  size: {shape: tensor, init: norm(grad)}\n"
            "blocks:\n  step: |\n    param = param - size * grad\n"
        )
        return optgen.load(path).Begun(params, target="torch")


CHANNELS = """
name: channels
hyperparameters: {lr: 0.1}
states:
  average: {}
  channel: {shape: channel, when: ndim >= 2}
  most: {shape: row, when: ndim >= 2}
blocks:
  step: |
    average = 0.5 * average + grad
    update = average
    if ndim >= 2:
        channel = 0.5 * channel + norm(grad, over=channel)
        most = max(most, max(grad, over=row))
        update = average / (1 + channel) + most * mean(average * channel, over=channel) + min(param, over=col)
    param = param - lr * update
"""
ONE_DIMENSION = """
name: one_dimension
states: {most: {shape: last, when: ndim >= 2}}
blocks:
  step: |
    if ndim >= 2:
        most = max(most, absmax(grad, over=last))
        param = param - 0.1 * grad / most
"""


SOME_STEPS = """
name: some_steps
hyperparameters:
  lr: 0.1
  rates: {default: [0.5, 0.9], names: [fast, slow], range: "[0, 1)", doc: Decay rates.}
states:
  momentum: {count: rates}
  kept: {init: param, codecs: [fp32]}
  usual: {shape: group}
blocks:
  step: |
    length = norm(grad, over=group)
    usual = 0.5 * usual + length
    update = 0 * grad
    for rate, average in zip(rates, momentum):
        average = rate * average + (1 - rate) * grad
        update = update + average / (1 + norm(average))
    param = param - lr * update * usual / (1 + length)
    if every(2):
        kept = kept + 0.5 * (param - kept)
        param = kept
    if step % 3 == 1:
        param = param / (1 + absmax(param, over=group))
"""


def written(text: str, params: Iterable[Any], target: str) -> Any:
    """An optimizer of the one class of a spec."""
    with TemporaryDirectory() as folder:
        name = text.split()[1]
        path = Path(folder) / f"{name}.yaml"
        path.write_text(text)
        cls = getattr(optgen.load(path), "".join(part.capitalize() for part in name.split("_")))
        return cls(list(params), target=target)


def channels(world: World, target: str) -> float:
    """Channels of a convolution divided along them, maxima of rows and columns that are divided."""
    shapes = [(10, 7), (6, 5), (7, 4, 3, 3), (3, 4, 5)]
    begin, grads = starts(shapes), gradients(shapes, STEPS)
    make = partial(written, CHANNELS, target=target)
    placed = [[Shard(0)], [Shard(1)], [Shard(0)], [Shard(2)]]
    results, optimizer = train_parts(make, begin, grads, world.mesh(), placed)
    assert optimizer.engines() == {target: len(shapes)}, optimizer.engines()
    return furthest(results, train_plain(make, begin, grads), begin)


def some_steps(world: World, target: str) -> float:
    """Some steps only, a vector of states, and sums over each of two groups."""
    begin, grads = starts(SHAPES), gradients(SHAPES, STEPS)

    def make(params: list[Tensor]) -> Any:
        groups = [{"params": params[1:3]}, {"params": [params[0], params[3]], "lr": 0.3}]
        return written(SOME_STEPS, groups, target)

    results, optimizer = train_parts(make, begin, grads, world.mesh(), [[Shard(0)] for _ in SHAPES])
    assert optimizer.engines() == {target: len(SHAPES)}, optimizer.engines()
    return furthest(results, train_plain(make, begin, grads), begin)


def refusals(world: World) -> None:
    """Refusals of all that cannot be had of parts; they change nothing."""
    mesh = world.mesh()
    begin, grad = torch.ones(8, 8), torch.ones(8, 8)

    def fails(param: DTensor, make: Callable[[Any], Any], words: str) -> None:
        before = param.to_local().clone()
        try:
            make([param]).step()
        except (ValueError, RuntimeError) as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")
        assert torch.equal(param.to_local(), before)

    param = nn.Parameter(distribute_tensor(begin, mesh, [Shard(0)]))
    param.grad = distribute_tensor(grad, mesh, [Shard(0)])
    fails(param, maker("adamw", target="torch", optim_bits=8, min_8bit_size=0, block_wise=False), "one scale")
    fails(param, maker("adamw", capturable=True), "that is divided among processes; leave it out")
    param = nn.Parameter(distribute_tensor(begin.bfloat16(), mesh, [Shard(1)]))
    param.grad = distribute_tensor(grad.bfloat16(), mesh, [Shard(1)])
    fails(param, maker("adamw", target="cpu", rounding="stochastic"), "leave target out")
    maker("adamw", rounding="stochastic")([param]).step()
    fails(param, begun, "state 'size' begins with a reduction")
    for text, dim, words in ((ONE_DIMENSION, 0, "along one of its last two"), (CHANNELS, 1, "divide it along another")):
        param = nn.Parameter(distribute_tensor(torch.ones(4, 4, 2, 2), mesh, [Shard(dim)]))
        param.grad = distribute_tensor(torch.ones(4, 4, 2, 2), mesh, [Shard(dim)])
        fails(param, partial(written, text, target="torch"), words)
    param = nn.Parameter(DTensor.from_local(begin, mesh, [Partial()]))
    param.grad = DTensor.from_local(grad, mesh, [Partial()])
    fails(param, maker("adamw"), "has no values of its own")


def strided_unevenly(world: World, case: str, target: str) -> float:
    """FSDP2 over tensor parallelism, whose dimension is no multiple of the processes: parts of parts, in strides."""
    mesh = world.mesh(2, 2)
    shapes = [(7, 6), (3, 5), (10, 7)]
    begin, grads = starts(shapes), gradients(shapes, STEPS)
    model = nn.Module()
    model.values = nn.ParameterList(distribute_tensor(value, mesh["tensor"], [Shard(0)]) for value in begin)
    fully_shard(model, mesh=mesh["data"])
    params = list(model.parameters())
    check_strides(params, begin)
    optimizer = maker(case, target=target)(params)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            everywhere = distribute_tensor(grad, mesh, [Replicate(), Replicate()])
            param.grad = everywhere.redistribute(placements=param.placements)
        optimizer.step()
    return furthest([whole(param) for param in params], train_plain(maker(case), begin, grads), begin)


def different_steps(world: World) -> None:
    """Processes with gradients for different parameters, or for none: all of them say so, and nothing changes."""
    mesh = world.mesh()
    grad = distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)])
    for own in ([world.rank % 2], [0, 1][: world.rank + 1], [0, 1][: world.rank]):
        params = [nn.Parameter(distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)])) for _ in range(2)]
        optimizer = maker("lamb")(params)
        for i in own:
            params[i].grad = grad.clone()
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "took different steps" in str(error), error
        else:
            raise AssertionError("not noticed")
        equal([param.to_local() for param in params], [torch.ones(8 // world.size, 4)] * 2)
        for param in params:
            param.grad = grad.clone()
        optimizer.step()  # together they go on


def other_placement(world: World) -> float:
    """A gradient that lies otherwise than its parameter is brought there."""
    begin, grads = starts([(6, 4)]), gradients([(6, 4)], 1)
    param = nn.Parameter(distribute_tensor(begin[0], world.mesh(), [Shard(0)]))
    param.grad = distribute_tensor(grads[0][0], world.mesh(), [Shard(1)])
    maker("lamb")([param]).step()
    return furthest([whole(param)], train_plain(maker("lamb"), begin, grads), begin)


def other_part(world: World) -> None:
    """A gradient of the parameter's shape of which a process has more than of the parameter is refused in words."""
    param = nn.Parameter(distribute_tensor(torch.ones(8, 4), world.mesh(), [Shard(0)]))
    more = torch.ones(8 // world.size + 1, 4)
    param.grad = DTensor.from_local(more, world.mesh(), [Shard(0)], shape=param.shape, stride=param.stride())
    for target in ("cpu", "torch"):
        try:
            maker("adamw", target=target)([param]).step()
        except ValueError as error:
            assert f"has {tuple(more.shape)} of a gradient and {(8 // world.size, 4)} of its parameter" in str(error)
        else:
            raise AssertionError("not noticed")
    assert torch.equal(whole(param), torch.ones(8, 4))


def scaled(world: World) -> None:
    """torch.amp.GradScaler: an Inf that one process has skips the step on all of them."""
    for infinite in (False, True):
        param = nn.Parameter(distribute_tensor(torch.ones(8, 4), world.mesh(), [Shard(0)]))
        optimizer = maker("lamb")([param])
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        scaler.scale((param * param).sum().full_tensor()).backward()
        assert torch.equal(whole(param.grad), torch.full((8, 4), 128.0))
        if infinite and world.rank == 0:
            param.grad.to_local()[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert bool((whole(param) == 1.0).all()) == infinite
        assert scaler.get_scale() == (32.0 if infinite else 64.0)


def _matrix(*kinds: str) -> dict[str, Scenario]:
    return {
        f"{case}, {kind}, {target}": Scenario(
            partial(against_one, case=case, kind=kind, target=target),
            # Torch's engine has nothing to add up for AdamW, and for LARS what it has for LAMB.
            full=target == "torch" and case in ("adamw", "lars") and kind != "columns",
        )
        for case in CLASSES
        for kind in kinds
        for target in ("torch", "cpu")
    }


SCENARIOS: Scenarios = {
    2: {
        **_matrix("columns"),
        "refusals": Scenario(refusals),
        "channels, torch": Scenario(partial(channels, target="torch")),
        "channels, cpu": Scenario(partial(channels, target="cpu")),
        "some steps, torch": Scenario(partial(some_steps, target="torch")),
        "some steps, cpu": Scenario(partial(some_steps, target="cpu")),
        "other placement": Scenario(other_placement),
        "other part": Scenario(other_part),
        "different steps": Scenario(different_steps),
        "scaled": Scenario(scaled),
    },
    4: {
        **_matrix("rows", "columns", "both", "replicated"),
        "blocks that fit, 8 bits": Scenario(partial(blocks_that_fit, bits=8)),
        "blocks that fit, 4 bits": Scenario(partial(blocks_that_fit, bits=4)),
        "blocks of parts, 8 bits": Scenario(partial(blocks_of_parts, target="cpu", bits=8)),
        "blocks of parts, 4 bits": Scenario(partial(blocks_of_parts, target="cpu", bits=4)),
        "blocks of parts, 8 bits, torch": Scenario(partial(blocks_of_parts, target="torch", bits=8, columns=True)),
        "blocks of parts, 4 bits, torch": Scenario(partial(blocks_of_parts, target="torch", bits=4)),
        "quantized by whole size": Scenario(quantized_by_whole_size),
        "rows and columns": Scenario(rows_and_columns),
        "one scale": Scenario(one_scale),
        "stochastic, cpu": Scenario(partial(rounding, how="stochastic", target="cpu")),
        "stochastic, torch": Scenario(partial(rounding, how="stochastic", target="torch")),
        "stochastic, torch, columns": Scenario(partial(rounding, how="stochastic", target="torch", columns=True)),
        "kahan, cpu, columns": Scenario(partial(rounding, how="kahan", target="cpu", columns=True)),
        "split8, torch": Scenario(partial(rounding, how="split8", target="torch")),
        **{
            f"strided unevenly, {case}, {target}": Scenario(partial(strided_unevenly, case=case, target=target))
            for case, target in (
                ("adafactor", "cpu"),
                ("adafactor", "torch"),
                ("lamb", "cpu"),
                ("adamw_clipped", "cpu"),
            )
        },
    },
}
