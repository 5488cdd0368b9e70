"""Every file of `invalid/` and what is said of it: `NAME.yaml`, and `NAME.txt` beside it.

`OPTGEN_UPDATE=1 pytest tests/spec/test_invalid.py` writes the texts again; read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optgen.diagnostics import Reporter, SpecError
from optgen.spec.loader import load_specs

INVALID = Path(__file__).parent / "invalid"
FILES = sorted(path.name for path in INVALID.glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_says_exactly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(INVALID)
    with pytest.raises(SpecError) as error:
        load_specs([Path(name)], Reporter())
    expected = INVALID / Path(name).with_suffix(".txt")
    said = f"{error.value}\n"
    if os.environ.get("OPTGEN_UPDATE"):
        expected.write_text(said, encoding="utf-8")
    assert said == expected.read_text(encoding="utf-8")


def test_every_text_has_its_file() -> None:
    assert sorted(path.stem for path in INVALID.glob("*.txt")) == [Path(name).stem for name in FILES]
