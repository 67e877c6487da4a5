# SPDX-License-Identifier: GPL-2.0-only
"""What the machine does when QEMU does not: a real process, real QMP, injected faults."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.experiment import ArmSpec, Deadlines, Experiment, GuestSpec, KernelSpec, MiB
from testbed.experiment.script import script
from testbed.guest.guest import refusal
from testbed.guest.live import LiveGuest
from testbed.guest.qemu import Qemu
from testbed.guest.rendezvous import GuestClock
from testbed.guest.shape import Shape
from testbed.host import process
from testbed.host.errors import GuestFailed, GuestLost, Hang, HostError, Interrupted, Panic
from testbed.ledger.record import LOST, MEASURED
from testbed.trials import trial as trials
from testbed.trials.trial import Trial
from tests.helpers import children_of

FAKE = Path(__file__).parent.parent / "fake_qemu.py"
EXPERIMENT = Experiment(
    name="x",
    kernel=KernelSpec(debian="linux-source-6.1"),
    arms={"a": ArmSpec()},
    guest=GuestSpec(swappiness=60),
)
SHAPE = Shape("tcg", vcpus=8, boot_memory=512 * MiB)


@pytest.fixture
def qemu(tmp_path: Path) -> Callable[[str], str]:
    def make(fault: str) -> str:
        script = tmp_path / fault
        words = shlex.join([sys.executable, str(FAKE), fault])
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        script.chmod(0o755)
        return str(script)

    return make


def make_trial(qemu: str, **deadlines: float) -> Trial:
    return Trial(
        arm="a",
        seed=1,
        vmlinux=Path("/vmlinux"),
        vmlinux_sha256="0",
        initramfs=Path("/initramfs"),
        initramfs_sha256="0",
        shape=SHAPE,
        memory=128 * MiB,
        script=script(EXPERIMENT, "a", 1),
        deadlines=Deadlines(**{"boot": 5.0, "balloon": 0.5, "workload": 5.0, **deadlines}),
        environment=("fake",),
        qemu=Qemu(qemu, "fake"),
    )


@pytest.mark.parametrize(
    ("fault", "outcome", "message"),
    [
        ("none", MEASURED, ""),
        ("not-qmp", LOST, "QMP `greet` failed"),
        ("die-at-start", LOST, "QMP `greet` failed"),
        ("die-at-boot", LOST, "boot: QEMU ended unexpectedly"),
        ("die-in-workload", LOST, "QEMU ended unexpectedly"),
        ("refuse-balloon", LOST, "No balloon device"),
        ("stuck-balloon", "hang", "balloon: 320 MiB of the 128 MiB asked for"),
        ("stop", LOST, "QEMU stopped the machine: internal-error"),
        ("reset", "panic", "the guest reset itself"),
        ("corrupt-frame", LOST, "checksum"),
        ("few-cpus", "failed", "4 of 8 CPUs"),
        ("fail", "failed", "the workload failed: "),
        (
            "refuse-set",
            "failed",
            "refused `sysctl: {vm.swappiness: 60}`: it cannot be changed while the device is in use",
        ),
        ("refuse-sysctl", "failed", "the guest refused `sysctl.vm.x: 1 2`: parameter not found"),
    ],
)
def test_a_fault_becomes_an_outcome_in_time(
    qemu: Callable[[str], str], fault: str, outcome: str, message: str
) -> None:
    began = time.monotonic()
    record = trials.run(make_trial(qemu(fault)), 1, threading.Event()).record
    assert (record.outcome, time.monotonic() - began < 12) == (outcome, True)
    assert message in record.detail
    assert children_of(os.getpid()) == {}


def deterministic(qemu: str, cache: Path, **deadlines: float) -> Trial:
    """A trial that starts from a snapshot."""
    trial = replace(
        make_trial(qemu, **deadlines),
        shape=replace(SHAPE, accel="icount"),
        cache=cache,
        compiled_plugin=Path("/rendezvous.so"),
    )
    taken = cache / "snapshots" / trial.start.key
    taken.parent.mkdir(parents=True, exist_ok=True)
    taken.write_bytes(b"")
    return trial


@pytest.mark.parametrize(
    ("fault", "outcome", "message"),
    [
        ("none", MEASURED, ""),
        # More of the host's time than any deadline, and 31 instructions.
        ("starve", MEASURED, ""),
        ("hang", "hang", "a command: no memory or error within 60 s of the guest's time"),
        ("stall", LOST, "the emulator stood still for 1 s"),
    ],
)
def test_a_deterministic_guest_has_time_of_its_own(
    qemu: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: str,
    outcome: str,
    message: str,
) -> None:
    monkeypatch.setattr("testbed.guest.rendezvous.STOOD_STILL_SECONDS", 1.0)
    trial = deterministic(qemu(fault), tmp_path, boot=0.5, workload=0.5)
    record = trials.run(trial, 1, threading.Event()).record
    assert (record.outcome, record.detail.split("\n")[0]) == (outcome, message)
    assert children_of(os.getpid()) == {}


def test_a_boot_that_hangs_does_so_by_the_guests_time(qemu: Callable[[str], str], tmp_path: Path) -> None:
    trial = deterministic(qemu("hang"), tmp_path, boot=3.0)
    (tmp_path / "snapshots" / trial.start.key).unlink()
    began = time.monotonic()
    record = trials.run(trial, 1, threading.Event()).record
    assert record.detail.startswith("boot: no ready or error within 3 s of the guest's time")
    # It is a fast one: 10^10 instructions in a second.
    assert (record.outcome, time.monotonic() - began < 2.5) == ("hang", True)


@pytest.mark.parametrize(
    "name", ["a,b", "a,,b,offset=1", "a b", "a'b", 'a"b', "file=a", "100%s", "ä€", "a\nb", "#?*[$x]\\", ",x="]
)
def test_directories_may_have_any_name(
    qemu: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is in them is given to QEMU, in whose options a comma has a meaning."""
    place = tmp_path / name
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    trial = replace(deterministic(qemu("none"), place), compiled_plugin=place / "rendezvous.so")
    attempt = trials.run(trial, 1, threading.Event())
    assert (attempt.record.outcome, attempt.record.detail) == (MEASURED, "")
    assert list(place.glob("*.tmp")) == []


