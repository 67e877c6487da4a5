# SPDX-License-Identifier: GPL-2.0-only
"""What a person asks of an experiment: the file, and what stands in for what it says."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from testbed.analysis.metrics import METRICS
from testbed.experiment import Cell, Experiment, KernelSpec, expand
from testbed.host.errors import SpecError
from testbed.kernel import series

Mode = Literal["deterministic", "realtime", "auto"]
Accelerator = Literal["auto", "kvm", "tcg"]

# The fewest that an interval can be had of.
QUICK_SEEDS = 3
# However much time there is.
MOST_IN_TIME = 200
# The arms that patches make which are given as words. Nobody has written these names.
BEFORE, AFTER = "unpatched", "patched"
_OF_AN_ARM = re.compile(rf"arms\.(?:(?:{BEFORE}|{AFTER}): )?")


@dataclass(frozen=True)
class ExperimentRequest:
    """An experiment file, and what is to be otherwise than it says.

    Mode `auto` is in real time under KVM, and deterministic where KVM does not boot the kernel. `accel`
    implies real time. `line` is a line of patches/ in place of the experiment's source. With `minutes`, as
    many seeds as fit; `quick` ones are few. `changes` has keys of the file with what they are instead;
    `origin` is the file that those are of, if not `file`, and `asked` the words that they come of.
    """

    file: Path
    mode: Mode | None = None
    accel: Accelerator | None = None
    seeds: int | None = None
    line: str | None = None
    minutes: float | None = None
    quick: bool = False
    changes: Mapping[str, object] = field(default_factory=dict)
    origin: Path | None = None
    asked: str = ""

    def cells(self) -> list[Cell]:
        """The experiment, expanded: one cell, or those of its matrix. Raises SpecError."""
        if self.accel and self.mode in ("deterministic", "auto"):
            raise SpecError("--accel is a choice for `--mode realtime`; deterministic guests are emulated")
        metrics = [metric.name for metric in METRICS]
        if self.mode == "auto":
            # It may come to either, so both have to be in order.
            expand(self.file, {**self.changes, "mode": "deterministic", "accel": "auto"}, metrics)
        return [self._on_line(cell) for cell in expand(self.file, self.options(), metrics)]

    def options(self) -> dict[str, object]:
        """Keys of the file that are to be otherwise than it says."""
        options = {**self.changes, **self._acceleration(), **self._extent()}
        return {key: value for key, value in options.items() if value is not None}

    def first(self) -> Experiment:
        """The experiment; of a matrix, its first cell. Raises SpecError."""
        return self.cells()[0].experiment

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Name the file in what is found wrong with the experiment when its kernels are made.

        Who has given words has written none of the file's keys.
        """
        try:
            yield
        except SpecError as bad:
            if self.changes:
                bad.message = _OF_AN_ARM.sub("", bad.message, count=1)
            elif not bad.message.startswith(str(self.file)):
                bad.message = f"{self.file}: {bad.message}"
            raise

    def _acceleration(self) -> dict[str, str | None]:
        if self.mode == "auto":
            return {"mode": "realtime", "accel": "kvm"}
        if self.accel:
            return {"mode": "realtime", "accel": self.accel}
        return {"mode": self.mode, "accel": "auto" if self.mode == "deterministic" else None}

    def _extent(self) -> dict[str, object]:
        """How many seeds, and for how long."""
        if self.quick:
            return {"seeds": self.seeds or QUICK_SEEDS, "minutes": self.minutes, "sequential": False}
        if self.minutes is None:
            return {"seeds": self.seeds}
        return {"seeds": self.seeds or MOST_IN_TIME, "minutes": self.minutes, "sequential": True}

    def _on_line(self, cell: Cell) -> Cell:
        if self.line is None:
            return cell
        experiment = cell.experiment
        if own := [name for name, arm in experiment.arms.items() if arm.kernel]:
            raise SpecError(f"--line: arm {own[0]} has a kernel of its own", "leave out --line")
        kernel = KernelSpec(debian=series.line(self.line).source, config=experiment.kernel.config)
        changes = {"kernel": kernel, "name": f"{experiment.name}-{self.line}"}
        return replace(cell, experiment=experiment.model_copy(update=changes))


EVERY_FAILURE = "all"


@dataclass(frozen=True)
class RunRequest:
    """An experiment to be run: what is missing of it, into `results` (results/NAME if None).

    `fresh` moves an old result aside first. `jobs` trials side by side, as many as fit if None. Trials with
    the outcome `again` are tried again, once; with EVERY_FAILURE, all that were not measured.
    """

    experiment: ExperimentRequest
    results: Path | None = None
    fresh: bool = False
    jobs: int | None = None
    again: str | None = None
