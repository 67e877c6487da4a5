# SPDX-License-Identifier: GPL-2.0-only
"""The command line: the only place that prints results and decides the exit status.

Results go to standard output, everything else to standard error. Exit status: 0 fine; 1 no seed could be
compared, a condition of --fail-on was met, a trial gave something else when run again, there were too many
false alarms, no commit was confirmed as the culprit, or the doctor found a problem; 2 bad input; 3 the
machine or the infrastructure failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, RenderableType

from testbed.analysis.compare import Observation
from testbed.analysis.metrics import METRICS
from testbed.analysis.metrics import table as metrics_table
from testbed.analysis.parse import Measurement, parse
from testbed.experiment import ALPHA, LEAST_SEEDS, Cell, Experiment, KernelSpec, expand, format_size, schema
from testbed.experiment import selfcheck as placebo
from testbed.experiment.script import script
from testbed.guest import terminal
from testbed.guest.machine import Guest
from testbed.host.errors import GuestFailed, GuestLost, HostError, Interrupted, NoKvm, SpecError, TestbedError
from testbed.host.paths import REPOSITORY, cache_directory
from testbed.host.process import pasteable
from testbed.kernel import series
from testbed.ledger import matrix as cells
from testbed.ledger.ledger import Ledger, set_aside
from testbed.ledger.record import LOST, MEASURED
from testbed.progress import Watcher
from testbed.report import matrix, text, words
from testbed.report.document import ComparisonReport
from testbed.report.escape import visible
from testbed.report.gate import Condition, condition, failures
from testbed.setup import doctor
from testbed.trials import debug, pool, prepare
from testbed.trials.prepare import Campaign
from testbed.trials.trial import Trial
from testbed.verbs import explain, reports, reproduce, results
from testbed.verbs.reproduce import Repeat

OK, NOTHING_TO_COMPARE, GATE, UNFIT, DIFFERS, FALSE_ALARMS, NOBODY_NAMED = 0, 1, 1, 1, 1, 1, 1
SELFCHECK = REPOSITORY / "experiments" / "selfcheck.yaml"
# `testbed check` adds it to a status that is no verdict, so that `git bisect run` stops.
NO_VERDICT = 128
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
    arguments = _arguments(argv)
    try:
        status = int(arguments.action(arguments))
        sys.stdout.flush()
        return status
    except TestbedError as failed:
        _complain(str(failed))
        return failed.exit_status
    except KeyboardInterrupt:
        keeps = arguments.action in (_compare, _run, _build, _selfcheck, _bisect)
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


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        return _parser().parse_args(argv)
    except SystemExit as ended:
        words = list(sys.argv[1:] if argv is None else argv)
        if ended.code and words[:1] == ["check"]:
            # `git bisect run` would go on, and call the commit bad.
            sys.exit(NO_VERDICT + SpecError.exit_status)
        raise


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

    _add_experiment_verbs(verb)
    _add_result_verbs(verb)
    _add_bisect_verb(verb)
    sub = verb("schema", _schema, "print the JSON Schema of experiment files, for editors to complete")
    sub.add_argument("--report", action="store_true", help="of what testbed writes instead: report.json")
    verb("metrics", _metrics, "list the metrics: name, unit, which direction is better, and where it is from")
    verb("doctor", _doctor, "check what this machine lacks for the main job")
    return parser


class Verb(Protocol):
    """Adds a verb to the command line."""

    def __call__(
        self, name: str, action: Callable[[argparse.Namespace], int], about: str
    ) -> argparse.ArgumentParser: ...


def _add_experiment_verbs(verb: Verb) -> None:
    for name, action, about in (
        ("compare", _compare, "run what is missing of an experiment and put its arms side by side"),
        ("run", _run, "run what is missing of an experiment"),
        ("explain", _explain, "say what an experiment comes to, without running anything"),
        ("build", _build, "build the kernels of an experiment and print where they are"),
        ("boot", _boot, "boot an arm's kernel and give a shell in the guest"),
    ):
        sub = verb(name, action, about)
        sub.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
        if name == "compare":
            sub.add_argument(
                "other",
                nargs="?",
                type=Path,
                metavar="RESULT",
                help="two stored results instead of an experiment; RESULT:ARM for another arm than the first",
            )
        modes, meaning = ["deterministic", "realtime"], "instead of the experiment's"
        if name in ("compare", "run"):
            modes.append("auto")
            meaning += "; auto: in real time under KVM, deterministic where KVM does not boot the kernel"
        sub.add_argument("--mode", choices=modes, help=meaning)
        sub.add_argument("--accel", choices=["auto", "kvm", "tcg"], help="in real time; implies it")
        if name in ("compare", "run", "explain"):
            sub.add_argument("--seeds", type=_positive, metavar="N", help="instead of the experiment's")
        if name in ("compare", "run"):
            _add_running_options(sub)
        every = ", or all" if name == "compare" else ""
        sub.add_argument("--line", metavar="LINE", help=f"instead of its source: a line of patches/{every}")
        if name == "compare":
            sub.add_argument("--json", action="store_true", help="print the JSON document")
            _add_report_options(sub)
        if name == "boot":
            sub.add_argument("--arm", help="default: the first")

    sub = verb(
        "selfcheck", _selfcheck, "compare what does not differ, many times: how often is a change found?"
    )
    sub.add_argument("experiment", nargs="?", type=Path, default=SELFCHECK, metavar="EXPERIMENT.yaml")
    sub.add_argument("--comparisons", type=_positive, default=40, metavar="N", help="default: 40")
    sub.add_argument("--mode", choices=["deterministic", "realtime"], help="instead of the experiment's")
    _add_running_options(sub)


def _add_running_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=Path, metavar="DIR", help="default: results/NAME")
    sub.add_argument("--fresh", action="store_true", help="start over; the old result is moved aside")
    _add_jobs_option(sub)


def _add_result_verbs(verb: Verb) -> None:
    sub = verb("parse", _parse, "parse the console logs of a result, or one log, again; prints JSON lines")
    sub.add_argument("path", type=Path, metavar="RESULT|LOG")
    sub = verb("report", _report, "report on a result without running anything")
    sub.add_argument("result", type=Path, metavar="RESULT")
    form = sub.add_mutually_exclusive_group()
    for name, about in (
        ("json", "the JSON document"),
        ("markdown", "Markdown"),
        ("junit", "JUnit XML"),
        ("ktap", "KTAP"),
        ("manifest", "the hashes of a deterministic result"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"print {about}")
    sub.set_defaults(form="text")
    _add_report_options(sub)
    sub = verb("history", _history, "a metric over stored results of many kernels, and where it changed")
    sub.add_argument("results", type=Path, nargs="+", metavar="RESULT[:ARM]")
    sub.add_argument("--metric", default="direct_reclaims", help="default: direct_reclaims")
    sub.add_argument("--margin", type=float, default=0.01, help="a change that nobody minds; default: 0.01")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="a picture, .svg or .png")
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


def _add_bisect_verb(verb: Verb) -> None:
    sub = verb("check", _check, "for `git bisect run`: exit 0 if the first arm is good, 1 if bad, else 125")
    sub.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    for name in ("good", "bad"):
        sub.add_argument(
            f"--{name}", type=Path, required=True, metavar="RESULT[:ARM]", help=f"measured alike, and {name}"
        )
    sub.add_argument("--metric", help="default: the first primary; outcome:panic for crashes")
    sub.add_argument("--confidence", type=_probability, default=0.95, metavar="P", help="default: 0.95")
    sub.add_argument("--seeds", type=_positive, metavar="N", help="at most so many, if not the experiment's")
    sub.add_argument("--mode", choices=["deterministic", "realtime"], help="instead of the experiment's")
    sub.add_argument("--accel", choices=["auto", "kvm", "tcg"], help="in real time; implies it")
    sub = verb("bisect", _bisect, "find the commit that changed a metric, or say how far that has come")
    sub.add_argument(
        "words",
        nargs="*",
        metavar="status|log RESULT, or -- PATH...",
        help="with --repo, limits the commits to some paths, as git does; without, looks at a bisection: how "
        "it stands, or what it did and why",
    )
    sub.add_argument(
        "--replay",
        type=Path,
        metavar="RESULT",
        help="how one stands under another --confidence; builds nothing",
    )
    sub.add_argument("--repo", type=Path, metavar="DIR", help="a local git repository of Linux; only read")
    sub.add_argument("--good", metavar="REV", help="a revision that is good")
    sub.add_argument("--bad", metavar="REV", help="a later one that is bad")
    sub.add_argument(
        "--experiment", type=Path, metavar="EXPERIMENT.yaml", help="its first arm is what all commits get"
    )
    sub.add_argument(
        "--metric", help="default: the first primary; outcome:panic (hang, oom, failed, flood) for crashes"
    )
    sub.add_argument(
        "--confidence", type=_probability, metavar="P", help="to name a commit at; default: 0.95"
    )
    sub.add_argument("--results", type=Path, metavar="DIR", help="default: results/bisect-NAME")
    sub.add_argument("--fresh", action="store_true", help="start over; the old result is moved aside")
    sub.add_argument("--mode", choices=["deterministic", "realtime"], help="instead of the experiment's")
    sub.add_argument("--accel", choices=["auto", "kvm", "tcg"], help="in real time; implies it")
    sub.add_argument("--json", action="store_true", help="print the JSON document")
    _add_jobs_option(sub)


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", help="all metrics in the table, not only the usual ones"
    )
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="CONDITION",
        help='exit status 1 if so: "fault_p99 regressed", "any primary inconclusive"; may be repeated',
    )


def _add_jobs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="trials side by side, if not as many as fit"
    )


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trials", type=_positive, metavar="N", help="a sample of N, spread over arms and seeds"
    )
    _add_jobs_option(parser)


def _probability(word: str) -> float:
    try:
        p = float(word)
    except ValueError:
        p = math.nan
    if not 0.5 <= p < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not from 0.5 to below 1")
    return p


def _positive(word: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,4}", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 to 99999")
    return int(word)


# --- verbs ---------------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.other:
        _refuse_running_options(arguments)
    if arguments.line == "all":
        return _compare_lines(arguments)
    conditions, form = _conditions(arguments), "json" if arguments.json else "text"
    if arguments.other:
        return _compare_results(arguments, form, conditions)
    return _show(_execute(arguments), form, conditions, arguments.all)


# Of `compare`, what says how trials are to run.
RUNNING_OPTIONS = ("mode", "accel", "seeds", "results", "fresh", "jobs", "line")


def _refuse_running_options(arguments: argparse.Namespace) -> None:
    """Raise SpecError for options that two stored results have no use for."""
    if given := [f"--{name}" for name in RUNNING_OPTIONS if getattr(arguments, name)]:
        raise SpecError(f"{', '.join(given)}: nothing runs where two stored results are compared")


def _compare_results(arguments: argparse.Namespace, form: str, conditions: Sequence[Condition]) -> int:
    """Compare an arm of one stored result with an arm of another."""
    result = results.joined([arguments.experiment, arguments.other])
    made = results.report(result)
    if form == "text":
        _print(text.render(made, arguments.all))
    else:
        print(reports.FORMS[form][1](made), end="")
    return _verdict_status(made, conditions, result.observations)


def _conditions(arguments: argparse.Namespace) -> list[Condition]:
    try:
        return [condition(words, [metric.name for metric in METRICS]) for words in arguments.fail_on]
    except ValueError as bad:
        raise SpecError(f"--fail-on: {bad}") from bad


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
    if results.is_matrix(directory):
        return _worst(directory)
    return _status(results.load(directory).observations)


def _worst(home: Path) -> int:
    """The worst exit status of a matrix's cells."""
    return max(cell.exit_status for cell in cells.load(home)[1])


