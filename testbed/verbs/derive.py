# SPDX-License-Identifier: GPL-2.0-only
"""An experiment from words on the command line: a template's guest and workload, with other arms.

my.patch series.mbox        the template's first arm, and the same with patches
--tree DIR --base REV       where HEAD of a tree has left a base, and what is there now
--kernel A --kernel B       two kernels or more
--sysctl NAME=1,2           a kernel that is set in several ways; --command-line, --config alike
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeGuard

from testbed.experiment import read
from testbed.host import debian
from testbed.host.errors import HostError, SpecError
from testbed.host.paths import data_directory, sha256
from testbed.kernel import series, source
from testbed.kernel.series import Misfit
from testbed.trials import prepare
from testbed.verbs import given
from testbed.verbs.given import Given, slug
from testbed.verbs.request import AFTER, BEFORE, ExperimentRequest

EXPERIMENTS = data_directory() / "experiments"
# Of words alone, and where nothing is said.
DEFAULT, PUBLISHED = "anon", "reclaim-capture"
_VERSION = re.compile(r"(\d+\.\d+)(\.\d+)?(-\S+)?")
# As they come out of a YAML file.
Data = Mapping[str, object]


@dataclass(frozen=True)
class Words:
    """What is to be compared, as a person types it. Empty where it is not said.

    `kernels` are versions of Debian's, packages, trees or, with a tree, its revisions. Settings are
    NAME=VALUE,VALUE..., options CONFIG_NAME=VALUE, arguments words of a kernel's command line.
    """

    patches: tuple[str, ...] = ()
    tree: Path | None = None
    base: str | None = None
    head: str | None = None
    kernels: tuple[str, ...] = ()
    sysctl: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def anything(self) -> bool:
        """Whether anything is said."""
        return self != Words()


def sort(words: Sequence[str]) -> tuple[Path | None, tuple[str, ...]]:
    """Of words that stand alone, the experiment's file, if one is among them, and the patches."""
    files = [word for word in words if word.endswith((".yaml", ".yml"))]
    if len(files) > 1:
        raise SpecError(f"{', '.join(files)}: one experiment at a time")
    return (Path(files[0]) if files else None), tuple(word for word in words if word not in files)


