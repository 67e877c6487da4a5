# SPDX-License-Identifier: GPL-2.0-only
"""The words that a person may type: verbs, their options, and what is said of each by --help."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Protocol

from testbed.host.paths import data_directory
from testbed.ledger.record import FAILURES
from testbed.verbs.catalog import RESULTS
from testbed.verbs.derive import Words
from testbed.verbs.request import EVERY_FAILURE

SELFCHECK = data_directory() / "experiments" / "selfcheck.yaml"


# In short; verbs/status.py has it at length.
STATUSES = """\
exit status:
  0    fine
  1    nothing could be compared; a condition of --fail-on was met; a trial gave other bytes; too many false
       alarms; no commit was confirmed as the culprit; the doctor found a problem
  2    bad input
  3    the machine or the infrastructure failed
  130  interrupted

`testbed VERB --help` says more of each."""
# Of --line.
EVERY_LINE = "all"
# Of `compare`, what says how trials are to run.
RUNNING_OPTIONS = (
    *("mode", "accel", "seeds", "quick", "time", "line", "save"),
    *("results", "fresh", "jobs", "again", "why"),
)


def parser() -> argparse.ArgumentParser:
    """What reads the command line. The verb is in `verb`."""
    whole = argparse.ArgumentParser(
        prog="testbed",
        description="Says, with evidence, whether a page-reclaim patch did what it claims.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, about: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=about, description=about)

    _add_experiment_verbs(verb)
    _add_selfcheck_verb(verb)
    _add_result_verbs(verb)
    _add_log_verb(verb)
    _add_profile_verb(verb)
    _add_bisect_verb(verb)
    verb("experiments", "list the repository's own experiments: what each is about, how long it takes here")
    sub = verb("list", "list the results here: what each says, and how old it is")
    sub.add_argument("directory", nargs="?", type=Path, default=RESULTS, metavar="DIR")
    sub = verb("init", "write an example experiment, with all of it explained, to begin with")
    sub.add_argument("target", nargs="?", type=Path, default=Path(), metavar="DIR|FILE.yaml")
    sub = verb("schema", "print the JSON Schema of experiment files, for editors to complete")
    sub.add_argument("--report", action="store_true", help="of what testbed writes: all report.json")
    verb("metrics", "list the metrics: name, unit, which direction is better, and where it is from")
    verb("doctor", "check what this machine lacks for the main job, and say what is kept where")
    sub = verb("clean", "free what the doctor says is kept, but for what other processes use; asks nothing")
    sub.add_argument("--cache", action="store_true", required=True, help="kernels, sources, snapshots, ...")
    return whole


class Verb(Protocol):
    """Adds a verb to the command line."""

    def __call__(self, name: str, about: str) -> argparse.ArgumentParser: ...


def _add_experiment_verbs(verb: Verb) -> None:
    for name, about in (
        ("compare", "run what is missing of an experiment and put its arms side by side"),
        ("run", "run what is missing of an experiment"),
        (
            "explain",
            "say what an experiment comes to, without running it: kernels, patches, about how long",
        ),
        ("build", "build the kernels of an experiment and print where they are"),
        ("boot", "boot an arm's kernel and give a shell in the guest"),
    ):
        sub = verb(name, about)
        _add_question(sub, results=name == "compare")
        modes, meaning = ["deterministic", "realtime"], "instead of the experiment's"
        if name in ("compare", "run"):
            modes.append("auto")
            meaning += "; auto: in real time under KVM, deterministic where KVM does not boot the kernel"
        sub.add_argument("--mode", choices=modes, help=meaning)
        sub.add_argument("--accel", choices=["auto", "kvm", "tcg"], help="in real time; implies it")
        if name in ("compare", "run", "explain"):
            sub.add_argument("--seeds", type=positive, metavar="N", help="instead of the experiment's")
            sub.add_argument("--quick", action="store_true", help="a first look: three seeds")
            sub.add_argument(
                "--time", type=minutes, metavar="10m", help="as many seeds as begin within it: 90s, 10m, 2h"
            )
        if name in ("compare", "run"):
            _add_running_options(sub)
            sub.add_argument(
                "--again",
                choices=[*FAILURES, EVERY_FAILURE],
                help="try the trials that ended so once more; the newest attempt counts",
            )
        every = ", or all" if name == "compare" else ""
        sub.add_argument("--line", metavar="LINE", help=f"instead of its source: a line of patches/{every}")
        if name == "compare":
            sub.add_argument("--json", action="store_true", help="print the JSON document")
            _add_report_options(sub)
        if name == "explain":
            sub.add_argument(
                "--commands", action="store_true", help="also what builds kernels and starts guests"
            )
        if name == "boot":
            sub.add_argument("--arm", help="default: the first")


def _add_question(sub: argparse.ArgumentParser, *, results: bool) -> None:
    """What is to be compared: an experiment's file, or what makes one."""
    stored = "; or two stored RESULT[:ARM], which are compared as they are" if results else ""
    sub.add_argument(
        "words",
        nargs="*",
        metavar="EXPERIMENT.yaml|PATCH",
        help="an experiment's file; or patches (files, mails, mboxes, directories, git:A..B, - for standard "
        f"input), for the kernel without and with them{stored}; default: the repository's own experiment",
    )
    question = sub.add_argument_group("an experiment without a file")
    add = question.add_argument
    add(
        "--experiment",
        metavar="NAME",
        help="guest and workload: `testbed experiments` lists them; default: anon",
    )
    add("--tree", type=Path, metavar="DIR", help="a kernel tree; with --base, HEAD and what is changed in it")
    add(
        "--base",
        metavar="REV",
        help="compare HEAD with where it has left this; with --head, with this itself",
    )
    add("--head", metavar="REV", help="instead of HEAD")
    add(
        "--kernel",
        action="append",
        default=[],
        metavar="KERNEL",
        help="6.1.176, a package, a tree, a tarball, with --tree a revision; of two or more, an arm each",
    )
    for option, metavar, meaning in (
        ("--sysctl", "NAME=V[,V...]", "set so; of several values an arm each"),
        ("--command-line", "WORD", "an argument of the kernel"),
        ("--config", "CONFIG_X=V[,V...]", "an option of the kernel's configuration"),
    ):
        add(option, action="append", default=[], metavar=metavar, help=meaning)
    add("--save", type=Path, metavar="FILE", help="write the experiment, with comments, to go on from there")


