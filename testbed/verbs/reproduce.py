# SPDX-License-Identifier: GPL-2.0-only
"""Deterministic results done again: what is expected of every trial, and bundles that carry all it takes.

A manifest is the part of a result that fits into git: the experiment, hashes of the kernels, of the
initramfs and of every trial's console log, and the family of QEMU. A bundle is a manifest with the files.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.experiment import Experiment
from testbed.guest import qemu, snapshot
from testbed.guest.accel import Accel
from testbed.guest.image import Image
from testbed.host.errors import SpecError, StoreError
from testbed.host.files import staged
from testbed.host.paths import sha256
from testbed.ledger.ledger import LEDGER, Ledger
from testbed.ledger.record import LOST, Record, final
from testbed.trials import prepare
from testbed.trials.prepare import Guests, Machine
from testbed.trials.trial import Trial

SCHEMA = 1
_TEXTS = ("qemu_family", "booted_by", "initramfs_sha256")
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
_HANG = "hang"


@dataclass(frozen=True)
class Expected:
    """What a trial gave."""

    trial: str
    arm: str
    seed: int
    outcome: str
    log_sha256: str


@dataclass(frozen=True)
class Repeat:
    """Trials that can run here, and what is expected of each. `result` has their logs, if anything has."""

    manifest: Mapping[str, Any]
    trials: tuple[Trial, ...]
    expected: Mapping[str, Expected]
    result: Path | None = None


@dataclass(frozen=True)
class Difference:
    """A trial that did not give the same again."""

    expected: Expected
    found: Record
    explanation: str


def manifest(plan: Mapping[str, Any], records: Sequence[Record], where: Path) -> dict[str, Any]:
    """The manifest of a result. Raises SpecError when its trials cannot be done again."""
    facts = plan["provenance"]
    if facts["accelerator"]["name"] != "icount":
        raise SpecError(
            f"{where}: its guests ran in real time ({facts['accelerator']['name']}); "
            "only deterministic results can be done again"
        )
    # A hang ended when the host's clock said so.
    done = [
        r for r in final(records).values() if r.trial in plan["trials"] and r.outcome not in (LOST, _HANG)
    ]
    if not done:
        raise SpecError(f"{where}: no trial of it has ended")
    return {
        "schema": SCHEMA,
        "name": plan["experiment"]["name"],
        "qemu_family": facts["qemu_family"],
        "booted_by": facts["qemu"],
        "experiment": plan["experiment"],
        "initramfs_sha256": facts["initramfs"]["sha256"],
        "kernels": {
            arm: {key: kernel[key] for key in ("vmlinux_sha256", "source", "release", "patches", "tools")}
            for arm, kernel in facts["kernels"].items()
        },
        "trials": [
            {"trial": r.trial, "arm": r.arm, "seed": r.seed, "outcome": r.outcome, "log_sha256": r.log_sha256}
            for r in sorted(done, key=lambda r: (r.seed, r.arm))
        ],
    }


def load(path: Path, cache: Path, scratch: Path, progress: Callable[[str], None]) -> Repeat:
    """What a result, a manifest or a bundle says, ready to run; a bundle's files go to `scratch`.

    Raises SpecError when it is none of them or when this checkout and this machine make other kernels or
    another initramfs; else what prepare.prepare() raises.
    """
    if path.is_dir():
        with Ledger.open(path) as ledger:
            said = _checked(manifest(ledger.plan(), ledger.records(), path), path)
        return replace(_rebuilt(said, path, cache, progress), result=path)
    if not path.is_file():
        raise SpecError(f"{path}: neither a result directory (with {LEDGER}), a manifest nor a bundle")
    if tarfile.is_tarfile(path):
        _extract(path, scratch)
        return _bundled(_read(scratch / "manifest.json", path), path, scratch, cache, progress)
    return _rebuilt(_read(path, path), path, cache, progress)


def differences(repeat: Repeat, again: Ledger) -> list[Difference]:
    """The trials of `again` that did not give what was expected."""
    found = []
    for record in final(again.records()).values():
        expected = repeat.expected[record.trial]
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
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        files = _files(repeat.trials, cache, Path(scratch))
        texts = {"report.md": report.encode()}
        hashes = {name: sha256(path) for name, path in files.items()}
        hashes |= {name: hashlib.sha256(data).hexdigest() for name, data in texts.items()}
        texts["manifest.json"] = (json.dumps({**repeat.manifest, "files": hashes}, indent=1) + "\n").encode()
        progress(f"compressing {sum(path.stat().st_size for path in files.values()) >> 20} MiB")
        try:
            with staged(target) as draft:
                _pack(draft, files, texts)
        except OSError as unwritable:
            raise StoreError(f"{target}: not written: {unwritable.strerror}") from unwritable


def _files(trials: Sequence[Trial], cache: Path, scratch: Path) -> dict[str, Path]:
    """All that it takes to run trials, by its name in a bundle."""
    files = {"initramfs": trials[0].initramfs, "rendezvous.so": trials[0].plugin()}
    for name, trial in _one_of_each_boot(trials):
        # The cache may forget the first of many snapshots while the last is taken.
        files[name] = scratch / name
        files[name].hardlink_to(snapshot.ensure(trial.start, trial.plugin, cache, trial.deadlines.boot))
        files[f"vmlinux.{trial.arm}"] = trial.vmlinux
        files[f"System.map.{trial.arm}"] = trial.vmlinux.with_name("System.map")
    return files


def _pack(path: Path, files: Mapping[str, Path], texts: Mapping[str, bytes]) -> None:
    with lzma.open(path, "wb", filters=_XZ) as xz, tarfile.open(fileobj=xz, mode="w") as tar:
        for name in sorted(files.keys() | texts.keys()):
            data = texts[name] if name in texts else files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _extract(path: Path, target: Path) -> None:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                # Ours are flat. Python 3.11.2, Debian 12's, has no filter that would refuse the rest.
                data = tar.extractfile(member) if member.isreg() else None
                if data is None or "/" in member.name or member.name in ("", ".", ".."):
                    raise SpecError(f"{path}: not a bundle: there is {member.name!r} in it")
                with data, (target / member.name).open("wb") as file:
                    shutil.copyfileobj(data, file)
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as bad:
        raise SpecError(f"{path}: not a bundle, or damaged: {bad}") from bad


def _read(path: Path, named: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as bad:
        raise SpecError(f"{named}: not a manifest: {str(bad).splitlines()[0]}") from bad
    return _checked(said, named)


def _checked(said: Any, named: Path) -> dict[str, Any]:
    """A manifest, once all that is read of it is known to be there."""
    try:
        if said["schema"] != SCHEMA:
            raise SpecError(f"{named}: a manifest of version {said['schema']}; this testbed reads {SCHEMA}")
        _pinned(said)
        for text in (*(said[key] for key in _TEXTS), *dict(said.get("files", {})).values()):
            _text(text)
        for expected in _expected(said).values():
            kernel = said["kernels"][expected.arm]
            for text in (kernel["vmlinux_sha256"], kernel["source"], *kernel["tools"]):
                _text(text)
    except (ValueError, KeyError, TypeError) as bad:
        what = f"there is no {bad} in it" if isinstance(bad, KeyError) else str(bad).splitlines()[0]
        raise SpecError(f"{named}: not a manifest: {what}") from bad
    return dict(said)


def _text(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")


def _experiment(said: Mapping[str, Any]) -> Experiment:
    experiment = Experiment.model_validate_json(json.dumps(said["experiment"]))
    last = max(trial["seed"] for trial in said["trials"])
    return experiment.model_copy(update={"seeds": last - experiment.first_seed + 1})


def _pinned(said: Mapping[str, Any]) -> Experiment:
    """The experiment, of the very version of a Debian package that was measured."""
    kernel = said["experiment"]["kernel"]
    package = kernel.get("debian")
    if package is None or "=" in package:
        return _experiment(said)
    _, _, version = str(said["kernels"][said["trials"][0]["arm"]]["source"]).partition(" ")
    pinned = {**kernel, "debian": f"{package}={version}"}
    return _experiment({**said, "experiment": {**said["experiment"], "kernel": pinned}})


def _expected(said: Mapping[str, Any]) -> dict[str, Expected]:
    return {trial["trial"]: Expected(**trial) for trial in said["trials"]}


def _rebuilt(said: Mapping[str, Any], path: Path, cache: Path, progress: Callable[[str], None]) -> Repeat:
    """From this checkout's sources, which must give the same kernels and the same initramfs."""
    ready = prepare.prepare(_pinned(said), cache, progress, family=said["qemu_family"])
    here = ready.document["provenance"]
    unlike = [
        f"vmlinux of {arm} is {here['kernels'][arm]['vmlinux_sha256'][:12]}, "
        f"not {there['vmlinux_sha256'][:12]} ({there['source']}, {'; '.join(there['tools'])})"
        for arm, there in said["kernels"].items()
        if here["kernels"][arm]["vmlinux_sha256"] != there["vmlinux_sha256"]
    ]
    if here["initramfs"]["sha256"] != said["initramfs_sha256"]:
        unlike.append(f"initramfs is {here['initramfs']['sha256'][:12]}, not {said['initramfs_sha256'][:12]}")
    if here["qemu"] != said["booted_by"]:
        unlike.append(f"QEMU is {here['qemu']}, not {said['booted_by']}")
    if unlike:
        lines = [f"{path}: not as it was measured: {line}" for line in unlike]
        raise SpecError(
            "\n".join(lines), "a bundle (`testbed bundle`) brings its own kernels, initramfs and snapshots"
        )
    return _matched(said, ready.trials, path)


