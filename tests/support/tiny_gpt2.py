"""A GPT-2 of 0.1 million parameters and a text to train it on: Python's own help topics, byte by byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

LENGTH = 64  # bytes of a sample


def tiny_gpt2(seed: int = 0) -> Any:
    """A model with dropout, so that a run resumes bit-exactly only if its random numbers do.

    Both of its embeddings have 4096 elements or more, which 8-bit classes quantize; the head is tied to one of them.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends))


class Text(Dataset[dict[str, Tensor]]):
    """Stretches of the text, one after another; the labels are the bytes themselves, which the model shifts."""

    def __init__(self, samples: int = 512) -> None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
        assert len(text) >= samples * LENGTH
        self.samples = torch.tensor(list(text[: samples * LENGTH])).reshape(samples, LENGTH)

    @property
    def ignorance(self) -> float:
        """The loss of a model that knows no more than which bytes there are."""
        return math.log(len(self.samples.unique()))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | slice) -> dict[str, Tensor]:
        return {"input_ids": self.samples[index], "labels": self.samples[index]}


def quiet(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Trainer on a CPU, that print nothing and send nothing."""
    still = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1, "dataloader_pin_memory": False}
    return still | {"log_level": "error"} | dict(arguments)


def assert_same(a: Any, b: Any, what: str) -> None:
    """Two states are equal to the last bit, wherever a tensor lies in them."""
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor), what
        assert a.dtype == b.dtype, what
        assert torch.equal(a, b), f"{what}: {(a != b).sum()} of {a.numel()} elements differ"
    elif isinstance(a, Mapping):
        assert isinstance(b, Mapping), what
        assert a.keys() == b.keys(), what
        for key in a:
            assert_same(a[key], b[key], f"{what}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), what
        for index, x, y in zip(count(), a, b):
            assert_same(x, y, f"{what}[{index}]")
    else:
        assert a == b, what
