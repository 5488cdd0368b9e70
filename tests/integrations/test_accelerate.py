"""A loop of accelerate trains with generated optimizers, saves its state, and goes on from there bit-exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from support.tiny_gpt2 import Text, assert_same, tiny_gpt2

from optgen.integrations.overrides import override_modules

accelerate = pytest.importorskip("accelerate")

BATCHES, CLIP = 24, 0.5


class Run:
    """A model, its optimizer and a schedule under accelerate: batches of two make a step, in bfloat16, clipped."""

    def __init__(self, cls: str, seed: int = 0, **settings: Any) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
        model = tiny_gpt2(seed)
        made = getattr(optgen_optim, cls)(model.parameters(), **{"lr": 1e-2, "weight_decay": 0.1, **settings})
        if made.bits == 8:
            override_modules(made, model, torch.nn.Embedding, optim_bits=32)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, BATCHES // 2)
        loader = torch.utils.data.DataLoader(Text(BATCHES * 4), batch_size=4)
        prepared = self.accelerator.prepare(model, made, loader, schedule)
        self.model, self.optimizer, self.loader, self.schedule = prepared
        self.losses: list[float] = []
        self.norms: list[float] = []

    def train(self, first: int = 0, last: int = BATCHES) -> None:
        loader = accelerate.skip_first_batches(self.loader, first) if first else self.loader
        self.model.train()
        self.optimizer.train()  # which acts in schedule-free rules alone
        for _, batch in zip(range(first, last), loader, strict=False):
            with self.accelerator.accumulate(self.model):
                loss = self.model(**batch).loss
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.norms.append(float(self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)))
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.item())


@pytest.mark.parametrize("cls", ["PagedAdamW8bit", "AdamWScheduleFree"])
def test_a_run_resumes_bit_exactly(cls: str, tmp_path: Path) -> None:
    whole = Run(cls)
    whole.train(0, BATCHES // 2)
    whole.accelerator.save_state(str(tmp_path))
    whole.train(BATCHES // 2)
    assert max(whole.norms) > CLIP
    assert len(whole.norms) == BATCHES // 2
    assert whole.losses[-1] < Text().ignorance
    assert whole.optimizer.param_groups[0]["lr"] < 1e-3  # the schedule's end

    resumed = Run(cls, seed=1)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(BATCHES // 2)
    assert resumed.losses == whole.losses[BATCHES // 2 :]
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), "model")
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict(), "optimizer")
    assert_same(resumed.schedule.state_dict(), whole.schedule.state_dict(), "schedule")


def test_embeddings_keep_32_bits() -> None:
    run = Run("PagedAdamW8bit")
    run.train(0, 2)
    inner = run.accelerator.unwrap_model(run.model).transformer
    states = run.optimizer.state
    assert states[inner.wte.weight]["exp_avg"].dtype is torch.float32
    assert states[inner.h[0].mlp.c_fc.weight]["exp_avg"].dtype is torch.uint8


def test_a_prepared_optimizer_takes_no_overrides() -> None:
    run = Run("AdamW8bit")
    with pytest.raises(TypeError, match=r"AcceleratedOptimizer has no overrides: .* before accelerate"):
        override_modules(run.optimizer, run.model, torch.nn.Embedding, optim_bits=32)


def test_updates_within_backward_cannot_be_clipped_and_are_not_accumulated() -> None:
    """As docs/training.md says: accelerate's clipping finds nothing, and the second pass of a batch raises."""
    run = Run("SGD32bit", fused_backward=True, lr=1.0, weight_decay=0.0)
    batch = next(iter(run.loader))
    before = run.model.lm_head.weight.detach().clone()
    with run.accelerator.accumulate(run.model):
        run.accelerator.backward(run.model(**batch).loss)
        assert float(run.accelerator.clip_grad_norm_(run.model.parameters(), 1e-30)) == 0.0
    assert not torch.equal(run.model.lm_head.weight, before)
    with pytest.raises(RuntimeError, match=r"gradients cannot be accumulated over backward passes\. Call step\(\)"):
        run.accelerator.backward(run.model(**batch).loss)
