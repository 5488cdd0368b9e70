"""Reading specs: what comes out, and what is found where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from optgen import paths
from optgen.diagnostics import Reporter, SpecError
from optgen.spec.loader import SpecSet, load_specs

VALID = Path(__file__).parent / "valid"
RULE = "name: {name}\nblocks:\n  step: param = param - grad\n"


def _load(*files: Path) -> SpecSet:
    return load_specs(files, Reporter())


def _errors(*files: Path) -> list[str]:
    with pytest.raises(SpecError) as error:
        _load(*files)
    return [f"{d.location or ''} {d.rule}: {d.message}; {d.help}" for d in error.value.diagnostics]


def _write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_stock_specs() -> None:
    specs = _load(paths.specs_dir())
    assert {"adam", "lamb", "lars"} <= set(specs.rules)
    assert specs.classes["AdamW8bit"].rule == "adam"
    signature = specs.classes["AdamW8bit"].signature
    assert isinstance(signature, list)
    assert signature[:3] == ["lr", "betas", "eps"]
    assert specs.rules["adam"].spec.hyperparameters["lr"].default == 0.001
    (placed,) = specs.refusals_of("LARS8bit")
    assert placed.refused.message.raw == "LARS without momentum is not supported!"
    assert placed.when.text == "momentum == 0"
    where = specs.declared["LAMB"].document.locate_key("classes", "LAMB")
    line = (paths.specs_dir() / "classes.yaml").read_text().splitlines()[where.line - 1]
    assert line.strip().startswith("LAMB:")


@pytest.mark.parametrize("name", sorted(path.name for path in VALID.glob("*.yaml")))
def test_valid_files(name: str) -> None:
    assert list(_load(VALID / name).rules) == [Path(name).stem]


def test_values_as_written() -> None:
    specs = _load(VALID / "everything.yaml")
    spec = specs.rules["everything"].spec
    assert spec.title.raw == "Every key of a spec: 日本 é"
    assert spec.hyperparameters["betas"].default == [0.9, 0.999]
    assert spec.hyperparameters["lr"].required
    assert spec.hyperparameters["gamma"].optional
    assert type(spec.hyperparameters["warmup"].default) is int
    assert spec.hyperparameters["lr_sum"].default == -0.001
    assert spec.options["mode"].choices == ["on", "off", 3]
    assert spec.states["total"].init == 0.001
    assert spec.blocks.apply == "param = param - lr * update"
    assert specs.classes["Every8bit"].signature == ["lr", "betas", "warmup", "gamma", "max_unorm", "lr_sum"]
    every = specs.declared["Every8bit"]
    assert str(every.document.locate(*every.at("bits"))).endswith("everything.yaml:38:11")
    assert specs.refusals_of("Every8bit")[0].when.text == "lr > 2"
    assert specs.rules["everything"].text("states", "exp_avg_sq", "init").text == "grad * grad"


def test_a_rule_without_classes_gets_one(tmp_path: Path) -> None:
    text = RULE.format(name="my_rule2x") + "hyperparameters:\n  a: {default: 1}\n  b: {}\n  c: {}\n"
    specs = _load(_write(tmp_path, {"my_rule2x.yaml": text}))
    assert list(specs.classes) == ["MyRule2x"]
    assert specs.classes["MyRule2x"].signature == ["b", "c", "a"]
    assert specs.classes["MyRule2x"].rule == "my_rule2x"


def test_a_folder_may_have_its_own_shared(tmp_path: Path) -> None:
    folder = _write(tmp_path, {"a.yaml": RULE.format(name="a"), "shared.yaml": "options:\n  mine: {default: true}\n"})
    assert list(_load(folder).shared.shared.options) == ["mine"]
    assert list(_load(folder / "a.yaml").shared.shared.options) == ["mine"]
    (tmp_path / "shared.yaml").unlink()
    assert "maximize" in _load(folder).shared.shared.options


def test_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + RULE.format(name="a").replace("\n", "\r\n") + "colour: red\r\n"
    (tmp_path / "a.yaml").write_bytes(text.encode())
    assert _errors(tmp_path / "a.yaml")[0].split(" ", 1)[0].endswith("a.yaml:4:1")


def test_table_of_classes(tmp_path: Path) -> None:
    table = """\
signatures:
  plain: [lr, optim_bits, mu]
  unused: [lrr]
refusals:
  high: {when: lr > 1, message: "{name} {lr} {nope}"}
classes:
  One: {rule: a, signature: plain, refusals: [hihg, high]}
  Two: {rule: aa}
  Three: {signature: plian}
  Four: {rule: a, signature: plian}
  A: {rule: a}
