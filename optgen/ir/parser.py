"""Parser of blocks, from text to statements: Python's own grammar, of which little is allowed.

Input: the block's text with its place in the YAML file. Output: Python AST statements of the allowed forms, and
diagnostics for everything else. Nothing is evaluated.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from dataclasses import dataclass, replace

from optgen.diagnostics import Location, Reporter
from optgen.ir.habits import instead
from optgen.spec.source import SourceText

MAX_LENGTH = 65_536
MAX_DEPTH = 120
MAX_BRANCHES = 50
SYNTAX = {
    r"&&|\|\||!(?!=)": "write `and`, `or` and `not`",
    r"\belse\s+if\b": "write `elif`",
    r"\+\+|--": "write `x = x + 1`",
    r"\?": "write `where(condition, a, b)`",
    r"^\s*//|//.*\w\s+\w": "a comment begins with `#`",
    r"^\s*(if|elif|else|def)\b(?!.*:\s*$)": "end the line with `:`",
    r"(?<![\w.])[0-9.]+(?![eE][-+]?[0-9])[A-Za-z_]": "a product is written with `*`",
    r"[{};]": "blocks are marked only by their indentation",
}
"""Patterns in lines that are not Python, with the help for each, the likeliest first."""


@dataclass(frozen=True)
class Stage:
    """A block's text.

    Attributes:
        name: `grad`, `update` or `apply` of a stage around the rule's own blocks. In the last two `grad` is what the
            stages `grad` have left, and cannot be assigned.
        owner: Of a stage that is put on this rule, its name. One that all rules have, which has none, may name choices
            that this rule does not have.
        of_matrices: Whether it is a step on matrices, which gives `update` from `grad` (matrix_stage.py).
    """

    text: SourceText
    name: str = ""
    owner: str = ""
    of_matrices: bool = False

    @property
    def shared(self) -> bool:
        """True if it is a stage that all rules have."""
        return bool(self.name) and not self.owner

    @property
    def keeps_grad(self) -> bool:
        """True if it stands behind the rule's `step`."""
        return self.name in ("update", "apply")


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
        reporter.error("syntax", f"this is not a statement: {error.msg}", where, _instead_of_syntax(text, error))
        return []
    except (ValueError, RecursionError, MemoryError):
        reporter.error("syntax", "this block cannot be parsed", text.locate(1, 0), "write `name = expression`")
        return []
    if deepest is not None:
        message = f"`if` nests more than {MAX_BRANCHES} levels deep"
        reporter.error("too-deep", message, node_location(text, deepest), "each `elif` is a level")
        return []
    return module.body


def _instead_of_syntax(text: SourceText, error: SyntaxError) -> str:
    """Suggest a replacement for a line that is not valid Python."""
    if text.style != "|" and text.lines_written > 1:
        return "begin the block with `|`, which keeps its lines as they are; here they are joined into one"
    lines = text.text.split("\n")
    line = lines[min(error.lineno or 1, len(lines)) - 1].partition("#")[0]
    word = re.search(rf"\b({'|'.join(keyword.kwlist)})\s*=(?!=)", line)
    if word is not None:
        return f"`{word[1]}` is a keyword of Python; use another name"
    for pattern, help_text in SYNTAX.items():
        if re.search(pattern, line):
            return help_text
    return "write `name = expression`"


def _deepest_if(module: ast.Module) -> ast.If | None:
    """An `if` below more than `MAX_BRANCHES` others, in functions too, found without recursion."""
    stack: list[tuple[ast.stmt, int]] = [(statement, 1) for statement in module.body]
    while stack:
        statement, level = stack.pop()
        if isinstance(statement, ast.FunctionDef):
            stack.extend((inner, level) for inner in statement.body)
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
    """Location of a node in the YAML file, underlined to its end if that is on the same line.

    What comes of a function stands at the call, within the function's line (`expansion.py`).
    """
    within = tuple(node_location(*place) for place in getattr(node, "within", ()))
    return replace(_location(text, node), within=within) if within else _location(text, node)


def _location(text: SourceText, node: ast.AST) -> Location:
    line = getattr(node, "lineno", 1)
    column = getattr(node, "col_offset", 0)
    end_line = getattr(node, "end_lineno", line)
    end = getattr(node, "end_col_offset", column + 1)
    return text.locate(line, column, max(end - column, 1) if end_line == line else 1)


def stored_names(statement: ast.stmt) -> set[str]:
    """The names that a statement assigns, in whatever way."""
    names = (part for part in ast.walk(statement) if isinstance(part, ast.Name))
    return {part.id for part in names if isinstance(part.ctx, ast.Store)}


def refuse(text: SourceText, node: ast.AST, reporter: Reporter) -> None:
    """Report a construct that is outside the language."""
    message = "this is not part of the equation language"
    reporter.error("not-in-language", message, node_location(text, node), instead(node))


def too_deep(text: SourceText, node: ast.AST, reporter: Reporter) -> None:
    """Report an expression that nests too deep to be read."""
    message = f"this expression nests more than {MAX_DEPTH} levels deep"
    reporter.error("too-deep", message, node_location(text, node), "name its parts")


def depth(node: ast.AST) -> int:
    """Nesting depth of an expression, with a level for each operand of `and` and `or`; computed without recursion."""
    deepest, stack = 0, [(node, 1)]
    while stack:
        current, level = stack.pop()
        level += len(current.values) - 2 if isinstance(current, ast.BoolOp) else 0
        deepest = max(deepest, level)
        stack.extend((child, level + 1) for child in ast.iter_child_nodes(current))
    return deepest
