# SPDX-License-Identifier: GPL-2.0-only
"""A program of the user's in a guest: what it finds there, and that it cannot make up what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.ledger.record import MEASURED
from tests.guest.conftest import Lab
from tests.guest.test_experiment import run_once

# What would forge a number, hide one or end the guest, as commands of a shell.
FORGERIES = (
    r"printf '\n#tb:end status=0 frames=0\n' > /dev/ttyS0",
    r"printf '\n#tb:end status=0 frames=0\n' > /dev/console",
    r"printf '\n#tb:end status=0 frames=0\n' > /dev/kmsg",
    r"printf '\n#tb:end status=0 frames=0\n' >&0",
    r"printf '\n#tb:end status=0 frames=0\n' > /proc/1/fd/1",
    "echo pgfault 0 > /run/result/vmstat.after",
    "mv /run/result /run/results",
    "rm /bin/tell",
    "cp /bin/busybox /bin/tell",
    "mv /bin /bins",
    "kill -9 1",
    "kill -9 $PPID",
    "echo 1 > /sys/kernel/tracing/tracing_on",
    "echo -1000 > /proc/self/oom_score_adj",
    "echo b > /proc/sysrq-trigger",
    "mount -t tmpfs tmpfs /run",
    "reboot -f",
)


def script(directory: Path, commands: tuple[str, ...]) -> Path:
    """A program that tries commands, and says of each whether it could be done."""
    path = directory / "probe.sh"
    tries = (
        f"if ({command}) 2>/dev/null; then echo 'done: {number}'; fi"
        for number, command in enumerate(commands)
    )
    path.write_text("\n".join(["#!/bin/sh", "id -u", *tries, "echo tried", ""]))
    path.chmod(0o755)
    return path


def program(path: Path, **more: Any) -> Mapping[str, Any]:
    return {"mmap_test": None, "command": [path.name], "files": [str(path)], "seconds": 0.2, **more}


def test_it_cannot_make_up_what_is_measured(lab: Lab, tmp_path: Path) -> None:
    record, measurement = run_once(lab, tmp_path, workload=program(script(tmp_path, FORGERIES)))
    assert (record.outcome, record.detail) == (MEASURED, "")
    assert measurement.output.splitlines() == ["1000", "tried"]
    assert measurement.counters["pgfault"] > 0


def test_it_finds_what_programs_expect(lab: Lab, tmp_path: Path) -> None:
    places = ("/", "/run/", "/tmp/", "/var/tmp/", "/dev/shm/", "/mnt/")
    commands = (
        *(f"echo x > {place}mine && rm {place}mine" for place in places),
        "echo x > here && rm here",
        "echo x | cat /dev/fd/0 >> /dev/stdout",
        "test -z $(cat)",
    )
    record, measurement = run_once(lab, tmp_path, workload=program(script(tmp_path, commands), disk=True))
    assert (record.outcome, record.detail) == (MEASURED, "")
    said = [line for line in measurement.output.splitlines() if line != "x"]
    assert said == ["1000", *(f"done: {number}" for number in range(len(commands))), "tried"]


def test_root_s_programs_may_do_all_of_it(lab: Lab, tmp_path: Path) -> None:
    commands = ("echo 3 > /proc/sys/vm/drop_caches", "echo > /run/result/file.x")
    record, measurement = run_once(lab, tmp_path, workload=program(script(tmp_path, commands), root=True))
    assert (record.outcome, record.detail) == (MEASURED, "")
    assert measurement.output.splitlines() == ["0", "done: 0", "done: 1", "tried"]


def test_root_s_programs_do_not_know_what_marks_begin_with(lab: Lab, tmp_path: Path) -> None:
    lies = (
        FORGERIES[0],
        FORGERIES[1],
        r"printf '\n#tb:frame output 1 00000000\n' > /dev/ttyS0",
        "env | grep NONCE",
    )
    record, measurement = run_once(lab, tmp_path, workload=program(script(tmp_path, lies), root=True))
    assert (record.outcome, record.detail) == (MEASURED, "")
    assert measurement.output.splitlines() == ["0", "done: 0", "done: 1", "done: 2", "tried"]
