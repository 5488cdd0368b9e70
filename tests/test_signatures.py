"""Constructors: their exact signatures, and the exact messages of what they refuse."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.catalogue import accepted, optimizer_class, required, rows, shapes_of
from support.package_signatures import SIGNATURES

pytest.importorskip("optgen_optim")

NEEDED = inspect.Parameter.empty
ADAMW: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "amsgrad": False,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": True,
    "is_paged": False,
}
LAMB: dict[str, Any] = {
    "lr": 1e-3,
    "bias_correction": True,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
    "adam_w_mode": True,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": False,
    "max_unorm": 1.0,
}
LARS: dict[str, Any] = {
    "lr": NEEDED,
    "momentum": 0,
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": False,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "max_unorm": 0.02,
}
PYTORCH_LARS: dict[str, Any] = {
    "lr": 0.01,
    "momentum": 0,
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": False,
    "max_unorm": 0.02,
}
SGD: dict[str, Any] = {
    "lr": 1e-3,
    "momentum": 0,
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": False,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": True,
}
ADAGRAD: dict[str, Any] = {
    "lr": 1e-2,
    "lr_decay": 0,
    "weight_decay": 0,
    "initial_accumulator_value": 0,
    "eps": 1e-10,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": True,
}
RMSPROP: dict[str, Any] = {
    "lr": 1e-2,
    "alpha": 0.99,
    "eps": 1e-8,
    "weight_decay": 0,
    "momentum": 0,
    "centered": False,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": True,
}
LION: dict[str, Any] = {
    "lr": 1e-4,
    "betas": (0.9, 0.99),
    "weight_decay": 0,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": True,
    "is_paged": False,
}
ADEMAMIX: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999, 0.9999),
    "alpha": 5.0,
    "t_alpha": None,
    "t_beta3": None,
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "optim_bits": 32,
    "min_8bit_size": 4096,
    "is_paged": False,
}
# torch.optim's, of the arguments that choose no implementation.
TORCH: dict[str, dict[str, Any]] = {
    "NAdam": {
        "lr": 2e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "momentum_decay": 4e-3,
        "decoupled_weight_decay": False,
    },
    "RAdam": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "decoupled_weight_decay": False},
    "Adamax": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0},
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0},
    "Rprop": {"lr": 1e-2, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50)},
    "ASGD": {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0},
}


def without(signature: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: default for name, default in signature.items() if name not in names}


def expected_signatures() -> dict[str, dict[str, Any]]:
    adam = ADAMW | {"weight_decay": 0}
    table = SIGNATURES | {"PytorchLARS": PYTORCH_LARS, "LAMB": LAMB, "LARS": LARS}
    for suffix in ("", "8bit", "32bit"):
        table |= {f"AdamW{suffix}": ADAMW, f"Adam{suffix}": adam}
        table |= {f"Paged{name}{suffix}": without(of, "is_paged") for name, of in (("AdamW", ADAMW), ("Adam", adam))}
        if suffix:
            table |= {f"LAMB{suffix}": without(LAMB, "optim_bits"), f"LARS{suffix}": without(LARS, "optim_bits")}
        own = ("optim_bits",) if suffix else ()
        for name, of in (("SGD", SGD), ("RMSprop", RMSPROP), ("Lion", LION), ("AdEMAMix", ADEMAMIX)):
            table[f"{name}{suffix}"] = without(of, *own)
            if "is_paged" in of:
                table[f"Paged{name}{suffix}"] = without(of, "is_paged", *own)
        table[f"Adagrad{suffix}"] = ADAGRAD | ({"optim_bits": 8} if suffix == "8bit" else {})
    return table | TORCH


@pytest.mark.parametrize("name", TORCH)
def test_torchs_signature_is_as_torch_has_it(name) -> None:
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    positional = {key: theirs[key].default for key in theirs if key in TORCH[name]}
    assert list(positional.items()) == list(TORCH[name].items())


def make(name: str, /, **settings: Any) -> torch.optim.Optimizer:
    return optimizer_class(name)([torch.nn.Parameter(torch.ones(shapes_of(name, [(3,)])[0]))], **settings)


@pytest.mark.parametrize("name", sorted(expected_signatures()))
def test_signature(name) -> None:
    parameters = dict(inspect.signature(optimizer_class(name)).parameters)
    assert next(iter(parameters)) == "params"
    positional = {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and key != "params"
    }
    expected = expected_signatures()[name]
    assert list(positional.items()) == list(expected.items())
    for key, default in expected.items():
        assert isinstance(positional[key], bool) == isinstance(default, bool), key
    extra = [parameter for key, parameter in parameters.items() if key not in {"params", *expected}]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in extra)
    assert all(parameter.default is not NEEDED for parameter in extra)


def test_every_class_is_listed() -> None:
    assert set(expected_signatures()) == set(rows())


@pytest.mark.parametrize("name", sorted(rows()))
def test_annotated_documented_and_an_optimizer(name) -> None:
    cls: Any = optimizer_class(name)
    assert issubclass(cls, torch.optim.Optimizer)
    assert cls.__name__ == name
    for parameter in inspect.signature(cls).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        assert parameter.name in (cls.__doc__ or "") + (cls.__init__.__doc__ or ""), parameter


def test_positional_call_as_for_bitsandbytes() -> None:
    param = torch.nn.Parameter(torch.ones(5000))
    opt = optimizer_class("AdamW")([param], 0.1, (0.8, 0.9), 1e-6, 0.0, False, 8, None, 1, 50, False, True)
    group = opt.param_groups[0]
    found = [group[key] for key in ("lr", "betas", "eps", "weight_decay", "percentile_clipping", "block_wise")]
    assert found == [0.1, (0.8, 0.9), 1e-6, 0.0, 50, False]
    lars = optimizer_class("LARS")([param], 0.1, 0.9)
    assert lars.param_groups[0]["momentum"] == 0.9


EIGHT = [name for name, row in rows().items() if row.bits == 8]
EIGHT_ADAM = [name for name in EIGHT if rows()[name].rule == "adam"]
LARS_CLASSES = ["LARS", "LARS8bit", "LARS32bit"]
COMPATIBILITY = "{} only supports optim_bits=32 (default value for compatibility)"

Refusal = tuple[str, dict[str, Any], type[Exception], str]
REFUSED: list[Refusal] = [
    *[
        (name, {"amsgrad": True}, ValueError, f"{name} does not support amsgrad=True")
        for name in EIGHT
        if rows()[name].rule in ("adam", "lamb", "adabelief")
    ],
    *[(name, {"optim_bits": 8}, ValueError, COMPATIBILITY.format(name)) for name in EIGHT_ADAM],
    ("AdamW", {"amsgrad": True, "optim_bits": 8}, ValueError, "AdamW does not support amsgrad=True with 8-bit states"),
    ("Adam", {"amsgrad": True, "optim_bits": 8}, ValueError, "Adam does not support amsgrad=True with 8-bit states"),
    *[
        (name, {"lr": 0.1, "momentum": 0}, NotImplementedError, "LARS without momentum is not supported!")
        for name in LARS_CLASSES
    ],
    *[(name, {"lr": -1}, ValueError, "Invalid learning rate: -1") for name in sorted(rows())],
    ("LARS", {"lr": 0.1, "momentum": -1}, ValueError, "Invalid momentum value: -1"),
    ("PytorchLARS", {"momentum": -0.5}, ValueError, "Invalid momentum value: -0.5"),
    ("LARS", {"lr": 0.1, "momentum": 0.9, "weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    ("AdamW", {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    ("AdamW", {"betas": (1.0, 0.999)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
    ("LAMB", {"betas": (0.9, -0.5)}, ValueError, "Invalid beta parameter at index 1: -0.5"),
    ("AdamW", {"eps": -1}, ValueError, "Invalid epsilon value: -1"),
    (
        "LARS",
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "nesterov": True},
        ValueError,
        "Nesterov momentum requires a momentum and zero dampening",
    ),
    ("PytorchLARS", {"nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    ("SGD", {"lr": 0.1, "nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    (
        "SGD8bit",
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "nesterov": True},
        ValueError,
        "Nesterov momentum requires a momentum and zero dampening",
    ),
    (
        "SGD32bit",
        {"lr": 0.1, "dampening": 0.1},
        ValueError,
        "SGD32bit: dampening=0.1 has no effect without momentum",
    ),
    ("SGD", {"lr": 0.1, "momentum": -1}, ValueError, "Invalid momentum value: -1"),
    (
        "RMSprop8bit",
        {"centered": True},
        ValueError,
        "RMSprop8bit does not support centered=True with 8-bit states: the difference of two rounded averages is no",
    ),
    (
        "RMSprop",
        {"centered": True, "optim_bits": 8},
        ValueError,
        "RMSprop does not support centered=True with 8-bit states: the difference of two rounded averages is no",
    ),
    ("RMSprop", {"alpha": 1.0}, ValueError, "Invalid alpha value: 1.0"),
    ("Adagrad", {"initial_accumulator_value": -1}, ValueError, "Invalid initial_accumulator_value value: -1"),
    ("Adagrad", {"lr_decay": -1}, ValueError, "Invalid lr_decay value: -1"),
    (
        "Adagrad8bit",
        {"optim_bits": 32},
        ValueError,
        "Adagrad8bit only supports optim_bits=8 (default value for compatibility)",
    ),
    ("Lion", {"betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1.0"),
    ("AdEMAMix", {"t_alpha": 0}, ValueError, "Invalid t_alpha value: 0"),
    ("AdEMAMix8bit", {"betas": (0.9, 0.999)}, TypeError, "AdEMAMix8bit: betas must be 3 numbers in [0, 1)"),
    ("Adadelta", {"rho": 1.5}, ValueError, "Invalid rho value: 1.5"),
    ("NAdam", {"momentum_decay": -1}, ValueError, "Invalid momentum_decay value: -1"),
    ("Rprop", {"etas": (1.5, 1.2)}, ValueError, "Invalid eta values: 1.5, 1.2"),
    ("Rprop", {"step_sizes": (2.0, 1.0)}, ValueError, "Rprop: step_sizes=(2.0, 1.0) must be the smallest step and"),
    ("ASGD", {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
]


def refusal_id(value: Any) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{key}={entry}" for key, entry in value.items())
    return value if isinstance(value, str) and " " not in value else ""


@pytest.mark.parametrize(("name", "settings", "error", "message"), REFUSED, ids=refusal_id)
def test_messages_that_others_test_for(name, settings, error, message) -> None:
    with pytest.raises(error) as raised:
        make(name, **{**required(name), **settings} if "lr" not in settings else settings)
    assert str(raised.value).startswith(message)


NOT_IN_8_BITS = ("ASGD", "Rprop")


@pytest.mark.parametrize("name", NOT_IN_8_BITS)
@pytest.mark.parametrize("argument", ["min_8bit_size", "block_size", "block_wise"])
def test_without_8_bit_states_there_are_no_arguments_of_them(name, argument) -> None:
    with pytest.raises(TypeError, match=argument):
        make(name, **{argument: 8})


def test_without_momentum_there_is_no_state(target) -> None:
    param = torch.nn.Parameter(torch.ones(5000))
    opt = optimizer_class("SGD")([param], 0.5, target=target)
    param.grad = torch.full((5000,), 3.0)
    opt.step()
    assert (param == -0.5).all()
    assert set(opt.state[param]) == {"step"}


def test_without_momentum_nothing_has_8_bits() -> None:
    message = r"SGD8bit: none of its states can be stored in 8 bits \(int8\): there are none under these settings"
    with pytest.raises(ValueError, match=message):
        optimizer_class("SGD8bit")([torch.nn.Parameter(torch.ones(3))], 0.5)


def test_decoupled_decay_of_sgd(target) -> None:
    param = torch.nn.Parameter(torch.full((4,), 2.0))
    opt = optimizer_class("SGD")([param], 0.5, 0.5, weight_decay=0.5, decoupled_weight_decay=True, target=target)
    for expected in (2.0 * 0.75 - 0.5, 1.0 * 0.75 - 0.75):
        param.grad = torch.ones(4)
        opt.step()
        assert param.tolist() == [expected] * 4
    assert opt.state[param]["momentum_buffer"].tolist() == [1.5] * 4


def test_ademamix_without_a_fast_average(target) -> None:
    """With beta1 = 0, the schedule's half-life begins at that of no memory: where the original is NaN."""
    param = torch.nn.Parameter(torch.zeros(4))
    opt = optimizer_class("AdEMAMix")([param], betas=(0.0, 0.999, 0.81), t_beta3=2, target=target)
    for slow in (0.81**2, 0.81):  # the logarithm of beta3 over the share of t_beta3 that is gone
        before = float(opt.state[param]["exp_avg_slow"][0]) if opt.state[param] else 0.0
        param.grad = torch.ones(4)
        opt.step()
        found = float(opt.state[param]["exp_avg_slow"][0])
        assert found == pytest.approx(slow * before + 1 - slow, rel=2.0**-20)
        assert torch.isfinite(param).all()


