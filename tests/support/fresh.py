"""Python processes that have torch from the start: one has imported it, and they are forked from that one.

Importing torch, and what its optimizers import as the first of them is made, takes seconds of a processor: too much for
each of the processes that tests need for themselves. `python` here is a program to be called as Python is, with a
script, `-c` or `-m`. Nothing of optgen is imported in what it becomes. What torch and C libraries read from the
environment as they are loaded is that of the first call; options of Python but `-u` are not taken.

As a program: `fresh.py serve FOLDER PID` forks, until process PID is gone; `fresh.py call FOLDER …` is what `python`
calls.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

LENGTH = 8  # bytes that tell how long a request is
FILES = 3  # standard input, output and error


def python(folder: Path) -> str:
    """The path of the program. The folder is one for all workers of a run, which each call this while no other does."""
    if sys.platform != "linux":
        return sys.executable  # elsewhere a process that has loaded so much is not safely forked
    program = folder / "python"
    if not program.exists():
        folder.mkdir(mode=0o700)
        words = [sys.executable, "-I", "-S", __file__, "call", str(folder)]
        program.write_text(f'#!/bin/sh\nexec {" ".join(map(repr, words))} "$@"\n', encoding="utf-8")
        program.chmod(0o700)
        whole_run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, __file__, "serve", str(folder), str(whole_run)]
        os.posix_spawn(sys.executable, command, environment)  # which outlives the tests of the worker that starts it
    return str(program)


def call(folder: Path, arguments: list[str]) -> NoReturn:
    """Has a process started with this one's arguments, environment, folder and files, and ends as it does."""
    while arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
    request = json.dumps(asked).encode()
    with socket.socket(socket.AF_UNIX) as server:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                server.connect(str(folder / "socket"))
                break
            time.sleep(0.05)  # it has been started just now
        files = array.array("i", range(FILES))
        server.sendmsg([len(request).to_bytes(LENGTH)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        server.sendall(request)
        code = int(server.recv(16) or b"1")
    if code < 0:
        with contextlib.suppress(OSError):  # some cannot be changed
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(folder: Path, whole_run: int) -> dict[str, Any]:
    """Answers calls until the run of tests is over; returns in each process that is forked, with what was asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    importlib.import_module("torch._dynamo")  # what the first optimizer that is made imports
    gc.freeze()  # processes need not look through what has been imported, nor copy its pages
    running: dict[int, tuple[socket.socket, int]] = {}  # by what tells of a process's end: its caller, its number
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while Path(f"/proc/{whole_run}").exists():
            for key, _ in selector.select(timeout=1):
                if key.fileobj is listener:
                    caller, _ = listener.accept()
                    request, files = received(caller)
                    pid = os.fork()
                    if pid == 0:
                        for number, file in enumerate(files):
                            os.dup2(file, number)
                        os.closerange(FILES, max(*files, *running, caller.fileno()) + 1)
                        return request
                    for file in files:
                        os.close(file)
                    end = os.pidfd_open(pid)
                    running[end] = caller, pid
                    selector.register(end, selectors.EVENT_READ)
                    selector.register(caller, selectors.EVENT_READ, end)
                elif key.data is not None:  # a caller is gone
                    selector.unregister(key.fileobj)
                    if key.data in running:
                        os.kill(running[key.data][1], signal.SIGKILL)
                else:
                    assert isinstance(key.fileobj, int)
                    selector.unregister(key.fileobj)
                    caller, pid = running.pop(key.fileobj)
                    os.close(key.fileobj)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with contextlib.suppress(KeyError):
                        selector.unregister(caller)
                    with caller, contextlib.suppress(BrokenPipeError):
                        caller.sendall(str(code).encode())
    for _, pid in running.values():
        os.kill(pid, signal.SIGKILL)
    sys.exit()


def received(caller: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A call, and its files."""
    files = array.array("i")
    head, found, _, _ = caller.recvmsg(LENGTH, socket.CMSG_LEN(FILES * files.itemsize))
    files.frombytes(found[0][2])
    body = b""
    while len(body) < int.from_bytes(head):
        body += caller.recv(1 << 16)
    return json.loads(body), list(files)


def become(request: dict[str, Any]) -> Callable[[], object]:
    """Makes this process what Python would be as it begins to run; returns what it is to do."""
    import numpy as np
    import torch

    np.random.seed()  # Python's own numbers begin again by themselves
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    first, *rest = request["arguments"]
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    sys.path[0:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if first == "-m":
        sys.argv = rest
        sys.path.insert(0, str(Path.cwd()))
        return lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        return lambda: exec(rest[0], main.__dict__)
    sys.argv = [first, *rest]
    sys.path.insert(0, str(Path(first).resolve().parent))
    main.__dict__["__file__"] = first
    return lambda: exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)


def end(work: Callable[[], object]) -> NoReturn:
    """Works and ends as Python does, but leaves it to the system to take everything down, which takes long."""
    code: Any = 0
    try:
        work()
    except SystemExit as stop:
        code = stop.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        file.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "call":
        call(Path(sys.argv[2]), sys.argv[3:])
    end(become(serve(Path(sys.argv[2]), int(sys.argv[3]))))
