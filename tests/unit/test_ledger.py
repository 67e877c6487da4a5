# SPDX-License-Identifier: GPL-2.0-only
"""The ledger: what is written stays, whatever happens to the writer."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from testbed.host.errors import SpecError, StoreError
from testbed.ledger.ledger import LEDGER, LONGEST, Ledger, set_aside
from testbed.ledger.plan import BuildNote
from testbed.ledger.record import LOST, MEASURED, final
from tests.unit.recorded import REPOSITORY, plan, record

WRITER = """
import sys
from pathlib import Path
from testbed.ledger.ledger import Ledger
from tests.unit.recorded import plan, record
with Ledger.create(Path(sys.argv[1])) as ledger:
    ledger.set_plan(plan())
    for seed in range(1, 100000):
        ledger.add(record("a", seed), b"log of %d\\n" % seed * 1000)
        print(seed, flush=True)
"""


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "r") as ledger:
        ledger.set_plan(plan(["b", "a"]))
        ledger.add(record("a", 1), b"one\x00\xff")
        ledger.add(record("a", 2, "oom", "killed"), b"two")
    with Ledger.open(tmp_path / "r") as ledger:
        assert ledger.plan() == plan(["b", "a"]) and list(ledger.plan().experiment.arms) == ["b", "a"]
        assert [(r.seed, r.outcome) for r in ledger.records()] == [(1, MEASURED), (2, "oom")]
        assert [ledger.log(r) for r in ledger.records()] == [b"one\x00\xff", b"two"]


def test_equal_logs_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Ledger.create(tmp_path / name) as ledger:
            ledger.add(record("a", 1), b"the same")
    first, second = (next((tmp_path / name / "logs").iterdir()).read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("after", [0, 1, 7, 30])
def test_kill_9_loses_at_most_what_was_in_flight(tmp_path: Path, after: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "r")], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert writer.stdout
    told = 0
    while told < after:
        told = int(writer.stdout.readline())
    time.sleep(0.003 * after)  # somewhere in the midst of a write
    if after == 0:
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    told = max([told, *(int(line) for line in writer.stdout.read().split())])
    writer.wait()
    writer.stdout.close()

    with Ledger.create(tmp_path / "r") as ledger:  # the lock went with the process
        records = ledger.records()
        assert [r.seed for r in records] == list(range(1, len(records) + 1))
        assert told <= len(records) <= told + 1
        for r in records:
            assert ledger.log(r) == b"log of %d\n" % r.seed * 1000
        ledger.add(record("a", len(records) + 1), b"goes on")
    assert sqlite3.connect(tmp_path / "r" / LEDGER).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        Ledger.create(tmp_path / "r"),
        pytest.raises(StoreError, match="another testbed is writing"),
        Ledger.create(tmp_path / "r"),
    ):
        pass


def test_reading_is_possible_while_it_is_written(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "r") as writer:
        writer.add(record("a", 1), b"log")
        with Ledger.open(tmp_path / "r") as reader:
            assert len(reader.records()) == 1


def note(commit: str) -> BuildNote:
    return BuildNote(commit=commit, kernel="k", reason="", remarks=("without x",), seconds=1.5, detail="")


def test_notes_know_their_place_among_the_trials(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "r") as ledger:
        assert ledger.notes() == []
        ledger.note(note("first"))
        ledger.add(record("a", 1), b"one")
        ledger.add(record("a", 2), b"two")
        ledger.note(note("second"))
    with Ledger.open(tmp_path / "r") as ledger:
        assert ledger.notes() == [(0, note("first")), (2, note("second"))]


def test_the_last_plan_counts_and_an_equal_one_is_not_kept_twice(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "r") as ledger:
        for seeds in (1, 1, 2):
            ledger.set_plan(plan(seeds=seeds))
        assert ledger.plan() == plan(seeds=2)
    rows = sqlite3.connect(tmp_path / "r" / LEDGER).execute("SELECT count(*) FROM plans").fetchone()
    assert rows == (2,)


def test_a_directory_without_a_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not a result directory"), Ledger.open(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEDGER).write_bytes(content)
    with pytest.raises(StoreError), Ledger.open(tmp_path):
        pass
    assert (tmp_path / LEDGER).read_bytes() == content


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "r"):
        pass
    db = sqlite3.connect(tmp_path / "r" / LEDGER)
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="version 99"), Ledger.create(tmp_path / "r"):
        pass


# A writer that is killed between the two halves of a transaction.
HALF_WRITTEN = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
for number in range(300):
    db.execute("INSERT INTO plans (document) VALUES (?)", ("x" * 4000,))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def half_written() -> Iterator[Path]:
    """A result whose writer was killed, where another user may look."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "r"
        Path(name).chmod(0o755)
        with Ledger.create(directory) as ledger:
            ledger.set_plan(plan())
        subprocess.run([sys.executable, "-c", HALF_WRITTEN, directory / LEDGER], check=False)
        assert (directory / f"{LEDGER}-journal").stat().st_size > 0
        yield directory
        directory.chmod(0o755)


