# SPDX-License-Identifier: GPL-2.0-only
"""The experiment: kernels, arms, guest and workload."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from testbed.experiment.own import OwnMetric
from testbed.experiment.values import (
    Json,
    Model,
    Name,
    Setting,
    Size,
    SysctlName,
    SysfsName,
    Word,
    format_size,
    one_of,
)
from testbed.experiment.workloads import LONGEST_RUN, MmapTest, WorkloadSpec
from testbed.host.files import MiB

SHA256 = r"^[0-9a-f]{64}$"
DEBIAN = r"^linux-source-[0-9]+(\.[0-9]+)*(=[0-9a-z.+~:-]+)?$"


def _url(text: str) -> str:
    try:
        _ = urlsplit(text).port if "://" in text else None
    except ValueError as bad:
        raise ValueError(f"is not a URL: {bad}") from bad
    return text


class TarballSource(Model):
    """A release tarball; `url` may be a local path. Checked against `sha256` before use."""

    url: Annotated[str, AfterValidator(_url)]
    sha256: Annotated[str, Field(pattern=SHA256)]


class GitSource(Model):
    """A revision of a git repository, local or remote."""

    repository: str
    revision: str


SOURCES = ("debian", "tarball", "git", "tree")


class SourceSpec(Model):
    """Where a kernel's source comes from: exactly one of the four."""

    debian: Annotated[str, Field(pattern=DEBIAN)] | None = None
    """A package, as installed or else the newest in Debian's suites; of one version with `=VERSION`."""
    tarball: TarballSource | None = None
    git: GitSource | None = None
    tree: Annotated[Path, Field(strict=False)] | None = None

    is_needed: ClassVar[bool] = True

    @property
    def is_given(self) -> bool:
        """Whether it names a source."""
        return any(getattr(self, key) is not None for key in SOURCES)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.is_needed or self.is_given:
            one_of(self, SOURCES)
        return self


class KernelSpec(SourceSpec):
    """Where the source of all arms comes from that name none of their own, and the configuration of all."""

    # Arms may all have their own.
    is_needed: ClassVar[bool] = False

    config: Annotated[tuple[str, ...], Field(strict=False)] = ("guest", "reclaim")
    """Fragments in kconfigs/, or paths of files, in order."""


# Of the 2048 that x86 keeps, testbed's own arguments need some hundred.
MOST_COMMAND_LINE = 1024


class ArmSpec(Model):
    """What is compared: a kernel and how it is set. Arms that are made of the same share a kernel."""

    kernel: SourceSpec | None = None
    """Its source, if not that of the experiment."""
    config: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Fragments after those of `kernel.config`; single options, too, as in `CONFIG_LRU_GEN_ENABLED=y`."""
    patches: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names of series in patches/, files, directories, or commits as in `git:v6.1..topic`, in order."""
    sysctl: dict[SysctlName, Setting] = {}
    """Set before the workload starts, as in `vm.swappiness: 100`, or, a list in quotes,
    `vm.lowmem_reserve_ratio: "256 256 32 0 0"`."""
    sysfs: dict[SysfsName, Setting] = {}
    """The same beneath /sys, as in `kernel/mm/lru_gen/enabled: y`."""
    command_line: Annotated[tuple[Word, ...], Field(strict=False)] = ()
    """Arguments of its kernel, after those that testbed gives, as in `[slub_max_order=0]`."""

    @model_validator(mode="after")
    def _command_line_fits(self) -> ArmSpec:
        length = len(" ".join(self.command_line))
        if length > MOST_COMMAND_LINE:
            raise ValueError(f"command_line: has {length} characters; at most {MOST_COMMAND_LINE}")
        return self


class StepSpec(Model):
    """Memory becomes `to`, `at` seconds after the workload's start."""

    to: Size
    at: Annotated[float, Field(ge=0)] = 0.0


class RampSpec(Model):
    """Memory goes to `to` in a straight line, from `at` on and within `over` seconds."""

    to: Size
    at: Annotated[float, Field(ge=0)] = 0.0
    over: Annotated[float, Field(gt=0)] = 1.0


class OscillateSpec(Model):
    """Memory is `to` and what it was by turns, for half a `period` (seconds) each, from `at` on."""

    to: Size
    at: Annotated[float, Field(ge=0)] = 0.0
    period: Annotated[float, Field(ge=0.02)] = 1.0


# A ramp is a stair of such steps.
RAMP_STEP_SECONDS = 0.02
# They go into one variable of a process's environment, of 128 KiB at most.
MOST_TARGETS = 8192


