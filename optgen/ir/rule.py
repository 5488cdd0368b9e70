"""A rule with everything that acts on it: shared settings merged in, its blocks as programs.

Input: a loaded spec and the shared declarations. Output: a `WholeRule`, from which plans are made and files rendered.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from optgen.codecs import CODECS
from optgen.diagnostics import Location, Reporter
from optgen.ir.blocks import assigns, before, put_on, texts_of
from optgen.ir.builder import Builder
from optgen.ir.exchanges import Exchange, exchanges
from optgen.ir.expansion import Library
from optgen.ir.facts import OF_TEXT
from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.functions import Function, parse_functions, reached
from optgen.ir.guards import RECORDED, GuardTable
from optgen.ir.matrix_stage import MatrixStage, build_matrix_stage, shape_in
from optgen.ir.nodes import Const, Expr, Input, Kind, Program
from optgen.ir.parser import Stage, node_location, parse_block, parse_expression
from optgen.ir.reductions import DIMENSIONS, least_rank
from optgen.ir.refusals import Refusal, build_refusal
from optgen.ir.scope import Scope
from optgen.prose import Prose
from optgen.spec.checks import is_offered
from optgen.spec.given import given_states
from optgen.spec.loader import LoadedShared, LoadedSpec
from optgen.spec.messages import message_fields
from optgen.spec.model import Hyperparameter, Method, Option, RefusalEntry, Shared, Spec, State
from optgen.spec.model import Input as GivenInput
from optgen.spec.names import FACTS, OF_SHAPE, RESERVED, SEED, TARGET
from optgen.spec.ranges import parse_range
from optgen.spec.source import SourceText

SHAPES = {
    "param": Kind.ELEMENT,
    "row": Kind.ROW,
    "col": Kind.COL,
    "matrix": Kind.MATRIX,
    **DIMENSIONS,
    "tensor": Kind.TENSOR,
    "group": Kind.GROUP,
    "global": Kind.GLOBAL,
}
Setting = TypeVar("Setting", Hyperparameter, Option, Hyperparameter | Option)


@dataclass(frozen=True)
class Block:
    """A block as written: its program, the condition under which its elements are active, and exchanged states."""

    program: Program
    active: Expr
    exchanges: tuple[Exchange, ...] = ()


@dataclass(frozen=True, eq=False)
class WholeRule:
    """A rule, ready to be planned.

    Attributes:
        hypers: Hyperparameters by name, the rule's own first, then the shared ones it can take.
        options: Options by name, likewise.
        storage: Settings of how states are kept.
        given: Inputs that may be set on the optimizer for a step, by name.
        states: States by name, with the shared ones.
        guards: Facts that are fixed before a kernel is compiled.
        blocks: `step` and the methods.
        inits: Initial values of states that are not plain numbers, as written.
        equations: The text of each block, for people.
        written_out: The same without loops and indices.
        texts: The same with their places; a block of a stage that is put on the rule is named `stage.block`.
        stages: The text of the shared stages `grad` and `update`, by the name of the block that each stands before.
        functions: Those that these blocks call, and those that these call.
        shared: Declarations that all rules are offered.
        matrices: The step on matrices, if the rule has one.
    """

    spec: Spec
    path: Prose
    hypers: Mapping[str, Hyperparameter]
    options: Mapping[str, Option]
    storage: Mapping[str, Option | Hyperparameter]
    given: Mapping[str, GivenInput]
    states: Mapping[str, State]
    inputs: Mapping[str, Input]
    guards: GuardTable
    blocks: Mapping[str, Block]
    inits: Mapping[str, Expr]
    refusals: tuple[Refusal, ...]
    equations: Mapping[str, Prose]
    written_out: Mapping[str, Prose]
    texts: Mapping[str, SourceText]
    stages: Mapping[str, Prose]
    functions: tuple[Function, ...]
    has_update: bool
    shared: Shared
    shared_path: Prose
    matrices: MatrixStage | None = None

    @property
    def state_inputs(self) -> Mapping[str, Input]:
        """All states, those that are matrices of other shapes among them."""
        own = {name: item for name, item in self.inputs.items() if item.role == "state"}
        return own if self.matrices is None else {**own, **self.matrices.states}

    @property
    def name(self) -> str:
        """The rule's name, as in its file."""
        return self.spec.name

    def reads_gradients(self, block: str) -> bool:
        """Check whether a block runs only over parameters that have a gradient."""
        return block == "step" or self.spec.methods[block].grad

    @property
    def title(self) -> Prose:
        """Its name for people, in one line."""
        return self.spec.title.line() or Prose(self.spec.name)


