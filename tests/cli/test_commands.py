"""The commands: what they print, where, and the exit codes."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import optgen_optim
import pytest
from support.compiling import stock_package
from support.fake_programs import fake_nvcc, no_nvcc
from typer.testing import CliRunner, Result

import optgen.compiler
import optgen.precompile
from optgen import catalogue
from optgen.commands import app
from optgen.distribution import requirement
from optgen.explanation import TARGETS
from optgen.paths import specs_dir

# Children find optgen also where it is not installed.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def optgen_command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_what_is_shown_can_be_pasted_and_disturbs_no_terminal(here: Path) -> None:
    folder = here / "a b;\x1b[31m"
    folder.mkdir()
    (folder / "mine.yaml").write_text(RULE)
    (here / "generated").mkdir()
    result = optgen_command("build", f"{folder.name}/mine.yaml", "--check")
    assert "run `optgen build 'a b;\\x1b[31m/mine.yaml'`" in result.stderr
    assert "\x1b" not in result.output
    made = optgen_command("new", "other", "--out", "it's.yaml")
    assert """optgen check 'it'"'"'s.yaml'""" in made.stdout
    assert "\x1b" not in optgen_command("explain", "\x1b[31mAdam").output


def test_build_writes_a_package_named_after_the_file(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    result = optgen_command("build", "mine.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("generated/mine: 1 class, ")
    assert (here / "generated" / "mine" / "__init__.py").is_file()
    again = optgen_command("build", "mine.yaml")
    assert "up to date" in again.stdout


def test_build_takes_the_folder_specs_by_default(here: Path) -> None:
    (here / "specs").mkdir()
    (here / "specs" / "mine.yaml").write_text(RULE)
    result = optgen_command("build", "--package", "other", "--out", "x/y")
    assert result.exit_code == 0, result.output
    assert (here / "x" / "y" / "__init__.py").is_file()


def test_build_without_specs_is_wrong_usage(here: Path) -> None:
    result = optgen_command("build")
    assert result.exit_code == 2
    assert "there is no folder specs/ here" in result.stderr


def test_check_option_prints_the_difference(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    missing = optgen_command("build", "mine.yaml", "--check")
    assert missing.exit_code == 1
    assert "+++ b/__init__.py" in missing.stdout
    assert "is not what its specs make; run `optgen build mine.yaml`" in missing.stderr.replace("\n", " ")
    assert not (here / "generated").exists()
    optgen_command("build", "mine.yaml")
    assert optgen_command("build", "mine.yaml", "--check").exit_code == 0
    (here / "mine.yaml").write_text(RULE.replace("0.9 *", "0.8 *"))
    changed = optgen_command("build", "mine.yaml", "--check")
    assert changed.exit_code == 1
    assert "0.8" in changed.stdout


def test_dist_option_writes_a_pyproject_once(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    absent = optgen_command("build", "mine.yaml", "--check", "--dist")
    assert absent.exit_code == 1
    optgen_command("build", "mine.yaml")
    absent = optgen_command("build", "mine.yaml", "--check", "--dist")
    assert (absent.exit_code, absent.stderr) == (
        1,
        "error: there is no generated/pyproject.toml; run without --check\n",
    )
    made = optgen_command("build", "mine.yaml", "--dist")
    assert "generated/pyproject.toml written" in made.stdout
    path = here / "generated" / "pyproject.toml"
    found = tomllib.loads(path.read_text())
    assert found["project"]["name"] == "mine"
    assert found["project"]["dependencies"] == [requirement()]
    path.write_text(path.read_text().replace('name = "mine"', 'name = "our-rules"'))
    again = optgen_command("build", "mine.yaml", "--dist")
    assert "generated/pyproject.toml is there already, and was left as it is" in again.stdout
    assert optgen_command("build", "mine.yaml", "--check", "--dist").exit_code == 0
    assert 'name = "our-rules"' in path.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[project", "is not TOML"),
        ("[project]\n", "lack 'optgen-runtime>="),
        (
            "[project]\ndependencies = ['{needed}']\n[tool.hatch.build.targets.wheel]\npackages = ['other']\n",
            "its wheel holds other and not mine",
        ),
    ],
)
def test_a_pyproject_that_does_not_fit_is_refused_before_anything_is_written(text: str, said: str, here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    (here / "generated").mkdir()
    (here / "generated" / "pyproject.toml").write_text(text.replace("{needed}", requirement()))
    result = optgen_command("build", "mine.yaml", "--dist")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (here / "generated" / "mine").exists()


def test_dist_needs_a_folder_of_the_packages_name(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    result = optgen_command("build", "mine.yaml", "--package", "other", "--out", "x/y", "--dist")
    assert result.exit_code == 1
    assert "give --out x/y/other" in result.stderr
    assert not (here / "x").exists()


def test_the_stock_package_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(specs_dir().parent)
    result = optgen_command("build", "specs", "--check")
    assert result.exit_code == 0, result.output


def test_build_refuses_the_stock_name_for_other_specs(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    result = optgen_command("build", "mine.yaml", "--package", "optgen_optim")
    assert result.exit_code == 2
    assert "optgen_optim is the package of optgen's own specs" in " ".join(result.stderr.split())


def test_build_refuses_a_folder_that_is_not_generated(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    result = optgen_command("build", "mine.yaml", "--out", ".")
    assert result.exit_code == 1
    assert "is not a package that optgen generated" in result.stderr
    assert sorted(path.name for path in here.iterdir() if "lock" not in path.name) == ["mine.yaml"]


def test_compile_option_compiles_after_writing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def precompile(package: str, directory: Path) -> int:
        assert (directory / "__init__.py").is_file()
        seen.append(package)
        return 3

    monkeypatch.setattr(optgen.precompile, "precompile", precompile)
    (here / "mine.yaml").write_text(RULE)
    result = optgen_command("build", "mine.yaml", "--compile")
    assert result.exit_code == 0, result.output
    assert "3 kernels compiled" in result.stdout
    assert seen == ["mine"]


@pytest.fixture
def faked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec, and a stand-in for nvcc that builds for sm_80 and sm_90. Returns the folder of the package's cubins."""
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(here / "cache"))
    monkeypatch.setenv("OPTGEN_NVCC", str(fake_nvcc(here / "bin" / "nvcc", archs="sm_80 sm_90")))
    (here / "mine.yaml").write_text(RULE)
    return here / "generated" / "mine" / "cubins"


