# SPDX-License-Identifier: GPL-2.0-only
"""The door: what comes out of it, on which side, and with which exit status."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pexpect
import pytest
import xmlschema

from testbed import __main__ as door
from testbed import cli
from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import Measurement, parse
from testbed.experiment import Experiment, load, schema
from testbed.host.errors import BuildError, GuestLost, HostError, NoDeterminism, NoKvm, SpecError
from testbed.kernel import series
from testbed.ledger.ledger import Ledger
from testbed.report import interchange as machine
from testbed.report import schema as report_schema
from testbed.setup import doctor
from testbed.setup.doctor import Need
from testbed.terminal import show
from testbed.trials import pool, prepare
from testbed.trials.prepare import Campaign
from testbed.verbs import reproduce, results
from tests.unit.recorded import (
    DATA,
    EXPERIMENT,
    PATCHED,
    REPOSITORY,
    UNPATCHED,
    manifest_of,
    measured,
    pair,
    plan,
    record,
    with_frame,
    write_result,
)
from tests.unit.test_guest_faults import make_trial

MEASURED = {"unpatched": parse(UNPATCHED), "patched": parse(PATCHED)}


@dataclass
class Ran:
    status: int
    out: str
    err: str


Testbed = Callable[..., Ran]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """main() takes over signals for good, as the last thing in a process may."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def testbed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Testbed:
    """`testbed WORD...` in an empty directory, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words: object) -> Ran:
        capsys.readouterr()
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as ended:  # argparse's way
            status = int(ended.code or 0)
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return pair(tmp_path / "result")


# --- what is wrong is said in a line, with a status ------------------------------------------------


@pytest.mark.parametrize("verb", ["compare", "run", "build", "boot"])
def test_a_bad_experiment_is_status_2_and_one_line(testbed: Testbed, tmp_path: Path, verb: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(EXPERIMENT.read_text() + "seedz: 3\n")
    line = len(path.read_text().splitlines())
    ran = testbed(verb, path)
    assert ran == Ran(2, "", f"testbed: {path}:{line}: `seedz`: unknown key; did you mean `seeds`?\n")
    assert not (tmp_path / "results").exists() and not (tmp_path / "cache").exists()


def test_an_experiment_that_is_not_there(testbed: Testbed) -> None:
    assert testbed("compare", "no.yaml") == Ran(2, "", "testbed: no.yaml: No such file or directory\n")


def test_an_arm_that_is_not_there(testbed: Testbed) -> None:
    ran = testbed("boot", EXPERIMENT, "--arm", "pached")
    assert ran == Ran(2, "", f"testbed: {EXPERIMENT}: there is no arm `pached`: unpatched, patched\n")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("compair",),
        ("report",),
        ("report", "x", "--json", "--markdown"),
        ("compare", EXPERIMENT, "--seeds", "0"),
        ("compare", EXPERIMENT, "--seeds", "-1"),
        ("compare", EXPERIMENT, "--seeds", "²"),
        ("compare", EXPERIMENT, "--seeds", "1000000"),
        ("compare", EXPERIMENT, "--jobs", "many"),
        ("compare", EXPERIMENT, "--accel", "xen"),
        ("run", EXPERIMENT, "--json"),
    ],
    ids=lambda words: " ".join(str(word) for word in words if word != EXPERIMENT) or "nothing",
)
def test_a_bad_command_line_is_status_2_with_usage(testbed: Testbed, words: tuple[str, ...]) -> None:
    ran = testbed(*words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("usage: testbed") and "Traceback" not in ran.err


@pytest.mark.parametrize(
    "verb", ["compare", "run", "explain", "history", "parse", "report", "schema", "doctor", "clean"]
)
def test_every_verb_has_help(testbed: Testbed, verb: str) -> None:
    ran = testbed(verb, "--help")
    assert ran.status == 0 and f"testbed {verb}" in ran.out
    assert f"    {verb}" in testbed("--help").out


@pytest.mark.parametrize("verb", ["report", "parse"])
def test_a_directory_that_is_no_result_is_status_2(testbed: Testbed, tmp_path: Path, verb: str) -> None:
    ran = testbed(verb, tmp_path)
    message = f"testbed: {tmp_path}: not a result directory: there is no ledger.sqlite in it\n"
    assert ran == Ran(2, "", message)


def test_a_result_that_is_not_there_is_status_2(testbed: Testbed) -> None:
    message = "testbed: results/none: not a result directory: there is no ledger.sqlite in it\n"
    assert testbed("report", "results/none") == Ran(2, "", message)


def test_a_result_without_a_plan_is_status_3(testbed: Testbed, tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "result"):
        pass
    assert testbed("report", "result") == Ran(3, "", "testbed: result: nothing was planned here yet\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x1f\x8b\x08broken", "cannot be read: "),
        (gzip.compress(PATCHED)[:-9], "cannot be read: Compressed file ended"),
        (gzip.compress(PATCHED)[:5000] + b"\0" * 3000, "cannot be read: "),
        (gzip.compress(bytes(257 << 20), 1), "cannot be read: is larger than 256 MiB"),
        (gzip.compress(PATCHED)[:10] + b"\xff" * 99, "cannot be read: Error -3 while decompressing data"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_line(
    testbed: Testbed, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "x.log.gz"
    path.write_bytes(content)
    ran = testbed("parse", path)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"testbed: {path}: {reason}") and ran.err.count("\n") == 1


def test_a_log_that_was_tampered_with_is_not_reported_on(testbed: Testbed, result: Path) -> None:
    log = result / "logs" / "patched-1.1.log.gz"
    log.write_bytes(gzip.compress(PATCHED + b"\n"))
    ran = testbed("report", result)
    assert (ran.status, ran.out) == (3, "")
    assert ran.err == (
        f"testbed: {log}: not the log that was recorded: its hash differs\n"
        "  without a log of patched:1 there is no report; the command that made this result, given once "
        "more, runs what has none again\n"
    )
    (result / "logs" / "unpatched-1.1.log.gz").unlink()
    assert "No such file or directory; and 1 more logs\n" in testbed("report", result).err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BuildError("`make` failed", "    gcc: error"), 3, "testbed: `make` failed\n      gcc: error\n"),
        (GuestLost("gone\x1b[2J", "said\x07"), 3, "testbed: gone\\x1b[2J\n  said\\x07\n"),
        (PermissionError(13, "Permission denied", "/x"), 3, "testbed: [Errno 13] Permission denied: '/x'\n"),
        (KeyboardInterrupt(), 130, "testbed: stopped\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_inside_is_said_and_has_its_status(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    def fail(_cache: Path) -> list[Need]:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    assert testbed("doctor") == Ran(status, "", message)


def test_what_is_kept_when_a_run_is_stopped_is_said(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare", stop)
    said = "testbed: stopped; what is finished is kept, and the same command goes on from there\n"
    assert testbed("run", EXPERIMENT) == Ran(130, "", said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_polite_kill_is_an_interrupt(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _cache: os.kill(os.getpid(), number))
    assert testbed("doctor").status == 130


# --- reports --------------------------------------------------------------------------------------


def test_a_report_is_on_standard_output_and_the_rest_is_not(testbed: Testbed, result: Path) -> None:
    ran = testbed("report", result)
    assert ran.status == 0
    assert ran.out.startswith("recorded\nWhat a test recorded.\n")
    assert "\x1b" not in ran.out and max(map(len, ran.out.splitlines())) <= show.PIPE_COLUMNS
    assert ran.err.startswith(f"also in {result}: report.html")


def known(measurement: Measurement) -> dict[str, float]:
    values = {metric.name: metric.value(measurement) for metric in METRICS}
    return {name: value for name, value in values.items() if value is not None}


def test_json_has_each_value_per_arm_metric_and_seed(testbed: Testbed, result: Path) -> None:
    ran = testbed("report", result, "--json")
    document = json.loads(ran.out)
    assert (ran.status, ran.err) == (0, "")
    assert list(document["arms"]) == ["unpatched", "patched"] and document["seeds"] == [1]
    for arm, measurement in MEASURED.items():
        told = document["arms"][arm]["metrics"]
        assert {name: metric["values"] for name, metric in told.items()} == {
            name: {"1": value} for name, value in known(measurement).items()
        }
        assert all(told[metric.name]["unit"] == metric.unit for metric in METRICS if metric.name in told)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--json", "report.json"),
        ("--markdown", "report.md"),
        ("--junit", "report.xml"),
        ("--ktap", "report.ktap"),
    ],
)
def test_what_is_printed_is_also_in_a_file(testbed: Testbed, result: Path, option: str, name: str) -> None:
    ran = testbed("report", result, option)
    assert (result / name).read_text() == ran.out
    assert {path.name for path in result.iterdir()} == {
        *(".lock", "ledger.sqlite", "logs", "pictures"),
        *("report.html", "report.json", "report.ktap", "report.md", "report.xml"),
    }


def test_a_result_that_cannot_be_written_to_is_reported_all_the_same(testbed: Testbed, result: Path) -> None:
    (result / "report.json").mkdir()
    ran = testbed("report", result, "--json")
    assert ran.status == 0 and json.loads(ran.out)["seeds"] == [1]
    assert ran.err == f"{result}/report.json: not written: Is a directory\n"


@pytest.mark.parametrize("form", ["--json", "--markdown", None])
def test_without_a_seed_to_compare_the_status_is_1(
    testbed: Testbed, tmp_path: Path, form: str | None
) -> None:
    rows = [(record("unpatched", 1), UNPATCHED), (record("patched", 1, "panic", "boot: VFS"), b"panic")]
    result = write_result(tmp_path / "result", plan(), rows)
    ran = testbed("report", result, *([form] if form else []))
    assert ran.status == 1
    assert "boot: VFS" in ran.out


def test_a_retried_trial_counts_once_and_its_loss_is_told(testbed: Testbed, tmp_path: Path) -> None:
    rows = [
        (record("unpatched", 1, "lost", "QEMU ended"), b""),
        (record("unpatched", 1, attempt=2), UNPATCHED),
        (record("patched", 1), PATCHED),
    ]
    result = write_result(tmp_path / "result", plan(), rows)
    document = json.loads(testbed("report", result, "--json").out)
    assert (document["lost_attempts"], document["excluded"], document["seeds"]) == (1, [], [1])


def test_trials_of_an_earlier_plan_are_not_in_the_report(testbed: Testbed, result: Path) -> None:
    write_result(result, plan(seeds=2), [(record("unpatched", 7), UNPATCHED)])
    document = json.loads(testbed("report", result, "--json").out)
    assert document["trials"] == {"planned": 4, "ended": 2}


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (("measured", "measured"), 0),
        (("measured", "oom"), 1),
        (("oom", "panic"), 1),
        (("lost", "hang"), 1),
        # Then it is the infrastructure, and says nothing about any kernel.
        (("lost", "lost"), 3),
        ((), 1),
    ],
)
def test_the_status_of_a_result(
    testbed: Testbed, tmp_path: Path, outcomes: tuple[str, ...], status: int
) -> None:
    rows = [
        (record(arm, 1, outcome), log)
        for arm, log, outcome in zip(("unpatched", "patched"), (UNPATCHED, PATCHED), outcomes, strict=False)
    ]
    result = write_result(tmp_path / "result", plan(), rows)
    assert testbed("report", result).status == status


# --- parse ----------------------------------------------------------------------------------------


def facts(arm: str) -> dict[str, Any]:
    return {
        "complete": True,
        "metrics": known(MEASURED[arm]),
        "misses": [str(miss) for miss in MEASURED[arm].misses],
        "problems": [],
    }


def test_a_log_is_parsed_compressed_or_not(testbed: Testbed, tmp_path: Path) -> None:
    plain = tmp_path / "x.log"
    plain.write_bytes(UNPATCHED)
    for path in (plain, DATA / "unpatched.log.gz"):
        ran = testbed("parse", path)
        assert (ran.status, ran.err) == (0, "")
        assert json.loads(ran.out) == facts("unpatched")


def test_a_log_that_is_cut_off_is_parsed_as_far_as_it_goes(testbed: Testbed, tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(PATCHED[:20000])
    told = json.loads(testbed("parse", path).out)
    assert told["complete"] is False and told["metrics"] == {}
    assert "frame vmstat.before: missing" in told["problems"]


def test_a_log_is_printed_and_harmless(testbed: Testbed, result: Path, tmp_path: Path) -> None:
    ran = testbed("log", result, "patched:1", "--console")
    assert ran.status == 0 and "\n#tb:frame vmstat.after " in ran.out and ran.out.count("\n") > 600
    log = with_frame(PATCHED, "output", b"one\n\x1b[2Jtwo")
    write_result(tmp_path / "own", plan(["a"]), [(record("a", 1), log)])
    assert testbed("log", tmp_path / "own", "a:1") == Ran(0, "one\n\\x1b[2Jtwo\n", "")
    ran = testbed("log", tmp_path / "own", "a:2")
    assert ran == Ran(2, "", f"testbed: {tmp_path / 'own'}: there is no trial `a:2`: a:1\n")


def test_a_result_is_parsed_again_line_by_line(testbed: Testbed, result: Path) -> None:
    ran = testbed("parse", result)
    assert [json.loads(line) for line in ran.out.splitlines()] == [
        {"arm": arm, "seed": 1, "outcome": "measured", **facts(arm)} for arm in ("unpatched", "patched")
    ]


# --- running --------------------------------------------------------------------------------------


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would build and boot, with two recorded trials instead; the experiments it was asked for."""
    asked: list[Any] = []

    def replaced(experiment: Any, *_: object) -> Campaign:
        asked.append(experiment)
        return Campaign((), plan())

    def run(
        _trials: object, ledger: Ledger, _jobs: int, _progress: object, **_: object
    ) -> dict[str, Measurement]:
        if not ledger.records():
            ledger.add(record("unpatched", 1), UNPATCHED)
            ledger.add(record("patched", 1), PATCHED)
        return {}

    monkeypatch.setattr(prepare, "prepare", replaced)
    monkeypatch.setattr(pool, "run", run)
    return asked


