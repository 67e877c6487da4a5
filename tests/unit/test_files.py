# SPDX-License-Identifier: GPL-2.0-only
"""Files that several processes share: whole or not there, made once, locked."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testbed.host import files
from testbed.host.process import Deadline


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    with files.staged(path) as draft:
        draft.write_text("half")
        assert path.read_text() == "before"
        draft.write_text("whole")
    assert path.read_text() == "whole"
    with pytest.raises(ZeroDivisionError), files.staged(path) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_of_two_directories_the_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with files.staged(path) as draft:
        draft.mkdir()
        (draft / "mine").touch()
        path.mkdir()
        (path / "theirs").touch()
    assert [p.name for p in path.iterdir()] == ["theirs"]
    path = tmp_path / "y"
    path.mkdir()
    with pytest.raises(IsADirectoryError), files.staged(path) as draft:
        draft.write_text("a file is not as good")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


@pytest.mark.parametrize("durable", [False, True])
def test_writing(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "x"
    files.write(path, "ä", mode=0o751, durable=durable)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == ("ä".encode(), 0o751)
    files.write(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    with pytest.raises(FileNotFoundError):
        files.write(tmp_path / "no" / "x", "")


def test_what_many_want_is_made_once(tmp_path: Path) -> None:
    path, left = tmp_path / "cache" / "x", tmp_path / "cache" / "x.20261129.testbed.tmp"
    left.mkdir(parents=True)
    made: list[Path] = []
    said: list[str] = []

    def make(draft: Path) -> None:
        made.append(draft)
        deadline = Deadline(30)
        while len(said) < 3 and not deadline.expired:
            time.sleep(0.01)
        draft.write_text("x")

    with ThreadPoolExecutor(4) as pool:
        got = set(pool.map(lambda _: files.once(path, make, progress=said.append), range(4)))
    assert got == {path} and len(made) == 1 and path.read_text() == "x"
    assert said == [f"waiting for another process that works in {path.parent}"] * 3
    assert not left.exists()


def test_what_failed_is_made_by_the_next(tmp_path: Path) -> None:
    def fail(draft: Path) -> None:
        draft.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.once(tmp_path / "x", fail)
    assert files.once(tmp_path / "x", lambda draft: draft.mkdir()).is_dir()


def test_a_lock_is_had_by_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.locked_at_once(path):
        with pytest.raises(BlockingIOError), files.locked_at_once(path):
            pass

        def give_up() -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError), files.locked(path, check=give_up):
            pass
    with files.locked(path):
        pass


def test_a_child_that_is_just_being_started_is_waited_for(tmp_path: Path) -> None:
    """As a process leaves one that is killed meanwhile: with the lock, until it runs its program."""
    path = tmp_path / "lock"
    held = threading.Event()

    def starting() -> None:
        with files.locked_at_once(path):
            held.set()
            threading.Event().wait(0.3)

    child = threading.Thread(target=starting)
    child.start()
    assert held.wait(5)
    with files.locked_at_once(path):
        pass
    child.join()
