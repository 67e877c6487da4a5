# SPDX-License-Identifier: GPL-2.0-only
"""What tracepoints tell of a kernel, against the counters that a patch has put into it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.analysis.parse import Measurement
from testbed.experiment import MiB, load
from testbed.ledger.record import MEASURED
from testbed.trials import prepare
from testbed.trials import trial as trials
from testbed.wire import frames
from tests.guest.conftest import BUILDS, Lab, repository_data
from tests.guest.test_determinism import busy
from tests.guest.test_experiment import workload

EXACT = {"tries": "direct_reclaim_try", "misses_drained": "direct_reclaim_miss_drained"}


def measured(lab: Lab, tmp_path: Path, **changes: Any) -> tuple[Measurement, ...]:
    """One measurement a seed, of the first arm."""
    data = repository_data()
    data |= {"arms": {"unpatched": data["arms"]["unpatched"]}, "boots": 1, "seeds": 1, "tracepoints": True}
    data |= changes
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(data))
    found = []
    for trial in prepare.prepare(load(path), lab.cache, lambda _text: None).trials:
        attempt = trials.run(trial, 1, threading.Event())
        assert (attempt.record.outcome, attempt.record.detail) == (MEASURED, "")
        found.append(attempt.measurement)
    return tuple(found)


def tallied(measurement: Measurement) -> Mapping[str, int]:
    assert measurement.tally is not None and measurement.tally["lost"] == 0
    return measurement.tally


@pytest.mark.parametrize("mode", ["anon", "file"])
def test_events_and_counters_agree(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Of mapped files, too, though their readahead gives up at the first failure (__GFP_NORETRY)."""
    for one in measured(lab, tmp_path, seeds=3, workload=workload(mode=mode, seconds=0.5)):
        tally, counted = tallied(one), one.counters
        assert counted is not None and counted["direct_reclaim_miss"] > 20
        for name, counter in EXACT.items():
            assert tally[name] == counted[counter]
        # Not seen is a miss after which there is nothing to drain, or somebody else drains: of 4,539 it
        # was one (docs/stock-kernels.md).
        unseen = counted["direct_reclaim_miss"] - tally["misses"]
        assert 0 <= unseen <= 1 + 0.002 * counted["direct_reclaim_miss"]
        assert tally["repeats"] <= tally["misses_drained"]
        assert tally["freed"] >= tally["thefts"] >= tally["thefts_waiting"] > 0


@BUILDS
def test_a_kernel_without_any_patch_is_measured(lab: Lab, tmp_path: Path) -> None:
    changes = {"arms": {"stock": {}}, "workload": workload(seconds=0.5)}
    (one,) = measured(lab, tmp_path, **changes)
    assert one.counters is not None and EXACT["tries"] not in one.counters
    stalls = sum(n for name, n in one.counters.items() if name.startswith("allocstall_"))
    tally = tallied(one)
    assert stalls >= tally["tries"] > tally["misses"] > tally["misses_drained"]


def test_the_tally_is_as_deterministic_as_all_else(lab: Lab, tmp_path: Path) -> None:
    changes = {"workload": workload(seconds=0.2)}
    first = measured(lab, tmp_path, **changes)
    with busy():
        assert measured(lab, tmp_path, **changes) == first


def test_nothing_is_tallied_unless_asked_for(lab: Lab, tmp_path: Path) -> None:
    (one,) = measured(lab, tmp_path, tracepoints=False, workload=workload(seconds=0.2))
    assert one.complete and one.tally is None


def test_a_guest_without_swap_has_room_for_the_tally(lab: Lab) -> None:
    """Its tables are larger than this guest: they must not count before they are used."""
    with lab.guest() as guest:
        guest.boot(60)
        guest.balloon(112 * MiB, 60)
        guest.command("tally")
        words = "mode=anon tasks=2 ms=200 pages=1024 seed=1"
        assert guest.command(f"run mmap_test {words}", "end").fields["status"] == "0"
    assert b"tries " in frames(guest.log).contents["tally"]