class BalloonSpec(Model):
    """Memory while the workload runs, by the guest's clock: exactly one of the three."""

    step: StepSpec | None = None
    ramp: RampSpec | None = None
    oscillate: OscillateSpec | None = None

    @model_validator(mode="after")
    def _one_schedule(self) -> BalloonSpec:
        one_of(self, ("step", "ramp", "oscillate"))
        return self

    @property
    def to(self) -> int:
        """The schedule's other memory size, in bytes."""
        chosen = self.step or self.ramp or self.oscillate
        assert chosen
        return chosen.to

    def targets(self, memory: int, seconds: float) -> Iterator[tuple[int, int]]:
        """When memory changes, and to what: (ms after the workload's start, bytes), within `seconds`."""
        points = itertools.takewhile(lambda point: point[0] < seconds, self._points(memory))
        return ((round(at * 1000), size) for at, size in points)

    def _points(self, memory: int) -> Iterator[tuple[float, int]]:
        """The same in seconds, without an end if it has none."""
        if self.step:
            yield self.step.at, self.step.to
        elif self.ramp:
            steps = max(1, round(self.ramp.over / RAMP_STEP_SECONDS))
            for n in range(1, steps + 1):
                size = (memory + (self.ramp.to - memory) * n // steps) // MiB * MiB
                yield self.ramp.at + self.ramp.over * n / steps, size
        elif self.oscillate:
            for n in itertools.count():
                size = memory if n % 2 else self.oscillate.to
                yield self.oscillate.at + n * self.oscillate.period / 2, size


class GuestSpec(Model):
    """The machine, and how its kernel is set in all arms. What is not given has the kernel's own value."""

    vcpus: Annotated[int, Field(ge=1, le=64)] = 8
    boot_memory: Size = 512 * MiB
    """What it boots with."""
    memory: Size = 128 * MiB
    """What the balloon leaves of it."""
    balloon: BalloonSpec | None = None
    """How memory changes while the workload runs."""
    nodes: Annotated[int, Field(ge=1, le=8)] = 1
    """NUMA nodes, with equal shares of vCPUs and memory."""
    swap: Size = 256 * MiB
    """Swap on zram; `0M` for none."""
    swappiness: Annotated[int, Field(ge=0, le=200)] | None = None
    mglru: bool | None = None
    """Whether the multi-generational LRU is on."""
    thp: Literal["never", "madvise", "always"] | None = None
    """Transparent huge pages."""
    min_free_kbytes: Annotated[int, Field(ge=1)] | None = None
    """vm.min_free_kbytes."""
    watermark_scale_factor: Annotated[int, Field(ge=1, le=3000)] | None = None
    sysctl: dict[SysctlName, Setting] = {}
    """Set before the workload starts, as in `vm.vfs_cache_pressure: 200`."""
    sysfs: dict[SysfsName, Setting] = {}
    """The same beneath /sys."""

    @model_validator(mode="after")
    def _balloon_fits(self) -> GuestSpec:
        if self.memory < 48 * MiB:
            raise ValueError(f"memory: {format_size(self.memory)} is too little to boot in: at least 48M")
        if self.memory > self.boot_memory:
            raise ValueError(
                f"memory: {format_size(self.memory)} is more than boot_memory "
                f"{format_size(self.boot_memory)}: a balloon can only take away"
            )
        if self.boot_memory > 64 * 1024 * MiB:
            raise ValueError(f"boot_memory: {format_size(self.boot_memory)} is more than 64G")
        if self.memory % MiB or self.boot_memory % MiB:
            raise ValueError("memory and boot_memory are whole MiB")
        if self.balloon:
            to = self.balloon.to
            if not 48 * MiB <= to <= self.memory or to % MiB:
                raise ValueError(
                    f"balloon: {format_size(to)} is not whole MiB from 48M to memory "
                    f"{format_size(self.memory)}"
                )
        if self.vcpus % self.nodes or self.boot_memory % (self.nodes * MiB):
            raise ValueError(
                f"nodes: {self.vcpus} vCPUs and {format_size(self.boot_memory)} cannot be shared equally by "
                f"{self.nodes} nodes"
            )
        if 0 < self.swap < MiB or self.swap > 64 * 1024 * MiB:
            raise ValueError(f"swap: {format_size(self.swap)} is neither 0M nor from 1M to 64G")
        return self


class DeadlineSpec(Model):
    """Seconds that each stage of a trial may take: of the guest's time if it is deterministic, else of the
    host's. What is left out is worked out from the rest."""

    boot: Annotated[float, Field(gt=0)] | None = None
    balloon: Annotated[float, Field(gt=0)] | None = None
    workload: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True)
class Deadlines:
    """Those of a trial: by when a guest that has not got on is called hung, in seconds."""

    boot: float
    balloon: float
    workload: float


