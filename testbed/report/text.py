# SPDX-License-Identifier: GPL-2.0-only
"""The result as a table for a terminal, and as Markdown for a mail or a pull request. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType

from testbed.analysis.compare import Exclusion
from testbed.experiment import BalloonSpec, Experiment, format_size
from testbed.ledger.plan import GuestFacts
from testbed.ledger.record import MEASURED
from testbed.report import why, words
from testbed.report.document import Arm, ComparisonReport, Metric
from testbed.report.escape import escaped, visible
from testbed.report.table import Table, plain
from testbed.report.words import number, per, scale, signed

# Of a kind, in a terminal.
MOST_DIFFERENCES = 8
NO_SEEDS = "no seed was measured in every arm"
# Of trials that failed alike, and of what the OOM killer took, so many are named.
SHOWN_SEEDS, SHOWN_VICTIMS = 10, 3


def spread(metric: Metric | None, seeds: Sequence[int], divisor: float = 1.0) -> str:
    """The median over the comparison's seeds, and from where to where their values go."""
    if metric is None or metric.median is None:
        return "-"
    values = [
        value / divisor for seed, value in metric.values.items() if metric.of_failures or int(seed) in seeds
    ]
    return number(metric.median / divisor) + reach(values)


def reach(values: Iterable[float]) -> str:
    """As in ` [12-26]`; empty if all are shown alike."""
    shown = [number(value) for value in sorted(values)]
    return f" [{shown[0]}-{shown[-1]}]" if shown and shown[0] != shown[-1] else ""


def change(before: Metric | None, after: Metric | None) -> str:
    """The change of the median, where one direction is better: in percent or, from 0, in its unit."""
    if not before or not after or before.better == "neither":
        return ""
    if before.median is None or after.median is None:
        return ""
    if before.median == after.median:
        return "="
    if before.median:
        return f"{after.median / before.median - 1:+,.1%}"
    # There is no ratio to nothing.
    divisor, unit = scale(after.unit, abs(after.median))
    return f"{signed(after.median / divisor)}{per(unit)}"


def table(report: ComparisonReport, everything: bool = False) -> Table:
    """Metric, one cell per arm, and the change when there are two.

    Without `everything`, of metrics that are of interest now and then only the primary ones. Where there are
    phases, a metric's row is followed by one for each.
    """
    headings = ["metric", *report.arms, *(["change"] if len(report.arms) == 2 else [])]
    return Table(headings, list(_rows(report, everything)))


def _rows(report: ComparisonReport, everything: bool) -> Iterator[list[str]]:
    arms = [arm.metrics for arm in report.arms.values()]
    for name in dict.fromkeys(name for metrics in arms for name in metrics):
        cells = [metrics.get(name) for metrics in arms]
        first, *others = filter(None, cells)
        if not (first.level == "main" or name in report.experiment.primary or everything):
            continue
        largest = max(metric.median or 0 for metric in (first, *others))
        divisor, unit = scale(first.unit, largest)
        title = first.title + (f" ({unit})" if unit else "")
        yield _row(title, cells, report.seeds, divisor)
        for phase in first.phases:
            parts = [_of_phase(cell, phase) for cell in cells]
            yield _row(f"  {phase}", parts, report.seeds, divisor)


def _row(title: str, cells: Sequence[Metric | None], seeds: Sequence[int], divisor: float) -> list[str]:
    row = [title, *(spread(cell, seeds, divisor) for cell in cells)]
    return [*row, change(*cells)] if len(cells) == 2 else row


def _of_phase(cell: Metric | None, phase: str) -> Metric | None:
    """A metric in one phase, as if it were one of its own."""
    if cell is None:
        return None
    values = cell.phases.get(phase, {})
    median = statistics.median(values.values()) if values else None
    return cell.model_copy(update={"values": values, "median": median})


