"""Checks of a rule, and of the shared declarations, that need no reading of equations."""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable, Sequence

from optgen.codecs import CODECS, COMPENSATION
from optgen.diagnostics import Reporter, suggest
from optgen.spec.messages import check_message
from optgen.spec.model import Hyperparameter, Input, Option, RefusalEntry, Shared, Spec, State
from optgen.spec.names import ATTRIBUTES, OF_STATES, RESERVED, STORAGE, TARGET
from optgen.spec.nodes import Document, Key
from optgen.spec.ranges import Range, parse_range

Setting = Hyperparameter | Option
MAX_STATES = 32


def check_shared(shared: Shared, document: Document, reporter: Reporter) -> None:
    """Checks `shared.yaml`."""
    checker = _Checker(document, reporter)
    checker.declarations(shared.hyperparameters, shared.options, shared.storage, shared.states)
    checker.inputs(shared.inputs)
    for name in (name for name, given in shared.inputs.items() if given.shape is not None):
        message = f"`{name}` is an input of parameters, which a rule or a stage declares for itself"
        checker.value("shape", message, ("inputs", name, "shape"), "declare it there")
    parts = {part for hyper in shared.hyperparameters.values() for part in hyper.names}
    names = {*shared.hyperparameters, *shared.options, *shared.storage, *parts, TARGET}
    for index, refused in enumerate(shared.refusals):
        checker.refusal(refused, ("refusals", index), names, {"construct"})
    for section, settings in (("hyperparameters", shared.hyperparameters), ("options", shared.options)):
        for name, setting in settings.items():
            checker.needs(setting, shared, (section, name, "needs"))


def check_rule(spec: Spec, shared: Shared, document: Document, reporter: Reporter) -> None:
    """Checks a rule together with what all rules share."""
    checker = _Checker(document, reporter)
    if keyword.iskeyword(spec.name):
        checker.error("reserved-name", f"`{spec.name}` is a keyword of Python", ("name",), "use another name")
    checker.declarations(spec.hyperparameters, spec.options, {}, spec.states)
    checker.inputs(spec.inputs)
    checker.overrides(shared)
    names = {*settings_of(spec, shared), *parts_of(spec, shared), TARGET}
    kept = {name for name, state in {**shared.states, **spec.states}.items() if state.shape in ("group", "global")}
    places = {"construct", "step", *spec.methods}
    for index, refused in enumerate(spec.refusals):
        known = names if refused.on == "construct" else names | kept
        checker.refusal(refused, ("refusals", index), known, places)
    for name in spec.methods:
        if name in ATTRIBUTES or keyword.iskeyword(name):
            what = "a keyword of Python" if keyword.iskeyword(name) else "an attribute of every optimizer"
            checker.error("reserved-name", f"`{name}` is {what}", ("methods", name), "rename it")
        elif name in ("construct", "apply"):
            message = f"`{name}` is reserved: refusals use it in `on`"
            checker.error("reserved-name", message, ("methods", name), "rename it")
        elif name in spec.inputs or name in shared.inputs:
            message = f"`{name}` is set on the optimizer as an input"
            checker.error("reserved-name", message, ("methods", name), "rename the method or the input")


def settings_of(spec: Spec, shared: Shared) -> dict[str, Setting]:
    """All that a constructor of the rule may take, by name: its own first, which override what is shared.

    What needs something that the rule has not, as an `update` stage, is left out.
    """
    common: dict[str, Setting] = {**shared.hyperparameters, **shared.options, **shared.storage}
    settings: dict[str, Setting] = {**spec.hyperparameters, **spec.options}
    for name, setting in common.items():
        if is_offered(setting, spec, shared):
            settings.setdefault(name, setting)
    return settings


def is_offered(setting: Setting, spec: Spec, shared: Shared) -> bool:
    """Check whether a rule takes a shared setting, which may need an `update` stage, and certain choices of options."""
    if not isinstance(setting.needs, dict):
        return spec.meets(setting.needs)
    if not spec.meets("update"):
        return False
    options = {**shared.options, **spec.options}
    return all(name in options and choice in (options[name].choices or ()) for name, choice in setting.needs.items())


def parts_of(spec: Spec, shared: Shared) -> dict[str, str]:
    """The parts of tuple hyperparameters, each with the tuple's name: `{"beta1": "betas", "beta2": "betas"}`."""
    tuples = {**shared.hyperparameters, **spec.hyperparameters}
    return {part: name for name, hyper in tuples.items() for part in hyper.names}


