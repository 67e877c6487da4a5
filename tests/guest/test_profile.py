# SPDX-License-Identifier: GPL-2.0-only
"""Profiles of real guests: exact, and without the guest's noticing."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.analysis import profile
from testbed.analysis.parse import parse
from testbed.analysis.profile import Profile
from testbed.experiment import load
from testbed.host.errors import GuestLost
from testbed.trials import prepare
from testbed.trials import profile as running
from testbed.trials.profile import Wanted
from tests.guest.conftest import Lab
from tests.guest.test_determinism import run
from tests.guest.test_experiment import experiment, workload


def wanted(lab: Lab, directory: Path, **changes: Any) -> tuple[Wanted, bytes]:
    """A trial that has run, and its log."""
    loaded = load(experiment(directory, seeds=1, **{"workload": workload(seconds=0.2), **changes}))
    ready = prepare.prepare(loaded, lab.cache, print)
    chosen = next(trial for trial in ready.trials if trial.arm == "unpatched")
    record, log = run(chosen)
    assert record.outcome == "measured", record.detail
    plan = prepare.plans(loaded, lab.cache, print)["unpatched"]
    return Wanted(chosen, hashlib.sha256(log).hexdigest(), plan), log


def both(of: Wanted) -> tuple[Profile, Profile]:
    """With chains of calls, and with blocks of code. That the log is the same is seen to there."""
    told: list[str] = []
    (stacks,), (blocks,) = (
        running.profiles([of], stacks=stacks, ended=lambda trial: told.append(trial.arm))
        for stacks in (True, False)
    )
    assert len(told) in (0, 2)
    return stacks, blocks


def test_every_instruction_is_counted_and_the_guest_does_not_notice(lab: Lab, tmp_path: Path) -> None:
    of, log = wanted(lab, tmp_path, phases={"one": 0, "two": 0.1})
    stacks, blocks = both(of)
    assert stacks.is_exact and blocks.is_exact and stacks.instructions == blocks.instructions
    said = parse(log).workload
    assert said is not None and stacks.operations == sum(task.ops for task in said.tasks)
    # From the start of the workload's clock until all tasks have ended.
    assert stacks.ended_ns - stacks.began_ns > 0.2e9
    for by in ("task", "cpu", "phase"):
        assert profile.shares(stacks, by) == profile.shares(blocks, by)
    assert profile.shares(stacks, "cpu").keys() == {f"CPU {cpu}" for cpu in range(of.trial.shape.vcpus)}
    in_phases = profile.shares(stacks, "phase")
    # An instruction is a nanosecond. What looks at the phases' borders may come a little late.
    assert in_phases.keys() == {"phase 0", "phase 1"} and 0.1e9 <= in_phases["phase 0"] < 0.11e9
    of_tasks = profile.shares(stacks, "task")
    assert {f"{said.name}/{task.pid}" for task in said.tasks} <= of_tasks.keys()


def test_what_functions_are_said_to_do_is_what_they_did(lab: Lab, tmp_path: Path) -> None:
    of, log = wanted(lab, tmp_path)
    stacks, blocks = both(of)
    names, of_blocks = running.names([of.trial.vmlinux] * 2, {}, [stacks, blocks])
    found = profile.functions(profile.calls(stacks, names))
    assert sum(function.instructions for function in found.values()) == stacks.instructions
    by_code: dict[str, int] = {}
    for code in profile.code(blocks, of_blocks):
        by_code[code.function] = by_code.get(code.function, 0) + code.instructions
    kernel = set(names.names) & found.keys()
    assert len(kernel) > 500
    assert {name: found[name].instructions for name in kernel} == {
        name: by_code.get(name, 0) for name in kernel
    }
    # The kernel and the workload count some of it themselves, from a moment before to a moment after.
    counters, said = parse(log).counters, parse(log).workload
    assert counters and said
    assert found["handle_mm_fault"].calls == pytest.approx(counters["pgfault"], rel=0.001)
    assert found["zram_bvec_rw"].calls == pytest.approx(counters["pswpout"], rel=0.01)
    assert found["fill"].calls == sum(task.ops for task in said.tasks)
    slow = found["try_to_free_pages"]
    assert slow.calls == pytest.approx(
        sum(n for name, n in counters.items() if name.startswith("allocstall")), abs=8
    )
    assert slow.inclusive > 100 * slow.instructions


def test_a_log_that_differs_is_no_profile(lab: Lab, tmp_path: Path) -> None:
    of, _ = wanted(lab, tmp_path)
    with pytest.raises(
        GuestLost, match=r"unpatched seed 1: its log is not that of the result: expected sha256 00,"
    ):
        running.profiles([replace(of, log_sha256="00")], stacks=False, ended=print)
