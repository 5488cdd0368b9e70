"""Places for the cache folder: nobody else may be able to put another folder, or other files, there.

That files belong to someone else is injected into `os.lstat`, so that these tests say the same to every user; where
they run as root, the last also does it in truth.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.owners import ANOTHER, Give

from optgen import loading
from optgen.errors import UserError
from optgen.runtime.building import cache, private_dir, temporary, trusted_path

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Gives a function that says why a cache folder is not taken; "" if it is."""

    def why(folder: Path) -> str:
        monkeypatch.setenv("OPTGEN_CACHE_DIR", str(folder))
        monkeypatch.setattr(private_dir, "_fallbacks", {})
        said: list[str] = []
        monkeypatch.setattr(private_dir.warnings, "warn", lambda message, *_, **__: said.append(message))
        if cache.cache_dir() == folder:
            assert not said
            return ""
        (message,) = said
        assert message.startswith(f"optgen cannot use the cache folder {folder} (")
        assert "Set OPTGEN_CACHE_DIR to a folder of your own" in message
        return message

    return why


def test_folders_of_this_user_and_of_root_are_taken(tmp_path: Path, refused: Callable[[Path], str], give: Give) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "home" / "link").symlink_to(tmp_path / "home")
    give(tmp_path / "home", 0)
    give(tmp_path / "home" / "link", 0)
    assert refused(tmp_path / "home" / "link" / ".cache" / "optgen") == ""
    made = tmp_path / "home" / ".cache"
    assert [path.stat().st_mode & 0o777 for path in (made, made / "optgen")] == [0o700, 0o700]


@pytest.mark.parametrize("there", [True, False], ids=["there", "to be made"])
def test_a_folder_inside_of_anothers_is_refused(
    there: bool, tmp_path: Path, refused: Callable[[Path], str], give: Give
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o777)
    if there:
        (theirs / "mine" / "cache").mkdir(parents=True, mode=0o700)
    give(theirs, ANOTHER)
    why = refused(theirs / "mine" / "cache")
    assert f"{theirs} belongs to user {ANOTHER}, who could put something else in the place of what lies in it" in why
    assert f"this is user {os.geteuid()}" in why
    assert (theirs / "mine").exists() == there


@pytest.mark.parametrize("place", ["last", "on the way", "behind another"])
def test_a_link_of_anothers_is_refused(place: str, tmp_path: Path, refused: Callable[[Path], str], give: Give) -> None:
    (tmp_path / "mine" / "cache").mkdir(parents=True, mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("mine/cache" if place == "last" else "mine")
    (tmp_path / "own").symlink_to(link)
    wanted = {"last": link, "on the way": link / "cache", "behind another": tmp_path / "own" / "cache"}[place]
    assert refused(wanted) == ""
    give(link, ANOTHER)
    assert f"{link} belongs to user {ANOTHER}, who could point it elsewhere" in refused(wanted)


def test_where_an_own_link_leads_counts_too(tmp_path: Path, refused: Callable[[Path], str], give: Give) -> None:
    (tmp_path / "theirs" / "cache").mkdir(parents=True)
    (tmp_path / "link").symlink_to("somewhere/../theirs/./cache")
    (tmp_path / "somewhere").mkdir()
    give(tmp_path / "theirs", ANOTHER)
    assert f"{tmp_path / 'theirs'} belongs to user {ANOTHER}" in refused(tmp_path / "link")


@pytest.mark.parametrize(("mode", "taken"), [(0o755, True), (0o1777, True), (0o777, False), (0o757, False)])
def test_a_folder_on_the_way_that_others_write_to(
    mode: int, taken: bool, tmp_path: Path, refused: Callable[[Path], str]
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    why = refused(shared / "cache")
    assert (why == "") == taken
    assert taken or f"others may write to {shared} (mode {mode:o})" in why
    assert shared.stat().st_mode & 0o7777 == mode


def test_a_group_that_is_the_users_alone_is_no_other(
    tmp_path: Path, refused: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import grp
    import pwd

    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o775)
    group = (tmp_path / "home").stat().st_gid
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(("me", "", 0, group, "", "", "")))
    for name, members, gid, alone in (
        ("me", [], group, True),
        ("me", ["me"], group, True),
        ("me", ["me", "you"], group, False),
        ("users", [], group, False),
    ):
        found = grp.struct_group((name, "", gid, members))
        monkeypatch.setattr(grp, "getgrgid", lambda _, found=found: found)
        assert ("others may write" in refused(tmp_path / "home" / "cache")) != alone, (name, members)


def test_the_unknown_user_of_a_container_is_the_system(
    tmp_path: Path, refused: Callable[[Path], str], give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system").mkdir()
    give(tmp_path / "system", ANOTHER)
    assert refused(tmp_path / "system" / "cache")
    monkeypatch.setattr(trusted_path, "_unknown_user", lambda: ANOTHER)
    assert refused(tmp_path / "system" / "cache") == ""


def test_temporary_folders_lie_in_no_folder_of_anothers(
    tmp_path: Path, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    give(tmp_path, ANOTHER)
    with pytest.raises(OSError, match=f"{tmp_path} belongs to user {ANOTHER}"):
        temporary.temporary_dir()
    monkeypatch.setattr(loading, "_directory", [])
    with pytest.raises(UserError, match=f"no folder for the package can be made: {tmp_path} belongs to user {ANOTHER}"):
        loading.load(ROOT / "specs" / "lion.yaml")
    assert not list(tmp_path.iterdir())


def test_links_in_a_circle_end(tmp_path: Path, refused: Callable[[Path], str]) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "Too many levels of symbolic links" in refused(tmp_path / "a" / "cache")


def test_an_open_folder_with_anything_in_it_is_refused(tmp_path: Path, refused: Callable[[Path], str]) -> None:
    """Also with names of our own: a lock may be a link to a file of the user's, which locking would empty."""
    folder, precious = tmp_path / "cache", tmp_path / "precious"
    folder.mkdir()
    folder.chmod(0o777)
    precious.write_text("mine")
    (folder / "lock-00").symlink_to(precious)
    assert "others may write to it (mode 777) and it is not empty" in refused(folder)
    assert precious.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["a folder on the way", "a link"])
def test_it_is_so_in_truth(what: str, tmp_path: Path) -> None:
    if what == "a link":
        (tmp_path / "mine").mkdir(mode=0o700)
        (tmp_path / "way").symlink_to("mine")
        wanted = tmp_path / "way"
    else:
        (tmp_path / "way" / "mine").mkdir(parents=True, mode=0o700)
        wanted = tmp_path / "way" / "mine"
    os.chown(tmp_path / "way", ANOTHER, ANOTHER, follow_symlinks=False)
    done = subprocess.run(
        [sys.executable, "-c", "from optgen.runtime.building.cache import cache_dir; print(cache_dir())"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPTGEN_CACHE_DIR": str(wanted)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"{tmp_path / 'way'} belongs to user {ANOTHER}" in done.stderr
    assert done.stdout.strip() != str(wanted)