def check_refusal(
    refused: RefusalEntry, document: Document, path: tuple[Key, ...], names: set[str], reporter: Reporter
) -> None:
    """Checks a combination that a class refuses; `names` are those that its message may show."""
    _Checker(document, reporter).refusal(refused, path, names, {"construct"})


def value_error(setting: Setting, value: object) -> str:
    """Describe the fault of a value for a setting; "" if the value is valid."""
    if isinstance(setting, Option):
        if setting.choices is None:
            return "" if isinstance(value, bool) else "it must be true or false"
        known = any(value == choice and type(value) is type(choice) for choice in setting.choices)
        return (
            "" if known else f"it must be one of {', '.join(f'`{as_written(choice)}`' for choice in setting.choices)}"
        )
    if value is None:
        return "" if setting.optional else "it must be a number"
    given = value if isinstance(value, list) else [value]
    size = len(setting.names)
    if size != (len(given) if isinstance(value, list) else 0):
        return f"it must have {size} parts: {', '.join(setting.names)}" if size else "it must be one number"
    values = [part for part in given if isinstance(part, int | float) and not isinstance(part, bool)]
    if len(values) < len(given):
        return "it must be a number"
    if setting.integer and any(not isinstance(part, int) for part in values):
        return "it must be a whole number"
    allowed = range_of(setting)
    outside = [part for part in values if allowed is not None and not allowed.contains(part)]
    return f"{outside[0]} is outside {allowed}" if outside else ""


