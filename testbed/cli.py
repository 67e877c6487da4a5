# SPDX-License-Identifier: GPL-2.0-only
"""The command line: words become requests, outcomes become text. Nothing else prints or exits.

Results go to standard output, everything else to standard error. The exit status: verbs/status.py.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from testbed import experiment
from testbed.analysis import metrics
from testbed.host.errors import Interrupted, SpecError, TestbedError
from testbed.host.paths import cache_directory
from testbed.host.process import end_on_signals
from testbed.report.escape import visible
from testbed.report.gate import Condition
from testbed.terminal.arguments import EVERY_LINE, RUNNING_OPTIONS, parser, question
from testbed.terminal.completion import complete
from testbed.terminal.progress import Watcher
from testbed.terminal.show import (
    abandon_output,
    complain,
    have_streams,
    print_rendered,
    put,
    show,
    show_bisection,
    show_cleaned,
    show_examined,
    show_experiments,
    show_profile,
    show_results,
    tell,
)
from testbed.trials.lab import Lab, ThisMachine, Watch
from testbed.verbs import (
    bisection,
    catalog,
    clean,
    compare,
    derive,
    doctor,
    explain,
    history,
    init,
    kernels,
    log,
    parse,
    profile,
    replay,
    run,
    save,
    selfcheck,
    why,
)
from testbed.verbs.request import ExperimentRequest, RunRequest
from testbed.verbs.status import FINE, exit_status, exit_status_of_lines, failure_status


def main(argv: Sequence[str] | None = None, lab: Lab | None = None) -> int:
    """Parse the command line, do it, return the exit status."""
    end_on_signals()
    have_streams()
    # In a locale without µ and …, a report has \xb5 and \u2026.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = _arguments(argv)
    for_git = arguments.verb == "check"
    try:
        # Who has no home gets a directory in TMPDIR from matplotlib, which stays there after a kill.
        os.environ.setdefault("MPLCONFIGDIR", str(cache_directory() / "matplotlib"))
        status = VERBS[arguments.verb](arguments, lab or ThisMachine(cache_directory()))
        sys.stdout.flush()
        return status
    except TestbedError as failed:
        complain(str(failed))
        return failure_status(failed, for_git=for_git)
    except KeyboardInterrupt:
        keeps = arguments.verb in KEEPING
        more = "; what is finished is kept, and the same command goes on from there" if keeps else ""
        complain(f"stopped{more}")
        return Interrupted.exit_status
    except BrokenPipeError:
        # Whoever read our output has enough.
        abandon_output()
        return FINE
    except OSError as failed:
        complain(str(failed))
        abandon_output()
        return failure_status(failed, for_git=for_git)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    known = parser()
    if "_ARGCOMPLETE" in os.environ:
        complete(known)
    try:
        return known.parse_args(argv)
    except SystemExit as ended:
        # Of --help.
        put("")
        words = list(sys.argv[1:] if argv is None else argv)
        if ended.code and words[:1] == ["check"]:
            # `git bisect run` would go on, and call the commit bad.
            sys.exit(failure_status(SpecError(""), for_git=True))
        raise


# --- words to requests -----------------------------------------------------------------------------


def _experiment_request(arguments: argparse.Namespace, lab: Lab, watch: Watch) -> ExperimentRequest:
    """The experiment that is named by its file, or else made of the words; saved if that is asked for."""
    line = None if arguments.line == EVERY_LINE and arguments.verb == "compare" else arguments.line
    file, patches = derive.sort(arguments.words)
    if file and arguments.experiment:
        raise SpecError(f"--experiment: and {file} are two experiments")
    words = question(arguments, patches)
    name = arguments.experiment or (derive.DEFAULT if words.anything else derive.PUBLISHED)
    request = ExperimentRequest(
        file or derive.template(name),
        arguments.mode,
        arguments.accel,
        getattr(arguments, "seeds", None),
        line,
        getattr(arguments, "time", None),
        getattr(arguments, "quick", False),
    )
    if words.anything:
        request = derive.derive(request, words, lab.cache, watch.note)
    if arguments.save:
        watch.note(f"written: {save.save(request, arguments.save)}")
    return request


def _file_request(arguments: argparse.Namespace) -> ExperimentRequest:
    """An experiment that is named by its file."""
    seeds, accel = getattr(arguments, "seeds", None), getattr(arguments, "accel", None)
    return ExperimentRequest(arguments.experiment, arguments.mode, accel, seeds)


def _run_request(arguments: argparse.Namespace, experiment: ExperimentRequest) -> RunRequest:
    again = getattr(arguments, "again", None)
    return RunRequest(experiment, arguments.results, arguments.fresh, arguments.jobs, again)


def _conditions(arguments: argparse.Namespace) -> tuple[Condition, ...]:
    return tuple(compare.condition(words) for words in arguments.fail_on)


# --- verbs -----------------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace, lab: Lab) -> int:
    conditions, form = _conditions(arguments), "json" if arguments.json else "text"
    if compare.are_stored(arguments.words):
        if given := [f"--{name}" for name in RUNNING_OPTIONS if getattr(arguments, name)]:
            raise SpecError(f"{', '.join(given)}: nothing runs where two stored results are compared")
        before, after = map(Path, arguments.words)
        outcome = compare.compare_stored(compare.StoredRequest(before, after, conditions))
        show(outcome, form, arguments.all)
        return exit_status(outcome)
    with Watcher() as watcher:
        experiment = _experiment_request(arguments, lab, watcher)
        request = compare.CompareRequest(_run_request(arguments, experiment), conditions)
        if arguments.line == EVERY_LINE:
            return _compare_lines(request, lab, watcher, arguments)
        compared = compare.compare(request, lab, watcher)
        if arguments.why:
            compared = why.explained(compared, lab, watcher)
    show(compared, form, arguments.all)
    return exit_status(compared)


def _compare_lines(
    request: compare.CompareRequest, lab: Lab, watcher: Watcher, arguments: argparse.Namespace
) -> int:
    """Comparisons on kernel lines, shown as they come; at the end, what was left out."""
    outcomes = []
    for outcome in compare.compare_lines(request, lab, watcher):
        outcomes.append(outcome)
        if not isinstance(outcome, compare.LeftOut):
            with watcher.aside():
                show(outcome, "json" if arguments.json else "text", arguments.all)
    for outcome in outcomes:
        if isinstance(outcome, compare.LeftOut):
            complain(f"left out: {outcome.line}: {outcome.reason}")
    return exit_status_of_lines(outcomes)


def _run(arguments: argparse.Namespace, lab: Lab) -> int:
    with Watcher() as watcher:
        request = _run_request(arguments, _experiment_request(arguments, lab, watcher))
        ran = run.run(request, lab, watcher)
    print(ran.directory)
    return exit_status(ran)


def _selfcheck(arguments: argparse.Namespace, lab: Lab) -> int:
    experiment = _file_request(arguments)
    request = selfcheck.SelfcheckRequest(_run_request(arguments, experiment), arguments.comparisons)
    with Watcher() as watcher:
        checked = selfcheck.selfcheck(request, lab, watcher)
    from testbed.report import selfcheck as report  # noqa: PLC0415  (slow, with scipy)

    print_rendered(report.render(checked.report))
    checked.write(tell)
    tell(f"also in {checked.directory}: selfcheck.json, pictures/selfcheck.svg, and a result per comparison")
    return exit_status(checked)


def _build(arguments: argparse.Namespace, lab: Lab) -> int:
    with Watcher() as watcher:
        built = kernels.build(_experiment_request(arguments, lab, watcher), lab, watcher)
    for arm, vmlinux in built:
        print(f"{arm}\t{vmlinux}")
    return FINE


def _boot(arguments: argparse.Namespace, lab: Lab) -> int:
    with Watcher() as watcher:
        request = kernels.BootRequest(_experiment_request(arguments, lab, watcher), arguments.arm)
        kernels.boot(request, lab, watcher, tell, watcher.aside)
    return FINE


def _parse(arguments: argparse.Namespace, _lab: Lab) -> int:
    for facts in parse.parse(arguments.path):
        print(json.dumps(facts))
    return FINE


def _report(arguments: argparse.Namespace, lab: Lab) -> int:
    if arguments.form == "manifest":
        print(replay.manifest(arguments.result).text(indent=1))
        return FINE
    outcome = compare.report(compare.ReportRequest(arguments.result, _conditions(arguments)))
    if arguments.why:
        with Watcher() as watcher:
            outcome = why.explained(outcome, lab, watcher)
    show(outcome, arguments.form, arguments.all)
    return exit_status(outcome)


def _log(arguments: argparse.Namespace, _lab: Lab) -> int:
    text = log.log(log.LogRequest(arguments.result, arguments.trial, arguments.console))
    print(visible(text), end="" if text.endswith("\n") else "\n")
    return FINE


def _verify(arguments: argparse.Namespace, lab: Lab) -> int:
    return _again(replay.VerifyRequest(arguments.path, arguments.trials, None, arguments.jobs), lab)


def _again(request: replay.VerifyRequest, lab: Lab) -> int:
    """Run trials again and say whether they gave the same."""
    with Watcher() as watcher:
        repeated = replay.verify(request, lab, watcher)
    for difference in repeated.differences:
        expected = difference.expected
        print(visible(f"{expected.arm} seed {expected.seed}: {difference.explanation}"))
    same = repeated.trials - len(repeated.differences)
    print(f"{same} of {repeated.trials} trials gave the same console log, byte for byte")
    return exit_status(repeated)


def _bundle(arguments: argparse.Namespace, lab: Lab) -> int:
    with Watcher() as watcher:
        target = replay.bundle(replay.BundleRequest(arguments.result, arguments.output), lab, watcher)
    tell(f"{target.stat().st_size / 1e6:.1f} MB")
    print(target)
    return FINE


def _replay(arguments: argparse.Namespace, lab: Lab) -> int:
    if not (arguments.gdb or arguments.break_at_miss):
        return _again(
            replay.VerifyRequest(arguments.path, arguments.trials, arguments.trial, arguments.jobs), lab
        )
    if not arguments.trial:
        raise SpecError("--gdb and --break-at-miss need --trial ID: one guest at a time")
    request = replay.DebugRequest(arguments.path, arguments.trial, arguments.break_at_miss)
    with Watcher() as watcher:
        debugged = replay.debug_trial(request, lab, watcher, watcher.result)
    result = "the same, byte for byte" if debugged.same else "not the one of the result"
    print(f"the console log is {result}")
    return exit_status(debugged)


def _profile(arguments: argparse.Namespace, lab: Lab) -> int:
    request = profile.ProfileRequest(arguments.path, arguments.trial, arguments.seeds, arguments.blocks)
    with Watcher() as watcher:
        shown = profile.profile(request, lab, watcher)
    show_profile(shown, arguments.form, arguments.by, arguments.most)
    return FINE


def _explain(arguments: argparse.Namespace, lab: Lab) -> int:
    with Watcher() as watcher:
        experiment = _experiment_request(arguments, lab, watcher)
        request = explain.ExplainRequest(experiment, arguments.commands)
        for line in explain.explain(request, lab, watcher):
            watcher.result(line)
    return FINE


def _history(arguments: argparse.Namespace, _lab: Lab) -> int:
    request = history.HistoryRequest(
        tuple(arguments.results), arguments.metric, arguments.margin, arguments.output
    )
    shown = history.history(request)
    from testbed.report import timeline  # noqa: PLC0415  (slow, with scipy)

    print_rendered(timeline.table(shown.title, shown.unit, shown.points, shown.decisions).terminal())
    if request.picture:
        history.draw(shown, request.picture)
    return FINE


def _check(arguments: argparse.Namespace, lab: Lab) -> int:
    words = (arguments.good, arguments.bad, arguments.metric, arguments.confidence)
    request = bisection.CheckRequest(_file_request(arguments), *words)
    with Watcher() as watcher:
        return exit_status(bisection.check_tree(request, lab, watcher))


def _bisect(arguments: argparse.Namespace, lab: Lab) -> int:
    if arguments.replay:
        return show_bisection(bisection.status(arguments.replay, arguments.confidence), arguments.json)
    if not arguments.repo:
        return _look_at_bisection(arguments)
    for name in ("good", "bad", "experiment"):
        if getattr(arguments, name) is None:
            raise SpecError(f"bisect --repo needs --{name} as well")
    request = bisection.BisectRequest(
        arguments.repo,
        arguments.good,
        arguments.bad,
        _file_request(arguments),
        tuple(arguments.words),
        arguments.metric,
        arguments.confidence,
        arguments.results,
        arguments.fresh,
        arguments.jobs,
    )
    with Watcher() as watcher:
        outcome = bisection.run(request, lab, watcher)
    return show_bisection(outcome, arguments.json, write=True)


def _look_at_bisection(arguments: argparse.Namespace) -> int:
    match arguments.words:
        case ["status", directory]:
            return show_bisection(bisection.status(Path(directory)), arguments.json, write=True)
        case ["log", directory]:
            for line in bisection.log(Path(directory)):
                print(visible(line))
            return FINE
    raise SpecError(
        "bisect needs --repo, --good, --bad and --experiment; or: status RESULT, log RESULT; "
        "or --replay RESULT"
    )


def _init(arguments: argparse.Namespace, _lab: Lab) -> int:
    print(init.init(arguments.target))
    return FINE


def _experiments(_arguments: argparse.Namespace, _lab: Lab) -> int:
    show_experiments(catalog.offered())
    return FINE


def _list(arguments: argparse.Namespace, _lab: Lab) -> int:
    show_results(arguments.directory, catalog.stored(arguments.directory))
    return FINE


def _schema(arguments: argparse.Namespace, _lab: Lab) -> int:
    if arguments.report:
        from testbed.report.schema import schema  # noqa: PLC0415  (slow, with scipy)

        print(json.dumps(schema(), indent=2))
    else:
        print(json.dumps(experiment.schema(), indent=2))
    return FINE


def _metrics(_arguments: argparse.Namespace, _lab: Lab) -> int:
    print(metrics.table(), end="")
    return FINE


def _doctor(_arguments: argparse.Namespace, lab: Lab) -> int:
    examined = doctor.examine(lab)
    show_examined(examined)
    return exit_status(examined)


def _clean(_arguments: argparse.Namespace, lab: Lab) -> int:
    show_cleaned(clean.clean(lab.cache), lab.cache)
    return FINE


# What a verb is done with: the words, and where kernels are built and guests run. Returns the exit status.
VERBS: dict[str, Callable[[argparse.Namespace, Lab], int]] = {
    "compare": _compare,
    "run": _run,
    "explain": _explain,
    "build": _build,
    "boot": _boot,
    "selfcheck": _selfcheck,
    "parse": _parse,
    "report": _report,
    "log": _log,
    "history": _history,
    "verify": _verify,
    "bundle": _bundle,
    "profile": _profile,
    "replay": _replay,
    "check": _check,
    "bisect": _bisect,
    "experiments": _experiments,
    "list": _list,
    "init": _init,
    "schema": _schema,
    "metrics": _metrics,
    "doctor": _doctor,
    "clean": _clean,
}
# Those that go on, when stopped, from where they were.
KEEPING = ("compare", "run", "build", "selfcheck", "bisect")


if __name__ == "__main__":
    sys.exit(main())
