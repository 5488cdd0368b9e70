"""States that are replaced between two steps: every target reads them as they are, or refuses them, alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from optgen_optim import Adafactor, AdamW, AdamW8bit
from support.machine import sweep_or_skip
from support.targets import ready
from torch import Tensor

from optgen.runtime.core import sweep
from runtime.training import same, snapshot

SHAPE = (64, 256)


@pytest.fixture(params=["torch", "cpu", "cpu, compiled sweep", "cuda"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each target; cuda on the stand-in."""
    name, _, compiled = request.param.partition(", ")
    with ready(name) as target:
        monkeypatch.setattr(sweep, "used", sweep_or_skip() if compiled else sweep.PLAIN)
        yield target


class Hollow(torch.Tensor):
    """As a DTensor: it says of itself that it is dense, and has no memory."""

    @staticmethod
    def __new__(cls, like: Tensor) -> Hollow:
        result: Hollow = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)  # type: ignore[attr-defined]
        return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} of what has no values")


def stepped(target: str, cls: Any = AdamW8bit, **settings: Any) -> tuple[Tensor, Any]:
    torch.manual_seed(3)
    param = torch.nn.Parameter(torch.randn(SHAPE))
    opt = cls([param], target=target, **settings)
    param.grad = torch.randn(SHAPE)
    opt.step()
    return param, opt


def stepped_in_8_bits(target: str) -> tuple[Tensor, Any]:
    return stepped(target, min_8bit_size=0)


def refused(opt: Any, param: Tensor, error: type[Exception], message: str) -> None:
    """Refused, and nothing is changed."""
    kept = [(value, value.clone()) for value in opt.state[param].values() if type(value) is Tensor and value.dim()]
    before = param.detach().clone()
    with pytest.raises(error, match=message):
        opt.step()
    assert torch.equal(param, before)
    assert all(torch.equal(*pair) for pair in kept if pair[0].layout is torch.strided and not pair[0].is_meta)


Change = Callable[[Tensor], Any]
SCALES: dict[str, tuple[Change, str]] = {
    "half": (torch.Tensor.half, "state 'exp_avg_absmax' is torch.float16, not torch.float32"),
    "double": (torch.Tensor.double, "is torch.float64"),
    "int": (torch.Tensor.int, "is torch.int32"),
    "meta": (lambda scales: scales.to("meta"), "is on the device meta, without values"),
    "sparse": (torch.Tensor.to_sparse, "is torch.sparse_coo, not dense"),
    "hollow": (Hollow, "is a Hollow without memory of its own"),
    "one left": (lambda scales: scales[:1].clone(), "has 1 scales, and the codes of 'exp_avg', int8.*, have 64"),
    "twice as many": (lambda scales: scales.repeat(2), "has 128 scales"),
    "none left": (lambda scales: scales[:0].clone(), "has 0 scales"),
}


@pytest.mark.parametrize("change", SCALES)
def test_scales_that_no_kernel_can_read_are_refused(change: str, target: str) -> None:
    param, opt = stepped_in_8_bits(target)
    make, message = SCALES[change]
    scales = opt.state[param]["exp_avg_absmax"]
    opt.state[param]["exp_avg_absmax"] = make(scales)
    refused(opt, param, ValueError, message)
    opt.state[param]["exp_avg_absmax"] = scales
    opt.step()


def test_scales_that_are_no_tensor_are_refused(target: str) -> None:
    param, opt = stepped_in_8_bits(target)
    opt.state[param]["exp_avg_sq_absmax"] = opt.state[param]["exp_avg_sq_absmax"].tolist()
    refused(opt, param, TypeError, "state 'exp_avg_sq_absmax' is a list, not a tensor")


def test_scales_in_the_same_memory_and_of_another_dtype_are_refused(target: str) -> None:
    """As `.half()` and then `.bfloat16()` in place leave them, where the second takes the memory of the first."""
    param, opt = stepped_in_8_bits(target)
    scales = opt.state[param]["exp_avg_absmax"]
    scales.data = scales.data.view(torch.int32)
    refused(opt, param, ValueError, "state 'exp_avg_absmax' is torch.int32")


