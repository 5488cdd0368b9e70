"""One class alone in plain torch: a function that takes a parameter's step, its states as they are stored.

Sums over a tensor are taken where they are needed. One over all parameters comes of a function of its own, whose
results for all of them are added up and handed to the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optgen.backends.alone import Alone
from optgen.backends.assignments import Assignments, Part
from optgen.backends.base import Rendering
from optgen.backends.code import Brackets, Code, Labelled, Operand, call, names_in
from optgen.backends.layout import function_head, import_lines, python_code
from optgen.backends.py_printer import REDUCTION, PyPrinter, py_name, py_number, whole_kinds
from optgen.backends.py_statements import PyStatements
from optgen.backends.quoting import docstring, identifier, python_comment
from optgen.backends.statements import values_in
from optgen.backends.torch import TorchBlock
from optgen.backends.torch_matrices import matrix_function
from optgen.codecs import CODECS, WHOLE_TENSOR, Codec
from optgen.ir.formula import TRUE
from optgen.ir.kinds import kind_of
from optgen.ir.liveness import needed
from optgen.ir.nodes import Expr, Input, Kind, OfAllElements, Reduce, Ref, refs
from optgen.passes.rewrite import replaced
from optgen.passes.scale_tensorwise import scale_name
from optgen.prose import Prose

RESERVED = frozenset(("state", "torch", "Tensor", "encode", "decode", "_"))
FACTS = {
    "numel": "float(p.numel())",
    "ndim": "float(p.dim())",
    "rows": "float(p.shape[-2])",
    "cols": "float(p.shape[-1])",
    "matrices": "float(p[..., 0, 0].numel())",
    **{f"size{dim}": f"float(p.shape[{dim}])" for dim in range(4)},
    **{f"size_{dim}": f"float(p.shape[-{dim}])" for dim in (3, 4)},
}
LAST = {Kind.ROW: "-1", Kind.COL: "-2", Kind.MATRIX: "(-2, -1)"}
"""The dimensions that a state of a kind lacks."""


@dataclass(frozen=True)
class FunctionText:
    """A function, ready for the template.

    Attributes:
        uses_math: Whether it calls functions of the equation language.
    """

    head: tuple[str, ...]
    doc: str
    lines: tuple[str, ...]
    uses_math: bool


def torch_alone(alone: Alone) -> Rendering:
    """The functions of a class: one a block, each after those of its sums over all parameters.

    Of a rule whose step is on matrices it is that step, as all targets call it.
    """
    stage = alone.rule.matrices
    if stage is not None:
        guards = {n: holds for n, holds in alone.guards.items() if alone.rule.guards.guards[n].about != "step"}
        alone = replace(alone, guards=guards)
        step = matrix_function(stage.under(alone.guards, alone.rule.guards), alone.rule.guards)
        text = FunctionText(step.head, docstring(Prose(step.doc)), step.lines, uses_math=True)
        imports = ["from typing import Any", "", "import torch", "", "from optgen.runtime import torch_math as m",
                   *import_lines("optgen.runtime.engines.torch_engine", ["Results", "View"])]  # fmt: skip
        context = {"head": [python_comment(line) for line in alone.head()], "imports": imports, "functions": [text]}
        return Rendering(alone.name, "alone/functions.py.j2", context)
    functions = []
    for block, plan in alone.plans.items():
        over_all = {reduction: name for name, (_, reduction) in plan.sums.items()}
        for item in plan.passes:
            sums = {over_all[r.name]: r.reduce for r in item.reductions if r.name in over_all}
            if sums:
                functions.append(_Function(alone, block).of_sums(item.name, sums))
        functions.append(_Function(alone, block).of_block())
    context = {
        "head": [python_comment(line) for line in alone.head()],
        "imports": _imports(any(function.uses_math for function in functions), alone),
        "functions": functions,
    }
    return Rendering(alone.name, "alone/functions.py.j2", context)


def _imports(uses_math: bool, alone: Alone) -> list[str]:
    """Imports of functions with these lines, and constants for the codecs that they name."""
    codecs = {alone.codecs[name] for name in alone.element_states if not _is_plain(alone.codecs[name])}
    named = {_codec(codec): codec for codec in codecs if not _codec(codec).startswith('"')}
    own = []
    if named:
        whole = any(codec.block == WHOLE_TENSOR for codec in named.values())
        own += import_lines("optgen.codecs", ["CODECS", "WHOLE_TENSOR"] if whole else ["CODECS"])
    if uses_math:
        own.append("from optgen.runtime import torch_math as m")
    if codecs:
        own += import_lines("optgen.runtime.states.torch_codecs", ["decode", "encode"])
    blocks = {n: "WHOLE_TENSOR" if codec.block == WHOLE_TENSOR else f"{codec.block}" for n, codec in named.items()}
    constants = [f'{n} = CODECS["{named[n].name}"].with_block({block})' for n, block in blocks.items()]
    parts = (["import torch", "from torch import Tensor"], own, constants)
    return [line for part in parts if part for line in ("", *part)][1:]


def _is_plain(codec: Codec) -> bool:
    return codec.name == "fp32"


class _Function(TorchBlock):
    """A function for one parameter."""

    def __init__(self, alone: Alone, block: str) -> None:
        super().__init__(block, alone.plans[block])
        self.alone = alone

    def of_block(self) -> FunctionText:
        """The function of the block: what it computes is stored."""
        roots = [name for value in self.outputs.values() for name in refs(value)]
        code = self._code(roots)
        printer = self._printer(code)
        ends = list(self._stores(code, printer))
        lines = [*self._loads(code, stored=True), *self._lines(code, printer)]
        lines += [line for end in ends for line in python_code(end, 4)]
        if self.plan.host_commits:
            names = ", ".join(write.input.name for write in self.plan.host_commits)
            lines.append(
                python_comment(f"The optimizer computes the new values for the group, or for all parameters: {names}.")
            )
        what = "Update a parameter" if self.block == "step" else f"Run `{self.block}` for a parameter"
        doc = f"{what}, and its states as `optimizer.state[p]` holds them."
        return self._function(self.block, doc, code, lines, ends)

    def of_sums(self, name: str, sums: Mapping[str, OfAllElements]) -> FunctionText:
        """A function that returns what a parameter adds to sums over all."""
        code = self._code([part for reduce in sums.values() for part in refs(reduce.x)])
        printer = self._printer(code)
        parts = {total: replaced(reduce, code.values) for total, reduce in sums.items()}
        items = tuple(Labelled(f'"{total}": ', printer.code(part)) for total, part in parts.items())
        returned = Brackets("return {", items, "}")
        lines = [*self._loads(code, stored=False), *self._lines(code, printer), *python_code(returned, 4)]
        doc = "Terms of a parameter in the sums over all parameters."
        return self._function(f"{self.block}_{name}", doc, code, lines, [returned], "dict[str, Tensor]")

    def _code(self, roots: Sequence[str]) -> Assignments:
        """The statements from which these follow; sums over all parameters are handed over."""
        live = needed(self.program.lets, [(name, TRUE) for name in roots], stop=lambda let: let.name in self.plan.sums)
        part = Part(
            [let for let in self.program.lets if let.name in live and let.name not in self.plan.sums],
            dict.fromkeys(live, TRUE),
            outside=lambda name: name,
            sort=self.sort,
            given={PARAM if name == "param" else name: name for name in self.inputs if name in live},
            taken=(*RESERVED, PARAM, *self.plan.sums),
            inlined=self.masked,
        )
        return part.code(asked=[(name, TRUE) for name in dict.fromkeys(roots)])

    # Texts

    def _printer(self, code: Assignments) -> _Printer:
        kinds = {**self.kinds, PARAM: Kind.ELEMENT}
        kinds |= {variable: self.kinds[name] for name, variable in code.holders.items()}
        fewer = {name for name in self.fewer if name in self.inputs or name in self.plan.sums}
        fewer |= {variable for name, variable in code.holders.items() if name in self.fewer}
        return _Printer(kinds, names={name: _spelled(name) for name in code.read}, fewer=fewer)

    def _function(
        self,
        name: str,
        doc: str,
        code: Assignments,
        lines: Sequence[str],
        ends: Sequence[Code],
        returns: str = "None",
    ) -> FunctionText:
        """A function of these lines; `ends` are those after the statements, before they are laid out."""
        grad = ["grad: Tensor"] if "grad" in code.read else []
        handed = [_argument(each, self.alone.settings.get(each)) for each in self._handed(code)]
        parameters = ["p: Tensor", *grad, "state: dict[str, Tensor]", *(["*", *handed] if handed else [])]
        head = function_head(identifier(f"{self.alone.rule.name}_{name}"), parameters, returns)
        codes = (*map(self._printer(code).code, values_in(code.body)), *ends)
        return FunctionText(tuple(head), docstring(doc), tuple(lines), any("m" in names_in(part) for part in codes))

    def _handed(self, code: Assignments) -> list[str]:
        """Numbers that are one for a group or for all parameters; the parameter's position among them."""
        given = [n for n, item in self.inputs.items() if item.kind.is_host or (item.role == "fact" and n not in FACTS)]
        return [name for name in (*given, *self.plan.sums) if name in code.read]

    def _loads(self, code: Assignments, stored: bool) -> Iterator[str]:
        """First statements of the function: it reads its inputs, and decodes states.

        Args:
            stored: Whether it ends with storing, among others, the number of the step.
        """
        if (stored and self.block == "step") or "step" in code.read:
            yield f'step = float(state["step"]){" + 1.0" if self.block == "step" else ""}'
        for name, item in self.inputs.items():
            if name not in code.read or item.kind.is_host:
                continue
            if item.role == "state":
                yield from python_code(Labelled(f"{_spelled(name)} = ", self._loaded(item)), 4)
            elif name in FACTS:
                yield f"{_spelled(name)} = {FACTS[name]}"

    def _loaded(self, item: Input) -> Code:
        stored = f'state["{item.name}"]'
        match item.kind:
            case Kind.ELEMENT:
                codec = self.alone.codecs[item.name]
                if _is_plain(codec):
                    return stored
                scale = f'state["{scale_name(item.name)}"]' if codec.scaled else "None"
                return call("decode", _codec(codec), stored, scale, str(item.signed), "p.shape")
            case Kind.ROW:
                return f"{stored}.unsqueeze(-1)"
            case Kind.COL:
                return f"{stored}.unsqueeze(-2)"
            case Kind.MATRIX:
                return f"{stored}[..., None, None]"
            case kind if kind.is_array:
                return call(f"{stored}.reshape", f'm.spread_shape("{kind.name.lower()}", p.shape)')
        return stored if item.window is not None else f"{stored}.double()"

    def _lines(self, code: Assignments, printer: _Printer) -> list[str]:
        return PyStatements(lambda _: printer, spell=_spelled).lines(code.body, 4)

    def _stores(self, code: Assignments, printer: _Printer) -> Iterator[Code]:
        """The new values; the parameter's comes last, since what is stored before may be its old one."""
        for name in sorted(self.outputs, key=lambda name: name == "param"):
            output = self.outputs[name]
            taken_over = isinstance(output, Ref) and output.name in self.inputs
            value = replaced(output, code.values)
            yield self._stored(self.inputs[name], value, printer, taken_over)
        if self.block == "step":
            yield 'state["step"].fill_(step)'

    def _stored(self, item: Input, value: Expr, printer: _Printer, taken_over: bool) -> Code:
        """A new value where it belongs.

        Args:
            taken_over: Whether it is the old value of another input, of which this becomes a copy.
        """
        code, stored = printer.code(value), f'state["{item.name}"]'
        if item.role == "param":
            return call("p.copy_", code)
        if item.kind in LAST:
            code = call("torch.squeeze", code, LAST[item.kind])
        elif item.kind.is_array:
            code = call("torch.flatten", printer.spread(value))
        elif item.kind is Kind.ELEMENT:
            codec, code = self.alone.codecs[item.name], printer.spread(value)
            if not _is_plain(codec):
                scale = f'state["{scale_name(item.name)}"]' if codec.scaled else "_"
                return Labelled(f"{stored}, {scale} = ", call("encode", _codec(codec), code, str(item.signed)))
        elif item.window is None:
            return call(f"{stored}.fill_", code)
        return Labelled(f"{stored} = ", call("torch.clone", code) if taken_over else code)