def template(name: str) -> Path:
    """The file of one of the repository's own experiments. Raises SpecError."""
    if (file := EXPERIMENTS / f"{name}.yaml").is_file():
        return file
    known = ", ".join(sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
    raise SpecError(f"--experiment: there is no `{name}`", f"there are {known}; a file is given without it")


def derive(
    request: ExperimentRequest, words: Words, cache: Path, note: Callable[[str], None]
) -> ExperimentRequest:
    """The request for an experiment that is the file's but for what the words say.

    Where patches do not apply to its kernel, that of another kernel line is taken to which they do. Raises
    SpecError, HostError.
    """
    derived = changed(request, words, cache, note)
    if words.patches and request.line is None and not (words.tree or words.kernels):
        return _where_it_applies(derived, cache, note)
    return derived


def changed(
    request: ExperimentRequest,
    words: Words,
    cache: Path,
    note: Callable[[str], None] = source.silent,
) -> ExperimentRequest:
    """The same, without a look at whether patches apply. Raises SpecError, HostError.

    What is wrong with the words themselves is found before anything is fetched.
    """
    _refuse_twice(words)
    data = read(request.file)
    trees = [Path(word).expanduser() for word in words.kernels]
    named_tree = next((path for path in trees if path.is_dir()), None)
    repository = words.tree or named_tree or _own_repository(data, request.file)
    patches = tuple(each for word in words.patches for each in given.patches(word, cache, repository))
    made = _Derivation(data, words, patches, cache, note)
    named = (Path(word).expanduser() for word in (words.tree or "", *words.kernels) if word)
    places = (*(each.origin for each in patches if each.origin), *named)
    return replace(
        request,
        changes=made.changes(),
        origin=next((path for path in places if path.exists()), None),
        asked=made.asked(),
    )


def _refuse_twice(words: Words) -> None:
    """Raise SpecError where the same is said twice, before anything is asked of anybody."""
    settings = (values.split(",") for _, _, values in (word.partition("=") for word in words.sysctl))
    options = (values.split(",") for _, _, values in (word.partition("=") for word in words.options))
    for group in (words.kernels, words.sysctl, words.arguments, words.options, *settings, *options):
        word, times = Counter(group).most_common(1)[0] if group else ("", 0)
        if times > 1:
            raise _itself(word)
    word, times = Counter(words.patches).most_common(1)[0] if words.patches else ("", 0)
    if times > 1:
        raise SpecError(f"{word}: is named twice", "a patch can be applied once")


def _itself(name: str) -> SpecError:
    return SpecError(f"{name}: is to be compared with itself", "name each kernel and each value once")


def _own_repository(data: Data, file: Path) -> Path | None:
    """The tree or repository that a template's kernel is from, if it is here."""
    kernel = data.get("kernel")
    git = kernel.get("git") if _has(kernel) else None
    where = git.get("repository") if _has(git) else kernel.get("tree") if _has(kernel) else None
    path = (file.parent / Path(where).expanduser()) if isinstance(where, str) else None
    return path.resolve() if path is not None and path.is_dir() else None


def _where_it_applies(
    request: ExperimentRequest, cache: Path, note: Callable[[str], None]
) -> ExperimentRequest:
    """The same on the first kernel line to which its patches apply, its own before any other."""
    spec = request.first().kernel
    if spec.debian is None:
        return request
    others = [line.source for line in series.lines() if line.source != spec.debian]
    misfits: list[Misfit] = []
    absent: list[HostError] = []
    for package in (spec.debian, *others):
        kernel = {"debian": package, "config": spec.config}
        there = replace(request, changes={**request.changes, "kernel": kernel})
        try:
            with there.named():
                prepare.plans(there.first(), cache, note)
        except Misfit as misfit:
            misfits.append(misfit)
        except HostError as lacking:
            note(f"not looked at: {package}: {lacking.message}")
            absent.append(lacking)
        else:
            if misfits:
                note(f"the patches apply to {package}, and not to {spec.debian}")
            return there
    if not misfits:
        raise absent[0]
    nor = f"nor does it fit {', '.join(others)}; --kernel or --tree name another"
    misfits[0].hint = "\n  ".join(filter(None, [misfits[0].hint, nor]))
    raise misfits[0]


@dataclass(frozen=True)
class _Derivation:
    """How a template's arms become others."""

    data: Data
    words: Words
    patches: Sequence[Given]
    cache: Path
    note: Callable[[str], None]

    def changes(self) -> dict[str, object]:
        """The keys that are other than the template's."""
        arms = self.data.get("arms")
        if not isinstance(arms, dict) or not arms:
            raise SpecError("--experiment: has no arms to begin with")
        first = next(iter(arms.values())) or {}
        axes, sources = list(self._axes()), list(self._sources())
        if len(sources) == 1 and not (axes or self.words.patches):
            return self._changes(arms, sources)
        if len(sources) < 2 and not self.words.patches:
            return self._changes(_distinct(_combined(first, axes)), sources)
        # Beside other arms, what is set is set in all of them.
        matrix = dict(axis.of_a_matrix() for axis in axes if len(axis.values) > 1)
        base = _merged(first, *(axis.delta(axis.values[0]) for axis in axes if len(axis.values) == 1))
        if len(sources) > 1:
            arms = ((name, self._patched(_merged(base, {"kernel": spec}))) for name, spec in sources)
            return self._changes(_distinct(arms), [], matrix)
        return self._changes({BEFORE: base, AFTER: self._patched(base)}, sources, matrix)

    def _patched(self, arm: Data) -> dict[str, object]:
        return _merged(arm, {"patches": [patch.entry for patch in self.patches]})

    def _changes(
        self,
        arms: Data,
        sources: Sequence[tuple[str, Data]],
        matrix: Data = MappingProxyType({}),
    ) -> dict[str, object]:
        changes: dict[str, object] = {"arms": arms, "name": self._name(), "description": self._description()}
        kernel, axes = self.data.get("kernel"), self.data.get("matrix")
        if sources:
            config = {key: value for key, value in kernel.items() if key == "config"} if _has(kernel) else {}
            changes |= {"kernel": {**sources[0][1], **config}}
        if matrix:
            changes |= {"matrix": {**(axes if _has(axes) else {}), **matrix}}
        return changes

    def _name(self) -> str:
        words = self.words
        parts = [
            *given.name(self.patches),
            *([words.tree.resolve().name] if words.tree else []),
            *filter(None, [words.base, words.head]),
            *map(_called, words.kernels),
            *words.sysctl,
            *words.arguments,
            *(option.removeprefix("CONFIG_") for option in words.options),
        ]
        return slug("-".join([str(self.data.get("name", "")), *parts]))

    def _description(self) -> str:
        return f"{self.data.get('name')}, with {_typed(self.words, self.words.patches)}"

    def asked(self) -> str:
        """The words as they mean the same from anywhere: another question has others."""
        words = self.words
        tree = words.tree.resolve() if words.tree else None
        kernels = tuple(map(_from_anywhere, words.kernels))
        entries = [patch.entry if patch.origin else patch.name for patch in self.patches]
        return _typed(replace(words, tree=tree, kernels=kernels), entries)

    # --- kernels -----------------------------------------------------------------------------------

    def _sources(self) -> Iterator[tuple[str, Data]]:
        """Name and source of every kernel that is named: one, or as many as there are to be arms."""
        words = self.words
        if words.kernels:
            if words.base or words.head:
                raise SpecError("--kernel: and --base or --head both say what to compare")
            for kernel in words.kernels:
                yield slug(_called(kernel)), self._kernel(kernel)
        elif words.tree is None:
            if words.base or words.head:
                raise SpecError("--base, --head: are revisions of a tree; name it by --tree DIR")
        elif words.base is None and words.head is None:
            yield "tree", {"tree": str(words.tree.resolve())}
        else:
            yield from self._revisions(words.tree)

    def _revisions(self, tree: Path) -> Iterator[tuple[str, Data]]:
        git_dir = _repository(tree)
        # As a hash: the experiment is kept, and HEAD moves on.
        head = self.words.head or source.parse(git_dir, "HEAD^{commit}") or "HEAD"
        base = self.words.base
        if base is None:
            raise SpecError("--base: is missing: what is --head to be compared with?")
        if self.words.head is None:
            # What came to the base since is no part of the change.
            fork = source.git(git_dir, "merge-base", "--end-of-options", base, head, check=False)
            if fork.returncode:
                raise SpecError(f"--base: {tree} has no `{base}` that HEAD has anything in common with")
            base = fork.stdout.decode().strip()
        yield "base", _revision(tree, base)
        if self.words.head is None and _is_dirty(tree, git_dir):
            yield "head", {"tree": str(tree.resolve())}
        else:
            yield "head", _revision(tree, head)

    def _kernel(self, word: str) -> Data:
        """The source that a word stands for. Raises SpecError."""
        if self.words.tree and source.parse(_repository(self.words.tree), f"{word}^{{commit}}"):
            return _revision(self.words.tree, word)
        if (path := Path(word).expanduser()).is_dir():
            return {"tree": str(path.resolve())}
        if path.is_file():
            return {"tarball": {"url": str(path.resolve()), "sha256": sha256(path)}}
        if word.startswith("linux-source-"):
            return {"debian": word}
        if match := _VERSION.fullmatch(word):
            package = f"linux-source-{match[1]}"
            return {"debian": package if word == match[1] else f"{package}={self._package(package, word)}"}
        raise SpecError(
            f"--kernel: {word}: no version, package linux-source-X.Y[=VERSION], tree or tarball",
            "revisions of a repository need --tree DIR beside them",
        )

    def _package(self, package: str, version: str) -> str:
        """The newest package of a version of Linux, as in 6.1.176."""
        there = self._versions.get(package, [])
        fitting = [each for each in there if each == version or each.startswith(f"{version}-")]
        if not fitting:
            known = ", ".join(there[:8]) or "none"
            raise SpecError(f"--kernel: Debian has no {package} of version {version}", f"it has {known}")
        return fitting[0]

    @functools.cached_property
    def _versions(self) -> dict[str, list[str]]:
        """The versions that the mirror has of all packages that are asked for. It is asked once."""
        asked = (_VERSION.fullmatch(word) for word in self.words.kernels)
        packages = sorted({f"linux-source-{match[1]}" for match in asked if match})
        self.note("asking the mirror for its versions")
        return debian.versions(packages, self.cache, self.note)

    def _axes(self) -> Iterator[_Axis]:
        """What is set, an axis an option."""
        for word in self.words.sysctl:
            name, values = _pair("--sysctl", word)
            yield _Axis("sysctl", name, tuple(map(_number, values.split(","))))
        for word in self.words.arguments:
            yield _Axis("command_line", "", (word,))
        for word in self.words.options:
            name, values = _pair("--config", word)
            yield _Axis("config", name, tuple(values.split(",")))


@dataclass(frozen=True)
class _Axis:
    """A key of an arm that has settings, which of them, and its values."""

    key: str
    name: str
    values: tuple[int | str, ...]

    def delta(self, value: int | str) -> Data:
        """What an arm has for one of the values."""
        match self.key:
            case "sysctl":
                return {self.key: {self.name: value}}
            case "config":
                return {self.key: [f"{self.name}={value}"]}
        return {self.key: [value]}

    def label(self, value: int | str) -> str:
        """The same as part of an arm's name."""
        return "-".join(filter(None, [self.name.rpartition(".")[2].removeprefix("CONFIG_"), str(value)]))

    def of_a_matrix(self) -> tuple[str, list[int | str]]:
        """It as an axis of a matrix. Raises SpecError for what only arms can have."""
        if self.key != "sysctl":
            raise SpecError(f"{self.name}: several values make arms of their own; give one beside other arms")
        return f"guest.sysctl.{self.name}", list(self.values)


def _combined(first: Data, axes: Sequence[_Axis]) -> Iterator[tuple[str, Data]]:
    """An arm for every combination of settings; of one alone, beside the arm without it."""
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    if len(combinations) == 1:
        yield "default", first
    for values in combinations:
        pairs = list(zip(axes, values, strict=True))
        name = slug("-".join(axis.label(value) for axis, value in pairs) or "default")
        yield name, _merged(first, *(axis.delta(value) for axis, value in pairs))


def _distinct(arms: Iterable[tuple[str, Data]]) -> dict[str, Data]:
    """Arms by name. What differs in its directory only, as trees often do, gets a number.

    Raises SpecError where the same is said twice: an arm is not compared with itself.
    """
    named: dict[str, Data] = {}
    for name, arm in arms:
        if arm in named.values():
            raise _itself(name)
        numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        named[next(f"{name}{number}" for number in numbers if f"{name}{number}" not in named)] = arm
    return named


def _has(data: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(data, dict)


def _called(kernel: str) -> str:
    """What a kernel is called after: a path by its last part."""
    path = Path(kernel).expanduser()
    return path.resolve().name if path.exists() else path.name


def _from_anywhere(kernel: str) -> str:
    path = Path(kernel).expanduser()
    return str(path.resolve()) if path.exists() else kernel


def _typed(words: Words, patches: Sequence[str]) -> str:
    """Words as they are typed, in one line."""
    told = {
        "": patches,
        "--tree": (str(words.tree),) if words.tree else (),
        "--base": (words.base,) if words.base else (),
        "--head": (words.head,) if words.head else (),
        "--kernel": words.kernels,
        "--sysctl": words.sysctl,
        "--command-line": words.arguments,
        "--config": words.options,
    }
    return " ".join(f"{option} {word}".strip() for option, values in told.items() for word in values)


def _merged(arm: Data, *deltas: Data) -> dict[str, object]:
    """An arm with more: what is a list or mapping is added to, all else replaced."""
    merged = dict(arm)
    for key, value in itertools.chain.from_iterable(delta.items() for delta in deltas):
        old = merged.get(key)
        if isinstance(value, list):
            merged[key] = [*(old if isinstance(old, list) else []), *value]
        elif isinstance(value, dict) and isinstance(old, dict) and key != "kernel":
            merged[key] = {**old, **value}
        else:
            merged[key] = value
    return merged


def _pair(option: str, word: str) -> tuple[str, str]:
    name, equals, values = word.partition("=")
    if not (name and equals and values):
        raise SpecError(f"{option}: {word}: write NAME=VALUE, or NAME=VALUE,VALUE for an arm each")
    return name, values


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else text


def _repository(tree: Path) -> Path:
    try:
        return source.local(tree)
    except SpecError as none:
        raise SpecError(f"--tree: {none.message}", none.hint) from none


def _revision(tree: Path, revision: str) -> Data:
    return {"git": {"repository": str(tree.resolve()), "revision": revision}}


def _is_dirty(tree: Path, git_dir: Path) -> bool:
    """Whether there is more in a tree than in its HEAD; never so of a bare repository."""
    if git_dir == tree:
        return False
    words = (f"--work-tree={tree.resolve()}", "status", "--porcelain")
    return bool(source.git(git_dir.resolve(), *words, cwd=tree).stdout.strip())
