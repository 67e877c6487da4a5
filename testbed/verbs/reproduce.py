# SPDX-License-Identifier: GPL-2.0-only
"""Deterministic results done again: what is expected of every trial, and bundles that carry all it takes.

A manifest is the part of a result that fits into git: the experiment, hashes of the kernels, of the
initramfs and of every trial's console log, and the family of QEMU. A bundle is a manifest with the files.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import lzma
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

from pydantic import ValidationError

from testbed.guest import qemu, rendezvous, snapshot
from testbed.guest.accel import Accel
from testbed.guest.image import Image
from testbed.host import owned, space
from testbed.host.errors import SpecError, StoreError
from testbed.host.files import at_most, read, staged
from testbed.host.paths import sha256
from testbed.ledger.document import MOST_BYTES, OtherVersionError, mistake, parsed
from testbed.ledger.ledger import LEDGER, Ledger
from testbed.ledger.manifest import BUNDLED_NAME, BundledManifest, Expected, Manifest, ManifestKernel
from testbed.ledger.plan import Plan
from testbed.ledger.record import LOST, Record, final
from testbed.trials import prepare
from testbed.trials.prepare import Guests, Machine
from testbed.trials.trial import Trial

M = TypeVar("M", bound=Manifest)
# What counts is a dictionary in which the second kernel finds the first, and a snapshot the one before. With
# that, a quick search for matches is ten times faster than the preset's own, for a file larger by a tenth.
_XZ = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9,
        "mode": lzma.MODE_FAST,
        "mf": lzma.MF_HC4,
        "nice_len": 273,
        "depth": 8,
    }
]
_XZ_MAGIC = b"\xfd7zXZ\x00"
_HANG = "hang"
MANIFEST = "manifest.json"
# Bytes that a bundle may unpack to, and of it what is before its manifest; and how many files it may have.
MOST_UNPACKED, MOST_BEFORE, MOST_MEMBERS = 16 << 30, 2 << 30, 10_000
# Bytes that are read at once.
MOST_PIECE = 1 << 20


@dataclass(frozen=True)
class Repeat:
    """Trials that can run here, with what, and what is expected of each. `result` has their logs, if anything
    has."""

    manifest: Manifest
    trials: tuple[Trial, ...]
    made_of: str
    result: Path | None = None


@dataclass(frozen=True)
class Difference:
    """A trial that did not give the same again."""

    expected: Expected
    found: Record
    explanation: str


def manifest(plan: Plan, records: Sequence[Record], where: Path) -> Manifest:
    """The manifest of a result. Raises SpecError when its trials cannot be done again."""
    facts = plan.provenance
    if not facts.deterministic:
        raise SpecError(
            f"{where}: its guests ran in real time ({facts.accelerator.name}); "
            "only deterministic results can be done again"
        )
    # How much of its log was read of a hung guest depends on the host.
    done = [r for r in final(records).values() if r.trial in plan.trials and r.outcome not in (LOST, _HANG)]
    if not done:
        raise SpecError(f"{where}: no trial of it has ended")
    try:
        return Manifest(
            schema=1,
            name=plan.experiment.name,
            qemu_family=facts.qemu_family,
            booted_by=facts.qemu,
            experiment=plan.experiment,
            initramfs_sha256=facts.initramfs.sha256,
            kernels={
                arm: ManifestKernel(**kernel.model_dump(include=set(ManifestKernel.model_fields)))
                for arm, kernel in facts.kernels.items()
            },
            trials=tuple(
                Expected(trial=r.trial, arm=r.arm, seed=r.seed, outcome=r.outcome, log_sha256=r.log_sha256)
                for r in sorted(done, key=lambda r: (r.seed, r.arm))
            ),
        )
    except ValidationError as invalid:
        raise SpecError(f"{where}: cannot be done again: {mistake(invalid)}") from invalid


def load(path: Path, cache: Path, scratch: Path, progress: Callable[[str], None]) -> Repeat:
    """What a result, a manifest or a bundle says, ready to run; a bundle's files go to `scratch`.

    Raises SpecError when it is none of them or when this checkout and this machine make other kernels or
    another initramfs; else what prepare.prepare() raises.
    """
    if path.is_dir():
        with Ledger.open(path) as ledger:
            there = manifest(ledger.plan(), ledger.records(), path)
        return replace(_rebuilt(there, path, cache, progress), result=path)
    if not path.is_file():
        raise SpecError(f"{path}: neither a result directory (with {LEDGER}), a manifest nor a bundle")
    if _is_bundle(path):
        return _bundled(_extract(path, scratch), path, scratch, cache, progress)
    return _rebuilt(_read(path), path, cache, progress)


def differences(repeat: Repeat, again: Ledger) -> list[Difference]:
    """The trials of `again` that did not give what was expected."""
    found, all_expected = [], repeat.manifest.expected
    for record in final(again.records()).values():
        expected = all_expected[record.trial]
        if (record.outcome, record.log_sha256) == (expected.outcome, expected.log_sha256):
            continue
        explanation = f"sha256 of the log: expected {expected.log_sha256}, got {record.log_sha256}"
        if record.outcome != expected.outcome:
            explanation = f"outcome: expected {expected.outcome}, got {record.outcome}: {record.detail}"
        elif repeat.result is not None:
            with Ledger.open(repeat.result) as ledger:
                before = final(ledger.records())[record.trial]
                explanation = first_difference(ledger.log(before), again.log(record))
        found.append(Difference(expected, record, explanation))
    return found


def only(repeat: Repeat, name: str) -> Repeat:
    """Of its trials the one with an id, or ARM:SEED. Raises SpecError when there is none."""
    chosen = [t for t in repeat.trials if name in (t.id, f"{t.arm}:{t.seed}")]
    if not chosen:
        known = ", ".join(f"{t.id} ({t.arm}:{t.seed})" for t in repeat.trials[:6])
        raise SpecError(f"there is no trial `{name}`: {known}{' ...' if len(repeat.trials) > 6 else ''}")
    return replace(repeat, trials=tuple(chosen))


def sample(trials: Sequence[Trial], wanted: int | None) -> list[Trial]:
    """So many of them, evenly spread over arms, and over the seeds of each; all if there are no more."""
    # Arm by arm: spread over trials that take turns, they could all be of one arm.
    ordered = sorted(trials, key=lambda trial: (trial.arm, trial.seed))
    count = min(wanted or len(ordered), len(ordered))
    return [ordered[index * len(ordered) // count] for index in range(count)]


def first_difference(expected: bytes, got: bytes) -> str:
    """The first line in which two logs differ, with its number."""
    pairs = itertools.zip_longest(expected.split(b"\n"), got.split(b"\n"))
    for number, (left, right) in enumerate(pairs, start=1):
        if left != right:
            return f"line {number}:\n  expected {_shown(left)}\n  got      {_shown(right)}"
    return "the logs are the same"


def _shown(line: bytes | None) -> str:
    return "nothing" if line is None else repr(line[:160].decode(errors="backslashreplace"))


def bundle(result: Path, target: Path, report: str, cache: Path, progress: Callable[[str], None]) -> None:
    """Write a bundle, an xz-compressed tar file: manifest, kernels, initramfs, snapshots, plugin, report."""
    if not target.name or target.is_dir():
        raise SpecError(f"{target}: is a directory; give the bundle's name, as in {target / 'x.testbed'}")
    repeat = load(result, cache, cache, progress)
    with owned.directory(cache) as scratch:
        files = _files(repeat.trials, cache, scratch)
        texts = {"report.md": report.encode()}
        hashes = {name: sha256(path) for name, path in files.items()}
        hashes |= {name: hashlib.sha256(data).hexdigest() for name, data in texts.items()}
        texts[MANIFEST] = (repeat.manifest.bundled(hashes).text(indent=1) + "\n").encode()
        size = sum(path.stat().st_size for path in files.values())
        if size > MOST_UNPACKED:
            raise SpecError(f"{result}: too much for a bundle: {size >> 20} MiB", "`boots` makes it smaller")
        progress(f"compressing {size >> 20} MiB")
        try:
            with staged(target) as draft:
                _pack(draft, files, texts)
        except OSError as unwritable:
            raise StoreError(f"{target}: not written: {unwritable.strerror}") from unwritable


def _files(trials: Sequence[Trial], cache: Path, scratch: Path) -> dict[str, Path]:
    """All that it takes to run trials, by its name in a bundle."""
    files = {"initramfs": trials[0].initramfs, rendezvous.BUNDLED: trials[0].plugin()}
    for name, trial in _one_of_each_boot(trials):
        # The cache may forget the first of many snapshots while the last is taken.
        files[name] = scratch / name
        files[name].hardlink_to(snapshot.ensure(trial.start, trial.plugin, cache, trial.deadlines.boot))
        files[f"vmlinux.{trial.arm}"] = trial.vmlinux
        files[f"System.map.{trial.arm}"] = trial.vmlinux.with_name("System.map")
    return files


def _pack(path: Path, files: Mapping[str, Path], texts: Mapping[str, bytes]) -> None:
    with lzma.open(path, "wb", filters=_XZ) as xz, tarfile.open(fileobj=xz, mode="w") as tar:
        # Who reads it goes by the manifest.
        for name in sorted(files.keys() | texts.keys(), key=lambda name: (name != MANIFEST, name)):
            data = texts[name] if name in texts else files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


# --- reading -------------------------------------------------------------------------------------


def _extract(path: Path, target: Path) -> BundledManifest:
    """Unpack what the manifest of a bundle lists, and return that. Raises SpecError if it has more."""
    try:
        with space.told(target):
            manifest = _manifest_in(path)
            missing = dict(manifest.files)
            for name, data in _members(path, MOST_UNPACKED):
                if name == MANIFEST:
                    continue
                if name not in missing:
                    raise SpecError(
                        f"{path}: not a bundle: its manifest does not list {name!r}, which is in it"
                    )
                with (target / name).open("wb") as file:
                    shutil.copyfileobj(data, file)
                if sha256(target / name) != missing.pop(name):
                    raise SpecError(f"{path}: {name} in it is not what the manifest says")
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, RecursionError) as bad:
        raise SpecError(f"{path}: not a bundle, or damaged: {bad}") from bad
    if missing:
        raise SpecError(f"{path}: not a bundle, or damaged: there is no {min(missing)} in it")
    return manifest


def _manifest_in(path: Path) -> BundledManifest:
    # In a bundle of an earlier version it is not the first.
    for name, data in _members(path, MOST_BEFORE):
        if name == MANIFEST:
            return _understood(BundledManifest, at_most(data, MOST_BYTES, path), path)
    raise SpecError(f"{path}: not a bundle: there is no {MANIFEST} in it")


def _members(path: Path, most: int) -> Iterator[tuple[str, IO[bytes]]]:
    """The files in a bundle, in order. Raises SpecError for what no bundle has, and for more than so much."""
    size = 0
    with _Pieces(path) as xz, tarfile.open(fileobj=xz, mode="r:") as tar:
        for number, member in enumerate(tar):
            # Ours are flat. Python 3.11.2, Debian 12's, has no filter that would refuse the rest.
            data = tar.extractfile(member) if member.isreg() else None
            if data is None or not re.fullmatch(BUNDLED_NAME, member.name) or member.size < 0:
                raise SpecError(f"{path}: not a bundle: there is {member.name!r} in it")
            size += member.size
            if size > most or number > MOST_MEMBERS:
                raise SpecError(f"{path}: not a bundle: it unpacks to more than {most >> 30} GiB")
            yield member.name, data


class _Pieces(lzma.LZMAFile):
    """What is packed in a file, in pieces: tarfile reads a name at once, however long it is said to be."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MOST_PIECE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _is_bundle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_XZ_MAGIC)) == _XZ_MAGIC


