"""The Python of a package: what the runtime must know of a rule, and its typed, documented classes."""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache

from optgen.backends.base import Rendering
from optgen.backends.c_passes import PassRenderer, pass_function
from optgen.backends.layout import import_lines, import_order, python_lines
from optgen.backends.py_printer import PyPrinter, py_formula, py_number
from optgen.backends.python_host import host_functions, tuple_text
from optgen.backends.quoting import Docstring, Identifier, docstring, identifier, py_string
from optgen.ir.family import Family, given_readers, readers
from optgen.ir.formula import Formula
from optgen.ir.guards import Guard
from optgen.ir.nodes import Const, Kind, Reduce, Ref, refs, walk
from optgen.ir.refusals import Refusal
from optgen.ir.usage import asks_first_step_only
from optgen.prose import Prose
from optgen.schedule.plan import PassPlan, Plan, Reduction
from optgen.spec.model import Hyperparameter, Option, State, Variant
from optgen.spec.names import FACTS, flags_class
from optgen.spec.ranges import parse_range

KIND_NAMES = {"param": "element"}
TARGET_DOC = (
    'Where to compute: "cuda" (kernels for NVIDIA GPUs), "cpu" (compiled C++), "torch" (plain operations, any device), '
    "None for the fastest there is."
)
ARGS_DOC = (
    "An object whose attributes optim_bits, min_8bit_size, percentile_clipping, block_wise, max_unorm and skip_zeros "
    "take the place of those arguments."
)
TARGET_TYPE = 'Literal["cuda", "cpu", "torch"] | None'
WIDTH = 116
NOTHING = Prose("")


@dataclass(frozen=True)
class ClassSpec:
    """A public class: its row of the table, and what it refuses."""

    name: str
    variant: Variant
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Argument:
    """An argument of a class's constructor."""

    name: str
    annotation: str
    default: str | None
    doc: Prose

    @property
    def text(self) -> str:
        """As it stands in a signature."""
        return f"{self.name}: {self.annotation}" + ("" if self.default is None else f" = {self.default}")


@dataclass(frozen=True)
class ClassText:
    """A class, ready for the template."""

    name: Identifier
    doc: tuple[Docstring, ...]
    fixed: str
    bits: str
    given_bits: str
    positional: tuple[str, ...]
    keyword: tuple[str, ...]
    settings: tuple[str, ...]
    args: str
    refusals: tuple[str, ...]


class PythonBackend:
    """Renders the module of a family."""

    def __init__(self, classes: Sequence[ClassSpec]) -> None:
        self.classes = classes

    def render(self, family: Family, plans: Mapping[str, Plan]) -> Rendering:
        """One module a family."""
        flags = flags_class(family.name)
        context = {
            "title": docstring(family.title),
            "doc": [docstring(line) for line in _paragraphs(family.spec.doc, family.spec.reference)],
            "flags_class": flags,
            "flags": list(family.guards.guards),
            "flag_values": [_flag(family, guard) for guard in family.guards.guards.values()],
            "facts": _facts(family, self.classes),
            "imports": _imports(family, plans, self.classes),
            "hosts": [text for name, plan in plans.items() for text in host_functions(name, plan, family)],
            "inits": [text for text in (_init(family, n) for n in family.states) if text],
            "hypers": python_lines([_hyper(name, h) for name, h in family.hypers.items()], 8),
            "options": python_lines([_option(name, option) for name, option in family.options.items()], 8),
            "storage": python_lines(
                [_option(n, x) if isinstance(x, Option) else _hyper(n, x) for n, x in family.storage.items()], 8
            ),
            "states": python_lines([_state(family, name, state) for name, state in family.states.items()], 8),
            "blocks": [_block(name, plan, family) for name, plan in plans.items()],
            "name": identifier(family.name),
            "refusals": _refuse([r for r in family.refusals if r.on == "construct"], 4),
            "block_refusals": [
                (name, _refuse([r for r in family.refusals if r.on == name], 4)) for name in _refused_blocks(family)
            ],
            "methods": [
                (name, docstring(method.doc.line() or f"Run `{name}`.")) for name, method in family.spec.methods.items()
            ],
            "classes": [_class(family, c) for c in self.classes],
        }
        return Rendering(f"{family.name}.py", "python/module.py.j2", context)