def _selfcheck(arguments: argparse.Namespace) -> int:
    (cell, *_) = _cells(arguments)
    if cell.at:
        raise SpecError(f"{arguments.experiment}: `matrix`: a check of the tool has none")
    with _naming(arguments.experiment):
        planned = placebo.comparisons(cell.experiment, arguments.comparisons)
    home = _execute(arguments, planned)
    from testbed.report import selfcheck as check_report  # noqa: PLC0415  (slow, with scipy)

    made = results.selfcheck(home)
    _print(check_report.render(made))
    reports.write_selfcheck(home, made, _tell)
    _tell(f"also in {home}: selfcheck.json, pictures/selfcheck.svg, and a result per comparison")
    if not made.total.comparisons:
        return max(NOTHING_TO_COMPARE, _worst(home))
    return max(FALSE_ALARMS if made.alarm else OK, _worst(home))


def _build(arguments: argparse.Namespace) -> int:
    found: dict[tuple[str, str], None] = {}
    with Watcher() as watcher, _naming(arguments.experiment):
        for cell in _cells(arguments):
            built = prepare.kernels(cell.experiment, cache_directory(), watcher.note)
            found |= dict.fromkeys((arm, str(kernel.vmlinux)) for arm, kernel in built.items())
    for arm, vmlinux in found:
        print(f"{arm}\t{vmlinux}")
    return OK


