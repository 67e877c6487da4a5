# SPDX-License-Identifier: GPL-2.0-only
"""Children end with their parent, however that ends, or are not started."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.host import process
from testbed.host.errors import HostError
from tests.unit.recorded import REPOSITORY

SPAWN = """
import sys, time
from testbed.host import process
process.spawn(sys.argv[1:])
print("spawned", flush=True)
time.sleep(60)
"""


def parent_of(*words: object, path: Path | None = None) -> subprocess.Popen[bytes]:
    """A process that has just spawned a child."""
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
    argv = [sys.executable, "-c", SPAWN, *map(str, words)]
    return subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, env=environment)


def alive(mark: str) -> list[str]:
    """Command lines that name something."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"\0{mark}\0" in line and "python" not in line:
            lines.append(line)
    return lines


@pytest.fixture
def no_setpriv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("sh", "sleep", "true"):
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.fail(name))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_setpriv")
def test_without_a_guard_nothing_is_started_but_by_set_up() -> None:
    with pytest.raises(HostError, match=r"^setpriv: program not found\n  `testbed doctor`"):
        process.spawn(["sleep", "1"])
    with pytest.raises(HostError, match=r"^setpriv: program not found\n"):
        process.run(["true"], timeout=5)
    with process.unguarded():
        assert process.run(["true"], timeout=5).returncode == 0
        with pytest.raises(HostError, match=r"^no-such-program: program not found\n"):
            process.run(["no-such-program"], timeout=5)
    with pytest.raises(HostError, match=r"^setpriv"):
        process.run(["true"], timeout=5)


def test_a_child_whose_parent_is_killed_before_it_is_guarded_runs_nothing(tmp_path: Path) -> None:
    slow, mark = tmp_path / "bin" / "setpriv", tmp_path / "ran"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 0.5\nexec {shutil.which("setpriv")} "$@"\n')
    slow.chmod(0o755)
    for killed in (True, False):
        with parent_of("touch", mark, path=slow.parent) as parent:
            assert parent.stdout and parent.stdout.readline() == b"spawned\n"
            time.sleep(0 if killed else 1.5)
            parent.kill()
        time.sleep(1.5 if killed else 0)
        assert mark.exists() != killed


def test_no_kill_leaves_a_child() -> None:
    mark = f"3600.{os.getpid()}"
    draw = random.Random(1)
    for _ in range(20):
        with parent_of("sleep", mark) as parent:
            # From before it has spawned to after the child has become its program.
            time.sleep(0.04 + 0.06 * draw.random())
            parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (left := alive(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


DESTRUCTOR = """
import os, signal, sys, time
from testbed.host.process import end_on_signals
end_on_signals()
class Ending:
    def __del__(self):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
try:
    Ending()
    time.sleep(5)
    print("went on")
except KeyboardInterrupt:
    print("ended")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_in_a_destructor_ends_it_too(name: str) -> None:
    """There, Python would print a traceback and go on."""
    done = process.run([sys.executable, "-c", DESTRUCTOR, name], timeout=20, cwd=REPOSITORY)
    assert (done.stdout, done.stderr) == (b"ended\n", b"")


def test_words_reach_a_program_as_they_are(tmp_path: Path) -> None:
    words = ["", " ", "a b", "*", "$HOME", "`x`", "'", '"', "\\", "-n", "=", "é", "\n", "a\nb", "\udcff"]
    program = "import os, sys; print(os.getppid(), [os.fsencode(word) for word in sys.argv[1:]])"
    done = process.run([sys.executable, "-c", program, *words], timeout=20, cwd=tmp_path)
    assert done.stdout.decode() == f"{os.getpid()} {[os.fsencode(word) for word in words]}\n"
