# SPDX-License-Identifier: GPL-2.0-only
"""Seeds are added until the primary metrics are decided, and no longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from testbed.analysis.parse import Measurement
from testbed.analysis.statistics import LEAST_PAIRS
from testbed.experiment import LEAST_SEEDS, ArmSpec, Experiment, KernelSpec
from testbed.experiment.model import PrimarySpec
from testbed.ledger.ledger import Ledger
from testbed.terminal.progress import Watcher
from testbed.trials.pool import Progress
from testbed.trials.prepare import Campaign
from testbed.trials.trial import Trial
from testbed.verbs.run import until_decided
from tests.unit.recorded import counted, planned, record
from tests.unit.test_guest_faults import make_trial

SEEDS = 9
LOW = [1000, 1010, 990, 1005, 995, 1008, 1001, 1003, 998]
CLEAR = [count * 2 for count in LOW]
# Here this way and there that way.
NOISE = [700, 1400, 650, 1500, 800, 1300, 600, 1450, 900]

Run = Callable[..., list[int]]


def experiment(**changes: Any) -> Experiment:
    made = Experiment(
        name="x",
        kernel=KernelSpec(debian="linux-source-6.1"),
        arms={"a": ArmSpec(), "b": ArmSpec()},
        primary={"direct_reclaims": PrimarySpec(margin=0.05)},
        seeds=SEEDS,
    )
    return made.model_copy(update=changes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed; every run of the laboratory takes 60."""
    passed = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: passed[0])
    return passed


@dataclass
class Counting:
    """A laboratory whose guests count so many direct reclaims, by arm and seed."""

    counts: dict[str, list[int]]
    clock: list[float]
    cache: Path = Path("/nowhere")
    # The highest seed after each run.
    looks: list[int] = field(default_factory=list)

    def prepare(self, experiment: Experiment, note: Callable[[str], None]) -> Campaign:
        raise NotImplementedError

    def run(
        self, trials: Sequence[Trial], ledger: Ledger, jobs: int | None, progress: Progress
    ) -> dict[str, Measurement]:
        done = {found.trial for found in ledger.records()}
        assert jobs == 3 and isinstance(progress, Watcher)
        for trial in trials:
            if trial.id not in done:
                log = counted(allocstall_movable=self.counts[trial.arm][trial.seed - 1])
                ledger.add(record(trial.arm, trial.seed, trial=trial.id), log)
        seeds = {trial.seed for trial in trials}
        assert seeds == set(range(1, max(seeds) + 1)) and len(trials) == len(seeds) * len(self.counts)
        self.looks.append(max(seeds))
        self.clock[0] += 60
        return {}

    def settings(self, trial: Trial) -> Mapping[str, str]:
        raise NotImplementedError


@pytest.fixture
def run(tmp_path: Path, clock: list[float]) -> Run:
    """Run an experiment whose arms count so many direct reclaims: the highest seed after each run."""

    def go(of: Experiment, counts: dict[str, list[int]]) -> list[int]:
        lab = Counting(counts, clock)
        one = make_trial("qemu")
        trials = [replace(one, arm=arm, seed=n) for arm in counts for n in range(1, of.seeds + 1)]
        made = planned(of, trials)
        with Ledger.create(tmp_path / "r") as ledger:
            ledger.set_plan(made)
            watcher = Watcher(Console(width=200, force_terminal=False))
            until_decided(of, trials, ledger, lab=lab, jobs=3, watch=watcher)
        return lab.looks

    return go


def test_nothing_can_be_decided_of_fewer_seeds() -> None:
    assert LEAST_PAIRS[True] == LEAST_SEEDS


def test_what_is_clear_is_decided_at_the_first_look(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    looks = run(experiment(), {"a": LOW, "b": CLEAR})
    # Not before the least number of seeds, however clear; soon after.
    assert looks[0] == LEAST_SEEDS and looks == list(range(LEAST_SEEDS, looks[-1] + 1, 2))
    assert looks[-1] < SEEDS
    assert f"decided after {looks[-1]} seeds" in capsys.readouterr().out


def test_what_is_not_decided_goes_on_to_the_cap(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(experiment(), {"a": LOW, "b": NOISE}) == [*range(LEAST_SEEDS, SEEDS, 2), SEEDS]
    said = capsys.readouterr().out
    assert "decided" not in said
    # Once, after the pilot.
    assert said.count("with so many seeds, a change of ") == 1


def test_every_arm_has_to_be_decided(run: Run) -> None:
    of = experiment(arms={"a": ArmSpec(), "b": ArmSpec(), "c": ArmSpec()})
    assert run(of, {"a": LOW, "b": CLEAR, "c": NOISE})[-1] == SEEDS


def test_the_minutes_end_it_at_any_seed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(experiment(minutes=2.5), {"a": LOW, "b": NOISE}) == [1, 2, 3]
    assert "no further seed: 2.5 minutes are over" in capsys.readouterr().out


def test_with_minutes_left_it_is_decided_as_without(run: Run) -> None:
    looks = run(experiment(minutes=1000), {"a": LOW, "b": CLEAR})
    assert looks == list(range(1, looks[-1] + 1)) and LEAST_SEEDS <= looks[-1] < SEEDS


@pytest.mark.parametrize(
    "changes",
    [{"sequential": False}, {"primary": {}}, {"seeds": LEAST_SEEDS - 1}],
    ids=["one look", "no primary", "few seeds"],
)
def test_without_looks_all_seeds_run_at_once(run: Run, changes: dict[str, Any]) -> None:
    of = experiment(**changes)
    assert run(of, {"a": LOW, "b": CLEAR}) == [of.seeds]


def test_the_minutes_hold_without_looks_too_and_decide_nothing(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = run(experiment(sequential=False, minutes=7.5), {"a": LOW, "b": CLEAR})
    assert looks == list(range(1, 9))
    assert "decided" not in capsys.readouterr().out
