# SPDX-License-Identifier: GPL-2.0-only
"""The same bytes every time: trials, snapshots, schedules, bundles, and a look at a miss on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.analysis.parse import parse
from testbed.experiment import load
from testbed.guest import snapshot
from testbed.host.errors import Hang, Panic
from testbed.ledger.record import LOST, MEASURED, Record
from testbed.trials import debug, prepare
from testbed.trials import trial as trials
from testbed.trials.debug import GdbStub
from testbed.trials.trial import Trial
from tests.debugger import RIP, RSP, Debugger
from tests.guest.conftest import BUILDS, PUBLISHED, Lab
from tests.guest.test_experiment import experiment, workload
from tests.helpers import children_of, cpu_seconds


@contextlib.contextmanager
def busy(beside: int = 1) -> Iterator[None]:
    """With so many guests, more work than this machine has cores for."""
    words = [sys.executable, "-c", "while True: pass"]
    cores = len(os.sched_getaffinity(0))
    running = [subprocess.Popen(words) for _ in range(cores + 1 - beside)]
    try:
        yield
    finally:
        for child in running:
            child.kill()
            child.wait()


def trial(lab: Lab, directory: Path, seed: int = 1, **changes: Any) -> Trial:
    # A kernel of its own for every arm would be built for nothing.
    loaded = load(experiment(directory, seeds=seed, **{"workload": workload(seconds=0.2), **changes}))
    ready = prepare.prepare(loaded, lab.cache, lambda _text: None)
    return next(t for t in ready.trials if (t.arm, t.seed) == ("unpatched", seed))


def run(trial: Trial) -> tuple[Record, bytes]:
    attempt = trials.run(trial, 1, threading.Event())
    assert (attempt.record.outcome, attempt.record.detail) == (MEASURED, "")
    return attempt.record, attempt.log


def test_directories_of_any_name_give_the_same(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What QEMU is told of a cache and a TMPDIR that have a comma, blanks, quotes and other letters."""
    here = trial(lab, tmp_path)
    place = tmp_path / "a, b,,offset=1 'c' \"d\" 100% é"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    vmlinux, initramfs = (Path(shutil.copy(path, place)) for path in (here.vmlinux, here.initramfs))
    there = dataclasses.replace(here, cache=place, vmlinux=vmlinux, initramfs=initramfs)
    assert run(there)[1] == run(here)[1]
    booted = [cache / "snapshots" / f"{here.start.key}.log.gz" for cache in (place, lab.cache)]
    assert booted[0].read_bytes() == booted[1].read_bytes()


_FIRST: dict[str, tuple[Record, bytes]] = {}


def first(trial: Trial) -> tuple[Record, bytes]:
    """What a trial gave when a test first asked for it."""
    if trial.id not in _FIRST:
        _FIRST[trial.id] = run(trial)
    return _FIRST[trial.id]


def small(lab: Lab, directory: Path) -> Trial:
    """One whose guest boots in half the time."""
    return trial(lab, directory, guest={"vcpus": 2}, workload=workload(mode="file", seconds=0.2))


def what_is_repeated(record: Record) -> Record:
    """A record without what the host's clock, processes and paths have in it."""
    return dataclasses.replace(record, stages={}, started="", command_line="")


@pytest.mark.parametrize("make", [trial, small], ids=["8-anon", "2-file"])
def test_a_trial_gives_the_same_bytes_whatever_else_goes_on(
    lab: Lab, tmp_path: Path, make: Callable[[Lab, Path], Trial]
) -> None:
    chosen = make(lab, tmp_path)
    record, log = first(chosen)
    assert parse(log).complete
    with busy():
        again, same = run(chosen)
    assert same == log
    assert what_is_repeated(again) == what_is_repeated(record)


def test_the_seed_changes_the_run_and_not_the_boot(lab: Lab, tmp_path: Path) -> None:
    chosen = trial(lab, tmp_path)
    other = trial(lab, tmp_path, seed=2)
    assert other.start.key == chosen.start.key
    assert run(other)[1] != first(chosen)[1]


def test_a_snapshot_of_another_boot_leads_to_the_same(lab: Lab, tmp_path: Path) -> None:
    chosen = small(lab, tmp_path)
    there = snapshot.ensure(chosen.start, chosen.plugin, lab.cache, 120)
    with busy():
        mine = snapshot.ensure(chosen.start, chosen.plugin, tmp_path, 120)
    assert there != mine
    assert run(dataclasses.replace(chosen, cache=tmp_path))[1] == first(chosen)[1]
    assert mine.with_suffix(".log.gz").read_bytes() == there.with_suffix(".log.gz").read_bytes()


