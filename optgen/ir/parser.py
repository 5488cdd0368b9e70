"""From the text of a block to its statements: Python's own grammar, of which little is allowed.

Input: the block's text with its place in the YAML file. Output: Python AST statements of the allowed forms, and
diagnostics for everything else. Nothing is evaluated.
"""

from __future__ import annotations

import ast
import warnings

from optgen.diagnostics import Location, Reporter
from optgen.spec.source import SourceText

MAX_LENGTH = 65_536
MAX_DEPTH = 120
MAX_BRANCHES = 50
HINTS: dict[type[ast.AST], str] = {
    ast.AugAssign: "write `x = x + ...`",
    ast.For: "every statement already acts on all elements; use `sum`, `norm` or `where`",
    ast.While: "every statement already acts on all elements; use `sum`, `norm` or `where`",
    ast.IfExp: "use `where(condition, a, b)`, or `if` for what is fixed before the step",
    ast.Attribute: "call functions by their plain names, as in `sqrt(x)`",
    ast.Subscript: "there is no indexing; values act on all elements at once",
    ast.Lambda: "only assignments and `if` are allowed",
    ast.Import: "only assignments and `if` are allowed",
    ast.ImportFrom: "only assignments and `if` are allowed",
    ast.FunctionDef: "only assignments and `if` are allowed",
    ast.AnnAssign: "kinds are inferred; write `name = expression`",
    ast.NamedExpr: "write the assignment as a statement of its own",
    ast.BitXor: "the power operator is `**`",
}


def parse_block(text: SourceText, reporter: Reporter) -> list[ast.stmt]:
    """The statements of a block; a block that is no Python is reported and gives none."""
    if len(text.text) > MAX_LENGTH:
        reporter.error("block-too-long", f"a block has at most {MAX_LENGTH} characters", text.locate(1, 0))
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(text.text)
            deepest = _deepest_if(module)
    except SyntaxError as error:
        where = text.locate(error.lineno or 1, max((error.offset or 1) - 1, 0))
        reporter.error("syntax", f"this is not a statement: {error.msg}", where, "write `name = expression`")
        return []
    except (ValueError, RecursionError, MemoryError):
        reporter.error("syntax", "this block cannot be parsed", text.locate(1, 0), "write `name = expression`")
        return []
    if deepest is not None:
        message = f"`if` nests more than {MAX_BRANCHES} levels deep"
        reporter.error("too-deep", message, node_location(text, deepest), "each `elif` is a level")
        return []
    return module.body


def _deepest_if(module: ast.Module) -> ast.If | None:
    """An `if` below more than `MAX_BRANCHES` others, found without recursion."""
    stack: list[tuple[ast.stmt, int]] = [(statement, 1) for statement in module.body]
    while stack:
        statement, level = stack.pop()
        if isinstance(statement, ast.If):
            if level > MAX_BRANCHES:
                return statement
            stack.extend((inner, level + 1) for inner in (*statement.body, *statement.orelse))
    return None


def parse_expression(text: SourceText, reporter: Reporter) -> ast.expr | None:
    """A single expression, as in `when:` and `init:`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(text.text) <= MAX_LENGTH:
                node = ast.parse(text.text.strip(), mode="eval").body
                if depth(node) <= MAX_DEPTH:
                    return node
                too_deep(text, node, reporter)
                return None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    reporter.error("syntax", "this is not an expression", text.locate(1, 0, len(text.text.rstrip())))
    return None


def node_location(text: SourceText, node: ast.AST) -> Location:
    """Where a node stands in the YAML file, underlined to its end when that is on the same line."""
    line = getattr(node, "lineno", 1)
    column = getattr(node, "col_offset", 0)
    end_line = getattr(node, "end_lineno", line)
    end = getattr(node, "end_col_offset", column + 1)
    return text.locate(line, column, max(end - column, 1) if end_line == line else 1)


def refuse(text: SourceText, node: ast.AST, reporter: Reporter) -> None:
    """Report a construct that is outside the language."""
    what = HINTS.get(
        type(node), "only assignments, `if`, numbers, names, operators and the listed functions are allowed"
    )
    reporter.error("not-in-language", "this is not part of the equation language", node_location(text, node), what)


def too_deep(text: SourceText, node: ast.AST, reporter: Reporter) -> None:
    """Report an expression that nests too deep to be read."""
    message = f"this expression nests more than {MAX_DEPTH} levels deep"
    reporter.error("too-deep", message, node_location(text, node), "name its parts")


def depth(node: ast.AST) -> int:
    """How deeply an expression nests, without recursion."""
    deepest, stack = 0, [(node, 1)]
    while stack:
        current, level = stack.pop()
        deepest = max(deepest, level)
        stack.extend((child, level + 1) for child in ast.iter_child_nodes(current))
    return deepest