def test_arch_option_puts_cubins_into_the_package(faked: Path) -> None:
    result = optgen_command("build", "mine.yaml", "--arch", "sm_80,sm_90")
    assert result.exit_code == 0, result.output
    made = sorted(path.name for path in faked.iterdir())
    assert f"{len(made)} cubins for sm_80, sm_90 in generated/mine/cubins" in result.stdout
    assert {name.split("-")[1] for name in made} == {"sm_80", "sm_90"}
    assert optgen_command("build", "mine.yaml", "--arch", "sm_90", "--arch", "sm_80").exit_code == 0
    assert sorted(path.name for path in faked.iterdir()) == made


def test_cubins_are_no_part_of_what_is_checked(faked: Path) -> None:
    optgen_command("build", "mine.yaml", "--arch", "sm_80")
    count = len(list(faked.iterdir()))
    checked = optgen_command("build", "mine.yaml", "--check")
    assert checked.exit_code == 0, checked.output
    assert checked.stdout == f"generated/mine is up to date: 1 class; {count} cubins beside them, not checked\n"


def test_a_changed_rule_drops_its_cubins(faked: Path) -> None:
    optgen_command("build", "mine.yaml", "--arch", "sm_80,sm_90")
    old = {path.name for path in faked.iterdir()}
    unchanged = optgen_command("build", "mine.yaml")
    assert "removed" not in unchanged.stdout
    assert {path.name for path in faked.iterdir()} == old
    spec = faked.parents[2] / "mine.yaml"
    spec.write_text(RULE.replace("0.9 *", "0.8 *"))
    changed = optgen_command("build", "mine.yaml", "--arch", "sm_80")
    assert f"{len(old)} cubins of earlier sources removed" in changed.stdout
    assert {path.name for path in faked.iterdir()}.isdisjoint(old)
    spec.write_text(RULE)
    assert "cubins of earlier sources removed" in optgen_command("build", "mine.yaml").stdout
    assert not faked.exists()


