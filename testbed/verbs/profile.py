# SPDX-License-Identifier: GPL-2.0-only
"""`testbed profile`: what the guests of a deterministic result executed, and what two arms differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.analysis.profile import By, Profiled
from testbed.host import owned
from testbed.host.errors import SpecError
from testbed.ledger.manifest import BundledManifest
from testbed.ledger.record import MEASURED
from testbed.trials import prepare
from testbed.trials import profile as running
from testbed.trials.lab import Lab, Watch
from testbed.trials.trial import Trial
from testbed.verbs import reproduce
from testbed.verbs.reproduce import Repeat

__all__ = ["By", "ProfileRequest", "Profiled", "profile"]
# Of a program's name, what the kernel keeps (TASK_COMM_LEN, with a zero).
COMM = 15


@dataclass(frozen=True)
class ProfileRequest:
    """A result or a manifest, and of it one `trial`, an id or ARM:SEED, or so many `seeds` of every arm.

    With `blocks`, blocks of code rather than chains of calls are counted.
    """

    path: Path
    trial: str | None = None
    seeds: int = 1
    blocks: bool = False


def profile(request: ProfileRequest, lab: Lab, watch: Watch) -> list[Profiled]:
    """Run trials again with a profiler beside them, seed by seed, in the order of the result's arms.

    Raises SpecError when there is no such result or trial, or its guests ran in real time; else as
    trials.profile.profiles() does.
    """
    if request.blocks and not request.trial:
        raise SpecError("--blocks needs --trial ARM:SEED: code is that of one kernel")
    with owned.directory() as scratch:
        repeat = reproduce.load(request.path, lab.cache, scratch, watch.note)
        if isinstance(repeat.manifest, BundledManifest):
            raise SpecError(
                f"{request.path}: a bundle has kernels, but not what they were built of, as a profile needs",
                "profile the result, or its manifest",
            )
        chosen = _chosen(request, repeat)
        experiment = repeat.manifest.pinned()
        plans = prepare.plans(experiment, lab.cache, watch.note)
        expected = repeat.manifest.expected
        wanted = [running.Wanted(trial, expected[trial.id].log_sha256, plans[trial.arm]) for trial in chosen]
        watch.note(f"to be profiled: {len(chosen)} of the trials of {repeat.manifest.name}")

        def ended(trial: Trial) -> None:
            watch.note(f"{trial.arm} seed {trial.seed}: its log is the same, byte for byte")

        found = running.profiles(wanted, not request.blocks, ended)
        brought = {Path(there).name[:COMM]: here for there, here in prepare.brought(experiment).items()}
        names = running.names([trial.vmlinux for trial in chosen], brought, found)
        return [
            Profiled(trial.arm, trial.seed, counted, known)
            for trial, counted, known in zip(chosen, found, names, strict=True)
        ]


def _chosen(request: ProfileRequest, repeat: Repeat) -> Sequence[Trial]:
    """The trials, seed by seed. Raises SpecError when there are none."""
    if request.trial:
        return reproduce.only(repeat, request.trial).trials
    measured = [t for t in repeat.trials if repeat.manifest.expected[t.id].outcome == MEASURED]
    arms = dict.fromkeys(trial.arm for trial in repeat.trials)
    seeds = [
        seed
        for seed in sorted({trial.seed for trial in measured})
        if arms.keys() <= {trial.arm for trial in measured if trial.seed == seed}
    ]
    if not seeds:
        raise SpecError(
            f"{request.path}: no seed was measured in every arm", "`--trial ARM:SEED` profiles a single trial"
        )
    order = list(repeat.manifest.kernels)
    wanted = [trial for trial in measured if trial.seed in seeds[: request.seeds]]
    return sorted(wanted, key=lambda trial: (trial.seed, order.index(trial.arm)))
