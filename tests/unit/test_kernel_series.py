# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import difflib
import gzip
import lzma
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.experiment import load as load_experiment
from testbed.host.errors import SpecError
from testbed.kernel import series
from tests.unit.recorded import REPOSITORY

OLD = "".join(f"line {n}\n" for n in range(1, 41))
NEW = OLD.replace("line 5\n", "line five\n").replace("line 30\n", "line thirty\n")
TREE = {"mm/vmscan.c": OLD.encode(), "mm/gone.c": b"int gone;\n"}


def diff(path: str, old: str, new: str) -> str:
    sides = [f"{side}/{path}" if text else "/dev/null" for side, text in (("a", old), ("b", new))]
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), sides[0], sides[1])
    return "".join(lines)


def load(tmp_path: Path, *texts: str) -> tuple[series.Patch, ...]:
    paths = [tmp_path / f"{number}.patch" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return series.load([str(path) for path in paths], "6.1.192")


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    (tmp_path / "lines.yaml").write_text(
        "lines:\n"
        '  - {directory: "6.1", source: s, from: "6.1", before: "6.2"}\n'
        '  - {directory: "6.9", source: s, from: "6.9", before: "6.11"}\n'
    )
    for name in ("6.1/0001-instrumentation", "6.1/0002-reclaim-capture", "6.9/0007-reclaim-capture"):
        path = tmp_path / f"{name}.patch"
        path.parent.mkdir(exist_ok=True)
        path.write_text(diff("mm/vmscan.c", OLD, NEW))
    return tmp_path


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ("6.1.192", "6.1/0002-reclaim-capture.patch"),
        ("6.1.0", "6.1/0002-reclaim-capture.patch"),
        ("6.10.3", "6.9/0007-reclaim-capture.patch"),
    ],
)
def test_the_version_of_the_kernel_chooses_the_line(patches: Path, version: str, file: str) -> None:
    (patch,) = series.load(["reclaim-capture"], version, patches)
    assert (patch.name, patch.path) == ("reclaim-capture", patches / file)
    assert patch.files == ("mm/vmscan.c",)


@pytest.mark.parametrize("name", ["instrumentation", "reclaim-capture"])
def test_every_line_of_the_repository_has_the_same_events_and_controls(name: str) -> None:
    """What is compared between kernels, and what turns it on, must not depend on the kernel."""
    interfaces = set()
    for version in ("6.1.192", "6.12.117", "7.2.13", "7.3.4"):
        (patch,) = series.load([name], version)
        added = "".join(
            line[1:] for line in patch.data.decode().splitlines(True) if line[:2] != "+++" and line[0] == "+"
        )
        events = re.findall(r'"((?:direct_reclaim|reclaim_capture)\w*)",', added)
        tracepoint = re.findall(r"^TRACE_EVENT.*?^\);", added, re.MULTILINE | re.DOTALL)
        table = re.findall(r"^= =+\n.*?^= =+\n", added, re.MULTILINE | re.DOTALL)
        # Reclaim has no large folios beside those of order 0 on 6.1.
        large = "reclaim_capture_reject_order"
        assert (large in events) == (name == "instrumentation" and version != "6.1.192")
        interfaces.add((*(event for event in events if event != large), *tracepoint, *table))
    assert len(interfaces) == 1
    assert len(interfaces.pop()) == {"instrumentation": 22, "reclaim-capture": 2}[name]


@pytest.mark.parametrize("version", ["6.2.0", "6.0.19", "6.11.0", "5.10.1"])
def test_a_version_outside_every_line_is_refused(patches: Path, version: str) -> None:
    with pytest.raises(SpecError, match=rf"`instrumentation`.*Linux {version}\n.*6\.1 \(from 6\.1.*6\.9 \("):
        series.load(["instrumentation"], version, patches)


def test_an_unknown_series_is_refused_with_the_nearest_name(patches: Path) -> None:
    with pytest.raises(SpecError, match=r"`instrumentatoin`.*6\.1\.5\n.*did you mean `instrumentation`"):
        series.load(["instrumentatoin"], "6.1.5", patches)
    with pytest.raises(SpecError, match=r"there are: reclaim-capture"):
        series.load(["x"], "6.9.1", patches)


def test_a_version_that_yaml_took_for_a_number_is_refused(patches: Path) -> None:
    (patches / "lines.yaml").write_text("lines: [{directory: '6.1', source: s, from: 6.1, before: 6.10}]\n")
    with pytest.raises(SpecError, match=r"lines\.yaml"):
        series.load(["instrumentation"], "6.1.5", patches)


