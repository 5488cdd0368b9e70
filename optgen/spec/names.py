"""Names that a spec cannot give away: words of Python, and what the language and generated classes call their own.

What a kernel calls its own is no matter of specs: printers write such names otherwise.
"""

from __future__ import annotations

import builtins

from optgen.operations import CALLED

SIZES = {0: "size0", 1: "size1", 2: "size2", 3: "size3", -1: "cols", -2: "rows", -3: "size_3", -4: "size_4"}
"""Names of the sizes of dimensions, by their numbers: those of `shape[0]`, `shape[-1]`, ..."""
FACTS = ("ndim", "numel", "index", "rows", "cols", "matrices", "total_numel")
"""Facts about a parameter, or about all parameters of a step, that a block may use."""
OF_SHAPE = tuple(name for name in SIZES.values() if name not in FACTS)
"""Facts that equations write as `shape[i]`."""
OF_BLOCKS = ("param", "grad", "update", "step", "active", *FACTS, *OF_SHAPE)
"""Names that every block has."""
SEED = "seed"
"""The setting from which random numbers follow."""
TARGET = "target"  # the argument that chooses one; rules may ask for it
ARGUMENTS = (
    "self", "super", "locals", "settings_in", "params", "args", TARGET, "name", "inf", "over", "all", "matrix",
)  # fmt: skip
# Beside settings and states, what the runtime keeps in param groups.
IN_GROUPS = ("param_names", "overrides", "last_grad_squares")
STORAGE = frozenset(
    ("block_size", "block_wise", "capturable", "clip_by_last_norm", "codec", "differentiable", "distribute_matrices",
     "fused_backward", "is_paged", "matrix_dtype", "matrix_form", "min_8bit_size", "optim_bits", "proj_type",
     "rounding", "row_blocks", "seed")
)  # fmt: skip
"""Storage settings that the runtime reads; only `storage` of shared.yaml can declare them."""
RESERVED = frozenset((*OF_BLOCKS, *CALLED, *ARGUMENTS, *IN_GROUPS))
OF_STATES = RESERVED - {*CALLED, "super"}
"""Names that no state can have. A function may have one: its bracket tells it apart."""

ATTRIBUTES = frozenset(
    (
        "OptimizerPostHook", "OptimizerPreHook", "accumulating", "add_param_group", "bits",
        "bitsandbytes_state_dict", "check_override", "defaults", "engines", "fixed", "found_inf", "give",
        "given_bits", "load_state_dict", "override", "paged_bytes", "param_groups", "profile_hook_step",
        "refusals", "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook",
        "register_state_dict_post_hook", "register_state_dict_pre_hook", "register_step_post_hook",
        "register_step_pre_hook", "rule", "state", "state_bytes", "state_dict", "step", "zero_grad",
    )
)  # fmt: skip
"""Attributes of all optimizers; no input or method of a rule can have their names."""

_MODULES = (
    "Any", "Array", "Block", "CLASSES", "ClassVar", "Classes", "CombinedOptimizer", "Flags", "GlobalOptimManager",
    "Hyperparameter", "Iterable", "Literal", "Mapping", "Module", "Optimizer", "Option", "ParamsT", "Partial", "Pass",
    "RULE", "Refusal", "Rule", "Rules", "Settings", "State", "StoredAnewWarning", "TYPE_CHECKING", "Tensor", "abi",
    "always", "annotations", "create", "for_model", "m", "overload", "settings_in", "shared",
)  # fmt: skip
OF_CLASSES = frozenset((*_MODULES, *dir(builtins)))
"""Names in generated modules, and those of Python that they may use; no class can have them."""


SHARED_MODULE = "shared"
"""The module of what the rules of a package share."""
STAGES = ("grad", "update")
"""The stages that all rules have."""
SHARED_FILES = (SHARED_MODULE, f"{SHARED_MODULE}_torch", *(f"{stage}_stage" for stage in STAGES))
"""The files of what the rules of a package share, without their endings: no rule can be called so."""


def modules_of(rule: str) -> tuple[str, str]:
    """The Python modules that a rule becomes."""
    return rule, f"{rule}_torch"


def class_name(rule: str) -> str:
    """The class of a rule that names none: `my_rule` makes `MyRule`."""
    return "".join(word[:1].upper() + word[1:] for word in rule.split("_"))


def plain_class(name: str) -> str:
    """A class's name as `create` looks for it, in any case: `AdamW_8bit` is `adamw8bit`."""
    return name.lower().replace("_", "")
