# SPDX-License-Identifier: GPL-2.0-only
"""Numbers that a program says: found in its log, and wherever testbed's own metrics are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from testbed.analysis.metrics import METRICS
from testbed.analysis.own import value, with_own
from testbed.analysis.parse import parse
from testbed.experiment import WorkloadSpec
from testbed.experiment.model import PrimarySpec
from testbed.experiment.own import OwnMetric, frame_of
from testbed.experiment.script import script
from testbed.guest import image
from testbed.host.errors import SpecError
from testbed.ledger.ledger import Ledger
from testbed.report import gate, html, text
from testbed.verbs import compare, history, log, results
from testbed.verbs import parse as parsing
from testbed.verbs.compare import Compared
from testbed.verbs.log import LogRequest
from testbed.verbs.quantity import quantity
from tests.unit.recorded import UNPATCHED, frame, plan, record, with_frame, without_frame, write_result

WORKERS = "worker: 100 KB/s in 1.00 s\nworker: 200 KB/s in 1.00 s\nworker: 300.5 KB/s in 1.00 s\n"
FIO = {
    "jobs": [
        {"jobname": "read", "iops": 1234.5, "clat_ns": {"percentile": {"99.000000": 2000}}},
        {"jobname": "write", "iops": 10, "clat_ns": {"percentile": {"99.000000": 4000}}},
    ]
}


def own(**keys: Any) -> OwnMetric:
    return OwnMetric.model_validate(keys)


# --- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("sum", 600.5), ("mean", 600.5 / 3), ("max", 300.5), ("min", 100), ("last", 300.5), (None, None)],
)
def test_several_numbers_become_one_as_is_said(combine: str | None, expected: float | None) -> None:
    assert value(own(pattern=r"([0-9.]+) KB/s", combine=combine), WORKERS) == expected


@pytest.mark.parametrize(
    ("pattern", "said", "expected"),
    [
        (r"^iops=(\S+)$", "x\niops=7\ny\n", 7),
        (r"iops=(\S+)", "iops=-1.5e3", -1500.0),
        (r"iops=(\S+)", "iops=.5", 0.5),
        (r"iops=(\S+)", "nothing of the kind", None),
        # What is no number is not left out of a sum in silence.
        (r"iops=(\S+)", "iops=1,234 iops=5", None),
        (r"iops=(\S+)", "iops=nan", None),
        (r"iops=(\S+)", "iops=inf", None),
        (r"iops=(\S+)", "iops=1e999", None),
        (r"iops=(\S+)", "iops=1_000", None),
        # An alternative without the number says nothing.
        (r"total|iops=(\S+)", "total iops=3", 3),
    ],
)
def test_a_pattern_finds_a_number_or_nothing(pattern: str, said: str, expected: float | None) -> None:
    assert value(own(pattern=pattern, combine="sum"), said) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jobs.0.iops", 1234.5),
        ("jobs.*.iops", 1244.5),
        ("jobs.1.clat_ns.percentile.99.000000", 4000),
        ("jobs.*.clat_ns.*.99.000000", 6000),
        ("jobs.2.iops", None),
        ("jobs.0.jobname", None),
        ("jobs.0", None),
        ("jobs.iops", None),
    ],
)
def test_a_path_leads_through_json(path: str, expected: float | None) -> None:
    measured = own(json=path, combine="sum")
    assert value(measured, json.dumps(FIO)) == expected
    # fio warns on the same stream, and indents.
    around = f"fio: [a warning]\n{{not: json\n{json.dumps(FIO, indent=2)}\nRun status: 0\n"
    assert value(measured, around) == expected


def test_lines_of_json_are_read_one_by_one() -> None:
    lines = '{"a": 1}\n{"a": 2}\n{"b": 3}\n'
    assert value(own(json="a", combine="last"), lines) == 2
    assert value(own(json="a"), lines) is None
    assert value(own(json="b"), lines) == 3


@pytest.mark.parametrize(
    "said", ['{"a": true}', '{"a": null}', '{"a": "5"}', '{"a": 1e999}', '{"a": NaN}', "{"]
)
def test_what_is_no_number_in_json_is_none(said: str) -> None:
    assert value(own(json="a"), said) is None


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=20))
def test_what_is_printed_is_read(numbers: list[float]) -> None:
    printed = "".join(f"x={number!r} y\n" for number in numbers)
    assert value(own(pattern=r"x=(\S+) y", combine="max"), printed) == max(numbers)
    assert value(own(json="n.*", combine="sum"), json.dumps({"n": numbers})) == pytest.approx(sum(numbers))


@given(st.text(max_size=200))
def test_no_output_is_too_strange(said: str) -> None:
    value(own(pattern=r"(\d+)", combine="sum"), said)
    value(own(json="*.*", combine="sum"), said)


def test_a_pattern_of_a_stranger_takes_no_time() -> None:
    """One that Python's own expressions would try out for hours."""
    assert value(own(pattern=r"^(?:a+)+(\d)$"), "a" * 100_000 + "b") is None
    with pytest.raises(ValidationError, match="is not a regular expression: invalid perl operator"):
        own(pattern=r"(?=a)(\d)")


