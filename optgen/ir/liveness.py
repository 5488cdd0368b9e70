"""Formulas under which values are needed, and expressions simplified where these hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.nodes import Expr, Let, Program, Reduce, Ref, Select, children, with_operands


def demands(expr: Expr, live: Formula, path: Formula = TRUE) -> Iterator[tuple[str, Formula]]:
    """The names an expression reads, each with the formula under which it is read.

    Args:
        path: Under which settings a parameter comes to the expression. It then has a part in what is reduced over
            several parameters, whether it needs the result or not.
    """
    match expr:
        case Ref(name=name):
            yield name, live
        case Select(formula=formula, then=then, other=other):
            yield from demands(then, live & formula, path)
            yield from demands(other, live & ~formula, path)
        case Reduce(over=over, x=x) if over.is_host:
            yield from demands(x, path, path)
        case _:
            for child in children(expr):
                yield from demands(child, live, path)


def written(program: Program) -> Iterator[tuple[str, Formula]]:
    """The names that the outputs read, each with the formula under which it is read."""
    for target, value in program.outputs.items():
        yield from demands(value, program.writes[target])


def changes(lets: Iterable[Let], name: str, expr: Expr) -> Formula:
    """Formula of the settings under which an expression is anything but the input of this name itself."""
    found = {name: FALSE}

    def change(expr: Expr) -> Formula:
        match expr:
            case Ref(name=read):
                return found.get(read, TRUE)
            case Select(formula=formula, then=then, other=other):
                return (formula & change(then)) | (~formula & change(other))
        return TRUE

    for let in lets:
        found[let.name] = change(let.expr)
    return change(expr)


def needed(
    lets: Iterable[Let], roots: Iterable[tuple[str, Formula]], stop: Callable[[Let], bool] = lambda let: False
) -> Mapping[str, Formula]:
    """The formula under which each name is needed for the roots; operands of bindings in `stop` are not followed."""
    result: dict[str, Formula] = {}

    def require(name: str, live: Formula) -> None:
        if not live.is_false:
            result[name] = result.get(name, FALSE) | live

    for name, live in roots:
        require(name, live)
    for let in reversed(list(lets)):
        if let.name in result and not stop(let):
            for name, live in demands(let.expr, result[let.name], let.path):
                require(name, live)
    return result


def resolve(expr: Expr, live: Formula) -> Expr:
    """The expression where `live` holds: choices that it decides are made, and others ask no more than they must."""
    match expr:
        case Select(formula=formula, then=then, other=other, kind=kind):
            if live.implies(formula):
                return resolve(then, live)
            if live.implies(~formula):
                return resolve(other, live)
            then, other = resolve(then, live & formula), resolve(other, live & ~formula)
            return Select(formula.given(live), then, other, kind)
    return with_operands(expr, [resolve(operand, live) for operand in children(expr)])