def test_run_prints_where_the_result_is(testbed: Testbed, prepared: list[Any]) -> None:
    assert testbed("run", EXPERIMENT).out == "results/reclaim-capture\n"
    assert testbed("run", EXPERIMENT, "--results", "there").out == "there\n"
    assert json.loads(testbed("report", "there", "--json").out)["seeds"] == [1]


def test_trials_that_stay_lost_are_no_success(
    testbed: Testbed, prepared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(
        _trials: object, ledger: Ledger, _jobs: int, _progress: object, **_: object
    ) -> dict[str, Measurement]:
        ledger.add(record("unpatched", 1), UNPATCHED)
        ledger.add(record("patched", 1, "lost", "QEMU ended"), b"")
        return {}

    monkeypatch.setattr(pool, "run", run)
    assert testbed("run", EXPERIMENT) == Ran(3, "results/reclaim-capture\n", "")


@pytest.mark.parametrize(
    ("lacking", "also", "modes"),
    [
        ("", "", [("realtime", "kvm"), ("deterministic", "auto")]),
        (
            "no QEMU 10.0",
            "; not deterministic: no QEMU 10.0",
            [("realtime", "kvm"), ("deterministic", "auto"), ("realtime", "tcg")],
        ),
    ],
)
def test_mode_auto_is_the_first_that_works(
    testbed: Testbed,
    prepared: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
    also: str,
    modes: list[tuple[str, str]],
) -> None:
    asked: list[tuple[str, str]] = []
    works = prepare.prepare

    def replaced(experiment: Experiment, *words: Any) -> Campaign:
        asked.append((experiment.mode, experiment.accel))
        if experiment.accel == "kvm":
            raise NoKvm("KVM does not work here: it is tired")
        if experiment.mode == "deterministic" and lacking:
            raise NoDeterminism(lacking)
        return works(experiment, *words)

    monkeypatch.setattr(prepare, "prepare", replaced)
    ran = testbed("compare", EXPERIMENT, "--json", "--mode", "auto")
    assert (ran.status, asked) == (0, modes)
    why = "deterministic instead of in real time: KVM does not work here: it is tired"
    assert json.loads(ran.out)["provenance"]["fallback"] == why + also and why in ran.err
    # Who asks for KVM and nothing else gets nothing else, nor who asks for determinism.
    assert testbed("compare", EXPERIMENT, "--accel", "kvm").status == 3
    assert testbed("compare", EXPERIMENT).status == (3 if lacking else 0)


def test_mode_auto_is_in_real_time_where_kvm_works(testbed: Testbed, prepared: list[Any]) -> None:
    assert testbed("run", EXPERIMENT, "--mode", "auto").status == 0
    assert [(experiment.mode, experiment.accel) for experiment in prepared] == [("realtime", "kvm")]


def test_mode_auto_has_to_be_possible_in_both_modes(testbed: Testbed, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(EXPERIMENT.read_text() + "deadlines: {workload: 9}\n")
    ran = testbed("compare", path, "--mode", "auto")
    assert ran.status == 2 and "too short for a workload of 1.25 s in mode deterministic" in ran.err
    ran = testbed("compare", EXPERIMENT, "--mode", "auto", "--accel", "tcg")
    assert ran.status == 2 and "--accel is a choice for `--mode realtime`" in ran.err


def test_compare_prints_the_report(testbed: Testbed, prepared: list[Any]) -> None:
    ran = testbed("compare", EXPERIMENT, "--json")
    assert ran.status == 0 and json.loads(ran.out)["seeds"] == [1]
    assert testbed("compare", EXPERIMENT).out.startswith("recorded\n")


def test_fresh_sets_the_old_result_aside(testbed: Testbed, prepared: list[Any], tmp_path: Path) -> None:
    testbed("run", EXPERIMENT, "--results", "r")
    ran = testbed("run", EXPERIMENT, "--results", "r", "--fresh")
    assert "the old result is now r.1" in ran.err
    assert {path.name for path in tmp_path.iterdir()} >= {"r", "r.1"}


def test_the_lines_that_cannot_be_had_are_named_and_left_out(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Experiment] = []

    def replaced(experiment: Experiment, *_: object, **__: object) -> Campaign:
        asked.append(experiment)
        raise HostError(f"{experiment.kernel.debian} is not to be had")

    monkeypatch.setattr(prepare, "prepare", replaced)
    ran = testbed("compare", EXPERIMENT, "--line", "all")
    known = series.lines()
    assert ran.status == HostError.exit_status
    assert ran.err == "".join(
        f"testbed: left out: {line.directory}: {line.source} is not to be had\n" for line in known
    )
    assert [e.name for e in asked] == [f"reclaim-capture-{line.directory}" for line in known]
    assert all(e.arms == load(EXPERIMENT).arms for e in asked)


@pytest.mark.parametrize("verb", ["compare", "run", "explain", "build", "boot"])
def test_a_line_is_one_of_those_there_are(testbed: Testbed, verb: str) -> None:
    ran = testbed(verb, EXPERIMENT, "--line", "5.4")
    assert ran.status == 2 and "there is no kernel line `5.4`: 6.1" in ran.err


def test_a_line_brings_its_own_source(testbed: Testbed, prepared: list[Any]) -> None:
    testbed("run", EXPERIMENT, "--line", "7.2")
    assert [e.kernel.debian for e in prepared] == ["linux-source-7.2"]


def test_options_stand_in_for_what_the_experiment_says(testbed: Testbed, prepared: list[Any]) -> None:
    testbed("run", EXPERIMENT)
    testbed("run", EXPERIMENT, "--seeds", "17", "--accel", "tcg")
    testbed("run", EXPERIMENT, "--mode", "realtime")
    assert [(e.seeds, e.mode, e.accel) for e in prepared] == [
        (8, "deterministic", "auto"),
        (17, "realtime", "tcg"),
        (8, "realtime", "auto"),
    ]
    ran = testbed("run", EXPERIMENT, "--mode", "deterministic", "--accel", "kvm")
    assert (ran.status, len(prepared)) == (2, 3)
    assert "--accel is a choice for `--mode realtime`" in ran.err


def test_an_experiment_is_checked_with_the_options_in_it(
    testbed: Testbed, prepared: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    head = "name: x\nkernel: {debian: linux-source-6.1}\narms: {unpatched: {}, patched: {}}\n"
    # Right if it is deterministic only.
    path.write_text(head + "mode: realtime\naccel: kvm\ndeadlines: {workload: 20}\n")
    assert testbed("run", path, "--mode", "deterministic").status == 0
    assert [(e.mode, e.accel) for e in prepared] == [("deterministic", "auto")]
    ran = testbed("run", path)
    assert (ran.status, len(prepared)) == (2, 1)
    assert "x.yaml:6: `deadlines.workload`: 20 s is too short" in ran.err
    assert "in mode realtime; give at least" in ran.err


def test_what_is_wrong_with_a_kernel_names_the_experiment(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(*_: object) -> Campaign:
        raise SpecError("arms.a: patch p does not apply")

    monkeypatch.setattr(prepare, "prepare", replaced)
    for verb in ("run", "compare"):
        message = f"testbed: {EXPERIMENT}: arms.a: patch p does not apply\n"
        assert testbed(verb, EXPERIMENT) == Ran(2, "", message)


def test_build_prints_where_the_kernels_are(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Built:
        vmlinux: Path

    built = {arm: Built(Path(f"/cache/{arm}/vmlinux")) for arm in ("a", "b")}
    monkeypatch.setattr(prepare, "kernels", lambda *_: built)
    ran = testbed("build", EXPERIMENT)
    assert (ran.status, ran.out) == (0, "a\t/cache/a/vmlinux\nb\t/cache/b/vmlinux\n")


@pytest.mark.parametrize(
    ("outcome", "log", "status", "said"),
    [
        ("measured", UNPATCHED, 0, "1 of 1 trials gave the same"),
        ("measured", PATCHED, 1, "sha256 of the log: expected"),
        ("oom", UNPATCHED, 1, "outcome: expected measured, got oom"),
        # The infrastructure failed, which says nothing about the bytes.
        ("lost", b"", 3, "outcome: expected measured, got lost"),
    ],
)
def test_a_trial_that_was_lost_is_no_other_result(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch, outcome: str, log: bytes, status: int, said: str
) -> None:
    trial = make_trial("qemu")
    digest = hashlib.sha256(UNPATCHED).hexdigest()
    expected = record(trial.arm, trial.seed, trial=trial.id, log_sha256=digest)
    repeat = reproduce.Repeat(manifest_of(trial.arm, expected), (trial,), "kernels")

    def run(
        _trials: object, ledger: Ledger, _jobs: int | None, _progress: object, **_: object
    ) -> dict[str, Measurement]:
        ledger.add(record(trial.arm, trial.seed, outcome, trial=trial.id), log)
        return {}

    monkeypatch.setattr(reproduce, "load", lambda *_: repeat)
    monkeypatch.setattr(pool, "run", run)
    ran = testbed("verify", "result")
    assert (ran.status, said in ran.out) == (status, True)


# --- verdicts, histories, and what is printed of the project itself ---------------------------------

LOW = [1000, 1010, 990, 1005, 995, 1008]
HIGH = [count * 13 // 10 for count in LOW]


def more_swap(said: dict[str, Any]) -> None:
    said["experiment"]["guest"]["swap"] *= 2


def test_two_results_are_compared(testbed: Testbed, tmp_path: Path) -> None:
    measured(tmp_path / "a", {"x": LOW})
    measured(tmp_path / "b", {"y": LOW, "z": HIGH})
    ran = testbed("compare", "a", "b:z", "--json")
    document = json.loads(ran.out)
    assert (ran.status, ran.err, list(document["arms"])) == (0, "", ["a", "b:z"])
    assert document["verdicts"]["b:z"]["primary"]["direct_reclaims"]["verdict"] == "regressed"
    ran = testbed("compare", "a", "b:z")
    assert ran.status == 0 and "regressed by +30" in ran.out
    # Nothing is written: neither result is this comparison.
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    assert not (tmp_path / "a" / "report.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a", "swap"), "a and swap were not measured alike: guest.swap: 268435456 and 536870912"),
        (("a", "b:none"), "b: there is no arm `none`: y, z"),
        (("a", "nowhere"), "nowhere: not a result directory: there is no ledger.sqlite in it"),
        (("a", "a"), "a and a are the same arm of the same result"),
        (("a", ":x"), ".: not a result directory: there is no ledger.sqlite in it"),
    ],
)
def test_results_that_cannot_be_compared_are_status_2(
    testbed: Testbed, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    measured(tmp_path / "a", {"x": LOW[:1]})
    measured(tmp_path / "b", {"y": LOW[:1], "z": LOW[:1]})
    measured(tmp_path / "swap", {"x": LOW[:1]}, more_swap)
    assert testbed("compare", *words) == Ran(2, "", f"testbed: {said}\n")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--seeds", "3"), "--seeds"),
        (("--fresh",), "--fresh"),
        (("--mode", "realtime"), "--mode"),
        (("--line", "6.1"), "--line"),
        (("--line", "all"), "--line"),
        (("--accel", "tcg"), "--accel"),
        (("--jobs", "1"), "--jobs"),
        (("--results", "there"), "--results"),
        (("--jobs", "1", "--fresh", "--mode", "realtime"), "--mode, --fresh, --jobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_say_how_trials_run_are_refused_for_stored_results(
    testbed: Testbed, tmp_path: Path, options: tuple[str, ...], named: str
) -> None:
    for name in "ab":
        measured(tmp_path / name, {"x": LOW[:1]})
    ran = testbed("compare", "a", "b", *options)
    said = f"testbed: {named}: nothing runs where two stored results are compared\n"
    assert ran == Ran(2, "", said)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        (["direct_reclaims regressed"], 1),
        (["any primary regressed"], 1),
        (["any improved", "any regressed"], 1),
        (["direct_reclaims improved"], 0),
        (["any primary undecided"], 0),
        ([], 0),
    ],
)
def test_a_gate_is_status_1_when_it_is_met(
    testbed: Testbed, tmp_path: Path, conditions: list[str], status: int
) -> None:
    measured(tmp_path / "a", {"x": LOW})
    measured(tmp_path / "b", {"x": HIGH})
    options = [word for condition in conditions for word in ("--fail-on", condition)]
    ran = testbed("compare", "a", "b", "--json", *options)
    assert ran.status == status
    assert ran.err.startswith("failed: ") == bool(status)


@pytest.mark.parametrize(
    "words", ["nonsense", "misses worse", "mises regressed", ""], ids=lambda words: words or "nothing"
)
def test_a_gate_that_is_nonsense_is_status_2(testbed: Testbed, result: Path, words: str) -> None:
    ran = testbed("report", result, "--fail-on", words)
    assert (ran.status, ran.out) == (2, "") and ran.err.startswith("testbed: --fail-on: ")
    assert not (result / "report.json").exists()


def test_a_gate_that_nothing_can_meet_is_status_2(testbed: Testbed, result: Path) -> None:
    ran = testbed("report", result, "--json", "--fail-on", "any regressed")
    assert ran.status == 2 and "nothing is judged here" in ran.err


def make_matrix(home: Path) -> Path:
    for name, after in (("n=1", LOW), ("n=2", HIGH)):
        measured(home / name, {"x": LOW, "y": after})
    entries = [{"at": {"n": n}, "name": f"n={n}", "failure": "", "exit_status": 0} for n in (1, 2)]
    (home / "matrix.json").write_text(json.dumps({"schema": 1, "name": "m", "cells": entries}))
    return home


def test_a_gate_holds_in_every_cell_of_a_matrix(testbed: Testbed, tmp_path: Path) -> None:
    home = make_matrix(tmp_path / "m")
    assert testbed("report", home, "--json").status == 0
    ran = testbed("report", home, "--json", "--fail-on", "any primary regressed")
    assert ran.status == 1 and ran.err.startswith("failed: n=2: any primary regressed: y: ")
    for form in ("--junit", "--ktap"):
        ran = testbed("report", home, form)
        assert (ran.status, ran.out) == (2, "") and "each of its cells has one" in ran.err


def test_a_matrix_with_a_cell_without_a_seed_is_status_1(testbed: Testbed, tmp_path: Path) -> None:
    home = make_matrix(tmp_path / "m")
    rows = [(record("x", 1), UNPATCHED), (record("y", 1, "oom"), UNPATCHED)]
    shutil.rmtree(home / "n=1")
    write_result(home / "n=1", plan(["x", "y"]), rows)
    ran = testbed("report", home, "--json")
    assert ran.status == 1 and json.loads(ran.out)["cells"][0]["failure"]
    # What failed in earnest says more.
    index = json.loads((home / "matrix.json").read_text())
    index["cells"][1] |= {"failure": "no QEMU", "exit_status": 3}
    (home / "matrix.json").write_text(json.dumps(index))
    assert testbed("report", home, "--json").status == 3
    shutil.rmtree(home / "n=1")
    write_result(home / "n=1", plan(["x", "y"]), [(record("x", 1, "lost"), b"")])
    index["cells"][1] |= {"failure": "", "exit_status": 0}
    (home / "matrix.json").write_text(json.dumps(index))
    assert testbed("report", home, "--json").status == 3


def test_a_history_is_a_table_and_a_picture(testbed: Testbed, tmp_path: Path) -> None:
    for name, counts in (("a", LOW), ("b", LOW[::-1]), ("c", HIGH)):
        measured(tmp_path / name, {"x": counts})
    for suffix, magic in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        ran = testbed("history", "a", "b", "c", "--margin", "0.05", "-o", f"h.{suffix}")
        assert (ran.status, ran.err) == (0, "")
        rows = [line for line in ran.out.splitlines() if line.strip().startswith("6.1.1 x")]
        assert ["regressed" in row for row in rows] == [False, False, True]
        assert (tmp_path / f"h.{suffix}").read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("-o", "h.pdf"), 2, "h.pdf: a picture is .svg or .png"),
        (("-o", "h"), 2, "h: a picture is .svg or .png"),
        (("--margin", "0"), 2, "--margin: 0 is not between 0 and 1"),
        (("--margin", "nan"), 2, "--margin: nan is not between 0 and 1"),
        (("--metric", "mises"), 2, "there is no metric `mises`"),
        (("swap",), 2, "a and swap were not measured alike"),
        (("-o", "no/where/h.svg"), 3, "[Errno 2] No such file or directory: 'no/where/h.svg'"),
    ],
)
def test_a_history_that_cannot_be_had(
    testbed: Testbed, tmp_path: Path, options: tuple[str, ...], status: int, said: str
) -> None:
    measured(tmp_path / "a", {"x": LOW[:1]})
    measured(tmp_path / "swap", {"x": LOW[:1]}, more_swap)
    ran = testbed("history", "a", *options)
    assert ran.status == status and ran.err.startswith(f"testbed: {said}")
    assert status == 3 or ran.out == ""


