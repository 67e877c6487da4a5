# SPDX-License-Identifier: GPL-2.0-only
"""What an experiment comes to, before anything runs: kernels, machine, commands, and about how long."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.experiment import Cell, Experiment
from testbed.guest.qemu import QEMU
from testbed.guest.shape import Shape, by_hand
from testbed.host.process import pasteable
from testbed.kernel import build
from testbed.kernel.build import Plan
from testbed.kernel.series import Patch
from testbed.report import remarks
from testbed.report.words import counted, duration
from testbed.trials import pool, prepare
from testbed.trials.lab import Lab, Watch
from testbed.verbs.request import ExperimentRequest

# Measured with 8 vCPUs on two cores, and good for an estimate only: wall time per second of a deterministic
# guest, two at a time; what a trial takes beside its workload, most of it to fill memory; a boot, which is
# paid once; a kernel, with all of its objects.
WALL_PER_VIRTUAL = 2.5
BESIDE_SECONDS = {"deterministic": 3.5, "realtime": 4.0}
BOOT_SECONDS = 13.0
CORE_SECONDS_PER_KERNEL = 260.0

FILES_SHOWN = 3


@dataclass(frozen=True)
class ExplainRequest:
    """An experiment to be explained, on request with the `commands` that build kernels and start guests."""

    experiment: ExperimentRequest
    commands: bool = False


def explain(request: ExplainRequest, lab: Lab, watch: Watch) -> Iterator[str]:
    """Lines for a person; a source that is not here yet is fetched. Raises SpecError, HostError."""
    with request.experiment.named():
        yield from _cells(request.experiment.cells(), request.commands, lab.cache, watch.note)


def _cells(
    cells: Sequence[Cell], commands: bool, cache: Path, progress: Callable[[str], None]
) -> Iterator[str]:
    first = cells[0].experiment
    yield f"{first.name}: {_extent(first, len(cells))}"
    unbuilt: set[str] = set()
    told: frozenset[str] = frozenset()
    seconds = 0.0
    for cell in cells:
        if cell.at:
            yield f"with {cell.label}:"
        crowding = tuple(prepare.crowding(cell.experiment, prepare.brought(cell.experiment)))
        plans = prepare.plans(cell.experiment, cache, progress)
        missing = {plan.key for plan in plans.values() if build.published(plan) is None}
        seconds += build_seconds(missing - unbuilt) + trials_seconds(cell.experiment)
        unbuilt |= missing
        lines = [
            *_cell(cell.experiment, plans, missing, commands),
            *(f"  {line}" for line in (*_same(cell.experiment, plans), *crowding)),
        ]
        # Of further cells what is not so in the first.
        yield from (line for line in lines if line not in told)
        told = told or frozenset(lines)
    if len(first.arms) == 1:
        yield "one arm, and nothing to compare it with: a patch, --base REV or a second --kernel makes two"
    yield f"time: about {duration(seconds)} on this machine" + (
        f", {counted(len(unbuilt), 'kernel')} to be built among it" if unbuilt else ", all kernels are built"
    )


def _extent(experiment: Experiment, cells: int) -> str:
    """How many trials it has."""
    arms, seeds = len(experiment.arms), experiment.seeds
    each_arm = counted(arms, "arm")
    if experiment.minutes:
        each = f" in each of {cells} cells" if cells > 1 else ""
        within = duration(experiment.minutes * 60)
        return f"{each_arm} x as many seeds as begin within {within}{each}, {seeds} at most"
    total = f" in each of {cells} cells, {arms * seeds * cells} in all" if cells > 1 else ""
    return f"{each_arm} x {counted(seeds, 'seed')} = {counted(arms * seeds, 'trial')}{total}"


def _same(experiment: Experiment, plans: dict[str, Plan]) -> Iterator[str]:
    """Which arms do not differ, as far as that is known before they are built."""
    kernels = {arm: remarks.Identity(plan.key, plan.patches_sha256) for arm, plan in plans.items()}
    for text in remarks.same_kernels(experiment, kernels):
        yield f"note: {text}"


def _cell(experiment: Experiment, plans: dict[str, Plan], missing: set[str], commands: bool) -> Iterator[str]:
    made_of = {
        arm: f"{plan.source.label}, fragments {' '.join(experiment.fragments(arm))}"
        for arm, plan in plans.items()
    }
    common = set(made_of.values())
    if len(common) == 1:
        yield f"  source: {common.pop()}"
    for arm, plan in plans.items():
        yield f"  arm {arm}: {', '.join(plan.patched) or 'no patches'}"
        if common:
            yield f"    source: {made_of[arm]}"
        yield from (f"    patch: {applied(patch)}" for patch in plan.patches)
        if plan.key in missing:
            yield f"    to be built{f': {pasteable(build.command(plan))}' if commands else ''}"
        else:
            yield f"    built: {plan.directory / 'vmlinux'}"
        if words := experiment.arms[arm].command_line:
            yield f"    kernel: {' '.join(words)}"
        yield from (f"    guest: {line}" for line in prepare.guest_commands(experiment, arm))
    if commands:
        vmlinux = next(iter(plans.values())).directory / "vmlinux"
        shape = prepare.with_arguments(_shape(experiment), experiment, next(iter(experiment.arms)))
        yield f"  machine: {pasteable(by_hand(shape, QEMU, vmlinux, Path('INITRAMFS')))}"


def applied(patch: Patch) -> str:
    """A patch in one line: the commit's subject, and what it changes where."""
    files, hunks = patch.files, sum(len(change.hunks) for change in patch.changes)
    added = sum(change.added for change in patch.changes)
    removed = sum(change.removed for change in patch.changes)
    changed = ", ".join(files[:FILES_SHOWN])
    if len(files) > FILES_SHOWN:
        changed += f" and {len(files) - FILES_SHOWN} more"
    level = f", by -p{patch.strip}" if patch.strip != 1 else ""
    idle = "" if patch.compiled else "; changes nothing that is compiled"
    size = f"{counted(hunks, 'hunk')}, +{added} -{removed}{level}"
    return f"{patch.subject or patch.label} ({changed}: {size}){idle}"


def _shape(experiment: Experiment) -> Shape:
    """Its machine; in real time, what is taken where no KVM works."""
    shape = prepare.shape_of(experiment)
    return shape if experiment.mode == "deterministic" else replace(shape, accel="tcg")


def build_seconds(keys: set[str]) -> float:
    """About how long so many kernels take to build here."""
    return len(keys) * CORE_SECONDS_PER_KERNEL / (os.cpu_count() or 1)


def trials_seconds(experiment: Experiment) -> float:
    """About how long its trials take here, if none of its guests has booted yet."""
    deterministic = experiment.mode == "deterministic"
    arms, jobs = len(experiment.arms), pool.jobs_for(_shape(experiment))
    each = experiment.workload.length * (WALL_PER_VIRTUAL if deterministic else 1.0)
    rounds = -(-arms * experiment.seeds // jobs)
    boots = -(-arms * min(experiment.boots or experiment.seeds, experiment.seeds) // jobs)
    beside = BOOT_SECONDS * boots if deterministic else 0.0
    seconds = rounds * (each + BESIDE_SECONDS[experiment.mode]) + beside
    return min(seconds, experiment.minutes * 60) if experiment.minutes else seconds
