"""Prepares a step: which parameters take part, in buckets with an engine each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.block import Block, Settings
from optgen.runtime.core import sweep
from optgen.runtime.core.bucket import Bucket, Member, check_gradient, flags_of
from optgen.runtime.core.shards import Owner, Shard, local_gradient, local_tensor, with_stand_ins
from optgen.runtime.core.step_inputs import Inputs, SkippedStepError
from optgen.runtime.cuda.graph_capture import asks_for_capture, check_member, check_warm
from optgen.runtime.engines.engine import Engine
from optgen.runtime.engines.matrices import BATCH, takes_matrices
from optgen.runtime.engines.torch_engine import View
from optgen.runtime.rule import Rule
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.settings.param_groups import check_groups, check_ndim, check_parameter
from optgen.runtime.settings.seen import changed_keys, seen_settings
from optgen.runtime.settings.storage import check_rounding, choose_codecs, choose_rounding, tensorwise
from optgen.runtime.settings.validation import check_agreement
from optgen.runtime.states.checks import check_states
from optgen.runtime.states.step_counts import read_counts, settled_count
from optgen.runtime.states.store import StateChanges, settle_states
from optgen.runtime.states.stored import stored_states
from optgen.runtime.step.all_reduce import Reducer
from optgen.runtime.step.find_shards import find_shards
from optgen.runtime.step.interrupts import Uninterrupted
from optgen.runtime.step.last_norm import is_asked
from optgen.runtime.step.left_out import without_left_out
from optgen.runtime.step.matrix_owners import MatrixOwners
from optgen.runtime.step.matrix_parts import form_of_part
from optgen.runtime.step.optimizer_like import OptimizerLike
from optgen.runtime.step.owners import find_owners
from optgen.runtime.step.partition import is_part
from optgen.runtime.step.prepared import PreparationKey, Prepared
from optgen.runtime.step.shard_limits import check_one_scale, check_partition, check_starts, reduces, shard_target
from optgen.runtime.step.target_choice import choose_target, make_engine

Key = tuple[Any, ...]


def prepare(
    optimizer: OptimizerLike, block: str, kept: Sequence[Prepared], inputs: Inputs, only: Tensor | None = None
) -> tuple[Prepared, list[Tensor]]:
    """The step's engines (kept ones, if nothing that matters has changed) and its gradients, in their order.

    Args:
        only: A parameter with a gradient that is stepped alone.

    Raises:
        SkippedStepError: if the step is to be skipped and the host must know it. Nothing has changed then.
    """
    declared = optimizer._policy.rule.blocks[block]
    groups = optimizer.param_groups
    params = [param for group in groups for param in group["params"]] if only is None else [only]
    grads: list[Any] = []
    if declared.grads:
        try:
            grads = sweep.used.gradients(params)
        except AttributeError:
            for param in params:
                check_parameter(optimizer._policy.name, param)
            raise
        if type(None) in set(map(type, grads)):
            grads = with_stand_ins(params, grads)
            params = [p for p, grad in zip(params, grads, strict=True) if grad is not None]
            grads = [grad for grad in grads if grad is not None]
    else:
        params = [p for p in params if optimizer.state.get(p)]
    numbers = _numbers(optimizer, block, params)
    params, grads, numbers = without_left_out(optimizer, params, grads, numbers, inputs)
    key = _key(optimizer, block, params, grads, inputs, only, numbers)
    for prepared in kept:
        if prepared.key == key and _still_serves(optimizer, prepared):
            if inputs.found_inf is not None:
                on_host = bool(numbers) or bool(optimizer._policy.rule.matrix_states)
                _check_skipped(declared, inputs, (engine.target for engine in prepared.engines), counts=on_host)
            prepared.serve_again()
            return prepared, grads
    check_warm(optimizer._policy.name)
    return _Preparer(optimizer, block, params, grads, inputs, numbers).run(only), grads


def _numbers(optimizer: OptimizerLike, block: str, params: Sequence[Tensor]) -> list[int]:
    """The number that the step has for each parameter; empty where the host decides nothing by it, as if recorded."""
    rule = optimizer._policy.rule
    if rule.on_step is None or all(asks_for_capture(group) for group in optimizer.param_groups):
        return []
    done = optimizer._kept.numbers.read(params, optimizer.state, optimizer._counts)
    return [number + (block == "step") for number in done]


def _on_step(
    optimizer: OptimizerLike, params: Sequence[Tensor], numbers: Sequence[int]
) -> tuple[tuple[bool, ...], ...]:
    """The flags that the number of the step decides, for every parameter."""
    on_step = optimizer._policy.rule.on_step
    if on_step is None or not numbers:
        return ()
    settings: dict[int, Mapping[str, Any]] = {}
    for group in optimizer.param_groups:
        settings |= {id(param): group for param in group["params"]}
        for index, override in group.get("overrides", {}).items():
            settings[id(group["params"][index])] = {**group, **override}
    known: dict[tuple[int, int], tuple[bool, ...]] = {}
    found = []
    for param, number in zip(params, numbers, strict=True):
        own = settings[id(param)]
        if (id(own), number) not in known:
            known[id(own), number] = tuple(on_step(own, number).values())
        found.append(known[id(own), number])
    return tuple(found)


def _key(
    optimizer: OptimizerLike,
    block: str,
    params: Sequence[Tensor],
    grads: list[Tensor],
    inputs: Inputs,
    only: Tensor | None,
    numbers: Sequence[int],
) -> PreparationKey:
    entries = optimizer.state.values() if only is None else (optimizer.state.get(only),)
    things = sweep.used.identities([*params, *optimizer.param_groups, *entries])
    on_step = _on_step(optimizer, params, numbers)
    return PreparationKey(block, things, sweep.used.dtypes(grads), inputs.names, on_step)


def agreed(optimizer: OptimizerLike, inputs: Inputs, kept: Sequence[Prepared]) -> Inputs:
    """The inputs of a step, its `found_inf` that of all processes: a step is skipped by all of them or by none."""
    if inputs.found_inf is None:
        return inputs
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if kept:
        reducer = kept[0].reducer
    else:
        shards = find_shards(optimizer._policy.name, params)
        reducer = Reducer(shards.values()) if shards else None
    return inputs if reducer is None else replace(inputs, found_inf=reducer.agree(inputs.found_inf))


def _check_skipped(
    block: Block, inputs: Inputs, targets: Iterable[str], starts: bool = False, counts: bool = False
) -> None:
    """Raise if the step is to be skipped, where the host has a part in it.

    The cuda target alone skips a step by itself, without making the host wait. Everything else is done by the host:
    the other targets, states of groups, exchanges of states, counting steps where it decides what they do, and values
    that states start with.
    """
    ends = block.commit is not None or bool(block.exchanges)
    host = starts or counts or ends or any(target != "cuda" for target in targets)
    if host and inputs.skips():
        raise SkippedStepError


def _still_serves(optimizer: OptimizerLike, prepared: Prepared) -> bool:
    """Check whether the settings still ask for these kernels; changed settings are checked first."""
    policy, defaults = optimizer._policy, optimizer.defaults
    settings = prepared.settings()
    seen = [seen_settings(policy.rule, defaults, row) for row in settings]
    if seen == prepared.seen:
        return True
    changed = [changed_keys(defaults, *pair) for pair in zip(prepared.seen, seen, strict=True)]
    for row, keys in zip(settings, changed, strict=True):
        if keys:
            policy.check_row(row, defaults, keys)
    if not policy.decisive.isdisjoint(chain.from_iterable(changed)):
        check_agreement(policy.name, policy.rule, optimizer.param_groups)
        if prepared.fixed != [_fixed(policy.rule, row) for row in settings]:
            return False
    prepared.see(seen)
    return True


def _fixed(rule: Rule, settings: Settings) -> tuple[Any, ...]:
    """Settings that engines are built for: flags, so that a schedule of momentum keeps them, storage, and sizes."""
    facts = (2, 1, 0, frozenset[str]())
    sizes = [settings.get(dimension) for state in rule.matrix_states for dimension in state.dims]
    return (rule.flags(settings, *facts), settings["target"], *[settings.get(key) for key in rule.storage], *sizes)


class _Preparer:
    def __init__(
        self,
        optimizer: OptimizerLike,
        block: str,
        params: list[Tensor],
        grads: list[Tensor],
        inputs: Inputs,
        numbers: list[int],
    ) -> None:
        self.optimizer, self.rule, self.block = optimizer, optimizer._policy.rule, block
        self.with_grads = self.rule.blocks[self.block].grads
        self.name = optimizer._policy.name
        self.params, self.grads, self.inputs, self.numbers = params, grads, inputs, numbers
        self.shards: Mapping[int, Shard] = {}
        self.owners: Mapping[int, Owner] = {}
        self.reduces = False  # anything of a parameter that is divided among processes, or has an owner
        self.rows: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
        self.known_rows: dict[tuple[Any, ...], int] = {}
        self.targets: dict[tuple[torch.device, str | None, bool], str] = {}
        self.batches: dict[Key, int] = {}  # the number of the last bucket of matrices of each kind

    def run(self, only: Tensor | None) -> Prepared:
        check_groups(self.name, self.optimizer.param_groups)
        for param in self.params:
            check_parameter(self.name, param)
        for param, grad in zip(self.params, self.grads, strict=False):
            check_gradient(self.name, grad, param)
        check_agreement(self.name, self.rule, self.optimizer.param_groups)
        by_last_norm = is_asked(self.name, self.optimizer.param_groups)
        everything = [param for group in self.optimizer.param_groups for param in group["params"]]
        self.shards = find_shards(self.name, everything)
        self.owners = find_owners(self.name, self.rule, self.optimizer.param_groups, self.shards)
        members = self._members()
        if is_part(self.optimizer):
            check_partition(self.name, self.rule.blocks[self.block], members)
        on_host = all(param.device.type == "cpu" for param in everything)
        step = f"{self.rule.name}.{self.block}"
        reducer = Reducer(self.shards.values(), self.owners.values(), step, members, checks=self.reduces and on_host)
        buckets: dict[Key, Bucket] = {}
        for member in members:
            self._bucket(buckets, member)
        engines: list[Engine] = [make_engine(self.name, self.rule, bucket) for bucket in buckets.values()]
        owners = MatrixOwners(self.rule, self.rule.blocks[self.block], engines)
        if self.inputs.found_inf is not None and members:
            # Asked of the engines: another target than was chosen may serve, which must not run a skipped step.
            starts = any(callable(state.init) for state in self.rule.states.values())
            targets = (engine.target for engine in engines)
            on_host = bool(self.numbers) or bool(self.rule.matrix_states)
            _check_skipped(self.rule.blocks[self.block], self.inputs, targets, starts, on_host)
        counts = {param: count for param, count in self.optimizer._counts.items() if param in self.optimizer.state}
        records = {p: record for p, record in self.optimizer._codecs.items() if p in self.optimizer.state}
        steps = read_counts(counts, members)
        with reducer.telling():
            settled = [self._settled(engine, member) for engine in engines for member in engine.bucket.members]
        replaced = any(key in member.entry for member, new in settled for key in (*new.made, *new.dropped))
        for member, new in settled:
            state = new.made["step"] if "step" in new.made else member.entry["step"]
            counts[member.whole] = settled_count(counts.get(member.whole), state, steps.get(id(member)))
            member.count = counts[member.whole].exact
        with Uninterrupted():  # only now, when nothing can fail any more
            self.optimizer._counts = counts
            for member, new in settled:
                records[member.whole] = new.store(member.entry)
                self.optimizer.state[member.whole] = member.entry
            self.optimizer._codecs = records
        prepared = Prepared(
            rule=self.rule,
            members=members,
            engines=engines,
            rows=self.rows,
            fixed=[_fixed(self.rule, {**group, **override}) for group, override in self.rows],
            elements=float(sum(member.shape.numel() for member in members)),
            key=_key(self.optimizer, self.block, self.params, self.grads, self.inputs, only, self.numbers),
            reducer=reducer if reducer.agreeing else None,
            owners=owners or None,
            sharded=bool(self.shards),
            at_once=len(engines) == 1 and engines[0].at_once,
            replaced=replaced,
            last=self.optimizer._kept.last_norm if by_last_norm else None,
        )
        prepared.see([seen_settings(self.rule, self.optimizer.defaults, row) for row in prepared.settings()])
        return prepared

    def _settled(self, engine: Engine, member: Member) -> tuple[Member, StateChanges]:
        grad = None
        if self.grads and member.shard is not None:
            grad = local_gradient(member.whole, self.grads[member.position])
        view = View(self.rule, member, 0.0, grad)
        placement = engine.placement(member)
        check_states(self.rule, member, placement)
        asked = [
            (state, codec)
            for state, codec in zip(self.rule.coded_states, member.codecs, strict=True)
            if state.exists(member.flags)
        ]
        record = self.optimizer._codecs.get(member.whole)
        shapes = [member.state_shape(state) for state, _ in asked]
        present = stored_states(asked, member.entry, shapes, record)
        if member.shard is not None and member.shard.divisions:
            check_one_scale(self.name, asked, present)
            check_starts(self.name, self.rule, member)
        return member, settle_states(
            self.rule,
            member.param,
            member.entry,
            present,
            member.flags,
            member.codecs,
            member.rounding,
            view,
            placement,
            member.line_shape,
        )

    def _members(self) -> list[Member]:
        active = {id(param): position for position, param in enumerate(self.params)}
        block = self.rule.blocks[self.block]
        result: list[Member] = []
        before = 0
        for number, group in enumerate(self.optimizer.param_groups):
            overrides = group.get("overrides", {})
            for index, param in enumerate(group["params"]):
                shard, owner = self.shards.get(id(param)), self.owners.get(id(param))
                place = active.get(id(param))
                if place is None and shard is None and owner is None:
                    continue
                override = overrides.get(index, {})
                settings = {**group, **override, **self.inputs.values}
                form = None
                if self.rule.ndim is not None:
                    shard, form = self._form(param, shard, settings)
                shape = form or param.shape if shard is None else shard.shape
                codecs = choose_codecs(self.rule, settings, shape)
                step = self.numbers[place] if self.numbers and place is not None else 0
                flags = flags_of(self.rule, settings, shape, index, tensorwise(self.rule, codecs), step)
                divided = owner is not None or (shard is not None and bool(shard.divisions))
                self.reduces = self.reduces or (divided and reduces(block, flags))
                if place is None:
                    continue
                check_rounding(self.name, settings, [param], first=False)
                entry = self.optimizer.state.get(param, {})
                if not isinstance(entry, dict):
                    raise TypeError(f"{self.name}: the state of a parameter is a dict, not a {type(entry).__name__}")
                result.append(
                    Member(
                        param=local_tensor(param),
                        whole=param,
                        position=place,
                        index=index,
                        row=self._row(number, group, override),
                        settings=settings,
                        entry=entry,
                        flags=flags,
                        codecs=codecs,
                        number=before + index,
                        rounding=choose_rounding(settings, param),
                        shard=shard,
                        form=form,
                        owner=owner,
                    )
                )
            before += len(group["params"])
        return result

    def _form(self, param: Tensor, shard: Shard | None, settings: Settings) -> tuple[Shard | None, torch.Size | None]:
        """A parameter's part, and the shape that kernels see it in, where that is not its own."""
        check_ndim(self.name, self.rule, [(param, settings)], None)
        if shard is not None:
            shard = form_of_part(self.name, self.rule, shard, settings)
        form = matrix_form(self.rule, param.shape, settings) if shard is None else shard.own
        return shard, None if form == local_tensor(param).shape else form

    def _row(self, number: int, group: dict[str, Any], override: Mapping[str, Any]) -> int:
        key = (number, *sorted(override.items(), key=lambda item: item[0]))
        if key not in self.known_rows:
            self.optimizer._policy.check_row({**group, **override}, self.optimizer.defaults)
            self.known_rows[key] = len(self.rows)
            self.rows.append((group, override))
        return self.known_rows[key]

    def _bucket(self, buckets: dict[Key, Bucket], member: Member) -> None:
        param = member.param
        grad_dtype = self.grads[member.position].dtype if self.with_grads else param.dtype
        block = self.rule.blocks[self.block]
        target = self._target(param, member.settings["target"])
        if member.shard is not None:
            target = shard_target(self.name, self.rule, block, member, target)
        check_member(self.name, member.settings, param, target, on_host=block.commit is not None, rule=self.rule)
        kernel = (target, param.dtype, grad_dtype, param.device, member.flags, member.codecs, member.rounding)
        key = self._batch(buckets, kernel, member) if takes_matrices(block, member) else kernel
        if key not in buckets:
            buckets[key] = Bucket(*kernel)
        buckets[key].members.append(member)

    def _batch(self, buckets: Mapping[Key, Bucket], kernel: Key, member: Member) -> Key:
        """The bucket of a parameter that is taken as a matrix: all of it has one shape and one row of settings."""
        kind = (*kernel, member.seen, member.row, member.owner is None)
        number = self.batches.setdefault(kind, 0)
        bucket = buckets.get((*kind, number))
        if bucket is not None and (len(bucket.members) + 1) * member.param.numel() > BATCH:
            number = self.batches[kind] = number + 1
        return (*kind, number)

    def _target(self, param: Tensor, wanted: str | None) -> str:
        key = (param.device, wanted, param.dtype is torch.float64)
        if key not in self.targets:
            self.targets[key] = choose_target(self.name, param.device, wanted, param.dtype)
        return self.targets[key]
