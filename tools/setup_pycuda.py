"""Builds PyCUDA into .venv for the tests, also where there is neither a GPU nor CUDA.

PyCUDA comes as source. Building takes a C++ compiler, Python's headers, two headers of CUDA, and a libcuda.so.1 to link
with, which belongs to NVIDIA's driver: a stub takes its place, always, so that what is built is the same everywhere.
Headers that the machine lacks come from NVIDIA's packages on PyPI; cuda.h stays in .venv/include/cuda, since the tests
build a stand-in of the driver with it. The finished wheel is kept beside pip's own cache: `make clean` and other clones
need not build it again.

OPTGEN_SKIP_PYCUDA=1 leaves PyCUDA out; OPTGEN_CUDA_HEADERS names the folder that holds cuda.h, or is "pypi".
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
NEEDED = ("cuda.h", "cudaProfiler.h")
HEADER_PACKAGES = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-profiler-api==13.0.85")
"""Packages that hold `NEEDED`. Not in constraints.txt: a torch for CUDA asks for a runtime of its own."""

STUB = 'extern "C" int cuInit(unsigned) { return 100; }\n'
"""One symbol that PyCUDA uses: a library without any is dropped by linkers."""

FLAGS = "-O1 -g0 -w"
"""With Python's own -O3 the build takes half as long again; PyCUDA only hands arguments on."""

PIPS_OWN = (".cache", ".config", ".local", ".netrc", ".pip")
"""Folders that pip may use in a home folder."""

GO_ON = """\
  to go on without it: OPTGEN_SKIP_PYCUDA=1 make test (the tests that need PyCUDA are then skipped)"""

NO_PYTHON_HEADERS = """\
PyCUDA cannot be built for the tests: Python's headers are missing ({folder}/Python.h).
  Debian, Ubuntu: apt install python3-dev (or python3.{minor}-dev)
  Fedora: dnf install python3-devel"""

NO_HEADERS = """\
PyCUDA cannot be built for the tests: CUDA's headers ({needed}) were neither found (in CUDA_HOME, beside nvcc, in
/usr/local/cuda*) nor could pip fetch them:
{said}
  point CUDA_HOME at a CUDA toolkit, or OPTGEN_CUDA_HEADERS at the folder that holds them
  or let pip find {packages}: in an index, or in a folder that PIP_FIND_LINKS names"""

NO_SUCH_HEADERS = """\
OPTGEN_CUDA_HEADERS={folder} does not hold {missing}; name the folder that does, or "pypi"."""

NO_SOURCE = """\
PyCUDA cannot be built for the tests: pip could not fetch its source.
{said}
  let pip find {requirement}: in an index, or in a folder that PIP_FIND_LINKS names"""

NOT_BUILT = """\
PyCUDA could not be built for the tests ({compiler}, CUDA's headers from {headers}). All that was said: {log}
{said}
  another compiler: CXX=clang++ make test; other headers: OPTGEN_CUDA_HEADERS=FOLDER or =pypi"""


class BuildError(Exception):
    """PyCUDA cannot be built; the message names the fix."""


def skipped() -> bool:
    """Check whether the user has chosen to go without PyCUDA."""
    return os.environ.get("OPTGEN_SKIP_PYCUDA", "") not in ("", "0")


def setup_pycuda(python: Path, compiler: str, constraints: Path) -> None:
    """Install the pinned PyCUDA for `python`, built here if no earlier build is kept; nothing if it is installed.

    Args:
        python: The Python of a virtual environment that has setuptools, NumPy and pip.
        compiler: The command of a C++ compiler.
        constraints: Pinned versions, PyCUDA's among them.

    Raises:
        BuildError: see above.
    """
    version = pinned(constraints.read_text(), "pycuda")
    own_headers = python.parents[1] / "include" / "cuda"
    if installed(python) == version and (own_headers / NEEDED[0]).is_file():
        return
    log = python.parents[1] / "pycuda-build.log"
    with tempfile.TemporaryDirectory(prefix="optgen-pycuda-") as folder:
        work = Path(folder)
        home = make_home(work / "home", Path.home())
        headers = find_headers()
        kept = kept_wheels(python, version, headers)
        wheel = next(kept.glob("pycuda-*.whl"), None) if kept else None
        if wheel is None:
            origin = headers or "NVIDIA's packages on PyPI"
            print(f"building PyCUDA {version}, once, with CUDA's headers from {origin} (about a minute)", flush=True)
            headers = headers or fetch_headers(python, home, work / "headers")
            wheel = build(python, compiler, constraints, headers, work, log)
            if kept:
                wheel = keep(wheel, kept)
                keep(headers / NEEDED[0], kept)
        elif headers is None:
            assert kept is not None
            headers = kept if (kept / NEEDED[0]).is_file() else fetch_headers(python, home, work / "headers")
        keep(headers / NEEDED[0], own_headers)
        failure = run_pip(python, home, "install", "--quiet", str(wheel), "-c", str(constraints))
        if failure:
            raise BuildError(f"{wheel.name} cannot be installed:\n{failure}\n{GO_ON}")


