# SPDX-License-Identifier: GPL-2.0-only
"""What there is to run, what has been run, and whose result it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed import cli
from testbed.experiment import Experiment
from testbed.host.errors import HostError, SpecError
from testbed.terminal.progress import Watcher
from testbed.trials.prepare import Campaign
from testbed.verbs import catalog, compare, run
from testbed.verbs.request import ExperimentRequest, RunRequest
from tests.recorded_lab import RecordedLab
from tests.unit.recorded import EXPERIMENT, edited, pair, plan, record, write_result

LAB = RecordedLab({"unpatched": [100, 101, 99], "patched": [50, 51, 49]})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_experiment_of_the_repository_is_offered_with_a_sentence() -> None:
    offered = {one.name: one for one in catalog.offered()}
    assert offered.keys() == {path.stem for path in EXPERIMENT.parent.glob("*.yaml")}
    assert all(one.description and one.seconds > 10 for one in offered.values())
    assert offered["anon"].seconds < 600


def test_results_are_listed_with_what_they_say_the_newest_first(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_result(here / "results" / "old", plan(seeds=2), [(record("unpatched", 1), b"")])
    for file in old.iterdir():
        os.utime(file, (time.time() - 7200,) * 2)
    assert cli.main(["compare", str(EXPERIMENT)], LAB) == 0
    (here / "results" / "no-result").mkdir()
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (new,) = (line for line in lines if "results/reclaim-capture" in line)
    assert "improved" in " ".join(lines) and lines.index(new) < len(lines) - 1
    (listed,) = (line for line in lines if "results/old" in line)
    assert "2 h" in listed and "1 of 4 trials" in listed
    (here / "elsewhere").mkdir()
    assert cli.main(["list", "elsewhere"]) == 0
    assert capsys.readouterr().err == "elsewhere: no results\n"
    assert cli.main(["list", "/no/such/dir"]) == 2
    assert capsys.readouterr().err == "testbed: /no/such/dir: no such directory\n"


def test_where_nothing_has_run_yet_there_are_no_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().err == "results: no results\n"


def test_the_time_of_an_experiment_is_said_to_be_without_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiments"]) == 0
    assert "takes about, once kernels are built" in capsys.readouterr().out


def test_arms_that_do_not_differ_are_named_before_they_run(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def alike(experiment: Experiment, note: Callable[[str], None]) -> Campaign:
        made = RecordedLab.prepare(LAB, experiment, note)

        def change(data: Any) -> None:
            for kernel in data["provenance"]["kernels"].values():
                kernel["vmlinux_sha256"] = "the same"
            for arm in data["experiment"]["arms"].values():
                arm["patches"] = []

        return replace(made, plan=edited(made.plan, change))

    lab = SimpleNamespace(prepare=alike, run=stopped, cache=here)
    assert cli.main(["run", str(EXPERIMENT)], lab) == 3
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "unpatched and patched are the same kernel, bit for bit, with the same settings",
        "testbed: stopped",
    ]


def stopped(*_: object, **__: object) -> None:
    raise HostError("stopped")


def test_other_words_of_the_same_name_do_not_get_the_result(here: Path) -> None:
    def asked(words: str) -> None:
        changes = {"name": "x"}
        request = RunRequest(ExperimentRequest(EXPERIMENT, changes=changes, asked=words))
        run.run(request, LAB, Watcher())

    asked("--sysctl vm.swappiness=10")
    asked("--sysctl vm.swappiness=10")
    with pytest.raises(
        SpecError, match=r"results/x: has the result of `--sysctl vm.swappiness=10`, which is"
    ):
        asked("--sysctl vm.swappiness=20")


def test_another_file_of_the_same_name_does_not_get_the_result(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [here / name / "x.yaml" for name in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text(EXPERIMENT.read_text())
    assert cli.main(["run", str(files[0])], LAB) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in (here / "results").rglob("*.sqlite"))
    assert cli.main(["run", str(files[1])], LAB) == 2
    said = capsys.readouterr().err
    assert f"results/reclaim-capture: has the result of {files[0]}, which is of the same name" in said
    assert sorted((path, path.stat().st_mtime_ns) for path in (here / "results").rglob("*.sqlite")) == before
    # One that was moved is still the same.
    files[0].rename(here / "moved.yaml")
    assert cli.main(["run", str(here / "moved.yaml")], LAB) == 0


def test_words_that_name_results_are_results(here: Path) -> None:
    pair(here / "r")
    assert compare.are_stored(["r", "nothing"]) and compare.are_stored(["r:patched", "r:unpatched"])
    assert not compare.are_stored(["x.patch", "y.patch"]) and not compare.are_stored([])
    assert cli.main(["compare", "r"]) == 2


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("testbed comp", ["compare"]),
        ("testbed compare --experiment re", ["reclaim-capture"]),
        ("testbed report results/r", ["results/r1"]),
        ("testbed report results/r1:p", ["results/r1:patched"]),
        ("testbed history --metric fault_p99", ["fault_p99", "fault_p999"]),
        ("testbed compare mi", ["mine.yaml"]),
        ("testbed cl", ["clean"]),
        ("testbed clean --c", ["--cache"]),
    ],
)
def test_the_shell_completes(here: Path, line: str, offered: list[str]) -> None:
    pair(here / "results" / "r1")
    (here / "mine.yaml").touch()
    env = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "fish",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(here / "offered"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, "-m", "testbed.cli"], env=env, check=True, timeout=60)
    words = (here / "offered").read_text().replace("\v", "\n").split("\n")
    assert [word.split("\t")[0].strip() for word in words if word.strip()] == offered
