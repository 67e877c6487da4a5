# SPDX-License-Identifier: GPL-2.0-only
"""The command line: the only place that prints results and decides the exit status.

Results go to standard output, everything else to standard error. Exit status: 0 fine; 1 no seed could be
compared, a trial gave something else when run again, or the doctor found a problem; 2 bad input; 3 the
machine or the infrastructure failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from testbed import campaign, doctor, microscope, proof, runner, spec, store
from testbed.analysis.compare import Observation
from testbed.analysis.metrics import METRICS
from testbed.analysis.parse import Measurement, parse
from testbed.errors import GuestLost, HostError, Interrupted, SpecError, TestbedError
from testbed.guest import image, terminal
from testbed.guest.machine import Guest
from testbed.kernel import series
from testbed.paths import cache_directory
from testbed.process import pasteable
from testbed.progress import Watcher
from testbed.proof import Repeat
from testbed.record import LOST, MEASURED, Record, final
from testbed.report import text
from testbed.report.document import document
from testbed.spec import Experiment, KernelSpec
from testbed.store import Ledger
from testbed.trial import Trial, set_up_commands

OK, NOTHING_TO_COMPARE, UNFIT, DIFFERS = 0, 1, 1, 1
PIPE_COLUMNS = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, do it, return the exit status."""
    # Whoever ends us, the guests end first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # In a locale without µ and …, a report has \xb5 and \u2026.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        status = int(arguments.action(arguments))
        sys.stdout.flush()
        return status
    except TestbedError as failed:
        _complain(str(failed))
        return failed.exit_status
    except KeyboardInterrupt:
        keeps = arguments.action in (_compare, _run, _build)
        more = "; what is finished is kept, and the same command goes on from there" if keeps else ""
        _complain(f"stopped{more}")
        return Interrupted.exit_status
    except BrokenPipeError:
        # Whoever read our output has enough.
        _abandon_output()
        return OK
    except OSError as failed:
        _complain(str(failed))
        _abandon_output()
        return HostError.exit_status


def _abandon_output() -> None:
    # Python would try once more to write what is left when it ends, and complain.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="testbed", description="Says, with evidence, whether a page-reclaim patch did what it claims."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, action: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=about, description=about)
        sub.set_defaults(action=action)
        return sub

    def experiment_verb(
        name: str, action: Callable[[argparse.Namespace], int], about: str
    ) -> argparse.ArgumentParser:
        sub = verb(name, action, about)
        sub.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
        sub.add_argument("--mode", choices=["deterministic", "realtime"], help="instead of the experiment's")
        sub.add_argument("--accel", choices=["auto", "kvm", "tcg"], help="in real time; implies it")
        return sub

    for name, action, about in (
        ("compare", _compare, "run what is missing of an experiment and put its arms side by side"),
        ("run", _run, "run what is missing of an experiment"),
    ):
        sub = experiment_verb(name, action, about)
        sub.add_argument("--seeds", type=_positive, metavar="N", help="instead of the experiment's")
        sub.add_argument("--results", type=Path, metavar="DIR", help="default: results/NAME")
        sub.add_argument("--fresh", action="store_true", help="start over; the old result is moved aside")
        _add_jobs_option(sub)
        if name == "compare":
            sub.add_argument(
                "--line",
                metavar="LINE",
                help="instead of its source: a line of patches/, or all",
            )
            sub.add_argument("--json", action="store_true", help="print the JSON document")
    experiment_verb("build", _build, "build the kernels of an experiment and print where they are")
    sub = experiment_verb("boot", _boot, "boot an arm's kernel and give a shell in the guest")
    sub.add_argument("--arm", help="default: the first")
    sub = verb("parse", _parse, "parse the console logs of a result, or one log, again; prints JSON lines")
    sub.add_argument("path", type=Path, metavar="RESULT|LOG")
    sub = verb("report", _report, "report on a result without running anything")
    sub.add_argument("result", type=Path, metavar="RESULT")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the JSON document")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--manifest", action="store_true", help="print the hashes of a deterministic result")
    sub = verb("verify", _verify, "run finished trials again; fails unless every one gives the same bytes")
    sub.add_argument("path", type=Path, metavar="RESULT|MANIFEST|BUNDLE")
    _add_sample_options(sub)
    sub = verb("bundle", _bundle, "write one file with which `replay` does a result again on any machine")
    sub.add_argument("result", type=Path, metavar="RESULT")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: NAME.testbed")
    sub = verb("replay", _replay, "run a bundle's trials, or a single trial under a debugger")
    sub.add_argument("path", type=Path, metavar="BUNDLE|RESULT")
    _add_sample_options(sub)
    sub.add_argument("--trial", metavar="ID", help="this one only: an id, or ARM:SEED")
    sub.add_argument("--gdb", action="store_true", help="wait for gdb before the trial's first instruction")
    sub.add_argument("--break-at-miss", type=_positive, metavar="N", help="and stop at its Nth reclaim miss")
    verb("doctor", _doctor, "check what this machine lacks for the main job")
    return parser


