"""`optgen demo`: a small transformer trained with torch's AdamW and with generated optimizers, side by side."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from optgen.console import print_text
from optgen.errors import UserError
from optgen.package_name import STOCK_PACKAGE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from optgen.demo.training import Contender

PICTURE = "loss.png"
LR = 2e-3
LAMB_LR = 2e-2
WEIGHT_DECAY = 1e-2


def run_demo(out: Path, steps: int) -> None:
    """Train with each optimizer for `steps` steps, print the table, save the loss curves to `out`.

    Raises:
        UserError: torch or the generated package is not installed.
    """
    for module, advice in (("torch", "pip install torch"), (STOCK_PACKAGE, "run `optgen build specs/` in a checkout")):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"the demo needs {module}: {advice}")
    from optgen.demo.show import print_runs, progress
    from optgen.demo.text import load_text
    from optgen.demo.training import new_model, train

    optim = importlib.import_module(STOCK_PACKAGE)
    contenders = _contenders(optim)
    text = load_text()
    start = new_model(text)
    parameters = list(start.parameters())
    print_text(
        f"{len(text.training) + len(text.held_out):,} characters of Python's help texts, a transformer of "
        f"{sum(p.numel() for p in parameters):,} parameters in {len(parameters)} tensors, {steps} steps each"
    )
    with progress([contender.name for contender in contenders], steps) as begin:
        runs = [train(start, text, contender, steps, begin(contender.name)) for contender in contenders]
    print_runs(runs)
    if importlib.util.find_spec("matplotlib") is None:
        print_text("no picture without matplotlib: pip install matplotlib")
        return
    from optgen.demo.picture import save_picture

    save_picture(runs, out / PICTURE)
    print_text(f"loss curves: {out / PICTURE}")


def _contenders(optim: ModuleType) -> tuple[Contender, ...]:
    from torch.optim import AdamW

    from optgen.demo.training import Contender

    def torch_adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY)

    def generated(name: str, lr: float) -> Contender:
        def make(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
            optimizer: torch.optim.Optimizer = getattr(optim, name)(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
            return optimizer

        return Contender(name, make)

    return (
        Contender("torch.optim.AdamW", torch_adamw),
        generated("AdamW", LR),
        generated("AdamW8bit", LR),
        generated("LAMB8bit", LAMB_LR),
    )
