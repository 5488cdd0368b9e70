"""Conversion of a document to a model: Pydantic's errors in plain words, each at its place in the YAML.

Input: a `Document` and the model it should be. Output: the model, or diagnostics. Pydantic's locations are walked
along the document's nodes; what is left over are the names of the members of a union, of which the one that comes
closest is reported.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from optgen.diagnostics import Location, Reporter, suggest
from optgen.spec.nodes import Document, Key, Mapping, Node, Scalar, Sequence, child, is_number, to_data

ModelType = TypeVar("ModelType", bound=BaseModel)

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "null",
}


_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), "write `true`")
_BOOLEANS |= dict.fromkeys(("false", "no", "off", "0"), "write `false`")


_MAX_PROBLEMS = 400
"""Number of a file's problems that are examined: more than are ever printed."""


@dataclass(frozen=True)
class _Problem:
    """One of Pydantic's errors: where it is, the part of its location not walked yet, and what it says."""

    path: tuple[Key, ...]
    rest: tuple[Key, ...]
    kind: str
    message: str
    context: dict[str, Any]


def validate(document: Document, model: type[ModelType], reporter: Reporter) -> ModelType | None:
    """The document as a model; None, and diagnostics in `reporter`, if it is none."""
    data = to_data(document.root, document.source, reporter)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems = [
            _Problem((), item["loc"], item["type"], item["msg"], item.get("ctx", {}))
            for item in details[:_MAX_PROBLEMS]
        ]
        for problem in _closest(document.root, problems):
            _report(document, model, problem, reporter)
        return None
    except RecursionError:
        reporter.error("too-deep", "this is nested too deeply", document.locate())
        return None


def _closest(node: Node | None, problems: list[_Problem]) -> list[_Problem]:
    """Walks the problems down the nodes; of the members of a union, keeps those of the closest one."""
    here: list[_Problem] = []
    below: dict[Key, list[_Problem]] = {}
    members: dict[Key, list[_Problem]] = {}
    for problem in problems:
        if not problem.rest or problem.rest[-1] == "[key]" or (problem.kind == "missing" and len(problem.rest) == 1):
            here.append(_Problem(problem.path + problem.rest, (), problem.kind, problem.message, problem.context))
        elif child(node, problem.rest[0]) is not None:
            path = (*problem.path, problem.rest[0])
            step = _Problem(path, problem.rest[1:], problem.kind, problem.message, problem.context)
            below.setdefault(problem.rest[0], []).append(step)
        else:
            step = _Problem(problem.path, problem.rest[1:], problem.kind, problem.message, problem.context)
            members.setdefault(problem.rest[0], []).append(step)
    for key, group in below.items():
        here.extend(_closest(child(node, key), group))
    if members:
        here.extend(_closest_member(node, list(members.values())))
    return here


def _closest_member(node: Node | None, members: list[list[_Problem]]) -> list[_Problem]:
    """The problems of the member of a union that the author most likely meant."""
    candidates = [_closest(node, group) for group in members]
    words = _has_words(node, candidates)
    near = [group for group in candidates if not any(_is_wrong_type(problem, group, words) for problem in group)]
    if near:
        return min(near, key=len)
    first = candidates[0][0]
    kinds = list(dict.fromkeys(_expected(problem) for group in candidates for problem in group[:1]))
    if "a number" in kinds and "a whole number" in kinds:
        kinds.remove("a whole number")
    return [_Problem(first.path, (), "expected", _listed(kinds), {})]


