"""The cuda target on a real GPU: what only a device can show.

`python -m pytest -m gpu` runs this and all else that is marked so: tests/numerics has classes, dtypes and options.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optgen_optim import AdamW, AdamW8bit
from runtime.training import same, snapshot
from support.cuda_training import CASES, SHAPES, draw, new, set_grads, train
from torch import Tensor, nn

from optgen.runtime.cuda.cuda_device import cuda_device
from optgen.runtime.cuda.paging import ManagedPager, StreamedPager

pytestmark = pytest.mark.gpu

GPU = "cuda"
GIB = 2**30
RECORDABLE = [case for case in CASES if case != "Adafactor"]  # its lr=None is computed from the count of steps


def on_gpu(case: str, **settings: Any) -> tuple[Any, list[Tensor]]:
    name, own = CASES[case]
    return new(name, device=GPU, **own, **settings)


def need_memory(wanted: int) -> None:
    """Skip if the GPU has less free memory, in bytes."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < wanted:
        pytest.skip(f"needs {wanted / GIB:.0f} GiB of free GPU memory, there are {free / GIB:.0f}")


@pytest.fixture(autouse=True)
def _leave_nothing() -> Iterator[None]:
    yield
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


# From run to run


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_on_every_run(case: str) -> None:
    first = train(*on_gpu(case), 4)
    assert all(torch.isfinite(param).all() for param in first["params"])
    for _ in range(3):
        assert same(train(*on_gpu(case), 4), first)


# Graphs


