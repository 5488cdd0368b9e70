"""Equations of the spec language as MathML, which browsers typeset by themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from xml.etree.ElementTree import Element, SubElement

from optgen.operations import BY_SYNTAX, CALLED, MINUS, Binds, MatrixFunction, Reduction

Symbols = Mapping[str, tuple[str, str]]

IS: Mapping[type[ast.cmpop], str] = {ast.Is: "is", ast.IsNot: "is not"}
DRAWN = ("sqrt", "rsqrt", "exp", "where")
"""Functions that have a form of their own: a root, a power, cases behind a brace."""
GAP = "0.17em"


class Printer:
    """Prints syntax trees.

    Args:
        symbols: Letter and index of names; other names stand as they are.
    """

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols

    def statement(self, node: ast.stmt) -> Element:
        """An assignment, as `name ← expression`."""
        if not isinstance(node, ast.Assign):
            raise TypeError(f"no statement of the spec language: {ast.dump(node)}")
        return _math(self.expression(node.targets[0]), _operator("←"), self.expression(node.value))

    def condition(self, node: ast.expr) -> Element:
        """A condition."""
        return _math(self.expression(node))

    def symbol(self, name: str) -> Element:
        """A name."""
        return _math(self.name(name))

    def name(self, name: str) -> Element:
        """A name as one element."""
        letter, index = self._symbols.get(name, (name, ""))
        shown = _leaf("mi", letter)
        return shown if not index else _element("msub", shown, _leaf("mn" if index.isdigit() else "mtext", index))

    def expression(self, node: ast.expr, wanted: int = Binds.OR) -> Element:
        """An expression, in brackets if it binds less tightly than is wanted."""
        shown, binds = self._shown(node)
        return shown if binds >= wanted else _fenced("(", shown, ")")

    def _shown(self, node: ast.expr) -> tuple[Element, int]:
        match node:
            case ast.Name(id=name):
                return self.name(name), Binds.ATOM
            case ast.Tuple(elts=parts):
                return _joined([self.expression(part) for part in parts], lambda: _operator(",")), Binds.OR
            case ast.Constant(value=bool() | None | str() as value):
                return _leaf("mtext", str(value)), Binds.ATOM
            case ast.Constant(value=int() | float() as value):
                return _number(value)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _row(_operator(MINUS, form="prefix"), self.expression(operand, Binds.PRODUCT)), Binds.SUM
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._shown(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _row(_leaf("mtext", "not\u00a0"), self.expression(operand, Binds.NOT)), Binds.NOT
            case ast.BoolOp(op=op, values=values):
                binds = Binds.OR if isinstance(op, ast.Or) else Binds.AND
                word = BY_SYNTAX[type(op)].page
                return _joined([self.expression(value, binds + 1) for value in values], lambda: _word(word)), binds
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                middle = _word(IS[type(op)]) if type(op) in IS else _operator(BY_SYNTAX[type(op)].page)
                return _row(self.expression(left, Binds.SUM), middle, self.expression(right, Binds.SUM)), Binds.EQUAL
            case ast.BinOp(op=ast.Add() | ast.Sub() as op, left=left, right=right):
                between, wanted = (
                    _operator(BY_SYNTAX[type(op)].page),
                    Binds.SUM if isinstance(op, ast.Add) else Binds.PRODUCT,
                )
                return _row(self.expression(left, Binds.SUM), between, self.expression(right, wanted)), Binds.SUM
            case ast.BinOp(op=ast.Mult()):
                return self._product(list(_factors(node))), Binds.PRODUCT
            case ast.BinOp(op=ast.Div()):
                return self._fraction(node), Binds.PRODUCT
            case ast.BinOp(op=ast.Mod() as op, left=left, right=right):
                between = _word(BY_SYNTAX[type(op)].page)
                second = self.expression(right, Binds.SIGN)
                return _row(self.expression(left, Binds.PRODUCT), between, second), Binds.PRODUCT
            case ast.BinOp(op=ast.Pow(), left=left, right=right):
                return _element("msup", self._base(left), self.expression(right)), Binds.POWER
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                over = next((k.value.id for k in keywords if isinstance(k.value, ast.Name)), "")
                return self._call(name, args, over)
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                return _element("msub", _leaf("mi", name, mathvariant="normal"), self.expression(index)), Binds.ATOM
            case _:
                raise TypeError(f"no expression of the spec language: {ast.dump(node)}")

    def _base(self, node: ast.expr) -> Element:
        """Base of a power: in brackets unless it is one name, number or pair of fences."""
        is_plain = isinstance(node, ast.Name | ast.Constant)  # a negative number is an operation on one
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_plain = "{}" in _notation(node.func.id)
        shown = self.expression(node)
        return shown if is_plain else _fenced("(", shown, ")")

    def _product(self, factors: Sequence[ast.expr]) -> Element:
        """Factors beside each other, equal neighbours as a power."""
        runs: list[tuple[ast.expr, int]] = []
        for factor in factors:
            if runs and ast.dump(runs[-1][0]) == ast.dump(factor):
                runs[-1] = (factor, runs[-1][1] + 1)
            else:
                runs.append((factor, 1))
        parts: list[Element] = []
        for number, (factor, count) in enumerate(runs):
            if number:
                apart = isinstance(factor, ast.Constant) or self._is_word(factor) or self._is_word(runs[number - 1][0])
                parts.append(_operator("·") if apart else Element("mspace", {"width": GAP}))
            if count > 1:
                parts.append(_element("msup", self._base(factor), _leaf("mn", str(count))))
            else:
                parts.append(self.expression(factor, Binds.PRODUCT))
        return _row(*parts)

    def _is_word(self, node: ast.expr) -> bool:
        """Check whether an expression is a name or a call of several letters, which would run into its neighbour."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return node.func.id not in DRAWN and "{}" not in _notation(node.func.id)
        return isinstance(node, ast.Name) and len(self._symbols.get(node.id, (node.id, ""))[0]) > 1

    def _fraction(self, node: ast.BinOp) -> Element:
        """A quotient, one of a quotient with both divisors below the line."""
        below: list[ast.expr] = []
        above: ast.expr = node
        while isinstance(above, ast.BinOp) and isinstance(above.op, ast.Div):
            below.append(above.right)
            above = above.left
        below.reverse()
        divisor = self.expression(below[0]) if len(below) == 1 else self._product(below)
        return _element("mfrac", self.expression(above), divisor)

    def _call(self, name: str, args: Sequence[ast.expr], over: str) -> tuple[Element, int]:
        shown, row = [self.expression(arg) for arg in args], CALLED.get(name)
        match name:
            case "sqrt":
                return _element("msqrt", *shown), Binds.ATOM
            case "rsqrt":
                return _element("mfrac", _leaf("mn", "1"), _element("msqrt", *shown)), Binds.PRODUCT
            case "exp":
                return _element("msup", _leaf("mi", "e"), *shown), Binds.POWER
            case "where":
                return self._cases(*args), Binds.ATOM
        before, fence, after = _notation(name).partition("{}")
        if fence:
            inside = _fenced(before, shown[0], after)
            return (_element("msub", inside, _leaf("mtext", over)) if over else inside), Binds.ATOM
        if isinstance(row, Reduction):
            over = {"row": "row", "col": "column"}.get(row.over[0], over)
            shown = [_fenced("|", shown[0], "|")] if row.of == "magnitudes" else shown
        if isinstance(row, MatrixFunction):  # its settings stand in the text
            shown = shown[:1]
        word = _leaf("mi", _notation(name), mathvariant="normal")
        head = _element("msub", word, _leaf("mtext", over)) if over else word
        return _row(head, _fenced("(", _joined(shown, lambda: _operator(",")), ")")), Binds.ATOM

    def _cases(self, condition: ast.expr, then: ast.expr, other: ast.expr) -> Element:
        """A value that depends on a condition, behind a brace."""
        table = _element("mtable", columnalign="left")
        rows = ((then, [_word("if"), self.expression(condition)]), (other, [_word("otherwise")]))
        for value, when in rows:
            row = SubElement(table, "mtr")
            row.append(_element("mtd", self.expression(value)))
            row.append(_element("mtd", *when))
        return _row(_operator("{", fence="true", stretchy="true", form="prefix"), table)


