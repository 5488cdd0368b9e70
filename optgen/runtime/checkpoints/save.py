"""A save: what torch's `state_dict` has returned, and beside it what it is of.

Under `optgen` stand the version of the form, the rule and the class, and the codecs of its states:
`{"exp_avg": [["fp32", 0], ["int8", 256]]}`, every codec and block size that a state has in some parameter (0: no
scales; -1: one scale for the tensor; a single block counts as one of the codec's own size). A load looks for each
tensor's codec among these, and refuses a tensor in a form of none of them: of another version, or exchanged. Of
divided parameters, whose processes have forms of their own, a checkpoint names no codecs, and neither does an older
one; nor are any said of a state of which a hook of `state_dict` has changed or dropped anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from optgen.runtime.checkpoints.misfits import MARK, VERSION, form_errors
from optgen.runtime.checkpoints.owned_matrices import Kept, divided, kept_tensors
from optgen.runtime.checkpoints.places import Place, places_in
from optgen.runtime.checkpoints.shards import saved_form
from optgen.runtime.core.shards import is_dtensor
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.states.step_counts import with_exact_counts
from optgen.runtime.states.stored import Stored, first_alike, scale_key, stored_in
from optgen.runtime.step.last_norm import KEY as LAST_NORM
from optgen.runtime.step.optimizer_like import OptimizerLike


def as_checkpoint(optimizer: OptimizerLike, saved: dict[str, Any]) -> dict[str, Any]:
    """Convert the result of torch's `state_dict` to a checkpoint: parts become DTensors, and the marks are added.

    What a hook has given another form comes back as it is.
    """
    if form_errors(optimizer.param_groups, saved):
        return saved
    saved = with_exact_counts(optimizer.param_groups, optimizer._counts, saved)
    for group in saved["param_groups"]:  # copies, whose tensors are read now
        if LAST_NORM in group:
            group[LAST_NORM] = float(group[LAST_NORM])
    params = [param for group in optimizer.param_groups for param in group["params"]]
    mark = {"version": VERSION, "rule": optimizer._policy.rule.name, "class": optimizer._policy.name}
    if any(map(is_dtensor, params)):
        return {**with_saved_shards(optimizer, saved), MARK: mark}
    flat = any(getattr(param, "_fsdp_flattened", False) for param in params)
    codecs = None if flat else codecs_said(optimizer, saved)
    return {**saved, MARK: {**mark, "codecs": codecs} if codecs else mark}


def codecs_said(optimizer: OptimizerLike, saved: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """The codecs of states, none of them of a parameter that is divided.

    None are said of a state that a hook has put into another form in any parameter: a load may undo that.
    """
    found: dict[str, set[tuple[str, int]]] = {}
    changed: set[str] = set()
    seen: set[tuple[Any, ...]] = set()  # models have many parameters of few shapes
    for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for index, (param, key) in enumerate(zip(own["params"], group["params"], strict=True)):
            mine, entry = optimizer.state.get(param, {}), saved["state"].get(key, {})
            record = optimizer._codecs.get(param)
            for state in optimizer._policy.rule.coded_states:
                form = _form_of(state.name, entry)
                if form != _form_of(state.name, mine):
                    changed.add(state.name)
                known = None if record is None else record.codecs.get(state.name)
                if form is None or (state.name, param.shape, form, known) in seen:
                    continue
                seen.add((state.name, param.shape, form, known))
                try:
                    settings = {**optimizer.defaults, **own, **own.get("overrides", {}).get(index, {})}
                    whole = matrix_form(optimizer._policy.rule, param.shape, settings) if state.dims else param.shape
                    shape = state.shape(whole, settings)
                    stored = stored_in(state, mine, shape, record)
                except ValueError:  # which the next step will say
                    changed.add(state.name)
                    continue
                if stored is not None:
                    codec = first_alike(stored.codec, shape.numel())
                    found.setdefault(state.name, set()).add((codec.name, codec.block))
    return {name: [list(pair) for pair in sorted(pairs)] for name, pairs in found.items() if name not in changed}


def _form_of(name: str, entry: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The dtype and shapes of a state and of its scales; None where there is no tensor."""
    value, scales = entry.get(name), entry.get(scale_key(name))
    if not isinstance(value, Tensor):
        return None
    return value.dtype, value.shape, getattr(scales, "shape", None)


def with_saved_shards(optimizer: OptimizerLike, saved: dict[str, Any]) -> dict[str, Any]:
    """Convert the result of `state_dict`: states of DTensor parameters take the form that checkpoints have."""
    rule, states = optimizer._policy.rule, dict(saved["state"])
    theirs = zip(optimizer.param_groups, saved["param_groups"], strict=True)
    owned: list[Kept] = []
    for place in places_in(optimizer, [{**own, "params": group["params"]} for own, group in theirs]):
        if place.shard is None or place.shard.placed is None or place.key not in states:
            continue
        stored = dict(_stored(optimizer, place, states[place.key]))
        of_elements = {state.name: stored[state.name] for state in rule.element_states if state.name in stored}
        states[place.key] = saved_form(rule, place.shard, states[place.key], of_elements)
        for state in rule.matrix_states if place.owner is not None else ():
            if state.name in stored:
                owned += kept_tensors(place, state, stored[state.name])
    for each, value in divided(owned):
        states[each.place.key][each.name] = value
    return {**saved, "state": states}


def _stored(optimizer: OptimizerLike, place: Place, entry: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    """States that have codecs, but for those that a hook has made something else of.

    Raises:
        ValueError: for what no codec stores of a matrix that other processes wait for.
    """
    mine, record = optimizer.state.get(place.param, {}), optimizer._codecs.get(place.param)
    for state, wanted in zip(optimizer._policy.rule.coded_states, place.codecs, strict=True):
        if _form_of(state.name, entry) is None:
            continue
        kept = _form_of(state.name, entry) == _form_of(state.name, mine)
        try:
            stored = stored_in(state, mine if kept else entry, place.state_shape(state), record, wanted)
        except ValueError:
            if state.dims and place.owner is not None:
                raise
            continue
        if stored is not None:
            yield state.name, Stored(stored.codec, entry[state.name], entry.get(scale_key(state.name)))
