# SPDX-License-Identifier: GPL-2.0-only
"""A laboratory of recorded trials: nothing is built, nothing boots. As a program it does a step of ci/ in it.

    FAKE=... python -m tests.recorded_lab ci/steps.py STEP

FAKE is JSON: {"counts": {ARM: [direct reclaims of seed 1, 2, ...]}, "kvm": why it does not work or null,
"fail": ERROR}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci import steps
from testbed.analysis.parse import Measurement
from testbed.experiment import Experiment
from testbed.experiment.model import PrimarySpec
from testbed.host import errors
from testbed.host.errors import NoKvm
from testbed.host.paths import cache_directory
from testbed.ledger.ledger import Ledger
from testbed.trials.pool import Progress
from testbed.trials.prepare import Campaign
from testbed.trials.trial import Trial
from tests.unit.recorded import counted, edited, plan, record


@dataclass(frozen=True)
class RecordedLab:
    """Guests that count so many direct reclaims, by arm and seed."""

    counts: Mapping[str, Sequence[int]]
    kvm: str | None = None
    fail: str = ""
    cache: Path = Path("/nowhere")

    def prepare(self, experiment: Experiment, note: Callable[[str], None]) -> Campaign:
        if self.fail:
            raise getattr(errors, self.fail, RuntimeError)(f"{self.fail}, as asked")
        # The kernels of a real one are called so; here it has to be what this experiment says.
        assert list(experiment.arms) == list(self.counts), experiment.arms
        if experiment.mode == "realtime" and self.kvm:
            raise NoKvm(f"KVM does not work here: {self.kvm}")
        made = plan(
            self.counts,
            max(map(len, self.counts.values())),
            name=experiment.name,
            mode=experiment.mode,
            accel=experiment.accel,
            sequential=False,
            primary={"direct_reclaims": PrimarySpec(margin=0.05)},
        )
        if experiment.mode == "realtime":
            kvm = {"name": "kvm", "reason": "a probe booted under KVM"}
            made = edited(made, lambda data: data["provenance"].update(accelerator=kvm))
        return Campaign((), made)

    def run(
        self, trials: Sequence[Trial], ledger: Ledger, jobs: int | None, progress: Progress
    ) -> dict[str, Measurement]:
        if not ledger.records():
            for arm, counts in self.counts.items():
                for seed, count in enumerate(counts, start=1):
                    ledger.add(record(arm, seed), counted(allocstall_movable=count))
        return {}

    def settings(self, trial: Trial) -> Mapping[str, str]:
        return {}


if __name__ == "__main__":
    _, _script, *words = sys.argv
    sys.exit(steps.main(words, RecordedLab(**json.loads(os.environ["FAKE"]), cache=cache_directory())))