def test_a_path_stands_for_itself_in_any_kernel(tmp_path: Path) -> None:
    path = tmp_path / "mine.patch"
    path.write_text(diff("mm/vmscan.c", OLD, NEW))
    (patch,) = series.load([str(path)], "2.6.32")
    assert (patch.path, patch.data) == (path, path.read_bytes())


def test_a_patch_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"gone\.patch: No such file"):
        series.load([str(tmp_path / "gone.patch")], "6.1.5")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero.patch", "is not a regular file"),
        ("pipe.patch", "is not a regular file"),
        ("memory.patch", "is not a regular file"),
        ("directory.patch", "there are no patches in it"),
        ("huge.patch", "is larger than 32 MiB"),
        ("bomb.patch", "cannot be unpacked: is larger than 32 MiB"),
        ("bomb.patch.xz", "cannot be unpacked: is larger than 32 MiB"),
    ],
)
def test_a_patch_is_a_regular_file_of_some_size(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "zero.patch").symlink_to("/dev/zero")
    (tmp_path / "memory.patch").symlink_to("/proc/self/mem")
    os.mkfifo(tmp_path / "pipe.patch")
    (tmp_path / "directory.patch").mkdir()
    with (tmp_path / "huge.patch").open("wb") as file:
        file.truncate((32 << 20) + 1)
    (tmp_path / "bomb.patch").write_bytes(gzip.compress(bytes(33 << 20), 1))
    (tmp_path / "bomb.patch.xz").write_bytes(lzma.compress(bytes(33 << 20), preset=0))
    with pytest.raises(SpecError, match=rf"{re.escape(name)}: {reason}"):
        series.load([str(tmp_path / name)], "6.1.5")


def test_the_table_of_the_repository_can_be_read() -> None:
    with pytest.raises(SpecError, match=r"no patches for Linux 2\.6\.32"):
        series.load(["instrumentation"], "2.6.32")


def test_a_series_changes_makes_and_deletes_files(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        diff("mm/vmscan.c", OLD, NEW) + diff("mm/deep/new.c", "", "int new;\n"),
        diff("mm/gone.c", "int gone;\n", ""),
    )
    assert series.apply(loaded, TREE.get) == {
        "mm/vmscan.c": NEW.encode(),
        "mm/deep/new.c": b"int new;\n",
        "mm/gone.c": None,
    }


def test_patches_build_on_one_another_and_may_cancel_out(tmp_path: Path) -> None:
    third = NEW.replace("line five", "line 5, again")
    loaded = load(tmp_path, diff("mm/vmscan.c", OLD, NEW), diff("mm/vmscan.c", NEW, third))
    assert series.apply(loaded, TREE.get) == {"mm/vmscan.c": third.encode()}
    loaded = load(tmp_path, diff("mm/vmscan.c", OLD, NEW), diff("mm/vmscan.c", NEW, OLD))
    assert series.apply(loaded, TREE.get) == {}


def test_git_patches_with_prose_and_signature_are_understood(tmp_path: Path) -> None:
    text = (
        "From 0123 Mon Sep 17 00:00:00 2001\nSubject: [PATCH] mm: it\n\nrename to something\n"
        "Binary files are good\n---\n mm/vmscan.c | 4 ++--\n\n"
        "diff --git a/mm/vmscan.c b/mm/vmscan.c\nindex 123..456 100644\n"
        + diff("mm/vmscan.c", OLD, NEW)
        + "diff --git a/mm/empty.c b/mm/empty.c\nnew file mode 100644\nindex 0000000..e69de29\n-- \n2.39.5\n"
    )
    loaded = load(tmp_path, text)
    assert dict(loaded[0].diffstat) == {"mm/vmscan.c": (2, 2), "mm/empty.c": (0, 0)}
    assert series.apply(loaded, TREE.get) == {"mm/vmscan.c": NEW.encode(), "mm/empty.c": b""}


