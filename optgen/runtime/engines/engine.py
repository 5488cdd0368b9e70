"""Interface of the engines of all targets."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from optgen.runtime.block import Block, Partial
from optgen.runtime.core.bucket import Bucket, Member
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.core.step_inputs import Inputs
from optgen.runtime.engines.matrix_stage import Codecs
from optgen.runtime.states.store import Placement


class Engine(Protocol):
    """Runs the passes of a bucket on one target."""

    bucket: Bucket

    @property
    def at_once(self) -> bool:
        """True if one call of a kernel writes all that a step writes."""

    @property
    def codecs(self) -> Codecs:
        """Decoder and encoder of states that are matrices of their own."""

    @property
    def target(self) -> str:
        """The target's name."""

    def placement(self, member: Member) -> Placement:
        """Placement of the states of a parameter."""

    def begin(self, name: str, grads: list[Tensor], inputs: Inputs) -> None:
        """Start a step.

        Args:
            grads: The gradients of the bucket, or nothing in a block without them.
            inputs: Inputs of this step. The host has read `found_inf` unless all engines are of the cuda target.
        """

    def take(self, values: HostValues) -> None:
        """Take what is the same for groups, for the passes from now on; nothing fails for lack of memory after it."""

    def run(self, block: Block, index: int) -> None:
        """Run one pass."""

    @property
    def matrix_elements(self) -> int:
        """Elements that kernels store for functions of matrices."""

    def take_matrix_memory(self, memory: Tensor) -> None:
        """Take memory for them, float32, before the first step; other engines may have the same."""

    def run_matrices(self, name: str, block: Block, index: int) -> None:
        """Run the functions of matrices that take what a pass has stored for them; `name` is the block's."""

    def matrix_part(self, name: str, partial: str, index: int) -> Tensor:
        """Elements that a pass has made of a matrix for a function of matrices, to be replaced by its result.

        They are float32, in the shape of the part that this process has.
        """

    def reduction(self, block: Block, name: str) -> list[float] | Tensor:
        """A reduction's result for every parameter; on a GPU a tensor there."""

    def partial(self, block: Block, name: str) -> Tensor:
        """A result of every tensor, float64 of shape (members,)."""

    def complete(self, block: Block, name: str, values: Tensor) -> None:
        """Take the results of the whole tensors."""

    def partial_lines(self, name: str, partial: Partial, index: int) -> Tensor:
        """Sums of rows or columns of a tensor, float64, as many as whole matrices have."""

    def complete_lines(self, name: str, partial: Partial, index: int, values: Tensor) -> None:
        """Take those of the whole tensor."""

    def finish(self, name: str) -> None:
        """End the step."""
