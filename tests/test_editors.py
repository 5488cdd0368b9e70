"""Editors' view of the classes, which pyright and jedi read and never run; and of specs, by the server of YAML."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.catalogue import optimizer_class, rows
from support.compiling import ROOT

from optgen.new import write_new_spec, write_schema
from optgen.spec.json_schema import SCHEMAS, json_schema

pytest.importorskip("optgen_optim")

PATHS = [ROOT / "generated", ROOT]
KINDS = (
    "AdamW",  # has a constructor of its own
    "AdamW8bit",  # inherits it
    "PagedAdam32bit",  # inherits one without `is_paged`
    "LAMB8bit",  # inherits one without `optim_bits`, from no public class
    "Adagrad8bit",  # has its own, for another default
    "LARS",  # requires an argument
    "PytorchLARS",  # has no `target`
    "AdamWScheduleFree",  # has methods beside `step`
)
Parameter = tuple[str, str, Any]


def expected(name: str) -> list[Parameter]:
    """A class's parameters: names with stars before those that follow them, types, defaults."""
    parameters = list(inspect.signature(optimizer_class(name)).parameters.values())
    return [(p.name, same_type(str(p.annotation)), p.default) for p in parameters]


def same_type(text: str) -> str:
    return ast.unparse(ast.parse(text))


def shown(signature: str) -> list[Parameter]:
    """The parameters of a signature as an editor writes it, as `(params: Any, lr: float = 0.1) -> C`."""
    (function,) = ast.parse(f"def f{signature}: ...").body
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults + arguments.kw_defaults
    result = []
    for argument, default in zip((*arguments.args, *arguments.kwonlyargs), defaults, strict=True):
        assert argument.annotation is not None
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        result.append((argument.arg, ast.unparse(argument.annotation), value))
    return result


