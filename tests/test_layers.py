"""The layer check: this tree passes it, and a tree with every fault is told each of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "check_layers.py"


@pytest.fixture(scope="module")
def check_layers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layers", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


GOOD = {
    "optgen/__init__.py": "__version__ = '1'\n",
    "optgen/cli.py": (
        "import rich\nfrom optgen import compiler, __version__\nfrom optgen.runtime.building import cache\n"
        "def doctor():\n    import torch\n"
    ),
    "optgen/compiler.py": "import optgen.spec.model\nfrom .ir import nodes\nfrom optgen import __version__\n",
    "optgen/ir/__init__.py": "",
    "optgen/ir/nodes.py": "from optgen import dtypes\nfrom . import kinds\nfrom ..diagnostics import Location\n",
    "optgen/ir/kinds.py": "",
    "optgen/spec/model.py": "import pydantic\n",
    "optgen/diagnostics.py": "",
    "optgen/codecs.py": "from optgen.dtypes import x\n",
    "optgen/dtypes.py": "",
    "optgen/runtime/optimizer.py": (
        "import torch\nfrom optgen.codecs import x\nfrom .building import cache\nfrom optgen.runtime.step import run\n"
    ),
    "optgen/runtime/rule.py": "",
    "optgen/runtime/step/run.py": "from optgen.runtime.step import prepare\nfrom optgen.runtime import rule\n",
    "optgen/runtime/step/prepare.py": "from optgen.runtime.building.cache import y\n",
    "optgen/runtime/building/cache.py": "",
    "optgen/integrations/trainer.py": (
        "from typing import TYPE_CHECKING\nfrom optgen.runtime.optimizer import y\n"
        "from optgen.integrations import names\n"
        "if TYPE_CHECKING:\n    from torch import Tensor\n"
        "def f():\n    import transformers\n    from optgen_optim import AdamW\n"
    ),
    "tools/bench.py": "import torch\n",
}


def test_this_tree(check_layers: ModuleType) -> None:
    assert check_layers.check_tree(TOOL.parent.parent) == []


def test_tests_have_the_rooms_of_the_runtime(check_layers: ModuleType) -> None:
    tests = TOOL.parents[1] / "tests" / "runtime"
    assert {path.parent.name for path in tests.glob("*/test_*.py")} <= set(check_layers.ROOMS)


def test_a_good_tree(check_layers: ModuleType, tmp_path: Path) -> None:
    assert check_layers.check_tree(tree(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "ir/nodes.py",
            "from optgen.schedule import plan",
            "1: optgen.ir must not import optgen.schedule, which stands",
        ),
        ("ir/nodes.py", "from ..emit import writer", "1: optgen.ir must not import optgen.emit, which stands above it"),
        ("ir/nodes.py", "from .. import compiler", "1: optgen.ir must not import optgen.compiler, which stands above"),
        ("ir/nodes.py", "import optgen", "1: optgen.ir must not import optgen, which stands above it"),
        ("ir/nodes.py", "from optgen import load", "1: optgen.ir must not import optgen, which stands above it"),
        ("ir/nodes.py", "def f():\n    import optgen.cli", "2: optgen.ir must not import optgen.cli, which stands"),
        ("ir/nodes.py", "if True:\n    from torch import nn", "2: the compiler must not import torch"),
        ("compiler.py", "from optgen.runtime import cache", "1: the compiler must not import optgen.runtime"),
        ("cli.py", "import torch.nn", "1: torch may be imported inside functions only"),
        ("dtypes.py", "from optgen.codecs import CODECS", "1: optgen.dtypes must not import optgen.codecs, which"),
        ("runtime/optimizer.py", "import jinja2", "1: runtime/ must not import jinja2"),
        ("runtime/step/a.py", "def f():\n    from yaml import load", "2: runtime/ must not import yaml"),
        ("runtime/attic/a.py", "", "1: attic is not a room of runtime/; give it a floor in check_layers.py"),
        (
            "runtime/step/prepare.py",
            "from optgen.runtime import optimizer",
            "1: runtime/step must not import optgen.runtime.optimizer, which stands above it",
        ),
        (
            "runtime/building/cache.py",
            "if TYPE_CHECKING:\n    from ..step.prepare import Prepared",
            "2: runtime/building must not import optgen.runtime.step.prepare, which stands above it",
        ),
        ("runtime/step/long.py", "\n" * 401, "401: 401 lines, more than 400; split it"),
        (
            "runtime/optimizer.py",
            "from optgen.diagnostics import Location",
            "1: runtime/ must not import optgen.diagnostics",
        ),
        ("runtime/optimizer.py", "from .. import compiler", "1: runtime/ must not import optgen.compiler"),
        ("runtime/optimizer.py", "import optgen", "1: runtime/ must not import optgen"),
        ("integrations/a.py", "import transformers", "1: integrations/ may import transformers inside functions only"),
        ("integrations/a.py", "if X:\n    import torch", "2: integrations/ may import torch inside functions only"),
        ("integrations/a.py", "def f():\n    import yaml", "2: integrations/ must not import yaml"),
        ("integrations/a.py", "from optgen import codecs", "1: integrations/ must not import optgen.codecs"),
        ("ir/nodes.py", "import optgen.integrations", "1: the compiler must not import optgen.integrations"),
        ("runtime/optimizer.py", "from optgen import integrations", "1: runtime/ must not import optgen.integrations"),
        ("helpers.py", "", "1: optgen.helpers has no floor; give it one in check_layers.py"),
        ("ir/nodes.py", "def", "1: cannot be read"),
        ("ir/long.py", "\n" * 501, "501: 501 lines, more than 500; split it"),
        ("../tools/long.py", "\n" * 501, "501: 501 lines, more than 500; split it"),
    ],
)
def test_each_fault(check_layers: ModuleType, tmp_path: Path, name: str, text: str, problem: str) -> None:
    found = check_layers.check_tree(tree(tmp_path, {**GOOD, f"optgen/{name}": text + "\n" * (not text.endswith("\n"))}))
    shown = f"optgen/{name}".replace("optgen/../", "")
    assert len(found) == 1
    assert found[0].startswith(f"{shown}:{problem}")


@pytest.mark.parametrize("how", ["{}", "def f():\n    {}", "if TYPE_CHECKING:\n    {}"])
def test_a_circle(check_layers: ModuleType, tmp_path: Path, how: str) -> None:
    text = how.format("from optgen.runtime.step import run\n")
    assert check_layers.check_tree(tree(tmp_path, {**GOOD, "optgen/runtime/step/prepare.py": text})) == [
        "optgen/runtime/step/run.py:1: imports in a circle: optgen/runtime/step/run.py -> "
        "optgen/runtime/step/prepare.py -> optgen/runtime/step/run.py"
    ]


def test_the_command(tmp_path: Path) -> None:
    bad = tree(tmp_path, {"optgen/ir/a.py": "import torch\n", "optgen/runtime/rule.py": "import rich, yaml\n"})
    done = subprocess.run([sys.executable, str(TOOL), str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "optgen/ir/a.py:1: the compiler must not import torch",
        "optgen/runtime/rule.py:1: runtime/ may import rich inside functions only",
        "optgen/runtime/rule.py:1: runtime/ must not import yaml",
    ]
    assert subprocess.run([sys.executable, str(TOOL), str(tree(tmp_path / "good", GOOD))], check=False).returncode == 0
