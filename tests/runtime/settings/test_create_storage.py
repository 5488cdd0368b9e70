"""Answers of `create` for classes whose states cannot be stored in the bits that are asked for."""

from __future__ import annotations

import pytest
import torch
from optgen_optim import ASGD, AnyPrecisionAdamW, create


def test_bits_that_no_state_takes() -> None:
    params = [torch.nn.Parameter(torch.ones(3))]
    for bits in (32, 16):
        assert isinstance(create("asgd", params, bits=bits), ASGD)
    message = r"ASGD: none of its states can be stored in 8 bits \(int8\): .*ax takes fp32, bf16, fp16"
    with pytest.raises(ValueError, match=message):
        create("asgd", params, bits=8)
    with pytest.raises(ValueError, match=message):
        create("asgd", params, optim_bits=8)


def test_bits_of_a_class_whose_states_have_no_choice() -> None:
    params = [torch.nn.Parameter(torch.ones(3))]
    assert isinstance(create("anyprecisionadamw", params, bits=32), AnyPrecisionAdamW)
    with pytest.raises(ValueError, match="AnyPrecisionAdamW stores its states in 32 bits alone, not 8"):
        create("anyprecisionadamw", params, bits=8)
    with pytest.raises(TypeError, match="optim_bits"):
        create("anyprecisionadamw", params, optim_bits=8)
