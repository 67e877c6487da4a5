# SPDX-License-Identifier: GPL-2.0-only
"""The only module that starts processes.

Every child has a deadline, ends with its parent (even if that is killed), and a failed command shows
itself in a form that can be pasted into a shell.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from testbed.host import confine, space
from testbed.host.errors import BuildError, HostError, TestbedError
from testbed.host.paths import temporary_directory

TAIL_LINES = 20
GRACE_SECONDS = 3.0
AGAIN_SECONDS = 0.01
# Of a log, where a failed command says why: what runs beside it may go on for a while.
LOG_BYTES = 1 << 20
# What a child does before it is the program. A parent that was killed while the child did not ask for the
# signal yet sends none; but then the child is another's by now.
_UNLESS_ORPHANED = '[ "$PPID" = "$0" ] && exec "$@"'
_unguarded = contextvars.ContextVar("unguarded", default=False)


class Deadline:
    """A point in time by which something has to be done.

    Time is this machine's, monotonic, unless another `clock` is given, which tells seconds of another `kind`.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic, kind: str = "s") -> None:
        self.seconds = seconds
        self._clock, self._kind = clock, kind
        self._end = clock() + seconds

    def __str__(self) -> str:
        return f"{self.seconds:.0f} {self._kind}"

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        return self.remaining == 0.0


def end_on_signals() -> None:
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt: whoever ends us, our children end first."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    def not_ignored(ignored: sys.UnraisableHookArgs) -> None:
        # Out of a destructor Python lets no exception: one that interrupts it comes again, when it is over.
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            threading.Timer(AGAIN_SECONDS, os.kill, [os.getpid(), signal.SIGTERM]).start()
        else:
            sys.__unraisablehook__(ignored)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    sys.unraisablehook = not_ignored


def pasteable(argv: Sequence[str | os.PathLike[str]]) -> str:
    """The command as a person would type it."""
    return shlex.join(str(word) for word in argv)


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a text, indented for an error message."""
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    log: IO[bytes] | None = None,
    error: type[TestbedError] = BuildError,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; return its status and output.

    `env` is added to the caller's environment. With `log`, standard output and error go there as they
    come, and the result's `stdout` is empty. Raises `error` when the command fails (unless `check` is
    false) or outlives `timeout` seconds, HostError when the program is not installed, NoSpace when it failed
    since there was no space left.
    """
    child = subprocess.Popen(
        _guarded(argv),
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=log or subprocess.PIPE,
        stderr=subprocess.STDOUT if log else subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise error(f"`{pasteable(argv)}` did not end within {timeout:.0f} s") from late
    finally:
        end(child)
    done = subprocess.CompletedProcess(list(argv), child.returncode, out or b"", err or b"")
    if done.returncode != 0:
        output = (done.stderr + done.stdout).decode(errors="replace")
        if space.said(output if log is None else _tail_of(log)):
            raise space.lack(cwd or Path(), temporary_directory(), *space.named(map(str, argv)))
        if check:
            raise error(
                f"`{pasteable(argv)}` failed with exit status {done.returncode}", tail(output).strip()
            )
    return done


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    pass_fds: Sequence[int] = (),
    stderr: IO[bytes] | None = None,
    writable: Sequence[Path] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a long-lived child with pipes at its standard input and output.

    With `writable`, it has no network, and can write beneath these directories only (confine.py).

    It runs in a session of its own, so that Ctrl-C at the terminal reaches us and not the child, and it
    is killed by the kernel when the thread that called spawn() dies, however that comes about.
    Raises HostError when the program is not installed.
    """
    words = [str(word) for word in argv]
    if writable is not None:
        require(words[0])
        words = confine.words(words, writable)
    return subprocess.Popen(
        _guarded(words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr or subprocess.DEVNULL,
        pass_fds=pass_fds,
        start_new_session=True,
        bufsize=0,
    )


def end(child: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> None:
    """Make sure that a child and what it started in its session are gone: TERM, then KILL, then wait."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    # Grandchildren may outlive a leader that has ended by itself.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def require(program: str | os.PathLike[str]) -> None:
    """Raise HostError if a program is not installed."""
    if shutil.which(str(program)) is None:
        raise HostError(f"{program}: program not found", "`testbed doctor` names the package it comes in")


def state(pid: int) -> str:
    """A process's state, a letter of proc(5); X if there is none."""
    try:
        # It comes after the program's name, which may have anything in it.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _tail_of(log: IO[bytes]) -> str:
    return Path(log.name).read_bytes()[-LOG_BYTES:].decode(errors="replace")


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Start children even without setpriv, for set-up, which installs it: a kill leaves them running."""
    before = _unguarded.set(True)
    try:
        yield
    finally:
        _unguarded.reset(before)


def _guarded(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    require(argv[0])
    words = [str(word) for word in argv]
    if shutil.which("setpriv") is None and _unguarded.get():
        return words
    require("setpriv")
    # setpriv sets PR_SET_PDEATHSIG and execs: no preexec_fn, which is unsafe with threads.
    guard = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _UNLESS_ORPHANED, str(os.getpid())]
    return [*guard, *words]
