"""The code books: against bitsandbytes' own, their closed form and their known bytes; the header made from them."""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from oracles.storage import code_book as oracle_book

from optgen.codecs import CODECS, WHOLE_TENSOR, code_book, codec, dynamic_map, float32, midpoints
from optgen.dtypes import DTYPES, dtype
from optgen.runtime.states.torch_codecs import decode, encode, unpacked

ROOT = Path(__file__).parents[2]

# SHA-256 of 256 float32 (little-endian): stored states are read with these, so that they stay as they are.
DIGESTS = {
    True: "5c7e9d6ea2bd6fb0e5f94a36e7415190b72f51aa4587cc9a6b524af4fa9530c4",
    False: "ee7ecaba0e79e86b5e337fba8bcb180e4e71aa5e11260a694f379cf8d2aab8ac",
}
# Of bitsandbytes 0.50.2's create_dynamic_map(signed, 7, 8) with AVX2.
PUBLISHED = {
    True: "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c",
    False: "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398",
}


def digest(book: tuple[float, ...]) -> str:
    return hashlib.sha256(struct.pack("<256f", *book)).hexdigest()


@pytest.mark.parametrize("signed", [True, False])
def test_books_have_the_known_bytes(signed: bool) -> None:
    assert digest(code_book(signed)) == DIGESTS[signed]
    assert digest(dynamic_map(signed)) == PUBLISHED[signed]


