"""Kernels of the cuda target on the stand-in: many tensors at once, odd sizes and addresses, orders of threads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import standin
import torch
from runtime.training import same, snapshot
from support.cuda_training import ADAFACTOR, CASES, SHAPES, cls, draw, new, train
from support.gpu import StandinDevice
from support.headers import copy_headers
from support.targets import require_standin

from optgen.runtime.cuda import cuda_device
from optgen.runtime.engines import cuda_engine
from optgen.runtime.rule import Rule
from optgen.runtime.step import target_choice

HOST = torch.device("cpu")
ODD = (0, 1, 255, 256, 257, 4097)
INT8 = {"optim_bits": 8, "min_8bit_size": 0}
STORAGE = {"32": {}, "8": INT8, "8-tensorwise": INT8 | {"block_wise": False}}
PASSES = {"AdamW": 1, "AdamW8bit": 1, "LAMB": 2, "LAMB8bit": 2, "LARS": 2, "LARS8bit": 2}


@pytest.fixture
def driver() -> Iterator[standin.Driver]:
    require_standin()
    loaded = standin.load()
    yield loaded
    loaded.reset()


# Many tensors


@pytest.mark.parametrize("name", PASSES)
def test_launches_do_not_grow_with_tensors_and_groups(name: str, driver: standin.Driver) -> None:
    sizes = [1 + 37 * i % 1100 for i in range(300)]
    stored = {"min_8bit_size": 0} if "8bit" in name else {}
    results = []
    for target in ("cuda", "cpu"):
        whole, params = new(name, sizes, target, **stored)
        half = {"params": params[150:], "lr": 0.5, "weight_decay": 0.25}
        del whole.param_groups[0]["params"][150:]
        whole.add_param_group(half)
        train(whole, params, 1)
        driver.clear_logs()
        results.append(train(whole, params, 2))
        if target == "cuda":
            launches = driver.launches()
            assert len(launches) == 3 * PASSES[name] * 2, "three a pass and step"
            grids = [launch.grid[0] for launch in launches[:3]]
            assert grids == [300, 12, 300], "a warp and a block a tensor, between them a grid that stays"
    for ours, theirs in zip(results[0]["states"], results[1]["states"], strict=True):
        assert ours["step"] == theirs["step"] == 3
    if "Adam" in name:  # no norms, whose sums are in another order
        assert same(results[0], results[1] | {"groups": results[0]["groups"]})
    else:
        for ours, theirs in zip(results[0]["params"], results[1]["params"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# Odd sizes and addresses


class Shifted:
    """A copy of a tensor that begins `offset` bytes beyond a multiple of 64, between bytes that nobody may change."""

    def __init__(self, values: torch.Tensor, offset: int) -> None:
        count = values.numel() * values.element_size()
        self.buffer = torch.full((64 + count + 64,), 0xA5, dtype=torch.uint8)
        assert self.buffer.data_ptr() % 64 == 0
        self.begin, self.end = offset, offset + count
        self.view = self.buffer[self.begin : self.end].view(values.dtype).view(values.shape)
        self.view.copy_(values)

    def is_alone(self) -> bool:
        return bool((self.buffer[: self.begin] == 0xA5).all() and (self.buffer[self.end :] == 0xA5).all())


def offsets(dtype: torch.dtype) -> list[int]:
    return list(range(0, 16, dtype.itemsize))


FLOATS = [torch.float32, torch.bfloat16, torch.float16]
PAIRS = [(dtype, dtype) for dtype in FLOATS] + [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS, ids=str)
def test_any_size_at_any_address(
    dtype: torch.dtype, grad_dtype: torch.dtype, storage: str, driver: standin.Driver
) -> None:
    """Parameter, gradient and states each at every offset, the others aligned; then all at different ones."""
    code_offsets = offsets(torch.uint8 if storage != "32" else torch.float32)
    places = [(k, 0, 0) for k in offsets(dtype)] + [(0, k, 0) for k in offsets(grad_dtype)[1:]]
    places += [(0, 0, k) for k in code_offsets[1:]]
    places += [(offsets(dtype)[-1], offsets(grad_dtype)[1], k) for k in code_offsets[1:3]]
    cases = [(size, place) for place in places for size in ODD]
    start = draw([size for size, _ in cases], 5, dtype)
    plain = [value.clone().requires_grad_() for value in start]
    guards = [Shifted(value, place[0]) for value, (_, place) in zip(start, cases, strict=True)]
    moved = [guard.view.requires_grad_() for guard in guards]
    optimizers = []
    for params in (plain, moved):
        opt = cls("AdamW")(params, lr=0.01, target="cuda", **STORAGE[storage])
        train(opt, params, 1, dtype=grad_dtype)
        optimizers.append(opt)
    for param, (_, place) in zip(moved, cases, strict=True):
        entry = optimizers[1].state[param]
        for key in entry.keys() - {"step"}:
            shifted = Shifted(entry[key], place[2] // entry[key].element_size() * entry[key].element_size())
            entry[key] = shifted.view
            guards.append(shifted)
    for step in range(2):
        grads = draw([size for size, _ in cases], 50 + step, grad_dtype)
        for number, (_, place) in enumerate(cases):
            shifted = Shifted(grads[number], place[1])
            guards.append(shifted)
            plain[number].grad, moved[number].grad = grads[number], shifted.view
        for opt in optimizers:
            opt.step()
        for param, grad in zip(moved, grads, strict=True):
            assert torch.equal(param.grad, grad)
    assert same(snapshot(optimizers[0], plain)["params"], snapshot(optimizers[1], moved)["params"])
    assert same(snapshot(optimizers[0], plain)["states"], snapshot(optimizers[1], moved)["states"])
    assert all(guard.is_alone() for guard in guards)


# Orders of threads and blocks

ORDERS = {
    "again": (standin.forward, standin.forward),
    "backward": (standin.backward, standin.backward),
    "threads backward": (standin.backward, standin.forward),
    "blocks backward": (standin.forward, standin.backward),
    **{f"shuffled {seed}": (standin.shuffled(seed), standin.shuffled(seed + 100)) for seed in (1, 2, 3)},
}


def results_in(order: tuple[standin.Order, standin.Order], case: str, driver: standin.Driver) -> dict[str, Any]:
    name, settings = CASES[case]
    opt, params = new(name, SHAPES, **settings)
    with driver.order(*order):
        found = train(opt, params, 3)
    assert opt.engines() == {"cuda": len(SHAPES)}
    return found


@pytest.mark.parametrize("case", CASES)
def test_orders_change_nothing(case: str, driver: standin.Driver) -> None:
    """The same bits from any order of threads and blocks, and from run to run."""
    expected = results_in((standin.forward, standin.forward), case, driver)
    assert all(torch.isfinite(param).all() for param in expected["params"])
    for name, order in ORDERS.items():
        assert same(results_in(order, case, driver), expected), name


def break_source(name: str, change: Callable[[str], str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a class's kernels come from a changed copy."""
    source = cls(name).rule.cuda_source
    text = source.read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    copy = folder / source.name
    copy.write_text(changed, encoding="utf-8")
    copy_headers(source, folder)
    monkeypatch.setattr(Rule, "cuda_source", property(lambda _: copy))


