# SPDX-License-Identifier: GPL-2.0-only
"""What is disturbed: commands of testbed, all real but for kernels that nobody compiled and a QEMU that plays
recorded guests. On a machine that has the kernels of the repository's own experiment, that one as well.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.experiment import load
from testbed.guest.qemu import OVERRIDE
from testbed.host.paths import cache_directory, sha256
from testbed.kernel import build
from testbed.trials import prepare
from testbed.trials.commits import CommitTester
from tests.chaos import checks
from tests.chaos.children import PATIENCE_WITH_GUESTS_SECONDS, Command, Ended, Home, run
from tests.unit.recorded import EXPERIMENT, REPOSITORY

FAKE = REPOSITORY / "tests" / "fake_qemu.py"
# What a kernel's file begins with is the fault that its guests have.
QEMU = """#!/bin/sh
kernel=
for word; do [ "$last" = -kernel ] && kernel=$word; last=$word; done
fault=none
[ -z "$kernel" ] || read -r fault <"$kernel"
exec {fake} "$fault" "$@"
"""
COMMITS, CULPRIT = 6, 4


@dataclass(frozen=True)
class Scene:
    """A command, the exit status that it has undisturbed, and what comes of it that has to be the same."""

    name: str
    words: tuple[str, ...]
    status: int
    outcome: Callable[[Home, Ended], Any]
    # With the machine's own QEMU, and kernels of its cache.
    real: bool = False

    def command(self, **different: Any) -> Command:
        """What is run."""
        if self.real:
            different |= {"environment": {OVERRIDE: ""}, "patience": PATIENCE_WITH_GUESTS_SECONDS}
        return Command(self.words, **different)


@dataclass(frozen=True)
class Undisturbed:
    """What a scene takes and gives when nobody disturbs it."""

    seconds: float
    events: int
    outcome: Any


def _result(home: Home, _: Ended) -> Any:
    return {"trials": checks.trials(home.result), "files": checks.files(home)}


def _said(_: Home, ended: Ended) -> Any:
    return ended.out


def _answer(_: Home, ended: Ended) -> Any:
    # How it got there depends on how long builds and trials took.
    answer = json.loads(ended.out)["answer"]
    return {key: answer[key] for key in ("commits", "confirmed")}


COMPARE = Scene("compare", ("compare", "compare.yaml", "--results", "result", "--jobs", "2"), 0, _result)
REPORT = Scene("report", ("report", "result"), 0, _result)
REPLAY = Scene("replay", ("replay", "recorded.testbed", "--jobs", "2"), 0, _said)
BISECT = Scene(
    "bisect",
    (
        *("bisect", "--repo", "linux", "--good", "good", "--bad", "main", "--experiment", "bisect.yaml"),
        *("--metric", "outcome:panic", "--results", "result", "--jobs", "1", "--json"),
    ),
    0,
    _answer,
)
REAL = Scene("compare, real guests", ("compare", "real.yaml", "--results", "result"), 0, _result, real=True)
SCENES = (COMPARE, REPORT, REPLAY, BISECT)


class Stage:
    """Where scenes are set, once for a campaign: cache, experiments, a repository, a result, a bundle."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._template = Home(top / "template", "template")

    def _home(self, kind: str, number: int) -> Home:
        mark = f"{re.sub('[^a-z0-9]+', '-', kind.lower())}.{number}"
        return Home(self.top / "homes" / mark, mark)

    def clear(self, kind: str, number: int) -> None:
        """Remove a case's home, if it had one."""
        if (top := self._home(kind, number).top).exists():
            shutil.rmtree(top)

    def set(self, scene: Scene, kind: str, number: int) -> Home:
        """A home in which a scene can begin, of a case of a kind: a fresh copy of what is set up."""
        home = self._home(kind, number)
        shutil.rmtree(home.top, ignore_errors=True)
        home.top.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self._template.top, home.top, symlinks=True)
        if scene is REPORT:
            (home.work / "finished").rename(home.result)
        else:
            shutil.rmtree(home.work / "finished")
        if scene.real:
            _link_kernels(home)
        return home

    def set_up(self) -> None:
        """Make it, unless it is there."""
        done = self._template.top / "done"
        if done.exists():
            return
        shutil.rmtree(self._template.top, ignore_errors=True)
        home = self._template
        for directory in (home.cache, home.scratch, home.work):
            directory.mkdir(parents=True)
        fake = shlex.join([sys.executable, str(FAKE)])
        (home.top / "qemu").write_text(QEMU.format(fake=fake))
        (home.top / "qemu").chmod(0o755)
        repository = self.top / "linux"
        shutil.rmtree(repository, ignore_errors=True)
        _make_repository(repository)
        (home.work / "linux").symlink_to(repository.resolve())
        _write_experiments(home.work, repository.resolve())
        _publish_kernels(home, repository)
        for words in (COMPARE.words, ("bundle", "result", "-o", "recorded.testbed")):
            ended = run(Command(words), home)
            assert ended.status == 0, ended.err
        # What the next who makes it would find done: the image, and the plugin.
        shutil.rmtree(home.cache / "snapshots")
        shutil.rmtree(home.result / "pictures")
        for report in home.result.glob("report.*"):
            report.unlink()
        home.result.rename(home.work / "finished")
        for lock in home.top.rglob("*.lock"):
            lock.unlink()
        done.touch()

    def undisturbed(self, scene: Scene) -> Undisturbed:
        """What it is when nobody disturbs it: the same twice. Found out once, and noted."""
        note = self.top / "undisturbed" / f"{scene.name}.json"
        if not note.exists():
            outcomes = []
            for number in range(2):
                home = self.set(scene, f"undisturbed {scene.name}", number)
                ended = run(scene.command(), home)
                assert ended.status == scene.status, (scene.name, ended.status, ended.err)
                outcomes.append(scene.outcome(home, ended))
            unlike = list(checks.differences(outcomes[1], outcomes[0]))
            assert not unlike, (scene.name, unlike)
            note.parent.mkdir(exist_ok=True)
            found = Undisturbed(ended.seconds, ended.events, outcomes[0])
            note.write_text(json.dumps(asdict(found)))
        return Undisturbed(**json.loads(note.read_text()))


