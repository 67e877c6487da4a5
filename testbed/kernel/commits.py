# SPDX-License-Identifier: GPL-2.0-only
"""The commits between two revisions of a local git repository, which is only ever read."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.host.errors import SpecError
from testbed.kernel import source
from testbed.kernel.source import git, parse

# What git is asked for of a commit, after a byte that no subject has.
_FORMAT = "--format=%x01%H%x00%P%x00%s"
_PLAIN = ("-c", "--name-only", "--no-renames", "--no-show-signature", "--no-color")
# Files that no kernel is made of, where it is not known which are.
_ASIDE = re.compile(r"(Documentation|LICENSES|tools|samples)/|arch/(?!x86/)|(.*/)?\.|[A-Z]+$")
# Files that say what is compiled, and how.
_KBUILD = re.compile(r"(.*/)?(Kconfig|Makefile|Kbuild)[^/]*$")
_MM = re.compile(
    r"mm/|include/(linux|trace/events)/(mm|vmscan|vmstat|swap|memcontrol|page|gfp|shrinker)[^/]*$"
)

# How much likelier one commit is to be the culprit than another that changes compiled files outside mm/.
WEIGHTS = {"mm": 15.0, "compiled": 1.0, "merge": 0.1, "not compiled": 0.02}


@dataclass(frozen=True)
class Change:
    """A commit. `links` are the parents that git gives it among the others, `parents` all it has; `files` are
    what it changes, a merge what is in none of its parents."""

    id: str
    links: tuple[str, ...]
    parents: tuple[str, ...]
    subject: str
    files: tuple[str, ...]

    def kind(self, compiled: Collection[str]) -> str:
        """A key of WEIGHTS: what it changes of the `compiled` files; empty if it is not known which are."""
        if len(self.parents) > 1 and not self.files:
            return "merge"
        touched = [
            file
            for file in self.files
            if _KBUILD.match(file) or (file in compiled if compiled else may_be_compiled(file))
        ]
        if not touched:
            return "not compiled"
        return "mm" if any(_MM.match(file) for file in touched) else "compiled"


def may_be_compiled(file: str) -> bool:
    """Whether a kernel may be made of a file, as far as its name tells."""
    return bool(_KBUILD.match(file)) or not _ASIDE.match(file)


@dataclass(frozen=True)
class Range:
    """Everything in the history of `bad` that is not in that of `good`, parents first; hashes."""

    good: str
    bad: str
    changes: tuple[Change, ...]


def between(repository: Path, good: str, bad: str, paths: Sequence[str] = ()) -> Range:
    """The commits between two revisions, if need be only those that git gives for some paths.

    Raises SpecError when a revision is none, when `good` is not in the history of `bad`, or when there is
    nothing between them.
    """
    git_dir = source.local(repository)
    ends = []
    for option, revision in (("--good", good), ("--bad", bad)):
        commit = parse(git_dir, f"{revision}^{{commit}}")
        if commit is None:
            raise SpecError(f"{option}: {repository} has no commit `{revision}`")
        ends.append(commit)
    first, last = ends
    if git(git_dir, "merge-base", "--is-ancestor", first, last, check=False).returncode != 0:
        base = git(git_dir, "merge-base", first, last, check=False).stdout.decode().strip()
        raise SpecError(
            f"--good: `{good}` is not in the history of `{bad}`",
            f"where they part is {base[:12]}; is that good?" if base else "they have nothing in common",
        )
    span = ["--topo-order", "--reverse", last, f"^{first}"]
    limits = ["--", *paths]
    links = dict(_with_parents(git_dir, [*span, *limits]))
    log = git(git_dir, "log", *_PLAIN, _FORMAT, *span, "--").stdout
    changes = [
        Change(commit, tuple(p for p in links[commit] if p in links), parents, subject, files)
        for commit, parents, subject, files in map(_entry, log.decode(errors="replace").split("\x01")[1:])
        if commit in links
    ]
    if not changes:
        raise SpecError(f"there are no commits between `{good}` and `{bad}`" + (" there" if paths else ""))
    order = {commit: place for place, commit in enumerate(links)}
    return Range(first, last, tuple(sorted(changes, key=lambda change: order[change.id])))


def _with_parents(git_dir: Path, words: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    listing = git(git_dir, "rev-list", "--parents", *words).stdout.decode()
    return [(words[0], tuple(words[1:])) for words in map(str.split, listing.splitlines())]


def _entry(text: str) -> tuple[str, tuple[str, ...], str, tuple[str, ...]]:
    commit, parents, rest = text.split("\x00", 2)
    subject, *files = rest.splitlines()
    return commit, tuple(parents.split()), subject, tuple(filter(None, files))


def symbols(repository: Path, revision: str) -> frozenset[str]:
    """The names of all options that the Kconfig files of a revision have, with CONFIG_ before them."""
    pattern = r"^[[:space:]]*(menu)?config[[:space:]]+[A-Za-z0-9_]+"
    words = ("grep", "-hE", "-e", pattern, revision, "--", "*Kconfig*")
    found = git(source.local(repository), *words, check=False).stdout.decode(errors="replace")
    return frozenset(f"CONFIG_{line.split()[1]}" for line in found.splitlines())
