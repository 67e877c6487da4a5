# SPDX-License-Identifier: GPL-2.0-only
"""What words on the command line come to: arms, kernels, settings, and the file that is written of them."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from testbed.experiment import Experiment, load
from testbed.host import debian
from testbed.host.errors import HostError, SpecError
from testbed.kernel.series import Misfit
from testbed.trials import prepare
from testbed.verbs import derive, save
from testbed.verbs.derive import Words, sort, template
from testbed.verbs.request import MOST_IN_TIME, ExperimentRequest
from tests.unit.recorded import DIFF

Derive = Callable[..., Experiment]


@pytest.fixture
def looked_at() -> list[str]:
    """The packages whose source was looked at, or fetched."""
    return []


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch, looked_at: list[str]) -> set[str]:
    """The packages to which every patch applies."""
    packages = {"linux-source-6.1"}

    def plans(experiment: Experiment, _cache: Path, _note: Callable[[str], None]) -> dict[str, object]:
        package = experiment.kernel.debian or ""
        if package == "linux-source-7.2":
            raise HostError(f"{package} is not to be had")
        looked_at.append(package)
        if package not in packages:
            raise Misfit(f"arms.patched: x.patch: does not apply to {package}")
        return {}

    monkeypatch.setattr(prepare, "plans", plans)
    return packages


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def made(fits: set[str], notes: list[str], tmp_path: Path) -> Derive:
    def go(name: str = "anon", asked: Any = None, **words: Any) -> Experiment:
        request = ExperimentRequest(template(name), **(asked or {}))
        return derive.derive(request, Words(**words), tmp_path / "cache", notes.append).first()

    return go


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "my_Idea.patch"
    path.write_text(DIFF)
    return path


def test_patches_make_an_arm_beside_the_one_without(made: Derive, patch: Path, notes: list[str]) -> None:
    experiment = made(patches=(str(patch),))
    assert experiment.name == "anon-my-idea"
    assert {name: arm.patches for name, arm in experiment.arms.items()} == {
        "unpatched": (),
        "patched": (str(patch),),
    }
    assert experiment.primary == load(template("anon")).primary and notes == []


def test_they_come_after_those_of_a_template(made: Derive, patch: Path) -> None:
    experiment = made("reclaim-capture", patches=(str(patch), "reclaim-capture"))
    assert re.fullmatch(r"reclaim-capture-my-idea-and-1-more-[0-9a-f]{8}", experiment.name)
    assert [arm.patches for arm in experiment.arms.values()] == [
        ("instrumentation",),
        ("instrumentation", str(patch), "reclaim-capture"),
    ]


def test_the_kernel_line_is_the_one_they_apply_to(
    made: Derive, patch: Path, fits: set[str], notes: list[str]
) -> None:
    fits.clear()
    fits.add("linux-source-6.12")
    experiment = made(patches=(str(patch),))
    assert experiment.kernel.debian == "linux-source-6.12"
    assert notes == ["the patches apply to linux-source-6.12, and not to linux-source-6.1"]
    fits.clear()
    with pytest.raises(
        SpecError, match=r"^x.patch: does not apply to linux-source-6.1\n.*nor does it fit linux-source"
    ):
        made(patches=(str(patch),))
    # Whoever names a kernel gets no other.
    assert made(patches=(str(patch),), kernels=("linux-source-6.1",)).kernel.debian == "linux-source-6.1"


def test_standard_input_is_kept(made: Derive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(DIFF.encode())))
    (path,) = made(patches=("-",)).arms["patched"].patches
    assert Path(path).read_text() == DIFF and Path(path).is_relative_to(tmp_path / "cache")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b" \n")))
    with pytest.raises(SpecError, match="nothing on standard input"):
        made(patches=("-",))
    with Path("/dev/zero").open("rb") as endless:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=endless))
        with pytest.raises(SpecError, match=r"^-: is larger than 32 MiB$"):
            made(patches=("-",))


def test_settings_make_an_arm_each(made: Derive) -> None:
    experiment = made(sysctl=("vm.swappiness=10,60",))
    assert {name: arm.sysctl for name, arm in experiment.arms.items()} == {
        "swappiness-10": {"vm.swappiness": 10},
        "swappiness-60": {"vm.swappiness": 60},
    }
    assert experiment.name == "anon-vm.swappiness-10-60"
    assert list(made(sysctl=("vm.a=1,2", "vm.b=3,x")).arms) == ["a-1-b-3", "a-1-b-x", "a-2-b-3", "a-2-b-x"]


@pytest.mark.parametrize(
    ("words", "name", "arm"),
    [
        ({"sysctl": ("vm.swappiness=10",)}, "swappiness-10", {"sysctl": {"vm.swappiness": 10}}),
        ({"arguments": ("slub_max_order=0",)}, "slub-max-order-0", {"command_line": ("slub_max_order=0",)}),
        ({"options": ("CONFIG_LRU_GEN=n",)}, "lru-gen-n", {"config": ("CONFIG_LRU_GEN=n",)}),
    ],
)
def test_a_single_one_is_compared_with_what_is_without(
    made: Derive, words: dict[str, Any], name: str, arm: dict[str, Any]
) -> None:
    arms = made(**words).arms
    assert list(arms) == ["default", name]
    assert {key: getattr(arms[name], key) for key in arm} == arm
    assert arms["default"] == load(template("anon")).arms["unpatched"]


def test_beside_patches_settings_are_for_all_arms_or_make_a_matrix(
    fits: set[str], made: Derive, patch: Path, tmp_path: Path
) -> None:
    arms = made(patches=(str(patch),), sysctl=("vm.swappiness=10",)).arms
    assert [arm.sysctl for arm in arms.values()] == [{"vm.swappiness": 10}] * 2
    words = Words(patches=(str(patch),), sysctl=("vm.swappiness=10,60",))
    request = derive.derive(ExperimentRequest(template("anon")), words, tmp_path, lambda _: None)
    assert [cell.experiment.guest.sysctl["vm.swappiness"] for cell in request.cells()] == [10, 60]
    with pytest.raises(SpecError, match="several values make arms of their own"):
        made(patches=(str(patch),), options=("CONFIG_X=y,n",))


# --- kernels ---------------------------------------------------------------------------------------


def test_two_kernels_are_two_arms(made: Derive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = {"linux-source-6.1": ["6.1.176-1", "6.1.170-2", "6.1.17-1"]}
    monkeypatch.setattr(debian, "versions", lambda *_: known)
    (tmp_path / "linux").mkdir()
    experiment = made(kernels=("6.1.17", "linux-source-6.1", "6.12", str(tmp_path / "linux")))
    sources = {name: experiment.source(name) for name in experiment.arms}
    assert {name: source.debian or source.tree for name, source in sources.items()} == {
        "6.1.17": "linux-source-6.1=6.1.17-1",
        "linux-source-6.1": "linux-source-6.1",
        "6.12": "linux-source-6.12",
        "linux": tmp_path / "linux",
    }
    with pytest.raises(
        SpecError, match=r"Debian has no linux-source-6.1 of version 6.1.18\n  it has 6.1.176-1"
    ):
        made(kernels=("6.1.18",))
    with pytest.raises(SpecError, match="--kernel: nonsense: no version, package"):
        made(kernels=("nonsense",))


def test_the_mirror_is_asked_once_and_that_is_said(
    made: Derive, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def versions(packages: list[str], *_: object) -> dict[str, list[str]]:
        asked.append(packages)
        return {"linux-source-6.1": ["6.1.192-1", "6.1.176-1"], "linux-source-6.12": ["6.12.9-1"]}

    monkeypatch.setattr(debian, "versions", versions)
    made(kernels=("6.1.176", "6.1.192", "6.12.9"))
    assert asked == [["linux-source-6.1", "linux-source-6.12"]]
    assert notes == ["asking the mirror for its versions"]


def test_one_kernel_alone_gets_the_arms_of_the_template(tmp_path: Path) -> None:
    request = ExperimentRequest(template("reclaim-capture"))
    for words in (Words(kernels=("linux-source-6.12",)), Words(tree=tmp_path)):
        made = derive.changed(request, words, tmp_path / "cache").first()
        assert made.arms == request.first().arms and made.kernel != request.first().kernel


def test_trees_of_one_name_are_two_arms(made: Derive, tmp_path: Path) -> None:
    trees = [tmp_path / name / "linux" for name in ("mine", "theirs")]
    for tree in trees:
        tree.mkdir(parents=True)
    experiment = made(kernels=tuple(map(str, trees)))
    assert [experiment.source(name).tree for name in ("linux", "linux-2")] == trees
    assert list(experiment.arms) == ["linux", "linux-2"]


@pytest.mark.parametrize(
    "words",
    [
        {"kernels": ("6.1", "6.1")},
        {"kernels": ("6.1", "6.12", "linux-source-6.1")},
        {"sysctl": ("vm.swappiness=10,10",)},
        {"kernels": ("6.1.192", "6.1.192")},
        {"kernels": ("6.1.176", "6.1.192"), "sysctl": ("vm.swappiness=10,10",)},
        {"kernels": ("6.1.176", "6.1.192"), "options": ("CONFIG_X=y", "CONFIG_X=y")},
    ],
)
def test_nothing_is_compared_with_itself(
    made: Derive, words: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "versions", lambda *_: pytest.fail("the mirror was asked"))
    with pytest.raises(SpecError, match="is to be compared with itself"):
        made(**words)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository: v1, then one commit on a branch and one on main."""
    path = tmp_path / "linux"
    path.mkdir()

    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", path, *who, *words], check=True, capture_output=True)

    git("init", "-b", "main")
    for name, branch in (("one", "main"), ("two", "main"), ("three", "topic")):
        if branch == "topic":
            git("checkout", "-b", "topic", "v1")
        (path / name).write_text(name)
        git("add", ".")
        git("commit", "-m", name)
        if name == "one":
            git("tag", "v1")
    return path