def setting(report: ComparisonReport) -> list[str]:
    """What ran, in a few lines."""
    experiment, kernels = report.experiment, report.provenance.kernels
    memory = sorted({size for arm in report.arms.values() for size in arm.memory_bytes.values()})
    shown = " … ".join(f"{int(size) >> 10:,}" for size in sorted({memory[0], memory[-1]})) if memory else ""
    sources = list(dict.fromkeys(kernel.source for kernel in kernels.values()))
    return [
        f"kernel: {', '.join(sources)}",
        *(f"  {arm}: {_differs(report, arm)}" for arm in kernels),
        *differences(report),
        *guest_and_workload(experiment, f" (MemTotal {shown} KiB)" if shown else ""),
        *acceleration(experiment, report.provenance),
        *_ratio(report),
        *_sampling(report),
        *_seeds(report),
    ]


def _differs(report: ComparisonReport, arm: str) -> str:
    """What makes an arm what it is."""
    kernels = report.provenance.kernels
    patches = ", ".join(kernels[arm].patches) or "no patches"
    own = [kernels[arm].source] if len({kernel.source for kernel in kernels.values()}) > 1 else []
    return "; ".join([*own, patches, *settings(report.experiment, arm)])


def differences(report: ComparisonReport) -> Iterator[str]:
    """What is not the same in all arms: configuration and compilers of kernels, settings as read back."""
    facts = report.provenance
    tools = {arm: "; ".join(kernel.tools) for arm, kernel in facts.kernels.items()}
    if len(set(tools.values())) > 1:
        yield f"  built by {_by_arm(tools)}"
    arms = facts.effective.values()
    names = dict.fromkeys(name for settings in arms for name in settings)
    read = {
        name: {arm: settings[name] for arm, settings in facts.effective.items() if name in settings}
        for name in names
    }
    unlike = {name: values for name, values in read.items() if len(set(values.values())) > 1}
    yield from _listed(
        "configuration", {name: _by_arm(values) for name, values in facts.config_differences.items()}
    )
    yield from _listed("in effect", {name: _by_arm(values) for name, values in unlike.items()})
    yield from _refused(report)


def _listed(title: str, lines: Mapping[str, str]) -> Iterator[str]:
    """The first of many, and how many more."""
    for name, said in list(lines.items())[:MOST_DIFFERENCES]:
        yield f"  {title}: {name} is {said}"
    if (more := len(lines) - MOST_DIFFERENCES) > 0:
        yield f"  {title}: {more} more are not the same; report.json has them"


def _by_arm(values: Mapping[str, str]) -> str:
    """As in `60 in before, 20 in after`."""
    return ", ".join(f"{value} in {arm}" for arm, value in values.items())


def _refused(report: ComparisonReport) -> Iterator[str]:
    """Settings of a sysctl that are other than the experiment asks for."""
    for arm, settings in report.provenance.effective.items():
        asked = {**report.experiment.guest.sysctl, **report.experiment.arms[arm].sysctl}
        for name, value in asked.items():
            words, known = str(value).split(), settings.get(name, "").split()
            # Of a list, the kernel may know the first so many.
            if known and words[: len(known)] != known:
                yield f"  in effect: {name} is {settings[name]} in {arm}, and not {value} as asked for"


def settings(experiment: Experiment, arm: str) -> list[str]:
    """What is set in an arm's guests, by its experiment."""
    spec = experiment.arms[arm]
    return [
        *(f"{name}={value}" for name, value in {**spec.sysctl, **spec.sysfs}.items()),
        *spec.command_line,
    ]


def _seeds(report: ComparisonReport) -> Iterator[str]:
    """How many there are in the table; of none there is a sentence in its place."""
    if report.seeds:
        n = len(report.seeds)
        yield f"seeds: {n} in every arm{_boots(report)}; a cell is their median [lowest-highest]"


def _boots(report: ComparisonReport) -> str:
    """Where deterministic trials start, if not each from a boot of its own."""
    boots = report.experiment.boots
    if not report.provenance.deterministic or boots is None or boots >= len(report.seeds):
        return ""
    return f", from {boots} boot{'s' if boots > 1 else ''} of each kernel, which they do not average out"


