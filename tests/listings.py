# SPDX-License-Identifier: GPL-2.0-only
"""The commands that README.md and docs/ show, and whether they do what is shown: `make docs-check`.

The language of a fenced block says what becomes of it:

- `console`: a session. What follows `$ ` is typed, the rest is what it prints. Commands run in order, in a
  fresh copy of the checkout; `cd` lasts to the end of the page, files to the end of the last page. They have
  to print what is shown, and to end with status 0.
- `console varies`: the same, but numbers are those of one run. Words have to be the same.
- `sh`: commands to be adapted to names and paths of one's own. They have to parse.
- `yaml`, `text` and others: no commands.

What is printed may be wrapped otherwise, and `...` stands for anything. Times, rates, sizes and ports are not
compared, nor in which order trials end. Lines of standard error may be left out; standard output has to be
complete. Where `(gdb) ` is shown, gdb runs beside the command, and is given what is typed there.

    .venv/bin/python -m tests.listings [--in DIRECTORY] [PAGE[:LINE]...]
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pexpect

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / "docs").glob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *map(str, DOCS))
SECONDS, GDB_SECONDS = 3 * 3600, 600
PROMPT, GDB = "$ ", "(gdb) "
OF_MAKE = frozenset({"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "ARGS"})
SESSION, VARIES, ADAPT = "console", "console varies", "sh"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is that of its first line."""

    page: str
    line: int
    language: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """What is typed, and what the page says that it prints; `language` is the block's."""

    page: str
    line: int
    language: str
    typed: str
    shown: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether it runs as it stands."""
        return self.language != ADAPT

    @property
    def varies(self) -> bool:
        """Whether its numbers are those of one run."""
        return self.language == VARIES


def blocks(page: str, text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    start, language, inside = 0, "", False
    lines = text.splitlines()
    for n, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if inside:
            yield Block(page, start + 1, language, tuple(lines[start:n]))
        inside, start, language = not inside, n + 1, line.removeprefix("```").strip()


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block: what follows `$ ` in a session, every line of `sh`."""
    if block.language == ADAPT:
        lines = "\n".join(block.lines).replace("\\\n", " ").splitlines()
        yield from (Command(block.page, block.line, ADAPT, line) for line in lines if line.strip())
    if block.language not in (SESSION, VARIES):
        return
    starts = [n for n, line in enumerate(block.lines) if line.startswith(PROMPT)]
    for start, end in zip(starts, [*starts[1:], len(block.lines)], strict=True):
        first, *shown = block.lines[start:end]
        while first.endswith("\\") and shown:
            first = f"{first}\n{shown.pop(0)}"
        typed = first.removeprefix(PROMPT)
        yield Command(block.page, block.line + start, block.language, typed, tuple(shown))


def listed(pages: Sequence[str] = PAGES) -> list[Command]:
    """All commands of all pages."""
    texts = {page: (REPOSITORY / page).read_text() for page in pages}
    return [command for page in pages for block in blocks(page, texts[page]) for command in commands(block)]


