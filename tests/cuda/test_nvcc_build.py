"""The real nvcc compiles every kernel for the architectures from Turing to Blackwell: no warning, no spilled register.

So does NVRTC, of which a part of them is asked.

ptxas says of every kernel how many registers it takes and how many bytes of local memory: a stack frame or a spill
would put traffic on the memory that a step is bound by.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from support.asked import ask

import optgen
from optgen.codecs import parameter_codec
from optgen.runtime.building.entries import CompileError, words
from optgen.runtime.building.nvcc import FLAGS, Nvcc, escaped, find_nvcc, why_no_nvcc
from optgen.runtime.building.nvrtc import nvrtc_candidates
from optgen.runtime.building.programs import first_found, why_none
from optgen.runtime.core.bucket import Bucket
from optgen.runtime.engines.kernel_engine import defines
from optgen.runtime.precompile import STARTS, Specialization, specializations
from optgen.runtime.rule import Rule
from optgen.runtime.settings.param_groups import DTYPES
from optgen.runtime.settings.storage import choose_codecs, dtype_name, tensorwise

ARCHS = ("75", "80", "90", "100")
STRICT = ("-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage")
REGISTERS = {3: 80, 2: 128}  # what 256 threads leave for each, by the blocks that a multiprocessor is to hold
SPECS = Path(__file__).parents[1] / "specs"
TESTED = sorted(path.stem for path in SPECS.glob("*.yaml"))
OTHERS = [pytest.param(name, marks=() if name == "novograd" else pytest.mark.full) for name in TESTED]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

EIGHT_BITS: dict[str, Any] = {"optim_bits": 8, "min_8bit_size": 0}
SCALED = {"grad_scale": 1.0}


@dataclass(frozen=True)
class Case:
    """A class with settings that its defaults do not reach; `full` cases are left to `make test-all`."""

    name: str
    settings: Mapping[str, Any]
    dtype: torch.dtype = FP32
    grad_dtype: torch.dtype | None = None
    inputs: Mapping[str, float] | None = None
    full: bool = False

    def __str__(self) -> str:
        told = [f"{key}={value}" for key, value in {**self.settings, **(self.inputs or {})}.items()]
        dtypes = [str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.grad_dtype) if dtype is not None]
        return "-".join([self.name, *told, *dtypes])


QUANTIZED = {"min_8bit_size": 0}
ROUNDINGS = ("stochastic", "kahan", "split8", "split16")
HEAVY = {"percentile_clipping": 5, "max_unorm": 0.1, "nonfinite": "skip", "skip_zeros": True, "maximize": True}
CASES = [
    Case("AdamW", {"amsgrad": True, **HEAVY}, inputs=SCALED),
    Case("AdamW8bit", {**HEAVY, "min_8bit_size": 0}, inputs=SCALED),
    Case("AdamW8bit", {**HEAVY, "min_8bit_size": 0}, BF16, FP32, SCALED),
    Case("AdamW8bit", {**HEAVY, "min_8bit_size": 0, "block_wise": False}, BF16, inputs=SCALED),
    Case("AdamW8bit", {"min_8bit_size": 0, "block_wise": False}),
    Case("Adam", {"weight_decay": 0.1, "trust_ratio": "lamb", "percentile_clipping": 5}),
    Case("AdamW", {}, BF16, FP32),
    Case("AdamW", {"max_unorm": 0.1}, FP32, BF16),
    Case("LAMB8bit", {**HEAVY, "max_unorm": 0.5, "min_8bit_size": 0, "block_wise": False}, inputs=SCALED),
    Case("LAMB8bit", {"percentile_clipping": 5, "min_8bit_size": 0}, BF16, FP32),
    Case("LARS8bit", {"nesterov": True, "weight_decay": 0.1, "percentile_clipping": 5, "min_8bit_size": 0}, FP16),
    Case("LARS8bit", {"nesterov": True, "weight_decay": 0.1, "min_8bit_size": 0, "block_wise": False}, inputs=SCALED),
    Case("LARS", {"weight_decay": 0.1, "nonfinite": "skip"}, FP32, BF16),
    Case("AdamW", {"optim_bits": 4, **QUANTIZED}),
    Case("AdamW", {"codec": "normal4", **QUANTIZED}),
    Case("AdamW", {"codec": "fp8", "block_size": 32, "rounding": "stochastic", **QUANTIZED}, BF16),
    Case("AdamW", {"codec": "companded8", "rounding": "kahan", **QUANTIZED}, BF16),
    *(
        Case("AdamW", {"codec": codec, "block_size": block, "rounding": rounding, **QUANTIZED}, dtype, full=True)
        for codec, block in (
            ("int8", 64),
            ("int4", 0),
            ("int4", 32),
            ("normal4", 0),
            ("fp8", 0),
            ("companded8", 0),
            ("companded8", 256),
        )
        for rounding, dtype in (("nearest", FP32), ("nearest", FP16), *((rounding, BF16) for rounding in ROUNDINGS))
    ),
    *(
        Case("AdamW", {"codec": codec, "block_wise": False, "rounding": "stochastic", **QUANTIZED}, FP16, full=True)
        for codec in ("int8", "int4", "normal4", "fp8", "companded8")
    ),
    *(
        Case(name, {"codec": codec, **HEAVY, "rounding": rounding, **QUANTIZED}, dtype, inputs=SCALED, full=True)
        for name in ("AdamW", "LAMB", "LARS")
        for codec in ("int4", "fp8", "companded8")
        for dtype, rounding in ((FP32, "nearest"), (BF16, "stochastic"), (BF16, "split16"))
    ),
    *(Case("AdamW", {option: value}, full=True) for option, value in {"amsgrad": True, **HEAVY}.items()),
    *(Case("AdamW8bit", {option: value, "min_8bit_size": 0}, full=True) for option, value in HEAVY.items()),
    *(Case("AdamW8bit", {**HEAVY, "min_8bit_size": 0}, dtype, full=True) for dtype in (BF16, FP16)),
    *(Case("LARS8bit", {"nesterov": True, "min_8bit_size": 0}, dtype, FP32, full=True) for dtype in (BF16, FP16)),
    *(Case("LAMB8bit", {"max_unorm": 0.5, "min_8bit_size": 0}, dtype, FP32, full=True) for dtype in (BF16, FP16)),
]


@functools.cache
def real_nvcc() -> Nvcc:
    """The machine's own nvcc, whatever stands in for it in other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPTGEN_NVCC", raising=False)
        found = find_nvcc()
        if found is None:
            pytest.skip(f"no nvcc that builds: {why_no_nvcc()}")
        return found


