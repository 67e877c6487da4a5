# SPDX-License-Identifier: GPL-2.0-only
"""`testbed doctor`: what this machine lacks for the main job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from testbed.host.process import pasteable
from testbed.setup import doctor
from testbed.setup.doctor import INSTALLERS, Need
from testbed.trials.lab import Lab
from testbed.verbs import clean


@dataclass(frozen=True)
class Examined:
    """What is needed and whether it is there, notes on this machine, and what installs what is not there."""

    needs: Sequence[Need]
    notes: Sequence[str]
    remedies: Sequence[str]

    @property
    def fit(self) -> bool:
        """Whether nothing is wrong."""
        return not any(need.problem for need in self.needs)


def examine(lab: Lab) -> Examined:
    """Look at this machine."""
    needs = doctor.examine(lab.cache)
    kept = [f"{room.size >> 20} MiB in {room.directory}: {room.what}" for room in clean.kept(lab.cache)]
    if kept:
        kept.append("`testbed clean --cache` frees that; what is needed is made again, which takes minutes")
    return Examined(
        needs, (doctor.kvm(), doctor.emulator(), doctor.confinement(), *kept), tuple(_remedies(needs))
    )


def _remedies(needs: Sequence[Need]) -> Iterator[str]:
    for distribution in INSTALLERS:
        if command := doctor.install_command(needs, distribution):
            yield f"on {distribution.capitalize()}: sudo {pasteable(command)}"
