# SPDX-License-Identifier: GPL-2.0-only
"""What a document is: a model that is written as JSON and read back, and one line on what is wrong with it.

A document that can be read is whole: of what its model names nothing is missing, and there is nothing else.
"""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import ValidationError, WithJsonSchema

from testbed.experiment import Model
from testbed.host import files

D = TypeVar("D", bound="Document")
# Characters of what is said of a mistake.
MOST_SAID = 500
# Bytes of a document. A manifest of 100,000 trials has a third of that.
MOST_BYTES = 64 * files.MiB
# A count stays a whole number.
Number = Annotated[int | float, WithJsonSchema({"type": "number"})]


class Document(Model):
    """A model that is written by itself."""

    def text(self, indent: int | None = None) -> str:
        """It as JSON."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=indent)


class OtherVersionError(ValueError):
    """The document is of another version."""


def load(kind: type[D], path: Path) -> D:
    """The document in a file. Raises OSError, and ValueError as parsed()."""
    return parsed(kind, files.read(path, MOST_BYTES))


def parsed(kind: type[D], text: str | bytes) -> D:
    """A document from JSON.

    Raises ValueError that says in one line what is wrong, and where; of the version, OtherVersionError.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            if error["loc"] == ("schema",) and error["type"] == "literal_error":
                version, ours = reprlib.repr(error["input"]), error["ctx"]["expected"]
                raise OtherVersionError(f"of version {version}; this testbed reads {ours}") from invalid
        raise ValueError(mistake(invalid)) from invalid


def mistake(invalid: ValidationError) -> str:
    """The first mistake, in a line."""
    first = invalid.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    # What is in the document may be in both, whatever it is.
    said = " ".join(first["msg"].removeprefix("Value error, ").split())
    return (f"{place}: {said}" if place else said).replace("\n", " ")[:MOST_SAID]
