"""`optgen bench`: what it measures, prints, draws and refuses; nothing here depends on how fast anything is."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from support.machine import require_compiler
from typer.testing import CliRunner, Result

from optgen.bench import measure, peers
from optgen.bench.cases import Case, case_of
from optgen.bench.contenders import Contender, catalogue, our_contender, wanted
from optgen.bench.memory import check_memory, free_bytes, needed, stored_bytes
from optgen.bench.models import MODELS
from optgen.bench.request import Request, request_of
from optgen.bench.show import COLUMNS
from optgen.commands import app
from optgen.errors import UserError

SHAPES = "128 x 96   # a matrix beyond 4096 elements\n2 * 96\n[64, 3, 3, 3]\n"
RULE = """\
name: mine
hyperparameters:
  lr: {default: 1e-3, range: "[0, inf)", doc: Step size.}
states:
  exp_avg: {doc: Average.}
blocks:
  step: |
    exp_avg = 0.9 * exp_avg + 0.1 * grad
    update = exp_avg
  apply: |
    param = param - lr * update
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make cases small: emptying the caches takes a second of a busy machine for each step, and no test needs it."""
    monkeypatch.setattr(measure, "bandwidth_numel", lambda: 2**16)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes.txt").write_text(SHAPES, encoding="utf-8")


def bench(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words, "--seconds", "0.2"])


def table_of(lines: list[str]) -> dict[str, dict[str, str]]:
    """The table's rows by their first column, each a cell by the name of its column, every cell as it must look."""
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    top = next(number for number, line in enumerate(lines) if line.startswith("optimizer"))
    assert tuple(cells[top]) == COLUMNS
    end = next(number for number in range(top, len(lines)) if not lines[number])
    found = {row[0]: dict(zip(COLUMNS, [*row, ""], strict=False)) for row in cells[top + 1 : end]}
    number, whole = r"[0-9]+\.[0-9]+", r"[0-9]+"
    looks = {"median ms": number, "best ms": number, "steps": whole, "GB/s": number, "roofline": f"{whole} %"}
    looks |= {"state B/param": number, "speed vs fused": f"{number}x|-", "engine, notes": r".*"}
    for name, row in found.items():
        assert row.keys() == set(COLUMNS), name
        for column, look in looks.items():
            assert re.fullmatch(look, row[column]), f"{name}, {column}: {row[column]!r}"
        assert float(row["best ms"]) <= float(row["median ms"])
    return found


def check_picture(path: str) -> None:
    """Something is drawn, and not all of it is ink."""
    pixels = imread(path)
    assert pixels.shape[1] == 1650
    assert 0.02 < float((pixels[:, :, :3].min(axis=2) < 0.9).mean()) < 0.6


def test_a_table_of_classes_and_peers() -> None:
    require_compiler()
    done = bench("AdamW8bit", "Lion8bit", "--shapes", "shapes.txt", "--peers", "torch,bitsandbytes", "--png", "a/b.png")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1].startswith("shapes.txt: 4 tensors, 14,208 float32 parameters; about ")
    rows = table_of(lines)
    names = ["AdamW8bit", "Lion8bit", peers.FUSED, peers.FOREACH, peers.BNB8, "bitsandbytes Lion8bit"]
    assert sorted(rows) == sorted(names)
    assert rows[peers.FUSED]["speed vs fused"] == "1.00x"
    assert rows["AdamW8bit"]["engine, notes"].startswith("cpu")
    # 12288 elements in 8 bits with a scale for 256, 1920 in 32 bits; AdamW has two states, Lion one.
    for name, states in (("AdamW8bit", 2), ("Lion8bit", 1)):
        kept = states * (12288 * (1 + 4 / 256) + 1920 * 4) / 14208
        assert float(rows[name]["state B/param"]) == pytest.approx(kept, abs=0.005 + 64 * 4 / 14208)
    assert "absent: torch Lion: torch has no such class" in lines
    assert "shapes.txt: measuring" in done.stderr
    assert lines[-1] == f"picture: {Path('a/b.png')}"
    check_picture("a/b.png")


