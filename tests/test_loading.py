"""`optgen.load`: a spec becomes a module, and nothing is written beside it."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optgen
from optgen.diagnostics import SpecError

SPEC = """\
name: my_optimizer
hyperparameters:
  lr: {default: 1e-3, range: "[0, inf)"}
states:
  exp_avg: {}
blocks:
  step: |
    exp_avg = 0.9 * exp_avg + 0.1 * grad
    update = sign(exp_avg)
  apply: |
    param = param - lr * update
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "my_optimizer.yaml"
    path.write_text(SPEC)
    return path


def test_a_spec_trains_at_once(spec: Path, target: str) -> None:
    model = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = optgen.load(spec).MyOptimizer(model.parameters(), lr=0.5, target=target)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 0.5)
    assert [path.name for path in spec.parent.iterdir()] == ["my_optimizer.yaml"]


def test_the_same_spec_is_the_same_module_and_a_changed_one_is_not(spec: Path) -> None:
    first = optgen.load(spec)
    assert optgen.load(str(spec)) is first
    spec.write_text(SPEC.replace("0.9", "0.8"))
    assert optgen.load(spec) is not first


def test_a_path_that_is_put_back_does_not_matter(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.path.copy()
    optgen.load(spec)
    monkeypatch.setattr(sys, "path", before)
    spec.write_text(SPEC.replace("0.9", "0.7"))
    assert optgen.load(spec).MyOptimizer.rule.name == "my_optimizer"


def test_loaded_classes_pickle(spec: Path) -> None:
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = optgen.load(spec).MyOptimizer([param])
    param.grad = torch.ones(4)
    optimizer.step()
    again = pickle.loads(pickle.dumps(optimizer))
    assert type(again) is type(optimizer)
    assert again.state_dict()["state"][0]["step"] == 1


def test_mistakes_are_spec_errors(spec: Path) -> None:
    spec.write_text(SPEC.replace("sign(exp_avg)", "sing(exp_avg)"))
    with pytest.raises(SpecError, match="there is no function `sing`"):
        optgen.load(spec)


def test_garbage_is_looked_for_afterwards_if_it_was_before(spec: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(SPEC.replace("lr * update", "lr * nothing"))
    for looks in (True, False):
        (gc.enable if looks else gc.disable)()
        try:
            optgen.load(spec)
            assert gc.isenabled() is looks
            with pytest.raises(SpecError):
                optgen.load(wrong)
            assert gc.isenabled() is looks
        finally:
            gc.enable()


def test_nothing_is_left_behind_and_nothing_is_warned(spec: Path) -> None:
    code = f"import optgen; m = optgen.load({str(spec)!r}); print(m.__file__)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert not Path(done.stdout.strip()).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_that_ends_takes_nothing_from_its_parent(
    spec: Path, tmp_path: Path, torch_python: str
) -> None:
    """Modules are imported, and sources compiled, when they are asked for: the package must be there all the time."""
    code = f"""
import os, sys, torch, optgen
loaded = optgen.load({str(spec)!r})
if os.fork() == 0:
    sys.exit()
os.wait()
print(loaded.MyOptimizer.__name__)
if os.fork() > 0:
    sys.exit()
print(os.path.exists(loaded.__file__))
"""
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    done = subprocess.run([torch_python, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.stdout.split(), done.stderr) == (["MyOptimizer", "True"], "")
    assert not list((tmp_path / "temporary").glob("optgen-*"))


def test_what_was_hardly_meant_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "my_optimizer.yaml"
    path.write_text(SPEC.replace("sign(exp_avg)", "sign(grad)"))
    with pytest.warns(optgen.SpecWarning, match=r"`exp_avg` has no effect: .*\n --> .*my_optimizer\.yaml:5:3\n"):
        assert optgen.load(path).MyOptimizer


def test_the_names_of_the_package_are_listed_and_nothing_is_imported_for_it() -> None:
    code = "import sys, optgen; names = dir(optgen); print(*(set(optgen.__all__) - set(names)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
