"""Runs the passes of a block over all buckets, one pass after the other."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from optgen.runtime.block import Block
from optgen.runtime.core.host_values import HostValues, SumKey, Sums
from optgen.runtime.engines.engine import Engine
from optgen.runtime.step.prepared import Parts, Prepared, joined

Running = Generator[Parts, Sums, HostValues]


def run_passes(steps: Sequence[tuple[Prepared, HostValues]]) -> list[HostValues]:
    """Run blocks whose engines have begun a step, and end the step.

    Rules that share an optimizer run one after the other. A sum over all parameters that every one of them takes, as
    the norm of all gradients, is over the parameters of them all: none goes on before each has its part of it.

    Args:
        steps: With the values of groups, before anything is summed over all parameters.

    Returns:
        The values of the last pass of each.
    """
    running = [_passes(prepared, values) for prepared, values in steps]
    common = frozenset.intersection(*(prepared.block.over_all for prepared, _ in steps))
    ends: list[HostValues] = [values for _, values in steps]
    asked: list[Parts] = [{} for _ in steps]
    for index in range(len(steps)):
        asked[index] = _go_on(running, index, None, common, ends)
    while any(asked):
        shared = joined(_together([{key: own[key] for key in own if key in common} for own in asked]))
        for index, own in enumerate(asked):
            if own:
                rest = joined({key: parts for key, parts in own.items() if key not in common})
                asked[index] = _go_on(running, index, {**shared, **rest}, common, ends)
    return ends


def _go_on(
    running: Sequence[Running], index: int, sums: Sums | None, common: frozenset[SumKey], ends: list[HostValues]
) -> Parts:
    """Run one rule until it needs a sum that all of them take, whose parts are returned; {} at its end."""
    try:
        asked = next(running[index]) if sums is None else running[index].send(sums)
        while common.isdisjoint(asked):
            asked = running[index].send(joined(asked))
        return asked
    except StopIteration as end:
        ends[index] = end.value
        return {}


def _together(asked: Sequence[Parts]) -> Parts:
    """The parts of sums of several rules, in the order of the rules."""
    result: Parts = {}
    for own in asked:
        for key, (kind, parts) in own.items():
            result[key] = kind, [*(result[key][1] if key in result else ()), *parts]
    return result


def _passes(prepared: Prepared, values: HostValues) -> Running:
    """Run a block, yielding the parts of sums over several parameters where their totals are needed."""
    name, block = prepared.key.block, prepared.block
    for engine in prepared.engines:
        engine.take(values)
    for index, item, running in prepared.together:
        for engine in running:
            _run(engine, name, block, index)
        if prepared.owners is not None:
            prepared.owners.run(name, block, item, values)
        if prepared.reducer is not None:
            prepared.reducer.reduce(name, block, item, running)
        parts = prepared.sums(block, item, running) if block.sums else {}
        if parts:
            sums = yield parts
            if prepared.last is not None:
                sums = prepared.last.exchange(sums, prepared.rows[0][0])
            values = values.with_sums(sums)
            for engine in prepared.engines:
                engine.take(values)
    for engine, indices in prepared.alone:
        for index in indices:
            _run(engine, name, block, index)
    for engine in prepared.engines:
        engine.finish(name)
    return values


def _run(engine: Engine, name: str, block: Block, index: int) -> None:
    """Run a pass, and the functions of matrices that follow it."""
    engine.run(block, index)
    if block.matrices:
        engine.run_matrices(name, block, index)
