"""Functions of equations on tensors: square roots are rounded correctly on every processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optgen.runtime import torch_math


@pytest.mark.parametrize("exact", [torch_math.EXACT_ROOTS, False], ids=["as-here", "in-float64"])
def test_roots_are_rounded_correctly(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all mantissas of two octaves; the others are theirs times a power of two."""
    monkeypatch.setattr(torch_math, "EXACT_ROOTS", exact)
    patterns = np.arange(0x3F800000, 0x40800000, dtype=np.uint32).view(np.float32)
    x = torch.from_numpy(patterns)
    assert np.array_equal(torch_math.sqrt(x).numpy(), np.sqrt(patterns))
    assert np.array_equal(torch_math.rsqrt(x).numpy(), np.float32(1) / np.sqrt(patterns))


def test_roots_of_what_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_math, "EXACT_ROOTS", False)
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-45, torch.inf, torch.nan])
    torch.testing.assert_close(torch_math.sqrt(x), torch.sqrt(x), rtol=0, atol=0, equal_nan=True)
