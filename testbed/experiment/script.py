# SPDX-License-Identifier: GPL-2.0-only
"""What a guest is told: an experiment and an arm become commands for its init. Pure.

The commands are those of images/init.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from testbed.experiment import PAGE, Experiment, GuestSpec

# A line that is typed at a terminal has 4,095 characters at most.
_HELD_IN_A_LINE = 200


@dataclass(frozen=True)
class Script:
    """`set_up` makes the guest ready for the workload, `run` starts it."""

    set_up: tuple[str, ...]
    run: str


def script(experiment: Experiment, arm: str, seed: int | str) -> Script:
    """All that the guest of one trial is told."""
    run = experiment.workload.run(experiment.guest.memory, seed, experiment.kept_files)
    return Script(tuple(_set_up(experiment, arm)), run)


def _set_up(experiment: Experiment, arm: str) -> Iterator[str]:
    guest, workload = experiment.guest, experiment.workload
    settings = dict(_settings(experiment, arm))
    # How zram compresses is fixed with its size.
    early = {path: value for path, value in settings.items() if path.startswith("/sys/block/zram")}
    for path, value in early.items():
        yield f"set {path} {value}"
    if guest.swap:
        yield f"swap {guest.swap}"
    if workload.needs_disk:
        yield "disk"
    if workload.load and workload.load.files_are_mapped:
        # One page a fault, or a touch would map its neighbours and their touches be no faults.
        yield f"set /sys/kernel/debug/fault_around_bytes {PAGE}"
    # Steps of a gentle ramp may have the same whole MiB: to go on as before is no change.
    changes = (next(same) for _, same in itertools.groupby(experiment.memory_targets, key=lambda to: to[1]))
    held = [f"{at}={(guest.memory - size) // PAGE}" for at, size in changes]
    for first in range(0, len(held), _HELD_IN_A_LINE):
        yield f"hold {','.join(held[first : first + _HELD_IN_A_LINE])}"
    if experiment.phases:
        starts = (f"{name}={round(at * 1000)}" for name, at in experiment.phases.items())
        yield f"phases {','.join(starts)}"
    if experiment.sample:
        yield f"sample {max(1, round(experiment.sample * 1000))}"
    for path, value in settings.items():
        if path not in early:
            yield f"set {path} {value}"
    if experiment.tracepoints:
        yield "tally"


def _settings(experiment: Experiment, arm: str) -> Iterator[tuple[str, int | str]]:
    """Paths and values that init writes: an arm's have the last word."""
    settings = _of_guest(experiment.guest)
    for given in (experiment.guest, experiment.arms[arm]):
        settings |= {f"/proc/sys/{name.replace('.', '/')}": value for name, value in given.sysctl.items()}
        settings |= {f"/sys/{name}": value for name, value in given.sysfs.items()}
    yield from settings.items()


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
