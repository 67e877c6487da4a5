# SPDX-License-Identifier: GPL-2.0-only
"""Inputs that nobody meant to write: the repository's own, spoilt. Each works or is refused in plain words.

They are read in batches, each in a process of its own that has a limit of time for every input and one of
memory for all.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import lzma
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import tarfile
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random

from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import parse
from testbed.experiment import expand
from testbed.host.errors import TestbedError
from testbed.kernel import series
from testbed.verbs import reproduce, results
from tests.chaos import checks
from tests.chaos.children import Home
from tests.chaos.disturb import Verdict
from tests.chaos.scenes import REPORT, Scene, Stage
from tests.unit.recorded import DATA, REPOSITORY

INPUT_SECONDS = 10.0
BATCH_SECONDS = 300.0
MEMORY_BYTES = 2 << 30
MOST_SAID = 10_000

NASTY = (
    *(b"", b"\0", b"\n", b"\r\n", b"\xff\xfe", b"\x1b[2J", b"\xc3", b"-1", b"0", b"1e999", b".inf", b"NaN"),
    *(b"9" * 400, b"18446744073709551616", b"0x10", b"null", b"~", b"true", b"[]", b"{}", b'""', b"''"),
    *(b"[" * 2000, b"{a: " * 500, b"&a [*a]", b"*a", b"<<: *a", b"!!python/object:os.system x", b"? ", b"- "),
    *(b": ", b"#", b"\t", b"|\n", b"../../etc/passwd", b"/dev/zero", b"/proc/self/mem", b"${HOME}", b"%s%n"),
    *(b"git:/:A..B", b"linux-source-....", b"http://[::1", b"\n#tb:frame x 5 00000000\n", b"\n#tb:end\n"),
    *(b"\n--- a/x\n+++ b/x\n@@ -1,99999999 +1 @@\n", b"@@ -0,0 +1 @@", b"GIT binary patch\n", b"From \n\n"),
    *(
        b"diff --git a/../x b/../x\n",
        b"rename from /etc/passwd\n",
        b"Subject: [PATCH 9/2]\n",
        b"deleted file mode",
    ),
)


class TooLong(BaseException):
    """An input that takes longer than any may."""


def spoil(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Some bytes, changed at one to four places."""
    for _ in range(rng.randint(1, 4)):
        begin, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        end = min(end, begin + rng.choice((1, 8, 100, 100_000)))
        other = rng.choice(others)
        at = rng.randint(0, len(other))
        data = rng.choice(
            (
                lambda d, b, e, o: d[:b] + rng.choice(NASTY) + d[b:],
                lambda d, b, e, o: d[:b] + rng.choice(NASTY) + d[e:],
                lambda d, b, e, o: d[:b] + d[e:],
                lambda d, b, e, o: d[:e] + d[b:],
                lambda d, b, e, o: d[:b],
                lambda d, b, e, o: d[:b] + bytes([rng.randrange(256)]) + d[b + 1 :],
                lambda d, b, e, o: d[:b] + o + d[e:],
                _other_value,
            )
        )(data, begin, end, other[at : at + 200])
    return data


def _other_value(data: bytes, begin: int, _end: int, _other: bytes) -> bytes:
    """What is after a colon, and the rest of its line."""
    colon = data.find(b": ", begin)
    if colon < 0:
        return data
    line = data.find(b"\n", colon)
    return data[: colon + 2] + NASTY[begin % len(NASTY)] + data[line if line >= 0 else len(data) :]


# --- what is spoilt, and who reads it -----------------------------------------------------------------


def _texts(*patterns: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for pattern in patterns for path in sorted(REPOSITORY.glob(pattern)))


@functools.cache
def corpus(what: str) -> tuple[bytes, ...]:
    """Inputs of a kind that are right."""
    if what == "logs":
        return tuple(gzip.decompress(path.read_bytes()) for path in sorted(DATA.glob("*.log.gz")))
    if what == "experiments":
        return _texts("experiments/*.yaml", "experiments/own/*.yaml")
    return _texts("patches/*/*.patch", "tests/data/patches/*")


def _spoilt(what: str, rng: Random) -> bytes:
    return spoil(rng.choice(corpus(what)), corpus(what), rng)


def make_file(what: str, home: Home, rng: Random) -> None:
    """A file of which the bytes are spoilt."""
    (home.work / what).write_bytes(_spoilt(what, rng))


def make_ledger(home: Home, rng: Random) -> None:
    """A result with its database, a document in that, a log, or some file of it spoilt."""
    shutil.rmtree(home.work / "spoilt", ignore_errors=True)
    shutil.copytree(home.result, home.work / "spoilt")
    files = sorted(path for path in (home.work / "spoilt").rglob("*") if path.is_file())
    ledger = home.work / "spoilt" / "ledger.sqlite"
    if rng.random() < 0.6:
        table = rng.choice(("plans", "trials"))
        with closing(sqlite3.connect(ledger)) as db, db:
            rows = db.execute(f"SELECT id, document FROM {table}").fetchall()
            id_, text = rng.choice(rows)
            changed = _other_json(text, rng).decode("utf-8", "surrogateescape")
            value: object = changed.encode("utf-8", "replace") if rng.random() < 0.1 else changed
            if isinstance(value, str):
                value = value.encode("utf-8", "replace").decode()
            db.execute(f"UPDATE {table} SET document = ? WHERE id = ?", (value, id_))
    else:
        file = ledger if rng.random() < 0.5 else rng.choice(files)
        file.write_bytes(spoil(file.read_bytes(), (b"SQLite format 3\0",), rng))


