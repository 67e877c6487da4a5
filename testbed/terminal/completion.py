# SPDX-License-Identifier: GPL-2.0-only
"""What the Tab key offers, where the shell has been told: eval "$(register-python-argcomplete testbed)"."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from testbed.host.errors import TestbedError
from testbed.ledger.ledger import LEDGER, MATRIX, Ledger
from testbed.verbs import catalog
from testbed.verbs.catalog import RESULTS
from testbed.verbs.derive import EXPERIMENTS


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end, if it is what has started this process."""
    import argcomplete  # noqa: PLC0415  (needed here only)

    for action in _actions(parser):
        # In one place it is a name, in others a file.
        key = "name" if action.metavar == "NAME" else action.dest
        if offer := _OFFERS.get(key):
            action.completer = _completer(offer)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of all verbs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from verb._actions
        else:
            yield action


def _completer(offer: Callable[[str], Iterator[str]]) -> Callable[..., list[str]]:
    def completer(prefix: str, **_context: object) -> list[str]:
        return [word for word in offer(prefix) if word.startswith(prefix)]

    return completer


def _experiments(_prefix: str) -> Iterator[str]:
    yield from sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))


def _metrics(_prefix: str) -> Iterator[str]:
    yield from catalog.metrics()


def _words(prefix: str) -> Iterator[str]:
    """Files, which may be experiments or patches, and results."""
    yield from _files(prefix)
    yield from _results(prefix)


def _files(prefix: str) -> Iterator[str]:
    """Files and directories as far as the word goes."""
    whole = Path(prefix)
    parent = whole if prefix.endswith("/") else whole.parent
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        yield f"{path}/" if path.is_dir() else str(path)


def _results(prefix: str) -> Iterator[str]:
    """The results here; after a colon, the arms of one."""
    for home in (RESULTS, Path(prefix.rpartition(":")[0] or prefix).parent):
        for directory in sorted(home.iterdir()) if home.is_dir() else ():
            if any((directory / name).is_file() for name in (LEDGER, MATRIX)):
                yield str(directory)
                if prefix.startswith(f"{directory}:"):
                    yield from (f"{directory}:{arm}" for arm in _arms(directory))


def _arms(directory: Path) -> list[str]:
    try:
        with Ledger.open(directory) as ledger:
            return list(ledger.plan().experiment.arms)
    except TestbedError:
        return []


_OFFERS: dict[str, Callable[[str], Iterator[str]]] = {
    "name": _experiments,
    "experiment": _words,
    "words": _words,
    "result": _results,
    "results": _results,
    "path": _words,
    "metric": _metrics,
}
