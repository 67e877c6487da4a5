# SPDX-License-Identifier: GPL-2.0-only
"""The steps of a continuous-integration job, the same on GitHub, on GitLab and on one's own machine.

    ci/step prepare     check the variables, write the experiment, say what to cache
    ci/step compare     run it, write the summary, gate
    ci/step cache       keep the cache small, say what is in it now

What to do is in the environment:

    TESTBED_EXPERIMENT  a file, or the name of one of testbed's own; its first arm is the baseline
    TESTBED_PATCHES     patch files, in order; then there are two arms, `base` and `patched`
    TESTBED_TREE        a kernel tree, instead of the experiment's source
    TESTBED_BASE        a revision of that tree: `patched` is HEAD, `base` is where HEAD has left it
    TESTBED_LINE, _MODE, _SEEDS, _JOBS
                        as the options of `testbed compare`; the mode is `auto` if not given
    TESTBED_FAIL_ON     conditions of --fail-on, one a line
    TESTBED_OUT         where all output goes; testbed-ci if not given

Exit status: 0 fine; 1 the gate failed, or nothing could be compared; 2 bad input; 3 infrastructure; 130
stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import shutil
import sys
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import cli
from testbed.analysis.metrics import METRICS
from testbed.experiment import load
from testbed.host import process
from testbed.host.errors import HostError, Interrupted, SpecError, TestbedError
from testbed.host.paths import REPOSITORY, cache_directory
from testbed.kernel import series, source
from testbed.report.escape import escaped, visible

# Whatever goes wrong is the infrastructure's, unless it says otherwise.
INFRASTRUCTURE = HostError.exit_status
OK, GATE = 0, 1
GIT_SECONDS = 300.0
TAIL_LINES = 20
# What takes long to make and is named by what it is made of. Sources and work trees would be gigabytes.
CACHED = ("kernels", "images", "snapshots", "plugins", "qemu")
# Snapshots are kept few by who makes them. A kernel is 20 MB.
KEEP_BYTES = 1 << 30
TRIMMED = ("kernels", "images")
# What a kernel, an image or a trial is made of, beside the experiment.
INGREDIENTS = ("kconfigs", "patches", "images", "requirements.txt")


@dataclass(frozen=True)
class Job:
    """What `prepare` has made of the variables. `results` are directories of `testbed compare`."""

    words: Sequence[str]
    results: Sequence[str]


def main(arguments: Sequence[str]) -> int:
    """Do one step; return its exit status."""
    steps = {"prepare": prepare, "compare": compare, "cache": cache}
    try:
        if len(arguments) != 1 or arguments[0] not in steps:
            raise SpecError(f"usage: ci/step {'|'.join(steps)}")
        return steps[arguments[0]]()
    except TestbedError as failed:
        status, said = failed.exit_status, str(failed)
    except Exception:
        # Python's own exit status for this is that of a failed gate.
        status, said = INFRASTRUCTURE, traceback.format_exc()
    _say(said)
    _annotate("error", said)
    _summarize(_headline(status), said.splitlines())
    _output("status", str(status))
    return status


# --- prepare -------------------------------------------------------------------------------------


def prepare() -> int:
    """Check what can be checked at once, write the experiment and the job, tell what to cache."""
    given = _given("TESTBED_EXPERIMENT")
    if not given:
        raise SpecError("TESTBED_EXPERIMENT: which experiment?")
    out = _out()
    out.mkdir(parents=True, exist_ok=True)
    file, added = _experiment_file(given), list[Path]()
    tree, base, line = _given("TESTBED_TREE"), _given("TESTBED_BASE"), _given("TESTBED_LINE")
    patches = _patches(_given("TESTBED_PATCHES"))
    if base and (patches or not tree):
        raise SpecError(
            "TESTBED_BASE: a base is a revision of TESTBED_TREE, and what follows it are the patches"
        )
    if tree and line:
        raise SpecError("TESTBED_LINE and TESTBED_TREE both name a kernel source")
    if tree or patches:
        file, added = _derived(file, Path(tree) if tree else None, base, patches, out)
    name = load(file, metrics=[metric.name for metric in METRICS]).name
    job = Job(_words(file, line), _results(name, line))
    _job_file(out).write_text(json.dumps(asdict(job), indent=1) + "\n")
    _say(process.pasteable(["testbed", *job.words]))
    system = f"testbed-1-{_system()}-"
    inputs = f"{system}{_content([*(REPOSITORY / name for name in INGREDIENTS), file, *added])}-"
    _output("cache-key", inputs)
    _output("cache-keys", f"{inputs}\n{system}")
    _output("cache-paths", "\n".join(str(cache_directory() / name) for name in CACHED))
    _output("out", str(out))
    return OK


def _experiment_file(given: str) -> Path:
    for path in (Path(given), REPOSITORY / given, REPOSITORY / "experiments" / f"{given}.yaml"):
        if path.is_file():
            return path.resolve()
    own = ", ".join(sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.yaml")))
    raise SpecError(f"TESTBED_EXPERIMENT: {given}: no such file", f"testbed's own are {own}")


def _patches(given: str) -> list[Path]:
    found: list[Path] = []
    for word in shlex.split(given):
        parent, pattern = Path(word).parent, Path(word).name
        files = sorted(parent.glob(pattern)) if set(pattern) & set("*?[") else [Path(word)]
        if not files or not all(file.is_file() for file in files):
            raise SpecError(f"TESTBED_PATCHES: {word}: no such file")
        found += [file.resolve() for file in files]
    return found


def _derived(
    template: Path, tree: Path | None, base: str, patches: list[Path], out: Path
) -> tuple[Path, list[Path]]:
    """The template's experiment, on that tree and with two arms if there is something to compare.

    With the files, beside it, that its results depend on.
    """
    found = load(template, metrics=[metric.name for metric in METRICS])
    # As written, a matrix and all; but what has paths in it as testbed understands them from here on.
    said: dict[str, Any] = yaml.safe_load(template.read_text(encoding="utf-8"))
    kernel = found.kernel.model_dump(mode="json", exclude_none=True)
    arms = {name: arm.model_dump(mode="json", exclude_defaults=True) for name, arm in found.arms.items()}
    if tree:
        on: dict[str, Any] = {"tree": str(tree.resolve())}
        if base:
            fork, patch = _change(tree, base, out)
            on, patches = {"git": {"repository": str(tree.resolve()), "revision": fork}}, [patch]
        kernel = {"config": kernel["config"], **on}
    if patches:
        first, baseline = next(iter(arms.items()))
        with_them = [*baseline.get("patches", []), *map(str, patches)]
        arms = {"base": baseline, "patched": {**baseline, "patches": with_them}}
        names = ", ".join(patch.name for patch in patches)
        said["description"] = f"The arm {first} of {template.name}, and the same with {names}."
    if found.workload.files:
        said["workload"]["files"] = list(found.workload.files)
    file = out / "experiment.yaml"
    # By way of JSON, or YAML would refer from one arm to what the other has, too.
    made = json.loads(json.dumps({**said, "kernel": kernel, "arms": arms}))
    file.write_text(yaml.safe_dump(made, sort_keys=False))
    return file, patches


def _change(tree: Path, base: str, out: Path) -> tuple[str, Path]:
    """Where HEAD has left the base, and what came since, as one patch."""
    fork = _git(tree, "merge-base", "--end-of-options", base, "HEAD").strip()
    # Whatever the user's configuration makes of a diff.
    diff = ["diff", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", "-U3"]
    diff += ["--src-prefix=a/", "--dst-prefix=b/"]
    for row in _git(tree, *diff, "--numstat", fork, "HEAD").splitlines():
        if row.startswith("-\t-\t"):
            raise SpecError(f"TESTBED_BASE: {row[4:]} is binary, and no patch can change it")
    patch = out / "change.patch"
    patch.write_bytes(_git(tree, *diff, "--full-index", fork, "HEAD").encode("utf-8", "surrogateescape"))
    if not patch.stat().st_size:
        raise SpecError(f"TESTBED_BASE: there is nothing between {base} and HEAD of {tree}")
    return fork, patch


def _git(tree: Path, *words: str) -> str:
    # Named, git asks nobody whose directory that is: in a container it is often another user's.
    git_dir = source.git_directory(tree).resolve()
    done = source.git(git_dir, *words, timeout=GIT_SECONDS, error=HostError, check=False)
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["no common ancestor"])[0]
        raise SpecError(
            f"TESTBED_BASE: {tree}: {said}",
            "the tree has to be a git repository with all commits from the base to HEAD: docs/ci.md",
        )
    return done.stdout.decode("utf-8", "surrogateescape")


def _words(file: Path, line: str) -> list[str]:
    words = ["compare", str(file), "--mode", _given("TESTBED_MODE") or "auto"]
    for option, value in {
        "--line": line,
        "--seeds": _given("TESTBED_SEEDS"),
        "--jobs": _given("TESTBED_JOBS"),
    }.items():
        words += [option, value] if value else []
    for condition in filter(None, map(str.strip, _given("TESTBED_FAIL_ON").splitlines())):
        words += ["--fail-on", condition]
    return words


def _results(name: str, line: str) -> list[str]:
    lines = [known.directory for known in series.lines()] if line == "all" else [line]
    return [str(Path("results") / "-".join(filter(None, [name, line]))) for line in lines]


# --- compare -------------------------------------------------------------------------------------


def compare() -> int:
    """Run what `prepare` has prepared; write the summary; return the exit status of `testbed compare`."""
    out = _out()
    try:
        job = Job(**json.loads(_job_file(out).read_text()))
    except (OSError, ValueError, TypeError) as bad:
        raise SpecError(f"{_job_file(out)}: {bad}", "`ci/step prepare` writes it") from bad
    homes = [out / result for result in job.results]
    for home in homes:
        # Of an earlier job, perhaps.
        (home / "report.md").unlink(missing_ok=True)
    told = Tee(sys.stderr)
    # cli finds its own way to say that something is wrong, but for words that it cannot parse.
    try:
        with contextlib.chdir(out), contextlib.redirect_stderr(told):
            status = cli.main(job.words)
    except SystemExit as ended:
        status = int(ended.code or OK)
    reports = [home for home in homes if (home / "report.md").exists()]
    changed = list(dict.fromkeys(fallback for home in reports for fallback in _fallbacks(home)))
    gate = [line for line in told.lines if line.startswith("failed: ")]
    headline = _headline(status, gate, reports)
    text = _summarize(headline, gate or (told.lines[-TAIL_LINES:] if status else []), changed, reports)
    (out / "summary.md").write_text(text, encoding="utf-8")
    for fallback in changed:
        _annotate("warning", fallback)
    if status != OK:
        _annotate("error", "\n".join([headline, *gate]))
    _output("status", str(status))
    _output("fallback", "; ".join(changed))
    return status


class Tee(io.TextIOBase):
    """What is written goes on to a stream, and is remembered as `lines`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._text: list[str] = []

    def write(self, text: str) -> int:
        self._text.append(text)
        self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    @property
    def lines(self) -> list[str]:
        return "".join(self._text).splitlines()


