"""Under which guards a value is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from optgen.ir.formula import FALSE, Formula
from optgen.ir.nodes import Expr, Let, Ref, Select, children


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
            for name, live in demands(let.expr, result[let.name]):
                require(name, live)
    return result