LOCKED = [name for name, row in rows().items() if row.bits and not row.torch_only and "args" in accepted(name)]


@pytest.mark.parametrize("name", LOCKED)
def test_classes_that_fix_the_bits_refuse_others_from_args(name) -> None:
    other = 8 if rows()[name].bits == 32 else 16
    with pytest.raises((ValueError, TypeError), match=name):
        make(name, **required(name), args=SimpleNamespace(optim_bits=other))


@pytest.mark.parametrize("name", LOCKED)
def test_classes_that_fix_the_bits_take_the_same_from_args(name) -> None:
    make(name, **required(name), args=SimpleNamespace(optim_bits=rows()[name].bits))


@pytest.mark.parametrize("name", [name for name in LOCKED if rows()[name].rule == "adam" and rows()[name].bits == 32])
def test_32_bit_classes_refuse_8_bits(name) -> None:
    with pytest.raises(ValueError, match=name):
        make(name, optim_bits=8)


OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("lr", float("nan")),
    ("eps", float("nan")),
    ("weight_decay", float("nan")),
    ("max_unorm", -1.0),
    ("max_unorm", float("nan")),
    ("percentile_clipping", 0),
    ("percentile_clipping", 101),
    ("percentile_clipping", float("nan")),
    ("min_8bit_size", -1),
    ("optim_bits", 7),
    ("nonfinite", "ignore"),
    ("trust_ratio", "both"),
    ("target", "gpu"),
]


