# SPDX-License-Identifier: GPL-2.0-only
"""Patches that are given as words: refused before anything is fetched, and each with a result of its own."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed import cli
from testbed.experiment import load
from testbed.host.errors import HostError, SpecError
from testbed.kernel import source
from testbed.trials import prepare
from testbed.verbs import derive, given
from testbed.verbs.derive import Words, template
from testbed.verbs.request import ExperimentRequest
from tests.unit.recorded import DIFF

MAIL = f"From: A <a@example.org>\nSubject: [PATCH] mm: {{}}\n\nWhy.\n---\n{DIFF}"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, with no source to be had."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "resolve", lambda *_: pytest.fail("a source was looked for"))
    return tmp_path


def changed(*patches: str, file: Path | None = None, **words: Path) -> ExperimentRequest:
    request = ExperimentRequest(file or template("anon"))
    return derive.changed(request, Words(patches=patches, **words), Path("cache"))  # type: ignore[arg-type]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The name of the experiment that words make."""

    def name(*patches: str, stdin: str = "", **words: tuple[str, ...]) -> str:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin.encode())))
        asked = Words(patches=patches, **words)  # type: ignore[arg-type]
        return derive.changed(ExperimentRequest(template("anon")), asked, Path("cache")).first().name

    return name


# --- what is wrong is said at once -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nosuch.patch", "nosuch.patch: No such file or directory"),
        ("./a/nosuch.patch", "a/nosuch.patch: No such file or directory"),
        ("out/*.patch", "out/*.patch: no such file"),
        ("prose.patch", "prose.patch: is no patch: there is no diff in it"),
        ("empty.patch", "empty.patch: is empty"),
        ("cut.patch", "cut.patch: not a patch that git can read: corrupt patch"),
        ("git:v6.1..topic", "git:v6.1..topic: in which repository? there is none here"),
        ("reclaim-captur", "reclaim-captur: no such file, and no series of patches/"),
    ],
)
def test_what_is_no_patch_is_a_line_before_a_source_is_looked_for(
    here: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    (here / "prose.patch").write_text("hello\n")
    (here / "empty.patch").touch()
    (here / "cut.patch").write_text(DIFF[: DIFF.rindex("+two")])
    assert cli.main(["explain", word]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"testbed: {said}")
    assert "arms" not in told.err and "nor does it fit" not in told.err and len(told.err.splitlines()) <= 2


def test_patches_come_before_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.host.debian.versions", lambda *_: pytest.fail("the mirror was asked"))
    assert cli.main(["explain", "--kernel", "6.1.1", "nosuch.patch"]) == 2


def test_a_patch_is_named_once(here: Path) -> None:
    (here / "a.patch").write_text(DIFF)
    with pytest.raises(SpecError, match=r"a\.patch: is named twice"):
        changed("a.patch", "a.patch")


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("{patches: [/dev/zero]}", "arms.b: /dev/zero: is not a regular file"),
        ("{patches: [reclaim-captur]}", "arms.b: reclaim-captur: no such file, and no series"),
        ("{config: [/proc/self/mem]}", "arms.b: kernel.config: /proc/self/mem: is not a regular file"),
        ("{config: [geust]}", "arms.b: kernel.config: there is no fragment `geust`"),
    ],
)
def test_so_are_those_of_a_file(here: Path, capsys: pytest.CaptureFixture[str], arm: str, said: str) -> None:
    (here / "x.yaml").write_text(
        f"name: x\nkernel: {{debian: linux-source-6.1}}\narms: {{a: {{}}, b: {arm}}}\n"
    )
    assert cli.main(["explain", "x.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"testbed: x.yaml: {said}")


def test_other_lines_are_looked_at_only_for_what_does_not_apply(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.patch").write_text(DIFF)
    tried: list[str | None] = []

    def plans(experiment: object, *_: object) -> None:
        tried.append(experiment.kernel.debian)  # type: ignore[attr-defined]
        raise SpecError("arms.patched: a.patch: does it change a or b?")

    monkeypatch.setattr(prepare, "plans", plans)
    request, words = ExperimentRequest(template("anon")), Words(patches=("a.patch",))
    with pytest.raises(SpecError, match=r"^a\.patch: does it change a or b\?$"):
        derive.derive(request, words, here / "cache", lambda _: None)
    assert tried == ["linux-source-6.1"]


def test_without_any_source_that_is_what_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a.patch").write_text(DIFF)

    def plans(experiment: object, *_: object) -> None:
        raise HostError(f"{experiment.kernel.debian} is not to be had")  # type: ignore[attr-defined]

    monkeypatch.setattr(prepare, "plans", plans)
    request, words = ExperimentRequest(template("anon")), Words(patches=("a.patch",))
    with pytest.raises(HostError, match=r"^linux-source-6\.1 is not to be had$"):
        derive.derive(request, words, here / "cache", lambda _: None)


# --- ranges ----------------------------------------------------------------------------------------


@pytest.fixture
def repository(here: Path) -> Path:
    path = here / "linux"
    path.mkdir()
    for words in (
        ["init", "--quiet", "-b", "topic"],
        ["commit", "--quiet", "--allow-empty", "-m", "base"],
        ["tag", "v1"],
    ):
        git(path, *words)
    (path / "a.c").write_text("int a;\n")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "mm: a")
    return path


def git(path: Path, *words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", path, *who, *words], check=True)


def test_a_range_is_of_the_repository_that_we_are_in(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "mm").mkdir()
    entry = f"git:{repository}:v1..topic"
    for place in (repository, repository / "mm"):
        monkeypatch.chdir(place)
        experiment = changed("git:v1..topic").first()
        assert experiment.arms["patched"].patches == (entry,) and experiment.name == "anon-v1..topic"
    with pytest.raises(SpecError, match=r"linux has no commit `v2`"):
        changed("git:v2..topic")


def test_another_that_is_named_goes_first(
    repository: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = here / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    monkeypatch.chdir(other)
    entry = f"git:{repository}:v1..topic"
    request = changed("git:v1..topic", tree=repository)
    assert request.first().arms["patched"].patches == (entry,) and request.origin == repository
    (here / "x.yaml").write_text("name: x\nkernel: {tree: ./linux}\narms: {a: {}}\n")
    assert changed("git:v1..topic", file=here / "x.yaml").first().arms["patched"].patches == (entry,)


# --- names -----------------------------------------------------------------------------------------


def test_standard_input_is_called_after_what_is_in_it(here: Path, named: Callable[..., str]) -> None:
    one, two = MAIL.format("swap_less"), MAIL.format("swap more")
    assert named("-", stdin=one) == "anon-mm-swap-less" and named("-", stdin=two) == "anon-mm-swap-more"
    bare = {named("-", stdin=text) for text in (DIFF, DIFF.replace("two", "three"))}
    assert len(bare) == 2 and all(len(name) == len("anon-12345678") for name in bare)
    # That is what an arm's kernel is said to have, too.
    assert {path.name for path in here.glob("cache/patches/*/mm-*")} == {
        "mm-swap-less.patch",
        "mm-swap-more.patch",
    }


def test_different_words_make_different_names(here: Path, named: Callable[..., str]) -> None:
    (here / "out").mkdir()
    for name in ("a", "b", "c"):
        (here / "out" / f"{name}.patch").write_text(DIFF)
    asked: list[tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = [
        (("out/[ab].patch",), {}),
        (("out/[ac].patch",), {}),
        (("out/a.patch",), {}),
        (("out",), {}),
        ((), {"sysctl": ("vm.swappiness=10",)}),
        ((), {"sysctl": ("vm.swappiness=20,30",)}),
        ((), {"options": ("CONFIG_X=y",)}),
        ((), {"options": ("CONFIG_X=n",)}),
        ((), {"arguments": ("a=" + "x" * 80,)}),
        ((), {"arguments": ("a=" + "x" * 80 + "y",)}),
    ]
    names = [named(*patches, **words) for patches, words in asked]
    assert len({*names, load(template("anon")).name}) == len(names) + 1
    assert names[2:6] == ["anon-a", "anon-out", "anon-vm.swappiness-10", "anon-vm.swappiness-20-30"]
    # A pattern is the files that it stands for, whoever expands it.
    assert named("out/[ab].patch") == named("out/a.patch", "out/b.patch")


def test_a_directory_is_called_after_itself(here: Path, named: Callable[..., str]) -> None:
    (here / "a.patch").write_text(DIFF)
    assert named(".") == f"anon-{given.slug(here.name)}"
