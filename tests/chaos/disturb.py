# SPDX-License-Identifier: GPL-2.0-only
"""The ways to disturb a command. Afterwards it is run again, to its end: as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos import checks, kernel
from tests.chaos.children import Child, Command, Ended, Home, marked, run
from tests.chaos.scenes import BISECT, COMPARE, REAL, REPLAY, REPORT, Scene, Stage, Undisturbed, real_plans
from tests.unit.recorded import REPOSITORY

NOBODY = 65534
# Of a command that was refused something: it worked around it, or said in a line what it lacked.
ENDINGS = (0, 1, 2, 3)


@dataclass
class Case:
    """A disturbance of a scene. `lost` and `left` say what is wrong afterwards."""

    stage: Stage
    scene: Scene
    home: Home
    rng: Random
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    # There was nothing to disturb any more.
    missed: bool = False
    # Whether trials were lost on the way: a result tells of that, and only what became of them is the same.
    retried: bool = False

    @property
    def whole(self) -> Undisturbed:
        """What it is undisturbed."""
        return self.stage.undisturbed(self.scene)

    def sleep(self, part: float = 0.9) -> None:
        """Wait for a moment of the first `part` of the time that it takes."""
        time.sleep(self.rng.random() * part * self.whole.seconds)

    def attempt(self, **different: Any) -> Ended:
        """Run the command in some special way, to its end."""
        return self.judge(run(self.scene.command(**different), self.home))

    def judge(self, ended: Ended) -> Ended:
        """Look at how a command that was disturbed has ended."""
        self.lost += ended.complaints
        if ended.status not in (*ENDINGS, -signal.SIGKILL):
            self.lost.append(f"exit status {ended.status}: {ended.err.strip()[-300:]}")
        elif ended.status in (2, 3) and not ended.err.strip():
            self.lost.append(f"exit status {ended.status}, and not a word")
        self.lost += checks.damage(self.home.result)
        return ended

    def finish(self) -> None:
        """Run the same command again, and compare what comes of it with what comes of it undisturbed."""
        self.left += checks.processes(self.home)
        ended = self.attempt()
        if ended.status != self.scene.status:
            self.lost.append(f"again: exit status {ended.status}: {ended.err.strip()[-300:]}")
            return
        found, expected = self.scene.outcome(self.home, ended), self.whole.outcome
        if self.retried:
            found, expected = ({**each, "files": {}} for each in (found, expected))
        self.lost += checks.differences(found, expected)
        self.left += checks.processes(self.home)
        self.left += checks.litter(self.home)


@dataclass(frozen=True)
class Verdict:
    """How many things were tried at once, and what was wrong afterwards."""

    tried: int
    lost: Sequence[str]
    left: Sequence[str]


@dataclass(frozen=True)
class Kind:
    """A row of the table: what is done, how often in an hour, to what; and why it cannot be done here."""

    name: str
    wanted: int
    scenes: tuple[Scene, ...]
    disturb: Callable[[Case], None]
    refused: Callable[[], str] = lambda: ""
    # How many are tried at once.
    batch = 1

    def impossible(self) -> str:
        """Why it cannot be done here; empty if it can."""
        return self.refused()

    def run(self, stage: Stage, number: int, seed: int) -> Verdict:
        """Disturb one scene, as the seed has it."""
        rng = Random(f"{seed} {self.name} {number}")
        scene = rng.choice(self.scenes)
        case = Case(stage, scene, stage.set(scene, self.name, number), rng)
        try:
            self.disturb(case)
            if not case.missed:
                case.finish()
        finally:
            kernel.unmount(case.home.result, case.home.cache, case.home.scratch)
        return Verdict(0 if case.missed else 1, case.lost, case.left)


# --- killed, stopped ----------------------------------------------------------------------------------


def kill(case: Case) -> None:
    """kill -9 at a moment: before it does something to the world, or after some time."""
    if case.rng.random() < 0.5:
        case.attempt(dies_at=case.rng.randint(1, case.whole.events))
        return
    child = Child(case.scene.command(), case.home)
    case.sleep()
    case.missed = child.ended()
    child.kill()
    case.judge(child.wait())


def _emulator(case: Case, child: Child) -> int | None:
    """The process of a QEMU, at some moment while a command runs; None if it ended before there was one."""
    # What comes last is a report, without any.
    case.sleep(0.4)
    while not child.ended():
        found = [
            pid
            for pid, words in marked(case.home.mark).items()
            if "id=qmp" in words and "setpriv" not in words
        ]
        if found:
            return case.rng.choice(found)
    return None


def kill_emulator(case: Case) -> None:
    """kill -9 of QEMU: the trial is lost, and run again."""
    case.retried = case.scene is not BISECT
    child = Child(case.scene.command(), case.home)
    pid = _emulator(case, child)
    case.missed = pid is None
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    case.judge(child.wait())


def stop_emulator(case: Case) -> None:
    """SIGSTOP, and a while later SIGCONT, of QEMU."""
    child = Child(case.scene.command(), case.home)
    pid = _emulator(case, child)
    case.missed = pid is None
    if pid is not None:
        _stop(pid, case.rng)
    case.judge(child.wait())


def stop(case: Case) -> None:
    """SIGSTOP, and a while later SIGCONT, of testbed."""
    child = Child(case.scene.command(), case.home)
    case.sleep()
    case.missed = child.ended()
    _stop(child.pid, case.rng)
    case.judge(child.wait())


def _stop(pid: int, rng: Random) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 2.0))
        os.kill(pid, signal.SIGCONT)


def terminate(case: Case) -> None:
    """SIGTERM, SIGHUP or SIGINT at a moment: it says so, and leaves nothing even before it is run again."""
    child = Child(case.scene.command(), case.home)
    case.sleep()
    child.kill(case.rng.choice((signal.SIGTERM, signal.SIGHUP, signal.SIGINT)))
    ended = child.wait()
    if ended.status == 130:
        ended = Ended(3, ended.out, ended.err, ended.seconds, late=ended.late)
        case.left += checks.litter(case.home)
    if ended.status not in (-signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT):
        case.judge(ended)


# --- no room, no right --------------------------------------------------------------------------------


def _places(case: Case) -> Path:
    case.home.result.mkdir(exist_ok=True)
    return case.rng.choice((case.home.result, case.home.cache, case.home.scratch))


def full_disk(case: Case) -> None:
    """A result, a cache or a TMPDIR with little room."""
    with kernel.small(_places(case), free_bytes=case.rng.randrange(0, 256 << 10, 4096)):
        case.attempt()


def full_inodes(case: Case) -> None:
    """A result, a cache or a TMPDIR in which few files can be made."""
    with kernel.small(_places(case), free_inodes=case.rng.randrange(30)):
        case.attempt()


def read_only(case: Case) -> None:
    """A result, a cache or a TMPDIR that cannot be written to."""
    with kernel.read_only(_places(case)):
        case.attempt()


def io_error(case: Case) -> None:
    """A system call that writes fails with EIO."""
    call = case.rng.choice(list(kernel.CALLS))
    case.attempt(before=lambda: kernel.fail(call))


def _limited(case: Case, what: int, limit: int) -> None:
    case.attempt(before=lambda: resource.setrlimit(what, (limit, resource.getrlimit(what)[1])))


def short_files(case: Case) -> None:
    """No file may be longer than a few kilobytes."""
    _limited(case, resource.RLIMIT_FSIZE, case.rng.randrange(1 << 18))


def few_descriptors(case: Case) -> None:
    """Few files can be open."""
    _limited(case, resource.RLIMIT_NOFILE, case.rng.randrange(8, 48))


def little_memory(case: Case) -> None:
    """Not much more memory than there is in use."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limited(case, resource.RLIMIT_AS, size + case.rng.randrange(4 << 20, 256 << 20))