# Of 160 MiB, which the workload fills 1.2 times over: whoever takes some away has to reclaim it first.
SCHEDULES: dict[str, Any] = {
    "step": {"step": {"to": "128M", "at": 0.1}},
    "ramp": {"ramp": {"to": "128M", "at": 0.1, "over": 0.4}},
    "oscillate": {"oscillate": {"to": "144M", "at": 0.1, "period": 0.8}},
}
# How far behind its schedule memory may be, and how near it has to come.
LATE_SECONDS, NEAR = 0.5, 0.05


def test_memory_follows_its_schedule_under_pressure_every_time_alike(lab: Lab, tmp_path: Path) -> None:
    trials_of, logs = {}, {}
    for name, schedule in SCHEDULES.items():
        (tmp_path / name).mkdir()
        chosen = trial(
            lab,
            tmp_path / name,
            guest={"vcpus": 4, "memory": "160M", "balloon": schedule},
            workload=workload(seconds=1.2, footprint=1.2, tasks=8),
            sample=0.02,
        )
        log = run(chosen)[1]
        found = parse(log)
        assert found.counters and found.counters["direct_reclaim_try"] > 0
        assert found.samples and len(found.targets) > 0
        assert all(t.late is not None and t.late < LATE_SECONDS * 1e9 for t in found.targets), found.targets
        stair = [(0.0, 0), *((target.ns / 1e9, target.pages) for target in found.targets)]
        for seconds, held in zip(found.samples.seconds, found.samples["held"], strict=True):
            past = max(n for n, (at, _) in enumerate(stair) if at <= max(0.0, seconds - LATE_SECONDS))
            wanted = [pages for n, (at, pages) in enumerate(stair) if n >= past and at <= seconds]
            near = NEAR * (160 << 20) / 4096
            assert min(wanted) - near <= held <= max(wanted) + near, (name, seconds, held)
        trials_of[name], logs[name] = chosen, log
    # Side by side, each is work for the others' cores.
    with busy(beside=len(SCHEDULES)), futures.ThreadPoolExecutor(len(SCHEDULES)) as side_by_side:
        again = dict(zip(SCHEDULES, side_by_side.map(run, trials_of.values()), strict=True))
    assert {name: log for name, (_, log) in again.items()} == logs


def test_the_end_of_a_guest_that_resets_itself_is_noticed(lab: Lab, tmp_path: Path) -> None:
    """QEMU's main loop, which has to end QEMU then, stands still while a deterministic guest runs."""
    chosen = trial(lab, tmp_path, guest={"vcpus": 1})
    start = dataclasses.replace(chosen.start, setup=("set /proc/sysrq-trigger b",))
    began = cpu_seconds()
    with pytest.raises(Panic, match="reset itself"):
        snapshot.ensure(start, chosen.plugin, tmp_path, 120)
    assert cpu_seconds() - began < 60


# --- deadlines --------------------------------------------------------------------------------------


def test_a_hang_is_found_after_the_same_time_of_the_guest_on_any_host(lab: Lab, tmp_path: Path) -> None:
    chosen = trial(lab, tmp_path, guest={"vcpus": 1})
    # An init that only reads.
    start = dataclasses.replace(
        chosen.start, shape=dataclasses.replace(chosen.shape, cmdline="rdinit=/bin/cat")
    )
    with (
        busy(),
        pytest.raises(Hang, match="boot: no ready or error within 1 s of the guest's time") as caught,
    ):
        snapshot.ensure(start, chosen.plugin, tmp_path, 1)
    assert "Run /bin/cat as init process" in caught.value.hint


def test_an_emulator_that_stands_still_is_lost_and_one_that_stumbles_is_not(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = small(lab, tmp_path)
    _, undisturbed = first(chosen)
    monkeypatch.setattr("testbed.guest.rendezvous.STOOD_STILL_SECONDS", 4.0)
    ended = threading.Event()

    def stop(seconds: float) -> None:
        """Stop a QEMU whose guest runs, again and again for so long each."""
        while not ended.wait(0.5):
            for qemu in children_of(os.getpid()):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if int(Path(f"/proc/{qemu}/stat").read_text().split()[13]) > os.sysconf("SC_CLK_TCK"):
                        os.kill(qemu, signal.SIGSTOP)
                        ended.wait(seconds)
                        os.kill(qemu, signal.SIGCONT)

    for seconds, outcome in ((1.5, MEASURED), (600.0, LOST)):
        ended.clear()
        with futures.ThreadPoolExecutor(1) as stopping:
            stopping.submit(stop, seconds)
            attempt = trials.run(chosen, 1, threading.Event())
            ended.set()
        assert attempt.record.outcome == outcome
        if outcome == MEASURED:
            assert attempt.log == undisturbed
        else:
            assert "the emulator stood still for 4 s" in attempt.record.detail


def test_a_guest_that_has_halted_is_hung(lab: Lab, tmp_path: Path) -> None:
    """It executes nothing any more, and its clock goes on from timer to timer."""
    chosen = trial(
        lab,
        tmp_path,
        guest={"vcpus": 1},
        workload={"mmap_test": None, "command": ["halt", "-f"], "root": True},
    )
    record = trials.run(chosen, 1, threading.Event()).record
    assert record.outcome == "hang" and "the workload: no end or error" in record.detail


# --- doing a result again --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert lab.kernels
    directory = tmp_path_factory.mktemp("result")
    path = experiment(directory, seeds=1, workload=workload(seconds=0.2))
    assert cli.main(["run", str(path), "--results", str(directory / "r")]) == 0
    return directory / "r"


def test_a_result_is_verified(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(result)]) == 0
    assert "2 of 2 trials gave the same console log, byte for byte" in capsys.readouterr().out