def revisions(experiment: Experiment) -> dict[str, str | Path | None]:
    sources = {name: experiment.source(name) for name in experiment.arms}
    return {name: source.git.revision if source.git else source.tree for name, source in sources.items()}


def test_a_tree_is_compared_with_where_it_left_its_base(made: Derive, tree: Path) -> None:
    words = ["git", "-C", str(tree), "rev-parse", "v1", "HEAD"]
    fork, head = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    # As hashes: an experiment that is kept stays what it was.
    assert revisions(made(tree=tree, base="main")) == {"base": fork, "head": head}
    assert revisions(made(tree=tree, base="v1", head="main")) == {"base": "v1", "head": "main"}
    assert revisions(made(tree=tree, kernels=("v1", "main"))) == {"v1": "v1", "main": "main"}
    (tree / "three").write_text("changed")
    assert revisions(made(tree=tree, base="main")) == {"base": fork, "head": tree}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"base": "v1"}, "name it by --tree"),
        ({"tree": True, "head": "main"}, "--base: is missing"),
        ({"tree": True, "base": "nothing"}, "--base: .* has no `nothing`"),
        ({"tree": True, "base": "v1", "kernels": ("v1",)}, "both say what to compare"),
        ({"sysctl": ("vm.swappiness",)}, "--sysctl: vm.swappiness: write NAME=VALUE"),
        ({"sysctl": ("swappiness=1",)}, "`arms.swappiness-1.sysctl.swappiness`: "),
    ],
)
def test_what_is_missing_is_said(made: Derive, tree: Path, words: dict[str, Any], said: str) -> None:
    if words.get("tree"):
        words = {**words, "tree": tree}
    with pytest.raises(SpecError, match=said):
        made(**words)


