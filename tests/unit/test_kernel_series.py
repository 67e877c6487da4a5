# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import difflib
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from testbed.host.errors import SpecError
from testbed.kernel import series

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
    for version in ("6.1.192", "6.12.117", "7.2.13"):
        (patch,) = series.load([name], version)
        added = "".join(
            line[1:] for line in patch.data.decode().splitlines(True) if line[:2] != "+++" and line[0] == "+"
        )
        events = re.findall(r'"((?:direct_reclaim|reclaim_capture)\w*)",', added)
        tracepoint = re.findall(r"^TRACE_EVENT.*?^\);", added, re.MULTILINE | re.DOTALL)
        table = re.findall(r"^= =+\n.*?^= =+\n", added, re.MULTILINE | re.DOTALL)
        interfaces.add((*events, *tracepoint, *table))
    assert len(interfaces) == 1
    assert len(interfaces.pop()) == {"instrumentation": 12, "reclaim-capture": 2}[name]


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
    monkeypatch.setattr(tempfile, "tempdir", None)
    spaced = NEW.replace("line five", "line five  ")
    loaded = load(tmp_path, diff("mm/vmscan.c", OLD, spaced))
    assert series.apply(loaded, TREE.get) == {"mm/vmscan.c": spaced.encode()}
    with pytest.raises(SpecError, match=r"mm/vmscan\.c: the hunk at line 2$"):
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
    with pytest.raises(SpecError, match=r"0\.patch: does not apply: mm/vmscan\.c: the hunk at line 27$"):
        series.apply(loaded, other.get)


@pytest.mark.parametrize("text", [diff("mm/new.c", OLD, NEW), diff("mm/gone.c", "", "int gone;\n")])
def test_a_file_that_should_or_should_not_be_there(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"(?s)0\.patch: does not apply: .*mm/(new|gone)\.c"):
        series.apply(load(tmp_path, text), TREE.get)


def test_a_patch_that_is_in_already_is_not_reverted(tmp_path: Path) -> None:
    loaded = load(tmp_path, *[diff("mm/vmscan.c", OLD, NEW)] * 2)
    with pytest.raises(SpecError, match=r"1\.patch: does not apply: mm/vmscan\.c: the hunk at line 2$"):
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
        "--- x.c\n+++ x.c\n@@ -0,0 +1 @@\n+x\n",
        "diff --git a/mm/x.c b/mm/y.c\nrename from mm/x.c\nrename to mm/y.c\n",
        "diff --git a/x b/x\nGIT binary patch\nliteral 0\n",
        "diff --git a/x b/x\nnew file mode 100644\nBinary files /dev/null and b/x differ\n",
        "diff --git a/x b/x\nold mode 100644\nnew mode 120000\n",
        "diff --git a/mm/x.c b/mm/y.c\ncopy from mm/x.c\ncopy to mm/y.c\n",
        "diff --git a/x b/x\nnew file mode 120000\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+/etc\n",
        "not a patch at all\n",
    ],
)
def test_what_is_not_a_change_of_files_inside_the_tree_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"0\.patch"):
        load(tmp_path, text)