def test_what_the_users_git_is_set_to_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor does it matter that there is a repository around, of which a patch would change nothing."""
    scratch = tmp_path / "repository" / "scratch"
    scratch.mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", scratch.parent], check=True)
    (tmp_path / "config").write_text("[apply]\nignoreWhitespace = change\nwhitespace = fix\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("TMPDIR", str(scratch))
    spaced = NEW.replace("line five", "line five  ")
    loaded = load(tmp_path, diff("mm/vmscan.c", OLD, spaced))
    assert series.apply(loaded, TREE.get) == {"mm/vmscan.c": spaced.encode()}
    with pytest.raises(SpecError, match=r"mm/vmscan\.c: hunk 1 of 2, at line 2\n"):
        series.apply(loaded, {"mm/vmscan.c": OLD.replace("line 4", "line  4").encode()}.get)


def test_a_file_may_be_changed_twice_by_one_patch(tmp_path: Path) -> None:
    third = NEW.replace("line five", "line 5, again")
    loaded = load(tmp_path, diff("mm/vmscan.c", OLD, NEW) + diff("mm/vmscan.c", NEW, third))
    assert dict(loaded[0].diffstat) == {"mm/vmscan.c": (3, 3)}
    assert series.apply(loaded, TREE.get) == {"mm/vmscan.c": third.encode()}


def test_lines_may_have_moved(tmp_path: Path) -> None:
    moved = {"mm/vmscan.c": ("// moved\n" * 7 + OLD).encode()}
    (result,) = series.apply(load(tmp_path, diff("mm/vmscan.c", OLD, NEW)), moved.get).values()
    assert result == ("// moved\n" * 7 + NEW).encode()


def test_context_that_differs_is_a_reject_naming_patch_file_and_line(tmp_path: Path) -> None:
    # One line of context at the edge of the second hunk: patch(1) by itself would let that pass.
    other = {"mm/vmscan.c": OLD.replace("line 27\n", "line 27, changed\n").encode()}
    loaded = load(tmp_path, diff("mm/vmscan.c", OLD, NEW))
    with pytest.raises(SpecError, match=r"0\.patch: does not apply: mm/vmscan\.c: hunk 2 of 2") as bad:
        series.apply(loaded, other.get)
    assert str(bad.value).splitlines()[1:] == [
        "  line 27: expected `line 27`, there is `line 27, changed`",
        "  with fuzz 1 it would (`git apply -C2`): see whether that is right, and make the patch "
        "anew from the result",
    ]


@pytest.mark.parametrize("text", [diff("mm/new.c", OLD, NEW), diff("mm/gone.c", "", "int other;\n")])
def test_a_file_that_should_or_should_not_be_there(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"(?s)0\.patch: does not apply: .*mm/(new|gone)\.c"):
        series.apply(load(tmp_path, text), TREE.get)


def test_a_patch_that_is_in_already_is_not_reverted(tmp_path: Path) -> None:
    loaded = load(tmp_path, *[diff("mm/vmscan.c", OLD, NEW)] * 2)
    with pytest.raises(
        series.Misfit, match=r"1\.patch: does not apply: it is in there already\n  leave it out$"
    ):
        series.apply(loaded, TREE.get)


def test_a_truncated_patch_is_refused(tmp_path: Path) -> None:
    text = diff("mm/vmscan.c", OLD, NEW)
    with pytest.raises(SpecError, match=r"0\.patch: not a patch that git can read: corrupt patch"):
        load(tmp_path, text[: text.rindex("+line thirty")])


def test_lines_of_a_hunk_that_look_like_a_header_are_not_one(tmp_path: Path) -> None:
    old = "-- a/etc/passwd\nkeep\n"
    new = "++ b/etc/passwd\nkeep\n"
    loaded = load(tmp_path, diff("mm/odd.txt", old, new))
    assert dict(loaded[0].diffstat) == {"mm/odd.txt": (1, 1)}
    assert series.apply(loaded, {"mm/odd.txt": old.encode()}.get) == {"mm/odd.txt": new.encode()}


@pytest.mark.parametrize(
    "text",
    [
        "--- a/../../etc/passwd\n+++ b/../../etc/passwd\n@@ -0,0 +1 @@\n+x\n",
        "--- /dev/null\n+++ b//etc/passwd\n@@ -0,0 +1 @@\n+x\n",
        "diff --git a/x b/x\nGIT binary patch\nliteral 0\n",
        "diff --git a/x b/x\nnew file mode 100644\nBinary files /dev/null and b/x differ\n",
        "diff --git a/x b/x\nold mode 100644\nnew mode 120000\n",
        "diff --git a/x b/x\nnew file mode 120000\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+/etc\n",
        "not a patch at all\n",
    ],
)
def test_what_is_not_a_change_of_files_inside_the_tree_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"0\.patch"):
        load(tmp_path, text)


# --- what a patch may be -------------------------------------------------------------------------


def test_a_rename_is_a_removal_and_an_addition(tmp_path: Path) -> None:
    """Two at once, since git names them the other way round when it turns a diff round."""
    text = (
        "diff --git a/mm/vmscan.c b/mm/scan.c\nsimilarity index 90%\nrename from mm/vmscan.c\n"
        "rename to mm/scan.c\n"
        + diff("mm/vmscan.c", OLD, NEW).replace("b/mm/vmscan.c", "b/mm/scan.c")
        + "diff --git a/mm/gone.c b/lib/gone.c\nsimilarity index 100%\nrename from mm/gone.c\n"
        "rename to lib/gone.c\n"
        "diff --git a/mm/gone.c b/lib/copy.c\nsimilarity index 100%\ncopy from mm/gone.c\n"
        "copy to lib/copy.c\n"
    )
    loaded = load(tmp_path, text)
    assert [(change.old, change.new) for change in loaded[0].changes] == [
        ("mm/vmscan.c", "mm/scan.c"),
        ("mm/gone.c", "lib/gone.c"),
        ("mm/gone.c", "lib/copy.c"),
    ]
    assert dict(loaded[0].diffstat) == {"mm/scan.c": (2, 2), "lib/gone.c": (0, 0), "lib/copy.c": (0, 0)}
    assert [len(change.hunks) for change in loaded[0].changes] == [2, 0, 0]
    assert series.apply(loaded, TREE.get) == {
        "mm/vmscan.c": None,
        "mm/scan.c": NEW.encode(),
        "mm/gone.c": None,
        "lib/gone.c": b"int gone;\n",
        "lib/copy.c": b"int gone;\n",
    }


@pytest.mark.parametrize(
    ("path", "compiled"),
    [("mm/vmscan.c", True), ("Documentation/mm/x.rst", False), ("Documentation/Makefile", True)],
)
def test_whether_anything_compiled_is_changed(tmp_path: Path, path: str, compiled: bool) -> None:
    (patch,) = load(tmp_path, diff(path, OLD, NEW))
    assert patch.compiled == compiled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "diff --git a/fw/x.bin b/fw/x.bin\nGIT binary patch\nliteral 0\n",
            "0.patch: fw/x.bin is binary, and only text files can be patched\n"
            "  make it without: git format-patch ... -- . ':!fw/x.bin'",
        ),
        (
            "diff --git a/l b/l\nindex 12..34 120000\n--- a/l\n+++ b/l\n@@ -1 +1 @@\n-x\n+y\n",
            "l is a symbolic link",
        ),
        ("--- a/../x\n+++ b/../x\n@@ -0,0 +1 @@\n+x\n", "`../x` is not inside the source"),
        ("", "0.patch: is empty\n"),
        ("<!DOCTYPE html>\n<pre>--- a/x</pre>\n", "0.patch: is a web page, not a patch\n"),
        ("Subject: Re: [PATCH] x\n\n> --- a/x\n> +++ b/x\n> @@ -1 +1 @@\nNo.\n", "it only quotes one\n"),
        ("From: a <b@c>\nSubject: x\n\nHello.\n", "is no patch: there is no diff in it\n"),
        (
            "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-int\nx;\n+y\n",
            "corrupt patch at `x;`\n  a hunk has other lines",
        ),
    ],
)
def test_what_can_never_work_has_a_remedy_of_its_own(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)) as bad:
        load(tmp_path, text)
    assert bad.value.hint and "--no-renames" not in str(bad.value)


# --- which -p ------------------------------------------------------------------------------------

KERNEL = {
    **TREE,
    **dict.fromkeys(("Makefile", "mm/Makefile", "mm/damon/Makefile"), OLD.encode()),
}


def headed(old: str, new: str, first: str = "") -> str:
    return f"{first}--- {old}\n+++ {new}\n" + diff("x", OLD, NEW).partition("+++ b/x\n")[2]


@pytest.mark.parametrize(
    ("text", "strip", "path"),
    [
        (headed("a/mm/vmscan.c", "b/mm/vmscan.c"), 1, "mm/vmscan.c"),
        (headed("a/mm/vmscan.c~swap-less", "b/mm/vmscan.c"), 1, "mm/vmscan.c"),
        (headed("a/mm/vmscan.c~swap-less", "a/mm/vmscan.c"), 1, "mm/vmscan.c"),
        (headed("linux-6.1.orig/mm/vmscan.c", "linux-6.1/mm/vmscan.c"), 1, "mm/vmscan.c"),
        (headed("linux/mm/vmscan.c.orig", "linux/mm/vmscan.c"), 1, "mm/vmscan.c"),
        (headed("mm/vmscan.c.orig", "mm/vmscan.c"), 0, "mm/vmscan.c"),
        (headed("mm/vmscan.c\t(revision 1)", "mm/vmscan.c\t(new)", "Index: mm/vmscan.c\n"), 0, "mm/vmscan.c"),
        (headed("../linux.orig/mm/vmscan.c", "../linux/mm/vmscan.c"), 2, "mm/vmscan.c"),
        (headed("/home/me/linux.orig/mm/vmscan.c", "/home/me/linux/mm/vmscan.c"), 4, "mm/vmscan.c"),
        (headed("Makefile.orig", "Makefile"), 0, "Makefile"),
        (headed("a/mm/Makefile", "b/mm/Makefile"), 1, "mm/Makefile"),
        (headed("mm/Makefile", "mm/Makefile", "diff --git mm/Makefile mm/Makefile\n"), 0, "mm/Makefile"),
        (headed("linux.orig/mm/damon/Makefile", "linux/mm/damon/Makefile"), 1, "mm/damon/Makefile"),
    ],
)  # fmt: skip
def test_the_p_of_a_diff(tmp_path: Path, text: str, strip: int, path: str) -> None:
    file = tmp_path / "x.diff"
    file.write_text(text)
    (patch,) = series.read(str(file), pristine=KERNEL.get)
    assert (patch.strip, patch.files) == (strip, (path,))
    assert series.apply([patch], KERNEL.get) == {path: NEW.encode()}


def test_between_two_p_that_both_fit_nobody_guesses(tmp_path: Path) -> None:
    text = headed("mm/Makefile.orig", "mm/Makefile")
    (tmp_path / "x.diff").write_text(text)
    with pytest.raises(
        SpecError, match=r"does it change Makefile \(-p1\) or mm/Makefile \(-p0\)\?\n.*`x\.diff -p1`"
    ):
        series.read(str(tmp_path / "x.diff"), pristine=KERNEL.get)
    (tmp_path / "series").write_text("x.diff -p0 # said\n")
    (patch,) = series.read(str(tmp_path), pristine=KERNEL.get)
    assert series.apply([patch], KERNEL.get) == {"mm/Makefile": NEW.encode()}


def test_a_file_that_an_earlier_patch_brings_is_there(tmp_path: Path) -> None:
    one = diff("mm/new.c", "", OLD)
    two = headed("mm/new.c.orig", "mm/new.c")
    for name, text in (("1.patch", one), ("2.patch", two)):
        (tmp_path / name).write_text(text)
    patches = series.read(str(tmp_path), pristine=KERNEL.get)
    assert [patch.strip for patch in patches] == [1, 0]
    assert series.apply(patches, KERNEL.get) == {"mm/new.c": NEW.encode()}


# --- what a word may be --------------------------------------------------------------------------


def test_a_series_of_quilt_has_its_own_order_and_options(tmp_path: Path) -> None:
    (tmp_path / "fixes").mkdir()
    (tmp_path / "fixes/z.patch").write_text(diff("mm/vmscan.c", OLD, NEW))
    (tmp_path / "a.diff").write_text(headed("mm/gone.c.orig", "mm/gone.c"))
    (tmp_path / "unused.patch").write_text("not even a patch")
    (tmp_path / "series").write_text("# ours\nfixes/z.patch\n\n  a.diff -p0  # old\n#unused.patch\n")
    for word in (tmp_path, tmp_path / "series"):
        patches = series.read(str(word))
        assert [(patch.path, patch.files, patch.strip) for patch in patches] == [
            (tmp_path / "fixes/z.patch", ("mm/vmscan.c",), 1),
            (tmp_path / "a.diff", ("mm/gone.c",), 0),
        ]
    (tmp_path / "series").write_text("a.diff -R\n")
    with pytest.raises(SpecError, match=r"series:1: `-R` is not understood"):
        series.read(str(tmp_path))


def test_of_a_directory_patches_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, to in (("0002-b.patch", "mm/b.c"), ("0001-a.patch", "mm/a.c"), (".hidden.patch", "h")):
        (tmp_path / name).write_text(diff(to, "", "x\n"))
    (tmp_path / "0000-cover-letter.patch").write_text(
        "From: a <b@c>\nSubject: [PATCH 0/2] x\n\n" + diff("x", "a\n", "b\n")
    )
    (tmp_path / "README").write_text("Patches.")
    patches = series.load([str(tmp_path)], "6.1.5")
    assert [patch.files for patch in patches] == [("mm/a.c",), ("mm/b.c",)]
    assert [patch.name for patch in patches] == [str(patch.path) for patch in patches]
    with pytest.raises(SpecError, match="a cover letter only"):
        series.read(str(tmp_path / "0000-cover-letter.patch"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"empty: there are no patches in it\n  they end in \.patch, "):
        series.read(str(tmp_path / "empty"))


def test_standard_input_has_a_name() -> None:
    (patch,) = series.read("-", diff("mm/vmscan.c", OLD, NEW).encode())
    assert (patch.name, patch.label, patch.files) == ("-", "-", ("mm/vmscan.c",))
    with pytest.raises(SpecError, match=r"^-: is empty"):
        series.read("-", b"")


def git(repository: Path, *words: str, stdin: bytes = b"") -> bytes:
    identity = ["-c", "user.name=A Developer", "-c", "user.email=dev@example.org"]
    return subprocess.run(
        ["git", "-C", repository, *identity, *words], input=stdin, check=True, capture_output=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits: a tree, `mm: one`, `mm: two`."""
    path = tmp_path / "linux"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=topic")
    git(path, "config", "format.attach", "yes")
    git(path, "config", "diff.noprefix", "true")
    third = NEW.replace("line five", "line 5, again")
    for subject, text in (("base", OLD), ("mm: one", NEW), ("mm: two", third)):
        (path / "a.c").write_text(text)
        git(path, "add", "--all")
        git(path, "commit", "--quiet", "-m", subject)
    git(path, "tag", "v6.1", "HEAD~2")
    return path


