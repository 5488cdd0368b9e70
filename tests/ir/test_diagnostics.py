"""Messages about every mistake in a rule's equations, word for word.

`OPTGEN_UPDATE=1 pytest tests/ir/test_diagnostics.py` writes diagnostics.txt again; read the diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.compiling import PROBE, ROOT, probe, refusal

EXPECTED = Path(__file__).parent / "diagnostics.txt"
BODIES = {
    # names
    "undefined": "update = beta3 * grad\nparam = param - exp_avgg",
    "names of papers": "g = grad\nm = lr * g\nparam = theta - alpha * m",
    "option as a number": "param = amsgrad * grad",
    "undefined in if": "if amsgrid:\n    param = grad\nparam = param - grad",
    "undefined function": "param = squrt(grad)",
    "no such function": "param = f(grad)",
    "window function as name": "param = push",
    # what may be assigned
    "assign hyperparameter": "lr = 1\nparam = param - lr",
    "assign option": "amsgrad = 1\nparam = param - grad",
    "assign step": "step = 3\nparam = param - grad",
    "assign fact": "numel = 3\nparam = param - grad",
    "assign function": "where = 1\nparam = grad",
    "assign reduction": "norm = 1\nparam = grad",
    "assign underscore": "_x = grad\nparam = grad",
    # existence
    "defined in one branch": "if amsgrad:\n    x = grad\nparam = param - x",
    "state with a condition": "param = param - kept",
    "optional hyperparameter": "param = param - beta1 * grad",
    "two of three choices": 'if mode == "a":\n    x = grad\nelif mode == "b":\n    x = -grad\nparam = param - x',
    "rows of any parameter": "param = param - row_sum(grad)",
    "matrix of any parameter": "param = param - quintic(grad, 5, 1e-7)",
    "matrix of a number": "if ndim >= 2:\n    param = param - quintic(norm(grad), 5, 1e-7)",
    "setting of a matrix function": "if ndim >= 2:\n    param = param - quintic(grad, norm(grad), 1e-7)",
    "matrix function without settings": "if ndim >= 2:\n    param = param - newton_schulz(grad, 5)",
    "mean over matrix of any parameter": "param = param - mean(grad, over=matrix)",
    "used above its assignment": "param = param - x\nx = grad",
    "rank and an optional": "if ndim != 2 and beta1 is None:\n    x = grad\nparam = param - x",
    # conditions
    "run-time element": "if grad > 0:\n    param = param - lr",
    "run-time reduction": "if sum(grad) > 0:\n    param = grad",
    "run-time comparison of names": "if lr > beta1:\n    param = grad",
    "flag compared": "if amsgrad == 1:\n    param = grad",
    "run-time value": "n = norm(grad)\nif n > 1:\n    param = param - grad\nparam = param - lr * grad",
    "run-time step": "if step == 2:\n    param = grad",
    # loops
    "loop: a value": "for x in grad:\n    param = param - lr * x",
    "loop: a count that is a setting": "for i in range(lr):\n    param = param - lr * grad",
    "loop: lists of other lengths": "for a, b in zip((1, 2), (3, 4, 5)):\n    param = param - lr * grad * a * b",
    "loop: other names than values": "for a, b in (1, 2):\n    param = param - lr * grad * a * b",
    "loop: a name that is taken": "for lr in (1, 2):\n    param = param - lr * grad",
    "loop: its number assigned": "for i in range(2):\n    i = 3\n    param = param - lr * grad * i",
    "loop: while": "while step > 3:\n    param = param - lr * grad",
    "loop: break": "for i in range(2):\n    break\nparam = param - lr * grad",
    "loop: too many": "for i in range(4000):\n    for j in range(4000):\n        param = param - lr * grad * i * j",
    # steps
    "every: a value of the step": "n = norm(grad)\nif every(n):\n    param = param - lr * grad",
    "every: a setting that is no whole number": "if every(lr):\n    param = param - lr * grad",
    "every: an expression": "if every(2 * 3):\n    param = param - lr * grad",
    "every: never": "if step % 3 == 3:\n    param = param - lr * grad",
    "every: no number": "if every(0):\n    param = param - lr * grad",
    "every: as a value": "param = param - lr * grad * every(3)",
    "every: a state of the group": "if every(3):\n    total = 1\nparam = param - lr * grad",
    "every: a window": "if every(3):\n    past = push(past, norm(grad))\nparam = param - lr * grad",
    "every: what other steps do not have": "if every(3):\n    x = grad * 2\nparam = param - lr * x",
    "every: an unknown name": "if every(often):\n    param = param - lr * grad",
    "number as a condition": "if lr:\n    param = grad",
    "optional as a condition": "if not beta1:\n    param = grad",
    "choice as a condition": "if mode:\n    param = grad",
    "None of a number": "if lr is None:\n    param = grad",
    "None of a flag": "if amsgrad is None:\n    param = grad",
    "choice as a number": "param = where(mode == 1, grad, param)",
    "unknown choice": 'if mode == "d":\n    param = grad',
    "condition calls": "if amsgrad.real:\n    param = grad",
    "condition is a number": "if 1:\n    param = grad",
    # kinds
    "element to tensor": "size = grad\nparam = param - lr",
    "row to tensor": "if ndim >= 2:\n    size = row_sum(grad)\nparam = param - lr",
    "element to row": "if ndim >= 2:\n    rows_of = grad\nparam = param - lr",
    "tensor to group": "total = norm(grad)\nparam = param - lr",
    "group state below if of a parameter": "if ndim >= 2:\n    total = lr\nparam = param - lr",
    "group state below else of a parameter": "if numel > 5:\n    x = lr\nelse:\n    total = lr\nparam = param - lr",
    "nothing to reduce": "param = sum(lr) * grad",
    "row of a tensor": "if ndim >= 2:\n    param = row_sum(norm(grad)) * grad",
    "mean over all": "param = mean(grad, over=all) * grad",
    "max over all": "param = max(grad, over=all) * grad",
    "channels of columns": "if ndim >= 2:\n    param = max(col_sum(grad), over=channel) * grad",
    "a dimension that few have": "if ndim >= 2:\n    param = max(grad, over=last3) * grad",
    "channel to tensor": "if ndim >= 2:\n    size = norm(grad, over=channel)\nparam = param - lr",
    "size of a dimension that few have": "param = param - grad * shape[1]",
    "size of no dimension": "param = param - grad * shape[7]",
    "size of what is no number": "param = param - grad * shape[lr]",
    "rows of columns": "if ndim >= 2:\n    param = max(col_sum(grad), over=row) * grad",
    # types
    "condition to param": "param = grad > 0",
    "condition to state": "size = norm(grad) > 0\nparam = grad",
    "number to active": "active = grad\nparam = param - grad",
    "where of a number": "param = where(grad, 1, 2)",
    "where of both": "param = where(grad > 0, grad, grad > 0)",
    "and of numbers": "param = where(grad and lr, 1, 2)",
    "not of a number": "param = where(not grad, 1, 2)",
    "sum of a condition": "param = grad + (grad > 0)",
    # windows
    "window as a number": "param = param + past",
    "window of a number": "param = percentile(grad, 5)",
    "percentile of elements": "param = percentile(past, grad)",
    "push of elements": "past = push(past, grad)\nparam = grad",
    "number to window": "past = norm(grad)\nparam = grad",
    "window to a number": "size = past\nparam = grad",
    "window of another name": "x = past\nparam = param + x",
    "where of windows": "past = where(lr > 1, past, push(past, 1))\nparam = grad",
    "window or number": "if amsgrad:\n    x = past\nelse:\n    x = lr\nparam = param + x",
    "condition or number": "if amsgrad:\n    x = grad > 0\nelse:\n    x = grad\nparam = x",
    # calls
    "too many arguments": "param = sqrt(param, 1)",
    "too few arguments": "param = where(grad > 0, 1)",
    "min of none": "param = min()",
    "keyword": "param = sqrt(x=grad)",
    "over what": "param = sum(grad, over=foo) * grad",
    "row_sum over": "if ndim >= 2:\n    param = row_sum(grad, over=all) * grad",
    # not in the language
    "chained comparison": "param = where(0 < grad < 1, grad, 0)",
    "calls Python": "x = __import__('os').system('ls')\nparam = x",
    "attribute": "param = grad.data",
    "lambda": "param = (lambda x: x)(grad)",
    "comprehension": "param = [x for x in grad]",
    "string": "param = 'abc'",
    "none": "param = None",
    "complex": "param = 1j * grad",
    "conditional expression": "param = grad if lr > 0 else param",
    "augmented": "param += grad",
    "loop": "for x in grad:\n    param = x",
    "while": "while True:\n    param = grad",
    "index": "param = grad[0]",
    "import": "import os\nparam = grad",
    "import from": "from os import system\nparam = grad",
    "function": "def f(x):\n    return x\nparam = grad",
    "annotation": "param: float = grad",
    "walrus": "param = (x := grad)",
    "two targets": "param = exp_avg = grad",
    "tuple": "param, exp_avg = grad",
    "xor": "param = grad ^ 2",
    "floor division": "param = grad // 2",
    "matrix product": "param = grad @ grad",
    "statement": "sqrt(grad)\nparam = grad",
    "global": "global param\nparam = grad",
    # the habits of other libraries
    "module": "param = np.sqrt(grad)",
    "method": "param = grad.sqrt()",
    "in place": "exp_avg.mul_(lr).add_(grad, alpha=1 - lr)\nparam = param - exp_avg",
    "in place with data": "param.data.addcdiv_(grad, exp_avg + 1e-8, value=-lr)",
    "bitwise and": "param = where((grad > 0) & (param > 0), grad, 0)",
    "bitwise and without brackets": "param = where(grad > 0 & param > 0, grad, 0)",
    "bitwise not": "param = where(~(grad > 0), grad, 0)",
    "pow": "param = pow(grad, 2)",
    "clamp": "param = grad.clamp(-1, 1)",
    "clamp with names": "param = torch.clamp(grad, min=-lr)",
    "clamp of nothing": "param = clamp(grad)",
    "sigmoid": "param = torch.special.expit(grad)",
    "standard deviation": "param = grad / (grad.std() + 1e-8)",
    "largest magnitude": "param = grad / grad.abs().max()",
    "sum along": "if ndim >= 2:\n    param = grad.sum(dim=-1)",
    "another norm": "param = grad / torch.norm(grad, p=1)",
    "settings of a group": "param = param - group['lr'] * grad",
    "settings of self": "param = param - self.lr * grad",
    "gradient of the parameter": "param = param - lr * param.grad",
    "return": "return param - lr * grad",
    "comparison for an assignment": "param == param - grad",
    # no Python at all
    "and of C": "param = where(grad > 0 && param > 0, grad, 0)",
    "else if": "if amsgrad:\n    param = grad\nelse if lr > 0:\n    param = -grad",
    "no colon": "if amsgrad\n    param = grad",
    "no product": "param = 2grad",
    "keyword as a name": "lambda = 0.1\nparam = lambda * grad",
    "comment of C": "param = grad // half of it",
    "choice of C": "param = grad > 0 ? grad : 0",
    "syntax": "param = param -",
    "unclosed": "param = (param",
    "large whole number": "param = grad * " + "9" * 320,
    "large number": "param = 1e999 * grad",
    "too deep": "param = " + "-" * 150 + "grad",
    "too deep condition": "if " + "not " * 150 + "amsgrad:\n    param = grad",
    "too many branches": "\n".join(f"{'el' if k else ''}if ndim == {k}:\n    param = grad * {k}" for k in range(60)),
    "parentheses": "param = " + "(" * 250 + "grad" + ")" * 250,
    # nothing follows from a mistake
    "undefined and used": "x = nope * grad\ny = norm(x)\nsize = norm(y * x)\nparam = param - -x",
    "refused and used": "a, b = grad\nparam = param - norm(a * b) * a",
    "annotated and used": "x: float = grad\nparam = param - x * norm(x)",
    "reserved and used": "_x = grad\nparam = param - _x",
    "one side refused": "if amsgrad:\n    x = nope\nelse:\n    x = lr\nparam = param - norm(x * grad) * sum(x)",
    "in a refused branch": "if amsgrid:\n    kept = grad\n    x = kept\nparam = param - x",
    "a number for a condition": "active = active and where(grad, 1, 0) > 0\nparam = param - grad",
    # effect
    "no effect": "exp_avg = grad",
}


def with_states(states: str, body: str = "") -> str:
    """A spec with states of another declaration, or one state more."""
    name = states.split(":", 1)[0]
    lines = [line for line in PROBE.split("\n") if not line.startswith(f"  {name}:")]
    statements = f"{body}\nparam = param - lr * grad".strip()
    text = "\n".join(lines) + f"  {states}\nblocks:\n  step: |\n"
    return text + "".join(f"    {line}\n" for line in statements.split("\n"))


RULE = "refusals:\n  - {when: %s, message: %s}\nblocks:\n  step: |\n    param = param - grad\n"
STEP = "  step: |\n    param = param - grad\n"
SPECS = {
    "folded": PROBE + "blocks:\n  step: >\n    exp_avg = grad\n    param = param - exp_avg\n",
    "in quotes": PROBE + "blocks:\n  step: 'exp_avg = grad\n    param = param - exp_avg'\n",
    "update without apply": PROBE + "blocks:\n  step: |\n    update = grad\n",
    "several numbers": PROBE.replace("options:", "  betas: {default: [0.9, 0.99], names: [b1, b2]}\noptions:")
    + "blocks:\n  step: |\n    if betas > 0:\n        param = b1 * b2 * grad\n    param = param - betas * grad\n",
    "refused direction": PROBE + "blocks:\n  step: |\n    update: x = grad\n  apply: param = param - update\n",
    "unreadable direction": PROBE + "blocks:\n  step: update = grad +\n  apply: param = param - update\n",
    "condition that is refused": PROBE.replace("when: amsgrad", "when: amsgrid")
    + "blocks:\n  step: |\n    kept = kept + grad\n    param = param - kept\n",
    "rule names nothing": PROBE + RULE % ("amsgrid", "no"),
    "rule calls": PROBE + RULE % ("len(mode)", "no"),
    "rule is no expression": PROBE + RULE % ('"amsgrad ="', "no"),
    "message names nothing": PROBE + RULE % ("amsgrad", '"{amsgrid}"'),
    "rule on no block": PROBE
    + "refusals:\n  - {when: amsgrad, message: no, on: stop}\nblocks:\n  step: |\n    param = param - grad\n",
    "no update": PROBE + "blocks:\n  step: |\n    exp_avg = grad\n  apply: |\n    param = param - exp_avg\n",
    "apply has no effect": PROBE + "blocks:\n  step: |\n    update = grad\n  apply: |\n    exp_avg = update\n",
    "method without gradient": PROBE
    + "blocks:\n  step: |\n    param = param - grad\nmethods:\n  flip:\n    block: |\n      param = param - grad\n",
    "method assigns gradient": PROBE
    + "blocks:\n  step: |\n    param = param - grad\nmethods:\n  flip:\n    block: |\n      grad = param\n",
    "init of elements for a tensor": PROBE.replace(
        "size: {shape: tensor}", 'size: {shape: tensor, init: "grad * grad"}'
    )
    + "blocks:\n  step: |\n    param = param - grad\n",
    "init of a tensor for a group": with_states("total: {shape: group, init: norm(grad)}"),
    "init of rows for columns": with_states("cols_of: {shape: col, when: ndim >= 2, init: row_mean(grad)}"),
    "init of rows of any rank": with_states("mean_of: {init: row_mean(grad)}"),
    "init of all parameters": with_states('size: {shape: tensor, init: "sum(grad, over=all)"}'),
    "init is a condition": with_states("mask: {init: grad > 0}"),
    "init needs a setting": with_states("mask: {init: beta1}"),
    "init of a window": with_states("seen: {shape: tensor, window: 3, init: 2}"),
    "rows to columns": with_states("cols_of: {shape: col, when: ndim >= 2}", "if ndim >= 2:\n    cols_of = rows_of"),
    "window of another state": with_states(
        "more: {shape: tensor, window: 4}", "more = push(more, percentile(more, 50))\npast = more"
    ),
    "two values a step": with_states(
        "more: {shape: tensor, window: 4}",
        "if amsgrad:\n    more = push(more, 1)\nmore = push(more, percentile(more, 50))",
    ),
    "window to a longer one": with_states(
        "more: {shape: tensor, window: 8}", "more = push(more, percentile(more, 50))\npast = more"
    ),
    "init names nothing": PROBE.replace("exp_avg: {}", "exp_avg: {init: exp_avg_sq}")
    + "blocks:\n  step: |\n    param = param - grad\n",
    "when is a run-time condition": PROBE.replace("when: amsgrad", "when: grad > 0")
    + "blocks:\n  step: |\n    param = param - grad\n",
    "rows of any rank": PROBE.replace("shape: row, when: ndim >= 2", "shape: row")
    + "blocks:\n  step: |\n    param = param - grad\n",
    "group state with a condition": PROBE.replace("total: {shape: group}", "total: {shape: group, when: amsgrad}")
    + "blocks:\n  step: |\n    param = param - grad\n",
    "too many cases": "name: probe\noptions:\n"
    + "".join(f"  a{i}: {{default: false}}\n  b{i}: {{default: false}}\n" for i in range(20))
    + f"blocks:\n  step: |\n    if {' and '.join(f'(a{i} or b{i})' for i in range(20))}:\n        param = grad\n",
}
PLAIN = "name: plain\nhyperparameters:\n  lr: {default: 0.1}\n"
WARNED = {
    "unused settings": PLAIN
    + "  betas: {default: [0.9, 0.99], names: [beta1, beta2]}\n  eps: {default: 0.0}\noptions:\n"
    "  flag: {default: false}\ninputs:\n  loss: {}\nblocks:\n  step: |\n    param = param - lr * beta1 * grad\n",
    "unused state": PLAIN + "states:\n  idle: {}\nblocks:\n  step: param = param - lr * grad\n",
    "state that is never assigned": PLAIN
    + "states:\n  scale: {shape: tensor, init: 2}\n  start: {init: param, codecs: [fp32]}\n"
    "blocks:\n  step: param = start - lr * scale * grad\n",
    "line commented out": PLAIN
    + "states:\n  exp_avg_sq: {range: unsigned}\n  largest: {range: unsigned}\nblocks:\n  step: |\n"
    "    exp_avg_sq = 0.9 * exp_avg_sq + grad * grad\n    largest = max(largest, exp_avg_sq)\n"
    "    denom = sqrt(largest)\n    # param = param - lr * grad / denom\n    param = param - lr * grad\n",
    "states that a rule and a method read": PLAIN + "states:\n  mode: {shape: group}\n  sums: {}\n  unread: {}\n"
    "refusals:\n  - {when: mode > 1, message: no, on: step}\nblocks:\n  step: |\n    sums = sums + grad\n"
    "    unread = unread + grad\n    param = param - lr * grad\n"
    "methods:\n  move:\n    block: |\n      mode = 1\n      param = sums\n      unread = 2 * unread\n",
    "update that apply does not read": PLAIN
    + "blocks:\n  step: |\n    update = grad\n    update = 2 * update\n    direction = update\n"
    "  apply: param = param - lr * direction\n",
    "update without use": PLAIN + "blocks:\n  step: |\n    update = grad\n    param = param - lr * grad\n",
    "value of a method": PLAIN
    + "blocks:\n  step: param = param - lr * grad\nmethods:\n  shrink:\n    block: |\n      size = norm(param)\n"
    "      param = param / 2\n",
    "weights": PLAIN
    + "states:\n  start: {init: param}\n  mean: {}\n  slow: {}\n  fast: {codecs: [fp32, int8], init: param}\n"
    "  step_: {}\n  exp_avg: {}\nblocks:\n  step: |\n    exp_avg = 0.9 * exp_avg + 0.1 * (grad + lr * param)\n"
    "    step_ = param - start\n    param = param - lr * exp_avg + lr * step_ + fast - fast\n"
    "    mean = 0.9 * mean + 0.1 * param\n    slow = where(step > 5, slow + lr * (param - slow), slow)\n",
    "file of another name": PLAIN + "blocks:\n  step: param = param - lr * grad\n",
}
CASES = {**{name: probe(body) for name, body in BODIES.items()}, **SPECS, **WARNED}


def said(folder: Path, name: str) -> str:
    text = refusal(folder, CASES[name], "other.yaml" if name == "file of another name" else "")
    return "\n".join(line.rstrip() for line in text.split("\n"))


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)\n\n", EXPECTED.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text.strip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_update(tmp_path: Path) -> None:
    if not os.environ.get("OPTGEN_UPDATE"):
        pytest.skip("OPTGEN_UPDATE is not set")
    EXPECTED.write_text("\n".join(f"## {name}\n\n{said(tmp_path, name)}\n" for name in CASES), encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_says_exactly(name: str, tmp_path: Path) -> None:
    assert said(tmp_path, name) == sections()[name]


def test_every_text_has_its_case() -> None:
    assert list(sections()) == list(CASES)


def test_nothing_wrong_is_accepted() -> None:
    for name, text in sections().items():
        assert text.startswith("warning[" if name in WARNED else "error["), name
        assert ("error[" in text) == (name not in WARNED)


@pytest.mark.slow
def test_one_mistake_is_said_once(tmp_path: Path) -> None:
    """Every statement of a stock rule is spoilt, one at a time."""
    spec = ROOT / "specs" / "adafactor.yaml"
    lines = spec.read_text(encoding="utf-8").split("\n")
    statements = [n for n, line in enumerate(lines) if re.match(r" {4,}(\w+ = |if |elif )", line)]
    assert len(statements) > 20
    for number in statements:
        indent, name, rest = re.match(r"( *)(\w+) (.*)", lines[number]).groups()
        spoilt = [f"{name} nope:", f"{name} norm(grad) > 1:"]
        if rest.startswith("= "):
            spoilt = [
                f"{name} {wrong}"
                for wrong in (f"{rest} @ nope", "= nope(grad)", f": float {rest}", f", other {rest}, 1, 2")
            ]
        for wrong in spoilt:
            text = "\n".join([*lines[:number], indent + wrong, *lines[number + 1 :]])
            said = refusal(tmp_path, text)
            assert said.count("error[") == 1, said


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    text = refusal(tmp_path, probe("a = nope1\nb = nope2\nif nope3:\n    c = nope4\nparam = a + nope5"))
    assert [f"nope{k}" in text for k in range(1, 6)] == [True, True, True, True, True]