def _sampling(report: ComparisonReport) -> list[str]:
    """How often counters were read, and what that took of one vCPU's time."""
    arms = (arm.metrics.get("sampling_cpu") for arm in report.arms.values())
    costs = [metric.median for metric in arms if metric and metric.median is not None]
    period = report.experiment.sample
    if not costs or not period:
        return []
    return [f"sampled every {period * 1000:g} ms, for {max(costs):.2%} of one vCPU's time"]


def warnings(report: ComparisonReport) -> list[str]:
    """What has to be known before the verdicts."""
    return [*fallback(report.provenance), *(remark.text for remark in report.remarks)]


def doubts(report: ComparisonReport) -> list[str]:
    """Why a verdict may not be what it says."""
    return [*words.disagreements(report), *words.drifts(report)]


def fallback(facts: GuestFacts) -> list[str]:
    """Why it ran otherwise than it was meant to, if it did."""
    return [facts.fallback] if facts.fallback else []


def guest_and_workload(experiment: Experiment, seen: str = "") -> Iterator[str]:
    """The guests' shape, with what was seen of it, and what runs in them."""
    guest = experiment.guest
    yield (
        f"guest: {guest.vcpus} vCPUs, {format_size(guest.boot_memory)} ballooned down to "
        f"{format_size(guest.memory)}{seen}, {f'zram {format_size(guest.swap)}' if guest.swap else 'no swap'}"
    )
    yield f"workload: {experiment.workload.describe()}"
    if guest.balloon:
        yield f"balloon: {_schedule(guest.balloon)}"


def _schedule(balloon: BalloonSpec) -> str:
    """The schedule of memory while the workload runs."""
    if ramp := balloon.ramp:
        return f"ramp to {format_size(ramp.to)} from {ramp.at:g} s on within {ramp.over:g} s"
    if oscillate := balloon.oscillate:
        size = format_size(oscillate.to)
        return f"oscillate to {size} from {oscillate.at:g} s on with a period of {oscillate.period:g} s"
    assert balloon.step
    return f"step to {format_size(balloon.step.to)} from {balloon.step.at:g} s on"


def acceleration(experiment: Experiment, facts: GuestFacts) -> Iterator[str]:
    """What ran the guests, and what a second is in there, where it is none of ours."""
    yield f"acceleration: {facts.accelerator.name} ({facts.accelerator.reason})"
    if facts.deterministic:
        yield (
            "time: virtual. A second is 10^9 instructions of all vCPUs together, "
            f"{1000 / experiment.guest.vcpus:,.0f} million of each: no caches, no memory latency, "
            "no real I/O. Counts and orders of events are what it is good for, not how long a real CPU "
            "would take"
        )


def _ratio(report: ComparisonReport) -> Iterator[str]:
    """How long virtual time took."""
    wall, virtual = report.wall_seconds.get("workload"), report.guest_seconds
    if report.provenance.deterministic and virtual and wall:
        yield (
            f"  {virtual:.2f} s of it, with the filling of memory, took {wall:.1f} s "
            f"of wall time: 1 : {wall / virtual:.1f}"
        )


def diffstat(report: ComparisonReport) -> Iterator[str]:
    """What the patches of every arm change, as `git diff --stat` has it."""
    patches: dict[str, Mapping[str, tuple[int, int]]] = {}
    for kernel in report.provenance.kernels.values():
        for patch, files in kernel.diffstat.items():
            patches.setdefault(patch, files)
    for patch, changes in patches.items():
        yield patch
        width = max(map(len, changes), default=0)
        for path, (added, removed) in changes.items():
            yield f"  {path:<{width}} | {added + removed:4} (+{added}, -{removed})"


def kills(report: ComparisonReport) -> Table | None:
    """What the OOM killer took, a row per arm; None if nothing. Its trials are in no other number."""
    arms = {name: arm for name, arm in report.arms.items() if arm.kills}
    headings = ["arm", "trials", "kills", "victim", "first after (s)", "it had (MiB)", "of swap in use"]
    rows = [_killed(name, arm) for name, arm in arms.items()]
    return Table(headings, rows, frozenset({0, 3}), "out of memory") if rows else None


