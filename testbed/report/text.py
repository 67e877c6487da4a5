# SPDX-License-Identifier: GPL-2.0-only
"""The result as a table for a terminal, and as Markdown for a mail or a pull request. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from testbed.experiment import WorkloadSpec, format_size
from testbed.ledger.record import MEASURED
from testbed.report import words

NO_SEEDS = "no seed was measured in every arm"
# A unit of the registry, as it is shown: a divisor and a name, the largest that suits first.
_SHOWN = {"us": ((1000.0, "ms"), (1.0, "µs")), **dict.fromkeys(("1/s", "pages/s"), ((1.0, "1/s"),))}


def visible(text: str) -> str:
    """A text with all that a terminal would obey, or not show, as escapes; lines and tabs stay.

    What a guest says may be anything, and rich leaves ESC as it is.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def number(value: float) -> str:
    """Three significant digits, or all of an integer."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(metric: Mapping[str, Any] | None, seeds: Sequence[int], divisor: float = 1.0) -> str:
    """The median over the comparison's seeds, and from where to where their values go."""
    if metric is None or metric["median"] is None:
        return "-"
    every = metric.get("of_failures", False)
    values = [value / divisor for seed, value in metric["values"].items() if every or int(seed) in seeds]
    low, high = number(min(values)), number(max(values))
    return number(metric["median"] / divisor) + (f" [{low}-{high}]" if low != high else "")


