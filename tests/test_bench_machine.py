"""Descriptions of the machine in benchmarks: which processor, which vectors, and other work that it does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.machine import require_compiler

from optgen.bench import machine
from optgen.runtime.building.cache import find_compiler
from optgen.runtime.building.compilers import processor

UNNAMED = (
    "processor : 0\nvendor_id : GenuineIntel\ncpu family : 6\nmodel : 143\nmodel name : Intel(R) Xeon(R) Processor\n"
)
ARM = "processor : 0\nBogoMIPS : 243.75\nCPU implementer : 0x41\nCPU variant : 0x3\nCPU part : 0xd0c\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (UNNAMED + "\n" + UNNAMED.replace("143", "1"), "Intel(R) Xeon(R) Processor (family 6, model 143)"),
        (ARM, " (maker 0x41, part 0xd0c, variant 0x3)"),
    ],
)
def test_a_processor_is_told_from_others_of_its_name(
    text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.processor_name().endswith(name)
    (tmp_path / "cpuinfo").unlink()
    assert machine.processor_name()


def test_vectors_are_those_that_kernels_are_compiled_to() -> None:
    require_compiler()
    compiler = find_compiler()
    assert compiler is not None
    features = processor().split()
    if "avx2" not in features:
        pytest.skip("a processor without AVX2")
    narrow = dataclasses.replace(compiler, flags=("-march=native", "-mno-avx512f"))
    assert machine.vectors(narrow) == "AVX2, 256 bits"
    if "avx512f" in features:
        wide = dataclasses.replace(compiler, flags=("-march=native", "-mprefer-vector-width=512"))
        assert machine.vectors(wide) == "AVX-512, 512 bits"
        assert machine.vectors(dataclasses.replace(wide, flags=("-march=native",))) == "AVX-512, 512 bits"
        halves = dataclasses.replace(wide, flags=("-march=native", "-mprefer-vector-width=256"))
        assert machine.vectors(halves) == "AVX-512, 256 bits"


def test_other_work_is_seen_and_the_own_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {1}, raising=False)
    tick = machine.os.sysconf("SC_CLK_TCK")

    def busy(seconds: int) -> None:
        row = f"{seconds * tick} 0 0 7 9 0 0 0 5 5"  # the last two are in the first already
        (tmp_path / "stat").write_text(f"cpu  {row}\ncpu0 999 0 0 0 0 0 0 0 0 0\ncpu1 {row}\nintr 1\n")

    busy(100)
    before = machine.Work.now()
    assert before is not None
    assert before.all == 100.0
    busy(160)
    own = dataclasses.replace(before, moment=time.monotonic() - 100.0, own=before.own - 10.0)
    assert own.others_since() == pytest.approx(0.5, abs=0.05)
    assert machine.load_note({"load": own.others_since()}).startswith("note: other programs keep 0.5 processors busy")
    assert machine.load_note({"load": 0.1}) == machine.load_note({}) == ""
    (tmp_path / "stat").write_text("nothing\n")
    assert dataclasses.replace(before, moment=0.0).others_since() == 0.0
    monkeypatch.setattr(machine, "STAT", tmp_path / "absent")
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    assert machine.other_work() == 1.5


def test_another_program_is_noticed() -> None:
    if machine.Work.now() is None:
        pytest.skip("the system does not tell")
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert max(machine.other_work(0.5) for _ in range(20)) > machine.BUSY_FROM
    finally:
        other.kill()
        other.wait()


def test_the_line() -> None:
    about = {"processor": "Best", "threads": 1, "torch": "2", "torch_vectors": "AVX2"}
    more = {"compiler": "g++ 12.2", "vectors": "AVX2, 256 bits"}
    assert machine.machine_line({**about, **more}) == "Best, 1 thread, AVX2, 256 bits by g++ 12.2, torch 2 (AVX2)"
    assert machine.machine_line({"processor": "GPU", "torch": "2"}) == "GPU, torch 2"