def pinned(constraints: str, package: str) -> str:
    """The version of a package in the text of constraints. Raises BuildError if there is none."""
    found = re.search(rf"(?m)^{re.escape(package)}==(\S+)$", constraints)
    if found is None:
        raise BuildError(f"constraints.txt does not pin {package}: add a line {package}==VERSION")
    return found[1]


def installed(python: Path) -> str:
    """The version of the PyCUDA that `python` sees, "" if there is none."""
    command = [str(python), "-c", "from importlib.metadata import version; print(version('pycuda'))"]
    found = subprocess.run(command, capture_output=True, text=True, cwd="/")
    return found.stdout.strip() if found.returncode == 0 else ""


def find_headers(system_root: Path = Path("/usr/local")) -> Path | None:
    """The folder of this machine that holds CUDA's headers; None if there is none, or if others are asked for.

    Raises:
        BuildError: OPTGEN_CUDA_HEADERS names a folder without them.
    """
    chosen = os.environ.get("OPTGEN_CUDA_HEADERS", "")
    if chosen == "pypi":
        return None
    if chosen:
        missing = [name for name in NEEDED if not (Path(chosen) / name).is_file()]
        if missing:
            raise BuildError(NO_SUCH_HEADERS.format(folder=chosen, missing=" and ".join(missing)))
        return Path(chosen)
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        roots += [root for root in (root_of(nvcc), Path(nvcc).parents[1], Path(nvcc).resolve().parents[1]) if root]
    # Newest first; the link `cuda` is the machine's own choice among them.
    numbered = sorted(system_root.glob("cuda-*"), key=lambda path: numbers(path.name), reverse=True)
    for root in (*roots, system_root / "cuda", *numbered):
        for folder in (root / "include", *sorted(root.glob("targets/*-linux/include"))):
            if all((folder / name).is_file() for name in NEEDED):
                return folder
    return None


def root_of(nvcc: str) -> Path | None:
    """The toolkit of an nvcc by its own word: on PATH there may be a script that calls the real one elsewhere."""
    command = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"(?m)^#\$ _HERE_=(.+)$", said.stderr + said.stdout)
    return Path(found[1].strip()).parent if found else None


def numbers(text: str) -> list[int]:
    """The numbers in a text, by which versions are compared."""
    return [int(number) for number in re.findall(r"\d+", text)]


def fetch_headers(python: Path, home: Path, target: Path) -> Path:
    """Fetch CUDA's headers from PyPI into `target`; return the folder that holds them. Raises BuildError."""
    failure = run_pip(python, home, "install", "--quiet", "--no-deps", "--target", str(target), *HEADER_PACKAGES)
    folders = [path.parent for path in target.rglob(NEEDED[0])]
    for folder in folders:
        if all((folder / name).is_file() for name in NEEDED):
            return folder
    said = failure or f"{' '.join(HEADER_PACKAGES)} hold them no more"
    packages = " and ".join(HEADER_PACKAGES)
    raise BuildError(f"{NO_HEADERS.format(needed=', '.join(NEEDED), said=said, packages=packages)}\n{GO_ON}")


def make_home(home: Path, real: Path) -> Path:
    """Make a home folder for the build, where its options can stand: PyCUDA reads them from there alone."""
    home.mkdir()
    for name in PIPS_OWN:
        if (real / name).exists():
            (home / name).symlink_to(real / name)
    return home


def options(headers: Path, libraries: Path) -> str:
    """The text of PyCUDA's build options: where CUDA's headers and the driver's library are."""
    chosen = {
        "CUDA_ROOT": str(headers.parent),  # left out, it is guessed from the nvcc on PATH
        "CUDA_INC_DIR": [str(headers)],
        "CUDADRV_LIB_DIR": [str(libraries)],
        "CUDA_ENABLE_CURAND": False,
    }
    return "".join(f"{name} = {value!r}\n" for name, value in chosen.items())


