"""Checkpoints to and from bitsandbytes' own classes on the CPU: nothing is lost on the way, and training goes on."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numerics.bounds import assert_within
from runtime.training import same, set_grads, snapshot, train
from support.catalogue import make_oracle, optimizer_class
from torch import Tensor, nn

from optgen.runtime.checkpoints import bitsandbytes_form
from optgen.runtime.settings.storage import asked_codec
from optgen.runtime.states.torch_codecs import decode

bnb = pytest.importorskip("bitsandbytes")

PACKED = "__bnb_optimizer_quant_state__"
SHAPES = ((70, 64), (300,), (7,), ())  # the first has 18 blocks, the last of half a block; 8-bit states
ULP = 2.0**-23


Maker = Callable[[str, Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Case:
    """Arguments for classes of one rule.

    Attributes:
        settings: Of both libraries.
        ours: Settings with which our classes do what bitsandbytes' do.
        other: Settings that loading replaces.
    """

    settings: Mapping[str, Any]
    ours: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=lambda: {"lr": 1.0, "weight_decay": 0.7})


DECAY = {"lr": 0.01, "weight_decay": 0.1}
BETAS = {"betas": (0.8, 0.95)}
MOMENTUM = DECAY | {"momentum": 0.9}
OTHER_MOMENTUM = {"lr": 1.0, "momentum": 0.1}
CASES = {
    "AdamW": Case(DECAY | BETAS | {"eps": 1e-6}),
    "Adam": Case({"lr": 0.01, "weight_decay": 0.0} | BETAS),
    "AdEMAMix": Case(DECAY | {"betas": (0.8, 0.95, 0.99), "alpha": 3.0, "t_alpha": 9, "t_beta3": 9}),
    "Lion": Case({"lr": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "SGD": Case(MOMENTUM, other=OTHER_MOMENTUM),
    "LARS": Case(MOMENTUM | {"max_unorm": 0.02}, {"block_wise": True}, OTHER_MOMENTUM | {"max_unorm": 0.02}),
    "LAMB": Case(DECAY | BETAS, {"block_wise": True, "trust_ratio": "none"}),
    "RMSprop": Case(DECAY | {"lr": 1e-3, "alpha": 0.9}),
    "Adagrad": Case(DECAY),
}
BROKEN = ("AdEMAMix32bit", "PagedAdEMAMix32bit")  # raise at their first step
SIGNED_BOOK = ("RMSprop8bit", "Adagrad8bit")  # theirs has a sign for a state that is never negative, ours has none
CLASSES = [
    name
    for name, cls in vars(bnb.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and name not in (*BROKEN, "PytorchLARS")
]
EIGHT = [name for name in CLASSES if name.endswith("8bit")]


def case_of(name: str) -> Case:
    return CASES[name.removeprefix("Paged").removesuffix("32bit").removesuffix("8bit")]


def make_theirs(name: str, params: Sequence[Tensor]) -> Any:
    return getattr(bnb.optim, name)(params, **case_of(name).settings)


def make_ours(name: str, params: Sequence[Tensor], target: str = "torch", **settings: Any) -> Any:
    case = case_of(name)
    given = {"target": target, **case.other, **case.ours, **settings}
    return optimizer_class(name)(params, **given)


def make_params(scale: float = 1.0, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    return [nn.Parameter(scale * torch.randn(shape, generator=generator)) for shape in shapes]


def copies(params: Sequence[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().clone()) for param in params]


def through_a_file(checkpoint: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    result: dict[str, Any] = torch.load(file, weights_only=True)
    return result


def unpacked(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """bitsandbytes' checkpoint as older versions have it, without the norms that it keeps for no later step."""
    entries = {key: {**entry, **entry.get(PACKED, {})} for key, entry in checkpoint["state"].items()}
    left_out = (PACKED, "unorm_vec")
    state = {key: {k: v for k, v in entry.items() if k not in left_out} for key, entry in entries.items()}
    return {**checkpoint, "state": state}


