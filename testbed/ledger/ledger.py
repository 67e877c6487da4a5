# SPDX-License-Identifier: GPL-2.0-only
"""The ledger: one SQLite database and the raw console logs, in a result directory.

Append-only. A trial's log is on disk before its row is, and a row is one transaction, so that being
killed at any moment loses at most the trials in flight. No number that could be computed from a log is
stored: old results can be parsed again by a better parser.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from testbed.host import files, owned, space
from testbed.host.errors import SpecError, StoreError
from testbed.ledger.document import MOST_SAID, mistake, parsed
from testbed.ledger.plan import BisectionPlan, BuildNote, Plan
from testbed.ledger.record import LOST, Record, final

SCHEMA = 1
LEDGER = "ledger.sqlite"
# Bytes of a log. A console that says more than 8 MiB is cut off, and a program's files may be as much again.
MOST_LOG = 256 * files.MiB
# In a directory that has a result per cell of a matrix.
MATRIX = "matrix.json"
# Bytes of a result's path: SQLite opens no file whose own has more than 512.
LONGEST = 480

_TABLES = """
CREATE TABLE plans (id INTEGER PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    trial TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (trial, attempt)
);
"""
# What a bisection notes beside its trials, in order.
_NOTES = """
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, trials INTEGER NOT NULL, document TEXT NOT NULL)
"""


T = TypeVar("T")
P = TypeVar("P", Plan, BisectionPlan)
_RECORD = TypeAdapter(Record)
_NOTE = TypeAdapter(BuildNote)


class Ledger:
    """A result directory. Use create() to write, open() to read."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self._db = connection
        self._reopened: set[str] = set()

    @classmethod
    @contextlib.contextmanager
    def create(cls, directory: Path) -> Iterator[Ledger]:
        """The ledger in `directory`, made if need be, for one writer at a time.

        Raises StoreError when another process writes to it or when it is of another version.
        """
        _require_short(directory)
        with contextlib.ExitStack() as stack:
            with _translated(directory):
                files.make_directory(directory / "logs")
                stack.enter_context(_locked(directory))
                for home in (directory, directory / "logs", *_directories(directory / "logs")):
                    owned.remove_left(home)
                db = stack.enter_context(contextlib.closing(sqlite3.connect(directory / LEDGER)))
                db.execute("PRAGMA synchronous = FULL")
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
                ledger = cls(directory, _checked(db, directory))
            yield ledger

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[Ledger]:
        """The ledger of a finished or running experiment, to read.

        Raises SpecError when there is none, StoreError when it cannot be read.
        """
        _require_short(directory)
        path = directory / LEDGER
        if not path.is_file():
            raise SpecError(f"{directory}: not a result directory: there is no {LEDGER} in it")
        with contextlib.ExitStack() as stack:
            with _translated(directory):
                try:
                    db = stack.enter_context(_opened(path, "ro"))
                except sqlite3.OperationalError as failed:
                    if failed.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                        raise
                    _roll_back(path)
                    db = stack.enter_context(_opened(path, "ro"))
                ledger = cls(directory, db)
            yield ledger

    def set_plan(self, plan: Plan | BisectionPlan) -> None:
        """Note what is to be run from now on, and with what. The last plan counts."""
        text = plan.text()
        with _translated(self.directory), self._db:
            if self._last_plan() != text:
                self._db.execute("INSERT INTO plans (document) VALUES (?)", (text,))

    def plan(self) -> Plan:
        """The last plan. Raises StoreError when none can be read, SpecError when it is a bisection's."""
        try:
            return self._plan(Plan)
        except StoreError:
            if self._is(BisectionPlan):
                raise SpecError(
                    f"{self.directory}: not the result of a comparison",
                    "`testbed bisect status` shows that of a bisection",
                ) from None
            raise

    def bisection(self) -> BisectionPlan:
        """The last plan. Raises StoreError when none can be read, SpecError when it is a comparison's."""
        try:
            return self._plan(BisectionPlan)
        except StoreError:
            if self._is(Plan):
                raise SpecError(f"{self.directory}: not the result of a bisection") from None
            raise

    def is_planned(self) -> bool:
        """Whether there is a plan."""
        with _translated(self.directory):
            return self._last_plan() is not None

    def _plan(self, kind: type[P]) -> P:
        with _translated(self.directory):
            text = self._last_plan()
        if text is None:
            raise StoreError(f"{self.directory}: nothing was planned here yet")
        try:
            return parsed(kind, text)
        except ValueError as bad:
            raise StoreError(f"{self.directory / LEDGER}: its plan cannot be used: {bad}") from bad

    def _is(self, kind: type[P]) -> bool:
        try:
            self._plan(kind)
        except StoreError:
            return False
        return True

    def note(self, note: BuildNote) -> None:
        """Keep what became of a build, durably."""
        with _translated(self.directory), self._db:
            self._db.execute(_NOTES)
            self._db.execute(
                "INSERT INTO notes (trials, document) VALUES ((SELECT COUNT(*) FROM trials), ?)",
                (note.text(),),
            )

    def notes(self) -> list[tuple[int, BuildNote]]:
        """All notes in order, each with the number of attempts at trials that were kept before it.

        Raises StoreError for one that cannot be read.
        """
        with _translated(self.directory):
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'notes'").fetchone():
                return []
            rows = self._db.execute("SELECT trials, document FROM notes ORDER BY id").fetchall()
            kept = self._db.execute("SELECT COUNT(*) FROM trials").fetchone()[0]
        notes = [(before, self._read(_NOTE, text, "a note")) for before, text in rows]
        if not all(isinstance(before, int) and 0 <= before <= kept for before, _ in notes):
            raise StoreError(f"{self.directory / LEDGER}: a note has no place among the {kept} records")
        return notes

    def add(self, record: Record, log: bytes) -> None:
        """Keep an attempt and its raw console log, durably."""
        record = replace(record, log_sha256=hashlib.sha256(log).hexdigest())
        path = self.directory / "logs" / record.log_name
        document = json.dumps(asdict(record), sort_keys=True)
        with _translated(self.directory):
            # No time of day in the header: equal logs are equal files.
            files.write(path, gzip.compress(log, mtime=0), durable=True)
            # For people: who reads by program goes by the records. Before the row: what is kept has its link.
            link = self.directory / "logs" / record.arm / f"{record.seed}.log.gz"
            link.parent.mkdir(exist_ok=True)
            with files.staged(link) as draft:
                draft.symlink_to(f"../{record.log_name}")
            with self._db:
                self._db.execute(
                    "INSERT INTO trials (trial, attempt, outcome, document) VALUES (?, ?, ?, ?)",
                    (record.trial, record.attempt, record.outcome, document),
                )
        self._reopened.discard(record.trial)

    def records(self) -> list[Record]:
        """All attempts, in the order in which they ended. Raises StoreError for one that cannot be read."""
        with _translated(self.directory):
            rows = self._db.execute("SELECT document FROM trials ORDER BY id").fetchall()
        return [self._read(_RECORD, text, "a record") for (text,) in rows]

    def settled(self) -> dict[str, Record]:
        """Trial -> the attempt that counts, of those that need no further one."""
        counting = final(self.records()).items()
        return {id_: r for id_, r in counting if r.outcome != LOST and id_ not in self._reopened}

    def reopen(self, trials: Iterable[str]) -> None:
        """Have these trials need another attempt, whatever has become of them. What is kept stays."""
        self._reopened |= set(trials)

    def _read(self, kind: TypeAdapter[T], text: str, what: str) -> T:
        try:
            return kind.validate_json(text, strict=True)
        except ValidationError as invalid:
            raise StoreError(
                f"{self.directory / LEDGER}: {what} cannot be used: {mistake(invalid)}"
            ) from invalid

    def log(self, record: Record) -> bytes:
        """The raw console log of an attempt. Raises StoreError when it is gone or not what it was."""
        path = self.directory / "logs" / record.log_name
        try:
            log = files.unpacked(files.read(path, MOST_LOG), MOST_LOG, path)
        except (OSError, EOFError, zlib.error) as bad:
            raise StoreError(f"{path}: cannot be read: {files.reason(bad)}") from bad
        if hashlib.sha256(log).hexdigest() != record.log_sha256:
            raise StoreError(f"{path}: not the log that was recorded: its hash differs")
        return log

    def _last_plan(self) -> str | None:
        row = self._db.execute("SELECT document FROM plans ORDER BY id DESC LIMIT 1").fetchone()
        return row and str(row[0])


