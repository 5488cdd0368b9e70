"""The shapes that `optgen bench` measures: those of known models, of lists and of checkpoints."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optgen.bench.models import MODELS
from optgen.bench.shapes import Shapes, read_shapes
from optgen.errors import UserError

# Parameters of the models, as their makers count them.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_482_240,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "resnet-50": 25_557_032,
    "vit-base": 86_567_656,
}


def test_models_have_their_parameters() -> None:
    found = {name: sum(math.prod(shape) for shape in MODELS[name]()) for name in PARAMETERS}
    assert found == PARAMETERS


def configured(name: str) -> Any:
    """A model of Transformers without its numbers."""
    import transformers as t

    llama = {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192}
    llama |= {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}
    qwen = {"vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864}
    qwen |= {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
    makers: dict[str, Any] = {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config()),
        "bert-base": lambda: t.BertModel(t.BertConfig()),
        "llama-3.2-1b": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        "qwen2.5-0.5b": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**qwen)),
        "mistral-7b": lambda: t.MistralForCausalLM(t.MistralConfig()),
        "vit-base": lambda: t.ViTForImageClassification(t.ViTConfig(num_labels=1000)),
        "resnet-50": lambda: t.ResNetForImageClassification(t.ResNetConfig(num_labels=1000)),
    }
    with torch.device("meta"):
        return makers[name]()


@pytest.mark.parametrize(
    "name", ["gpt2", "bert-base", "llama-3.2-1b", "qwen2.5-0.5b", "mistral-7b", "vit-base", "resnet-50"]
)
@pytest.mark.filterwarnings("ignore")
def test_shapes_are_those_of_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    model = configured(name)
    assert Counter(MODELS[name]()) == Counter(tuple(param.shape) for param in model.parameters())


# Lists


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("3 x 4\n5", ((3, 4), (5,))),
        ("(3, 4)\n[5]\n(6,)\n\n# nothing\n7 8 9 # a volume", ((3, 4), (5,), (6,), (7, 8, 9))),
        ("2 * 3 x 4\n3*(5,)", ((3, 4), (3, 4), (5,), (5,), (5,))),
        ("[[3, 4], [5], []]", ((3, 4), (5,), ())),
        ('{"a.weight": [3, 4], "a.bias": [3]}', ((3, 4), (3,))),
    ],
)
def test_lists(text: str, shapes: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text(text, encoding="utf-8")
    found = read_shapes(path)
    assert (found.shapes, found.dtype, found.notes) == (shapes, None, ())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_list_from_a_pipe(tmp_path: Path) -> None:
    """As `--shapes <(…)` of a shell gives it: it can be read only once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("2 * 768 x 3072\n768\n",), daemon=True)
    writer.start()
    assert read_shapes(pipe) == Shapes(((768, 3072), (768, 3072), (768,)))
    writer.join()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "model.txt has no shapes; a list has a shape a line"),
        ("# nothing\n", "model.txt has no shapes"),
        ("3 x 4\n3 x y", "model.txt:2: `3 x y` is not a shape"),
        ("3 x -4", "model.txt:1: `3 x -4` is not a shape"),
        ("3 x 4\n0 x 4", "model.txt:2: a tensor of 0 x 4 has no elements"),
        ("0 * 4", "model.txt:1: 0 tensors; 1 to 100000 can be measured"),
        ("1000000 * 4", "model.txt:1: 1000000 tensors"),
        ("60000 * 4\n60000 * 4", "model.txt has more than 100000 tensors"),
        ("[[3, 4], [0]]", "model.txt: item 1: a tensor of 0 has no elements"),
        ("[[3, 4], 5]", "model.txt: item 1: 5 is not a shape"),
        ("[[3, true]]", "model.txt: item 0: [3, true] is not a shape"),
        ('{"a": [3.5]}', "model.txt: item a: [3.5] is not a shape"),
        ("[]", "model.txt has no shapes"),
        ("[[3, 4]", "model.txt is not JSON: "),
    ],
)
def test_bad_lists(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_shapes(path)
    assert said in str(raised.value)


# Checkpoints


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("way", ["plain", "wrapped", "legacy"])
def test_checkpoints(way: str, tmp_path: Path) -> None:
    """Tied tensors count once, counters and optimizers not at all."""
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    model.head(model.norm(model.embedding(torch.tensor([1, 2])))).sum().backward()
    optimizer.step()
    path = tmp_path / "model.pt"
    if way == "plain":
        torch.save(model.state_dict(), path)
    else:
        whole = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 3,
            "more": [optimizer.state_dict()],
        }
        torch.save(whole, path, _use_new_zipfile_serialization=way == "wrapped")
    found = read_shapes(path)
    assert sorted(found.shapes) == [(8,), (8,), (8,), (8,), (50, 8)]
    assert found.dtype == "float32"
    assert sorted(note.split(":")[0] for note in found.notes) == [
        "1 left out, of int64",
        "1 left out, the same as another",
    ]


