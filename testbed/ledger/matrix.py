# SPDX-License-Identifier: GPL-2.0-only
"""A matrix on disk: a directory with a result per cell, and an index that says what became of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.experiment import Cell, Experiment
from testbed.host import files
from testbed.host.errors import Interrupted, StoreError, TestbedError
from testbed.ledger.ledger import MATRIX

SCHEMA = 1


@dataclass(frozen=True)
class Ran:
    """A cell that was tried. Where it failed, its `result` may not be there."""

    at: dict[str, Any]
    name: str
    result: Path
    failure: str
    exit_status: int


def run(
    cells: Sequence[Cell],
    home: Path,
    execute: Callable[[Experiment, Path], None],
    note: Callable[[str], None],
) -> list[Ran]:
    """Run every cell into a directory of its own beneath `home`; one that fails does not stop the rest.

    Raises Interrupted and StoreError; the index is up to date after every cell.
    """
    ran: list[Ran] = []
    for number, cell in enumerate(cells, start=1):
        note(f"cell {number} of {len(cells)}: {cell.label}")
        failure, status = "", 0
        try:
            execute(cell.experiment, home / cell.name)
        except (Interrupted, StoreError):
            raise
        except TestbedError as failed:
            failure, status = str(failed), failed.exit_status
            note(f"cell {cell.label} failed: {failure}")
        ran.append(Ran(dict(cell.at), cell.name, home / cell.name, failure, status))
        _write(home, cell.experiment.name, ran)
    return ran


def _write(home: Path, name: str, ran: Sequence[Ran]) -> None:
    entries = [{"at": r.at, "name": r.name, "failure": r.failure, "exit_status": r.exit_status} for r in ran]
    index = json.dumps({"schema": SCHEMA, "name": name, "cells": entries}, indent=1) + "\n"
    try:
        home.mkdir(parents=True, exist_ok=True)
        files.write(home / MATRIX, index)
    except OSError as unwritable:
        raise StoreError(f"{home / MATRIX}: not written: {unwritable.strerror}") from unwritable


def load(home: Path) -> tuple[str, list[Ran]]:
    """The name of a matrix and its cells. Raises StoreError when its index cannot be used."""
    path = home / MATRIX
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["schema"] != SCHEMA:
            raise StoreError(f"{path}: of version {said['schema']}; this testbed reads {SCHEMA}")
        found = [
            Ran(e["at"], e["name"], home / e["name"], e["failure"], e["exit_status"]) for e in said["cells"]
        ]
        return str(said["name"]), found
    except (OSError, ValueError, KeyError, TypeError) as bad:
        raise StoreError(f"{path}: cannot be used: {bad}") from bad
