# SPDX-License-Identifier: GPL-2.0-only
"""From an experiment to trials that can run: kernels, image, accelerator, and where all of it came from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from testbed.experiment import Experiment, GuestSpec, MiB, SourceSpec, format_size
from testbed.experiment.script import script
from testbed.experiment.workloads import WRAPPER
from testbed.guest import accel, image, qemu
from testbed.guest.accel import Accel
from testbed.guest.image import Image
from testbed.guest.qemu import Qemu
from testbed.guest.shape import Shape
from testbed.host import owned
from testbed.host.errors import HostError, SpecError
from testbed.host.paths import REPOSITORY, is_installed
from testbed.kernel import build, kconfig, source
from testbed.kernel.build import Kernel
from testbed.kernel.source import Source
from testbed.ledger.plan import (
    Accelerator,
    GuestFacts,
    Host,
    Initramfs,
    KernelFacts,
    Plan,
    PlannedTrial,
    Provenance,
)
from testbed.trials.trial import Trial

DISTRIBUTION = "reclaim-testbed"  # as pyproject.toml names it


@dataclass(frozen=True)
class Campaign:
    """An experiment that is ready to run, and the plan of it that the ledger keeps."""

    trials: tuple[Trial, ...]
    plan: Plan


def plans(experiment: Experiment, cache: Path, progress: Callable[[str], None]) -> dict[str, build.Plan]:
    """What every arm's kernel is to be made of. Raises SpecError naming the key.

    All arms are checked before any is built, so that a patch that does not apply costs nothing, and what is
    wrong in any source before one is fetched. What dead processes left in the cache goes first.
    """
    for room in cache.glob("*/"):
        owned.remove_left(room)
    for name, arm in experiment.arms.items():
        with _of_arm(name):
            build.check(experiment.fragments(name), arm)
    planned = {}
    resolved: dict[SourceSpec, Source] = {}
    if experiment.kernel.is_given and any(arm.kernel is None for arm in experiment.arms.values()):
        resolved[experiment.kernel] = source.resolve(experiment.kernel, cache, progress)
    for name, arm in experiment.arms.items():
        spec = experiment.source(name)
        with _of_arm(name):
            if spec not in resolved:
                resolved[spec] = source.resolve(spec, cache, progress)
            planned[name] = build.plan(resolved[spec], experiment.fragments(name), arm, cache)
    return planned


@contextlib.contextmanager
def _of_arm(name: str) -> Iterator[None]:
    """Say whose kernel it is that something is wrong with."""
    try:
        yield
    except SpecError as bad:
        bad.message = f"arms.{name}: {bad.message}"
        raise


def kernels(experiment: Experiment, cache: Path, progress: Callable[[str], None]) -> dict[str, Kernel]:
    """The kernel of every arm, built unless it is in the cache. Raises SpecError, BuildError."""
    planned = plans(experiment, cache, progress)
    return {name: build.build(plan, progress=progress) for name, plan in planned.items()}


@dataclass(frozen=True)
class Machine:
    """What an experiment's guests run on here."""

    shape: Shape
    qemu: Qemu
    accel: Accel
    environment: tuple[str, ...]


def machine(
    experiment: Experiment,
    kernel: Kernel,
    initramfs: Image,
    cache: Path,
    progress: Callable[[str], None],
    *,
    cancel: threading.Event | None = None,
    family: str | None = None,
) -> Machine:
    """The machine for an experiment's guests, in its mode.

    With a `family` of QEMU it has to be that one. Raises NoDeterminism, NoKvm, HostError.
    """
    shape = shape_of(experiment)
    if experiment.mode == "deterministic":
        emulator = qemu.deterministic(cache, progress, family)
        reason = f"deterministic emulation, {emulator.version.removeprefix('QEMU emulator version ')}"
        progress(f"acceleration: icount ({reason})")
        depends_on = environment(emulator.family, emulator.version)
        return Machine(shape, emulator, Accel("icount", reason), depends_on)
    emulator = qemu.system()
    shape = replace(shape, accel="kvm")
    chosen = accel.choose(
        experiment.accel,
        shape,
        kernel.vmlinux,
        initramfs.path,
        cache,
        qemu=emulator.program,
        cancel=cancel,
    )
    progress(f"acceleration: {chosen.name} ({chosen.reason})")
    host = (host_cpu(), f"{len(os.sched_getaffinity(0))} cores", f"Linux {platform.release()}")
    depends_on = (emulator.version, *host)
    return Machine(replace(shape, accel=chosen.name), emulator, chosen, depends_on)


