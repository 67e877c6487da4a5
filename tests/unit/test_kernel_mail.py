# SPDX-License-Identifier: GPL-2.0-only
"""Patches as people send and keep them. What git makes of them, with `git am`, is what is right."""

from __future__ import annotations

import base64
import binascii
import gzip
import lzma
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.host.errors import SpecError
from testbed.kernel import mail, series
from tests.unit.recorded import REPOSITORY

CASES = REPOSITORY / "tests/data/patches"
VMSCAN = b"""/*
 * From 0 .. 200.  Higher means more swappy.
 */
int vm_swappiness = 60;

static void set_task_reclaim_state(struct task_struct *task,
\t\t\t\t   struct reclaim_state *rs)
"""
SWAP = b"""\tif (megs < 16)
\t\tpage_cluster = 2;
\telse
\t\tpage_cluster = 3;
\t/*
\t * Right now other parts of the system means that we
\t * _really_ don't want to cluster much more
"""
MAKEFILE = b"""obj-$(CONFIG_HAVE_BOOTMEM_INFO_NODE) += bootmem_info.o
obj-$(CONFIG_GENERIC_IOREMAP) += ioremap.o
obj-$(CONFIG_SHRINKER_DEBUG) += shrinker_debug.o
"""
KCONFIG = b"""\tbool
\tdepends on !STACK_GROWSUP

source "mm/damon/Kconfig"

endmenu
"""
TREE = {"mm/vmscan.c": VMSCAN, "mm/swap.c": SWAP, "mm/Makefile": MAKEFILE, "mm/Kconfig": KCONFIG}
LESS = VMSCAN.replace(b"60", b"20")
SMALLER = SWAP.replace(b"= 3", b"= 1")


def apply(path: Path) -> tuple[list[str], dict[str, bytes | None]]:
    """Subjects of the patches in a file, and what they make of the tree."""
    patches = series.read(str(path), pristine=TREE.get)
    return [patch.subject for patch in patches], series.apply(patches, TREE.get)


@pytest.mark.parametrize(
    ("case", "subjects", "after"),
    [
        ("default-swappiness.patch", ["mm: swap less by default"], {"mm/vmscan.c": LESS}),
        ("message-diff.patch", ["mm: swap less by default"], {"mm/vmscan.c": LESS}),
        ("akpm-names.patch", ["mm: swap less by default"], {"mm/vmscan.c": LESS}),
        ("noprefix.patch", ["mm: swap less by default"], {"mm/vmscan.c": LESS}),
        ("p0-orig.diff", [""], {"mm/vmscan.c": LESS}),
        ("quoted-printable.eml", ["mm: swap less by default"], {"mm/vmscan.c": LESS}),
        (
            "two.mbx",
            ["mm: swap less by default", "mm: smaller clusters"],
            {"mm/vmscan.c": LESS, "mm/swap.c": SMALLER},
        ),
        ("mode-only.patch", ["mm: a mode"], {}),
    ],
)
def test_what_people_have(case: str, subjects: list[str], after: dict[str, bytes]) -> None:
    assert apply(CASES / case) == (subjects, after)


def test_a_patch_with_a_new_file() -> None:
    subjects, after = apply(CASES / "new-option.patch")
    assert subjects == ["mm: a new option, off by default"]
    assert after.keys() == {"mm/Makefile", "mm/Kconfig", "mm/example_note.c"}
    assert (after["mm/example_note.c"] or b"").count(b"\n") == 9


def test_a_mode_changes_nothing_that_is_compiled() -> None:
    (patch,) = series.read(str(CASES / "mode-only.patch"))
    assert (patch.files, patch.compiled) == (("mm/vmscan.c",), False)


# --- messages ------------------------------------------------------------------------------------

SENT = (CASES / "default-swappiness.patch").read_bytes()
EXAMPLE = b"""--- a/mm/swap.c
+++ b/mm/swap.c
@@ -1,5 +1,5 @@
 \tif (megs < 16)
 \t\tpage_cluster = 2;
 \telse
-\t\tpage_cluster = 3;
+\t\tpage_cluster = 1;
 \t/*
"""
STAT = b" mm/vmscan.c | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n\n"


@pytest.mark.parametrize("indent", [b"", b"  ", b"> "])
def test_the_message_is_not_applied(tmp_path: Path, indent: bytes) -> None:
    """Nor where it is not indented and `git am` takes it for the patch, if its end can be told."""
    example = re.sub(rb"^", indent, EXAMPLE, flags=re.MULTILINE)[: -len(indent) or None]
    (tmp_path / "x.patch").write_bytes(
        SENT.replace(b"A default of 20.\n", b"Not this:\n\n" + example).replace(b"\n---\n", b"\n---\n" + STAT)
    )
    assert apply(tmp_path / "x.patch") == (["mm: swap less by default"], {"mm/vmscan.c": LESS})


