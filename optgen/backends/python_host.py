"""The functions of a module that evaluate what is the same for all parameters of a group.

Their parameters have the names of what they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optgen.backends.code import Brackets, Code, Labelled, call, flat, names_in
from optgen.backends.layout import WIDTH, function_head, python_code
from optgen.backends.py_printer import PyPrinter, py_name
from optgen.backends.quoting import python_comment
from optgen.ir.nodes import Const, Let, Select, refs, walk
from optgen.schedule.plan import Plan


@dataclass(frozen=True)
class HostText:
    """A function that evaluates what is the same for a group.

    Attributes:
        head: Its first lines, with the parameters.
        lines: Its statements.
        asks_flags: Whether it asks for flags.
        uses_math: Whether it calls functions of the equation language.
    """

    head: tuple[str, ...]
    doc: str
    lines: tuple[str, ...]
    asks_flags: bool
    uses_math: bool


def host_functions(block: str, plan: Plan) -> list[HostText]:
    """The functions of a block: what passes read, and new values of shared states."""
    values: dict[str, Code] = {name: py_name(name) for name in plan.values[len(plan.host_inputs) :]}
    result = []
    if values:
        doc = f"Values that `{block}` reads and that all parameters of a group share."
        result.append(_function(f"_{block}_values", doc, plan, tuple(values), values))
    if plan.host_commits:
        printer = PyPrinter(plan.kinds)
        commits: dict[str, Code] = {
            write.input.name: code if isinstance(write.value, Const) else call("float", code)
            for write in plan.host_commits
            for code in [printer.code(write.value)]
        }
        roots = [name for write in plan.host_commits for name in refs(write.value)]
        doc = f"New values of group and global states after `{block}`."
        result.append(_function(f"_{block}_commit", doc, plan, roots, commits))
    return result


def _function(name: str, doc: str, plan: Plan, roots: Sequence[str], results: Mapping[str, Code]) -> HostText:
    """A function that returns numbers by name.

    Args:
        roots: Values of the program from which the results follow.
        results: Expressions by name.
    """
    needed = set(roots)
    lets: list[Let] = []
    for let in reversed(plan.host):
        if let.name in needed:
            needed.update(refs(let.expr))
            lets.insert(0, let)
    inputs = [n for n, item in plan.program.inputs.items() if item.kind.is_host and n in needed]
    names = [*inputs, *(n for n in plan.sums if n in needed)]
    printer = PyPrinter(plan.kinds)
    parameters = [f"{py_name(n)}: float" for n in names]
    asks_flags = any(isinstance(part, Select) for let in lets for part in walk(let.expr))
    if asks_flags:
        parameters.append("f: Flags")
    lines: list[str] = []
    codes: list[Code] = []
    source = ""
    used = {name for let in lets for name in refs(let.expr)}
    for let in lets:
        code = printer.code(let.expr)
        codes.append(code)
        is_result = let.name in results and let.name not in used and not let.source
        if is_result and len(f'        "{let.name}": {flat(code)},') <= WIDTH:
            results = {**results, let.name: code}
            continue
        if let.source and let.source != source:
            source = let.source
            lines.append(python_comment(source))
        lines += python_code(Labelled(f"{py_name(let.name)} = ", code), 4)
    items = tuple(Labelled(f'"{key}": ', code) for key, code in results.items())
    lines += python_code(Brackets("return {", items, "}"), 4)
    uses_math = any("m" in names_in(code) for code in (*codes, *results.values()))
    return HostText(
        tuple(function_head(name, parameters, "dict[str, float]")), doc, tuple(lines), asks_flags, uses_math
    )