def test_dtypes_of_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save({"a": torch.zeros(10, 10, dtype=torch.bfloat16), "b": torch.zeros(5), "c": torch.zeros(0, 3)}, path)
    found = read_shapes(path)
    assert (found.shapes, found.dtype) == (((10, 10), (5,)), "bfloat16")
    assert found.notes == (
        "1 left out, without elements: c",
        "dtypes differ; all are measured as bfloat16, that of most elements",
    )


def safetensors(path: Path, header: object) -> None:
    """A file of this format, whose numbers are never read."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_safetensors(tmp_path: Path) -> None:
    first = {"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}
    second = {"b": {"dtype": "BF16", "shape": [7], "data_offsets": [0, 14]}, "n": {"dtype": "I64", "shape": [1]}}
    safetensors(tmp_path / "1.safetensors", first)
    safetensors(tmp_path / "2.safetensors", second)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "n": "2.safetensors"}}))
    assert read_shapes(tmp_path / "1.safetensors").shapes == ((3, 4),)
    found = read_shapes(index)
    assert (found.shapes, found.dtype, found.notes) == (((3, 4), (7,)), "bfloat16", ("1 left out, of I64: n",))


def test_safetensors_of_the_library(tmp_path: Path) -> None:
    torch_format = pytest.importorskip("safetensors.torch")
    torch_format.save_file({"w": torch.zeros(4, 5), "b": torch.zeros(4)}, tmp_path / "m.safetensors")
    assert sorted(read_shapes(tmp_path / "m.safetensors").shapes) == [(4,), (4, 5)]


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    def refused(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as raised:
            read_shapes(path)
        return str(raised.value).replace(str(tmp_path), "")

    assert "cannot be loaded as a checkpoint" in refused("a.pt", b"PK\x03\x04 and then nothing")
    assert "cannot be loaded as a checkpoint" in refused("b.pt", b"hello")
    assert "cannot be loaded as a checkpoint" in refused("c.pt", b"")
    assert "is neither text nor a checkpoint" in refused("d.dat", b"\xff\xfe\x00\x01")
    assert "is not a safetensors file" in refused("e.safetensors", b"\x00")
    assert "is not a safetensors file" in refused("f.safetensors", struct.pack("<Q", 2**60) + b"{}")
    assert "is not a safetensors file" in refused("g.safetensors", struct.pack("<Q", 9) + b'{"a": {}}')
    with pytest.raises(UserError, match="is a folder"):
        read_shapes(tmp_path)
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"it holds Python objects.*; save model.state_dict\(\)"):
        read_shapes(tmp_path / "whole.pt")
    torch.save({"step": 3, "ids": torch.arange(3)}, tmp_path / "none.pt")
    with pytest.raises(UserError, match="has no tensors of float32, bfloat16, float16; 1 left out, of int64: ids"):
        read_shapes(tmp_path / "none.pt")
