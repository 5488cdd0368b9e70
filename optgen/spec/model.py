"""Pydantic models of spec files: the contents that `specs/*.yaml` may have.

Everything here is data as written; meaning is given by the later stages. Unknown keys are errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from optgen.codecs import CODECS
from optgen.prose import Prose

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
Text = Annotated[str, StringConstraints(max_length=65536)]
Number = int | float
Shape = Literal[
    "param", "row", "col", "matrix", "channel", "last", "last2", "last3", "last4", "tensor", "group", "global"
]  # fmt: skip
InputShape = Literal["row", "col", "matrix", "channel", "last", "last2", "last3", "last4", "tensor"]
Dimensions = Annotated[list[Name | Literal[1]], Field(min_length=2, max_length=2)]
"""The two dimensions of a matrix: rows, cols, long, short, kept, reduced, 1, or an integer hyperparameter."""
TURNED = frozenset(("kept", "reduced"))
"""Dimensions of which a setting says which is which."""
Needs = Literal["update", "codec", "quantized", "matrix", "iteration", "turned"] | dict[Name, int | str]
Bits = int | Literal["any"]
Paged = bool | Literal["any"]
Raised = Literal["ValueError", "TypeError", "NotImplementedError", "RuntimeError"]


def _left_out(description: str) -> Any:
    """Prose that an author need not write.

    Args:
        description: Its meaning.
    """
    return Field(default="", validate_default=True, description=description)


def _or_short(long: JsonSchemaValue, types: Sequence[str], *others: JsonSchemaValue) -> JsonSchemaValue:
    """The schema of what has a short form too: a value of one of these types."""
    short = [*({"type": name} for name in types), *others]
    return {"description": long["description"], "anyOf": [*short, long]}


class SpecModel(BaseModel):
    """Common settings: no unknown keys, no coercion, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NumberWord(SpecModel):
    """A hyperparameter in the vocabulary: all but its default."""

    range: Text = Field(default="(-inf, inf)", description="The allowed values, as `[0, 1)` or `(0, inf)`.")
    names: list[Name] = Field(default=[], description="The names of a tuple's parts; equations use these.")
    label: Prose | None = Field(default=None, description="Its name in messages.")
    integer: bool = Field(default=False, description="Only whole numbers.")
    scope: Literal["group", "global"] = Field(
        default="group", description="`global`: one number for the optimizer; param groups may only repeat it."
    )
    doc: Prose = _left_out("A description.")