"""
    rule = RULE.format(name="a") + "hyperparameters: {lr: {default: 1}}\nstates: {m: {}}\nclasses:\n  One: {}\n"
    folder = _write(tmp_path, {"classes.yaml": table, "a.yaml": rule})
    said = [line.removeprefix(f"{folder.as_posix()}/") for line in _errors(folder)]
    assert said == [
        f"a.yaml:7:3 duplicate-class: the class `One` is declared twice; also in {folder.as_posix()}/classes.yaml:7:3;"
        " rename one",
        "classes.yaml:2:27 undefined-name: `mu` is not a hyperparameter or option of `a`; it has lr, max_grad_norm, "
        "percentile_clipping, maximize, skip_zeros, nonfinite, optim_bits, codec, block_size, min_8bit_size, "
        "block_wise, rounding, seed, is_paged, capturable, fused_backward, clip_by_last_norm, fused, foreach, "
        "differentiable",
        "classes.yaml:3:12 undefined-name: no rule has `lrr`; did you mean `lr`?",
        "classes.yaml:5:46 undefined-name: `{nope}` in this message is not a setting; "
        "`{name}` is the class; settings go by their names",
        "classes.yaml:7:47 undefined-name: there is no refusal `hihg`; did you mean `high`?",
        "classes.yaml:8:15 undefined-name: there is no rule `aa`; did you mean `a`?",
        "classes.yaml:9:3 missing-key: the class `Three` has no `rule`; add `rule:`, its name",
        "classes.yaml:10:30 undefined-name: there is no signature `plian`; did you mean `plain`?",
    ]


def test_all_errors_of_all_files_at_once(tmp_path: Path) -> None:
    folder = _write(
        tmp_path,
        {
            "a.yaml": RULE.format(name="a") + "colour: red\ntitle: 3\n",
            "b.yaml": "\tname: b\n",
            "c.yaml": RULE.format(name="c") + "states:\n  grad: {}\n",
            "shared.yaml": "options:\n  x: {default: y}\n",
            "classes.yaml": "classes:\n  A: {rule: a, bitz: 8}\n",
        },
    )
    rules = [line.removeprefix(f"{folder.as_posix()}/").split(":")[:4] for line in _errors(folder)]
    assert [":".join(parts) for parts in rules] == [
        "a.yaml:4:1 unknown-key: unknown key `colour`; known here",
        "a.yaml:5:8 type: `title`",
        "b.yaml:1:1 tab: a tab is not allowed as indentation; indent with spaces",
        "c.yaml:5:3 reserved-name: `grad` is a reserved name; use another name",
        "classes.yaml:2:16 unknown-key: unknown key `bitz`; did you mean `bits`?",
        "shared.yaml:2:16 default: `x` has no `choices`, so it is a flag; write true or false, or list the `choices`",
    ]


def test_partial_returns_what_could_be_read(tmp_path: Path) -> None:
    bad = RULE.format(name="b") + "colour: red\n"
    folder = _write(tmp_path, {"a.yaml": RULE.format(name="a"), "b.yaml": bad})
    reporter = Reporter()
    specs = load_specs([folder], reporter, partial=True)
    assert list(specs.rules) == list(map(str.lower, specs.classes)) == ["a"]
    assert [d.rule for d in reporter.diagnostics] == ["unknown-key"]


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert _errors(tmp_path / "no.yaml")[0].startswith(f" no-file: `{tmp_path.as_posix()}/no.yaml` does not exist")
    assert "holds no *.yaml" in _errors(tmp_path)[0]
    assert "there is no spec" in _errors()[0]
    assert "no-file" in _errors(Path("/dev/null"))[0]
    assert "no-file" in _errors(Path("a\0b"))[0]
    assert "no-file" in _errors(Path("x" * 5000))[0]
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert "no-file" in _errors(loop)[0]


def test_same_rule_twice(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    _write(one, {"a.yaml": RULE.format(name="a")})
    _write(two, {"a.yaml": RULE.format(name="a")})
    assert "duplicate-rule" in _errors(one, two)[0]
    assert list(_load(one, one / "a.yaml").rules) == ["a"]
    _write(one, {"shared.yaml": "{}"})
    _write(two, {"shared.yaml": "{}"})
    assert "several-shared" in _errors(one, two)[0]


@pytest.mark.parametrize("other", ["a_torch", "A"])
def test_rules_that_would_be_one_file(tmp_path: Path, other: str) -> None:
    _write(tmp_path, {"1.yaml": RULE.format(name="a"), "2.yaml": RULE.format(name=other)})
    assert f"the rules `a` and `{other}` would be one file of the package" in _errors(tmp_path)[0]


def test_a_table_under_another_name(tmp_path: Path) -> None:
    _write(tmp_path, {"mine.yaml": "classes:\n  A: {rule: adam}\n"})
    assert "is a table of classes, not a rule; name the file classes.yaml" in _errors(tmp_path / "mine.yaml")[0]