@pytest.fixture(autouse=True)
def _paged_on_a_cpu() -> Iterator[None]:
    """bitsandbytes says that its paged classes are not paged there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
        yield


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in SIGNED_BOOK])
def test_there_and_back_nothing_is_lost(name) -> None:
    """bitsandbytes' checkpoint, taken over by ours and written again, is the same bit for bit, and so is what follows
    in bitsandbytes."""
    params = make_params()
    theirs = make_theirs(name, params)
    train(theirs, params, 1, 3)
    checkpoint = through_a_file(theirs.state_dict())
    ours = make_ours(name, copies(params))
    ours.load_state_dict(checkpoint)
    written = through_a_file(ours.bitsandbytes_state_dict())
    assert same(unpacked(written), unpacked(checkpoint))
    again = copies(params)
    resumed = make_theirs(name, again)
    resumed.load_state_dict(written)
    train(theirs, params, 4, 6)
    train(resumed, again, 4, 6)
    assert same([p.detach() for p in params], [p.detach() for p in again])


@pytest.mark.parametrize("name", SIGNED_BOOK)
def test_codes_of_another_book_keep_their_values(name) -> None:
    """In 8 bits they are re-encoded with our book, which says so; in 32 bits nothing is lost. Back in bitsandbytes
    they have 8 bits again, each the code nearest to its value."""
    params = make_params()
    theirs = make_theirs(name, params)
    train(theirs, params, 1, 3)
    checkpoint = through_a_file(theirs.state_dict())
    entry = unpacked(checkpoint)["state"][0]
    values = entry["qmap1"][entry["state1"].long()].reshape(-1)
    values = (values * entry["absmax1"].repeat_interleave(256)[: values.numel()]).reshape(SHAPES[0])
    wide = make_ours(name.removesuffix("8bit"), copies(params))
    wide.load_state_dict(checkpoint)
    state = {"RMSprop8bit": "square_avg", "Adagrad8bit": "sum"}[name]
    assert torch.equal(wide.state[wide.param_groups[0]["params"][0]][state], values)

    mine = copies(params)
    ours = make_ours(name, mine)
    with pytest.warns(
        UserWarning, match="stores states as int8 in blocks of 256 with another code book; .* stored as int8 in blocks"
    ):
        ours.load_state_dict(checkpoint)
    train(ours, mine, 4, 4)
    assert ours.state[mine[0]][state].dtype is torch.uint8
    written = ours.bitsandbytes_state_dict()["state"][0]
    assert written["state1"].dtype is torch.uint8
    assert torch.equal(written["qmap1"], entry["qmap1"])
    back = written["qmap1"][written["state1"].long()].reshape(-1)
    scales = written["absmax1"].repeat_interleave(256)[: back.numel()]
    kept = optgen_values(ours, mine[0], state).reshape(-1)
    # A code's cell is at most as wide as the widest of the signed book, (1 - 0.1) / 64, of which half is the error.
    assert ((back * scales - kept).abs() <= scales * (0.9 / 64 / 2 + ULP)).all()
    resumed = make_theirs(name, copies(mine))
    resumed.load_state_dict(ours.bitsandbytes_state_dict())


def optgen_values(opt: Any, param: Tensor, state: str) -> Tensor:
    """A state in float32."""
    declared = opt.rule.states[state]
    entry = opt.state[param]
    return decode("int8", entry[state], entry[f"{state}_absmax"], declared.signed, param.shape)


STEPS, SWITCH = 10, 5
# Its LAMB takes the norm of the update before the correction of its bias on a CPU: compared where no norm decides.
SCALE = {"LAMB": 3000.0}


@pytest.mark.parametrize("direction", ["to ours", "from ours"])
@pytest.mark.parametrize("name", CASES)
def test_in_32_bits_it_goes_on_as_one_run(name, direction, target) -> None:
    """Five steps in one library and five in the other end where ten of the formulas do, to float32's roundings."""
    case = case_of(name)
    params = make_params(SCALE.get(name, 1.0))
    oracle = make_oracle(name, params, {**case.settings, **case.ours})
    opt = make_theirs(name, params) if direction == "to ours" else make_ours(name, params, target, **case.settings)
    for step in range(1, STEPS + 1):
        if step == SWITCH + 1:
            params = copies(params)
            if direction == "to ours":
                checkpoint, opt = opt.state_dict(), make_ours(name, params, target)
            else:
                checkpoint, opt = opt.bitsandbytes_state_dict(), make_theirs(name, params)
            opt.load_state_dict(through_a_file(checkpoint))
        set_grads(params, step)
        oracle.step([param.grad for param in params])
        opt.step()
    if direction == "to ours":
        assert opt.engines() == {target: len(params)}
    for param, ball in zip(params, oracle.balls, strict=True):
        assert_within(param, ball, name)
        assert np.median(ball.rad / np.maximum(np.abs(ball.mid), 1e-3)) < 1e-4