@pytest.mark.parametrize("signed", [True, False])
def test_published_map_equals_bitsandbytes(signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.create_dynamic_map(signed=signed, max_exponent_bits=7, total_bits=8)
    ours = torch.tensor(dynamic_map(signed))
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":  # there torch.linspace rounds twice where FMA rounds once
        assert (ours.view(torch.int32) - theirs.view(torch.int32)).abs().max() <= 2
    else:
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("signed", [True, False])
def test_book_is_the_published_map_but_for_last_places(signed: bool) -> None:
    ours, theirs = torch.tensor(code_book(signed)), torch.tensor(dynamic_map(signed))
    assert (ours.view(torch.int32) - theirs.view(torch.int32)).abs().max() <= 2


@pytest.mark.parametrize("signed", [True, False])
def test_lines_are_those_of_the_least_error(signed: bool) -> None:
    """Of the oracle's, which looks for them."""
    assert list(code_book(signed)) == list(oracle_book(signed))


def closed_form(signed: bool, code: int) -> float:
    """The value of a code by its formula, in float64."""
    k = abs(code - 127) if signed else code
    if k == (128 if signed else 255):
        return 1.0
    if k == 0:
        return 0.0
    first = k if signed else k + 1  # decade's first number is a power of two
    decade = first.bit_length() - (1 if signed else 2)
    cells = 2 ** (decade if signed else decade + 1)
    value = (0.1 + 0.9 * (first - cells + 0.5) / cells) * 10.0 ** (decade - 6)
    return -value if signed and code < 127 else value


@pytest.mark.parametrize("signed", [True, False])
def test_book_has_the_closed_form(signed: bool) -> None:
    expected = [closed_form(signed, code) for code in range(256)]
    assert code_book(signed) == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_book_is_ascending_float32(signed: bool) -> None:
    book = code_book(signed)
    assert all(a < b for a, b in pairwise(book))
    assert all(float32(value) == value for value in book)
    assert book[255] == 1.0
    assert book[127 if signed else 0] == 0.0


def test_signed_book_is_symmetric_but_for_its_largest() -> None:
    book = code_book(True)
    assert [-value for value in book[126::-1]] == list(book[128:255])


@pytest.mark.parametrize("signed", [True, False])
def test_midpoints_lie_between_magnitudes(signed: bool) -> None:
    magnitudes = [value for value in code_book(signed) if value >= 0.0]
    thresholds = midpoints(signed)
    assert len(thresholds) == (128 if signed else 255)
    for low, threshold, high in zip(magnitudes, thresholds, magnitudes[1:], strict=False):
        assert low < threshold < high
        assert threshold == float32((low + high) / 2)


@pytest.mark.parametrize(
    ("name", "signed", "table"),
    [("int4", True, "true, DynamicMap"), ("normal4", True, "true, NormalBook"), ("int4", False, "false, Numbers")],
)
def test_4_bit_header_has_the_book(name: str, signed: bool, table: str) -> None:
    text = (ROOT / "templates" / "include" / "optgen" / "int4_books.h").read_text(encoding="utf-8")
    table = text[text.index(f"struct Int4Tables<{table}> {{") :].partition("\n};")[0]
    numbers = [
        [float32(float(number)) for number in re.findall(r"(-?[\d.e+-]+)f\b", part)] for part in table.split("= {")
    ]
    assert numbers[1] == list(code_book(signed, name))
    if signed:
        assert numbers[2] == list(midpoints(signed, name))


def test_normal_book_has_the_least_error() -> None:
    """Each magnitude is the mean of those nearest to it, weighted by their block's scale; but for 0 and 1."""
    x = torch.randn(60_000, 64, generator=torch.Generator().manual_seed(0))
    scales = x.abs().amax(dim=1, keepdim=True)
    y, weights = (x / scales).flatten().double().abs(), scales.expand_as(x).flatten().double().square()
    codes, absmax = encode("normal4", x, True)
    decoded = decode("normal4", codes, absmax, True, x.shape)
    nearest = (unpacked(codes).long() - 7).abs()
    means = torch.zeros(9, dtype=torch.float64).index_add_(0, nearest, weights * y)
    means /= torch.zeros(9, dtype=torch.float64).index_add_(0, nearest, weights)
    book = code_book(True, "normal4")
    assert means[1:8].tolist() == pytest.approx(book[8:15], abs=1.5e-3)
    assert (book[7], book[15]) == (0.0, 1.0)
    error = (decoded - x).norm() / x.norm()
    of_dynamic = (decode("int4", *encode("int4", x, True), True, x.shape) - x).norm() / x.norm()
    assert error < 0.093 < 0.14 < of_dynamic


def test_header_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_books.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_modules_are_free_of_torch_and_numpy() -> None:
    code = "import sys, optgen.codecs, optgen.dtypes; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_codec_table() -> None:
    assert list(CODECS) == ["fp32", "bf16", "fp16", "int8", "int4", "normal4", "fp8", "companded8"]
    assert [c.bits for c in CODECS.values()] == [32, 16, 16, 8, 4, 4, 8, 8]
    assert [c.packed for c in CODECS.values()] == [1, 1, 1, 1, 2, 2, 1, 1]
    assert [c.scales(1000) for c in CODECS.values()] == [0, 0, 0, 4, 8, 16, 4, 32]
    assert [c.scales(0) for c in CODECS.values()] == [0] * 8
    assert [c.with_block(WHOLE_TENSOR).scales(0) for c in CODECS.values()] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [c.state_bytes(1000) for c in CODECS.values()] == [4000, 2000, 2000, 1016, 532, 564, 1016, 1128]
    assert codec("int8").with_block(WHOLE_TENSOR).state_bytes(1000) == 1004
    assert codec("int8").bytes_per_element == 1.015625
    assert codec("int4").with_block(32).bytes_per_element == 0.625
    assert all(hasattr(torch, name) and getattr(torch, name).itemsize == d.bytes for name, d in DTYPES.items())


def test_cpp_types() -> None:
    assert codec("fp16").cpp_type(True) == "Plain<optgen::fp16>"
    assert codec("int4").cpp_type(False) == "Blocked<Int4<false>, 128>"
    assert codec("normal4").cpp_type(True) == "Blocked<Int4<true, NormalBook>, 64>"
    assert codec("companded8").with_block(WHOLE_TENSOR).cpp_type(True) == "Tensorwise<Companded8<true>>"


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match="unknown codec 'int9': expected one of fp32, bf16, fp16, int8, int4, normal4, fp8, companded8"
    ):
        codec("int9")
    with pytest.raises(
        ValueError,
        match="unknown dtype 'float64': expected one of float32, bfloat16, float16, float8_e4m3fn, uint8, int8, int16",
    ):
        dtype("float64")
