# SPDX-License-Identifier: GPL-2.0-only
"""Fuzz one parser with atheris: `python -m tests.chaos.fuzzed PARSER FILE LIBFUZZER-OPTIONS...`.

The file is where an input is put that is read from one.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

# What is imported here tells which of its code is reached.
with atheris.instrument_imports(include=["testbed"]):
    from testbed import wire
    from testbed.analysis.parse import parse
    from testbed.experiment import expand
    from testbed.kernel import series
    from tests.chaos.hostile import complaint


def main() -> None:
    parser, file, *options = sys.argv[1:]

    def experiment(data: bytes) -> object:
        Path(file).write_bytes(data)
        return expand(Path(file))

    reads: dict[str, Callable[[bytes], object]] = {
        "logs": parse,
        "frames": wire.frames,
        "patches": lambda data: series.read("fuzzed.patch", data),
        "experiments": experiment,
    }

    def test(data: bytes) -> None:
        if said := complaint(functools.partial(reads[parser], data)):
            raise AssertionError(said)

    atheris.Setup([sys.argv[0], *options], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