@pytest.mark.parametrize("case", RECORDABLE)
def test_replays_are_steps(case: str) -> None:
    """n replays are n steps, with gradients and lr as they are at each."""
    opt, params = on_gpu(case, capturable=True)
    plain, theirs = on_gpu(case)
    for each, members in ((opt, params), (plain, theirs)):
        set_grads(members, 0)
        each.step()
    torch.cuda.synchronize()
    before = snapshot(opt, params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step()
    assert same(snapshot(opt, params), before)
    for replay in range(1, 6):
        for members in (params, theirs):
            for param, grad in zip(members, draw(SHAPES, replay, device=GPU), strict=True):
                assert param.grad is not None
                param.grad.copy_(grad)
        if replay == 3:
            opt.param_groups[0]["lr"].fill_(0.5)
            plain.param_groups[0]["lr"] = 0.5
        graph.replay()
        plain.step()
        ours, expected = snapshot(opt, params), snapshot(plain, theirs)
        assert same(ours["params"], expected["params"]), replay
        assert same(ours["states"], expected["states"]), replay
    assert {float(opt.state[param]["step"]) for param in params} == {6.0}


def test_a_whole_training_step_in_a_graph() -> None:
    """Forward, backward and step recorded together, as torch's own notes have it: warmed up on a side stream."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 1)).to(GPU)
    x, y = torch.randn(256, 64, device=GPU), torch.randn(256, 1, device=GPU)
    opt = AdamW8bit(model.parameters(), lr=1e-3, min_8bit_size=256, capturable=True, target="cuda")

    def step() -> Tensor:
        opt.zero_grad(set_to_none=True)
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            loss = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Gradients are made anew inside of the graph, in its own memory: they must exist before the step looks at them.
    with torch.cuda.graph(graph):
        loss = step()
    graph.replay()
    first = float(loss)
    for _ in range(100):
        graph.replay()
    assert float(loss) < 0.9 * first
    assert {float(entry["step"]) for entry in opt.state.values()} == {104.0}


@pytest.mark.parametrize("why", ["capturable=False", "is the first with these parameters"])
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_what_cannot_be_captured_is_refused_and_changes_nothing(why: str) -> None:
    opt, params = on_gpu("AdamW8bit", capturable="first" in why)
    set_grads(params, 0)
    if "first" not in why:
        opt.step()
    before = snapshot(opt, params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match=f"AdamW8bit: .*{why}"):
        opt.step()
    assert same(snapshot(opt, params), before)


# Streams and threads


def test_two_streams_beside_each_other() -> None:
    expected = train(*on_gpu("LAMB8bit-clipped"), 10)
    pairs = [on_gpu("LAMB8bit-clipped") for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in pairs]
    torch.cuda.synchronize()
    for step in range(10):
        for (opt, params), stream in zip(pairs, streams, strict=True):
            with torch.cuda.stream(stream):
                set_grads(params, step)
                opt.step()
    torch.cuda.synchronize()
    for opt, params in pairs:
        assert same(snapshot(opt, params), expected)


@pytest.mark.parametrize("case", RECORDABLE)
def test_a_step_is_in_the_order_of_its_stream(case: str) -> None:
    """Behind what makes the gradients, before what reads the parameters, without any wait of the host."""
    expected = train(*on_gpu(case), 6)
    opt, params = on_gpu(case)
    torch.cuda.synchronize()
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    read = []
    for step in range(6):
        stream = side if step % 2 else main
        stream.wait_stream(main if step % 2 else side)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # the gradients are late
            set_grads(params, step)
            opt.step()
            read.append([param.detach().clone() for param in params])
    torch.cuda.synchronize()
    assert same(read[-1], expected["params"])
    assert same(snapshot(opt, params), expected)


def test_two_threads() -> None:
    expected = train(*on_gpu("AdamW8bit"), 10)
    found: list[dict[str, Any]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(train(*on_gpu("AdamW8bit"), 10))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(found) == 2
    assert all(same(result, expected) for result in found)


@pytest.mark.parametrize("case", RECORDABLE)
def test_the_host_waits_for_nothing(case: str) -> None:
    """torch itself says when one of its operations waits; a gradient scaler's tensors are on the GPU."""
    opt, params = on_gpu(case)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0, device=GPU), torch.tensor(0.0, device=GPU)
    train(opt, params, 2)
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this mode a prototype
        try:
            torch.cuda.set_sync_debug_mode("error")
            for _ in range(3):
                opt.step()
            opt.param_groups[0]["lr"] = 0.5
            opt.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert {float(opt.state[param]["step"]) for param in params} == {6.0}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_parameters_on_several_devices() -> None:
    expected = [train(*new("AdamW8bit", device=f"cuda:{index}", min_8bit_size=0), 3) for index in range(2)]
    params = [param for index in range(2) for param in new("AdamW8bit", device=f"cuda:{index}")[1]]
    opt = AdamW8bit(params, lr=0.01, min_8bit_size=0, target="cuda")
    half = len(params) // 2
    for step in range(3):
        for members in (params[:half], params[half:]):
            set_grads(members, step)
        opt.step()
    assert opt.engines() == {"cuda": len(params)}
    for members, wanted in zip((params[:half], params[half:]), expected, strict=True):
        assert same(snapshot(opt, members)["params"], wanted["params"])


# Large tensors

COUNT = 2**31 + 17
LARGE = {"AdamW8bit-bf16": (AdamW8bit, torch.bfloat16, 6), "AdamW-fp32": (AdamW, torch.float32, 16)}
WINDOWS = [slice(0, 4096), slice(2**30 - 512, 2**30 + 512), slice(2**31 - 2048, COUNT)]  # begin at multiples of a block