def _headline(status: int, gate: Sequence[str] = (), reports: Sequence[Path] = ()) -> str:
    if status == OK:
        return "passed"
    if status == GATE:
        return "the gate failed" if gate else "nothing could be compared"
    failed = {SpecError.exit_status: "bad input", Interrupted.exit_status: "stopped"}
    what = failed.get(status, "the infrastructure failed")
    return f"{what}; below is what there is of a result" if reports else what


def _fallbacks(home: Path) -> Iterator[str]:
    """Why it ran otherwise than it was meant to; of a matrix, in every cell."""
    for file in sorted(home.rglob("report.json")):
        if said := json.loads(file.read_text()).get("provenance", {}).get("fallback"):
            yield said


def _summarize(
    headline: str, said: Sequence[str], changed: Sequence[str] = (), reports: Sequence[Path] = ()
) -> str:
    """Append to the summary of the job, if there is one to append to; return what."""
    parts = [f"**testbed: {headline}**", *(f"> **{escaped(fallback)}**" for fallback in changed)]
    if said:
        # A fence longer than any in the text.
        parts.append("\n".join(["`````text", *map(visible, said), "`````"]))
    # Each report begins with a heading of the first level.
    parts += [(home / "report.md").read_text(encoding="utf-8") for home in reports]
    text = "\n\n".join(parts) + "\n"
    if target := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(target).open("a", encoding="utf-8") as summary:
            summary.write(text)
    return text