def _killed(name: str, arm: Arm) -> list[str]:
    """One arm's kills: medians and ranges over its trials, of the first kill in each."""
    first = [kills[0] for kills in arm.kills.values()]
    counts = sorted(len(kills) for kills in arm.kills.values())
    victims = dict.fromkeys(kill.victim for kills in arm.kills.values() for kill in kills)
    had = [kill.had_bytes / 2**20 for kill in first if kill.had_bytes is not None]
    swaps = [(kill.swap_bytes, kill.swap_free_bytes) for kill in first]
    used = [100 * (1 - free / size) for size, free in swaps if size and free is not None]
    return [
        name,
        f"{len(first)} of {sum(arm.outcomes.values())}",
        number(statistics.median(counts)) + reach(counts),
        ", ".join(list(victims)[:SHOWN_VICTIMS]) + (", ..." if len(victims) > SHOWN_VICTIMS else ""),
        *(
            number(statistics.median(values)) + reach(values) + unit if values else "-"
            for values, unit in (
                ([kill.seconds for kill in first if kill.seconds is not None], ""),
                (had, ""),
                (used, " %"),
            )
        ),
    ]


def notes(report: ComparisonReport) -> list[str]:
    """What a reader has to know beside the numbers."""
    lines = []
    trials, verdicts = report.trials, report.verdicts.values()
    enough = report.sequential and verdicts and all(verdict.decided for verdict in verdicts)
    if trials.ended < trials.planned and enough:
        lines.append(f"{trials.ended} of at most {trials.planned} trials were enough to decide")
    elif trials.ended < trials.planned:
        lines.append(f"{trials.ended} of {trials.planned} trials have run so far")
    if report.lost_attempts:
        lines.append(f"attempts lost to the infrastructure and tried again: {report.lost_attempts}")
    return [*lines, *report.lacking, *_without_values(report)]


def _without_values(report: ComparisonReport) -> Iterator[str]:
    """The experiment's own metrics that trials have measured, but said no number of."""
    for name, own in report.experiment.metrics.items():
        for arm, measured in report.arms.items():
            trials = measured.outcomes.get(MEASURED, 0)
            known = len(measured.metrics[name].values) if name in measured.metrics else 0
            if known < trials:
                where = own.file or "the output"
                several = "" if own.combine else ", or several that `combine` says nothing about"
                lacking = f"{trials - known} of {trials} trials have no {name}"
                yield f"{arm}: {lacking}: no number in {where}{several}"


@dataclass(frozen=True)
class Failure:
    """Trials of an arm that failed alike: why, the last words of the first, and where there are more."""

    reason: str
    said: Sequence[str] = ()
    more: str = ""


def failures(report: ComparisonReport) -> Iterator[Failure]:
    """What is not in the numbers, and why; what the OOM killer took is in its own table."""
    told = {(name, seed, "oom") for name, arm in report.arms.items() for seed in arm.kills}
    alike: dict[tuple[str, str, str], list[Exclusion]] = {}
    for e in report.excluded:
        if (e.arm, str(e.seed), e.outcome) not in told:
            alike.setdefault((e.arm, e.outcome, e.reason), []).append(e)
    for (arm, outcome, reason), found in alike.items():
        first, n = found[0], len(found)
        seeds = ", ".join(str(e.seed) for e in found[:SHOWN_SEEDS])
        which = f"seed {seeds}" if n == 1 else f"{n} seeds ({seeds}{', ...' if n > SHOWN_SEEDS else ''})"
        more = f"testbed log RESULT {arm}:{first.seed}" if first.said else ""
        yield Failure(f"not in the numbers: {arm} {which}: {outcome}: {reason}", first.said, more)


def traces(report: ComparisonReport) -> Iterator[tuple[str, Sequence[str]]]:
    """Per arm whose kernel tells them, a heading and the first that failed at first, as in the 2010 mail."""
    for name, arm in report.arms.items():
        if "misses" in arm.metrics:
            yield f"{name}: {arm.trace.count} trace lines", arm.trace.first


