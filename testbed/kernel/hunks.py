# SPDX-License-Identifier: GPL-2.0-only
"""The hunks of a diff, and what is where one of them does not fit. Pure.

Whether a diff can be read, and whether it applies, git says; this is for the words about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")
WIDTH = 70


@dataclass(frozen=True)
class Hunk:
    """`line`: where its old lines begin, from 1. `old`: these, context and what is removed, without ends."""

    line: int
    old: tuple[bytes, ...]


@dataclass(frozen=True)
class Difference:
    """The first line, from 1, that is not as a hunk expects it; None for one beyond the end of the file."""

    line: int
    expected: bytes
    there: bytes | None

    def __str__(self) -> str:
        expected, there = self.expected.strip(), (self.there or b"").strip()
        if expected == there:
            expected, there = self.expected, self.there or b""
        found = "the file has ended" if self.there is None else f"there is `{_shown(there)}`"
        return f"line {self.line}: expected `{_shown(expected)}`, {found}"


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").replace("\t", "\\t").replace("\r", "\\r")
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}..."


def parse(diff: bytes) -> list[tuple[Hunk, ...]]:
    """The hunks of every file of a diff, in order."""
    lines = diff.split(b"\n")
    files: list[list[Hunk]] = []
    announced = False
    at = 0
    while at < len(lines):
        if lines[at].startswith(b"diff --git "):
            files.append([])
            announced = True
        elif lines[at].startswith(b"--- ") and _HUNK.match(b"".join(lines[at + 2 : at + 3])):
            if not announced:
                files.append([])
            announced = False
            at += 1
        elif files and (header := _HUNK.match(lines[at])):
            line, old, new = int(header[1]), int(header[2] or 1), int(header[3] or 1)
            body = list(_body(lines[at + 1 :], old, new))
            kept = tuple(text[1:] for text in body if text[:1] not in (b"+", b"\\"))
            files[-1].append(Hunk(line, kept))
            at += len(body)
        at += 1
    return [tuple(hunks) for hunks in files]


def _body(lines: Sequence[bytes], old: int, new: int) -> Iterator[bytes]:
    """As many lines as a hunk's header promises."""
    for line in lines:
        if old <= 0 and new <= 0 and not line.startswith(b"\\"):
            return
        yield line
        old -= line[:1] not in (b"+", b"\\")
        new -= line[:1] not in (b"-", b"\\")


def first_difference(hunk: Hunk, content: bytes) -> Difference | None:
    """What is not as the hunk expects it, where the file is most like it; None if all is."""
    there = content.split(b"\n")
    if there[-1] == b"":
        there.pop()
    places = range(max(1, len(there) - len(hunk.old) + 1))
    start = max(places, key=lambda place: (_alike(hunk.old, there, place), -abs(place + 1 - hunk.line)))
    for offset, expected in enumerate(hunk.old):
        found = there[start + offset] if start + offset < len(there) else None
        if found != expected:
            return Difference(start + offset + 1, expected, found)
    return None


def _alike(old: Sequence[bytes], there: Sequence[bytes], place: int) -> int:
    """Lines that are as expected, but for empty ones and such, which are everywhere."""
    pairs = zip(old, there[place : place + len(old)], strict=False)
    return sum(1 + 8 * (len(expected.strip()) > 3) for expected, found in pairs if expected == found)
