# SPDX-License-Identifier: GPL-2.0-only
"""`testbed history`: one metric over stored results of many kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.experiment import ALPHA
from testbed.host.errors import SpecError
from testbed.verbs import results
from testbed.verbs.results import History


@dataclass(frozen=True)
class HistoryRequest:
    """A metric over results, in their order; a change within `margin`, a share of the value, is none."""

    results: tuple[Path, ...]
    metric: str
    margin: float
    picture: Path | None = None


def history(request: HistoryRequest) -> History:
    """What each kernel has, and what changed from each to the next. Raises SpecError."""
    if not 0 < request.margin < 1:
        raise SpecError(f"--margin: {request.margin:g} is not between 0 and 1")
    suffix = request.picture.suffix.removeprefix(".") if request.picture else ""
    if request.picture and suffix not in ("svg", "png"):
        raise SpecError(f"{request.picture}: a picture is .svg or .png")
    return results.history(request.results, request.metric, ALPHA, request.margin)


def draw(history: History, picture: Path) -> None:
    """Draw a history, as SVG or PNG by its name. Raises OSError."""
    from testbed.report import plots  # noqa: PLC0415  (slow, with matplotlib)

    figure = plots.history(
        history.title,
        [point.label for point in history.points],
        [list(point.values.values()) for point in history.points],
        [decision.verdict for decision in history.decisions],
    )
    # Asked for by name: that it cannot be written is an error, one line and status 3.
    picture.write_bytes(plots.rendered(figure, picture.suffix.removeprefix(".")))
