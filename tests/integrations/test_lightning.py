"""A LightningModule trains with generated optimizers; a run that begins at a checkpoint is the same to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from support.tiny_gpt2 import Text, assert_same, tiny_gpt2

from optgen.integrations.overrides import override_modules

lightning = pytest.importorskip("lightning")

STEPS, CLIP = 12, 0.5
QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "devices": 1,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),  # which Lightning uses
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
]


class Module(lightning.LightningModule):
    """A GPT-2 without dropout, since Lightning keeps no random numbers in its checkpoints."""

    def __init__(self, cls: str, seed: int = 0, **settings: Any) -> None:
        super().__init__()
        self.cls, self.settings = cls, {"lr": 1e-2, "weight_decay": 0.1, **settings}
        self.model = tiny_gpt2(seed)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.losses: list[float] = []
        self.norms: list[float] = []

    def training_step(self, batch: Any, index: int) -> Any:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        grads = [param.grad for param in self.parameters()]
        self.norms.append(float(torch.nn.utils.get_total_norm(grads)))

    def configure_optimizers(self) -> Any:
        made = getattr(optgen_optim, self.cls)(self.parameters(), **self.settings)
        override_modules(made, self, torch.nn.Embedding, optim_bits=32)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, STEPS)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module: Module, folder: Path, ckpt: Path | None = None, **given: Any) -> Any:
    """Two epochs of six steps, a checkpoint after each."""
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_epochs=1)
    values = {"max_epochs": 2, "precision": "bf16-mixed", "accumulate_grad_batches": 2, "callbacks": [keep], **QUIET}
    trainer = lightning.Trainer(default_root_dir=folder, **(values | given))
    loader = torch.utils.data.DataLoader(Text(STEPS * 4), batch_size=4)
    trainer.fit(module, loader, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def test_a_run_resumes_bit_exactly(tmp_path: Path) -> None:
    """With bf16 the class clips: Lightning refuses to, for a class that unscales gradients itself."""
    whole = Module("PagedAdamW8bit", max_grad_norm=CLIP)
    ended = fit(whole, tmp_path)
    assert ended.global_step == STEPS
    assert len(whole.losses) == 2 * STEPS
    assert max(whole.norms) > CLIP
    assert whole.losses[-1] < Text().ignorance
    resumed = Module("PagedAdamW8bit", seed=1, max_grad_norm=CLIP)
    again = fit(resumed, tmp_path, tmp_path / f"step={STEPS // 2}.ckpt")
    assert resumed.losses == whole.losses[STEPS:]
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), "model")
    assert_same(again.optimizers[0].state_dict(), ended.optimizers[0].state_dict(), "optimizer")
    entry = again.optimizers[0].state[resumed.model.transformer.wte.weight]
    assert entry["exp_avg"].dtype is torch.float32


def test_lightning_clips_where_it_does_not_scale(tmp_path: Path) -> None:
    """Clipping by Lightning in float32 and by the class are the same.

    The norm is a sum of float32 there and of float64 here: the first loses N 2^-24 of it at most for N
    terms, 0.7 % here.
    """
    theirs, ours = Module("SGD32bit", lr=1.0), Module("SGD32bit", lr=1.0, max_grad_norm=CLIP)
    start = torch.cat([param.detach().flatten() for param in ours.parameters()])
    fit(theirs, tmp_path / "theirs", max_steps=1, precision="32-true", gradient_clip_val=CLIP)
    fit(ours, tmp_path / "ours", max_steps=1, precision="32-true")
    assert ours.norms[0] > 2 * CLIP
    moved = [torch.cat([param.detach().flatten() for param in run.parameters()]) - start for run in (theirs, ours)]
    share = start.numel() * 2.0**-24
    assert torch.linalg.vector_norm(moved[0] - moved[1]) <= share * torch.linalg.vector_norm(moved[0])
    fit(Module("AdamW8bit"), tmp_path / "bf16-true", max_steps=1, precision="bf16-true", gradient_clip_val=CLIP)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Module("AdamW32bit"), tmp_path / "bf16", gradient_clip_val=CLIP, max_steps=1)


def test_updates_within_backward_cannot_be_clipped_and_are_not_accumulated(tmp_path: Path) -> None:
    """As docs/training.md says: Lightning's clipping finds nothing, and the second pass of a batch raises."""
    ends = []
    for clip in (None, 1e-30):
        module = Within("SGD32bit", lr=1.0, fused_backward=True)
        given = {"max_steps": 1, "precision": "32-true", "accumulate_grad_batches": 1}
        fit(module, tmp_path / str(clip), **given, gradient_clip_val=clip)
        ends.append(dict(module.model.state_dict()))
    assert_same(ends[0], ends[1], "model")
    assert not torch.equal(ends[0]["lm_head.weight"], tiny_gpt2().lm_head.weight)
    with pytest.raises(RuntimeError, match=r"gradients cannot be accumulated over backward passes\. Call step\(\)"):
        fit(Within("AdamW8bit", fused_backward=True), tmp_path / "two", max_steps=1)


class Within(Module):
    """One whose gradients are gone after backward."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert all(param.grad is None for param in self.parameters())