def _boot(arguments: argparse.Namespace) -> int:
    # Who types is not deterministic.
    experiment = _experiment(arguments, mode="realtime")
    arm = arguments.arm or next(iter(experiment.arms))
    if arm not in experiment.arms:
        raise SpecError(f"{arguments.experiment}: there is no arm `{arm}`: {', '.join(experiment.arms)}")
    experiment = experiment.only(arm)
    cache, settings = cache_directory(), experiment.guest
    with Watcher() as watcher, _naming(arguments.experiment):
        kernel = prepare.kernels(experiment, cache, watcher.note)[arm]
        initramfs = prepare.initramfs(experiment, cache)
        here = prepare.machine(experiment, kernel, initramfs, cache, watcher.note)
    shape = prepare.with_arguments(here.shape, experiment, arm)
    with Guest(shape, kernel.vmlinux, initramfs.path, qemu=here.qemu.program) as guest:
        guest.boot(experiment.deadlines.boot)
        guest.balloon(settings.memory, experiment.deadlines.balloon)
        for line in script(experiment, arm, 1).set_up:
            guest.command(line)
        # init has it off until a workload starts; who traces by hand expects it on. A kernel may be without.
        with contextlib.suppress(GuestFailed):
            guest.command("set /sys/kernel/tracing/tracing_on 1")
        _tell(f"{arm}: {settings.vcpus} vCPUs, {format_size(settings.memory)}; Ctrl-] leaves at once")
        guest.console.type("shell")
        terminal.interact(guest.console)
    return OK


