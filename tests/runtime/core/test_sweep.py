"""The sweep over all tensors has the same results in Python and in sweep.cpp."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optgen_optim import AdamW, AdamW8bit
from support.machine import require_compiler, sweep_or_skip
from torch import Tensor, nn

from optgen.runtime.building import extension
from optgen.runtime.building.entries import CompileError
from optgen.runtime.core import sweep
from optgen.runtime.core.sweep import PLAIN, Sweep
from runtime.training import same, snapshot

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8)


@pytest.fixture(params=["python", "compiled"])
def look(request: pytest.FixtureRequest) -> Sweep:
    return PLAIN if request.param == "python" else sweep_or_skip()


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("used", "_builder", "_looked"):
        monkeypatch.setattr(sweep, name, getattr(sweep, name))


def tensors() -> list[Tensor]:
    return [torch.zeros(shape, dtype=dtype) for shape in ((), (3,), (2, 5), (0,), (2, 3, 4)) for dtype in DTYPES]


def test_addresses_and_dtypes(look: Sweep) -> None:
    every = tensors()
    alike = [torch.empty_like(tensor) for tensor in every]
    assert look.addresses(every, alike) == array("q", [tensor.data_ptr() for tensor in every]).tobytes()
    assert look.dtypes(every) == [tensor.dtype for tensor in every]
    assert look.identities(every) == array("q", map(id, every)).tobytes()
    assert (look.addresses([], []), look.dtypes([]), look.identities([])) == (b"", [], b"")


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(4, 4).t(),
        torch.zeros(8)[::2],
        torch.zeros(3, 3).to_sparse(),
        torch._neg_view(torch.ones(3)),
        torch.zeros(1).expand(3),
    ],
    ids=["transposed", "strided", "sparse", "negative view", "expanded"],
)
def test_what_no_kernel_can_read_has_no_address(odd: Tensor, look: Sweep) -> None:
    assert look.addresses([torch.zeros(3), odd], [torch.zeros(3), torch.zeros(odd.shape)]) is None


@pytest.mark.parametrize("shape", [(5,), (7,), (2, 2), ()])
def test_what_is_of_another_shape_has_no_address(shape: tuple[int, ...], look: Sweep) -> None:
    assert look.addresses([torch.zeros(2, 3)], [torch.zeros(6)]) is None
    assert look.addresses([torch.zeros(2, 3)], [torch.zeros(3, 2)]) is None
    assert look.addresses([torch.zeros(shape)], [torch.zeros(6)]) is None


def test_gradients(look: Sweep) -> None:
    class Own(nn.Parameter):
        """One whose gradient is told by Python."""

        @property
        def grad(self) -> Tensor:
            return given

    given = torch.ones(3)
    params: list[Any] = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    params[0].grad = torch.ones(3)
    params[2].grad = torch.zeros(3)
    params.append(Own(torch.zeros(3)))
    found = look.gradients(params)
    assert [grad is wanted for grad, wanted in zip(found, [params[0].grad, None, params[2].grad, given], strict=True)]
    assert found[0] is params[0].grad
    assert found[1] is None
    assert found[3] is given


Change = Callable[[list[Tensor], list[dict[str, Any]]], object]
CHANGES: dict[str, Change] = {
    "other memory": lambda params, _: setattr(params[0], "data", params[0].data.clone()),
    "another dtype": lambda params, _: setattr(params[1], "data", params[1].data.bfloat16()),
    "another shape": lambda params, _: setattr(params[1], "data", params[1].data.view(4, 3)),
    "other strides": lambda params, _: setattr(params[1], "data", params[1].data.t()),
    "a shorter one": lambda params, _: setattr(params[0], "data", params[0].data[:2]),
    "another state": lambda _, entries: entries[0].update(exp_avg=torch.zeros(3)),
    "memory of a state": lambda _, entries: setattr(entries[1]["exp_avg"], "data", torch.zeros(3, 4)),
    "a longer state": lambda _, entries: entries[1]["exp_avg"].resize_(40),
    "no state": lambda _, entries: entries[1].pop("exp_avg"),
    "a state's dtype": lambda _, entries: setattr(
        entries[1]["exp_avg"], "data", entries[1]["exp_avg"].view(torch.int32)
    ),
    "a state without memory": lambda _, entries: entries[1].update(exp_avg=torch.zeros(3, 4).to_sparse()),
    "a state's strides": lambda _, entries: entries[1].update(exp_avg=entries[1]["exp_avg"].t()),
    "no tensor": lambda _, entries: entries[1].update(step=3.0),
    "one more": lambda _, entries: entries[0].update(more=torch.zeros(1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen(change: Change, look: Sweep) -> None:
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, 4))]
    entries = [{"step": torch.zeros(()), "exp_avg": torch.zeros_like(param)} for param in params]
    before = look.facts(params, entries)
    for param in params:
        param.detach().add_(1)
    entries[0]["exp_avg"].fill_(2)
    assert look.facts(params, entries) == before, "values are no matter"
    kept = [param.data for param in params], [dict(entry) for entry in entries]
    change(params, entries)
    assert look.facts(params, entries) != before
    del kept


def test_autograd_is_told(look: Sweep) -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    with torch.inference_mode():
        inference = torch.ones(3)
    result = sum((param * param).sum() for param in params)
    look.mark_changed([*params, inference] if look is not PLAIN else params)
    assert [param._version for param in params] == [1, 1]
    assert isinstance(result, Tensor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_nothing_is_kept(look: Sweep) -> None:
    """Reference counts are as before, however often one looks."""
    params = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    params[0].grad = torch.ones(3)
    entries = [{"exp_avg": torch.zeros(3), "note": "text"} for _ in params]
    everything = [*params, params[0].grad, torch.float32, None, entries[0]["exp_avg"]]
    before = list(map(sys.getrefcount, everything))
    for _ in range(100):
        look.gradients(params)
        look.dtypes(params)
        look.identities(params)
        look.facts(params, entries)
        look.addresses(params, params)
        look.mark_changed(params)
    after = list(map(sys.getrefcount, everything))
    assert all(abs(one - other) < 50 for one, other in zip(before, after, strict=True))


def test_what_is_no_tensor_is_refused() -> None:
    look: Any = sweep_or_skip()
    for call in (look.dtypes, look.mark_changed, lambda given: look.addresses(given, given)):
        with pytest.raises(TypeError, match="item 1 is a int, not a tensor"):
            call([torch.zeros(1), 3])
        with pytest.raises(TypeError, match="a list is wanted, not a tuple"):
            call((torch.zeros(1),))
    with pytest.raises(TypeError, match="entry 0 is a int, not a dict"):
        look.facts([], [3])
    with pytest.raises(TypeError, match="takes tensors and entries, not 1 arguments"):
        look.facts([])
    with pytest.raises(ValueError, match="1 tensors, and 0 like them"):
        look.addresses([torch.zeros(1)], [])
    with pytest.raises(AttributeError):
        look.gradients([3])


# In steps


def train(opt: torch.optim.Optimizer, params: list[nn.Parameter], first: int, last: int) -> None:
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        opt.step()


def made(cls: Any = AdamW8bit, count: int = 20) -> tuple[list[nn.Parameter], Any]:
    params = [nn.Parameter(torch.linspace(-1, 1, 300 + number)) for number in range(count)]
    return params, cls(params, min_8bit_size=310, target="cpu")


def test_it_may_come_at_any_time() -> None:
    """Steps go on with the engines they have, bit for bit."""
    compiled = sweep_or_skip()
    results = []
    for uses in ([PLAIN] * 4, [compiled] * 4, [PLAIN, compiled, PLAIN, compiled]):
        params, opt = made()
        engines = []
        for number, use in enumerate(uses):
            sweep.used = use
            train(opt, params, number, number + 1)
            engines.append(opt._kept.of_all[0])
        assert all(one is engines[0] for one in engines)
        results.append(snapshot(opt, params))
    for other in results[1:]:
        assert same(results[0]["params"], other["params"])
        assert same(results[0]["states"], other["states"])


def test_a_negative_view_is_read_as_what_it_is(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for use in (PLAIN, sweep_or_skip()):
        sweep.used = use
        params = [nn.Parameter(torch.ones(4)) for _ in range(2)]
        params[0].grad = torch._neg_view(torch.tensor([1.0, -2.0, 3.0, 0.0]))
        params[1].grad = -torch.tensor([1.0, -2.0, 3.0, 0.0])
        AdamW(params, target=target).step()
        assert torch.equal(params[0], params[1])


@pytest.mark.parametrize("way", ["python", "compiled"])
def test_a_clone_that_shares_until_it_is_written_stays_what_it_was(way: str) -> None:
    sweep.used = PLAIN if way == "python" else sweep_or_skip()
    params, opt = made(AdamW, 3)
    train(opt, params, 0, 2)
    copies = [torch._lazy_clone(param.detach()) for param in params]
    before = [param.detach().clone() for param in params]
    train(opt, params, 2, 4)
    assert same(copies, before)
    assert not torch.equal(params[0], before[0])


# When it comes


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Answer of the cache, which tests change; compiling pays at once."""
    found = [False]
    monkeypatch.setattr(extension, "is_stored", lambda _: found[0])
    monkeypatch.setattr(sweep, "PATIENCE", 0.0)
    sweep.used, sweep._builder, sweep._looked = PLAIN, None, False
    yield found
    if sweep._builder is not None:
        sweep._builder.join()