def curve(name: str, first: Maker, second: Maker | None = None) -> list[float]:
    """The losses of 40 steps on a matrix of 4096 weights; from the 20th on in `second`, from the first's checkpoint."""
    generator = torch.Generator().manual_seed(3)
    x, matrix, last = (torch.randn(shape, generator=generator) for shape in ((256, 64), (64, 64), (64, 8)))
    wanted = torch.tanh(x @ matrix / 8) @ last / 8
    weight = nn.Parameter(torch.randn(64, 64, generator=generator) / 8)
    opt, losses = first(name, [weight]), []
    for number in range(40):
        if number == 20 and second is not None:
            checkpoint = opt.state_dict() if first is make_theirs else opt.bitsandbytes_state_dict()
            opt = second(name, [weight])
            opt.load_state_dict(through_a_file(checkpoint))
        loss = ((torch.tanh(x @ weight) @ last / 8 - wanted) ** 2).mean()
        losses.append(loss.item())
        opt.zero_grad()
        loss.backward()
        opt.step()
    return losses


def apart(curve: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / a for a, b in zip(curve, other, strict=True))


# Theirs in 8 bits never looks at norms.
WITHOUT_NORMS = {"LAMB8bit": {"max_unorm": 0.0}, "LARS8bit": {"max_unorm": 0.0}}


@pytest.mark.filterwarnings("ignore:.*with another code book")
@pytest.mark.parametrize("name", [name for name in EIGHT if not name.startswith("Paged")])
def test_in_8_bits_the_curve_is_the_same(name) -> None:
    """Changing the library half-way, in either direction, changes the losses less than 8 bits in place of 32 do."""
    case = case_of(name)

    def ours(name: str, params: Sequence[Tensor]) -> Any:
        return make_ours(name, params, **WITHOUT_NORMS.get(name, {}))

    def ours_as_theirs(name: str, params: Sequence[Tensor], **settings: Any) -> Any:
        return make_ours(name, params, **{**case.settings, **WITHOUT_NORMS.get(name, {}), **settings})

    def ours_in_32_bits(name: str, params: Sequence[Tensor]) -> Any:
        return ours_as_theirs(name, params, min_8bit_size=10**6)

    whole = curve(name, make_theirs)
    allowed = apart(whole, curve(name, ours_in_32_bits))
    assert allowed < 0.1
    assert 0 < apart(whole, curve(name, make_theirs, ours)) < allowed
    assert 0 < apart(whole, curve(name, ours_as_theirs, make_theirs)) < allowed


def refused(opt: Any, checkpoint: Any, *parts: str) -> None:
    """Refused with these words, and nothing is loaded."""
    params = [param for group in opt.param_groups for param in group["params"]]
    before = snapshot(opt, params)
    with pytest.raises(ValueError, match=f"{type(opt).__name__}: this checkpoint does not fit") as raised:
        opt.load_state_dict(checkpoint)
    for part in parts:
        assert part in str(raised.value)
    assert same(before, snapshot(opt, params))


def changed(checkpoint: Mapping[str, Any], **entry: Any) -> dict[str, Any]:
    first = {**checkpoint["state"][0], **entry}
    state = {**checkpoint["state"], 0: {key: value for key, value in first.items() if value is not None}}
    return {**checkpoint, "state": state}


