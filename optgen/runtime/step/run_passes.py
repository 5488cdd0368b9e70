"""Runs the passes of a block over all buckets, one pass after the other."""

from __future__ import annotations

from optgen.runtime.block import Block
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.engines.engine import Engine
from optgen.runtime.step.prepared import Prepared


def run_passes(prepared: Prepared, values: HostValues) -> HostValues:
    """Run a block whose engines have begun a step, and end the step.

    Args:
        values: Values of groups, before anything is summed over all parameters.

    Returns:
        The values of the last pass.
    """
    name, block = prepared.key.block, prepared.block
    for engine in prepared.engines:
        engine.take(values)
    for index, item, running in prepared.together:
        for engine in running:
            _run(engine, name, block, index)
        if prepared.reducer is not None:
            prepared.reducer.reduce(name, block, item, running)
        new = prepared.sums(block, item, running) if block.sums else {}
        if new:
            values = values.with_sums(new)
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
