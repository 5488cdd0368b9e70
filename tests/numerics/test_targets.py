"""The cpu target against the torch target, step by step from the same values."""

from __future__ import annotations

import pytest
import torch
from catalogue import make_oracle, optimizer_class, rows
from machine import require_compiler

from numerics.bounds import assert_few_ulps
from numerics.harness import NAMES, STEPS, Duel, make_grads, make_params, set_grads, targeted

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


def twin(name: str, dtype: torch.dtype, settings: dict, targets: tuple[str, str] = ("torch", "cpu")) -> list[Duel]:
    """The same parameters twice, one optimizer each, beside oracles."""
    start = make_params(dtype)
    duels = []
    for target in targets:
        params = [torch.nn.Parameter(param.detach().clone()) for param in start]
        opt = targeted(optimizer_class(name), params, target, **settings)
        duels.append(Duel(params, opt, make_oracle(name, params, settings), NAMES))
    return duels


def tensors_of(duel: Duel, param: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    return {"param": param.detach(), **duel.opt.state.get(param, {})}


def copy_values(source: Duel, sink: Duel) -> None:
    """Give `sink` the values that `source` holds, in the storage that it has."""
    for a, b in zip(source.params, sink.params, strict=True):
        theirs = tensors_of(sink, b)
        for key, value in tensors_of(source, a).items():
            theirs[key].copy_(value)


def compare(first: Duel, second: Duel, before: list[dict[str, torch.Tensor]], rate: float | None) -> None:
    """8-bit codes agree but where a midpoint is near; with a `rate` (elementwise rules), float32 to few ulps."""
    for i, (name, a, b) in enumerate(zip(NAMES, first.params, second.params, strict=True)):
        ours, theirs = tensors_of(first, a), tensors_of(second, b)
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


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("storage", STORAGE.values(), ids=STORAGE)
@pytest.mark.parametrize("name", CLASSES)
def test_targets_agree(name, storage, options) -> None:
    require_compiler()
    settings = CLASSES[name] | storage | options
    if storage:
        settings.pop("amsgrad", None)
    # Where norms enter, the oracle's bounds (checked by both duels) are the measure.
    rate = settings["lr"] if name in ELEMENTWISE and "percentile_clipping" not in options else None
    by_torch, by_cpu = twin(name, torch.float32, settings)
    for t in range(1, STEPS + 1):
        if t > 1:
            copy_values(by_torch, by_cpu)
        grads = make_grads(by_torch.params, t, torch.float32, nonfinite=bool(options.get("nonfinite")))
        before = [{k: v.clone() for k, v in tensors_of(by_torch, param).items()} for param in by_torch.params]
        by_torch.step(grads)
        by_cpu.step(grads)
        compare(by_torch, by_cpu, before, rate)
    assert by_torch.opt.engines() == {"torch": len(NAMES)}
    assert by_cpu.opt.engines() == {"cpu": len(NAMES)}


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
