# SPDX-License-Identifier: GPL-2.0-only
"""Every workload has the signature that docs/workloads.md promises; a program of one's own runs like them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.analysis.parse import Measurement, Task
from testbed.experiment import load
from testbed.experiment.workloads import LOADS
from testbed.host.paths import cache_directory
from testbed.ledger.record import MEASURED
from testbed.trials import prepare
from testbed.trials import trial as trials
from testbed.trials.trial import Attempt
from tests.guest.conftest import SOURCE

# Their kernel is one of its.
pytestmark = pytest.mark.usefixtures("lab")
MODES = ("deterministic", "realtime")


def run(directory: Path, mode: str, workload: Mapping[str, Any], *, seed: int = 1, **guest: Any) -> Attempt:
    """One trial, on a kernel that only has the counters of the instrumentation."""
    data = {
        "name": "workload",
        "kernel": {"debian": SOURCE},
        "arms": {"unpatched": {"patches": ["instrumentation"]}},
        "workload": dict(workload),
        "guest": {"vcpus": 8, "boot_memory": "512M", "memory": "128M", **guest},
        "mode": mode,
        "accel": "auto" if mode == "deterministic" else "tcg",
        "seeds": seed,
    }
    path = directory / "workload.yaml"
    path.write_text(yaml.safe_dump(data))
    ready = prepare.prepare(load(path), cache_directory(), lambda _text: None)
    return trials.run(ready.trials[-1], 1, threading.Event())


def measured(directory: Path, mode: str, workload: Mapping[str, Any], **changes: Any) -> Measurement:
    attempt = run(directory, mode, workload, **changes)
    assert (attempt.record.outcome, attempt.record.detail) == (MEASURED, "")
    return attempt.measurement


class Seen:
    """What a signature is checked on."""

    def __init__(self, measurement: Measurement) -> None:
        assert measurement.counters is not None and measurement.workload is not None
        self.counters = measurement.counters
        self.facts = measurement.workload.facts
        self.tasks = measurement.workload.tasks
        self.stalls = sum(n for name, n in self.counters.items() if name.startswith("allocstall_"))

    def group(self, name: str) -> list[Task]:
        return [task for task in self.tasks if task.group == name]

    def ops(self, name: str) -> int:
        return sum(task.ops for task in self.group(name))


def mmap_test(seen: Seen) -> None:
    main, calm = seen.group("main"), seen.group("bystander")
    assert (len(main), len(calm)) == (8, 2)
    for task in main:
        assert task.ops <= task.minor_faults + task.major_faults <= task.ops + 16
    # Every second task has files.
    assert seen.counters["pgsteal_file"] > 0 and seen.counters["pgsteal_anon"] > 0
    assert seen.stalls > 0
    # A touch a millisecond, and no more.
    assert all(0 < task.ops <= task.ns // 1_000_000 + 1 for task in calm)


def file_read(seen: Seen) -> None:
    assert seen.ops("reader") > 0
    assert seen.counters["pgsteal_file"] > 0
    assert seen.counters["workingset_refault_file"] > 0
    assert seen.counters["pswpout"] < seen.counters["pgsteal_file"] / 10
    # Reading is no fault.
    assert sum(task.minor_faults + task.major_faults for task in seen.tasks) < 100


def file_read_in_order(seen: Seen) -> None:
    assert seen.counters["pgsteal_file"] > 0
    assert seen.counters["pswpout"] < seen.counters["pgsteal_file"] / 10
    # A read is of 16 pages, each of which had to be let go again: most were not there.
    assert seen.counters["pgsteal_file"] > 8 * seen.ops("reader")


def file_write(seen: Seen) -> None:
    # A page may be written to again before it is clean, so it is not one for one.
    assert 0 < seen.counters["nr_dirtied"] <= seen.ops("writer") + 1000
    assert seen.counters["nr_written"] > seen.counters["nr_dirtied"] / 2
    assert seen.counters["pgsteal_file"] > 0


def stutter(seen: Seen) -> None:
    (probe,) = seen.group("probe")
    assert len(seen.group("hog")) == 8
    # At most one a period, and the 16 pages of each are faults.
    assert 0 < probe.ops <= probe.ns // 5_000_000 + 1
    assert 16 * probe.ops <= probe.minor_faults + probe.major_faults <= 17 * probe.ops + 16
    assert seen.counters["pswpout"] > 0
    assert seen.stalls > 0


def fork_storm(seen: Seen) -> None:
    # A child copies 32 pages and gets 32 fresh ones; its parent has 64 to touch.
    assert seen.ops("main") > 0
    assert seen.counters["pgfault"] > 128 * seen.ops("main")
    assert seen.counters["pswpout"] > 0
    assert seen.stalls > 0


def memcg(seen: Seen) -> None:
    assert seen.facts["limit_hits"] > 0
    assert seen.counters["pgsteal_anon"] > 0 and seen.counters["pswpout"] > 0
    # The machine as a whole was never short of memory.
    assert seen.stalls == 0
    assert seen.counters["pgscan_direct"] == seen.counters["pgscan_kswapd"] == 0
    assert seen.ops("unlimited") > seen.ops("limited") > 0


def small_pages(seen: Seen) -> None:
    assert seen.facts["huge"] == seen.counters["thp_fault_alloc"] == 0
    assert seen.facts["areas"] == seen.ops("main") > 0
    # All areas but those that somebody was in the midst of at the end.
    assert seen.counters["pgfault"] >= 512 * (seen.ops("main") - len(seen.tasks))
    assert seen.counters["pswpout"] > 0


def huge_pages(seen: Seen) -> None:
    # Filling is over when the counters are read.
    assert 0 < seen.facts["huge"] <= seen.facts["areas"] == seen.ops("main")
    assert seen.counters["thp_fault_alloc"] == seen.facts["huge"]
    assert seen.counters["thp_fault_alloc"] + seen.counters["thp_fault_fallback"] == seen.facts["areas"]


def swap_thrash(seen: Seen) -> None:
    # How many there are in 0.3 s of real time is the host's to say.
    assert seen.counters["pswpin"] > 0 and seen.counters["pswpout"] > 0
    faults = sum(task.major_faults for task in seen.tasks)
    assert 0 < faults < seen.ops("main")
    # About one page a fault.
    assert seen.counters["pswpin"] > faults / 2


def no_thrashing(seen: Seen) -> None:
    assert seen.ops("main") > 0
    assert seen.counters["pswpin"] == seen.counters["pswpout"] == 0
    assert sum(task.major_faults for task in seen.tasks) == 0


SIGNATURES: dict[str, tuple[dict[str, Any], Callable[[Seen], None]]] = {
    "mmap_test": ({"mode": "mixed", "tasks": 8, "bystanders": 2}, mmap_test),
    "file_read": ({}, file_read),
    "file_read-sequential": ({"order": "sequential"}, file_read_in_order),
    "file_write": ({}, file_write),
    "stutter": ({}, stutter),
    "fork_storm": ({}, fork_storm),
    "memcg": ({}, memcg),
    "high_order": ({}, small_pages),
    "high_order-thp": ({}, huge_pages),
    "swap_thrash": ({}, swap_thrash),
    "swap_thrash-fits": ({"footprint": 0.5}, no_thrashing),
}


def test_no_workload_is_left_out() -> None:
    assert {name.partition("-")[0] for name in SIGNATURES} == set(LOADS)


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("mode", MODES)
def test_a_workload_has_its_signature(tmp_path: Path, mode: str, name: str) -> None:
    keys, check = SIGNATURES[name]
    workload = {name.partition("-")[0]: {"seconds": 0.3, **keys}}
    thp = {"thp": "always"} if name.endswith("-thp") else {}
    check(Seen(measured(tmp_path, mode, workload, **thp)))


# --- programs of one's own -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_program_of_ones_own_comes_with_its_libraries(tmp_path: Path, mode: str) -> None:
    source, program = tmp_path / "wave.c", tmp_path / "wave"
    source.write_text(
        "#include <math.h>\n#include <stdio.h>\n#include <stdlib.h>\n"
        'int main(int argc, char **argv) { printf("%d %.3f\\n", argc, cos(atof(argv[1]))); return 0; }\n'
    )
    subprocess.run(["gcc", "-o", program, source, "-lm"], check=True, timeout=60)
    (tmp_path / "data").write_text("of mine\n")
    # A script needs no libraries; what it calls does.
    script = tmp_path / "both"
    script.write_text("#!/bin/sh\nwave $1 && cat /data/mine\n")
    script.chmod(0o755)
    files = [str(script), str(program), f"{tmp_path}/data:/data/mine"]
    found = measured(tmp_path, mode, {"command": ["both", "0"], "files": files, "seconds": 1})
    assert found.user and found.workload is None
    assert found.output == "2 1.000\nof mine\n"


def test_a_program_that_takes_no_seed_starts_at_another_moment(tmp_path: Path) -> None:
    script = tmp_path / "seed"
    script.write_text("#!/bin/sh\necho $SEED\n")
    script.chmod(0o755)
    waits = {}
    for seed in (1, 2):
        workload = {"command": ["seed"], "files": [str(script)], "seconds": 1}
        found = measured(tmp_path, "deterministic", workload, seed=seed)
        assert found.output == f"{seed}\n"
        assert found.samples and found.sampling
        waits[seed] = found.samples["ns"][0] - found.sampling["booted_ns"]
    assert 0 < abs(waits[1] - waits[2]) < 10_000_000


def test_a_program_of_busybox_and_a_disk(tmp_path: Path) -> None:
    words = ["dd", "if=/dev/zero", "of=/mnt/x", "bs=64k", "count=256"]
    found = measured(tmp_path, "deterministic", {"command": words, "disk": True, "seconds": 1})
    assert "256+0 records out" in found.output
    assert found.counters is not None and found.counters["nr_dirtied"] >= 4096


def test_a_program_that_fails_is_no_measurement(tmp_path: Path) -> None:
    record = run(tmp_path, "deterministic", {"command": ["false"], "seconds": 1}).record
    assert record.outcome == "failed"
    assert "status=1" in record.detail
