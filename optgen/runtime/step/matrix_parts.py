"""Parts of matrices that are divided among processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from optgen.runtime.block import Settings
from optgen.runtime.core.shards import Division, Shard
from optgen.runtime.rule import Rule
from optgen.runtime.settings.matrix_form import matrix_form


def form_of_part(name: str, rule: Rule, shard: Shard, settings: Settings) -> Shard:
    """A part of a parameter as part of its matrices.

    Raises:
        ValueError: if the division among processes goes through what is to be one matrix.
    """
    form = matrix_form(rule, shard.shape, settings)
    if form == shard.shape:
        return shard
    what = f"{name}: a parameter of shape {tuple(shard.shape)}"
    if any(state.kind in ("row", "col") for state in rule.states.values()):
        raise ValueError(
            f"{what} is divided among processes, and matrix_form and row_blocks need it whole for its rows"
        )
    if settings.get("matrix_form") == "flatten":
        if shard.offset is None or any(division.dim != 0 for division in shard.divisions):
            raise ValueError(
                f"{what} is divided along another dimension than its first, and matrix_form='flatten' needs that"
            )
        own, offset = shard.own[:1], shard.offset[:1]
        shard = replace(
            shard,
            shape=torch.Size((shard.shape[0], shard.shape[1:].numel())),
            own=torch.Size((*own, shard.own[1:].numel())),
            offset=(*offset, 0),
        )
    if int(settings.get("row_blocks", 1)) == 1:
        return shard
    return _in_blocks(what, shard, form)


def _in_blocks(what: str, shard: Shard, form: torch.Size) -> Shard:
    """A part of a parameter whose rows are blocks, of which each process has whole ones."""
    rows, height = len(shard.shape) - 2, form[-2]
    by_rows = [division for division in shard.divisions if division.dim == rows]
    if shard.offset is None or len(by_rows) > 1 or any(_chunk(shard, division) % height for division in by_rows):
        raise ValueError(
            f"{what} is divided among processes within blocks of {height} rows, which row_blocks= asks for: divide it "
            "by columns, as fully_shard(..., shard_placement_fn=lambda param: Shard(1)) does, or by whole blocks"
        )
    *before, first, at = shard.offset
    return replace(
        shard,
        shape=form,
        own=torch.Size((*shard.own[:-2], shard.own[-2] // height, height, shard.own[-1])),
        divisions=tuple(replace(d, dim=d.dim + 1) if d.dim == rows + 1 else d for d in shard.divisions),
        offset=(*before, first // height, 0, at),
    )


def _chunk(shard: Shard, division: Division) -> int:
    """Rows of each process but the last ones: the same number on all of them."""
    group: Any = division.group
    return -(-shard.shape[-2] // int(group.size()))
