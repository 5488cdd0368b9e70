"""Files of any content give specs or a `SpecError`, and soon."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optgen import paths
from optgen.diagnostics import Reporter, SpecError
from optgen.spec.loader import load_specs

STOCK = {path.name: path.read_bytes() for path in sorted(paths.specs_dir().glob("*.yaml"))}
SNIPPETS = [
    b"\t", b"\0", b"\xff", b"\xc3", b": ", b"- ", b"? ", b"|", b">", b"'", b'"', b"{", b"}", b"[", b"]", b"&a ", b"*a",
    b"!!int ", b"!", b"%", b"<<: ", b"#", b"\n", b"\r", b"---\n", b"...\n", b"\\", b"\\U00110000", b"1e999", b"null",
    b"9" * 5000, b"[" * 100, b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"{name", b"(0, 1", b"true", b"\xf0\x9d\x9b\xbd", b"@",
]  # fmt: skip


def _outcome(data: bytes, name: str = "adam.yaml") -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            load_specs([path], Reporter())
        except SpecError as error:
            assert error.diagnostics
            return str(error)
    return ""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "this file is empty"),
        (b"\n\n", "this file is empty"),
        (b"~", "this file is empty"),
        (b"\x00\x01\x02" * 1000, "it holds zero bytes"),
        (b"\x7fELF\x01\x01", "not allowed in a spec"),
        (b"name: caf\xe9\n", "the byte 0xe9 is not UTF-8"),
        (b"a" * 10_000_000, "larger than 256 kB"),
        (b"name: adam\n" * 900_000, "larger than 256 kB"),
        (b"[" * 100_000, "nests more than 24 levels deep"),
        (b"{a: " * 50_000, "nests more than 24 levels deep"),
        (b"- " * 50_000, "nests more than 24 levels deep"),
        (b"\n".join(b" " * n + b"a:" for n in range(500)), "nests more than 24 levels deep"),
        (b"a: [" + b"1," * 100_000, "more than 1000 items"),
        (b"a: &a [x]\nb: *a\n", "anchors are not allowed"),
        (b"a: *a\n", "aliases are not allowed"),
        (b"a: &a\n  b: *a\n", "anchors are not allowed"),
        (b"!!python/object/apply:os.system [ls]", "tags are not allowed"),
        (b"%YAML 9.9\n---\na: 1\n", "this is not YAML"),
        (b"a: '\xe2\x80\xa8'\n", "the character U+2028 is not allowed"),
        (b'a: "\\ud800"\n', "U+D800"),
        (b"name: 5\n", "expected text, found `5`"),
        (b"42", "a spec is a mapping of keys to values"),
        (b"just some words", "a spec is a mapping of keys to values"),
    ],
)
def test_bad_files(data: bytes, said: str) -> None:
    assert said in _outcome(data)


def test_large_files_within_the_limit_are_read() -> None:
    lines = b"".join(b"  h%d: {default: 1, doc: text of a setting}\n" % n for n in range(2000))
    assert _outcome(b"name: adam\nblocks: {step: param = param - grad}\nhyperparameters:\n" + lines) == ""


def test_many_errors_are_counted() -> None:
    lines = b"".join(b"k%d: 1\n" % n for n in range(100))
    assert _outcome(b"name: adam\nblocks: {step: x = 1}\n" + lines).endswith("and 50 more errors")


@st.composite
def _mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(STOCK)))
    data = bytearray(STOCK[name])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["insert", "delete", "flip", "move"]))
        if kind == "insert":
            data[at:at] = draw(st.sampled_from(SNIPPETS))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 60))]
        elif kind == "flip" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        else:
            other = draw(st.integers(0, len(data)))
            data[at:at] = data[other : other + draw(st.integers(1, 60))]
    return name, bytes(data)


@pytest.fixture(scope="module")
def stock_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of specs/ in one place, so that what has not changed in it is not parsed again."""
    folder = tmp_path_factory.mktemp("specs")
    for name, text in STOCK.items():
        (folder / name).write_bytes(text)
    return folder


@given(_mutated())
@settings(max_examples=60, deadline=None)
def test_mutated_specs_raise_nothing_but_spec_errors(stock_copy: Path, mutated: tuple[str, bytes]) -> None:
    name, data = mutated
    (stock_copy / name).write_bytes(data)
    try:
        load_specs([stock_copy], Reporter())
    except SpecError as error:
        assert str(error)
    finally:
        (stock_copy / name).write_bytes(STOCK[name])


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_bytes_raise_nothing_but_spec_errors(data: bytes) -> None:
    _outcome(data)