def shape_of(experiment: Experiment) -> Shape:
    """The deterministic machine of an experiment."""
    guest = experiment.guest
    settings = "transparent_hugepage=never" if guest.thp == "never" else ""
    return Shape("icount", guest.vcpus, guest.boot_memory, extra=numa(guest), settings=settings)


def with_arguments(shape: Shape, experiment: Experiment, arm: str, seed: int | None = None) -> Shape:
    """The machine with what an arm's kernel is told beside what all are told; of a seed, with its boot."""
    words = list(experiment.arms[arm].command_line)
    if seed is not None and shape.accel == "icount":
        # Nobody reads it. The kernel's random numbers begin with it, and it moves what is allocated.
        words.append(f"testbed.boot={seed % experiment.boots if experiment.boots else seed}")
    return replace(shape, cmdline=" ".join(words))


def numa(guest: GuestSpec) -> tuple[str, ...]:
    """QEMU's words for nodes with equal shares of vCPUs and memory; none for one node."""
    if guest.nodes == 1:
        return ()
    vcpus, mebibytes = guest.vcpus // guest.nodes, guest.boot_memory // guest.nodes // MiB
    words: list[str] = []
    for node in range(guest.nodes):
        cpus = f"cpus={node * vcpus}-{(node + 1) * vcpus - 1}"
        words += ["-object", f"memory-backend-ram,id=node{node},size={mebibytes}M"]
        words += ["-numa", f"node,nodeid={node},memdev=node{node},{cpus}"]
    return tuple(words)


def initramfs(experiment: Experiment, cache: Path, files: Mapping[str, Path] | None = None) -> Image:
    """The image of an experiment's guests, with the files that its own command needs. Raises SpecError."""
    more = () if experiment.workload.command is None else (image.START_SOURCE,)
    return image.build(cache, more, brought(experiment) if files is None else files)


def brought(experiment: Experiment) -> dict[str, Path]:
    """What an experiment's own command brings into its guests, as image.build() has it. Raises SpecError."""
    workload = experiment.workload
    if workload.command is None:
        return {}
    files = image.gather(workload.command[0], workload.files)
    if workload.is_wrapped(experiment.kept_files):
        files[WRAPPER] = image.WRAPPER_SCRIPT
    size = sum(path.stat().st_size for path in files.values())
    if size >= experiment.guest.memory:
        raise SpecError(
            f"workload.files: {size / MiB:.0f} MiB come along, and the guest has "
            f"{format_size(experiment.guest.memory)} for all",
            "give it more: `guest.memory`",
        )
    return files


def crowding(experiment: Experiment, files: Mapping[str, Path]) -> Iterator[str]:
    """A line on what comes along, if it takes half the guest's memory."""
    size, memory = sum(path.stat().st_size for path in files.values()), experiment.guest.memory
    if size > memory / 2:
        largest = sorted(files, key=lambda name: -files[name].stat().st_size)[:3]
        yield (
            f"note: {size / MiB:.0f} MiB of the guest's {format_size(memory)} are taken by what comes along "
            f"({', '.join(f'/{name}' for name in largest)} ...)"
        )


def environment(family: str, booted_by: str) -> tuple[str, ...]:
    """What deterministic trials depend on beside what they are made of: QEMU's family, a build's version."""
    return (f"QEMU {family}", f"booted by {booted_by}")