def question(arguments: argparse.Namespace, patches: tuple[str, ...]) -> Words:
    """What is to be compared, of what was read."""
    return Words(
        patches,
        arguments.tree,
        arguments.base,
        arguments.head,
        tuple(arguments.kernel),
        tuple(arguments.sysctl),
        tuple(arguments.command_line),
        tuple(arguments.config),
    )


def _add_selfcheck_verb(verb: Verb) -> None:
    sub = verb("selfcheck", "compare what does not differ, many times: how often is a change found?")
    sub.add_argument("experiment", nargs="?", type=Path, default=SELFCHECK, metavar="EXPERIMENT.yaml")
    sub.add_argument("--comparisons", type=positive, default=40, metavar="N", help="default: 40")
    sub.add_argument("--mode", choices=["deterministic", "realtime"], help="instead of the experiment's")
    _add_running_options(sub)


def _add_running_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=Path, metavar="DIR", help="default: results/NAME")
    sub.add_argument("--fresh", action="store_true", help="start over; the old result is moved aside")
    _add_jobs_option(sub)


def _add_result_verbs(verb: Verb) -> None:
    sub = verb("parse", "parse the console logs of a result, or one log, again; prints JSON lines")
    sub.add_argument("path", type=Path, metavar="RESULT|LOG")
    sub = verb("report", "report on a result without running anything")
    _add_result(sub, "all forms and an HTML page with pictures are written into it, too")
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
    sub = verb("history", "a metric over stored results of many kernels, and where it changed")
    sub.add_argument("results", type=Path, nargs="+", metavar="RESULT[:ARM]")
    sub.add_argument("--metric", default="direct_reclaims", help="default: direct_reclaims")
    sub.add_argument("--margin", type=float, default=0.01, help="a change that nobody minds; default: 0.01")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="a picture, .svg or .png")
    sub = verb("verify", "run finished trials again; fails unless every one gives the same bytes")
    sub.add_argument(
        "path", type=Path, metavar="RESULT|MANIFEST|BUNDLE", help="a directory, hashes, or a file of `bundle`"
    )
    _add_sample_options(sub)
    sub = verb("bundle", "write one file with which `replay` does a result again on any machine")
    _add_result(sub, "of deterministic trials")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: NAME.testbed")
    sub = verb("replay", "run a bundle's trials, or a single trial under a debugger")
    sub.add_argument(
        "path", type=Path, metavar="BUNDLE|RESULT", help="of those that you trust: a bundle brings code"
    )
    _add_sample_options(sub)
    sub.add_argument("--trial", metavar="ID", help="this one only: an id, or ARM:SEED")
    sub.add_argument("--gdb", action="store_true", help="wait for gdb before the trial's first instruction")
    sub.add_argument("--break-at-miss", type=positive, metavar="N", help="and stop at its Nth reclaim miss")