def _paragraphs(*texts: Prose) -> list[Prose]:
    lines: list[Prose] = []
    for text in texts:
        if text:
            lines += [NOTHING, *text.filled(WIDTH)]
    return lines[1:]


def _tuple(items: Sequence[str]) -> str:
    return tuple_text([f'"{item}"' for item in items])


def _refused_blocks(family: Family) -> list[str]:
    return [n for n in ("step", *family.spec.methods) if any(r.on == n for r in family.refusals)]


def _refuse(refusals: Sequence[Refusal], indent: int) -> list[str]:
    """Statements that raise."""
    lines: list[str] = []
    for refusal in refusals:
        parts = _pieces(refusal.message.raw, WIDTH - indent - 6)
        message = [f"    message = {py_string(refusal.message)}"]
        if len(parts) > 1 or indent + len(message[0]) > WIDTH + 4:
            message = ["    message = (", *(f"        {py_string(part)}" for part in parts), "    )"]
        lines += [f"if {_requoted(refusal.condition)}:", *message]
        shown = "".join(f', "{name}": {text}' for name, text in refusal.parts.items())
        lines.append(f'    raise {refusal.exception}(message.format_map({{**o, "name": name{shown}}}))')
    return python_lines(lines, indent)


def _pieces(text: str, width: int) -> list[str]:
    """A text in pieces of at most `width` characters, which together are the text."""
    return textwrap.wrap(text, width, drop_whitespace=False, replace_whitespace=False, expand_tabs=False)


@cache
def _requoted(condition: str) -> str:
    """An expression with its strings in double quotes."""
    tokens = list(tokenize.generate_tokens(io.StringIO(condition).readline))
    for token in reversed(tokens):
        if token.type == tokenize.STRING:
            text = py_string(ast.literal_eval(token.string))
            condition = condition[: token.start[1]] + text + condition[token.end[1] :]
    return condition


def _imports(family: Family, plans: Mapping[str, Plan], classes: Sequence[ClassSpec]) -> dict[str, list[str]]:
    """What a module imports: only what it uses."""
    rule = ["Block", "Pass", "Rule", "Settings", "always"]
    rule += ["Array"] if any(plan.arrays for plan in plans.values()) else []
    rule += ["Partial"] if any(item.reductions for plan in plans.values() for item in plan.passes) else []
    settings = [*family.hypers.values(), *family.options.values(), *family.storage.values()]
    rule += [kind.__name__ for kind in (Hyperparameter, Option) if any(isinstance(x, kind) for x in settings)]
    rule += ["State"] if family.states else []
    arguments = [a.annotation for spec in classes for a in class_arguments(family, spec.variant).values()]
    typing = ["Any", "ClassVar", "NamedTuple"] + (["Literal"] if any("Literal" in text for text in arguments) else [])
    return {
        "typing": sorted(typing),
        "tensor": ["Tensor"],
        "rule": import_lines("optgen.runtime.rule", sorted(rule, key=import_order)),
    }


def _facts(family: Family, classes: Sequence[ClassSpec]) -> list[str]:
    """Fields of the rule that name settings, inputs and flags."""
    constants = [name for name, guard in family.guards.guards.items() if guard.about == "codec"]
    facts = {"fixed_by": _fixed_by(family, classes), "inputs": list(family.given), "constants": constants}
    lines = [f"{name}={_tuple(items)}," for name, items in facts.items()]
    if all(asks_first_step_only(block.program) for block in family.blocks.values()):
        lines.append("first_step_only=True,")
    return python_lines(lines, 4)


# What the runtime must know


def _flag(family: Family, guard: Guard) -> str:
    read = readers(family.hypers, family.options, family.storage)
    match guard.about, guard.op:
        case "option", "true":
            text = read[guard.subject]
        case "option", _:
            text = f"{read[guard.subject]} {guard.op} {_literal(guard.value)}"
        case "hyper", "given":
            text = f"{read[guard.subject]} is not None"
        case "input", _:
            text = f"{given_readers(family.given)[guard.subject]} is not None"
        case "hyper", _:
            text = f"m.number({read[guard.subject]}) {guard.op} {guard.value}"
        case "fact", _:
            text = f"{guard.subject} {guard.op} {guard.value}"
        case _:
            text = f'"{guard.subject}" in tensorwise'
    return f"{guard.name}={text},"