def _bundled(
    said: Mapping[str, Any], path: Path, files: Path, cache: Path, progress: Callable[[str], None]
) -> Repeat:
    """From the files that came with it."""
    experiment = _experiment(said)
    machine = Machine(
        prepare.shape_of(experiment),
        qemu.deterministic(cache, progress, said["qemu_family"]),
        Accel("icount", "as the bundle's"),
        prepare.environment(said["qemu_family"], said["booted_by"]),
    )
    # Its snapshots are not to be taken for those that are made here.
    guests = Guests(Image(files / "initramfs", said["initramfs_sha256"]), machine, cache=files)

    def brought(arm: str, seed: int) -> Trial:
        vmlinux, digest = files / f"vmlinux.{arm}", said["kernels"][arm]["vmlinux_sha256"]
        return replace(
            prepare.trial(experiment, arm, seed, guests, vmlinux=vmlinux, sha256=digest),
            compiled_plugin=files / "rendezvous.so",
            booted_by=said["booted_by"],
        )

    trials = tuple(brought(expected.arm, expected.seed) for expected in _expected(said).values())
    hashes = {
        **{files / name: digest for name, digest in said.get("files", {}).items()},
        **{trial.vmlinux: trial.vmlinux_sha256 for trial in trials},
        trials[0].initramfs: said["initramfs_sha256"],
    }
    for file, digest in hashes.items():
        if not file.is_file() or sha256(file) != digest:
            raise SpecError(f"{path}: {file.name} in it is not what the manifest says")
    for name, trial in _one_of_each_boot(trials):
        snapshot.adopt(trial.start, files / name, files)
    return _matched(said, trials, path)


def _one_of_each_boot(trials: Sequence[Trial]) -> Iterator[tuple[str, Trial]]:
    """The trial of the lowest seed that starts from each snapshot, and what that is called in a bundle."""
    seen: set[str] = set()
    for trial in sorted(trials, key=lambda trial: (trial.arm, trial.seed)):
        if trial.start.key not in seen:
            seen.add(trial.start.key)
            yield f"snapshot.{trial.arm}.{trial.seed}", trial


def _matched(said: Mapping[str, Any], trials: Sequence[Trial], path: Path) -> Repeat:
    expected = _expected(said)
    chosen = tuple(trial for trial in trials if trial.id in expected)
    if len(chosen) < len(expected):
        raise SpecError(
            f"{path}: {len(expected) - len(chosen)} of its {len(expected)} trials are not what this version "
            "of testbed would run"
        )
    return Repeat(said, chosen, expected)