def test_it_is_compiled_once_steps_have_gone_on(stored: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = sweep_or_skip()
    monkeypatch.setattr(sweep, "PATIENCE", 1e9)
    params, opt = made()
    train(opt, params, 0, 10)
    assert sweep._builder is None
    monkeypatch.setattr(sweep, "PATIENCE", 0.0)
    train(opt, params, 10, 11)
    assert sweep._builder is not None
    sweep._builder.join()
    assert sweep.used is compiled


def test_it_is_taken_at_once_from_the_cache(stored: list[bool]) -> None:
    compiled = sweep_or_skip()
    stored[0] = True
    params, opt = made()
    train(opt, params, 0, 1)
    assert sweep.used is PLAIN
    train(opt, params, 1, 2)
    assert sweep.used is compiled
    assert sweep._builder is None


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(("count", "given"), [(sweep.MANY - 1, "cpu"), (sweep.MANY, "torch")])
def test_it_is_not_where_it_would_not_pay(count: int, given: str) -> None:
    require_compiler()
    params = [nn.Parameter(torch.zeros(5)) for _ in range(count)]
    opt = AdamW(params, target=given)
    train(opt, params, 0, 10)
    assert sweep._builder is None
    assert not sweep._looked


def test_where_it_cannot_be_compiled_python_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(behind: bool) -> Sweep:
        raise CompileError("no Python.h")

    monkeypatch.setattr(extension, "load_extension", fail)
    assert sweep.compile_now() is PLAIN
    assert sweep.used is PLAIN


def test_the_cache_is_asked_for_this_very_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep_or_skip()
    assert extension.is_stored(sweep.SOURCE)
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert not extension.is_stored(sweep.SOURCE)


ENDS_EARLY = """
import sys, threading, time
from pathlib import Path
from optgen.runtime.building import programs
run = lambda: programs.run([sys.executable, "-c", CHILD], Path(sys.argv[1]), 60, behind=True)
threading.Thread(target=run, daemon=True).start()
while not (Path(sys.argv[1]) / "started").exists():
    time.sleep(0.01)
"""
CHILD = """
import os, subprocess, sys, time
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
text = f"{os.getpid()} {inner.pid} {os.getpriority(os.PRIO_PROCESS, inner.pid)}"
open(os.environ["TMPDIR"] + "/written", "w").write(text)
os.rename(os.environ["TMPDIR"] + "/written", os.environ["TMPDIR"] + "/started")
time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="groups of processes are POSIX's")
def test_a_compiler_in_the_background_ends_with_its_process(tmp_path: Path) -> None:
    """With everything that it has started; and it leaves the processor to others."""
    code = ENDS_EARLY.replace("CHILD", repr(CHILD))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, timeout=60, check=False)
    assert done.returncode == 0
    outer, inner, priority = map(int, (tmp_path / "started").read_text().split())
    assert priority > os.getpriority(os.PRIO_PROCESS, 0)
    for pid in (outer, inner):
        for _ in range(200):
            if not is_running(pid):
                break
            time.sleep(0.05)
        assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Check whether there is such a process that has not ended; one that nobody has waited for has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
