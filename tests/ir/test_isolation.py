"""A rule, the stages it shares with all others, and its texts stay out of each other's way."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

import optgen
from optgen.compiler import compile_specs
from optgen.diagnostics import SpecError

HEAD = """\
name: probe
hyperparameters:
  lr: {default: 0.5}
"""


def write(folder: Path, text: str, name: str = "probe.yaml") -> Path:
    path = folder / name
    path.write_text(HEAD + textwrap.dedent(text), encoding="utf-8")
    return path


def messages(path: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        compile_specs([path], "probe")
    return [f"{d.rule}: {d.message}" for d in caught.value.diagnostics]


def stepped(
    path: Path, target: str, grad: list[float], **settings: object
) -> tuple[list[float], dict[str, torch.Tensor]]:
    param = torch.zeros(len(grad), requires_grad=True)
    opt = optgen.load(path).Probe([param], target=target, **settings)
    param.grad = torch.tensor(grad)
    opt.step()
    return param.tolist(), opt.state[param]


@pytest.mark.parametrize("name", ["ratio", "limit", "param_norm", "update_norm", "gnorm", "clip"])
def test_a_rules_own_names_survive_shared_stages(tmp_path: Path, target: str, name: str) -> None:
    path = write(
        tmp_path,
        f"""\
        blocks:
          step: |
            {name} = lr * 4
            update = grad
          apply: |
            param = param - {name} * update
        """,
    )
    plain, _ = stepped(path, target, [1.0, -1.0])
    assert plain == [-2.0, 2.0]
    shared, _ = stepped(path, target, [1.0, -1.0], trust_ratio="lamb", percentile_clipping=50, max_unorm=1.0)
    assert shared == plain  # at a first step from zero, every ratio is 1 and nothing is clipped


def test_a_state_may_be_called_as_a_shared_value(tmp_path: Path, target: str) -> None:
    path = write(
        tmp_path,
        """\
        states:
          clip: {shape: tensor, init: 3}
        blocks:
          step: |
            update = clip * grad
          apply: |
            param = param - lr * update
        """,
    )
    values, state = stepped(path, target, [2.0], percentile_clipping=50)
    assert values == [-3.0]
    assert state["clip"].item() == 3.0


def test_a_rules_mask_adds_to_the_shared_one(tmp_path: Path, target: str) -> None:
    path = write(
        tmp_path,
        """\
        blocks:
          step: |
            active = grad < 5
            update = grad
          apply: |
            param = param - lr * update
        """,
    )
    values, _ = stepped(path, target, [1.0, float("inf"), 9.0, float("nan")], nonfinite="skip")
    assert values == [-0.5, 0.0, 0.0, 0.0]


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
        states:
          m: {}
          M: {}
        blocks:
          step: |
            m = grad
            M = m
            param = param - lr * M
        """,
    )
    assert messages(path) == ["reserved-name: `M` and `m` differ in case only"]


@pytest.mark.parametrize(
    "doc",
    [
        'x"""; import sys; sys.exit("broken out"); y="""z',
        'ends in a quote"',
        "ends in a backslash\\",
        'ends in both\\"',
        '""" + str(1 / 0) + """',
        "{1/0} %s {{ 7 * 7 }}",
    ],
)
def test_texts_cannot_leave_their_place(tmp_path: Path, target: str, doc: str) -> None:
    quoted = "'" + doc.replace("'", "''") + "'"
    path = tmp_path / "probe.yaml"
    path.write_text(
        f"name: probe\ntitle: {quoted}\ndoc: {quoted}\nreference: {quoted}\n"
        f"hyperparameters:\n  lr: {{default: 0.5, doc: {quoted}}}\n"
        f"states:\n  kept: {{doc: {quoted}}}\n"
        "blocks:\n  step: |\n"
        "    # a comment that ends in a backslash \\\n"
        "    kept = kept + grad\n    param = param - lr * kept\n"
        f"methods:\n  clear:\n    doc: {quoted}\n    block: |\n      kept = 0 * kept\n"
    )
    values, _ = stepped(path, target, [2.0])
    assert values == [-1.0]


def test_choices_may_hold_any_characters(tmp_path: Path, target: str) -> None:
    path = write(
        tmp_path,
        """\
        options:
          mode: {default: "a b", choices: ["a b", "a_b", "a-b"]}
        blocks:
          step: |
            if mode == "a b":
                scale = 1
            elif mode == "a_b":
                scale = 2
            else:
                scale = 4
            param = param - scale * lr * grad
        """,
    )
    for mode, expected in (("a b", -0.5), ("a_b", -1.0), ("a-b", -2.0)):
        values, _ = stepped(path, target, [1.0], mode=mode)
        assert values == [expected]