def as_written(value: object) -> str:
    """A value as a file says it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def range_of(hyper: Hyperparameter) -> Range | None:
    """The range of a hyperparameter, or None if it cannot be read."""
    try:
        return parse_range(hyper.range)
    except ValueError:
        return None


class _Checker:
    """Checks of one document."""

    def __init__(self, document: Document, reporter: Reporter) -> None:
        self.document = document
        self.reporter = reporter
        self.taken: dict[str, tuple[Key, ...]] = {}

    def error(self, rule: str, message: str, path: tuple[Key, ...], help_text: str = "") -> None:
        """An error at a key."""
        self.reporter.error(rule, message, self.document.locate_key(*path), help_text)

    def value(self, rule: str, message: str, path: tuple[Key, ...], help_text: str = "") -> None:
        """An error at a value."""
        self.reporter.error(rule, message, self.document.locate(*path), help_text)

    def declarations(
        self,
        hyperparameters: dict[str, Hyperparameter],
        options: dict[str, Option],
        storage: dict[str, Option | Hyperparameter],
        states: dict[str, State],
    ) -> None:
        """Checks every declaration on its own, and that no two share a name."""
        groups: Sequence[tuple[str, dict[str, Hyperparameter] | dict[str, Option] | dict[str, Option | Hyperparameter]]]
        groups = (("hyperparameters", hyperparameters), ("options", options), ("storage", storage))
        for section, settings in groups:
            for name, setting in settings.items():
                path = (section, name)
                self.declare(name, path, path)
                if isinstance(setting, Option):
                    self.option(name, setting, path)
                else:
                    self.hyperparameter(name, setting, path)
        for name, state in states.items():
            self.declare(name, ("states", name), ("states", name), OF_STATES)
            self.state(name, state, ("states", name))
            if state.stored_as is not None:
                self.stored_as(name, state, options)
            if name == COMPENSATION:
                message = f"`{name}` is the key of what is kept beside a parameter"
                self.error("reserved-name", message, ("states", name), "use another name")
        scales = {f"{name}_absmax".lower(): name for name in states}  # kernels' macros are in capitals
        for name, place in self.taken.items():
            if name.lower() in scales:
                message = f"`{name}` is the key of the scales of `{scales[name.lower()]}`"
                self.error("reserved-name", message, place, "use another name")
        for name in list(states)[MAX_STATES : MAX_STATES + 1]:
            message = f"a rule has at most {MAX_STATES} states, and this one {len(states)}"
            self.error("too-many-states", message, ("states", name), "remove states that are not needed")

    def declare(
        self, name: str, path: tuple[Key, ...], owner: tuple[Key, ...], reserved: frozenset[str] = RESERVED
    ) -> None:
        """Takes a name for what is declared at `path`."""
        if keyword.iskeyword(name):
            self.error("reserved-name", f"`{name}` is a keyword of Python", path, f"use another name, as `{name}_`")
        elif name in STORAGE and path[0] != "storage":
            message = f"`{name}` is a storage setting of all rules"
            self.error("reserved-name", message, path, "use another name")
        elif name in reserved:
            self.error("reserved-name", f"`{name}` is a reserved name", path, "use another name")
        elif name in self.taken:
            first = self.document.locate_key(*self.taken[name])
            self.error("duplicate-name", f"the name `{name}` is taken", path, f"by line {first.line}; use another")
        else:
            self.taken[name] = owner

    def inputs(self, inputs: dict[str, Input]) -> None:
        """Checks that every input can be an attribute of the optimizer."""
        for name in inputs:
            path = ("inputs", name)
            if name in ATTRIBUTES and name not in RESERVED:
                message = f"`{name}` is an attribute of every optimizer"
                self.error("reserved-name", message, path, "an input is set as an attribute; use another name")
            else:
                self.declare(name, path, path)
            if inputs[name].shape is None and "default" in inputs[name].model_fields_set:
                message = f"`{name}` is one number for all, which is not there where it is not set"
                self.value("default", message, (*path, "default"), "remove `default`, or give the input a `shape`")

    def option(self, name: str, option: Option, path: tuple[Key, ...]) -> None:
        if option.choices is None:
            if not isinstance(option.default, bool):
                help_text = "write true or false, or list the `choices`"
                self.value("default", f"`{name}` has no `choices`, so it is a flag", (*path, "default"), help_text)
            return
        if not option.choices:
            self.value("choices", f"`{name}` has no choice", (*path, "choices"), "list at least one")
            return
        for index, choice in enumerate(option.choices):
            where = (*path, "choices", index)
            if str(choice) in map(str, option.choices[:index]):
                self.value("choices", f"the choice `{as_written(choice)}` is listed twice", where, "remove one")
            elif path[0] != "storage" and isinstance(choice, bool):
                message = f"`{as_written(choice)}` is a choice that equations cannot compare `{name}` with"
                self.value("choices", message, where, "write texts or numbers")
        wrong = value_error(option, option.default)
        if wrong:
            close = suggest(str(option.default), [str(choice) for choice in option.choices])
            message = f"`{option.default}` is not a choice of `{name}`"
            self.value("default", message, (*path, "default"), close or wrong)

    def hyperparameter(self, name: str, hyper: Hyperparameter, path: tuple[Key, ...]) -> None:
        for index, part in enumerate(hyper.names):
            self.declare(part, (*path, "names", index), path)
        try:
            allowed = parse_range(hyper.range)
        except ValueError as error:
            self.value("range", str(error), (*path, "range"), 'write two numbers as "[0, 1)", "(0, inf)" or "[1, 8]"')
            return
        default, where = hyper.default, (*path, "default")
        if default is None:
            return
        values = default if isinstance(default, list) else [default]
        if len(hyper.names) != (len(values) if isinstance(default, list) else 0):
            self.tuple_size(name, hyper, path)
            return
        for index, value in enumerate(values):
            place = (*where, index) if isinstance(default, list) else where
            if not allowed.contains(value):
                self.value("default", f"the default {value} of `{name}` is outside its range {allowed}", place)
            elif hyper.integer and not isinstance(value, int):
                help_text = f"write {int(value)}" if math.isfinite(value) and value == int(value) else ""
                self.value("default", f"`{name}` is a whole number, its default {value} is not", place, help_text)

    def tuple_size(self, name: str, hyper: Hyperparameter, path: tuple[Key, ...]) -> None:
        names = f"{len(hyper.names)} name{'s' if len(hyper.names) != 1 else ''}"
        if not isinstance(hyper.default, list):
            help_text = f"write a list of {len(hyper.names)} numbers, or remove `names`"
            self.value("default", f"`{name}` has {names} and one number as default", (*path, "default"), help_text)
            return
        numbers = f"{len(hyper.default)} number{'s' if len(hyper.default) != 1 else ''}"
        if not hyper.names:
            message = f"`{name}` has {numbers} as default and no `names`"
            self.value("default", message, (*path, "default"), "add `names: [...]`, the names that equations use")
            return
        message = f"`{name}` has {names} and {numbers} as default"
        self.value("default", message, (*path, "names"), "give as many of each")

    def state(self, name: str, state: State, path: tuple[Key, ...]) -> None:
        if state.window is not None and state.shape != "tensor":
            message = f"`{name}` has a window, so its shape is tensor"
            self.value("window", message, (*path, "window"), "write `shape: tensor`: a window keeps one number a step")
        if state.window is not None and "init" in state.model_fields_set:
            message = f"`{name}` has a window, which begins empty"
            self.value("init", message, (*path, "init"), "remove `init`: the first value that is pushed fills it")
        if isinstance(state.init, float) and not math.isfinite(state.init):
            self.value("init", f"`{name}` has an initial value that is not finite", (*path, "init"))
        for index, codec in enumerate(state.codecs or []):
            if codec not in CODECS:
                help_text = suggest(codec, CODECS) or f"one of {', '.join(CODECS)}"
                self.value("codec", f"`{codec}` is not a codec", (*path, "codecs", index), help_text)
            elif not state.has_codecs and codec != "fp32":
                message = f"`{name}` is kept in fp32, since its shape is {state.shape}"
                self.value("codec", message, (*path, "codecs", index), "remove `codecs`")
        if state.codecs is not None and "fp32" not in state.codecs and state.has_codecs:
            message = f"`{name}` cannot be kept in fp32"
            self.value("codec", message, (*path, "codecs"), "add fp32: small parameters keep 32-bit states")

    def stored_as(self, name: str, state: State, options: dict[str, Option]) -> None:
        """The option that says how a state is stored: its choices are dtypes that the state takes."""
        path = ("states", name)
        if not state.has_codecs:
            message = f"`{name}` is kept in fp32, since its shape is {state.shape}"
            self.value("codec", message, (*path, "stored_as"), "remove `stored_as`")
            return
        option = options.get(state.stored_as or "")
        codecs = [CODECS[codec] for codec in state.codecs or CODECS if codec in CODECS]
        taken = [codec.storage for codec in codecs if not codec.scaled]
        if option is None or not option.choices or not set(option.choices) <= set(taken):
            message = f"`{state.stored_as}` does not say how `{name}` can be stored"
            help_text = f"name an option whose choices are among {', '.join(taken)}"
            self.value("codec", message, (*path, "stored_as"), help_text)

    def overrides(self, shared: Shared) -> None:
        """Check that a rule which redeclares a shared hyperparameter or option declares the same kind of thing."""
        common: dict[str, str] = {}
        for section in ("hyperparameters", "options", "inputs", "storage", "states"):
            for name in getattr(shared, section):
                common[name] = section
        for name, hyper in shared.hyperparameters.items():
            common.update(dict.fromkeys(hyper.names, f"parts of `{name}`"))
        for name, path in self.taken.items():
            group = common.get(name)
            if group is None or (group == path[0] and group in ("hyperparameters", "options")):
                continue
            message = f"the name `{name}` is taken by the {group} that all rules share"
            self.error("duplicate-name", message, path, "use another name")

    def needs(self, setting: Setting, shared: Shared, path: tuple[Key, ...]) -> None:
        """Check the needs of a shared setting: options that all rules share, and choices that these have."""
        if not isinstance(setting.needs, dict):
            return
        for name, choice in setting.needs.items():
            option = shared.options.get(name)
            if option is None or option.choices is None:
                known = [key for key, other in shared.options.items() if other.choices is not None]
                message = f"`{name}` is not a shared option with `choices`"
                self.value("undefined-name", message, (*path, name), suggest(name, known) or f"one of {known}")
            elif value_error(option, choice):
                message = f"`{choice}` is not a choice of `{name}`"
                self.value("unknown-choice", message, (*path, name), value_error(option, choice))

    def refusal(self, refused: RefusalEntry, path: tuple[Key, ...], names: Iterable[str], places: set[str]) -> None:
        """A combination that is refused: where it is looked at, and what its message shows."""
        if refused.on not in places:
            message, help_text = f"there is no block `{refused.on}`", suggest(refused.on, places)
            if places == {"construct"}:
                message, help_text = "refusals of a class are checked when an optimizer is made", "leave `on` out"
            elif refused.on == "apply":
                message, help_text = "`apply` is a part of `step`", "write `on: step`"
            help_text = help_text or f"one of {', '.join(sorted(places))}"
            self.value("undefined-name", message, (*path, "on"), help_text)
        check_message(self.document.text(*path, "message"), names, self.reporter)
