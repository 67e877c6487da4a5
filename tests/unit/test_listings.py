# SPDX-License-Identifier: GPL-2.0-only
"""What README.md and docs/ show: commands that exist, keys that exist, links that lead somewhere."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from testbed import cli
from testbed.experiment import Experiment
from testbed.terminal.arguments import parser
from tests.listings import (
    ADAPT,
    PAGES,
    REPOSITORY,
    SESSION,
    VARIES,
    Block,
    Command,
    blocks,
    commands,
    difference,
    listed,
    run,
    simple_commands,
)

TEXTS = {page: (REPOSITORY / page).read_text() for page in PAGES}
BLOCKS = [block for page, text in TEXTS.items() for block in blocks(page, text)]
LISTED = listed()
every_page = pytest.mark.parametrize("page", PAGES)
every_command = pytest.mark.parametrize("command", LISTED, ids=lambda c: f"{c.page}:{c.line}")

# --- commands --------------------------------------------------------------------------------------

MAKEFILE = (REPOSITORY / "Makefile").read_text()
# Target -> the first line of its recipe.
RECIPES = dict(re.findall(r"^([a-z-]+):[^\n]*\n\t@?([^\n]+)", MAKEFILE, re.M))
# What a page may show besides testbed and make.
OTHERS = {"cd", "gcc", "git", ".venv/bin/python", "ci/all"}


def parses(words: list[str]) -> None:
    """Fail unless the command line knows the verb and all options, and takes these."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            parser().parse_args(words)
    except SystemExit as ended:
        assert not ended.code, f"testbed {shlex.join(words)}: {complaint.getvalue()}"


def made(words: list[str]) -> list[str]:
    """The command that a `make TARGET NAME=VALUE...` comes to."""
    (target, *more), settings = (
        [word for word in words if "=" not in word],
        dict(word.split("=", maxsplit=1) for word in words if "=" in word),
    )
    assert not more and target in RECIPES, f"no such target: {words}"
    defaults = dict(re.findall(r"^([A-Z]+) \?=[ ]?(.*)$", MAKEFILE, re.M))
    assert set(settings) <= set(defaults), f"no such variable: {words}"
    recipe = RECIPES[target].replace("$(EXPERIMENT:.yaml=.manifest.json)", "manifest.json")
    for name, value in {"RUN": "testbed", **defaults, **settings}.items():
        recipe = recipe.replace(f"$({name})", value)
    return shlex.split(recipe)


def program(words: list[str]) -> list[str]:
    """The command without what is put before it, and what `make` comes to."""
    words = list(itertools.dropwhile(lambda word: re.fullmatch("[A-Z_]+=.*", word), words))
    if words[:3] == ["git", "bisect", "run"]:
        return words[3:]
    return made(words[1:]) if words[0] == "make" else words


@every_command
def test_a_command_that_is_shown_parses(command: Command) -> None:
    for words in map(program, simple_commands(command.typed)):
        if words[0] == "testbed":
            parses(words[1:])
            continue
        assert words[0] in OTHERS, command.typed
        # A script or a module of ours is there.
        for word in words[1:]:
            path = f"{word.replace('.', '/')}.py" if word.startswith("tests.") else word
            assert not path.endswith(".py") or (REPOSITORY / path).is_file(), command.typed


def test_a_command_that_is_not_there_does_not_parse() -> None:
    for typed in ("compare x.yaml --sedes 3", "compair x.yaml", "replay x --trial", "bisect --good"):
        with pytest.raises(AssertionError):
            parses(shlex.split(typed))
    for words in (["compares"], ["compare", "ARG=1"], ["compare", "ARGS=--sedes 3"]):
        with pytest.raises(AssertionError):
            parses(made(words)[1:])


def test_commands_are_found_in_a_page() -> None:
    page = (
        "A page.\n\n```console\n$ testbed run x.yaml && \\\n  make lint # both\nfine\n...\n$ cd x\n```\n"
        "```sh\ntestbed bisect --repo ~/linux \\\n    -- mm/\n```\n```text\n$ no\n```\n"
    )
    first, second, third = [c for block in blocks("P", page) for c in commands(block)]
    assert (first.line, first.shown, first.runs) == (4, ("fine", "..."), True)
    assert list(simple_commands(first.typed)) == [["testbed", "run", "x.yaml"], ["make", "lint"]]
    assert (second.line, second.typed, second.shown) == (8, "cd x", ())
    assert third.runs is False
    assert list(simple_commands(third.typed)) == [["testbed", "bisect", "--repo", "~/linux", "--", "mm/"]]


@pytest.mark.parametrize(
    ("shown", "out", "err", "same"),
    [
        ("a b", "a\n   b\n", "", True),
        ("a b", "a c", "", False),
        ("a", "a\nb", "", False),
        ("a\n...", "a\nb\nc", "", True),
        ("...\nc", "a\nb\nc\nd", "", False),
        ("a .../vmlinux", "a /tmp/x/vmlinux", "", True),
        ("took 11.0 s of it", "took 9 s of it", "", True),
        ("took 11.0 % of it", "took 9 % of it", "", False),
        ("note\na", "a", "note\nmore", True),
        ("note\na", "a", "other", False),
        ("[1/2] x seed 1: measured in 1 s\n[2/2] y\na", "a", "[1/2] y\n[2/2] x", True),
        (" ─────────\n 1", " ───\n 1", "", True),
    ],
)
def test_what_is_shown_is_compared_with_what_was_printed(shown: str, out: str, err: str, same: bool) -> None:
    command = Command("P", 1, SESSION, "x", tuple(shown.splitlines()))
    assert (difference(command, out, err) == []) is same


