"""The compiled targets against the torch target and against each other, step by step from the same values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from support.catalogue import accepted, make_oracle, optimizer_class, required, rows, rules
from support.machine import require_compiler
from support.targets import GPU, require_standin

from numerics.bounds import assert_few_ulps
from numerics.harness import NAMES, STEPS, Duel, make_grads, make_params, set_grads, targeted
from optgen.runtime.engines.torch_engine import TorchEngine, View

pytest.importorskip("optgen_optim")

OPTIONS = {
    "plain": {},
    "clipped": {"percentile_clipping": 30},
    "masked": {"skip_zeros": True, "nonfinite": "skip", "maximize": True},
}
CLASSES = {
    "AdamW": {"weight_decay": 0.1, "lr": 0.01},
    "Adam": {"weight_decay": 0.1, "lr": 0.01, "amsgrad": True},
    "LAMB": {"weight_decay": 0.1, "lr": 0.01},
    "LARS": {"weight_decay": 0.1, "lr": 0.1, "momentum": 0.9},
}
STORAGE = {
    "32": {},
    "8": {"optim_bits": 8, "min_8bit_size": 0, "block_wise": True},
    "8-tensorwise": {"optim_bits": 8, "min_8bit_size": 0, "block_wise": False},
}
ELEMENTWISE = {"AdamW", "Adam"}
COMPILED = ["cpu", "cuda", pytest.param(GPU, marks=pytest.mark.gpu)]
CUDA = COMPILED[1:]


def require(target: str) -> None:
    """Skip where a target cannot run. What lies on a GPU is put there by `twin`."""
    if target == "cpu":
        require_compiler()
    elif target == "cuda":
        require_standin()


def twin(name: str, dtype: torch.dtype, settings: dict[str, Any], targets: tuple[str, str]) -> list[Duel]:
    """The same parameters twice, one optimizer each, beside oracles; on a GPU for the target "gpu"."""
    start = make_params(dtype)
    duels = []
    for target in targets:
        device = "cuda" if target == GPU else "cpu"
        params = [torch.nn.Parameter(param.detach().to(device, copy=True)) for param in start]
        opt = targeted(optimizer_class(name), params, "cuda" if target == GPU else target, **settings)
        duels.append(Duel(params, opt, make_oracle(name, params, settings), NAMES))
    return duels


def tensors_of(duel: Duel, param: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    return {"param": param.detach(), **duel.opt.state.get(param, {})}


def copies_of(duel: Duel) -> list[dict[str, torch.Tensor]]:
    """All that a step changes, on the CPU."""
    return [
        {key: value.to("cpu", copy=True) for key, value in tensors_of(duel, param).items()} for param in duel.params
    ]


def copy_values(source: Duel, sink: Duel) -> None:
    """Give `sink` the values that `source` holds, in the storage that it has."""
    for a, b in zip(source.params, sink.params, strict=True):
        theirs = tensors_of(sink, b)
        for key, value in tensors_of(source, a).items():
            theirs[key].copy_(value)


def compare(first: Duel, second: Duel, before: Sequence[dict[str, torch.Tensor]], rate: float | None) -> None:
    """8-bit codes agree but where a midpoint is near; with a `rate` (elementwise rules), float32 to few ulps."""
    for i, (name, ours, theirs) in enumerate(zip(NAMES, copies_of(first), copies_of(second), strict=True)):
        assert ours.keys() == theirs.keys(), name
        for key, value in ours.items():
            other = theirs[key]
            assert value.dtype == other.dtype, f"{name}: {key}"
            assert value.shape == other.shape, f"{name}: {key}"
            if value.dtype == torch.uint8:
                codes = first.oracle.codes[i][key]
                apart = (value.int() - other.int()).abs().reshape(-1).numpy()
                assert apart.max() <= 1, f"{name}: codes of {key} more than one apart"
                straddling = codes.lowest != codes.highest
                assert not (apart.astype(bool) & ~straddling).any(), f"{name}: {key} apart, but no midpoint is near"
            elif rate is not None and value.dtype == torch.float32:
                old = before[i].get(key, torch.zeros_like(value))
                assert_few_ulps(value, other, old, rate if key == "param" else 0.0, f"{name}: {key}")


def options_in_turn() -> Iterator[Any]:
    """Every class in every storage, with each of the options for one class in each; the other products are `full`."""
    for turn, (name, (at, storage)) in enumerate(product(CLASSES, enumerate(STORAGE))):
        for number, options in enumerate(OPTIONS):
            marks = () if (turn + at) % len(OPTIONS) == number else pytest.mark.full
            yield pytest.param(name, storage, options, id=f"{name}-{storage}-{options}", marks=marks)


@pytest.mark.parametrize(("name", "storage", "options"), list(options_in_turn()))
@pytest.mark.parametrize("target", COMPILED)
def test_targets_agree(name, storage, options, target) -> None:
    require(target)
    storage, options = STORAGE[storage], OPTIONS[options]
    settings = CLASSES[name] | storage | options
    if storage:
        settings.pop("amsgrad", None)
    # Where norms enter, the oracle's bounds (checked by both duels) are the measure.
    rate = settings["lr"] if name in ELEMENTWISE and "percentile_clipping" not in options else None
    by_torch, compiled = twin(name, torch.float32, settings, ("torch", target))
    for t in range(1, STEPS + 1):
        if t > 1:
            copy_values(by_torch, compiled)
        grads = make_grads(by_torch.params, t, torch.float32, nonfinite=bool(options.get("nonfinite")))
        before = copies_of(by_torch)
        by_torch.step(grads)
        compiled.step(grads)
        compare(by_torch, compiled, before, rate)
    assert by_torch.opt.engines() == {"torch": len(NAMES)}
    assert compiled.opt.engines() == {"cuda" if target == GPU else target: len(NAMES)}


# The same bits from cuda and cpu


def elementwise(name: str) -> dict[str, Any]:
    """Settings of a class with which no norm enters."""
    settings = {"weight_decay": 0.1, "lr": 0.01}
    match rows()[name].rule.name:
        case "lamb":
            return settings | {"trust_ratio": "none", "max_unorm": 0.0}
        case "lars":
            return settings | {"momentum": 0.9, "max_unorm": 0.0}
    return settings


def assert_same(first: Duel, second: Duel, before: Sequence[dict[str, torch.Tensor]], rate: float) -> None:
    """Bit for bit, NaN where NaN is (its payload is the processor's own); with a `rate`, parameters to a few ulps.

    A GPU differs from a CPU in nothing but `pow` in double, by an ulp or two of a double: where Adam's bias corrections
    lie that near to the middle of two float32 numbers, they are rounded to different ones. That is an ulp of float32 in
    either of two factors of the step, which is within `assert_few_ulps`; and next to each other in 16 bits.
    """
    for name, ours, theirs, old in zip(NAMES, copies_of(first), copies_of(second), before, strict=True):
        assert ours.keys() == theirs.keys(), name
        for key, value in ours.items():
            other, where = theirs[key], f"{name}: {key}"
            assert (value.dtype, value.shape) == (other.dtype, other.shape), where
            if key != "param" or rate == 0.0:
                assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(other)), where
                assert torch.equal(torch.isnan(value), torch.isnan(other)), where
            elif value.dtype == torch.float32:
                assert_few_ulps(value, other, old[key], rate, where)
            else:
                spacing = torch.finfo(value.dtype).eps * value.abs().float()
                room = spacing + torch.finfo(value.dtype).smallest_normal
                assert ((value.float() - other.float()).abs() <= room)[~torch.isnan(value)].all(), where


DTYPES = (("float32", "float32"), ("bfloat16", "float32"), ("float16", "bfloat16"))


def stored() -> Iterator[Any]:
    """Every class of rules with and without norms in every storage that it has; the matrix has the other rules.

    A class of each rule with dtypes in turn; the rest, other classes with the same kernels among it, is `full`.
    """
    turn = 0
    for name, row in sorted(rows().items()):
        if row.rule.name not in ("adam", "lamb", "lars", "lion"):
            continue
        first = name == rules(rows())[row.rule.name][0]
        for storage, settings in STORAGE.items():
            bits = 8 if settings else 32
            if row.torch_only or row.bits not in (None, bits) or (row.paged and storage == "8-tensorwise"):
                continue
            own = {key: value for key, value in settings.items() if key != "optim_bits" or row.bits is None}
            turn += 1
            for number, dtypes in enumerate(DTYPES):
                marks = () if first and turn % len(DTYPES) == number else pytest.mark.full
                case = f"{name}-{storage}-{'-'.join(dtypes)}"
                yield pytest.param(name, elementwise(name) | own, dtypes, id=case, marks=marks)


@pytest.mark.parametrize(("name", "settings", "dtypes"), list(stored()))
@pytest.mark.parametrize("target", CUDA)
def test_cuda_equals_cpu(name, settings, dtypes, target) -> None:
    for each in ("cpu", target):
        require(each)
    dtype, grad_dtype = (getattr(torch, each) for each in dtypes)
    by_cpu, by_cuda = twin(name, dtype, settings, ("cpu", target))
    rate = settings["lr"] if target == GPU and rows()[name].rule.name != "lars" else 0.0
    for t in range(1, 5):
        if t > 1 and rate:
            copy_values(by_cpu, by_cuda)
        before = copies_of(by_cpu)
        grads = make_grads(by_cpu.params, t, grad_dtype, nonfinite=t == 3)
        for it in (by_cpu, by_cuda):
            set_grads(it.params, grads)
            it.opt.step()
        assert_same(by_cpu, by_cuda, before, rate)
    assert by_cuda.opt.engines() == {"cuda": len(NAMES)}


@pytest.mark.parametrize("storage", STORAGE.values(), ids=STORAGE)
@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_threads_change_nothing(name, storage) -> None:
    """Reductions are finished in a fixed order, whatever the number of threads."""
    require_compiler()
    one, several = twin(name, torch.float32, CLASSES[name] | storage, ("cpu", "cpu"))
    for t in range(1, 4):
        grads = make_grads(one.params, t, torch.float32, nonfinite=False)
        for it, threads in ((one, 1), (several, 4)):
            torch.set_num_threads(threads)
            set_grads(it.params, grads)
            it.opt.step()
    for a, b in zip(one.params, several.params, strict=True):
        for key, value in tensors_of(one, a).items():
            assert torch.equal(value, tensors_of(several, b)[key]), key


def test_auto_takes_the_cpu_target() -> None:
    require_compiler()
    param = torch.nn.Parameter(torch.ones(10))
    opt = optimizer_class("AdamW")([param])
    param.grad = torch.ones(10)
    opt.step()
    assert opt.engines() == {"cpu": 1}


def test_pytorch_lars_is_always_plain_torch() -> None:
    assert rows()["PytorchLARS"].torch_only
    param = torch.nn.Parameter(torch.ones(10))
    opt = optimizer_class("PytorchLARS")([param])
    param.grad = torch.ones(10)
    opt.step()
    assert opt.engines() == {"torch": 1}


EACH_STAGE = (
    {"cautious": True},
    {"max_unorm": 0.1, "cautious": True},
    {"max_grad_norm": 0.1, "nonfinite": "skip"},
    {"percentile_clipping": 30, "skip_zeros": True, "maximize": True},
)


@pytest.mark.parametrize("name", [names[0] for names in rules(rows()).values()])
def test_elements_of_the_torch_target_stay_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of a tensor, which is float64, makes no float64 of the elements that it meets."""
    stored: set[torch.dtype] = set()
    take = TorchEngine.stored

    def look(self: TorchEngine, view: View, results: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
        stored.update(x.dtype for x in results.values() if isinstance(x, torch.Tensor) and x.numel() > 1)
        return take(self, view, results)

    monkeypatch.setattr(TorchEngine, "stored", look)
    own = accepted(name)
    for stage in EACH_STAGE:
        settings = {key: value for key, value in stage.items() if key in own}
        param = torch.nn.Parameter(torch.randn(6, 5))
        opt = targeted(optimizer_class(name), [param], "torch", **required(name), **settings)
        getattr(opt, "train", lambda: None)()
        for _ in range(2):
            param.grad = torch.randn(6, 5)
            opt.step()
    assert stored == {torch.float32}