def test_a_subject_is_read_as_git_does() -> None:
    folded = b"Subject: =?UTF-8?q?=5BPATCH=5D_mm=3A?=\n =?UTF-8?q?_gr=C3=BC=C3=9Fe?=\n"
    (letter,) = mail.split(re.sub(rb"Subject: .*\n", folded, SENT), "x")
    assert letter.subject == "mm: grüße"


# --- mailboxes -----------------------------------------------------------------------------------


def box(*subjects: str, bodies: Callable[[str], bytes] = lambda _: EXAMPLE) -> bytes:
    return b"".join(
        b"From mboxrd@z Thu Jan  1 00:00:00 1970\nFrom: a <b@c>\n"
        + f"Subject: {subject}\n\nText.\n---\n".encode()
        + bodies(subject)
        + b"\n"
        for subject in subjects
    )


def split(data: bytes) -> list[str]:
    return [letter.subject for letter in mail.split(data, "t.mbox")]


def test_a_thread_is_its_patches_in_the_order_of_their_numbers() -> None:
    """As lore gives it: a cover letter, answers with and without code, what came first first."""
    thread = box(
        "[PATCH v2 0/10] all",
        *(f"[PATCH mm v2 {n:02}/10] {n}" for n in (3, 1, 2, 10, 9, 4, 5, 6, 7, 8)),
        "Re: [PATCH v2 2/10] 2",
    )
    assert split(thread) == [str(n) for n in range(1, 11)]
    talk = box("[PATCH] a", "Thanks", bodies=lambda subject: EXAMPLE if "a" in subject[-1] else b"")
    assert split(talk) == ["a"]


def test_what_are_not_all_of_one_series_stay_as_they_are() -> None:
    assert split(box("[PATCH 2/3] b", "[PATCH 1/3] a")) == ["b", "a"]
    assert split(box("[PATCH 1/2] a", "[PATCH 2/2] b", "[PATCH 1/1] c")) == ["a", "b", "c"]
    assert split(box("b", "a")) == ["b", "a"]


def test_of_two_versions_none_is_chosen() -> None:
    with pytest.raises(SpecError, match=r"^t\.mbox: has several versions of a series: v1, v2\n  `b4 am`"):
        split(box("[PATCH 1/2] a", "[PATCH 2/2] b", "[PATCH v2 1/2] a", "[PATCH v2 2/2] b"))


def test_an_answer_may_be_the_patch() -> None:
    assert split(box("Re: [PATCH] a")) == ["a"]


@pytest.mark.parametrize("data", [gzip.compress(SENT)[:-20], b"\x1f\x8bnone", lzma.compress(SENT)[:-20]])
def test_what_is_packed_and_damaged(data: bytes) -> None:
    with pytest.raises(SpecError, match=r"^x\.gz: cannot be unpacked: "):
        mail.split(data, "x.gz")


@pytest.mark.parametrize("windows", [False, True])
def test_a_plain_diff_of_files_with_and_without_crs(tmp_path: Path, windows: bool) -> None:
    """One that was made of files with CRs has none in its headers; one that got them on its way has."""
    line, with_cr = b"megs < 16)\n", b"megs < 16)\r\n"
    made = EXAMPLE.replace(b"\n", b"\r\n") if windows else EXAMPLE.replace(line, with_cr)
    (tmp_path / "x.diff").write_bytes(made)
    there = SWAP if windows else SWAP.replace(line, with_cr)
    patches = series.read(str(tmp_path / "x.diff"))
    assert series.apply(patches, {"mm/swap.c": there}.get) == {"mm/swap.c": there.replace(b"= 3", b"= 1")}


# --- generated commits, as git am has them ---------------------------------------------------------

PATHS = ["mm/vmscan.c", "mm/two words.c", "mm/größe.c", "Documentation/x.rst", "Makefile"]
LINES = [
    *(b"", b"int x;", b"\tint y;\r", b"\xe9\xff", "größe".encode(), b"x" * 200, b" ", b"=3D", b"a\rb"),
    *(b"-- ", b"From here", b"From a Mon Sep 17 00:00:00 2001", b"-- a/x", b"++ b/x", b"---", b">From"),
    *(b"diff --git a/q b/q", b"@@ -1 +1 @@", b"Subject: y", b"-- >8 --", b"=", b"."),
]
CONTENT = st.tuples(st.lists(st.sampled_from(LINES), max_size=12), st.sampled_from([b"\n", b""])).map(
    lambda text: b"\n".join(text[0]) + (text[1] if text[0] else b"")
)
File = tuple[str, bytes]
Tree = dict[str, File]
MODES = st.sampled_from(["100644", "100755"])
DELIVERIES = ("8bit", "crlf", "quoted-printable", "base64", "--attach", "--inline")


