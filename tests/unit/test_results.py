# SPDX-License-Identifier: GPL-2.0-only
"""Stored results: taken apart, put beside each other, refused where they are unlike, written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.analysis.likeness import unlike
from testbed.analysis.parse import Measurement, parse
from testbed.host.errors import SpecError
from testbed.ledger.document import parsed
from testbed.ledger.ledger import Ledger
from testbed.report.matrix import MatrixReport
from testbed.verbs import reports, results
from tests.unit.recorded import PATCHED, UNPATCHED, edited, measured, pair, plan, record, write_result

Change = Callable[[dict[str, Any]], None]

LOW = [1000, 1010, 990, 1005, 995, 1008]
HIGH = [count * 13 // 10 for count in LOW]


# --- RESULT and RESULT:ARM -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "directory", "arm"),
    [
        ("r", "r", None),
        ("none", "none", None),
        ("r:early", "r", "early"),
        ("a/r:early", "a/r", "early"),
        # A directory may have a colon in its name.
        ("x:y", "x:y", None),
        ("x:y:early", "x:y", "early"),
        ("r:", "r", ""),
        (":early", ".", "early"),
    ],
)
def test_a_result_and_its_arm_are_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, directory: str, arm: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("r", "x:y"):
        (tmp_path / name).mkdir()
    assert results.result_and_arm(Path(words)) == (Path(directory), arm)


def test_an_arm_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    first = measured(tmp_path / "a", {"old": LOW, "new": HIGH})
    for arm in ("newer", ""):
        with pytest.raises(SpecError) as caught:
            results.joined([first, Path(f"{first}:{arm}")])
        assert str(caught.value) == f"{first}: there is no arm `{arm}`: old, new"


def test_what_was_parsed_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(measured(tmp_path / "a", {"old": LOW, "new": HIGH})) as ledger:
        first = results.read(ledger)
        measurements = {o.record.trial: o.measurement for o in first.observations}
        del measurements[next(iter(measurements))]
        parsed: list[bytes] = []

        def counted(log: bytes) -> Measurement:
            parsed.append(log)
            return parse(log)

        monkeypatch.setattr(results, "parse", counted)
        assert results.read(ledger, measurements) == first
    assert len(parsed) == 1


# --- two results ---------------------------------------------------------------------------------


def test_two_results_become_one_comparison(tmp_path: Path) -> None:
    first = measured(tmp_path / "a", {"old": LOW, "other": LOW})
    second = measured(tmp_path / "b", {"other": LOW, "new": HIGH})
    paths = [first, Path(f"{second}:new")]
    result = results.joined(paths)
    names = [str(path) for path in paths]
    assert list(result.comparison.arms) == names and result.comparison.seeds == (1, 2, 3, 4, 5, 6)
    for name, counts in zip(names, (LOW, HIGH), strict=True):
        values = result.comparison.arms[name].values["direct_reclaims"]
        assert values == dict(enumerate(counts, start=1))
    kernels = result.plan.provenance.kernels
    assert {name: kernel.vmlinux_sha256 for name, kernel in kernels.items()} == {
        names[0]: "sha of old",
        names[1]: "sha of new",
    }
    report = results.report(result)
    assert report.sequential is False and report.name == " and ".join(names)
    decision = report.verdicts[names[1]].primary["direct_reclaims"]
    assert decision.verdict == "regressed" and decision.pairs == 6
    assert decision.estimate == pytest.approx(0.3, abs=0.01)
    assert (report.trials.planned, report.trials.ended) == (12, 12)


def test_the_order_of_two_results_is_that_of_the_question(tmp_path: Path) -> None:
    paths = [measured(tmp_path / "a", {"x": LOW}), measured(tmp_path / "b", {"x": HIGH})]
    (backwards,) = results.judgements(results.joined(paths[::-1])).values()
    assert backwards.primaries["direct_reclaims"].verdict == "improved"


def test_two_arms_of_one_result_are_compared_but_none_with_itself(tmp_path: Path) -> None:
    first = measured(tmp_path / "a", {"old": LOW, "new": HIGH, "newer": LOW})
    joined = results.joined([Path(f"{first}:new"), Path(f"{first}:newer")])
    (judgement,) = results.judgements(joined).values()
    assert judgement.primaries["direct_reclaims"].verdict == "improved"
    for again in (first, Path(f"{first}:old"), tmp_path / "b" / ".." / "a"):
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(SpecError, match="are the same arm of the same result"):
            results.joined([first, again])


def guest(said: dict[str, Any]) -> None:
    said["experiment"]["guest"] |= {"vcpus": 4, "sysctl": {"vm.swappiness": 1}}


def workload(said: dict[str, Any]) -> None:
    said["experiment"]["workload"]["mmap_test"]["tasks"] = 8


def other_workload(said: dict[str, Any]) -> None:
    said["experiment"]["workload"] |= {"mmap_test": None, "file_read": {"tasks": 8}}


def mode(said: dict[str, Any]) -> None:
    said["experiment"] |= {"mode": "deterministic", "accel": "auto"}


def initramfs(said: dict[str, Any]) -> None:
    said["provenance"]["initramfs"]["sha256"] = "another image"


def emulator(said: dict[str, Any]) -> None:
    said["provenance"]["qemu"] = "QEMU emulator version 10.0.0"


def host(said: dict[str, Any]) -> None:
    said["provenance"]["host"] |= {"cores": 64}


def accelerator(said: dict[str, Any]) -> None:
    said["provenance"]["accelerator"] = {"name": "kvm", "reason": "it works"}


UNLIKE: list[tuple[Change, str]] = [
    (guest, "guest.vcpus: 8 and 4; guest.sysctl.vm.swappiness: None and 1"),
    (workload, "workload.mmap_test.tasks: 16 and 8"),
    (other_workload, "workload.mmap_test: "),
    (mode, "mode: realtime and deterministic"),
    (initramfs, "initramfs: sha of the i and another imag"),
    (emulator, "QEMU: QEMU emulator version 7.2.22 and QEMU emulator version 10.0.0"),
    (host, "host: 2 x A CPU and 64 x A CPU"),
    (accelerator, "accelerator: tcg and kvm"),
]


@pytest.mark.parametrize(("change", "said"), UNLIKE, ids=lambda value: getattr(value, "__name__", ""))
def test_what_was_measured_otherwise_is_refused_and_named(tmp_path: Path, change: Change, said: str) -> None:
    paths = [measured(tmp_path / "a", {"x": [1]}), measured(tmp_path / "b", {"x": [1]}, change)]
    with pytest.raises(SpecError) as caught:
        results.joined(paths)
    assert str(caught.value).startswith(f"{paths[0]} and {paths[1]} were not measured alike: {said}")
    with pytest.raises(SpecError, match="were not measured alike"):
        results.history(paths, "direct_reclaims", 0.05, 0.01)


def test_a_deterministic_result_is_the_same_on_any_host() -> None:
    def deterministic(said: dict[str, Any]) -> None:
        said["provenance"]["accelerator"] = {"name": "icount", "reason": ""}

    def elsewhere(said: dict[str, Any]) -> None:
        host(said)
        said["provenance"]["qemu"] = "QEMU emulator version 7.2.1"

    one = edited(plan(), deterministic)
    other = edited(one, elsewhere)
    assert list(unlike(one, other)) == []
    other = edited(one, lambda data: data["provenance"].update(qemu_family="10.0"))
    assert list(unlike(one, other)) == ["QEMU: 7.2 and 10.0"]


def test_kernels_and_patches_may_differ() -> None:
    def another(said: dict[str, Any]) -> None:
        said["provenance"]["kernels"]["another"] |= {"source": "linux 7.0", "config_sha256": "x"}
        said["provenance"]["testbed"] = "another commit"

    assert list(unlike(plan(), edited(plan(["another"]), another))) == []


# --- verdicts ------------------------------------------------------------------------------------


def test_without_a_primary_metric_nothing_is_judged(tmp_path: Path) -> None:
    result = results.load(pair(tmp_path / "r"))
    assert results.judgements(result) == {} and results.report(result).verdicts == {}


def test_alpha_is_shared_among_the_arms(tmp_path: Path) -> None:
    result = results.load(measured(tmp_path / "r", {"a": LOW, "b": HIGH, "c": HIGH}))
    judged = results.judgements(result)
    assert list(judged) == ["b", "c"]
    assert [judgement.alpha for judgement in judged.values()] == [0.025, 0.025]


@pytest.mark.parametrize(
    ("after", "decided"), [(HIGH, True), ([1000, 1300, 700, 1500, 600, 990], False)], ids=["yes", "no"]
)
def test_a_result_is_decided_when_every_arm_is(tmp_path: Path, after: list[int], decided: bool) -> None:
    result = results.load(measured(tmp_path / "r", {"a": LOW, "b": HIGH, "c": after}))
    assert results.decided(result) is decided


def test_trials_that_are_not_of_the_plan_are_left_out(tmp_path: Path) -> None:
    rows = [(record("unpatched", 1), UNPATCHED), (record("patched", 9), PATCHED)]
    result = results.load(write_result(tmp_path / "r", plan(), rows))
    assert [o.record.trial for o in result.observations] == ["unpatched-1"]
    assert [row.trial for row in result.records] == ["unpatched-1"]


# --- on disk -------------------------------------------------------------------------------------


def test_writing_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    directory = measured(tmp_path / "r", {"a": LOW, "b": HIGH})
    written = []
    for _ in range(2):
        result = results.load(directory)
        reports.write(directory, result, results.report(result), pytest.fail)
        files = [path for path in directory.rglob("*") if path.is_file() and "logs" not in path.parts]
        written.append({path.relative_to(directory).as_posix(): path.read_bytes() for path in files})
    assert written[0] == written[1]
    names = set(written[0])
    assert {"report.html", "report.json", "report.md", "report.xml", "report.ktap"} <= names
    assert {"pictures/forest.b.svg", "pictures/slopes.direct_reclaims.png"} <= names
    assert not [name for name in names if name.endswith(".tmp")]


def test_a_file_that_cannot_be_written_is_told_and_no_error(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "taken").write_text("")
    reports.put(tmp_path / "taken" / "report.md", "text", told.append)
    assert told == [f"{tmp_path}/taken/report.md: not written: File exists"]
    reports.put(tmp_path / "new" / "x.txt", "µ", told.append)
    reports.put(tmp_path / "new" / "x.bin", b"\0", told.append)
    assert (tmp_path / "new" / "x.txt").read_bytes() == "µ".encode()
    assert (tmp_path / "new" / "x.bin").read_bytes() == b"\0" and len(told) == 1


def test_a_matrix_has_a_document_per_cell_and_heat_maps(tmp_path: Path) -> None:
    home = tmp_path / "m"
    for name, after in (("n=1", HIGH), ("n=2", LOW)):
        measured(home / name, {"a": LOW, "b": after})
    entries = [
        {"at": {"vcpus": n}, "name": f"n={n}", "failure": failure, "exit_status": status}
        for n, failure, status in ((1, "", 0), (2, "", 0), (3, "no source", 3))
    ]
    index = {"schema": 1, "name": "m", "cells": entries}
    (home / "matrix.json").write_text(json.dumps(index))
    assert results.is_matrix(home) and not results.is_matrix(home / "n=1")
    cells = {name: results.report(results.load(home / name)) for name in ("n=1", "n=2")}
    made = results.matrix_report(home, cells)
    reports.write_matrix(home, made, pytest.fail)
    assert [cell.failure for cell in made.cells] == ["", "", "no source"]
    ratios = [cell.values["direct_reclaims"]["b"].ratio for cell in made.cells[:2]]
    assert ratios == [pytest.approx(1.3, abs=0.01), 1.0]
    assert (home / "pictures" / "direct_reclaims.b.svg").exists()
    assert parsed(MatrixReport, (home / "report.json").read_bytes()) == made
