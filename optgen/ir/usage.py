"""Warnings about declarations and values without effect: the rule is correct, but hardly meant so."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache

from optgen.codecs import CODECS
from optgen.diagnostics import Location, Reporter
from optgen.ir.functions import named as named_in
from optgen.ir.matrix_stage import UPDATE
from optgen.ir.nodes import Call, Const, Expr, Kind, Program, Reduce, Ref, children, refs, walk
from optgen.ir.parser import node_location
from optgen.ir.rule import WholeRule
from optgen.ir.weights import weight_states
from optgen.spec.loader import LoadedShared, LoadedSpec
from optgen.spec.messages import message_fields
from optgen.spec.model import GivenState
from optgen.spec.source import SourceText


def check_use(rule: WholeRule, loaded: LoadedSpec, shared: LoadedShared, reporter: Reporter) -> None:
    """Warn of what a rule that is in order has to no effect.

    Of what all rules share only inputs are looked at. One that no stage reads is an error: whatever sets it, as a
    gradient scaler, would take it for granted that it acts.
    """
    used = _used_names(rule, shared)
    for name, where in _declared(loaded):
        if name not in used:
            reporter.warning("unused", f"`{name}` is never used", where, "use it in an equation, or remove it")
    common = shared.shared.blocks
    for name in shared.shared.inputs:
        if name not in used | _names_in(common.grad, common.update):
            where = shared.locate_key("inputs", name)
            reporter.error("unused", f"no rule reads `{name}`", where, "use it in a stage, or remove it")
    weights = weight_states(rule)
    _check_states(rule, loaded, used, weights, reporter)
    _check_values(rule, reporter)
    for name in weights:
        state = rule.spec.states.get(name)
        if state is not None and state.codecs is None and state.stored_as is None:
            message = f"`{name}` holds weights, which may be stored in 8 or 4 bits"
            plain = ", ".join(codec for codec in CODECS if not CODECS[codec].scaled)
            where = loaded.locate_key("states", name)
            reporter.warning(
                "quantized-weights", message, where, f"write `codecs: [{plain}]`, or list those it may take"
            )


def _joins(first: Expr, second: Reduce) -> bool:
    """Check whether two reductions, one of the other's results, are one over the dimensions of both."""
    return isinstance(first, Reduce) and second.op == ("sum" if first.op == "squares" else first.op)


OF_MATRICES = (Kind.MATRIX, Kind.COL, Kind.LAST, Kind.LAST2, Kind.LAST3, Kind.LAST4)


def sees_channels_alone(programs: Iterable[Program]) -> bool:
    """Check whether programs tell no dimension of a tensor but the first: the others may then be taken as one.

    Rows are there only on the way from elements to channels.
    """
    found = False
    for program in programs:
        rows = {let.name: let.expr for let in program.lets if let.kind is Kind.ROW}
        nodes = [node for let in program.lets for node in walk(let.expr)]
        nodes += [node for value in program.outputs.values() for node in walk(value)]
        reductions = [node for node in nodes if isinstance(node, Reduce)]
        kinds = {*program.kinds().values(), *(reduction.over for reduction in reductions)}
        states = {item.kind for item in program.inputs.values() if item.role == "state"}
        to_channels = [r for r in reductions if r.over is Kind.CHANNEL and isinstance(r.x, Ref) and r.x.name in rows]
        joined = all(_joins(rows[r.x.name], r) for r in to_channels if isinstance(r.x, Ref))
        read = [node.name for node in nodes if isinstance(node, Ref)]
        if (
            kinds.intersection(OF_MATRICES)
            or Kind.ROW in states
            or not joined
            or not all(isinstance(expr, Reduce) for expr in rows.values())
            or len([name for name in read if name in rows]) != len(to_channels)
            or not {"rows", "cols", "matrices"}.isdisjoint(read)
        ):
            return False
        found = found or Kind.CHANNEL in kinds
    return found


def asks_first_step_only(program: Program) -> bool:
    """Check whether a program uses `step` only to find out if it is the first one, slots of windows apart."""
    return not any(_reads_count(let.expr) for let in program.lets) and not any(
        _reads_count(expr) for expr in program.outputs.values()
    )


def _reads_count(expr: Expr) -> bool:
    match expr:
        case Call(op=">" | "<=" | "==" | "!=", args=(Ref(name="step"), Const(value=1.0))):
            return False
        case Call(op="push", args=(window, value, _)):
            return _reads_count(window) or _reads_count(value)
        case Ref(name=name):
            return name == "step"
    return any(_reads_count(child) for child in children(expr))


def _declared(loaded: LoadedSpec) -> Iterator[tuple[str, Location]]:
    """Names that the equations of a rule may use, with the locations of their declarations."""
    spec = loaded.spec
    for name, hyper in spec.hyperparameters.items():
        if not hyper.names:
            yield name, loaded.locate_key("hyperparameters", name)
        for index, part in enumerate(hyper.names):
            yield part, loaded.locate("hyperparameters", name, "names", index)
    for section, names in (("options", spec.options), ("inputs", spec.inputs), ("states", spec.states)):
        for name in names:
            yield name, loaded.locate_key(section, name)


