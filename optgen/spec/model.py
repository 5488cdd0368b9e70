"""What a spec file may say: the Pydantic models behind `specs/*.yaml`.

Everything here is data as written; meaning is given by the later stages. Unknown keys are errors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from optgen.codecs import CODECS
from optgen.prose import Prose

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
Text = Annotated[str, StringConstraints(max_length=65536)]
Number = int | float
Shape = Literal["param", "row", "col", "matrix", "tensor", "group", "global"]
Needs = Literal["update", "codec", "quantized"] | dict[Name, int | str]
Raised = Literal["ValueError", "TypeError", "NotImplementedError", "RuntimeError"]


def _left_out() -> Any:
    """The default of prose that an author need not write."""
    return Field(default="", validate_default=True)


class SpecModel(BaseModel):
    """Common settings: no unknown keys, no coercion, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Hyperparameter(SpecModel):
    """A number the user sets. Without `default` it is required; `default: null` makes it optional."""

    default: Number | list[Number] | None = None
    range: Text = "(-inf, inf)"
    names: list[Name] = []
    label: Prose | None = None
    integer: bool = False
    scope: Literal["group", "global"] = "group"
    needs: Needs | None = None
    doc: Prose = _left_out()

    @property
    def required(self) -> bool:
        """Whether users have to give it: the file says no default."""
        return "default" not in self.model_fields_set

    @property
    def optional(self) -> bool:
        """Whether it can be None, as it is by default."""
        return not self.required and self.default is None


class Option(SpecModel):
    """A flag (no `choices`) or an enumeration, fixed when a kernel is compiled.

    Of `storage`, which equations do not ask for, null, true and false can be choices too.
    """

    default: bool | int | str | None
    choices: list[bool | int | str | None] | None = None
    needs: Needs | None = None
    doc: Prose = _left_out()


class Input(SpecModel):
    """A number that is set on the optimizer for a step, as `opt.grad_scale = scale`, and is no argument of a class.

    It is one number for all param groups. Steps for which it is not set run kernels without what it decides.
    """

    doc: Prose = _left_out()


class State(SpecModel):
    """Something kept between steps.

    `init` is a number or an expression over `param`, `grad`, the hyperparameters and the parameter's facts. `window`
    makes a tensor state a ring of that many past values.
    """

    shape: Shape = "param"
    range: Literal["signed", "unsigned"] = "signed"
    init: Number | Text = 0
    when: Text | None = None
    window: Annotated[int, Field(gt=0, le=100_000)] | None = None
    codecs: list[Text] | None = None
    stored_as: Name | None = None
    doc: Prose = _left_out()

    @property
    def choice(self) -> frozenset[str]:
        """The codecs among which a user's settings choose."""
        if self.shape != "param" or self.stored_as is not None:
            return frozenset({"fp32"})
        return frozenset(self.codecs or CODECS)


class Rule(SpecModel):
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


class Variant(SpecModel):
    """A public class: a family with its signature, its defaults and what it fixes."""

    family: Name | None = None
    signature: Name | list[Name] | None = None
    bits: int | None = None
    paged: bool | None = None
    block_wise: bool | None = None
    target: Literal["torch"] | None = None
    set: dict[Name, bool | int | str] = {}
    defaults: dict[Name, bool | Number | str | list[Number] | None] = {}
    required: list[Name] = []
    rejects: list[Name | Rule] = []
    doc: Prose = _left_out()


class Spec(SpecModel):
    """One rule: a file of `specs/`."""

    name: Name
    title: Prose = _left_out()
    reference: Prose = _left_out()
    doc: Prose = _left_out()
    hyperparameters: dict[Name, Hyperparameter] = {}
    options: dict[Name, Option] = {}
    inputs: dict[Name, Input] = {}
    states: dict[Name, State] = {}
    rules: list[Rule] = []
    blocks: Blocks
    methods: dict[Name, Method] = {}
    variants: dict[Name, Variant] = {}

    def meets(self, needs: Needs | None) -> bool:
        """Whether the rule has what a shared setting needs: an update stage, or a state with a choice of codecs."""
        match needs:
            case "update":
                return self.blocks.apply is not None
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


class Shared(SpecModel):
    """`shared.yaml`: what acts on every rule."""

    hyperparameters: dict[Name, Hyperparameter] = {}
    options: dict[Name, Option] = {}
    inputs: dict[Name, Input] = {}
    storage: dict[Name, Option | Hyperparameter] = {}
    states: dict[Name, State] = {}
    rules: list[Rule] = []
    blocks: SharedBlocks = SharedBlocks()


class VariantTable(SpecModel):
    """`variants.yaml`: the public classes of all families."""

    signatures: dict[Name, list[Name]] = {}
    rejects: dict[Name, Rule] = {}
    variants: dict[Name, Variant]
