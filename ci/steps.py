# SPDX-License-Identifier: GPL-2.0-only
"""The steps of a continuous-integration job, the same on GitHub, on GitLab and on one's own machine.

    ci/step prepare     check the variables, write the experiment, say what to cache
    ci/step compare     run it, write the summary, gate
    ci/step cache       keep the cache small, say what is in it now

What to do is in the environment:

    TESTBED_EXPERIMENT  a file, or the name of one of testbed's own; its first arm is the baseline
    TESTBED_PATCHES     patch files, in order; then there are two arms, `unpatched` and `patched`
    TESTBED_TREE        a kernel tree, instead of the experiment's source
    TESTBED_BASE        a revision of that tree: `head` is HEAD, `base` is where HEAD has left it
    TESTBED_LINE, _MODE, _SEEDS, _JOBS
                        as the options of `testbed compare`; the mode is `auto` if not given
    TESTBED_FAIL_ON     conditions of --fail-on, one a line
    TESTBED_OUT         where all output goes; testbed-ci if not given

Exit status: 0 fine; 1 the gate failed, or nothing could be compared; 2 bad input; 3 infrastructure; 130
stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import traceback
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from testbed.host import process
from testbed.host.errors import HostError, Interrupted, SpecError, TestbedError
from testbed.host.paths import cache_directory, data_directory
from testbed.host.process import end_on_signals
from testbed.report.escape import escaped, visible
from testbed.terminal.arguments import positive
from testbed.terminal.progress import Watcher
from testbed.terminal.show import show
from testbed.trials.lab import Lab, ThisMachine
from testbed.verbs import derive
from testbed.verbs.compare import (
    Compared,
    ComparedMatrix,
    CompareRequest,
    LeftOut,
    compare_lines,
    condition,
    refuse_unknown,
)
from testbed.verbs.compare import compare as compare_arms
from testbed.verbs.request import ExperimentRequest, Mode, RunRequest
from testbed.verbs.save import save
from testbed.verbs.status import exit_status_of_lines

# Whatever goes wrong is the infrastructure's, unless it says otherwise.
INFRASTRUCTURE = HostError.exit_status
OK, GATE = 0, 1
# Of TESTBED_LINE.
EVERY_LINE = "all"
# What takes long to make and is named by what it is made of. Sources and work trees would be gigabytes.
CACHED = ("kernels", "images", "snapshots", "plugins", "qemu")
# Snapshots are kept few by who makes them. A kernel is 20 MB.
KEEP_BYTES = 1 << 30
TRIMMED = ("kernels", "images")
# What a kernel, an image or a trial is made of, beside the experiment.
INGREDIENTS = (
    *(data_directory() / name for name in ("kconfigs", "patches", "images")),
    Path(__file__).resolve().parents[1] / "requirements.txt",
)
EXPERIMENTS = data_directory() / "experiments"


@dataclass(frozen=True)
class Job:
    """What `prepare` has made of the variables; conditions are as --fail-on has them."""

    experiment: str
    mode: Mode
    line: str | None
    seeds: int | None
    jobs: int | None
    fail_on: Sequence[str]

    @property
    def request(self) -> CompareRequest:
        """What `testbed compare` is asked for. Raises SpecError."""
        line = None if self.line == EVERY_LINE else self.line
        experiment = ExperimentRequest(Path(self.experiment), self.mode, None, self.seeds, line)
        return CompareRequest(RunRequest(experiment, jobs=self.jobs), tuple(map(condition, self.fail_on)))


def main(arguments: Sequence[str], lab: Lab | None = None) -> int:
    """Do one step; return its exit status."""
    end_on_signals()
    steps = {
        "prepare": prepare,
        "compare": lambda: compare(lab or ThisMachine(cache_directory())),
        "cache": cache,
    }
    try:
        if len(arguments) != 1 or arguments[0] not in steps:
            raise SpecError(f"usage: ci/step {'|'.join(steps)}")
        return steps[arguments[0]]()
    except TestbedError as failed:
        status, said = failed.exit_status, str(failed)
    except KeyboardInterrupt:
        status, said = Interrupted.exit_status, "stopped"
    except Exception:
        # Python's own exit status for this is that of a failed gate.
        status, said = INFRASTRUCTURE, traceback.format_exc()
    _say(said)
    _conclude(status, said.splitlines(), [], [])
    return status


# --- prepare -------------------------------------------------------------------------------------


def prepare() -> int:
    """Check what can be checked at once, write the experiment and the job, tell what to cache."""
    given = _given("TESTBED_EXPERIMENT")
    if not given:
        raise SpecError("TESTBED_EXPERIMENT: which experiment?")
    out = _out()
    out.mkdir(parents=True, exist_ok=True)
    file = _experiment_file(given)
    tree, base, line = _given("TESTBED_TREE"), _given("TESTBED_BASE"), _given("TESTBED_LINE")
    patches = _patches(_given("TESTBED_PATCHES"))
    if tree and line:
        raise SpecError("TESTBED_LINE and TESTBED_TREE both name a kernel source")
    words = derive.Words(tuple(map(str, patches)), tree=Path(tree) if tree else None, base=base or None)
    if words.anything:
        file = _derived(file, words, out)
    job = _job(file, line)
    # What is wrong is said now, and not after the caches were fetched.
    refuse_unknown(job.request.fail_on, job.request.run.experiment.first())
    _job_file(out).write_text(json.dumps(asdict(job), indent=1) + "\n")
    _say(process.pasteable(["testbed", *_words(job)]))
    system = f"testbed-1-{_system()}-"
    inputs = f"{system}{_content([*INGREDIENTS, file, *patches])}-"
    _output("cache-key", inputs)
    _output("cache-keys", f"{inputs}\n{system}")
    _output("cache-paths", "\n".join(str(cache_directory() / name) for name in CACHED))
    _output("out", str(out))
    return OK


def _experiment_file(given: str) -> Path:
    for path in (Path(given), EXPERIMENTS.parent / given, EXPERIMENTS / f"{given}.yaml"):
        if path.is_file():
            return path.resolve()
    own = ", ".join(sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
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


def _derived(file: Path, words: derive.Words, out: Path) -> Path:
    """The file of the experiment that `testbed compare` makes of the same words and that template."""
    made = out / "experiment.yaml"
    # One that an earlier job has left here.
    made.unlink(missing_ok=True)
    return save(derive.changed(ExperimentRequest(file), words, cache_directory()), made)


def _job(file: Path, line: str) -> Job:
    given = _given("TESTBED_MODE") or "auto"
    mode: Mode | None = next((mode for mode in get_args(Mode) if mode == given), None)
    if mode is None:
        raise SpecError(f"TESTBED_MODE: `{given}` is none of {', '.join(get_args(Mode))}")
    conditions = tuple(filter(None, map(str.strip, _given("TESTBED_FAIL_ON").splitlines())))
    return Job(str(file), mode, line or None, _number("TESTBED_SEEDS"), _number("TESTBED_JOBS"), conditions)


def _number(name: str) -> int | None:
    given = _given(name)
    try:
        return positive(given) if given else None
    except argparse.ArgumentTypeError as bad:
        raise SpecError(f"{name}: {bad}") from bad


def _words(job: Job) -> Iterator[str]:
    """The same as a person would type it."""
    yield from ("compare", job.experiment, "--mode", job.mode)
    for option, value in {"--line": job.line, "--seeds": job.seeds, "--jobs": job.jobs}.items():
        yield from (option, str(value)) if value else ()
    for words in job.fail_on:
        yield from ("--fail-on", words)


# --- compare -------------------------------------------------------------------------------------


def compare(lab: Lab) -> int:
    """Run what `prepare` has prepared; write the summary; return the exit status of `testbed compare`."""
    out = _out()
    try:
        job = Job(**json.loads(_job_file(out).read_text()))
    except (OSError, ValueError, TypeError) as bad:
        raise SpecError(f"{_job_file(out)}: {bad}", "`ci/step prepare` writes it") from bad
    outcomes: list[Compared | ComparedMatrix | LeftOut] = []
    said: list[str] = []
    # Results are beneath the directory of the output.
    with contextlib.chdir(out), Watcher() as watcher:
        try:
            for outcome in _outcomes(job, lab, watcher):
                outcomes.append(outcome)
                if not isinstance(outcome, LeftOut):
                    with watcher.aside():
                        show(outcome)
            status = exit_status_of_lines(outcomes)
        except TestbedError as failed:
            # There may be reports of other lines.
            status, said = failed.exit_status, str(failed).splitlines()
            _say(str(failed))
    said += [f"left out: {each.line}: {each.reason}" for each in outcomes if isinstance(each, LeftOut)]
    reported = [each for each in outcomes if not isinstance(each, LeftOut)]
    text = _conclude(status, said, reported, [out / str(each.directory) for each in reported])
    (out / "summary.md").write_text(text, encoding="utf-8")
    return status


def _outcomes(job: Job, lab: Lab, watcher: Watcher) -> Iterator[Compared | ComparedMatrix | LeftOut]:
    if job.line == EVERY_LINE:
        yield from compare_lines(job.request, lab, watcher)
    else:
        yield compare_arms(job.request, lab, watcher)


def _conclude(
    status: int, said: Sequence[str], reported: Sequence[Compared | ComparedMatrix], homes: Sequence[Path]
) -> str:
    """Tell GitHub what came of it; return the summary."""
    gate = [f"failed: {line}" for each in reported for line in each.met]
    changed = list(dict.fromkeys(why for each in reported for why in _fallbacks(each)))
    headline = _headline(status, gate, homes)
    for why in changed:
        _annotate("warning", why)
    if status != OK:
        _annotate("error", "\n".join([headline, *gate, *said]))
    _output("status", str(status))
    _output("fallback", "; ".join(changed))
    return _summarize(headline, [*gate, *said], changed, homes)


def _fallbacks(outcome: Compared | ComparedMatrix) -> Iterator[str]:
    """Why it ran otherwise than it was meant to; of a matrix, in every cell."""
    cells = outcome.cells.values() if isinstance(outcome, ComparedMatrix) else [outcome]
    for cell in cells:
        if why := cell.report.provenance.fallback:
            yield why


def _headline(status: int, gate: Sequence[str], reports: Sequence[Path]) -> str:
    if status == OK:
        return "passed"
    if status == GATE:
        return "the gate failed" if gate else "nothing could be compared"
    failed = {SpecError.exit_status: "bad input", Interrupted.exit_status: "stopped"}
    what = failed.get(status, "the infrastructure failed")
    return f"{what}; below is what there is of a result" if reports else what


def _summarize(headline: str, said: Sequence[str], changed: Sequence[str], reports: Sequence[Path]) -> str:
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
    release = platform.freedesktop_os_release()
    return release["ID"] + release.get("VERSION_ID", "")


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