def simple_commands(typed: str) -> Iterator[list[str]]:
    """The words of each command of a line of shell, without comments and redirections' targets."""
    lexer = shlex.shlex(typed.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


# --- what is shown, and what was printed -----------------------------------------------------------

SAME = (
    (re.compile(r"^\[\d+/\d+\] .*$", re.M), ""),
    (re.compile(r"[─━]{3,}"), "─"),
    (re.compile(r"\b(?:\d+ h )?(?:\d+ min )?\d[\d.,]* s\b|\b\d+ min\b"), "TIME"),
    (re.compile(r"\b1 : \d[\d.,]*"), "1 : RATIO"),
    (re.compile(r"\blocalhost:\d+"), "localhost:PORT"),
    (re.compile(r"\b\d[\d.,]* Mi?B\b"), "SIZE"),
)
NUMBER = re.compile(r"(?<![0-9a-f])[-+]?\d[\d.,]*")


def normal(text: str, varies: bool = False) -> str:
    """A text without what differs from run to run, all of it on one line."""
    for pattern, instead in SAME:
        text = pattern.sub(instead, text)
    if varies:
        text = NUMBER.sub("N", text)
    return " ".join(text.split())


def matches(shown: str, printed: str) -> bool:
    """Whether a normal text is what is shown, `...` being anything."""
    parts = [re.escape(part.strip()) for part in shown.split("...")]
    return re.fullmatch(r"\s*.*?\s*".join(parts), printed) is not None


def difference(command: Command, out: str, err: str) -> list[str]:
    """What of a listing is not so, as lines of a diff; none if it is as shown."""
    told = [normal(line, command.varies) for line in err.splitlines()]
    rest = []
    for line in command.shown:
        wanted = normal(line, command.varies)
        if wanted == "..." or not any(matches(wanted, one) for one in told):
            rest.append(line)
    if not command.shown or matches(normal("\n".join(rest), command.varies), normal(out, command.varies)):
        return []
    return list(difflib.unified_diff(rest, out.splitlines(), "shown", "printed", n=1, lineterm=""))


# --- running ---------------------------------------------------------------------------------------


def checkout(directory: Path) -> None:
    """Copy what git has of the repository, as it is here, and set it up."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, listing.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, directory / name)
    # A repository, as some commands want to know its version.
    subprocess.run(["git", "init", "--quiet"], cwd=directory, check=True)
    subprocess.run([sys.executable, "-m", "testbed.setup.bootstrap"], cwd=directory, check=True)


def run(command: Command, cwd: Path, top: Path) -> tuple[int, str, str, Path]:
    """Exit status, standard output, standard error, and the directory that it ends in."""
    # `make docs-check ARGS=PAGE` would hand its ARGS on to every `make` that a page shows.
    inherited = {key: value for key, value in os.environ.items() if key not in OF_MAKE}
    environment = {**inherited, "PATH": f"{top / '.venv/bin'}:{os.environ['PATH']}", "TERM": "dumb"}
    if any(line.startswith(GDB) for line in command.shown):
        return *debugged(command, cwd, environment), cwd
    with tempfile.NamedTemporaryFile() as place:
        script = f"{command.typed}\nstatus=$?\npwd > {shlex.quote(place.name)}\nexit $status"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        ends_in = Path(place.read().decode().strip() or cwd)
    return done.returncode, done.stdout, done.stderr, ends_in


def debugged(command: Command, cwd: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Exit status, standard output with what gdb shows beside it, and standard error."""
    typed = [line.removeprefix(GDB) for line in command.shown if line.startswith(GDB)]

    def start(line: str) -> pexpect.spawn[str]:
        return pexpect.spawn(
            "bash",
            ["-c", line],
            cwd=str(cwd),
            env=environment,
            encoding="utf-8",
            dimensions=(1000, 500),
            timeout=GDB_SECONDS,
        )

    with tempfile.NamedTemporaryFile() as errors:
        # Not to a terminal: what is printed there is wrapped, and gdb's line is to be pasted.
        with start(f"set -o pipefail; ({command.typed}) 2>{shlex.quote(errors.name)} | cat") as host:
            host.expect(r"gdb [^\r\n]*\r\n")
            text = host.before + host.after
            with start(host.after.strip()) as gdb:
                gdb.expect_exact(GDB)
                for words in typed:
                    gdb.sendline(words)
                    gdb.expect_exact(GDB)
                    text += f"{GDB}{gdb.before}"
                gdb.sendline("quit")
                gdb.expect(pexpect.EOF)
            host.expect(pexpect.EOF)
            text += host.before
        return host.exitstatus or 0, text.replace("\r", ""), errors.read().decode()


def check(chosen: Sequence[Command], top: Path) -> int:
    """Run commands in order; print what is not as shown; return how many are not."""
    wrong, cwd, page = 0, top, ""
    for command in chosen:
        cwd, page = (cwd if command.page == page else top), command.page
        start = time.monotonic()
        status, out, err, cwd = run(command, cwd, top)
        diff = difference(command, out, err)
        verdict = "as shown" if not diff and status == 0 else f"NOT as shown, status {status}"
        print(
            f"{page}:{command.line}: {verdict}, {time.monotonic() - start:.0f} s: {command.typed}", flush=True
        )
        if diff or status:
            wrong += 1
            print("\n".join(diff))
            print("\n".join(f"stderr: {line}" for line in err.splitlines()[-20:]), flush=True)
    return wrong


def main(words: Sequence[str] | None = None) -> int:
    """Check all listings, or those of some pages or lines; 1 if one is not as shown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--in", dest="directory", type=Path, help="a copy made before, or a place for one")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("where", nargs="*", metavar="PAGE[:LINE]", help="default: all")
    options = parser.parse_args(words)
    where = set(options.where)
    chosen = [c for c in listed() if c.runs and (not where or where & {c.page, f"{c.page}:{c.line}"})]
    if options.list:
        print("\n".join(f"{c.page}:{c.line}: {c.typed}" for c in chosen))
        return 0
    with tempfile.TemporaryDirectory(prefix="testbed-") as scratch:
        top = (options.directory or Path(scratch) / "testbed").resolve()
        if not (top / ".venv").exists():
            checkout(top)
        return min(1, check(chosen, top))


if __name__ == "__main__":
    sys.exit(main())
