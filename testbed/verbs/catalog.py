# SPDX-License-Identifier: GPL-2.0-only
"""`testbed experiments` and `testbed list`: what there is to run, and what has been run. Runs nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.analysis.metrics import METRICS
from testbed.host.errors import SpecError, TestbedError
from testbed.ledger import document
from testbed.ledger.ledger import LEDGER, MATRIX, Ledger
from testbed.report import text, words
from testbed.report.document import ComparisonReport
from testbed.verbs.derive import EXPERIMENTS
from testbed.verbs.explain import trials_seconds
from testbed.verbs.reports import FORMS
from testbed.verbs.request import ExperimentRequest

REPORT, _ = FORMS["json"]
# Where results are, unless somebody says otherwise.
RESULTS = Path("results")


@dataclass(frozen=True)
class Offered:
    """One of the repository's own experiments; `seconds` is about how long it takes here, once built."""

    name: str
    description: str
    seconds: float


@dataclass(frozen=True)
class Stored:
    """A result, in a sentence; `age` is the seconds since something was written into it."""

    directory: Path
    said: str
    age: float


def offered() -> Iterator[Offered]:
    """The repository's own experiments."""
    for file in sorted(EXPERIMENTS.glob("*.yaml")):
        cells = ExperimentRequest(file).cells()
        seconds = sum(trials_seconds(cell.experiment) for cell in cells)
        yield Offered(file.stem, cells[0].experiment.description, seconds)


def metrics() -> list[str]:
    """The names of all metrics."""
    return [metric.name for metric in METRICS]


def stored(home: Path) -> list[Stored]:
    """The results in a directory, the newest first. Raises SpecError for a directory that is not there.

    Where results are by default there may be none yet.
    """
    if home != RESULTS and not home.is_dir():
        raise SpecError(f"{home}: no such directory")
    now = time.time()
    found = [
        Stored(path, _said(path), now - newest(path))
        for path in (home.iterdir() if home.is_dir() else ())
        if any((path / name).is_file() for name in (LEDGER, MATRIX))
    ]
    return sorted(found, key=lambda result: result.age)


def newest(directory: Path) -> float:
    """When something was last written into a result."""
    files = [directory / name for name in (LEDGER, MATRIX, REPORT)]
    return max(file.stat().st_mtime for file in files if file.exists())


def _said(directory: Path) -> str:
    """The verdict, as far as it is written; how far it has come, if there is none."""
    if not (directory / LEDGER).is_file():
        cells = sum((path / LEDGER).is_file() for path in directory.iterdir())
        return f"a matrix, {cells} cells"
    try:
        with Ledger.open(directory) as ledger:
            planned = ledger.plan()
            ended = len({record.trial for record in ledger.records()})
    except TestbedError as unreadable:
        return unreadable.message
    try:
        report = document.load(ComparisonReport, directory / REPORT)
    except (OSError, ValueError):
        return f"{ended} of {len(planned.trials)} trials"
    # More may have run since.
    newer = f" ({ended - report.trials.ended} trials since)" if ended > report.trials.ended else ""
    parts = [remark.text for remark in report.remarks]
    if not report.seeds:
        parts.append(text.NO_SEEDS)
    elif report.verdicts or not parts:
        parts.append(words.headline(report))
    return ". ".join(parts) + newer