BARRIERS = {
    "before the sum is read": r"__syncthreads\(\);(?=\n  if \(threadIdx\.x == 0\) \{)",
    "before it is overwritten": r"(?<=\n  \}\n)  __syncthreads\(\);(?=\n\}\n)",
}


@pytest.mark.parametrize("barrier", BARRIERS.values(), ids=BARRIERS)
def test_a_missing_barrier_would_be_seen(
    barrier: str, driver: standin.Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof above can fail: by a barrier less than there is, results depend on the order."""
    sound = results_in(ORDERS["again"], "LARS", driver)
    break_source("LARS", lambda text: re.sub(barrier, "", text), tmp_path, monkeypatch)
    found = {name: same(results_in(order, "LARS", driver), sound) for name, order in ORDERS.items()}
    assert not all(found.values())


# Accesses outside of tensors, under AddressSanitizer

SANITIZED = """
import sys
from pathlib import Path
import torch
from support.gpu import install_standin
install_standin()
import optgen, optgen_optim
from optgen.runtime.rule import Rule

families = {
    "AdamW": (torch.float32, {"percentile_clipping": 50}),
    "AdamW8bit": (torch.bfloat16, {"min_8bit_size": 0}),
    "LAMB8bit": (torch.float32, {"min_8bit_size": 0}),
    "LARS": (torch.float16, {"momentum": 0.9}),
    "Adafactor": (torch.bfloat16, {"beta1": 0.9}),
}
if len(sys.argv) > 1:
    Rule.cuda_source = property(lambda rule: Path(sys.argv[1]))
    families = {"AdamW": (torch.float32, {})}

def unaligned(shape, dtype, place):
    numel = torch.Size(shape).numel()
    buffer = torch.empty(numel + place, dtype=dtype)  # its last number is the tensor's
    return buffer[place:].view(shape).normal_()

for name, (dtype, settings) in families.items():
    cls = optgen.load(SPEC).Adafactor if name == "Adafactor" else getattr(optgen_optim, name)
    shapes = [(size,) for size in (0, 1, 255, 256, 257, 4097)] + [(257, 33), ()]
    params = [unaligned(shape, dtype, place).requires_grad_() for shape in shapes for place in (0, 1)]
    opt = cls(params, target="cuda", **({} if name == "Adafactor" else {"lr": 0.01}), **settings)
    for step in range(2):
        for place, param in enumerate(params):
            param.grad = unaligned(param.shape, dtype, place % 3)
        opt.step()
    assert opt.engines() == {"cuda": len(params)}
print("clean")
"""


def sanitized(*arguments: str) -> Any:
    script = f"import sys\nsys.argv[1:] = {list(arguments)!r}\nSPEC = {str(ADAFACTOR)!r}\n{SANITIZED}"
    return standin.sanitized_run(script, timeout=300)


def test_no_access_outside_of_tensors(driver: standin.Driver) -> None:
    done = sanitized()
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr[-4000:]


CHUNK = r"for_each_tile<RUN>\(c, "
LONGER = "for_each_tile<RUN>(Chunk{c.index, c.tensor, c.begin, c.end + 1, c.line}, "


def test_an_access_outside_of_a_tensor_would_be_seen(driver: standin.Driver, tmp_path: Path) -> None:
    source = cls("AdamW").rule.cuda_source
    text = source.read_text(encoding="utf-8")
    broken = tmp_path / source.name
    changed, count = re.subn(CHUNK, LONGER, text)
    assert count
    broken.write_text(changed, encoding="utf-8")
    copy_headers(source, tmp_path)
    done = sanitized(str(broken))
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert f"{broken.name}:" in done.stderr


# Architectures


def test_kernels_are_built_for_the_device(driver: standin.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    archs = []
    build = cuda_engine.cubin

    def recorded(source: Path, defines: Any, arch: str, *rest: Any) -> bytes:
        archs.append(arch)
        return build(source, defines, arch, *rest)

    monkeypatch.setattr(cuda_engine, "cubin", recorded)
    results = []
    for capability in [(7, 5), (8, 0), (8, 6), (9, 0), (10, 0)]:
        driver.configure(compute_capability=capability)
        monkeypatch.setitem(cuda_device._devices, HOST, StandinDevice(0))
        results.append(train(*new("AdamW", [(300,)]), 2))
    assert archs == ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100"]
    assert all(same(result, results[0]) for result in results)


def test_an_older_device_is_left_to_torch_and_that_is_said_once(
    driver: standin.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.configure(compute_capability=(7, 0))
    gpu = torch.device("cuda:0")
    monkeypatch.setitem(cuda_device._devices, gpu, StandinDevice(0))
    monkeypatch.setattr(target_choice, "_said", set())
    with pytest.warns(
        RuntimeWarning, match=r"cuda:0 has compute capability 7\.0, .* 7\.5 or newer; so the torch target"
    ):
        assert target_choice.choose_target("AdamW", gpu, None) == "torch"
    assert target_choice.choose_target("AdamW", gpu, None) == "torch"  # any warning would be an error
    with pytest.raises(RuntimeError, match=r"AdamW: target='cuda' cannot serve: cuda:0 has compute capability 7\.0"):
        target_choice.choose_target("AdamW", gpu, "cuda")
