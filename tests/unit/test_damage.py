# SPDX-License-Identifier: GPL-2.0-only
"""Results, matrices and manifests that are damaged or were made to do harm: every verb that reads them
works, or says in a line which file is wrong.

What is stored is spoilt from a seed: documents by their JSON, and files byte by byte.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.experiment.model import PrimarySpec
from testbed.host.errors import SpecError, StoreError
from testbed.ledger.ledger import LEDGER, MATRIX, Ledger
from testbed.ledger.plan import (
    BisectionPlan,
    BisectionQuestion,
    BuildNote,
    Candidate,
    SearchRules,
)
from testbed.report import bisection as bisection_report
from testbed.report import interchange, matrix, text
from testbed.verbs import bisection, catalog, compare, history, log, parse, replay, reproduce, results
from tests.unit.recorded import REPOSITORY, counted, guest_facts, plan, record, write_result

PUBLISHED = REPOSITORY / "experiments" / "reclaim-capture.manifest.json"

# --- what is spoilt ---------------------------------------------------------------------------------

LOG = counted(allocstall_movable=1000)
PRIMARY = {"direct_reclaims": PrimarySpec(margin=0.05)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison, a matrix, a bisection and a manifest, each as it should be."""
    home = tmp_path_factory.mktemp("sound")
    rows = [
        (record(arm, seed, outcome, command_line=""), LOG)
        for seed, outcome in ((1, "measured"), (2, "measured"), (3, "oom"))
        for arm in ("unpatched", "patched")
    ]
    made = plan(seeds=3, primary=PRIMARY, phases={"first": 0.0})
    write_result(home / "result", made, rows)
    for n in (1, 2):
        write_result(home / "matrix" / f"n={n}", made, rows[:2])
    cells = [{"at": {"n": n}, "name": f"n={n}", "failure": "", "exit_status": 0} for n in (1, 2)]
    (home / "matrix" / MATRIX).write_text(json.dumps({"schema": 1, "name": "m", "cells": cells}))
    make_bisection(home / "bisection")
    (home / "manifest.json").write_bytes(PUBLISHED.read_bytes())
    return home


def make_bisection(directory: Path) -> None:
    ids = [f"{n:040x}" for n in range(1, 5)]
    good = "0" * 40
    commits = tuple(
        Candidate(
            id=id_,
            links=(ids[n - 1],) if n else (),
            parents=(ids[n - 1] if n else good,),
            weight=1.0,
            kind="code",
            subject="x",
        )
        for n, id_ in enumerate(ids)
    )
    question = BisectionQuestion(
        repository="/linux",
        good=good,
        bad=ids[-1],
        paths=(),
        metric="direct_reclaims",
        kind="count",
        title="direct reclaims",
        unit="",
        commits=commits,
    )
    rules = SearchRules(
        confidence=0.95,
        gate_alpha=0.01,
        gate_pairs=150,
        confirm_alpha=0.025,
        confirm_pairs=100,
        rounds=2,
        trials=1000,
        rho=5.0,
    )
    made = BisectionPlan(
        schema=1,
        experiment=plan(["a"], primary=PRIMARY).experiment,
        bisect=question,
        rules=rules,
        provenance=guest_facts(["a"]),
    )
    with Ledger.create(directory) as ledger:
        ledger.set_plan(made)
        for end in (good, ids[-1]):
            ledger.note(BuildNote(commit=end, kernel=f"k{end}", reason="", remarks=(), seconds=50.0))
            for seed in range(1, 13):
                count = 1000 + seed if end == good else 2000 + 3 * seed
                row = replace(record(end, seed), trial=f"{end[-4:]}-{seed}")
                ledger.add(row, counted(allocstall_movable=count))


# --- what reads it ----------------------------------------------------------------------------------


def read_result(home: Path) -> Iterator[Callable[[], object]]:
    directory = home / "result"

    def report() -> None:
        compared = compare.report(compare.ReportRequest(directory))
        assert isinstance(compared, compare.Compared)
        text.render(compared.report)
        text.markdown(compared.report)
        interchange.junit(compared.report)
        interchange.ktap(compared.report)
        compared.report.text()

    yield report
    yield lambda: log.log(log.LogRequest(directory, "patched:1"))
    yield lambda: list(parse.parse(directory))
    yield lambda: replay.manifest(directory)
    yield lambda: history.history(history.HistoryRequest((directory, directory), "direct_reclaims", 0.05))
    yield lambda: results.joined([home / "result:unpatched", home / "result:patched"])
    yield lambda: catalog.stored(home)


def read_matrix(home: Path) -> Iterator[Callable[[], object]]:
    def report() -> None:
        compared = compare.report(compare.ReportRequest(home / "matrix"))
        if isinstance(compared, compare.ComparedMatrix):
            matrix.render(compared.report)
            matrix.markdown(compared.report)
            list(matrix.grids(compared.report))

    yield report
    yield lambda: results.selfcheck(home / "matrix")
    yield lambda: catalog.stored(home)


