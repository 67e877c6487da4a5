# SPDX-License-Identifier: GPL-2.0-only
"""What a guest says on its console: marks and frames, between kernel messages. Pure.

A mark is a line `#tb:NAME KEY=VALUE...`. A frame carries the content of a file:

    #tb:frame NAME LENGTH CRC32
    ...LENGTH bytes, in which every line that begins with `#` has another one in front...
    #tb:close NAME

The encoder is images/src/tell.c. Whatever lands in the middle of a frame changes its checksum: such a
frame is refused, never guessed at.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

MARK = re.compile(rb"(?:^|\n)#tb:([a-z]+)(?: ([^\r\n]*))?\r?\n")
# The last that a trial says.
END = re.compile(rb"\n#tb:end(?: [^\r\n]*)?\r?\n")
_FRAME = re.compile(rb"(?:^|\n)#tb:frame ([A-Za-z0-9_.-]{1,64}) (\d{1,9}) ([0-9a-f]{8})\n")
_CLOSE = b"\n#tb:close "
_STUFFED = re.compile(rb"^##", re.MULTILINE)


@dataclass(frozen=True)
class Mark:
    """A mark's name and its fields; words without `=` are in `text` only."""

    name: str
    text: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Frames:
    """The frames of a log that arrived whole, and a line for each that did not."""

    contents: Mapping[str, bytes]
    damaged: tuple[str, ...] = field(default=())


def mark(match: re.Match[bytes]) -> Mark:
    """The mark of a match of MARK."""
    text = (match[2] or b"").decode("ascii", "replace")
    fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return Mark(match[1].decode("ascii"), text, fields)


def frames(log: bytes) -> Frames:
    """All frames in a console log. Of two whole frames with one name the last counts."""
    contents: dict[str, bytes] = {}
    damaged: list[str] = []
    position = 0
    while match := _FRAME.search(log, position):
        name, length, crc = match[1].decode("ascii"), int(match[2]), int(match[3], 16)
        position, end = match.end(), match.end() + length
        # The cheap checks first: a log may be nothing but damaged headers.
        if end > len(log):
            damaged.append(f"frame {name}: cut off after {len(log) - position} of {length} bytes")
        elif not log.startswith(_CLOSE + match[1], end) or zlib.crc32(log[position:end]) != crc:
            damaged.append(f"frame {name}: checksum or end does not match")
        else:
            contents[name] = _STUFFED.sub(b"#", log[position:end])
            position = end
    return Frames(contents, tuple(damaged))
