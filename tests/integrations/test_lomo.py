"""Trainer with `lomo` and `adalomo`: updates within backward, clipped by the norm of the last step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optgen_optim import CLASSES
from support.tiny_gpt2 import Text, assert_same, quiet, tiny_gpt2

from optgen.integrations.transformers import SERVED, optimizer

transformers = pytest.importorskip("transformers")

STEPS = 6
RATES = {"lomo": 0.3, "adalomo": 0.02}


def arguments(folder: Path, **given: Any) -> Any:
    values = {"output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "save_steps": STEPS // 2}
    values |= {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "max_grad_norm": 0.5, "bf16": True}
    return transformers.TrainingArguments(**quiet(values | given))


def trainer(name: str, folder: Path, model: Any) -> Any:
    args = arguments(folder, learning_rate=RATES[name])
    made = optimizer(name, args)
    return transformers.Trainer(model, args, train_dataset=Text(), optimizer_cls_and_kwargs=made)


@pytest.mark.parametrize("name", RATES)
def test_a_run_resumes_bit_exactly(name: str, tmp_path: Path) -> None:
    whole = trainer(name, tmp_path, tiny_gpt2())
    whole.train()
    opt = whole.optimizer.optimizer
    assert type(opt) is CLASSES[SERVED[name].cls]
    assert [group["max_grad_norm"] for group in opt.param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.1, 0.0]
    assert opt.param_groups[0]["last_grad_squares"] > 0.25  # so that clipping acts
    logs = [log["loss"] for log in whole.state.log_history if "loss" in log]
    assert logs[-1] < logs[0]
    resumed = trainer(name, tmp_path, tiny_gpt2(seed=1))
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), "model")
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict(), "optimizer")


@pytest.mark.parametrize("name", RATES)
def test_what_trainer_would_do_to_gradients(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Trainer adds up gradients over 2 backward passes"):
        optimizer(name, arguments(tmp_path, gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match="Trainer clips gradients after backward"):
        optimizer(name, arguments(tmp_path), max_grad_norm=0.0)
    assert optimizer(name, arguments(tmp_path), max_grad_norm=0.25)[1]["max_grad_norm"] == 0.25
    with pytest.raises(ValueError, match="Trainer hands the learning rate to backward while"):
        optimizer(name, arguments(tmp_path, optim=name))
    with pytest.raises(ValueError, match="pass the trainer's arguments"):
        optimizer(name, lr=0.1, weight_decay=0.0)


def test_other_rules_clip_by_the_last_norm_too(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    given = {"fused_backward": True, "clip_by_last_norm": True, "max_grad_norm": 0.5}
    _, kwargs = optimizer("adamw_torch", args, **given)
    assert given.items() <= kwargs.items()
    with pytest.raises(ValueError, match="clip_by_last_norm=True with max_grad_norm of the class"):
        optimizer("adamw_torch", args, fused_backward=True)