# --- where it is -----------------------------------------------------------------------------------


def test_a_file_has_a_frame_of_its_own() -> None:
    assert frame_of("/run/example.json") == "file.run_example.json"
    with pytest.raises(ValidationError, match="where testbed's own files are"):
        own(json="a", file="/run/result/vmstat.after")


def test_the_guest_keeps_a_file_under_the_name_that_is_read(tmp_path: Path) -> None:
    """The real script, with /run in a place of its own."""
    (tmp_path / "result").mkdir()
    body = image.WRAPPER_SCRIPT.read_text().replace("/run/result/", f"{tmp_path}/result/")
    wanted = f"{tmp_path}/example.json"
    words = ["sh", "-c", body, "keep", wanted, "/nowhere/else", "--"]
    ran = subprocess.run([*words, "sh", "-c", f"echo 5 > {wanted}; exit 3"], check=False, timeout=10)
    assert ran.returncode == 3
    assert [path.name for path in (tmp_path / "result").iterdir()] == [frame_of(wanted)]
    assert (tmp_path / "result" / frame_of(wanted)).read_text() == "5\n"


TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)


@given(st.lists(TEXTS, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_words_arrive_as_they_were_written(words: list[str]) -> None:
    words = [word.rstrip("\n") or "x" for word in words]
    line = WorkloadSpec(command=("printf", "%s\\0", "a b", *words)).run(1 << 20, 7)
    verb, seed, shell, wrapper, how, start, *rest = line.split(" ")
    assert (verb, seed, shell, wrapper, how, start) == (
        *("run-user", "7", "sh", "/bin/testbed-wrapper"),
        *("--escaped", "testbed-start"),
    )
    assert re.fullmatch("[ -~]+", line)
    ran = subprocess.run(
        [image.find_busybox(), "sh", image.WRAPPER_SCRIPT, how, *rest],
        capture_output=True,
        check=True,
        timeout=10,
    )
    assert ran.stdout.decode().split("\0")[:-1] == ["a b", *words]


def test_a_program_is_wrapped_only_where_a_file_is_kept() -> None:
    def run(file: str | None) -> str:
        metrics = {"t": own(json="a", file=file)}
        made = plan(["a"], workload=WorkloadSpec(command=("x", "y")), metrics=metrics)
        return script(made.experiment, "a", 7).run

    assert run(None) == "run-user 7 testbed-start x y"
    assert run("/run/example.json") == (
        "run-user 7 sh /bin/testbed-wrapper /run/example.json -- testbed-start x y"
    )


def user_log(output: str, files: Mapping[str, str]) -> bytes:
    """A trial of somebody's own program that printed this and left these files."""
    said = without_frame(with_frame(UNPATCHED, "trace", b""), "tasks")
    said = with_frame(said, "output", output.encode())
    added = b"".join(frame(name, body.encode()) for name, body in files.items())
    head, end, tail = said.rpartition(b"\n#tb:end")
    return b"#tb:user\n" + head + added + end + tail


def test_a_log_gives_output_and_files() -> None:
    measured = parse(user_log(WORKERS, {"file.run_x.json": "[1]", "zoneinfo.after": "..."}))
    assert measured.output == WORKERS
    assert measured.files == {"file.run_x.json": "[1]"}
    by_name = {metric.name: metric for metric in with_own({"t": own(json="0", file="/run/x.json")})}
    assert by_name["t"].value(measured) == 1
    assert len(by_name) == len(METRICS) + 1


# --- in results ------------------------------------------------------------------------------------

DECLARED = {
    "throughput": own(pattern=r"([0-9.]+) KB/s", unit="KB/s", better="higher", combine="sum"),
    "iops": own(json="jobs.0.iops", file="/run/example.json", better="higher"),
    "silent": own(pattern="no such (thing)"),
}


def stored(directory: Path, arms: Mapping[str, Iterable[int]], declared: Mapping[str, OwnMetric]) -> Path:
    """A result whose program printed so many KB/s, in seed 1, 2, ... of each arm."""
    rows = [
        (
            record(arm, seed),
            user_log(
                f"worker: {kb} KB/s\nworker: 100 KB/s\n",
                {"file.run_example.json": json.dumps({"jobs": [{"iops": kb * 2}]})},
            ),
        )
        for arm, numbers in arms.items()
        for seed, kb in enumerate(numbers, start=1)
    ]
    made = plan(
        arms,
        len(rows) // len(arms),
        workload=WorkloadSpec(command=("x",)),
        metrics=dict(declared),
        primary={"throughput": PrimarySpec(margin=0.01)},
        sequential=False,
    )
    return write_result(directory, made, rows)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = {"a": [500, 502, 498, 501, 499, 503], "b": [700, 705, 696, 702, 698, 704]}
    return stored(tmp_path_factory.mktemp("own") / "result", arms, DECLARED)


@pytest.fixture(scope="module")
def compared(result: Path) -> Compared:
    made = compare.report(compare.ReportRequest(result, (gate.condition("throughput improved"),)))
    assert isinstance(made, Compared)
    return made


def test_they_are_in_the_document_with_unit_and_verdict(compared: Compared) -> None:
    metric = compared.report.arms["b"].metrics["throughput"]
    assert (metric.median, metric.unit, metric.better, metric.level) == (801, "KB/s", "higher", "main")
    assert compared.report.arms["a"].metrics["iops"].values["1"] == 1000
    decision = compared.report.verdicts["b"].primary["throughput"]
    assert decision.verdict == "improved" and decision.estimate == pytest.approx(0.333, abs=0.01)
    assert "iops" in compared.report.verdicts["b"].exploratory
    assert len(compared.met) == 1 and "throughput: improved by" in compared.met[0]


def test_they_are_in_tables_and_pages_with_their_unit(compared: Compared) -> None:
    rows = {row[0]: row[1:] for row in text.table(compared.report).rows}
    assert rows["throughput (KB/s)"] == ["600 [598-603]", "801 [796-805]", "+33.4%"]
    assert "throughput (KB/s)" in text.markdown(compared.report)
    assert "throughput (KB/s)" in html.page(compared.report, [])


def test_what_has_no_value_is_said(compared: Compared) -> None:
    wanted = (
        "6 of 6 trials have no silent: no number in the output, or several that `combine` says nothing about"
    )
    assert [line for line in text.notes(compared.report) if "silent" in line] == [
        f"a: {wanted}",
        f"b: {wanted}",
    ]


def test_a_gate_knows_the_metrics_of_its_experiment(result: Path) -> None:
    with pytest.raises(
        SpecError, match=r"--fail-on: there is no metric `throughputs`; did you mean `throughput`"
    ):
        compare.report(compare.ReportRequest(result, (gate.condition("throughputs improved"),)))


def test_parse_and_bisect_and_history_have_them(result: Path, tmp_path: Path) -> None:
    facts = next(iter(parsing.parse(result)))
    metrics = facts["metrics"]
    assert isinstance(metrics, dict) and metrics["throughput"] == 600
    experiment = results.load(result).plan.experiment
    chosen = quantity(None, experiment)
    assert (chosen.name, chosen.unit) == ("throughput", "KB/s")
    assert chosen.value(record("a", 1), lambda: parse(user_log(WORKERS, {}))) == 600.5
    paths = (result, Path(f"{result}:b"))
    line = history.history(history.HistoryRequest(paths, "throughput", 0.01))
    assert (line.unit, [point.values[1] for point in line.points]) == ("KB/s", [600, 800])
    other = {"throughput": own(pattern=r"([0-9.]+) KB/s", combine="max")}
    stored(tmp_path / "other", {"a": range(500, 506), "b": range(500, 506)}, other)
    with pytest.raises(SpecError, match="do not declare the same metric `throughput`"):
        history.history(history.HistoryRequest((result, tmp_path / "other"), "throughput", 0.01))


def test_a_new_pattern_reads_an_old_result_again(tmp_path: Path) -> None:
    """What is declared is in the plan, and no number is stored."""
    directory = stored(tmp_path / "result", {"a": [500], "b": [700]}, DECLARED)
    with Ledger.create(directory) as ledger:
        made = ledger.plan()
        other = {"throughput": own(pattern=r"([0-9.]+) KB/s", combine="max")}
        experiment = made.experiment.model_copy(update={"metrics": other})
        ledger.set_plan(made.model_copy(update={"experiment": experiment}))
    assert results.load(directory).comparison.arms["b"].values["throughput"] == {1: 700}


# --- the output itself -----------------------------------------------------------------------------


def test_a_program_s_output_is_readable(result: Path, tmp_path: Path) -> None:
    assert log.log(LogRequest(result, "b:2")) == "worker: 705 KB/s\nworker: 100 KB/s\n"
    assert log.log(LogRequest(result, "b-2")) == log.log(LogRequest(result, "b:2"))
    console = log.log(LogRequest(result, "b:2", console=True))
    assert console.startswith("#tb:user\n") and "#tb:frame vmstat.after" in console
    with pytest.raises(SpecError, match=r"there is no trial `c:1`: a:1, a:2, .* \.\.\."):
        log.log(LogRequest(result, "c:1"))
    rows = [(record("a", 1, "panic", "boot: kernel panic"), b"Kernel panic - not syncing: x\n")]
    write_result(tmp_path / "panicked", plan(["a"]), rows)
    with pytest.raises(SpecError, match=r"a:1 ended with `panic` before its output was sent\n.*--console"):
        log.log(LogRequest(tmp_path / "panicked", "a:1"))