@pytest.fixture(scope="module")
def nvcc() -> Nvcc:
    found = real_nvcc()
    missing = {f"sm_{arch}" for arch in ARCHS} - set(found.archs)
    if missing:
        pytest.skip(f"{found.path} of CUDA {found.release} does not build for {', '.join(sorted(missing))}")
    return found


@dataclass(frozen=True)
class Usage:
    """Report of ptxas on a function: bytes of local memory, and registers of a kernel."""

    function: str
    arch: str
    frame: int
    stores: int
    loads: int
    registers: int | None


def usages(said: str) -> Iterator[Usage]:
    """Read `ptxas -v`: every function's local memory, and a kernel's registers, by architecture."""
    arch = ""
    local = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
    lines = said.splitlines()
    for number, line in enumerate(lines):
        entry = re.search(r"Compiling entry function '\w+' for '(sm_\w+)'", line)
        arch = entry[1] if entry else arch
        properties = re.search(r"Function properties for (\S+)", line)
        if properties:
            numbers = local.search(lines[number + 1])
            assert numbers is not None, f"ptxas says something else: {lines[number + 1]}"
            used = re.search(r"Used (\d+) registers", lines[number + 2]) if number + 2 < len(lines) else None
            registers = int(used[1]) if used else None
            yield Usage(properties[1], arch, int(numbers[1]), int(numbers[2]), int(numbers[3]), registers)


