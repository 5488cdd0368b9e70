"""docs/catalogue.md and the page of each rule: what the specs say, every class and argument in them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import optgen_optim
import pytest
from support.compiling import ROOT, stock_package

from optgen.explanation import ClassInfo
from optgen.page.equations import resolved

TEXT = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
CLASSES: dict[str, ClassInfo] = {info.name: info for info in stock_package().classes}
SECTIONS = {part.split("\n", 1)[0]: part for part in TEXT.split("\n## ")[1:]}
RULES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "catalogue").glob("*.md")}


def test_it_is_what_the_specs_say() -> None:
    tool = ROOT / "tools" / "make_catalogue.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_the_classes_of_the_package() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| \[", SECTIONS["Classes"])
    assert sorted(rows) == sorted(optgen_optim.CLASSES)


def test_every_rule_has_a_page_and_a_link_to_it() -> None:
    assert sorted(RULES) == sorted({info.rule for info in CLASSES.values()})
    assert set(re.findall(r"(?m)^- .*\]\(catalogue/(\w+)\.md\)", SECTIONS["Rules"])) == set(RULES)


def shown_settings(section: str) -> dict[str, tuple[str, str]]:
    """Arguments of a section's table: default and meaning."""
    found = re.findall(r"(?m)^\| `(\w+)` \| (`[^`]*`|required) \| (?:`[^|]*|any object) \| (.*) \|$", section)
    return {name: (default.strip("`"), meaning) for name, default, meaning in found}


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_stands_with_its_default(name: str) -> None:
    info = CLASSES[name]
    section = RULES[info.rule]
    own = {**shown_settings(SECTIONS["Arguments of every class"]), **shown_settings(section)}
    row = next(line for line in section.split("\n") if line.startswith(f"| `{name}` |"))
    for argument in info.arguments.values():
        assert argument.name in own, argument.name
        shown, meaning = own[argument.name]
        changed = re.search(rf"default `{argument.name}`: `([^`]*)`", row)
        if f"`{argument.name}` is required" in row:
            assert argument.default is None
        elif argument.default is None:
            assert shown == "required"
        else:
            assert ast.literal_eval(changed[1] if changed else shown) == ast.literal_eval(argument.default)
        assert meaning


@pytest.mark.parametrize("name", CLASSES)
def test_state_bytes_are_those_of_the_plan(name: str) -> None:
    info = CLASSES[name]
    row = next(line for line in SECTIONS["Classes"].split("\n") if line.startswith(f"| `{name}` |"))
    assert f"**{info.state_bytes:.3f}".rstrip("0").rstrip(".") + "**" in row


BLOCK = """\
if a:
    x = 1
elif mode == "one" and not b:
    x = (2 +
         3)
else:
    x = 4
    if b or lr > 0:
        y = x
"""


@pytest.mark.parametrize(
    ("fixed", "lines"),
    [
        ({}, BLOCK.rstrip().split("\n")),
        ({"a": True}, ["x = 1"]),
        (
            {"a": False, "mode": "one"},
            [
                "if not b:",
                "    x = (2 +",
                "             3)",
                "else:",
                "    x = 4",
                "    if b or lr > 0:",
                "        y = x",
            ],
        ),
        ({"a": False, "b": True}, ["x = 4", "y = x"]),
        ({"mode": "two", "b": False}, ["if a:", "    x = 1", "else:", "    x = 4", "    if lr > 0:", "        y = x"]),
        ({"mode": "one", "b": False}, ["if a:", "    x = 1", "else:", "    x = (2 +", "             3)"]),
    ],
)
def test_fixed_options_are_resolved(fixed: dict[str, object], lines: list[str]) -> None:
    assert [line.strip() for line in resolved(BLOCK, fixed)] == [line.strip() for line in lines]
    parsed = "\n".join(resolved(BLOCK, fixed))
    assert ast.dump(ast.parse(parsed)) == ast.dump(ast.parse("\n".join(lines)))