def test_json_for_scripts() -> None:
    require_compiler()
    done = bench("--bits", "32,4", "--shapes", "shapes.txt", "--peers", "torch", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["parameters"], found["tensors"], found["dtype"]) == (14208, 4, "float32")
    assert found["bandwidth"] > 0
    assert {"processor", "threads", "torch"} <= set(found["machine"])
    by_name = {one["name"]: one for one in found["optimizers"]}
    assert sorted(by_name) == sorted(["AdamW", "AdamW in 4 bits", peers.FUSED, peers.FOREACH])
    for one in by_name.values():
        assert one["failure"] == ""
        assert one["best"] <= one["median"] <= max(one["samples"])
        assert one["roofline"] == pytest.approx(one["bytes"] / one["median"] / found["bandwidth"])
    # The matrix in 4 bits and its scales; the others, below 4096 elements, in 32.
    assert by_name["AdamW in 4 bits"]["bytes"] == 12288 * 14.0625 + 1920 * 28
    plan = 12288 * 1.0625 + 1920 * 8
    counters = 64 * 4  # what is kept beside elements: a count of steps, at most, for each of 4 tensors
    assert plan <= by_name["AdamW in 4 bits"]["state_bytes"] <= plan + counters
    assert by_name["AdamW"]["state_bytes_per_parameter"] == pytest.approx(8.0, abs=counters / 14208)


def test_a_peer_whose_name_says_the_bits_takes_part() -> None:
    """bitsandbytes' AdamW8bit refuses `optim_bits=8` beside its name."""
    require_compiler()
    pytest.importorskip("bitsandbytes")
    done = bench("--bits", "8", "--shapes", "shapes.txt", "--peers", "bitsandbytes", "--json")
    assert done.exit_code == 0, done.output
    failures = {one["name"]: one["failure"] for one in json.loads(done.stdout)["optimizers"]}
    assert failures == {"AdamW in 8 bits": "", "bitsandbytes AdamW8bit": ""}


