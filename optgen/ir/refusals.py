"""Conditions over settings, as in `refusals:`: checked here, evaluated by generated classes."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from optgen.diagnostics import Reporter, suggest
from optgen.ir.parser import node_location, parse_expression
from optgen.prose import Prose
from optgen.spec.model import RefusalEntry
from optgen.spec.source import SourceText

ALLOWED = (
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.UnaryOp,
    ast.Not,
    ast.USub,
    ast.Compare,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.Is,
    ast.IsNot,
    ast.Name,
    ast.Load,
    ast.Constant,
)


@dataclass(frozen=True)
class Refusal:
    """A combination of settings that is refused.

    Attributes:
        condition: Python over `o`, the settings.
        settings: The settings that it reads.
        exception: The exception's name.
        message: A format string over the settings and `name`, the class.
        on: `construct`, or the block before which it is looked at.
        name: Name in the table of classes.
    """

    condition: str
    settings: tuple[str, ...]
    exception: str
    message: Prose
    on: str
    name: str = ""


def build_refusal(
    refused: RefusalEntry, text: SourceText, settings: Mapping[str, str], reporter: Reporter
) -> Refusal | None:
    """The refusal of a combination, for generated code; mistakes are reported and give None.

    Args:
        text: Its condition.
        settings: Text that reads each name that it may use, as `o["betas"][0]`.
    """
    node = parse_expression(text, reporter)
    if node is None:
        return None
    for part in ast.walk(node):
        if not isinstance(part, ALLOWED):
            message = "the condition of a refusal compares settings"
            place = node_location(text, part) if hasattr(part, "lineno") else text.whole()
            reporter.error("not-in-language", message, place, "use names, numbers, `and`, `or`, `not`, comparisons")
            return None
        if isinstance(part, ast.Name) and part.id not in settings:
            message = f"`{part.id}` is not a setting"
            reporter.error("undefined-name", message, node_location(text, part), suggest(part.id, list(settings)))
            return None
    names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    condition = ast.unparse(_Reader(settings).visit(node))
    return Refusal(condition, tuple(dict.fromkeys(names)), refused.raises, refused.message, refused.on)


class _Reader(ast.NodeTransformer):
    """Replaces names by how they are read, and puts plain words between double quotes."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = settings

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(self.settings[node.id])

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        match node.value:
            case str() as word if re.fullmatch(r"[\w.-]*", word, re.ASCII):
                return ast.Name(f'"{word}"')
        return node