@pytest.mark.parametrize("archs", ["sm_8x", "sm_20", "sm_80,sm_90a", "sm_80,", "native"])
def test_a_wrong_arch_is_refused_before_anything_is_written(faked: Path, archs: str) -> None:
    result = optgen_command("build", "mine.yaml", "--arch", archs)
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    wrong = next(name for name in archs.split(",") if name != "sm_80")
    assert f"{wrong!r} is not an architecture that" in said
    assert "builds for: sm_80, sm_90" in said
    assert not faked.parent.exists()


def test_arch_without_nvcc_says_what_brings_one(faked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_nvcc(monkeypatch, tmp_path)
    result = optgen_command("build", "mine.yaml", "--arch", "sm_80")
    assert result.exit_code == 1
    assert "there is no nvcc or NVRTC to build kernels for GPUs" in result.stderr
    assert "pip install nvidia-cuda-nvrtc" in result.stderr
    assert not faked.parent.exists()


def test_a_cubin_that_cannot_be_built_is_a_message(faked: Path, tmp_path: Path) -> None:
    refusal = 'case "$all" in *mine.cu*) echo "mine.cu(9): error: no"; exit 2;; esac'
    fake_nvcc(tmp_path / "bin" / "nvcc", archs="sm_80 sm_90", build=refusal)
    result = optgen_command("build", "mine.yaml", "--arch", "sm_80")
    assert result.exit_code == 1
    assert "mine.cu(9): error: no" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("option", [["--compile"], ["--arch", "sm_80"]])
def test_checking_compiles_nothing(faked: Path, option: list[str]) -> None:
    result = optgen_command("build", "mine.yaml", "--check", *option)
    assert result.exit_code == 2
    assert "nothing to compile" in " ".join(result.stderr.replace("│", " ").split())


def test_errors_of_specs_go_to_stderr_with_their_place(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE.replace("0.1 * grad", "beta * grad").replace("lr * update", "rate * update"))
    for command in (("build", "mine.yaml"), ("check", "mine.yaml"), ("list", "mine.yaml")):
        result = optgen_command(*command)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "mine.yaml:8:31\n" in result.stderr
        assert "mine.yaml:11:21\n" in result.stderr
        assert result.stderr.endswith("\n2 errors\n")
        assert "Traceback" not in result.stderr


def test_warnings_are_printed_and_stop_nothing(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE.replace("    update = exp_avg", "    update = grad\n    # exp_avg"))
    checked = optgen_command("check", "mine.yaml")
    assert (checked.exit_code, checked.stdout) == (0, "mine.yaml: 1 warning, 1 class\n")
    assert checked.stderr.startswith("warning[unused-state]: `exp_avg` has no effect")
    assert "mine.yaml:5:3\n5 |   exp_avg: {doc: Average.}\n  |   ^^^^^^^ use it" in checked.stderr
    built = optgen_command("build", "mine.yaml")
    assert (built.exit_code, built.stderr) == (0, checked.stderr)
    assert (here / "generated" / "mine" / "__init__.py").is_file()
    assert optgen_command("list", "mine.yaml").stderr == ""


def test_strict_takes_warnings_for_errors(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE.replace("    update = exp_avg", "    update = grad"))
    for command in (("build", "mine.yaml"), ("check", "mine.yaml")):
        result = optgen_command(*command, "--strict")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error[unused-state]: ")
        assert result.stderr.endswith("\n1 error\n")
    assert not (here / "generated").exists()
    (here / "mine.yaml").write_text(RULE)
    assert optgen_command("check", "mine.yaml", "--strict").exit_code == 0


def test_what_optgen_brings_has_no_warning(here: Path) -> None:
    assert optgen_command("check", str(specs_dir()), "--strict").exit_code == 0
    optgen_command("new", "my_rule")
    result = optgen_command("check", "my_rule.yaml", "--strict")
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_missing_file_is_a_message(here: Path) -> None:
    result = optgen_command("check", "none.yaml")
    assert result.exit_code == 1
    assert "none.yaml" in result.stderr


def test_check_says_how_many_classes(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    result = optgen_command("check", "mine.yaml")
    assert result.exit_code == 0
    assert result.stdout == "mine.yaml: no errors, 1 class\n"


def test_list_falls_back_on_the_stock_specs(here: Path) -> None:
    result = optgen_command("list")
    assert result.exit_code == 0, result.output
    rules, classes = result.stdout.split("\n\n")
    assert "lion                 Lion, evolved sign momentum" in rules
    header, *rows = classes.splitlines()
    assert header.split() == ["class", "rule", "bits", "states", "state", "B/param", "passes", "traffic", "B/param"]
    table = {row.split()[0]: row.split() for row in rows}
    assert table["AdamW"][-3:] == ["8", "1", "28"]
    assert table["AdamW8bit"][-3:] == ["2.03", "1", "16.03"]


@pytest.mark.parametrize(
    ("patterns", "shown"),
    [
        (("lion",), "Lion Lion8bit Lion32bit PagedLion PagedLion8bit PagedLion32bit"),
        (("LAMB8*", "hessian"), "LAMB8bit SophiaG SophiaG8bit"),
        (("adama?",), "Adamax"),
    ],
)
def test_list_shows_what_matches(patterns: tuple[str, ...], shown: str, here: Path) -> None:
    records = json.loads(optgen_command("list", "--json", *patterns).stdout)
    assert {record["class"] for record in records} == set(shown.split())
    table = optgen_command("list", *patterns).stdout.split("\n\n")[1]
    assert {line.split()[0] for line in table.splitlines()[1:]} == set(shown.split())


def test_list_of_a_pattern_that_nothing_matches_suggests_a_class(here: Path) -> None:
    result = optgen_command("list", "Lionn", "xyz")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: no class or rule matches Lionn, xyz: did you mean `Lion`?\n"


def test_the_catalogue_is_compiled_once_for_each_content(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(here / "cache"))
    compiled = []
    compile_specs = optgen.compiler.compile_specs
    monkeypatch.setattr(
        optgen.compiler, "compile_specs", lambda *given: compiled.append(given) or compile_specs(*given)
    )
    (here / "mine.yaml").write_text(RULE)
    first = optgen_command("list", "mine.yaml")
    assert optgen_command("list", "mine.yaml").stdout == first.stdout
    assert json.loads(optgen_command("list", "mine.yaml", "--json").stdout)[0]["module"] is None
    assert len(compiled) == 1
    (here / "mine.yaml").write_text(RULE.replace("update = ", "second = sqrt(norm(grad))\n    update = second * "))
    assert optgen_command("list", "mine.yaml").stdout != first.stdout
    assert len(compiled) == 2
    (here / "vocabulary.yaml").write_text("states: {exp_avg: {doc: An average.}}")
    optgen_command("list", "mine.yaml")
    assert len(compiled) == 3
    (place, *_) = (here / "cache").glob("catalogue-*.json")
    for damaged in (b"", b"{}", b"[1]", b"\xff"):
        for path in (here / "cache").glob("catalogue-*.json"):
            path.write_bytes(damaged)
        assert optgen_command("list", "mine.yaml").exit_code == 0
    assert len(compiled) == 7
    optgen_command("cache", "clear")
    assert not place.exists()
    (here / "mine.yaml").write_text(RULE + "\nnonsense: 1\n")
    for _ in range(2):
        assert optgen_command("list", "mine.yaml").exit_code == 1
    assert len(compiled) == 9


def test_what_can_be_read_only_once_is_not_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(here / "cache"))
    assert catalogue._key([Path("/dev/stdin")], None) is None
    (here / "cache").mkdir(mode=0o777)
    (here / "cache").chmod(0o777)
    (here / "cache" / "else").touch()
    (here / "mine.yaml").write_text(RULE)
    assert optgen_command("list", "mine.yaml").exit_code == 0
    assert [path.name for path in (here / "cache").iterdir()] == ["else"]


def test_list_as_json(here: Path) -> None:
    records = json.loads(optgen_command("list", "--json").stdout)
    record = next(record for record in records if record["class"] == "AdamW8bit")
    assert record["traffic_bytes_per_parameter"] == pytest.approx(16 + 8 / 256)
    assert record["states"] == ["exp_avg", "exp_avg_sq"]
    assert record["bits"] == 8


def test_json_names_the_module_that_a_class_is_imported_from(here: Path) -> None:
    """All of the stock specs' are there; specs of one's own belong to no package before `optgen build` names one."""
    records = json.loads(optgen_command("list", "--json").stdout)
    assert len(records) == len(optgen_optim.CLASSES)
    for record in records:
        assert getattr(importlib.import_module(record["module"]), record["class"]).__module__ == record["module"]
    explained = json.loads(optgen_command("explain", "AdamW", "--json").stdout)
    assert explained["module"] == "optgen_optim.adam"
    (here / "mine.yaml").write_text(RULE)
    assert [record["module"] for record in json.loads(optgen_command("list", "mine.yaml", "--json").stdout)] == [None]
    explained = json.loads(optgen_command("explain", "Mine", "--specs", "mine.yaml", "--json").stdout)
    assert (explained["class"], explained["module"]) == ("Mine", None)


def test_explain_shows_equations_plan_and_files(here: Path) -> None:
    text = optgen_command("explain", "LAMB8bit").stdout
    assert "LAMB8bit: rule lamb, 8-bit states" in text
    assert "exp_avg = beta1 * exp_avg + (1 - beta1) * grad" in text
    assert "tensor" in text
    assert "apply" in text
    assert "a step moves 26" in text
    assert "lamb.cpp" in text
    assert "paging: none; is_paged=True pages 2 bytes a parameter, on a GPU and from 100000 elements on\n" in text


def test_explain_resolves_choices_and_groups_what_stages_of_every_rule_compute(here: Path) -> None:
    optgen_command("new", "starter")
    text = optgen_command("explain", "Starter", "--specs", "starter.yaml").stdout
    values = text[text.index("\nvalue ") :].split("\n\n")[0].strip().splitlines()[1:]
    assert len(values) < 15, "what other settings would compute is left out"
    assert not any(" if " in line for line in values)
    assert "-   else:" in text
    assert "\n  The gradient" not in text
    text = optgen_command("explain", "LAMB").stdout
    (stage,) = (line for line in text.splitlines() if line.startswith("(stage"))
    assert stage.startswith("(stage `update`)")
    assert "param_norm, update_norm" in stage
    assert "\nparam_norm" not in text


@pytest.mark.parametrize(
    ("name", "shown", "record"),
    [
        pytest.param("AdamW", "paging: none; is_paged=True pages 8 bytes a", (0, 8), marks=pytest.mark.full),
        pytest.param("PagedAdamW", "paging: 8 bytes a parameter, on a GPU", (8, 8), marks=pytest.mark.full),
        ("PagedAdamW8bit", "paging: 2 bytes a parameter, on a GPU and from 100000 elements on\n", (2, 2)),
    ],
)
def test_explain_says_how_much_is_paged(name, shown, record, here: Path) -> None:
    assert shown in optgen_command("explain", name).stdout
    found = json.loads(optgen_command("explain", name, "--json").stdout)
    assert (found["paged_bytes_per_parameter"], found["pageable_bytes_per_parameter"]) == record
    assert found["paged_from_elements"] == 100_000


def test_explain_as_json(here: Path) -> None:
    record = json.loads(optgen_command("explain", "AdamW", "--json").stdout)
    assert record["class"] == "AdamW"
    assert [plan_pass["name"] for plan_pass in record["plan"]] == ["apply"]
    assert sum(plan_pass["bytes_per_parameter"] for plan_pass in record["plan"]) == 28
    assert {"name", "kind", "expression"} == set(record["values"][0])


def test_explain_traces_a_step(here: Path) -> None:
    """Numbers follow from one another: in a step by its statements, from step to step by states and parameters."""
    (here / "mine.yaml").write_text(RULE.replace("1e-3", "0.5"))
    steps = []
    for step in ("1", "2"):
        shown = optgen_command("explain", "Mine", "--specs", "mine.yaml", "--trace", step).stdout
        _, matrix, vector = shown.split("tensor ")
        assert matrix.startswith("1, 2 x 3\n")
        assert vector.startswith("2, 4\n")
        rows = [re.split(" {2,}", line) for line in vector.splitlines()[2:]]
        assert all(kind == "element" for *_, kind, _ in rows)
        steps.append([(name, [float(x) for x in text.strip("[]").split(", ")]) for *_, name, _, text in rows])
    for step in steps:
        assert [name for name, _ in step] == ["param", "grad", "exp_avg", "update", "param"]
    (param, grad, exp_avg, update, after), (second, grad_2, exp_avg_2, _, _) = ([x for _, x in s] for s in steps)
    assert exp_avg == update == pytest.approx([0.1 * g for g in grad], abs=1e-3)
    assert second == after == pytest.approx([p - 0.5 * e for p, e in zip(param, exp_avg, strict=True)], abs=1e-3)
    assert exp_avg_2 == pytest.approx([0.9 * e + 0.1 * g for e, g in zip(exp_avg, grad_2, strict=True)], abs=1e-3)
    assert len({tuple(x) for x in (param, grad, grad_2)}) == 3


def test_explain_of_an_unknown_class_suggests_one(here: Path) -> None:
    result = optgen_command("explain", "AdamW8bits")
    assert result.exit_code == 1
    assert "there is no class `AdamW8bits`: did you mean `AdamW8bit`?" in result.stderr


def test_explain_prints_the_code_of_one_class_alone(here: Path) -> None:
    info = next(info for info in stock_package().classes if info.name == "AdamW8bit")
    assert optgen_command("explain", "AdamW8bit", "--code").stdout == info.code("cpu")
    for target in TARGETS:
        assert optgen_command("explain", "AdamW8bit", "--code", "--target", target).stdout == info.code(target)
    (here / "mine.yaml").write_text(RULE)
    assert "const float update = " not in optgen_command("explain", "Mine", "--specs", "mine.yaml").stdout
    code = optgen_command("explain", "Mine", "--specs", "mine.yaml", "--code", "--target", "torch").stdout
    assert "    exp_avg = 0.9 * exp_avg + 0.1 * grad\n" in code
    assert "    param = p - lr * exp_avg\n" in code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trace", "0"), "Invalid value for '--trace'"),
        (("--trace", "1", "--code"), "--trace prints in place of what --code has; give one of them"),
        (("--trace", "1", "--json"), "--trace prints in place of what --json has; give one of them"),
        (("--target", "torch"), "--target goes with --code; write --code --target torch"),
        (("--code", "--target", "gpu"), "'gpu' is not one of 'cpu', 'cuda', 'torch'"),
        (("--code", "--json"), "--code prints code in place of what --json has; give one of them"),
        (("--code", "--html", "x.html"), "--code prints code in place of what --html has; give one of them"),
    ],
)
def test_code_stands_alone(arguments: tuple[str, ...], message: str, here: Path) -> None:
    result = optgen_command("explain", "AdamW8bit", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert not (here / "x.html").exists()
    unknown = optgen_command("explain", "AdamW8bits", "--code")
    assert unknown.exit_code == 1
    assert "did you mean `AdamW8bit`?" in unknown.stderr


def test_new_writes_a_rule_that_works(here: Path) -> None:
    result = optgen_command("new", "MyRule")
    assert result.exit_code == 0, result.output
    assert optgen_command("check", "my_rule.yaml").stdout == "my_rule.yaml: no errors, 2 classes\n"
    again = optgen_command("new", "my_rule")
    assert again.exit_code == 1
    assert "my_rule.yaml exists already" in again.stderr


@pytest.mark.parametrize("kind", ["spec", "shared", "vocabulary", "functions", "classes"])
def test_schema_is_json(kind: str) -> None:
    schema = json.loads(optgen_command("schema", kind).stdout)
    assert schema["title"] == f"optgen {kind}"
    assert schema["additionalProperties"] is False


def test_schema_of_an_unknown_kind_is_wrong_usage() -> None:
    assert optgen_command("schema", "other").exit_code == 2


def test_doctor_lists_what_it_looked_for() -> None:
    result = optgen_command("doctor")
    assert result.exit_code == 0, result.output
    for name in (
        "Python",
        "torch",
        "C++ compiler",
        "Python headers",
        "NVIDIA driver",
        "CUDA in torch",
        "PyCUDA",
        "nvcc",
        "cache",
        "optgen_optim",
    ):
        assert any(line.startswith(name) for line in result.stdout.splitlines())
    findings = json.loads(optgen_command("doctor", "--json").stdout)
    assert {"name", "status", "found", "advice", "required"} == set(findings[0])


def test_cache_shows_its_size_and_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    assert "0 files, 0 B" in optgen_command("cache").stdout
    result = optgen_command("cache", "clear")
    assert result.exit_code == 0, result.output
    assert "0 files removed" in result.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["build", "--nonsense"], ["explain"], ["demo", "--steps", "0"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert optgen_command(*arguments).exit_code == 2


def test_version() -> None:
    assert optgen_command("--version").stdout.startswith("optgen 0.")


def test_building_imports_no_torch(here: Path) -> None:
    (here / "mine.yaml").write_text(RULE)
    script = """
import sys
import tomllib
from typer.testing import CliRunner
from optgen.commands import app
for arguments in (["build", "mine.yaml"], ["build", "mine.yaml", "--check"], ["check", "mine.yaml"], ["list"],
                  ["explain", "AdamW"], ["explain", "AdamW", "--code", "--target", "torch"], ["new", "fresh"],
                  ["schema"]):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env=ENVIRONMENT)


def test_a_closed_pipe_is_no_traceback(here: Path) -> None:
    command = f"{sys.executable} -c 'from optgen.cli import main; main()' explain LAMB8bit | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert result.stdout == "LAMB8bit: rule lamb, 8-bit states\n"
    assert "Traceback" not in result.stderr


def test_stages_are_put_on_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages = [str(specs_dir().parent / "examples" / "stages" / f"{name}.yaml") for name in ("centralize", "lookahead")]
    built = optgen_command("build", *stages, "--onto", "sgd", "--package", "mine")
    assert built.exit_code == 0, built.output
    assert (tmp_path / "generated" / "mine" / "centralize_lookahead_sgd.cpp").is_file()
    assert optgen_command("build", *stages, "--onto", "sgd", "--package", "mine", "--check").exit_code == 0
    changed = optgen_command("build", *reversed(stages), "--onto", "sgd", "--package", "mine", "--check")
    assert changed.exit_code == 1
    assert "--onto sgd --package mine" in changed.output
    assert "LookaheadAdamW8bit" in optgen_command("list", stages[1], "--onto", "adamw").output
    assert "no errors" in optgen_command("check", stages[1], "--onto", "adamw").output
    given = ("--specs", stages[0], "--specs", stages[1], "--onto", "sgd")
    explained = optgen_command("explain", "CentralizeLookaheadSGD", *given)
    order = [
        "The gradient, by the stage centralize:", "The step:", "Applying the update:", "The parameter, by the stage",
    ]  # fmt: skip
    places = [explained.output.index(title) for title in order]
    assert places == sorted(places)
    assert optgen_command("explain", "SGD", "--onto", "sgd").exit_code == 2
