# SPDX-License-Identifier: GPL-2.0-only
"""A table, and what a terminal and Markdown make of it; templates/parts.html.j2 has what a page does. Pure.

Cells are plain text: whoever renders them sees to it that nothing in them is obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import RenderableType
from rich.table import Table as Terminal
from rich.text import Text

from testbed.report.escape import escaped, visible


@dataclass(frozen=True)
class Table:
    """Headings and rows of the same length. Columns that are in `words` are text; the others are numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})
    title: str = ""

    def terminal(self) -> RenderableType:
        """It for a terminal."""
        made = Terminal(box=box.SIMPLE_HEAD, pad_edge=False, title=self.title or None, title_justify="left")
        for index, heading in enumerate(self.headings):
            # Rather a line more than a digit less.
            made.add_column(
                plain(heading), justify="left" if index in self.words else "right", overflow="fold"
            )
        for row in self.rows:
            made.add_row(*map(plain, row))
        return made

    def markdown(self) -> list[str]:
        """It as lines of GitHub-flavoured Markdown."""
        rule = [":--" if index in self.words else "--:" for index in range(len(self.headings))]
        return [
            _line(map(escaped, self.headings)),
            _line(rule),
            *(_line(map(escaped, row)) for row in self.rows),
        ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plain(line: str, style: str = "") -> Text:
    """A line for a terminal, of which nothing is markup."""
    return Text(visible(line), style)
