# SPDX-License-Identifier: GPL-2.0-only
"""The experiment file: read, checked, expanded; errors that name file, line, key and remedy."""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import itertools
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from testbed.experiment.model import DEBIAN, SHA256, ArmSpec, Experiment, SourceSpec
from testbed.experiment.values import (
    MOST_DEPTH,
    NAME,
    SIZE_SCHEMA,
    SYSCTL,
    SYSFS,
    WORD,
    Json,
    describe,
    format_size,
)
from testbed.host import files
from testbed.host.errors import SpecError
from testbed.host.paths import absolute, data_directory, joined_file, split_file

# What ends so is a file with patches; what begins so is a range of commits.
PATCH_SUFFIXES = tuple(
    kind + packed for kind in (".patch", ".diff", ".mbox", ".mbx", ".eml") for packed in ("", ".gz", ".xz")
)
RANGE = "git:"
WILD = set("*?[")
# A name of these goes before a file beside the experiment.
SERIES = data_directory() / "patches"

# No file name can have these, and no terminal should: NUL and halves of surrogate pairs.
_UNSPEAKABLE = re.compile("[\\0\ud800-\udfff]")

_TEXT = "tag:yaml.org,2002:str"

# Of a file, in bytes and values, and of a number in it, in digits. Longer ones would take more than a second.
MOST_BYTES = files.MiB
MOST_VALUES, MOST_DIGITS = 20_000, 100
# Mistakes that are told of one file.
MOST_TOLD = 20

S = typing.TypeVar("S", bound=SourceSpec)


@dataclass(frozen=True)
class Cell:
    """One combination of a matrix: an experiment of its own.

    `at` has axis -> value; `name` is fit for a file, and empty where there is no matrix.
    """

    at: Mapping[str, Json]
    name: str
    experiment: Experiment

    @property
    def label(self) -> str:
        """As in `vcpus=2, tasks=16`."""
        return describe(self.at)


def load(
    path: Path, options: Mapping[str, object] | None = None, metrics: Collection[str] = ()
) -> Experiment:
    """The experiment in a file, of a matrix its first cell; as expand()."""
    return expand(path, options, metrics)[0].experiment


def expand(
    path: Path, options: Mapping[str, object] | None = None, metrics: Collection[str] = ()
) -> tuple[Cell, ...]:
    """Read and check an experiment file: a cell for every combination of its matrix, one without any.

    `options` stand in for what it says of the same keys; `metrics` are the names that it may call primary.
    Relative paths in it are relative to the file. Raises SpecError with one line per mistake, each naming
    file, line, key and remedy.
    """
    root, data = _mapping(path)
    asked = dict(options or {})
    data["matrix"] = asked.pop("matrix", data.get("matrix"))
    axes = _axes(data.get("matrix"), root, path)
    rest = {key: value for key, value in data.items() if key != "matrix"}
    each = _values(rest) + sum(_values(values) / len(values) for values in axes.values())
    if axes and math.prod(map(len, axes.values())) * each > MOST_VALUES_OF_CELLS:
        place = f"{path}:{_line(root, ('matrix',))}: `matrix`: "
        raise SpecError(place + f"its combinations have more than {MOST_VALUES_OF_CELLS} values together")
    cells: list[Cell] = []
    # A mistake -> where it is made.
    mistakes: dict[str, list[Mapping[str, Any]]] = {}
    for values in itertools.product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        said = copy.deepcopy(rest)
        for axis, value in at.items():
            _put(said, axis, value)
        try:
            found = Experiment.model_validate({**said, **asked}, context={"metrics": metrics})
        except ValidationError as invalid:
            for line in _told(invalid.errors(), root, path, at, asked):
                mistakes.setdefault(line, []).append(at)
        else:
            cells.append(Cell(at, _file_name(at), _anchored(found, path)))
    if mistakes:
        total = math.prod(map(len, axes.values()))
        raise SpecError("\n".join(_where(line, ats, total) for line, ats in mistakes.items()))
    return tuple(cells)


def read(path: Path) -> dict[str, object]:
    """What a file says, unchecked. Raises SpecError unless it is a mapping."""
    return dict(_mapping(path)[1])


