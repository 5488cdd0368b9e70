"""A rule's own step on matrices between two passes: directions take the place of what kernels have stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optgen.runtime.core.bucket import Member
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.engines import matrix_stage
from optgen.runtime.engines.matrix_stage import Codecs
from optgen.runtime.engines.torch_engine import View
from optgen.runtime.engines.torch_states import States
from optgen.runtime.rule import Rule
from optgen.runtime.states.step_counts import steps_of


def run_own_steps(
    rule: Rule,
    members: Sequence[Member],
    grads: Sequence[Tensor],
    directions: Sequence[Tensor],
    values: HostValues,
    codecs: Sequence[Codecs],
    params: Sequence[Tensor | None] = (),
) -> None:
    """Run the step on the matrix of each parameter.

    Args:
        grads: What the steps take, the elements of whole parameters.
        directions: Memory for what comes of them; it may be that of the gradients.
        codecs: What decodes and encodes the states of each.
        params: The whole parameters in float32, where processes have parts of them and a step reads them.
    """
    numbers = [x for m in members for x in (m.entry["step"].double(), m.count) if x is not None]
    counts = torch.stack(numbers).view(-1, 2).tolist() if numbers else []
    read = params or [None] * len(members)
    each = zip(members, counts, grads, directions, read, codecs, strict=True)
    for member, count, grad, direction, param, own in each:
        view = View(rule, member, steps_of(*count) + 1.0)
        view.settings_now = matrix_stage.SettingsNow(rule, values.rows[member.row])
        view.codecs = own
        view.states = States(rule, member, own)
        if param is not None:
            view.param = param.view(member.shape)
        matrix_stage.run(view, grad.view(member.shape), direction.view(member.shape))