def prepare(
    experiment: Experiment,
    cache: Path,
    progress: Callable[[str], None],
    cancel: threading.Event | None = None,
    *,
    family: str | None = None,
) -> Campaign:
    """Build what an experiment needs and lay out its trials, on a given family of QEMU if one is named.

    Raises SpecError, HostError, BuildError; Interrupted when `cancel` is set.
    """
    # What can be refused at once comes before what takes minutes.
    files = brought(experiment)
    for line in crowding(experiment, files):
        progress(line)
    planned = plans(experiment, cache, progress)
    image_built = initramfs(experiment, cache, files)
    built = {name: build.build(plan, progress=progress) for name, plan in planned.items()}
    first = next(iter(built.values()))
    here = machine(experiment, first, image_built, cache, progress, cancel=cancel, family=family)
    guests = Guests(image_built, here, cache)
    trials = tuple(
        trial(experiment, arm, seed, guests, vmlinux=kernel.vmlinux, sha256=kernel.vmlinux_sha256)
        for arm, kernel in built.items()
        for seed in range(experiment.first_seed, experiment.first_seed + experiment.seeds)
    )
    plan = Plan(
        schema=1,
        experiment=experiment,
        trials={trial.id: PlannedTrial(arm=trial.arm, seed=trial.seed) for trial in trials},
        provenance=Provenance(
            kernels={arm: kernel_facts(kernel, planned[arm]) for arm, kernel in built.items()},
            config_differences=kconfig.differences(
                {arm: kernel.config.read_text() for arm, kernel in built.items()}
            ),
            **dict(guest_facts(experiment, here, image_built)),
        ),
    )
    return Campaign(trials, plan)


@dataclass(frozen=True)
class Guests:
    """What all guests of an experiment have in common."""

    initramfs: Image
    machine: Machine
    cache: Path


def trial(
    experiment: Experiment, arm: str, seed: int, guests: Guests, *, vmlinux: Path, sha256: str
) -> Trial:
    """One trial of an arm of an experiment, on a kernel with that hash."""
    here = guests.machine
    return Trial(
        arm=arm,
        seed=seed,
        vmlinux=vmlinux,
        vmlinux_sha256=sha256,
        initramfs=guests.initramfs.path,
        initramfs_sha256=guests.initramfs.sha256,
        shape=with_arguments(here.shape, experiment, arm, seed),
        memory=experiment.guest.memory,
        script=script(experiment, arm, seed),
        deadlines=experiment.deadlines_of(here.accel.name == "icount"),
        environment=here.environment,
        qemu=here.qemu,
        cache=guests.cache,
    )


def guest_facts(experiment: Experiment, here: Machine, initramfs: Image) -> GuestFacts:
    """Where an experiment's trials run and what with."""
    shapes = {arm: with_arguments(here.shape, experiment, arm) for arm in experiment.arms}
    return GuestFacts(
        guest_commands={arm: guest_commands(experiment, arm) for arm in experiment.arms},
        testbed=own_version(),
        initramfs=Initramfs(sha256=initramfs.sha256),
        qemu=here.qemu.version,
        qemu_family=here.qemu.family,
        accelerator=Accelerator(name=here.accel.name, reason=here.accel.reason),
        fallback="",
        kernel_command_lines={arm: shape.kernel_cmdline for arm, shape in shapes.items()},
        host=Host(
            cpu=host_cpu(),
            cores=len(os.sched_getaffinity(0)),
            kernel=platform.release(),
            machine=platform.machine(),
        ),
    )


def guest_commands(experiment: Experiment, arm: str) -> tuple[str, ...]:
    """What the guests of an arm are told, in order."""
    told = script(experiment, arm, "SEED")
    return (*told.set_up, told.run)


def kernel_facts(kernel: Kernel, plan: build.Plan) -> KernelFacts:
    """What a kernel is and what it was made of."""
    return KernelFacts(
        source=kernel.source,
        source_identity=plan.source.identity,
        release=kernel.release,
        patches=tuple(kernel.patches),
        diffstat={patch.name: dict(patch.diffstat) for patch in plan.patches},
        patches_sha256=plan.patches_sha256,
        config_sha256=hashlib.sha256(kernel.config.read_bytes()).hexdigest(),
        build_key=kernel.key,
        vmlinux_sha256=kernel.vmlinux_sha256,
        tools=tuple(kernel.tools),
    )


def own_version() -> str:
    """The commit of a checkout, with `-dirty` when it was changed; else the package's version."""
    # Any other repository around an installed package is none of ours. In a work tree .git is a file.
    if not is_installed() and (REPOSITORY / ".git").exists():
        describe = (f"--work-tree={REPOSITORY}", "describe", "--always", "--dirty", "--abbrev=12")
        # There may be no git here.
        with contextlib.suppress(HostError):
            done = source.git(REPOSITORY / ".git", *describe, timeout=20, error=HostError)
            return done.stdout.decode().strip()
    return metadata.version(DISTRIBUTION)


def host_cpu() -> str:
    """The host CPU's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