def _fixed_by(family: Family, classes: Sequence[ClassSpec]) -> list[str]:
    """The settings that decide flags, storage and what is refused."""
    owners = {part: name for name, h in family.hypers.items() for part in (h.names or [name])}
    subjects = [
        owners.get(g.subject, g.subject) for g in family.guards.guards.values() if g.about in ("option", "hyper")
    ]
    refusals = [*family.refusals, *(refusal for spec in classes for refusal in spec.refusals)]
    named = {name for refusal in refusals for name in _settings_named(refusal.condition)}
    subjects += [name for name in (*family.hypers, *family.options) if name in named]
    return list(dict.fromkeys([*subjects, *family.storage, "target"]))


def _settings_named(condition: str) -> set[str]:
    """The settings that a condition over `o` reads."""
    found = [node.slice for node in ast.walk(ast.parse(condition)) if isinstance(node, ast.Subscript)]
    return {str(key.value) for key in found if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def _hyper(name: str, hyper: Hyperparameter) -> str:
    allowed = parse_range(hyper.range)
    parts = [f'name="{name}"', f"low={_bound(allowed.low)}", f"high={_bound(allowed.high)}"]
    if allowed.low_open:
        parts.append("low_open=True")
    if allowed.high_open:
        parts.append("high_open=True")
    if hyper.label:
        parts.append(f"label={_literal(hyper.label)}")
    if hyper.names:
        parts.append(f"parts={_tuple(hyper.names)}")
    if hyper.optional:
        parts.append("optional=True")
    if hyper.integer:
        parts.append("integer=True")
    if hyper.scope != "group":
        parts.append(f'scope="{hyper.scope}"')
    return f'"{name}": Hyperparameter({", ".join(parts)}),'


def _bound(value: float) -> str:
    return py_number(float(value))


def _option(name: str, option: Option) -> str:
    choices = "" if option.choices is None else f", choices={tuple_text([_literal(c) for c in option.choices])}"
    return f'"{name}": Option(name="{name}"{choices}),'


def _state(family: Family, name: str, state: State) -> str:
    item = family.inputs[name]
    parts = [f'name="{name}"', f'kind="{KIND_NAMES.get(state.shape, state.shape)}"']
    if not item.signed:
        parts.append("signed=False")
    if item.kind is Kind.ELEMENT:
        parts.append(f"codecs={_tuple(item.codecs)}")
        if state.stored_as is not None:
            parts.append(f'stored_as="{state.stored_as}"')
    if item.window is not None:
        parts.append(f"window={item.window}")
    if not item.exists.is_true:
        parts.append(f"exists={_live(item.exists)}")
    init = family.inits[name]
    if not isinstance(init, Const):
        parts.append(f"init=_start_{name}")
        if {"param", "grad"}.intersection(refs(init)):
            parts.append("reads_elements=True")
        if any(isinstance(part, Reduce) for part in walk(init)):
            parts.append("reduced=True")
    elif init.value != 0.0 and item.window is None:
        parts.append(f"init={py_number(float(init.value))}")
    return f'"{name}": State({", ".join(parts)}),'


def _init(family: Family, name: str) -> tuple[str, str] | None:
    """A function for an initial value that is not a number."""
    expr = family.inits[name]
    if isinstance(expr, Const):
        return None
    read = readers(family.hypers, family.options, family.storage)
    names = {n: f"m.number({text.replace('o[', 't.settings[', 1)})" for n, text in read.items()}
    names |= {"param": "t.param", "grad": "t.unscaled_grad"} | {fact: f"t.{fact}" for fact in FACTS}
    kinds = {n: i.kind for n, i in family.inputs.items()}
    return name, PyPrinter(kinds, names=names).print(expr)


def _block(name: str, plan: Plan, family: Family) -> dict[str, object]:
    sums = [f'("{sum_name}", "{op}", "{reduction}")' for sum_name, (op, reduction) in plan.sums.items()]
    arrays = [f'Array("{n}", "{plan.kinds[n].name.lower()}", {_live(live)})' for n, live in plan.arrays.items()]
    summed = {reduction for _, reduction in plan.sums.values()}
    passes = [_pass(name, p, len(PassRenderer(family, name, plan, p).fields()), summed) for p in plan.passes]
    fields = {
        "passes": tuple_text(passes),
        "values": f"_{name}_values",
        "inputs": f"_{name}_inputs",
        "names": _tuple(plan.values),
        "commit": f"_{name}_commit" if plan.host_commits else "",
        "reductions": _tuple([r.name for r in plan.reductions]) if plan.reductions else "",
        "sums": tuple_text(sums) if sums else "",
        "arrays": tuple_text(arrays) if arrays else "",
        "refuse": f"_refuse_{name}" if name in _refused_blocks(family) else "",
        "grads": "True" if family.reads_gradients(name) else "",
        "line_sums": "True" if _sums_lines(plan) else "",
        "counts": "True" if _reads_index(plan) else "",
    }
    fields_text = [f"{field}={text}," for field, text in fields.items() if text]
    return {"name": name, "fields": python_lines(fields_text, 12)}


def _sums_lines(plan: Plan) -> bool:
    """Whether numbers of rows, columns or matrices are summed over the tensor."""
    reductions = [let.expr for let in plan.program.lets if isinstance(let.expr, Reduce)]
    return any(r.over is Kind.TENSOR and isinstance(r.x, Ref) and plan.kinds[r.x.name].is_array for r in reductions)


def _reads_index(plan: Plan) -> bool:
    """Whether anything depends on a parameter's position in its group."""
    positions = {name for name, item in plan.program.inputs.items() if item.role == "fact" and name == "index"}
    values = [*(let.expr for let in plan.program.lets), *plan.program.outputs.values()]
    return any(positions.intersection(refs(value)) for value in values)


def _live(formula: Formula) -> str:
    return "always" if formula.is_true else f"lambda f: {py_formula(formula)}"


def _pass(block: str, item: PassPlan, scalars: int, summed: Set[str]) -> str:
    tensors = [r.name for r in item.reductions if r.reduce.over is Kind.TENSOR]
    rows = sum(r.reduce.over is Kind.ROW for r in item.reductions)
    cols = sum(r.reduce.over is Kind.COL for r in item.reductions)
    parts = [f'"{pass_function(block, item)}"', _live(item.live)]
    if tensors:
        parts.append(f"reductions={_tuple(tensors)}")
    if rows:
        parts.append(f"rows={rows}")
    if cols:
        parts.append(f"cols={cols}")
    if scalars:
        parts.append(f"scalars={scalars}")
    if item.reductions:
        parts.append(f"partials={tuple_text([_partial(r, r.name in summed) for r in item.reductions])}")
    return f"Pass({', '.join(parts)})"


def _partial(reduction: Reduction, summed: bool) -> str:
    """A result of a pass; one that is summed over all parameters is there wherever the pass runs."""
    reduce = reduction.reduce
    op = "max" if reduce.op == "max" else "sum"
    live = "always" if summed else _live(reduction.live)
    return f'Partial("{reduction.name}", "{reduce.over.name.lower()}", "{op}", {live})'


# Classes


def _class(family: Family, spec: ClassSpec) -> ClassText:
    variant = spec.variant
    arguments = class_arguments(family, variant)
    signature = list(variant.signature or [])
    positional = [arguments[name] for name in signature]
    keyword = [a for name, a in arguments.items() if name not in signature and name != "args"]
    fixed = dict(variant.set)
    if variant.paged is not None:
        fixed["is_paged"] = variant.paged
    if variant.target is not None:
        fixed["target"] = variant.target
    return ClassText(
        name=identifier(spec.name),
        doc=tuple(docstring(line) for line in _class_doc(family, spec, [*positional, *keyword])),
        fixed="{" + ", ".join(f'"{k}": {_literal(v)}' for k, v in fixed.items()) + "}",
        bits=str(variant.bits),
        given_bits=_literal(variant.defaults["optim_bits"]) if "optim_bits" in variant.defaults else "",
        positional=tuple(a.text for a in positional),
        keyword=tuple(a.text for a in keyword),
        settings=tuple(a.name for a in (*positional, *keyword) if a.name != "args"),
        args="args" if "args" in signature else "None",
        refusals=tuple(_refuse(spec.refusals, 8)),
    )


def class_arguments(family: Family, variant: Variant) -> dict[str, Argument]:
    """All arguments of a class by name, those it fixes left out."""
    fixed = set(variant.set) | ({"is_paged"} if variant.paged is not None else set())
    signature = list(variant.signature or [])
    result = {}
    for name, hyper in family.hypers.items():
        if name not in fixed:
            result[name] = Argument(name, _hyper_type(name, hyper), _hyper_default(name, hyper, variant), hyper.doc)
    for name, option in family.options.items():
        if name not in fixed:
            default = variant.defaults.get(name, option.default)
            result[name] = Argument(name, _option_type(option), _literal(default), option.doc)
    for name, item in family.storage.items():
        if name in fixed or (name == "optim_bits" and variant.bits is not None and name not in signature):
            continue
        own = {"block_wise": variant.block_wise}.get(name)
        default = own if own is not None else variant.defaults.get(name, item.default)
        doc = item.doc
        if name == "optim_bits" and variant.bits is not None:
            doc = Prose(f"Taken for compatibility; the states of this class have {variant.bits} bits.")
        kind = _option_type(item) if isinstance(item, Option) else _hyper_type(name, item)
        result[name] = Argument(name, kind, _literal(default), doc)
    if "args" in signature:
        result["args"] = Argument("args", "object", "None", Prose(ARGS_DOC))
    if variant.target is None:
        result["target"] = Argument("target", TARGET_TYPE, "None", Prose(TARGET_DOC))
    return result


def _hyper_default(name: str, hyper: Hyperparameter, variant: Variant) -> str | None:
    if name in variant.required or (hyper.required and name not in variant.defaults):
        return None
    default = variant.defaults.get(name, hyper.default)
    return _literal(tuple(default) if isinstance(default, list) else default)


def _hyper_type(name: str, hyper: Hyperparameter) -> str:
    if hyper.names:
        text = f"tuple[{', '.join(['float'] * len(hyper.names))}] | str"
    else:
        text = "int" if hyper.integer else "float | Tensor" if name == "lr" else "float"
    return f"{text} | None" if hyper.optional else text


def _option_type(option: Option) -> str:
    if option.choices is None:
        return "bool"
    if all(choice is None or isinstance(choice, bool) for choice in option.choices):
        return "bool | None"
    if all(isinstance(choice, int) for choice in option.choices):
        return "int"
    return f"Literal[{', '.join(_literal(choice) for choice in option.choices)}]"


def _literal(value: object) -> str:
    match value:
        case str() | Prose():
            return py_string(value)
        case float() if value == int(value) and abs(value) < 1e16:
            return repr(value)
        case tuple():
            return tuple_text([_literal(item) for item in value])
        case _:
            return repr(value)


def _class_doc(family: Family, spec: ClassSpec, arguments: Sequence[Argument]) -> list[Prose]:
    variant = spec.variant
    bits = 32 if "optim_bits" not in family.storage else variant.bits
    kept = f"states in {'`optim_bits`' if bits is None else bits} bits"
    paged = ", paged" if variant.paged else ""
    lines = [family.title + f": {kept}{paged}.", NOTHING]
    reference = family.spec.reference
    for text in (variant.doc, family.spec.doc, "Source: " + reference if reference else NOTHING):
        if text:
            lines += [*text.filled(WIDTH - 4), NOTHING]
    lines += [Prose("Args:"), Prose("    params: Tensors, named tensors or param groups.")]
    for argument in arguments:
        text = f"{argument.name}: " + _with_range(family, argument)
        lines += text.filled(WIDTH - 4, " " * 4, " " * 8)
    if family.given:
        lines += [NOTHING, Prose("Attributes:")]
    for name, given in family.given.items():
        text = f"{name}: Set for one step, and not there otherwise. " + given.doc
        lines += text.filled(WIDTH - 4, " " * 4, " " * 8)
    lines += [NOTHING, Prose("Raises:"), Prose("    TypeError: for values and parameters of the wrong type.")]
    lines.append(Prose("    ValueError: for values out of range and combinations that the rule rejects."))
    return lines


def _with_range(family: Family, argument: Argument) -> Prose:
    hyper = family.hypers.get(argument.name) or family.storage.get(argument.name)
    where = f" In {parse_range(hyper.range)}." if isinstance(hyper, Hyperparameter) else ""
    default = "" if argument.default is None else f" Default: {argument.default}."
    return argument.doc + where + default
