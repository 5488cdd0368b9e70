"""The page of a class: what it says is what the compiler knows, and it needs nothing beside itself."""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.compiling import stock_package
from typer.testing import CliRunner

from optgen.commands import app
from optgen.compiler import compile_specs
from optgen.page import page
from optgen.page.equations import lines, truth
from optgen.page.layout import layout_of

CLASSES = {info.name: info for info in stock_package().classes}
LOADING = re.compile(r"<(script|link|img|iframe|object|embed|base)\b|@import|url\(|\bsrc=|\bon\w+=", re.I)
VOID = {"meta", "br", "hr"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_has_a_page_of_its_own(name: str) -> None:
    info = CLASSES[name]
    text = page(info)
    assert not LOADING.search(text)
    parsed = Balanced()
    parsed.feed(text)
    assert parsed.open == []
    words = " ".join(" ".join(parsed.text).split())
    assert words.count(name) >= 2
    for state in info.states:
        assert state in words
    for argument in info.arguments:
        assert argument in parsed.text


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_pictures_bytes_are_those_of_the_plan(name: str) -> None:
    info = CLASSES[name]
    layout = layout_of(info)
    assert sum(one.bytes for one in layout.passes) == pytest.approx(info.traffic, abs=1e-12)
    assert [one.bytes for one in layout.passes] == pytest.approx([one.bytes for one in info.explain().passes])
    assert len(layout.passes) == info.passes
    kept = {lane.name: lane.bytes for lane in layout.lanes}
    assert sum(kept[name] for name in info.states if name in kept) <= info.state_bytes + 1e-9
    assert [tuple(one.reads) for one in layout.passes] == [
        tuple(sorted(one.reads, key=list(kept).index)) for one in info.explain().passes
    ]


def test_what_defaults_leave_out_is_faint() -> None:
    """LAMB8bit's: coupled decay (2 lines), amsgrad (3), no bias correction (2), decay outside of the norm (2)."""
    text = page(CLASSES["LAMB8bit"])
    functions = 1 + 3 + 1  # what adam_direction, amsgrad_maximum and bias_correction do by default
    assert (text.count('class="line faint"'), text.count('class="line"')) == (9, 8 + 9 + functions)
    # A class that fixes the option has neither the question nor the other branch.
    assert CLASSES["AdamW"].spec.entry.set["decoupled_weight_decay"] is True
    assert "decoupled_weight_decay" not in page(CLASSES["AdamW"]).partition("Symbols")[0]


def test_what_rules_share_is_shown_where_defaults_use_it() -> None:
    """LAMB8bit's trust ratio (8 lines, max_unorm among them) stands before the update is applied, and has letters."""
    text = page(CLASSES["LAMB8bit"])
    equations, _, rest = text.partition("Symbols")
    assert equations.index("The step") < equations.index("The update, as for every rule") < equations.index("Applying")
    assert "The gradient, as for every rule" not in equations
    assert "‖" in equations
    assert "max_unorm" in rest.partition("Passes over memory")[0]
    assert "as for every rule" not in page(CLASSES["AdamW"])


def test_papers_are_linked() -> None:
    text = page(CLASSES["LAMB8bit"])
    link = '<a href="https://arxiv.org/abs/1904.00962">https://arxiv.org/abs/1904.00962</a>, algorithm 2.'
    assert link in text


def test_bits_that_a_class_fixes_are_no_default() -> None:
    assert "a state, by default" in page(CLASSES["AdamW"])
    assert "a state, by default" not in page(CLASSES["LAMB8bit"])


def test_what_a_spec_says_cannot_leave_its_place(tmp_path: Path) -> None:
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        """\
name: mine
title: a <script>alert(1)</script> & b
doc: "</title><img src=x onerror=alert(1)> <b>"
hyperparameters:
  lr: {default: 1e-3, range: "[0, inf)", doc: "<i>Step</i> size."}
blocks:
  step: |
    param = param - lr * grad
""",
        encoding="utf-8",
    )
    (info,) = compile_specs([spec], "mine").classes
    text = page(info)
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;i&gt;Step" in text


