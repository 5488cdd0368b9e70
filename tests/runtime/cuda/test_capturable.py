"""`capturable` and numbers on a GPU: what is refused where there is nothing to capture, and what the host never reads.

Tensors on a GPU that is not there are fake ones (torch's own: shapes, dtypes and devices without values): reading one
raises.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.catalogue import optimizer_class, required, rows
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from optgen.runtime.cuda import graph_capture
from optgen.runtime.cuda.graph_capture import check_capture, place_lr
from optgen.runtime.settings.seen import seen_settings
from optgen.runtime.settings.validation import checked
from runtime.training import make_params, same, saved, snapshot, train

AdamW: Any = optimizer_class("AdamW")
LARS: Any = optimizer_class("LARS")


def number_on_a_device(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """A number that cannot be read."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


def on_gpu(**settings: Any) -> Any:
    """An optimizer of parameters on a GPU."""
    with FakeTensorMode():
        params = [nn.Parameter(torch.empty(3, device="cuda:0")), nn.Parameter(torch.empty(2, device="cuda:0"))]
        return AdamW([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], **settings)


# The setting


@pytest.mark.parametrize("name", sorted(rows()))
def test_every_class_takes_it_by_keyword_and_refuses_it_on_a_cpu(name: str) -> None:
    params = make_params(shapes=((4, 3), (5,)), of=name)
    if optimizer_class(name).fixed.get("fused_backward"):
        with pytest.raises(ValueError, match=f"^{name}: fused_backward=True does not go with capturable=True"):
            optimizer_class(name)(params, **required(name), capturable=True)
        return
    opt = optimizer_class(name)(params, **required(name), capturable=True)
    if hasattr(opt, "train"):
        opt.train()
    assert opt.param_groups[0]["capturable"] is True
    start = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.ones_like(param)
    message = (
        f"^{name}: capturable=True needs the cuda target, and the (cpu|torch) target serves a parameter on cpu; leave"
    )
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    assert all(torch.equal(*pair) for pair in zip(start, params, strict=True))
    assert not opt.state
    opt.param_groups[0].update(capturable=False, target="torch")
    train(opt, params, 1, 7)  # some rules only gather averages in their first steps
    assert not torch.equal(start[0], params[0])


def test_it_is_off_by_default_and_is_a_flag() -> None:
    assert AdamW(make_params()).param_groups[0]["capturable"] is False
    with pytest.raises(TypeError, match="AdamW: capturable must be True or False, not 'yes'"):
        AdamW(make_params(), capturable="yes")


def test_switched_on_later_it_is_refused_and_changes_nothing(target: str) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    train(opt, params, 1, 2)
    opt.param_groups[0]["capturable"] = True
    before = snapshot(opt, params)
    with pytest.raises(RuntimeError, match=f"AdamW: capturable=True needs the cuda target, and the {target} target"):
        train(opt, params, 3, 3)
    assert same(snapshot(opt, params), before)


@pytest.mark.parametrize("theirs", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_a_checkpoint_does_not_switch_it(own: bool, theirs: bool) -> None:
    """Neither another optimizer's of this package nor torch's, of which it is a key too."""
    params = make_params(shapes=((3,),))
    opt = AdamW(params, capturable=own)
    opt.load_state_dict(AdamW(make_params(shapes=((3,),)), lr=0.5, capturable=theirs).state_dict())
    assert (opt.param_groups[0]["capturable"], opt.param_groups[0]["lr"]) == (own, 0.5)
    foreign = torch.optim.AdamW(params).state_dict()
    foreign["param_groups"][0]["capturable"] = theirs
    opt.load_state_dict(foreign)
    assert opt.param_groups[0]["capturable"] is own


def test_a_checkpoint_from_before_it_was_there() -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    train(opt, params, 1, 2)
    checkpoint = saved(opt)
    del checkpoint["param_groups"][0]["capturable"]
    opt.load_state_dict(checkpoint)
    train(opt, params, 3, 3)
    assert opt.param_groups[0]["capturable"] is False


def test_target_cuda_on_a_cpu() -> None:
    params = make_params()
    opt = AdamW(params, target="cuda")
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"AdamW: target='cuda' .*cpu"):
        opt.step()
    assert not opt.state