# A second of a deterministic guest in which all its vCPUs wait counts so often (guest/rendezvous.c).
WAITING = 4.0
# What a workload may need beside its own time, to fill memory and to send its results.
MARGIN_SECONDS = {"deterministic": 5.0, "realtime": 30.0}
# Of which an always valid test can decide anything (analysis/statistics.py, LEAST_PAIRS).
LEAST_SEEDS = 6
# The rate of false alarms where nobody says another.
ALPHA = 0.05
# So many seeds, and no more, may follow the first one.
MOST_SEEDS = 100_000
MOST_FIRST_SEED = 2**31
# As many as the guest keeps apart.
MOST_PHASES = 16


class PrimarySpec(Model):
    """A metric that the verdict is about."""

    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """A change within this share of the value is none to speak of: 0.01 is one percent."""


class Experiment(Model):
    """A comparison of kernels: the same trials, in the same guests, over the same seeds."""

    name: Name
    description: str = ""
    kernel: KernelSpec = KernelSpec()
    arms: Annotated[dict[Name, ArmSpec], Field(min_length=1)]
    """The first is what the others are compared with."""
    guest: GuestSpec = GuestSpec()
    workload: WorkloadSpec = WorkloadSpec(mmap_test=MmapTest())
    # Not in what was published before there were any.
    metrics: Annotated[dict[Name, OwnMetric], Field(exclude_if=lambda metrics: not metrics)] = {}
    """Numbers that the workload's `command` says, as metrics beside testbed's own: docs/workloads.md."""
    primary: Annotated[dict[Name, PrimarySpec], Field(max_length=3)] = {}
    """The metrics that the verdict is about, declared before anything runs: at most three."""
    phases: dict[Name, Annotated[float, Field(ge=0)]] = {}
    """Parts of the workload's time, each with its start in seconds, to be looked at apart."""
    sample: Annotated[float, Field(ge=0)] = 0.1
    """Seconds from one reading of the counters to the next, for what goes over time; 0 for none."""
    tracepoints: bool = False
    """Whether to count, beside all else, what tracepoints tell of direct reclaim: docs/stock-kernels.md."""
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 5
    """How many, in every arm; with primary metrics, at most so many: what is decided needs no more."""
    first_seed: Annotated[int, Field(ge=1, le=MOST_FIRST_SEED)] = 1
    """The first of them; the others follow it. Other seeds are other samples."""
    boots: Annotated[int, Field(ge=1, le=MOST_SEEDS)] | None = None
    """From how many boots of each kernel deterministic trials start, seed by seed in turns; without it, every
    seed from its own. What a boot leaves behind is in every trial that starts there, and seeds of one boot do
    not average it out: fewer boots are faster, and good for a first look only (docs/statistics.md)."""
    sequential: bool = True
    """Whether to look, from the sixth seed on after every second one, if the primary metrics are decided.
    False: all seeds, one look."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time after which no further seed is begun."""
    alpha: Annotated[float, Field(gt=0, le=0.2)] = ALPHA
    """The rate of false alarms, of all primary metrics in all arms together."""
    mode: Literal["deterministic", "realtime"] = "deterministic"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """In real time: what runs the guests."""
    deadlines: DeadlineSpec = DeadlineSpec()
    matrix: dict[str, Annotated[tuple[Json, ...], Field(strict=False, min_length=1)]] = {}
    """Keys of this file, as in `guest.vcpus`, and the values that each is to take: a comparison for every
    combination."""

    def deadlines_of(self, deterministic: bool) -> Deadlines:
        """The deadlines of its trials: what is given, and the rest worked out.

        In the guest's seconds if they are deterministic, else in the host's.
        """
        vcpus, length = self.guest.vcpus, self.workload.length
        whole, left = (size / (1024 * MiB) for size in (self.guest.boot_memory, self.guest.memory))
        if deterministic:
            boot, balloon = 10 + vcpus / 4 + whole / 2, 5 + (whole - left)
            workload = 10 + WAITING * length + 50 * left
        else:
            boot, balloon = 120 + 2 * vcpus + 5 * whole, 60 + 10 * (whole - left)
            workload = 600 + 2 * length + 50 * left
        return replace(Deadlines(boot, balloon, workload), **self.deadlines.model_dump(exclude_none=True))

    @field_validator("metrics")
    @classmethod
    def _names_of_their_own(cls, metrics: dict[str, OwnMetric], info: ValidationInfo) -> dict[str, OwnMetric]:
        taken = {*(info.context or {}).get("metrics", ()), "any"}
        for name in metrics:
            if name in taken:
                raise ValueError(f"{name}: testbed has something of that name; give it another one")
        return metrics

    @field_validator("primary")
    @classmethod
    def _known_metrics(cls, primary: dict[str, PrimarySpec], info: ValidationInfo) -> dict[str, PrimarySpec]:
        known = (info.context or {}).get("metrics", ())
        if "metrics" not in info.data:
            # What is wrong with these is said already.
            return primary
        known = (*known, *info.data["metrics"]) if known else ()
        for name in primary if known else ():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                raise ValueError(
                    f"{name}: there is no such metric"
                    + (f"; did you mean `{near[0]}`?" if near else "; `testbed metrics` lists them")
                )
        return primary

    def source(self, arm: str) -> SourceSpec:
        """Where the source of an arm's kernel comes from."""
        return self.arms[arm].kernel or self.kernel

    def fragments(self, arm: str) -> tuple[str, ...]:
        """What an arm's kernel is configured by, in order."""
        return (*self.kernel.config, *self.arms[arm].config)

    def only(self, arm: str | None = None) -> Experiment:
        """The same with one arm: the first, if none is named."""
        name = next(iter(self.arms)) if arm is None else arm
        return self.model_copy(update={"arms": {name: self.arms[name]}})

    @property
    def kept_files(self) -> tuple[str, ...]:
        """Files in the guest that metrics are in."""
        return tuple(dict.fromkeys(metric.file for metric in self.metrics.values() if metric.file))

    @property
    def memory_targets(self) -> tuple[tuple[int, int], ...]:
        """How memory is to change: (ms after the workload's start, bytes)."""
        guest = self.guest
        changes = guest.balloon.targets(guest.memory, self.workload.length) if guest.balloon else ()
        return tuple(itertools.islice(changes, MOST_TARGETS + 1))

    @property
    def looks(self) -> bool:
        """Whether seeds are added until the primary metrics are decided."""
        return bool(self.primary) and self.sequential and self.seeds >= LEAST_SEEDS and len(self.arms) > 1

    @model_validator(mode="after")
    def _every_arm_has_a_source(self) -> Experiment:
        lacking = [name for name, arm in self.arms.items() if arm.kernel is None]
        if lacking and not self.kernel.is_given:
            raise ValueError(
                f"kernel: names no source, nor does arm {lacking[0]}; as in `kernel: {{debian: "
                "linux-source-6.1}`"
            )
        return self

    @model_validator(mode="after")
    def _memory_can_follow(self) -> Experiment:
        if len(self.memory_targets) > MOST_TARGETS:
            raise ValueError(
                f"guest.balloon: changes memory more than {MOST_TARGETS:,} times; a longer period, or `over`?"
            )
        return self

    @model_validator(mode="after")
    def _phases_ascend(self) -> Experiment:
        starts = list(self.phases.values())
        if starts and (starts[0] != 0 or any(b <= a for a, b in itertools.pairwise(starts))):
            raise ValueError("phases: the first begins at 0, and each after the one before it")
        if len(starts) > MOST_PHASES:
            raise ValueError(f"phases: {len(starts)} are too many; {MOST_PHASES} at most")
        return self

    @model_validator(mode="after")
    def _metrics_have_a_program_that_fits(self) -> Experiment:
        if self.metrics and self.workload.command is None:
            raise ValueError("metrics: are what a program says; they go with `workload.command`")
        length = len(self.workload.run(self.guest.memory, MOST_FIRST_SEED, self.kept_files))
        if length > LONGEST_RUN:
            raise ValueError(
                f"workload.command: init's line for it has {length} characters, of which {LONGEST_RUN} fit; "
                "bring a script in `files`"
            )
        return self

    @model_validator(mode="after")
    def _command_lines_fit(self) -> Experiment:
        for arm, spec in self.arms.items():
            length = len(" ".join(spec.command_line))
            if length > MOST_COMMAND_LINE:
                raise ValueError(
                    f"arms: {arm}: its command line has {length} characters; at most {MOST_COMMAND_LINE}"
                )
        return self

    @model_validator(mode="after")
    def _workload_has_time(self) -> Experiment:
        given, seconds = self.deadlines.workload, self.workload.length
        needed = seconds * (WAITING if self.mode == "deterministic" else 1) + MARGIN_SECONDS[self.mode]
        if given is not None and given < needed:
            raise ValueError(
                f"deadlines.workload: {given:g} s is too short for a workload of {seconds:g} s in mode "
                f"{self.mode}; give at least {needed:g}"
            )
        return self

    @model_validator(mode="after")
    def _accelerated_in_real_time(self) -> Experiment:
        if self.mode == "deterministic" and self.accel != "auto":
            raise ValueError(
                f"accel: {self.accel} is a choice for `mode: realtime`; deterministic guests are emulated"
            )
        return self
