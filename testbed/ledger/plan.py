# SPDX-License-Identifier: GPL-2.0-only
"""Plans: what is to be run, with what and where, as a ledger keeps it. Pure.

What a plan is made of is in the reports as well.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from testbed.experiment import Experiment, Model
from testbed.ledger.document import Document, Number


class KernelFacts(Model):
    """What a kernel is and what it was made of."""

    source: str
    source_identity: str
    release: str
    patches: tuple[str, ...]
    diffstat: dict[str, dict[str, tuple[int, int]]]
    """Patch -> file -> lines that are added and removed."""
    patches_sha256: dict[str, str]
    config_sha256: str
    build_key: str
    vmlinux_sha256: str
    tools: tuple[str, ...]


class Initramfs(Model):
    """The image that all guests boot."""

    sha256: str


class Accelerator(Model):
    """What runs the guests' code, and why it was chosen."""

    name: str
    reason: str


class Host(Model):
    """The machine that the guests ran on."""

    cpu: str
    cores: int
    kernel: str
    machine: str


class GuestFacts(Model):
    """Where trials run and what with."""

    guest_commands: dict[str, tuple[str, ...]]
    """Arm -> what its guests are told, in order."""
    testbed: str
    initramfs: Initramfs
    qemu: str
    qemu_family: str
    accelerator: Accelerator
    fallback: str
    """Why it is not what was asked for; empty if it is."""
    kernel_command_lines: dict[str, str]
    host: Host

    @property
    def deterministic(self) -> bool:
        """Whether guests run in virtual time."""
        return self.accelerator.name == "icount"


class _Kernels(Model):
    kernels: dict[str, KernelFacts]


# Fields of the last base come first.
class Provenance(GuestFacts, _Kernels):
    """Where the numbers of a comparison come from."""

    config_differences: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Option -> arm -> how its kernel has it, of those that not all arms have alike."""
    effective: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Arm -> setting -> value, as read back in a guest; nothing of an arm where that could not be had."""


class PlannedTrial(Model):
    """One boot of one arm's kernel."""

    arm: str
    seed: int


class Plan(Document):
    """The plan of a comparison; trials by their id."""

    version: Literal[1] = Field(alias="schema")
    experiment: Experiment
    trials: dict[str, PlannedTrial]
    provenance: Provenance

    @model_validator(mode="after")
    def _arms_are_those_of_the_experiment(self) -> Plan:
        arms = self.experiment.arms.keys()
        if self.provenance.kernels.keys() != arms:
            raise ValueError("provenance.kernels: are not those of the experiment's arms")
        if strange := {trial.arm for trial in self.trials.values()} - arms:
            raise ValueError(f"trials: there is no arm {', '.join(sorted(strange))}")
        return self


class Candidate(Model):
    """A commit that may be the culprit; as analysis.bisect.Commit."""

    id: str
    links: tuple[str, ...]
    parents: tuple[str, ...]
    weight: Annotated[float, Field(gt=0)]
    kind: str
    subject: str


class BisectionQuestion(Model):
    """What is to be bisected; `good`, `bad` and commits are hashes."""

    repository: str
    good: str
    bad: str
    paths: tuple[str, ...]
    metric: str
    kind: Literal["rate", "count", "tail", "fairness", "outcome"]
    title: str
    unit: str
    commits: Annotated[tuple[Candidate, ...], Field(min_length=1)]
    """`git rev-list bad ^good`, parents first."""

    @model_validator(mode="after")
    def _parents_come_first(self) -> BisectionQuestion:
        before: set[str] = set()
        for number, commit in enumerate(self.commits):
            if commit.id in before or not before.issuperset(commit.links):
                raise ValueError(
                    f"commits.{number}: is there twice, or links to what does not come before it"
                )
            before.add(commit.id)
        return self


Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class SearchRules(Model):
    """How sure to be, and what it may cost; as analysis.bisect.Rules."""

    confidence: Share
    gate_alpha: Share
    gate_pairs: Count
    confirm_alpha: Share
    confirm_pairs: Count
    rounds: Count
    trials: Count
    rho: Annotated[Number, Field(gt=0)]


class BuildNote(Document):
    """What became of a commit's kernel, as a bisection notes it beside its trials."""

    commit: str
    kernel: str
    """A hash of what it is; empty if there is none that can be used."""
    reason: str
    """Why there is none, in a few words."""
    remarks: tuple[str, ...]
    """What it had to do without."""
    seconds: float = 0.0
    """What building it took."""
    detail: str = ""
    """The reason at length."""


class BisectionPlan(Document):
    """The plan of a bisection."""

    version: Literal[1] = Field(alias="schema")
    experiment: Experiment
    bisect: BisectionQuestion
    rules: SearchRules
    provenance: GuestFacts | None
    """None where neither end could be built."""
