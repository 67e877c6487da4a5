# SPDX-License-Identifier: GPL-2.0-only
"""`testbed build` and `testbed boot`: an experiment's kernels, and a shell in a guest of one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.experiment import format_size
from testbed.experiment.script import script
from testbed.guest import terminal
from testbed.guest.live import LiveGuest
from testbed.host.errors import GuestFailed, SpecError
from testbed.trials import prepare
from testbed.trials.lab import Lab, Watch
from testbed.verbs.request import ExperimentRequest


@dataclass(frozen=True)
class BootRequest:
    """An arm's guest, with a shell in it; the first arm if None."""

    experiment: ExperimentRequest
    arm: str | None = None


def build(request: ExperimentRequest, lab: Lab, watch: Watch) -> list[tuple[str, Path]]:
    """Build the kernels of an experiment: arm and vmlinux. Raises SpecError, BuildError."""
    kernels: dict[tuple[str, Path], None] = {}
    with request.named():
        for cell in request.cells():
            built = prepare.kernels(cell.experiment, lab.cache, watch.note)
            kernels |= dict.fromkeys((arm, kernel.vmlinux) for arm, kernel in built.items())
    return list(kernels)


def boot(request: BootRequest, lab: Lab, watch: Watch, tell: Callable[[str], None]) -> None:
    """Connect this terminal to a shell in a guest until it ends. Raises as a trial does."""
    # Who types is not deterministic.
    experiment = replace(request.experiment, mode="realtime").first()
    arm = request.arm or next(iter(experiment.arms))
    if arm not in experiment.arms:
        known = ", ".join(experiment.arms)
        raise SpecError(f"{request.experiment.file}: there is no arm `{arm}`: {known}")
    experiment = experiment.only(arm)
    with request.experiment.named():
        # First what may be refused at once.
        initramfs = prepare.initramfs(experiment, lab.cache)
        kernel = prepare.kernels(experiment, lab.cache, watch.note)[arm]
        here = prepare.machine(experiment, kernel, initramfs, lab.cache, watch.note)
    shape = prepare.with_arguments(here.shape, experiment, arm)
    with LiveGuest(shape, kernel.vmlinux, initramfs.path, qemu=here.qemu.program) as guest:
        guest.boot(experiment.deadlines.boot)
        guest.balloon(experiment.guest.memory, experiment.deadlines.balloon)
        for line in script(experiment, arm, 1).set_up:
            guest.command(line)
        # init has it off until a workload starts; who traces by hand expects it on. A kernel may be without.
        with contextlib.suppress(GuestFailed):
            guest.command("set /sys/kernel/tracing/tracing_on 1")
        size = format_size(experiment.guest.memory)
        tell(f"{arm}: {experiment.guest.vcpus} vCPUs, {size}; Ctrl-] leaves at once")
        guest.type("shell")
        terminal.interact(guest.console)
