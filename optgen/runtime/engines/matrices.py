"""Functions of matrices between two passes: their results take the place of what a kernel has stored for them.

Parameters that a rule takes as matrices are cut into buckets of one shape and one row of settings, so that one call
serves all of a bucket. Buckets that run one after the other store their elements in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Size, Tensor

from optgen.runtime.block import Block, Partial
from optgen.runtime.core.bucket import Member
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.matrix_math import MATRIX_FUNCTIONS

OWN_STEP = "matrices"
"""The operation of a rule's own step on matrices, of which states have other dimensions."""
BATCH = 4_194_304
"""Elements of a bucket; a larger tensor is one alone. Products need some three times that memory."""


def takes_matrices(block: Block, member: Member) -> bool:
    """Check whether a block runs functions of matrices on a parameter."""
    return any(partial.live(member.flags) for partial in block.matrices.values())


def is_owned(block: Block, member: Member) -> bool:
    """Check whether the matrices that a block runs functions on have an owner, who does it for other processes too."""
    return member.owner is not None and takes_matrices(block, member)


def apply(partial: Partial, elements: Tensor, shape: Size, values: HostValues, member: Member) -> None:
    """Put the results of a function of matrices in the place of what it takes.

    Args:
        elements: Those of all tensors, which have this shape.
        member: One of these; all have its settings.
    """
    numbers = (_number(setting, values, member.row) for setting in partial.settings)
    x = elements.view(-1, *shape)
    x.copy_(computed(MATRIX_FUNCTIONS[partial.op], member, x, *numbers))


def computed(function: Callable[..., Tensor], member: Member, x: Tensor, *numbers: float) -> Tensor:
    """The result of a function of matrices, in float32, of products in the dtype that a parameter's settings name."""
    dtype = member.settings.get("matrix_dtype", "float32")
    return function(x, *numbers) if dtype == "float32" else function(x.to(getattr(torch, dtype)), *numbers).float()


def _number(setting: float | str, values: HostValues, row: int) -> float:
    """A setting of a function; the host reads no more of a group than it must."""
    if not isinstance(setting, str):
        return setting
    given = values.inputs[row].get(setting)
    return given if isinstance(given, float) else values.computed[row][setting]