def _be_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _give_away(case: Case) -> None:
    for path in (case.home.top, *case.home.top.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def few_processes(case: Case) -> None:
    """Another user, who may start few processes and threads; QEMU may find that too few, and end."""
    case.retried = case.scene is not BISECT
    limit = case.rng.randrange(1, 40)

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        _be_nobody()

    _give_away(case)
    case.attempt(before=before)


def not_root(case: Case) -> None:
    """A user who is nobody in particular."""
    _give_away(case)
    case.attempt(before=_be_nobody)


def no_other_user() -> str:
    """Why another user cannot run testbed here; empty if one can."""
    if os.geteuid() != 0:
        return "changing the user needs root"
    for file in (Path(os.__file__), Path(sys.prefix, "bin"), REPOSITORY):
        for directory in (file, *file.parents):
            if not directory.stat().st_mode & 0o004:
                return f"another user may not look into {directory}"
    return ""


# --- odd surroundings ---------------------------------------------------------------------------------


def clock_set_back(case: Case) -> None:
    """Killed, and then the clock is set back: all that is there is of next year."""
    kill(case)
    future = time.time() + 365 * 24 * 3600
    for path in case.home.top.rglob("*"):
        os.utime(path, (future, future), follow_symlinks=False)


def two_at_once(case: Case) -> None:
    """The same command twice at the same time: one does it, the other waits or says why not."""
    second = Home(case.home.top / "second", case.home.mark)
    second.top.mkdir()
    for name in ("cache", "tmp", "work", "qemu"):
        (second.top / name).symlink_to(case.home.top / name)
    children = [Child(case.scene.command(), case.home)]
    case.sleep(case.rng.choice((0.0, 0.9)))
    children.append(Child(case.scene.command(), second))
    ended = [case.judge(child.wait()) for child in children]
    if not any(each.status == case.scene.status for each in ended):
        case.lost.append(f"neither came to its end: {[each.err.strip()[-200:] for each in ended]}")


def other_locale(case: Case) -> None:
    """A locale without letters, or one that is not there; and nobody's terminal."""
    locale = case.rng.choice(("C", "POSIX", "xx_YY.UTF-8", "de_DE", ""))
    more = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} if case.rng.random() < 0.5 else {}
    environment = {"LC_ALL": locale, "LANG": locale, "TERM": case.rng.choice(("dumb", "", "no-such")), **more}
    command = Command(case.scene.words, {**case.scene.command().environment, **environment}, fresh=True)
    case.judge(run(command, case.home))


