"""Under which guards a value is needed, and what is left of an expression where they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from optgen.ir.formula import FALSE, Formula
from optgen.ir.nodes import Expr, Let, Ref, Select, children, with_operands


def demands(expr: Expr, live: Formula) -> Iterator[tuple[str, Formula]]:
    """The names an expression reads, each with the formula under which it is read."""
    match expr:
        case Ref(name=name):
            yield name, live
        case Select(formula=formula, then=then, other=other):
            yield from demands(then, live & formula)
            yield from demands(other, live & ~formula)
        case _:
            for child in children(expr):
                yield from demands(child, live)


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
            for name, live in demands(let.expr, let.path if let.sums_all else result[let.name]):
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
