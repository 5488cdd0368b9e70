"""Layout of messages about mistakes."""

from __future__ import annotations

import pytest

from optgen.diagnostics import MAX_SHOWN, Diagnostic, Location, Reporter, SpecError, format_diagnostic, suggest


def test_layout() -> None:
    line = "    exp_avg = beta3 * exp_avg + (1 - beta1) * grad"
    place = Location("specs/adamw.yaml", 14, 15, 5)
    message = "`beta3` is not a hyperparameter or state of `adamw`"
    diagnostic = Diagnostic("undefined-name", message, place, suggest("beta3", ["beta1", "eps"]), line)
    assert format_diagnostic(diagnostic) == (
        "error[undefined-name]: `beta3` is not a hyperparameter or state of `adamw`\n"
        " --> specs/adamw.yaml:14:15\n"
        "14 |     exp_avg = beta3 * exp_avg + (1 - beta1) * grad\n"
        "   |               ^^^^^ did you mean `beta1`?"
    )


def test_without_place_or_line() -> None:
    assert format_diagnostic(Diagnostic("no-specs", "nothing", None, "write one")) == (
        "error[no-specs]: nothing\n  = help: write one"
    )
    assert format_diagnostic(Diagnostic("yaml", "bad", Location("f", 1, 1))) == "error[yaml]: bad\n --> f:1:1"


def test_caret_under_wide_characters_tabs_and_in_long_lines() -> None:
    wide = format_diagnostic(Diagnostic("r", "m", Location("f", 1, 4, 1), "", "日本 x"))
    assert wide.splitlines()[-1] == "  |      ^"
    tab = format_diagnostic(Diagnostic("r", "m", Location("f", 1, 2, 1), "", "\tx"))
    assert tab.splitlines()[-2:] == ["1 |  x", "  |  ^"]
    long = format_diagnostic(Diagnostic("r", "m", Location("f", 1, 5001, 3), "", "a" * 5000 + "bcd" + "e" * 5000))
    shown, caret = long.splitlines()[-2:]
    assert len(shown) < 200
    assert shown[caret.index("^") : caret.rindex("^") + 1] == "bcd"


def test_nothing_reaches_the_terminal_raw() -> None:
    text = format_diagnostic(Diagnostic("r", "a\x1b[31m\nb", Location("f\x07", 1, 1), "\x9b", "x\x1b\u202e"))
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.splitlines()) == 4


def test_sorted_without_duplicates_and_capped() -> None:
    reporter = Reporter()
    reporter.add_source("b", "one\ntwo")
    reporter.error("x", "second", Location("b", 2, 1))
    reporter.error("x", "second", Location("b", 2, 1))
    reporter.error("x", "first", Location("b", 1, 3))
    reporter.error("x", "zeroth", Location("a", 9, 9))
    with pytest.raises(SpecError) as error:
        reporter.raise_if_any()
    assert [d.message for d in error.value.diagnostics] == ["zeroth", "first", "second"]
    assert error.value.diagnostics[2].source_line == "two"
    many = SpecError(Diagnostic("x", str(n), Location("f", n, 1)) for n in range(1, MAX_SHOWN + 4))
    assert str(many).endswith("\n\nand 3 more errors")
    assert len(many.diagnostics) == MAX_SHOWN + 3


def test_raises_nothing_without_errors() -> None:
    Reporter().raise_if_any()


def test_suggest() -> None:
    assert suggest("AMSGRAD", ["amsgrad"]) == "did you mean `amsgrad`?"
    assert suggest("zzz", ["amsgrad"]) == ""
    assert suggest("x" * 10_000, ["amsgrad"]) == ""
    assert suggest("a", []) == ""