def _parse(arguments: argparse.Namespace) -> int:
    path: Path = arguments.path
    if path.is_dir():
        for observation in results.load(path).observations:
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
    if arguments.form == "manifest":
        with Ledger.open(arguments.result) as ledger:
            manifest = reproduce.manifest(ledger.plan(), ledger.records(), arguments.result)
        print(manifest.text(indent=1))
        return OK
    return _show(arguments.result, arguments.form, _conditions(arguments), arguments.all)


def _verify(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="testbed-") as scratch, Watcher() as watcher:
        repeat = reproduce.load(arguments.path, cache_directory(), Path(scratch), watcher.note)
        return _again(repeat, Path(scratch) / "again", arguments, watcher)


def _again(repeat: Repeat, directory: Path, arguments: argparse.Namespace, watcher: Watcher) -> int:
    """Run trials again and say whether they gave the same."""
    chosen = pool.interleaved(reproduce.sample(repeat.trials, arguments.trials))
    with Ledger.create(directory) as ledger:
        pool.run(chosen, ledger, arguments.jobs, watcher)
        differences = reproduce.differences(repeat, ledger)
    for difference in differences:
        print(visible(f"{difference.expected.arm} seed {difference.expected.seed}: {difference.explanation}"))
    same = len(chosen) - len(differences)
    print(f"{same} of {len(chosen)} trials gave the same console log, byte for byte")
    if any(difference.found.outcome == LOST for difference in differences):
        # That says nothing about the bytes.
        return GuestLost.exit_status
    return DIFFERS if differences else OK