class Hyperparameter(NumberWord):
    """A number the user sets. Without `default` it is required; `default: null` makes it optional.

    A default alone, as `lr: 1e-3`, is short for `lr: {default: 1e-3}`.
    """

    default: Number | list[Number] | None = Field(
        default=None,
        description="A number, one for each of `names`, or `null` (optional). Without it the user must give one.",
    )
    needs: Needs | None = Field(
        default=None,
        description="Offered only to rules with an `update` stage, with a state that can be stored in several "
        "ways (`codec`), that can be `quantized`, or whose options have a choice, as "
        "`{trust_ratio: lamb}` (for `shared.yaml`).",
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _or_short(handler(schema), ["number", "null"], {"type": "array", "items": {"type": "number"}})

    @property
    def required(self) -> bool:
        """True if users must set it: the spec gives no default."""
        return "default" not in self.model_fields_set

    @property
    def optional(self) -> bool:
        """True if it can be None, which is then its default."""
        return not self.required and self.default is None


class OptionWord(SpecModel):
    """An option in the vocabulary: all but its default."""

    choices: list[bool | int | str | None] | None = Field(
        default=None,
        description="The values of an enumeration. `null` is none of those that equations ask for; `true` and "
        "`false` only in `storage`.",
    )
    doc: Prose = _left_out("A description.")


class Option(OptionWord):
    """A flag (no `choices`) or an enumeration, fixed when a kernel is compiled.

    null is the choice of none that equations ask for; of `storage` true and false can be choices too. A default alone,
    as `amsgrad: false`, is short for `amsgrad: {default: false}`.
    """

    default: bool | int | str | None = Field(description="`true` or `false`, or one of `choices`.")
    needs: Needs | None = Field(
        default=None,
        description="Offered only to rules with an `update` stage, with a state that can be stored in several "
        "ways (`codec`), that can be `quantized`, or whose options have a choice (for "
        "`shared.yaml`).",
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _or_short(handler(schema), ["boolean", "integer", "string"])


class Input(SpecModel):
    """A number that is set on the optimizer for a step, as `opt.grad_scale = scale`, and is no argument of a class.

    It is one number for all param groups. Steps for which it is not set run kernels without what it decides. A text
    alone is short for its `doc`. With `shape` there are numbers of each parameter, as `opt.give(name={param: numbers})`
    takes them.
    """

    shape: InputShape | None = Field(
        default=None,
        description="Numbers of each parameter, one for each row, matrix, ..., in place of one number for all.",
    )
    default: Number = Field(default=0, description="With `shape`: the numbers of a parameter that none are given for.")
    doc: Prose = _left_out("A description, with the code that sets it.")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _or_short(handler(schema), ["string"])


class State(SpecModel):
    """Value that is kept between steps.

    `init` is a number or an expression over `param`, `grad`, the hyperparameters and the parameter's facts. `window`
    makes a tensor state a ring of that many past values, `count` a vector of as many states, or as many as a
    hyperparameter has numbers. A text alone is short for its `doc`, nothing for a word of the
    vocabulary as it stands there.
    """

    shape: Shape | Dimensions = Field(
        default="param",
        description="The number of its values: one for each element, row, ..., or the two dimensions of a matrix.",
    )
    range: Literal["signed", "unsigned"] = Field(
        default="signed", description="`unsigned` if it is never negative: its 8-bit codes then have no sign."
    )
    init: Number | Text = Field(
        default=0,
        description="A number, or an expression over `param`, `grad`, the hyperparameters and facts of the parameter.",
    )
    when: Text | None = Field(default=None, description="The condition under which it exists.")
    window: Annotated[int, Field(gt=0, le=100_000)] | None = Field(
        default=None, description="Keeps this many past values, one a step (`shape: tensor`)."
    )
    count: Annotated[int, Field(gt=0, le=32)] | Name | None = Field(
        default=None,
        description="A vector of so many states, or of as many as a tuple of settings has numbers.",
    )
    codecs: list[Text] | None = Field(
        default=None,
        description="Its possible codecs: `fp32`, `bf16`, `fp16`, `int8`, `int4`, `normal4`, `fp8`, `companded8`. The "
        "default is the first that is not quantized; `optim_bits` takes the first of so many bits. "
        "All of them, in this order, for `param` and matrices, else `fp32`.",
    )
    stored_as: Name | None = Field(
        default=None, description="The option whose choices are its dtypes, in place of `optim_bits` and `codec`."
    )
    doc: Prose = _left_out("A description.")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _or_short(handler(schema), ["string", "null"])

    @property
    def is_matrix(self) -> bool:
        """True if it is a matrix of a shape of its own."""
        return isinstance(self.shape, list)

    @property
    def has_codecs(self) -> bool:
        """True if it can be kept in few bits."""
        return self.is_matrix or self.shape == "param"

    @property
    def choice(self) -> frozenset[str]:
        """The codecs among which a user's settings choose."""
        if not self.has_codecs or self.stored_as is not None:
            return frozenset({"fp32"})
        return frozenset(self.codecs or CODECS)


class GivenState(State):
    """An input of parameters: kept with a parameter until a step takes it, after which it is `init` again."""


class RefusalEntry(SpecModel):
    """A combination that is refused, with the exception to raise.

    `on` names when it is looked at: `construct` (the settings, also of every group) or a block's name (the settings
    and the group and global states, before that block runs).
    """

    when: Text = Field(description="The condition over settings, `target` among them, that is refused.")
    raises: Raised = Field(default="ValueError", alias="raise", description="The exception.")
    message: Prose = Field(
        description="The message: `{name}` is the class, `{lr}` a setting, `{mode!r}` one with its quotes."
    )
    on: Name = Field(default="construct", description="When it is checked: `construct`, or before `step` or a method.")


class Method(SpecModel):
    """A further block that becomes a method of the optimizer.

    With `grad` it reads gradients, which pass through the shared `grad` stage before it, as in a step.
    """

    block: Text = Field(description="The equations.")
    grad: bool = Field(default=False, description="`true` if it reads gradients.")
    doc: Prose = _left_out("The method's documentation.")


class _ClassWords(SpecModel):
    """Fields that a class and a row of classes have alike."""

    rule: Name | None = Field(default=None, description="The rule; in a rule's own file always that rule.")
    signature: Name | list[Name] | None = Field(
        default=None, description="The arguments taken by position, in order: names, or a name of `signatures`."
    )
    block_wise: bool | None = Field(default=None, description="The default of `block_wise`.")
    target: Literal["torch"] | None = Field(default=None, description="Fixes the target.")
    set: dict[Name, bool | int | str] = Field(default={}, description="Options that the class fixes.")
    defaults: dict[Name, bool | Number | str | list[Number] | None] = Field(
        default={}, description="Defaults that differ from the rule's."
    )
    required: list[Name] = Field(default=[], description="Hyperparameters that the user must give.")
    refusals: list[Name | RefusalEntry] = Field(
        default=[], description="Further refusals of the class, or names of `refusals` in `classes.yaml`."
    )
    doc: Prose = _left_out("A description of the class.")


class ClassEntry(_ClassWords):
    """A public class: a rule with its signature, its defaults and what it fixes."""

    bits: int | None = Field(default=None, description="The bits of the states, where the class fixes them.")
    paged: bool | None = Field(default=None, description="Whether states are pageable, where the class fixes it.")


class ClassRow(_ClassWords):
    """A row of the table: a class, or with lists of bits and of paged a class for each pair of them.

    `bits: [any, 8]` and `paged: [any, true]` of a row `Lion` are Lion, Lion8bit, PagedLion and PagedLion8bit.
    """

    bits: Bits | list[Bits] | None = Field(
        default=None,
        description="Fixes the bits of the states, one of the choices of `optim_bits`; `any` leaves them to the user.",
    )
    paged: Paged | list[Paged] | None = Field(
        default=None, description="Fixes whether states are pageable; `any` leaves it to the user."
    )
    keeps: list[Literal["optim_bits"]] = Field(
        default=[], description="Arguments that remain although the class fixes their value."
    )


class Spec(SpecModel):
    """One rule: a file of `specs/`.

    With `ndim`, it takes parameters of this many dimensions alone.
    """

    name: Name = Field(description="The rule's name, which is also the name of its file.")
    title: Prose = _left_out("The first line of the documentation of its classes.")
    reference: Prose = _left_out("The source of the rule: a paper, or code.")
    doc: Prose = _left_out("A description of the rule.")
    hyperparameters: dict[Name, Hyperparameter] = Field(default={}, description="Numbers that the user sets.")
    options: dict[Name, Option] = Field(default={}, description="Flags and enumerations that the user sets.")
    ndim: int | None = Field(
        default=None, ge=0, description="The dimensions that every parameter has; without it they may have any number."
    )
    inputs: dict[Name, Input] = Field(default={}, description="Numbers that are set on the optimizer for a step.")
    states: dict[Name, State] = Field(default={}, description="Values that are kept between steps.")
    refusals: list[RefusalEntry] = Field(default=[], description="Combinations of settings that are refused.")
    functions: Text = Field(default="", description="Named pieces of the equations, as `def`s.")
    blocks: Blocks = Field(description="The equations of a step.")
    methods: dict[Name, Method] = Field(default={}, description="Further blocks, each a method of the optimizer.")
    classes: dict[Name, ClassRow] = Field(
        default={}, description="The classes to make; without any there is one, named after the rule."
    )

    def meets(self, needs: Needs | None) -> bool:
        """Check that the rule has what a shared setting needs: an update stage, codecs, matrices alone, projections."""
        match needs:
            case "update":
                return self.blocks.apply is not None
            case "matrix":
                return self.ndim == 2
            case "iteration":  # a step on matrices of other shapes is in float32
                return self.ndim == 2 and not any(state.is_matrix for state in self.states.values())
            case "turned":
                return any(state.is_matrix and not TURNED.isdisjoint(state.shape) for state in self.states.values())
            case "codec":
                return any(state.choice > {"fp32"} for state in self.states.values())
            case "quantized":
                return any(CODECS[name].scaled for s in self.states.values() for name in s.choice if name in CODECS)
        return True


class Blocks(SpecModel):
    """The statements of a step: `step` names the direction `update`, `apply` changes the parameter with it.

    A rule that changes `param` in `step` itself has no `apply` and no update stage.
    """

    step: Text = Field(description="Updates the states and names the direction `update`, or changes `param` itself.")
    apply: Text | None = Field(default=None, description="Changes `param` by `update`.")


class SharedBlocks(SpecModel):
    """The stages around a rule's own."""

    grad: Text = Field(
        default="", description="Changes the gradient before the rule's `step` reads it, after the shared stage `grad`."
    )
    update: Text = Field(
        default="", description="Changes the update that the rule's `step` has named, before the shared stage `update`."
    )


class StageBlocks(SharedBlocks):
    """The blocks of a stage that is put on rules: those that all rules have, and one after the rule's `apply`."""

    apply: Text = Field(default="", description="Changes the parameter after the rule's last block.")


class StageSpec(SpecModel):
    """A stage that users put on rules: settings, states and equations around a rule's own."""

    stage: Name = Field(description="The stage's name, which is also the name of its file.")
    title: Prose = _left_out("Its name in the documentation of classes.")
    reference: Prose = _left_out("The source: a paper, or code.")
    doc: Prose = _left_out("A description.")
    hyperparameters: dict[Name, Hyperparameter] = Field(
        default={}, description="Numbers that the user sets; these and the next are written as those of a rule."
    )
    options: dict[Name, Option] = Field(default={}, description="Flags and enumerations that the user sets.")
    inputs: dict[Name, Input] = Field(default={}, description="Numbers that are set on the optimizer for a step.")
    states: dict[Name, State] = Field(default={}, description="Values that are kept between steps.")
    refusals: list[RefusalEntry] = Field(
        default=[], description="Combinations of settings that are refused, of those of the rule too."
    )
    functions: Text = Field(default="", description="Named pieces of the equations, as `def`s.")
    blocks: StageBlocks = Field(description="The equations.")


class Shared(SpecModel):
    """`shared.yaml`: what acts on every rule."""

    hyperparameters: dict[Name, Hyperparameter] = Field(
        default={}, description="Numbers that the user of any rule sets."
    )
    options: dict[Name, Option] = Field(
        default={}, description="Flags and enumerations that the user of any rule sets."
    )
    inputs: dict[Name, Input] = Field(default={}, description="Numbers that are set on the optimizer for a step.")
    storage: dict[Name, Option | Hyperparameter] = Field(
        default={}, description="Settings of how states and parameters are stored, which equations do not read."
    )
    states: dict[Name, State] = Field(default={}, description="Values that are kept between steps for every rule.")
    refusals: list[RefusalEntry] = Field(default=[], description="Combinations of settings that are refused.")
    blocks: SharedBlocks = Field(
        default=SharedBlocks(), description="The equations before a rule's `step` and before its `apply`."
    )


class Vocabulary(SpecModel):
    """`vocabulary.yaml`: what words mean in every rule that does not say otherwise."""

    hyperparameters: dict[Name, NumberWord] = Field(
        default={}, description="Numbers by name, as rules use them without more words than a default."
    )
    options: dict[Name, OptionWord] = Field(default={}, description="Flags and enumerations by name.")
    states: dict[Name, State] = Field(default={}, description="States by name.")


class SharedFunctions(SpecModel):
    """`functions.yaml`: named pieces of equations that every rule may call."""

    functions: Text = Field(description="Named pieces of the equations, as `def`s.")


class ClassTable(SpecModel):
    """`classes.yaml`: the public classes of all rules."""

    signatures: dict[Name, list[Name]] = Field(
        default={}, description="Lists of arguments by name, which rows may give as their `signature`."
    )
    refusals: dict[Name, RefusalEntry] = Field(default={}, description="Refusals by name, which rows may list.")
    classes: dict[Name, ClassRow] = Field(description="The classes, by name.")
