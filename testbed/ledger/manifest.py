# SPDX-License-Identifier: GPL-2.0-only
"""The manifest of a deterministic result: what fits into git of it, and is enough to do it again. Pure."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from testbed.experiment import Experiment, Model, SourceSpec
from testbed.ledger.document import Document

# Of a file in a bundle: it has no directories.
BUNDLED_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
S = TypeVar("S", bound=SourceSpec)


class ManifestKernel(Model):
    """What a kernel was made of, and the hash of what it has to be."""

    vmlinux_sha256: str
    source: str
    release: str
    patches: tuple[str, ...]
    tools: tuple[str, ...]


class Expected(Model):
    """What a trial gave."""

    trial: str
    arm: str
    seed: int
    outcome: str
    log_sha256: str


class Manifest(Document):
    """The experiment, the hashes of kernels, initramfs and every trial's console log, the family of QEMU."""

    version: Literal[1] = Field(alias="schema")
    name: str
    qemu_family: str
    booted_by: str
    """The version of QEMU whose snapshots the trials started from."""
    experiment: Experiment
    initramfs_sha256: str
    kernels: dict[str, ManifestKernel]
    trials: Annotated[tuple[Expected, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_done_again(self) -> Manifest:
        if self.kernels.keys() != self.experiment.arms.keys():
            raise ValueError("kernels: are not those of the experiment's arms")
        seeds = range(self.experiment.first_seed, self.experiment.first_seed + self.experiment.seeds)
        for number, expected in enumerate(self.trials):
            if expected.arm not in self.kernels:
                raise ValueError(f"trials.{number}.arm: there is no arm `{expected.arm}`")
            if expected.seed not in seeds:
                raise ValueError(f"trials.{number}.seed: {expected.seed} is no seed of the experiment")
        self.pinned()
        return self

    @property
    def expected(self) -> dict[str, Expected]:
        """Trial -> what it gave."""
        return {expected.trial: expected for expected in self.trials}

    def bundled(self, files: dict[str, str]) -> BundledManifest:
        """That of a bundle in which there are files with these hashes."""
        own = {name: value for name, value in self if name != "version"}
        return BundledManifest.model_validate({"schema": self.version, **own, "files": files})

    def as_measured(self) -> Experiment:
        """The experiment with no more seeds than have been measured."""
        last = max(expected.seed for expected in self.trials)
        return self.experiment.model_copy(update={"seeds": last - self.experiment.first_seed + 1})

    def pinned(self) -> Experiment:
        """The same, of the very versions of Debian packages that were measured."""
        experiment = self.as_measured()
        shared = [name for name, arm in experiment.arms.items() if arm.kernel is None]
        kernel = self._pinned(experiment.kernel, shared[0]) if shared else experiment.kernel
        arms = {
            name: arm.model_copy(update={"kernel": arm.kernel and self._pinned(arm.kernel, name)})
            for name, arm in experiment.arms.items()
        }
        return experiment.model_copy(update={"kernel": kernel, "arms": arms})

    def _pinned(self, spec: S, arm: str) -> S:
        if spec.debian is None or "=" in spec.debian:
            return spec
        _, _, version = self.kernels[arm].source.partition(" ")
        try:
            return spec.model_validate({**spec.model_dump(), "debian": f"{spec.debian}={version}"})
        except ValidationError as bad:
            source = self.kernels[arm].source
            raise ValueError(f"kernels: source: {source!r} names no version of {spec.debian}") from bad


class BundledManifest(Manifest):
    """That of a bundle, which has the hashes of the files that came with it, too."""

    files: dict[Annotated[str, Field(pattern=BUNDLED_NAME)], str]
