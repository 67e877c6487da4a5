# SPDX-License-Identifier: GPL-2.0-only
"""A matrix of comparisons: expanded, run cell by cell, put into one table and into heat maps."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.analysis.compare import Observation
from testbed.analysis.decision import Decision, Judgement
from testbed.analysis.parse import parse
from testbed.experiment import Cell, Experiment, Json, MiB, expand
from testbed.experiment.model import PrimarySpec
from testbed.host.errors import BuildError, HostError, Interrupted, SpecError, StoreError
from testbed.ledger import matrix as cells
from testbed.ledger.document import parsed
from testbed.report import matrix, plots
from testbed.report.document import compared, document
from testbed.report.matrix import MatrixReport
from tests.unit.recorded import PATCHED, UNPATCHED, counted, documented, plan, record

BASE = {
    "name": "x",
    "kernel": {"debian": "linux-source-6.1"},
    "arms": {"a.b": {}, "c": {"sysctl": {"vm.swappiness": 1}}},
}


def write(tmp_path: Path, axes: Mapping[str, Any], **more: Any) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**BASE, **more, "matrix": axes}, sort_keys=False))
    return path


def expanded(tmp_path: Path, axes: Mapping[str, Any], **more: Any) -> tuple[Cell, ...]:
    return expand(write(tmp_path, axes, **more))


# --- expansion -----------------------------------------------------------------------------------


def test_without_a_matrix_there_is_one_cell_without_a_name(tmp_path: Path) -> None:
    (cell,) = expanded(tmp_path, {})
    assert (cell.at, cell.name, cell.label, cell.experiment.name) == ({}, "", "", "x")


def test_every_combination_is_a_cell(tmp_path: Path) -> None:
    found = expanded(tmp_path, {"guest.vcpus": [2, 4], "workload.mmap_test.tasks": [1, 2, 3]})
    shapes = [
        (e.guest.vcpus, e.workload.mmap_test.tasks)
        for e in (c.experiment for c in found)
        if e.workload.mmap_test
    ]
    assert shapes == [(2, 1), (2, 2), (2, 3), (4, 1), (4, 2), (4, 3)]
    assert found[0].label == "vcpus=2, tasks=1"
    assert found[0].name == "vcpus=2,tasks=1"
    assert len({cell.name for cell in found}) == 6


@pytest.mark.parametrize(
    ("axis", "value", "read"),
    [
        ("guest.memory", "96M", lambda e: e.guest.memory == 96 * MiB),
        ("guest.balloon", {"step": {"to": "96M"}}, lambda e: e.guest.balloon.step.to == 96 * MiB),
        ("guest.balloon.step.at", 0.5, lambda e: e.guest.balloon.step.at == 0.5),
        ("guest.mglru", True, lambda e: e.guest.mglru),
        ("guest.swap", "0M", lambda e: e.guest.swap == 0),
        ("guest.nodes", 2, lambda e: e.guest.nodes == 2),
        ("guest.sysctl.vm.dirty_ratio", 5, lambda e: e.guest.sysctl == {"vm.dirty_ratio": 5}),
        ("kernel.debian", "linux-source-6.12", lambda e: e.kernel.debian == "linux-source-6.12"),
        ("arms.a.b.sysctl.vm.swappiness", 7, lambda e: e.arms["a.b"].sysctl == {"vm.swappiness": 7}),
        ("arms.c.sysctl.vm.reclaim_capture", 2, lambda e: len(e.arms["c"].sysctl) == 2),
        ("workload", {"fork_storm": {"tasks": 3}}, lambda e: e.workload.load.tasks == 3),
    ],
)
def test_an_axis_may_be_any_key(tmp_path: Path, axis: str, value: Any, read: Any) -> None:
    guest = {"balloon": {"step": {"to": "64M"}}}
    (cell,) = expanded(tmp_path, {axis: [value]}, guest=guest)
    assert read(cell.experiment)
    # What the axis does not name stays as it is in the file.
    assert cell.experiment.arms["c"].sysctl["vm.swappiness"] == 1


def test_two_axes_with_the_same_end_keep_what_tells_them_apart(tmp_path: Path) -> None:
    axes = {"guest.sysctl.vm.swappiness": [1], "arms.c.sysctl.vm.swappiness": [2]}
    (cell,) = expanded(tmp_path, axes)
    assert cell.label == "guest.sysctl.vm.swappiness=1, c.sysctl.vm.swappiness=2"


def test_a_value_that_is_a_mapping_gets_a_file_name(tmp_path: Path) -> None:
    found = expanded(tmp_path, {"guest.balloon": [{"step": {"to": "96M"}}, {"step": {"to": "100M"}}, None]})
    assert len({cell.name for cell in found}) == 3
    assert all("/" not in cell.name and " " not in cell.name for cell in found)
    assert found[0].label == "balloon={step: {to: 96M}}"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"guest.vcpus": []}, "should be keys with a list of values each"),
        ([1], "should be keys with a list of values each"),
        ({"gest.vcpus": [1]}, "`matrix.gest.vcpus`: begins with no key of an experiment; did you mean `gu"),
        ({"name": ["a", "b"]}, "begins with no key of an experiment"),
        ({"guest.vcpus": [2, 99]}, "should be at most 64 (found 99), with vcpus=99"),
        ({"guest.vcpu": [2]}, "`guest.vcpu`: unknown key; did you mean `vcpus`?"),
        ({"seeds": list(range(1, 1002))}, "has more than 1000 combinations"),
        (
            {"guest.memory": ["96M", "600M"], "seeds": [1, 2]},
            "a balloon can only take away, with memory=600M, seeds=1 and 1 more",
        ),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path: Path, axes: Any, message: str) -> None:
    path = write(tmp_path, axes)
    with pytest.raises(SpecError) as caught:
        expand(path)
    assert message in str(caught.value)
    # The line of the axis, or of `matrix`.
    line = int(str(caught.value).split(":")[1])
    assert path.read_text().splitlines()[line - 1].strip().split(":")[0] in ("matrix", *axes, "guest")


# --- on disk -------------------------------------------------------------------------------------


def test_a_cell_that_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    found = expanded(tmp_path, {"guest.vcpus": [1, 2, 4]})
    said: list[str] = []

    def execute(experiment: Experiment, directory: Path) -> None:
        if experiment.guest.vcpus == 2:
            raise BuildError("does not compile")
        directory.mkdir(parents=True)

    home = tmp_path / "r"
    ran = cells.run(found, home, execute, said.append)
    assert [(r.failure, r.exit_status) for r in ran] == [("", 0), ("does not compile", 3), ("", 0)]
    assert "cell vcpus=2 failed: does not compile" in said
    assert cells.load(home) == ("x", ran)


@pytest.mark.parametrize("stop", [Interrupted("stopped"), StoreError("disk full")])
def test_what_concerns_all_cells_stops_them(tmp_path: Path, stop: Exception) -> None:
    def execute(_experiment: Experiment, _directory: Path) -> None:
        raise stop

    with pytest.raises(type(stop)):
        cells.run(expanded(tmp_path, {"seeds": [1, 2]}), tmp_path / "r", execute, lambda _text: None)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": 9}', '{"schema": 1, "name": "x", "cells": [{}]}']
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "matrix.json").write_text(text)
    with pytest.raises(StoreError, match=r"matrix\.json"):
        cells.load(tmp_path)


# --- table and picture ---------------------------------------------------------------------------


def made(down: tuple[Json, ...] = (1, 2)) -> MatrixReport:
    """A matrix of two axes: recorded results in all cells but one, which failed."""
    measured = {"unpatched": UNPATCHED, "patched": PATCHED}
    observations = [Observation(record(arm, 1), parse(log)) for arm, log in measured.items()]
    one = documented(plan(), observations, [])
    outcomes = [
        matrix.Outcome({"guest.vcpus": y, "workload.mmap_test.tasks": x}, f"{y}-{x}", one)
        for y in down
        for x in (4, 8, 16)
    ]
    outcomes[1] = matrix.Outcome(outcomes[1].at, "failed", None, HostError("no | QEMU", "get one").message)
    return matrix.document("x", outcomes)


def test_the_table_has_a_row_per_cell(tmp_path: Path) -> None:
    found = made()
    rows = matrix.table(found).rows
    assert [row[0] for row in rows][:2] == ["vcpus=1, tasks=4", "vcpus=1, tasks=8"]
    assert all(len(row) == len(matrix.table(found).headings) for row in rows)
    assert rows[1][1] == "no | QEMU"
    assert rows[0][1] != rows[0][2] != ""
    text = matrix.markdown(found)
    assert text.count("\n|") == 2 + len(rows)
    assert "no \\| QEMU" in text
    assert parsed(MatrixReport, found.text()) == found


def test_a_cell_has_units_and_what_was_decided() -> None:
    few = Decision("none", 0.05, 1, 0, reason="1 of at least 3 pairs")
    measured = [Observation(record("unpatched", 1), parse(counted(allocstall_movable=0)))]
    measured.append(Observation(record("patched", 1), parse(counted(allocstall_movable=86))))
    judged = Judgement({"direct_reclaims": few}, {}, 0.05, False, None)
    said = plan(primary={"direct_reclaims": PrimarySpec(margin=0.01), "fault_p99": PrimarySpec(margin=0.1)})
    one = document(said, compared(said, measured), measured, [], {"patched": judged})
    made = matrix.document("x", [matrix.Outcome({"guest.vcpus": 1}, "1", one)])
    ((_, reclaims, changed, p99, same),) = matrix.table(made).rows
    # There is no percentage of nothing, but there is a change, and the heat map has it.
    assert (reclaims, changed) == ("0", "+86; no verdict: 1 of at least 3 pairs")
    assert re.fullmatch(r"[0-9.]+ (ms|µs)", p99) and same == "="
    svg = plots.rendered(plots.heat_map(matrix.grids(made)[0]), "svg")
    assert "+86" in {element.text for element in ET.fromstring(svg).iter()}


def test_the_ratio_is_that_of_the_medians(tmp_path: Path) -> None:
    cell = made().cells[0].values["pages_per_second"]
    assert cell["unpatched"].ratio == 1
    percent = float(cell["patched"].change.rstrip("%")) / 100
    ratio = cell["patched"].ratio
    assert ratio and ratio - 1 == pytest.approx(percent, abs=0.0006)


def test_a_heat_map_shows_every_cell_and_is_the_same_twice(tmp_path: Path) -> None:
    found = made()
    first, *_ = grids = matrix.grids(found)
    assert {grid.metric for grid in grids} == set(matrix.DEFAULT_METRICS)
    assert (first.down, first.across) == (("vcpus=1", "vcpus=2"), ("tasks=4", "tasks=8", "tasks=16"))
    assert first.ratios[0][1] is None
    svg = plots.rendered(plots.heat_map(first), "svg")
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]
    assert texts.count("none") == 1
    assert sum("%" in (text or "") for text in texts) == 5
    assert plots.rendered(plots.heat_map(first), "svg") == svg
    assert plots.rendered(plots.heat_map(first), "png").startswith(b"\x89PNG")


def test_one_axis_makes_a_row(tmp_path: Path) -> None:
    outcomes = [matrix.Outcome({"seeds": n}, str(n), None, "failed") for n in (1, 2)]
    found = matrix.document("x", outcomes)
    assert matrix.grids(found) == []
    assert [row[0] for row in matrix.table(found).rows] == ["seeds=1", "seeds=2"]
