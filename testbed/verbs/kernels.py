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
from testbed.host.process import pasteable
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


def boot(
    request: BootRequest,
    lab: Lab,
    watch: Watch,
    tell: Callable[[str], None],
    aside: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Connect this terminal to a shell in a guest until it ends. Raises as a trial does, and SpecError.

    What else is shown at the terminal has to be gone within `aside`.
    """
    terminal.require_foreground()
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
        deadlines = experiment.deadlines_of(deterministic=False)
        guest.boot(deadlines.boot)
        guest.balloon(experiment.guest.memory, deadlines.balloon)
        told = script(experiment, arm, 1)
        for line in told.set_up:
            guest.command(line)
        # init has it off until a workload starts; who traces by hand expects it on. A kernel may be without.
        with contextlib.suppress(GuestFailed):
            guest.command("set /sys/kernel/tracing/tracing_on 1")
        memory = format_size(experiment.guest.memory)
        tell(f"{arm}: {experiment.guest.vcpus} vCPUs, {memory}; Ctrl-] leaves at once")
        tell(f"the workload, to be typed there: {by_hand(told.run)}")
        guest.type("shell")
        if size := terminal.size():
            rows, columns = size
            guest.type(f"stty rows {rows} cols {columns}")
        with aside():
            terminal.interact(guest.console)


def by_hand(run: str) -> str:
    """What a person types in the guest's shell for init's command `run`; nothing is sent to the host then."""
    verb, *words = run.split()
    seed = f"SEED={words.pop(0)} " if verb == "run-user" else ""
    return f"mkdir -p /run/result; {seed}{pasteable(['observe', *(['-u'] if seed else []), *words])}"
