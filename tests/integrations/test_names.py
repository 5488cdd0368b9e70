"""Every name of `OptimizerNames` is served or listed, and a served one is what Trainer itself would have made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from support.tiny_gpt2 import Text, quiet, tiny_gpt2

from optgen.integrations.transformers import NOT_SERVED, SERVED, optimizer

transformers = pytest.importorskip("transformers")

from transformers.training_args import OptimizerNames  # noqa: E402

ROOT = Path(__file__).parents[2]
NAMES = [name.value for name in OptimizerNames]
BITSANDBYTES_8BIT = [
    *("adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "rmsprop_bnb_8bit"),
    *("paged_adamw_8bit", "paged_ademamix_8bit", "paged_lion_8bit"),
]

# What Trainer's own choice makes of a name, where the library that it takes is installed: (its argument, ours).
SAME = {"lr", "betas", "eps", "alpha", "momentum", "scale_parameter", "relative_step", "block_size"}
SAME |= {"alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"}
SAME |= {"decouple_lr", "max_lr", "warmup_steps", "weight_lr_power", "r"}
BITS = {"AdamW4bit": 4, "AdamW8bit": 8}


def arguments(**given: Any) -> Any:
    """Trainer's arguments, each other than its default."""
    values = {"learning_rate": 3e-4, "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}
    return transformers.TrainingArguments(**quiet(values | given))


def make(name: str, model: Any, args: Any, **settings: Any) -> Any:
    """The optimizer, made as Trainer does it."""
    trainer = transformers.Trainer(model, args, optimizer_cls_and_kwargs=optimizer(name, args, **settings))
    return trainer.create_optimizer()


def test_every_name_is_served_or_listed_with_a_reason() -> None:
    assert {name for name in NAMES if (name in SERVED) == (name in NOT_SERVED)} == set()
    assert set(NAMES) == SERVED.keys() | NOT_SERVED.keys()  # and nothing is listed that there is not
    assert all(cls in optgen_optim.CLASSES for row in SERVED.values() for cls in (row.cls, row.others) if cls)
    for name, reason in NOT_SERVED.items():
        with pytest.raises(NotImplementedError) as caught:
            optimizer(name, arguments())
        assert str(caught.value) == f"optimizer({name!r}) is not served yet: {reason}"


WHOLE = [name for name, row in SERVED.items() if row.others is None]  # test_projected.py has the others


@pytest.mark.parametrize("name", WHOLE)
def test_a_served_name_trains(name: str) -> None:
    """Steps change every parameter; betas, eps and weight decay stand in both groups."""
    model, args = tiny_gpt2(), arguments()
    made = make(name, model, args, target="torch")
    row = SERVED[name]
    assert type(made) is optgen_optim.CLASSES[row.cls]
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
    for group in made.param_groups:
        assert group["lr"] == 3e-4
        if "beta1" in row.taken:
            assert group["betas"][:2] == (0.8, 0.95)
        if "eps" in row.taken:
            assert group["eps"] == 1e-6
    before = {key: param.detach().clone() for key, param in model.named_parameters()}
    if hasattr(made, "train"):
        made.train()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    for _ in range(6):  # RAdam takes none before its sixth, with this beta2
        made.step()
    assert made.engines() == {"torch": len(before)}
    assert not [key for key, param in model.named_parameters() if torch.equal(before[key], param)]


# torch_xla and torch_npu are for such devices, torchdistx is in no package registry and built for older torch alone.
MISSING = ["adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision"]
WITHOUT_STEP = ["lomo", "adalomo"]  # of lomo_optim: tests/parity/test_lomo.py compares with what they compute
PRESENT = [name for name in WHOLE if name not in (*MISSING, *WITHOUT_STEP)]
LIBRARIES = {"bnb": "bitsandbytes", "8bit": "bitsandbytes", "paged": "bitsandbytes", "lion": "bitsandbytes"}
LIBRARIES |= {"ademamix": "bitsandbytes", "adamw_torch_4bit": "torchao", "adamw_torch_8bit": "torchao"}
LIBRARIES |= {"grokadamw": "grokadamw", "schedule_free": "schedulefree", "stable_adamw": "optimi"}


def require_library(name: str) -> None:
    """Skip where the library that Trainer takes for a name is not there; tests/test_environment.py fails for it."""
    for library in [library for part, library in LIBRARIES.items() if part in name][-1:]:
        pytest.importorskip(library)


@pytest.mark.parametrize("name", PRESENT)
def test_it_is_what_trainer_chooses(name: str) -> None:
    """The same groups with the same parameters in the same order, and every argument that Trainer passes."""
    require_library(name)
    model, args = tiny_gpt2(), arguments(optim=name, warmup_steps=7)
    theirs, passed = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
    ours, reference = make(name, model, args), transformers.Trainer(model, args).create_optimizer()
    groups = [[[id(param) for param in group["params"]] for group in made.param_groups] for made in (ours, reference)]
    assert groups[0] == groups[1]
    decays = [[group["weight_decay"] for group in made.param_groups] for made in (ours, reference)]
    assert decays[0] == decays[1] == [0.1, 0.0]
    settings = {**ours.defaults, **ours.param_groups[0]}
    left = {key: value for key, value in passed.items() if key not in SAME}
    for key in SAME & passed.keys():
        assert settings[key] == passed[key], key
    assert settings["optim_bits"] == left.pop("optim_bits", BITS.get(theirs.__name__, 32))
    assert settings["is_paged"] == left.pop("is_paged", False)
    assert left.pop("fused", True)
    assert not left.pop("bf16_stochastic_round", False)
    assert left.pop("kahan_sum", None) is None  # which leaves it to the parameters' type, as here
    assert settings["weight_decay"] == left.pop("weight_decay", 0.1)
    assert not left, f"Trainer passes {left} too"


# Parts of their sums: of all elements of a parameter, one after another.
SUMMED = ("adafactor", "grokadamw")
# Rules that add the weight decay to the gradient as it is.
COUPLED = ("sgd", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "schedule_free_sgd")
# RAdam takes no step before its sixth, with this beta2. States in few bits are compared before they are read again.
STEPS = {name: 2 for name in PRESENT if "8bit" not in name and "4bit" not in name and name not in COUPLED}
STEPS |= {"schedule_free_radam": 7}


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")  # as bitsandbytes says
@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast")  # which grokadamw uses
@pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported")
@pytest.mark.parametrize("name", PRESENT)
def test_its_first_steps_are_those_of_trainers_choice(name: str) -> None:
    """From the same gradients: the same values, but for float32 rounding of either.

    States begin with zeros and are quantized after they are used, so that the first step is the same for 8 and 4 bits
    too. Each gradient is longer than the one before, so that averages of them, and with them betas, show; nothing
    cancels but gradients and a decay that is added to them, which makes more of their roundings. A step has fewer than
    32 roundings of what it moves on either side, and two of the parameter; schedule-free rules four, since theirs keep
    the parameter twice. The means of Adafactor and the norm of GrokAdamW are sums of N terms, N the parameter's
    elements.
    """
    require_library(name)
    models = tiny_gpt2(), tiny_gpt2()
    given = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8} if name == "grokadamw" else {}
    args = arguments(optim=name, learning_rate=1e-2, **given)  # Trainer hands betas and eps on to all but GrokAdamW
    ours, theirs = make(name, models[0], args, target="torch"), transformers.Trainer(models[1], args).create_optimizer()
    models[0].eval()(**Text()[:4]).loss.backward()
    before = {key: param.detach().double().clone() for key, param in models[1].named_parameters()}
    for made in (ours, theirs):
        if hasattr(made, "train"):
            made.train()
    steps = STEPS.get(name, 1)
    with torch.compiler.set_stance("force_eager"):  # torchao compiles otherwise
        for number in range(steps):
            for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
                a.grad *= 1.0 + number
                b.grad = a.grad.clone()
            ours.step()
            theirs.step()
    decays = {param: group["weight_decay"] for group in theirs.param_groups for param in group["params"]}
    kept = 8 if "schedule_free" in name else 4
    for (key, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        start, grad, decay = before[key], a.grad.double(), decays[b] if name in COUPLED else 0.0
        moved = (b.detach().double() - start).abs()
        roundings = 64 + (2 * b.numel() if name in SUMMED else 0)
        cancelled = (grad.abs() + decay * start.abs()) / (grad + decay * start).abs()
        bound = 2.0**-24 * steps * (roundings * cancelled.nan_to_num(1.0) * moved + kept * start.abs())
        error = (a.detach().double() - b.detach().double()).abs()
        assert (error <= bound).all(), f"{key}: {float((error - bound).max())} too far"
        assert moved.max() > 0
        assert cancelled.nan_to_num(1.0).median() < 2  # so that few bounds are wide


def test_names_whose_library_is_missing_are_these() -> None:
    for name in MISSING:
        with pytest.raises((ImportError, ValueError)):
            transformers.Trainer.get_optimizer_cls_and_kwargs(arguments(optim=name), tiny_gpt2())


DEFAULTS = {
    "adamw_anyprecision": {"use_kahan_summation": False, "momentum_dtype": "float32", "variance_dtype": "float32"}
    | {"compensation_buffer_dtype": "bfloat16"},
    "grokadamw": {"alpha_init": 0.98, "lamb": 2.0, "gamma": 0.1, "grokking_signal_decay_rate": 0.1}
    | {"gradient_clipping": 1.0},
    "schedule_free_adamw": {"warmup_steps": 7, "weight_lr_power": 2.0, "r": 0.0, "betas": (0.8, 0.95), "eps": 1e-6},
    "schedule_free_sgd": {"warmup_steps": 7, "weight_lr_power": 2.0, "r": 0.0, "momentum": 0.9},
    "schedule_free_radam": {"weight_lr_power": 2.0, "r": 0.0, "betas": (0.8, 0.95), "eps": 1e-6},
    "stable_adamw": {"decouple_lr": False, "max_lr": None, "rounding": "nearest", "betas": (0.8, 0.95), "eps": 1e-6},
    "ademamix": {"alpha": 5.0, "t_alpha": None, "t_beta3": None, "betas": (0.8, 0.95, 0.9999)},
    "rmsprop_bnb": {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False},
    "lion_32bit": {"betas": (0.8, 0.95)},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_arguments_that_trainer_passes_or_leaves_to_the_library(name: str) -> None:
    """Written down by hand from trainer_optimizer.py of transformers: all there is where a library is missing."""
    made = make(name, tiny_gpt2(), arguments(warmup_steps=7))
    assert {key: made.param_groups[1][key] for key in DEFAULTS[name]} == DEFAULTS[name]


def test_stable_adamw_sums_as_kahan_does_where_parameters_have_16_bits() -> None:
    args = arguments()
    assert make("stable_adamw", tiny_gpt2().bfloat16(), args).defaults["rounding"] == "kahan"
    made = make("stable_adamw", tiny_gpt2().bfloat16(), args, kahan_sum=False)
    assert made.defaults["rounding"] == "nearest"


@pytest.mark.parametrize("name", BITSANDBYTES_8BIT)
def test_embeddings_keep_32_bits(name: str) -> None:
    """Those of both embeddings, of which the head is one; all other states of 4096 elements are quantized."""
    model = tiny_gpt2()
    made = make(name, model, arguments(), target="torch")
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    made.step()
    embeddings = {model.transformer.wte.weight, model.transformer.wpe.weight}
    assert model.lm_head.weight in embeddings
    seen = {torch.uint8: 0, torch.float32: 0}
    for param in model.parameters():
        (dtype,) = {
            made.state[param][state.name].dtype for state in made.rule.element_states if state.name in made.state[param]
        }
        assert dtype is (torch.uint8 if param.numel() >= 4096 and param not in embeddings else torch.float32)
        seen[dtype] += 1
    assert min(seen.values()) > 2


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")  # as bitsandbytes says
@pytest.mark.parametrize("name", BITSANDBYTES_8BIT)
def test_the_same_parameters_keep_32_bits_under_trainers_own_choice(name: str) -> None:
    """bitsandbytes' optimizer, made by Trainer, has states of 32 bits and of 8 where ours has."""
    require_library(name)
    models = tiny_gpt2(), tiny_gpt2()
    args = arguments(optim=name)
    ours, theirs = make(name, models[0], args), transformers.Trainer(models[1], args).create_optimizer()
    kept = []
    for made, model in ((ours, models[0]), (theirs, models[1])):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        made.step()
        first = made.rule.element_states[0].name if made is ours else "state1"
        kept.append({key: made.state[param][first].dtype for key, param in model.named_parameters()})
    assert kept[0] == kept[1]
    assert set(kept[0].values()) == {torch.uint8, torch.float32}
    assert kept[0]["transformer.wte.weight"] is torch.float32


def test_names_of_torchao_quantize_embeddings_as_trainer_does() -> None:
    for name in ("adamw_torch_8bit", "adamw_torch_4bit"):
        assert not any("overrides" in group for group in make(name, tiny_gpt2(), arguments()).param_groups)


def test_frozen_parameters_stay_out() -> None:
    model = tiny_gpt2()
    model.transformer.requires_grad_(False)
    model.transformer.h[1].requires_grad_(True)
    made = make("paged_adamw_8bit", model, arguments())
    own = {param for group in made.param_groups for param in group["params"]}
    assert own == set(model.transformer.h[1].parameters())
    assert not any("overrides" in group for group in made.param_groups)


def test_importing_brings_nothing() -> None:
    code = "import optgen.integrations.transformers, sys; print(*sys.modules)"
    folders = os.pathsep.join([str(ROOT), str(ROOT / "generated")])
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env={**os.environ, "PYTHONPATH": folders}, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "optgen.integrations.transformers" in modules
    assert not {"torch", "transformers", "accelerate", "optgen_optim", "numpy", "pydantic"} & modules
