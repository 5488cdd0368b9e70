"""Hooks of `state_dict` that give a checkpoint another form: it comes back as torch's would, and loads once undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from optgen_optim import AdamW, AdamW8bit
from torch import Tensor

from runtime.training import SMALL, make_params, same, saved, snapshot, train

Checkpoint = dict[str, Any]
Change = Callable[[Checkpoint], Any]


def build(change: Change | None = None, back: Change | None = None) -> tuple[Any, list[Any]]:
    """An optimizer after two steps, with 8-bit states and 32-bit ones, and its parameters."""
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, target="torch")
    train(opt, params, 1, 2)
    if change is not None:
        opt.register_state_dict_post_hook(lambda _, state_dict: change(state_dict))
    if back is not None:
        opt.register_load_state_dict_pre_hook(lambda _, state_dict: back(state_dict))
    return opt, params


FORMS: dict[str, Change] = {
    "no groups": lambda d: {**d, "param_groups": []},
    "wrapped": lambda d: {"optimizer": d, "epoch": 3},
    "in a list": lambda d: [d],
    "states alone": lambda d: {"state": d["state"]},
    "states in a list": lambda d: {**d, "state": list(d["state"].items())},
    "states of no dicts": lambda d: {**d, "state": {key: [*entry.values()] for key, entry in d["state"].items()}},
    "groups in a dict": lambda d: {**d, "param_groups": dict(enumerate(d["param_groups"]))},
    "groups of no parameters": lambda d: {**d, "param_groups": [{"lr": 0.1}]},
    "a number of parameters": lambda d: {**d, "param_groups": [{"params": 4}]},
    "fewer parameters": lambda d: {**d, "param_groups": [{**d["param_groups"][0], "params": [0]}]},
    "keys that are lists": lambda d: {**d, "param_groups": [{"params": [[0], [1], [2], [3]]}]},
    "another group": lambda d: {**d, "param_groups": [*d["param_groups"], {"params": []}]},
}


@pytest.mark.parametrize("form", FORMS)
def test_another_form_comes_back_as_the_hook_made_it(form: str) -> None:
    """From torch's class and from ours: nothing is raised, and nothing is put into it."""
    opt, _ = build()
    made: list[Any] = []

    def change(_: Any, state_dict: Checkpoint) -> Any:
        made.append(FORMS[form](state_dict))
        return made[-1]

    theirs = torch.optim.AdamW(make_params())
    for each in (theirs, opt):
        each.register_state_dict_post_hook(change)
        assert each.state_dict() is made[-1]


def test_what_a_hook_has_wrapped_loads_once_another_has_unwrapped_it() -> None:
    opt, params = build(FORMS["wrapped"], lambda d: d["optimizer"])
    kept, before = saved(opt), snapshot(opt, params)
    opt.load_state_dict(kept)
    assert same(before, snapshot(opt, params))
    with pytest.raises(ValueError, match=r"it has no 'state' and no 'param_groups', only \['optimizer', 'epoch'\]"):
        build()[0].load_state_dict(kept)


@pytest.mark.parametrize("form", ["a number of parameters", "keys that are lists"])
def test_groups_without_a_list_of_keys_are_refused_in_words(form: str) -> None:
    with pytest.raises(ValueError, match="group 0: its 'params' is not a list of keys"):
        build()[0].load_state_dict(FORMS[form](build()[0].state_dict()))


def entries(state_dict: Checkpoint, change: Callable[[Any, Checkpoint], Checkpoint]) -> Checkpoint:
    return {**state_dict, "state": {key: change(key, entry) for key, entry in state_dict["state"].items()}}


def only(name: str, dtype: torch.dtype, to: Callable[[Tensor], Any]) -> Callable[[Any, Checkpoint], Checkpoint]:
    """A change of one state where it is stored in one dtype."""
    return lambda _, entry: {**entry, name: to(entry[name])} if entry[name].dtype is dtype else entry


def as_tensors(name: str) -> Callable[[Any, Checkpoint], Checkpoint]:
    return lambda _, entry: {**entry, name: torch.as_tensor(entry[name])}


