"""A rule's own step on matrices between two passes: directions take the place of what kernels have stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optgen.runtime.core.bucket import Member
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.engines import matrix_stage
from optgen.runtime.engines.torch_engine import States, View
from optgen.runtime.rule import Rule
from optgen.runtime.states.step_counts import steps_of


def run_own_steps(
    rule: Rule,
    members: Sequence[Member],
    matrices: Sequence[Tensor],
    values: HostValues,
    params: Sequence[Tensor | None] = (),
) -> None:
    """Run the step on the matrix of each parameter.

    Args:
        matrices: What the steps take, the elements of whole parameters, to be replaced by their directions.
        params: The whole parameters in float32, where processes have parts of them and a step reads them.
    """
    numbers = [x for m in members for x in (m.entry["step"].double(), m.count) if x is not None]
    counts = torch.stack(numbers).view(-1, 2).tolist() if numbers else []
    read = params or [None] * len(members)
    for member, count, x, param in zip(members, counts, matrices, read, strict=True):
        view = View(rule, member, steps_of(*count) + 1.0)
        view.settings_now = matrix_stage.SettingsNow(rule, values.rows[member.row])
        view.states = States(rule, member)
        if param is not None:
            view.param = param.view(member.shape)
        matrix = x.view(member.shape)
        matrix_stage.run(view, matrix, matrix)
