"""What a checkpoint says of how its states are stored, to hold its tensors against.

`{"exp_avg": [["int8", 256], ["fp32", 0]]}`: every codec and block size that a state has in some parameter (0: no
scales; -1: one scale for the tensor; a single block counts as one of the codec's own size). Dtypes and shapes alone
tell the codecs of this version from each other; the marks tell them from those of other versions, and from tensors that
were exchanged. A checkpoint of divided parameters, whose processes have forms of their own, has no marks, and neither
has an older one; nor has a state of which a hook of `state_dict` has changed or dropped anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Size, Tensor

from optgen.codecs import BLOCK_SIZES, CODECS, WHOLE_TENSOR, Codec
from optgen.runtime.checkpoints.sharded import with_saved_shards
from optgen.runtime.checkpoints.validate import marked, misformed
from optgen.runtime.core.shards import is_dtensor
from optgen.runtime.rule import Rule
from optgen.runtime.states.step_counts import with_exact_counts
from optgen.runtime.states.stored import has_form, recognised, scale_key, stored_shown
from optgen.runtime.step.optimizer_like import OptimizerLike

Marks = Mapping[str, Sequence[Codec]]


def as_checkpoint(optimizer: OptimizerLike, saved: dict[str, Any]) -> dict[str, Any]:
    """What torch's `state_dict` has returned, as checkpoints have it: with parts as DTensors, and what it is of.

    What a hook has given another form comes back as it is.
    """
    if misformed(optimizer.param_groups, saved):
        return saved
    saved = with_exact_counts(optimizer.param_groups, optimizer._counts, saved)
    rule, name = optimizer._policy.rule, optimizer._policy.name
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if any(map(is_dtensor, params)):
        return marked(rule, name, with_saved_shards(optimizer, saved))
    flat = any(getattr(param, "_fsdp_flattened", False) for param in params)
    return marked(rule, name, saved, None if flat else codec_marks(optimizer, saved))


def codec_marks(optimizer: OptimizerLike, saved: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """The marks of states, none of them of a parameter that is divided.

    A state that a hook has put into another form in any parameter has none: what loads the checkpoint may undo that.
    """
    found: dict[str, set[tuple[str, int]]] = {}
    changed: set[str] = set()
    seen: set[tuple[Any, ...]] = set()  # models have many parameters of few shapes
    for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for param, key in zip(own["params"], group["params"], strict=True):
            mine, entry = optimizer.state.get(param, {}), saved["state"].get(key, {})
            for state in optimizer._policy.rule.element_states:
                form = _form_of(state.name, entry)
                if form != _form_of(state.name, mine):
                    changed.add(state.name)
                if form is None or (state.name, param.shape, form) in seen:
                    continue
                seen.add((state.name, param.shape, form))
                try:
                    present = recognised(state, entry[state.name], entry.get(scale_key(state.name)), param.shape)
                except ValueError:  # which the next step will say
                    changed.add(state.name)
                    continue
                found.setdefault(state.name, set()).add((present.name, present.block))
    return {name: [list(mark) for mark in sorted(marks)] for name, marks in found.items() if name not in changed}


def _form_of(name: str, entry: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The dtype and shapes of a state and of its scales; None where there is no tensor."""
    value, scales = entry.get(name), entry.get(scale_key(name))
    if not isinstance(value, Tensor):
        return None
    return value.dtype, value.shape, getattr(scales, "shape", None)


def read_marks(marks: Any) -> tuple[Marks, list[str]]:
    """A checkpoint's marks as codecs, and those that this version does not know, in words."""
    if marks is None:
        return {}, []
    if not isinstance(marks, Mapping) or not all(isinstance(each, list | tuple) for each in marks.values()):
        return {}, [f"its record of codecs is {marks!r}, not a dict of lists"]
    result: dict[str, list[Codec]] = {}
    found = []
    for name, each in marks.items():
        for mark in each:
            codec = _read_mark(mark)
            if codec is None:
                found.append(
                    f"it stores {name} as {_shown(mark)}, which this optgen does not know (its codecs are "
                    f"{', '.join(CODECS)}, their blocks {', '.join(map(str, BLOCK_SIZES))}): update optgen"
                )
            else:
                result.setdefault(name, []).append(codec)
    return result, found


def _read_mark(mark: Any) -> Codec | None:
    if not isinstance(mark, list | tuple) or len(mark) != 2 or not isinstance(mark[0], str) or mark[0] not in CODECS:
        return None
    codec = CODECS[mark[0]]
    blocks = (*BLOCK_SIZES, WHOLE_TENSOR) if codec.scaled else (0,)
    return codec.with_block(mark[1]) if mark[1] in blocks else None


def _shown(mark: Any) -> str:
    if isinstance(mark, list | tuple) and len(mark) == 2:
        return f"{mark[0]} in blocks of {mark[1]}" if mark[1] else str(mark[0])
    return repr(mark)


def contradicted(rule: Rule, marks: Marks, label: str, shape: Size, saved: Mapping[str, Any]) -> list[str]:
    """States of a parameter that are stored in no form that the checkpoint says, in words.

    Numbers without scales speak for themselves: those that were brought to another float type are not among them.
    """
    found = []
    for state in rule.element_states:
        value, said = saved.get(state.name), marks.get(state.name)
        if not isinstance(value, Tensor) or not said:
            continue
        scales = saved.get(scale_key(state.name))
        count = scales.numel() if isinstance(scales, Tensor) else 0
        if any(has_form(codec, value, shape, count) for codec in said):
            continue
        if scales is None and value.is_floating_point() and not all(codec.scaled for codec in said):
            continue
        forms = " or ".join(f"{codec} ({_form(codec, shape)})" for codec in said)
        found.append(
            f"{label}: the checkpoint says that it stores {state.name} as {forms}, and it is "
            f"{stored_shown(value, scales)}"
        )
    return found


def _form(codec: Codec, shape: Size) -> str:
    scales = f" with {codec.scales(shape.numel())} scales" if codec.scaled else ""
    return f"{codec.storage} of shape {codec.codes_shape(shape)}{scales}"
