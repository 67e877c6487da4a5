# SPDX-License-Identifier: GPL-2.0-only
"""What a guest is told: an experiment and an arm become commands for its init. Pure.

The commands are those of images/init.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from testbed.experiment import PAGE, Experiment, GuestSpec


@dataclass(frozen=True)
class Script:
    """`set_up` makes the guest ready for the workload, `run` starts it.

    `meetings`: when the workload meets the host, and the memory from then on, as (ms, bytes).
    """

    set_up: tuple[str, ...]
    run: str
    meetings: tuple[tuple[int, int], ...]


def script(experiment: Experiment, arm: str, seed: int | str) -> Script:
    """All that the guest of one trial is told."""
    guest, workload = experiment.guest, experiment.workload
    meetings = guest.balloon.targets(guest.memory, workload.length) if guest.balloon else ()
    return Script(
        tuple(_set_up(experiment, arm, meetings)),
        workload.run(guest.memory, seed),
        meetings,
    )


def _set_up(experiment: Experiment, arm: str, meetings: tuple[tuple[int, int], ...]) -> Iterator[str]:
    guest, workload = experiment.guest, experiment.workload
    if guest.swap:
        yield f"swap {guest.swap}"
    if workload.needs_disk:
        yield "disk"
    if workload.load and workload.load.files_are_mapped:
        # One page a fault, or a touch would map its neighbours and their touches be no faults.
        yield f"set /sys/kernel/debug/fault_around_bytes {PAGE}"
    if meetings:
        yield f"meets {','.join(str(at) for at, _ in meetings)}"
    if experiment.phases:
        starts = (f"{name}={round(at * 1000)}" for name, at in experiment.phases.items())
        yield f"phases {','.join(starts)}"
    if experiment.sample:
        yield f"sample {max(1, round(experiment.sample * 1000))}"
    settings = _of_guest(guest)
    for given in (guest, experiment.arms[arm]):
        settings |= {f"/proc/sys/{name.replace('.', '/')}": value for name, value in given.sysctl.items()}
        settings |= {f"/sys/{name}": value for name, value in given.sysfs.items()}
    for path, value in settings.items():
        yield f"set {path} {value}"
    if experiment.tracepoints:
        yield "tally"


def _of_guest(guest: GuestSpec) -> dict[str, int | str]:
    """The guest's own keys as paths and values; what is not given is left to the kernel."""
    settings: dict[str, int | str | None] = {
        # Before min_free_kbytes: the kernel calculates that anew. That there are none it is told at boot.
        "/sys/kernel/mm/transparent_hugepage/enabled": guest.thp if guest.thp != "never" else None,
        "/sys/kernel/mm/lru_gen/enabled": None if guest.mglru is None else "y" if guest.mglru else "n",
        "/proc/sys/vm/min_free_kbytes": guest.min_free_kbytes,
        "/proc/sys/vm/watermark_scale_factor": guest.watermark_scale_factor,
        "/proc/sys/vm/swappiness": guest.swappiness,
    }
    return {path: value for path, value in settings.items() if value is not None}
