# SPDX-License-Identifier: GPL-2.0-only
"""The history to try a bisection on, made of a tree with nothing in it but what it changes."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testbed.kernel import commits
from testbed.kernel.source import Unpacked
from tests.unit.recorded import REPOSITORY

MADE = runpy.run_path(str(REPOSITORY / "experiments/bisect-history.py"), run_name="bisect_history")


def git(top: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", top, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("pristine")
    texts = {"Makefile": "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 192\n", "lib/sort.c": "", "lib/other.c": ""}
    wanted = [
        MADE["NULL"],
        MADE["NO_BUILD"],
        MADE["NO_BOOT"],
        *(e for _, es in MADE["PLANTS"].values() for e in es),
    ]
    for path, old, _ in wanted:
        texts[path] = texts.get(path, "") + f"{old}\n/* what is between */\n"
    for path in (*MADE["INSIDE"], *MADE["OUTSIDE"], "Documentation/mm/page_reclaim.rst"):
        texts.setdefault(path, "")
    for path, text in texts.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    return top


def grown(pristine: Path, directory: Path, plant: str, scratch: Path) -> dict[str, str]:
    source = Unpacked("sha256:0", "sha256:0", "a tree", pristine)
    scratch.mkdir()
    repository: Any = MADE["Repository"](directory, source, scratch)
    tags: dict[str, str] = MADE["grow"](repository, plant, 43, 64)
    return tags


def test_a_history_has_what_real_ones_have(pristine: Path, tmp_path: Path) -> None:
    top = tmp_path / "history.git"
    tags = grown(pristine, top, "watermark", tmp_path / "scratch")
    assert set(tags) == {"good", "bad", "culprit", "no-build", "no-boot"}
    found = commits.between(top, tags["good"], tags["bad"])
    assert len(found.changes) >= 60
    kinds = [change.kind(()) for change in found.changes]
    assert kinds.count("merge") == 1 and kinds.count("mm") >= 20 and kinds.count("not compiled") >= 5

    changed = git(top, "show", "--format=", tags["culprit"]).splitlines()
    lines = [line for line in changed if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert lines == ["-\t\t\tmark = high_wmark_pages(zone);", "+\t\t\tmark = min_wmark_pages(zone);"]
    # Both that are broken are put right by the next.
    for name, path in (("no-build", "mm/mmzone.c"), ("no-boot", "init/main.c")):
        first, last = (git(top, "rev-parse", f"{tags[end]}:{path}") for end in ("good", "bad"))
        assert first == last != git(top, "rev-parse", f"{tags[name]}:{path}")
    # What is harmless only adds, at the end of a file.
    for change in found.changes:
        if change.subject.startswith(("a comment", "mm: say", "mm: a helper")):
            stat = git(top, "show", "--format=", "--numstat", change.id).split()
            assert stat[1] == "0"


def test_the_same_words_make_the_same_hashes(pristine: Path, tmp_path: Path) -> None:
    one, two = (
        grown(pristine, tmp_path / f"{n}.git", plant, tmp_path / f"scratch-{n}")
        for n, plant in enumerate(("none", "drain"))
    )
    assert one["good"] == two["good"] and one["no-build"] == two["no-build"]
    assert "culprit" not in one and one["bad"] != two["bad"]


def test_the_directory_may_be_relative(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tags = grown(pristine, Path("history.git"), "watermark", tmp_path / "scratch")
    assert git(tmp_path / "history.git", "rev-parse", f"{tags['culprit']}^{{commit}}") == tags["culprit"]
