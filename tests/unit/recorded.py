# SPDX-License-Identifier: GPL-2.0-only
"""Two recorded console logs, and results that are made of them."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from testbed.analysis.compare import Observation
from testbed.experiment import MiB
from testbed.ledger.ledger import Ledger
from testbed.ledger.record import MEASURED, Record
from testbed.report.document import compared, document

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "tests" / "data"
EXPERIMENT = REPOSITORY / "experiments" / "reclaim-capture.yaml"

# 6.1.192 under TCG, 16 tasks, 128 MiB, 3 s: 231 misses in the trace of one, none in the other's.
UNPATCHED = gzip.decompress((DATA / "unpatched.log.gz").read_bytes())
PATCHED = gzip.decompress((DATA / "patched.log.gz").read_bytes())


HEADER = re.compile(rb"\n#tb:frame (\S+) (\d+) [0-9a-f]{8}\n")


def frame(name: str, body: bytes) -> bytes:
    """A frame as images/src/tell.c makes it."""
    stuffed = re.sub(rb"(?m)^#", b"##", body)
    head = b"\n#tb:frame %s %d %08x\n" % (name.encode(), len(stuffed), zlib.crc32(stuffed))
    return head + stuffed + b"\n#tb:close " + name.encode() + b"\n"


def span(log: bytes, name: str) -> tuple[int, int]:
    """Where a frame begins and ends, marks and all."""
    for match in HEADER.finditer(log):
        if match[1].decode() == name:
            return match.start(), match.end() + int(match[2]) + len(f"\n#tb:close {name}\n")
    raise AssertionError(f"no frame {name}")


def with_frame(log: bytes, name: str, body: bytes) -> bytes:
    """The log, had the guest sent another body in a frame."""
    begin, end = span(log, name)
    return log[:begin] + frame(name, body) + log[end:]


def without_frame(log: bytes, name: str) -> bytes:
    begin, end = span(log, name)
    return log[:begin] + log[end:]


def record(arm: str, seed: int, outcome: str = MEASURED, detail: str = "", **changes: Any) -> Record:
    """A row of the ledger as a trial on a quiet machine leaves it."""
    made = Record(
        trial=f"{arm}-{seed}",
        arm=arm,
        seed=seed,
        attempt=1,
        outcome=outcome,
        detail=detail,
        memory={"balloon": 128 * MiB, "total": 111378432, "free": 95023104},
        stages={"boot": 1.25, "balloon": 0.1, "workload": 17.0},
        command_line="qemu-system-x86_64 -m 512M",
        started="2026-11-24T05:00:00+00:00",
    )
    return replace(made, **changes)


def plan(arms: Iterable[str] = ("unpatched", "patched"), seeds: int = 1) -> dict[str, Any]:
    """A plan as campaign.prepare() writes it."""
    arms = list(arms)
    kernels = {
        arm: {
            "source": "linux 6.1.192",
            "source_identity": "sha of the source",
            "patches": [arm],
            "patches_sha256": {arm: f"sha of {arm}.patch"},
            "config_sha256": "sha of the configuration",
            "vmlinux_sha256": f"sha of {arm}",
            "tools": ["gcc 12.2.0", "GNU ld 2.40"],
        }
        for arm in arms
    }
    provenance = {
        "kernels": kernels,
        "accelerator": {"name": "tcg", "reason": "asked for"},
        "initramfs": {"sha256": "sha of the initramfs"},
        "qemu": "QEMU emulator version 7.2.22",
        "host": {"cpu": "A CPU", "cores": 2, "kernel": "6.1.0", "machine": "x86_64"},
        "testbed": "0123456789ab",
    }
    return {
        "schema": 1,
        "experiment": {
            "name": "recorded",
            "description": "What a test recorded.",
            "arms": {arm: {"patches": [arm]} for arm in arms},
            "guest": {"vcpus": 8, "boot_memory": 512 * MiB, "memory": 128 * MiB, "swap": 256 * MiB},
            "workload": {"mmap_test": {"mode": "anon", "tasks": 16, "seconds": 3.0, "footprint": 1.5}},
        },
        "trials": {
            f"{arm}-{seed}": {"arm": arm, "seed": seed} for arm in arms for seed in range(1, seeds + 1)
        },
        "provenance": provenance,
    }


def documented(
    said: dict[str, Any], observations: Sequence[Observation], attempts: Sequence[Record] = ()
) -> Any:
    """The document of trials, without verdicts."""
    return document(said, compared(said, observations), observations, attempts, {})


def write_result(directory: Path, document: dict[str, Any], rows: Iterable[tuple[Record, bytes]]) -> Path:
    """A result directory, through the ledger."""
    with Ledger.create(directory) as ledger:
        ledger.set_plan(document)
        for row, log in rows:
            ledger.add(row, log)
    return directory


def pair(directory: Path) -> Path:
    """A result of one seed: both arms measured."""
    rows = [(record("unpatched", 1), UNPATCHED), (record("patched", 1), PATCHED)]
    return write_result(directory, plan(), rows)


def experiment_data() -> Any:
    """The repository's own experiment, as YAML has it."""
    return yaml.safe_load(EXPERIMENT.read_text())


_SHORT = with_frame(UNPATCHED, "trace", b"")
_VMSTAT = {
    when: _SHORT[slice(*span(_SHORT, f"vmstat.{when}"))].split(b"\n", 2)[2].rpartition(b"\n#tb:close")[0]
    for when in ("before", "after")
}


def counted(**counts: int) -> bytes:
    """The unpatched log, without its trace, had the kernel counted so many events in the workload's time."""
    after = _VMSTAT["after"]
    for name, count in counts.items():
        line = re.compile(rb"(?m)^%s (\d+)$" % name.encode())
        began = line.search(_VMSTAT["before"])
        assert began
        after = line.sub(b"%s %d" % (name.encode(), int(began[1]) + count), after)
    return with_frame(_SHORT, "vmstat.after", after)


def measured(
    directory: Path, arms: Mapping[str, Sequence[int]], change: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """A result with so many direct reclaims in seed 1, 2, ... of each arm; `change` its plan."""
    made = plan(arms, seeds=max(map(len, arms.values())))
    made["experiment"] |= {"alpha": 0.05, "sequential": False, "seeds": 12}
    made["experiment"]["primary"] = {"direct_reclaims": {"margin": 0.05}}
    for arm, kernel in made["provenance"]["kernels"].items():
        kernel["release"] = f"6.1.{len(arm)}"
    if change:
        change(made)
    rows = [
        (record(arm, seed), counted(allocstall_movable=count))
        for arm, counts in arms.items()
        for seed, count in enumerate(counts, start=1)
    ]
    return write_result(directory, made, rows)
