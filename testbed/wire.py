# SPDX-License-Identifier: GPL-2.0-only
"""What a guest says on its console: marks and frames, between kernel messages. Pure.

A mark is a line `#tb:NAME KEY=VALUE...`. A frame carries the content of a file:

    #tb:frame NAME LENGTH CRC32
    ...LENGTH bytes, in which every line that begins with `#` has another one in front...
    #tb:close NAME

Before a program of the user's starts, init draws a nonce and says `#tb:user nonce=NONCE`. From then on marks
begin with `#tb-NONCE:`, and nothing else is one: the program does not know it.

The encoder is images/src/tell.c. Whatever lands in the middle of a frame changes its checksum: such a
frame is refused, never guessed at.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_PLAIN = b"#tb:"
_NONCE = re.compile(rb"(?:^|\n)#tb:user(?: [^\r\n]*)? nonce=([0-9a-f-]{36})(?: [^\r\n]*)?\r?\n")
_HEADER = re.compile(rb" ([A-Za-z0-9_.-]{1,64}) (\d{1,9}) ([0-9a-f]{8})")
_NAME = re.compile(rb" ([A-Za-z0-9_.-]{1,64})")
_STUFFED = re.compile(rb"^##", re.MULTILINE)
# A log may end with a mark whose line end is still to come.
_LINE_END = (b"\n", b"\r", b"")
_MISMATCH = "checksum or end does not match"


@dataclass(frozen=True)
class Form:
    """What marks look like: `prefix` is what each begins with."""

    prefix: bytes = _PLAIN

    @functools.cached_property
    def mark(self) -> re.Pattern[bytes]:
        """A mark, with its name and the rest of its line."""
        return self._pattern(rb"(?:^|\n)", rb"([a-z]+)(?: ([^\r\n]*))?\r?\n")

    @functools.cached_property
    def end(self) -> re.Pattern[bytes]:
        """The last mark of a trial."""
        return self._pattern(rb"\n", rb"end(?: [^\r\n]*)?\r?\n")

    @functools.cached_property
    def border(self) -> re.Pattern[bytes]:
        """Where a frame begins or ends, or would have if its mark were whole."""
        return self._pattern(rb"(?:^|\n)", rb"(frame|close)\b([^\r\n]{0,100})")

    @functools.cached_property
    def close(self) -> bytes:
        """What the mark at a frame's end begins with."""
        return b"\n" + self.prefix + b"close "

    def _pattern(self, before: bytes, after: bytes) -> re.Pattern[bytes]:
        return re.compile(before + re.escape(self.prefix) + after)


def form(log: bytes) -> Form:
    """What marks of a console log look like, from where init has said so: no other comes after it."""
    nonce = _NONCE.search(log)
    return Form(b"#tb-" + nonce[1] + b":") if nonce else Form()


@dataclass(frozen=True)
class Mark:
    """A mark's name and its fields; words without `=` are in `text` only."""

    name: str
    text: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Frames:
    """The frames of a log that arrived whole, and a line for each that did not.

    `lost`: bytes of the log from where a damaged frame begins to where it ends, or else to the next mark.
    `between`: the log without the whole frames. `form`: what its marks look like.
    """

    contents: Mapping[str, bytes]
    damaged: tuple[str, ...] = field(default=())
    lost: int = 0
    between: bytes = b""
    form: Form = field(default=Form())


def mark(match: re.Match[bytes]) -> Mark:
    """The mark of a match of a form's."""
    text = (match[2] or b"").decode("ascii", "replace")
    fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return Mark(match[1].decode("ascii"), text, fields)


def frames(log: bytes) -> Frames:
    """All frames in a console log. One that arrived twice counts if both say the same, else neither does.

    A guest sends one frame after the other: what lies between the marks of a damaged one, or within its
    length if its end is missing, is its content, even if it looks like a frame.
    """
    whole: dict[str, set[bytes]] = {}
    damaged: list[str] = []
    between: list[bytes] = []
    looks = form(log)
    borders = list(looks.border.finditer(log))
    closes = _closes(borders)
    index = kept = lost = 0
    while index < len(borders):
        border, name = borders[index], _name(borders[index])
        begin, index = border.start(), index + 1
        following = borders[index].start() if index < len(borders) else len(log)
        if border[1] == b"close":
            damaged.append(f"frame {name.decode('ascii') or '?'}: its beginning is missing")
            lost += border.end() - begin
            continue
        end, reason = _end(log, border, following, looks.close)
        if end:
            between.append(log[kept:begin])
            body = _STUFFED.sub(b"#", log[border.end() + 1 : end])
            whole.setdefault(name.decode("ascii"), set()).add(body)
            kept, index = end + len(looks.close + name), index + 1
            continue
        damaged.append(f"frame {name.decode('ascii') or '?'}: {reason}")
        if close := closes.get(index - 1):
            lost += borders[close].end() - begin
            index = close + 1
        else:
            # Nor is there anything else in the length that it was to have.
            while index < len(borders) and borders[index].start() < _expected_end(border):
                index += 1
            lost += (borders[index].start() if index < len(borders) else len(log)) - begin
    between.append(log[kept:])
    unlike = {name: len(bodies) for name, bodies in whole.items() if len(bodies) > 1}
    damaged += [f"frame {name}: arrived with {count} contents" for name, count in unlike.items()]
    contents = {name: next(iter(bodies)) for name, bodies in whole.items() if name not in unlike}
    return Frames(contents, tuple(damaged), lost, b"".join(between), looks)


def _name(border: re.Match[bytes]) -> bytes:
    """The name in a mark, as far as it can be told."""
    match = _NAME.fullmatch(border[2]) if border[1] == b"close" else _NAME.match(border[2])
    return match[1] if match else b""


def _closes(borders: Sequence[re.Match[bytes]]) -> Mapping[int, int]:
    """Of each mark that begins a frame, which one ends it, if that comes before the next of the same name."""
    found: dict[int, int] = {}
    ahead: dict[bytes, int] = {}
    for index in range(len(borders) - 1, -1, -1):
        name = _name(borders[index])
        if borders[index][1] == b"close":
            ahead[name] = index
        elif name in ahead:
            found[index] = ahead.pop(name)
    return found


def _expected_end(border: re.Match[bytes]) -> int:
    """Where the content of the frame that begins here would end, had it come whole."""
    header = _HEADER.fullmatch(border[2])
    return border.end() + 1 + int(header[2]) if header else border.end()


def _end(log: bytes, border: re.Match[bytes], following: int, closing: bytes) -> tuple[int | None, str]:
    """Where the content of the frame that begins here ends; None, and why, if it is not whole.

    `following` is where the next mark begins, which has to be its own: there is none in a stuffed content.
    `closing` is what a mark at a frame's end begins with.
    """
    header = _HEADER.fullmatch(border[2])
    begin, end = border.end() + 1, _expected_end(border)
    if header is None or log[border.end() : begin] != b"\n":
        return None, "its header is damaged"
    close = closing + header[1]
    if end > len(log):
        return None, f"cut off after {len(log) - begin} of {int(header[2])} bytes"
    # The cheap checks first: a log may be nothing but damaged headers.
    if end != following or not log.startswith(close, end):
        return None, _MISMATCH
    if log[end + len(close) : end + len(close) + 1] not in _LINE_END:
        return None, _MISMATCH
    if zlib.crc32(log[begin:end]) != int(header[3], 16):
        return None, _MISMATCH
    return end, ""