JUNIT = xmlschema.XMLSchema(DATA / "junit.xsd")


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (LOW, "system-out"),
        (HIGH, "failure"),
        (HIGH[:2], "error"),
        ([700, 1400, 650, 1500, 800, 1300], "skipped"),
    ],
    ids=["same", "worse", "too few", "not decided"],
)
def test_junit_keeps_to_its_schema(tmp_path: Path, after: list[int], said: str) -> None:
    result = measured(tmp_path / "r", {"x": LOW, "y": after})
    written = machine.junit(results.report(results.load(result)))
    JUNIT.validate(written)
    suites = ElementTree.fromstring(written)
    assert [suite.get("name") for suite in suites] == ["recorded.y"]
    assert [child.tag for suite in suites for case in suite for child in case] == [said]


def test_junit_without_verdicts_keeps_to_its_schema(result: Path) -> None:
    written = machine.junit(results.report(results.load(result)))
    JUNIT.validate(written)
    assert len(ElementTree.fromstring(written)) == 0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('tests="1"', 'tests="-1"'),
        ("system-out", "system-in"),
        ('name="direct_reclaims"', ""),
        ('timestamp="', 'timestamp="on '),
        ('time="0"', 'time="soon"'),
    ],
)
def test_what_is_no_junit_is_none_by_the_schema(tmp_path: Path, right: str, wrong: str) -> None:
    result = measured(tmp_path / "r", {"x": LOW, "y": LOW})
    written = machine.junit(results.report(results.load(result)))
    assert right in written
    assert not JUNIT.is_valid(written.replace(right, wrong))


