"""Single files are written whole, or stay what they were."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from optgen import new
from optgen.emit.whole_file import write_whole
from optgen.errors import UserError


def test_a_file_is_replaced_with_its_mode_through_its_link(tmp_path: Path) -> None:
    page, link = tmp_path / "page.html", tmp_path / "link"
    write_whole(page, b"first")
    page.chmod(0o640)
    link.symlink_to(page)
    write_whole(link, b"second")
    assert (page.read_bytes(), page.stat().st_mode & 0o777, link.is_symlink()) == (b"second", 0o640, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "page.html"]


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_changes_nothing(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    if there:
        page.write_bytes(b"precious")

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"page\.html: No space left on device; nothing was changed"):
        write_whole(page, b"page")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"] * there


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    write_whole(Path(os.devnull), b"page")
    assert not Path(os.devnull).is_file()
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: Is a directory"):
        write_whole(tmp_path, b"page")
    with pytest.raises(UserError, match="/dev/full: No space left on device"):
        write_whole(Path("/dev/full"), b"page")


def test_a_new_spec_that_cannot_be_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(new, "new_spec", full)
    with pytest.raises(UserError, match="No space left on device"):
        new.write_new_spec("novel", tmp_path / "novel.yaml")
    assert not list(tmp_path.iterdir())