def keyword_only(signature: str) -> set[str]:
    (function,) = ast.parse(f"def f{signature}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return {argument.arg for argument in function.args.kwonlyargs}


def described(name: str) -> dict[str, str]:
    """Descriptions of arguments in a class's documentation, each in one line."""
    text = inspect.getdoc(optimizer_class(name)) or ""
    entries = re.split(r"\n    (?! )", "\n" + text.split("\nArgs:\n")[1].split("\n\n")[0])[1:]
    return {key: " ".join(about.split()) for key, about in (entry.split(": ", 1) for entry in entries)}


def of_the_rule(name: str) -> dict[str, str]:
    """The same of the arguments that not all rules have."""
    shared = {*optimizer_class(name).rule.documented, "args", "target"}
    return {key: text for key, text in described(name).items() if key not in shared}


def check(name: str, signature: str) -> None:
    assert shown(signature) == expected(name)
    parameters = inspect.signature(optimizer_class(name)).parameters.values()
    assert keyword_only(signature) == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.fixture(scope="module")
def pyright(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("basedpyright")
    from support.language_server import LanguageServer

    with LanguageServer(tmp_path_factory.mktemp("editor"), PATHS) as server:
        yield server


@pytest.mark.parametrize("name", KINDS)
def test_pyright_shows_the_signature_and_the_arguments_of_the_rule(pyright, name) -> None:
    uri = pyright.open(f"{name}.py", f"from optgen_optim import {name}\n{name}([], )\n")
    (signature,) = pyright.at("signatureHelp", uri, 1, len(name) + 5)["signatures"]
    check(name, signature["label"])
    told = [signature["documentation"]["value"], pyright.at("hover", uri, 1, 1)["contents"]["value"]]
    for key, about in of_the_rule(name).items():
        for text in told:
            assert f"{key}: {about}" in " ".join(text.split())


def test_pyright_completes_keywords(pyright) -> None:
    """Each request takes it a second."""
    asked = {"AdamW8bit": ("max_grad_norm", "is_paged"), "LAMB8bit": ("trust_ratio",)}
    calls = [(name, key) for name, keys in asked.items() for key in keys]
    text = "from optgen_optim import AdamW8bit, LAMB8bit\n" + "".join(f"{name}([], {key[:4]})\n" for name, key in calls)
    uri = pyright.open("keywords.py", text)
    for line, (name, key) in enumerate(calls, 1):
        found = pyright.at("completion", uri, line, len(name) + 5 + 4)
        assert f"{key}=" in {item["label"] for item in found["items"]}


def test_pyright_finds_mistakes_in_calls(pyright) -> None:
    lines = (
        "from optgen_optim import LAMB8bit, LARS, AdamW8bit, PagedAdamW8bit, AdamWScheduleFree",
        "AdamW8bit([], momentum=0.9)",
        "PagedAdamW8bit([], is_paged=True)",
        "LAMB8bit([], optim_bits=8)",
        "LARS([])",
        'AdamW8bit([], trust_ratio="lars")',
        "AdamWScheduleFree([]).train()",
        "AdamW8bit([]).train()",
    )
    uri = pyright.open("mistakes.py", "\n".join(lines) + "\n")
    found = [message.split("\n")[0] for message in pyright.errors(uri)]
    assert found == [
        'No parameter named "momentum"',
        'No parameter named "is_paged"',
        'No parameter named "optim_bits"',
        'Argument missing for parameter "lr"',
        'Argument of type "Literal[\'lars\']" cannot be assigned to parameter "trust_ratio" of type '
        "\"Literal['none', 'lamb']\" in function \"__init__\"",
        'Cannot access attribute "train" for class "AdamW8bit"',
    ]


@pytest.fixture(scope="module")
def jedi_project(tmp_path_factory: pytest.TempPathFactory) -> Any:
    jedi = pytest.importorskip("jedi")
    return jedi.Project(tmp_path_factory.mktemp("editor"), added_sys_path=[str(path) for path in PATHS])


@pytest.mark.parametrize("name", KINDS)
def test_jedi_shows_the_signature_and_completes_keywords(jedi_project, name) -> None:
    import jedi

    text = f"from optgen_optim import {name}\n{name}([], "
    script = jedi.Script(text, project=jedi_project, environment=jedi.api.environment.InterpreterEnvironment())
    (signature,) = script.get_signatures()
    check(name, signature.to_string().removeprefix(name))
    assert (inspect.getdoc(optimizer_class(name)) or "").split("\n\n")[0] in signature.docstring()
    keywords = {f"{key}=" for key, _, _ in expected(name) if key != "params"}
    assert keywords <= {found.name for found in script.complete()}


@pytest.mark.parametrize("name", sorted(rows()))
def test_help_describes_every_argument(name) -> None:
    """Descriptions give use, range and default: arguments of the rule first, as editors show them, then the others."""
    cls = optimizer_class(name)
    told, parameters = described(name), inspect.signature(cls).parameters
    page = pydoc.plain(pydoc.render_doc(cls))  # what help() prints
    assert all(f"  {key}: " in page for key in parameters)
    assert set(told) == set(parameters)
    for key, parameter in parameters.items():
        default = "" if parameter.default is parameter.empty or key == "params" else default_text(parameter.default)
        assert told[key].endswith(default)
        setting = cls.rule.hypers.get(key) or cls.rule.storage.get(key)
        where = f" In {setting}." if key in cls.rule.hypers or hasattr(setting, "range") else ""
        where = "" if key == "optim_bits" else where
        assert told[key].removesuffix(default).endswith(where)
        assert len(told[key]) > len(default) + len(where) + 5


def default_text(value: Any) -> str:
    return f' Default: "{value}".' if isinstance(value, str) else f" Default: {value!r}."


def test_a_class_that_people_derive_has_the_docstring_that_they_write() -> None:
    class Mine(optimizer_class("AdamW8bit")):  # type: ignore[misc]
        """Mine."""

    class Silent(Mine):
        pass

    assert Mine.__doc__ == "Mine."
    assert Silent.__doc__ is None
    assert inspect.getdoc(Silent) == "Mine."


# Specs


def undescribed(schema: Any, where: str = "") -> Iterator[str]:
    """The fields of a schema that no description tells."""
    if isinstance(schema, dict):
        for name, field in schema.get("properties", {}).items():
            if not str(field.get("description", "")).endswith("."):
                yield f"{where}.{name}"
        for key, part in schema.items():
            yield from undescribed(part, f"{where}.{key}")
    elif isinstance(schema, list):
        for part in schema:
            yield from undescribed(part, where)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_field_of_a_file_is_described(kind: str) -> None:
    assert list(undescribed(json_schema(kind))) == []


@pytest.fixture(scope="module")
def yaml_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    command = shutil.which("yaml-language-server")
    if command is None:
        pytest.skip("no yaml-language-server (npm install -g yaml-language-server)")
    from support.language_server import LanguageServer

    folder = tmp_path_factory.mktemp("specs")
    write_new_spec("my_rule", folder / "my_rule.yaml")
    assert write_schema(folder)
    with LanguageServer(folder, command=[command, "--stdio"], language="yaml") as server:
        yield server


def opened(server: Any, text: str, name: str = "my_rule.yaml") -> tuple[str, list[str]]:
    (server.folder / name).write_text(text, encoding="utf-8")
    return server.open(name, text), text.split("\n")


def place(lines: list[str], words: str) -> tuple[int, int]:
    """The second letter of the first line that begins with these words, apart from blanks."""
    line = next(number for number, text in enumerate(lines) if text.lstrip().startswith(words))
    return line, len(lines[line]) - len(lines[line].lstrip()) + 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("hyperparameters:", "Numbers that the user sets."),
        ("states:", "Values that are kept between steps."),
        ("step: |", "Updates the states and names the direction"),
        ("apply: |", "Changes `param` by `update`."),
        ("classes:", "The classes to make; without any there is one, named after the rule."),
        ("lr:", "A number the user sets."),
    ],
)
def test_the_server_of_yaml_describes_what_new_writes(yaml_server: Any, words: str, told: str) -> None:
    uri, lines = opened(yaml_server, (yaml_server.folder / "my_rule.yaml").read_text(encoding="utf-8"))
    shown = yaml_server.at("hover", uri, *place(lines, words))
    assert told in str(shown["contents"]).replace("\\", "")
    assert yaml_server.errors(uri) == []


def test_the_server_of_yaml_completes_keys_and_finds_unknown_ones(yaml_server: Any) -> None:
    first = "# yaml-language-server: $schema=optgen.schema.json\n"
    uri, _ = opened(yaml_server, f"{first}name: other\nhyp\n", "other.yaml")
    found = yaml_server.at("completion", uri, 2, 3)
    items = {item["label"]: item for item in (found["items"] if isinstance(found, dict) else found)}
    assert "Numbers that the user sets." in str(items["hyperparameters"]["documentation"])
    uri, _ = opened(yaml_server, f"{first}name: wrong\nhyperparams: {{}}\nblocks: {{step: a}}\n", "wrong.yaml")
    assert any("hyperparams" in message for message in yaml_server.errors(uri))


def test_a_schema_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "optgen.schema.json"
    path.write_text("{}")
    assert not write_schema(tmp_path)
    assert path.read_text() == "{}"
    path.write_text('{"title": "optgen spec"}')
    assert write_schema(tmp_path)
    assert "hyperparameters" in path.read_text()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert not write_schema(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
