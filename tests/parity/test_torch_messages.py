"""Messages of torch.optim's classes about mistakes are ours too: the same error, and the words that tests match."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optgen_optim as optim
import pytest
import torch
from torch import Tensor, nn

Make = Callable[..., Any]
# Adafactor is that of Transformers; SparseAdam and LBFGS have no namesake.
NAMES = [name for name in optim.CLASSES if hasattr(torch.optim, name) and name != "Adafactor"]


OWN_WORDS = {"Muon"}  # torch's says of its arguments, if anything, what no other class of it does


def param() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 2))


def keywords(make: Make) -> Any:
    return inspect.signature(make).parameters


def second_group(make: Make, group: Any) -> Any:
    return make([param()]).add_param_group(group)


def twice(make: Make) -> Any:
    shared = param()
    return make([{"params": [shared]}, {"params": [shared]}])


def pair_of(make: Make, name: str, *values: Any) -> Any:
    return make([param()], **{name: values})


# What is done with a class, and words of the message; None of a class without that argument.
MISTAKES: dict[str, tuple[Callable[[Make], Any], str]] = {
    "a tensor": (lambda make: make(param()), "params argument given to the optimizer should be an iterable of Tensors"),
    "nothing": (lambda make: make([]), "optimizer got an empty parameter list"),
    "no tensor": (lambda make: make([1.0]), "optimizer can only optimize Tensors, but one of the params is float"),
    "no leaf": (lambda make: make([param() * 2]), "can't optimize a non-leaf Tensor"),
    "no group": (lambda make: second_group(make, [param()]), "param_group must be a dict, but got <class 'list'>"),
    "a set": (
        lambda make: make([{"params": {param()}}]),
        "optimizer parameters need to be organized in ordered collections",
    ),
    "some names": (
        lambda make: make([("one", param()), param()]),
        "all optimizer params should be with/without names. Some param names are missing",
    ),
    "a group with names": (
        lambda make: second_group(make, {"params": [("one", param())]}),
        "all optimizer param groups should be with/without names. cannot add param group with names to the optimizer",
    ),
    "in two groups": (twice, "some parameters appear in more than one parameter group"),
    "two rates": (lambda make: make([param()], lr=torch.ones(2)), "Tensor lr must be 1-element"),
    "lr": (lambda make: make([param()], lr=-1e-2), "Invalid learning rate: -0.01"),
    "eps": (lambda make: make([param()], eps=-1e-8), "Invalid epsilon value: -1e-08"),
    "weight_decay": (lambda make: make([param()], weight_decay=-0.5), "Invalid weight_decay value: -0.5"),
    "betas": (lambda make: pair_of(make, "betas", 0.0, 1.0), "Invalid beta parameter at index 1: 1.0"),
    "etas": (lambda make: pair_of(make, "etas", 1.0, 0.5), "Invalid eta values: 1.0, 0.5"),
    "momentum": (lambda make: make([param()], momentum=-0.5), "Invalid momentum value: -0.5"),
    "lr_decay": (lambda make: make([param()], lr_decay=-0.5), "Invalid lr_decay value: -0.5"),
    "momentum_decay": (lambda make: make([param()], momentum_decay=-0.2), "Invalid momentum_decay value: -0.2"),
    "rho": (lambda make: make([param()], rho=1.1), "Invalid rho value: 1.1"),
    "nesterov": (
        lambda make: make([param()], nesterov=True),
        "Nesterov momentum requires a momentum and zero dampening",
    ),
}


def cases() -> list[tuple[str, str]]:
    """Classes and mistakes: those in an argument where there is one."""
    arguments = {key for name in NAMES for key in keywords(getattr(torch.optim, name))}
    return [
        (name, mistake)
        for name in NAMES
        for mistake in MISTAKES
        if mistake not in arguments or (mistake in keywords(getattr(torch.optim, name)) and name not in OWN_WORDS)
    ]


def error_of(make: Make, mistake: Callable[[Make], Any]) -> tuple[type[Exception], str]:
    with pytest.raises(Exception) as raised:  # noqa: PT011 (which one, and what it says, is what is compared)
        mistake(make)
    return type(raised.value), str(raised.value)


@pytest.mark.parametrize(("name", "mistake"), cases())
def test_the_same_mistake_has_the_same_words(name: str, mistake: str) -> None:
    act, words = MISTAKES[mistake]
    theirs, said = error_of(getattr(torch.optim, name), act)
    assert words in said  # they are torch's own
    ours, message = error_of(getattr(optim, name), act)
    assert ours is theirs
    assert words in message


def test_a_tensor_of_two_numbers_is_named_where_it_stands() -> None:
    wrong: Tensor = torch.ones(2)
    _, message = error_of(optim.Adam, lambda make: make([param()], betas=(torch.tensor(0.9), wrong)))
    assert message == "Tensor betas[1] must be 1-element (Adam: betas[1] has the shape (2,))"