def test_what_does_not_fit_is_named() -> None:
    params = make_params()
    theirs = make_theirs("AdamW8bit", params)
    train(theirs, params, 1, 2)
    good = unpacked(theirs.state_dict())
    ours = make_ours("AdamW8bit", copies(params))
    train(ours, ours.param_groups[0]["params"], 1, 1)
    refused(ours, changed(good, state1=torch.zeros(3)), "parameter 0: state1 has shape (3,), not (70, 64)")
    refused(ours, changed(good, state2=None), "parameter 0: state2 missing, there is step, state1")
    refused(ours, changed(good, qmap1=torch.zeros(16)), "parameter 0: qmap1 has shape (16,), not (256,)")
    refused(ours, changed(good, qmap2=None), "parameter 0: qmap2 is missing")
    refused(ours, changed(good, absmax1=torch.ones(4)), "absmax1 has 4 scales, not 18, one for 256 elements")
    refused(ours, changed(good, state1=torch.zeros(70, 64, dtype=torch.int64)), "state1 has dtype int64")
    refused(ours, changed(good, state1=3), "parameter 0: state1 is a int, not a tensor")
    refused(ours, changed(good, state1=torch.zeros(70, 64, dtype=torch.int8)), "state1 has dtype int8")
    refused(
        ours, changed(good, state1=torch.zeros(70, 64)), "state1 has dtype float32, and qmap1 is for codes of 8 bits"
    )
    refused(ours, changed(good, absmax1=torch.ones(18, dtype=torch.int64)), "parameter 0: absmax1 has dtype int64")
    refused(ours, changed(good, qmap1=torch.arange(256)), "parameter 0: qmap1 has dtype int64")
    refused(ours, changed(good, qmap1=torch.full((256,), torch.nan)), "qmap1 has numbers that are not finite")
    refused(ours, changed(good, __bnb_optimizer_quant_state__=3), "quant_state__ is a int, not a dict of tensors")
    refused(ours, changed(good, state3=torch.zeros(2)), "parameter 0: bitsandbytes keeps no state3")
    refused(ours, changed(good, step=float("nan")), "parameter 0: step is nan, and must be a number of steps")
    refused(optimizer_class("Adafactor")(copies(params)), good, "bitsandbytes, which has nothing like Adafactor")
    refused(make_ours("Lion", copies(params), weight_decay=0.0), {**good, "param_groups": []}, "0 param groups, not 1")
    refused(make_ours("SGD", copies(params)), good, "parameter 0: state2 is not a state of sgd, which has one")
    momentum = make_theirs("SGD", params)
    train(momentum, params, 1, 1)
    refused(ours, momentum.state_dict(), "parameter 0: state2 missing, there is")


def test_its_adam_is_not_ours() -> None:
    """Its Adam decays the parameter itself, as AdamW does: without a decay it can be either, with one AdamW alone."""
    params = make_params()
    theirs = bnb.optim.Adam(params, weight_decay=0.1)
    train(theirs, params, 1, 1)
    message = "group 0 has decoupled_weight_decay=True, and Adam is decoupled_weight_decay=False"
    refused(optimizer_class("Adam")(params), theirs.state_dict(), message)
    ours = optimizer_class("AdamW")(params)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["weight_decay"] == 0.1


def test_groups_keep_what_it_does_not_know() -> None:
    params = make_params()
    theirs = bnb.optim.SGD([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}], 0.1, 0.9, dampening=0.4)
    ours = optimizer_class("SGD")([{"params": params[:1]}, {"params": params[1:], "maximize": True}], 1.0, 0.5)
    ours.load_state_dict(theirs.state_dict())
    found = [[group[key] for key in ("lr", "momentum", "dampening", "maximize")] for group in ours.param_groups]
    assert found == [[0.5, 0.9, 0.0, False], [0.1, 0.9, 0.0, True]]
    assert all("betas" not in group for group in ours.param_groups)


