"""Matrices of a parameter, as its settings declare them: `matrix_form` and `row_blocks`."""

from __future__ import annotations

import torch

from optgen.runtime.block import Settings
from optgen.runtime.rule import Rule


def matrix_form(rule: Rule, shape: torch.Size, settings: Settings) -> torch.Size:
    """The shape that a rule sees a parameter in, (..., rows, cols) where it takes matrices alone."""
    if rule.ndim != 2 or why_no_matrix(rule, shape, settings):
        return shape
    if settings.get("matrix_form") == "flatten":
        shape = torch.Size((shape[0], shape[1:].numel()))
    blocks = int(settings.get("row_blocks", 1))
    return shape if blocks == 1 else torch.Size((*shape[:-2], blocks, shape[-2] // blocks, shape[-1]))


def why_no_matrix(rule: Rule, shape: torch.Size, settings: Settings) -> str:
    """The reason why a rule that takes matrices alone cannot take a parameter, and the way out; "" if it can."""
    rank, kind, blocks = len(shape), settings.get("matrix_form"), int(settings.get("row_blocks", 1))
    if rank < 2:
        return (
            "which is no matrix: give it to another optimizer, as AdamW; for_model(model, ...) of this package gives "
            "hidden matrices to one rule and all others to another"
        )
    if rank > 2 and kind is None:
        return (
            "of which no setting says what its matrices are: matrix_form='flatten' takes the first dimension by all "
            "others, as of convolutions, matrix_form='batch' the last two, as of stacked experts"
        )
    rows = shape[0] if kind == "flatten" else shape[-2]
    return f"whose {rows} rows are not row_blocks={blocks} blocks of equal size" if rows % blocks else ""
