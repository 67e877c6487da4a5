# SPDX-License-Identifier: GPL-2.0-only
"""The experiment file: what it may say, typed, and errors that name file, line, key and remedy."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from testbed.errors import SpecError

MiB = 1024 * 1024

_SIZE = re.compile(r"(\d+)\s*([KMG])(?:i?B)?", re.IGNORECASE)
# No file name can have these, and no terminal should: NUL and halves of surrogate pairs.
_UNSPEAKABLE = re.compile("[\\0\ud800-\udfff]")
_UNITS = {"K": 1024, "M": MiB, "G": 1024 * MiB}


def parse_size(value: object) -> int:
    """Bytes of a size such as `128M` or `1GiB`. Raises ValueError."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{reprlib.repr(value)} is not a size: write a number and a unit, as in 128M")
    return int(match[1]) * _UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """The shortest exact form of a size in bytes that parse_size() reads."""
    for unit in "GMK":
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    raise ValueError(f"{size} is not a multiple of 1 KiB")


def _sized(value: object) -> int:
    # A size that went through model_dump() comes back as bytes.
    return value if type(value) is int and value >= 1024 and value % 1024 == 0 else parse_size(value)


Size = Annotated[int, BeforeValidator(_sized), Field(json_schema_extra={"examples": ["128M"]})]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
# As in vm.swappiness; a value is one word.
SysctlName = Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[A-Za-z0-9_-]+)+$")]
SysctlValue = int | Annotated[str, Field(pattern=r"^\S+$")]