def _listed(words: list[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _is_wrong_type(problem: _Problem, group: list[_Problem], words: bool) -> bool:
    return len(group) == 1 and (problem.kind in _EXPECTED or (words and problem.kind == "literal_error"))


def _has_words(node: Node | None, candidates: list[list[_Problem]]) -> bool:
    """Tells if the words of a union are no more likely meant than its other members."""
    scalars = {problem.kind for group in candidates for problem in group} & {"int_type", "float_type", "bool_type"}
    return bool(scalars) or not isinstance(node, Scalar)


def _expected(problem: _Problem) -> str:
    """The kind of value that a member of a union is."""
    return _EXPECTED.get(problem.kind) or str(problem.context.get("expected", "")).replace("'", "`")


def _report(document: Document, model: type[BaseModel], problem: _Problem, reporter: Reporter) -> None:
    path, kind = problem.path, problem.kind
    name = path[-1] if path else ""
    if kind == "missing":
        where = f" in `{_named(path[:-1])}`" if len(path) > 1 else ""
        reporter.error("missing-key", f"`{name}` is missing{where}", document.locate_key(*path[:-1]), f"add `{name}:`")
    elif kind == "extra_forbidden":
        known = sorted(_fields_at(model, path[:-1]) - _given(document, path[:-1]))
        help_text = suggest(str(name), known) or f"known here: {', '.join(known)}"
        reporter.error("unknown-key", f"unknown key `{name}`", document.locate_key(*path), help_text)
    elif name == "[key]":
        reporter.error("name", *_name_message(str(path[-2]), problem, document.locate_key(*path[:-1])))
    elif kind in _EXPECTED or kind == "expected":
        wanted = problem.message if kind == "expected" else _EXPECTED[kind]
        found = _describe(document.find(*path))
        message = f"expected {wanted}, found {found}"
        if path:
            message = f"`{_named(path)}`: {message}"
        reporter.error("type", message, document.locate(*path), _type_help(path, wanted, document.find(*path)))
    else:
        reporter.error(*_value_message(document, problem))


def _type_help(path: tuple[Key, ...], wanted: str, node: Node | None) -> str:
    """Suggest what to write instead; "" if the node does not show what was meant."""
    match node:
        case Scalar(style="", text="" | "~" | "null") if wanted == "a mapping":
            return "write `{}` to take all defaults"
        case Scalar(style="", text=text) if "true or false" in wanted:
            return _BOOLEANS.get(text.lower(), "")
        case Scalar(style="", text="true" | "false") if path[:1] == ("hyperparameters",) and "number" in wanted:
            return "a setting that is on or off is declared under `options`"
        case Scalar(text=text) if "number" in wanted:
            if is_number(text):
                return "remove the quotes" if node.style else ""
            if text == "None":
                return "write `null`"
            return "write a number, as 100" if "whole" in wanted else "write a number, as 0.001 or 1e-3"
        case Scalar(style="", text=text) if wanted == "text" and (is_number(text) or text in ("true", "false")):
            return "put it in quotes"
    return ""


def _value_message(document: Document, problem: _Problem) -> tuple[str, str, Location, str]:
    path, context = problem.path, problem.context
    where, node = document.locate(*path), document.find(*path)
    text = _short(node.text) if isinstance(node, Scalar) else ""
    match problem.kind:
        case "literal_error":
            allowed = str(context.get("expected", "")).replace("'", "`")
            close = suggest(text, [word.strip("`") for word in allowed.replace(" or ", ", ").split(", ")])
            return "choice", f"`{_named(path)}` is {allowed}, not {_describe(node)}", where, close
        case "string_pattern_mismatch":
            return ("name", *_name_message(text, problem, where))
        case "string_too_long" if context.get("max_length", 0) < 100:
            return ("name", *_name_message(text, problem, where))
        case "string_too_long":
            limit = context.get("max_length")
            return "too-long", f"`{_named(path)}` is longer than {limit} characters", where, "shorten it"
        case "greater_than":
            return "value", f"`{_named(path)}` must be above {context.get('gt')}, not {text}", where, ""
        case "less_than_equal":
            return "value", f"`{_named(path)}` must be at most {context.get('le')}, not {text}", where, ""
    return "value", f"`{_named(path)}`: {problem.message}", where, ""


def _name_message(name: str, problem: _Problem, where: Location) -> tuple[str, Location, str]:
    if problem.kind == "string_too_long":
        return f"the name `{_short(name)}` is too long", where, "a name has at most 64 characters"
    if name.startswith("_"):
        return f"the name `{_short(name)}` begins with `_`", where, "names beginning with `_` are the generator's own"
    return f"`{_short(name)}` is not a name", where, "a name is a letter, then letters, digits and `_`"


def _named(path: Iterable[Key]) -> str:
    """A path as people write it: `betas.default`, `refusals[0].when`."""
    text = ""
    for key in list(path)[-3:]:
        text += f"[{key}]" if isinstance(key, int) else f".{_short(key)}"
    return text.lstrip(".")


def _short(text: str) -> str:
    line = text.split("\n", 1)[0]
    return line if len(line) <= 60 and line == text else line[:60] + "..."


def _describe(node: Node | None) -> str:
    match node:
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar(style="", text="" | "~" | "null"):
            return "nothing"
        case Scalar(style=""):
            return f"`{_short(node.text)}`"
        case Scalar():
            return f'the text "{_short(node.text)}"'
        case None:
            return "nothing"


def _given(document: Document, path: tuple[Key, ...]) -> set[str]:
    node = document.find(*path)
    return set(node.keys) if isinstance(node, Mapping) else set()


def _fields_at(model: type[BaseModel], path: tuple[Key, ...]) -> set[str]:
    """The keys that may stand in the mapping at `path` of a model."""
    kinds: list[Any] = [model]
    for key in path:
        kinds = [below for kind in kinds for below in _children(kind, key)]
    return {name for kind in kinds for name in _aliases(kind)}


def _children(kind: Any, key: Key) -> list[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = _aliases(kind).get(str(key))
        return _members(field) if field is not None else []
    if origin is dict:
        return _members(arguments[1])
    return _members(arguments[0]) if origin is list else []


def _members(kind: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [member for part in get_args(kind) for member in _members(part)]
    return [kind]


def _aliases(kind: Any) -> dict[str, Any]:
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return {}
    return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