def test_ktap_has_its_version_first(testbed: Testbed, tmp_path: Path) -> None:
    result = measured(tmp_path / "r", {"x": LOW, "y": HIGH})
    lines = testbed("report", result, "--ktap").out.splitlines()
    assert lines[:2] == ["KTAP version 1", "1..1"] and lines[-1] == "not ok 1 y"


def test_the_schema_and_the_metrics_are_printed(testbed: Testbed) -> None:
    ran = testbed("schema")
    assert (ran.status, ran.err, json.loads(ran.out)) == (0, "", schema())
    ran = testbed("schema", "--report")
    assert (ran.status, ran.err, json.loads(ran.out)) == (0, "", report_schema.schema())
    ran = testbed("metrics")
    assert (ran.status, ran.err) == (0, "")
    assert all(metric.name in ran.out for metric in METRICS)


def test_explain_names_the_experiment_of_what_is_wrong(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plans(*_: object) -> dict[str, Any]:
        raise SpecError("arms.patched: patch p does not apply")

    monkeypatch.setattr(prepare, "plans", plans)
    ran = testbed("explain", EXPERIMENT, "--seeds", "3")
    assert ran.status == 2 and ran.out == "reclaim-capture: 2 arms x 3 seeds = 6 trials\n"
    assert ran.err == f"testbed: {EXPERIMENT}: arms.patched: patch p does not apply\n"


# --- the doctor -----------------------------------------------------------------------------------

FINE = Need("make", None, {"debian": "make", "fedora": "make", "arch": "make"})
NO_XZ = Need("xz", "not found", {"debian": "xz-utils", "fedora": "xz", "arch": "xz"})
NO_SOURCE = Need(
    "kernel source", "not in /usr/src", {"debian": "linux-source-6.1"}, "elsewhere, give a tarball"
)
NO_ROOM = Need("room", "1 MiB free", {}, "make room")


@pytest.mark.parametrize(
    ("needs", "status", "lines"),
    [
        ([FINE], 0, ["ok      make"]),
        (
            [FINE, NO_XZ, NO_SOURCE],
            1,
            [
                "ok      make",
                "PROBLEM xz: not found",
                "PROBLEM kernel source: not in /usr/src; elsewhere, give a tarball",
                "on Debian: sudo apt-get install -y --no-install-recommends linux-source-6.1 xz-utils",
                "on Fedora: sudo dnf install -y xz",
                "on Arch: sudo pacman -S --needed --noconfirm xz",
            ],
        ),
        # Only one distribution packages what is missing.
        (
            [NO_SOURCE],
            1,
            [
                "PROBLEM kernel source: not in /usr/src; elsewhere, give a tarball",
                "on Debian: sudo apt-get install -y --no-install-recommends linux-source-6.1",
            ],
        ),
        ([NO_ROOM], 1, ["PROBLEM room: 1 MiB free; make room"]),
    ],
    ids=["fine", "some", "only Debian's", "no package helps"],
)
def test_the_doctor_tells_problems_and_remedies(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch, needs: list[Need], status: int, lines: list[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _cache: needs)
    ran = testbed("doctor")
    told = ran.out.splitlines()
    notes = [line for line in told if line.startswith("note    ")]
    assert "/dev/kvm" in notes[0] and "QEMU" in notes[1]
    assert (ran.status, [line for line in told if line not in notes], ran.err) == (status, lines, "")


# --- as a process ---------------------------------------------------------------------------------


def process(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "testbed", *map(str, words)]
    # Buffered, as for a person: an error of writing may come as late as the buffer is flushed.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    environment |= options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "cwd": REPOSITORY, "env": environment, **options}
    return subprocess.run(argv, check=False, stderr=subprocess.PIPE, text=True, timeout=60, **options)


def test_the_status_is_that_of_the_process(tmp_path: Path) -> None:
    ran = process("report", tmp_path)
    message = f"testbed: {tmp_path}: not a result directory: there is no ledger.sqlite in it\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", message)


# The last is so short that it leaves Python's buffer only at the end.
outputs = pytest.mark.parametrize(
    "words",
    [("report", "{result}", "--json"), ("report", "{result}"), ("parse", DATA / "patched.log.gz")],
    ids=["json", "text", "short"],
)


@outputs
def test_a_reader_that_has_enough_is_no_error(result: Path, words: tuple[str, ...]) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    try:
        ran = process(*(str(word).format(result=result) for word in words), stdout=writable)
    finally:
        os.close(writable)
    assert ran.returncode == 0
    assert "rror" not in ran.stderr and "Traceback" not in ran.stderr


def test_a_reader_that_leaves_changes_neither_files_nor_status(tmp_path: Path) -> None:
    """What is left to do is done, and a condition that is met stays so."""
    result = measured(tmp_path / "r", {"a": [1000] * 8, "b": [1400 + n for n in range(8)]})
    readable, writable = os.pipe()
    os.close(readable)
    try:
        ran = process("report", result, "--fail-on", "any primary regressed", stdout=writable)
    finally:
        os.close(writable)
    assert ran.returncode == 1
    assert (result / "report.html").exists() and "failed: any primary regressed" in ran.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("metrics", 0),
        ("parse {log}", 0),
        ("explain {experiment}", 0),
        ("experiments", 0),
        ("report {missing}", 2),
        ("--help", 0),
    ],
)
def test_closed_streams_are_no_error(tmp_path: Path, words: str, status: int, closed: str) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 9\n")
    (tmp_path / "x.yaml").write_text("name: x\nkernel: {tree: linux}\narms: {a: {}}\n")
    line = words.format(log=DATA / "patched.log.gz", missing=tmp_path, experiment=tmp_path / "x.yaml")
    command = f"{sys.executable} -m testbed {line} {closed}"
    # A shell, as it is the one that can close them.
    ran = subprocess.run(
        ["/bin/sh", "-c", command], check=False, capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    assert ran.returncode == status
    assert "Traceback" not in ran.stderr and "rror" not in ran.stderr
    assert bool(ran.stdout) == (status == 0 and " >&-" not in f" {closed}")


@pytest.mark.parametrize("mebibytes", [30, 60, 100, 250, 400, 599])
@pytest.mark.parametrize("words", ["metrics", "report {result} --json"])
def test_without_memory_there_is_a_line(result: Path, words: str, mebibytes: int) -> None:
    command = f"ulimit -v {mebibytes << 10}; {sys.executable} -m testbed {words.format(result=result)}"
    ran = subprocess.run(
        ["/bin/sh", "-c", command], check=False, capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    allowed = f"`ulimit -v` allows {mebibytes} MiB, and at least 600 are needed"
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "", f"testbed: out of memory: {allowed}\n")


def test_stopped_before_anything_has_begun_there_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parser() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cli, "parser", parser)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert door.main() == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr() == ("", "testbed: stopped\n")