def _read(path: Path) -> Manifest:
    try:
        return _understood(Manifest, read(path, MOST_BYTES), path)
    except OSError as unreadable:
        raise SpecError(f"{path}: not a manifest: {unreadable.strerror}") from unreadable


def _understood(kind: type[M], text: bytes, path: Path) -> M:
    try:
        return parsed(kind, text)
    except OtherVersionError as other:
        raise SpecError(f"{path}: a manifest {other}") from other
    except ValueError as bad:
        raise SpecError(f"{path}: not a manifest: {bad}") from bad


def _rebuilt(manifest: Manifest, path: Path, cache: Path, progress: Callable[[str], None]) -> Repeat:
    """From this checkout's sources, which must give the same kernels and the same initramfs."""
    ready = prepare.prepare(manifest.pinned(), cache, progress, family=manifest.qemu_family)
    here = ready.plan.provenance
    unlike = [
        f"vmlinux of {arm} is {here.kernels[arm].vmlinux_sha256[:12]}, "
        f"not {there.vmlinux_sha256[:12]} ({there.source}, {'; '.join(there.tools)})"
        for arm, there in manifest.kernels.items()
        if here.kernels[arm].vmlinux_sha256 != there.vmlinux_sha256
    ]
    if here.initramfs.sha256 != manifest.initramfs_sha256:
        unlike.append(f"initramfs is {here.initramfs.sha256[:12]}, not {manifest.initramfs_sha256[:12]}")
    if here.qemu != manifest.booted_by:
        unlike.append(f"QEMU is {here.qemu}, not {manifest.booted_by}")
    if unlike:
        lines = [f"{path}: not as it was measured: {line}" for line in unlike]
        raise SpecError(
            "\n".join(lines), "a bundle (`testbed bundle`) brings its own kernels, initramfs and snapshots"
        )
    return _matched(manifest, ready.trials, path, f"kernels and initramfs that were made here for {path}")


