# SPDX-License-Identifier: GPL-2.0-only
"""Ensembles over a process that stands in for QEMU: order, resuming, retries, stopping."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from testbed import cli
from testbed.analysis.parse import parse
from testbed.experiment import Experiment
from testbed.guest.shape import Shape
from testbed.host.errors import GuestLost, HostError, Interrupted
from testbed.ledger.ledger import Ledger
from testbed.ledger.record import LOST, MEASURED, Record, final, hopeless
from testbed.trials import pool, prepare
from testbed.trials.pool import BuildJob, Job, TrialJob
from testbed.trials.prepare import Campaign
from testbed.trials.trial import Attempt, Trial
from testbed.verbs import reproduce
from tests.helpers import children_of
from tests.unit.recorded import REPOSITORY, planned, record
from tests.unit.test_guest_faults import FAKE, make_trial

MiB = 1 << 20


class Watched:
    """A pool.Progress that remembers."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.begun: tuple[int, int, int] = (0, 0, 0)

    def started(self, total: int, done: int, jobs: int) -> None:
        self.begun = total, done, jobs

    def ended(self, record: Record) -> None:
        self.records.append(record)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "result") as ledger:
        yield ledger


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def fake(fault: str) -> str:
    return f'exec {shlex.join([sys.executable, str(FAKE)])} {fault} "$@"'


def plan(qemu: str, arms: str = "ab", seeds: int = 2) -> list[Trial]:
    return [
        dataclasses.replace(make_trial(qemu), arm=arm, seed=seed)
        for arm in arms
        for seed in range(1, seeds + 1)
    ]


def test_arms_take_turns_in_going_first() -> None:
    order = [(t.seed, t.arm) for t in pool.interleaved(plan("q", "ab", 4))]
    assert order == [(1, "a"), (1, "b"), (2, "b"), (2, "a"), (3, "a"), (3, "b"), (4, "b"), (4, "a")]


