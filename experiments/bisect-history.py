#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes a git repository with a regression in its history, for `testbed bisect` to find.

    .venv/bin/python experiments/bisect-history.py DIRECTORY [--plant NAME] [--at N] [--commits N]

The repository is bare. `good` is Linux 6.1 as Debian has it; on top of it are harmless commits inside mm/ and
outside it, comments, documentation, a merge, one that does not build and one that does not boot (both are put
right by the next), and one regression, tagged `culprit`. The same words make the same hashes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from testbed.experiment import KernelSpec
from testbed.host.errors import SpecError, TestbedError
from testbed.host.paths import cache_directory
from testbed.kernel import source
from testbed.kernel.source import Unpacked

VMSCAN, PAGE_ALLOC, MAIN = "mm/vmscan.c", "mm/page_alloc.c", "init/main.c"
WHO = "testbed <testbed@localhost>"
# What is harmless goes to these, by turns.
INSIDE = ("mm/swap.c", "mm/memory.c", "mm/vmscan.c", "mm/rmap.c", "mm/page_alloc.c", "mm/workingset.c")
OUTSIDE = ("lib/string.c", "kernel/fork.c", "fs/read_write.c", "kernel/sched/core.c", "lib/list_sort.c")

# Path, what to look for, what to put in its place.
Edit = tuple[str, str, str]
# Name -> subject and edits.
PLANTS: dict[str, tuple[str, list[Edit]]] = {
    # Misses after the drain go up.
    "drain": (
        "mm: leave per-cpu lists alone after direct reclaim",
        [
            (
                PAGE_ALLOC,
                "unreserve_highatomic_pageblock(ac, false);\n\t\tdrain_all_pages(NULL);\n",
                "unreserve_highatomic_pageblock(ac, false);\n",
            )
        ],
    ),
    # The longest stalls get longer, and there are fewer.
    "batch": (
        "mm: reclaim more at a time",
        [
            (
                VMSCAN,
                "\t\t.nr_to_reclaim = SWAP_CLUSTER_MAX,\n\t\t.gfp_mask = current_gfp_context(gfp_mask),\n"
                "\t\t.reclaim_idx = gfp_zone(gfp_mask),\n\t\t.order = order,\n",
                "\t\t.nr_to_reclaim = SWAP_CLUSTER_MAX * 16,\n"
                "\t\t.gfp_mask = current_gfp_context(gfp_mask),\n"
                "\t\t.reclaim_idx = gfp_zone(gfp_mask),\n\t\t.order = order,\n",
            )
        ],
    ),
    # Misses before the drain go up; with constant pressure, allocation stalls do not.
    "watermark": (
        "mm: let kswapd sleep earlier",
        [
            (
                VMSCAN,
                "\t\t\tmark = high_wmark_pages(zone);\n\t\tif (zone_watermark_ok_safe",
                "\t\t\tmark = min_wmark_pages(zone);\n\t\tif (zone_watermark_ok_safe",
            )
        ],
    ),
    # Time throttled goes up.
    "throttle": (
        "mm: wait longer for progress",
        [
            (
                VMSCAN,
                "\t\ttimeout = 1;\n\n\t\tbreak;\n\tcase VMSCAN_THROTTLE_ISOLATED",
                "\t\ttimeout = HZ / 4;\n\n\t\tbreak;\n\tcase VMSCAN_THROTTLE_ISOLATED",
            )
        ],
    ),
    # Refaults go up.
    "activate": (
        "mm: reclaim referenced folios",
        [(VMSCAN, "return FOLIOREF_ACTIVATE;", "return FOLIOREF_RECLAIM;")],
    ),
}
# The order of a list of pages that are all freed together: nobody is to blame for that.
NULL: Edit = (VMSCAN, "list_add(&folio->lru, &free_folios);", "list_add_tail(&folio->lru, &free_folios);")
NO_BUILD: Edit = (
    "mm/mmzone.c",
    "struct pglist_data *first_online_pgdat(void)\n{\n",
    "struct pglist_data *first_online_pgdat(void)\n{\n\treturn nothing;\n",
)
NO_BOOT: Edit = (
    MAIN,
    # Once there is a console to say so on.
    "\n\tkernel_init_freeable();\n",
    '\n\tkernel_init_freeable();\n\tpanic("this one does not boot");\n',
)

