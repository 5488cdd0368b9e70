"""`import optgen_optim as optim` in place of `import bitsandbytes.optim as optim`: names, arguments, overrides."""

from __future__ import annotations

import copy
import gc
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optgen_optim as optim
import pytest
import torch
from runtime.training import same, saved, snapshot, train
from torch import nn

from optgen.runtime.settings import overrides

bnb = pytest.importorskip("bitsandbytes")

NAMES = [name for name, value in vars(bnb.optim).items() if isinstance(value, type)]
CLASSES = [name for name in NAMES if issubclass(getattr(bnb.optim, name), torch.optim.Optimizer)]
# Arguments that 0.45 has and 0.50 no longer: ours has both, at their places.
REMOVED = ("percentile_clipping", "block_wise")
# What these take and ignore, being paged in any case.
IGNORED = {name: ("is_paged",) for name in CLASSES if name.startswith("PagedAdam") and "W" not in name} | {
    name: () for name in CLASSES if "AdEMAMix" in name
}


def positional(cls: Any) -> dict[str, Any]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {k: p.default for k, p in inspect.signature(cls).parameters.items() if p.kind in kinds}


def test_every_name_is_there() -> None:
    assert len(CLASSES) >= 40
    assert "GlobalOptimManager" in NAMES
    assert set(NAMES) <= set(optim.__all__)
    for name in NAMES:
        assert inspect.isclass(getattr(optim, name))


