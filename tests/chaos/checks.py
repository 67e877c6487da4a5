# SPDX-License-Identifier: GPL-2.0-only
"""What has to be so whatever has happened: each check yields a line for what is not."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed.host.errors import TestbedError
from testbed.ledger.ledger import LEDGER, Ledger
from testbed.ledger.record import final
from tests.chaos.children import Home, marked

# Within which the kernel ends what was started by a process that was killed.
END_SECONDS = 5.0
# What a report says of the time that things took, of the moment, of where scratch was, and of a checkout in
# which somebody may be at work.
TIMES = ("wall_seconds", "started", "command_lines", "testbed")


def damage(result: Path) -> Iterator[str]:
    """What is wrong with a ledger; one that is not there yet is right."""
    path = result / LEDGER
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            for (line,) in db.execute("PRAGMA integrity_check"):
                if line != "ok":
                    yield f"{path}: {line}"
            if db.execute("PRAGMA user_version").fetchone() == (0,):
                return  # Killed before it had tables.
        with Ledger.open(result) as ledger:
            for record in ledger.records():
                ledger.log(record)
    except (TestbedError, sqlite3.Error) as damaged:
        yield f"{path}: {damaged}"


def processes(home: Home) -> Iterator[str]:
    """What still runs of what was started there."""
    end = time.monotonic() + END_SECONDS
    while found := marked(home.mark):
        if time.monotonic() > end:
            for pid, words in found.items():
                yield f"process {pid} is left: {words[:200]}"
            return
        time.sleep(0.02)


def litter(home: Home) -> Iterator[str]:
    """What was left in TMPDIR, and drafts beside what was made."""
    for path in sorted(home.scratch.iterdir()):
        yield f"left in TMPDIR: {path.name}"
    for top in (home.cache, home.work):
        for path in sorted(top.rglob("*.tmp")):
            yield f"left: {path.relative_to(home.top)}"


def trials(result: Path) -> dict[str, list[str]]:
    """What became of every trial in the end: its outcome and the hash of its log."""
    if not (result / LEDGER).exists():
        return {}
    with Ledger.open(result) as ledger:
        counting = final(ledger.records())
    return {id_: [record.outcome, record.log_sha256] for id_, record in sorted(counting.items())}


def files(home: Home) -> dict[str, str]:
    """All files of a result, with the hashes of those whose content does not depend on the time."""
    found, result = {}, home.result
    for path in sorted(result.rglob("*")):
        name = str(path.relative_to(result))
        # What is left is another matter: litter().
        if path.is_dir() or path.name in (LEDGER, ".lock") or ".tmp" in path.parent.suffixes:
            continue
        found[name] = ""
        if path.name == "report.json":
            # A command line of QEMU has paths.
            text = path.read_text().replace(str(home.top), "HOME")
            found[name] = _digest(json.dumps(timeless(json.loads(text)), sort_keys=True).encode())
        elif name.endswith(".log.gz"):
            found[name] = _digest(gzip.decompress(path.read_bytes()))
        elif path.parent.name == "pictures":
            found[name] = _digest(path.read_bytes())
    return found


def timeless(value: Any) -> Any:
    """JSON without what is of the time at which it was made."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [timeless(inner) for inner in value]
    return value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            if key not in found or key not in expected:
                yield f"{where}/{key}: {'is missing' if key in expected else 'is new'}"
            else:
                yield from differences(found[key], expected[key], f"{where}/{key}")
    elif found != expected:
        yield f"{where}: {str(found)[:80]}, not {str(expected)[:80]}"
