# SPDX-License-Identifier: GPL-2.0-only
"""Deterministic guests without a guest: which QEMU, what it is told, schedules, manifests and bundles."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import lzma
import os
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.experiment import BalloonSpec, DeadlineSpec, Experiment, MiB
from testbed.guest import qemu, rendezvous
from testbed.guest.accel import Accel
from testbed.guest.deterministic import _HOST_TIME, _without_host_time
from testbed.guest.image import Image
from testbed.guest.qemu import Qemu
from testbed.guest.rendezvous import GuestClock, Rendezvous, wait_until_quiet
from testbed.guest.shape import Plugin, Shape, Wiring, argv
from testbed.guest.snapshot import KEEP, RUN_BYTES, Start, _forget_old
from testbed.host import debian
from testbed.host.debian import Package
from testbed.host.errors import GuestLost, Hang, HostError, SpecError
from testbed.ledger.document import parsed
from testbed.ledger.manifest import Expected, Manifest
from testbed.ledger.plan import Plan
from testbed.ledger.record import MEASURED
from testbed.trials import prepare
from testbed.trials.prepare import Guests, Machine
from testbed.trials.trial import Trial
from testbed.verbs import reproduce
from tests.helpers import cpu_seconds
from tests.unit.recorded import REPOSITORY, edited, manifest_of, plan, record
from tests.unit.test_guest_faults import make_trial

OURS = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"
OLD = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"


def program(directory: Path, version: str, name: str = qemu.QEMU) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in front of PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv(qemu.OVERRIDE, raising=False)
    return directory


def test_the_machines_own_qemu_if_it_is_sound(path: Path, tmp_path: Path) -> None:
    program(path, OURS)
    assert qemu.deterministic(tmp_path, print) == Qemu(qemu.QEMU, OURS)
    assert qemu.deterministic(tmp_path, print).family == "10.0"


def test_a_private_one_if_it_is_not(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(path, OLD)
    fetched = []

    def unpack(deb: Path, root: Path) -> None:
        (root / "usr/bin").mkdir(parents=True, exist_ok=True)
        program(root / "usr/bin", OURS)
        fetched.append(deb)

    monkeypatch.setattr(debian, "fetch_pinned", lambda package, *_: Path(package.name))
    monkeypatch.setattr(debian, "unpack", unpack)
    private = qemu.deterministic(tmp_path / "cache", print)
    assert private.version == OURS
    assert Path(private.program).is_relative_to(tmp_path / "cache")
    assert len(fetched) == len(qemu.PRIVATE[0])
    # It is there now.
    assert qemu.deterministic(tmp_path / "cache", print) == private
    assert len(fetched) == len(qemu.PRIVATE[0])


def test_what_is_named_is_taken_unless_results_are_of_another(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(path, OURS)
    named = program(tmp_path, OLD, "mine")
    monkeypatch.setenv(qemu.OVERRIDE, str(named))
    assert qemu.deterministic(tmp_path, print) == Qemu(str(named), OLD)
    with pytest.raises(HostError, match=r"TESTBED_QEMU is QEMU 7.2, and these results are of QEMU 10.0"):
        qemu.deterministic(tmp_path, print, "10.0")


def test_a_broken_one_of_the_machines_does_not_keep_the_private_one_away(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = path / qemu.QEMU
    broken.write_text("#!/bin/sh\nexit 0\n")
    broken.chmod(0o755)
    monkeypatch.setattr(qemu, "_private", lambda *_: Qemu("private", OURS))
    assert qemu.deterministic(tmp_path, print).program == "private"
    monkeypatch.setenv(qemu.OVERRIDE, str(broken))
    with pytest.raises(HostError, match="`--version` prints nothing"):
        qemu.deterministic(tmp_path, print)


def test_where_none_is_to_be_had_it_is_said_in_a_line(path: Path, tmp_path: Path) -> None:
    program(path, OLD)
    with pytest.raises(HostError) as caught:
        qemu.deterministic(tmp_path, print, "9.2")
    assert caught.value.message == "deterministic guests need QEMU 9.2: this machine has 7.2"


@pytest.mark.parametrize("known", ["http://here/debian-security/", ""])
def test_packages_come_from_releases_and_from_their_security_updates(
    known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "KEYRING", Path(__file__))
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "apt-get").write_text(
        f"#!/bin/sh\ncase $* in\n*indextargets*) echo http://here/debian/ {known};;\n"
        "*download*) echo >x_1_amd64.deb;;\nesac\n"
    )
    (commands / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    assert debian.fetch("x", tmp_path, print).name == "x_1_amd64.deb"
    sources = (tmp_path / "apt/sources.list").read_text()
    assert "http://here/debian/ bookworm main" in sources
    assert f"http://here/debian-security{'/' if known else ''} bookworm-security main" in sources


def test_a_package_that_apt_does_not_download_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "KEYRING", Path(__file__))
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho http://here/debian/\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match=r"linux-source-\.\.\.\.: apt has downloaded no package of that name"):
        debian.fetch("linux-source-....", tmp_path / "cache", print)


def test_a_package_that_is_not_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deb = tmp_path / "x_1_amd64.deb"
    asked = []

    def fetch(package: str, *_: object) -> Path:
        asked.append(package)
        deb.write_bytes(b"deb")
        return deb

    monkeypatch.setattr(debian, "fetch", fetch)
    right = Package("x", "1", hashlib.sha256(b"deb").hexdigest())
    assert debian.fetch_pinned(right, tmp_path, print) == deb
    with pytest.raises(HostError, match=r"x_1_amd64.deb: sha256 is .*, not 00"):
        debian.fetch_pinned(dataclasses.replace(right, sha256="00"), tmp_path, print)
    assert asked == ["x=1", "x=1"]
    assert not deb.exists()


def test_nothing_asynchronous_reaches_an_icount_guest() -> None:
    shape = Shape("icount", 8, 512 * MiB)
    beside = Plugin(Path("/a,b.so"), {"in": 5, "out": 6})
    wiring = Wiring(3, {"run": Path("/r")}, (Plugin(Path("/p.so"), {"fd": 4}), beside), incoming=True)
    assert wiring.fds == (3, 4, 5, 6)
    words = " ".join(argv(shape, "qemu", Path("/k"), Path("/i"), wiring))
    for part in (
        "tcg,thread=single -icount shift=0,sleep=off",
        "-rtc base=2026-01-01,clock=vm -seed 1",
        "ioeventfd=off",
        "maxcpus=1 idle=poll nokaslr",
        "-fw_cfg name=opt/testbed/run,file=/r",
        "-plugin file=/p.so,fd=4 -plugin file=/a,,b.so,in=5,out=6",
        "-incoming defer",
    ):
        assert part in words
    realtime = " ".join(argv(dataclasses.replace(shape, accel="tcg"), "q", Path("k"), Path("i"), Wiring(3)))
    assert "icount" not in realtime and "plugin" not in realtime and "incoming" not in realtime


def start(**changes: Any) -> Start:
    shape = Shape("icount", 8, 512 * MiB)
    given = Start(shape, Path("/k"), "1", Path("/i"), "2", 128 * MiB, ("swap 1",), Qemu("q", OURS), OURS)
    return dataclasses.replace(given, **changes)


def test_a_snapshot_is_known_by_what_it_depends_on() -> None:
    assert start(vmlinux=Path("/elsewhere"), qemu=Qemu("elsewhere", OLD)).key == start().key
    others = [
        start(vmlinux_sha256="9"),
        start(initramfs_sha256="9"),
        start(memory=96 * MiB),
        start(setup=()),
        start(booted_by=OLD),
        start(shape=Shape("icount", 4, 512 * MiB)),
        start(shape=Shape("icount", 8, 512 * MiB, "quiet")),
    ]
    assert len({other.key for other in [start(), *others]}) == 1 + len(others)


@given(st.lists(st.text("abc 19/", min_size=1, max_size=40), max_size=8))
def test_what_a_trial_is_told_has_the_size_that_the_guest_knows(lines: list[str]) -> None:
    told = start().given(*lines)
    assert len(told["run"]) == RUN_BYTES
    assert told["run"].decode().splitlines()[: len(lines)] == lines
    assert told["balloon"] == str((512 - 128) * 256).encode()
    assert told["setup"] == b"swap 1\n"


def test_old_snapshots_are_forgotten_and_nothing_else(tmp_path: Path) -> None:
    for number in range(KEEP + 3):
        for suffix in ("", ".log.gz", ".lock"):
            path = tmp_path / f"{number:032x}{suffix}"
            path.write_bytes(b"")
            os.utime(path, (number, number))
    # Of somebody who is taking one, or was killed while doing so.
    (tmp_path / "tmpdraft").mkdir()
    os.utime(tmp_path / "tmpdraft", (0, 0))
    _forget_old(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in left if len(name) == 32] == [f"{n:032x}" for n in range(3, KEEP + 3)]
    assert len([name for name in left if name.endswith(".log.gz")]) == KEEP
    assert len([name for name in left if name.endswith(".lock")]) == KEEP + 3
    assert "tmpdraft" in left


def test_two_may_forget_old_snapshots_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(KEEP + 5):
        (tmp_path / f"{number:032x}").write_bytes(b"")
        os.utime(tmp_path / f"{number:032x}", (number, number))
    is_file = Path.is_file

    def taken_away_meanwhile(path: Path) -> bool:
        found = is_file(path)
        if path.name == f"{0:032x}":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", taken_away_meanwhile)
    _forget_old(tmp_path)
    assert len(list(tmp_path.iterdir())) == KEEP


def test_of_the_hosts_clock_nothing_is_left_in_a_snapshot() -> None:
    head, tail = b"...\x04\0\0\0\0", b"\x05\x0ctimer/icount..."
    name = b"\x05timer" + bytes(4) + b"\0\0\0\x02"
    saved = [
        head + name + ticks + bytes(8) + clock + tail
        for ticks, clock in ((b"\n2345678", b"abcdefgh"), (b"x" * 8,) * 2)
    ]
    cleaned = {_HOST_TIME.sub(_without_host_time, one, count=1) for one in saved}
    assert cleaned == {head + name + bytes(24) + tail}


# --- schedules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "targets"),
    [
        ({"step": {"to": "96M", "at": 0.5}}, [(500, 96)]),
        ({"step": {"to": "96M", "at": 2}}, []),
        ({"ramp": {"to": "96M", "at": 0.1, "over": 0.04}}, [(120, 112), (140, 96)]),
        (
            {"oscillate": {"to": "96M", "at": 0.2, "period": 0.5}},
            [(200, 96), (450, 128), (700, 96), (950, 128)],
        ),
    ],
)
def test_memory_as_a_function_of_time(schedule: dict[str, Any], targets: list[tuple[int, int]]) -> None:
    found = BalloonSpec.model_validate(schedule).targets(128 * MiB, 1.0)
    assert list(found) == [(at, size * MiB) for at, size in targets]


@given(
    st.sampled_from(["ramp", "oscillate"]),
    st.integers(48, 512),
    st.floats(0, 3),
    st.floats(0.02, 3),
)
def test_a_schedule_stays_within_its_bounds(kind: str, to: int, at: float, length: float) -> None:
    extra = {"over" if kind == "ramp" else "period": length}
    spec = BalloonSpec.model_validate({kind: {"to": f"{to}M", "at": at, **extra}})
    targets = list(spec.targets(128 * MiB, 2.0))
    assert all(min(to, 128) * MiB <= size <= max(to, 128) * MiB and size % MiB == 0 for _, size in targets)
    assert [when for when, _ in targets] == sorted(when for when, _ in targets)
    assert all(at * 1000 - 1 <= when <= 2000 for when, _ in targets)


# --- the rendezvous ---------------------------------------------------------------------------------


def test_a_rendezvous_has_a_deadline_and_an_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, tempfile.TemporaryFile() as memory:
        place = Rendezvous(ours, GuestClock(memory.fileno()), lambda: None)
        with pytest.raises(Hang, match="did not come to the rendezvous within 0 s of the guest's time"):
            place.wait(0)
        theirs.send(b"b" + (0x1234).to_bytes(8, "little") + bytes(8))
        place.wait(5)
        # It stands there until it is let go.
        assert place.address == 0x1234 and place.here()
        place.break_at(7, 3)
        place.release()
        assert not place.here()
        assert theirs.recv(100) == b"b" + (7).to_bytes(8, "little") + (3).to_bytes(8, "little")
        assert theirs.recv(100)[:1] == b"g"
        theirs.close()
        with pytest.raises(GuestLost, match="QEMU ended"):
            place.wait(5)


def test_a_process_that_never_sleeps_is_not_waited_for_for_ever() -> None:
    with pytest.raises(GuestLost, match="did not get quiet"):
        wait_until_quiet(os.getpid(), 0.1)
    began = time.monotonic()
    wait_until_quiet(1, 30)
    assert time.monotonic() - began < 29


def test_a_process_that_has_ended_is_not_waited_for() -> None:
    child = subprocess.Popen(["true"])
    # A zombie, until somebody asks for its status.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(GuestLost, match="QEMU ended at the rendezvous"):
        wait_until_quiet(child.pid, 30)
    child.wait()
    with pytest.raises(GuestLost, match="QEMU ended at the rendezvous"):
        wait_until_quiet(child.pid, 30)


# --- manifests and bundles ----------------------------------------------------------------------------


def test_the_first_line_that_differs_is_shown() -> None:
    assert reproduce.first_difference(b"a\nb\nc", b"a\nB\nc") == "line 2:\n  expected 'b'\n  got      'B'"
    assert reproduce.first_difference(b"a", b"a\nb") == "line 2:\n  expected nothing\n  got      'b'"
    assert "\\x1b" in reproduce.first_difference(b"\x1b[2J\xff", b"")


def ran_by(accelerator: str) -> Plan:
    facts = {"accelerator": {"name": accelerator, "reason": ""}, "qemu": OURS, "qemu_family": "10.0"}
    return edited(plan(["a"]), lambda data: data["provenance"].update(facts))


def test_only_what_is_deterministic_and_has_ended_goes_into_a_manifest() -> None:
    measured = record("a", 1, log_sha256="h")
    manifest = reproduce.manifest(ran_by("icount"), [measured], Path("r"))
    assert manifest.trials == (Expected(trial="a-1", arm="a", seed=1, outcome=MEASURED, log_sha256="h"),)
    assert (manifest.qemu_family, manifest.booted_by) == ("10.0", OURS)
    with pytest.raises(SpecError, match=r"r: its guests ran in real time .kvm."):
        reproduce.manifest(ran_by("kvm"), [measured], Path("r"))
    for outcome in ("lost", "hang"):
        with pytest.raises(SpecError, match="r: no trial of it has ended"):
            reproduce.manifest(ran_by("icount"), [record("a", 1, outcome)], Path("r"))


def tar(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_json", ".json"))
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a manifest"),
        (b"{}", "not a manifest"),
        (b'{"schema": 99}', "a manifest of version 99"),
        (b"\xff\xfe", "not a manifest"),
        (json.dumps({"schema": 1, "experiment": {}, "trials": []}).encode(), "not a manifest"),
        (tar(x=b"y"), "not a bundle: there is no manifest.json in it"),
        (tar(manifest_json=b"[]"), "not a manifest"),
        (tar(__x=b"evil")[:-20], "not a"),
    ],
)
def test_a_file_that_is_neither_is_refused_in_a_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(SpecError) as caught:
        reproduce.load(path, tmp_path, tmp_path / "scratch", print)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", ".."])
def test_nothing_of_a_bundle_lands_outside(tmp_path: Path, name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        archive.addfile(tarfile.TarInfo(name))
    path, scratch = tmp_path / "file", tmp_path / "a" / "scratch"
    path.write_bytes(out.getvalue())
    scratch.mkdir(parents=True)
    with pytest.raises(SpecError, match="file: not a bundle: there is "):
        reproduce.load(path, tmp_path, scratch, print)
    assert list(scratch.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_bundle_has_regular_files_only(tmp_path: Path, kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        entry = tarfile.TarInfo("vmlinux.a")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    (tmp_path / "file").write_bytes(out.getvalue())
    (tmp_path / "scratch").mkdir()
    with pytest.raises(SpecError, match=r"not a bundle: there is 'vmlinux\.a' in it"):
        reproduce.load(tmp_path / "file", tmp_path, tmp_path / "scratch", print)
    assert list((tmp_path / "scratch").iterdir()) == []


PUBLISHED = REPOSITORY / "experiments" / "reclaim-capture.manifest.json"


def test_a_package_of_a_manifest_is_asked_for_in_the_version_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {kernel["source"] for kernel in json.loads(PUBLISHED.read_text())["kernels"].values()}
    measured = sources.pop().replace(" ", "=")

    def replaced(experiment: Experiment, *_: object, **__: object) -> None:
        assert experiment.kernel.debian == measured and measured.startswith("linux-source-6.1=6.1.")
        raise HostError("it is")

    monkeypatch.setattr(prepare, "prepare", replaced)
    with pytest.raises(HostError, match="it is"):
        reproduce.load(PUBLISHED, tmp_path, tmp_path, print)


@pytest.mark.parametrize("source", ["linux-source-6.1 -oDir=/", "x", 5])
def test_a_version_that_is_none_is_refused_in_a_line(tmp_path: Path, source: object) -> None:
    said = json.loads(PUBLISHED.read_text())
    for kernel in said["kernels"].values():
        kernel["source"] = source
    (tmp_path / "m.json").write_text(json.dumps(said))
    with pytest.raises(SpecError, match=r"m\.json: not a manifest: ") as caught:
        reproduce.load(tmp_path / "m.json", tmp_path, tmp_path, print)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "key", ["qemu_family", "booted_by", "initramfs_sha256", "kernels", "trials", "experiment"]
)
def test_a_manifest_that_lacks_something_is_refused_in_a_line(tmp_path: Path, key: str) -> None:
    said = json.loads(PUBLISHED.read_text())
    for bad in ({k: v for k, v in said.items() if k != key}, said | {key: 5}, said | {key: {"patched": 1}}):
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps(bad))
        with pytest.raises(SpecError, match=r"manifest\.json: not a manifest: .") as caught:
            reproduce.load(path, tmp_path, tmp_path, print)
        assert len(str(caught.value).splitlines()) == 1


def deterministic_trial(manifest: Manifest, arm: str, seed: int) -> Trial:
    """A trial of a manifest, as a machine would run it on which its kernels are."""
    experiment = manifest.experiment
    depends_on = prepare.environment(manifest.qemu_family, manifest.booted_by)
    machine = Machine(prepare.shape_of(experiment), Qemu("q", OURS), Accel("icount", ""), depends_on)
    guests = Guests(Image(Path("/i"), manifest.initramfs_sha256), machine, Path("/cache"))
    digest = manifest.kernels[arm].vmlinux_sha256
    return prepare.trial(experiment, arm, seed, guests, vmlinux=Path("/k"), sha256=digest)


def test_published_ids_stay_whatever_the_deadlines_are() -> None:
    published = parsed(Manifest, PUBLISHED.read_text())
    assert published.experiment.deadlines == DeadlineSpec()
    for deadlines in (DeadlineSpec(), DeadlineSpec(boot=120.0, balloon=60.0), DeadlineSpec(workload=11.0)):
        experiment = published.experiment.model_copy(update={"deadlines": deadlines})
        manifest = published.model_copy(update={"experiment": experiment})
        assert [deterministic_trial(manifest, t.arm, t.seed).id for t in manifest.trials] == [
            expected.trial for expected in published.trials
        ]


@pytest.mark.parametrize("name", [rendezvous.BUNDLED, "rendezvous.so"])
def test_a_plugin_that_speaks_otherwise_is_left_in_its_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small_bundle(tmp_path / "it.testbed", plugin=name)
    (tmp_path / "files").mkdir()
    monkeypatch.setattr(qemu, "deterministic", lambda *_: Qemu("q", OURS))
    (trial,) = reproduce.load(tmp_path / "it.testbed", tmp_path, tmp_path / "files", print).trials
    plugin = tmp_path / "files" / name
    assert trial.compiled_plugin == (plugin if name == rendezvous.BUNDLED else None)


def small_bundle(
    path: Path,
    change: Callable[[dict[str, bytes]], object] = lambda files: None,
    plugin: str = rendezvous.BUNDLED,
) -> Path:
    """A bundle of one trial; `change` the files, by name, after their hashes are in the manifest."""
    names = ["initramfs", "vmlinux.patched", "vmlinux.unpatched", "snapshot.unpatched.1", plugin]
    files = {name: name.encode() for name in names}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    published = parsed(Manifest, PUBLISHED.read_text())
    kernels = {
        arm: kernel.model_copy(update={"vmlinux_sha256": digests[f"vmlinux.{arm}"]})
        for arm, kernel in published.kernels.items()
    }
    changes = {"kernels": kernels, "initramfs_sha256": digests["initramfs"]}
    ours = published.model_copy(update=changes)
    first = deterministic_trial(ours, "unpatched", 1)
    expected = Expected(trial=first.id, arm="unpatched", seed=1, outcome=MEASURED, log_sha256="h")
    manifest = ours.model_copy(update={"trials": (expected,)}).bundled(digests).text().encode()
    packed = {reproduce.MANIFEST: manifest, **files}
    change(packed)
    path.write_bytes(tar(**packed))
    return path


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(qemu, "deterministic", lambda *_: Qemu("q", OURS))
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_what_is_to_be_run_and_what_of_is_said(tmp_path: Path, scratch: Path) -> None:
    path = small_bundle(tmp_path / "it.testbed")
    assert reproduce.load(path, tmp_path, scratch, print).made_of == (
        "kernels, initramfs, snapshots and rendezvous.3.so, which is code that QEMU runs as you, "
        f"out of {path}"
    )


@pytest.mark.parametrize("first", [True, False])
def test_the_manifest_of_a_bundle_may_be_anywhere_in_it(tmp_path: Path, scratch: Path, first: bool) -> None:
    def move(files: dict[str, bytes]) -> None:
        files |= {} if first else {reproduce.MANIFEST: files.pop(reproduce.MANIFEST)}

    path = small_bundle(tmp_path / "it.testbed", move)
    assert len(reproduce.load(path, tmp_path, scratch, print).trials) == 1


def unlist(files: dict[str, bytes], name: str) -> None:
    """Take a file out of the manifest, not out of the bundle."""
    manifest = json.loads(files[reproduce.MANIFEST])
    del manifest["files"][name]
    files[reproduce.MANIFEST] = json.dumps(manifest).encode()


def list_another(files: dict[str, bytes], name: str) -> None:
    manifest = json.loads(files[reproduce.MANIFEST])
    manifest["files"][name] = hashlib.sha256(b"x").hexdigest()
    files[reproduce.MANIFEST] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: unlist(files, rendezvous.BUNDLED), "does not list 'rendezvous.3.so', which is in it"),
        (lambda files: files.update({"extra": b"x"}), "its manifest does not list 'extra', which is in it"),
        (lambda files: unlist(files, "vmlinux.patched"), "does not list 'vmlinux.patched'"),
        (lambda files: files.update({rendezvous.BUNDLED: b"x"}), "rendezvous.3.so in it is not what the man"),
        (lambda files: files.pop("snapshot.unpatched.1"), "there is no snapshot.unpatched.1 in it"),
        (lambda files: list_another(files, "../etc/passwd"), "not a manifest: files.../etc/passwd"),
        (lambda files: list_another(files, "/etc/passwd"), "not a manifest: files./etc/passwd"),
        (lambda files: list_another(files, ".."), "not a manifest: files..."),
    ],
)
def test_nothing_runs_that_the_manifest_of_a_bundle_does_not_name(
    tmp_path: Path, scratch: Path, change: Callable[[dict[str, bytes]], object], message: str
) -> None:
    path = small_bundle(tmp_path / "it.testbed", change)
    with pytest.raises(SpecError) as caught:
        reproduce.load(path, tmp_path, scratch, print)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def entry(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a file in a tar file, whatever follows."""
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    return made.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entry("vmlinux.a", 1 << 60), "it unpacks to more than 2 GiB"),
        (entry("vmlinux.a", 3 << 30), "it unpacks to more than 2 GiB"),
        (entry("x", 1 << 33, tarfile.GNUTYPE_LONGNAME) + bytes(1 << 20), "a header of 8589934592 bytes"),
        (entry("x", 1 << 33, tarfile.XHDTYPE) + bytes(1 << 20), "a header of 8589934592 bytes"),
        (entry("x", 512, tarfile.GNUTYPE_LONGNAME) * 9000, "not a bundle, or damaged: "),
        (b"".join(entry(f"a{n}", 0) for n in range(10_003)), "it unpacks to more than"),
    ],
)
def test_a_bundle_that_would_fill_memory_or_disk_ends_early(
    tmp_path: Path, scratch: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "it.testbed"
    path.write_bytes(lzma.compress(content + bytes(1024), preset=0))
    began = cpu_seconds()
    with pytest.raises(SpecError, match=f"it.testbed: .*{message}"):
        reproduce.load(path, tmp_path, scratch, print)
    assert cpu_seconds() - began < 10 and not any(scratch.iterdir())


@pytest.mark.parametrize("at", range(0, 1000, 50))
def test_a_bundle_that_is_cut_or_flipped_anywhere_is_refused_in_a_line(
    tmp_path: Path, scratch: Path, at: int
) -> None:
    path = small_bundle(tmp_path / "it.testbed")
    whole = path.read_bytes()
    place = len(whole) * at // 1000
    for spoilt in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
        path.write_bytes(spoilt)
        with pytest.raises(SpecError, match=r"it\.testbed: ") as caught:
            reproduce.load(path, tmp_path, scratch, print)
        assert len(str(caught.value).splitlines()) == 1


def test_a_bundle_is_not_written_over_a_directory(tmp_path: Path) -> None:
    for target in (tmp_path, Path()):
        with pytest.raises(SpecError, match="is a directory"):
            reproduce.bundle(tmp_path / "result", target, "", tmp_path, print)


def test_a_trial_is_chosen_by_id_or_by_arm_and_seed() -> None:
    trial = make_trial("qemu")
    repeat = reproduce.Repeat(manifest_of("a", record("a", 1)), (trial,), "kernels")
    assert reproduce.only(repeat, trial.id).trials == reproduce.only(repeat, "a:1").trials == (trial,)
    with pytest.raises(SpecError, match=r"there is no trial `a:2`: .* .a:1."):
        reproduce.only(repeat, "a:2")
