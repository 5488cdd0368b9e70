"""`tools/count_instructions.py` counts what a kernel runs for a tile, in both widths."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import pytest
from support.compiling import ROOT

# Numbers of which roots and quotients are taken, by the width of the registers that hold them.
SCRIPT = """
import re, sys
sys.path.insert(0, "tools")
import torch
from count_instructions import Case, executed
torch.set_num_threads(1)
for tiles in (2, 5):
    lines = executed(Case("AdamW32bit", ""), tiles)
    found = [re.match(r"v(sqrt|div)ps .*%([xyz])mm", line) for line in lines]
    print(*(sum(4 << "xyz".index(x[2]) for x in found if x and x[1] == name) for name in ("sqrt", "div")))
"""

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("objdump") is None, reason="reads x86's code with objdump"
)


@pytest.mark.parametrize("flags", ["", "-mno-avx512f"])
def test_a_tile_takes_a_root_and_a_quotient_of_every_element(flags: str) -> None:
    command = [sys.executable, "-c", SCRIPT]
    environment = {**os.environ, "OPTGEN_CXXFLAGS": flags}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100)
    if "PermissionError" in said.stderr:
        pytest.skip("this system lets no process step through another one")
    assert said.returncode == 0, said.stderr
    (few_roots, few_quotients), (roots, quotients) = [map(int, line.split()) for line in said.stdout.splitlines()]
    assert (roots - few_roots, quotients - few_quotients) == (3 * 256, 3 * 256)


def test_ports_are_busy_for_as_long_as_the_processors_tables_say() -> None:
    import count_instructions

    roots = count_instructions.cycles_of(["vsqrtps %ymm0, %ymm1"] * 100)
    if not roots:
        pytest.skip("no llvm-mca that knows this processor")
    sums = count_instructions.cycles_of(["vpaddd %ymm0, %ymm1, %ymm2"] * 100)
    assert roots[0] > 4 * sums[0]
    assert roots[1] >= roots[0]