def in_turn(number: int) -> tuple[str, ...]:
    """One architecture, for kernels that are many: each is built for one, and all of them are built for."""
    return (ARCHS[number % len(ARCHS)],)


def check(nvcc: Nvcc, source: Path, macros: Mapping[str, str], folder: Path, archs: tuple[str, ...] = ARCHS) -> None:
    """Compile for these architectures in one run; nothing is warned of, and no function touches local memory."""
    codes = [word for arch in archs for word in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    flags = [*(flag for flag in FLAGS if flag != "--cubin"), *nvcc.flags, *STRICT, *codes]
    output = folder / "kernel.fatbin"
    command = [*nvcc.command, *flags, *escaped(words(macros)), str(source), "--fatbin", "-o", str(output)]
    said = ask(command, source, output)
    judge(said, source, macros, archs)


def check_nvrtc(nvrtc: Nvcc, source: Path, macros: Mapping[str, str], folder: Path, arch: str) -> None:
    """The same by NVRTC, for one architecture."""
    output = folder / "kernel.cubin"
    flags = [*FLAGS, "-Xptxas", "-v", f"-arch=sm_{arch}"]
    said = ask([*nvrtc.command, *flags, *words(macros), str(source), "-o", str(output)], source, output)
    assert output.read_bytes().startswith(b"\x7fELF")
    judge(said, source, macros, (arch,))


def judge(said: str, source: Path, macros: Mapping[str, str], archs: tuple[str, ...]) -> None:
    """Fail for a warning, a kernel that is missing, local memory, or more registers than there are."""
    wrong = [line for line in said.splitlines() if re.search(r"(?i)error|warning", line)]
    assert wrong == [], f"{source.name} with {dict(macros)}"
    passes = re.findall(r"OPTGEN_KERNELS\(\w+, (\w+), \d+\)", source.read_text(encoding="utf-8"))
    kernels = {f"{name}{launch}" for name in passes for launch in ("_prepare", "", "_finish")}
    found = list(usages(said))
    assert {(use.function, use.arch) for use in found if use.registers is not None} == {
        (kernel, f"sm_{arch}") for kernel in kernels for arch in archs
    }
    assert [use for use in found if use.frame or use.stores or use.loads] == []
    codecs = [codec for name, codec in macros.items() if name.endswith("_CODEC")]
    tensors = sum((codec != "Absent") + codec.startswith(("Kahan", "Split")) for codec in codecs)
    # Of matrices, and of rows and columns beside them.
    tensors += sum(len(re.findall(r"\bfloat\b", line)) for line in source.read_text(encoding="utf-8").split("\n")
                   if "blocks_with<" in line)  # fmt: skip
    limit = REGISTERS[2 if tensors > 4 else 3]
    walking = [
        use for use in found if not use.function.endswith(("_prepare", "_finish"))
    ]  # one block of those is enough
    assert [use for use in walking if (use.registers or 0) > limit] == []


@functools.cache
def stock(dtypes: tuple[torch.dtype, ...]) -> list[Specialization]:
    return specializations(optgen_optim.CLASSES, "cuda", dtypes)


def ahead(dtypes: tuple[torch.dtype, ...]) -> list[Any]:
    """Kernels that `optgen build --arch` compiles, named by rule: one of each for an architecture; all are `full`."""
    found = [item for item in stock(dtypes) if dtypes == (FP32,) or item not in stock((FP32,))]
    last = {item.rule.name: number for number, item in enumerate(found)}
    usual = [
        pytest.param(found[number], in_turn(turn), id=f"{rule}-{number}")
        for turn, (rule, number) in enumerate(last.items())
    ]
    full = [
        pytest.param(item, ARCHS, id=f"{item.rule.name}-{number}-all", marks=pytest.mark.full)
        for number, item in enumerate(found)
    ]
    return usual + full


@pytest.mark.slow
@pytest.mark.parametrize(("item", "archs"), ahead((FP32,)))
def test_kernels_of_the_stock_package(item: Specialization, archs: tuple[str, ...], nvcc: Nvcc, tmp_path: Path) -> None:
    check(nvcc, item.rule.cuda_source, item.defines, tmp_path, archs)


@pytest.fixture(scope="module")
def nvrtc() -> Nvcc:
    found = first_found(nvrtc_candidates())
    if found is None:
        pytest.skip(f"no NVRTC: {why_none(nvrtc_candidates())}")
    return found


def by_nvrtc() -> list[Any]:
    """A kernel of each rule: every fourth, for one architecture, is enough for every commit."""
    last = {item.rule.name: item for item in stock((FP32,))}
    return [
        pytest.param(item, ARCHS[turn % len(ARCHS)], id=rule, marks=() if turn % 4 == 1 else pytest.mark.full)
        for turn, (rule, item) in enumerate(sorted(last.items()))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("item", "arch"), by_nvrtc())
def test_kernels_of_the_stock_package_by_nvrtc(item: Specialization, arch: str, nvrtc: Nvcc, tmp_path: Path) -> None:
    check_nvrtc(nvrtc, item.rule.cuda_source, item.defines, tmp_path, arch)


@pytest.mark.full
@pytest.mark.parametrize(("item", "archs"), ahead(DTYPES))
def test_kernels_of_the_stock_package_for_16_bit_parameters(
    item: Specialization, archs: tuple[str, ...], nvcc: Nvcc, tmp_path: Path
) -> None:
    check(nvcc, item.rule.cuda_source, item.defines, tmp_path, archs)


def classes_of_spec(name: str) -> dict[str, Any]:
    package = optgen.load(SPECS / f"{name}.yaml")
    found: dict[str, Any] = package.CLASSES
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of_other_specs(name: str, nvcc: Nvcc, tmp_path: Path) -> None:
    found = specializations(classes_of_spec(name), "cuda", (FP32,))
    assert found
    for item in found:
        check(nvcc, item.rule.cuda_source, item.defines, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", TESTED)
def test_kernels_of_other_specs_in_8_bits_and_16_bits(name: str, nvcc: Nvcc, tmp_path: Path) -> None:
    for optimizer_class in classes_of_spec(name).values():
        takes_bits = any(len(state.codecs) > 1 for state in optimizer_class.rule.element_states)
        settings = [{}, EIGHT_BITS, {**EIGHT_BITS, "block_wise": False}] if takes_bits else [{}]
        for shape, chosen, dtype in ((s, c, d) for s in ((64, 64), (4096,)) for c in settings for d in DTYPES):
            made = optimizer_class([torch.zeros(1, requires_grad=True)], **chosen)
            check(nvcc, *kernel(made.rule, made.defaults, shape, dtype, dtype), tmp_path)


def kernel(
    rule: Rule, settings: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype, grad_dtype: torch.dtype
) -> tuple[Path, dict[str, str]]:
    """The source and the macros of what serves a parameter under these settings."""
    numel = torch.Size(shape).numel()
    codecs = choose_codecs(rule, settings, torch.Size(shape))
    flags = rule.flags(settings, len(shape), numel, 0, tensorwise(rule, codecs))
    rounding = parameter_codec(settings.get("rounding", "nearest"), dtype_name(dtype)).name
    bucket = Bucket("cuda", dtype, grad_dtype, torch.device("cpu"), flags, codecs, rounding)
    return rule.cuda_source, defines(rule, bucket)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "archs"),
    [
        *(
            pytest.param(case, in_turn(turn // 2), id=str(case), marks=[pytest.mark.full] if turn % 2 else [])
            for turn, case in enumerate(CASES)
            if not case.full
        ),
        *(pytest.param(case, ARCHS, id=f"{case}-all", marks=pytest.mark.full) for case in CASES),
    ],
)
def test_kernels_with_options(case: Case, archs: tuple[str, ...], nvcc: Nvcc, tmp_path: Path) -> None:
    given = dict(case.settings)
    if case.name.startswith("LARS"):
        given = {**STARTS, **given}
    made = optgen_optim.CLASSES[case.name]([torch.zeros(1, dtype=case.dtype, requires_grad=True)], **given)
    settings = {**made.defaults, **(case.inputs or {})}
    source, macros = kernel(made.rule, settings, (64, 64), case.dtype, case.grad_dtype or case.dtype)
    assert macros["OPTGEN_GRAD_SCALE_GIVEN"] == str(int(case.inputs is not None))
    check(nvcc, source, macros, tmp_path, archs)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in CASES[1:2]])