def _bundle(arguments: argparse.Namespace) -> int:
    made = results.report(results.load(arguments.result))
    target = arguments.output or Path(f"{made.name}.testbed")
    with Watcher() as watcher:
        reproduce.bundle(arguments.result, target, text.markdown(made), cache_directory(), watcher.note)
    _tell(f"{target.stat().st_size / 1e6:.1f} MB")
    print(target)
    return OK


def _replay(arguments: argparse.Namespace) -> int:
    debugging = arguments.gdb or arguments.break_at_miss
    if debugging and not arguments.trial:
        raise SpecError("--gdb and --break-at-miss need --trial ID: one guest at a time")
    with tempfile.TemporaryDirectory(prefix="testbed-") as scratch, Watcher() as watcher:
        repeat = reproduce.load(arguments.path, cache_directory(), Path(scratch), watcher.note)
        if arguments.trial:
            repeat = reproduce.only(repeat, arguments.trial)
        if not debugging:
            return _again(repeat, Path(scratch) / "again", arguments, watcher)
        (trial,) = repeat.trials
        with debug.Microscope(trial, arguments.break_at_miss) as scope:
            watcher.note(
                f"{trial.arm} seed {trial.seed} is stopped before its first instruction; in another terminal:"
            )
            print(
                pasteable(["gdb", trial.vmlinux, "-ex", f"target remote localhost:{scope.port}"]), flush=True
            )
            log = scope.serve()
        expected = repeat.manifest.expected[trial.id].log_sha256
        same = hashlib.sha256(log).hexdigest() == expected
        print(f"the console log is {'the same, byte for byte' if same else 'not the one of the result'}")
        return OK if same else DIFFERS


def _explain(arguments: argparse.Namespace) -> int:
    with Watcher() as watcher, _naming(arguments.experiment):
        for line in explain.explain(_cells(arguments), cache_directory(), watcher.note):
            print(line)
    return OK


def _history(arguments: argparse.Namespace) -> int:
    from testbed.report import plots, timeline  # noqa: PLC0415  (slow, with matplotlib)

    if not 0 < arguments.margin < 1:
        raise SpecError(f"--margin: {arguments.margin:g} is not between 0 and 1")
    suffix = arguments.output.suffix.removeprefix(".") if arguments.output else ""
    if arguments.output and suffix not in ("svg", "png"):
        raise SpecError(f"{arguments.output}: a picture is .svg or .png")
    found = results.history(arguments.results, arguments.metric, ALPHA, arguments.margin)
    _print(timeline.table(found.title, found.unit, found.points, found.decisions).terminal())
    if arguments.output:
        figure = plots.history(
            found.title,
            [p.label for p in found.points],
            [list(p.values.values()) for p in found.points],
            [decision.verdict for decision in found.decisions],
        )
        # Asked for by name: that it cannot be written is an error, one line and status 3.
        arguments.output.write_bytes(plots.rendered(figure, suffix))
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from testbed.verbs import bisect, check  # noqa: PLC0415  (slow, with scipy and matplotlib)

    try:
        experiment = _experiment(arguments)
        metric = bisect.metric(arguments.metric, experiment)
        sides = check.side(arguments.good, metric), check.side(arguments.bad, metric)
        with Watcher() as watcher, _naming(arguments.experiment):
            return check.check(
                experiment,
                sides,
                metric,
                confidence=arguments.confidence,
                cache=cache_directory(),
                watch=watcher,
            )
    except TestbedError as failed:
        # Below 128, git would take it for a verdict.
        _complain(str(failed))
        return NO_VERDICT + failed.exit_status
    except OSError as failed:
        _complain(str(failed))
        return NO_VERDICT + HostError.exit_status


