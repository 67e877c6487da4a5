# SPDX-License-Identifier: GPL-2.0-only
"""An experiment to begin with: a file with everything in it explained."""

from __future__ import annotations

from pathlib import Path

from testbed.host import files
from testbed.host.errors import SpecError
from testbed.host.paths import data_directory

EXAMPLE = data_directory() / "experiments" / "example.yaml"
SUFFIXES = (".yaml", ".yml")


def init(target: Path) -> Path:
    """Write an example experiment to a file, or as experiment.yaml into a directory; return where it is.

    Directories are made. Raises SpecError when the file exists: it may be somebody's work.
    """
    file = target if target.suffix in SUFFIXES and not target.is_dir() else target / "experiment.yaml"
    text = EXAMPLE.read_text(encoding="utf-8")
    return create(file, text, "name another: testbed init FILE.yaml")


def create(file: Path, text: str, remedy: str, option: str = "") -> Path:
    """Write a file that is not there yet, and its directories; return it. Raises SpecError if it is there."""
    try:
        files.make_directory(file.parent)
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except (FileExistsError, NotADirectoryError) as bad:
        raise SpecError(f"{option}{bad.filename}: {bad.strerror}", remedy) from bad
    return file