def missing() -> set[str]:
    """Names that docs/migration.md lists as missing."""
    page = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
    section = page.split("## What is not there\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    return {name for cell in cells[1:] for name in re.findall(r"`(\w+)`", cell)}


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_every_public_name_is_there_or_on_the_page() -> None:
    """Names of the package, classes of its modules, and what its optimizers and manager have beyond torch's."""
    lacking = public(bnb.optim.AdamW) - public(torch.optim.Optimizer) - public(optim.AdamW)
    lacking |= public(bnb.optim.GlobalOptimManager) - public(optim.GlobalOptimManager)
    assert public(bnb.optim) > set(NAMES)
    for name in public(bnb.optim):
        theirs, ours = getattr(bnb.optim, name), getattr(optim, name, None)
        if ours is None:
            lacking.add(name)
        if inspect.ismodule(theirs):
            own = {key for key in public(theirs) if getattr(getattr(theirs, key), "__module__", "") == theirs.__name__}
            lacking |= {key for key in own if not hasattr(ours or optim, key)}
    assert lacking | {"COMPILED_WITH_CUDA"} == missing()


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_have_the_same_places_and_defaults(name) -> None:
    """As in bitsandbytes 0.45, of which 0.50 leaves two out: after `min_8bit_size` keywords serve both.

    SGD, which has no default of `lr` there, has torch's.
    """
    theirs, ours = positional(getattr(bnb.optim, name)), positional(getattr(optim, name))
    if name.startswith("SGD"):
        assert (theirs["lr"], ours["lr"]) == (inspect.Parameter.empty, 1e-3)
        theirs["lr"] = ours["lr"]
    left_out = IGNORED.get(name, ())
    assert [key for key in ours if key not in REMOVED] == [key for key in theirs if key not in left_out]
    common = list(theirs)[: list(theirs).index("min_8bit_size") + 1] if "min_8bit_size" in theirs else list(theirs)
    assert list(ours)[: len(common)] == common
    assert {key: ours[key] for key in ours if key in theirs} == {
        key: value for key, value in theirs.items() if key not in left_out
    }


@pytest.mark.parametrize("name", [name for name in CLASSES if "is_paged" in positional(getattr(optim, name))])
def test_a_truth_value_in_a_place_that_has_moved_is_refused(name) -> None:
    """`is_paged` stands where 0.45 has `percentile_clipping`."""
    theirs = positional(getattr(bnb.optim, name))
    del theirs["params"]
    if "percentile_clipping" not in positional(getattr(optim, name)):
        return
    values = [*list(theirs.values())[: list(theirs).index("is_paged")], False]
    with pytest.raises(TypeError, match="percentile_clipping must be a number in"):
        getattr(optim, name)([nn.Parameter(torch.ones(3))], *values)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(80, 64)
        self.linear = nn.Linear(64, 64)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    overrides.GlobalOptimManager.modules.clear()
    bnb.optim.GlobalOptimManager.get_instance().initialize()


def manager() -> optim.GlobalOptimManager:
    return optim.GlobalOptimManager.get_instance()


def dtype_of(opt: Any, param: torch.Tensor) -> torch.dtype:
    """That of its states."""
    tensors = [value for value in opt.state[param].values() if isinstance(value, torch.Tensor)]
    return next(value.dtype for value in tensors if value.shape == param.shape)


def test_there_is_one() -> None:
    assert manager() is manager()
    with pytest.raises(RuntimeError, match=r"Call get_instance\(\) instead"):
        optim.GlobalOptimManager()
    calls = [name for name in vars(bnb.optim.GlobalOptimManager) if name.startswith(("register", "override", "get"))]
    assert sorted(calls) == ["get_instance", "override_config", "register_module_override", "register_parameters"]
    for name in calls:
        ours, theirs = (positional(getattr(module.GlobalOptimManager, name)) for module in (optim, bnb.optim))
        assert ours == theirs


@pytest.mark.parametrize("library", [optim, bnb.optim], ids=["ours", "bitsandbytes"])
@pytest.mark.parametrize("when", ["before", "after", "by module"])
def test_the_two_calls_as_its_documentation_has_them(library, when) -> None:
    """The embedding has 32-bit states, everything else 8-bit ones; the same in both libraries."""
    mng, model = library.GlobalOptimManager.get_instance(), Net()
    mng.register_parameters(model.parameters())
    if when == "before":
        mng.override_config(model.embedding.weight, "optim_bits", 32)
    if when == "by module":
        mng.register_module_override(model.embedding, "weight", {"optim_bits": 32})
    opt = library.Adam(model.parameters(), lr=0.001, optim_bits=8)
    if when == "after":
        mng.override_config(model.embedding.weight, "optim_bits", 32)
    train(opt, list(model.parameters()), 1, 1)
    assert dtype_of(opt, model.embedding.weight) is torch.float32
    assert dtype_of(opt, model.linear.weight) is torch.uint8


def test_overrides_are_the_optimizers_own() -> None:
    """Overrides of the manager stand where `optimizer.override` puts its own: in the group, and in checkpoints."""
    model = Net()
    first = optim.AdamW8bit(model.parameters(), target="torch")
    manager().override_config([model.embedding.weight, model.linear.bias], key_value_dict={"lr": 0.5, "optim_bits": 32})
    second = optim.AdamW8bit([{"params": model.linear.parameters()}, {"params": model.embedding.parameters()}])
    told = {"lr": 0.5, "optim_bits": 32, "codec": "auto"}
    assert first.param_groups[0]["overrides"] == {0: told, 2: told}
    assert [group["overrides"] for group in second.param_groups] == [{1: told}, {0: told}]
    train(first, list(model.parameters()), 1, 1)
    assert dtype_of(first, model.embedding.weight) is torch.float32
    other = optim.AdamW8bit(Net().parameters(), target="torch")
    assert "overrides" not in other.param_groups[0], "other parameters at the same places"
    other.load_state_dict(saved(first))
    assert other.param_groups[0]["overrides"] == {0: told, 2: told}
    manager().override_config(model.linear.bias, "lr", 0.25)
    assert first.param_groups[0]["overrides"][2]["lr"] == second.param_groups[0]["overrides"][1]["lr"] == 0.25
    assert first.param_groups[0]["overrides"][0]["lr"] == 0.5


def test_a_groups_own_overrides_stand_before_them() -> None:
    weight = nn.Parameter(torch.ones(4))
    manager().override_config(weight, key_value_dict={"lr": 0.5, "weight_decay": 0.5})
    opt = optim.AdamW([{"params": [weight], "overrides": {0: {"lr": 0.25}}}])
    assert opt.param_groups[0]["overrides"] == {0: {"lr": 0.25, "weight_decay": 0.5}}


def test_groups_that_are_added_and_copies_hear_of_them() -> None:
    weight, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(5))
    opt = optim.AdamW([weight])
    manager().override_config(other, "lr", 0.5)
    opt.add_param_group({"params": [other]})
    assert opt.param_groups[1]["overrides"] == {0: {"lr": 0.5}}
    parts = copy.deepcopy({"weight": weight, "opt": opt})
    manager().override_config(parts["weight"], "lr", 0.125)
    assert parts["opt"].param_groups[0]["overrides"] == {0: {"lr": 0.125}}
    assert "overrides" not in opt.param_groups[0]


def test_a_parameter_that_was_moved_keeps_them() -> None:
    model = Net()
    manager().override_config(model.embedding.weight, "optim_bits", 32)
    model.bfloat16()
    model.register_parameter("other", nn.Parameter(torch.ones(2)))
    opt = optim.AdamW8bit(model.parameters())
    assert opt.param_groups[0]["overrides"] == {1: {"optim_bits": 32, "codec": "auto"}}