def _bisect(arguments: argparse.Namespace) -> int:
    from testbed.verbs import bisect  # noqa: PLC0415  (slow, with scipy and matplotlib)

    looks: dict[str, Callable[[Path], int]] = {
        "status": lambda directory: _show_bisection(directory, arguments),
        "log": _bisection_log,
    }
    if arguments.replay:
        return _show_bisection(arguments.replay, arguments, write=False)
    if not arguments.repo:
        verb, *rest = arguments.words or [""]
        if verb not in looks or len(rest) != 1:
            raise SpecError(
                "bisect needs --repo, --good, --bad and --experiment; or: status RESULT, log RESULT; "
                "or --replay RESULT"
            )
        return looks[verb](Path(rest[0]))
    for name in ("good", "bad", "experiment"):
        if getattr(arguments, name) is None:
            raise SpecError(f"bisect --repo needs --{name} as well")
    experiment = _experiment(arguments)
    home: Path = arguments.results or Path("results") / f"bisect-{experiment.name}"
    cache = cache_directory()
    ends = arguments.good, arguments.bad
    asked = bisect.asked(arguments.repo, ends, arguments.words, experiment, arguments.metric)
    with Watcher() as watcher:
        watcher.note(f"{len(asked.range.changes)} commits between good and bad")
        if arguments.fresh and (old := set_aside(home)):
            watcher.note(f"the old result is now {old}")
        bench = bisect.Machine(asked.experiment, asked.repository, cache, arguments.jobs, watcher.note)
        with Ledger.create(home) as ledger, _naming(arguments.experiment):
            bisect.bisect(asked, bisect.rules(arguments.confidence), bench, ledger, watcher.note)
    return _show_bisection(home, arguments)


def _show_bisection(directory: Path, arguments: argparse.Namespace, *, write: bool = True) -> int:
    """Print how a bisection stands; what it is under other rules is nowhere written."""
    from testbed.report import bisection  # noqa: PLC0415
    from testbed.verbs import bisect  # noqa: PLC0415

    made, said = bisect.status(directory, None if write else arguments.confidence)
    if arguments.json:
        print(made.text(indent=2))
    else:
        _print(bisection.render(made, said))
        sys.stdout.flush()
    if write:
        bisect.write(directory, made, said, _tell)
        if not arguments.json:
            _tell(f"also in {directory}: report.html, report.md, report.json, pictures/; logs/")
    return OK if made.answer and made.answer.confirmed else NOBODY_NAMED


def _bisection_log(directory: Path) -> int:
    from testbed.verbs import bisect  # noqa: PLC0415

    for line in bisect.log(directory):
        print(visible(line))
    return OK


def _schema(arguments: argparse.Namespace) -> int:
    if arguments.report:
        from testbed.report.schema import schema as reports  # noqa: PLC0415  (slow, with scipy)

        print(json.dumps(reports(), indent=2))
        return OK
    print(json.dumps(schema(), indent=2))
    return OK


def _metrics(_arguments: argparse.Namespace) -> int:
    print(metrics_table(), end="")
    return OK


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
    """The experiment file, of a matrix its first cell."""
    return _cells(arguments, **fixed)[0].experiment