def kept_wheels(python: Path, version: str, headers: Path | None) -> Path | None:
    """The folder for wheels of this PyCUDA, CUDA, Python and machine; None where pip keeps no cache.

    Args:
        headers: Folder of CUDA's headers; None if they come from PyPI.
    """
    asked = subprocess.run([str(python), "-m", "pip", "cache", "dir"], capture_output=True, text=True)
    if asked.returncode != 0 or not asked.stdout.strip():
        return None
    key = hashlib.sha256()
    for fact in (
        version,
        cuda_version(headers) if headers else HEADER_PACKAGES,
        sys.version,
        sysconfig.get_config_var("SOABI"),
        sysconfig.get_platform(),
        platform.libc_ver(),
        *(path.read_bytes() for path in (Path(__file__), TOOLS / "compile_in_parallel.py")),
    ):
        key.update(repr(fact).encode())
    return Path(asked.stdout.strip()) / "optgen" / key.hexdigest()[:32]


def cuda_version(headers: Path) -> str:
    """CUDA's version as its headers give it, "13000" for 13.0; the folder itself if they do not."""
    found = re.search(r"(?m)^#define\s+CUDA_VERSION\s+(\d+)", (headers / NEEDED[0]).read_text(errors="replace"))
    return found[1] if found else str(headers)


def keep(file: Path, folder: Path) -> Path:
    """Put a file into a folder in one step and return where it is; where that fails, it stays where it was."""
    place = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{file.name}.{os.getpid()}"
        shutil.copyfile(file, partial)
        partial.replace(place)
    except OSError:
        return file
    return place


def build(python: Path, compiler: str, constraints: Path, headers: Path, work: Path, log: Path) -> Path:
    """Build PyCUDA and return its wheel, somewhere below `work`. Raises BuildError.

    Args:
        headers: Folder of CUDA's headers.
        work: A folder of its own with a `home` in it, which gets the options.
        log: File for all output if the build fails.
    """
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        text = NO_PYTHON_HEADERS.format(folder=include, minor=sys.version_info.minor)
        raise BuildError(f"{text}\n{GO_ON}")
    home = work / "home"
    libraries = make_stub(work / "libraries", compiler)
    (home / ".aksetup-defaults.py").write_text(options(headers, libraries))
    source = fetch_source(python, home, constraints, work / "source")
    environment = {**os.environ, "HOME": str(home), "CC": compiler, "CXX": compiler}
    for name in ("CFLAGS", "CXXFLAGS"):
        environment[name] = f"{os.environ.get(name, '')} {FLAGS}".strip()
    wheels = work / "wheels"
    command = [str(python), str(TOOLS / "compile_in_parallel.py"), "bdist_wheel", "-d", str(wheels)]
    done = subprocess.run(
        command, cwd=source, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wheel = next(wheels.glob("pycuda-*.whl"), None)
    if done.returncode != 0 or wheel is None:
        log.write_text(done.stdout)
        said = mistakes(done.stdout)
        raise BuildError(f"{NOT_BUILT.format(compiler=compiler, headers=headers, log=log, said=said)}\n{GO_ON}")
    return wheel


def make_stub(folder: Path, compiler: str) -> Path:
    """Build a libcuda to link with into `folder`, and return that. Raises BuildError if the compiler does not work."""
    folder.mkdir()
    text = folder / "stub.cpp"
    text.write_text(STUB)
    library = folder / "libcuda.so"
    command = [*compiler.split(), "-shared", "-fPIC", str(text), "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"PyCUDA cannot be built for the tests: {compiler} does not work.\n{mistakes(done.stderr)}")
    return folder


def fetch_source(python: Path, home: Path, constraints: Path, target: Path) -> Path:
    """Fetch PyCUDA's source and unpack it below `target`; return its folder. Raises BuildError."""
    requirement = f"pycuda=={pinned(constraints.read_text(), 'pycuda')}"
    # pip asks the source for its needs; without isolation, since it would first install them once more.
    alone = ("--no-deps", "--no-build-isolation", "--no-binary", "pycuda")
    failure = run_pip(python, home, "download", "--quiet", *alone, "-d", str(target), requirement)
    archive = next(target.glob("pycuda-*.tar.gz"), None)
    if archive is None:
        said = failure or f"pip brought no source of {requirement}"
        raise BuildError(f"{NO_SOURCE.format(said=said, requirement=requirement)}\n{GO_ON}")
    with tarfile.open(archive) as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Pythons before 3.11.4 have none
        packed.extractall(target)
    return next(path for path in target.iterdir() if path.is_dir())


def run_pip(python: Path, home: Path, *arguments: str) -> str:
    """Run pip with that home folder; return "" if it succeeded, else the few lines that say why not."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return "" if done.returncode == 0 else mistakes(done.stdout)


def mistakes(text: str, most: int = 5) -> str:
    """The first lines of a tool's output that name an error, else its last lines; indented."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"(?i)\berror\b", line)]
    return "\n".join(f"    {line[:200]}" for line in (named[:most] or lines[-most:] or ["it said nothing"]))
