# SPDX-License-Identifier: GPL-2.0-only
"""A matrix on disk: a directory with a result per cell, and an index that says what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from testbed.experiment import Cell, Experiment, Json, Model
from testbed.host import files
from testbed.host.errors import Interrupted, NoSpace, StoreError, TestbedError
from testbed.ledger import document
from testbed.ledger.document import Document
from testbed.ledger.ledger import MATRIX


class IndexedCell(Model):
    """What became of a cell."""

    at: dict[str, Json]
    name: Annotated[str, Field(pattern=r"^[^/\x00]*[^/.\x00][^/\x00]*$")]
    failure: str
    exit_status: Annotated[int, Field(ge=0, le=255)]


class Index(Document):
    """`matrix.json`."""

    version: Literal[1] = Field(alias="schema")
    name: str
    cells: tuple[IndexedCell, ...]

    @model_validator(mode="after")
    def _axes_are_those_of_all(self) -> Index:
        if len({frozenset(cell.at) for cell in self.cells}) > 1:
            raise ValueError("cells: are not all of the same matrix")
        return self


@dataclass(frozen=True)
class Ran:
    """A cell that was tried. Where it failed, its `result` may not be there."""

    at: Mapping[str, Json]
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
        except (Interrupted, NoSpace, StoreError):
            raise
        except TestbedError as failed:
            failure, status = str(failed), failed.exit_status
            note(f"cell {cell.label} failed: {failure}")
        ran.append(Ran(dict(cell.at), cell.name, home / cell.name, failure, status))
        _write(home, cell.experiment.name, ran)
    return ran


def _write(home: Path, name: str, ran: Sequence[Ran]) -> None:
    cells = tuple(
        IndexedCell(at=dict(r.at), name=r.name, failure=r.failure, exit_status=r.exit_status) for r in ran
    )
    try:
        files.make_directory(home)
        files.write(home / MATRIX, Index(schema=1, name=name, cells=cells).text(indent=1) + "\n")
    except OSError as unwritable:
        raise StoreError(f"{home / MATRIX}: not written: {unwritable.strerror}") from unwritable


def load(home: Path) -> tuple[str, list[Ran]]:
    """The name of a matrix and its cells. Raises StoreError when its index cannot be used."""
    path = home / MATRIX
    try:
        index = document.load(Index, path)
    except (OSError, ValueError) as bad:
        reason = bad.strerror if isinstance(bad, OSError) else bad
        raise StoreError(f"{path}: cannot be used: {reason}") from bad
    return index.name, [Ran(c.at, c.name, home / c.name, c.failure, c.exit_status) for c in index.cells]
