"""A short version of `make converge`, and its statistics. The long one trains every rule of the package."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import converge
import converge_tasks
import optgen_optim
import pytest
import torch
from converge_results import Outcome, markdown, outcomes, save_picture
from converge_runs import Run, Wanted, evaluated_steps, key_of, rate_at, read, representative, rules, steps_of, train
from support.machine import require_compiler

from optgen.bench.driving import bits_of

RULES = rules(optgen_optim.CLASSES)
# In full, on the small images; the text is trained once, in the fewest bits.
TRAINED = ("adam", pytest.param("lars", marks=pytest.mark.full))


def wanted(task: str, family: str, bits: int, seed: int = 0, steps: int | None = None) -> Wanted:
    made = representative(RULES[family], bits)
    assert made is not None
    return Wanted(task, family, made.__name__, bits, seed, steps or steps_of(task, family))


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINED)
def test_rules_train_in_8_bits_as_in_32(family: str) -> None:
    """Training in 8 bits does as well as in 32; for 4 bits that differs by rule and task: see `make converge`."""
    require_compiler()
    every = [bits for bits in (32, 8) if representative(RULES[family], bits)]
    assert every == [32, 8]
    found = outcomes(train(wanted("digits", family, bits, seed)) for bits in every for seed in converge.SEEDS)
    assert [one.bits for one in found] == every
    assert all(one.quantized > 0.9 for one in found if one.bits < 32)
    assert [(one.bits, one.verdict) for one in found] == [(bits, "yes") for bits in every], markdown(found)


@pytest.mark.slow
def test_a_language_model_trains_in_the_fewest_bits() -> None:
    require_compiler()
    fewest = min(bits for made in RULES["adam"] for bits in bits_of(made))
    (found,) = outcomes([train(wanted("text", "adam", fewest))])
    assert found.trained, markdown([found])
    assert found.start == pytest.approx(math.log(256), rel=0.02)


@pytest.mark.slow
def test_muon_is_below_adamw_at_equal_steps() -> None:
    """In 32, 8 and 4 bits, on the text; embeddings, head and norms are AdamW's in the same bits."""
    require_compiler()
    steps = steps_of("text", "adam")
    adamw = train(wanted("text", "adam", 32)).final
    assert all(train(wanted("text", "muon", bits, steps=steps)).final < adamw for bits in (32, 8, 4))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["galore", pytest.param("apollo", marks=pytest.mark.full)])
def test_projections_are_within_5_percent_of_adamw(family: str) -> None:
    """At a rank of a quarter of the width, in 32 and in 8 bits."""
    require_compiler()
    found = outcomes(train(wanted("text", *pair)) for pair in (("adam", 32), (family, 32), (family, 8)))
    assert all(one.beside is not None and one.beside <= 0.05 for one in found if one.family == family), markdown(found)


def test_a_run_that_does_not_learn_fails() -> None:
    (found,) = outcomes([train(replace(wanted("digits", "adam", 32, steps=20), lr=0.0))])
    assert found.mean == pytest.approx(found.start, rel=1e-6)
    assert found.verdict == "no: not below half its start"


def test_a_run_is_the_same_again_and_is_kept(tmp_path: Path) -> None:
    one = wanted("digits", "adam", 32, steps=10)
    first = train(one)
    again = train(one)
    assert (again.start, again.losses) == (first.start, first.losses)
    assert train(replace(one, seed=1)).losses != first.losses
    store = tmp_path / "runs.jsonl"
    store.write_text(json.dumps(first.record()) + '\n{"cut off', encoding="utf-8")
    (kept,) = converge.make_runs([one], store, jobs=1)  # nothing is missing: no process is started
    assert kept == first == read(json.loads(json.dumps(first.record())))
    assert key_of(replace(one, bits=8)) != first.key


# The statistics


def run(bits: int, seed: int, final: float, start: float = 4.0) -> Run:
    it = Wanted("text", "rule", "Rule", bits, seed, 100)
    return Run(it, start, final, {0: start, 100: final}, 0.0, 1.0, f"{bits} {seed}")


