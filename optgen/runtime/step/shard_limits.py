"""Choice of the target for a part of a parameter, and refusals of what cannot be done with a part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from optgen.codecs import WHOLE_TENSOR, Codec
from optgen.runtime.block import Block, Flags
from optgen.runtime.core.bucket import Member
from optgen.runtime.core.shards import Shard
from optgen.runtime.cuda.graph_capture import check_whole
from optgen.runtime.engines.matrices import takes_matrices
from optgen.runtime.rule import Rule, State
from optgen.runtime.states.stored import Stored

FLAT_SHARD = "FullyShardedDataParallel keeps flat shards, which have no rows and columns; use fully_shard"


def shard_target(name: str, rule: Rule, block: Block, member: Member, target: str) -> str:
    """The target that serves a part: the one that would serve a whole tensor, or torch's where that cannot.

    Raises:
        ValueError: if something cannot be computed from parts; the message has the reason.
        RuntimeError: for a target that was asked for and cannot serve.
    """
    shard = member.shard
    assert shard is not None
    what = f"a parameter of shape {tuple(shard.shape)}"
    lines = any(array.live(member.flags) for array in block.arrays if array.name not in block.matrices)
    _refuse(name, what, block, member, shard, lines)
    if shard.divisions:
        check_whole(name, member.settings, what)
    why = _hindrance(shard, member, target, lines)
    if why and member.settings["target"] == target:
        raise RuntimeError(f"{name}: target={target!r} cannot serve {what}: {why}; leave target out")
    if why:
        target = "torch"
    of_elements = member.codecs[: len(rule.element_states)]
    if target == "torch" and shard.divisions and any(codec.block == WHOLE_TENSOR for codec in of_elements):
        raise ValueError(
            f"{name}: one scale for the whole of {what}, whose parts lie in several processes, needs the cpu or the "
            "cuda target; use block_wise=True"
        )
    return target


def _hindrance(shard: Shard, member: Member, target: str, lines: bool) -> str:
    if target == "cuda" and lines and any(shard.cuts_lines(division) for division in shard.divisions):
        return "its rows or columns are divided among processes, and these kernels have no place to add them up"
    if member.rounding == "stochastic" and shard.divisions:
        if target == "cuda":
            return "with rounding='stochastic' the kernels of this target draw for whole tensors"
        if target == "cpu" and shard.start is None:
            return "with rounding='stochastic' the kernels of this target draw for parts that are divided by rows"
    return ""


def _refuse(name: str, what: str, block: Block, member: Member, shard: Shard, lines: bool) -> None:
    """Raise for what cannot be computed.

    Raises:
        ValueError: with the reason.
    """
    if shard.divisions and takes_matrices(block, member) and shard.placed is None:
        raise ValueError(f"{name} takes whole matrices, and {what} is divided among processes: {FLAT_SHARD}")
    if lines and shard.offset is None:
        raise ValueError(f"{name}: its rows and columns cannot be found in {what}: " + (shard.unnamed or FLAT_SHARD))
    if lines and block.line_sums and shard.cuts_matrices:
        raise ValueError(
            f"{name}: sums over the rows of all matrices cannot be computed for {what}, whose matrices are divided; "
            "divide it along one of its last two dimensions"
        )
    if lines and block.channel_sums and shard.cuts_channels:
        raise ValueError(
            f"{name}: numbers of channels, over all dimensions but the first, cannot be computed for {what}, which is "
            "divided along a dimension between its first and its last two; divide it along another, as along the first"
        )
    if shard.unnamed:
        wrong = _tensor_results(block, member)
        if wrong:
            raise ValueError(
                f"{name}: norms and means of a tensor ({wrong[0]}) cannot be computed for {what}: {shard.unnamed}"
            )
        if block.counts:
            raise ValueError(
                f"{name} depends on the position of each tensor, which is unknown for {what}: {shard.unnamed}"
            )
        if member.shape.numel() and member.rounding == "stochastic":
            raise ValueError(f"{name}: rounding='stochastic' is not possible for {what}: {shard.unnamed}")
    if member.rounding == "stochastic" and shard.start is None and shard.offset is None:
        raise ValueError(f"{name}: rounding='stochastic' is not possible for {what}: {FLAT_SHARD}")


def _tensor_results(block: Block, member: Member) -> list[str]:
    """Results of a tensor that are used as such, rather than summed over all parameters."""
    summed = {reduction for _, _, reduction in block.sums}
    return [
        partial.name
        for item in block.passes
        for partial in block.taken(item, member.flags)
        if partial.name not in summed
    ]


def reduces(block: Block, flags: Flags) -> bool:
    """Check whether a block reduces anything of a parameter."""
    return any(block.taken(item, flags) for item in block.passes)


def check_one_scale(name: str, asked: Iterable[tuple[State, Codec]], present: Mapping[str, Stored]) -> None:
    """Raise for a stored state that would have to get one scale for the tensor: no process alone can find it.

    Args:
        asked: States, each with the codec that it is to be in.
        present: Those that are stored, by name.

    Raises:
        ValueError: naming the state.
    """
    for state, codec in asked:
        found = None if state.dims else present.get(state.name)
        if codec.block == WHOLE_TENSOR and found is not None and found.codec != codec:
            raise ValueError(
                f"{name}: state {state.name!r} is stored as {found.codec}, and of a parameter that is divided among "
                f"processes it cannot be converted to {codec}; use block_wise=True"
            )


def check_starts(name: str, rule: Rule, member: Member) -> None:
    """Raise for a state that would have to begin with a reduction of the tensor: no process alone can make it.

    Raises:
        ValueError: naming the state.
    """
    for state in rule.states.values():
        if state.reduced and state.exists(member.flags) and state.name not in member.entry:
            raise ValueError(
                f"{name}: state {state.name!r} begins with a reduction of a parameter of shape {tuple(member.shape)}, "
                "which is divided among processes; take the first step before it is divided"
            )


def check_partition(name: str, block: Block, members: Sequence[Member]) -> None:
    """Raise where a rule needs all parameters and this optimizer, as one of ZeroRedundancyOptimizer's, has some.

    Raises:
        RuntimeError: with the reason.
    """
    wanted = "; use one of ours without it, and fully_shard to divide its states"
    if block.counts:
        raise RuntimeError(
            f"{name} depends on the position of each tensor, which ZeroRedundancyOptimizer changes{wanted}"
        )
    if any(member.owner is not None for member in members):
        raise RuntimeError(
            f"{name}: distribute_matrices=True is for processes that have all parameters, and ZeroRedundancyOptimizer "
            "gives each some of them, so that the work is divided already; leave it out"
        )
    summed = {reduction for _, _, reduction in block.sums}
    for member in members:
        for item in block.passes:
            if summed.intersection(item.names) and block.runs(item, member.flags):
                raise RuntimeError(
                    f"{name}: sums over all parameters (as of max_grad_norm) cannot be computed inside "
                    f"ZeroRedundancyOptimizer, which gives each process some of them{wanted}"
                )
