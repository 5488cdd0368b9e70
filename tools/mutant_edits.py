"""Find the small edits that make mutants of a Python file or a C++ header.

Only code is edited that runs: no docstrings, comments, annotations, messages, imports, decorators or `__all__`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple


class Edit(NamedTuple):
    """Bytes `start` to `end` of a file become `new`."""

    start: int
    end: int
    new: bytes


OPERATORS: dict[type[ast.AST], tuple[bytes, bytes]] = {
    ast.Lt: (b"<", b"<="), ast.LtE: (b"<=", b"<"), ast.Gt: (b">", b">="), ast.GtE: (b">=", b">"),
    ast.Eq: (b"==", b"!="), ast.NotEq: (b"!=", b"=="), ast.Is: (b"is", b"is not"), ast.IsNot: (b"is not", b"is"),
    ast.In: (b"in", b"not in"), ast.NotIn: (b"not in", b"in"), ast.And: (b"and", b"or"), ast.Or: (b"or", b"and"),
    ast.Add: (b"+", b"-"), ast.Sub: (b"-", b"+"), ast.Mult: (b"*", b"/"), ast.Div: (b"/", b"*"),
    ast.FloorDiv: (b"//", b"*"), ast.Mod: (b"%", b"//"), ast.Pow: (b"**", b"*"), ast.BitAnd: (b"&", b"|"),
    ast.LShift: (b"<<", b">>"), ast.RShift: (b">>", b"<<"), ast.BitXor: (b"^", b"&"),
}  # fmt: skip
NAMES = {"min": b"max", "max": b"min", "amin": b"amax", "amax": b"amin", "any": b"all", "all": b"any"}

# What of a header stays as it is, else a number, a truth value, or an operator with spaces around it.
HEADER = re.compile(
    rb"""//[^\n]* | /\*.*?\*/ | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])+' | ^[ \t]*\#(?:\\\n|[^\n])*
    | \bstatic_assert\b[^;]*; | \balignas\([^)]*\)
    | (?<![\w.])(?P<number>0x[\da-f]*\.?[\da-f]*p[+-]?\d+|0x[\da-f]+|\d+\.\d*(?:e[+-]?\d+)?|\d+(?:e[+-]?\d+)?)
      (?=[ulf]*(?![\w.]))
    | \b(?P<truth>true|false)\b
    | (?<=[ ])(?P<operator><=|>=|==|!=|<<|>>|&&|\|\||[-+*/%&|]=|[-+*/%&|^<>])(?=[ ])
    | (?<=[ (])(?P<not>!)(?=\w)
    | \b(?P<name>min|max|any|all)(?=\()""",
    re.VERBOSE | re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
SWAPPED = dict([*OPERATORS.values(), (b"&&", b"||"), (b"||", b"&&"), (b"|", b"&"), (b"%", b"/")])


def edits_of(name: str, text: bytes) -> list[Edit]:
    """List every edit of a file, in order."""
    return sorted(set(_python(text) if name.endswith(".py") else _header(text)))


def _more(number: float) -> float:
    """Give one more, or twice as much where one more is the same."""
    return number + 1 if number + 1 != number else number * 2


def _header(text: bytes) -> Iterator[Edit]:
    for found in HEADER.finditer(text):
        kind, token = found.lastgroup, found[0]
        new = None
        if kind == "number":
            word = token.decode().lower()
            if word.startswith("0x") and "p" not in word:
                new = hex(int(word, 16) + 1)
            elif word.startswith("0x"):
                new = repr(_more(float.fromhex(word)))
            else:
                new = repr(_more(int(word, 10) if word.isdigit() else float(word)))
        elif kind == "truth":
            new = "false" if token == b"true" else "true"
        elif kind == "operator":
            old = token[:-1] if token.endswith(b"=") and token not in SWAPPED else token
            new = (SWAPPED[old] + token[len(old) :]).decode()
        elif kind == "not":
            new = ""
        elif kind == "name":
            new = NAMES[token.decode()].decode()
        if new is not None:
            yield Edit(found.start(), found.end(), new.encode())


def _runs(node: ast.AST) -> bool:
    """Check whether a node is code whose change matters; f-strings have no exact places before Python 3.12."""
    if isinstance(node, ast.If):
        return not ast.unparse(node.test).endswith("TYPE_CHECKING")
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) != "__all__"
    if isinstance(node, ast.keyword):
        return node.arg != "strict"  # of zip: an assert
    if isinstance(node, ast.Call):
        return not ast.unparse(node.func).endswith(("warn", "TypeVar", "cast"))
    return not isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert | ast.Import | ast.ImportFrom)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Give a node and all below it that runs."""
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and _runs(child):
                    yield from _code(child)


def _is_sequence(node: ast.AST) -> bool:
    """Check whether `+` joins here rather than adds, as far as can be seen."""
    if isinstance(node, ast.BinOp):
        return _is_sequence(node.left) or _is_sequence(node.right)
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return text or isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp)


def _python(text: bytes) -> Iterator[Edit]:
    tree = ast.parse(text)
    starts = [0, *(found.end() for found in re.finditer(rb"\n", text))]

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def between(left: ast.expr, operator: ast.AST, right: ast.expr) -> Iterator[Edit]:
        old, new = OPERATORS.get(type(operator), (b"\0", b""))
        begin, end = span(left)[1], span(right)[0]
        at = text.find(old, begin, end)
        if at >= 0 and b"#" not in text[begin:end]:
            yield Edit(at, at + len(old), new)

    def around(node: ast.expr, before: bytes, after: bytes) -> Edit:
        begin, end = span(node)
        return Edit(begin, end, before + text[begin:end] + after)

    for node in _code(tree):
        match node:
            case ast.Compare():
                for left, operator, right in zip(
                    [node.left, *node.comparators], node.ops, node.comparators, strict=False
                ):
                    yield from between(left, operator, right)
            case ast.BoolOp():
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield from between(left, node.op, right)
            case ast.BinOp() if not _is_sequence(node):
                yield from between(node.left, node.op, node.right)
            case ast.AugAssign() if not _is_sequence(node.value):
                yield from between(node.target, node.op, node.value)
            case ast.UnaryOp(op=ast.Not()):
                begin = span(node)[0]
                found = re.compile(rb"not\s*").match(text, begin)
                assert found is not None
                yield Edit(begin, found.end(), b"")
            case ast.Constant(value=bool()):
                yield Edit(*span(node), str(not node.value).encode())
            case ast.Constant(value=int() | float() as number):
                yield Edit(*span(node), repr(_more(number)).encode())
            case ast.Slice():
                for bound in (node.lower, node.upper):
                    if bound is not None and not isinstance(bound, ast.Constant):
                        yield around(bound, b"(", b") + 1")
            case ast.Name() if node.id in NAMES:
                yield Edit(*span(node), NAMES[node.id])
            case ast.Attribute() if node.attr in NAMES:
                end = span(node)[1]
                yield Edit(end - len(node.attr), end, NAMES[node.attr])
            case ast.FunctionDef() if node.returns is not None and ast.unparse(node.returns).endswith(" | None"):
                for inner in _code(node):
                    if isinstance(inner, ast.Return) and inner.value and ast.unparse(inner.value) != "None":
                        yield Edit(*span(inner.value), b"None")
            case ast.If() | ast.IfExp():
                if not isinstance(node.test, ast.UnaryOp):
                    yield around(node.test, b"not (", b")")
            case ast.comprehension():
                for test in node.ifs:
                    if not isinstance(test, ast.UnaryOp):
                        yield around(test, b"not (", b")")
