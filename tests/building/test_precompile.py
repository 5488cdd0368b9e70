"""Compiling ahead of time: every kernel that default steps take, no kernel twice, none missing."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import optgen_optim
import pytest
import torch
from support.fake_programs import fake_nvcc, no_nvcc
from support.machine import require_compiler

from optgen.runtime import precompile
from optgen.runtime.building import nvcc
from optgen.runtime.building.cache import CompileError
from optgen.runtime.building.cubins import cubin, stored_cubins
from optgen.runtime.engines import cpu_engine
from optgen.runtime.precompile import STARTS, classes_of, compile_cubins, specializations
from optgen.runtime.settings.param_groups import DTYPES

PACKAGE = Path(optgen_optim.__file__).parent
CLASSES = optgen_optim.CLASSES


def test_each_once_and_for_every_dtype_and_size() -> None:
    found = specializations({"AdamW": CLASSES["AdamW"], "AdamW8bit": CLASSES["AdamW8bit"]}, "cuda", DTYPES)
    assert len({item.macros for item in found}) == len(found)
    for param in ("float", "optgen::bf16", "optgen::fp16"):
        of_param = [item.defines for item in found if item.defines["OPTGEN_PARAM_CODEC"] == f"Plain<{param}>"]
        assert all(d["OPTGEN_GRAD_CODEC"] == d["OPTGEN_PARAM_CODEC"] for d in of_param)
        for scaled in ("0", "1"):
            codecs = [d["OPTGEN_EXP_AVG_CODEC"] for d in of_param if d["OPTGEN_GRAD_SCALE_GIVEN"] == scaled]
            assert len(codecs) == 2
            assert sum("Int8" in codec for codec in codecs) == 1


def test_classes_that_share_kernels_share_them() -> None:
    names = ("AdamW", "AdamW32bit", "PagedAdamW", "PagedAdamW32bit")
    alone = specializations({"AdamW": CLASSES["AdamW"]}, "cuda", DTYPES)
    together = specializations({name: CLASSES[name] for name in names}, "cuda", DTYPES)
    assert {item.macros for item in together} == {item.macros for item in alone}


def test_the_cpu_target_takes_no_gradient_scaler() -> None:
    found = specializations(CLASSES, "cpu", (torch.float32,))
    assert {item.defines.get("OPTGEN_GRAD_SCALE_GIVEN", "0") for item in found} == {"0"}


def test_a_class_of_another_target_is_left_out() -> None:
    class Elsewhere(CLASSES["AdamW"]):  # type: ignore[misc, valid-type]
        fixed = {**CLASSES["AdamW"].fixed, "target": "torch"}  # noqa: RUF012

    assert specializations({"Elsewhere": Elsewhere}, "cuda", DTYPES) == []


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "LAMB", "LARS8bit", "LARS"])
def test_steps_take_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps of small and large tensors of several shapes ask for no kernel that is not in the list."""
    require_compiler()
    optimizer_class = CLASSES[name]
    listed = {item.macros for item in specializations({name: optimizer_class}, "cpu", DTYPES)}
    asked = set()
    real = cpu_engine.shared_library

    def noted(source: Path, defines: dict[str, str], *rest: object) -> object:
        asked.add(tuple(sorted(defines.items())))
        return real(source, defines, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cpu_engine, "shared_library", noted)
    shapes = ((), (3,), (2, 3), (2, 2, 2, 2), (64, 64), (4096,), (4, 4, 16, 16))
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    arguments = inspect.signature(optimizer_class).parameters
    starts = {key: value for key, value in STARTS.items() if key in arguments}
    optimizer_class(params, **starts, target="cpu").step()
    assert asked
    assert asked <= listed


def test_a_package_is_imported_without_taking_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(PACKAGE)
    before = {name for name in sys.modules if name.startswith("optgen_optim")}
    classes = classes_of("optgen_optim", tmp_path / "elsewhere")
    assert classes["AdamW"] is not CLASSES["AdamW"]
    assert sys.modules["optgen_optim"] is optgen_optim
    assert {name for name in sys.modules if name.startswith("optgen_optim")} == before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stock package with a small .cu for every rule, and a stand-in for nvcc."""
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    nvcc._examine.cache_clear()
    monkeypatch.setenv("OPTGEN_NVCC", str(fake_nvcc(tmp_path / "bin" / "nvcc")))
    copy = tmp_path / "optgen_optim"
    copy.mkdir()
    for path in PACKAGE.glob("*.py"):
        (copy / path.name).write_bytes(path.read_bytes())
        (copy / path.with_suffix(".cu").name).write_text("// a kernel\n", encoding="utf-8")
    yield copy
    nvcc._examine.cache_clear()


def test_all_cubins_are_made_and_serve_without_nvcc(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = nvcc.find_nvcc()
    assert found is not None
    wanted = specializations(CLASSES, "cuda", DTYPES)
    assert compile_cubins("optgen_optim", package, ("sm_80", "sm_90"), found) == 2 * len(wanted)
    assert len(stored_cubins(package)) == 2 * len(wanted)
    no_nvcc(monkeypatch, tmp_path)
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "empty"))
    for item in wanted:
        source = package / item.rule.cuda_source.name
        for device, built in (("sm_80", "sm_80"), ("sm_89", "sm_80"), ("sm_90", "sm_90")):
            assert f"-arch={built} ".encode() in cubin(source, item.defines, device, None)


def test_a_kernel_that_fails_stops_the_rest(package: Path, tmp_path: Path) -> None:
    found = nvcc.find_nvcc()
    assert found is not None
    log = tmp_path / "log"
    fake_nvcc(Path(found.path), log=log, build="echo 'adam.cu(1): error: no'; exit 1")
    with pytest.raises(CompileError, match=r"adam\.cu\(1\): error: no"):
        compile_cubins("optgen_optim", package, ("sm_80",), found)
    built = len(log.read_text(encoding="utf-8").splitlines())
    assert built < len(specializations(CLASSES, "cuda", DTYPES))
    assert stored_cubins(package) == []


def test_the_processors_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    both = threading.Barrier(2, timeout=30)
    monkeypatch.setattr(precompile.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert precompile._at_once(lambda _: both.wait() and None, [1, 2]) == 2