STATES: dict[str, Change] = {
    "meta": lambda state: state.to("meta"),
    "sparse": torch.Tensor.to_sparse,
    "hollow": Hollow,
    "double": torch.Tensor.double,
    "int": torch.Tensor.int,
}


@pytest.mark.parametrize("change", STATES)
@pytest.mark.parametrize("cls", [AdamW, Adafactor])
def test_states_that_no_kernel_can_read_are_refused(cls: Any, change: str, target: str) -> None:
    param, opt = stepped(target, cls)
    for name, value in list(opt.state[param].items()):
        if name == "step" and change in ("double", "int"):
            continue  # a count is brought back to float32
        opt.state[param][name] = STATES[change](value)
        refused(opt, param, ValueError, f"state '{name}' is")
        opt.state[param][name] = value
    opt.step()


LAYOUTS: dict[str, Change] = {
    "apart": lambda state: torch.stack([state, torch.ones_like(state)], -1)[..., 0],
    "negative view": lambda state: torch._neg_view(-state) if state.is_floating_point() else state.clone(),
    "turned": lambda state: state.t().contiguous().t() if state.dim() == 2 else state.clone(),
    "of two dimensions": lambda state: state.reshape(1, -1).clone() if state.dim() == 1 else state.clone(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_that_lie_otherwise_are_read_as_they_are(layout: str, target: str) -> None:
    results = []
    for change in (LAYOUTS[layout], torch.Tensor.clone):
        param, opt = stepped_in_8_bits(target)
        state = opt.state[param]
        for name in state:
            state[name] = change(state[name])
        opt.step()
        opt.step()
        results.append(snapshot(opt, [param]))
        assert all(value.is_contiguous() and not value.is_neg() for value in state.values())
    assert same(*results)


@pytest.mark.parametrize("cls", [AdamW, Adafactor])
def test_states_whose_elements_share_memory_get_memory_of_their_own(cls: Any, target: str) -> None:
    results = []
    for share in (True, False):
        param, opt = stepped(target, cls)
        for name, value in opt.state[param].items():
            expanded = value.reshape(-1)[0].expand(value.shape)
            opt.state[param][name] = expanded if share else expanded.clone()
        opt.step()
        results.append(snapshot(opt, [param]))
    assert same(*results)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_a_state_that_is_none_begins_anew(name: str, target: str) -> None:
    results = []
    for none in (True, False):
        param, opt = stepped(target, AdamW)
        opt.state[param][name] = None if none else torch.zeros(SHAPE)
        opt.step()
        results.append(snapshot(opt, [param]))
    assert same(*results)


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (-1, "-1"),
        (torch.tensor(-1.0), "-1.0"),
        (torch.tensor(float("nan")), "nan"),
        (float("inf"), "inf"),
        (None, "None"),
        ("two", "'two'"),
        (True, "True"),
        (torch.ones(2), r"a tensor of shape \(2,\)"),
        (torch.tensor(1j), "1j"),
        (torch.zeros((), device="meta"), "on the device meta"),
        (torch.ones(()).to_sparse(), "torch.sparse_coo"),
    ],
    ids=str,
)
def test_a_count_that_is_none_is_refused(step: Any, shown: str, target: str) -> None:
    param, opt = stepped(target, AdamW)
    before = opt.state[param]["step"]
    opt.state[param]["step"] = step
    refused(opt, param, ValueError, f"state 'step' is {shown}.*, and must be a number of steps")
    opt.state[param]["step"] = before
    opt.step()
    assert float(before) == 2.0


@pytest.mark.parametrize("step", [5, 5.0, torch.tensor(5), torch.tensor([5.0]), torch.tensor(5.0, dtype=torch.float64)])
def test_a_count_in_another_form_is_taken(step: Any, target: str) -> None:
    param, opt = stepped(target, AdamW)
    opt.state[param]["step"] = step
    opt.step()
    count = opt.state[param]["step"]
    assert (count.dtype, count.shape, float(count)) == (torch.float32, (), 6.0)
