"""Description of the machine that figures depend on, and of what else it does while they are measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optgen.bench.contenders import SETTINGS
from optgen.runtime.building.cache import find_compiler
from optgen.runtime.building.compilers import vectors

CPUINFO, STAT = Path("/proc/cpuinfo"), Path("/proc/stat")
IDLE_COLUMNS = (3, 4)  # of a line of STAT: idle, and waiting for a disk
GUEST_COLUMN = 8  # from where on what is counted already is counted again
LOOK_SECONDS = 0.3
BUSY_FROM = 0.2  # processors at work for others, from which figures suffer


def machine() -> dict[str, Any]:
    """Description of the processor and of the software that figures depend on, and of other work at this moment."""
    compiler = find_compiler()
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_vectors": torch.backends.cpu.get_cpu_capability(),
        "compiler": None if compiler is None else compiler.version.partition("\n")[0],
        "vectors": None if compiler is None else vectors(compiler),
        "settings": dict(SETTINGS),
        "load": other_work(),
    }


def machine_line(about: Mapping[str, Any]) -> str:
    """The machine in a line."""
    words = [str(about["processor"])]
    if "threads" in about:
        words.append("1 thread" if about["threads"] == 1 else f"{about['threads']} threads")
    if about.get("compiler"):
        words.append(f"{about['vectors']} by {about['compiler']}")
    capability = f" ({about['torch_vectors']})" if about.get("torch_vectors") else ""
    return ", ".join([*words, f"torch {about['torch']}{capability}"])


def load_note(about: Mapping[str, Any]) -> str:
    """Warning that other work runs; "" if none does."""
    load = about.get("load", 0.0)
    if load < BUSY_FROM:
        return ""
    return f"note: other programs keep {load:.1f} processors busy; every figure will be worse and less certain"


def processor_name() -> str:
    """Name of the processor's model, with the numbers that tell it from others of a name such as "Intel(R) Xeon(R)
    Processor"; on ARM, where there is no name, the numbers of its maker and part."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    known = (("cpu family", "family"), ("model", "model"), ("stepping", "stepping"))
    parts = (("CPU implementer", "maker"), ("CPU part", "part"), ("CPU variant", "variant"))
    numbers = [f"{word} {fields[name]}" for name, word in (*known, *parts) if name in fields]
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(numbers)})" if numbers else name


@dataclass(frozen=True)
class Work:
    """Seconds of work, of all processors that this process may use and of this process, up to a moment."""

    moment: float
    all: float
    own: float

    @staticmethod
    def now() -> Work | None:
        """The work up to now; None where the system does not tell."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        try:
            lines = STAT.read_text(encoding="ascii").splitlines()
            usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            ticks = [[int(word) for word in line.split()[1:]] for line in lines if line.split(" ")[0] in usable]
            busy = sum(sum(row[:GUEST_COLUMN]) - sum(row[column] for column in IDLE_COLUMNS) for row in ticks)
            return Work(time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), own)
        except (OSError, ValueError, IndexError, AttributeError):
            return None

    def others_since(self) -> float:
        """Processors that others have kept busy since then, on average."""
        now = Work.now()
        if now is None or now.moment <= self.moment:
            return 0.0
        return max(now.all - self.all - (now.own - self.own), 0.0) / (now.moment - self.moment)


def other_work(seconds: float = LOOK_SECONDS) -> float:
    """Processors that other programs keep busy, of those that this one may use; where the system does not tell, the
    processes that have wanted one in the last minute."""
    before = Work.now()
    if before is None:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    time.sleep(seconds)
    return before.others_since()