def _check_states(
    rule: WholeRule, loaded: LoadedSpec, used: set[str], weights: Iterable[str], reporter: Reporter
) -> None:
    """States that stay as they begin, and states on which nothing depends; means of weights are for people to read."""
    written = [node for text in rule.written_out.values() for node in _names(text.raw)]
    assigned = {node.id for node in written if isinstance(node.ctx, ast.Store)}
    live = _live_inputs(rule, weights)
    for name, state in rule.spec.states.items():
        where = loaded.locate_key("states", name)
        if name not in used or isinstance(state, GivenState):
            continue
        if name not in assigned and not isinstance(state.init, str):
            message = f"`{name}` is read and never assigned: it stays {state.init}"
            help_text = "assign it in a block, or begin it with an expression: `init: ...`"
            reporter.warning("never-assigned", message, where, help_text)
        elif name in assigned and name not in live:
            message = f"`{name}` has no effect: no later value of `param` depends on it"
            reporter.warning("unused-state", message, where, "use it in an equation, or remove it from `states`")


def _check_values(rule: WholeRule, reporter: Reporter) -> None:
    """Names of a block's own that nothing reads below."""
    step = [rule.texts[name] for name in ("step", "apply") if name in rule.texts]
    names = {name.partition(".")[0] for name in rule.texts if "." in name}
    of_stages = [[rule.texts[name] for name in rule.texts if name.startswith(f"{stage}.")] for stage in names]
    for texts in (step, *of_stages, *([rule.texts[name]] for name in rule.spec.methods)):
        nodes = [(text, node) for text in texts for node in named_in(ast.parse(text.text))]
        read = {node.id for _, node in nodes if isinstance(node.ctx, ast.Load)}
        if rule.has_update and texts is step and "update" not in _names_in(rule.equations["apply"].raw):
            read.discard("update")  # the shared stage would change it for nothing
        if texts in of_stages:
            read.add("update")
        first: dict[str, tuple[SourceText, ast.Name]] = {}
        for text, node in sorted(nodes, key=lambda item: (item[0].start, item[1].lineno)):
            if isinstance(node.ctx, ast.Store):
                first.setdefault(node.id, (text, node))
        for name, (text, node) in first.items():
            if name in read or name in rule.inputs or name in rule.state_inputs or name == "active":
                continue
            help_text = "use it below, or remove the line"
            if name == "update":
                help_text = "use it in `apply`" if rule.has_update else "add `apply:`, which uses it"
            reporter.warning("unused", f"nothing reads `{name}`", node_location(text, node), help_text)


def _live_inputs(rule: WholeRule, roots: Iterable[str]) -> set[str]:
    """The inputs on which `param` depends, or one of `roots`, or a rule that refuses a step."""
    reads: dict[str, set[str]] = {}
    waiting = ["param", *roots]
    programs = [(block.program, block.active) for block in rule.blocks.values()]
    if rule.matrices is not None:
        programs.append((rule.matrices.program, Ref(UPDATE)))
    for program, active in programs:
        below: dict[str, set[str]] = {}
        for let in program.lets:
            below[let.name] = {name for ref in refs(let.expr) for name in below.get(ref, {ref})}

        def inputs_of(expr: Expr, below: dict[str, set[str]] = below) -> set[str]:
            return {name for ref in refs(expr) for name in below.get(ref, {ref})}

        waiting += inputs_of(active)
        for name, value in program.outputs.items():
            reads[name] = reads.get(name, set()) | inputs_of(value)
    for refused in rule.spec.refusals:
        waiting += [*_names_in(refused.when), *message_fields(refused.message.raw)]
    live: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in live:
            live.add(name)
            waiting.extend(reads.get(name, ()))
    return live


def _used_names(rule: WholeRule, shared: LoadedShared) -> set[str]:
    common = shared.shared.blocks
    texts = [*(text.raw for text in rule.written_out.values()), common.grad, common.update if rule.has_update else ""]
    texts += [str(state.init) for state in rule.states.values()]
    texts += [state.when for state in rule.states.values() if state.when is not None]
    texts += [refused.when for refused in rule.spec.refusals]
    found = _names_in(*texts) | {state.stored_as for state in rule.states.values() if state.stored_as is not None}
    for function in rule.functions:
        found |= {node.id for node in function.reads()} - function.own
    return found


def _names_in(*texts: str) -> set[str]:
    """The names that texts mention."""
    return {node.id for text in texts for node in _names(text)}


@lru_cache(maxsize=256)  # the shared stages are looked at for every rule
def _names(text: str) -> tuple[ast.Name, ...]:
    return tuple(named_in(ast.parse(text.strip())))
