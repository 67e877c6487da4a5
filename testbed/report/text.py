# SPDX-License-Identifier: GPL-2.0-only
"""The result as a table for a terminal, and as Markdown for a mail or a pull request. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType

from testbed.experiment import BalloonSpec, Experiment, format_size
from testbed.ledger.plan import GuestFacts
from testbed.ledger.record import MEASURED
from testbed.report import words
from testbed.report.document import ComparisonReport, Metric
from testbed.report.escape import escaped, visible
from testbed.report.table import Table, plain

NO_SEEDS = "no seed was measured in every arm"
# A unit of the registry, as it is shown: a divisor and a name, the largest that suits first.
_SHOWN = {"us": ((1000.0, "ms"), (1.0, "µs")), **dict.fromkeys(("1/s", "pages/s"), ((1.0, "1/s"),))}


def number(value: float) -> str:
    """Three significant digits, or all of an integer."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(metric: Metric | None, seeds: Sequence[int], divisor: float = 1.0) -> str:
    """The median over the comparison's seeds, and from where to where their values go."""
    if metric is None or metric.median is None:
        return "-"
    values = [
        value / divisor for seed, value in metric.values.items() if metric.of_failures or int(seed) in seeds
    ]
    low, high = number(min(values)), number(max(values))
    return number(metric.median / divisor) + (f" [{low}-{high}]" if low != high else "")


def change(before: Metric | None, after: Metric | None) -> str:
    """The change of the median in percent, where one direction is better than the other."""
    if not before or not after or before.better == "neither":
        return ""
    if before.median is None or after.median is None:
        return ""
    if before.median == after.median:
        return "="
    return f"{after.median / before.median - 1:+.1%}" if before.median else ""


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
        # That of the registry is in the title, where it does not go without saying.
        plain_unit = first.unit if name in report.experiment.metrics else ""
        units = _SHOWN.get(first.unit, ((1.0, plain_unit),))
        divisor, unit = next((u for u in units if largest >= u[0]), units[-1])
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
    shown = " … ".join(f"{int(size) >> 10:,}" for size in sorted({memory[0], memory[-1]})) if memory else "?"
    sources = list(dict.fromkeys(kernel.source for kernel in kernels.values()))
    lines = [
        f"kernel: {', '.join(sources)}",
        *(f"  {arm}: {_differs(report, arm)}" for arm in kernels),
        *guest_and_workload(experiment, f" (MemTotal {shown} KiB)"),
        *acceleration(experiment, report.provenance),
        *_ratio(report),
        *_sampling(report),
        f"seeds: {len(report.seeds)} in every arm{_boots(report)}; a cell is their median [lowest-highest]",
    ]
    if len({(kernels[arm].vmlinux_sha256, *settings(experiment, arm)) for arm in kernels}) < len(kernels):
        lines.append("note: some arms are the same kernel, bit for bit")
    return lines


def _differs(report: ComparisonReport, arm: str) -> str:
    """What makes an arm what it is."""
    patches = ", ".join(report.provenance.kernels[arm].patches) or "no patches"
    return "; ".join([patches, *settings(report.experiment, arm)])


def settings(experiment: Experiment, arm: str) -> list[str]:
    """What is set in an arm's guests, by its experiment."""
    spec = experiment.arms[arm]
    return [
        *(f"{name}={value}" for name, value in {**spec.sysctl, **spec.sysfs}.items()),
        *spec.command_line,
    ]


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


def fallback(facts: GuestFacts) -> list[str]:
    """Why it ran otherwise than it was meant to, if it did."""
    return [facts.fallback] if facts.fallback else []


def guest_and_workload(experiment: Experiment, seen: str = "") -> Iterator[str]:
    """The guests' shape, with what was seen of it, and what runs in them."""
    guest = experiment.guest
    yield (
        f"guest: {guest.vcpus} vCPUs, {format_size(guest.boot_memory)} ballooned down to "
        f"{format_size(guest.memory)}{seen}, zram {format_size(guest.swap)}"
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


def notes(report: ComparisonReport) -> list[str]:
    """What a reader has to know beside the numbers."""
    lines = []
    for name, arm in report.arms.items():
        if set(arm.outcomes) - {MEASURED}:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(arm.outcomes.items()))
            lines.append(f"outcomes of {name}: {counts}")
    trials, verdicts = report.trials, report.verdicts.values()
    enough = report.sequential and verdicts and all(verdict.decided for verdict in verdicts)
    if trials.ended < trials.planned and enough:
        lines.append(f"{trials.ended} of at most {trials.planned} trials were enough to decide")
    elif trials.ended < trials.planned:
        lines.append(f"{trials.ended} of {trials.planned} trials have run so far")
    if report.lost_attempts:
        lines.append(f"attempts lost to the infrastructure and tried again: {report.lost_attempts}")
    for e in report.excluded:
        lines.append(f"not in the numbers: {e.arm} seed {e.seed}: {e.outcome}: {e.reason}")
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


def traces(report: ComparisonReport) -> Iterator[tuple[str, Sequence[str]]]:
    """Per arm whose kernel tells them, a heading and the first lines of the misses, as in the 2010 mail."""
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
    parts += [plain(line, "bold") for line in fallback(report.provenance)]
    parts += [plain(f"{arm}: {said}", "bold") for arm, said in words.verdicts(report)]
    parts += [plain(line) for line in words.detectable(report)]
    if report.verdicts:
        parts.append(plain(words.how(report)))
    parts += [plain(line, "bold") for line in words.disagreements(report)]
    parts += [plain(line) for line in setting(report)]
    parts.append(table(report, everything).terminal() if report.seeds else plain(NO_SEEDS, "bold"))
    for heading, lines in traces(report):
        parts += [plain(heading), *(plain("  " + line) for line in lines)]
    parts += [plain(line, "bold") for line in notes(report)]
    return Group(*parts)


def markdown(report: ComparisonReport, everything: bool = False) -> str:
    """The report as GitHub-flavoured Markdown; `everything` as in `table`."""
    lines = [f"# {report.name}", "", visible(report.description), ""]
    for line in fallback(report.provenance):
        lines += [f"**{escaped(line)}**", ""]
    lines += [f"- **{escaped(arm)}**: {escaped(said)}" for arm, said in words.verdicts(report)]
    lines += [f"- {escaped(line)}" for line in words.detectable(report)]
    if report.verdicts:
        lines += ["", escaped(words.how(report)), ""]
    lines += [f"- **{escaped(line)}**" for line in words.disagreements(report)]
    lines += [f"- {escaped(line.strip())}" for line in setting(report)]
    lines += ["", *(table(report, everything).markdown() if report.seeds else [f"**{NO_SEEDS}**"])]
    for heading, trace in traces(report):
        lines += ["", f"{escaped(heading)}", *(["", "```", *map(visible, trace), "```"] if trace else [])]
    if bold := [f"- **{escaped(line)}**" for line in notes(report)]:
        lines += ["", *bold]
    lines += ["", "## Provenance", "", *(f"- {escaped(line)}" for line in provenance(report))]
    return "\n".join(lines).rstrip() + "\n"