def _notation(name: str) -> str:
    """The notation of a function; of the rules' own, its name."""
    return CALLED[name].page if name in CALLED else name


def _factors(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield from _factors(node.left)
        yield from _factors(node.right)
    else:
        yield node


def _number(value: float) -> tuple[Element, int]:
    """A number with all of its digits, very small and large ones as a power of ten."""
    exact = Decimal(repr(value)).normalize()
    if value == 0 or isinstance(value, int) or 1e-3 <= abs(value) < 1e5:
        return _leaf("mn", f"{exact:f}"), Binds.ATOM
    exponent = exact.adjusted()
    power = _element("msup", _leaf("mn", "10"), _row(*_signed(exponent)))
    mantissa = exact.scaleb(-exponent)
    if mantissa == 1:
        return power, Binds.POWER
    return _row(_leaf("mn", f"{mantissa:f}"), _operator("·"), power), Binds.PRODUCT


def _signed(value: int) -> list[Element]:
    shown = _leaf("mn", str(abs(value)))
    return [_operator(MINUS, form="prefix"), shown] if value < 0 else [shown]


def _math(*parts: Element) -> Element:
    return _element("math", *parts, displaystyle="true")


def _element(tag: str, *parts: Element, **attributes: str) -> Element:
    made = Element(tag, attributes)
    made.extend(parts)
    return made


def _row(*parts: Element) -> Element:
    return parts[0] if len(parts) == 1 else _element("mrow", *parts)


def _leaf(tag: str, text: str, **attributes: str) -> Element:
    made = Element(tag, attributes)
    made.text = text
    return made


def _operator(text: str, **attributes: str) -> Element:
    return _leaf("mo", text, **attributes)


def _word(text: str) -> Element:
    return _leaf("mtext", f"\u00a0{text}\u00a0")


def _fenced(left: str, inside: Element, right: str) -> Element:
    fences = {"fence": "true", "stretchy": "true"}
    return _row(_operator(left, form="prefix", **fences), inside, _operator(right, form="postfix", **fences))


def _joined(parts: Sequence[Element], between: object) -> Element:
    assert callable(between)
    made = [parts[0]]
    for part in parts[1:]:
        made += [between(), part]
    return _row(*made)
