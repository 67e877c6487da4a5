# SPDX-License-Identifier: GPL-2.0-only
"""Continuous integration: the files are sound, and the very steps of the action do what they say, here."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from ci import steps
from testbed.experiment import Experiment, GitSource, KernelSpec, expand, load
from testbed.host.errors import HostError, SpecError
from testbed.terminal.arguments import parser
from testbed.verbs import compare, derive
from testbed.verbs.compare import Compared, CompareRequest
from testbed.verbs.request import ExperimentRequest
from tests.unit.recorded import DIFF, EXPERIMENT, REPOSITORY

ACTION = REPOSITORY / "action.yml"
GITLAB = REPOSITORY / "ci" / "gitlab.yml"
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [REPOSITORY / "ci" / name for name in ("all", "open-kvm", "set-up", "step")]
# Of the environment that the tests run in.
TOOLS = Path(sys.executable).parent

LOW = [1000, 1010, 990, 1005, 995, 1008]
HIGH = [count * 13 // 10 for count in LOW]
SAME, WORSE = {"unpatched": LOW, "patched": LOW}, {"unpatched": LOW, "patched": HIGH}


@functools.cache
def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


# --- the files ------------------------------------------------------------------------------------


def check(*argv: object, cwd: Path = REPOSITORY) -> None:
    done = subprocess.run([str(word) for word in argv], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing() -> None:
    assert WORKFLOWS
    check(TOOLS / "actionlint", "-shellcheck", TOOLS / "shellcheck", *WORKFLOWS)


def test_actionlint_would_find_something(tmp_path: Path) -> None:
    """That it looks at the action's inputs, too."""
    wrong = tmp_path / ".github" / "workflows" / "compare.yml"
    wrong.parent.mkdir(parents=True)
    right = (REPOSITORY / ".github" / "workflows" / "compare.yml").read_text()
    wrong.write_text(right.replace("experiment: ${{", "experimnt: ${{"))
    shutil.copy(ACTION, tmp_path)
    (tmp_path / ".git").mkdir()
    with pytest.raises(AssertionError, match="experimnt"):
        check(TOOLS / "actionlint", wrong, cwd=tmp_path)


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-actions", [ACTION]),
        ("gitlab-ci", [GITLAB]),
        ("dependabot", [REPOSITORY / ".github" / "dependabot.yml"]),
    ],
)
def test_the_files_keep_to_their_schemas(schema: str, paths: list[Path]) -> None:
    check(TOOLS / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", *paths)


def test_shellcheck_finds_nothing() -> None:
    check(TOOLS / "shellcheck", *SCRIPTS, REPOSITORY / ".ci" / "run")


def test_the_cache_of_the_tests_is_what_the_steps_name_and_depends_on_what_they_do() -> None:
    job = loaded(REPOSITORY / ".github" / "workflows" / "test.yml")["jobs"]["all"]
    restore, save = (
        step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache/")
    )
    home = f"{job['env']['XDG_CACHE_HOME']}/testbed"
    assert save["path"] == restore["path"]
    assert restore["path"].split() == [f"{home}/{name}" for name in steps.CACHED]
    for path in steps.INGREDIENTS:
        assert f"'{path.name}{'/**' if path.is_dir() else ''}'" in restore["key"]


def test_commits_are_checked_by_what_lint_runs() -> None:
    (hooks,) = (repository["hooks"] for repository in loaded(REPOSITORY / ".pre-commit-config.yaml")["repos"])
    by_id = {hook["id"]: hook for hook in hooks}
    assert (by_id["lint"]["entry"], by_id["lint"]["pass_filenames"]) == ("make lint", False)
    # As pre-commit's own pygrep looks at the message.
    pattern = re.compile(by_id["subject"]["entry"], re.MULTILINE | re.DOTALL)
    assert by_id["subject"]["args"] == ["--multiline", "--negate"]
    for message in (
        "report: one table type\n\nA body of any length: " + "x" * 100,
        "docs: " + "x" * 66,
        "Merge branch 'docs'\n",
        "fixup! report: one table type",
    ):
        assert pattern.search(message), message
    for message in ("One table type\n", "docs: " + "x" * 67, "\nreport: late\n", "report:\n", "report: \n"):
        assert not pattern.search(message), message


def commands() -> Iterator[str]:
    for step in loaded(ACTION)["runs"]["steps"]:
        yield from [step["run"]] if "run" in step else []
    for workflow in WORKFLOWS:
        for job in loaded(workflow)["jobs"].values():
            yield from (step["run"] for step in job["steps"] if "run" in step)
    template = loaded(GITLAB)[".testbed"]
    for key in ("before_script", "script", "after_script"):
        yield from template[key]


def test_every_script_that_is_called_is_there_and_can_be_run() -> None:
    called = {path for command in commands() for path in re.findall(r"\.?ci/[a-z-]+", command)}
    assert called == {".ci/run", *(f"ci/{path.name}" for path in SCRIPTS)}
    for path in called:
        assert os.access(REPOSITORY / path, os.X_OK), path


def test_what_is_used_of_others_is_pinned_to_a_commit() -> None:
    for path in (ACTION, *WORKFLOWS):
        for line in path.read_text().splitlines():
            if match := re.search(r"uses: (\S+)(.*)", line):
                pinned = re.fullmatch(r"actions/[a-z/-]+@[0-9a-f]{40}", match[1])
                assert match[1] == "./" or (pinned and re.fullmatch(r" # v\d+\.\d+\.\d+", match[2])), line


def test_no_input_is_pasted_into_a_script() -> None:
    """What somebody else may have written goes by way of the environment."""
    assert not [command for command in commands() if "${{" in command]


def variables() -> set[str]:
    assert steps.__doc__
    return set(re.findall(r"TESTBED_[A-Z_]+", steps.__doc__.replace(", _", ", TESTBED_")))


def test_every_input_reaches_the_scripts_and_is_documented() -> None:
    action = loaded(ACTION)
    docs = (REPOSITORY / "docs" / "ci.md").read_text()
    for name in action["inputs"]:
        assert f"`{name}`" in docs, name
    (prepare,) = [step for step in action["runs"]["steps"] if step.get("id") == "prepare"]
    assert set(prepare["env"]) == variables() - {"TESTBED_OUT"}
    for name, value in prepare["env"].items():
        assert value == "${{ inputs." + name.removeprefix("TESTBED_").lower().replace("_", "-") + " }}"


def test_gitlab_keeps_what_the_steps_name() -> None:
    template = loaded(GITLAB)[".testbed"]
    assert template["cache"]["paths"] == [f".testbed-cache/testbed/{name}" for name in steps.CACHED]
    assert template["variables"]["XDG_CACHE_HOME"] == "$CI_PROJECT_DIR/.testbed-cache"
    out = template["variables"]["TESTBED_OUT"]
    assert template["artifacts"]["paths"] == [f"{out}/"]
    assert template["artifacts"]["reports"]["junit"].startswith(f"{out}/results/")


# --- the steps, as GitHub runs them -----------------------------------------------------------------


@dataclass
class Job:
    """What came of a job: the exit status of each step by its name, what it said, what it left."""

    statuses: Mapping[str, int]
    said: str
    outputs: Mapping[str, str]
    summary: str
    out: Path

    @property
    def status(self) -> int:
        return max(self.statuses.values())


def stub(directory: Path, name: str, body: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def stubs(directory: Path) -> None:
    """Programs that would change this machine; what they were asked for is in the file `asked`."""
    asked = directory.parent / "asked"
    asked.touch()
    for name in ("apt-get", "python3", "udevadm"):
        stub(directory, name, f'echo {name} "$@" >>{asked}')
    stub(directory, "tee", f'echo tee "$@" >>{asked}; cat >>{asked}')
    stub(directory, "sudo", 'shift; exec "$@"')


def recorded_lab(directory: Path) -> Path:
    """What stands in for Python: it does the steps where trials are recorded ones."""
    stub(directory, "recorded-lab", f'exec {sys.executable} -m tests.recorded_lab "$@"')
    return directory / "recorded-lab"


def outputs_of(file: Path) -> dict[str, str]:
    found = re.findall(r"(?ms)^([a-z-]+)<<(\S+)\n(.*?)\n\2$", file.read_text())
    return {name: value for name, _, value in found}


def act(directory: Path, given: Mapping[str, str], fake: Mapping[str, Any]) -> Job:
    """Every script of the action, in a shell as GitHub's, until one fails; then those that run anyway."""
    workspace = directory / "workspace"
    workspace.mkdir(exist_ok=True)
    stubs(directory / "bin")
    summary, outputs = directory / "summary", directory / "outputs"
    summary.write_text("")
    outputs.write_text("")
    action = loaded(ACTION)
    inputs = {**{name: said.get("default", "") for name, said in action["inputs"].items()}, **given}
    environment = {
        **os.environ,
        "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "FAKE": json.dumps(fake),
        "TESTBED_PYTHON": str(recorded_lab(directory / "bin")),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTION_PATH": str(REPOSITORY),
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(outputs),
    }
    statuses: dict[str, int] = {}
    said = ""
    for step in action["runs"]["steps"]:
        condition = step.get("if", "")
        if "run" not in step or (any(statuses.values()) and "!cancelled()" not in condition):
            continue
        if "steps.prepare.outcome == 'success'" in condition and statuses["Prepare the experiment"]:
            continue
        mine = {
            name: inputs[value.removeprefix("${{ inputs.").removesuffix(" }}")]
            for name, value in step.get("env", {}).items()
        }
        assert step["shell"] == "bash"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=workspace,
            env={**environment, **mine},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        statuses[step["name"]] = done.returncode
        said += done.stdout
    return Job(statuses, said, outputs_of(outputs), summary.read_text(), workspace / "testbed-ci")


@pytest.fixture
def patched(tmp_path: Path) -> dict[str, str]:
    """The inputs of somebody with a patch."""
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "my.patch").write_text(DIFF)
    return {"experiment": "reclaim-capture", "patches": "my.patch", "fail-on": "any primary regressed"}


def test_a_patch_that_does_no_harm_passes(tmp_path: Path, patched: dict[str, str]) -> None:
    job = act(tmp_path, {**patched, "mode": "deterministic"}, {"counts": SAME})
    assert job.status == 0, job.said
    assert (job.outputs["status"], job.outputs["fallback"]) == ("0", "")
    assert job.summary.startswith("**testbed: passed**\n\n# reclaim-capture-my\n")
    assert "| metric | unpatched | patched |" in job.summary and "::" not in job.said
    assert (job.out / "summary.md").read_text() == job.summary
    result = job.out / "results" / "reclaim-capture-my"
    assert job.outputs["out"] == str(job.out)
    for name in ("report.html", "report.json", "report.md", "report.ktap", "ledger.sqlite"):
        assert (result / name).stat().st_size, name
    assert list((result / "pictures").glob("*.svg"))
    assert ElementTree.parse(result / "report.xml").getroot().tag == "testsuites"
    # Set-up and udev were asked for, and by this test kept from doing anything.
    assert "python3 -m testbed.setup.bootstrap\n" in (tmp_path / "asked").read_text()


def test_a_patch_that_does_harm_fails_the_gate(tmp_path: Path, patched: dict[str, str]) -> None:
    job = act(tmp_path, {**patched, "mode": "deterministic"}, {"counts": WORSE})
    assert job.statuses["Compare"] == 1 and job.outputs["status"] == "1"
    met = "failed: any primary regressed: patched: direct reclaims: regressed by +30"
    assert job.summary.startswith(f"**testbed: the gate failed**\n\n`````text\n{met}")
    # The report is there all the same, and so is what the next run may use.
    assert "\n# reclaim-capture-my\n" in job.summary
    assert "::error title=testbed::the gate failed%0Afailed: any primary" in job.said
    assert job.statuses["Name what is cached"] == 0 and len(job.outputs["cache-contents"]) == 16
    case = ElementTree.parse(job.out / "results" / "reclaim-capture-my" / "report.xml").getroot()
    assert case.findall(".//failure")


def test_without_kvm_it_is_deterministic_and_says_so(tmp_path: Path, patched: dict[str, str]) -> None:
    job = act(tmp_path, patched, {"counts": SAME, "kvm": "there is no /dev/kvm"})
    why = "deterministic instead of in real time: KVM does not work here: there is no /dev/kvm"
    assert (job.status, job.outputs["fallback"]) == (0, why)
    assert f"> **{why}**" in job.summary and f"::warning title=testbed::{why}\n" in job.said
    document = json.loads((job.out / "results" / "reclaim-capture-my" / "report.json").read_text())
    assert document["experiment"]["mode"] == "deterministic"
    assert why in (job.out / "results" / "reclaim-capture-my" / "report.html").read_text()


def test_with_kvm_it_is_in_real_time(tmp_path: Path, patched: dict[str, str]) -> None:
    job = act(tmp_path, patched, {"counts": SAME, "kvm": None})
    assert (job.status, job.outputs["fallback"]) == (0, "")
    document = json.loads((job.out / "results" / "reclaim-capture-my" / "report.json").read_text())
    assert document["experiment"]["mode"] == "realtime"
    assert document["provenance"]["accelerator"]["name"] == "kvm"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experiment": ""}, "TESTBED_EXPERIMENT: which experiment?"),
        (
            {"experiment": "reclaim-captur"},
            "reclaim-captur: no such file\n  testbed's own are alternatives, anon, boot-memory, ",
        ),
        ({"patches": "my.patch other.patch"}, "TESTBED_PATCHES: other.patch: no such file"),
        ({"patches": "*.diff"}, "TESTBED_PATCHES: *.diff: no such file"),
        ({"base": "HEAD^1"}, "--base, --head: are revisions of a tree"),
        ({"tree": ".", "line": "6.12"}, "both name a kernel source"),
        ({"tree": ".", "base": "v6.1", "patches": ""}, "--tree: "),
        ({"mode": "fast"}, "TESTBED_MODE: `fast` is none of deterministic, realtime, auto"),
        ({"seeds": "many"}, "TESTBED_SEEDS: 'many' is not a whole number"),
        ({"jobs": "0"}, "TESTBED_JOBS: '0' is not a whole number"),
        ({"line": "5.4"}, "there is no kernel line `5.4`: 6.1"),
        ({"fail-on": "any primary worse"}, "--fail-on: `worse` is no verdict"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_status_2(
    tmp_path: Path, patched: dict[str, str], changes: dict[str, str], said: str
) -> None:
    job = act(tmp_path, {**patched, **changes}, {"counts": SAME})
    assert (job.status, job.outputs["status"]) == (2, "2"), job.said
    assert job.summary.startswith("**testbed: bad input**\n") and said in job.summary
    assert "::error title=testbed::" in job.said and "Traceback" not in job.said


@pytest.mark.parametrize("error", ["HostError", "BuildError", "GuestLost", "RuntimeError"])
def test_what_the_infrastructure_fails_at_is_status_3(
    tmp_path: Path, patched: dict[str, str], error: str
) -> None:
    """A bug of testbed's own as well: Python's status for that would be that of a failed gate."""
    job = act(tmp_path, patched, {"counts": SAME, "fail": error})
    assert (job.statuses["Compare"], job.outputs["status"]) == (3, "3"), job.said
    assert job.summary.startswith("**testbed: the infrastructure failed**\n")
    assert f"{error}, as asked" in job.summary


def test_a_report_of_an_earlier_job_is_not_taken_for_this_ones(
    tmp_path: Path, patched: dict[str, str]
) -> None:
    earlier = tmp_path / "workspace" / "testbed-ci" / "results" / "reclaim-capture-my" / "report.md"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("# reclaim-capture-my\n")
    job = act(tmp_path, patched, {"counts": SAME, "fail": "HostError"})
    assert "# reclaim-capture-my" not in job.summary


def test_a_comparison_without_a_preparation_is_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "ci" / "steps.py", "compare"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "`ci/step prepare` writes it" in done.stderr


# --- what becomes of patches and trees --------------------------------------------------------------


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ci/step prepare` in this process: the experiment that comes of the variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(**given: str) -> Experiment:
        for name in variables():
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(f"TESTBED_{name.upper()}", value)
        assert steps.prepare() == 0
        job = json.loads((tmp_path / "testbed-ci" / "job.json").read_text())
        return load(Path(job["experiment"]))

    return run


def git(tree: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=tree, capture_output=True, text=True, check=True, env=os.environ
    )
    return done.stdout.strip()


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A tree with a pull request: main went on after the branch had left it."""
    tree = tmp_path / "linux"
    tree.mkdir()
    git(tree, "init", "--quiet")
    (tree / "vmscan.c").write_text("one\ntwo\nthree\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "fork")
    git(tree, "checkout", "--quiet", "-b", "pull")
    (tree / "vmscan.c").write_text("one\n2\nthree\n")
    (tree / "new.c").write_text("new\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "change")
    git(tree, "checkout", "--quiet", "main")
    (tree / "other.c").write_text("other\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "main goes on")
    git(tree, "checkout", "--quiet", "pull")
    return tree


def test_an_experiment_alone_is_taken_as_it_is(prepare: Any, tmp_path: Path) -> None:
    assert prepare(experiment="reclaim-capture") == load(EXPERIMENT)
    assert not (tmp_path / "testbed-ci" / "experiment.yaml").exists()


def test_patches_are_compared_with_the_first_arm_as_it_is(prepare: Any, tmp_path: Path) -> None:
    for name in ("0001-a.patch", "0002-b.patch", "other.patch"):
        (tmp_path / name).write_text(DIFF)
    made = prepare(experiment="reclaim-capture", patches="other.patch 000*.patch")
    files = [str(tmp_path / name) for name in ("other.patch", "0001-a.patch", "0002-b.patch")]
    assert {name: list(arm.patches) for name, arm in made.arms.items()} == {
        "unpatched": ["instrumentation"],
        "patched": ["instrumentation", *files],
    }
    kept = load(EXPERIMENT)
    assert (made.guest, made.workload, made.primary) == (kept.guest, kept.workload, kept.primary)
    assert made.kernel == kept.kernel
    assert made.description == f"reclaim-capture, with {' '.join(files)}"


def kernels(made: Experiment) -> dict[str, GitSource | None]:
    return {name: (arm.kernel or made.kernel).git for name, arm in made.arms.items()}


def test_a_tree_and_its_base_are_two_arms(prepare: Any, linux: Path) -> None:
    made = prepare(experiment="mglru", tree="linux", base="main")
    # Without what main did meanwhile, and HEAD as it is now, whatever it is when the experiment runs.
    revisions = {"base": git(linux, "rev-parse", "main^"), "head": git(linux, "rev-parse", "pull")}
    assert kernels(made) == {
        name: GitSource(repository=str(linux), revision=revision) for name, revision in revisions.items()
    }
    assert [list(arm.patches) for arm in made.arms.values()] == [[], []]


def test_the_merge_that_github_makes_of_a_pull_request_has_its_base_as_a_parent(
    prepare: Any, linux: Path, tmp_path: Path
) -> None:
    git(linux, "checkout", "--quiet", "main")
    git(linux, "merge", "--quiet", "--no-ff", "pull", "-m", "merge")
    # As actions/checkout has it with `fetch-depth: 2`.
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "2", f"file://{linux}", str(shallow))
    made = prepare(experiment="mglru", tree="shallow", base="HEAD^1")
    revisions = {name: spec.revision for name, spec in kernels(made).items() if spec}
    assert revisions == {
        "base": git(linux, "rev-parse", "main^1"),
        "head": git(linux, "rev-parse", "main"),
    }


def test_a_tree_alone_stands_in_for_the_source(prepare: Any, linux: Path, tmp_path: Path) -> None:
    made = prepare(experiment="reclaim-capture", tree="linux")
    assert made.kernel == KernelSpec(tree=linux)
    assert made.arms == load(EXPERIMENT).arms
    (tmp_path / "my.patch").write_text(DIFF)
    made = prepare(experiment="reclaim-capture", tree="linux", patches="my.patch")
    assert made.kernel.tree == linux and list(made.arms) == ["unpatched", "patched"]


def test_what_cannot_be_compared_is_refused(prepare: Any, linux: Path) -> None:
    with pytest.raises(SpecError, match="head: is to be compared with itself"):
        prepare(experiment="mglru", tree="linux", base="HEAD")
    with pytest.raises(SpecError, match="has no `v9` that HEAD has anything in common with"):
        prepare(experiment="mglru", tree="linux", base="v9")
    with pytest.raises(SpecError, match="--base, --head: are revisions of a tree"):
        prepare(experiment="mglru", base="v9")


def test_what_people_compare_by_words_is_what_a_job_compares(prepare: Any, tmp_path: Path) -> None:
    (tmp_path / "my.patch").write_text(DIFF)
    made = prepare(experiment="reclaim-capture", patches="my.patch")
    words = derive.Words(patches=(str(tmp_path / "my.patch"),))
    said = derive.changed(ExperimentRequest(EXPERIMENT), words, tmp_path / "cache").first()
    assert made.model_dump() == said.model_dump()


def test_paths_and_a_matrix_in_the_experiment_stay_what_they_were(prepare: Any, tmp_path: Path) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    said = yaml.safe_load((REPOSITORY / "experiments" / "mglru.yaml").read_text())
    said["kernel"]["config"] = ["guest", "reclaim", "./more.config"]
    said["arms"] = {"x": {"patches": ["./own.patch"], "sysctl": {"vm.swappiness": 10}}}
    said["workload"] = {"command": ["sh", "-c", "true"], "files": ["data:/data"], "seconds": 1}
    said["primary"] = {}
    said["matrix"] = {"guest.memory": ["96M", "128M"]}
    (home / "mine.yaml").write_text(yaml.safe_dump(said))
    (tmp_path / "my.patch").write_text(DIFF)
    prepare(experiment="mine/mine.yaml", patches="my.patch")
    cells = expand(tmp_path / "testbed-ci" / "experiment.yaml")
    assert [cell.label for cell in cells] == ["memory=96M", "memory=128M"]
    made = cells[1].experiment
    assert made.kernel.config == ("guest", "reclaim", str(home / "more.config"))
    assert made.workload.files == (f"{home / 'data'}:/data",)
    assert made.arms["patched"].patches == (str(home / "own.patch"), str(tmp_path / "my.patch"))
    assert made.arms["unpatched"].sysctl == made.arms["patched"].sysctl == {"vm.swappiness": 10}


@pytest.mark.parametrize(
    ("line", "lines"), [("", [None]), ("6.12", ["6.12"]), ("all", ["6.1", "6.12", "7.2", "7.3"])]
)
def test_options_are_those_of_compare(
    prepare: Any, tmp_path: Path, line: str, lines: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(experiment="mglru", line=line, seeds="4", jobs="2", fail_on="\nany regressed\n\nmisses undecided")
    (said,) = [said for said in capsys.readouterr().err.splitlines() if said.startswith("testbed: testbed")]
    words = shlex.split(said)[2:]
    assert words[2:] == [
        *("--mode", "auto"),
        *(["--line", line] if line else []),
        *("--seeds", "4", "--jobs", "2", "--fail-on", "any regressed", "--fail-on", "misses undecided"),
    ]
    # It is what a person would type, and what is done is what `testbed compare` would do.
    arguments = parser().parse_args(words)
    job = steps.Job(**json.loads((tmp_path / "testbed-ci" / "job.json").read_text()))
    assert (job.request.run.experiment.mode, job.request.run.jobs) == (arguments.mode, arguments.jobs)
    assert [str(met) for met in job.request.fail_on] == arguments.fail_on
    ran: list[str | None] = []

    def replaced(request: CompareRequest, *_: object) -> Compared:
        ran.append(request.run.experiment.line)
        raise HostError("not to be had")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "compare", replaced)
        patch.setattr(steps, "compare_arms", replaced)
        assert steps.main(["compare"]) == 3
    assert ran == lines


# --- caches -----------------------------------------------------------------------------------------


def test_the_key_of_a_cache_is_of_what_goes_into_it(
    prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "outputs"))
    (tmp_path / "my.patch").write_text(DIFF)

    def key(**given: str) -> str:
        (tmp_path / "outputs").write_text("")
        prepare(**given)
        found = outputs_of(tmp_path / "outputs")
        assert found["cache-keys"].splitlines() == [found["cache-key"], found["cache-key"][:-17]]
        return found["cache-key"]

    first = key(experiment="mglru", patches="my.patch")
    assert re.fullmatch(r"testbed-1-[a-z]+[0-9.]*-[0-9a-f]{16}-", first)
    # Neither is in any kernel or image.
    assert key(experiment="mglru", patches="my.patch", seeds="3", fail_on="any regressed") == first
    assert key(experiment="modes", patches="my.patch") != first
    (tmp_path / "my.patch").write_text(DIFF.replace("two", "three"))
    assert key(experiment="mglru", patches="my.patch") != first


def test_the_oldest_kernels_go_when_the_cache_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "outputs"))
    monkeypatch.setattr(steps, "KEEP_BYTES", 2500)
    home = tmp_path / "testbed"
    for age, name in enumerate(("kernels/c", "kernels/b", "kernels/a")):
        (home / name).mkdir(parents=True)
        (home / name / "vmlinux").write_bytes(bytes(1000))
        os.utime(home / name, (1000 + age, 1000 + age))
    for name in ("images/i.cpio", "snapshots/s", "snapshots/s.lock", "sources/huge"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(bytes(400))

    def contents() -> str:
        (tmp_path / "outputs").write_text("")
        assert steps.cache() == 0
        return outputs_of(tmp_path / "outputs")["cache-contents"]

    first = contents()
    assert sorted(entry.name for entry in (home / "kernels").iterdir()) == ["a", "b"]
    # Sources are neither named nor trimmed, and locks are nothing.
    (home / "sources" / "huge").unlink()
    (home / "snapshots" / "s.lock").unlink()
    assert contents() == first
    (home / "snapshots" / "t").touch()
    assert contents() != first


# --- set-up and KVM ---------------------------------------------------------------------------------


def script(name: str, directory: Path, *words: object) -> tuple[int, str, str]:
    """A script with stubs; its status, what it said, what it asked for."""
    stubs(directory / "bin")
    environment = {**os.environ, "PATH": f"{directory / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [REPOSITORY / "ci" / name, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, (directory / "asked").read_text()


RULE = """\
tee /etc/udev/rules.d/99-kvm4all.rules
KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"
udevadm control --reload-rules
udevadm trigger --name-match=kvm
udevadm settle --timeout=10
"""


def test_kvm_that_is_not_there_or_opens_is_left_alone(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert script("open-kvm", tmp_path, device) == (0, f"open-kvm: there is no {device}\n", "")
    device.touch()
    assert script("open-kvm", tmp_path, device) == (0, f"open-kvm: {device} opens\n", "")


def test_kvm_that_does_not_open_gets_the_documented_rule(tmp_path: Path) -> None:
    # A directory is what not even root can open for writing.
    device = tmp_path / "kvm"
    device.mkdir()
    status, said, asked = script("open-kvm", tmp_path, device)
    assert (status, asked) == (0, RULE) and f"{device} does not open" in said
    stub(tmp_path / "bin", "udevadm", f'[ "$1" != settle ] || {{ rmdir {device} && : >{device}; }}')
    stub(tmp_path / "bin", "tee", "cat >/dev/null")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [REPOSITORY / "ci" / "open-kvm", device], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == f"open-kvm: {device} opens, with /etc/udev/rules.d/99-kvm4all.rules\n"


def test_kvm_that_cannot_be_opened_by_any_means_fails_nothing(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.mkdir()
    stubs(tmp_path / "bin")
    for program in ("tee", "sudo"):
        stub(tmp_path / "bin", program, "exit 1")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    check_status = subprocess.run(
        [REPOSITORY / "ci" / "open-kvm", device], env=environment, capture_output=True, check=False
    )
    assert check_status.returncode == 0 and b"does not open" in check_status.stderr


def test_set_up_installs_what_a_bare_container_lacks(tmp_path: Path) -> None:
    """With neither git nor Python; apt-get, here, brings the latter."""
    bare = tmp_path / "bin"
    stubs(bare)
    for program in ("sh", "dirname", "id", "env", "ln"):
        (bare / program).symlink_to(str(shutil.which(program)))
    (bare / "python3").rename(bare / "later")
    asked = tmp_path / "asked"
    stub(bare, "apt-get", f'echo apt-get "$@" >>{asked}; [ "$1" = update ] || ln -sf later {bare}/python3')
    argv = [str(REPOSITORY / "ci" / "set-up"), "--dev"]
    subprocess.run(argv, env={"PATH": str(bare)}, capture_output=True, check=True)
    assert asked.read_text().splitlines() == [
        "apt-get update -qq",
        "apt-get install -qq -y --no-install-recommends ca-certificates git python3",
        "python3 -m testbed.setup.bootstrap --dev",
    ]
    (bare / "python3").unlink()
    stub(bare, "apt-get", "exit 100")
    assert subprocess.run(argv, env={"PATH": str(bare)}, capture_output=True, check=False).returncode == 3
    (bare / "apt-get").unlink()
    done = subprocess.run(argv, env={"PATH": str(bare)}, capture_output=True, check=False)
    assert done.returncode == 3 and b"no git python3 here, and no apt-get" in done.stderr


def test_all_of_it_in_one(tmp_path: Path) -> None:
    """ci/all, which GitLab runs, ends as its last step does."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "my.patch").write_text(DIFF)
    stubs(tmp_path / "bin")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "FAKE": json.dumps({"counts": WORSE, "kvm": "none"}),
        "TESTBED_PYTHON": str(recorded_lab(tmp_path / "bin")),
        "TESTBED_EXPERIMENT": "reclaim-capture",
        "TESTBED_PATCHES": "my.patch",
        "TESTBED_FAIL_ON": "any primary regressed",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name in ("GITHUB_ACTIONS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        environment.pop(name, None)
    done = subprocess.run(
        [REPOSITORY / "ci" / "all"],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "::" not in done.stdout and done.stdout.startswith("reclaim-capture-my\n")
    (junit,) = workspace.glob("testbed-ci/results/**/report.xml")
    assert ElementTree.parse(junit).getroot().tag == "testsuites"
    assert (workspace / "testbed-ci" / "summary.md").read_text().startswith("**testbed: the gate failed**")
