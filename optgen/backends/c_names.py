"""Names in a rule's C++: macros, codecs, table columns, and the passes of its sums."""

from __future__ import annotations

from collections.abc import Mapping

from optgen.backends.c_printer import c_member
from optgen.backends.quoting import identifier
from optgen.ir.nodes import Kind
from optgen.ir.rule import WholeRule
from optgen.passes.scale_tensorwise import scale_name
from optgen.schedule.plan import Plan
from optgen.spec.names import FACTS as FACT_NAMES
from optgen.spec.names import OF_SHAPE

FACTS = {fact: fact.upper() for fact in (*FACT_NAMES, *OF_SHAPE) if fact != "total_numel"}


def macro(name: str) -> str:
    """The macro that sets a constant when the file is compiled."""
    return identifier(f"OPTGEN_{name.upper()}")


def codec_type(state: str) -> str:
    """The C++ name of a state's codec."""
    return "".join(part.capitalize() for part in state.split("_")) + "Codec"


def column(name: str) -> str:
    """The table column that holds the address of a state or an array."""
    return f"Column::{c_member(name)}"


def element_states(rule: WholeRule) -> list[str]:
    """States with a number per element, in their order."""
    return [name for name, item in rule.inputs.items() if item.role == "state" and item.kind is Kind.ELEMENT]


def state_columns(rule: WholeRule) -> list[str]:
    """States in the order of their table columns; every element state is followed by its scale."""
    result = []
    for name, item in rule.inputs.items():
        if item.role == "state" and not item.kind.is_host:
            result.append(name)
            if item.kind is Kind.ELEMENT:
                result.append(scale_name(name))
    return result


def array_columns(plans: Mapping[str, Plan]) -> list[str]:
    """Arrays of all blocks in the order of their table columns."""
    return [f"{block}_{name}" for block, plan in plans.items() for name in plan.arrays]


def pass_of(name: str) -> str:
    """The constant that says in which pass a sum is taken."""
    return identifier(f"{name}_pass")


def member(name: str) -> str:
    """A member of a struct: `s.beta1`."""
    head, _, field = name.partition(".")
    return f"{head}.{c_member(field)}"