# While a graph is being captured


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_nothing_is_captured_here() -> None:
    assert graph_capture.is_capturing() is False


@pytest.mark.usefixtures("capturing")
def test_a_step_that_cannot_be_captured_is_refused_before_anything_happens() -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    before = snapshot(opt, params)
    called = []
    message = "AdamW: a CUDA graph is being captured, and param group 0 has capturable=False: .* pass capturable=True"
    with pytest.raises(RuntimeError, match=message):
        opt.step(lambda: called.append(1) or 0.0)
    assert called == []
    assert same(snapshot(opt, params), before)


@pytest.mark.usefixtures("capturing")
def test_every_group_and_parameter_must_be_capturable() -> None:
    groups: list[dict[str, Any]] = [{"params": [], "capturable": True}, {"params": [], "capturable": True}]
    check_capture("AdamW", groups)
    groups[1]["capturable"] = False
    with pytest.raises(RuntimeError, match="param group 1"):
        check_capture("AdamW", groups)
    groups[1] = {"params": [], "capturable": True, "overrides": {0: {"lr": 1.0}, 1: {"capturable": False}}}
    with pytest.raises(RuntimeError, match="param group 1"):
        check_capture("AdamW", groups)
    del groups[1]["overrides"][1]
    check_capture("AdamW", groups)
    with pytest.raises(RuntimeError, match="param group 0"):
        check_capture("AdamW", [{"params": []}])  # rules with a shared.yaml of their own have no such setting


@pytest.mark.usefixtures("capturing")
def test_lr_is_not_replaced_while_a_graph_is_being_captured() -> None:
    opt = on_gpu(capturable=True)
    check_capture("AdamW", opt.param_groups)
    opt.param_groups[1]["lr"] = 0.25
    with pytest.raises(RuntimeError, match=r"lr of param group 1 was set to 0.25 while .* group\['lr'\].fill_\(\)"):
        opt.step()


# lr on a GPU


def test_lr_moves_to_the_gpu() -> None:
    opt = on_gpu(lr=0.1, capturable=True)
    for group in opt.param_groups:
        lr = group["lr"]
        assert (lr.device.type, lr.dtype, lr.dim()) == ("cuda", torch.float64, 0)
    assert opt.param_groups[0]["lr"] is not opt.param_groups[1]["lr"]
    assert opt.defaults["lr"] == 0.1


def test_lr_stays_where_it_is_otherwise() -> None:
    assert on_gpu(lr=0.1).param_groups[0]["lr"] == 0.1
    assert AdamW(make_params(), lr=0.1, capturable=True).param_groups[0]["lr"] == 0.1
    lr = number_on_a_device()
    group = {"params": [], "capturable": True, "lr": lr}
    place_lr("AdamW", group)
    assert group["lr"] is lr


def test_a_number_set_later_moves_too() -> None:
    opt = on_gpu(lr=0.1, capturable=True)
    with FakeTensorMode():
        opt.param_groups[0]["lr"] = 0.2
        opt.step()  # no parameter has a gradient
    assert opt.param_groups[0]["lr"].device.type == "cuda"


def test_lr_as_a_tensor_on_the_cpu_is_refused() -> None:
    """Whoever holds it would change it, and the GPU would not see that."""
    with FakeTensorMode():
        param = nn.Parameter(torch.empty(3, device="cuda:0"))
        with pytest.raises(
            ValueError, match=r"AdamW: capturable=True reads lr on the GPU, .* on the CPU: pass a number"
        ):
            AdamW([{"params": [param], "lr": torch.tensor(0.1)}], lr=0.5, capturable=True)