def _git(top: Path, *words: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    dates = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
    subprocess.run(
        ["git", *identity, "-C", top, *words], check=True, capture_output=True, env={**os.environ, **dates}
    )


def _make_repository(top: Path) -> None:
    """Commits good, 1 to COMMITS; from CULPRIT on, guests panic."""
    (top / "mm").mkdir(parents=True)
    _git(top, "init", "--quiet", "-b", "main")
    (top / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 1\n")
    for number in range(COMMITS + 1):
        (top / "mm" / "vmscan.c").write_text(f"/* {number} */\n")
        _git(top, "add", "--all")
        _git(top, "commit", "--quiet", "-m", f"change {number}")
        if number == 0:
            _git(top, "tag", "good")


def _write_experiments(work: Path, repository: Path) -> None:
    """Of `compare` a deterministic one, of `bisect` one in real time, and a short one of real guests."""
    said: dict[str, Any] = {
        "name": "recorded",
        "kernel": {"git": {"repository": str(repository), "revision": "good"}},
        "arms": {"plain": {}, "calm": {"sysctl": {"vm.swappiness": 10}}},
        "guest": {"vcpus": 8, "boot_memory": "512M", "memory": "128M"},
        "workload": {"mmap_test": {"mode": "anon", "tasks": 16, "seconds": 1.25, "footprint": 1.5}},
        "primary": {"direct_reclaims": {"margin": 0.05}},
        "seeds": 2,
    }
    (work / "compare.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    said |= {"mode": "realtime", "accel": "tcg", "seeds": 6, "arms": {"plain": {}}}
    del said["primary"]
    (work / "bisect.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    real = yaml.safe_load(EXPERIMENT.read_text())
    real["workload"]["mmap_test"] |= {"seconds": 0.3, "tasks": 4}
    real |= {"seeds": 2}
    (work / "real.yaml").write_text(yaml.safe_dump(real, sort_keys=False))


def _publish_kernels(home: Home, repository: Path) -> None:
    """What building would leave in the cache. The file of a kernel says how its guests fare."""
    comparison = load(home.work / "compare.yaml")
    plans = {"good": next(iter(prepare.plans(comparison, home.cache, _ignore).values()))}
    tester = CommitTester(load(home.work / "bisect.yaml"), repository, home.cache, 1, _ignore)
    for number in range(COMMITS + 1):
        commit = subprocess.run(
            ["git", "-C", repository, "rev-parse", f"main~{COMMITS - number}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        plans[str(number)] = tester.plan(commit)[0]
    for name, plan in plans.items():
        _publish(plan, "reset" if name.isdigit() and int(name) >= CULPRIT else "none", name)


def _publish(plan: build.Plan, fault: str, name: str) -> None:
    plan.directory.mkdir(parents=True, exist_ok=True)
    (plan.directory / "vmlinux").write_text(f"{fault}\nkernel {name}\n")
    for other in ("System.map", "config"):
        (plan.directory / other).write_text("")
    facts = {"release": "6.1.0", "vmlinux_sha256": sha256(plan.directory / "vmlinux"), "seconds": 50.0}
    (plan.directory / "build.json").write_text(json.dumps(facts))


def _ignore(_: str) -> None:
    pass


@functools.cache
def real_plans() -> Mapping[str, build.Plan]:
    """What the kernels of the repository's own experiment are made of, if the cache has them."""
    cache = cache_directory()
    if not any(cache.glob("kernels/*/vmlinux")):
        return {}
    plans = prepare.plans(load(EXPERIMENT), cache, _ignore)
    return plans if all(build.published(plan) for plan in plans.values()) else {}


def _link_kernels(home: Home) -> None:
    """Have a home's cache begin with what this machine's has; snapshots are taken anew."""
    cache = cache_directory()
    for name in (*(f"kernels/{plan.key}" for plan in real_plans().values()), "sources", "debian", "qemu"):
        if (cache / name).exists():
            (home.cache / name).parent.mkdir(exist_ok=True)
            (home.cache / name).symlink_to(cache / name)