@pytest.mark.parametrize(
    ("text", "said", "told"),
    [
        (
            "set /sys/block/zram0/comp_algorithm lzo",
            "x: write error: Device or resource busy",
            "`sysfs: {block/zram0/comp_algorithm: lzo}`: it cannot be changed while the device is in use",
        ),
        (
            "set /proc/sys/vm/no_such 1",
            "/init: line 9: can't create /proc/sys/vm/no_such: nonexistent directory",
            "`sysctl: {vm.no_such: 1}`: this kernel has no such setting; is its option in `kernel.config`?",
        ),
        (
            "ns=414036289 set /proc/sys/vm/swappiness 900",
            "write error: Device or resource busy\nwrite error: Invalid argument\r\n",
            "`sysctl: {vm.swappiness: 900}`: the kernel does not take this value",
        ),
        ("swap 5", "", "`swap 5`: swap 5"),
    ],
)
def test_a_setting_that_is_refused_is_said_with_its_key(text: str, said: str, told: str) -> None:
    assert refusal(f"`{text}`", text, said.encode()) == f"the guest refused {told}"


@pytest.mark.parametrize("fault", ["die-at-start", "die-at-boot", "stop"])
def test_a_lost_guest_tells_what_qemu_said_and_how_to_run_it(qemu: Callable[[str], str], fault: str) -> None:
    record = trials.run(make_trial(qemu(fault)), 1, threading.Event()).record
    said = {"die-at-start": "no such luck", "die-at-boot": "out of luck", "stop": "KVM internal error"}
    assert said[fault] in record.detail
    assert f"to run it by hand: {qemu(fault)}" in record.detail


