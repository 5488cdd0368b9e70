"""The documentation of classes: what a class says of itself, then every argument that it takes.

A generated class is documented where it stands, as far as it differs from others: its docstring says what it is, that
of its constructor has the arguments of its rule. What all rules take is documented once, in the tables that they share;
`help()` and `__doc__` have the whole.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any, ClassVar, Protocol

from optgen.runtime.rule import Hyperparameter, Rule


class Documented(Protocol):
    """A class with a rule."""

    rule: ClassVar[Rule]
    bits: ClassVar[int | None]


WIDTH = 112
GIVEN = "For parameters' next step, by `give`."
INPUT = "Set for one step, and not there otherwise."
RAISES = """\
Raises:
    TypeError: for values and parameters of the wrong type.
    ValueError: for values out of range and combinations that the rule refuses."""


class Documentation:
    """The `__doc__` of a class, put together when it is asked for.

    Args:
        text: The class's docstring. Where that is a line, what its base says below its first one holds for it too.
    """

    def __init__(self, cls: type[Documented], text: str) -> None:
        self.cls = cls
        self.title, _, about = inspect.cleandoc(text).partition("\n\n")
        base = cls.__base__.__dict__.get("__doc__") if cls.__base__ is not None else None
        self.about: str = about or (base.about if isinstance(base, Documentation) else "")

    def __get__(self, instance: object, owner: type | None = None) -> str:
        """The text."""
        own = inspect.cleandoc(self.cls.__init__.__doc__ or "").partition("Args:\n")[2]
        arguments = "\n".join(["Args:", *filter(None, [own]), *self._shared_arguments()])
        inputs = [_filled(f"{name}: {INPUT} {doc}") for name, doc in self.cls.rule.inputs.items()]
        inputs += [_filled(f"{name}: {GIVEN} {state.given}") for name, state in self.cls.rule.given_states.items()]
        attributes = "\n".join(["Attributes:", *inputs]) if inputs else ""
        parts = (self.title, self.about, self._source(), arguments, attributes, RAISES)
        return "\n\n".join(part for part in parts if part)

    def _source(self) -> str:
        """Source of the rule, as its module gives it below its title."""
        module = sys.modules.get(self.cls.__module__)
        return inspect.cleandoc(getattr(module, "__doc__", None) or "").partition("\n\n")[2]

    def _shared_arguments(self) -> list[str]:
        """The arguments that other rules have too, in the order of the signature."""
        lines = []
        for name, parameter in inspect.signature(self.cls.__init__).parameters.items():
            text = self._doc(name)
            if text is not None:
                default = "" if parameter.default is parameter.empty else f" Default: {_shown(parameter.default)}."
                lines.append(_filled(f"{name}: {text}{default}"))
        return lines

    def _doc(self, name: str) -> str | None:
        """Description of an argument, with its range; None if it is of the rule alone, and described there."""
        rule, bits = self.cls.rule, self.cls.bits
        setting = rule.documented.get(name)
        if setting is None or (name == "optim_bits" and bits is not None):
            text = rule.arguments.get(name)
            return None if text is None else text.format(bits=bits)
        return f"{setting.doc} In {setting.range}." if isinstance(setting, Hyperparameter) else setting.doc


def document(cls: type[Documented]) -> None:
    """Give a class of a generated module its documentation; those that people write keep their own."""
    text, rule = cls.__dict__.get("__doc__"), getattr(cls, "rule", None)
    if text is not None and rule is not None and cls.__module__ == rule.module:
        cls.__doc__ = Documentation(cls, text)  # type: ignore[assignment]


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)


def _shown(value: Any) -> str:
    """A default as it stands in the signature."""
    return f'"{value}"' if isinstance(value, str) else repr(value)