def _add_jobs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="trials side by side, if not as many as fit"
    )


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trials", type=_positive, metavar="N", help="a sample of N, spread over arms and seeds"
    )
    _add_jobs_option(parser)


def _positive(word: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,4}", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 to 99999")
    return int(word)


# --- verbs ---------------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.line == "all":
        return _compare_lines(arguments)
    directory = _execute(arguments)
    return _show(directory, "json" if arguments.json else "text")


def _compare_lines(arguments: argparse.Namespace) -> int:
    """Compare on every kernel line that can be had here; say which cannot."""
    if arguments.results:
        raise SpecError("--results is one directory; with --line all there is one a line, results/NAME-LINE")
    statuses, left_out = [], []
    for line in series.lines():
        try:
            statuses.append(_compare(argparse.Namespace(**{**vars(arguments), "line": line.directory})))
        except HostError as lacking:
            left_out.append(f"left out: {line.directory}: {lacking.message}")
    for reason in left_out:
        _complain(reason)
    return max(statuses, default=HostError.exit_status)


def _run(arguments: argparse.Namespace) -> int:
    directory = _execute(arguments)
    print(directory)
    return _status(_observations(directory)[1])


def _build(arguments: argparse.Namespace) -> int:
    with Watcher() as watcher, _naming(arguments.experiment):
        built = campaign.kernels(_experiment(arguments), cache_directory(), watcher.note)
    for arm, kernel in built.items():
        print(f"{arm}\t{kernel.vmlinux}")
    return OK


def _boot(arguments: argparse.Namespace) -> int:
    # Who types is not deterministic.
    experiment = _experiment(arguments, mode="realtime")
    arm = arguments.arm or next(iter(experiment.arms))
    if arm not in experiment.arms:
        raise SpecError(f"{arguments.experiment}: there is no arm `{arm}`: {', '.join(experiment.arms)}")
    experiment = experiment.model_copy(update={"arms": {arm: experiment.arms[arm]}})
    cache, settings = cache_directory(), experiment.guest
    with Watcher() as watcher, _naming(arguments.experiment):
        kernel = campaign.kernels(experiment, cache, watcher.note)[arm]
        initramfs = image.build(cache)
        here = campaign.machine(experiment, kernel, initramfs, cache, watcher.note)
    with Guest(here.shape, kernel.vmlinux, initramfs.path, qemu=here.qemu.program) as guest:
        guest.boot(experiment.deadlines.boot)
        guest.balloon(settings.memory, experiment.deadlines.balloon)
        sysctl, tracepoints = experiment.arms[arm].sysctl, experiment.tracepoints
        for line in set_up_commands(settings, experiment.workload.mmap_test, sysctl, tracepoints):
            guest.command(line)
        _tell(f"{arm}: {settings.vcpus} vCPUs, {spec.format_size(settings.memory)}; Ctrl-] leaves at once")
        guest.console.type("shell")
        terminal.interact(guest.console)
    return OK


def _parse(arguments: argparse.Namespace) -> int:
    path: Path = arguments.path
    if path.is_dir():
        for observation in _observations(path)[1]:
            record, facts = observation.record, _facts(observation.measurement)
            print(json.dumps({"arm": record.arm, "seed": record.seed, "outcome": record.outcome, **facts}))
        return OK
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as unreadable:
        raise SpecError(f"{path}: cannot be read: {unreadable}") from unreadable
    print(json.dumps(_facts(parse(data))))
    return OK