def change(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """The change of the median in percent, where one direction is better than the other."""
    if not before or not after or before["better"] == "neither":
        return ""
    if before["median"] is None or after["median"] is None:
        return ""
    if before["median"] == after["median"]:
        return "="
    return f"{after['median'] / before['median'] - 1:+.1%}" if before["median"] else ""


def rows(document: Mapping[str, Any], everything: bool = False) -> Iterator[list[str]]:
    """Metric, one cell per arm, and the change when there are two.

    Without `everything`, of metrics that are of interest now and then only the primary ones. Where there are
    phases, a metric's row is followed by one for each.
    """
    arms = [arm["metrics"] for arm in document["arms"].values()]
    names = list(dict.fromkeys(name for metrics in arms for name in metrics))
    for name in names:
        cells = [metrics.get(name) for metrics in arms]
        known = [cell for cell in cells if cell]
        # A document of before there were levels had the usual ones.
        usual = known[0].get("level", "main") == "main" or name in document["experiment"].get("primary", {})
        if not usual and not everything:
            continue
        largest = max(cell["median"] or 0 for cell in known)
        units = _SHOWN.get(known[0]["unit"], ((1.0, ""),))
        divisor, unit = next((u for u in units if largest >= u[0]), units[-1])
        title = known[0]["title"] + (f" ({unit})" if unit else "")
        yield _row(title, cells, document["seeds"], divisor)
        for phase in known[0].get("phases", {}):
            parts = [_of_phase(cell, phase) for cell in cells]
            yield _row(f"  {phase}", parts, document["seeds"], divisor)


def _row(
    title: str, cells: Sequence[Mapping[str, Any] | None], seeds: Sequence[int], divisor: float
) -> list[str]:
    row = [title, *(spread(cell, seeds, divisor) for cell in cells)]
    return [*row, change(*cells)] if len(cells) == 2 else row


def _of_phase(cell: Mapping[str, Any] | None, phase: str) -> Mapping[str, Any] | None:
    """A metric in one phase, as if it were one of its own."""
    values = cell["phases"].get(phase, {}) if cell else {}
    return cell and {
        **cell,
        "values": values,
        "median": statistics.median(values.values()) if values else None,
    }


def headings(document: Mapping[str, Any]) -> list[str]:
    """The first line of the table."""
    return ["metric", *document["arms"], *(["change"] if len(document["arms"]) == 2 else [])]


def setting(document: Mapping[str, Any]) -> list[str]:
    """What ran, in a few lines."""
    provenance = document["provenance"]
    memory = sorted({size for arm in document["arms"].values() for size in arm["memory_bytes"].values()})
    shown = " … ".join(f"{size >> 10:,}" for size in sorted({memory[0], memory[-1]})) if memory else "?"
    kernels = provenance["kernels"]
    sources = list(dict.fromkeys(kernel["source"] for kernel in kernels.values()))
    lines = [
        f"kernel: {', '.join(sources)}",
        *(f"  {arm}: {_differs(document, arm)}" for arm in kernels),
        *guest_and_workload(document["experiment"], f" (MemTotal {shown} KiB)"),
        *acceleration(document),
        *_ratio(document),
        *_sampling(document),
        f"seeds: {len(document['seeds'])} in every arm{_boots(document)}; "
        "a cell is their median [lowest-highest]",
    ]
    if len({(kernels[arm]["vmlinux_sha256"], *settings(document, arm)) for arm in kernels}) < len(kernels):
        lines.append("note: some arms are the same kernel, bit for bit")
    return lines


def _differs(document: Mapping[str, Any], arm: str) -> str:
    """What makes an arm what it is."""
    patches = document["provenance"]["kernels"][arm]["patches"]
    return "; ".join([", ".join(patches) or "no patches", *settings(document, arm)])


def settings(document: Mapping[str, Any], arm: str) -> list[str]:
    """What is set in an arm's guests, by its experiment."""
    # Plans of before there was any are still worth a report.
    said = document["experiment"]["arms"].get(arm, {})
    values = {**said.get("sysctl", {}), **said.get("sysfs", {})}
    return [*(f"{name}={value}" for name, value in values.items()), *said.get("command_line", [])]


def _boots(document: Mapping[str, Any]) -> str:
    """Where deterministic trials start, if not each from a boot of its own."""
    if document["provenance"]["accelerator"]["name"] != "icount":
        return ""
    # Before there was a choice it was one.
    boots = document["experiment"].get("boots", 1)
    if boots is None or boots >= len(document["seeds"]):
        return ""
    return f", from {boots} boot{'s' if boots > 1 else ''} of each kernel, which they do not average out"


def _sampling(document: Mapping[str, Any]) -> list[str]:
    """How often counters were read, and what that took of one vCPU's time."""
    arms = (arm["metrics"].get("sampling_cpu") for arm in document["arms"].values())
    costs = [metric["median"] for metric in arms if metric and metric["median"] is not None]
    period = document["experiment"].get("sample")
    if not costs or not period:
        return []
    return [f"sampled every {period * 1000:g} ms, for {max(costs):.2%} of one vCPU's time"]


def fallback(document: Mapping[str, Any]) -> list[str]:
    """Why it ran otherwise than it was meant to, if it did."""
    return list(filter(None, [document["provenance"].get("fallback", "")]))


def guest_and_workload(experiment: Mapping[str, Any], seen: str = "") -> Iterator[str]:
    """The guests' shape, with what was seen of it, and what runs in them."""
    guest = experiment["guest"]
    yield (
        f"guest: {guest['vcpus']} vCPUs, {format_size(guest['boot_memory'])} ballooned down to "
        f"{format_size(guest['memory'])}{seen}, zram {format_size(guest['swap'])}"
    )
    yield f"workload: {WorkloadSpec.model_validate(experiment['workload']).describe()}"
    yield from _balloon(guest)


def _balloon(guest: Mapping[str, Any]) -> Iterator[str]:
    """The schedule of memory while the workload runs."""
    for kind, schedule in (guest.get("balloon") or {}).items():
        if schedule:
            words = {"over": "within {:g} s", "period": "with a period of {:g} s"}
            more = [words[key].format(schedule[key]) for key in words if key in schedule]
            yield " ".join(
                [f"balloon: {kind} to {format_size(schedule['to'])} from {schedule['at']:g} s on", *more]
            )


def acceleration(document: Mapping[str, Any]) -> Iterator[str]:
    """What ran the guests, and what a second is in there, where it is none of ours."""
    accelerator = document["provenance"]["accelerator"]
    yield f"acceleration: {accelerator['name']} ({accelerator['reason']})"
    if accelerator["name"] == "icount":
        vcpus = document["experiment"]["guest"]["vcpus"]
        yield (
            "time: virtual. A second is 10^9 instructions of all vCPUs together, "
            f"{1000 / vcpus:,.0f} million of each: no caches, no memory latency, no real I/O. "
            "Counts and orders of events are what it is good for, not how long a real CPU would take"
        )


def _ratio(document: Mapping[str, Any]) -> Iterator[str]:
    """How long virtual time took."""
    wall = document["wall_seconds"].get("workload")
    virtual = document["provenance"]["accelerator"]["name"] == "icount"
    if virtual and document["guest_seconds"] and wall:
        yield (
            f"  {document['guest_seconds']:.2f} s of it, with the filling of memory, took {wall:.1f} s "
            f"of wall time: 1 : {wall / document['guest_seconds']:.1f}"
        )


def diffstat(document: Mapping[str, Any]) -> Iterator[str]:
    """What the patches of every arm change, as `git diff --stat` has it."""
    told: set[str] = set()
    for kernel in document["provenance"]["kernels"].values():
        for patch, files in kernel.get("diffstat", {}).items():
            if patch in told:
                continue
            told.add(patch)
            yield patch
            width = max(map(len, files), default=0)
            for path, (added, removed) in files.items():
                yield f"  {path:<{width}} | {added + removed:4} (+{added}, -{removed})"


def notes(document: Mapping[str, Any]) -> list[str]:
    """What a reader has to know beside the numbers."""
    lines = []
    for name, arm in document["arms"].items():
        if set(arm["outcomes"]) - {MEASURED}:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(arm["outcomes"].items()))
            lines.append(f"outcomes of {name}: {counts}")
    trials, verdicts = document["trials"], document["verdicts"].values()
    enough = document["sequential"] and verdicts and all(verdict["decided"] for verdict in verdicts)
    if trials["ended"] < trials["planned"] and enough:
        lines.append(f"{trials['ended']} of at most {trials['planned']} trials were enough to decide")
    elif trials["ended"] < trials["planned"]:
        lines.append(f"{trials['ended']} of {trials['planned']} trials have run so far")
    if document["lost_attempts"]:
        lines.append(f"attempts lost to the infrastructure and tried again: {document['lost_attempts']}")
    for e in document["excluded"]:
        lines.append(f"not in the numbers: {e['arm']} seed {e['seed']}: {e['outcome']}: {e['reason']}")
    return lines


