# SPDX-License-Identifier: GPL-2.0-only
"""`testbed run`: what is missing of an experiment, in every cell of its matrix."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from testbed.analysis.parse import Measurement
from testbed.experiment import LEAST_SEEDS, Cell, Experiment
from testbed.host import files
from testbed.host.errors import NoDeterminism, NoKvm, SpecError, TestbedError
from testbed.ledger import matrix
from testbed.ledger.ledger import Ledger, set_aside
from testbed.ledger.plan import Plan
from testbed.ledger.record import FAILURES, Record, final, hopeless
from testbed.report import remarks, words
from testbed.trials import effective
from testbed.trials.lab import Lab, Watch
from testbed.trials.prepare import Campaign
from testbed.trials.trial import Trial
from testbed.verbs import results
from testbed.verbs.request import EVERY_FAILURE, ExperimentRequest, RunRequest

# In a result, the file that it came from.
ORIGIN = "origin"
MOST_PATH = 64 * 1024


@dataclass(frozen=True)
class Ran:
    """A result that has been run, and the records that count; or a matrix, and a cell's worst exit status."""

    directory: Path
    records: tuple[Record, ...] = ()
    worst: int | None = None


def run(request: RunRequest, lab: Lab, watch: Watch) -> Ran:
    """Run what is missing; raises SpecError, HostError, BuildError, StoreError, Interrupted."""
    done = execute(request, request.experiment.cells(), lab, watch)
    if results.is_matrix(done.directory):
        return Ran(done.directory, worst=worst(done.directory))
    observations = results.load(done.directory, done.measurements).observations
    return Ran(done.directory, tuple(observation.record for observation in observations))


@dataclass(frozen=True)
class Executed:
    """Where the results of all cells are, and what was measured now, by trial."""

    directory: Path
    measurements: Mapping[str, Measurement]


def execute(request: RunRequest, cells: Sequence[Cell], lab: Lab, watch: Watch) -> Executed:
    """Run what is missing of cells, each into its own directory."""
    home = request.results or Path("results") / cells[0].experiment.name
    runs = _Runs(request, lab, watch)
    with request.experiment.named():
        if not cells[0].at:
            runs.one(cells[0].experiment, home, fresh=request.fresh)
        else:
            if request.fresh:
                make_room(home, watch)
            matrix.run(cells, home, runs.one, watch.note)
    return Executed(home, runs.measurements)


def worst(home: Path) -> int:
    """The worst exit status of a matrix's cells."""
    return max(cell.exit_status for cell in matrix.load(home)[1])


def make_room(directory: Path, watch: Watch) -> None:
    """Move an old result aside, if there is one."""
    if old := set_aside(directory):
        watch.note(f"the old result is now {old}")


def _claim(directory: Path, request: ExperimentRequest) -> None:
    """Note whose result this is: of which file, and of which words.

    Raises SpecError if it is that of another file, which is still there, or of other words.
    """
    note, origin = directory / ORIGIN, str((request.origin or request.file).resolve())
    said = os.fsdecode(files.read(note, MOST_PATH)) if note.exists() else f"{origin}\n{request.asked}"
    owner, asked = (*map(str.strip, said.split("\n")), "")[:2]
    other = owner if owner != origin and Path(owner).exists() else ""
    # Of an older testbed no words are noted.
    if owner == origin and asked and request.asked and asked != request.asked:
        other = f"`{asked}`"
    if other:
        raise SpecError(
            f"{directory}: has the result of {other}, which is of the same name",
            "give one of them another `name`, or this one another directory with --results DIR",
        )
    files.write(note, os.fsencode(f"{origin}\n{request.asked}\n"))


def _known_settings(ledger: Ledger, plan: Plan) -> dict[str, dict[str, str]]:
    """What an older plan knows of the settings of arms that are the same: they have trials in common."""
    try:
        old = ledger.plan()
    except TestbedError:
        # There is none, or none that this one can go on from.
        return {}
    same = {trial.arm for id, trial in plan.trials.items() if id in old.trials}
    return {arm: settings for arm, settings in old.provenance.effective.items() if arm in same}


def _with_settings(plan: Plan, settings: Mapping[str, dict[str, str]]) -> Plan:
    known = {**plan.provenance.effective, **settings}
    provenance = plan.provenance.model_copy(update={"effective": known})
    return plan.model_copy(update={"provenance": provenance})