def test_a_directory_without_git_is_no_tree_with_a_base(made: Derive, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--tree: .*: not a git repository"):
        made(tree=tmp_path, base="v1")


# --- how much, and what is written -----------------------------------------------------------------


def test_a_quick_look_has_few_seeds_and_a_limited_one_as_many_as_fit(made: Derive) -> None:
    quick = made(asked={"quick": True}, sysctl=("vm.swappiness=1",))
    assert (quick.seeds, quick.sequential) == (3, False)
    timed = made(asked={"minutes": 10.0}, sysctl=("vm.swappiness=1",))
    assert (timed.seeds, timed.minutes, timed.sequential) == (MOST_IN_TIME, 10, True)
    both = made(asked={"quick": True, "minutes": 10.0}, sysctl=("vm.swappiness=1",))
    assert (both.seeds, both.minutes, both.sequential) == (3, 10, False)


def test_what_is_saved_is_what_is_run(fits: set[str], patch: Path, tmp_path: Path) -> None:
    words = Words(patches=(str(patch),), sysctl=("vm.swappiness=10,60",))
    request = derive.derive(ExperimentRequest(template("mglru"), quick=True), words, tmp_path, lambda _: None)
    file = save.save(request, tmp_path / "there" / "saved.yaml")
    again = ExperimentRequest(file)
    assert [cell.experiment for cell in again.cells()] == [cell.experiment for cell in request.cells()]
    text = file.read_text()
    assert "# The first is what the others are compared with." in text
    # Nothing of the template is left out because it goes without saying.
    assert "order: random" in text and "tasks: 8" in text
    with pytest.raises(SpecError, match=r"--save: .*saved\.yaml: File exists"):
        save.save(request, file)


def test_what_is_saved_has_paths_from_the_file_on(
    fits: set[str], patch: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = Words(patches=(str(patch), f"git:{tree}:v1..topic"), tree=tree)
    request = derive.derive(ExperimentRequest(template("anon")), words, tmp_path / "cache", lambda _: None)
    file = save.save(request, Path("there/saved.yaml"))
    saved = yaml.safe_load(file.read_text())
    assert saved["arms"]["patched"]["patches"] == ["../my_Idea.patch", "git:../linux:v1..topic"]
    assert saved["kernel"]["tree"] == "../linux"
    assert ExperimentRequest(file).first() == request.first()
    # What is neither beside the file nor here is named by its whole path.
    monkeypatch.chdir(tree)
    saved = yaml.safe_load(save.save(request, tmp_path / "far" / "saved.yaml").read_text())
    assert saved["arms"]["patched"]["patches"] == [str(patch), "git:../linux:v1..topic"]


def test_a_file_of_ones_own_may_be_the_template() -> None:
    assert sort(["a.patch", "mine.yaml", "-"]) == (Path("mine.yaml"), ("a.patch", "-"))
    with pytest.raises(SpecError, match=r"a\.yaml, b\.yml: one experiment at a time"):
        sort(["a.yaml", "b.yml"])
    with pytest.raises(
        SpecError, match="--experiment: there is no `nothing`\n  there are alternatives, anon, "
    ):
        template("nothing")
