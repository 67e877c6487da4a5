# SPDX-License-Identifier: GPL-2.0-only
"""`testbed doctor`: what this machine lacks for the main job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.setup import doctor
from testbed.setup.doctor import Need
from testbed.trials.lab import Lab


@dataclass(frozen=True)
class Examined:
    """What is needed and whether it is there, and notes on this machine."""

    needs: Sequence[Need]
    notes: Sequence[str]

    @property
    def fit(self) -> bool:
        """Whether nothing is wrong."""
        return not any(need.problem for need in self.needs)


def examine(lab: Lab) -> Examined:
    """Look at this machine."""
    needs = doctor.examine(lab.cache)
    return Examined(needs, (doctor.kvm(), doctor.emulator()))