@dataclass(frozen=True)
class _Runs:
    request: RunRequest
    lab: Lab
    watch: Watch
    measurements: dict[str, Measurement] = field(default_factory=dict)

    def one(self, experiment: Experiment, directory: Path, *, fresh: bool = False) -> None:
        """Run what is missing of one comparison."""
        ready = self._prepared(experiment)
        kernels = remarks.of_facts(ready.plan.provenance.kernels)
        for text in remarks.same_kernels(ready.plan.experiment, kernels):
            self.watch.note(text)
        # Only now: an experiment that cannot run moves nothing.
        if fresh:
            make_room(directory, self.watch)
        with Ledger.create(directory) as ledger:
            _claim(directory, self.request.experiment)
            plan = _with_settings(ready.plan, _known_settings(ledger, ready.plan))
            ledger.set_plan(plan)
            jobs = self.request.jobs
            # Before anything is decided by what is there.
            if failed := self._reopened(ready.trials, ledger):
                self.measurements.update(self.lab.run(failed, ledger, jobs, self.watch))
            self.measurements.update(
                until_decided(experiment, ready.trials, ledger, lab=self.lab, jobs=jobs, watch=self.watch)
            )
            ledger.set_plan(_with_settings(plan, self._settings(plan, ready.trials, ledger)))

    def _settings(self, plan: Plan, trials: Sequence[Trial], ledger: Ledger) -> dict[str, dict[str, str]]:
        """What is set in the guests of the arms of which it is not known yet."""
        known = plan.provenance.effective
        return {
            trial.arm: dict(self.lab.settings(trial))
            for trial in effective.spokesmen(trials, final(ledger.records()))
            if trial.arm not in known
        }

    def _reopened(self, trials: Sequence[Trial], ledger: Ledger) -> list[Trial]:
        """The trials that are to be tried again: they ended in a way that was asked for, or have no log."""
        again = FAILURES if self.request.again == EVERY_FAILURE else (self.request.again,)
        ended = {id_ for id_, record in ledger.settled().items() if record.outcome in again}
        if damaged := results.without_log(ledger, {trial.id for trial in trials}):
            self.watch.note(f"logs that are gone or damaged: {len(damaged)}; their trials run again")
        ended |= damaged
        ledger.reopen(ended)
        return [trial for trial in trials if trial.id in ended]

    def _prepared(self, experiment: Experiment) -> Campaign:
        """The trials of an experiment; in mode `auto`, in the first of the modes that works here."""
        try:
            return self.lab.prepare(experiment, self.watch.note)
        except NoKvm as none:
            if self.request.experiment.mode != "auto":
                raise
            why = f"deterministic instead of in real time: {none.message}"
        self.watch.note(why)
        try:
            instead = experiment.model_copy(update={"mode": "deterministic", "accel": "auto"})
            ready = self.lab.prepare(instead, self.watch.note)
        except NoDeterminism as none:
            why += f"; not deterministic: {none.message}"
            self.watch.note(why)
            emulated = experiment.model_copy(update={"mode": "realtime", "accel": "tcg"})
            ready = self.lab.prepare(emulated, self.watch.note)
        provenance = ready.plan.provenance.model_copy(update={"fallback": why})
        return replace(ready, plan=ready.plan.model_copy(update={"provenance": provenance}))


def _in_vain(experiment: Experiment, trials: Sequence[Trial], ledger: Ledger) -> int:
    """How many trials are not run, since none can be measured; 0 unless it is so."""
    planned = {trial.id for trial in trials}
    records = [record for record in ledger.records() if record.trial in planned]
    vain = hopeless(records, experiment.arms, experiment.first_seed)
    return len(planned - {record.trial for record in records}) if vain else 0


def until_decided(
    experiment: Experiment,
    trials: Sequence[Trial],
    ledger: Ledger,
    *,
    lab: Lab,
    jobs: int | None,
    watch: Watch,
) -> Mapping[str, Measurement]:
    """Run the trials of all seeds; with primary metrics, of no more than it takes to decide them.

    Returns what was measured, by trial.
    """
    measurements: dict[str, Measurement] = {}
    began = time.monotonic()
    # In pairs, whatever the cores: at the end of each batch some are idle, and when it is decided must be
    # the same everywhere.
    looks = range(LEAST_SEEDS, experiment.seeds, 2) if experiment.looks else ()
    stops = range(1, experiment.seeds) if experiment.minutes else looks
    for seeds in (*stops, experiment.seeds):
        end = experiment.first_seed + seeds
        measurements |= lab.run([trial for trial in trials if trial.seed < end], ledger, jobs, watch)
        if rest := _in_vain(experiment, trials, ledger):
            look = f"testbed log {ledger.directory} {trials[0].arm}:{experiment.first_seed}"
            watch.note(
                f"seed {experiment.first_seed} failed in every arm, so {rest} trials are not run; "
                f"`{look}` prints what it said; with --fresh or a file that was changed, all begins anew"
            )
            break
        if seeds == experiment.seeds:
            break
        so_far = results.read(ledger, measurements)
        measurements |= {o.record.trial: o.measurement for o in so_far.observations}
        if missing := results.metrics_without_values(so_far):
            raise SpecError(
                f"primary: no trial has the metric {', '.join(missing)}",
                "`testbed parse RESULT` shows which there are with this kernel and this workload",
            )
        if seeds in looks and results.decided(so_far):
            watch.note(f"decided after {seeds} seeds")
            break
        if looks and seeds == looks[0]:
            # The pilot says whether it is worth while to go on.
            for line in words.detectable(results.report(so_far, full=False)):
                watch.note(line)
        if experiment.minutes and time.monotonic() - began > experiment.minutes * 60:
            watch.note(f"no further seed: {experiment.minutes:g} minutes are over")
            break
    return measurements
