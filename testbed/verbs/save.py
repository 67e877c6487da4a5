# SPDX-License-Identifier: GPL-2.0-only
"""`--save`: the experiment that is run, as a file to go on from."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from testbed.experiment import RANGE, Experiment, SourceSpec, is_path, read, repathed
from testbed.verbs.init import create
from testbed.verbs.request import ExperimentRequest

WIDTH = 110
# They have paths in them: what is relative to the template is not so to the new file.
_WITH_PATHS = ("kernel", "arms")


def save(request: ExperimentRequest, file: Path) -> Path:
    """Write a request's experiment, with what each key is about; return the file.

    Raises SpecError when there is such a file: it may be somebody's work.
    """
    experiment = _relative(request.first(), file.absolute().parent)
    data = {**read(request.file), **request.options()}
    known = experiment.model_dump(mode="json", exclude_defaults=True, include=set(_WITH_PATHS))
    data |= {key: value for key, value in known.items() if key in data or key == "kernel"}
    workload = data.get("workload")
    if experiment.workload.files and isinstance(workload, dict):
        data["workload"] = {**workload, "files": list(experiment.workload.files)}
    return create(file, "\n".join(_lines(data)), "name another file", "--save: ")


def _relative(experiment: Experiment, home: Path) -> Experiment:
    """With paths from `home` on for what is in there or where we are: it all may move together."""
    near = [home.resolve(), Path.cwd()]

    def path(text: str) -> str:
        whole = Path(text)
        if not any(whole.is_relative_to(top) or whole.resolve().is_relative_to(top) for top in near):
            return text
        relative = os.path.relpath(whole.resolve(), near[0])
        # A word without a slash may be a name.
        return relative if "/" in relative else f"./{relative}"

    def patch(word: str, _: SourceSpec) -> list[str]:
        if not word.startswith(RANGE):
            return [path(word) if is_path(word) else word]
        where, _colon, which = word.removeprefix(RANGE).rpartition(":")
        return [f"{RANGE}{path(where)}:{which}"]

    return repathed(experiment, path, path, patch)


def _lines(data: Mapping[str, object]) -> Iterator[str]:
    yield "# An experiment of testbed's. `testbed schema` has all keys; paths are relative to this file."
    for key in [key for key in Experiment.model_fields if key in data]:
        yield ""
        about = Experiment.model_fields[key].description or ""
        yield from textwrap.wrap(about, WIDTH, initial_indent="# ", subsequent_indent="# ")
        # By way of JSON, or YAML would refer from one arm to what another has, too.
        plain = json.loads(json.dumps({key: data[key]}))
        yield yaml.safe_dump(plain, sort_keys=False, width=WIDTH, allow_unicode=True).rstrip()
    yield ""