@st.composite
def histories(draw: st.DrawFn) -> list[Tree]:
    """Trees, each a commit after the one before: files are changed, added, deleted, renamed, made scripts."""
    trees = [{path: (draw(MODES), draw(CONTENT)) for path in PATHS[:3]}]
    for _ in range(draw(st.integers(1, 3))):
        tree = dict(trees[-1])
        for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3, unique=True)):
            mode, content = tree.get(path, ("100644", b""))
            match draw(st.sampled_from(["write", "insert", "delete", "rename", "mode"])):
                case "write":
                    tree[path] = (mode, draw(CONTENT))
                case "insert":
                    tree[path] = (mode, draw(CONTENT) + content)
                case "delete":
                    tree.pop(path, None)
                case "rename" if path in tree:
                    tree[draw(st.sampled_from(PATHS))] = tree.pop(path)
                case "mode" if path in tree:
                    tree[path] = (draw(MODES), content)
        if tree != trees[-1]:
            trees.append(tree)
    return trees


def commands(trees: list[Tree]) -> bytes:
    """A history as `git fast-import` reads it."""

    def data(content: bytes) -> bytes:
        return b"data %d\n%s\n" % (len(content), content)

    stream = b"reset refs/heads/topic\n"
    for number, tree in enumerate(trees):
        stream += b"commit refs/heads/topic\ncommitter A <a@b> 0 +0000\n" + data(
            b"mm: gr\xc3\xb6\xc3\x9fe %d" % number
        )
        stream += b"deleteall\n"
        for path, (mode, content) in tree.items():
            stream += f'M {mode} inline "{path}"\n'.encode() + data(content)
    return stream


def git(directory: Path, *words: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["git", *words], cwd=directory, input=stdin, check=True, capture_output=True).stdout


def delivered(mailbox: bytes, delivery: str) -> bytes:
    """A mailbox of `git format-patch` as it may arrive."""
    if delivery == "crlf":
        return mailbox.replace(b"\n", b"\r\n")
    if delivery not in ("quoted-printable", "base64"):
        return mailbox
    arrived = b""
    for letter in re.split(rb"^(?=From [0-9a-f]{40} )", mailbox, flags=re.MULTILINE)[1:]:
        header, _, body = letter.partition(b"\n\n")
        header = re.sub(rb"^(?:MIME|Content)-.*\n?", b"", header, flags=re.MULTILINE).rstrip(b"\n")
        header += f"\nMIME-Version: 1.0\nContent-Transfer-Encoding: {delivery}\n\n".encode()
        if delivery == "base64":
            body = base64.encodebytes(body)
        else:
            body = b"\n".join(binascii.b2a_qp(line, istext=False) for line in body.split(b"\n"))
        arrived += header + body + b"\n"
    return arrived


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commits")
    git(path, "init", "--quiet")
    for setting in (
        "user.name=A",
        "user.email=a@b",
        "core.autocrlf=false",
        "gc.auto=0",
        "core.safecrlf=false",
    ):
        git(path, "config", *setting.split("="))
    return path


@pytest.mark.parametrize("delivery", DELIVERIES)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    trees=histories().filter(lambda trees: len(trees) > 1),
    pack=st.sampled_from([bytes, gzip.compress, lzma.compress]),
    renames=st.sampled_from(["--no-renames", "--find-renames", "--find-copies-harder"]),
)
def test_commits_arrive_as_with_git_am(
    repository: Path, trees: list[Tree], delivery: str, pack: Callable[[bytes], bytes], renames: str
) -> None:
    git(repository, "fast-import", "--quiet", "--force", stdin=commands(trees))
    last = len(trees) - 1
    how = [word for word in (renames, delivery) if word.startswith("--")]
    range_ = f"topic~{last}..topic"
    mailbox = delivered(git(repository, "format-patch", "--stdout", "--no-signature", *how, range_), delivery)

    git(repository, "checkout", "--quiet", "--force", "--detach", f"topic~{last}")
    git(repository, "am", "--quiet", "--no-keep-cr" if delivery == "crlf" else "--keep-cr", stdin=mailbox)
    assert git(repository, "rev-parse", "HEAD^{tree}") == git(repository, "rev-parse", "topic^{tree}")

    before = {path: content for path, (_, content) in trees[0].items()}
    patches = series.read("-", pack(mailbox), before.get)
    after = {**before, **series.apply(patches, before.get)}
    assert {path: content for path, content in after.items() if content is not None} == {
        path: content for path, (_, content) in trees[-1].items()
    }
    assert [patch.subject for patch in patches] == [f"mm: größe {n + 1}" for n in range(last)]