def test_the_command_writes_it(tmp_path: Path) -> None:
    target = tmp_path / "lamb.html"
    done = CliRunner().invoke(app, ["explain", "LAMB8bit", "--html", str(target)])
    assert done.exit_code == 0, done.output
    assert "lamb.html written" in done.stdout.replace("\n", "")
    assert target.read_text(encoding="utf-8") == page(CLASSES["LAMB8bit"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["LAMB9bit", "--html", "x.html"], 1, "there is no class `LAMB9bit`: did you mean `LAMB8bit`?"),
        (["LAMB8bit", "--html", "no/such/x.html"], 1, "No such file or directory"),
        (["LAMB8bit", "--html", "x.html", "--json"], 2, "--json prints and --html writes"),
    ],
)
def test_mistakes(words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["explain", *words])
    assert done.exit_code == code
    assert said in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_conditions_that_defaults_decide() -> None:
    found = lines("if a:\n    x = 1\nelif b > 0 and not c:\n    x = 2\nelif n >= 2:\n    x = 3\nelse:\n    x = 4\n", {})
    assert [line.word for line in found] == ["if", "", "elif", "", "elif", "", "else", ""]
    tests = [line.node for line in found if line.word and line.node is not None]
    values = {"a": False, "b": 1.0, "c": False}
    assert [truth(test, values) for test in tests] == [False, True, None]  # type: ignore[arg-type]
    assert truth(tests[1], {"b": None, "c": False}) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("0 < b", True),
        ("b > -1", True),
        ("-1 >= b", False),
        ("b is None", False),
        ("n is not None", False),
        ("name == 'lamb'", True),
        ("'lamb' != name", False),
        ("other == 1", None),
        ("True", True),
        ("a or other", None),
        ("not a and other", None),
        ("a and other", False),
    ],
)
def test_truth(text: str, holds: bool | None) -> None:
    values = {"a": False, "b": 1.0, "n": None, "name": "lamb"}
    assert truth(ast.parse(text, mode="eval").body, values) is holds


def test_all_that_the_language_has(tmp_path: Path) -> None:
    """Parts of the language that no stock rule uses: `pass`, texts, a plus sign, turned comparisons, deep brackets."""
    spec = tmp_path / "mine.yaml"
    deep = "sqrt(" * 100 + "grad * grad" + ")" * 100
    spec.write_text(
        f"""\
name: mine
hyperparameters:
  lr: {{default: 1e-3, range: "[0, inf)", doc: Step size.}}
  beta: {{default: null, range: "[0, 1)", doc: A rate.}}
options:
  mode: {{default: one, choices: [one, two], doc: Which.}}
blocks:
  step: |
    'A text <b>here</b>.'
    if 0 < lr:
        if mode == "two":
            pass
    x = +grad * 123456.789 / fan_in + {deep}
    if ndim >= 2:
        x = x * max(grad, over=channel) / shape[0] + std(x, over=last)
    if beta is not None:
        x = x * beta
    param = param - lr * where(not (x > 0 or x < -1), x, 1.5e-9)
""",
        encoding="utf-8",
    )
    (info,) = compile_specs([spec], "mine").classes
    text = page(info)
    assert "A text &lt;b&gt;here&lt;/b&gt;." in text
    assert "<mn>1.23456789</mn>" in text  # all digits, times a power of ten
    assert text.count("<msqrt>") == 100
    assert "<mn>1.5</mn><mo>·</mo><msup><mn>10</mn>" in text
    assert text.count('class="line faint"') == 4
    assert '<msub><mi mathvariant="normal">max</mi><mtext>channel</mtext></msub>' in text
    assert '<msub><mi mathvariant="normal">shape</mi><mn>0</mn></msub>' in text
    printed = CliRunner().invoke(app, ["explain", "Mine", "--specs", str(spec)])
    assert printed.exit_code == 0
    assert "over=channel" in printed.stdout