def _mapping(path: Path) -> tuple[yaml.Node | None, dict[str, Any]]:
    try:
        text = files.read(path, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as unreadable:
        reason = unreadable.strerror if isinstance(unreadable, OSError) else "is not UTF-8 text"
        raise SpecError(f"{path}: {reason}") from unreadable
    root, data = _read(text, path)
    if not isinstance(data, dict):
        raise SpecError(f"{path}: an experiment is a mapping of keys to values, as in `name: x`")
    return root, data


def schema() -> dict[str, Any]:
    """The JSON Schema of experiment files."""
    written = _as_written(Experiment.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **written}


def _as_written(schema: Any) -> Any:
    """pydantic's schema with defaults as a file has them, and no other names than those of a pattern."""
    if isinstance(schema, list):
        return [_as_written(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    written = {key: _as_written(value) for key, value in schema.items() if key != "default"}
    default = schema.get("default")
    if schema.get("pattern") == SIZE_SCHEMA["pattern"] and isinstance(default, int):
        written["default"] = format_size(default)
    # What is to be left out has no default, and that of a model is told key by key.
    elif default is not None and "$ref" not in schema:
        written["default"] = default
    if "patternProperties" in schema:
        written.setdefault("additionalProperties", False)
    return written


# --- the matrix ----------------------------------------------------------------------------------

# What a cell of a matrix is compared over.
MOST_CELLS, MOST_VALUES_OF_CELLS = 1000, 300_000


def _axes(said: object, root: yaml.Node | None, path: Path) -> dict[str, list[Any]]:
    """The axes of a matrix and their values. Raises SpecError unless they are that."""
    place = f"{path}:{_line(root, ('matrix',))}: `matrix`: "
    if said is None:
        return {}
    if not isinstance(said, dict) or not all(isinstance(v, list) and v for v in said.values()):
        raise SpecError(place + "should be keys with a list of values each, as in `guest.vcpus: [2, 8]`")
    if math.prod(map(len, said.values())) > MOST_CELLS:
        raise SpecError(place + f"has more than {MOST_CELLS} combinations")
    for axis in said:
        first = axis.partition(".")[0]
        if first not in Experiment.model_fields or first in ("name", "matrix"):
            known = sorted(set(Experiment.model_fields) - {"name", "matrix"})
            near = difflib.get_close_matches(first, known, n=1, cutoff=0.5)
            place = f"{path}:{_line(root, ('matrix', axis))}: `matrix.{axis}`: "
            raise SpecError(
                place
                + "begins with no key of an experiment; "
                + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}")
            )
    return said


def _values(data: object) -> int:
    """How many values there are in what a file says, itself among them."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return 1 + sum(map(_values, inner))


def _put(data: dict[str, Any], axis: str, value: object) -> None:
    """Set the value at a dotted path; names of arms and sysctls may have dots themselves."""
    here, rest = data, axis
    while True:
        known = [key for key in here if rest == key or rest.startswith(f"{key}.")]
        key = max(known, key=len, default=rest.partition(".")[0])
        left = rest[len(key) + 1 :]
        if left and key in ("sysctl", "sysfs"):
            here[key] = {**(here.get(key) or {}), left: value}
            return
        if not left:
            here[key] = value
            return
        inner = here.get(key)
        here[key] = here = dict(inner) if isinstance(inner, dict) else {}
        rest = left


def _file_name(at: Mapping[str, Any]) -> str:
    text = describe(at)
    name = re.sub(r"[^A-Za-z0-9._=,-]+", "", text.replace(", ", ","))[:80]
    # Two cells may look the same without what no file name should have.
    plain = re.fullmatch(r"[A-Za-z0-9._=, -]{0,80}", text)
    return name if plain else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _where(line: str, ats: Sequence[Mapping[str, Any]], total: int) -> str:
    """A mistake with the first cell that has it, unless all have."""
    if len(ats) == total:
        return line
    more = f" and {len(ats) - 1} more" if len(ats) > 1 else ""
    return f"{line}, with {describe(ats[0])}{more}"


# --- paths ---------------------------------------------------------------------------------------


def _anchored(experiment: Experiment, file: Path) -> Experiment:
    """Make every relative path absolute, so that the experiment means the same from anywhere."""

    def anchor(text: str, *, as_written: bool = False) -> str:
        try:
            path = file.parent / Path(text).expanduser()
            leads_to = path.resolve()
            # With its links, as messages name it: without, /proc/self is a number.
            written = absolute(path)
            return str(written if as_written and written.resolve() == leads_to else leads_to)
        except (OSError, RuntimeError, ValueError) as nowhere:
            raise SpecError(f"{file}: `{text}` leads nowhere: {nowhere}") from nowhere

    as_written = functools.partial(anchor, as_written=True)
    return repathed(experiment, anchor, as_written, lambda word, spec: _patches(word, file, spec, as_written))


def repathed(
    experiment: Experiment,
    source: Callable[[str], str],
    file: Callable[[str], str],
    patches: Callable[[str, SourceSpec], Sequence[str]],
) -> Experiment:
    """An experiment with other paths: of its sources, of its files, and of a word among an arm's patches.

    Such a word may come to several; it is told with the arm's source.
    """

    def pair(text: str) -> str:
        here, there = split_file(text)
        return joined_file(file(here), there)

    def changed(spec: S) -> S:
        if spec.tree is not None:
            return spec.model_copy(update={"tree": Path(source(str(spec.tree)))})
        # As git has it: with a colon before any slash it is a URL or HOST:PATH.
        if spec.git is not None and not re.match(r"[^/]+:", spec.git.repository):
            git = spec.git.model_copy(update={"repository": source(spec.git.repository)})
            return spec.model_copy(update={"git": git})
        if spec.tarball is not None and "://" not in spec.tarball.url:
            tarball = spec.tarball.model_copy(update={"url": source(spec.tarball.url)})
            return spec.model_copy(update={"tarball": tarball})
        return spec

    def fragments(words: Sequence[str]) -> tuple[str, ...]:
        return tuple(file(word) if is_path(word) else word for word in words)

    def arm_of(arm: ArmSpec) -> ArmSpec:
        spec = arm.kernel and changed(arm.kernel)
        words = tuple(one for word in arm.patches for one in patches(word, spec or kernel))
        return arm.model_copy(update={"kernel": spec, "config": fragments(arm.config), "patches": words})

    kernel = changed(experiment.kernel)
    workload = experiment.workload
    if workload.files:
        workload = workload.model_copy(update={"files": tuple(map(pair, workload.files))})
    return experiment.model_copy(
        update={
            "kernel": kernel.model_copy(update={"config": fragments(kernel.config)}),
            "arms": {name: arm_of(arm) for name, arm in experiment.arms.items()},
            "workload": workload,
        }
    )


def _patches(word: str, file: Path, spec: SourceSpec, anchor: Callable[[str], str]) -> list[str]:
    """What a word among an arm's patches means from anywhere; the names of series are left as they are."""
    if word.startswith(RANGE):
        where, _, which = word.removeprefix(RANGE).rpartition(":")
        here = anchor(where) if where else spec.git.repository if spec.git else spec.tree
        return [f"{RANGE}{here}:{which}" if here else word]
    try:
        exists = (file.parent / word).exists()
        found = [] if exists else matches(word, file.parent)
    except (OSError, ValueError) as bad:
        raise SpecError(f"{file}: `{word}` names no patches: {bad}") from bad
    if found:
        return found
    if exists and not is_path(word):
        exists = not any(path.name[5:] == f"{word}.patch" for path in SERIES.glob("*/[0-9]*.patch"))
    return [anchor(word) if exists or is_path(word) else word]


def matches(word: str, top: Path) -> list[str]:
    """The files that a pattern such as `patches/*.patch` stands for, sorted; none if it is no pattern.

    Raises ValueError, OSError where it stands for nothing.
    """
    parts = Path(word).expanduser().parts
    plain = next((n for n, part in enumerate(parts) if set(part) & WILD), len(parts))
    if plain == len(parts):
        return []
    found = sorted(top.joinpath(*parts[:plain]).resolve().glob("/".join(parts[plain:])))
    if not found:
        raise ValueError("no such file")
    return [str(path) for path in found]


def is_path(word: str) -> bool:
    """Whether patches or a fragment are given as a file rather than by a name in the repository."""
    if word.startswith("CONFIG_"):
        return False
    return "/" in word or word.startswith(RANGE) or word.endswith((*PATCH_SUFFIXES, ".config"))


# --- errors with a place -------------------------------------------------------------------------


class _TooMuchError(yaml.MarkedYAMLError):
    """It is YAML, and no experiment."""


class _Loader(yaml.SafeLoader):
    """PyYAML's, with limits, and with a place for what its constructors stumble over: `!!bool x`, 2001-99-99.

    An alias, which a merge has as well, counts as all that it stands for.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0
        self._counts: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark, before = self.peek_event().start_mark, self._count  # type: ignore[no-untyped-call]
        self._depth += 1
        self._count += 1
        if self._depth > MOST_DEPTH:
            raise _TooMuchError(problem="nested too deeply", problem_mark=mark)
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and node not in self._counts:
            raise _TooMuchError(problem="an alias within its own anchor", problem_mark=mark)
        if node is not None:
            self._count += self._counts.get(node, 0)
            self._counts.setdefault(node, self._count - before)
        if self._count > MOST_VALUES:
            problem = f"has more than {MOST_VALUES} values, aliases counted in full"
            raise _TooMuchError(problem=problem, problem_mark=mark)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            # In base 60, which `1:1:1...` is, a long number takes for ever.
            if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT and len(node.value) > MOST_DIGITS:
                raise ValueError("too long")
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
    except _TooMuchError as much:
        raise SpecError(f"{path}:{_line_of(much)}: {much.problem}") from much
    except yaml.MarkedYAMLError as bad:
        if bad.problem == "but found another document":
            raise SpecError(
                f"{path}:{_line_of(bad)}: has several documents; an experiment file has one"
            ) from bad
        raise SpecError(f"{path}:{_line_of(bad)}: not YAML: {bad.problem}") from bad
    except yaml.YAMLError as bad:
        raise SpecError(f"{path}: not YAML: {' '.join(str(bad).split())}") from bad


def _line_of(bad: yaml.MarkedYAMLError) -> int:
    return bad.problem_mark.line + 1 if bad.problem_mark else 1


def _refuse_traps(node: yaml.Node | None, path: Path, seen: set[yaml.Node]) -> None:
    """Refuse what YAML takes in silence, though a person who wrote it made a mistake.

    Of two equal keys it takes the last; `6.1:` and `yes:` are keys that are no text; text may hold what
    no file name and no terminal takes. Aliases make the tree a graph: a node is looked at once.
    """
    if node is None or node in seen:
        return
    seen.add(node)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            place = f"{path}:{key.start_mark.line + 1}: key "
            if not isinstance(key, yaml.ScalarNode):
                raise SpecError(place + "is a list or a mapping; a key is text")
            if key.tag not in (_TEXT, "tag:yaml.org,2002:merge"):
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
        _refuse_traps(child, path, seen)


def _told(
    errors: Sequence[ErrorDetails],
    root: yaml.Node | None,
    path: Path,
    at: Mapping[str, object],
    asked: Mapping[str, object],
) -> Iterator[str]:
    """A line for each of the first mistakes: of a file that is something else there may be thousands."""
    yield from dict.fromkeys(_describe(error, root, path, at, asked) for error in errors[:MOST_TOLD])
    if len(errors) > MOST_TOLD:
        yield f"{path}: and {len(errors) - MOST_TOLD} mistakes more"


def _describe(
    error: Any, root: yaml.Node | None, path: Path, at: Mapping[str, Any], asked: Mapping[str, object]
) -> str:
    loc: tuple[Hashable, ...] = tuple(error["loc"])
    said = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    name, colon, rest = said.partition(": ")
    inner = (*loc, *name.split("."))
    if colon and inner[-1] in list(_known_keys(inner[:-1])):
        # A check of several keys together names the one to change.
        loc, said = inner, rest
    key = ".".join(str(part) for part in loc if part != "[key]")
    line = _line(root, ("matrix", key) if key in at else loc)
    # What was asked for stands nowhere in the file.
    place = ("" if loc[:1] and loc[0] in asked else f"{path}:{line}: ") + (f"`{key}`: " if key else "")
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
            facts = error.get("ctx", {})
            plain = _SPELLED.get(facts.get("pattern")) or _PLAIN.get(kind, "is not what it should be")
            return place + f"{plain.format(**facts)} (found {_shown(error['input'])})"


# What pydantic says about Python's types, in the words of somebody who writes YAML.
_PLAIN = {
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping of keys to values",
    "finite_number": "should be a number, and not infinite",
    "float_type": "should be a number",
    "greater_than": "should be more than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "int_type": "should be a whole number",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "literal_error": "should be {expected}",
    "model_type": "should be a mapping of keys to values",
    "path_type": "should be a path",
    "string_too_long": "should have at most {max_length} characters",
    "string_too_short": "should not be empty",
    "string_type": "should be text; a number needs quotes",
    "too_long": "should have at most {max_length} entries",
    "too_short": "should have at least one entry",
    "tuple_type": "should be a list, as in [a, b]",
}
# Patterns in words.
_SPELLED = {
    NAME: "should be a name of lower-case letters, digits, `.`, `_` and `-`, of 64 at most",
    WORD: "should be a word without blanks, of ASCII characters",
    SYSCTL: "should be a sysctl with dots, as in vm.swappiness",
    SYSFS: "should be a path beneath /sys, as in kernel/mm/lru_gen/enabled",
    DEBIAN: "should be a package, as in linux-source-6.1 or linux-source-6.1=6.1.176-1",
    SHA256: "should be a SHA-256 in hexadecimal, 64 digits",
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
    """The keys that the model at `loc` has; none where keys are free."""
    here: Any = Experiment
    for part in loc:
        if _is_model(here):
            field = here.model_fields.get(part)
            here = next(iter(_below(field.annotation)), None) if field else None
        elif typing.get_origin(here) is dict:
            here = next(iter(_below(typing.get_args(here)[1])), None)
    if _is_model(here):
        yield from (field.alias or name for name, field in here.model_fields.items())


def _is_model(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


def _below(annotation: Any) -> Iterator[Any]:
    """The models and mappings in an annotation such as `Annotated[dict[str, ArmSpec] | None, ...]`."""
    if _is_model(annotation) or typing.get_origin(annotation) is dict:
        yield annotation
    elif typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _below(part)