def provenance(report: ComparisonReport) -> Iterator[str]:
    """Where the numbers come from: versions, hashes and command lines."""
    facts = report.provenance
    for arm, kernel in facts.kernels.items():
        yield f"{arm}: vmlinux sha256 {kernel.vmlinux_sha256}, {'; '.join(kernel.tools)}"
        yield f"{arm}: source {kernel.source_identity}, configuration {kernel.config_sha256}"
        for patch, digest in kernel.patches_sha256.items():
            yield f"{arm}: patch {patch} sha256 {digest}"
        if line := facts.command_lines.get(arm):
            yield f"{arm}: {line}"
    yield from machine(facts)
    yield f"testbed {facts.testbed}, first trial {facts.started or 'unknown'}"


def machine(facts: GuestFacts) -> Iterator[str]:
    """What ran the guests, and where."""
    host = facts.host
    yield f"initramfs sha256 {facts.initramfs.sha256}"
    yield f"{facts.qemu}, on {host.cores} x {host.cpu}, Linux {host.kernel}"


def render(report: ComparisonReport, everything: bool = False) -> RenderableType:
    """The report for a terminal; `everything` as in `table`."""
    parts: list[RenderableType] = [plain(report.name, "bold"), plain(report.description)]
    parts += [plain(line, "bold") for line in warnings(report)]
    parts += [plain(f"{arm}: {said}", "bold") for arm, said in words.verdicts(report)]
    parts += [plain(line) for line in words.detectable(report)]
    parts += [plain(line) for line in why.sentences(report.why)]
    if report.verdicts:
        parts.append(plain(words.how(report)))
    parts += [plain(line, "bold") for line in doubts(report)]
    parts += [plain(line) for line in setting(report)]
    parts.append(table(report, everything).terminal() if report.seeds else plain(NO_SEEDS, "bold"))
    if killed := kills(report):
        parts.append(killed.terminal())
    parts += [made.terminal() for made in why.tables(report)]
    for heading, lines in traces(report):
        parts += [plain(heading), *(plain("  " + line) for line in lines)]
    parts += [plain(line, "bold") for line in notes(report)]
    for failure in failures(report):
        parts += [plain(failure.reason, "bold"), *(plain("  " + line) for line in failure.said)]
        parts += [plain(f"  all of it: {failure.more}")] if failure.more else []
    return Group(*parts)


def markdown(report: ComparisonReport, everything: bool = False) -> str:
    """The report as GitHub-flavoured Markdown; `everything` as in `table`."""
    lines = [f"# {report.name}", "", visible(report.description), ""]
    for line in warnings(report):
        lines += [f"**{escaped(line)}**", ""]
    lines += [f"- **{escaped(arm)}**: {escaped(said)}" for arm, said in words.verdicts(report)]
    lines += [f"- {escaped(line)}" for line in words.detectable(report)]
    lines += [f"- {escaped(line)}" for line in why.sentences(report.why)]
    if report.verdicts:
        lines += ["", escaped(words.how(report)), ""]
    lines += [f"- **{escaped(line)}**" for line in doubts(report)]
    lines += [f"- {escaped(line.strip())}" for line in setting(report)]
    lines += ["", *(table(report, everything).markdown() if report.seeds else [f"**{NO_SEEDS}**"])]
    if killed := kills(report):
        lines += ["", f"**{escaped(killed.title)}**", "", *killed.markdown()]
    for heading, trace in traces(report):
        lines += ["", f"{escaped(heading)}", *(["", "```", *map(visible, trace), "```"] if trace else [])]
    if bold := [f"- **{escaped(line)}**" for line in notes(report)]:
        lines += ["", *bold]
    for failure in failures(report):
        lines += ["", f"**{escaped(failure.reason)}**"]
        if failure.said:
            # Not in a fence, which its words may end.
            lines += ["", *(f"    {visible(line)}" for line in failure.said)]
            lines += ["", f"All of it: {escaped(failure.more)}"]
    lines += ["", "## Provenance", "", *(f"- {escaped(line)}" for line in provenance(report))]
    return "\n".join(lines).rstrip() + "\n"