def _add_profile_verb(verb: Verb) -> None:
    sub = verb("profile", "count what a deterministic guest executes, and say what two arms differ in")
    sub.add_argument("path", type=Path, metavar="RESULT|MANIFEST", help="a directory, or hashes")
    chosen = sub.add_mutually_exclusive_group()
    chosen.add_argument("--trial", metavar="ARM:SEED", help="this one only; or a trial's id")
    chosen.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="so many of every arm; default: 1"
    )
    sub.add_argument("--by", choices=["task", "cpu", "phase"], help="of one trial also who executed how much")
    sub.add_argument("--blocks", action="store_true", help="of one trial blocks of code, without their calls")
    sub.add_argument("--most", type=positive, default=25, metavar="N", help="rows; default: 25")
    form = sub.add_mutually_exclusive_group()
    for name, about in (
        ("folded", "stacks, for flame graph programs"),
        ("speedscope", "a file for speedscope.app"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"print {about}")
    sub.set_defaults(form="text")


def _add_log_verb(verb: Verb) -> None:
    sub = verb("log", "print what a trial's program printed")
    sub.add_argument("result", type=Path, metavar="RESULT", help="a result's directory")
    sub.add_argument("trial", metavar="ARM:SEED", help="or a trial's id")
    sub.add_argument("--console", action="store_true", help="the whole console log instead")


def _add_result(sub: argparse.ArgumentParser, more: str) -> None:
    sub.add_argument("result", type=Path, metavar="RESULT", help=f"a result's directory; {more}")


def _add_bisect_verb(verb: Verb) -> None:
    sub = verb("check", "for `git bisect run`: exit 0 if the first arm is good, 1 if bad, else 125")
    sub.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    for name in ("good", "bad"):
        sub.add_argument(
            f"--{name}", type=Path, required=True, metavar="RESULT[:ARM]", help=f"measured alike, and {name}"
        )
    sub.add_argument("--metric", help="default: the first primary; outcome:panic for crashes")
    sub.add_argument("--confidence", type=_probability, default=0.95, metavar="P", help="default: 0.95")
    sub.add_argument("--seeds", type=positive, metavar="N", help="at most so many, if not the experiment's")
    sub.add_argument("--mode", choices=["deterministic", "realtime"], help="instead of the experiment's")
    sub.add_argument("--accel", choices=["auto", "kvm", "tcg"], help="in real time; implies it")
    sub = verb("bisect", "find the commit that changed a metric, or say how far that has come")
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
        "--why",
        action="store_true",
        help="also of which functions a difference is made; runs the trials again, deterministic ones only",
    )
    parser.add_argument(
        "--all", action="store_true", help="all metrics in the table, not only the usual ones"
    )
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="CONDITION",
        help='exit status 1 if so: "fault_p99 regressed", "any primary undecided" (or inconclusive), '
        '"nothing reclaimed"; may be repeated',
    )


def _add_jobs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="trials side by side, if not as many as fit"
    )


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trials", type=positive, metavar="N", help="a sample of N, spread over arms and seeds"
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


def minutes(word: str) -> float:
    """Minutes of a time such as 90s, 10m or 2h. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)(s|m|h)", word)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{word!r} is not a time such as 90s, 10m or 2h")
    return float(match[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[match[2]]


def positive(word: str) -> int:
    """A number of trials, seeds or jobs. Raises argparse.ArgumentTypeError."""
    if not re.fullmatch("0*[1-9][0-9]{0,4}", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 to 99999")
    return int(word)