def test_a_range_of_commits(repository: Path) -> None:
    word = f"git:{repository}:v6.1..topic"
    patches = series.load([word], "6.1.5")
    assert [patch.name for patch in patches] == [f"{word} 1/2", f"{word} 2/2"]
    assert [patch.subject for patch in patches] == ["mm: one", "mm: two"]
    after = NEW.replace("line five", "line 5, again").encode()
    assert series.apply(patches, {"a.c": OLD.encode()}.get) == {"a.c": after}
    # A revision alone is that commit.
    assert [patch.subject for patch in series.read(f"git:{repository}:topic")] == ["mm: two"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("git:v6.1..topic", r"git:v6\.1\.\.topic: in which repository\?\n  git:DIR:v6"),
        ("git:{}:v6.1..tpoic", r"linux has no commit `tpoic`"),
        ("git:{}:topic..topic", r"there are no commits in it"),
        ("git:{}/a.c:topic", r"a\.c: not a git repository\n  .*clone it"),
        ("git:{}:v6.1..merged", r"has a merge, [0-9a-f]{12}, which is no patch\n  rebase it"),
    ],
)
def test_a_range_that_is_none(repository: Path, word: str, message: str) -> None:
    tree = git(repository, "rev-parse", "topic^{tree}").decode().strip()
    merge = git(repository, "commit-tree", "-p", "topic", "-p", "v6.1", "-m", "m", tree).decode().strip()
    git(repository, "branch", "merged", merge)
    with pytest.raises(SpecError, match=message):
        series.read(word.format(repository))