@pytest.mark.parametrize("case", LARGE)
def test_more_than_2_to_the_31_elements(case: str) -> None:
    """Parts of the tensor have gradients; there it equals small tensors of the same values, elsewhere nothing moves."""
    optimizer, dtype, element_bytes = LARGE[case]
    need_memory(COUNT * element_bytes + 2 * GIB)
    large = torch.zeros(COUNT, dtype=dtype, device=GPU, requires_grad=True)
    grad = torch.zeros(COUNT, dtype=dtype, device=GPU)
    small = [torch.zeros(len(large[part]), dtype=dtype, device=GPU, requires_grad=True) for part in WINDOWS]
    for number, (part, param) in enumerate(zip(WINDOWS, small, strict=True)):
        (param.grad,) = draw([(param.numel(),)], number, dtype, GPU)
        grad[part] = param.grad
    large.grad = grad
    for params in ([large], small):
        opt = optimizer(params, lr=0.01, weight_decay=0.0, target="cuda", min_8bit_size=0)
        for _ in range(2):
            opt.step()
        assert opt.engines() == {"cuda": len(params)}
    moved = 0
    for part, param in zip(WINDOWS, small, strict=True):
        assert torch.equal(large[part], param)
        moved += int(torch.count_nonzero(param))
    assert moved > 5000
    counted = sum(int(torch.count_nonzero(piece)) for piece in large.detach().split(2**28))
    assert counted == moved


# Training


