"""Generated files are those that are committed, to the byte, wherever and however they are generated."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from support.compiling import ROOT, own_package, stock_package

from optgen.compiler import compile_specs
from optgen.emit.writer import check
from optgen.explanation import Target
from optgen.spec.names import SHARED_FILES

HERE = Path(__file__).parent
SPECS = sorted((HERE / "specs").glob("*.yaml"))
GOLDENS = HERE / "goldens"
ALONE: dict[str, tuple[str, Target]] = {
    "AdamW8bit.cpp": ("AdamW8bit", "cpu"),
    "AdamW8bit.cu": ("AdamW8bit", "cuda"),
    "AdamW8bit_torch.py": ("AdamW8bit", "torch"),
    "LAMB8bit.cpp": ("LAMB8bit", "cpu"),
}
"""Output of `optgen explain --code`: a class of one pass on every target, and one of two."""
DIGESTS = """
import hashlib, sys
from pathlib import Path
from optgen.compiler import compile_specs
root = Path(sys.argv[1])
for paths, name in (([root / "specs"], "optgen_optim"), (sorted((root / "tests/specs").glob("*.yaml")), "rules")):
    files = compile_specs(paths, name).files
    print(hashlib.sha256(repr(list(files.items())).encode()).hexdigest())
"""


def test_the_stock_package_is_fresh() -> None:
    difference = check(stock_package(), ROOT / "generated" / "optgen_optim")
    assert difference == "", f"run `optgen build specs/`:\n{difference[:3000]}"


@cache
def rendered() -> dict[str, str]:
    files: dict[str, str] = {}
    for spec in SPECS:
        made = compile_specs([spec], "golden").files
        files |= {name: text for name, text in made.items() if name.startswith(spec.stem)}
    together = compile_specs(SPECS, "golden").files
    return files | {name: text for name, text in together.items() if name.partition(".")[0] in SHARED_FILES}


@pytest.mark.parametrize("name", sorted(rendered()))
def test_golden(name: str, update_golden: bool) -> None:
    hold(name, rendered()[name], update_golden)


@pytest.mark.parametrize("name", ALONE)
def test_golden_of_a_class_alone(name: str, update_golden: bool) -> None:
    info = next(info for info in stock_package().classes if info.name == ALONE[name][0])
    hold(name, info.code(ALONE[name][1]), update_golden)


def hold(name: str, text: str, update_golden: bool) -> None:
    golden = GOLDENS / f"{name}.txt"
    if update_golden:
        GOLDENS.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), "run `pytest tests/snapshots --update-golden`"
    assert text == golden.read_text(encoding="utf-8"), "if it is meant so, run `pytest tests/snapshots --update-golden`"


def test_no_golden_is_stale(update_golden: bool) -> None:
    stale = [path for path in GOLDENS.iterdir() if path.name.removesuffix(".txt") not in {*rendered(), *ALONE}]
    if update_golden:
        for path in stale:
            path.unlink()
        return
    assert stale == []


@pytest.mark.slow  # what is committed is from another process, and from another directory as a rule
def test_the_same_bytes_whatever_the_hash_seed_and_the_directory(tmp_path: Path) -> None:
    """Here hashes have a seed that Python draws, unless it is given one."""
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DIGESTS, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    texts = [repr(list(package.files.items())) for package in (stock_package(), own_package())]
    assert done.stdout.split() == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