def test_a_range_that_is_in_already_is_compared_by_its_base(repository: Path) -> None:
    patches = series.load([f"git:{repository}:v6.1..topic"], "6.1.5")
    # The second has changed a line of the first, which cannot be taken back alone.
    read = {"a.c": (repository / "a.c").read_bytes()}.get
    with pytest.raises(
        series.Misfit,
        match=r"topic 1/2: does not apply: it is in there already\n"
        r"  `--tree \S*/linux --base v6\.1 --head topic` compares it with what was before$",
    ):
        series.apply(patches, read)
    with pytest.raises(series.Misfit, match=r"`--tree \S*/linux --base topic\^ --head topic` compares"):
        series.apply(series.read(f"git:{repository}:topic"), read)
    with pytest.raises(series.Misfit, match=r"`--tree \S*/linux --base v6\.1` compares"):
        series.apply(series.read(f"git:{repository}:v6.1.."), read)
    # Of one that is only in part, nothing of the kind is said.
    with pytest.raises(series.Misfit) as bad:
        series.apply(patches, {"a.c": OLD.replace("line 6", "line six").encode()}.get)
    assert "in there already" not in str(bad.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("reclaim-capture", None),
        ("reclaim-captur", r"no such file, and no series of patches/\n  did you mean `reclaim-capture`\?"),
        ("./gone.patch", r"gone\.patch: No such file or directory$"),
    ],
)
def test_what_is_wrong_in_any_source_is_known_without_one(patches: Path, word: str, said: str | None) -> None:
    if said is None:
        series.check(word, patches)
        return
    with pytest.raises(SpecError, match=said):
        series.check(word, patches)