def _cells(arguments: argparse.Namespace, **fixed: str) -> list[Cell]:
    """The experiment file, expanded, with the options of the command line in place of what it says."""
    options = {name: getattr(arguments, name, None) for name in ("accel", "mode", "seeds")} | fixed
    if options["accel"] and options["mode"] in ("deterministic", "auto"):
        raise SpecError("--accel is a choice for `--mode realtime`; deterministic guests are emulated")
    metrics = [metric.name for metric in METRICS]
    if options["mode"] == "auto":
        # It may come to either, so both have to be in order.
        expand(arguments.experiment, {"mode": "deterministic", "accel": "auto"}, metrics)
        options |= {"mode": "realtime", "accel": "kvm"}
    elif options["accel"]:
        options["mode"] = "realtime"
    elif options["mode"] == "deterministic":
        options["accel"] = "auto"
    given = {key: value for key, value in options.items() if value is not None}
    expanded = expand(arguments.experiment, given, metrics)
    line = getattr(arguments, "line", None)
    return [_on_line(cell, line) if line else cell for cell in expanded]


def _on_line(cell: Cell, line: str) -> Cell:
    """The same on a kernel line of patches/."""
    experiment = cell.experiment
    kernel = KernelSpec(debian=series.line(line).source, config=experiment.kernel.config)
    changes = {"kernel": kernel, "name": f"{experiment.name}-{line}"}
    return replace(cell, experiment=experiment.model_copy(update=changes))


@contextlib.contextmanager
def _naming(experiment: Path) -> Iterator[None]:
    """Name the file in what is found wrong with an experiment when its kernels are made."""
    try:
        yield
    except SpecError as bad:
        if not bad.message.startswith(str(experiment)):
            bad.message = f"{experiment}: {bad.message}"
        raise


def _execute(arguments: argparse.Namespace, planned: Sequence[Cell] = ()) -> Path:
    """Run what is missing of an experiment, in every cell of its matrix; return its result directory.

    Or what is missing of cells that are `planned` in its place.
    """
    expanded = planned or _cells(arguments)
    experiment = expanded[0].experiment
    home: Path = arguments.results or Path("results") / experiment.name
    with Watcher() as watcher, _naming(arguments.experiment):
        if not expanded[0].at:
            _execute_one(arguments, experiment, home, watcher)
            return home
        if arguments.fresh and (old := set_aside(home)):
            watcher.note(f"the old result is now {old}")
        kept = argparse.Namespace(**{**vars(arguments), "fresh": False})
        cells.run(
            expanded, home, lambda e, directory: _execute_one(kept, e, directory, watcher), watcher.note
        )
    return home


def _execute_one(
    arguments: argparse.Namespace, experiment: Experiment, directory: Path, watcher: Watcher
) -> None:
    ready = _prepared(experiment, arguments.mode, watcher)
    # Only now: an experiment that cannot run moves nothing.
    if arguments.fresh and (old := set_aside(directory)):
        watcher.note(f"the old result is now {old}")
    with Ledger.create(directory) as ledger:
        ledger.set_plan(ready.plan)
        _run_until_decided(experiment, ready.trials, ledger, arguments.jobs, watcher)


def _prepared(experiment: Experiment, mode: str | None, watcher: Watcher) -> Campaign:
    """The trials of an experiment; with `--mode auto` deterministic ones where KVM does not work."""
    try:
        return prepare.prepare(experiment, cache_directory(), watcher.note, threading.Event())
    except NoKvm as none:
        if mode != "auto":
            raise
        why = f"deterministic instead of in real time: {none.message}"
    watcher.note(why)
    instead = experiment.model_copy(update={"mode": "deterministic", "accel": "auto"})
    ready = prepare.prepare(instead, cache_directory(), watcher.note, threading.Event())
    # There may be no QEMU for that either.
    provenance = ready.plan.provenance
    both = "; ".join(filter(None, [why, provenance.fallback]))
    changes = {"provenance": provenance.model_copy(update={"fallback": both})}
    return replace(ready, plan=ready.plan.model_copy(update=changes))


