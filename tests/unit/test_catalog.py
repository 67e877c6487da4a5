# SPDX-License-Identifier: GPL-2.0-only
"""What there is to run, what has been run, and whose result it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed import cli
from testbed.verbs import catalog, compare
from tests.recorded_lab import RecordedLab
from tests.unit.recorded import EXPERIMENT, pair, plan, record, write_result

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
    assert cli.main(["list", "elsewhere"]) == 0
    assert capsys.readouterr().err == "elsewhere: no results\n"


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