def curve(make: Any, device: str, dtype: torch.dtype, steps: int) -> list[float]:
    """Losses of a small model that learns a fixed function, the whole data at every step."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(512, 16, generator=generator, dtype=torch.float64)
    y = torch.sin(x @ torch.randn(16, 4, generator=generator, dtype=torch.float64))
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4)).double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(0.2 * torch.randn(param.shape, generator=generator, dtype=torch.float64))
    model.to(device, dtype)
    x, y = x.to(device, dtype), y.to(device, dtype)
    opt = make(model.parameters())
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    return torch.stack(losses).double().tolist()


def apart(a: list[float], b: list[float]) -> float:
    """The largest relative distance of two curves."""
    return max(abs(x - y) / y for x, y in zip(a, b, strict=True))


def test_a_thousand_steps_beside_torch() -> None:
    """As near to float64's curve as torch's own float32, but for a factor of other roundings; 8 bits learn as much."""
    settings = {"lr": 1e-3, "weight_decay": 0.01}
    exact = curve(lambda params: torch.optim.AdamW(params, **settings), GPU, torch.float64, 1000)
    theirs = curve(lambda params: torch.optim.AdamW(params, **settings), GPU, torch.float32, 1000)
    ours = curve(lambda params: AdamW(params, **settings, target="cuda"), GPU, torch.float32, 1000)
    in_8_bits = curve(
        lambda params: AdamW8bit(params, **settings, min_8bit_size=0, target="cuda"), GPU, torch.float32, 1000
    )
    assert exact[-1] < 0.5 * exact[0]
    assert apart(ours, exact) <= 10 * apart(theirs, exact)
    assert in_8_bits[-1] < 1.1 * exact[-1]


def test_a_gradient_scaler_with_fp16() -> None:
    """Scaled by a power of two nothing changes; a step with an Inf changes nothing at all, counts neither."""
    results = []
    for scaled in (True, False):
        (param,) = (value.requires_grad_() for value in draw([(5000,)], 1, torch.float16, GPU))
        opt = AdamW8bit([param], lr=0.01, target="cuda")
        scaler = torch.amp.GradScaler("cuda", init_scale=16.0, growth_interval=1000, enabled=scaled)
        (weights,) = draw([(5000,)], 2, torch.float16, GPU)
        for step in range(6):
            if step == 3 and not scaled:
                continue
            opt.zero_grad()
            scaler.scale((param * (weights / 16)).float().sum()).backward()
            if step == 3:
                param.grad[77] = torch.inf
            before = snapshot(opt, [param])
            scaler.step(opt)
            scaler.update()
            if step == 3:
                assert same(snapshot(opt, [param]), before)
                assert scaler.get_scale() == 8.0
        results.append(snapshot(opt, [param]))
        assert float(opt.state[param]["step"]) == 5.0
    assert same(*results)


# Memory


def test_no_memory_for_states_leaves_everything_as_it_was() -> None:
    need_memory(4 * GIB)
    param = torch.ones(2**26, device=GPU, requires_grad=True)
    param.grad = torch.ones_like(param)
    opt = AdamW([param], lr=0.01, target="cuda")
    before = param.detach().clone()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = 5 * param.numel()  # bytes, for one state of four bytes an element, not for two
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            opt.step()
        assert torch.equal(param, before)
        assert not opt.state
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    opt.step()
    assert opt.engines() == {"cuda": 1}
    assert (param != before).all()


def test_what_lies_on_another_device_is_refused() -> None:
    param = torch.ones(300, device=GPU, requires_grad=True)
    param.grad = torch.ones_like(param)
    opt = AdamW([param], target="cuda")
    opt.step()
    before = param.detach().clone()
    opt.state[param]["exp_avg"] = opt.state[param]["exp_avg"].cpu()
    with pytest.raises(ValueError, match=r"state 'exp_avg' is on cpu, its parameter on cuda:0"):
        opt.step()
    assert torch.equal(param, before)
    moved = torch.ones(300, device=GPU, requires_grad=True)
    moved.grad = torch.ones_like(moved)
    opt = AdamW([moved])
    moved.data = moved.data.cpu()
    with pytest.raises(ValueError, match=r"a gradient on cuda:0 for a parameter on cpu"):
        opt.step()


# Paged states


@pytest.mark.parametrize("managed", [True, False], ids=["managed", "streamed"])
@pytest.mark.parametrize("name", ["PagedAdamW8bit", "PagedAdamW32bit"])
def test_paged_states_are_those_of_ordinary_ones(
    name: str, managed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In portions that cut the larger parameter, a few megabytes in all; on another stream, and from a file."""
    if managed and not cuda_device(torch.device("cuda:0")).has_concurrent_managed_access():
        pytest.skip("this GPU has no concurrent managed access")
    pager = ManagedPager if managed else StreamedPager
    monkeypatch.setattr("optgen.runtime.engines.cuda_engine.pager_of", pager)
    monkeypatch.setattr(pager, "portion_bytes", 300_000)
    shapes = [(400_000,), (300, 400), (5000,)]
    plain, plain_params = new(name.removeprefix("Paged"), shapes, device=GPU)
    paged, params = new(name, shapes, device=GPU)
    expected = train(plain, plain_params, 3)
    with torch.cuda.stream(torch.cuda.Stream()):
        found = train(paged, params, 3)
        torch.cuda.synchronize()
    assert paged.paged_bytes() == sum(2 * n * (1 if "8bit" in name else 4) for n in (400_000, 120_000))
    for ours, theirs in zip(params, plain_params, strict=True):
        assert torch.equal(ours, theirs)
        assert all(torch.equal(paged.state[ours][key].to(GPU), plain.state[theirs][key]) for key in plain.state[theirs])
    assert found.keys() == expected.keys()
    torch.save(paged.state_dict(), tmp_path / "saved.pt")
    again, _ = new(name, shapes, device=GPU)
    again.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
    assert again.state_bytes() == plain.state_bytes()


# NVIDIA's sanitizer

SCRIPT = """
import torch
from support.cuda_training import CASES, new, train
for name, settings in CASES.values():
    opt, params = new(name, device="cuda", **settings)
    train(opt, params, 2)
    assert opt.engines() == {"cuda": len(params)}
torch.cuda.synchronize()
print("done")
"""


def sanitizer() -> str | None:
    """NVIDIA's compute-sanitizer: on PATH, or in the toolkit."""
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [str(Path(home) / "bin") for home in [*homes, "/usr/local/cuda"] if home]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_compute_sanitizer_is_content(tool: str) -> None:
    program = sanitizer()
    if program is None:
        pytest.skip("no compute-sanitizer on PATH or in the CUDA toolkit")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # so that every tensor's end is the end of an allocation
    }
    # Of the other two, torch's own kernels give much to read and to wait for.
    ours = [] if tool == "memcheck" else ["--kernel-regex", "kns=step_"]
    command = [program, "--tool", tool, *ours, "--error-exitcode", "86", sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert "done" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.returncode == 0, done.stdout[-4000:]
