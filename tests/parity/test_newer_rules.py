"""Tests of the rules beyond torch and bitsandbytes, for all of them: resumed runs, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.independent_rules import (
    assert_moved,
    copies,
    make_grads,
    make_params,
    set_grads,
)

optgen_optim = pytest.importorskip("optgen_optim")


def state_of(opt: Any) -> list[dict[str, torch.Tensor]]:
    return [{k: v.clone() for k, v in opt.state[p].items()} for g in opt.param_groups for p in g["params"]]


def resumed(opt: Any, params: list[torch.nn.Parameter], build: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A new optimizer over copies of the parameters, from a checkpoint that went through a file."""
    import io

    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    again = copies(params)
    other = build(again)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other, again


RESUMED = ("StableAdamW", "GrokAdamW", "ADOPT", "Adan", "MARS", "AdaBelief", "SophiaG", "Prodigy", "Adafactor")


@pytest.mark.parametrize("name", [*RESUMED, "StableAdamW8bit", "GrokAdamW8bit", "ADOPT8bit", "Adan8bit", "MARS8bit",
                                  "AdaBelief8bit", "SophiaG8bit"])  # fmt: skip
def test_a_resumed_run_goes_on_as_if_nothing_was(name: str, target: str) -> None:
    params = make_params()
    before = copies(params)

    def build(values: Any) -> Any:
        return getattr(optgen_optim, name)(values, target=target)

    def train(opt: Any, values: list[torch.nn.Parameter], first: int, last: int) -> None:
        for t in range(first, last + 1):
            torch.manual_seed(t)
            set_grads(values, make_grads(values, t))
            if name.startswith("SophiaG") and t % 3 == 1:
                opt.update_hessian()
            opt.step()

    opt = build(params)
    train(opt, params, 1, 4)
    other, again = resumed(opt, params, build)
    train(opt, params, 5, 8)
    train(other, again, 5, 8)
    assert_moved(params, before)
    for a, b in zip(params, again, strict=True):
        assert torch.equal(a, b)
    for mine, theirs in zip(state_of(opt), state_of(other), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


REFUSED = {
    "max_lr is needed": ("StableAdamW", {"decouple_lr": True}, "decouple_lr=True needs max_lr"),
    "max_lr alone": ("StableAdamW", {"max_lr": 0.1}, "max_lr=0.1 has no effect without decouple_lr=True"),
    "one loss": ("GrokAdamW", {"eval_loss": 1.0}, "eval_loss=1.0 has no effect without train_loss"),
    "two signals": (
        "GrokAdamW",
        {"eval_loss": 1.0, "train_loss": 1.0, "grokking_signal": 0.5},
        "grokking_signal takes the place of the losses",
    ),
    "no clip": ("ADOPT", {"clip": False, "clip_exp": 0.3}, "clip_exp=0.3 has no effect with clip=False"),
    "no 1d": ("MARS", {"optimize_1d": True, "lr_1d_factor": 0.5}, "lr_1d_factor and weight_decay_1d have no effect"),
    "amsgrad in 8 bits": ("AdaBelief8bit", {"amsgrad": True}, "does not support amsgrad=True"),
}


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_have_no_effect_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}:? {message}"):
        getattr(optgen_optim, name)(make_params(), **settings)
