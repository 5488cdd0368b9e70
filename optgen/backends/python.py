"""The Python module of a rule: what the runtime must know of it, and its typed, documented classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optgen.backends.base import Rendering
from optgen.backends.code import Code, names_in
from optgen.backends.python_blocks import block_lines, uses_always
from optgen.backends.python_calls import (
    call_lines,
    docs_lines,
    field_lines,
    names_code,
    rule_imports,
    table_lines,
    tuple_code,
)
from optgen.backends.python_classes import WIDTH, ClassSpec, ClassText, render_classes
from optgen.backends.python_host import HostText, host_functions
from optgen.backends.python_rule import (
    Setting,
    StartText,
    decisive,
    flag_lines,
    flag_texts,
    on_step_texts,
    refusal_lines,
    refusal_parts,
    setting_lines,
    start,
    state_lines,
)
from optgen.backends.python_shared import Group, SharedParts
from optgen.backends.quoting import docstring, identifier
from optgen.ir.refusals import Refusal
from optgen.ir.rule import WholeRule
from optgen.ir.usage import asks_first_step_only, sees_channels_alone
from optgen.prose import Prose
from optgen.schedule.plan import Plan
from optgen.schedule.sums import element_sums

NOTHING = Prose("")


@dataclass(frozen=True)
class BlockText:
    """A block, ready for the template."""

    name: str
    fields: tuple[str, ...]


class PythonBackend:
    """Renders the module of a rule.

    Args:
        shared: Parts that it shares with the other rules of the package.
    """

    def __init__(self, classes: Sequence[ClassSpec], shared: SharedParts) -> None:
        self.classes, self.shared = classes, shared

    def render(self, rule: WholeRule, plans: Mapping[str, Plan]) -> Rendering:
        """One module a rule."""
        groups = self.shared.of(rule)
        shared_flags = {name for group in groups for name in group.flags}
        flags = {name: text for name, text in flag_texts(rule).items() if name not in shared_flags}
        hosts = [text for name, plan in plans.items() for text in host_functions(name, plan)]
        starts = [text for name in rule.states if (text := start(rule, name)) is not None]
        constants = {refusal: f"_{refusal.name.upper()}" for spec in self.classes for refusal in spec.refusals}
        classes = render_classes(rule, self.classes, constants)
        context = {
            "title": docstring(rule.title),
            "doc": [docstring(line) for line in _source(rule)],
            "imports": _imports(rule, plans, groups, flags, hosts, starts, classes),
            "flags": flag_lines(flags) if flags else [],
            "on_step": flag_lines(on_step) if (on_step := on_step_texts(rule)) else [],
            "hosts": hosts,
            "starts": starts,
            "name": identifier(rule.name),
            "fields": self._fields(rule, groups, bool(flags)),
            "blocks": [BlockText(name, tuple(_block(rule, name, plan))) for name, plan in plans.items()],
            "constants": [
                line
                for refusal, name in constants.items()
                for line in call_lines(f"{name} = Refusal", refusal_parts(refusal), {}, 0, end="")
            ],
            "classes": classes,
            "methods": [
                (name, docstring(method.doc.line() or f"Run `{name}`.")) for name, method in rule.spec.methods.items()
            ],
        }
        return Rendering(f"{rule.name}.py", "python/module.py.j2", context)

    def _fields(self, rule: WholeRule, groups: Sequence[Group], has_flags: bool) -> list[str]:
        """The fields of the rule, but for its blocks."""
        decides = decisive(rule, [refusal for spec in self.classes for refusal in spec.refusals])
        settings: dict[str, Setting] = {**rule.spec.hyperparameters, **rule.spec.options}
        shared_states = {name for group in groups for name in group.states}
        states = {name: state for name, state in rule.states.items() if name not in shared_states}
        tables = {
            "settings": [line for n, s in settings.items() for line in setting_lines(n, s, n in decides, NOTHING, 8)],
            "states": [line for n, s in states.items() for line in state_lines(rule, n, s, 8)],
            "refusals": [line for r in _own_refusals(rule, groups) for line in refusal_lines(r, 8)],
        }
        lines = [line for name, entries in tables.items() if entries for line in table_lines(name, entries, 4)]
        if rule.spec.inputs:
            lines += docs_lines("inputs", {name: given.doc for name, given in rule.spec.inputs.items()}, 4)
        constants = [name for name, guard in rule.guards.guards.items() if guard.about == "codec"]
        more: dict[str, Code] = {
            "flags": "_flags" if has_flags else "",
            "on_step": "_on_step" if on_step_texts(rule) else "",
            "constants": names_code(constants) if constants else "",
            "channels_alone": "True" if sees_channels_alone(block.program for block in rule.blocks.values()) else "",
            "ndim": "" if rule.spec.ndim is None else str(rule.spec.ndim),
            "first_step_only": "True" if _asks_first_step_only(rule) else "",
            "shared": tuple_code([f"shared.{group.name}" for group in groups]),
        }
        return [*lines, *field_lines(more, 4)]


def _source(rule: WholeRule) -> list[Prose]:
    """Source of the rule, as its module gives it below its title."""
    reference = rule.spec.reference
    return [NOTHING, *("Source: " + reference).filled(WIDTH)] if reference else []


def _block(rule: WholeRule, name: str, plan: Plan) -> list[str]:
    refusals = [line for r in rule.refusals if r.on == name for line in refusal_lines(r, 8)]
    return [*block_lines(name, plan, rule), *(table_lines("refusals", refusals, 4) if refusals else [])]


def _own_refusals(rule: WholeRule, groups: Sequence[Group]) -> list[Refusal]:
    shared = {refusal for group in groups for refusal in group.refusals}
    return [refusal for refusal in rule.refusals if refusal.on == "construct" and refusal not in shared]


def _asks_first_step_only(rule: WholeRule) -> bool:
    on_steps = any(guard.about == "step" for guard in rule.guards.guards.values())
    return not on_steps and all(asks_first_step_only(block.program) for block in rule.blocks.values())


def _imports(
    rule: WholeRule,
    plans: Mapping[str, Plan],
    groups: Sequence[Group],
    flags: Mapping[str, str],
    hosts: Sequence[HostText],
    starts: Sequence[StartText],
    classes: Sequence[ClassText],
) -> dict[str, list[str]]:
    """Imports of a module: only what it uses."""
    constructors = [text.constructor for text in classes if text.constructor is not None]
    types = frozenset[str]().union(*(made.types for made in constructors))
    fixes = any("fixed" in text.attributes for text in classes)
    own = [*rule.spec.hyperparameters.values(), *rule.spec.options.values()]
    shared_states = {name for group in groups for name in group.states}
    refuses = any("refusals" in text.attributes for text in classes)
    refuses = refuses or bool(_own_refusals(rule, groups)) or any(r.on != "construct" for r in rule.refusals)
    used = {
        "Array": any(plan.arrays for plan in plans.values()),
        "Flags": any(host.asks_flags for host in hosts),
        "Exchange": any(block.exchanges for block in rule.blocks.values()),
        "Partial": any(element_sums(plan).all for plan in plans.values()),
        "Refusal": refuses,
        "Settings": bool(flags) or bool(on_step_texts(rule)),
        "State": any(name not in shared_states for name in rule.states),
        "always": any(uses_always(plan) for plan in plans.values()),
    }
    named = {"Block", "Pass", "Rule", *(name for name, there in used.items() if there)}
    named |= {type(setting).__name__ for setting in own}
    uses_math = any("m" in names_in(text) for text in (*flags.values(), *on_step_texts(rule).values()))
    uses_math = uses_math or any(host.uses_math for host in hosts) or any(text.uses_math for text in starts)
    typing = {"Any": fixes or bool(starts), "ClassVar": fixes, "Literal": "Literal" in types}
    of_blocks, of_rules = rule_imports(named)
    return {
        "typing": [name for name, there in typing.items() if there],
        "mapping": ["Mapping"] if fixes else [],
        "tensor": ["Tensor"] if "Tensor" in types else [],
        "math": ["m"] if uses_math else [],
        "block": of_blocks,
        "rule": of_rules,
    }