Files = dict[str, str]


class Repository:
    """A bare repository that grows commits from a pristine tree, without a working tree of its own."""

    def __init__(self, directory: Path, pristine: Unpacked, scratch: Path) -> None:
        # git runs in the pristine tree, where a relative path would mean something else.
        self.git_dir, self.pristine = directory.absolute(), pristine
        self.env = {"GIT_INDEX_FILE": str(scratch / "index")}
        self.time = 1_700_000_000
        self.git("init", "--quiet", "--bare", "--initial-branch=main")

    def git(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        done = source.git(self.git_dir, *words, env={**self.env, **(env or {})})
        return done.stdout.decode().strip()

    def base(self) -> str:
        """The commit of the pristine tree."""
        tree = f"--work-tree={self.pristine.directory}"
        source.git(self.git_dir, tree, "add", "--all", "--force", cwd=self.pristine.directory, env=self.env)
        return self._commit(f"Linux {self.pristine.version}", ())

    def commit(self, subject: str, parents: Sequence[str], files: Files) -> str:
        """A commit of the pristine tree with these files changed."""
        self.git("read-tree", parents[0])
        with tempfile.TemporaryDirectory(prefix="testbed-") as name:
            for path, text in files.items():
                (Path(name) / "blob").write_text(text)
                blob = self.git("hash-object", "-w", "--", str(Path(name) / "blob"))
                self.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
        return self._commit(subject, parents)

    def _commit(self, subject: str, parents: Sequence[str]) -> str:
        self.time += 60
        name, _, mail = WHO.partition(" <")
        who: dict[str, str] = {}
        for role in ("AUTHOR", "COMMITTER"):
            who |= {f"GIT_{role}_NAME": name, f"GIT_{role}_EMAIL": mail.rstrip(">")}
            who[f"GIT_{role}_DATE"] = f"{self.time} +0000"
        words = [word for parent in parents for word in ("-p", parent)]
        return self.git("commit-tree", self.git("write-tree"), "-m", subject, *words, env=who)

    def read(self, path: str) -> str:
        data = self.pristine.read(path)
        if data is None:
            raise SpecError(f"{self.pristine.label} has no {path}")
        return data.decode()


class Branch:
    """A line of commits, and what its files have become."""

    def __init__(self, repository: Repository, tip: str, files: Files) -> None:
        self.repository, self.tip, self.files = repository, tip, dict(files)

    def add(self, subject: str, change: Callable[[Branch], Files]) -> str:
        files = change(self)
        self.files |= files
        self.tip = self.repository.commit(subject, [self.tip], files)
        return self.tip

    def text(self, path: str) -> str:
        return self.files.get(path) or self.repository.read(path)


def edits(*wanted: Edit) -> Callable[[Branch], Files]:
    """Replace text that has to be there."""

    def change(branch: Branch) -> Files:
        files: Files = {}
        for path, old, new in wanted:
            text = files.get(path) or branch.text(path)
            if old not in text:
                raise SpecError(f"{path}: this kernel has no `{old.strip().splitlines()[0]}`")
            files[path] = text.replace(old, new)
        return files

    return change


def undone(edit: Edit) -> Edit:
    return edit[0], edit[2], edit[1]


def appended(path: str, text: str) -> Callable[[Branch], Files]:
    """Add to the end of a file: no line of it moves, so that of a comment no kernel knows."""
    return lambda branch: {path: branch.text(path) + text}


def harmless(branch: Branch, n: int) -> None:
    """One of six kinds of commits that change nothing that is measured."""
    inside, outside = INSIDE[n // 6 % len(INSIDE)], OUTSIDE[n // 6 % len(OUTSIDE)]
    unused = f"\nstatic noinline __used int bisect_history_{n}(int x)\n{{\n\treturn x + {n};\n}}\n"
    subject, path, text = (
        ("mm: a helper for later", inside, unused),
        ("a helper for later", outside, unused),
        ("mm: say what this is for", inside, f"\n/* Change {n} of this history is a comment. */\n"),
        ("Documentation: a word on reclaim", "Documentation/mm/page_reclaim.rst", f"\nChange {n}.\n"),
        ("a comment", outside, f"\n/* Change {n} of this history is a comment. */\n"),
        ("mm: another helper", INSIDE[(n // 6 + 3) % len(INSIDE)], unused),
    )[n % 6]
    branch.add(f"{subject} ({n})", appended(path, text))


def grow(repository: Repository, plant: str, at: int, commits: int) -> dict[str, str]:
    """The whole history; name -> commit of what is tagged."""
    tags = {"good": repository.base()}
    main = Branch(repository, tags["good"], {})
    side: Branch | None = None
    n = 0
    while n < commits - 1:
        n += 1
        if n == at and plant in PLANTS:
            subject, wanted = PLANTS[plant]
            tags["culprit"] = main.add(subject, edits(*wanted))
        elif n == commits // 6:
            main.add("mm: free in the order in which they came", edits(NULL))
        elif n == commits // 4:
            # A branch of 5 to one side, which goes on beside what follows here.
            side = Branch(repository, main.tip, main.files)
            for _ in range(5):
                side.add(f"lib: on a branch ({n})", appended("lib/sort.c", f"\n/* On a branch: {n}. */\n"))
                n += 1
            harmless(main, n)
        elif side and n >= commits // 3:
            tree = {"lib/sort.c": side.files["lib/sort.c"]}
            main.tip = repository.commit("Merge branch 'lib'", [main.tip, side.tip], tree)
            main.files |= tree
            side = None
        elif n in (commits // 2, at + 2):
            wrong = NO_BUILD if n == commits // 2 else NO_BOOT
            tags["no-build" if wrong is NO_BUILD else "no-boot"] = main.add(
                "mm: tidy up" if wrong is NO_BUILD else "init: tidy up", edits(wrong)
            )
            n += 1
            main.add("fix what tidying up broke", edits(undone(wrong)))
        else:
            harmless(main, n)
    harmless(main, commits)
    tags["bad"] = main.tip
    return tags


def main(words: Sequence[str] | None = None) -> int:
    """Make the repository; print what is tagged."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--plant", choices=[*PLANTS, "none"], default="watermark")
    parser.add_argument("--at", type=int, default=43, help="its place; default: 43")
    parser.add_argument("--commits", type=int, default=64, help="about so many; default: 64")
    parser.add_argument("--source", default="linux-source-6.1", help="a Debian package")
    asked = parser.parse_args(words)
    if not asked.commits >= 60 or not asked.commits // 2 + 2 < asked.at < asked.commits - 6:
        parser.error("at least 60 commits, and the plant in the second half, 6 before the end")
    if asked.directory.exists():
        parser.error(f"{asked.directory} is there already")
    try:
        pristine = source.resolve(KernelSpec(debian=asked.source), cache_directory(), progress=_tell)
        assert isinstance(pristine, Unpacked)
        asked.directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="testbed-") as scratch:
            repository = Repository(asked.directory, pristine, Path(scratch))
            tags = grow(repository, asked.plant, asked.at, asked.commits)
            repository.git("update-ref", "refs/heads/main", tags["bad"])
            for name, commit in tags.items():
                repository.git("update-ref", f"refs/tags/{name}", commit)
    except TestbedError as failed:
        _tell(str(failed))
        return failed.exit_status
    for name, commit in tags.items():
        print(f"{name}\t{commit}")
    return 0


def _tell(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
