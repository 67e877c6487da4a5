# SPDX-License-Identifier: GPL-2.0-only
"""What a person asks of an experiment: the file, and what stands in for what it says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from testbed.analysis.metrics import METRICS
from testbed.experiment import Cell, Experiment, KernelSpec, expand
from testbed.host.errors import SpecError
from testbed.kernel import series

Mode = Literal["deterministic", "realtime", "auto"]
Accelerator = Literal["auto", "kvm", "tcg"]


@dataclass(frozen=True)
class ExperimentRequest:
    """An experiment file, and what is to be otherwise than it says.

    Mode `auto` is in real time under KVM, and deterministic where KVM does not boot the kernel. `accel`
    implies real time. `line` is a line of patches/ in place of the experiment's source.
    """

    file: Path
    mode: Mode | None = None
    accel: Accelerator | None = None
    seeds: int | None = None
    line: str | None = None

    def cells(self) -> list[Cell]:
        """The experiment, expanded: one cell, or those of its matrix. Raises SpecError."""
        if self.accel and self.mode in ("deterministic", "auto"):
            raise SpecError("--accel is a choice for `--mode realtime`; deterministic guests are emulated")
        metrics = [metric.name for metric in METRICS]
        if self.mode == "auto":
            # It may come to either, so both have to be in order.
            expand(self.file, {"mode": "deterministic", "accel": "auto"}, metrics)
        options = {**self._acceleration(), "seeds": self.seeds}
        given = {key: value for key, value in options.items() if value is not None}
        return [self._on_line(cell) for cell in expand(self.file, given, metrics)]

    def first(self) -> Experiment:
        """The experiment; of a matrix, its first cell. Raises SpecError."""
        return self.cells()[0].experiment

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Name the file in what is found wrong with the experiment when its kernels are made."""
        try:
            yield
        except SpecError as bad:
            if not bad.message.startswith(str(self.file)):
                bad.message = f"{self.file}: {bad.message}"
            raise

    def _acceleration(self) -> dict[str, str | None]:
        if self.mode == "auto":
            return {"mode": "realtime", "accel": "kvm"}
        if self.accel:
            return {"mode": "realtime", "accel": self.accel}
        return {"mode": self.mode, "accel": "auto" if self.mode == "deterministic" else None}

    def _on_line(self, cell: Cell) -> Cell:
        if self.line is None:
            return cell
        experiment = cell.experiment
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
