# SPDX-License-Identifier: GPL-2.0-only
"""Cases of all kinds, evenly, until all are done or the time is over; and the table of what came of them.

What is done is a line in a file each: the same command goes on from there, and prints the whole.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from tests.chaos import kernel
from tests.chaos.disturb import Verdict
from tests.chaos.scenes import Scene, Stage

HEAD = ("what is done", "tried", "survived", "lost", "left behind", "seconds")


class Row(Protocol):
    """A kind of case: how many are wanted, in batches of so many."""

    @property
    def name(self) -> str: ...

    @property
    def wanted(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def scenes(self) -> Sequence[Scene]: ...

    def impossible(self) -> str:
        """Why there can be none of it here; empty if there can."""

    def run(self, stage: Stage, number: int, seed: int) -> Verdict:
        """Do the case of that number."""


@dataclass(frozen=True)
class Done:
    """A case that is done."""

    kind: str
    number: int
    tried: int
    lost: Sequence[str]
    left: Sequence[str]
    seconds: float


@dataclass(frozen=True)
class Campaign:
    """All cases of some kinds in a directory, drawn from a seed; of each kind a `share` of what is wanted."""

    top: Path
    kinds: Sequence[Row]
    version: str
    seed: int = 0
    share: float = 1.0

    @property
    def _log(self) -> Path:
        return self.top / "cases.jsonl"

    def run(self, minutes: float, jobs: int) -> None:
        """Go on, with `jobs` processes. Raises ValueError if what is there is of another seed or version."""
        self._begin()
        stage = Stage(self.top)
        stage.set_up()
        pending = list(self._pending())
        for scene in {scene for kind, _ in pending for scene in kind.scenes}:
            stage.undisturbed(scene)
        end = time.monotonic() + minutes * 60
        context = multiprocessing.get_context("fork")
        workers = [
            context.Process(target=self._work, args=(stage, pending[first::jobs], end))
            for first in range(jobs)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed := [worker.exitcode for worker in workers if worker.exitcode]:
            raise RuntimeError(f"a part of the campaign itself ended with {failed[0]}")

    def _begin(self) -> None:
        self.top.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"version": self.version, "seed": self.seed})
        note = self.top / "campaign.json"
        if note.exists() and note.read_text() != about:
            raise ValueError(
                f"{self.top}: has a campaign of {note.read_text()}; give another with --into DIR"
            )
        note.write_text(about)

    def _pending(self) -> Iterator[tuple[Row, int]]:
        """The cases that are not done: of all kinds the first parts first."""
        done = {(case.kind, case.number) for case in self.done()}
        cases = []
        for kind in self.kinds:
            if not kind.impossible():
                count = max(1, round(kind.wanted * self.share / kind.batch))
                cases += [(number / count, kind, number) for number in range(count)]
        for _, kind, number in sorted(cases, key=lambda case: case[0]):
            if (kind.name, number) not in done:
                yield kind, number

    def _work(self, stage: Stage, cases: Iterable[tuple[Row, int]], end: float) -> None:
        kernel.die_with_parent()
        kernel.own_mounts()
        for kind, number in cases:
            began = time.monotonic()
            if began > end:
                return
            verdict = kind.run(stage, number, self.seed)
            case = Done(kind.name, number, **asdict(verdict), seconds=round(time.monotonic() - began, 2))
            for line in (*case.lost, *case.left):
                print(f"{case.kind}, case {case.number}: {line}", file=sys.stderr, flush=True)
            # In one write: others write there as well.
            with self._log.open("ab", buffering=0) as log:
                log.write(json.dumps(asdict(case)).encode() + b"\n")
            if not (case.lost or case.left):
                # What is wrong is kept, to be looked at.
                stage.clear(kind.name, number)

    def done(self) -> list[Done]:
        """The cases that are done, of the kinds that are asked for."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        cases = [Done(**json.loads(line)) for line in lines]
        return [case for case in cases if case.kind in {kind.name for kind in self.kinds}]

    def table(self) -> str:
        """What came of them, as Markdown."""
        cases = defaultdict[str, list[Done]](list)
        for case in self.done():
            cases[case.kind].append(case)
        rows = [HEAD, ("---", *["---:"] * (len(HEAD) - 1))]
        why = {kind.name: kind.impossible() for kind in self.kinds if not cases[kind.name]}
        rows += [_row(kind.name, cases[kind.name]) for kind in self.kinds if not why.get(kind.name)]
        lines = [f"testbed {self.version}, seed {self.seed}, {os.cpu_count()} cores:", ""]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        if refused := [f"- {name}: {reason}" for name, reason in why.items() if reason]:
            lines += ["", "Not possible here:", "", *refused]
        return "\n".join(lines) + "\n"


def _row(name: str, cases: Sequence[Done]) -> tuple[str, ...]:
    tried = sum(case.tried for case in cases)
    # Of a batch each line is of another input.
    lost = sum(min(case.tried, len(case.lost)) for case in cases)
    left = sum(bool(case.left) for case in cases)
    seconds = sum(case.seconds for case in cases)
    return (name, *(f"{n:,}" for n in (tried, tried - lost, lost, left)), f"{seconds:,.0f}")
