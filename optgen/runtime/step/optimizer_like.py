"""An optimizer as a step, a load and a save see it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from optgen.runtime.settings.policy import Policy
from optgen.runtime.states.step_counts import Count
from optgen.runtime.states.stored import CodecRecord
from optgen.runtime.step.prepared import KeptSteps


class OptimizerLike(Protocol):
    """Interface of the optimizer to the rooms below the facade."""

    _policy: ClassVar[Policy]
    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]
    _counts: Mapping[Tensor, Count]
    _codecs: Mapping[Tensor, CodecRecord]
    _kept: KeptSteps

    @property
    def state(self) -> MutableMapping[Tensor, Any]:
        """The entries of parameters, as torch has them."""

    def _look_again(self) -> None:
        """Do what follows from settings, which have changed as a step with new engines begins."""