def test_numbers_may_vary_where_the_page_says_so_and_words_may_not() -> None:
    command = Command("P", 1, VARIES, "x", ("5 of 1,000 trials in 052b9d4c6c56",))
    assert difference(command, "71 of 2 trials in 052b9d4c6c56", "") == []
    assert difference(command, "5 of 1,000 boots in 052b9d4c6c56", "")


CHEAP = [
    command
    for command in LISTED
    if command.runs
    for words in simple_commands(command.typed)
    if words[0] == "testbed" and ("--help" in words or words[1] in ("metrics", "schema"))
]


@pytest.mark.parametrize("command", CHEAP, ids=lambda c: f"{c.page}:{c.line}")
def test_what_costs_nothing_runs(command: Command) -> None:
    """Commands that need no kernel; `make docs-check` runs the others."""
    (words,) = simple_commands(command.typed)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            status = cli.main(words[1:])
        except SystemExit as ended:
            status = int(ended.code or 0)
    assert (status, difference(command, printed.getvalue(), "")) == (0, [])


def test_a_make_that_is_shown_gets_nothing_of_the_make_that_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", " -- ARGS=README.md")
    monkeypatch.setenv("ARGS", "README.md")
    (tmp_path / "Makefile").write_text("all:\n\t@echo args=$(ARGS)\n")
    status, out, err, _ = run(Command("page.md", 1, SESSION, "make"), tmp_path, tmp_path)
    assert (status, out) == (0, "args=\n"), err


def test_no_command_hides_where_nothing_looks_for_it() -> None:
    typed = re.compile(r"(\$ |make [a-z]|testbed [a-z]|\.venv/bin/)")
    for block in BLOCKS:
        if block.language not in (SESSION, VARIES, ADAPT):
            assert not [line for line in block.lines if typed.match(line)], f"{block.page}:{block.line}"
    for page, text in TEXTS.items():
        # An indented block is a listing without a language.
        assert re.search(r"\n\n    [^\n]+\n", re.sub(r"```.*?```", "", text, flags=re.S)) is None, page


def test_verbs_and_options_in_the_text_exist() -> None:
    """In the text, `testbed VERB --option` is a command, too, though its arguments may be missing."""
    verbs = parser().format_help()
    for page, text in TEXTS.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        for words in re.findall(r"`testbed ([^`]+)`", prose):
            verb, *options = shlex.split(words.replace("\n", " "))
            assert re.search(rf"^ +{verb}\b", verbs, re.M) or verb.startswith("-"), f"{page}: testbed {words}"
            known = io.StringIO()
            with contextlib.redirect_stdout(known), contextlib.suppress(SystemExit):
                parser().parse_args([verb, "--help"])
            for option in options:
                if option.startswith("--"):
                    name = option.partition("=")[0]
                    assert re.search(rf"{name}\b", known.getvalue()), f"{page}: testbed {words}"


# --- experiments -----------------------------------------------------------------------------------

SNIPPETS = [block for block in BLOCKS if block.language == "yaml"]
SMALLEST = {"name": "x", "kernel": {"debian": "linux-source-6.1"}, "arms": {"stock": {}}}


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda b: f"{b.page}:{b.line}")
def test_keys_of_an_experiment_that_are_shown_exist(block: Block) -> None:
    for document in yaml.safe_load_all("\n".join(block.lines)):
        if isinstance(document, dict) and set(document) <= set(Experiment.model_fields):
            Experiment.model_validate({**SMALLEST, **document})


# --- pages -----------------------------------------------------------------------------------------


@every_page
def test_no_line_is_wider_than_110_columns(page: str) -> None:
    wide = [n for n, line in enumerate(TEXTS[page].splitlines(), 1) if len(line) > 110]
    assert wide == []


def test_what_cannot_happen_is_tried_by_tests_that_are_there() -> None:
    known = "".join(path.read_text() for path in (REPOSITORY / "tests").glob("*/test_*.py"))
    named = re.findall(r"`(test_\w+)`", TEXTS["docs/security.md"])
    assert len(named) >= 6
    assert [name for name in named if f"def {name}(" not in known] == []


def test_the_readme_takes_two_minutes() -> None:
    assert TEXTS["README.md"].count("\n") <= 170


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@every_page
def test_links_lead_somewhere(page: str) -> None:
    here = (REPOSITORY / page).parent
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (here / path).resolve() if path else REPOSITORY / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page}: {target}"
    # Files of the repository that are named in the text; LINE and the like stand for any.
    tops = "testbed|docs|tests|images|patches|kconfigs|experiments|ci"
    for name in re.findall(rf"`((?:{tops})/[\w./-]+)`", prose):
        assert any(REPOSITORY.glob(re.sub("LINE|NAME|NNNN", "*", name))), f"{page}: {name}"


def test_the_index_has_every_page() -> None:
    index = TEXTS["docs/README.md"]
    others = {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert {name for name in others if f"]({name})" not in index} == set()