def test_what_was_half_written_is_undone_by_who_reads_it(half_written: Path) -> None:
    with Ledger.open(half_written) as ledger:
        assert ledger.plan() == plan()


def test_what_was_half_written_is_said_where_nothing_may_be_written(half_written: Path) -> None:
    (half_written / LEDGER).chmod(0o444)
    half_written.chmod(0o555)
    user = os.geteuid()
    # Root may write anywhere.
    os.seteuid(user or 65534)
    try:
        with pytest.raises(StoreError) as caught, Ledger.open(half_written):
            pass
    finally:
        os.seteuid(user)
    assert caught.value.message == (
        f"{half_written}: was being written when its writer was killed, and cannot be put right where "
        "nothing may be written"
    )


def test_a_log_that_unpacks_to_anything_is_refused(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "r") as ledger:
        ledger.add(record("a", 1), b"log")
        (kept,) = ledger.records()
        with gzip.open(tmp_path / "r" / "logs" / kept.log_name, "wb", compresslevel=1) as file:
            for _ in range(257):
                file.write(bytes(1 << 20))
        with pytest.raises(StoreError, match=r"a-1\.1\.log\.gz: cannot be read: is larger than 256 MiB$"):
            ledger.log(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trial": "../../etc/passwd"}, "trial: '../../etc/passwd' is no name"),
        ({"trial": "a\0"}, "is no name"),
        ({"attempt": 0}, "attempt, seed: are not counted so"),
        ({"memory": {}}, "memory: what was measured has a size"),
        ({"stages": {"boot": float("inf")}}, "stages: are of some length"),
    ],
)
def test_a_record_that_none_can_be_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with Ledger.create(tmp_path / "r") as ledger:
        ledger.add(record("a", 1), b"log")
    with closing(sqlite3.connect(tmp_path / "r" / LEDGER)) as db:
        said = json.loads(db.execute("SELECT document FROM trials").fetchone()[0]) | change
        db.execute("UPDATE trials SET document = ?", (json.dumps(said),))
        db.commit()
    with Ledger.open(tmp_path / "r") as ledger, pytest.raises(StoreError) as caught:
        ledger.records()
    assert message in str(caught.value) and str(tmp_path / "r" / LEDGER) in str(caught.value)


def test_a_result_may_be_very_deep(tmp_path: Path) -> None:
    """SQLite opens no path of more than 512 bytes."""
    levels = (LONGEST - len(os.fsencode(tmp_path))) // 2
    with Ledger.create(tmp_path.joinpath(*["d"] * levels)) as ledger:
        ledger.add(record("a", 1), b"log")
    for deeper in (levels + 1, 1500):
        deep = tmp_path.joinpath(*["e"] * deeper)
        with (
            pytest.raises(SpecError, match=r"its path has \d+ bytes, and that of a result"),
            Ledger.create(deep),
        ):
            pass
    assert not (tmp_path / "e").exists()


def test_a_log_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "r") as ledger:
        for seed in (1, 2, 3):
            ledger.add(record("a", seed), b"log %d" % seed)
        first, second, third = ledger.records()
        logs = tmp_path / "r" / "logs"
        (logs / first.log_name).write_bytes((logs / second.log_name).read_bytes())
        (logs / second.log_name).unlink()
        (logs / third.log_name).write_bytes(b"not gzip")
        for r in (first, second, third):
            with pytest.raises(StoreError, match=r"\.log\.gz"):
                ledger.log(r)


def test_setting_aside_keeps_every_old_result(tmp_path: Path) -> None:
    directory = tmp_path / "r"
    assert set_aside(directory) is None
    for number in (1, 2):
        with Ledger.create(directory):
            (directory / "x").write_text(str(number))
        assert set_aside(directory) == tmp_path / f"r.{number}"
    assert [(tmp_path / f"r.{n}" / "x").read_text() for n in (1, 2)] == ["1", "2"]


def test_what_is_not_a_result_is_not_moved(tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    with pytest.raises(SpecError, match="not a result"):
        set_aside(precious)
    assert precious.is_dir() and list(precious.iterdir()) == []


def test_of_several_attempts_the_last_that_was_not_lost_counts() -> None:
    attempts = [
        record("a", 1, LOST),
        record("a", 1, "oom", attempt=2),
        record("a", 1, attempt=3),
        record("b", 1, LOST),
        record("b", 1, LOST, attempt=2),
    ]
    assert {name: r.attempt for name, r in final(attempts).items()} == {"a-1": 3, "b-1": 2}


def test_a_failure_is_settled_until_it_is_opened_again(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "r") as ledger:
        ledger.add(record("a", 1, "hang"), b"")
        ledger.add(record("b", 1, LOST), b"")
        assert set(ledger.settled()) == {"a-1"}
        ledger.reopen(["a-1"])
        assert ledger.settled() == {} and len(ledger.records()) == 2
        ledger.add(record("a", 1, LOST, attempt=2), b"")
        # It was tried, and nothing is known but what was.
        assert ledger.settled()["a-1"].outcome == "hang"
        ledger.reopen(["a-1"])
        ledger.add(record("a", 1, attempt=3), b"")
        assert ledger.settled()["a-1"].outcome == MEASURED
