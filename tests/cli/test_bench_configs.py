"""`optgen bench` on shapes of Transformers' configurations, on what `optgen new` writes, and in little time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from optgen.bench import measure, show
from optgen.bench.cases import Case
from optgen.bench.contenders import Contender
from optgen.bench.hugging_face import config_shapes, names_a_config
from optgen.bench.models import MODELS
from optgen.bench.request import USUAL_PEERS, request_of
from optgen.commands import app
from optgen.errors import UserError

QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "bandwidth_numel", lambda: 2**16)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def written(folder: Path, **changes: Any) -> Path:
    """A folder with a configuration; None leaves a key out."""
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in (QWEN | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def bench(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words, "--peers", "none", "--seconds", "0.2"])


def test_a_rule_that_new_writes_is_measured_in_the_bits_that_it_leaves_open(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["new", "mine"])
    Path("shapes.txt").write_text("128 x 96\n2 * 96\n", encoding="utf-8")
    done = bench("--specs", "mine.yaml", "--bits", "32,8", "--shapes", "shapes.txt", "--json")
    assert done.exit_code == 0, done.output
    assert [one["name"] for one in json.loads(done.stdout)["optimizers"]] == ["Mine", "Mine in 8 bits"]
    done = bench("--specs", "mine.yaml", "--shapes", "shapes.txt", "--json")
    assert [one["name"] for one in json.loads(done.stdout)["optimizers"]] == ["Mine", "Mine8bit"]


@pytest.mark.parametrize("way", ["{}", "{}/config.json"])
def test_a_configuration_is_measured(way: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    written(tmp_path / "qwen")
    done = bench("AdamW8bit", "--like", way.format("./qwen"), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["dtype"] == "bfloat16"
    assert found["notes"][0].startswith("Qwen2ForCausalLM, of ./qwen")
    attention = 64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64
    assert found["parameters"] == 1000 * 64 + 2 * (attention + 3 * 64 * 96 + 2 * 64) + 64


def test_shapes_are_those_of_the_model_that_trains(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    found = config_shapes(str(written(tmp_path / "untied", tie_word_embeddings=False, dtype=None)))
    assert found.dtype == "float32"
    model = transformers.Qwen2ForCausalLM(transformers.AutoConfig.from_pretrained(str(tmp_path / "untied")))
    assert found.shapes == tuple(tuple(param.shape) for param in model.parameters())
    bare = config_shapes(str(written(tmp_path / "bare", architectures=["Mine"])))
    assert bare.notes == (
        f"Qwen2Model, of {tmp_path / 'bare'}",
        "it names no model of Transformers: measured without a head",
    )


def test_the_largest_models_take_no_memory(tmp_path: Path) -> None:
    """405 billion parameters; a tensor of them would not fit."""
    pytest.importorskip("transformers")
    large = {"hidden_size": 16384, "num_hidden_layers": 126, "intermediate_size": 53248, "vocab_size": 128256}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 8, "tie_word_embeddings": False}
    folder = written(tmp_path / "large", model_type="llama", architectures=["LlamaForCausalLM"], **large, **heads)
    done = bench("AdamW8bit", "--like", str(folder))
    assert done.exit_code == 1
    assert "parameters 811.7 GB" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("./nothing", None, "./nothing: Transformers finds no configuration"),
        ("nothing.json", None, "nothing.json cannot be read: no such file"),
        ("empty", {}, "Transformers finds no configuration"),
        ("odd", {"model_type": "nonsense"}, "Transformers finds no configuration"),
        ("wrong", QWEN | {"vocab_size": -5}, "no model can be made of it"),
        (
            "own",
            {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}},
            "Transformers finds no configuration",
        ),
    ],
)
def test_what_makes_no_model_is_a_message(name: str, content: Any, said: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    if content is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content), encoding="utf-8")
        (tmp_path / name / "code.py").write_text("raise SystemExit('code of a configuration is run')\n")
    done = bench("--like", name)
    assert done.exit_code == 1, done.output
    assert said in " ".join(done.stderr.split())


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"bare has no config\.json"):
        config_shapes("bare")


def test_known_models_are_no_configurations() -> None:
    assert not any(names_a_config(name) for name in MODELS)
    assert all(names_a_config(name) for name in ("Qwen/Qwen2.5-0.5B", "config.json", "./model"))


def asked(seconds: float, peers: str | None) -> Any:
    none: dict[str, Any] = {"like": None, "shapes": None, "bits": None, "dtype": None, "png": None}
    return request_of(classes=(), peers=peers, device="cpu", seconds=seconds, specs=(), as_json=False, **none)


def test_in_little_time_nothing_is_compiled_for_long_unless_it_is_named() -> None:
    assert asked(20.0, None).peers == USUAL_PEERS
    short = asked(3.0, None)
    assert (short.peers, short.left_out) == (("torch", "bitsandbytes"), ("torchao",))
    assert asked(3.0, "torchao").peers == ("torchao",)
    assert asked(3.0, "torchao").left_out == ()


def test_what_is_left_out_for_the_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optgen.bench.request.USUAL_PEERS", ("torchao",))
    Path("shapes.txt").write_text("64\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["bench", "SGD", "--shapes", "shapes.txt", "--seconds", "0.2"])
    assert done.exit_code == 0, done.output
    reason = "its first step compiles for longer than --seconds 0.2; --seconds 10, or --peers, measures it"
    assert f"absent: torchao: {reason}" in done.stdout


@pytest.mark.parametrize(("seconds", "age"), [(0.0, measure.STATES_AGE), (100.0, 1)])
def test_the_second_step_of_a_slow_optimizer_counts_as_measured(seconds: float, age: int) -> None:
    taken = []

    class Counted(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            taken.append(1)

    def clock(run: Callable[[], object]) -> float:
        run()
        return seconds

    contender = Contender("counted", lambda params: Counted(params), lambda *_: 8.0)
    budget = measure.Budget(1.0, 1e-9, 99.0, 1, 3)
    case = Case("one", ((4,),), 2)
    result = measure.measure_case(case, [contender], measure.Bandwidth(), budget, lambda *_: None, None, clock)
    (found,) = result.measured
    assert (found.age, found.samples) == (age, [seconds])
    assert len(taken) == age + 1
    assert ("states 1 steps old" in show.note(found)) == (age == 1)