# --- cache ---------------------------------------------------------------------------------------


def cache() -> int:
    """Forget the oldest kernels and images, and name what is left by its content.

    For a cache that belongs to the job: its next one may need what is forgotten.
    """
    home = cache_directory()
    made = [entry for name in TRIMMED for entry in _entries(home / name)]
    sizes = {entry: _size(entry) for entry in made}
    total = sum(sizes.values())
    for entry in sorted(made, key=lambda entry: entry.stat().st_mtime):
        if total <= KEEP_BYTES:
            break
        total -= sizes[entry]
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    names = [f"{name}/{entry.name}" for name in CACHED for entry in _entries(home / name)]
    _output("cache-contents", hashlib.sha256("\n".join(names).encode()).hexdigest()[:16])
    return OK


def _entries(directory: Path) -> list[Path]:
    found = sorted(directory.iterdir()) if directory.is_dir() else []
    return [entry for entry in found if entry.suffix != ".lock"]


def _size(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(file.stat().st_size for file in files if file.is_file())


# --- what they share -----------------------------------------------------------------------------


def _given(name: str) -> str:
    return os.environ.get(name, "").strip()


def _out() -> Path:
    return Path(_given("TESTBED_OUT") or "testbed-ci").resolve()


def _job_file(out: Path) -> Path:
    return out / "job.json"


def _system() -> str:
    """As in debian13: other compilers make other kernels."""
    facts: Mapping[str, str] = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    return "".join(facts.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID"))


def _content(paths: Sequence[Path]) -> str:
    """A hash of files and directories: of their names within, and of what is in them."""
    digest = hashlib.sha256()
    for top in paths:
        files = [file for file in sorted(top.rglob("*")) if file.is_file()] if top.is_dir() else [top]
        for file in files:
            data = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(top.parent)}\0{data}\0".encode())
    return digest.hexdigest()[:16]


def _output(name: str, value: str) -> None:
    """An output of the step, on GitHub; elsewhere nobody asks."""
    if target := os.environ.get("GITHUB_OUTPUT"):
        # The value may have lines of any kind, so the mark that ends it cannot be known beforehand.
        mark = f"end-{uuid.uuid4()}"
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(f"{name}<<{mark}\n{value}\n{mark}\n")


def _annotate(level: str, message: str) -> None:
    """A line on the page of the job, on GitHub."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        print(f"::{level} title=testbed::{escaped}", flush=True)


def _say(message: str) -> None:
    print(f"testbed: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