CONVERTED: dict[str, tuple[Callable[[Any, Checkpoint], Checkpoint], Callable[[Any, Checkpoint], Checkpoint] | None]] = {
    # The other parameters' state keeps 8 bits: marks would say that all of them have.
    "wider": (only("exp_avg", torch.float32, Tensor.double), None),
    "no tensors": (only("exp_avg", torch.float32, Tensor.numpy), as_tensors("exp_avg")),
    "other bits": (
        only("exp_avg", torch.float32, lambda value: value.view(torch.int32)),
        only("exp_avg", torch.int32, lambda value: value.view(torch.float32)),
    ),
}


@pytest.mark.parametrize("case", CONVERTED)
def test_a_state_that_a_hook_has_converted_has_no_marks(case: str) -> None:
    """It loads, where the numbers are the same or another hook has brought them back; the other state is marked."""
    there, back = CONVERTED[case]
    opt, params = build(lambda d: entries(d, there), None if back is None else lambda d: entries(d, back))
    checkpoint, before = opt.state_dict(), snapshot(opt, params)
    assert checkpoint["optgen"]["codecs"] == {"exp_avg_sq": [["fp32", 0], ["int8", 256]]}
    opt.load_state_dict(checkpoint)
    assert same(before, snapshot(opt, params))


def test_states_that_a_hook_has_dropped_have_no_marks() -> None:
    """Those of small parameters, which are the 32-bit ones, are kept elsewhere."""
    kept: Checkpoint = {}

    def drop(state_dict: Checkpoint) -> Checkpoint:
        kept.update({key: entry for key, entry in state_dict["state"].items() if key > 1})
        return {**state_dict, "state": {key: entry for key, entry in state_dict["state"].items() if key <= 1}}

    opt, params = build(drop, lambda d: {**d, "state": {**d["state"], **kept}})
    checkpoint, before = opt.state_dict(), snapshot(opt, params)
    assert list(checkpoint["state"]) == [0, 1]
    assert checkpoint["optgen"] == {"version": 1, "rule": "adam", "class": "AdamW8bit"}
    opt.load_state_dict(checkpoint)
    assert same(before, snapshot(opt, params))


def test_copies_and_other_keys_keep_their_marks() -> None:
    def change(state_dict: Checkpoint) -> Checkpoint:
        named = {
            f"layer {key}": {name: value.clone() for name, value in e.items()} for key, e in state_dict["state"].items()
        }
        groups = [
            {**group, "params": [f"layer {key}" for key in group["params"]]} for group in state_dict["param_groups"]
        ]
        return {**state_dict, "state": named, "param_groups": groups}

    opt, params = build(change)
    marks = [["fp32", 0], ["int8", 256]]
    assert opt.state_dict()["optgen"]["codecs"] == {"exp_avg": marks, "exp_avg_sq": marks}
    before = snapshot(opt, params)
    opt.load_state_dict(opt.state_dict())
    assert same(before, snapshot(opt, params))


def test_parameters_without_gradients_take_no_marks_away() -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    train(opt, params[:2], 1, 1)
    assert list(opt.state_dict()["state"]) == [0, 1]
    assert opt.state_dict()["optgen"]["codecs"] == {"exp_avg": [["fp32", 0]], "exp_avg_sq": [["fp32", 0]]}


@pytest.fixture
def _one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_states_of_divided_parameters() -> None:
    """DTensors that a hook has left alone are kept as before; what it replaced stays as the hook made it."""
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    param = torch.nn.Parameter(distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)]))
    opt = AdamW([param], target="torch")
    param.grad = distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)])
    opt.step()

    assert isinstance(opt.state_dict()["state"][0]["exp_avg"], DTensor)
    handle = opt.register_state_dict_post_hook(
        lambda _, d: entries(d, lambda _, e: {**e, "exp_avg": e["exp_avg"].int()})
    )
    entry = opt.state_dict()["state"][0]
    assert entry["exp_avg"].dtype is torch.int32
    assert not isinstance(entry["exp_avg"], DTensor)
    assert isinstance(entry["exp_avg_sq"], DTensor)
    handle.remove()
    opt.register_state_dict_post_hook(lambda _, d: FORMS["wrapped"](d))
    assert list(opt.state_dict()) == ["optimizer", "epoch"]