@pytest.mark.parametrize("name", EIGHT)
def test_older_forms_of_8_bits(name) -> None:
    """2048 elements to a scale become float32, and one scale for the tensor is ours as well."""
    params = make_params(shapes=((70, 64),))
    theirs = make_theirs(name, params)
    train(theirs, params, 1, 2)
    good = unpacked(theirs.state_dict())
    entry = good["state"][0]
    rows = 2 if entry["state1"].dim() == 3 else 1
    numbers = [number for number in ("1", "2") if f"state{number}" in entry]
    scales = {"1": torch.tensor([0.5, 2.0, 4.0]), "2": torch.tensor([0.25, 1.0, 8.0])}
    by_rows = {"1": rows, "2": 1}
    old = {f"absmax{n}": scales[n].repeat(by_rows[n]).reshape(*(2,) * (by_rows[n] - 1), 3) for n in numbers}
    ours = make_ours(name.removesuffix("8bit"), copies(params))
    ours.load_state_dict(changed(good, **old))
    kept = ours.state[ours.param_groups[0]["params"][0]]
    states = list(bitsandbytes_form.FORMS[ours.rule.name].states.items())
    for number, names in states:
        codes = entry[f"state{number}"].reshape(len(names), -1).long()
        for row, state in enumerate(names):
            expected = entry[f"qmap{number}"][codes[row]] * scales[number].repeat_interleave(2048)[: codes.shape[1]]
            assert torch.equal(kept[state].reshape(-1), expected)
    narrow = make_ours(name, copies(params))
    with pytest.warns(
        UserWarning, match="stores states as int8 in blocks of 2048.*; .* stored as int8 in blocks of 256"
    ):
        narrow.load_state_dict(changed(good, **old))

    whole = {f"max{n}": torch.full((by_rows[n],), 3.0) for n in numbers} | {f"absmax{n}": None for n in numbers}
    ours.load_state_dict(changed(good, **whole))
    kept = ours.state[ours.param_groups[0]["params"][0]]
    for number, names in states:
        if name.removeprefix("Paged") in SIGNED_BOOK:
            continue
        codes = entry[f"state{number}"].reshape(len(names), 70, 64)
        for row, state in enumerate(names):
            assert torch.equal(kept[state], codes[row])
            assert kept[f"{state}_absmax"].tolist() == [3.0]


def test_a_window_of_norms_comes_along() -> None:
    """As versions with percentile clipping keep it."""
    params = make_params()
    theirs = make_theirs("AdamW", params)
    train(theirs, params, 1, 1)
    window = torch.rand(100)
    ours = make_ours("AdamW", params, percentile_clipping=50)
    ours.load_state_dict(changed(unpacked(theirs.state_dict()), gnorm_vec=window))
    assert torch.equal(ours.state[params[0]]["gnorm_vec"], window)
    assert ours.param_groups[0]["percentile_clipping"] == 50


def test_pytorch_lars_has_torchs_form() -> None:
    """Its states have names, in both libraries the same."""
    params = make_params()
    theirs = bnb.optim.PytorchLARS(params, 0.01, 0.9)
    train(theirs, params, 1, 2)
    mine, again = copies(params), copies(params)
    ours = optimizer_class("PytorchLARS")(mine, 1.0)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    with pytest.raises(ValueError, match=r"of this name in bitsandbytes loads what state_dict\(\) returns"):
        ours.bitsandbytes_state_dict()
    back = bnb.optim.PytorchLARS(again, 1.0)
    back.load_state_dict(through_a_file(ours.state_dict()))
    for step in (3, 4):
        for members, opt in ((params, theirs), (mine, ours), (again, back)):
            set_grads(members, step)
            opt.step()
    assert same([p.detach() for p in params], [p.detach() for p in again])
    for a, b in zip(params, mine, strict=True):
        torch.testing.assert_close(a, b, rtol=16 * ULP, atol=16 * ULP)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16", "int8", "int4", "normal4", "fp8", "companded8"])
