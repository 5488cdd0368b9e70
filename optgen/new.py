"""The spec that `optgen new` writes: a working rule with comments, to be edited."""

from __future__ import annotations

import json
import keyword
import re
import shlex
import textwrap
from pathlib import Path

from optgen.backends.quoting import py_string
from optgen.diagnostics import printable
from optgen.emit.whole_file import write_whole
from optgen.errors import UserError
from optgen.operations import FUNCTIONS, REDUCTIONS
from optgen.spec.json_schema import json_schema
from optgen.spec.names import OF_CLASSES, class_name

SCHEMA = "optgen.schema.json"
"""The file beside specs that editors read for completion and descriptions; `optgen schema` prints it too."""

_SPEC = """\
# yaml-language-server: $schema={schema}
# A working update rule, to be edited. See the result:
#   optgen check {path}
#   optgen explain {class_name} --specs {path}
# Use it from Python, without writing anything to disk:
#   import optgen
#   optimizer = optgen.load({text}).{class_name}(model.parameters(), lr=1e-3)

name: {name}
title: {class_name}, an adaptive step with two averages
doc: An average of the gradient, divided by the root of an average of its square.

# Numbers that the user sets, with their defaults. The vocabulary has the ranges of these names, which are checked
# wherever a number is set, and their descriptions; a spec can replace both. `betas` is `beta1` and `beta2` in the
# equations. Your own names are written out: `gamma: {{default: 0.5, range: "[0, 1]", doc: A description.}}`
hyperparameters:
  lr: 1e-3
  betas: [0.9, 0.999]
  eps: 1e-8
  weight_decay: {{default: 0.0, doc: "Decay of the parameter itself, times lr."}}

# Flags, fixed when the optimizer is made. Equations test them with `if`.
options:
  bias_correction: {{default: true, doc: Correct the averages for their start at zero.}}

# Values kept between steps, shaped like the parameter and zero at first; these are words of the vocabulary too. A
# state of your own that is never negative says so, `{{range: unsigned, doc: A description.}}`: its 8-bit codes spend
# nothing on a sign.
states:
  exp_avg:
  exp_avg_sq:

{equations}
blocks:
  step: |
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    if bias_correction:
        denom = sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps
        update = exp_avg / (1 - beta1**step) / denom
    else:
        update = exp_avg / (sqrt(exp_avg_sq) + eps)
  apply: |
    param = param * (1 - lr * weight_decay)
    param = param - lr * update

# The classes to make. Each is named here with what it fixes; without this section there is one class, {class_name}.
classes:
  {class_name}: {{bits: [any, 8]}}  # {class_name} and {class_name}8bit
"""


class NewSpecError(UserError):
    """No spec can be written; the message says why and what to do."""


def spec_name(name: str) -> str:
    """The name of a rule in lower case with underscores: `MyRule` and `my-rule` are both `my_rule`.

    Raises:
        NewSpecError: the name holds something other than letters, digits, `-` and `_`, or does not begin with a letter.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
        raise NewSpecError(
            f"{name!r} cannot name a rule: begin with a letter, go on with letters, digits and underscores (at most 64)"
        )
    plain = name.replace("-", "_")
    if plain.isupper():
        return plain.lower()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain).lower()
    return re.sub(r"_+", "_", words).strip("_")


def new_spec(rule: str, file: str) -> str:
    """The text of a working spec for the rule `rule`, to be saved as `file`."""
    path = printable(shlex.quote(file))
    return _SPEC.format(
        name=rule,
        class_name=class_name(rule),
        path=path,
        text=py_string(file),
        equations=_about_equations(),
        schema=SCHEMA,
    )


def _about_equations() -> str:
    reductions = [row.name for row in REDUCTIONS.values() if "tensor" in row.over]
    words = (
        "The equations. `param`, `grad` and `step` (1 at the first step) are given. `step` names the direction "
        f"`update`, `apply` moves the parameter. Functions: {' '.join(FUNCTIONS)}; "
        f"reductions over the tensor: {' '.join(reductions)}."
    )
    return textwrap.fill(words, 118, initial_indent="# ", subsequent_indent="# ")


def write_new_spec(name: str, path: Path | None = None) -> Path:
    """Write a new spec to `path`, by default `<name>.yaml` here; a file that exists is never overwritten.

    Raises:
        NewSpecError: the name cannot be used, the file exists, or it cannot be written.
    """
    rule = spec_name(name)
    if keyword.iskeyword(rule) or class_name(rule) in OF_CLASSES:
        raise NewSpecError(f"{name!r} has a meaning in Python or in generated packages; give another name")
    path = path or Path(f"{rule}.yaml")
    try:
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(new_spec(rule, path.as_posix()))
                file.flush()
            except BaseException:
                path.unlink()
                raise
    except FileExistsError as error:
        raise NewSpecError(f"{path} exists already; give another name, or another file with --out") from error
    except OSError as error:
        raise NewSpecError(f"cannot write {path}: {error.strerror}") from error
    return path


def write_schema(folder: Path) -> bool:
    """Write the schema of specs into a folder, or bring the one that is there up to date.

    Returns:
        False where a file of its name is something else: it is left as it is.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / SCHEMA
    schema = json_schema("spec")
    if path.is_symlink() or (path.exists() and not _is_schema(path, str(schema["title"]))):
        return False
    write_whole(path, f"{json.dumps(schema, indent=1)}\n".encode())
    return True


def _is_schema(path: Path, title: str) -> bool:
    """Check whether a file is such a schema, of any version of optgen."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("title") == title