def test_without_room_for_open_files_there_is_a_line() -> None:
    program = (
        "import resource, sys; from testbed.__main__ import main\n"
        "files = [open('/dev/null') for _ in range(9)]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (files[-1].fileno() + 1,) * 2)\n"
        "sys.argv[1:] = ['metrics']; sys.exit(main())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr == "testbed: Too many open files: `ulimit -n` allows 12\n"


def test_what_takes_too_much_memory_is_a_line(tmp_path: Path) -> None:
    """A log that unpacks to 250 MiB, where something else has taken most of what there is."""
    with gzip.open(tmp_path / "x.log.gz", "wb", compresslevel=1) as file:
        for _ in range(250):
            file.write(bytes(1 << 20))
    program = "import resource; resource.setrlimit(resource.RLIMIT_AS, (600 << 20,) * 2); "
    program += "from testbed.__main__ import main; import sys; sys.argv[1:] = ['parse', 'x.log.gz']; "
    ran = subprocess.run(
        [sys.executable, "-c", program + "taken = bytearray(300 << 20); sys.exit(main())"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert ran.returncode == 3 and ran.stderr.count("\n") == 1 and ran.stderr.startswith("testbed: out of m")


def test_help_for_a_reader_that_has_enough() -> None:
    readable, writable = os.pipe()
    os.close(readable)
    try:
        ran = process("--help", stdout=writable)
    finally:
        os.close(writable)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_shell_in_the_background_is_refused_and_not_stopped() -> None:
    command = f"set -m; {sys.executable} -m testbed boot {EXPERIMENT} & wait $!; echo status=$?"
    shell = pexpect.spawn("/bin/sh", ["-c", command], cwd=REPOSITORY, timeout=30, encoding="utf-8")
    shell.expect("status=([0-9]+)")
    said = f"{shell.before}{shell.after}"
    assert "testbed: boot: the guest's shell needs the terminal: run this in the foreground" in said
    assert said.endswith("status=2")
    shell.close()


@outputs
def test_a_full_disk_is_status_3_and_one_line(result: Path, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        ran = process(*(str(word).format(result=result) for word in words), stdout=full)
    assert ran.returncode == 3
    assert ran.stderr.splitlines()[-1] == "testbed: [Errno 28] No space left on device"
    assert "Traceback" not in ran.stderr


def test_a_locale_without_the_letters_gets_a_report(result: Path) -> None:
    ran = process("report", result, env={"PYTHONIOENCODING": "ascii"})
    assert ran.returncode == 0 and ran.stdout.isascii() and "fault p50 (\\xb5s)" in ran.stdout


# --- nothing else talks ---------------------------------------------------------------------------


def calls(path: Path) -> set[str]:
    """`print` and ways to end the process that a module calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("print", "exit", "quit", "sys.exit", "os._exit", "os.abort", "SystemExit"):
                found.add(name)
    return found


@pytest.mark.parametrize("path", sorted((REPOSITORY / "testbed").rglob("*.py")), ids=lambda path: path.name)
def test_only_the_doors_print_and_exit(path: Path) -> None:
    allowed = {"cli.py": {"print", "sys.exit"}, "bootstrap.py": {"print", "sys.exit"}}
    # One is a program of its own.
    allowed |= {"__main__.py": {"sys.exit"}, "confine.py": {"sys.exit"}}
    allowed |= {"show.py": {"print"}, "progress.py": {"print"}}
    assert calls(path) <= allowed.get(path.name, set())
