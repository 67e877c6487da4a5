# SPDX-License-Identifier: GPL-2.0-only
"""What a guest is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.experiment import load
from testbed.experiment.script import Script, script
from testbed.experiment.workloads import CHUNK_PAGES, HUGE_PAGES, LOADS, share
from testbed.guest.shape import Shape
from testbed.host.paths import joined_file, split_file
from testbed.trials.prepare import with_arguments
from testbed.verbs.kernels import by_hand


def told(tmp_path: Path, arm: dict[str, Any] | None = None, **changes: Any) -> Script:
    data = {"name": "x", "kernel": {"debian": "linux-source-6.1"}, "arms": {"a": arm or {}}, **changes}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(data))
    return script(load(path), "a", 7)


def test_the_least_is_swap_and_the_counters(tmp_path: Path) -> None:
    found = told(tmp_path)
    assert found.set_up == ("swap 268435456", "sample 100")
    assert found.run == "run mmap_test mode=anon tasks=16 pages=3072 bystanders=0 ms=3000 seed=7"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"guest": {"mglru": True}}, "set /sys/kernel/mm/lru_gen/enabled y"),
        ({"guest": {"mglru": False}}, "set /sys/kernel/mm/lru_gen/enabled n"),
        ({"guest": {"swappiness": 60}}, "set /proc/sys/vm/swappiness 60"),
        ({"guest": {"watermark_scale_factor": 10}}, "set /proc/sys/vm/watermark_scale_factor 10"),
        ({"guest": {"thp": "always"}}, "set /sys/kernel/mm/transparent_hugepage/enabled always"),
        ({"guest": {"min_free_kbytes": 4096}}, "set /proc/sys/vm/min_free_kbytes 4096"),
        ({"guest": {"watermark_scale_factor": 100}}, "set /proc/sys/vm/watermark_scale_factor 100"),
        ({"guest": {"sysctl": {"vm.dirty_ratio": 5}}}, "set /proc/sys/vm/dirty_ratio 5"),
        ({"arm": {"sysfs": {"kernel/mm/lru_gen/enabled": "y"}}}, "set /sys/kernel/mm/lru_gen/enabled y"),
        ({"phases": {"calm": 0, "tight": 0.5}}, "phases calm=0,tight=500"),
        ({"sample": 0.025}, "sample 25"),
        ({"workload": {"file_read": {}}}, "disk"),
        ({"workload": {"mmap_test": {"mode": "file"}}}, "set /sys/kernel/debug/fault_around_bytes 4096"),
        ({"workload": {"command": ["true"], "disk": True}}, "disk"),
        ({"guest": {"balloon": {"step": {"to": "96M", "at": 0.5}}}}, "hold 500=8192"),
        ({"tracepoints": True}, "tally"),
    ],
)
def test_what_is_asked_for_is_told(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    assert line not in told(tmp_path).set_up
    assert line in told(tmp_path, **changes).set_up


@pytest.mark.parametrize(
    ("run", "typed"),
    [
        (
            "run mmap_test mode=anon tasks=16 ms=3000 seed=7",
            "mkdir -p /run/result; observe mmap_test mode=anon tasks=16 ms=3000 seed=7",
        ),
        ("run-user 7 usemem -t 4 1g", "mkdir -p /run/result; SEED=7 observe -u usemem -t 4 1g"),
        # init takes words as they are; a shell does not.
        ("run-user 7 x a;b $c *", "mkdir -p /run/result; SEED=7 observe -u x 'a;b' '$c' '*'"),
    ],
)
def test_a_person_can_type_what_init_is_told(run: str, typed: str) -> None:
    assert by_hand(run) == typed


def test_a_gentle_ramp_is_told_where_it_changes_something(tmp_path: Path) -> None:
    found = told(tmp_path, guest={"balloon": {"ramp": {"to": "126M", "over": 0.1}}})
    # At 20, 40, 60, 80 and 100 ms it is 127, 127, 126, 126 and 126 MiB.
    assert "hold 20=256,60=512" in found.set_up


def test_how_zram_compresses_is_set_before_its_size(tmp_path: Path) -> None:
    found = told(tmp_path, {"sysfs": {"block/zram0/comp_algorithm": "lzo", "kernel/mm/x": 1}})
    assert found.set_up == (
        "set /sys/block/zram0/comp_algorithm lzo",
        "swap 268435456",
        "sample 100",
        "set /sys/kernel/mm/x 1",
    )


def test_a_list_is_set_as_it_is(tmp_path: Path) -> None:
    data = {"name": "x", "kernel": {"debian": "linux-source-6.1"}, "arms": {"a": {}, "b": {}}}
    data["guest"] = {"sysctl": {"vm.lowmem_reserve_ratio": "256 256 32 0 0", "vm.dirty_ratio": 5}}
    data["arms"]["b"] = {"sysctl": {"vm.lowmem_reserve_ratio": 9}, "command_line": ["x=1"]}  # type: ignore[index]
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(data))
    experiment = load(path)
    shape = Shape("icount", 1, 512 << 20)
    assert with_arguments(shape, experiment, "a").cmdline == ""
    assert "set /proc/sys/vm/lowmem_reserve_ratio 256 256 32 0 0" in script(experiment, "a", 1).set_up
    # An arm has the last word.
    assert with_arguments(shape, experiment, "b").cmdline == "x=1"
    assert "set /proc/sys/vm/lowmem_reserve_ratio 9" in script(experiment, "b", 1).set_up


def test_an_arm_has_the_last_word(tmp_path: Path) -> None:
    found = told(
        tmp_path, {"sysctl": {"vm.swappiness": 1}}, guest={"swappiness": 2, "sysctl": {"vm.swappiness": 3}}
    )
    assert [line for line in found.set_up if "swappiness" in line] == ["set /proc/sys/vm/swappiness 1"]


def test_no_samples_and_no_swap_are_not_asked_for(tmp_path: Path) -> None:
    found = told(tmp_path, sample=0, guest={"swap": "0M"})
    assert found.set_up == ()


def test_a_command_is_told_seed_and_memory(tmp_path: Path) -> None:
    found = told(tmp_path, workload={"command": ["stress", "--seed={seed}", "{pages}", "{x}"]})
    assert found.run == "run-user 7 testbed-start stress --seed=7 32768 {x}"


@pytest.mark.parametrize("name", LOADS)
def test_every_workload_is_told_time_and_seed_and_its_size(tmp_path: Path, name: str) -> None:
    words = told(tmp_path, workload={name: {"seconds": 0.25}}).run.split()
    assert words[:2] == ["run", name]
    pairs = dict(word.split("=") for word in words[2:])
    assert (pairs["ms"], pairs["seed"]) == ("250", "7")
    assert int(pairs["pages"]) > 0


@pytest.mark.parametrize(
    ("memory", "footprint", "tasks", "unit", "pages"),
    [
        (128 << 20, 1.5, 16, CHUNK_PAGES, 3072),
        (128 << 20, 0.001, 16, CHUNK_PAGES, CHUNK_PAGES),
        (128 << 20, 1.2, 8, HUGE_PAGES, 9 * HUGE_PAGES),
    ],
)
def test_a_share_is_whole_and_never_nothing(
    memory: int, footprint: float, tasks: int, unit: int, pages: int
) -> None:
    assert share(memory, footprint, tasks, unit) == pages


@pytest.mark.parametrize(
    ("text", "here", "there"),
    [
        ("a", "a", None),
        ("a:/b", "a", "/b"),
        ("a:", "a", ""),
        ("a\\:b", "a:b", None),
        ("a\\:b:/c:d", "a:b", "/c:d"),
    ],
)
def test_a_colon_in_a_path_has_a_backslash(text: str, here: str, there: str | None) -> None:
    assert split_file(text) == (here, there)
    assert split_file(joined_file(here, there)) == (here, there)