def test_a_module_whose_parameter_was_replaced() -> None:
    model = Net()
    manager().register_module_override(model.linear, "weight", {"lr": 0.5})
    manager().register_module_override(model.linear, "weight", {"eps": 0.25})
    model.linear.weight = nn.Parameter(torch.ones(64, 64))
    opt = optim.AdamW(model.linear.parameters())
    assert opt.param_groups[0]["overrides"] == {0: {"lr": 0.5, "eps": 0.25}}


def test_nothing_is_kept_alive() -> None:
    model = Net()
    opt = optim.AdamW(model.parameters())
    manager().register_module_override(model.linear, "weight", {"lr": 0.5})
    seen = len(overrides._optimizers)
    del opt, model
    gc.collect()
    assert len(overrides._optimizers) < seen
    assert all(module() is None for module, _, _ in overrides.GlobalOptimManager.modules)


def test_what_an_optimizer_does_not_take_is_refused_and_nothing_changes() -> None:
    weight, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(5))
    opt = optim.SGD([weight, other], 0.1, 0.9, target="torch")
    train(opt, [weight, other], 1, 1)
    before = snapshot(opt, [weight, other])
    for key, value, message in (
        ("betas", (0.5, 0.5), r"SGD\.override takes no 'betas'; known: "),
        ("lr", -1.0, "Invalid learning rate: -1.0"),
        ("max_grad_norm", 1.0, "max_grad_norm is one number for the optimizer"),
    ):
        with pytest.raises(ValueError, match=message):
            manager().override_config([weight, other], key, value)
        with pytest.raises(ValueError, match=message):
            manager().override_config([weight], key_value_dict={"momentum": 0.5, key: value})
    assert same(before, snapshot(opt, [weight, other]))
    assert "overrides" not in optim.AdamW([weight, other]).param_groups[0]
    told = nn.Parameter(torch.ones(2))
    manager().override_config(told, "betas", (0.5, 0.5))
    with pytest.raises(ValueError, match=r"SGD\.override takes no 'betas'"):
        optim.SGD([told], 0.1)


def test_calls_that_say_nothing_are_refused() -> None:
    mng, weight = manager(), nn.Parameter(torch.ones(2))
    for arguments in ((), ("lr", 1.0, {"lr": 1.0}), (None, 1.0), (None, 1.0, {"lr": 1.0})):
        with pytest.raises(TypeError, match="override_config takes key and value, or key_value_dict"):
            mng.override_config(weight, *arguments)
    with pytest.raises(TypeError, match="a setting is named by a str, not 3"):
        mng.override_config(weight, 3, 4)
    with pytest.raises(TypeError, match="override_config takes tensors, not 'weight'"):
        mng.override_config(["weight"], "lr", 1.0)
    with pytest.raises(ValueError, match=r"register_parameters: there is no parameter; pass model.parameters\(\)"):
        mng.register_parameters([])
    with pytest.raises(TypeError, match="register_parameters takes tensors, or param groups with 'params'"):
        mng.register_parameters([{"lr": 1.0}])
    mng.register_parameters([{"params": [weight]}, {"params": weight}])
    mng.register_parameters(Net().named_parameters())
    with pytest.raises(AttributeError, match="wieght"):
        mng.register_module_override(nn.Linear(2, 2), "wieght", {"lr": 1.0})
    with pytest.raises(TypeError, match="in_features is a int, not a parameter"):
        mng.register_module_override(nn.Linear(2, 2), "in_features", {"lr": 1.0})
    with pytest.raises(TypeError, match="takes a module, the name of a parameter, and a dict of settings"):
        mng.register_module_override(nn.Linear(2, 2), "weight", 32)


def test_a_whole_training_needs_no_other_change() -> None:
    """A script written for bitsandbytes, with either library."""
    losses = []
    for library in (bnb.optim, optim):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        opt = library.AdamW8bit(model.parameters(), 1e-2, (0.9, 0.99), 1e-8, 0.01, False, 32, None, 4096)
        x = torch.randn(128, 64)
        run = []
        for _ in range(20):
            loss = (model(x) - x.sum(1, keepdim=True).tanh()).pow(2).mean()
            run.append(loss.item())
            opt.zero_grad()
            loss.backward()
            opt.step()
        losses.append(run)
    for theirs, ours in zip(*losses, strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)  # its 8-bit codes are found by a coarser search
    assert losses[1][-1] < 0.5 * losses[1][0]