def _run_until_decided(
    experiment: Experiment, trials: Sequence[Trial], ledger: Ledger, jobs: int | None, watcher: Watcher
) -> None:
    """Run the trials of all seeds; with primary metrics, of no more than it takes to decide them."""
    began = time.monotonic()
    # In pairs, whatever the cores: at the end of each batch some are idle, and when it is decided must be the
    # same everywhere.
    looks = range(LEAST_SEEDS, experiment.seeds, 2) if experiment.looks else ()
    stops = range(1, experiment.seeds) if experiment.minutes else looks
    for seeds in (*stops, experiment.seeds):
        end = experiment.first_seed + seeds
        pool.run([trial for trial in trials if trial.seed < end], ledger, jobs, watcher)
        if seeds == experiment.seeds:
            return
        so_far = results.read(ledger)
        if missing := results.metrics_without_values(so_far):
            raise SpecError(
                f"primary: no trial has the metric {', '.join(missing)}",
                "`testbed parse RESULT` shows which there are with this kernel and this workload",
            )
        if seeds in looks and results.decided(so_far):
            watcher.note(f"decided after {seeds} seeds")
            return
        if looks and seeds == looks[0]:
            # The pilot says whether it is worth while to go on.
            for line in words.detectable(results.report(so_far, full=False)):
                watcher.note(line)
        if experiment.minutes and time.monotonic() - began > experiment.minutes * 60:
            watcher.note(f"no further seed: {experiment.minutes:g} minutes are over")
            return


def _show(directory: Path, form: str, fail_on: Sequence[Condition] = (), everything: bool = False) -> int:
    """Write the report in all its forms into the result directory and print one of them."""
    if results.is_matrix(directory):
        return _show_matrix(directory, form, fail_on)
    result = results.load(directory)
    made = results.report(result)
    if form == "text":
        # Before the pictures, which take some seconds.
        _print(text.render(made, everything))
        sys.stdout.flush()
    reports.write(directory, result, made, _tell)
    if form == "text":
        _tell(f"also in {directory}: report.html, with pictures; .md, .json, .xml (JUnit), .ktap; logs/")
    else:
        print(reports.FORMS[form][1](made), end="")
    return _verdict_status(made, fail_on, result.observations)


def _verdict_status(
    made: ComparisonReport, fail_on: Sequence[Condition], observations: Sequence[Observation], where: str = ""
) -> int:
    """The exit status for a comparison."""
    if not made.seeds:
        return max(_status(observations), NOTHING_TO_COMPARE)
    return _gate(made, fail_on, where)


def _gate(made: ComparisonReport, fail_on: Sequence[Condition], where: str) -> int:
    """The exit status for the conditions of --fail-on."""
    if fail_on and not made.verdicts:
        raise SpecError("--fail-on: nothing is judged here: it takes a primary metric and a second arm")
    met = list(failures(made, fail_on))
    for line in met:
        _tell(f"failed: {where}{line}")
    return GATE if met else OK


def _show_matrix(home: Path, form: str, fail_on: Sequence[Condition]) -> int:
    """The same for a matrix: a table with a row per cell, and heat maps."""
    if form not in ("text", "json", "markdown"):
        raise SpecError(f"{home}: a matrix has no such report, but each of its cells has one")
    made, documents, status = reports.write_matrix(home, _tell)
    if form == "text":
        _print(matrix.render(made))
        _tell(f"also in {home}: report.json, report.md, heat maps in pictures/, and a result per cell")
    else:
        print(made.text(indent=2) if form == "json" else matrix.markdown(made), end="")
    for name, cell in documents.items():
        observations = () if cell.seeds else results.load(home / name).observations
        status = max(status, _verdict_status(cell, fail_on, observations, f"{name}: "))
    return status


def _print(renderable: RenderableType) -> None:
    # Written by us: of a closed pipe rich makes an exit status of its own.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    with console.capture() as captured:
        console.print(renderable)
    print(captured.get(), end="")


def _status(observations: Sequence[Observation]) -> int:
    """The exit status for trials of which the report can say nothing more."""
    outcomes = {observation.record.outcome for observation in observations}
    if outcomes == {LOST}:
        return GuestLost.exit_status
    return OK if MEASURED in outcomes else NOTHING_TO_COMPARE


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
    _tell(f"testbed: {visible(message)}")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
