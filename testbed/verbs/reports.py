# SPDX-License-Identifier: GPL-2.0-only
"""Reports as files of a result directory: in all their forms, with their pictures. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.host import files
from testbed.host.errors import NoSpace
from testbed.report import interchange, matrix, text
from testbed.report.document import ComparisonReport
from testbed.report.matrix import MatrixReport
from testbed.verbs.results import Result

if TYPE_CHECKING:
    # What needs scipy or matplotlib takes long to import: where it is used, and no earlier.
    from matplotlib.figure import Figure

    from testbed.report.selfcheck import SelfcheckReport

Warn = Callable[[str], None]
# Form -> the file in a result directory, and what makes it of the report.
FORMS: dict[str, tuple[str, Callable[[ComparisonReport], str]]] = {
    "json": ("report.json", lambda report: report.text(indent=2) + "\n"),
    "markdown": ("report.md", text.markdown),
    "junit": ("report.xml", interchange.junit),
    "ktap": ("report.ktap", interchange.ktap),
}


def write(directory: Path, result: Result, report: ComparisonReport, warn: Warn) -> None:
    """The report in all its forms, and its pictures, into the result directory."""
    from testbed.report import html, pictures  # noqa: PLC0415

    for name, make in FORMS.values():
        put(directory / name, make(report), warn)
    drawn = pictures.pictures(report, result.comparison, result.observations)
    for picture in drawn:
        for suffix, data in (("svg", picture.svg), ("png", picture.png)):
            put(directory / "pictures" / f"{picture.name}.{suffix}", data, warn)
    put(directory / "report.html", html.page(report, drawn), warn)


def write_matrix(home: Path, report: MatrixReport, warn: Warn) -> None:
    """The table of a matrix and its heat maps, into its directory."""
    from testbed.report import plots  # noqa: PLC0415

    put(home / "report.json", report.text(indent=2) + "\n", warn)
    put(home / "report.md", matrix.markdown(report), warn)
    for grid in matrix.grids(report):
        put_picture(home, f"{grid.metric}.{grid.arm}", plots.heat_map(grid), warn)


def write_selfcheck(home: Path, report: SelfcheckReport, warn: Warn) -> None:
    """The report and its picture, into the directory."""
    from testbed.report import plots  # noqa: PLC0415

    put(home / "selfcheck.json", report.text(indent=2) + "\n", warn)
    exploratory = report.exploratory
    kinds = {kind: values for kind, values in exploratory.kinds.items() if values}
    if kinds:
        title = f"{report.name}: {len(report.comparisons)} comparisons without an effect"
        figure = plots.diagonal(kinds, title, f"a metric in a comparison ({exploratory.pairs} pairs)")
        put_picture(home, "selfcheck", figure, warn)


def put_picture(directory: Path, name: str, figure: Figure, warn: Warn) -> bytes:
    """Write a picture into a result directory, as SVG and as PNG. Returns the SVG."""
    from testbed.report import plots  # noqa: PLC0415

    drawn = {suffix: plots.rendered(figure, suffix) for suffix in ("svg", "png")}
    for suffix, data in drawn.items():
        put(directory / "pictures" / f"{name}.{suffix}", data, warn)
    return drawn["svg"]


def put(path: Path, content: str | bytes, warn: Warn) -> None:
    """Write a file in one step; a result on read-only media can still be reported on."""
    try:
        path.parent.mkdir(exist_ok=True)
        files.write(path, content)
    except (OSError, NoSpace) as unwritable:
        why = unwritable.strerror if isinstance(unwritable, OSError) else unwritable.message
        warn(f"{path}: not written: {why}")