def test_the_shapes_of_a_known_model() -> None:
    """ResNet-50's 161 tensors, as a table with a picture."""
    require_compiler()
    done = bench("AdamW8bit", "--like", "resnet-50", "--peers", "none", "--png", "bench.png")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1].startswith("resnet-50: 161 tensors, 25,557,032 float32 parameters; about ")
    (name,) = rows = table_of(lines)
    assert name == "AdamW8bit"
    assert rows[name]["engine, notes"].startswith("cpu")
    sizes = [math.prod(shape) for shape in MODELS["resnet-50"]()]
    kept = 2 * sum(size + 4 * -(-size // 256) if size >= 4096 else 4 * size for size in sizes)
    assert float(rows[name]["state B/param"]) == pytest.approx(kept / sum(sizes), abs=0.005 + 64 * 161 / sum(sizes))
    assert lines[-1] == "picture: bench.png"
    check_picture("bench.png")


@pytest.mark.full
def test_the_shapes_of_a_known_model_for_scripts() -> None:
    require_compiler()
    done = bench("AdamW", "--bits", "32,8", "--like", "gpt2", "--peers", "torch", "--json", "--png", "bench.png")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["case"], found["parameters"], found["tensors"]) == ("gpt2", 124_439_808, 148)
    assert sorted(one["name"] for one in found["optimizers"]) == sorted(
        ["AdamW", "AdamW in 8 bits", peers.FUSED, peers.FOREACH]
    )
    for one in found["optimizers"]:
        assert one["failure"] == ""
        assert len(one["samples"]) >= 1
        assert one["roofline"] == pytest.approx(one["bytes"] / one["median"] / found["bandwidth"])
    assert {one["name"]: one["engines"] for one in found["optimizers"] if one["ours"]} == {
        "AdamW": {"cpu": 148},
        "AdamW in 8 bits": {"cpu": 148},
    }
    check_picture("bench.png")


def test_classes_of_a_users_own_spec(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RULE, encoding="utf-8")
    done = bench(
        "--specs", "mine.yaml", "--bits", "32,8", "--shapes", "shapes.txt", "--peers", "torch,torchao", "--json"
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    by_name = {one["name"]: one for one in found["optimizers"]}
    assert sorted(by_name) == ["Mine", "Mine in 8 bits", peers.FUSED]
    assert by_name["Mine in 8 bits"]["bytes"] == 12288 * (12 + 2 + 4 / 256) + 1920 * 20
    assert found["absent"]["torch Mine"] == "torch has no such class"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PACKAGES, "torchao", ("no_such_package.optim", peers.PACKAGES["torchao"][1]))
    done = bench("Adan", "--shapes", "shapes.txt", "--peers", "torchao,bitsandbytes")
    assert done.exit_code == 0, done.output
    assert "absent: torchao: not installed: pip install torchao" in done.stdout.splitlines()
    assert "absent: bitsandbytes Adan: bitsandbytes has no such class" in done.stdout.splitlines()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error is a terminal, standard output is not: the bar moves in the one, the table stands in the other."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(measure, "bandwidth_numel", lambda: 2**22)  # for rounds of some time, between which it moves
    seen = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # what Linux says when the other end is closed
            while part := os.read(ours, 65536):
                seen.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        app(["bench", "SGD", "--shapes", "shapes.txt", "--peers", "none", "--seconds", "0.5"], standalone_mode=False)
        monkeypatch.undo()
    reader.join(timeout=60)
    os.close(ours)
    text, table = seen.decode(), capsys.readouterr().out
    assert "shapes.txt: measuring" in text
    assert "━" in text
    assert len(set(re.findall(r"(\d+)%", text))) > 2
    assert "━" not in table
    assert "SGD" in table


def test_a_peer_that_fails_is_named_and_the_others_measured() -> None:
    def broken(_: list[torch.Tensor]) -> torch.optim.Optimizer:
        raise RuntimeError("no kernel\nhere")

    from optgen.bench import show

    case = Case("small", ((8, 8),), 2)
    both = [Contender("good", lambda params: torch.optim.SGD(params, 0.1), lambda *_: 12.0)]
    both.append(Contender("bad", broken, lambda *_: 12.0))
    budget = measure.Budget(1.0, 0.05, 0.1, 1, 3)
    result = measure.measure_case(case, both, measure.Bandwidth(), budget, lambda *_: None)
    rows = show.rows(result)
    assert [row[0] for row in rows] == ["good", "bad"]
    assert rows[1][-1] == "RuntimeError: no kernel"
    assert show.record(result)["optimizers"][1]["failure"] == "RuntimeError: no kernel"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["AdamW9bit"], 1, "there is no class `AdamW9bit`: did you mean `AdamW8bit`?"),
        (["AdamW8bit", "--bits", "4"], 1, "AdamW8bit stores its states in 8 bits, not in 4"),
        (["--like", "gtp2"], 2, "'gtp2' is not one of gpt2,"),
        (["--like", "gtp2"], 2, "did you mean `gpt2`?"),
        (["--like", "gpt2", "--shapes", "shapes.txt"], 2, "--like and --shapes both say which shapes"),
        (
            ["--peers", "apex"],
            2,
            "'apex' is not one of torch, compile, bitsandbytes, bitsandbytes-cpu-fork, torchao, none",
        ),
        (["--bits", "7"], 2, "'7' is not one of 32, 16, 8, 4"),
        (["--dtype", "float64"], 2, "'float64' is not one of float32, bfloat16, float16"),
        (["--device", "tpu"], 2, "'tpu' is not one of cpu, cuda"),
        (["--png", "shapes.txt/a.png"], 1, "File exists"),
        (["--png", "a.jpg"], 2, "a.jpg is not the name of a PNG file; use a.png"),
        (["--shapes", "nothing.txt"], 1, "nothing.txt cannot be read: No such file or directory"),
        (["--specs", "nothing.yaml"], 1, "nothing.yaml"),
        (["--seconds", "0"], 2, "0"),
    ],
)
def test_mistakes(words: list[str], code: int, said: str) -> None:
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == code, done.output
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.output


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = bench("--device", "cuda")
    assert done.exit_code == 1
    assert "--device cuda needs an NVIDIA GPU" in done.stderr


# Memory


def test_what_does_not_fit_is_refused_before_anything_is_made() -> None:
    done = bench("AdamW32bit", "AdamW8bit", "--like", "llama-3-70b", "--peers", "torch")
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    # 70.6 billion parameters: 4 bytes each, once more for gradients; states of 8 and 2.03 bytes.
    assert "parameters 282.2 GB, gradients 282.2 GB, states of AdamW32bit 564.4 GB, AdamW8bit 143.3 GB" in said
    assert "nothing was measured" in said
    assert "median" not in done.output