@pytest.mark.parametrize("form", [0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)], ids=repr)
def test_a_saved_lr_moves_to_the_gpu(form: Any) -> None:
    group = {"params": [torch.empty(3, device="meta")], "capturable": True, "lr": number_on_a_device()}
    assert graph_capture.adopted_lr(group, form) is form  # no GPU
    opt = on_gpu(capturable=True)
    adopted = graph_capture.adopted_lr(opt.param_groups[0], form)
    assert (type(adopted), adopted) == (float, 0.25)
    with FakeTensorMode():
        opt.param_groups[0]["lr"] = adopted
        place_lr("AdamW", opt.param_groups[0])
    assert opt.param_groups[0]["lr"].device.type == "cuda"


def test_a_saved_tensor_is_a_tensor_again_where_it_was_one() -> None:
    params = make_params()
    opt = AdamW(params, lr=torch.tensor(0.5), target="torch")
    opt.load_state_dict(AdamW(make_params(), lr=torch.tensor(0.25)).state_dict())
    assert torch.equal(opt.param_groups[0]["lr"], torch.tensor(0.25))


def test_schedulers_write_into_it() -> None:
    """torch's schedulers fill a tensor in place, so that what a graph reads stays the same memory."""
    lr = torch.tensor(0.1, dtype=torch.float64)
    params = make_params()
    opt = AdamW(params, lr=lr, target="torch")
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
    train(opt, params, 1, 1)
    scheduler.step()
    assert opt.param_groups[0]["lr"] is lr
    assert float(lr) == 0.05


# Numbers on a device are not read


def test_a_number_on_a_device_is_taken_unread() -> None:
    lr, beta = number_on_a_device(), number_on_a_device(torch.float32)
    result = checked("AdamW", AdamW.rule, {"lr": lr, "betas": (beta, 0.9), "eps": number_on_a_device()})
    assert result["lr"] is lr
    assert result["betas"][0] is beta
    AdamW(make_params(), lr=lr)  # nor does the constructor read it


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((2,), torch.float32, ValueError, "Tensor lr must be 1-element"),
        ((), torch.bool, TypeError, "AdamW: lr must be a number in"),
    ],
    ids=["two", "bool"],
)
def test_what_can_be_told_unread_is_told(
    shape: tuple[int, ...], dtype: torch.dtype, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AdamW(make_params(), lr=number_on_a_device(dtype, shape))


@pytest.mark.parametrize(
    ("cls", "name"),
    [(AdamW, "max_unorm"), (AdamW, "percentile_clipping"), (AdamW, "min_8bit_size"), (LARS, "momentum"),
     (LARS, "dampening"), (LARS, "trust_coefficient")],
)  # fmt: skip
def test_numbers_that_decide_kernels_and_refusals_are_the_hosts(cls: Any, name: str) -> None:
    """Momentum 0 has no state; dampening without momentum is refused: the host must know both."""
    settings = {**required(cls.__name__), name: number_on_a_device()}
    message = f"{cls.__name__}: {name} decides which kernels serve, .* not a tensor on cuda:0"
    with pytest.raises(TypeError, match=message):
        cls(make_params(), **settings)
    settings[name] = torch.tensor({"percentile_clipping": 50.0, "momentum": 0.9, "min_8bit_size": 16}.get(name, 0.0))
    if name == "trust_coefficient":
        settings["trust_ratio"] = "lars"
    cls(make_params(), **settings)  # on the CPU they may be tensors


def test_tensors_on_a_device_are_the_same_by_identity() -> None:
    opt = AdamW(make_params())
    first, second = number_on_a_device(), number_on_a_device()
    group = opt.param_groups[0]
    rates = (first, first, second, 0.1, torch.tensor(0.1, dtype=torch.float64))
    rows = [seen_settings(opt.rule, opt.defaults, {**group, "lr": lr}) for lr in rates]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]
    assert rows[0] != rows[3]
    assert rows[3] == rows[4]  # one on the CPU by its value
