# SPDX-License-Identifier: GPL-2.0-only
"""Configuration fragments: read, merged, and checked against what became of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.experiment import is_path
from testbed.host import files
from testbed.host.errors import SpecError
from testbed.host.paths import data_directory
from testbed.kernel.series import ordinal

FRAGMENTS = data_directory() / "kconfigs"
# Of a fragment. All options of a kernel are a fourth of that.
MOST_BYTES = files.MiB
# A version that gets no amendments.
OLDEST = "0"

_UNSET = re.compile(r"# (CONFIG_\w+) is not set")
_SET = re.compile(r'(CONFIG_\w+)=(y|m|n|-?\d+|0[xX][0-9a-fA-F]+|"(?:[^"\\]|\\.)*")')


def load(names: Sequence[str], version: str, fragments: Path = FRAGMENTS) -> list[tuple[str, str]]:
    """Name and text of each fragment: NAME.config of the repository, the file at a path, or a single option.

    FIRST/NAME.config, if there is one, comes after NAME.config for kernels from version FIRST on.
    Raises SpecError naming kernel.config.
    """
    return [
        (part, _read(part, fragments))
        for name in names
        for part in ([name] if is_path(name) else [name, *_amendments(name, version, fragments)])
    ]


def merge(fragments: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The line that each symbol is asked to have; the last fragment to mention it wins.

    Raises SpecError naming fragment and line for a line that kconfig would pass over in silence.
    """
    merged: dict[str, str] = {}
    for name, text in fragments:
        for number, line in enumerate(text.splitlines(), 1):
            entry = _entry(line.strip())
            if entry is not None:
                merged[entry[0]] = entry[1]
            elif line.strip() and not line.lstrip().startswith("#"):
                raise SpecError(
                    f"kernel.config: {name}:{number}: `{line}` is not an option",
                    "write CONFIG_NAME=value or # CONFIG_NAME is not set",
                )
    return merged


def lost(requested: Mapping[str, str], dotconfig: str) -> list[str]:
    """The requested options that a .config does not have, each with what it has instead.

    A symbol that is absent is not set: kconfig leaves out those whose dependencies are not met.
    """
    options = dict(entry for line in dotconfig.splitlines() if (entry := _entry(line)))
    return [
        f"{line} ({options.get(symbol, 'absent')})"
        for symbol, line in requested.items()
        if options.get(symbol, _unset(symbol)) != line
    ]


def differences(dotconfigs: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The options that not all of these .config texts have alike: option -> name -> value, `n` if not set."""
    options = {
        name: dict(entry for line in text.splitlines() if (entry := _entry(line)))
        for name, text in dotconfigs.items()
    }
    found: dict[str, dict[str, str]] = {}
    for symbol in sorted({symbol for known in options.values() for symbol in known}):
        lines = {name: known.get(symbol, _unset(symbol)) for name, known in options.items()}
        if len(set(lines.values())) > 1:
            found[symbol] = {
                name: "n" if unset(line) else line.partition("=")[2] for name, line in lines.items()
            }
    return found


def unset(line: str) -> bool:
    """Whether a line asks for its symbol not to be set, as one that does not exist is anyway."""
    return _UNSET.fullmatch(line) is not None


def _entry(line: str) -> tuple[str, str] | None:
    if match := _UNSET.fullmatch(line):
        return match[1], line
    if match := _SET.fullmatch(line):
        return match[1], _unset(match[1]) if match[2] == "n" else line
    return None


def _unset(symbol: str) -> str:
    return f"# {symbol} is not set"


def _amendments(name: str, version: str, fragments: Path) -> list[str]:
    """Paths of what kernels of this version are asked for beyond NAME.config, oldest first."""
    paths = fragments.glob(f"[0-9]*/{name}.config")
    return [
        str(path)
        for path in sorted(paths, key=lambda path: ordinal(path.parent.name))
        if ordinal(path.parent.name) <= ordinal(version)
    ]


def _read(name: str, fragments: Path) -> str:
    if _entry(name):
        return name
    known = sorted(path.stem for path in fragments.glob("*.config"))
    if not is_path(name) and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise SpecError(
            f"kernel.config: there is no fragment `{name}` in {fragments}",
            f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(known)}",
        )
    path = Path(name) if is_path(name) else fragments / f"{name}.config"
    try:
        return files.read(path, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as unreadable:
        reason = unreadable.strerror if isinstance(unreadable, OSError) else "is not UTF-8 text"
        raise SpecError(f"kernel.config: {path}: {reason}") from unreadable
