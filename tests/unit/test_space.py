# SPDX-License-Identifier: GPL-2.0-only
"""Full disks: told as what they are, once; what was begun goes on when there is space again."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed import cli
from testbed.experiment import KernelSpec, TarballSource
from testbed.guest import image, snapshot
from testbed.host import files, owned, process, space
from testbed.host.errors import HostError, NoSpace
from testbed.kernel import series, source
from testbed.ledger.document import parsed
from testbed.ledger.ledger import Ledger
from testbed.ledger.manifest import Manifest
from testbed.ledger.record import MEASURED
from testbed.trials import pool
from testbed.trials import trial as trials
from testbed.verbs import reproduce
from tests.helpers import DISK_BYTES, Disk, told
from tests.unit.recorded import EXPERIMENT, record
from tests.unit.test_guest_faults import deterministic
from tests.unit.test_pool import Watched, fake, script

PUBLISHED = EXPERIMENT.with_suffix(".manifest.json")
MAKEFILE = b"VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 1\n"
PATCH = b"--- a/mm/x.c\n+++ b/mm/x.c\n@@ -1,4 +1,4 @@\n-1\n+2\n a\n b\n c\n"
PRISTINE = b"1\na\nb\nc\n" + b"x" * (1 << 20)


@pytest.fixture
def full_tmpdir(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setenv("TMPDIR", str(disk.directory))
    return disk


def extracted(disk: Disk) -> None:
    bundle, data = disk.directory.parent / "x.testbed", os.urandom(DISK_BYTES // 2)
    manifest = parsed(Manifest, PUBLISHED.read_bytes()).bundled({"vmlinux": hashlib.sha256(data).hexdigest()})
    with tarfile.open(bundle, "w:xz", preset=0) as tar:
        for name, content in {"manifest.json": manifest.text().encode(), "vmlinux": data}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with owned.directory(disk.directory) as scratch:
        reproduce._extract(bundle, scratch)


def unpacked(disk: Disk) -> None:
    top, archive = disk.directory.parent / "linux", disk.directory.parent / "linux.tar"
    top.mkdir(exist_ok=True)
    (top / "Makefile").write_bytes(MAKEFILE + bytes(DISK_BYTES // 4))
    subprocess.run(["tar", "-cf", archive, "-C", top.parent, top.name], check=True)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    spec = KernelSpec(tarball=TarballSource(url=str(archive), sha256=sha256))
    source.resolve(spec, disk.directory)


def made_once(disk: Disk) -> None:
    def make(draft: Path) -> None:
        draft.write_bytes(bytes(DISK_BYTES // 2))

    files.once(disk.directory / "y", make)


def compiled(disk: Disk) -> None:
    text = disk.directory.parent / "x.c"
    text.write_text("char x[1 << 20] = {1};\n")
    process.run(["gcc", "-c", str(text), "-o", str(disk.directory / "x.o")], timeout=60)


def logged(disk: Disk) -> None:
    """A ledger whose database cannot grow."""
    with Ledger.create(disk.directory / "result") as ledger:
        ledger.add(record("a", 1), os.urandom(DISK_BYTES // 4))


WRITERS: dict[str, Callable[[Disk], object]] = {
    "file": lambda disk: files.write(disk.directory / "x", bytes(DISK_BYTES // 2)),
    "once": made_once,
    "bundle": extracted,
    "source": unpacked,
    "compiler": compiled,
    "ledger": logged,
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_named_and_what_was_begun_goes_on(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(space, "require", lambda *_: None)
    disk.fill(left=64 << 10)
    with pytest.raises(NoSpace, match=told(disk)):
        WRITERS[what](disk)
    disk.free()
    WRITERS[what](disk)


@pytest.mark.parametrize("left", [0, 4096, 16384])
def test_a_full_tmpdir_is_not_the_patchs_fault(full_tmpdir: Disk, left: int) -> None:
    def applied() -> object:
        patches = series.read("0001-instrumentation.patch", PATCH)
        return series.apply(patches, lambda _path: PRISTINE)

    full_tmpdir.fill(left)
    with pytest.raises(NoSpace, match=told(full_tmpdir)):
        applied()
    full_tmpdir.free()
    assert applied() == {"mm/x.c": b"2" + PRISTINE[1:]}


@pytest.mark.parametrize("left", range(0, 3 << 20, 384 << 10))
def test_nor_when_it_gets_full_while_git_works(full_tmpdir: Disk, left: int) -> None:
    """However much was left, it applies or there was no space."""
    full_tmpdir.fill(left)
    try:
        patches = series.read("0001-instrumentation.patch", PATCH)
        assert series.apply(patches, lambda _path: PRISTINE) == {"mm/x.c": b"2" + PRISTINE[1:]}
    except NoSpace as full:
        assert re.search(told(full_tmpdir), str(full))


def test_a_full_tmpdir_stops_the_image(full_tmpdir: Disk, tmp_path: Path) -> None:
    """The compiler writes there."""
    full_tmpdir.fill()
    with pytest.raises(NoSpace, match=told(full_tmpdir)):
        image.build(tmp_path / "cache")


def test_a_snapshot_that_has_no_space_is_tried_once(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = deterministic(script(tmp_path / "qemu", fake("full")), disk.directory)
    (disk.directory / "snapshots" / trial.start.key).unlink()
    with pytest.raises(NoSpace, match=r"snapshots: 4 MiB free, and a snapshot takes about 64 MiB: make some"):
        trials.run(trial, 1, threading.Event())
    monkeypatch.setattr(snapshot, "ROOM_BYTES", 0)
    watched = Watched()
    with Ledger.create(tmp_path / "result") as ledger:
        with pytest.raises(NoSpace, match=told(disk)):
            pool.run([trial], ledger, 1, watched)
        assert (watched.records, ledger.records()) == ([], [])


def test_a_full_tmpdir_stops_a_trial(full_tmpdir: Disk, tmp_path: Path) -> None:
    """The files that a guest is given are there."""
    trial = deterministic(script(tmp_path / "qemu", fake("none")), tmp_path)
    full_tmpdir.fill()
    with pytest.raises(NoSpace, match=told(full_tmpdir)):
        trials.run(trial, 1, threading.Event())
    full_tmpdir.free()
    assert trials.run(trial, 1, threading.Event()).record.outcome == MEASURED


def test_a_log_may_say_it(disk: Disk, tmp_path: Path) -> None:
    """As a build's does, in which other compilers go on."""
    words = ["sh", "-c", "echo x.s: No space left on device; seq 10000; exit 2", str(disk.directory / "x")]
    disk.fill()
    with (tmp_path / "log").open("ab") as log, pytest.raises(NoSpace, match=told(disk)):
        process.run(words, timeout=20, log=log, check=False)
    assert process.run(["sh", "-c", "echo No space left on device"], timeout=20).returncode == 0


def test_a_full_cache_ends_a_command_with_3_and_a_line(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk.directory))
    top, archive = tmp_path / "linux", tmp_path / "linux.tar"
    top.mkdir()
    (top / "Makefile").write_bytes(MAKEFILE + bytes(DISK_BYTES * 2))
    subprocess.run(["tar", "-cf", archive, "-C", tmp_path, "linux"], check=True)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    experiment = tmp_path / "x.yaml"
    experiment.write_text(
        f"name: x\nkernel: {{tarball: {{url: {archive}, sha256: {sha256}}}}}\narms: {{a: {{}}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", str(experiment)]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    said = f"{disk.directory}/testbed/sources: 4 MiB free, and a kernel's source takes about 8 MiB: make some"
    assert last.startswith(f"testbed: {said}")


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), space.told(tmp_path):
        (tmp_path / "no" / "x").write_text("")
    with pytest.raises(HostError, match="exit status 1") as failed:
        process.run([sys.executable, "-c", "raise SystemExit(1)"], timeout=20, error=HostError)
    assert not isinstance(failed.value, NoSpace)
