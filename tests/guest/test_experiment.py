# SPDX-License-Identifier: GPL-2.0-only
"""Whole experiments on real guests, through the command line."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import cli
from testbed.analysis.metrics import METRICS
from testbed.experiment import load
from testbed.host import process
from testbed.kernel import build
from testbed.ledger.record import MEASURED
from testbed.trials import prepare
from testbed.trials import trial as trials
from tests.guest.conftest import BUILDS, Lab, repository_data
from tests.helpers import cpu_seconds


def experiment(directory: Path, arms: Sequence[str] = ("unpatched", "early"), **changes: Any) -> Path:
    """The repository's experiment, made smaller."""
    data = repository_data()
    # Of all modes of the patch, which share a kernel.
    modes = repository_data("modes")["arms"]
    data["arms"] = {arm: modes[arm] for arm in arms}
    # What is asked of few seeds, one boot can answer.
    data["boots"] = 1
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    path = directory / "experiment.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def workload(**changes: Any) -> dict[str, Any]:
    return {"mmap_test": {"mode": "anon", "tasks": 16, "seconds": 1, "footprint": 1.0, **changes}}


def test_the_patch_does_away_with_misses(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.kernels
    monkeypatch.chdir(tmp_path)
    arms = ("unpatched", "off", "early", "fallback")
    path = experiment(tmp_path, arms, seeds=1, workload=workload(seconds=0.5))
    assert cli.main(["compare", "--json", str(path)]) == 0
    result = json.loads(capsys.readouterr().out)
    metrics = {arm: result["arms"][arm]["metrics"] for arm in arms}
    value = {arm: {name: found["values"]["1"] for name, found in metrics[arm].items()} for arm in arms}
    for arm in ("unpatched", "off"):
        assert value[arm]["misses"] > 0
        assert value[arm]["captures"] == 0
    # Before the free lists are tried there is nothing to miss; as a fallback, only before the drain.
    assert value["early"]["misses"] == 0
    assert 0 < value["early"]["captures_used"] <= value["early"]["tries"]
    assert value["fallback"]["misses"] >= value["fallback"]["captures_used"] > 0
    for arm in ("early", "fallback"):
        assert value[arm]["misses_drained"] == 0
        assert value[arm]["captures"] == value[arm]["captures_used"] + value[arm]["captures_unused"]
    # Counter and tracepoint agree.
    for arm in arms:
        assert result["arms"][arm]["trace"]["count"] == value[arm]["misses"]
    assert result["arms"]["unpatched"]["trace"]["first"][0].endswith("comm mmap_test")
    assert set(metrics["unpatched"]) <= {metric.name for metric in METRICS}

    # A second time everything is there.
    began = cpu_seconds()
    assert cli.main(["compare", str(path)]) == 0
    assert cpu_seconds() - began < 10
    captured = capsys.readouterr()
    assert "4 already there, 0 to run" in captured.err
    assert "failed at first after reclaim" in captured.out
    assert (
        (tmp_path / "results" / "reclaim-capture" / "report.md").read_text().startswith("# reclaim-capture")
    )


def run_once(lab: Lab, tmp_path: Path, **changes: Any) -> tuple[Any, Any]:
    loaded = load(experiment(tmp_path, seeds=1, mode="realtime", accel="tcg", **changes))
    ready = prepare.prepare(loaded, lab.cache, lambda _text: None)
    attempt = trials.run(ready.trials[0], 1, threading.Event())
    return attempt.record, attempt.measurement


def test_mapped_files_are_reclaimed_and_read_again(lab: Lab, tmp_path: Path) -> None:
    record, measurement = run_once(lab, tmp_path, workload=workload(mode="file"))
    assert (record.outcome, record.detail) == (MEASURED, "")
    assert measurement.counters["workingset_refault_file"] > 0
    # Of other programs, some memory.
    assert measurement.counters["pswpout"] < 1000
    # Every touch is one fault: readahead may have brought the page, but nobody has mapped it.
    for task in measurement.workload.tasks:
        faults = task.minor_faults + task.major_faults
        assert task.ops <= faults <= task.ops + 16


def test_every_anonymous_touch_is_a_fault(lab: Lab, tmp_path: Path) -> None:
    record, measurement = run_once(lab, tmp_path, workload=workload(tasks=4))
    assert record.outcome == MEASURED
    assert record.memory["balloon"] == 128 << 20
    for task in measurement.workload.tasks:
        assert sum(task.histogram.values()) == task.ops
        assert task.ops <= task.minor_faults + task.major_faults <= task.ops + 16


def test_memory_changes_in_the_midst_of_a_run_in_real_time(lab: Lab, tmp_path: Path) -> None:
    step = {"step": {"to": "112M", "at": 0.5}}
    record, measurement = run_once(lab, tmp_path, guest={"balloon": step}, workload=workload())
    assert record.outcome == MEASURED
    (target,) = measurement.targets
    assert (target.ns, target.pages) == (500_000_000, 16 * 256)
    # How far it gets until the workload ends is the host's to say.
    assert measurement.samples["held"][0] == 0 < max(measurement.samples["held"]) <= 16 * 256


def test_an_oom_kill_is_a_result(lab: Lab, tmp_path: Path) -> None:
    record, measurement = run_once(lab, tmp_path, guest={"swap": "0M"}, workload=workload(footprint=2))
    assert record.outcome == "oom"
    assert "the OOM killer took mmap_test" in record.detail
    assert "mmap_test" in measurement.oom_victims
    assert any(task.signal == 9 for task in measurement.workload.tasks)


@BUILDS
def test_the_same_inputs_give_the_same_objects_elsewhere(lab: Lab, tmp_path: Path) -> None:
    """On top of another arm's objects, and from nothing. That all together give the same kernel, on another
    machine and at another time, the published hashes hold."""
    before, after = (compiled(lab, tmp_path / "here", arm) for arm in ("unpatched", "patched"))
    assert before["page_alloc"] != after["page_alloc"] and before["vmscan"] != after["vmscan"]
    assert compiled(lab, tmp_path / "x" / "y", "patched") == after


# What the patches change, and what they do not.
OBJECTS = ("page_alloc", "vmscan", "vmstat", "swap", "memory", "oom_kill", "compaction", "shmem")


def compiled(lab: Lab, place: Path, arm: str) -> Mapping[str, bytes]:
    """Objects of an arm's kernel, made in a directory of their own."""
    planned = prepare.plans(lab.experiment, lab.cache, lambda _text: None)[arm]
    if not (place / "src").exists():
        planned.source.checkout(place / "src")
    for path, data in planned.files.items():
        build.put(place / "src" / path, data)
    build.put(place / "obj" / ".config", lab.kernels[arm].config.read_bytes())
    words = [f"-j{os.cpu_count()}", *(f"mm/{name}.o" for name in OBJECTS)]
    process.run(build.kbuild(place, "obj", words), timeout=1800)
    return {name: (place / "obj" / "mm" / f"{name}.o").read_bytes() for name in OBJECTS}
