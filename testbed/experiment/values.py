# SPDX-License-Identifier: GPL-2.0-only
"""What the values of an experiment file are: sizes, names, and the model that all of it is made of."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    WithJsonSchema,
)

from testbed.host.files import MiB

PAGE = 4096

_SIZE = re.compile(r"(\d+)\s*([KMG])(?:i?B)?", re.IGNORECASE)
_UNITS = {"K": 1024, "M": MiB, "G": 1024 * MiB}


def parse_size(value: object) -> int:
    """Bytes of a size such as `128M` or `1GiB`. Raises ValueError."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{reprlib.repr(value)} is not a size: write a number and a unit, as in 128M")
    return int(match[1]) * _UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """The shortest exact form of a size in bytes that parse_size() reads."""
    for unit in "GMK":
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    raise ValueError(f"{size} is not a multiple of 1 KiB")


def _sized(value: object, info: ValidationInfo) -> int:
    # What is stored has bytes. In a file, 0 may well be meant to have a unit, as all small numbers.
    least = 0 if info.mode == "json" else 1024
    return value if type(value) is int and value >= least and value % 1024 == 0 else parse_size(value)


SIZE_SCHEMA = {"type": "string", "pattern": "^[0-9]+ *[KMGkmg](i?[Bb])?$", "examples": ["128M"]}

# In bytes; a file has a unit.
Size = Annotated[int, BeforeValidator(_sized), WithJsonSchema(SIZE_SCHEMA, mode="validation")]
Seconds = Annotated[float, Field(gt=0, le=3600)]
# Where two results are compared, the arms have the names of the results.
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[
    str,
    Field(pattern=NAME),
    WithJsonSchema({"type": "string"}, mode="serialization"),
]
WORD = r"^[!-~]+$"
Word = Annotated[str, Field(pattern=WORD, description="A word without blanks.")]
# As in vm.swappiness.
SYSCTL = r"^[a-z0-9_]+(\.[A-Za-z0-9_-]+)+$"
SysctlName = Annotated[str, Field(pattern=SYSCTL)]
# As in kernel/mm/lru_gen/enabled, beneath /sys: no part of it is `.` or `..`.
SYSFS = r"^\.*[A-Za-z0-9_:-][A-Za-z0-9_.:-]*(/\.*[A-Za-z0-9_:-][A-Za-z0-9_.:-]*)+$"
SysfsName = Annotated[str, Field(pattern=SYSFS)]
# init's shell splits a command into words, and writes what it was given with a blank between them.
_WORDS = r"^[!-~]+( [!-~]+)*$"
_LONGEST_SETTING = 1024


def _setting(value: object) -> object:
    if isinstance(value, bool) or value is None:
        raise ValueError(
            "should be a number or text; `yes`, `no`, `on`, `off`, `true` and `false` need quotes"
        )
    if not isinstance(value, int) and not (isinstance(value, str) and re.search(_WORDS, value)):
        raise ValueError(
            f'{reprlib.repr(value)} is neither a number nor words with a blank between them, as in "32 32 0"'
        )
    if isinstance(value, str) and len(value) > _LONGEST_SETTING:
        raise ValueError(f"has {len(value)} characters; at most {_LONGEST_SETTING}")
    return value


# What is written to a file in /proc/sys or /sys.
Setting = Annotated[
    int | Annotated[str, Field(pattern=_WORDS, max_length=_LONGEST_SETTING)], BeforeValidator(_setting)
]
# Levels of lists and mappings in a file.
MOST_DEPTH = 32


def _not_too_deep(value: JsonValue, depth: int = 1) -> JsonValue:
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _not_too_deep(inner, depth + 1)
    return value


# Whatever a file may say.
Json = Annotated[JsonValue, AfterValidator(_not_too_deep), WithJsonSchema({})]


def describe(at: Mapping[str, object]) -> str:
    """A cell in words, as in `vcpus=2, tasks=16`: the end of each axis that tells it from the others."""
    return ", ".join(f"{_short(axis, at)}={_flow(value)}" for axis, value in at.items())


def _short(axis: str, axes: Collection[str]) -> str:
    parts = axis.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith(f".{end}") for other in axes) == 1:
            return end
    return axis


def _flow(value: object) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


class Model(BaseModel):
    """Immutable, and closed: a key that is not known is an error. What stands under a key describes it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


def one_of(model: Model, keys: Sequence[str]) -> str:
    """The one key of these that is given. Raises ValueError unless it is exactly one."""
    given = [key for key in keys if getattr(model, key) is not None]
    if len(given) != 1:
        known = f"{', '.join(keys[:-1])} and {keys[-1]}"
        found = f" (found {', '.join(given)})" if given else ""
        raise ValueError(f"give exactly one of {known}{found}")
    return given[0]
