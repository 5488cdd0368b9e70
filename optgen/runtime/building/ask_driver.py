"""Asks NVIDIA's driver for its devices and prints them as JSON; run as a program, which is given the library's name."""

from __future__ import annotations

import ctypes
import json
import sys

NO_DEVICE = 100
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def ask(library: str) -> dict[str, object]:
    """Ask the driver: installed, failure, cuda (its release), gpus (pairs of name and architecture)."""
    answer: dict[str, object] = {"installed": False, "failure": "", "cuda": "", "gpus": []}
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        return {**answer, "failure": str(error)}
    answer["installed"] = True
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0:
        answer["cuda"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
    status = driver.cuInit(0)
    if status == NO_DEVICE:
        return answer
    if status != 0:
        return {**answer, "failure": _error(driver, status)}
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    gpus = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
        gpus.append((name.value.decode("utf-8", "replace"), f"sm_{major.value}{minor.value}"))
    return {**answer, "gpus": gpus}


def _error(driver: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    said = text.value.decode("utf-8", "replace") if text.value else "an unknown error"
    return f"cuInit failed with {status}: {said}"


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1])))