def build_rule(
    loaded: LoadedSpec, shared: LoadedShared, functions: Mapping[str, Function], reporter: Reporter
) -> WholeRule | None:
    """The rule of a spec; mistakes are reported and give None. `functions` are those that every rule may call."""
    before = reporter.error_count
    rule = _RuleBuilder(loaded, shared, functions, reporter).build()
    return rule if reporter.error_count == before else None


def _shown(*paths: str) -> Prose:
    """The paths of files in generated files, the same wherever the project lies: of each its folder and name."""
    places = [Path(path).resolve() for path in paths]
    return Prose(" and ".join(f"{place.parent.name}/{place.name}" for place in places))


class _RuleBuilder:
    def __init__(
        self,
        loaded: LoadedSpec,
        shared: LoadedShared,
        functions: Mapping[str, Function],
        reporter: Reporter,
    ) -> None:
        self.loaded, self.spec, self.reporter = loaded, loaded.spec, reporter
        self.shared = shared
        self.has_update = self.spec.blocks.apply is not None
        common = shared.shared
        self.hypers = {**self.spec.hyperparameters, **self._offered(common.hyperparameters, self.spec.hyperparameters)}
        self.options = {**self.spec.options, **self._offered(common.options, self.spec.options)}
        self.given = {**self.spec.inputs, **common.inputs}
        self.storage = self._offered(common.storage, {})
        self.states = {**self.spec.states, **common.states}
        self.scope = Scope(
            rule=loaded.own_name,
            options={name: _choices(option) for name, option in self.options.items()},
            hypers={part: h.optional for name, h in self.hypers.items() for part in (h.names or [name])},
            inputs={},
            guards=GuardTable(self._values()),
            refused=tuple(self._refused()),
            common=self._common(),
            of_stages={one.spec.stage: frozenset(one.spec.states) for one in loaded.stages},
            given=frozenset(self.given),
            of_params=frozenset(given_states(self.states)),
            parts={name: tuple(h.names) for name, h in self.hypers.items() if h.names} | self.loaded.vectors,
            library=self._library(functions),
            periods=frozenset(name for name, hyper in self.hypers.items() if _counts_steps(hyper)),
            can_record=RECORDED in self.storage,
            has_seed=SEED in self.storage,
            ndim=self.spec.ndim,
        )

    def _library(self, shared: Mapping[str, Function]) -> Library:
        """The functions that its blocks may call: its own, then those of all rules; likewise of stages put on it."""
        own = parse_functions(self.loaded.text("functions"), shared, self.reporter) if self.spec.functions else {}
        of_stages: dict[str, Mapping[str, Function]] = {}
        for stage in self.loaded.stages:
            found = dict(shared)
            for text in stage.functions:
                found |= parse_functions(text, found, self.reporter)
            of_stages[stage.spec.stage] = found
        settings = (part for name, hyper in self.hypers.items() for part in hyper.names or [name])
        given = frozenset((*settings, *self.options, *self.given, *FACTS, *OF_TEXT))
        common = self.shared.shared.blocks
        texts = (*(text.text for text in texts_of(self.loaded).values()), common.grad, common.update)
        used = {word for text in texts for word in re.findall(r"\w+", text)}
        names = frozenset((*RESERVED, *given, *self.states, *used))
        vectors = {name: tuple(hyper.names) for name, hyper in self.hypers.items() if hyper.names}
        vectors |= self.loaded.vectors
        functions = {**shared, **own}
        rule, states = self.loaded.own_name, frozenset(self.states)
        return Library(functions, shared, rule, given, states, names, vectors, of_stages)

    def _written_out(self, text: SourceText) -> str:
        """The text of a block without loops and indices."""
        body = parse_block(text, Reporter())
        lines = self.scope.library.without_loops(body, text, Reporter())
        return text.text if lines == body else "\n".join(map(ast.unparse, lines)) + "\n"

    def _values(self) -> Iterator[str]:
        """The names that kernels give to values and to codecs."""
        yield from ("param", "grad", "step", "active", *FACTS, *OF_SHAPE, *self.given, *self.states)
        yield from (part for name, hyper in self.hypers.items() for part in hyper.names or [name])
        yield from (f"{name}_codec" for name in self.states)

    def _common(self) -> frozenset[str]:
        """The names that shared stages may use: what `shared.yaml` declares, a rule's own version of it included."""
        common = self.shared.shared
        return frozenset((*common.hyperparameters, *common.options, *common.inputs, *common.states))

    def _offered(self, common: Mapping[str, Setting], own: Mapping[str, object]) -> dict[str, Setting]:
        return {n: x for n, x in common.items() if n not in own and is_offered(x, self.spec, self.shared.shared)}

    def _refused(self) -> Iterator[tuple[ast.expr, SourceText]]:
        """The conditions under which the rule's settings are refused."""
        own = [(one, self.loaded.text("refusals", i, "when")) for i, one in enumerate(self.spec.refusals)]
        for refused, text in (*own, *self._shared_refusals()):
            if refused.on == "construct":
                node = parse_expression(text, Reporter())
                if node is not None:
                    yield node, text

    def _shared_refusals(self) -> Iterator[tuple[RefusalEntry, SourceText]]:
        """The combinations that all rules refuse, but for those with settings that this rule is not offered."""
        common = self.shared.shared
        offered = {**self.hypers, **self.options, **self.storage}
        withheld = {*common.hyperparameters, *common.options, *common.storage} - offered.keys()
        for index, refused in enumerate(common.refusals):
            text = self.shared.text("refusals", index, "when")
            node = parse_expression(text, Reporter())
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} if node is not None else set()
            if not names.union(message_fields(refused.message.raw)) & withheld:
                yield refused, text

    def build(self) -> WholeRule:
        before = self.reporter.error_count
        self._check_case()
        self._inputs()
        self.matrices = self._matrix_stage()
        blocks = {"step": self._step()}
        for name, method in self.spec.methods.items():
            blocks[name] = self._method(name, method)
        if self.reporter.error_count == before:
            self._check_effect(blocks["step"].program)
        shared, texts = self.shared.shared.blocks, texts_of(self.loaded)
        return WholeRule(
            spec=self.spec,
            path=_shown(*self.loaded.paths),
            hypers=self.hypers,
            options=self.options,
            storage=self.storage,
            given=self.given,
            states=self.states,
            inputs=dict(self.scope.inputs),
            guards=self.scope.guards,
            blocks=blocks,
            inits=self._inits(),
            refusals=self._refusals(),
            equations={name: Prose(text.text) for name, text in texts.items()},
            written_out={name: Prose(self._written_out(text)) for name, text in texts.items()},
            texts=texts,
            stages={next(iter(texts)): Prose(shared.grad), "apply": Prose(shared.update if self.has_update else "")},
            functions=tuple(self._called(texts)),
            has_update=self.has_update,
            shared=self.shared.shared,
            shared_path=_shown(self.shared.source.path),
            matrices=self.matrices,
        )

    def _called(self, texts: Mapping[str, SourceText]) -> list[Function]:
        """The functions that blocks call, and those that these call."""
        library = self.scope.library
        found: dict[int, Function] = {}
        for name, text in texts.items():
            functions = library.of_stages.get(name.rpartition(".")[0], library.functions)
            body = parse_block(text, Reporter())
            found |= {id(one.node): one for one in reached(functions, *body)}
        return list(found.values())

    def _check_case(self) -> None:
        """Names that differ in case only would be one name in some target."""
        first: dict[str, str] = {}
        parts = {part: name for name, hyper in self.hypers.items() for part in (hyper.names or [name])}
        sections: dict[str, Mapping[str, object]] = {
            "options": self.options,
            "inputs": self.given,
            "states": self.states,
        }
        for name in (*parts, *self.options, *self.given, *self.states):
            other = first.setdefault(name.lower(), name)
            if other != name:
                section = next((key for key, names in sections.items() if name in names), "hyperparameters")
                where = self.loaded.locate_key(section, parts.get(name, name))
                self.reporter.error("reserved-name", f"`{name}` and `{other}` differ in case only", where, "rename one")

    def _inputs(self) -> None:
        inputs = self.scope.inputs
        inputs["param"] = Input("param", "param", Kind.ELEMENT)
        inputs["grad"] = Input("grad", "grad", Kind.ELEMENT)
        inputs["step"] = Input("step", "step", Kind.STEP)
        for fact in (*FACTS, *OF_SHAPE):
            inputs[fact] = Input(fact, "fact", Kind.GLOBAL if fact == "total_numel" else Kind.STEP)
        for name, hyper in self.hypers.items():
            kind = Kind.GLOBAL if hyper.scope == "global" else Kind.GROUP
            for part in hyper.names or [name]:
                inputs[part] = Input(part, "hyper", kind)
        for name in self.given:
            inputs[name] = Input(name, "input", Kind.GLOBAL)
        for name, state in self.states.items():
            if not state.is_matrix:
                inputs[name] = self._state(name, state)

    def _matrix_stage(self) -> MatrixStage | None:
        """The step on matrices of a rule that has such states."""
        own = {name: state for name, state in self.spec.states.items() if state.is_matrix}
        if not own:
            return None
        first = next(iter(own))
        if self.spec.ndim != 2:
            where = self.loaded.locate("states", first, "shape")
            message = f"`{first}` is a matrix, and a parameter of this rule may be none"
            self.reporter.error("no-rows", message, where, "write `ndim: 2` of the rule")
        if not self.has_update:
            where = self.loaded.locate("blocks", "step")
            message = "a rule with matrices of other shapes names its direction `update` in `step`"
            self.reporter.error("no-update", message, where, "add `apply:` with `param = param - lr * update`")
        shapes = {name: shape_in(name, state, self.loaded, self.hypers, self.reporter) for name, state in own.items()}
        states = {name: self._state(name, state) for name, state in own.items()}
        stage = Stage(self.loaded.text("blocks", "step"))
        return build_matrix_stage(stage, self.scope, states, shapes, self.reporter)

    def _state(self, name: str, state: State) -> Input:
        loaded = self.loaded if name in self.spec.states else self.shared
        exists: Formula = TRUE
        if state.when is not None:
            text = loaded.text_of(state.when, "states", name, "when")
            node = parse_expression(text, self.reporter)
            if node is not None:
                before = self.reporter.error_count
                exists = self.scope.condition(node, text, self.reporter, loaded is self.shared)
                if self.reporter.error_count > before:
                    return Input(name, "state", _kind(state), window=state.window)
                self._check_lasting(name, exists, node_location(text, node))
        kind = _kind(state)
        codecs: tuple[str, ...] = ("fp32",)
        if kind is Kind.ELEMENT:  # what is no codec was reported when the file was checked
            codecs = tuple(codec for codec in state.codecs or CODECS if codec in CODECS) or codecs
        if kind.is_host and state.when is not None:
            where = loaded.locate("states", name, "when")
            self.reporter.error(
                "kind", f"a state of shape `{state.shape}` always exists and cannot have `when`", where, "remove `when`"
            )
        least = least_rank(kind)
        if not self.scope.has_rank(exists, least):
            where = loaded.locate("states", name, "shape")
            dims = {2: "two"}.get(least, str(least))
            message = f"a state of shape `{state.shape}` exists only for parameters of {dims} dimensions or more"
            self.reporter.error("no-rows", message, where, f"write `when: ndim >= {least}`")
        return Input(name, "state", kind, exists, state.range == "signed", codecs, state.window)

    def _check_lasting(self, name: str, exists: Formula, where: Location) -> None:
        """A state is there for longer than a step."""
        for guard in sorted(exists.names):
            about, subject = self.scope.guards.guards[guard].about, self.scope.guards.guards[guard].subject
            if about == "step" or subject in self.given:
                subject = "step" if about == "step" else subject
                message = f"whether `{name}` exists cannot depend on `{subject}`, which is set for one step"
                self.reporter.error("run-time-condition", message, where, "test options and hyperparameters")

    def _step(self) -> Block:
        own = Stage(self.loaded.text("blocks", "step"), of_matrices=self.matrices is not None)
        stages = [*before(self.loaded, self.shared), own]
        if self.has_update and self._has_direction():
            stages += [
                *put_on(self.loaded, "update"),
                Stage(self.shared.text("blocks", "update"), "update"),
                Stage(self.loaded.text("blocks", "apply")),
            ]
        block = self._block([*stages, *put_on(self.loaded, "apply")], dict(self.scope.inputs))
        taken = {name: Const(number) for name, number in given_states(self.states).items()}
        outputs = {**block.program.outputs, **taken}
        writes = {**block.program.writes, **dict.fromkeys(taken, TRUE)}
        return replace(block, program=replace(block.program, outputs=outputs, writes=writes))

    def _method(self, name: str, method: Method) -> Block:
        """A method's block; what stages before it would keep for later steps is not kept."""
        own = Stage(self.loaded.text("methods", name, "block"))
        if not method.grad:
            inputs = {n: i for n, i in self.scope.inputs.items() if i.role not in ("grad", "input")}
            return self._block([own], inputs)
        block = self._block([*before(self.loaded, self.shared), own], dict(self.scope.inputs))
        of_stages = {*self.shared.shared.states, *(n for stage in self.loaded.stages for n in stage.spec.states)}
        outputs = {n: x for n, x in block.program.outputs.items() if n not in of_stages}
        writes = {n: block.program.writes[n] for n in outputs}
        return replace(block, program=replace(block.program, outputs=outputs, writes=writes))

    def _block(self, stages: list[Stage], inputs: dict[str, Input]) -> Block:
        scope = replace(self.scope, inputs=inputs, given=self.scope.given & inputs.keys())
        builder = Builder(scope, self.reporter)
        own = {name: item for name, item in inputs.items() if name not in scope.of_params}
        writable = [name for name, item in own.items() if item.role in ("param", "state")]
        program = builder.build(stages, writable)
        active = builder.final["active"].expr
        recorded = scope.guards.formula("option", RECORDED, "true") if scope.can_record and builder.exchanged else FALSE
        stored_as = {name: state.stored_as for name, state in self.states.items()}
        return Block(program, active, exchanges(builder.exchanged, program, active, recorded, stored_as))

    def _has_direction(self) -> bool:
        if assigns(self.loaded, "step", "update"):
            return True
        where = self.loaded.locate("blocks", "step")
        message = "a rule with an `apply` block names its direction `update` in `step`"
        self.reporter.error("no-update", message, where, "write `update = ...`")
        return False

    def _check_effect(self, step: Program) -> None:
        if "param" not in step.outputs:
            where = self.loaded.locate("blocks", "apply" if self.has_update else "step")
            message, help_text = "this rule never changes `param`", "write `param = param - lr * update`"
            if not self.has_update and assigns(self.loaded, "step", "update"):
                help_text = "add `apply:` with `param = param - lr * update`"
            self.reporter.error("no-effect", message, where, help_text)

    def _refusals(self) -> tuple[Refusal, ...]:
        found = []
        settings = readers(self.hypers, self.options, self.storage)
        kept = {n: f'o["{n}"]' for n, s in self.states.items() if s.shape in ("group", "global")}
        for index, refused in enumerate(self.spec.refusals):
            known = settings if refused.on == "construct" else settings | kept
            refusal = build_refusal(refused, self.loaded.text("refusals", index, "when"), known, self.reporter)
            if refusal is not None:
                found.append(refusal)
        for refused, text in self._shared_refusals():
            refusal = build_refusal(refused, text, settings, self.reporter)
            if refusal is not None:
                found.append(refusal)
        return tuple(found)

    def _inits(self) -> dict[str, Expr]:
        result: dict[str, Expr] = {}
        draws = 0
        for name, state in self.states.items():
            if isinstance(state.init, int | float):
                result[name] = Const(float(state.init) if state.window is None else math.inf)
                continue
            loaded = self.loaded if name in self.spec.states else self.shared
            text = loaded.text_of(state.init, "states", name, "init")
            node = parse_expression(text, self.reporter)
            if node is None:
                continue
            node = self.scope.library.expression(node, text, self.reporter)
            names = {n: i for n, i in self.scope.inputs.items() if i.role in ("param", "grad", "hyper", "fact")}
            names.pop("total_numel")
            if state.is_matrix:
                where = loaded.locate("states", name, "init")
                message = f"`{name}` is a matrix, which begins with one number for all"
                self.reporter.error("init", message, where, "write a number, and compute it on step 1")
                continue
            builder = Builder(replace(self.scope, inputs=names), self.reporter, at_once=True, draws=draws)
            result[name] = builder.initial(text, node, name, self.scope.inputs[name])
            draws = builder.draws
        return result


def _kind(state: State) -> Kind:
    return Kind.ELEMENT if isinstance(state.shape, list) else SHAPES[state.shape]


def _counts_steps(hyper: Hyperparameter) -> bool:
    """Check whether a hyperparameter is always a whole number from 1 on, and one of a group."""
    return hyper.integer and not hyper.names and not hyper.optional and parse_range(hyper.range).low >= 1


def given_readers(given: Iterable[str]) -> dict[str, str]:
    """Expressions by which a generated function reads each input of a step; an input that is not set reads as None."""
    return {name: f'o.get("{name}")' for name in given}


def readers(
    hypers: Mapping[str, Hyperparameter],
    options: Mapping[str, Option],
    storage: Mapping[str, Option | Hyperparameter],
) -> dict[str, str]:
    """Expressions by which a generated class reads each setting from its settings `o`."""
    result = {name: f'o["{name}"]' for name in (*hypers, *options, *storage, TARGET)}
    for name, hyper in hypers.items():
        result |= {part: f'o["{name}"][{i}]' for i, part in enumerate(hyper.names)}
    return result


def _choices(option: Option) -> tuple[int | str | None, ...] | None:
    return None if option.choices is None else tuple(option.choices)
