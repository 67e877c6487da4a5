# SPDX-License-Identifier: GPL-2.0-only
"""Outcomes as text: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from testbed.host.errors import SpecError
from testbed.report import matrix, text, words
from testbed.report.escape import visible
from testbed.report.table import Table
from testbed.verbs import bisection, reports
from testbed.verbs.catalog import Offered, Stored
from testbed.verbs.clean import Cleaned
from testbed.verbs.compare import Compared, ComparedMatrix
from testbed.verbs.doctor import Examined
from testbed.verbs.profile import By, Profiled
from testbed.verbs.status import exit_status

PIPE_COLUMNS = 120


def show(outcome: Compared | ComparedMatrix, form: str = "text", everything: bool = False) -> None:
    """Print a comparison in one form, and write it in all of them if it is stored.

    Raises SpecError for a form that a matrix does not have.
    """
    if isinstance(outcome, ComparedMatrix):
        _show_matrix(outcome, form)
    elif form == "text":
        # Before the pictures, which take some seconds.
        print_rendered(text.render(outcome.report, everything))
        if outcome.directory:
            outcome.write(tell)
            files = "report.html, with pictures; .md, .json, .xml (JUnit), .ktap; logs/"
            tell(f"also in {outcome.directory}: {files}")
    else:
        if outcome.directory:
            outcome.write(tell)
        put(reports.FORMS[form][1](outcome.report))
    for line in outcome.met:
        tell(f"failed: {line}")


def _show_matrix(outcome: ComparedMatrix, form: str) -> None:
    """A table with a row per cell."""
    if form not in ("text", "json", "markdown"):
        raise SpecError(f"{outcome.directory}: a matrix has no such report, but each of its cells has one")
    outcome.write(tell)
    if form == "text":
        print_rendered(matrix.render(outcome.report))
        files = "report.json, report.md, heat maps in pictures/, and a result per cell"
        tell(f"also in {outcome.directory}: {files}")
    else:
        made = outcome.report.text(indent=2) if form == "json" else matrix.markdown(outcome.report)
        put(made)


def show_bisection(outcome: bisection.Bisected, as_json: bool, *, write: bool = False) -> int:
    """Print how a bisection stands; what it is under other rules is nowhere written."""
    if as_json:
        put(outcome.report.text(indent=2) + "\n")
    else:
        from testbed.report import bisection as report  # noqa: PLC0415  (slow, with scipy)

        print_rendered(report.render(outcome.report, outcome.headline))
    if write:
        outcome.write(tell)
        if not as_json:
            tell(f"also in {outcome.directory}: report.html, report.md, report.json, pictures/; logs/")
    return exit_status(outcome)


def show_profile(shown: Sequence[Profiled], form: str, by: By | None, most: int) -> None:
    """Print profiles in one form."""
    from testbed.report import profile  # noqa: PLC0415  (slow, with scipy)

    if form == "folded":
        put(profile.folded(shown))
    elif form == "speedscope":
        put(json.dumps(profile.speedscope(shown)) + "\n")
    else:
        print_rendered(profile.render(shown, by, most))


def show_experiments(offered: Iterable[Offered]) -> None:
    """Print what experiments there are."""
    rows = [[one.name, words.duration(one.seconds), one.description] for one in offered]
    print_rendered(
        Table(
            ["experiment", "takes about, once kernels are built", "what"], rows, frozenset({0, 2})
        ).terminal()
    )


def show_results(directory: Path, stored: Sequence[Stored]) -> None:
    """Print what results there are in a directory."""
    if not stored:
        tell(f"{directory}: no results")
        return
    rows = [[str(one.directory), words.age(one.age), one.said] for one in stored]
    print_rendered(Table(["result", "age", "what it says"], rows, frozenset({0, 2})).terminal())


def show_examined(examined: Examined) -> None:
    """Print what the doctor found."""
    for need in examined.needs:
        if need.problem:
            print(f"{'PROBLEM':8}{'; '.join(filter(None, [f'{need.name}: {need.problem}', need.remedy]))}")
        else:
            print(f"{'ok':8}{need.name}")
    for note in examined.notes:
        print(f"{'note':8}{note}")
    for remedy in examined.remedies:
        print(remedy)


def show_cleaned(cleaned: Cleaned, cache: Path) -> None:
    """Print what was freed, and say what was not."""
    for path in cleaned.in_use:
        tell(f"{path}: left, since another process uses it")
    print(f"{cleaned.freed >> 20} MiB freed in {cache}")


def print_rendered(renderable: RenderableType) -> None:
    # Written by us: of a closed pipe rich makes an exit status of its own.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    with console.capture() as captured:
        console.print(renderable)
    put(captured.get())


def put(text: str) -> None:
    """Print a result now. Whoever reads it may have enough: what else there is to do is done all the same."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        abandon_output()


def abandon_output() -> None:
    """Let go of what nobody reads: Python would try to write it once more when it ends, and complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDWR), sys.stdout.fileno())


def have_streams() -> None:
    """Open what whoever started us has closed of standard input, output and error, to nothing.

    Else Python has None there, and the first file that is opened has its number.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            os.set_inheritable(fd, True)
            setattr(sys, name, os.fdopen(fd, mode, closefd=False))


def tell(message: str) -> None:
    """Say something that is no result."""
    with contextlib.suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Say what is wrong. The tail of a guest's console may be in it."""
    tell(f"testbed: {visible(message)}")
