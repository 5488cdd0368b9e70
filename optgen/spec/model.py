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
Dimensions = Annotated[list[Name | Literal[1]], Field(min_length=2, max_length=2)]
"""The two dimensions of a matrix: rows, cols, long, short, 1, or an integer hyperparameter."""
Needs = Literal["update", "codec", "quantized", "matrix"] | dict[Name, int | str]
Bits = int | Literal["any"]
Paged = bool | Literal["any"]
Raised = Literal["ValueError", "TypeError", "NotImplementedError", "RuntimeError"]


def _left_out() -> Any:
    """The default of prose that an author need not write."""
    return Field(default="", validate_default=True)


def _or_short(long: JsonSchemaValue, types: Sequence[str], *others: JsonSchemaValue) -> JsonSchemaValue:
    """The schema of what has a short form too: a value of one of these types."""
    return {"anyOf": [*({"type": name} for name in types), *others, long]}


class SpecModel(BaseModel):
    """Common settings: no unknown keys, no coercion, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NumberWord(SpecModel):
    """A hyperparameter in the vocabulary: all but its default."""

    range: Text = "(-inf, inf)"
    names: list[Name] = []
    label: Prose | None = None
    integer: bool = False
    scope: Literal["group", "global"] = "group"
    doc: Prose = _left_out()


class Hyperparameter(NumberWord):
    """A number the user sets. Without `default` it is required; `default: null` makes it optional.

    A default alone, as `lr: 1e-3`, is short for `lr: {default: 1e-3}`.
    """

    default: Number | list[Number] | None = None
    needs: Needs | None = None

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

    choices: list[bool | int | str | None] | None = None
    doc: Prose = _left_out()


class Option(OptionWord):
    """A flag (no `choices`) or an enumeration, fixed when a kernel is compiled.

    null is the choice of none that equations ask for; of `storage` true and false can be choices too. A default alone,
    as `amsgrad: false`, is short for `amsgrad: {default: false}`.
    """

    default: bool | int | str | None
    needs: Needs | None = None

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _or_short(handler(schema), ["boolean", "integer", "string"])


class Input(SpecModel):
    """A number that is set on the optimizer for a step, as `opt.grad_scale = scale`, and is no argument of a class.

    It is one number for all param groups. Steps for which it is not set run kernels without what it decides. A text
    alone is short for its `doc`.
    """

    doc: Prose = _left_out()

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

    shape: Shape | Dimensions = "param"
    range: Literal["signed", "unsigned"] = "signed"
    init: Number | Text = 0
    when: Text | None = None
    window: Annotated[int, Field(gt=0, le=100_000)] | None = None
    count: Annotated[int, Field(gt=0, le=32)] | Name | None = None
    codecs: list[Text] | None = None
    stored_as: Name | None = None
    doc: Prose = _left_out()

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


class RefusalEntry(SpecModel):
    """A combination that is refused, with the exception to raise.

    `on` names when it is looked at: `construct` (the settings, also of every group) or a block's name (the settings
    and the group and global states, before that block runs).
    """

    when: Text
    raises: Raised = Field(default="ValueError", alias="raise")
    message: Prose
    on: Name = "construct"


class Method(SpecModel):
    """A further block that becomes a method of the optimizer.

    With `grad` it reads gradients, which pass through the shared `grad` stage before it, as in a step.
    """

    block: Text
    grad: bool = False
    doc: Prose = _left_out()


class _ClassWords(SpecModel):
    """Fields that a class and a row of classes have alike."""

    rule: Name | None = None
    signature: Name | list[Name] | None = None
    block_wise: bool | None = None
    target: Literal["torch"] | None = None
    set: dict[Name, bool | int | str] = {}
    defaults: dict[Name, bool | Number | str | list[Number] | None] = {}
    required: list[Name] = []
    refusals: list[Name | RefusalEntry] = []
    doc: Prose = _left_out()


class ClassEntry(_ClassWords):
    """A public class: a rule with its signature, its defaults and what it fixes."""

    bits: int | None = None
    paged: bool | None = None


class ClassRow(_ClassWords):
    """A row of the table: a class, or with lists of bits and of paged a class for each pair of them.

    `bits: [any, 8]` and `paged: [any, true]` of a row `Lion` are Lion, Lion8bit, PagedLion and PagedLion8bit.
    """

    bits: Bits | list[Bits] | None = None
    paged: Paged | list[Paged] | None = None
    keeps: list[Literal["optim_bits"]] = []


class Spec(SpecModel):
    """One rule: a file of `specs/`.

    With `ndim`, it takes parameters of this many dimensions alone.
    """

    name: Name
    title: Prose = _left_out()
    reference: Prose = _left_out()
    doc: Prose = _left_out()
    hyperparameters: dict[Name, Hyperparameter] = {}
    options: dict[Name, Option] = {}
    ndim: int | None = Field(default=None, ge=0)
    inputs: dict[Name, Input] = {}
    states: dict[Name, State] = {}
    refusals: list[RefusalEntry] = []
    functions: Text = ""
    blocks: Blocks
    methods: dict[Name, Method] = {}
    classes: dict[Name, ClassRow] = {}

    def meets(self, needs: Needs | None) -> bool:
        """Check that the rule has what a shared setting needs: an update stage, a choice of codecs, matrices alone."""
        match needs:
            case "update":
                return self.blocks.apply is not None
            case "matrix":
                return self.ndim == 2
            case "codec":
                return any(state.choice > {"fp32"} for state in self.states.values())
            case "quantized":
                return any(CODECS[name].scaled for s in self.states.values() for name in s.choice if name in CODECS)
        return True


class Blocks(SpecModel):
    """The statements of a step: `step` names the direction `update`, `apply` changes the parameter with it.

    A rule that changes `param` in `step` itself has no `apply` and no update stage.
    """

    step: Text
    apply: Text | None = None


class SharedBlocks(SpecModel):
    """The stages around a rule's own."""

    grad: Text = ""
    update: Text = ""


