# SPDX-License-Identifier: GPL-2.0-only
"""The documents that testbed writes are what their published schema says, and nothing else is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from testbed.analysis import selfcheck as analysis
from testbed.ledger.document import parsed
from testbed.report import selfcheck as placebo
from testbed.report.document import ComparisonReport
from testbed.report.schema import schema
from testbed.report.selfcheck import SelfcheckReport
from testbed.verbs import reports, results
from tests.unit.recorded import UNPATCHED, measured, pair, plan, record, write_result
from tests.unit.test_matrix import made as made_matrix
from tests.unit.test_profile import with_why
from tests.unit.test_selfcheck import outcome

SCHEMA: Any = schema()
VALIDATOR = Draft202012Validator(SCHEMA)
LOW = [1000, 1010, 990, 1005, 995, 1008]
HIGH = [count * 13 // 10 for count in LOW]


def of(part: str) -> Draft202012Validator:
    """The schema of one kind of document, whose complaints name a place."""
    return Draft202012Validator({**SCHEMA["$defs"][part], "$defs": SCHEMA["$defs"]})


def failed(directory: Path) -> Path:
    rows = [(record("x", 1, "oom", "of memory"), UNPATCHED), (record("y", 1, "lost"), b"")]
    return write_result(directory, plan(["x", "y"]), rows)


RESULTS: dict[str, Callable[[Path], Path]] = {
    "three arms": lambda path: measured(path, {"a": LOW, "b": HIGH, "c": LOW[::-1]}),
    "too few seeds": lambda path: measured(path, {"a": LOW[:2], "b": HIGH[:2]}),
    "nothing before": lambda path: measured(path, {"a": [0] * 6, "b": HIGH}),
    "nothing at all": lambda path: measured(path, {"a": [0] * 6, "b": [0] * 6}),
    "no primary metric": pair,
    "no seed": failed,
    "no trial": lambda path: write_result(path, plan(), []),
}


def test_a_comparison_that_says_why_is_valid_as_it_is_written(tmp_path: Path) -> None:
    written = json.loads(with_why(tmp_path / "r").text())
    VALIDATOR.validate(written)
    written["why"]["b"]["functions"][0].pop("certain")
    assert not VALIDATOR.is_valid(written)


@pytest.mark.parametrize("name", RESULTS)
def test_a_comparison_is_valid_as_it_is_written(tmp_path: Path, name: str) -> None:
    directory = RESULTS[name](tmp_path / "r")
    result = results.load(directory)
    made = results.report(result)
    reports.put(directory / "report.json", reports.FORMS["json"][1](made), pytest.fail)
    text = (directory / "report.json").read_text()
    # What is read is what was made.
    read = parsed(ComparisonReport, text)
    assert read == made and read.text(indent=2) + "\n" == text
    written = json.loads(text)
    of("ComparisonReport").validate(written)
    VALIDATOR.validate(written)


def test_a_matrix_is_valid() -> None:
    made = json.loads(made_matrix().text())
    of("MatrixReport").validate(made)
    VALIDATOR.validate(made)


def test_a_selfcheck_is_valid() -> None:
    outcomes = [outcome("one", True, False), outcome("other", None, False)]
    report = placebo.document(
        "x", analysis.check(outcomes, 0.05), outcomes, failures={"03": "why"}, pairs=6, titles={"0": "t"}
    )
    assert parsed(SelfcheckReport, report.text()) == report
    made = json.loads(report.text())
    of("SelfcheckReport").validate(made)
    VALIDATOR.validate(made)


def test_two_results_beside_each_other_are_valid_whatever_they_are_called(tmp_path: Path) -> None:
    paths = [measured(tmp_path / name, {"a": LOW}) for name in ("A result", "\udcff:")]
    made = json.loads(results.report(results.joined(paths)).text())
    assert list(made["arms"]) == [str(paths[0]), f"{tmp_path}/\\udcff:"]
    VALIDATOR.validate(made)


def test_every_kind_of_report_has_a_version() -> None:
    kinds = [of["$ref"].rpartition("/")[2] for of in SCHEMA["anyOf"]]
    versions = {kind: SCHEMA["$defs"][kind]["properties"]["schema"]["const"] for kind in kinds}
    assert versions == {"ComparisonReport": 2, "BisectionReport": 1, "MatrixReport": 1, "SelfcheckReport": 1}
    Draft202012Validator.check_schema(SCHEMA)


DECISION = ("verdicts", "b", "primary", "direct_reclaims")


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ((), lambda d: d.pop("seeds")),
        ((), lambda d: d.update(more=1)),
        (("schema",), lambda d: d.update(schema=3)),
        (("seeds", 0), lambda d: d.update(seeds=["1"])),
        (("arms", "a"), lambda d: d["arms"]["a"].pop("metrics")),
        (("arms", "a", "outcomes", "measured"), lambda d: d["arms"]["a"]["outcomes"].update(measured=-1)),
        (("arms", "a", "metrics", "direct_reclaims"), lambda d: _metric(d).pop("unit")),
        (("arms", "a", "metrics", "direct_reclaims", "kind"), lambda d: _metric(d).update(kind="odd")),
        (("arms", "a", "metrics", "direct_reclaims", "values"), lambda d: _metric(d).update(values={"x": 1})),
        (DECISION, lambda d: _decision(d).pop("verdict")),
        (DECISION, lambda d: _decision(d).update(opinion="good")),
        ((*DECISION, "verdict"), lambda d: _decision(d).update(verdict="better")),
        ((*DECISION, "pairs"), lambda d: _decision(d).update(pairs=None)),
        (("provenance",), lambda d: d["provenance"].pop("kernels")),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_is_not_a_document_is_told_where(
    tmp_path: Path, place: tuple[str | int, ...], change: Callable[[Any], object]
) -> None:
    result = results.load(measured(tmp_path / "r", {"a": LOW, "b": HIGH}))
    made = json.loads(results.report(result).text())
    wrong = copy.deepcopy(made)
    change(wrong)
    assert [tuple(error.absolute_path) for error in of("ComparisonReport").iter_errors(wrong)] == [place]
    assert not VALIDATOR.is_valid(wrong)


def _metric(made: Any) -> Any:
    return made["arms"]["a"]["metrics"]["direct_reclaims"]


def _decision(made: Any) -> Any:
    return made["verdicts"]["b"]["primary"]["direct_reclaims"]
