"""Name of a package when the user gives none."""

from __future__ import annotations

from pathlib import Path

import pytest

from optgen.errors import UserError
from optgen.package_name import PackageNameError, destination
from optgen.paths import specs_dir


@pytest.mark.parametrize(
    ("specs", "package", "out", "name", "directory"),
    [
        (["a/my-rules"], None, None, "my_rules", "generated/my_rules"),
        (["a/lion.yaml"], None, None, "lion", "generated/lion"),
        (["a/lion.yaml", "a/tiger.yaml"], None, None, "a", "generated/a"),
        (["a/3rules"], None, None, "_3rules", "generated/_3rules"),
        (["a/rules"], None, "x/optim", "optim", "x/optim"),
        (["a/rules"], "given", None, "given", "generated/given"),
        (["a/rules"], "given", "x/other", "given", "x/other"),
    ],
)
def test_names(specs: list[str], package: str | None, out: str | None, name: str, directory: str) -> None:
    found = destination([Path(path) for path in specs], package, Path(out) if out else None)
    assert (found.package, found.directory) == (name, Path(directory))


def test_the_stock_specs_make_the_stock_package() -> None:
    found = destination([specs_dir()])
    assert (found.package, found.directory) == ("optgen_optim", Path("generated/optgen_optim"))
    assert destination([specs_dir()], None, Path("x")).package == "optgen_optim"


@pytest.mark.parametrize(
    ("specs", "package", "message"),
    [
        ("rules", "optgen_optim", "is the package of optgen's own specs"),
        ("optgen_optim", None, "is the package of optgen's own specs"),
        ("rules", "my-rules", "a package name is a Python identifier"),
        ("rules", "class", "a package name is a Python identifier"),
        ("rules", "torch", "would hide the module torch"),
        ("json", None, "would hide the module json"),
    ],
)
def test_names_that_are_refused(specs: str, package: str | None, message: str) -> None:
    with pytest.raises(PackageNameError, match=message):
        destination([Path("a") / specs], package)


@pytest.mark.parametrize("link", ["generated", "generated/rules"])
def test_a_link_in_the_tree_is_followed_only_where_the_user_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere" / "rules").mkdir(parents=True)
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{link} is a link to .*elsewhere; to write there, say so: --out"):
        destination([Path("rules")])
    assert destination([Path("rules")], None, Path("generated/rules")).directory == Path("generated/rules")