# --- why one does not apply ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda text: text.replace("\n", "\r\n"), "all that differs are ends of lines (CRLF)"),
        (lambda text: text.replace("line 4\n", "line\t4\n"), "all that differs are tabs and spaces"),
        (lambda text: text.replace("line 3\n", "").replace("line 2\n", ""), "with fuzz 2 it would"),
        (lambda text: text.replace("line 5\n", "line V\n"), "not with fuzz, either"),
        (lambda text: "", "not with fuzz, either"),
    ],
)  # fmt: skip
def test_what_would_help_is_said(tmp_path: Path, change: Callable[[str], str], remedy: str) -> None:
    loaded = load(tmp_path, diff("mm/vmscan.c", OLD, NEW))
    with pytest.raises(series.Misfit) as bad:
        series.apply(loaded, {"mm/vmscan.c": change(OLD).encode()}.get)
    assert "line " in bad.value.hint and remedy in bad.value.hint.splitlines()[-1]


def test_a_new_file_that_is_in_already(tmp_path: Path) -> None:
    one = diff("mm/new.c", "", "int new;\n")
    with pytest.raises(series.Misfit, match=r"1\.patch: does not apply: it is in there already"):
        series.apply(load(tmp_path, one, one), TREE.get)
    with pytest.raises(series.Misfit, match=r"mm/gone\.c: already exists.*\n  is it made for another source"):
        series.apply(load(tmp_path, diff("mm/gone.c", "", "int new;\n")), TREE.get)


