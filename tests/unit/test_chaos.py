# SPDX-License-Identifier: GPL-2.0-only
"""The campaign of `make chaos`: a small part of it, and that each of its checks notices what it is for."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from testbed.host.errors import SpecError
from tests.chaos import checks, hostile, kernel
from tests.chaos.campaign import Campaign
from tests.chaos.children import MARK, Ended, Home, run
from tests.chaos.disturb import KINDS, Case, Kind, Verdict, kill_emulator, stop_emulator, two_at_once
from tests.chaos.hostile import HOSTILE, Hostile
from tests.chaos.scenes import COMPARE, REPORT, Stage
from tests.unit.recorded import REPOSITORY, pair


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """One that is set up once for all."""
    made = Stage(tmp_path_factory.mktemp("chaos"))
    made.set_up()
    return made


@pytest.fixture(scope="module")
def campaign(stage: Stage) -> str:
    """A small part of an hour's campaign: kills, and spoilt inputs."""
    ran = chaos(stage, seed=1)
    assert ran.returncode in (0, 1), ran.stderr
    return ran.stdout


def chaos(stage: Stage, seed: int) -> subprocess.CompletedProcess[str]:
    """What `make chaos` runs."""
    words = ["--share", "0.005", "--jobs", "1", "--seed", str(seed), "--into", str(stage.top)]
    words += [word for kind in ("kill -9 of compare", "kill -9 of re", "spoilt") for word in ("--only", kind)]
    command = [sys.executable, "-m", "tests.chaos", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def rows(table: str) -> dict[str, list[str]]:
    """The cells of a table's lines, by the first."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {
        first: rest for first, *rest in cells if rest and not first.startswith("-") and rest[0] != "tried"
    }


def test_a_small_part_of_it(campaign: str) -> None:
    found = rows(campaign)
    assert {"kill -9 of compare", "kill -9 of report", "kill -9 of replay", "spoilt logs"} <= set(found)
    for kind, (tried, survived, lost, _, _) in found.items():
        assert (survived, lost) == (tried, "0"), (kind, campaign)
    assert int(found["spoilt logs"][0]) >= 50 and int(found["kill -9 of replay"][0]) >= 1


@pytest.mark.parametrize("disturb", [kill_emulator, stop_emulator, two_at_once])
def test_a_comparison_is_the_same_afterwards(stage: Stage, disturb: Callable[[Case], None]) -> None:
    verdict = Kind(disturb.__name__, 1, (COMPARE,), disturb).run(stage, 0, 0)
    assert (verdict.tried, verdict.lost, verdict.left) == (1, [], [])


def test_the_same_command_goes_on_and_another_is_refused(campaign: str, stage: Stage) -> None:
    done = (stage.top / "cases.jsonl").read_bytes()
    assert chaos(stage, seed=1).stdout == campaign
    assert (stage.top / "cases.jsonl").read_bytes() == done
    other = chaos(stage, seed=2)
    assert (other.returncode, other.stdout) == (2, "")
    assert "give another with --into DIR" in other.stderr and len(other.stderr.splitlines()) == 1


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that these have."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = {int(word) for word in children.read_text().split()} if children.exists() else set()
    return found.union(*map(descendants, found)) if found else found


def test_a_campaign_that_is_killed_ends_what_it_has_started(campaign: str, stage: Stage) -> None:
    words = ["--jobs", "1", "--seed", "1", "--into", str(stage.top), "--only", "kill -9 of compare"]
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *words], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    # A worker, a testbed, and what that runs.
    while len(started := descendants(running.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.kill()
    running.wait()
    assert len(started) >= 3
    while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def test_a_parser_is_fuzzed(stage: Stage) -> None:
    words = ["--only", "fuzzed frames", "--fuzz", "0.1", "--jobs", "1", "--into", str(stage.top / "fuzzed")]
    command = [sys.executable, "-m", "tests.chaos", *words]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    tried, survived, lost, left, _ = rows(ran.stdout)["fuzzed frames"]
    assert int(tried.replace(",", "")) > 1
    assert (ran.returncode, survived, lost, left, ran.stderr) == (0, tried, "0", "0", "")


# --- what is wrong is noticed -----------------------------------------------------------------------


def tried(stage: Stage, plant: Callable[[Case], None]) -> Verdict:
    """What a campaign says of a report after something was done to it."""
    return Kind(f"planted {plant.__name__}", 1, (REPORT,), plant).run(stage, 0, 0)


def test_nothing_is_noticed_where_nothing_is(stage: Stage) -> None:
    def nothing(_: Case) -> None:
        pass

    assert tried(stage, nothing) == Verdict(1, [], [])


def leave_scratch(case: Case) -> None:
    (case.home.scratch / "testbed-x").mkdir()


def leave_a_draft(case: Case) -> None:
    (case.home.cache / "kernels" / "x.1.tmp").write_text("")


def leave_a_process(case: Case) -> None:
    subprocess.Popen(["sleep", "20"], env={**os.environ, MARK: case.home.mark})


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (leave_scratch, "left in TMPDIR: testbed-x"),
        (leave_a_draft, "left: cache/testbed/kernels/x.1.tmp"),
        (leave_a_process, "is left: sleep 20"),
    ],
)
def test_what_is_left_is_noticed(
    stage: Stage, plant: Callable[[Case], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "END_SECONDS", 0.2)
    verdict = tried(stage, plant)
    assert not verdict.lost and any(line.endswith(said) for line in verdict.left), verdict


def change_an_outcome(case: Case) -> None:
    with sqlite3.connect(case.home.result / "ledger.sqlite") as db:
        ((text,),) = db.execute("SELECT document FROM trials WHERE id = 1")
        changed = json.dumps(json.loads(text) | {"outcome": "panic"})
        db.execute("UPDATE trials SET document = ? WHERE id = 1", (changed,))


def add_a_trial(case: Case) -> None:
    with sqlite3.connect(case.home.result / "ledger.sqlite") as db:
        db.execute(
            "INSERT INTO trials (trial, attempt, outcome, document) "
            "SELECT trial, 2, outcome, replace(document, '\"attempt\": 1', '\"attempt\": 2') FROM trials "
            "WHERE id = 1"
        )


def change_a_log(case: Case) -> None:
    log = next(case.home.result.glob("logs/*.log.gz"))
    log.write_bytes(gzip.compress(gzip.decompress(log.read_bytes()) + b"x"))


def lose_a_log(case: Case) -> None:
    next(case.home.result.glob("logs/*.log.gz")).unlink()


def lose_a_picture_for_ever(case: Case) -> None:
    (case.home.result / "pictures").mkdir(exist_ok=True)
    (case.home.result / "pictures" / "new.svg").write_text("")


def lose_the_result(case: Case) -> None:
    (case.home.result / "ledger.sqlite").unlink()


@pytest.mark.parametrize(
    "plant",
    [change_an_outcome, add_a_trial, change_a_log, lose_a_log, lose_a_picture_for_ever, lose_the_result],
)
def test_what_is_lost_or_changed_is_noticed(stage: Stage, plant: Callable[[Case], None]) -> None:
    assert tried(stage, plant).lost


def test_a_damaged_database_is_noticed(tmp_path: Path) -> None:
    ledger = pair(tmp_path / "result") / "ledger.sqlite"
    assert list(checks.damage(tmp_path / "result")) == []
    with ledger.open("r+b") as file:
        file.seek(4096)
        file.write(b"\0" * 4096)
    assert list(checks.damage(tmp_path / "result"))


@pytest.mark.skipif(bool(kernel.no_mounts()), reason="mounting needs root")
def test_an_empty_directory_without_any_room_is_full_and_has_room_again(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    script = (
        "from pathlib import Path; from tests.chaos import kernel; kernel.own_mounts()\n"
        f"place = Path({str(tmp_path / 'scratch')!r})\n"
        "with kernel.small(place, free_bytes=0):\n"
        "    try: (place / 'x').write_bytes(bytes(8192))\n"
        "    except OSError as full: print(full.strerror)\n"
        "print((place / 'x').write_bytes(bytes(8192)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["No space left on device", "8192"], done.stderr


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Ended(3, "", "Traceback (most recent call last):\n  File\nValueError: 7\n", 1), "ValueError: 7"),
        (Ended(-11, "", "", 1), "signal 11"),
        (Ended(-9, "", "", 1, late=120), "did not end within 120 s"),
    ],
)
def test_how_no_command_may_end_is_noticed(ended: Ended, said: str) -> None:
    assert any(said in line for line in ended.complaints)


def test_a_command_without_a_word_is_noticed(stage: Stage) -> None:
    case = Case(stage, REPORT, stage.set(REPORT, "without a word", 0), Random(0))
    case.judge(Ended(3, "", "", 1))
    assert case.lost == ["exit status 3, and not a word"]


def test_it_dies_before_what_it_is_told_to_do(stage: Stage) -> None:
    home = stage.set(REPORT, "dies", 0)
    whole = run(REPORT.command(), home)
    assert whole.status == 0 and whole.events > 100
    again = stage.set(REPORT, "dies", 1)
    assert run(REPORT.command(dies_at=1), again).status == -9
    assert not (again.result / "report.json").exists()


def raises(_: Home) -> None:
    raise KeyError("7")


def refuses(_: Home) -> None:
    raise SpecError("spoilt.yaml: no")


def says_too_much(_: Home) -> None:
    raise SpecError("no" * 10_000)


def takes_for_ever(_: Home) -> None:
    while True:
        time.sleep(0.01)


def dies(_: Home) -> None:
    os._exit(9)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (refuses, ()),
        (raises, ("input 2: KeyError: '7'", "input 3: KeyError: '7'")),
        (says_too_much, ("input 2: exit status 2, 20000 characters", "input 3: exit status 2")),
        (takes_for_ever, ("input 2: it takes longer than 0 s", "input 3: it takes longer")),
        (dies, ("input 2: the process ended with 9",)),
    ],
)
def test_an_input_that_is_neither_taken_nor_refused_is_noticed(
    stage: Stage, read: Callable[[Home], object], said: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "INPUT_SECONDS", 0.2)
    lost = Hostile(read.__name__, 4, lambda *_: None, read, batch=2).run(stage, 1, 0).lost
    assert len(lost) == len(said)
    assert all(line.startswith(start) for line, start in zip(lost, said, strict=True)), lost


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: kind.name)
def test_a_seed_and_a_number_give_the_same_input_again(stage: Stage, kind: Hostile) -> None:
    def made(index: int) -> list[bytes]:
        home = stage.set(REPORT, kind.name, index)
        kind.prepare(home, index, 7)
        return [path.read_bytes() for path in sorted(home.work.rglob("*")) if path.is_file()]

    assert made(1) == made(1) != made(2)


def test_what_cannot_be_done_here_is_not_survived(tmp_path: Path) -> None:
    impossible = Kind("EIO", 10, (REPORT,), leave_scratch, lambda: "this is no such machine")
    table = Campaign(tmp_path, [impossible], "v1").table()
    assert "EIO" not in rows(table)
    assert table.endswith("\nNot possible here:\n\n- EIO: this is no such machine\n")


def test_every_kind_has_a_name_of_its_own() -> None:
    names = [*(kind.name for kind in KINDS), *(kind.name for kind in HOSTILE)]
    assert len(set(names)) == len(names)
    assert (
        sum(kind.wanted for kind in KINDS if kind.name.startswith("kill -9 of") and "QEMU" not in kind.name)
        >= 1000
    )
    assert sum(kind.wanted for kind in KINDS if "-9 of QEMU" in kind.name) >= 200