@pytest.mark.parametrize("block_wise", [True, False])
def test_what_it_does_not_store_becomes_float32(codec, block_wise) -> None:
    """Of other codecs nothing is lost; 8-bit codes in other blocks are coded again."""
    params = make_params()
    ours = make_ours("AdamW", params, codec=codec, block_wise=block_wise, min_8bit_size=1000, weight_decay=0.0)
    train(ours, params, 1, 3)
    entry = ours.bitsandbytes_state_dict()["state"][0]
    asked = asked_codec({**ours.param_groups[0]})
    own = ours.state[params[0]]
    values = decode(asked, own["exp_avg"], own.get("exp_avg_absmax"), True, params[0].shape)
    if codec != "int8":
        assert "qmap1" not in entry
        assert torch.equal(entry["state1"], values)
    else:
        assert entry["absmax1"].numel() == 18
        back = (entry["qmap1"][entry["state1"].long()].reshape(-1)).reshape(-1)
        back = back * entry["absmax1"].repeat_interleave(256)[: back.numel()]
        last_places = 3 * 2.0**-23 * back.abs()  # two of a book's, and a product is rounded
        # Half of the widest cell of the signed book, (1 - 0.1) / 64, of the largest of all scales.
        half_cell = own["exp_avg_absmax"].max() * (0.9 / 64 / 2 + ULP)
        assert ((back - values.reshape(-1)).abs() <= (last_places if block_wise else half_cell)).all()
    resumed = make_theirs("AdamW8bit", copies(params))
    resumed.load_state_dict(ours.bitsandbytes_state_dict())
    train(resumed, resumed.param_groups[0]["params"], 4, 4)


def test_what_it_cannot_go_on_from_is_named() -> None:
    params = make_params()

    def wrong(opt: Any, *parts: str) -> None:
        with pytest.raises(ValueError, match=type(opt).__name__) as raised:
            opt.bitsandbytes_state_dict()
        for part in parts:
            assert part in str(raised.value)

    wrong(optimizer_class("ADOPT")(params), "bitsandbytes has no such rule")
    wrong(optimizer_class("Adam")(params, weight_decay=0.1), "has decoupled_weight_decay=False, and it knows decoupled")
    optimizer_class("Adam")(params).bitsandbytes_state_dict()
    amsgrad = optimizer_class("AdamW")(params, amsgrad=True, maximize=True, percentile_clipping=50)
    train(amsgrad, params, 1, 1)
    wrong(
        amsgrad,
        "group 0 has amsgrad=True, and it knows amsgrad=False alone",
        "maximize=True",
        "percentile_clipping=50",
        "parameter 0 has max_exp_avg_sq",
    )
    wrong(optimizer_class("SGD")(params, 0.1, 0.9, 0.3), "dampening=0.3")
    wrong(optimizer_class("SGD")(params, 0.1, 0.9, nesterov=True), "nesterov=True")
    wrong(optimizer_class("LAMB")(params), "trust_ratio='lamb', and it knows trust_ratio='none' alone")
    wrong(optimizer_class("RMSprop")(params, momentum=0.9), "momentum=0.9, and it knows momentum=0")
    plain = optimizer_class("SGD")(params, 0.1)
    train(plain, params, 1, 1)
    wrong(plain, "parameter 0 has no momentum_buffer")
    own = optimizer_class("AdamW")(params)
    own.override(params[1], optim_bits=8)
    own.bitsandbytes_state_dict()
    own.override(params[1], lr=0.5)
    wrong(own, "parameter 1 of group 0 has lr of its own")
    kahan = optimizer_class("AdamW")([nn.Parameter(torch.ones(9, dtype=torch.bfloat16))], rounding="kahan")
    train(kahan, kahan.param_groups[0]["params"], 1, 1)
    wrong(kahan, "parameter 0 has param_compensation")


def test_before_the_first_step() -> None:
    params = make_params()
    for name in ("AdamW", "SGD", "RMSprop"):
        ours, theirs = make_ours(name, params), make_theirs(name, params)
        ours.load_state_dict(theirs.state_dict())
        written = ours.bitsandbytes_state_dict()
        assert same(written, theirs.state_dict())


def test_a_learning_rate_that_is_a_tensor_and_what_schedulers_keep() -> None:
    params = make_params()
    ours = optimizer_class("AdamW")(params, lr=torch.tensor(0.25))
    ours.param_groups[0]["initial_lr"] = 0.5
    group = ours.bitsandbytes_state_dict()["param_groups"][0]
    assert (type(group["lr"]), group["lr"], group["initial_lr"]) == (float, 0.25, 0.5)