class Model(BaseModel):
    """Immutable, and closed: a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TarballSource(Model):
    """A release tarball; `url` may be a local path. Checked against `sha256` before use."""

    url: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class GitSource(Model):
    """A revision of a git repository, local or remote."""

    repository: str
    revision: str


class KernelSpec(Model):
    """Where the kernel's source comes from: exactly one of the four; `config` names fragments."""

    debian: Annotated[str, Field(pattern=r"^linux-source-[0-9.]+$")] | None = None
    tarball: TarballSource | None = None
    git: GitSource | None = None
    tree: Path | None = None
    config: Annotated[tuple[str, ...], Field(strict=False)] = ("guest", "reclaim")

    @field_validator("tree", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        return Path(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> KernelSpec:
        given = [k for k in ("debian", "tarball", "git", "tree") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of debian, tarball, git and tree"
                + (f" (found {', '.join(given)})" if given else "")
            )
        return self


class ArmSpec(Model):
    """One kernel under test: names of series in patches/, or paths of patch files, in order.

    `sysctl` is set before the workload starts; arms with equal patches share a kernel.
    """

    patches: Annotated[tuple[str, ...], Field(strict=False)] = ()
    sysctl: dict[SysctlName, SysctlValue] = {}


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


class BalloonSpec(Model):
    """Memory while the workload runs, by the guest's clock: exactly one of the three."""

    step: StepSpec | None = None
    ramp: RampSpec | None = None
    oscillate: OscillateSpec | None = None

    @model_validator(mode="after")
    def _one_schedule(self) -> BalloonSpec:
        given = [k for k in ("step", "ramp", "oscillate") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of step, ramp and oscillate"
                + (f" (found {', '.join(given)})" if given else "")
            )
        return self

    @property
    def to(self) -> int:
        """The schedule's other memory size, in bytes."""
        chosen = self.step or self.ramp or self.oscillate
        assert chosen
        return chosen.to

    def targets(self, memory: int, seconds: float) -> tuple[tuple[int, int], ...]:
        """When memory changes, and to what: (ms after the workload's start, bytes), within `seconds`."""
        if self.step:
            points = [(self.step.at, self.step.to)]
        elif self.ramp:
            steps = max(1, round(self.ramp.over / RAMP_STEP_SECONDS))
            points = [
                (
                    self.ramp.at + self.ramp.over * n / steps,
                    (memory + (self.ramp.to - memory) * n // steps) // MiB * MiB,
                )
                for n in range(1, steps + 1)
            ]
        else:
            assert self.oscillate
            half, at = self.oscillate.period / 2, self.oscillate.at
            count = max(0, int((seconds - at) / half) + 1)
            points = [(at + n * half, memory if n % 2 else self.oscillate.to) for n in range(count)]
        return tuple((round(at * 1000), size) for at, size in points if at < seconds)


class GuestSpec(Model):
    """The machine. It boots with `boot_memory` and is ballooned down to `memory`."""

    vcpus: Annotated[int, Field(ge=1, le=64)] = 8
    boot_memory: Size = 512 * MiB
    memory: Size = 128 * MiB
    swap: Size = 256 * MiB
    swappiness: Annotated[int, Field(ge=0, le=200)] = 60
    balloon: BalloonSpec | None = None

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
            if not 48 * MiB <= to <= self.boot_memory or to % MiB:
                raise ValueError(
                    f"balloon: {format_size(to)} is not whole MiB from 48M to boot_memory "
                    f"{format_size(self.boot_memory)}"
                )
        if 0 < self.swap < MiB or self.swap > 64 * 1024 * MiB:
            raise ValueError(f"swap: {format_size(self.swap)} is neither 0M nor from 1M to 64G")
        return self


class MmapTest(Model):
    """N tasks that together map `footprint` x memory and touch it, page by page."""

    mode: Literal["anon", "file"] = "anon"
    tasks: Annotated[int, Field(ge=1, le=512)] = 16
    seconds: Annotated[float, Field(gt=0, le=3600)] = 3.0
    footprint: Annotated[float, Field(gt=0, le=64)] = 1.5


class WorkloadSpec(Model):
    """What runs in the guest."""

    mmap_test: MmapTest = MmapTest()


class DeadlineSpec(Model):
    """Seconds of wall time that each stage of a trial may take; generous, since emulation is slow."""

    boot: Annotated[float, Field(gt=0)] = 120.0
    balloon: Annotated[float, Field(gt=0)] = 60.0
    workload: Annotated[float, Field(gt=0)] = 600.0


# What a workload may need beside its own time, to fill memory and to send its results.
MARGIN_SECONDS = 30.0
# Seconds that a second of virtual time may take, on a slow or busy machine.
SLOWEST = 60.0


class Experiment(Model):
    """A comparison of kernels: the same trials, in the same guests, over the same seeds."""

    name: Name
    description: str = ""
    kernel: KernelSpec
    arms: Annotated[dict[Name, ArmSpec], Field(min_length=1)]
    guest: GuestSpec = GuestSpec()
    workload: WorkloadSpec = WorkloadSpec()
    # Whether to count, beside all else, what tracepoints tell of direct reclaim: docs/stock-kernels.md.
    tracepoints: bool = False
    seeds: Annotated[int, Field(ge=1, le=100000)] = 5
    mode: Literal["deterministic", "realtime"] = "deterministic"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    deadlines: DeadlineSpec = DeadlineSpec()

    @model_validator(mode="after")
    def _workload_has_time(self) -> Experiment:
        seconds = self.workload.mmap_test.seconds
        needed = seconds * (SLOWEST if self.mode == "deterministic" else 1) + MARGIN_SECONDS
        if self.deadlines.workload < needed:
            raise ValueError(
                f"deadlines.workload: {self.deadlines.workload:g} s is too short for a workload of "
                f"{seconds:g} s in mode {self.mode}; give at least {needed:g}"
            )
        return self

    @model_validator(mode="after")
    def _accelerated_in_real_time(self) -> Experiment:
        if self.mode == "deterministic" and self.accel != "auto":
            raise ValueError(
                f"accel: {self.accel} is a choice for `mode: realtime`; deterministic guests are emulated"
            )
        return self


def load(path: Path, options: Mapping[str, object] | None = None) -> Experiment:
    """Read and check an experiment file; `options` stand in for what it says of the same keys.

    Relative paths in it are relative to the file. Raises SpecError with one line per mistake, each
    naming file, line, key and remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as unreadable:
        reason = unreadable.strerror if isinstance(unreadable, OSError) else "is not UTF-8 text"
        raise SpecError(f"{path}: {reason}") from unreadable
    root, data = _read(text, path)
    if not isinstance(data, dict):
        raise SpecError(f"{path}: an experiment is a mapping of keys to values, as in `name: x`")
    try:
        experiment = Experiment.model_validate({**data, **(options or {})})
    except ValidationError as invalid:
        lines = [_describe(error, root, path) for error in invalid.errors()]
        raise SpecError("\n".join(dict.fromkeys(lines))) from invalid
    return _anchored(experiment, path)


def _anchored(experiment: Experiment, file: Path) -> Experiment:
    """Make every relative path absolute, so that the experiment means the same from anywhere."""

    def anchor(text: str) -> str:
        try:
            return str((file.parent / Path(text).expanduser()).resolve())
        except (OSError, RuntimeError) as nowhere:
            raise SpecError(f"{file}: `{text}` leads nowhere: {nowhere}") from nowhere

    kernel = experiment.kernel
    if kernel.tree is not None:
        kernel = kernel.model_copy(update={"tree": Path(anchor(str(kernel.tree)))})
    # As git has it: with a colon before any slash it is a URL or HOST:PATH.
    if kernel.git is not None and not re.match(r"[^/]+:", kernel.git.repository):
        git = kernel.git.model_copy(update={"repository": anchor(kernel.git.repository)})
        kernel = kernel.model_copy(update={"git": git})
    if kernel.tarball is not None and "://" not in kernel.tarball.url:
        tarball = kernel.tarball.model_copy(update={"url": anchor(kernel.tarball.url)})
        kernel = kernel.model_copy(update={"tarball": tarball})
    config = tuple(anchor(name) if is_path(name) else name for name in kernel.config)
    arms = {
        name: arm.model_copy(update={"patches": tuple(anchor(p) if is_path(p) else p for p in arm.patches)})
        for name, arm in experiment.arms.items()
    }
    return experiment.model_copy(
        update={"kernel": kernel.model_copy(update={"config": config}), "arms": arms}
    )


def is_path(word: str) -> bool:
    """Whether a patch or fragment is given as a file rather than by its name in the repository."""
    return "/" in word or word.endswith((".patch", ".diff", ".config"))


# --- errors with a place -------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's, with a place for what its constructors stumble over: `!!bool x`, 2001-99-99."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as bad:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"this cannot be read as `{kind}`; text needs quotes", problem_mark=node.start_mark
            ) from bad


def _read(text: str, path: Path) -> tuple[yaml.Node | None, Any]:
    """The tree of a YAML text, for the lines, and what it says."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        _refuse_traps(root, path, set())
        return root, root and loader.construct_document(root)
    except yaml.MarkedYAMLError as bad:
        line = bad.problem_mark.line + 1 if bad.problem_mark else 1
        raise SpecError(f"{path}:{line}: not YAML: {bad.problem}") from bad
    except yaml.YAMLError as bad:
        raise SpecError(f"{path}: not YAML: {' '.join(str(bad).split())}") from bad
    except RecursionError as deep:
        raise SpecError(f"{path}: nested too deeply, or an alias within its own anchor") from deep


def _refuse_traps(node: yaml.Node | None, path: Path, seen: set[yaml.Node], depth: int = 0) -> None:
    """Refuse what YAML takes in silence, though a person who wrote it made a mistake.

    Of two equal keys it takes the last; `6.1:` and `yes:` are keys that are no text; text may hold what
    no file name and no terminal takes. Aliases make the tree a graph: a node is looked at once.
    """
    if node is None or node in seen:
        return
    if depth > 32:
        raise RecursionError
    seen.add(node)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            place = f"{path}:{key.start_mark.line + 1}: key "
            if not isinstance(key, yaml.ScalarNode):
                raise SpecError(place + "is a list or a mapping; a key is text")
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise SpecError(place + f"`{key.value}` is not text; put it in quotes")
            if key.value in keys:
                raise SpecError(place + f"`{key.value}` is given twice")
            keys.add(key.value)
            children += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        children += node.value
    elif bad := _UNSPEAKABLE.search(node.value):
        raise SpecError(f"{path}:{node.start_mark.line + 1}: character {bad[0]!r} in text")
    for child in children:
        _refuse_traps(child, path, seen, depth + 1)


def _describe(error: Any, root: yaml.Node | None, path: Path) -> str:
    loc: tuple[Hashable, ...] = tuple(error["loc"])
    said = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    name, colon, rest = said.partition(": ")
    inner = (*loc, *name.split("."))
    if colon and inner[-1] in list(_known_keys(inner[:-1])):
        # A check of several keys together names the one to change.
        loc, said = inner, rest
    key = ".".join(str(part) for part in loc if part != "[key]")
    place = f"{path}:{_line(root, loc)}: " + (f"`{key}`: " if key else "")
    match error["type"]:
        case "extra_forbidden":
            known = sorted(_known_keys(loc[:-1]))
            near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
            return (
                place
                + "unknown key"
                + (f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(known)}")
            )
        case "missing":
            return place + "is missing"
        case "value_error":
            return place + said
        case kind:
            return place + f"{_PLAIN.get(kind) or error['msg'].lower()} (found {_shown(error['input'])})"


# What pydantic says about Python's types, in the words of somebody who writes YAML.
_PLAIN = {
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping of keys to values",
    "float_type": "should be a number",
    "int_type": "should be a whole number",
    "model_type": "should be a mapping of keys to values",
    "string_type": "should be text; a number needs quotes",
    "too_short": "should have at least one entry",
    "tuple_type": "should be a list, as in [a, b]",
}


def _shown(value: object) -> str:
    """A value about as it is in the file, and not all of it if it is long."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)[:100]


def _line(node: yaml.Node | None, loc: Sequence[Hashable]) -> int:
    """The line, from 1, of the deepest part of `loc` that is in the file."""
    line = node.start_mark.line + 1 if node else 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _known_keys(loc: Sequence[Hashable]) -> Iterator[str]:
    """The keys that the model at `loc` has."""
    model: Any = Experiment
    for part in loc:
        field = model.model_fields.get(part) if _is_model(model) else None
        # The one mapping with free keys is `arms`.
        model = ArmSpec if field is None else next(filter(_is_model, _parts(field.annotation)), ArmSpec)
    yield from model.model_fields


def _is_model(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


def _parts(annotation: Any) -> list[Any]:
    return list(getattr(annotation, "__args__", ())) or [annotation]