@dataclass(frozen=True)
class _Printer(PyPrinter):
    """Prints expressions of a parameter of which all elements are here."""

    def operand(self, expr: Expr) -> Operand:
        """The expression, to be an operand of another; sums of rows and columns are rounded once."""
        match expr:
            case Reduce(op=op, over=Kind.ROW | Kind.COL as over, x=x):
                return Operand(Brackets(f"m.{REDUCTION[over, op]}(", (self.spread(x),), ").float()"))
        return super().operand(expr)

    def spread(self, x: Expr) -> Code:
        """A value with as many numbers as its kind says: a single one is spread."""
        kind = kind_of(x, self.kinds)
        if kind in whole_kinds(x, self.fewer, self.kinds):
            return self.code(x)
        shape = {Kind.ROW: "(*p.shape[:-1], 1)", Kind.COL: "(*p.shape[:-2], 1, p.shape[-1])"}.get(kind, "p.shape")
        if kind.is_array and kind not in (Kind.ROW, Kind.COL):
            shape = f'm.spread_shape("{kind.name.lower()}", p.shape)'
        return Brackets("torch.as_tensor(", (self.code(x), "dtype=torch.float32"), f").expand({shape})")


PARAM = "p"
"""Name of the parameter; `param` is the value that the equations compute."""


def _spelled(name: str) -> str:
    return f"{name}_value" if name in RESERVED or name == name.upper() else py_name(name)


def _argument(name: str, default: object) -> str:
    if not isinstance(default, int | float):
        return f"{_spelled(name)}: float"
    return f"{_spelled(name)}: float = {py_number(float(default))}"


def _codec(codec: Codec) -> str:
    """A codec as `encode` and `decode` take it."""
    return f'"{codec.name}"' if codec.block == CODECS[codec.name].block else codec.name.upper()
