"""Arguments of a generated class, given by keyword or in a string: names that there are, values of the declared type.

Beside the class's own arguments these are known: `beta1`, `beta2` … for the parts of `betas`, and the names that
another library has for an argument.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optgen.integrations.names import Alias
from optgen.runtime.rule import Hyperparameter, Option

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer

TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
TARGET = Option("target", ("cuda", "cpu", "torch"))
NOT_TAKEN = ("params", "args")  # `args` stands for others of the arguments, which can be given themselves


@dataclass(frozen=True)
class Arguments:
    """The arguments that a name stands for.

    Attributes:
        label: Beginning of messages.
        cls: The class.
        locked: Arguments that are fixed, beside those that the class fixes.
        aliases: Arguments under other names.
    """

    label: str
    cls: type[Optimizer]
    locked: Mapping[str, Any]
    aliases: Mapping[str, Alias]

    @property
    def defaults(self) -> dict[str, Any]:
        """The class's arguments with their defaults."""
        parameters = inspect.signature(self.cls).parameters
        return {name: value.default for name, value in parameters.items() if name not in NOT_TAKEN}

    @property
    def parts(self) -> dict[str, str]:
        """The hyperparameter of every part, as beta1: betas; an argument of that name goes before."""
        hypers, own = self.cls.rule.hypers.values(), self.defaults
        return {part: hyper.name for hyper in hypers for part in hyper.parts if part not in own}

    @property
    def fixed(self) -> dict[str, Any]:
        """Arguments that the class fixes, with the bits of its states."""
        bits = {} if self.cls.bits is None else {"optim_bits": self.cls.bits}
        return {**self.cls.fixed, **bits}

    def parse(self, text: str) -> dict[str, Any]:
        """The arguments in a string such as "momentum=0.9,nesterov=true", unfolded.

        Raises:
            TypeError: if a value is not of the argument's type, or a name is not an argument.
            ValueError: if a part is not `name=value`, or a name comes twice.
        """
        result: dict[str, Any] = {}
        for item in _split(text):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not key or not equals or not value:
                raise ValueError(f"{self.label}: optim_args has {item.strip()!r}, which is not name=value: {text!r}")
            if key in result:
                raise ValueError(f"{self.label}: optim_args has {key} twice: {text!r}")
            result[key] = self._value(key, value)
        return result

    def folded(self, given: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
        """Merge arguments for a call of the class: `given` over `base`, both with parts and other names folded.

        Args:
            given: Arguments of the user.
            base: Arguments that they stand before.

        Raises:
            TypeError: if a name is not an argument, or is another name of one that is given too.
            ValueError: for another value of an argument that is fixed.
        """
        own, parts = self.defaults, self.parts
        for key in given:
            self._check_known(key)
        result = {**{key: value for key, value in base.items() if key not in parts}, **self.locked}
        for key, value in given.items():
            target = self._target(key)
            if target != key and target in given:
                raise TypeError(f"{self.label}: {key} and {target} mean the same; give one of them")
            if key in self.aliases:
                value = self._aliased(key, value)
            if key not in parts and not self._is_fixed(target, value):
                result[target] = value
        for whole in dict.fromkeys(parts.values()):
            names = self.cls.rule.hypers[whole].parts
            values = dict(zip(names, own[whole], strict=True)) | _only(base, names) | _only(given, names)
            if whole not in given and any(name in base or name in given for name in names):
                result[whole] = tuple(values[name] for name in names)
        return result

    def _target(self, key: str) -> str:
        """The class's argument that a name is for."""
        return self.aliases[key].argument if key in self.aliases else self.parts.get(key, key)

    def _is_fixed(self, key: str, value: Any) -> bool:
        """Check whether an argument need not be passed, since it is fixed to this very value.

        Raises:
            ValueError: where it is fixed to another.
        """
        fixed = {**self.fixed, **self.locked}
        if key not in fixed:
            return False
        if type(value) is not type(fixed[key]) or value != fixed[key]:
            raise ValueError(f"{self.label} has {key}={fixed[key]!r}, and it cannot be {value!r}")
        return True

    def _check_known(self, key: str) -> None:
        known = sorted({*self.defaults, *self.parts, *self.aliases})
        if key in known or key in self.fixed:
            return
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise TypeError(f"{self.label}: {self.cls.__name__} takes no {key!r}; {hint}it takes {', '.join(known)}")

    def _aliased(self, key: str, value: Any) -> str:
        if not isinstance(value, bool):
            raise TypeError(f"{self.label}: {key} must be True or False, not {value!r}")
        return self.aliases[key].values[value]

    def _value(self, key: str, text: str) -> Any:
        """A string as what the argument is declared to be."""
        self._check_known(key)
        rule = self.cls.rule
        name = self.parts.get(key, key)
        option = Option(key) if key in self.aliases else TARGET if key == "target" else None
        declared = option or rule.hypers.get(name) or rule.options.get(name) or rule.storage.get(name)
        if isinstance(declared, Option):
            return self._choice(key, declared, text)
        assert isinstance(declared, Hyperparameter)
        if text in ("None", "null") and declared.optional:
            return None
        try:
            if declared.parts and key == declared.name:
                return tuple(float(part) for part in ast.literal_eval(text))
            return _whole(text) if declared.integer else float(text)
        except (ValueError, TypeError, SyntaxError):
            wanted = "a whole number" if declared.integer else "a number"
            if declared.parts and key == declared.name:
                wanted = f"{len(declared.parts)} numbers, as {self.defaults[key]},"
            raise TypeError(f"{self.label}: {key} must be {wanted} in {declared}, not {text!r}") from None

    def _choice(self, key: str, option: Option, text: str) -> Any:
        if option.choices is None:
            found = TRUTHS.get(text.lower())
            if found is None:
                raise TypeError(f"{self.label}: {key} must be true or false, not {text!r}")
            return found
        if any(isinstance(choice, bool) for choice in option.choices) and text.lower() in TRUTHS:
            return TRUTHS[text.lower()]
        for choice in option.choices:
            if str(choice) == text:
                return choice
        choices = ", ".join(str(choice) for choice in option.choices)
        raise TypeError(f"{self.label}: {key} must be one of {choices}, not {text!r}")


def _only(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def _split(text: str) -> Iterator[str]:
    """The parts between commas, those inside brackets left alone; empty ones are left out."""
    depth, start = 0, 0
    for index, character in enumerate(f"{text},"):
        depth += (character in "([") - (character in ")]")
        if character == "," and (depth <= 0 or index == len(text)):
            if text[start:index].strip():
                yield text[start:index]
            start = index + 1