@pytest.mark.parametrize("arms", ["ab", "abcd"])
@pytest.mark.parametrize("seeds", [5, 8, 10])
def test_a_sample_is_of_all_arms_alike(arms: str, seeds: int) -> None:
    trials = pool.interleaved(plan("q", arms, seeds))
    for wanted in (len(arms), 2 * len(arms)):
        chosen = reproduce.sample(trials, wanted)
        assert len({(t.arm, t.seed) for t in chosen}) == wanted
        assert {sum(t.arm == arm for t in chosen) for arm in arms} == {wanted // len(arms)}
    assert {(t.arm, t.seed) for t in reproduce.sample(trials, None)} == {(t.arm, t.seed) for t in trials}
    assert len(reproduce.sample(trials, 1000)) == len(trials)


def test_everything_is_run_once_and_not_again(tmp_path: Path, ledger: Ledger) -> None:
    trials = plan(script(tmp_path / "qemu", fake("none")))
    first, second = Watched(), Watched()
    measurements = pool.run(trials, ledger, 2, first)
    assert {(r.arm, r.seed, r.outcome) for r in first.records} == {
        (arm, seed, MEASURED) for arm in "ab" for seed in (1, 2)
    }
    assert (
        measurements == {r.trial: parse(ledger.log(r)) for r in ledger.records()} and len(measurements) == 4
    )
    assert pool.run(trials, ledger, 2, second) == {}
    assert (second.begun, second.records) == ((4, 4, 2), [])


def test_more_seeds_run_only_what_is_new(tmp_path: Path, ledger: Ledger) -> None:
    qemu = script(tmp_path / "qemu", fake("none"))
    watched = Watched()
    pool.run(plan(qemu, seeds=1), ledger, 1, watched)
    pool.run(plan(qemu, seeds=2), ledger, 1, watched)
    assert [r.seed for r in watched.records] == [1, 1, 2, 2]


def test_what_the_infrastructure_lost_is_tried_again(tmp_path: Path, ledger: Ledger) -> None:
    mark = shlex.quote(str(tmp_path / "second"))
    body = f"[ -e {mark} ] || {{ {fake('die-at-boot')}; }}\n{fake('none')}"

    class Marking(Watched):
        def ended(self, record: Record) -> None:
            super().ended(record)
            (tmp_path / "second").touch()

    watched = Marking()
    pool.run(plan(script(tmp_path / "qemu", body), "a", 1), ledger, 1, watched)
    assert [(r.attempt, r.outcome) for r in watched.records] == [(1, LOST), (2, MEASURED)]


def test_a_trial_that_is_always_lost_is_given_up_and_tried_anew_next_time(
    tmp_path: Path, ledger: Ledger
) -> None:
    trials = plan(script(tmp_path / "qemu", fake("die-at-start")), "a", 1)
    watched = Watched()
    pool.run(trials, ledger, 1, watched)
    assert [r.outcome for r in watched.records] == [LOST] * pool.ATTEMPTS
    pool.run(trials, ledger, 1, watched)
    assert [r.attempt for r in watched.records] == [1, 2, 3, 4, 5, 6]


def test_a_failure_of_the_workload_is_a_result_and_not_tried_again(tmp_path: Path, ledger: Ledger) -> None:
    watched = Watched()
    trials = plan(script(tmp_path / "qemu", fake("reset")), "a", 1)
    pool.run(trials, ledger, 1, watched)
    pool.run(trials, ledger, 1, watched)
    assert [r.outcome for r in watched.records] == ["panic"]


def test_failures_are_tried_again_on_demand_and_the_newest_attempt_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mended = shlex.quote(str(tmp_path / "mended"))
    qemu = script(tmp_path / "qemu", f"[ -e {mended} ] && {fake('none')}\n{fake('reset')}")
    path, home = tmp_path / "x.yaml", tmp_path / "r"
    path.write_text("name: x\nkernel: {debian: linux-source-6.1}\narms: {a: {}}\nseeds: 2\n")

    def replaced(experiment: Experiment, *_: object) -> Campaign:
        trials = tuple(plan(qemu, "a", 2))
        return Campaign(trials, planned(experiment, trials))

    def ran(*words: str) -> list[tuple[int, str]]:
        """What `testbed run` leaves: how often each trial was tried, and what counts."""
        cli.main(["run", str(path), "--results", str(home), "--jobs", "1", *words])
        with Ledger.open(home) as ledger:
            return [(record.attempt, record.outcome) for record in final(ledger.records()).values()]

    monkeypatch.setattr(prepare, "prepare", replaced)
    assert ran() == [(1, "panic")] * 2
    (tmp_path / "mended").touch()
    assert ran() == ran("--again", "hang") == [(1, "panic")] * 2
    assert ran("--again", "panic") == [(2, MEASURED)] * 2
    assert ran("--again", "all") == [(2, MEASURED)] * 2
    with pytest.raises(SystemExit):
        ran("--again", "measured")
    assert "invalid choice: 'measured'" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_trial_without_its_log_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    qemu = script(tmp_path / "qemu", fake("none"))
    path, home = tmp_path / "x.yaml", tmp_path / "r"
    path.write_text("name: x\nkernel: {debian: linux-source-6.1}\narms: {a: {}}\nseeds: 2\n")

    def replaced(experiment: Experiment, *_: object) -> Campaign:
        trials = tuple(plan(qemu, "a", 2))
        return Campaign(trials, planned(experiment, trials))

    monkeypatch.setattr(prepare, "prepare", replaced)
    words = ["run", str(path), "--results", str(home), "--jobs", "1"]
    assert cli.main(words) == 0
    log = home / "logs" / "a" / "2.log.gz"
    log.unlink() if damage == "gone" else log.resolve().write_bytes(b"x")
    if damage == "gone":
        next(home.glob(f"logs/{plan(qemu, 'a', 2)[1].id}.1.log.gz")).unlink()
    assert cli.main(["report", str(home)]) == 3
    assert "without a log of a:2 there is no report" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert "logs that are gone or damaged: 1; their trials run again" in capsys.readouterr().err
    with Ledger.open(home) as ledger:
        assert [(r.seed, r.attempt) for r in final(ledger.records()).values()] == [(1, 1), (2, 2)]
    assert cli.main(["report", str(home), "--json"]) == 0


# --- what is hopeless ------------------------------------------------------------------------------


def test_what_fails_in_every_arm_is_not_run_seed_by_seed(tmp_path: Path, ledger: Ledger) -> None:
    trials = plan(script(tmp_path / "qemu", fake("fail")), seeds=5)
    watched = Watched()
    pool.run(trials, ledger, 1, watched)
    assert [(r.arm, r.seed, r.outcome) for r in watched.records] == [("a", 1, "failed"), ("b", 1, "failed")]
    pool.run(trials, ledger, 1, again := Watched())
    assert again.records == []
    # To do a result again is not to find out whether it works.
    pool.run(trials[:2], ledger, 1, again, to_the_end=True)
    assert [(r.arm, r.seed) for r in again.records] == [("a", 2)]


def test_what_fails_in_one_arm_is_a_finding(tmp_path: Path, ledger: Ledger) -> None:
    works = plan(script(tmp_path / "works", fake("none")), "a")
    fails = plan(script(tmp_path / "fails", fake("fail")), "b")
    watched = Watched()
    pool.run([*works, *fails], ledger, 1, watched)
    assert len(watched.records) == 4


@pytest.mark.parametrize("outcome", ["oom", "panic", "hang", "flood", LOST, MEASURED])
def test_what_a_kernel_does_is_never_hopeless(outcome: str) -> None:
    failed = [record("a", 1, "failed"), record("b", 1, "failed")]
    assert hopeless(failed, "ab", 1)
    assert not hopeless(failed, "abc", 1)
    assert not hopeless([failed[0], record("b", 1, outcome)], "ab", 1)
    assert not hopeless([record("a", 2, "failed"), record("b", 2, "failed")], "ab", 1)
    assert hopeless([*failed, record("a", 2, outcome)], "ab", 1) == (outcome != MEASURED)


# --- any plan ------------------------------------------------------------------------------------


def job(outcome: str, then: Callable[[Attempt], None], seed: int = 1) -> TrialJob:
    """A trial that always ends so."""

    def run(attempt: int, _cancel: threading.Event) -> Attempt:
        ended = replace(record("a", seed, outcome, "as it was told"), trial=f"a-{seed}", attempt=attempt)
        return Attempt(ended, b"", parse(b""))

    return TrialJob(f"a-{seed}", "a", seed, run, then)


def until_cancelled(begun: threading.Event) -> TrialJob:
    def run(_attempt: int, cancel: threading.Event) -> Attempt:
        begun.set()
        assert cancel.wait(20)
        raise Interrupted("stopped")

    return TrialJob("b-1", "b", 1, run, lambda _: None)


def test_who_asked_for_a_trial_hears_how_it_ended_and_may_have_enough(ledger: Ledger) -> None:
    told: list[Record] = []
    heard: list[Record] = []
    waiting = [
        job(LOST, lambda a: heard.append(a.record), 1),
        job(MEASURED, lambda a: heard.append(a.record), 2),
    ]

    def in_turns(running: Sequence[Job]) -> Sequence[Job] | None:
        if running:
            return ()
        return [waiting.pop(0)] if waiting else None

    pool.work(in_turns, ledger, told.append)
    assert [(r.seed, r.attempt) for r in told] == [(1, 1), (1, 2), (1, 3), (2, 1)]
    assert [r.attempt for r in heard if r.seed == 1] == [pool.ATTEMPTS] and len(heard) == 2
    assert [(r.seed, r.attempt) for r in ledger.records()] == [(r.seed, r.attempt) for r in told]

    def enough(attempt: Attempt) -> None:
        raise GuestLost(attempt.record.detail)

    begun = threading.Event()
    before = threading.active_count()
    jobs = [until_cancelled(begun), job(LOST, enough, 3)]
    with pytest.raises(GuestLost, match="as it was told"):
        pool.work(lambda running: jobs if not running else (), ledger, told.append)
    assert begun.is_set() and threading.active_count() == before


def test_a_plan_is_asked_whenever_something_has_ended_and_ends_it(ledger: Ledger) -> None:
    begun, seen = threading.Event(), list[list[Job]]()
    built: list[int] = []
    build = BuildJob(lambda: begun.wait(20) and 7, built.append)
    trial = until_cancelled(begun)

    def plan(running: Sequence[Job]) -> Sequence[Job] | None:
        seen.append(list(running))
        return None if built else [trial, build]

    pool.work(plan, ledger, lambda _: None)
    assert seen == [[], [trial]] and built == [7]
    assert ledger.records() == []


def test_a_build_that_cannot_be_made_ends_it(ledger: Ledger) -> None:
    def full() -> None:
        raise HostError("no space left")

    with pytest.raises(HostError, match="no space left"):
        pool.work(lambda _: [BuildJob(full, lambda _: None)], ledger, lambda _: None)


# --- stopping ------------------------------------------------------------------------------------

RUN = """
import sys
from pathlib import Path
from testbed.trials import pool
from testbed.ledger.ledger import Ledger
from tests.unit.test_pool import Watched, plan
with Ledger.create(Path(sys.argv[1])) as ledger:
    class Telling(Watched):
        def ended(self, record):
            print(record.arm, record.seed, flush=True)
    pool.run(plan(sys.argv[2], seeds=50), ledger, 2, Telling())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopping_leaves_no_process_and_resuming_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    qemu = script(tmp_path / "qemu", fake("none"))
    words = [sys.executable, "-c", RUN, str(tmp_path / "result"), qemu]
    child = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout
    for _ in range(3):
        child.stdout.readline()
    guests = [pid for pid, words in children_of(child.pid).items() if FAKE.name in words]
    os.kill(child.pid, number)
    child.wait(20)
    child.stdout.close()
    deadline = time.monotonic() + 5
    while (left := [pid for pid in guests if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    with Ledger.create(tmp_path / "result") as ledger:
        done = len(ledger.records())
        assert 3 <= done < 100
        watched = Watched()
        pool.run(plan(qemu, seeds=3), ledger, 2, watched)
        assert watched.begun[0] == 6
        assert len({r.trial for r in ledger.records()}) == len(ledger.records())


def test_no_two_vcpus_share_a_core_and_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(32)))
    monkeypatch.setattr(pool, "available_memory", lambda: 100 << 30)
    shape = Shape("tcg", 8, 512 * MiB)
    assert pool.jobs_for(shape) == 4
    # One thread runs all the vCPUs.
    assert pool.jobs_for(dataclasses.replace(shape, accel="icount")) == 32
    monkeypatch.setattr(pool, "available_memory", lambda: 2 << 30)
    assert pool.jobs_for(shape) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    assert pool.jobs_for(shape) == 1


def test_threads_and_children_are_gone_after_a_run(tmp_path: Path, ledger: Ledger) -> None:
    before = threading.active_count()
    pool.run(plan(script(tmp_path / "qemu", fake("none")), "a", 1), ledger, 1, Watched())
    assert threading.active_count() == before
    assert children_of(os.getpid()) == {}