def closed_streams(case: Case) -> None:
    """Started without standard input, output or errors."""
    closed = case.rng.sample((0, 1, 2), case.rng.randint(1, 3))

    def before() -> None:
        for number in closed:
            os.close(number)

    ended = run(case.scene.command(before=before, fresh=True), case.home)
    # What it would have said has nowhere to go.
    case.lost += ended.complaints
    case.lost += checks.damage(case.home.result)


def no_kernels() -> str:
    """Why no real guests can run here; empty if they can."""
    return "" if real_plans() else "the cache has no kernels of the repository's own experiment"


ALL = (COMPARE, REPORT, REPLAY, BISECT)
KINDS = (
    *(
        Kind(f"kill -9 of {scene.name}", wanted, (scene,), kill)
        for scene, wanted in ((COMPARE, 250), (REPORT, 200), (REPLAY, 450), (BISECT, 220))
    ),
    Kind("kill -9, real guests", 8, (REAL,), kill, no_kernels),
    Kind("kill -9 of QEMU", 240, (COMPARE, BISECT), kill_emulator),
    Kind("kill -9 of QEMU, real guests", 8, (REAL,), kill_emulator, no_kernels),
    Kind("SIGSTOP of QEMU, then SIGCONT", 60, (COMPARE, REPLAY, BISECT), stop_emulator),
    Kind("SIGSTOP of testbed, then SIGCONT", 60, ALL, stop),
    Kind("SIGTERM, SIGHUP, SIGINT", 100, ALL, terminate),
    Kind("full disk", 60, ALL, full_disk, kernel.no_mounts),
    Kind("no inodes left", 60, ALL, full_inodes, kernel.no_mounts),
    Kind("read-only file system", 20, ALL, read_only, kernel.no_mounts),
    Kind("EIO", 40, ALL, io_error, kernel.no_failing_calls),
    Kind("short files (ulimit -f)", 40, ALL, short_files),
    Kind("few descriptors (ulimit -n)", 40, ALL, few_descriptors),
    Kind("little memory (ulimit -v)", 40, ALL, little_memory),
    Kind("few processes (ulimit -u)", 40, (COMPARE, BISECT), few_processes, no_other_user),
    Kind("clock set back", 40, (COMPARE, BISECT), clock_set_back),
    Kind("two at once on one result", 40, (COMPARE, REPORT, BISECT), two_at_once),
    Kind("not root", 10, ALL, not_root, no_other_user),
    Kind("locales, no terminal", 20, (COMPARE, REPORT, REPLAY), other_locale),
    Kind("closed streams", 20, (COMPARE, REPORT, REPLAY), closed_streams),
)
