"""The functions of a module that evaluate what is the same for all parameters of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optgen.backends.layout import python_lines
from optgen.backends.py_printer import PyPrinter, py_name
from optgen.backends.quoting import python_comment
from optgen.ir.family import Family, given_readers, readers
from optgen.ir.nodes import Const, Let, refs
from optgen.schedule.plan import Plan, Write


@dataclass(frozen=True)
class HostText:
    """A function that evaluates what is the same for a group."""

    name: str
    doc: str
    returns: str
    lines: tuple[str, ...]


def tuple_text(texts: Sequence[str]) -> str:
    """A tuple of these."""
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"


def host_functions(block: str, plan: Plan, family: Family) -> list[HostText]:
    """The functions of a block: what passes read, what that follows from, and new values of shared states."""
    result = [
        HostText(
            name=f"_{block}_values",
            doc=f"What `{block}` reads that is the same for all parameters of a group.",
            returns="tuple[float, ...]",
            lines=tuple(_host_lines(plan, family, plan.values, tuple_text([py_name(name) for name in plan.values]))),
        )
    ]
    result.append(
        HostText(
            name=f"_{block}_inputs",
            doc=f"What the values of `{block}` follow from: numbers, and tensors on a GPU as they are.",
            returns="tuple[float | Tensor, ...]",
            lines=tuple(python_lines([f"return {tuple_text(_inputs(plan, family))}"], 4)),
        )
    )
    if plan.host_commits:
        roots = [name for write in plan.host_commits for name in refs(write.value)]
        commits = [_host_commit(plan, write) for write in plan.host_commits]
        result.append(
            HostText(
                name=f"_{block}_commit",
                doc=f"New values of group and global states after `{block}`.",
                returns="dict[str, float]",
                lines=tuple(_host_lines(plan, family, roots, f"{{{', '.join(commits)}}}")),
            )
        )
    return result


def _host_commit(plan: Plan, write: Write) -> str:
    text = PyPrinter(plan.kinds).print(write.value)
    return f'"{write.input.name}": {text if isinstance(write.value, Const) else f"float({text})"}'


def _host_lines(plan: Plan, family: Family, roots: Sequence[str], result: str) -> list[str]:
    needed = set(roots)
    lets: list[Let] = []
    for let in reversed(plan.host):
        if let.name in needed:
            needed.update(refs(let.expr))
            lets.insert(0, let)
    printer = PyPrinter(plan.kinds)
    read = readers(family.hypers, family.options, family.storage)
    given = given_readers(family.given)
    lines = []
    texts = [printer.print(let.expr) for let in lets]
    if any("f." in text for text in texts):
        lines.append("f = _flags(o, 0, 0, 0, frozenset())")
    for name, item in plan.program.inputs.items():
        if name not in needed or not item.kind.is_host:
            continue
        if item.role == "hyper":
            lines.append(f"{py_name(name)} = m.number({read[name]})")
        elif item.role == "input":
            lines.append(f"{py_name(name)} = m.number({given[name]})")
        elif item.role == "state":
            lines.append(f'{py_name(name)} = m.number(o["{name}"])')
    lines += [f'{py_name(name)} = sums.get("{name}", m.NAN)' for name in plan.sums if name in needed]
    source = ""
    for let, text in zip(lets, texts, strict=True):
        if let.source and let.source != source:
            source = let.source
            lines.append(python_comment(source))
        lines.append(f"{py_name(let.name)} = {text}")
    return python_lines([*lines, f"return {result}"], 4)


def _inputs(plan: Plan, family: Family) -> list[str]:
    """How each input of host kind is read, where tensors stay unread."""
    read = readers(family.hypers, family.options, family.storage)
    given = given_readers(family.given)
    result = []
    for name in plan.host_inputs:
        match plan.program.inputs[name].role if name in plan.program.inputs else "sum":
            case "hyper":
                result.append(f"m.unread({read[name]})")
            case "input":
                result.append(f"m.unread({given[name]})")
            case "state":
                result.append(f'm.number(o["{name}"])')
            case "sum":
                result.append(f'sums.get("{name}", m.NAN)')
            case _:
                result.append(py_name(name))
    return result