def _bundled(
    manifest: BundledManifest, path: Path, files: Path, cache: Path, progress: Callable[[str], None]
) -> Repeat:
    """From the files that came with it."""
    experiment = manifest.as_measured()
    machine = Machine(
        prepare.shape_of(experiment),
        qemu.deterministic(cache, progress, manifest.qemu_family),
        Accel("icount", "as the bundle's"),
        prepare.environment(manifest.qemu_family, manifest.booted_by),
    )
    # Its snapshots are not to be taken for those that are made here.
    guests = Guests(Image(files / "initramfs", manifest.initramfs_sha256), machine, cache=files)
    # One that another version of testbed speaks with is no use; then it takes a compiler here.
    plugin = files / rendezvous.BUNDLED if rendezvous.BUNDLED in manifest.files else None

    def brought(arm: str, seed: int) -> Trial:
        vmlinux, digest = files / f"vmlinux.{arm}", manifest.kernels[arm].vmlinux_sha256
        return replace(
            prepare.trial(experiment, arm, seed, guests, vmlinux=vmlinux, sha256=digest),
            compiled_plugin=plugin,
            booted_by=manifest.booted_by,
        )

    trials = tuple(brought(expected.arm, expected.seed) for expected in manifest.trials)
    boots = dict(_one_of_each_boot(trials))
    hashes = {trial.vmlinux.name: trial.vmlinux_sha256 for trial in trials}
    hashes |= {trials[0].initramfs.name: manifest.initramfs_sha256}
    hashes |= {name: manifest.files.get(name, "") for name in boots}
    for name, digest in hashes.items():
        if not digest or manifest.files.get(name) != digest:
            raise SpecError(f"{path}: {name} in it is not what the manifest says")
    for name, trial in boots.items():
        snapshot.adopt(trial.start, files / name, files)
    code = f" and {plugin.name}, which is code that QEMU runs as you," if plugin else ""
    return _matched(manifest, trials, path, f"kernels, initramfs, snapshots{code} out of {path}")


def _one_of_each_boot(trials: Sequence[Trial]) -> Iterator[tuple[str, Trial]]:
    """The trial of the lowest seed that starts from each snapshot, and what that is called in a bundle."""
    seen: set[str] = set()
    for trial in sorted(trials, key=lambda trial: (trial.arm, trial.seed)):
        if trial.start.key not in seen:
            seen.add(trial.start.key)
            yield f"snapshot.{trial.arm}.{trial.seed}", trial


def _matched(manifest: Manifest, trials: Sequence[Trial], path: Path, made_of: str) -> Repeat:
    expected = manifest.expected
    chosen = tuple(trial for trial in trials if trial.id in expected)
    if len(chosen) < len(expected):
        raise SpecError(
            f"{path}: {len(expected) - len(chosen)} of its {len(expected)} trials are not what this version "
            "of testbed would run"
        )
    return Repeat(manifest, chosen, made_of)
