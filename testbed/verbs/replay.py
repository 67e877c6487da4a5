# SPDX-License-Identifier: GPL-2.0-only
"""`testbed verify`, `replay` and `bundle`: deterministic results done again, here or anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.host import owned
from testbed.host.process import pasteable
from testbed.ledger.ledger import Ledger
from testbed.ledger.manifest import Manifest
from testbed.ledger.record import LOST
from testbed.report import text
from testbed.trials import debug
from testbed.trials.lab import Lab, Watch
from testbed.trials.pool import interleaved
from testbed.verbs import reproduce, results
from testbed.verbs.reproduce import Difference, Repeat


@dataclass(frozen=True)
class VerifyRequest:
    """Finished trials to be run again, of a result, a manifest or a bundle.

    `sample` of them, spread over arms and seeds; or one `trial`, an id or ARM:SEED; else all.
    """

    path: Path
    sample: int | None = None
    trial: str | None = None
    jobs: int | None = None


@dataclass(frozen=True)
class DebugRequest:
    """One trial under gdb, which stops it before its first instruction and at its Nth reclaim miss."""

    path: Path
    trial: str
    miss: int | None = None


@dataclass(frozen=True)
class BundleRequest:
    """A result to be written into one file with all it takes to do it again; NAME.testbed if None."""

    result: Path
    output: Path | None = None


@dataclass(frozen=True)
class Repeated:
    """So many trials that were run again, and those that did not give the same."""

    trials: int
    differences: tuple[Difference, ...]

    @property
    def lost(self) -> bool:
        """Whether the infrastructure lost one, which says nothing about its bytes."""
        return any(difference.found.outcome == LOST for difference in self.differences)


@dataclass(frozen=True)
class Debugged:
    """Whether the console log of a trial under gdb was that of the result."""

    same: bool


def verify(request: VerifyRequest, lab: Lab, watch: Watch) -> Repeated:
    """Run trials again and compare their logs byte for byte; raises as reproduce.load() does."""
    with _loaded(request.path, lab, watch) as (loaded, scratch):
        repeat = reproduce.only(loaded, request.trial) if request.trial else loaded
        chosen = interleaved(reproduce.sample(repeat.trials, request.sample))
        watch.note(_about(repeat, len(chosen)))
        with Ledger.create(scratch / "again") as ledger:
            lab.run(chosen, ledger, request.jobs, watch, to_the_end=True)
            return Repeated(len(chosen), tuple(reproduce.differences(repeat, ledger)))


def debug_trial(request: DebugRequest, lab: Lab, watch: Watch, tell: Callable[[str], None]) -> Debugged:
    """Wait for gdb and do what it says until the trial has ended; `tell` is given gdb's command line."""
    with _loaded(request.path, lab, watch) as (repeat, _):
        (trial,) = reproduce.only(repeat, request.trial).trials
        watch.note(_about(repeat, 1))
        with debug.GdbStub(trial, request.miss) as stub:
            watch.note(
                f"{trial.arm} seed {trial.seed} is stopped before its first instruction; in another terminal:"
            )
            tell(pasteable(["gdb", trial.vmlinux, "-ex", f"target remote localhost:{stub.port}"]))
            log = stub.serve()
        return Debugged(hashlib.sha256(log).hexdigest() == repeat.manifest.expected[trial.id].log_sha256)


def bundle(request: BundleRequest, lab: Lab, watch: Watch) -> Path:
    """Write a bundle; return where it is. Raises as reproduce.load() does, and StoreError."""
    report = results.report(results.load(request.result))
    target = request.output or Path(f"{report.name}.testbed")
    reproduce.bundle(request.result, target, text.markdown(report), lab.cache, watch.note)
    return target


def manifest(result: Path) -> Manifest:
    """The manifest of a result: its hashes. Raises SpecError when its trials cannot be done again."""
    with Ledger.open(result) as ledger:
        return reproduce.manifest(ledger.plan(), ledger.records(), result)


def _about(repeat: Repeat, count: int) -> str:
    """What is to be run, and what of."""
    return f"to be run: {count} of the trials of {repeat.manifest.name}, with {repeat.made_of}"


@contextmanager
def _loaded(path: Path, lab: Lab, watch: Watch) -> Iterator[tuple[Repeat, Path]]:
    with owned.directory() as scratch:
        yield reproduce.load(path, lab.cache, scratch, watch.note), scratch