def read_bisection(home: Path) -> Iterator[Callable[[], object]]:
    def status() -> None:
        found = bisection.status(home / "bisection")
        bisection_report.render(found.report, found.headline)
        bisection_report.markdown(found.report, found.headline)
        found.report.text()

    yield status
    yield lambda: list(bisection.log(home / "bisection"))
    yield lambda: catalog.stored(home)


READERS = {"result": read_result, "matrix": read_matrix, "bisection": read_bisection}

# --- how it is spoilt -------------------------------------------------------------------------------

NESTED: Any = "x"
for _ in range(150):
    NESTED = [NESTED]
STRANGE: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        2**63,
        10**40,
        1.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "x" * 10_000,
    ),
    *(
        "\0",
        "\n",
        "../../../etc/passwd",
        "/dev/zero",
        "\x1b[2J",
        "{seed}",
        "lost",
        "measured",
        "nan",
        "1e999",
    ),
    *([], {}, [[]], [{}], {"": ""}, {"x": None}, {"x": 1}, ["x"], [1, 1], NESTED),
]


def places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is anything in a document."""
    yield place
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from places(value, (*place, key))


def at(data: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        data = data[key]
    return data


def another(data: Any, draw: random.Random) -> Any:
    """A document with one thing in it that is otherwise."""
    data = copy.deepcopy(data)
    everywhere = list(places(data))
    place = draw.choice(everywhere)
    # Most of a document is at its bottom, and most mistakes are above.
    place = place[: draw.randint(1, len(place))] if place else place
    if not place:
        return draw.choice(STRANGE)
    parent, key = at(data, place[:-1]), place[-1]
    match draw.choice(["replace", "alike", "alike", "alike", "remove", "add", "move", "double"]):
        case "replace":
            parent[key] = draw.choice(STRANGE)
        case "alike":
            # What a model does not refuse for its type.
            alike = [strange for strange in STRANGE if type(strange) is type(parent[key])]
            parent[key] = draw.choice(alike or STRANGE)
        case "remove":
            del parent[key]
        case "add" if isinstance(parent, dict):
            parent[draw.choice(["new", "", "schema", "x" * 1000, "\n"])] = draw.choice(STRANGE)
        case "move":
            parent[key] = copy.deepcopy(at(data, draw.choice(everywhere)))
        case "double" if isinstance(parent, list):
            parent.insert(0, parent[key])
        case _:
            parent[key] = [parent[key]]
    return data


def spoilt_text(text: str, draw: random.Random) -> str:
    """A document, most often with another value in it, else with other characters."""
    way = draw.randrange(8)
    if way < 6:
        data = json.loads(text)
        for _ in range(draw.choice([1, 1, 1, 2, 5])):
            data = another(data, draw)
        return json.dumps(data)
    place = draw.randrange(len(text))
    if way == 6:
        return text[:place]
    return text[:place] + draw.choice('"{}[],:0\\x') + text[place + draw.randrange(2) :]


def spoilt_bytes(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    match draw.randrange(4):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + draw.randbytes(draw.choice([1, 4, 100])) + data[place:]
        case 2:
            return data[:place] + bytes(draw.randrange(1, 5000)) + data[place + 5000 :]
    spoilt = bytearray(data)
    for _ in range(draw.choice([1, 1, 10, 100])):
        spoilt[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


def spoil_row(directory: Path, draw: random.Random) -> None:
    """Spoil a plan, a record or a note."""
    with closing(sqlite3.connect(directory / LEDGER)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = draw.choice(tables)
        id_, document = draw.choice(db.execute(f"SELECT id, document FROM {table}").fetchall())
        made: Any = spoilt_text(document, draw)
        if draw.random() < 0.05:
            made = draw.choice([b"\xff\xfe", made.encode(), 5, 1.5, ""])
        db.execute(f"UPDATE {table} SET document = ? WHERE id = ?", (made, id_))
        if table == "notes" and draw.random() < 0.3:
            db.execute("UPDATE notes SET trials = ?", (draw.choice([-1, 10**9, "x", 1.5]),))
        db.commit()


def spoil_file(path: Path, draw: random.Random) -> None:
    path.write_bytes(spoilt_bytes(path.read_bytes(), draw))


def spoil_ledger(directory: Path, draw: random.Random) -> None:
    spoil_file(directory / LEDGER, draw)


def spoil_json(path: Path, draw: random.Random) -> None:
    path.write_text(spoilt_text(path.read_text(), draw))


def spoil_log(directory: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(directory.glob("logs/*.log.gz")))
    if draw.random() < 0.3:
        path.unlink()
        if draw.random() < 0.5:
            path.mkdir()
    else:
        spoil_file(path, draw)


def spoil(kind: str, home: Path, draw: random.Random) -> None:
    directory = home / kind
    if kind == "matrix":
        if draw.random() < 0.7:
            spoil_json(directory / MATRIX, draw)
            return
        directory /= draw.choice(["n=1", "n=2"])
    ways = [spoil_row] * 8 + [spoil_ledger] * 2 + [spoil_log]
    draw.choice(ways)(directory, draw)


def works_or_says_in_a_line(read: Callable[[], object], home: Path) -> None:
    try:
        read()
    except (SpecError, StoreError) as refused:
        assert str(home) in refused.message, refused.message
        assert "\n" not in refused.message and len(refused.message) < 2000


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("seed", range(8))
def test_what_is_damaged_is_named_or_works(kind: str, seed: int, sound: Path, tmp_path: Path) -> None:
    draw = random.Random(f"{kind} {seed}")
    for _ in range(5):
        home = tmp_path / "home"
        shutil.copytree(sound / kind, home / kind, symlinks=True)
        spoil(kind, home, draw)
        for read in READERS[kind](home):
            works_or_says_in_a_line(read, home)
        shutil.rmtree(home)


PLANS = ["", "{}", "[]", "null", "5", "{", "[" * 100_000, '{"schema": 1}', '{"schema": 2}', "\ufeff{}"]


@pytest.mark.parametrize("kind", ["result", "bisection"])
@pytest.mark.parametrize("table", ["plans", "trials", "notes"])
@pytest.mark.parametrize("document", PLANS, ids=lambda document: document[:20])
def test_what_is_no_document_is_named(
    kind: str, table: str, document: str, sound: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound / kind, tmp_path / kind, symlinks=True)
    with closing(sqlite3.connect(tmp_path / kind / LEDGER)) as db:
        db.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, trials INTEGER, document TEXT)")
        db.execute(f"UPDATE {table} SET document = ?", (document,))
        db.commit()
    for read in READERS[kind](tmp_path):
        works_or_says_in_a_line(read, tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("result", lambda plan: plan["experiment"].update(primary={"x": {}}), "there is no metric x"),
        ("result", lambda plan: plan["experiment"].update(matrix={"seeds": [NESTED]}), "nested too deeply"),
        ("bisection", lambda plan: plan["bisect"].update(commits=[]), "bisect.commits: "),
        ("bisection", lambda plan: plan["bisect"]["commits"].reverse(), "does not come before it"),
        ("bisection", lambda plan: plan["bisect"]["commits"][0].update(weight=-1.0), "weight: "),
        ("bisection", lambda plan: plan["rules"].update(confidence=2.0), "rules.confidence: "),
        ("bisection", lambda plan: plan["rules"].update(gate_pairs=10**12), "rules.gate_pairs: "),
    ],
)
def test_a_plan_that_none_can_be_is_named(
    kind: str, change: Callable[[Any], object], message: str, sound: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound / kind, tmp_path / kind, symlinks=True)
    with closing(sqlite3.connect(tmp_path / kind / LEDGER)) as db:
        data = json.loads(db.execute("SELECT document FROM plans").fetchone()[0])
        change(data)
        db.execute("UPDATE plans SET document = ?", (json.dumps(data),))
        db.commit()
    with pytest.raises(StoreError) as caught:
        next(READERS[kind](tmp_path))()
    assert message in caught.value.message and str(tmp_path / kind / LEDGER) in caught.value.message


@pytest.mark.parametrize(
    "cells",
    [
        [{"at": {"n": 1}, "name": "../result", "failure": "", "exit_status": 0}],
        [{"at": {"n": 1}, "name": "..", "failure": "", "exit_status": 0}],
        [{"at": {"n": 1}, "name": "n=1", "failure": "", "exit_status": -1}],
        [{"at": {key: 1}, "name": "n=1", "failure": "", "exit_status": 0} for key in "nm"],
        [{"at": {"n": NESTED}, "name": "n=1", "failure": "", "exit_status": 0}],
    ],
)
def test_a_matrix_that_none_can_be_is_named(cells: list[Any], sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound / "matrix", tmp_path / "matrix", symlinks=True)
    index = {"schema": 1, "name": "m", "cells": cells}
    (tmp_path / "matrix" / MATRIX).write_text(json.dumps(index))
    with pytest.raises(StoreError, match=r"matrix\.json: cannot be used: cells"):
        next(read_matrix(tmp_path))()


@pytest.mark.parametrize("seed", range(8))
def test_a_manifest_that_is_damaged_is_named(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    path = tmp_path / "manifest.json"
    for _ in range(100):
        path.write_bytes(PUBLISHED.read_bytes())
        draw.choice([spoil_json, spoil_json, spoil_file])(path, draw)
        works_or_says_in_a_line(lambda: reproduce._read(path).pinned(), tmp_path)
