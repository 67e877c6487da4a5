# SPDX-License-Identifier: GPL-2.0-only
"""Metrics of a program's own: which of the numbers that it says, and what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import re2
from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from testbed.experiment.values import Model

# What is measured is here: a program has no business there.
RESULT = "/run/result/"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


# What is wrong with a pattern is said by us.
_QUIETLY = re2.Options()
_QUIETLY.log_errors = False


def _compiled(pattern: str) -> Any:
    # RE2 takes time that grows with the text and no faster: patterns come with results, from anywhere.
    try:
        return re2.compile(f"(?m){pattern}", _QUIETLY)
    except (re2.error, UnicodeError) as bad:
        said = bad.args[0] if bad.args else bad
        raise ValueError(
            f"is not a regular expression: {said.decode() if isinstance(said, bytes) else said}"
        ) from bad


def _regular_expression(text: str) -> str:
    groups = _compiled(text).groups
    if groups != 1:
        raise ValueError(
            f"has {groups} groups and should have one, the number; `(?:...)` is a group that does not count"
        )
    return text


def _guest_file(text: str) -> str:
    if not text.startswith("/") or text.endswith("/") or {"", ".", ".."} & set(text[1:].split("/")):
        raise ValueError("should be a file in the guest, as in /run/example.json")
    if text.startswith(RESULT):
        raise ValueError(f"{text} is where testbed's own files are; let the program write to another place")
    if not _NAME.fullmatch(frame_of(text)):
        raise ValueError(f"{text} is too long, or has other characters than letters, digits, `_`, `.`, `-`")
    return text


def frame_of(file: str) -> str:
    """What a file in the guest is called in the log."""
    return "file." + file.strip("/").replace("/", "_")


class OwnMetric(Model):
    """A number that the program says: exactly one of `pattern` and `json`."""

    pattern: Annotated[str, AfterValidator(_regular_expression)] | None = None
    """A regular expression (RE2) with one group, the number, as in `'([0-9.]+) KB/s'`; `^` and `$` are a
    line's."""
    path: Annotated[str | None, Field(alias="json", min_length=1)] = None
    """Where in JSON it is, as in `jobs.0.iops`; `*` stands for all entries. Other text may be around."""
    file: (
        Annotated[
            str,
            AfterValidator(_guest_file),
            WithJsonSchema({"type": "string", "pattern": "^/", "examples": ["/run/example.json"]}),
        ]
        | None
    ) = None
    """A file that the program writes in the guest, in place of what it prints."""
    unit: Annotated[str, Field(max_length=16)] = ""
    """As it is to be shown."""
    better: Literal["higher", "lower"] | None = None
    """Which direction is an improvement, if one is."""
    combine: Literal["sum", "mean", "max", "min", "last"] | None = None
    """What to make of several numbers. Without it there has to be exactly one."""

    @property
    def frame(self) -> str:
        """What it is in is called so in the log."""
        return frame_of(self.file) if self.file else "output"

    def found_in(self, text: str) -> Iterator[str]:
        """What the pattern's group finds in a text; of alternatives, one may be without it."""
        for match in _compiled(self.pattern or "()").finditer(text):
            if match[1] is not None:
                yield match[1]

    @model_validator(mode="after")
    def _one_place(self) -> OwnMetric:
        if (self.pattern is None) == (self.path is None):
            found = " (found both)" if self.pattern else ""
            raise ValueError(f"give exactly one of pattern and json{found}")
        return self
