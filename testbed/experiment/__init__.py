# SPDX-License-Identifier: GPL-2.0-only
"""What an experiment file may say, typed, and what it says."""

from testbed.experiment.file import PATCH_SUFFIXES, RANGE, Cell, expand, is_path, load, read, schema
from testbed.experiment.model import (
    ALPHA,
    LEAST_SEEDS,
    MOST_FIRST_SEED,
    MOST_SEEDS,
    ArmSpec,
    BalloonSpec,
    Deadlines,
    DeadlineSpec,
    Experiment,
    GitSource,
    GuestSpec,
    KernelSpec,
    SourceSpec,
    TarballSource,
)
from testbed.experiment.values import PAGE, Json, Model, describe, format_size, parse_size
from testbed.experiment.workloads import MmapTest, WorkloadSpec
from testbed.host.files import MiB

__all__ = [
    "ALPHA",
    "LEAST_SEEDS",
    "MOST_FIRST_SEED",
    "MOST_SEEDS",
    "PAGE",
    "PATCH_SUFFIXES",
    "RANGE",
    "ArmSpec",
    "BalloonSpec",
    "Cell",
    "DeadlineSpec",
    "Deadlines",
    "Experiment",
    "GitSource",
    "GuestSpec",
    "Json",
    "KernelSpec",
    "MiB",
    "MmapTest",
    "Model",
    "SourceSpec",
    "TarballSource",
    "WorkloadSpec",
    "describe",
    "expand",
    "format_size",
    "is_path",
    "load",
    "parse_size",
    "read",
    "schema",
]
