# SPDX-License-Identifier: GPL-2.0-only
"""One guest at a time: boot, balloon, panic, hang, flood, a shell."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pexpect
import pytest

from testbed.analysis.requests import requests
from testbed.experiment import MiB
from testbed.guest import accel
from testbed.guest.console import Flood
from testbed.guest.live import LiveGuest
from testbed.guest.shape import Shape
from testbed.host.errors import GuestFailed, Hang, Panic
from testbed.wire import frames
from tests.guest.conftest import Lab
from tests.guest.subject import numbers
from tests.guest.test_experiment import experiment
from tests.helpers import children_of, cpu_seconds
from tests.unit.test_guest_faults import FAKE


def test_all_cpus_come_up(lab: Lab) -> None:
    with lab.guest(vcpus=8) as guest:
        ready = guest.boot(60)
    assert ready.fields["release"] == lab.kernels["unpatched"].release
    assert ready.fields["cpus"] == "8"
    assert lab.kernels["unpatched"].release.startswith("6.1.")


def test_the_balloon_takes_exactly_what_is_asked_for(lab: Lab) -> None:
    with lab.guest() as guest:
        guest.boot(60)
        before = int(guest.command("memory", "memory").fields["total_kb"])
        assert guest.balloon(128 * MiB, 60) == 128 * MiB
        after = int(guest.command("memory", "memory").fields["total_kb"])
        assert before - after == 384 * 1024
        guest.balloon(512 * MiB, 60)
        assert int(guest.command("memory", "memory").fields["total_kb"]) == before


def test_qemu_may_start_no_program(lab: Lab) -> None:
    """What else it may not, tests/unit/test_confine.py has of any program."""
    with lab.guest() as guest:
        guest.boot(60)
        (qemu,) = children_of(os.getpid())
        status = dict(line.split(":\t") for line in Path(f"/proc/{qemu}/status").read_text().splitlines())
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        network = Path(f"/proc/{qemu}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in network] == ["lo"]


def test_each_workload_has_the_records_of_its_own_direct_reclaims(lab: Lab) -> None:
    with lab.guest(vcpus=8) as guest:
        guest.boot(60)
        guest.balloon(128 * MiB, 60)
        guest.command("swap 268435456", seconds=60)
        for seed in (1, 2):
            earlier = len(guest.log)
            guest.command(f"run mmap_test mode=anon tasks=16 pages=3072 ms=500 seed={seed}", "end", 120)
            sent = frames(guest.log[earlier:]).contents
            before, after = (numbers(sent[f"vmstat.{when}"].decode()) for when in ("before", "after"))
            went = {name: after[name] - before[name] for name in after}
            records = requests(sent["trace"].decode())
            assert len(records) == went["direct_reclaim_try"] > 0
            assert sum(record.failed for record in records) == went["direct_reclaim_miss"] > 0
            for how in ("pcp", "watermark", "empty"):
                met = sum(record.first == how for record in records)
                assert met == went[f"direct_reclaim_miss_{how}"]
                met = sum(record.second == how for record in records)
                assert met == went[f"direct_reclaim_miss_drained_{how}"]
            assert sum(record.round > 1 for record in records) == went["direct_reclaim_repeat"]
            assert sum(record.drained == 1 for record in records) == went["direct_reclaim_drain"]


def test_a_panic_at_boot_is_told_with_its_last_words(lab: Lab) -> None:
    with lab.guest("rdinit=/bin/false") as guest, pytest.raises(Panic) as caught:
        guest.boot(60)
    assert "Attempted to kill init" in caught.value.message
    assert "Call Trace:" in caught.value.hint
    assert f"-kernel {lab.kernels['unpatched'].vmlinux}" in caught.value.hint
    # It is read to the end, not to the word that was waited for.
    assert b"</TASK>" in guest.log.partition(b"Kernel panic")[2]


def test_a_panic_in_the_midst_of_a_command(lab: Lab) -> None:
    with lab.guest() as guest:
        guest.boot(60)
        with pytest.raises(Panic, match="sysrq triggered crash"):
            guest.command("set /proc/sysrq-trigger c", seconds=30)


def test_a_reset_is_not_taken_for_a_fault_of_the_host(lab: Lab) -> None:
    with lab.guest() as guest:
        guest.boot(60)
        with pytest.raises(Panic, match="reset itself"):
            guest.command("set /proc/sysrq-trigger b", seconds=30)


def test_a_hang_at_boot_ends_at_its_deadline(lab: Lab) -> None:
    began = time.monotonic()
    # An init that only reads.
    with lab.guest("rdinit=/bin/cat", vcpus=1) as guest, pytest.raises(Hang) as caught:
        guest.boot(20)
    assert 20 <= time.monotonic() - began < 30
    assert "Run /bin/cat as init process" in caught.value.hint
    assert "to run it by hand: qemu-system-x86_64" in caught.value.hint


def test_a_flood_is_cut_off_long_before_the_deadline(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    # A quarter of it takes a quarter of the time.
    monkeypatch.setattr("testbed.guest.console.FLOOD_BYTES", 2 * MiB)
    began = cpu_seconds()
    with lab.guest("rdinit=/bin/yes") as guest, pytest.raises(Flood):
        guest.boot(500)
    assert cpu_seconds() - began < 50


def test_a_command_that_cannot_be_done_says_so(lab: Lab) -> None:
    with lab.guest(vcpus=1) as guest:
        guest.boot(60)
        for line in ("set /proc/no/such 1", "swap nonsense", "dance"):
            with pytest.raises(GuestFailed):
                guest.command(line)
        # The guest is none the worse for it.
        assert guest.command("memory", "memory").fields["total_kb"]


def test_nothing_is_left_behind(lab: Lab) -> None:
    with lab.guest(vcpus=1) as guest:
        guest.boot(60)
        assert len(children_of(os.getpid())) == 1
    assert children_of(os.getpid()) == {}


def test_a_kvm_that_opens_but_does_not_run_is_found_out(lab: Lab, tmp_path: Path) -> None:
    broken = tmp_path / "qemu"
    broken.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} stop "$@"\n')
    broken.chmod(0o755)
    kernel = lab.kernels["unpatched"].vmlinux
    chosen = accel.choose(
        "auto", Shape("kvm", 8, 512 * MiB), kernel, lab.image.path, tmp_path, qemu=str(broken)
    )
    assert chosen.name == "tcg"
    if Path("/dev/kvm").exists():
        assert "KVM internal error" in chosen.reason


def test_what_auto_chooses_boots(lab: Lab) -> None:
    kernel = lab.kernels["unpatched"].vmlinux
    # Small, as a probe has ten seconds on a machine that may be busy.
    shape = Shape("kvm", 1, 256 * MiB)
    chosen = accel.choose("auto", shape, kernel, lab.image.path, lab.cache)
    assert chosen.reason
    with LiveGuest(Shape(chosen.name, 1, 256 * MiB), kernel, lab.image.path) as guest:
        guest.boot(60)
    began = cpu_seconds()
    again = accel.choose("auto", shape, kernel, lab.image.path, lab.cache)
    assert (again, cpu_seconds() - began < 2) == (chosen, True)


def test_a_person_gets_a_shell(lab: Lab, tmp_path: Path) -> None:
    assert lab.kernels
    file = experiment(tmp_path, ("unpatched", "early"))
    words = ["-m", "testbed", "boot", "--accel", "tcg", "--arm", "early", str(file)]
    child = pexpect.spawn(sys.executable, words, timeout=60)
    child.expect(rb"[$#] ")
    tracing = "/sys/kernel/tracing/tracing_on"
    child.sendline(f"echo cpus=$(nproc) $(cat /proc/swaps | grep -c zram0) $(cat {tracing})")
    child.expect(rb"cpus=8 1 1\r\n")
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
