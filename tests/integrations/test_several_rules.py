"""Several rules in one optimizer with models of transformers, Trainer and accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optgen_optim import for_model
from support.tiny_gpt2 import Text, assert_same, quiet, tiny_gpt2
from torch import nn

transformers = pytest.importorskip("transformers")

STEPS = 6
MATRICES = ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]


def matrices(model: nn.Module) -> set[str]:
    return set(for_model(model, "lion", show=False).param_groups[0]["param_names"])


def test_heads_of_transformers() -> None:
    tied = tiny_gpt2()
    config = tied.config
    names = {f"transformer.h.{i}.{name}" for i in range(config.n_layer) for name in MATRICES}
    assert matrices(tied) == names
    config.tie_word_embeddings = False
    untied = nn.ModuleDict({"model": transformers.GPT2LMHeadModel(config), "last": nn.Identity()})
    assert matrices(untied) == {f"model.{name}" for name in names}
    config.num_labels = 3
    assert matrices(transformers.GPT2ForSequenceClassification(config)) == names


def trainer(folder: Path, model: Any) -> Any:
    values = {"output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "save_steps": STEPS // 2}
    values |= {"lr_scheduler_type": "cosine", "max_grad_norm": 0.5, "bf16": True, "gradient_accumulation_steps": 2}
    args = transformers.TrainingArguments(**quiet(values))
    made = for_model(model, {"rule": "lion", "bits": 8, "lr_scale": 0.3}, lr=1e-2, weight_decay=0.1, show=False)
    return transformers.Trainer(model, args, train_dataset=Text(), optimizers=(made, None))


def test_a_run_of_trainer_resumes_bit_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path, tiny_gpt2())
    whole.train()
    resumed = trainer(tmp_path, tiny_gpt2(seed=1))
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), "model")
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict(), "optimizer")
    lrs = [group["lr"] for group in whole.optimizer.param_groups]
    assert lrs == [0.0, 0.0]  # the end of the schedule
    weight = whole.model.transformer.h[0].mlp.c_fc.weight
    assert whole.optimizer.state[weight]["exp_avg"].dtype is torch.uint8
