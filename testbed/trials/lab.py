# SPDX-License-Identifier: GPL-2.0-only
"""Where kernels are built and guests run: what every verb that runs trials is handed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from testbed.analysis.parse import Measurement
from testbed.experiment import Experiment
from testbed.ledger.ledger import Ledger
from testbed.trials import effective, pool, prepare
from testbed.trials.pool import Progress
from testbed.trials.prepare import Campaign
from testbed.trials.trial import Trial


class Watch(Progress, Protocol):
    """Who watches a verb."""

    def note(self, text: str) -> None:
        """Something has begun or was found. May be called from any thread."""


class Lab(Protocol):
    """A place for experiments."""

    @property
    def cache(self) -> Path:
        """Where kernels, images and snapshots are kept."""

    def prepare(self, experiment: Experiment, note: Callable[[str], None]) -> Campaign:
        """Build what an experiment needs and lay out its trials; raises as trials.prepare.prepare() does."""

    def run(
        self, trials: Sequence[Trial], ledger: Ledger, jobs: int | None, progress: Progress
    ) -> Mapping[str, Measurement]:
        """Run what the ledger does not hold yet of these trials; raises as trials.pool.run() does.

        Returns what was measured now, by trial.
        """

    def settings(self, trial: Trial) -> Mapping[str, str]:
        """What is set in a guest of a trial's arm, as trials.effective.read() has it."""


@dataclass(frozen=True)
class ThisMachine:
    """Real kernels and real guests, here."""

    cache: Path

    def prepare(self, experiment: Experiment, note: Callable[[str], None]) -> Campaign:
        """Build what an experiment needs and lay out its trials; raises as trials.prepare.prepare() does."""
        return prepare.prepare(experiment, self.cache, note, threading.Event())

    def run(
        self, trials: Sequence[Trial], ledger: Ledger, jobs: int | None, progress: Progress
    ) -> Mapping[str, Measurement]:
        """Run what the ledger does not hold yet of these trials; raises as trials.pool.run() does."""
        return pool.run(trials, ledger, jobs, progress)

    def settings(self, trial: Trial) -> Mapping[str, str]:
        """What is set in a guest of a trial's arm, as trials.effective.read() has it."""
        return effective.read(trial)