@pytest.mark.parametrize(("argument", "value"), OUT_OF_RANGE, ids=str)
def test_out_of_range(argument, value) -> None:
    """The error names the class, the argument and the value."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the message is looked at below)
        make("AdamW", **{argument: value})
    message = str(raised.value)
    labels = {"lr": "learning rate", "eps": "epsilon"}
    assert "AdamW" in message
    assert argument in message or labels.get(argument, argument) in message
    assert str(value) in message


WRONG_TYPES: list[tuple[str, Any]] = [
    ("lr", "fast"),
    ("lr", None),
    ("betas", 0.9),
    ("betas", (0.9,)),
    ("betas", "nonsense"),
    ("amsgrad", "yes"),
    ("block_wise", 3),
    ("maximize", None),
]


@pytest.mark.parametrize(("argument", "value"), WRONG_TYPES, ids=str)
def test_wrong_types(argument, value) -> None:
    with pytest.raises(TypeError) as raised:
        make("AdamW", **{argument: value})
    assert "AdamW" in str(raised.value)
    assert argument in str(raised.value)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="momentum"):
        make("AdamW", momentum=0.9)


def test_empty_parameter_list() -> None:
    with pytest.raises(ValueError, match="AdamW"):
        optimizer_class("AdamW")([])


def test_complex_parameters_and_sparse_gradients() -> None:
    with pytest.raises(TypeError, match="AdamW"):
        optimizer_class("AdamW")([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    param = torch.nn.Parameter(torch.ones(3, 3))
    opt = optimizer_class("AdamW")([param])
    param.grad = torch.ones(3, 3).to_sparse()
    with pytest.raises(RuntimeError, match="AdamW does not support sparse gradients"):
        opt.step()
    assert (param == 1).all()


def test_pytorch_lars_without_momentum_is_scaled_descent() -> None:
    param = torch.nn.Parameter(torch.full((4,), 2.0))
    opt = optimizer_class("PytorchLARS")([param], lr=1.0, max_unorm=0.5)
    param.grad = torch.full((4,), 4.0)
    opt.step()
    assert param.tolist() == [1.0] * 4  # 4 is clipped to half of 2
