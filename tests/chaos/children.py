# SPDX-License-Identifier: GPL-2.0-only
"""Testbed in processes of its own, that can be killed at any moment, and whose children are known by a mark.

A child is a fork of this process, which has imported everything: so a thousand take minutes. All that it
starts has MARK in its environment.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed import __main__ as door
from testbed.guest.qemu import OVERRIDE
from tests.chaos import kernel
from tests.unit.recorded import REPOSITORY

MARK = "TESTBED_CHAOS"
# What Python tells of before it does it, of all that a process does to the world.
WORLDLY = ("open", "os.", "subprocess.", "sqlite3.", "tempfile.", "shutil.", "fcntl.", "socket.")
# A command of the campaign takes seconds; one with real guests takes a minute, and more on a busy machine.
PATIENCE_SECONDS, PATIENCE_WITH_GUESTS_SECONDS = 120.0, 600.0


@dataclass(frozen=True)
class Home:
    """Where a command runs: its cache, its TMPDIR, its working directory. `mark` names it."""

    top: Path
    mark: str

    @property
    def cache(self) -> Path:
        return self.top / "cache" / "testbed"

    @property
    def scratch(self) -> Path:
        return self.top / "tmp"

    @property
    def work(self) -> Path:
        return self.top / "work"

    @property
    def result(self) -> Path:
        return self.work / "result"

    @property
    def environment(self) -> dict[str, str]:
        return {
            MARK: self.mark,
            "XDG_CACHE_HOME": str(self.cache.parent),
            "TMPDIR": str(self.scratch),
            "PYTHONPATH": str(REPOSITORY),
            OVERRIDE: str(self.top / "qemu"),
        }


@dataclass(frozen=True)
class Command:
    """A command line, and what is different about the process that it runs in.

    `before` is called in it first. It is killed before it does what is number `dies_at` of all that it does
    to the world. `fresh`: it is a Python of its own, as a person's is. It has `patience` seconds to end.
    """

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None
    dies_at: int = 0
    fresh: bool = False
    patience: float = PATIENCE_SECONDS


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: the signal that killed it), and what it printed."""

    status: int
    out: str
    err: str
    seconds: float
    # How much it did to the world; 0 of one that was killed.
    events: int = 0
    # How many seconds it had, if it did not end within them.
    late: float = 0.0

    @property
    def complaints(self) -> Iterator[str]:
        """What no command may do, whatever befalls it."""
        for name, text in (("output", self.out), ("errors", self.err)):
            before, traced, after = text.partition("Traceback (most recent call last):\n")
            if traced:
                # With the line before, which says so of an exception that nobody could take.
                yield f"a traceback in its {name}: {before[-200:]}{after[:1000]}"
        if self.late:
            yield f"it did not end within {self.late:.0f} s"
        elif self.status < 0 and self.status != -signal.SIGKILL:
            yield f"it ended by signal {-self.status}"


class Child:
    """A command that runs."""

    def __init__(self, command: Command, home: Home) -> None:
        self.home = home
        self._patience = command.patience
        self._began = time.monotonic()
        self._status: int | None = None
        (home.top / "events").write_text("")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be(command, home)

    def ended(self) -> bool:
        """Whether it has ended by now."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def kill(self, number: int = signal.SIGKILL) -> None:
        if not self.ended():
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end; past its time it is killed."""
        end, late = time.monotonic() + self._patience, 0.0
        while not self.ended():
            time.sleep(0.005)
            if time.monotonic() > end and not late:
                late = self._patience
                self.kill()
        assert self._status is not None
        top = self.home.top
        events = (top / "events").read_text() or "0"
        out, err = ((top / name).read_text(errors="replace") for name in ("out", "err"))
        return Ended(self._status, out, err, time.monotonic() - self._began, int(events), late)


def run(command: Command, home: Home) -> Ended:
    """Run a command to its end."""
    return Child(command, home).wait()


def _be(command: Command, home: Home) -> None:
    """Be the child. Never returns."""
    status = 70
    try:
        kernel.die_with_parent()
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Open from now on: there may be no room for another file at the end.
        told = os.open(home.top / "events", os.O_WRONLY | os.O_CLOEXEC)
        for number, (name, mode) in enumerate((("/dev/null", "rb"), ("out", "wb"), ("err", "wb"))):
            with Path(home.top, name).open(mode) as file:
                os.dup2(file.fileno(), number)
        os.chdir(home.work)
        os.environ.update({**home.environment, **command.environment})
        if command.fresh:
            command.before()
            os.execv(sys.executable, [sys.executable, "-m", "testbed", *command.words])
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w"), "utf-8", "replace") for n in (1, 2))
        # It remembers where scratch goes.
        tempfile.tempdir = None
        command.before()
        counted = _count(command.dies_at)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["testbed", *command.words]
        status = door.main()
        events = next(counted)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(told, str(events).encode())
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _count(dies_at: int) -> Iterator[int]:
    """Count what this process does to the world, and die before it does the one of that number."""
    counter = itertools.count(1)

    def note(event: str, _: object) -> None:
        if event.startswith(WORLDLY) and next(counter) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)
    return counter


def marked(mark: str) -> dict[int, str]:
    """The command lines of the processes that a mark is in the environment of, by their ids."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                words = path.with_name("cmdline").read_text(errors="replace").replace("\0", " ").strip()
                if words:
                    found[int(path.parent.name)] = words
        except OSError:
            continue  # It has ended meanwhile.
    return found
