# SPDX-License-Identifier: GPL-2.0-only
"""Metrics that an experiment declares: numbers that its program says, found in a trial's log. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from testbed.analysis.metrics import METRICS, Metric
from testbed.analysis.parse import Measurement
from testbed.analysis.views import Whole

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_DOCUMENT = re.compile(r"^[ \t]*([\[{])", re.MULTILINE)
_LARGEST = 2.0**64
_COMBINED: Mapping[str, Callable[[Sequence[float]], float]] = {
    "sum": sum,
    "mean": lambda values: sum(values) / len(values),
    "max": max,
    "min": min,
    "last": lambda values: values[-1],
}


class Declared(Protocol):
    """What an experiment says of such a number; as experiment.own.OwnMetric."""

    @property
    def pattern(self) -> str | None: ...

    @property
    def path(self) -> str | None: ...

    def found_in(self, text: str) -> Iterator[str]: ...

    @property
    def frame(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def better(self) -> Literal["higher", "lower"] | None: ...

    @property
    def combine(self) -> str | None: ...


def with_own(declared: Mapping[str, Declared]) -> tuple[Metric, ...]:
    """The metrics of an experiment that declares these: the registry's, and its own."""
    known = [metric for metric in METRICS if metric.name not in declared]
    return (*known, *(_metric(name, own) for name, own in declared.items()))


def _metric(name: str, own: Declared) -> Metric:
    source = f"{own.frame}: {own.pattern or own.path}"
    view = Whole(lambda m: value(own, _text(m, own.frame)))
    return Metric(name, name, own.unit, own.better or "neither", "rate", view, source)


def _text(m: Measurement, frame: str) -> str:
    return m.output if frame == "output" else m.files.get(frame, "")


def value(own: Declared, text: str) -> float | None:
    """The number that is meant.

    None where there is none, where one of them cannot be read, and of several that are not to be combined.
    """
    found = list(_in_json(own.path, text)) if own.path is not None else list(map(_number, own.found_in(text)))
    values = [number for number in found if number is not None]
    if not values or len(values) < len(found) or (len(values) > 1 and own.combine is None):
        return None
    combined = _COMBINED[own.combine or "last"](values)
    return combined if abs(combined) < _LARGEST else None


def _number(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):
        return None
    return int(text) if text.isdigit() else _in_range(float(text))


def _in_range(number: float) -> float | None:
    return number if -_LARGEST < number < _LARGEST else None


def _in_json(path: str, text: str) -> Iterator[float | None]:
    for document in _documents(text):
        for found in _at(document, path):
            # True is an int, too.
            number = None if isinstance(found, bool) or not isinstance(found, int | float) else found
            yield None if number is None else _in_range(number)


def _documents(text: str) -> Iterator[object]:
    """The JSON in a text: arrays and objects that begin a line."""
    decoder, at = json.JSONDecoder(), 0
    while match := _DOCUMENT.search(text, at):
        try:
            document, at = decoder.raw_decode(text, match.start(1))
        except (ValueError, RecursionError):
            at = match.end()
        else:
            yield document


def _at(value: object, path: str) -> Iterator[object]:
    """What is at a dotted path. Names may have dots themselves: of those that fit, the longest is meant."""
    if not path:
        yield value
        return
    head, _, rest = path.partition(".")
    if isinstance(value, dict):
        fitting = [key for key in value if path == key or path.startswith(f"{key}.")]
        if fitting:
            key = max(fitting, key=len)
            yield from _at(value[key], path[len(key) + 1 :])
        elif head == "*":
            for inner in value.values():
                yield from _at(inner, rest)
    elif isinstance(value, list):
        numbered = head.isdecimal() and int(head) < len(value)
        for inner in value if head == "*" else [value[int(head)]] if numbered else []:
            yield from _at(inner, rest)