def _report(arguments: argparse.Namespace) -> int:
    if arguments.manifest:
        with Ledger.open(arguments.result) as ledger:
            manifest = proof.manifest(ledger.plan(), ledger.records(), arguments.result)
        print(json.dumps(manifest, indent=1))
        return OK
    form = "json" if arguments.json else "markdown" if arguments.markdown else "text"
    return _show(arguments.result, form)


def _verify(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="testbed-") as scratch, Watcher() as watcher:
        repeat = proof.load(arguments.path, cache_directory(), Path(scratch), watcher.note)
        return _again(repeat, Path(scratch) / "again", arguments, watcher)


def _again(repeat: Repeat, directory: Path, arguments: argparse.Namespace, watcher: Watcher) -> int:
    """Run trials again and say whether they gave the same."""
    chosen = _sample(runner.interleaved(repeat.trials), arguments.trials)
    with Ledger.create(directory) as ledger:
        runner.run(chosen, ledger, arguments.jobs, watcher)
        differences = proof.differences(repeat, ledger)
    for difference in differences:
        print(
            text.visible(
                f"{difference.expected.arm} seed {difference.expected.seed}: {difference.explanation}"
            )
        )
    same = len(chosen) - len(differences)
    print(f"{same} of {len(chosen)} trials gave the same console log, byte for byte")
    if any(difference.found.outcome == LOST for difference in differences):
        # That says nothing about the bytes.
        return GuestLost.exit_status
    return DIFFERS if differences else OK