def set_aside(directory: Path) -> Path | None:
    """Move a result out of the way, to the next free `NAME.N`; None when there is none.

    Raises StoreError while somebody writes to it, SpecError when it is something else than a result.
    """
    if not directory.exists():
        return None
    if not any((directory / name).is_file() for name in (LEDGER, MATRIX)):
        raise SpecError(f"{directory}: not moved aside: there is no {LEDGER} in it, so it is not a result")
    if directory.name in ("", ".."):
        directory = directory.resolve()
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    with _translated(directory), _locked(directory):
        directory.rename(target)
    return target


def _directories(home: Path) -> list[Path]:
    with os.scandir(home) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _require_short(directory: Path) -> None:
    length = len(os.fsencode(directory.absolute()))
    if length > LONGEST:
        raise SpecError(
            f"{directory}: its path has {length} bytes, and that of a result can have {LONGEST}: "
            "name another with --results"
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Be the only one who writes; the lock goes with the process, however it ends."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked_at_once(directory / ".lock"))
        except BlockingIOError as held:
            raise StoreError(f"{directory}: another testbed is writing to this result") from held
        yield


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
        yield _checked(db, path.parent)


def _roll_back(path: Path) -> None:
    """Undo what a writer that was killed has half written, which nobody can who only reads."""
    try:
        with _opened(path, "rw"):
            pass
    except sqlite3.OperationalError as failed:
        raise StoreError(
            f"{path.parent}: was being written when its writer was killed, and cannot be put right where "
            "nothing may be written",
            "read it once where that is possible: `testbed report` on a copy, or on the original",
        ) from failed


@contextlib.contextmanager
def _translated(directory: Path) -> Iterator[None]:
    try:
        with space.told(directory):
            yield
    except (sqlite3.Error, OSError) as failed:
        if getattr(failed, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise space.lack(directory) from failed
        # What SQLite says may have all of a document in it.
        said = " ".join(str(failed).split())[:MOST_SAID]
        raise StoreError(f"{directory}: the ledger cannot be used: {said}") from failed


def _checked(db: sqlite3.Connection, directory: Path) -> sqlite3.Connection:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA:
        raise StoreError(f"{directory}: its ledger is of version {version}; this testbed writes {SCHEMA}")
    return db