def traces(document: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Per arm whose kernel tells them, a heading and the first lines of the misses, as in the 2010 mail."""
    for name, arm in document["arms"].items():
        if "misses" in arm["metrics"]:
            yield f"{name}: {arm['trace']['count']} trace lines", arm["trace"]["first"]


def provenance(document: Mapping[str, Any]) -> Iterator[str]:
    """Where the numbers come from: versions, hashes and command lines."""
    facts = document["provenance"]
    for arm, kernel in facts["kernels"].items():
        yield f"{arm}: vmlinux sha256 {kernel['vmlinux_sha256']}, {'; '.join(kernel['tools'])}"
        # Results of before these were noted are still worth a report.
        identity, config = (kernel.get(key, "unknown") for key in ("source_identity", "config_sha256"))
        yield f"{arm}: source {identity}, configuration {config}"
        for patch, digest in kernel.get("patches_sha256", {}).items():
            yield f"{arm}: patch {patch} sha256 {digest}"
        if line := facts["command_lines"].get(arm):
            yield f"{arm}: {line}"
    yield from machine(facts)
    yield f"testbed {facts.get('testbed', 'unknown')}, first trial {facts['started'] or 'unknown'}"


def machine(facts: Mapping[str, Any]) -> Iterator[str]:
    """What ran the guests, and where."""
    host = facts["host"]
    yield f"initramfs sha256 {facts['initramfs']['sha256']}"
    yield f"{facts['qemu']}, on {host['cores']} x {host['cpu']}, Linux {host['kernel']}"


def render(document: Mapping[str, Any], everything: bool = False) -> RenderableType:
    """The report for a terminal; `everything` as in `rows`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings(document)):
        table.add_column(_text(heading), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows(document, everything):
        table.add_row(*map(_text, row))
    parts: list[RenderableType] = [_text(document["name"], "bold"), _text(document["description"])]
    parts += [_text(line, "bold") for line in fallback(document)]
    parts += [_text(f"{arm}: {said}", "bold") for arm, said in words.verdicts(document)]
    parts += [_text(line) for line in words.detectable(document)]
    if document["verdicts"]:
        parts.append(_text(words.how(document)))
    parts += [_text(line, "bold") for line in words.disagreements(document)]
    parts += [_text(line) for line in setting(document)]
    parts.append(table if document["seeds"] else _text(NO_SEEDS, "bold"))
    for heading, lines in traces(document):
        parts += [_text(heading), *(_text("  " + line) for line in lines)]
    parts += [_text(line, "bold") for line in notes(document)]
    return Group(*parts)


def _text(line: str, style: str = "") -> Text:
    return Text(visible(line), style)


def markdown(document: Mapping[str, Any], everything: bool = False) -> str:
    """The report as GitHub-flavoured Markdown; `everything` as in `rows`."""
    heads = headings(document)
    lines = [f"# {document['name']}", "", visible(document["description"]), ""]
    for line in fallback(document):
        lines += [f"**{escaped(line)}**", ""]
    lines += [f"- **{escaped(arm)}**: {escaped(said)}" for arm, said in words.verdicts(document)]
    lines += [f"- {escaped(line)}" for line in words.detectable(document)]
    if document["verdicts"]:
        lines += ["", escaped(words.how(document)), ""]
    lines += [f"- **{escaped(line)}**" for line in words.disagreements(document)]
    lines += [f"- {escaped(line.strip())}" for line in setting(document)]
    if document["seeds"]:
        lines += ["", markdown_line(heads), markdown_line([":--", *["--:"] * (len(heads) - 1)])]
        lines += [markdown_line([escaped(cell) for cell in row]) for row in rows(document, everything)]
    else:
        lines += ["", f"**{NO_SEEDS}**"]
    for heading, trace in traces(document):
        lines += ["", f"{escaped(heading)}", *(["", "```", *map(visible, trace), "```"] if trace else [])]
    if bold := [f"- **{escaped(line)}**" for line in notes(document)]:
        lines += ["", *bold]
    lines += ["", "## Provenance", "", *(f"- {escaped(line)}" for line in provenance(document))]
    return "\n".join(lines).rstrip() + "\n"


def markdown_line(cells: Iterable[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def escaped(text: str) -> str:
    """A text of which nothing is markup."""
    # Console text may be anything: nothing in it is markup.
    return "".join("\\" + char if char in "\\`*_|<>[]#~&$" else char for char in visible(text))
