# SPDX-License-Identifier: GPL-2.0-only
"""Two recorded console logs, and results that are made of them."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from testbed.analysis.compare import Observation
from testbed.experiment import ArmSpec, Experiment, KernelSpec, MiB
from testbed.experiment.model import PrimarySpec
from testbed.ledger.document import D, parsed
from testbed.ledger.ledger import Ledger
from testbed.ledger.manifest import Expected, Manifest, ManifestKernel
from testbed.ledger.plan import (
    Accelerator,
    GuestFacts,
    Host,
    Initramfs,
    KernelFacts,
    Plan,
    PlannedTrial,
    Provenance,
)
from testbed.ledger.record import MEASURED, Record
from testbed.report.document import ComparisonReport, compared, document
from testbed.trials.trial import Trial

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "tests" / "data"
EXPERIMENT = REPOSITORY / "experiments" / "reclaim-capture.yaml"
# A patch that can be read.
DIFF = "--- a/mm/vmscan.c\n+++ b/mm/vmscan.c\n@@ -1 +1 @@\n-one\n+two\n"

# 6.1.192 under TCG, 16 tasks, 128 MiB, 3 s. After 269 of 401 direct reclaims there was no page at first in
# one, after none in the other. That kernel had records of these alone. All others, and the fields and
# counters that it had not, are made up, so that they fit together.
UNPATCHED = gzip.decompress((DATA / "unpatched.log.gz").read_bytes())
PATCHED = gzip.decompress((DATA / "patched.log.gz").read_bytes())


# What a kernel records of a direct reclaim that gave its task a page at once.
RECORD: dict[str, int | str] = {
    **{"order": 0, "progress": 49, "round": 1, "first": "page", "second": "none", "drained": 0},
    **{"captured": 0, "allocated": 1, "freed": 49, "stolen": 0, "reclaim_ns": 300_000, "wait_ns": 2_000},
    **{"slow_ns": 305_000, "age_ns": 0},
}


def traced(comm: str = "mmap_test", pid: int = 91, **changes: int | str) -> str:
    """A line of the trace: the usual record, but for some fields."""
    said = " ".join(f"{name}={value}" for name, value in (RECORD | changes).items())
    return f"  {comm}-{pid}  [003] .....  5.6: mm_vmscan_direct_reclaim_alloc: {said} gfp_flags=X\n"


HEADER = re.compile(rb"\n#tb:frame (\S+) (\d+) [0-9a-f]{8}\n")


def frame(name: str, body: bytes, prefix: bytes = b"#tb:") -> bytes:
    """A frame as images/src/tell.c makes it."""
    stuffed = re.sub(rb"(?m)^#", b"##", body)
    head = b"\n%sframe %s %d %08x\n" % (prefix, name.encode(), len(stuffed), zlib.crc32(stuffed))
    return head + stuffed + b"\n" + prefix + b"close " + name.encode() + b"\n"


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


def kernel(arm: str, **changes: Any) -> KernelFacts:
    """What a kernel was made of."""
    facts = KernelFacts(
        source="linux 6.1.192",
        source_identity="sha of the source",
        release="6.1.192",
        patches=(arm,),
        diffstat={},
        patches_sha256={arm: f"sha of {arm}.patch"},
        config_sha256="sha of the configuration",
        build_key=f"key of {arm}",
        vmlinux_sha256=f"sha of {arm}",
        tools=("gcc 12.2.0", "GNU ld 2.40"),
    )
    return facts.model_copy(update=changes)


def guest_facts(arms: Iterable[str], **changes: Any) -> GuestFacts:
    """Where trials ran and what with."""
    facts = GuestFacts(
        guest_commands=dict.fromkeys(arms, ()),
        testbed="0123456789ab",
        initramfs=Initramfs(sha256="sha of the initramfs"),
        qemu="QEMU emulator version 7.2.22",
        qemu_family="7.2",
        accelerator=Accelerator(name="tcg", reason="asked for"),
        fallback="",
        kernel_command_lines=dict.fromkeys(arms, "console=ttyS0"),
        host=Host(cpu="A CPU", cores=2, kernel="6.1.0", machine="x86_64"),
    )
    return facts.model_copy(update=changes)


def plan(arms: Iterable[str] = ("unpatched", "patched"), seeds: int = 1, **changes: Any) -> Plan:
    """A plan as prepare.prepare() makes it; `changes` are of its experiment."""
    arms = list(arms)
    experiment = Experiment(
        name="recorded",
        description="What a test recorded.",
        kernel=KernelSpec(tree=Path("/linux")),
        arms={arm: ArmSpec(patches=(arm,)) for arm in arms},
        mode="realtime",
        accel="tcg",
        sample=0,
        seeds=seeds,
    )
    return Plan(
        schema=1,
        experiment=experiment.model_copy(update=changes),
        trials={
            f"{arm}-{seed}": PlannedTrial(arm=arm, seed=seed) for arm in arms for seed in range(1, seeds + 1)
        },
        provenance=Provenance(kernels={arm: kernel(arm) for arm in arms}, **dict(guest_facts(arms))),
    )


def planned(experiment: Experiment, trials: Iterable[Trial]) -> Plan:
    """A plan of an experiment, with these trials."""
    made = {trial.id: PlannedTrial(arm=trial.arm, seed=trial.seed) for trial in trials}
    return plan(experiment.arms).model_copy(update={"experiment": experiment, "trials": made})


def edited(document: D, change: Callable[[Any], object]) -> D:
    """The same, had its JSON been changed so."""
    data = json.loads(document.text())
    change(data)
    return parsed(type(document), json.dumps(data))


def manifest_of(arm: str, record: Record) -> Manifest:
    """A manifest with one trial."""
    expected = {name: getattr(record, name) for name in Expected.model_fields}
    facts = kernel(arm)
    return Manifest(
        schema=1,
        name="recorded",
        qemu_family="10.0",
        booted_by="QEMU emulator version 10.0.2",
        experiment=plan([arm]).experiment,
        initramfs_sha256="sha of the initramfs",
        kernels={arm: ManifestKernel(**{name: getattr(facts, name) for name in ManifestKernel.model_fields})},
        trials=(Expected(**expected),),
    )


def documented(
    plan: Plan, observations: Sequence[Observation], attempts: Sequence[Record] = ()
) -> ComparisonReport:
    """The report of trials, without verdicts."""
    return document(plan, compared(plan, observations), observations, attempts, {})


def write_result(directory: Path, plan: Plan, rows: Iterable[tuple[Record, bytes]]) -> Path:
    """A result directory, through the ledger."""
    with Ledger.create(directory) as ledger:
        ledger.set_plan(plan)
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
    directory: Path, arms: Mapping[str, Sequence[int]], change: Callable[[Any], object] | None = None
) -> Path:
    """A result with so many direct reclaims in seed 1, 2, ... of each arm; `change` its plan."""
    primary = {"direct_reclaims": PrimarySpec(margin=0.05)}
    most = max(map(len, arms.values()))
    made = plan(arms, most, primary=primary, sequential=False)
    kernels = {arm: kernel(arm, release=f"6.1.{len(arm)}") for arm in arms}
    made = made.model_copy(update={"provenance": made.provenance.model_copy(update={"kernels": kernels})})
    if change:
        made = edited(made, change)
    rows = [
        (record(arm, seed), counted(allocstall_movable=count))
        for arm, counts in arms.items()
        for seed, count in enumerate(counts, start=1)
    ]
    return write_result(directory, made, rows)