def _other_json(text: str, rng: Random) -> bytes:
    """JSON with other bytes, or with another value at some place."""
    if rng.random() < 0.4:
        return spoil(text.encode(), (text.encode(),), rng)
    value = json.loads(text)
    place = value
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if rng.random() < 0.4 or not isinstance(place[key], dict | list):
            place[key] = rng.choice((None, -1, 1e300, "", [], {}, "x" * 1000, True, "/dev/zero", "\udcff"))
            break
        place = place[key]
    return json.dumps(value).encode()


def make_bundle(home: Home, rng: Random) -> None:
    """A bundle with its bytes, its manifest or another member spoilt."""
    data = (home.work / "recorded.testbed").read_bytes()
    if rng.random() < 0.3:
        (home.work / "spoilt.testbed").write_bytes(spoil(data, (data,), rng))
        return
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(lzma.decompress(data))) as old,
        tarfile.open(fileobj=out, mode="w") as new,
    ):
        spoilt = "manifest.json" if rng.random() < 0.7 else rng.choice(old.getnames())
        for member in old:
            file = old.extractfile(member)
            assert file
            content = file.read()
            if member.name == spoilt:
                content = (
                    _other_json(content.decode(), rng)
                    if spoilt == "manifest.json"
                    else spoil(content, (data,), rng)
                )
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    (home.work / "spoilt.testbed").write_bytes(out.getvalue())


def read_log(home: Home) -> None:
    found = parse((home.work / "logs").read_bytes())
    for metric in METRICS:
        metric.value(found)


def read_patch(home: Home) -> None:
    series.read("spoilt.patch", (home.work / "patches").read_bytes())


def read_ledger(home: Home) -> None:
    results.report(results.load(home.work / "spoilt"), full=False)


def read_bundle(home: Home) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        reproduce.load(home.work / "spoilt.testbed", home.cache, Path(scratch), lambda _: None)


# --- whether they work or are refused -----------------------------------------------------------------


def complaint(read: Callable[[], object]) -> str:
    """What is wrong with how an input is read; empty if it works, or is refused in a few words."""
    try:
        with _within(INPUT_SECONDS):
            read()
    except TestbedError as refused:
        said = str(refused)
        if refused.exit_status not in (2, 3) or not said.strip() or len(said) > MOST_SAID:
            return f"exit status {refused.exit_status}, {len(said)} characters: {said[:200]}"
    except TooLong:
        return f"it takes longer than {INPUT_SECONDS:.0f} s"
    except BaseException as raised:
        where = traceback.extract_tb(raised.__traceback__)[-1]
        return f"{type(raised).__name__}: {str(raised)[:200]} ({Path(where.filename).name}:{where.lineno})"
    return ""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def late(_number: int, _frame: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass(frozen=True)
class Hostile:
    """A row of the table: inputs of a kind."""

    name: str
    wanted: int
    make: Callable[[Home, Random], None]
    read: Callable[[Home], object]
    batch: int
    scenes: tuple[Scene, ...] = ()

    def impossible(self) -> str:
        """Nothing is in the way of it anywhere."""
        return ""

    def run(self, stage: Stage, number: int, seed: int) -> Verdict:
        """Read a batch, as the seed has it. What was wrong with an input is told with its number."""
        home = stage.set(REPORT, self.name, number)
        note = home.top / "found"
        child = multiprocessing.get_context("fork").Process(
            target=self._read_all, args=(home, note, number, seed)
        )
        child.start()
        child.join(BATCH_SECONDS)
        if child.is_alive():
            child.kill()
            child.join()
        lines = note.read_text().splitlines() if note.exists() else []
        done = sum(not line.startswith(" ") for line in lines)
        lost = [line.strip() for line in lines if line.startswith(" ")]
        if child.exitcode != 0:
            lost.append(f"input {number * self.batch + done}: the process ended with {child.exitcode}")
        return Verdict(self.batch, lost, list(checks.litter(home)))

    def _read_all(self, home: Home, note: Path, number: int, seed: int) -> None:
        os.environ.update(home.environment)
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        with (
            note.open("w") as notes,
            (home.top / "out").open("w") as out,
            redirect_stdout(out),
            redirect_stderr(out),
        ):
            for index in range(number * self.batch, (number + 1) * self.batch):
                self.prepare(home, index, seed)
                if said := complaint(lambda: self.read(home)):
                    print(f" input {index}: {' '.join(said.split())}", file=notes)
                print(index, file=notes, flush=True)

    def prepare(self, home: Home, index: int, seed: int) -> None:
        """Make an input, always the same of a number and a seed."""
        self.make(home, Random(f"{seed} {self.name} {index}"))


HOSTILE = (
    Hostile(
        "spoilt experiments",
        5000,
        functools.partial(make_file, "experiments"),
        lambda home: expand(home.work / "experiments"),
        batch=100,
    ),
    Hostile("spoilt logs", 10_000, functools.partial(make_file, "logs"), read_log, batch=100),
    Hostile("spoilt patches", 1000, functools.partial(make_file, "patches"), read_patch, batch=25),
    Hostile("spoilt results", 1000, make_ledger, read_ledger, batch=50),
    Hostile("spoilt bundles", 500, make_bundle, read_bundle, batch=25),
)