def _sample(trials: Sequence[Trial], wanted: int | None) -> list[Trial]:
    """So many of them, evenly spread."""
    count = min(wanted or len(trials), len(trials))
    return [trials[index * len(trials) // count] for index in range(count)]


def _bundle(arguments: argparse.Namespace) -> int:
    plan, observations, records = _observations(arguments.result)
    report = text.markdown(document(plan, observations, records))
    target = arguments.output or Path(f"{plan['experiment']['name']}.testbed")
    with Watcher() as watcher:
        proof.bundle(arguments.result, target, report, cache_directory(), watcher.note)
    _tell(f"{target.stat().st_size / 1e6:.1f} MB")
    print(target)
    return OK


def _replay(arguments: argparse.Namespace) -> int:
    debugging = arguments.gdb or arguments.break_at_miss
    if debugging and not arguments.trial:
        raise SpecError("--gdb and --break-at-miss need --trial ID: one guest at a time")
    with tempfile.TemporaryDirectory(prefix="testbed-") as scratch, Watcher() as watcher:
        repeat = proof.load(arguments.path, cache_directory(), Path(scratch), watcher.note)
        if arguments.trial:
            repeat = proof.only(repeat, arguments.trial)
        if not debugging:
            return _again(repeat, Path(scratch) / "again", arguments, watcher)
        (trial,) = repeat.trials
        with microscope.Microscope(trial, arguments.break_at_miss) as scope:
            watcher.note(
                f"{trial.arm} seed {trial.seed} is stopped before its first instruction; in another terminal:"
            )
            print(
                pasteable(["gdb", trial.vmlinux, "-ex", f"target remote localhost:{scope.port}"]), flush=True
            )
            log = scope.serve()
        expected = repeat.expected[trial.id].log_sha256
        same = hashlib.sha256(log).hexdigest() == expected
        print(f"the console log is {'the same, byte for byte' if same else 'not the one of the result'}")
        return OK if same else DIFFERS


def _doctor(_arguments: argparse.Namespace) -> int:
    needs = doctor.examine(cache_directory())
    for need in needs:
        if need.problem:
            print(f"{'PROBLEM':8}{'; '.join(filter(None, [f'{need.name}: {need.problem}', need.remedy]))}")
        else:
            print(f"{'ok':8}{need.name}")
    for note in (doctor.kvm(), doctor.emulator()):
        print(f"{'note':8}{note}")
    if not any(need.problem for need in needs):
        return OK
    for distribution in doctor.INSTALLERS:
        if command := doctor.install_command(needs, distribution):
            print(f"on {distribution.capitalize()}: sudo {pasteable(command)}")
    return UNFIT


# --- what they share -----------------------------------------------------------------------------


def _experiment(arguments: argparse.Namespace, **fixed: str) -> Experiment:
    """The experiment file, with the options of the command line in place of what it says."""
    options = {name: getattr(arguments, name, None) for name in ("accel", "mode", "seeds")} | fixed
    if options["accel"] and options["mode"] == "deterministic":
        raise SpecError("--accel is a choice for `--mode realtime`; deterministic guests are emulated")
    if options["accel"]:
        options["mode"] = "realtime"
    elif options["mode"] == "deterministic":
        options["accel"] = "auto"
    experiment = spec.load(
        arguments.experiment, {key: value for key, value in options.items() if value is not None}
    )
    if line := getattr(arguments, "line", None):
        kernel = KernelSpec(debian=series.line(line).source, config=experiment.kernel.config)
        experiment = experiment.model_copy(update={"kernel": kernel, "name": f"{experiment.name}-{line}"})
    return experiment


@contextlib.contextmanager
def _naming(experiment: Path) -> Iterator[None]:
    """Name the file in what is found wrong with an experiment when its kernels are made."""
    try:
        yield
    except SpecError as bad:
        if not bad.message.startswith(str(experiment)):
            bad.message = f"{experiment}: {bad.message}"
        raise


def _execute(arguments: argparse.Namespace) -> Path:
    """Run what is missing of an experiment; return its result directory."""
    experiment = _experiment(arguments)
    directory: Path = arguments.results or Path("results") / experiment.name
    with Watcher() as watcher, _naming(arguments.experiment):
        ready = campaign.prepare(experiment, cache_directory(), watcher.note, threading.Event())
        # Only now: an experiment that cannot run moves nothing.
        if arguments.fresh and (old := store.set_aside(directory)):
            watcher.note(f"the old result is now {old}")
        with Ledger.create(directory) as ledger:
            ledger.set_plan(ready.document)
            runner.run(ready.trials, ledger, arguments.jobs, watcher)
    return directory


def _observations(directory: Path) -> tuple[Any, list[Observation], list[Record]]:
    """The plan, the trials of it that have ended, and the records of all their attempts."""
    with Ledger.open(directory) as ledger:
        plan = ledger.plan()
        records = [record for record in ledger.records() if record.trial in plan["trials"]]
        chosen = final(records).values()
        return plan, [Observation(record, parse(ledger.log(record))) for record in chosen], records


def _show(directory: Path, form: str) -> int:
    """Write report.json and report.md into the result directory and print the report."""
    plan, observations, records = _observations(directory)
    result = document(plan, observations, records)
    as_json = json.dumps(result, indent=2) + "\n"
    as_markdown = text.markdown(result)
    for name, content in (("report.json", as_json), ("report.md", as_markdown)):
        _replace(directory / name, content)
    if form == "text":
        width = None if sys.stdout.isatty() else PIPE_COLUMNS
        console = Console(highlight=False, width=width)
        # Written by us: of a closed pipe rich makes an exit status of its own.
        with console.capture() as captured:
            console.print(text.render(result))
        print(captured.get(), end="")
        _tell(f"also in {directory}/report.json and report.md; raw console logs in {directory}/logs")
    else:
        print(as_json if form == "json" else as_markdown, end="")
    return OK if result["seeds"] else max(_status(observations), NOTHING_TO_COMPARE)


def _status(observations: Sequence[Observation]) -> int:
    """The exit status for trials of which the report can say nothing more."""
    outcomes = {observation.record.outcome for observation in observations}
    if outcomes == {LOST}:
        return GuestLost.exit_status
    return OK if MEASURED in outcomes else NOTHING_TO_COMPARE


def _replace(path: Path, content: str) -> None:
    draft = path.with_suffix(".tmp")
    try:
        draft.write_text(content, encoding="utf-8")
        draft.replace(path)
    except OSError as unwritable:
        # A result on read-only media can still be reported on.
        _tell(f"{path}: not written: {unwritable.strerror}")


def _facts(measurement: Measurement) -> dict[str, Any]:
    values = {metric.name: metric.value(measurement) for metric in METRICS}
    return {
        "complete": measurement.complete,
        "metrics": {name: value for name, value in values.items() if value is not None},
        "misses": [str(miss) for miss in measurement.misses],
        "problems": list(measurement.problems),
    }


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _complain(message: str) -> None:
    # The tail of a guest's console may be in it.
    _tell(f"testbed: {text.visible(message)}")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
