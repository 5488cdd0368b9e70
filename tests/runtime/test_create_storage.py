"""What `create` says of classes that keep their states in one precision alone."""

from __future__ import annotations

import pytest
import torch
from optgen_optim import ASGD, create


def test_bits_of_a_class_without_8_bit_storage() -> None:
    params = [torch.nn.Parameter(torch.ones(3))]
    assert isinstance(create("asgd", params, bits=32), ASGD)
    with pytest.raises(ValueError, match="ASGD stores its states in 32 bits alone, not 8"):
        create("asgd", params, bits=8)
    with pytest.raises(TypeError, match="optim_bits"):
        create("asgd", params, optim_bits=8)