def test_kernels_with_options_by_nvrtc(case: Case, nvrtc: Nvcc, tmp_path: Path) -> None:
    made = optgen_optim.CLASSES[case.name]([torch.zeros(1, dtype=case.dtype, requires_grad=True)], **case.settings)
    settings = {**made.defaults, **(case.inputs or {})}
    source, macros = kernel(made.rule, settings, (64, 64), case.dtype, case.grad_dtype or case.dtype)
    for arch in ARCHS:
        check_nvrtc(nvrtc, source, macros, tmp_path, arch)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_full_tiles_are_moved_16_bytes_at_once(bits: int, dtype: torch.dtype, nvcc: Nvcc, tmp_path: Path) -> None:
    """By its PTX: what a lane reads and writes of a tile's tensors, in instructions of the widest kind that fits."""
    made = optgen_optim.AdamW([torch.zeros(1, requires_grad=True)], optim_bits=bits, min_8bit_size=0)
    source, macros = kernel(made.rule, made.defaults, (4096,), dtype, dtype)
    flags = [*(flag for flag in FLAGS if flag != "--cubin"), *nvcc.flags, "--ptx", "-arch=sm_90"]
    output = tmp_path / "kernel.ptx"
    command = [*nvcc.command, *flags, *escaped(words(macros)), str(source), "-o", str(output)]
    ask(command, source, output)
    text = output.read_text(encoding="utf-8")
    body = text[text.index(".entry step_apply(") :].partition("\n}\n")[0]
    wide = {kind: len(re.findall(rf"{kind}\.global\.v4\.\w32", body)) for kind in ("ld", "st")}
    own = 1 if dtype is BF16 else 2  # of the eight elements of a lane, by 16 bytes
    states = 2 * 2 if bits == 32 else 0
    assert wide == {"ld": 2 * own + states, "st": own + states}
    if bits < 32:  # a run's codes, of two states; what is moved one by one are bytes
        width = {(8, FP32): r"\w32", (8, BF16): r"v2\.\w32", (4, FP32): r"\w16", (4, BF16): r"\w32"}[bits, dtype]
        codes = {kind: len(re.findall(rf"{kind}\.global\.{width}\s", body)) for kind in ("ld", "st")}
        assert codes["ld"] >= 2 * own
        assert codes["st"] >= 2 * own
    # No access uses an address that could be of shared or local memory.
    assert not re.search(r"\b(ld|st)(\.v[24])?\.[bfus]\d+", body)


def test_spills_and_stack_frames_are_seen(nvcc: Nvcc, tmp_path: Path) -> None:
    """The assertion on the kernels fails for a kernel that needs local memory."""
    source = tmp_path / "spills.cu"
    source.write_text(
        "struct Call { float* x; };\n"
        'extern "C" __global__ void spills(const Call call) {\n'
        "  float local[100];\n"
        "  for (int i = 0; i < 100; ++i) local[i] = call.x[i];\n"
        "  call.x[0] = local[int(call.x[1])];\n"
        "}\n"
    )
    with pytest.raises(CompileError, match=r"[Ll]ocal memory"):
        check(nvcc, source, {}, tmp_path)
