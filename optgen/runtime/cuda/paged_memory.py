"""Paged states, as far as every target must know of memory that a GPU borrows from the host (paging.py)."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optgen.codecs import PAGED_NUMEL

if TYPE_CHECKING:
    from optgen.runtime.cuda.cuda_device import CudaDevice


def asks_for_paging(settings: Mapping[str, Any], numel: int) -> bool:
    """Check whether the element states of a parameter are to be paged on a GPU."""
    return bool(settings.get("is_paged")) and numel >= PAGED_NUMEL


@dataclass(frozen=True)
class Loan:
    """Memory of the host that is lent to a GPU, as long as a tensor over it lives.

    Attributes:
        managed: Whether the driver moves it; else it is pinned.
        array: Its bytes, an array of numpy.
    """

    gpu: CudaDevice
    managed: bool
    array: weakref.ref[Any]


LOANS: dict[int, Loan] = {}  # by address


def loan_of(codes: Tensor) -> Loan | None:
    """The lent memory that a tensor begins; None for ordinary memory."""
    if codes.layout is not torch.strided or not codes.numel():
        return None
    return LOANS.get(codes.data_ptr())


def is_paged(value: object) -> bool:
    """Check whether a value is a tensor in memory that a GPU borrows."""
    return isinstance(value, Tensor) and loan_of(value) is not None


def wait_for_host(values: Iterable[object]) -> None:
    """Wait until the host can read these states: what a step computed may still be on its way to pinned memory."""
    loans = [loan_of(value) for value in values if isinstance(value, Tensor)] if LOANS else []
    for gpu in {id(loan.gpu): loan.gpu for loan in loans if loan is not None and not loan.managed}.values():
        gpu.wait()
