"""Runs the passes of a block over all buckets, one pass after the other."""

from __future__ import annotations

from collections.abc import Sequence

from optgen.runtime.block import Settings
from optgen.runtime.core.host_values import HostValues, Sums
from optgen.runtime.rule import Rule
from optgen.runtime.step.prepared import Prepared


def run_passes(prepared: Prepared, rule: Rule, name: str, settings: Sequence[Settings]) -> HostValues:
    """Run a block whose engines have begun a step, and end the step.

    Args:
        name: The block's.
        settings: Those of every row, with the inputs of the step.

    Returns:
        The values of the last pass.
    """
    block = rule.blocks[name]
    sums: Sums = {}
    values = HostValues(rule, block, settings, sums, prepared.elements)
    for engine in prepared.engines:
        engine.take(values)
    for index, item in enumerate(block.passes):
        running = [engine for engine in prepared.engines if block.runs(item, engine.bucket.flags)]
        for engine in running:
            engine.run(block, index)
        if prepared.reducer is not None:
            prepared.reducer.reduce(name, block, item, running)
        new = prepared.sums(block, item, running)
        if new:
            sums = {**sums, **new}
            values = HostValues(rule, block, settings, sums, prepared.elements)
            for engine in prepared.engines:
                engine.take(values)
    for engine in prepared.engines:
        engine.finish(name)
    return values