@pytest.mark.parametrize("others", ["torch,bitsandbytes", pytest.param("torchao", marks=pytest.mark.full)])
def test_the_estimate_is_what_is_kept(others: str) -> None:
    """The states that a step leaves behind, for each contender; torchao compiles for half a minute."""
    known = catalogue()
    classes = wanted(known, ["AdamW32bit", "AdamW8bit", "Adan8bit", "LAMB8bit", "Adafactor", "SGD8bit"])
    classes += wanted(known, ["AdamW"], [4, 16])
    found = [our_contender(one) for one in classes]
    found += peers.peers(others.split(","), classes[:2]).found
    case = case_of("one", ((512, 512),), "float32", 4)
    need = needed(case, found)
    for one in found:
        params = measure.Tensors(case).params()
        optimizer = one.make(params)
        params[0].grad = torch.full((512, 512), 0.01)
        with peers.quiet():
            optimizer.step()
        # Rows, columns, counters, scales, code books: nothing of a tensor's size.
        assert need.states[one.name] <= stored_bytes(optimizer) <= need.states[one.name] + 16384, one.name


def test_the_check_of_memory() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50
    one = Contender("one", torch.optim.AdamW, lambda *_: 28.0, states=lambda *_: 8.0)
    other, third = (
        Contender(name, torch.optim.AdamW, lambda *_: 28.0, states=lambda *_: 8.0) for name in ("other", "third")
    )
    fits = Case("fits", ((1024, 1024),), 2)
    assert check_memory(fits, [one], 0.0, torch.device("cpu")).total == pytest.approx(1.1 * 2**20 * (4 + 8 + 8 + 8))
    # Parameters and gradients take 8 bytes, each contender 8: one of them fits in what is free, three do not.
    numel = int(free / 1.1 / 24)
    both = Case("both", ((numel // 100, 1),) * 100, 1)
    with pytest.raises(UserError, match="Of these one, other, third would fit alone: name fewer classes and peers"):
        check_memory(both, [one, other, third], 0.0, torch.device("cpu"))


def test_defaults() -> None:
    given: dict[str, Any] = dict.fromkeys(("like", "shapes", "peers", "bits", "dtype", "png"))
    found = request_of(classes=(), device="cpu", seconds=20.0, specs=(), as_json=False, **given)
    assert found == Request()
    given |= {"peers": "none", "bits": "8, 4"}
    found = request_of(classes=(), device="cpu", seconds=20.0, specs=(), as_json=False, **given)
    assert (found.peers, found.bits) == ((), (8, 4))


def test_small_sets_of_tensors_have_many_sets_of_gradients() -> None:
    assert case_of("a", ((16,),), "float32", 4).gradient_sets == 16
    assert case_of("a", ((4096, 4096),), "float32", 4).gradient_sets == 2
    assert case_of("a", ((16384, 16384),), "float32", 4).gradient_sets == 1


@pytest.mark.parametrize("slowest", [2.0, 200.0])
def test_the_picture_has_bars_or_points(slowest: float, tmp_path: Path) -> None:
    """Ours in blue, others in grey, the roofline in orange; what failed is left out, what is not known has no line."""
    from optgen.bench.picture import save_picture

    def one(name: str, milliseconds: float, moved: float | None, ours: bool) -> measure.Measured:
        contender = Contender(name, torch.optim.AdamW, lambda *_: moved, ours=ours)
        return measure.Measured(contender, [milliseconds / 1e3] * 3, 10, {}, "", 8 * 10**6)

    case = Case("mine", ((1000, 1000),), 2)
    failed = measure.Measured(Contender("bad", torch.optim.AdamW, lambda *_: 1.0), failure="no")
    others = [one("ours", 1.0, 28.0, True), one("theirs", slowest, 28.0, False), one("unknown", 1.5, None, False)]
    save_picture(measure.CaseResult(case, [failed, *others], [1e-3], 40_000_000), tmp_path / "a.png", "a machine")
    pixels = (255 * imread(tmp_path / "a.png")[:, :, :3]).round().astype(int)
    times = pixels[:, : int(0.62 * pixels.shape[1])]

    memory = pixels[:, int(0.62 * pixels.shape[1]) :]

    def share(colour: str, part: Any = times) -> float:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return float((abs(part - wanted).max(axis=2) <= 2).mean())

    # Two bars in grey beside one in blue, all of eight bytes.
    assert share("#0072B2", memory) > 0.01
    assert share("#8a8a8a", memory) == pytest.approx(2 * share("#0072B2", memory), rel=0.2)

    bars = slowest < 20
    assert share("#D55E00") > 0.0003
    assert (share("#0072B2") > 0.01) == bars
    assert share("#0072B2") > 0.0001
    assert (share("#8a8a8a") > 0.01) == bars
