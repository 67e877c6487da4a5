# SPDX-License-Identifier: GPL-2.0-only
"""What an experiment comes to, without a source, a compiler or a guest."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.experiment import Experiment, load
from testbed.guest.shape import by_hand
from testbed.host.errors import SpecError
from testbed.kernel import build
from testbed.kernel.patch import Change, Patch
from testbed.terminal.progress import Watcher
from testbed.trials import pool, prepare
from testbed.trials.lab import ThisMachine
from testbed.verbs import explain
from testbed.verbs.request import ExperimentRequest
from tests.unit.recorded import EXPERIMENT, experiment_data

CORES = 2
THREE_ARMS = EXPERIMENT.with_name("overhead.yaml")


@dataclass(frozen=True)
class Source:
    label: str


@dataclass(frozen=True)
class Plan:
    """As much of a kernel's plan as is told."""

    key: str
    source: Source
    patches: tuple[Patch, ...]
    directory: Path

    @property
    def patched(self) -> tuple[str, ...]:
        return tuple(patch.label for patch in self.patches)

    @property
    def patches_sha256(self) -> dict[str, str]:
        return {patch.name: hashlib.sha256(patch.data).hexdigest() for patch in self.patches}


def patch(name: str, **other: Any) -> Patch:
    changes = (Change("mm/vmscan.c", "mm/vmscan.c", 3, 1, ()),)
    whole = {"changes": changes, "subject": f"mm: {name}", "strip": 1, **other}
    return Patch(name=name, path=Path(f"{name}.patch"), where=name, data=b"", diff=b"", **whole)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Keys of kernels that are in the cache: the names of their patches."""
    keys: set[str] = set()

    def plans(experiment: Experiment, cache: Path, _progress: Callable[[str], None]) -> dict[str, Plan]:
        label = experiment.kernel.debian or ""
        return {
            name: Plan(
                "+".join([label, *arm.patches]),
                Source(label),
                tuple(map(patch, arm.patches)),
                cache / "kernels" / ("+".join(arm.patches) or "stock"),
            )
            for name, arm in experiment.arms.items()
        }

    monkeypatch.setattr(prepare, "plans", plans)
    monkeypatch.setattr(build, "published", lambda plan: plan if plan.key in keys else None)
    monkeypatch.setattr(build, "command", lambda plan: ["make", f"KEY={plan.key}"])
    monkeypatch.setattr(pool, "jobs_for", lambda _shape: CORES)
    monkeypatch.setattr("os.cpu_count", lambda: CORES)
    return keys


def lines(path: Path = EXPERIMENT, *, commands: bool = False, **options: Any) -> list[str]:
    request = explain.ExplainRequest(ExperimentRequest(path, **options), commands)
    return list(explain.explain(request, ThisMachine(Path("/cache")), Watcher()))


def test_the_experiment_of_the_repository(built: set[str]) -> None:
    told = lines()
    assert told[0] == "reclaim-capture: 2 arms x 8 seeds = 16 trials"
    assert told[1] == "  source: linux-source-6.1, fragments guest reclaim"
    assert [line for line in told if line.startswith("  arm ")] == [
        "  arm unpatched: instrumentation",
        "  arm patched: instrumentation, reclaim-capture",
    ]
    assert told.count("    to be built") == 2
    assert not any("make KEY" in line or "qemu-system" in line for line in told)
    experiment = load(EXPERIMENT)
    for arm in experiment.arms:
        for command in prepare.guest_commands(experiment, arm):
            assert f"    guest: {command}" in told
    assert sum("set /proc/sys/vm/reclaim_capture" in line for line in told) == 1
    told = lines(commands=True)
    assert "    to be built: make KEY=linux-source-6.1+instrumentation" in told
    machine = next(line for line in told if line.startswith("  machine: "))
    assert "-smp 8 -m 512M" in machine and "/cache/kernels/instrumentation/vmlinux" in machine
    assert "icount" in machine


def own(tmp_path: Path, **workload: Any) -> Path:
    said = {"name": "x", "kernel": {"debian": "linux-source-6.1"}, "arms": {"a": {}, "b": {}}}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**said, "workload": workload}))
    return path


def test_what_cannot_be_brought_is_said_before_a_source_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "plans", lambda *_: pytest.fail("the source was looked at"))
    (tmp_path / "t.sh").write_text("#!/bin/sh\n")
    files = ["./t.sh:/etc/", "./t.sh:/lib", "./t.sh:."]
    with pytest.raises(SpecError) as raised:
        lines(own(tmp_path, command=["sh", "-c", "ls -l /etc /lib"], files=files))
    told = [line for line in str(raised.value).splitlines() if "workload.files" in line]
    assert len(told) == 3 and told[0].startswith(f"{tmp_path}/x.yaml: workload.files: ")


def test_what_takes_half_the_memory_is_said(built: set[str], tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as big:
        big.truncate(70 << 20)
    told = lines(own(tmp_path, command=["true"], files=["./big:/data/big"]))
    assert "  note: 70 MiB of the guest's 128M are taken by what comes along (/data/big ...)" in told
    with (tmp_path / "big").open("wb") as big:
        big.truncate(128 << 20)
    with pytest.raises(SpecError, match=r"workload\.files: 128 MiB come along, and .* has 128M for all"):
        lines(own(tmp_path, command=["true"], files=["./big:/data/big"]))


def test_what_an_arms_kernel_is_told_is_shown(built: set[str], tmp_path: Path) -> None:
    said = experiment_data()
    said["arms"]["unpatched"]["command_line"] = ["transparent_hugepage=always", "quiet"]
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    told = lines(path, commands=True)
    assert [line for line in told if line.startswith("    kernel: ")] == [
        "    kernel: transparent_hugepage=always quiet"
    ]
    assert "transparent_hugepage=never transparent_hugepage=always" not in told[-2]
    assert told[-2].startswith("  machine: ") and "smp transparent_hugepage=always quiet'" in told[-2]


def test_what_is_applied_is_shown_by_commit(built: set[str]) -> None:
    told = lines()
    assert told[told.index("  arm patched: instrumentation, reclaim-capture") :][1:3] == [
        "    patch: mm: instrumentation (mm/vmscan.c: 0 hunks, +3 -1)",
        "    patch: mm: reclaim-capture (mm/vmscan.c: 0 hunks, +3 -1)",
    ]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"subject": ""}, "x (mm/vmscan.c: 0 hunks, +3 -1)"),
        ({"strip": 0}, "mm: x (mm/vmscan.c: 0 hunks, +3 -1, by -p0)"),
        (
            {"changes": tuple(Change(None, f"{n}.c", 1, 0, ()) for n in range(5))},
            "mm: x (0.c, 1.c, 2.c and 2 more: 0 hunks, +5 -0)",
        ),
        (
            {"changes": (Change("mm/a.c", "mm/a.c", 0, 0, ()),)},
            "mm: x (mm/a.c: 0 hunks, +0 -0); changes nothing that is compiled",
        ),
        (
            {"changes": (Change("Documentation/mm/x.rst", "Documentation/mm/x.rst", 1, 0, ()),)},
            "mm: x (Documentation/mm/x.rst: 0 hunks, +1 -0); changes nothing that is compiled",
        ),
    ],
)
def test_a_patch_in_a_line(other: dict[str, Any], line: str) -> None:
    assert explain.applied(patch("x", **other)) == line


def test_what_is_built_is_shown_where_it_is(built: set[str]) -> None:
    built |= {"linux-source-6.1+instrumentation", "linux-source-6.1+instrumentation+reclaim-capture"}
    told = lines()
    assert "    built: /cache/kernels/instrumentation/vmlinux" in told
    assert not any("to be built" in line for line in told)
    assert told[-1].endswith("on this machine, all kernels are built")


def seconds(told: list[str]) -> float:
    words = re.match(r"time: about (?:(\d+) h )?(?:(\d+) min ?)?(?:(\d+) s)? ?on this machine", told[-1])
    assert words, told[-1]
    hours, minutes, rest = (int(word or 0) for word in words.groups())
    return hours * 3600 + minutes * 60 + rest


def test_two_arms_of_one_kernel_are_built_once(built: set[str]) -> None:
    missing = lines()
    assert missing[-1].endswith(", 2 kernels to be built among it")
    built |= {"linux-source-6.1+instrumentation", "linux-source-6.1+instrumentation+reclaim-capture"}
    trials = 10 * (
        load(EXPERIMENT).workload.length * explain.WALL_PER_VIRTUAL
        + explain.BESIDE_SECONDS["deterministic"]
        + explain.BOOT_SECONDS
    )
    kernels = 2 * explain.CORE_SECONDS_PER_KERNEL / CORES
    assert seconds(lines()) == pytest.approx(trials, abs=60)
    assert seconds(missing) == pytest.approx(trials + kernels, abs=60)


def with_arms(tmp_path: Path, arms: dict[str, Any], **more: Any) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**experiment_data(), "arms": arms, **more}, sort_keys=False))
    return path


def test_arms_that_do_not_differ_are_named(built: set[str], tmp_path: Path) -> None:
    said = "  note: old and placebo are the same kernel, bit for bit, with the same settings"
    arms = {"old": {}, "new": {"sysctl": {"vm.swappiness": 1}}, "placebo": {}}
    told = lines(with_arms(tmp_path, arms))
    assert [line for line in told if line.startswith("  note:")] == [said]
    assert told[-1].endswith(", 1 kernel to be built among it")
    assert not any(line.startswith("  note:") for line in lines())


def test_one_arm_has_nothing_to_be_compared_with(built: set[str], tmp_path: Path) -> None:
    told = lines(with_arms(tmp_path, {"only": {}}, seeds=1))
    assert told[0] == "reclaim-capture: 1 arm x 1 seed = 1 trial"
    assert told[-2].startswith("one arm, and nothing to compare it with: a patch, --base REV ")
    assert not any(line.startswith("one arm") for line in lines())


@pytest.mark.parametrize(("seeds", "rounds"), [(1, 2), (2, 3), (3, 5)])
def test_an_unfinished_round_takes_as_long_as_a_full_one(built: set[str], seeds: int, rounds: int) -> None:
    experiment = load(THREE_ARMS, {"seeds": seeds, "boots": 1})
    each = experiment.workload.length * explain.WALL_PER_VIRTUAL + explain.BESIDE_SECONDS["deterministic"]
    # Three kernels boot once each.
    assert explain.trials_seconds(experiment) == rounds * each + 2 * explain.BOOT_SECONDS


@pytest.mark.parametrize("mode", ["deterministic", "realtime"])
def test_a_guest_has_no_disk_and_no_network(mode: str) -> None:
    shape = dataclasses.replace(prepare.shape_of(load(EXPERIMENT, {"mode": mode})), accel="tcg")
    words = by_hand(shape, "qemu", Path("vmlinux"), Path("initramfs"))
    assert words[words.index("-nic") + 1] == "none"
    assert {"-nodefaults", "-no-user-config"} <= set(words)
    devices = {words[n + 1].split(",")[0] for n, word in enumerate(words) if word == "-device"}
    assert devices == {"virtio-balloon-pci"}
    assert not {"-drive", "-blockdev", "-hda", "-cdrom", "-virtfs", "-fsdev", "-netdev", "-net"} & set(words)


def test_so_much_time_is_what_it_takes(built: set[str]) -> None:
    told = lines(minutes=10)
    assert told[0].endswith(": 2 arms x as many seeds as begin within 10 min 00 s, 200 at most")
    kernels = 2 * explain.CORE_SECONDS_PER_KERNEL / CORES
    assert seconds(told) == pytest.approx(600 + kernels, abs=60)
    # Few seeds are through before.
    assert explain.trials_seconds(load(EXPERIMENT, {"seeds": 2, "minutes": 600})) < 600


def test_real_time_takes_its_own_time(built: set[str]) -> None:
    experiment = load(EXPERIMENT, {"mode": "realtime", "seeds": 2})
    assert explain.trials_seconds(experiment) == 2 * (
        experiment.workload.length + explain.BESIDE_SECONDS["realtime"]
    )
    told = lines(mode="realtime", seeds=2, commands=True)
    assert told[0].endswith("2 arms x 2 seeds = 4 trials")
    machine = next(line for line in told if line.startswith("  machine: "))
    assert "tcg" in machine and "icount" not in machine


def matrix(tmp_path: Path, axes: dict[str, list[Any]]) -> Path:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump({**experiment_data(), "matrix": axes}, sort_keys=False))
    return path


def test_a_matrix_says_its_cells_and_only_what_differs(built: set[str], tmp_path: Path) -> None:
    path = matrix(tmp_path, {"guest.vcpus": [8, 4], "workload.mmap_test.tasks": [16, 4]})
    told = lines(path, commands=True)
    assert told[0] == "reclaim-capture: 2 arms x 8 seeds = 16 trials in each of 4 cells, 64 in all"
    headings = [line for line in told if line.startswith("with ")]
    assert headings == [f"with vcpus={n}, tasks={m}:" for n in (8, 4) for m in (16, 4)]
    # What the first cell has said is not said again.
    assert sum(line.startswith("  arm ") for line in told) == 2
    assert [line.partition("-smp ")[2][:1] for line in told if "  machine:" in line] == ["8", "4", "4"]
    last = told[told.index("with vcpus=4, tasks=4:") :]
    assert any("tasks=4 " in line for line in last) and not any("tasks=16" in line for line in last)
    # The kernels are the same everywhere.
    assert told[-1].endswith(", 2 kernels to be built among it")
    assert seconds(told) == pytest.approx(4 * (seconds(lines()) - 260) + 260, abs=200)


def test_kernels_of_a_matrix_are_counted_once_each(built: set[str], tmp_path: Path) -> None:
    path = matrix(tmp_path, {"kernel.debian": ["linux-source-6.1", "linux-source-6.12"]})
    assert lines(path)[-1].endswith(", 4 kernels to be built among it")
    built.add("linux-source-6.12+instrumentation")
    assert lines(path)[-1].endswith(", 3 kernels to be built among it")
