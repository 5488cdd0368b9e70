"""Scenarios' processes: started in FOLDER by `python -m distributed.scenarios.run FOLDER PID`, for each number of them.

FOLDER/selection.json tells which scenarios run. What comes of each is a line of FOLDER/SIZE/results.jsonl; once these
processes have ended there is FOLDER/SIZE/ended, with the log of the first that failed. If process PID, which waits for
results, is gone, all are stopped.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distributed.scenarios.listing import SIZES, Key, every
from distributed.scenarios.world import LeftOut, World

TIMEOUT = timedelta(seconds=150)  # a busy machine can let one of them wait for long
SECONDS = 600
LOG = 4000  # characters of it that are kept


def main(folder: Path, pid: int) -> None:
    """Start the processes of one number after those of another; each number has its own."""
    keys = [Key(*key) for key in json.loads((folder / "selection.json").read_text())]
    every({key.module: None for key in keys})  # imported once: processes are forked
    gc.freeze()  # they need not look through what has been imported, nor copy its pages
    for size in SIZES:
        chosen = [key for key in keys if key.size == size]
        if chosen:
            own = folder / str(size)
            own.mkdir()
            log = run(own, chosen, pid)
            (own / "log").write_text(log)
            (own / "log").rename(own / "ended")


def run(folder: Path, keys: list[Key], pid: int) -> str:
    """Let as many processes run scenarios as these are for; the logs of those that failed."""
    size = keys[0].size
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=one_process, args=(folder, keys, rank)) for rank in range(size)]
    for process in processes:
        process.start()
    running, end = {process.sentinel: rank for rank, process in enumerate(processes)}, time.monotonic() + SECONDS
    failed = []
    while running and time.monotonic() < end and alive(pid):
        for rank in [running.pop(sentinel) for sentinel in connection.wait(list(running), timeout=0.5)]:
            processes[rank].join()
            if processes[rank].exitcode:
                failed.append((rank, f"ended with {processes[rank].exitcode}"))
    failed += [(rank, "has not ended") for rank in running.values()]
    for process in processes:
        process.kill()
        process.join()
    logs = {rank: folder / f"{rank}.log" for rank, _ in failed}
    said = {rank: log.read_text()[-LOG:] if log.exists() else "" for rank, log in logs.items()}
    return "\n".join(f"process {rank} {how}\n{said[rank]}" for rank, how in failed)


def alive(pid: int) -> bool:
    """Tell if there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def one_process(folder: Path, keys: list[Key], rank: int) -> None:
    """Run every scenario; one that fails on any process has failed."""
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    size = keys[0].size
    scenarios = every({key.module: None for key in keys})
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=TIMEOUT)
    here = World(rank, size, folder)
    for key in keys:
        begun = time.monotonic()
        own: dict[str, Any]
        try:
            own = {"value": scenarios[key].run(here)}
        except LeftOut as reason:
            own = {"left out": str(reason)}
        except Exception:
            own = {"error": f"on process {rank}:\n{traceback.format_exc()}"}
            print(f"{key}\n{own['error']}", flush=True)  # if the others wait for this process, nobody else learns it
        parts: list[Any] = [None] * size
        dist.all_gather_object(parts, own)
        if rank == 0:
            errors = [one["error"] for one in parts if "error" in one]
            left_out = [one for one in parts if "left out" in one]
            came = {"error": "\n".join(errors)} if errors else (left_out or parts)[0]
            came = {"id": str(key), "seconds": round(time.monotonic() - begun, 2), **came}
            with (folder / "results.jsonl").open("a") as results:
                results.write(json.dumps(came) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
