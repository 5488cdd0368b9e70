"""What a spec declares and never uses: an argument that would do nothing, or memory that would serve nothing."""

from __future__ import annotations

import ast

from optgen.diagnostics import Reporter
from optgen.ir.family import Family
from optgen.ir.nodes import Call, Const, Expr, Program, Ref, children
from optgen.spec.loader import LoadedShared, LoadedSpec


def check_use(family: Family, loaded: LoadedSpec, shared: LoadedShared, reporter: Reporter) -> None:
    """Report the hyperparameters, options, inputs and states of a correct rule that nothing mentions.

    Of what all rules share only inputs are looked at: one that no stage reads would be taken and have no effect.
    """
    used = _used_names(family, shared)
    spec = loaded.spec
    declared = [
        ("hyperparameters", name, part) for name, h in spec.hyperparameters.items() for part in h.names or [name]
    ]
    declared += [("options", name, name) for name in spec.options]
    declared += [("inputs", name, name) for name in spec.inputs]
    declared += [("states", name, name) for name in spec.states]
    for section, key, name in declared:
        if name not in used:
            where = loaded.locate_key(section, key)
            reporter.error("unused", f"`{name}` is used nowhere", where, "use it in an equation, or remove it")
    common = shared.shared.blocks
    for name in shared.shared.inputs:
        if name not in used | _names_in(common.grad, common.update):
            where = shared.locate_key("inputs", name)
            reporter.error("unused", f"no rule reads `{name}`", where, "use it in a stage, or remove it")


def asks_first_step_only(program: Program) -> bool:
    """Whether a program asks of `step` no more than whether it is the first; where in a window a value goes aside."""
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


def _used_names(family: Family, shared: LoadedShared) -> set[str]:
    common = shared.shared.blocks
    texts = [*(text.raw for text in family.equations.values()), common.grad, common.update if family.has_update else ""]
    texts += [str(state.init) for state in family.states.values()]
    texts += [state.when for state in family.states.values() if state.when is not None]
    texts += [rule.when for rule in family.spec.rules]
    return _names_in(*texts) | {state.stored_as for state in family.states.values() if state.stored_as is not None}


def _names_in(*texts: str) -> set[str]:
    """The names that texts mention. A function's is none of them: a state may have the same."""
    nodes = [node for text in texts for node in ast.walk(ast.parse(text.strip()))]
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called}