def test_another_log_is_found_out(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--manifest", str(result)]) == 0
    manifest = json.loads(capsys.readouterr().out)
    manifest["trials"][0]["log_sha256"] = "0" * 64
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    assert cli.main(["verify", str(path)]) == 1
    out = capsys.readouterr().out
    assert "seed 1: sha256 of the log: expected 0000" in out
    assert "1 of 2 trials gave the same console log" in out

    manifest["kernels"]["early"]["vmlinux_sha256"] = "f" * 64
    path.write_text(json.dumps(manifest))
    assert cli.main(["verify", str(path)]) == 2
    assert "vmlinux of early is" in capsys.readouterr().err


@BUILDS
def test_the_published_result_is_what_comes_out_here_or_it_is_said_why(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.kernels
    status = cli.main(["verify", str(PUBLISHED), "--trials", "2"])
    captured = capsys.readouterr()
    if status == 0:
        assert "2 of 2 trials gave the same console log" in captured.out
    else:
        # Another compiler, C library, busybox or kernel source than where it was published.
        assert status == 2
        assert re.search("not as it was measured: (vmlinux|initramfs|QEMU)", captured.err)


def test_a_bundle_needs_no_compiler_no_source_and_no_cache(
    lab: Lab,
    result: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator = trial(lab, tmp_path).qemu.program
    bundle = tmp_path / "it.testbed"
    assert cli.main(["bundle", str(result), "-o", str(bundle)]) == 0
    assert bundle.stat().st_size < 16_000_000
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("setpriv", "sh", "dirname", "readlink"):
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("TESTBED_QEMU", str(shutil.which(emulator) or emulator))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli.main(["replay", str(bundle), "--trials", "1"]) == 0
    assert "1 of 1 trials gave the same console log, byte for byte" in capsys.readouterr().out


# --- under gdb ---------------------------------------------------------------------------------------


def test_a_look_at_a_miss_does_not_change_the_run(lab: Lab, tmp_path: Path) -> None:
    chosen = trial(lab, tmp_path, workload=workload(seconds=0.5))
    _, undisturbed = run(chosen)
    count = parse(undisturbed).counters["direct_reclaim_miss"]  # type: ignore[index]
    assert count >= 3
    logs: list[bytes] = []
    with GdbStub(chosen, miss=3) as stub:
        serving = threading.Thread(target=lambda: logs.append(stub.serve()))
        serving.start()
        try:
            with Debugger(stub.port) as debugger:
                assert debugger.ask("?").startswith("T05")
                assert debugger.ask("c").startswith("T05")
                registers = debugger.registers()
                assert registers[RIP] == debug.symbol(chosen, debug.MISS)
                # The stack has the way back into the allocator.
                caller = int.from_bytes(debugger.memory(registers[RSP], 8), "little")
                assert caller >> 32 == 0xFFFFFFFF
                assert debugger.ask("mdead,4") == "E14"
                assert debugger.ask("M1000,1:00") == "E01"
                # Step by step, back into the caller.
                places = []
                for _ in range(12):
                    assert debugger.ask("s").startswith("T05")
                    places.append(debugger.registers()[RIP])
                assert len(set(places)) > 3 and registers[RIP] not in places and caller in places
                # A breakpoint that was not there when the guest began, hit again and again.
                function = debug.symbol(chosen, "try_to_free_pages")
                assert debugger.ask(f"Z0,{function:x},1") == "OK"
                stops = []
                for _ in range(3):
                    assert debugger.ask("c").startswith("T05")
                    stops.append(debugger.registers())
                assert {stop[RIP] for stop in stops} == {function}
                assert len({stop[RSP] for stop in stops}) > 1
                assert debugger.ask(f"z0,{function:x},1") == "OK"
                assert debugger.ask("c") == "W00"
        finally:
            serving.join()
    assert logs == [undisturbed]