def test_a_mute_monitor_is_given_up(qemu: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.guest.qmp.COMMAND_SECONDS", 0.5)
    began = time.monotonic()
    with (
        pytest.raises(GuestLost, match="within"),
        LiveGuest(SHAPE, Path("/vmlinux"), Path("/initramfs"), qemu=qemu("mute")),
    ):
        pass
    assert time.monotonic() - began < 10
    assert children_of(os.getpid()) == {}


def test_a_process_that_ignores_quit_and_term_is_killed(
    qemu: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.host.process.GRACE_SECONDS", 0.5)
    with LiveGuest(SHAPE, Path("/vmlinux"), Path("/initramfs"), qemu=qemu("stubborn")) as guest:
        guest.boot(5)
        assert len(children_of(os.getpid())) == 1
    assert children_of(os.getpid()) == {}


def test_an_error_in_the_body_leaves_no_process(qemu: Callable[[str], str]) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        LiveGuest(SHAPE, Path("/vmlinux"), Path("/initramfs"), qemu=qemu("none")) as guest,
    ):
        guest.boot(5)
        raise ZeroDivisionError
    assert children_of(os.getpid()) == {}


def test_cancelling_interrupts_a_wait_at_once(qemu: Callable[[str], str]) -> None:
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        trials.run(make_trial(qemu("stuck-balloon"), balloon=60.0), 1, cancel)
    assert time.monotonic() - began < 5
    assert children_of(os.getpid()) == {}


def test_the_log_is_whole_after_leaving(qemu: Callable[[str], str]) -> None:
    with LiveGuest(SHAPE, Path("/vmlinux"), Path("/initramfs"), qemu=qemu("none")) as guest:
        guest.boot(5)
        guest.command("run mmap_test anon 1 1 64 1", "end", 5)
    assert guest.log.startswith(b"Linux version")
    assert b"#tb:end status=0" in guest.log


def test_silence_is_a_hang_with_the_stage_and_the_deadline(qemu: Callable[[str], str]) -> None:
    with LiveGuest(SHAPE, Path("/vmlinux"), Path("/initramfs"), qemu=qemu("none")) as guest:
        guest.boot(5)
        with pytest.raises(Hang, match=r"`memory`: no elephant or error within 1 s"):
            guest.command("memory", "elephant", 1)


def stop(pid: int) -> None:
    """Stop a process, all of its threads."""
    os.kill(pid, signal.SIGSTOP)
    while process.state(pid) != "T":
        time.sleep(0.01)


def test_a_qemu_that_is_stopped_is_no_hang(
    qemu: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveGuest(SHAPE, Path("/vmlinux"), Path("/initramfs"), qemu=qemu("none")) as guest:
        guest.boot(5)
        (child,) = children_of(os.getpid())
        stop(child)
        threading.Timer(1.5, os.kill, [child, signal.SIGCONT]).start()
        # More than the deadline, of which nothing passes.
        assert guest.command("memory", "memory", 1).name == "memory"
        monkeypatch.setattr("testbed.guest.live.STOOD_STILL_SECONDS", 0.5)
        stop(child)
        try:
            with pytest.raises(GuestLost, match="QEMU was stopped by a signal"):
                guest.command("memory", "memory", 5)
        finally:
            os.kill(child, signal.SIGCONT)


def test_time_in_which_nobody_looks_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger may have the guest stand still for hours, and we may be stopped ourselves."""
    now = 1000.0
    monkeypatch.setattr("testbed.guest.rendezvous.time.monotonic", lambda: now)
    with tempfile.TemporaryFile() as memory:
        clock = GuestClock(memory.fileno())
        deadline = clock.deadline(3.0)
        for look in range(100):
            now += 3600.0
            os.pwrite(memory.fileno(), (look // 50 * 2_500_000_000).to_bytes(8, "little"), 0)
            assert deadline.remaining == 3.0 - look // 50 * 2.5
        for _ in range(200):
            now += 0.25
            assert not deadline.expired
        with pytest.raises(GuestLost, match="the emulator stood still for 120 s"):
            for _ in range(200):
                now += 0.25
                clock.seconds()


def test_what_is_not_found_is_named() -> None:
    with pytest.raises(HostError, match="no-such-qemu: program not found"):
        trials.run(make_trial("no-such-qemu"), 1, threading.Event())


def test_the_kinds_of_errors_are_told_apart() -> None:
    assert issubclass(Panic, GuestFailed)
    assert not issubclass(GuestLost, GuestFailed)
