"""The companded codes on a GPU: of every number the right one, however the GPU's approximations err.

The kernels take quotients and roots from approximations that NVIDIA documents: `rcp.approx.ftz.f32` is within one unit
in the last place, `rsqrt.approx.ftz.f32` within a relative error of 2^-22.9. Both are within three units: all of those
are tried here. What is computed of them is off by less than 2^-20, so that only numbers next to a step from one code to
the next can have a wrong one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import standin
from standin.texts import cubin
from support.codec_kernels import INCLUDE, on_device

from optgen.runtime.cuda.driver import load_driver

KERNELS = """
#include <optgen/cuda.h>
using namespace optgen;

constexpr int ERRORS = 3;

__device__ float off(float x, int units) { return bits_float(float_bits(x) + uint32_t(units)); }

__device__ bool is_right_signed(float y) {
  const float d = 1.0f + y, near = float(1.0 / double(d));
  const uint32_t right = uint32_t(::floorf((y + y) / d * 127.0f + 0.5f));
  for (int e = -ERRORS; e <= ERRORS; ++e) {
    if (companded_steps(y, off(near, e)) != right) return false;
  }
  return true;
}

__device__ bool is_right_unsigned(float y) {
  const float near = float(1.0 / ::sqrt(double(y)));
  const uint32_t right = uint32_t(::floorf(float(::sqrt(double(y))) * 255.0f + 0.5f));
  for (int e = -ERRORS; e <= ERRORS; ++e) {
    if (companded_root_steps(y, off(near, e)) != right) return false;
  }
  return true;
}

// Of so many numbers from `first` on, by their bits.
extern "C" __global__ void count_wrong(const uint32_t* first, const uint32_t* count, int is_signed, uint64_t* wrong) {
  wrong[blockIdx.x] = 0;
  for (uint32_t i = 0; i < count[blockIdx.x]; ++i) {
    const float y = bits_float(first[blockIdx.x] + i);
    wrong[blockIdx.x] += !(is_signed ? is_right_signed(y) : is_right_unsigned(y));
  }
}

extern "C" __global__ void count_wrong_numbers(uint64_t* wrong) {
  *wrong = 0;
  for (int code = -128; code < 128; ++code) {
    const float v = float(code) * (1.0f / 127.0f), d = 2.0f - fabsf(v), near = float(1.0 / double(d));
    for (int e = -ERRORS; e <= ERRORS; ++e) *wrong += float_bits(expanded(v, off(near, e))) != float_bits(v / d);
  }
}
"""
AROUND = 2048  # units in the last place, of at least 2^-24 each
LEAST = {True: 2.0**-12, False: 2.0**-20}  # magnitudes below have the code of 0: 254 y and 255 sqrt(y) are below 1/2


@pytest.fixture
def module(driver: standin.Driver, tmp_path: Path) -> Iterator[object]:
    with on_device():
        yield load_driver().module_from_buffer(cubin(tmp_path, KERNELS, f"-I{INCLUDE}"))


def wrong(module: object, first: np.ndarray, count: np.ndarray, signed: bool) -> int:
    found = np.zeros(len(first), np.uint64)
    function = module.get_function("count_wrong")  # type: ignore[attr-defined]
    function.prepare("PPiP")
    addresses = [array.ctypes.data for array in (first, count)]
    function.prepared_call((len(first), 1), (1, 1, 1), *addresses, int(signed), found.ctypes.data)
    return int(found.sum())


def steps(signed: bool) -> np.ndarray:
    """The bits of the numbers where one code gives way to the next."""
    half = np.arange(1, 128 if signed else 256) - 0.5
    places = half / (254 - half) if signed else (half / 255) ** 2
    return places.astype(np.float32).view(np.uint32)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_codes_around_every_step(signed: bool, module: object) -> None:
    first = steps(signed) - np.uint32(AROUND)
    count = np.minimum(2 * AROUND, np.float32(1.0).view(np.uint32) + 1 - first).astype(np.uint32)
    assert wrong(module, first, count, signed) == 0


@pytest.mark.full
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_codes_of_all_numbers(signed: bool, module: object) -> None:
    least, one = (int(np.float32(x).view(np.uint32)) for x in (LEAST[signed], 1.0))
    first = np.array([least], np.uint32)
    assert wrong(module, first, np.array([one + 1 - least], np.uint32), signed) == 0


def test_numbers_of_all_codes(module: object) -> None:
    found = ctypes.c_uint64(1)
    function = module.get_function("count_wrong_numbers")  # type: ignore[attr-defined]
    function.prepare("P")
    function.prepared_call((1, 1), (1, 1, 1), ctypes.addressof(found))
    assert found.value == 0
