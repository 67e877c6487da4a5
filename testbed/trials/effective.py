# SPDX-License-Identifier: GPL-2.0-only
"""What is set in the guests of every arm, read back in one of them.

In a guest of its own, that goes on from where a trial has begun: no trial is told to do anything more.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from testbed.host.errors import HostError
from testbed.ledger.record import LOST, Record
from testbed.trials import trial as trials
from testbed.trials.trial import Trial
from testbed.wire import frames

_PLACES = (
    "/proc/sys/vm",
    "/sys/kernel/mm/transparent_hugepage",
    "/sys/kernel/mm/lru_gen",
    "/sys/module/zswap/parameters",
    "/sys/block/zram0/comp_algorithm",
    "/sys/block/zram0/disksize",
)
# Counters beside the settings, and what only shows what hardware there is.
_NO_SETTING = re.compile(r".*/(full_scans|pages_collapsed|hpage_pmd_size|stats/.*|stat_refresh)")
# Of several values, the one that is chosen.
_CHOSEN = re.compile(r"(?:^|\s)\[(\S+)\](?:\s|$)")
# After these a guest has nothing more to tell.
_DUMB = (LOST, "panic", "hang")


def spokesmen(trials_: Sequence[Trial], records: Mapping[str, Record]) -> Iterator[Trial]:
    """Of every arm a trial that has shown that its kernel boots, if there is one."""
    spoken: set[str] = set()
    for trial in trials_:
        record = records.get(trial.id)
        if trial.arm not in spoken and record and record.outcome not in _DUMB:
            spoken.add(trial.arm)
            yield trial


def read(trial: Trial) -> dict[str, str]:
    """The settings in a guest of a trial's arm: vm.swappiness, kernel/mm/lru_gen/enabled, ... -> value.

    Empty if they cannot be had.
    """
    places = [*_PLACES, *_asked(trial)]
    script = replace(trial.script, run=f"run-user {trial.seed} grep -rs . {' '.join(places)}")
    try:
        attempt = trials.run(replace(trial, script=script), 1, threading.Event())
    except HostError:
        return {}
    return parse(frames(attempt.log).contents.get("output", b"").decode(errors="replace"))


def parse(output: str) -> dict[str, str]:
    """Settings by their names in an experiment, of what grep says: PATH:VALUE."""
    settings: dict[str, str] = {}
    for line in output.splitlines():
        path, colon, value = line.partition(":")
        if colon and path.startswith(("/proc/sys/", "/sys/")) and not _NO_SETTING.fullmatch(path):
            chosen = _CHOSEN.search(value)
            settings.setdefault(_name(path), chosen[1] if chosen else " ".join(value.split()))
    return dict(sorted(settings.items()))


def _name(path: str) -> str:
    if path.startswith("/proc/sys/"):
        return path.removeprefix("/proc/sys/").replace("/", ".")
    return path.removeprefix("/sys/")


def _asked(trial: Trial) -> Iterator[str]:
    """The files that the trial's guest is told to set, but those that are looked at anyway."""
    for line in trial.script.set_up:
        words = line.split()
        if words[0] == "set" and not words[1].startswith(_PLACES):
            yield words[1]
