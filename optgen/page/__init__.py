"""`optgen explain --html`: a class on one page that needs nothing beside itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from optgen.console import brief
from optgen.emit.environment import render
from optgen.emit.whole_file import write_whole
from optgen.explanation import ClassInfo
from optgen.page.equations import Line
from optgen.page.layout import Layout, layout_of
from optgen.page.mathml import Printer
from optgen.page.pictures import passes_picture, traffic_picture
from optgen.page.stages import stages
from optgen.page.symbols import symbols

TEMPLATE = "page/explain.html.j2"
ADDRESS = r"(https?://[\w./?=&%#~-]*[\w/])"
EXAMPLE_PARAMETERS, EXAMPLE_BANDWIDTH = 10**9, 10**11


def write_page(info: ClassInfo, path: Path) -> None:
    """Write the page of a class.

    Raises:
        UserError: the file cannot be written; what was there is unchanged.
    """
    write_whole(path, page(info).encode())


def page(info: ClassInfo) -> str:
    """The page of a class as HTML: no script, no font, no address that is loaded."""
    parts = [_head(info), _equations(info), _symbols(info), *_memory(info), _settings(info), _values(info)]
    body = "\n".join(tostring(part, encoding="unicode", method="html") for part in parts)
    return render(TEMPLATE, {"title": escape(info.name), "body": body})


# Small pieces


def _section(title: str) -> Element:
    made = Element("section")
    SubElement(made, "h2").text = title
    return made


def _paragraph(parent: Element, text: str, kind: str = "") -> Element:
    made = SubElement(parent, "p", {"class": kind} if kind else {})
    made.text = text
    return made


def _linked(parent: Element, text: str) -> None:
    """Text with its addresses as links, which are followed where the reader asks for it."""
    first, *rest = re.split(ADDRESS, text)
    parent.text = first
    for address, after in zip(rest[::2], rest[1::2], strict=True):
        link = SubElement(parent, "a", {"href": address})
        link.text, link.tail = address, after


def _table(
    parent: Element, columns: Sequence[str], rows: Iterable[Sequence[str | Element]], right: Sequence[str] = ()
) -> None:
    table = SubElement(SubElement(parent, "div", {"class": "wide"}), "table")
    head = SubElement(SubElement(table, "thead"), "tr")
    for column in columns:
        SubElement(head, "th", {"class": "number"} if column in right else {}).text = column
    body = SubElement(table, "tbody")
    for row in rows:
        line = SubElement(body, "tr")
        for column, cell in zip(columns, row, strict=True):
            place = SubElement(line, "td", {"class": "number"} if column in right else {})
            if isinstance(cell, str):
                place.text = cell
            else:
                place.append(cell)


def _code(text: str) -> Element:
    made = Element("code")
    made.text = text
    return made


# Sections


def _head(info: ClassInfo) -> Element:
    made = Element("header")
    SubElement(made, "h1").text = info.name
    if info.doc:
        _paragraph(made, info.doc.line().raw, "lead")
    rule = info.whole_rule
    _linked(_paragraph(made, "", "reference"), (rule.title + ". " + rule.spec.reference).line().raw)
    facts = SubElement(made, "dl")
    shown = (
        (f"{brief(info.state_bytes)} B", "states a parameter"),
        (f"{brief(info.traffic)} B", "moved a parameter and step"),
        (str(info.passes), "pass over memory" if info.passes == 1 else "passes over memory"),
        (f"{info.bits} bits", "a state, by default" if info.spec.entry.bits is None else "a state"),
    )
    for value, name in shown:
        group = SubElement(facts, "div")
        SubElement(group, "dt").text = name
        SubElement(group, "dd").text = value
    return made


def _printer(info: ClassInfo) -> Printer:
    rule = info.whole_rule
    hypers = [name for owner, hyper in rule.hypers.items() for name in (hyper.names or (owner,))]
    local = [
        part.id
        for stage in stages(info)
        for line, _ in stage.lines
        if isinstance(line.node, ast.Assign)
        for part in ast.walk(line.node.targets[0])
        if isinstance(part, ast.Name)
    ]
    local += [name for function in rule.functions for name in function.params]
    return Printer(symbols(["param", "grad", "step", "update", *hypers, *rule.states, *local]))


def _equations(info: ClassInfo) -> Element:
    made = _section("Equations")
    printer, shown = _printer(info), stages(info)
    for stage in shown:
        SubElement(made, "h3").text = stage.title
        box = SubElement(made, "div", {"class": "equations wide"})
        for line, taken in stage.lines:
            box.append(_equation(line, taken, printer))
    faint = any(not taken for stage in shown for _, taken in stage.lines)
    notes = ["Faint lines are left out for a matrix under the class's defaults."] if faint else []
    notes.append(
        "Of the stages that all rules share (unscaling, clipping, trust ratios), only what the defaults use is shown."
    )
    _paragraph(made, " ".join(notes), "note")
    return made


def _equation(line: Line, taken: bool, printer: Printer) -> Element:
    made = Element("div", {"class": "line" if taken else "line faint", "style": f"margin-left:{2 * line.depth}em"})
    match line.node:
        case None:
            made.text = line.word
        case ast.Pass():
            made.text = "nothing"
        case ast.Expr(value=ast.Constant(value=words)):
            made.text = str(words)
        case node if line.word:
            made.text = f"{line.word} "
            made.append(printer.condition(node))  # type: ignore[arg-type]
        case node:
            made.append(printer.statement(node))  # type: ignore[arg-type]
    return made


def _symbols(info: ClassInfo) -> Element:
    """The letters of the equations with the names that the code has for them, and what they are."""
    rule, printer = info.whole_rule, _printer(info)
    text = "\n".join(line.text for stage in stages(info) for line, _ in stage.lines)
    docs: dict[str, str] = {
        "param": "The parameter.",
        "grad": "Its gradient.",
        "step": "The number of the step, from 1.",
    }
    docs["update"] = "The direction of the step, before the learning rate."
    docs["active"] = "Where it does not hold, parameter and states stay as they were."
    for owner, hyper in rule.hypers.items():
        docs |= dict.fromkeys(hyper.names or (owner,), hyper.doc.raw)
    docs |= {name: state.doc.raw for name, state in rule.states.items()}
    used = set("".join(char if char.isalnum() or char == "_" else " " for char in text).split())
    made = _section("Symbols")
    rows = [(printer.symbol(name), _code(name), doc) for name, doc in docs.items() if name in used]
    _table(made, ("symbol", "in code", "meaning"), rows)
    return made


def _memory(info: ClassInfo) -> list[Element]:
    layout = layout_of(info)
    passes = _section("Passes over memory")
    _paragraph(
        passes,
        "Each tensor is a lane from top to bottom, each pass a bar across them. Bytes are for each parameter of a "
        "large float32 matrix, under the class's defaults.",
    )
    SubElement(passes, "div", {"class": "wide"}).append(passes_picture(layout))
    traffic = _section("Memory traffic")
    least = info.traffic * EXAMPLE_PARAMETERS / EXAMPLE_BANDWIDTH
    _paragraph(
        traffic,
        f"A step moves {brief(info.traffic)} bytes a parameter: with a billion parameters, at 100 GB/s, it takes at "
        f"least {1000 * least:.0f} ms.",
    )
    SubElement(traffic, "div", {"class": "wide"}).append(traffic_picture(layout))
    legend = _paragraph(traffic, "", "legend")
    for kind in ("read", "write"):
        key = SubElement(legend, "span", {"class": f"key {kind}"})
        key.tail = f" {'read' if kind == 'read' else 'written'}  "
    _tensors(traffic, layout)
    return [passes, traffic, _in_bits(info)]


def _tensors(parent: Element, layout: Layout) -> None:
    rows: list[tuple[str | Element, ...]] = []
    for lane in layout.lanes:
        read = sum(item.reads.get(lane.name, 0.0) for item in layout.passes)
        written = sum(item.writes.get(lane.name, 0.0) for item in layout.passes)
        numbers = (lane.bytes, read, written, read + written)
        rows.append((_code(lane.name), lane.stored, *(brief(value) for value in numbers)))
    columns = ("tensor", "stored as", "kept", "read", "written", "moved")
    _table(parent, columns, rows, right=columns[2:])


def _in_bits(info: ClassInfo) -> Element:
    """States and traffic in the bits that the class can store its states in."""
    made = _section("States in fewer bits")
    choices = [(bits, info.stored_in(bits)) for bits in sorted(info.bits_choices, reverse=True)]
    widest = max(stored.traffic for _, stored in choices)
    rows = []
    for bits, stored in choices:
        bar = Element("div", {"class": "bar"})
        SubElement(bar, "div", {"style": f"width:{100 * stored.traffic / widest:.1f}%"})
        rows.append((str(bits), brief(stored.state_bytes), brief(stored.traffic), str(stored.passes), bar))
    if len(rows) == 1:
        _paragraph(made, f"This class stores its states in {choices[0][0]} bits alone.")
        return made
    columns = ("bits", "state bytes", "bytes moved", "passes", "")
    _table(made, columns, rows, right=columns[:-1])
    return made


def _settings(info: ClassInfo) -> Element:
    made = _section("Arguments")
    rows = [
        (_code(name), _code("required" if argument.default is None else argument.default), argument.doc.raw)
        for name, argument in info.arguments.items()
    ]
    _table(made, ("argument", "default", "meaning"), rows)
    return made


def _values(info: ClassInfo) -> Element:
    """Everything that the compiler makes of the rule, folded away."""
    explanation = info.explain()
    made = Element("details")
    SubElement(
        made, "summary"
    ).text = f"All {len(explanation.kinds)} values of the compiled step, with all shared stages"
    rows = [(_code(name), kind, _code(text)) for name, kind, text in explanation.kinds]
    _table(made, ("value", "one for each", "expression"), rows)
    return made
