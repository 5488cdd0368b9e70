"""The examples of docs/training.md run as they stand, one after another in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_gpt2 import Text, tiny_gpt2

pytest.importorskip("transformers")
PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Precision bf16-mixed is not supported by the model summary"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found"),
]

MADE = {  # where an example's optimizer is to be found
    "Trainer": lambda names: names["trainer"].optimizer,
    "accelerate": lambda names: names["optimizer"],
    "Lightning": lambda names: names["trainer"].optimizers[0],
    "Several rules in one optimizer": lambda names: names["optimizer"],
}


def blocks() -> dict[str, str]:
    """The page's examples by the headings they stand under."""
    found: dict[str, str] = {}
    for section in re.split(r"(?m)^## ", PAGE)[1:]:
        code = re.findall(r"(?ms)^```python\n(.*?)^```$", section)
        if code:
            found[section.partition("\n")[0]] = "\n".join(code)
    return found


@pytest.mark.parametrize("heading", blocks())
def test_an_example_trains(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, text = tiny_gpt2(), Text(32)
    names: dict[str, Any] = {"model": model, "dataset": text, "torch": torch}
    names["loader"] = torch.utils.data.DataLoader(text, batch_size=4)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    exec(compile(blocks()[heading], f"docs/training.md, {heading}", "exec"), names)
    assert not [name for name, param in model.named_parameters() if torch.equal(before[name], param)]
    made = MADE[heading](names)
    state = made.state[model.transformer.wte.weight]
    assert state["exp_avg"].dtype is torch.float32  # every example keeps embeddings whole
    assert made.state[model.transformer.h[0].mlp.c_fc.weight]["exp_avg"].dtype is torch.uint8


def test_every_library_has_an_example() -> None:
    assert list(blocks()) == list(MADE)
