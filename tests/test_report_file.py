"""Reports on disk: whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from guestmem.report.file import write_text


def test_a_report_replaces_the_old_one_and_keeps_its_mode(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    page.chmod(0o640)
    write_text(page, "new é")
    assert page.read_text(encoding="utf-8") == "new é"
    assert stat.S_IMODE(page.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_a_new_report_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_text(tmp_path / "page.html", "x")
    assert (tmp_path / "page.html").stat().st_mode == ordinary.stat().st_mode


def test_a_write_that_fails_leaves_the_old_report_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as failed:
        write_text(page, "new")
    assert failed.value.filename == str(page)
    assert page.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_a_report_behind_a_symbolic_link_is_replaced_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "page.html")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "page.html").read_text() == "x"


def test_what_is_no_regular_file_is_written_as_it_is() -> None:
    write_text(Path(os.devnull), "x")
    assert not Path(os.devnull).is_file()


def test_a_pipe_gets_the_report() -> None:
    out, into = os.pipe()
    write_text(Path(f"/dev/fd/{into}"), "x")
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        assert pipe.read() == b"x"


@pytest.mark.parametrize("name", ["missing/page.html", "."])
def test_a_place_that_takes_no_file_is_an_oserror_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="director") as failed:
        write_text(tmp_path / name, "x")
    assert str(failed.value.filename) == str(tmp_path / name)