def judged(small: list[float], full: list[float], bits: int = 8) -> Outcome:
    runs = [run(bits, seed, final) for seed, final in enumerate(small)]
    runs += [run(32, seed, final) for seed, final in enumerate(full)]
    return next(one for one in outcomes(runs) if one.bits == bits)


def test_what_is_allowed() -> None:
    same = [1.0, 1.0, 1.0]
    assert judged([1.009] * 3, same).passed
    assert judged([1.011] * 3, same).verdict == "no: worse than 32 bits"
    assert judged([1.029] * 3, same, bits=4).passed
    assert not judged([1.031] * 3, same, bits=4).passed
    assert judged([0.5] * 3, same).passed
    # The deviation of 0.9, 1.0, 1.1 is 0.1, times the root of 2/3.
    spread = judged([1.0] * 3, [0.9, 1.0, 1.1])
    assert spread.allowed == pytest.approx(0.01 + 0.1 * math.sqrt(2 / 3))
    # Runs in few bits that scatter are no excuse for their mean.
    assert not judged([0.9, 1.0, 1.5], same).passed
    # One seed says nothing of the spread.
    assert judged([1.009], [1.0]).passed
    assert not judged([1.011], [1.0]).passed


def test_what_did_not_train() -> None:
    assert judged([1.99] * 3, [1.99] * 3).passed
    assert judged([1.0, 1.0, 2.0], [2.0] * 3).verdict == "no: not below half its start"
    failed = judged([1.0, 1.0, math.nan], [1.0] * 3)
    assert not failed.trained
    assert not failed.passed
    assert not judged([1.0] * 3, [1.0, 1.0, math.nan]).passed


def test_runs_of_other_seeds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="differ in seeds"):
        outcomes([run(8, 0, 1.0), run(32, 1, 1.0)])


def beside(family: str, final: float, steps: int = 100) -> Outcome:
    runs = [run(32, seed, 1.0) for seed in (0, 1)]
    runs = [replace(each, wanted=replace(each.wanted, family="adam")) for each in runs]
    runs += [replace(run(32, s, final), wanted=Wanted("text", family, "Rule", 32, s, steps)) for s in (0, 1)]
    return next(one for one in outcomes(runs) if one.family == family)


def test_what_is_compared_with_adamw() -> None:
    assert beside("muon", 0.999).passed
    assert beside("muon", 1.001).verdict == "no: worse than AdamW"
    assert beside("galore", 1.049).passed
    assert beside("galore", 1.049).beside == pytest.approx(0.049)
    assert not beside("apollo", 1.051).passed
    assert beside("lion", 1.5).passed
    assert beside("muon", 1.5, steps=200).beside is None


def test_rates_and_evaluations() -> None:
    assert evaluated_steps(400)[0] == 320
    assert evaluated_steps(400)[-1] == 400
    assert len(evaluated_steps(400)) == 8
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[4] == rates[5] == 1.0
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert min(rates) > 0


def test_table_and_picture(tmp_path: Path) -> None:
    found = outcomes(
        [run(bits, seed, final) for bits, final in ((32, 1.0), (8, 1.005), (4, 1.5)) for seed in (0, 1, 2)]
    )
    assert markdown(found).count("\n") == 2 + 3
    save_picture(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_labels_are_drawn_from_the_model() -> None:
    data = converge_tasks.load_texts()
    torch.manual_seed(0)
    model = converge_tasks.TASKS["text"].model()
    pair = data.batch(torch.Generator().manual_seed(0))
    inputs, labels = converge_tasks.sampled(model, pair, torch.Generator().manual_seed(0))
    assert inputs is pair[0]
    assert labels.shape == pair[1].shape
    assert not torch.equal(labels, pair[1])


@pytest.mark.parametrize(
    ("words", "said"), [(["--tasks", "speech"], "speech is not one of text, digits"), (["--jobs", "0"], "at least 1")]
)
def test_wrong_arguments(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        converge.arguments(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_rules_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="magic is not one of"):
        converge.main(["--families", "magic", "--out", str(tmp_path)])