def test_a_diff_without_context_is_named(tmp_path: Path) -> None:
    text = "--- a/mm/vmscan.c\n+++ b/mm/vmscan.c\n@@ -6 +6 @@\n-line 5\n+line five\n"
    with pytest.raises(series.Misfit, match=r"it has too little context .*with -U3"):
        series.apply(load(tmp_path, text), TREE.get)


def test_where_the_hunk_was_meant_to_go_is_where_most_is_alike(tmp_path: Path) -> None:
    """Lines have moved, one of them has changed, and a brace or an empty line is alike anywhere."""
    old = "int f(void)\n{\n\tint x = 1;\n\n\treturn x;\n}\n"
    loaded = load(tmp_path, diff("a.c", old, old.replace("x = 1", "x = 2")))
    there = "\n{\n\n\n}\n" * 10 + old.replace("return x", "return 1 + x")
    with pytest.raises(series.Misfit, match=r"line 55: expected `return x;`, there is `return 1 [+] x;`"):
        series.apply(loaded, {"a.c": there.encode()}.get)


@pytest.mark.parametrize("line", series.lines(), ids=lambda line: line.directory)
@pytest.mark.parametrize("name", ["alternatives", "modes", "reclaim-capture"])
def test_every_line_has_what_the_experiments_ask_for(line: series.Line, name: str) -> None:
    """With --line: of the same names, in files that are about the same."""
    arms = load_experiment(REPOSITORY / f"experiments/{name}.yaml").arms
    for arm in arms.values():
        patches = series.load(arm.patches, line.first)
        ours = series.load(arm.patches, series.lines()[0].first)
        assert [patch.name for patch in patches] == [*arm.patches]
        assert [patch.subject for patch in patches] == [patch.subject for patch in ours]


@pytest.mark.parametrize("line", series.lines(), ids=lambda line: line.directory)
def test_what_must_not_be_merged_says_so(line: series.Line) -> None:
    (patch,) = series.load(["rfc-literal"], line.first)
    assert patch.subject.startswith("UNSAFE, for measurement only: ")
    assert b"This must never be merged." in patch.data
