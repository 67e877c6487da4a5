# SPDX-License-Identifier: GPL-2.0-only
"""What a person sees while it runs, on standard error: a bar at a terminal, else a line per event."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from testbed.ledger.record import LOST, Record
from testbed.report.escape import visible
from testbed.report.words import duration


class Watcher:
    """A context manager that shows steps and trials; also a runner.Progress."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._told: set[tuple[str, str]] = set()
        self._noted: set[str] = set()
        self._planned = self._ended = self._already = self._lost = 0

    def __enter__(self) -> Watcher:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Something has begun or was found. May be called from any thread.

        While trials are prepared, what was said of a source for one is not said for the next.
        """
        with self._lock:
            if text not in self._noted:
                self._print(text)
            self._noted.add(text)
            self._show(visible(text).split("\n", maxsplit=1)[0][:60], total=None)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """No bar meanwhile: it would wrap what is printed, and lines are there to be pasted."""
        self._bar.stop()
        try:
            yield
        finally:
            sys.stdout.flush()
            self._bar.start()

    def result(self, line: str) -> None:
        """Print a line of the result as it is."""
        with self.aside():
            print(line)

    def started(self, total: int, done: int, jobs: int) -> None:
        self._planned, self._already, self._ended = total, done, 0
        self._noted.clear()
        self._began = time.monotonic()
        side = f", {jobs} at a time" if jobs > 1 else ""
        reused = f"{done} already there, " if done else ""
        self._print(f"{total} trials: {reused}{total - done} to run{side}")
        self._show("trials", total=total, completed=done)

    def ended(self, record: Record) -> None:
        if record.outcome == LOST:
            self._lost += 1
        else:
            self._ended += 1
        seconds = sum(record.stages.values())
        done = self._already + self._ended
        line = (
            f"[{done}/{self._planned}] {record.arm} seed {record.seed}: {record.outcome} in {seconds:.1f} s"
        )
        left = self._left()
        self._print("; ".join(filter(None, [f"{line}: {record.reason}" if record.reason else line, left])))
        # The first of a kind with more of what is known; of the infrastructure's failures, all.
        if (record.arm, record.outcome) not in self._told:
            self._told.add((record.arm, record.outcome))
            lines = record.detail.split("\n")[1:] if record.outcome == LOST else _more(record)
            for text in lines:
                self._print(text)
        self._show("trials", total=self._planned, completed=done, left=left)

    def _left(self) -> str:
        """Rate and time left, from what has ended in this run."""
        remaining = self._planned - self._already - self._ended
        if not remaining or not self._ended:
            return ""
        each = (time.monotonic() - self._began) / self._ended
        return f"{60 / each:.1f} trials/min, {duration(remaining * each)} left"

    def _print(self, text: str) -> None:
        # A guest's words may be in it: no markup, no emoji, nothing that a terminal obeys.
        self._console.print(visible(text), markup=False, emoji=False, soft_wrap=True)

    def _show(self, text: str, total: int | None, completed: int = 0, left: str = "") -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=total, completed=completed, left=left)


def _more(record: Record) -> list[str]:
    """The last that a failed trial said; who was killed for want of memory is in a table of the report."""
    if record.outcome == "oom" or not record.last_words:
        return []
    more = f"the rest: testbed log RESULT {record.arm}:{record.seed} --console"
    return [f"    {line}" for line in (*record.last_words, more)]