class StageBlocks(SharedBlocks):
    """The blocks of a stage that is put on rules: those that all rules have, and one after the rule's `apply`."""

    apply: Text = ""


class StageSpec(SpecModel):
    """A stage that users put on rules: settings, states and equations around a rule's own."""

    stage: Name
    title: Prose = _left_out()
    reference: Prose = _left_out()
    doc: Prose = _left_out()
    hyperparameters: dict[Name, Hyperparameter] = {}
    options: dict[Name, Option] = {}
    inputs: dict[Name, Input] = {}
    states: dict[Name, State] = {}
    refusals: list[RefusalEntry] = []
    functions: Text = ""
    blocks: StageBlocks


class Shared(SpecModel):
    """`shared.yaml`: what acts on every rule."""

    hyperparameters: dict[Name, Hyperparameter] = {}
    options: dict[Name, Option] = {}
    inputs: dict[Name, Input] = {}
    storage: dict[Name, Option | Hyperparameter] = {}
    states: dict[Name, State] = {}
    refusals: list[RefusalEntry] = []
    blocks: SharedBlocks = SharedBlocks()


class Vocabulary(SpecModel):
    """`vocabulary.yaml`: what words mean in every rule that does not say otherwise."""

    hyperparameters: dict[Name, NumberWord] = {}
    options: dict[Name, OptionWord] = {}
    states: dict[Name, State] = {}


class SharedFunctions(SpecModel):
    """`functions.yaml`: named pieces of equations that every rule may call."""

    functions: Text


class ClassTable(SpecModel):
    """`classes.yaml`: the public classes of all rules."""

    signatures: dict[Name, list[Name]] = {}
    refusals: dict[Name, RefusalEntry] = {}
    classes: dict[Name, ClassRow]
