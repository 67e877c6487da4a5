# SPDX-License-Identifier: GPL-2.0-only
"""An experiment file either loads or is refused in words that lead to the mistake."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from testbed.experiment import Deadlines, Experiment, GuestSpec, MiB, format_size, is_path, load, parse_size
from testbed.experiment import file as file_module
from testbed.host.errors import SpecError
from tests.helpers import cpu_seconds
from tests.unit.recorded import EXPERIMENT, REPOSITORY, experiment_data

SHA256 = "ab" * 32
# Three lines that are right; what a test adds begins in the fourth.
RIGHT = "name: x\nkernel: {debian: linux-source-6.1}\narms: {a: {}}\n"

Refusal = Callable[[str | bytes], str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


@pytest.fixture
def refusal(file: Path) -> Refusal:
    """What is said about a text that does not load, less the file's name."""

    def refuse(text: str | bytes) -> str:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(SpecError) as caught:
            load(file)
        assert caught.value.exit_status == 2
        message = str(caught.value)
        assert all(line.startswith(f"{file}:") for line in message.splitlines())
        return message.replace(f"{file}:", "")

    return refuse


def loaded(file: Path, text: str) -> Experiment:
    file.write_text(text)
    return load(file)


# --- sizes ---------------------------------------------------------------------------------------


@given(st.integers(0, 2**50).map(lambda n: n * 1024))
def test_a_size_survives_being_written_and_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1K", 1024),
        ("128M", 128 * MiB),
        ("128MiB", 128 * MiB),
        ("128 MB", 128 * MiB),
        (" 2g ", 2048 * MiB),
        ("0M", 0),
    ],
)
def test_sizes_that_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("size", [1, 1023, 1025, MiB + 1])
def test_a_size_that_cannot_be_written_exactly_is_not_written(size: int) -> None:
    with pytest.raises(ValueError, match="1 KiB"):
        format_size(size)


SIZES = ["1", "128", "'128'", "-5M", "1.5G", "M", "128T", "128M128M", "true", "[128M]", "1025", "0x80M", "''"]


@pytest.mark.parametrize("key", ["memory", "boot_memory", "swap"])
@pytest.mark.parametrize("value", SIZES)
def test_what_is_no_size_is_refused(refusal: Refusal, key: str, value: str) -> None:
    message = refusal(f"{RIGHT}guest:\n  vcpus: 4\n  {key}: {value}\n")
    assert re.fullmatch(
        rf"6: `guest\.{key}`: .* is not a size: write a number and a unit, as in 128M", message
    )


# --- mistakes, each of which gives one line -------------------------------------------------------

TARBALL = "name: x\nkernel:\n  tarball:\n    {key}: a\n    sha256: " + SHA256 + "\narms: {{a: {{}}}}\n"
ARM = "name: x\nkernel: {debian: linux-source-6.1}\narms:\n  a: {patches: [p]}\n  b:\n    "
OWN = RIGHT + "workload: {command: [x]}\nmetrics: {t: {%s}}\n"
NEITHER = 'neither a number nor words with a blank between them, as in "32 32 0"'
MISTAKES = [
    # Unknown keys, at every level.
    (RIGHT + "seedz: 3\n", "4: `seedz`: unknown key; did you mean `seeds`?"),
    (RIGHT + "guest:\n  memmory: 64M\n", "5: `guest.memmory`: unknown key; did you mean `memory`?"),
    (RIGHT + "workload: {mmap: {}}\n", "4: `workload.mmap`: unknown key; did you mean `mmap_test`?"),
    (
        RIGHT + "workload:\n  mmap_test:\n    taks: 3\n",
        "6: `workload.mmap_test.taks`: unknown key; did you mean `tasks`?",
    ),
    (RIGHT + "deadlines: {bot: 3}\n", "4: `deadlines.bot`: unknown key; did you mean `boot`?"),
    (
        ARM + f"command_line: [{'x' * 1000}, {'y' * 24}]\n",
        "6: `arms.b.command_line`: has 1025 characters; at most 1024",
    ),
    (
        ARM + "command_line: [a b]\n",
        "6: `arms.b.command_line.0`: should be a word without blanks, of ASCII characters (found 'a b')",
    ),
    (RIGHT + "first_seed: 0\n", "4: `first_seed`: should be at least 1 (found 0)"),
    (ARM + "patchez: [p]\n", "6: `arms.b.patchez`: unknown key; did you mean `patches`?"),
    (
        RIGHT.replace("kernel: {", "kernel: {configs: [guest], "),
        "2: `kernel.configs`: unknown key; did you mean `config`?",
    ),
    (
        RIGHT + "zzzz: 1\n",
        "4: `zzzz`: unknown key; known here: accel, alpha, arms, boots, deadlines, description, first_seed, "
        "guest, kernel, matrix, metrics, minutes, mode, name, phases, primary, sample, seeds, sequential, "
        "tracepoints, workload",
    ),
    # Settings.
    (ARM + "sysctl: {vm.x: [1, 2]}\n", "6: `arms.b.sysctl.vm.x`: [1, 2] is " + NEITHER),
    (ARM + "sysctl: {vm.x: 1  2}\n", "6: `arms.b.sysctl.vm.x`: '1  2' is " + NEITHER),
    (ARM + "sysfs: {block/zram0/x: 1  2}\n", "6: `arms.b.sysfs.block/zram0/x`: '1  2' is " + NEITHER),
    (
        ARM + "sysfs: {kernel/mm/x: yes}\n",
        "6: `arms.b.sysfs.kernel/mm/x`: should be a number or text; `yes`, `no`, `on`, `off`, `true` and "
        "`false` need quotes",
    ),
    (
        RIGHT + f"guest: {{sysctl: {{vm.x: {'1 ' * 512}1}}}}\n",
        "4: `guest.sysctl.vm.x`: has 1025 characters; at most 1024",
    ),
    # A program's own numbers.
    (
        OWN % "pattern: 'x ([0-9'",
        "5: `metrics.t.pattern`: is not a regular expression: missing ]: [0-9",
    ),
    (
        OWN % "pattern: (a)(b)",
        "5: `metrics.t.pattern`: has 2 groups and should have one, the number; `(?:...)` is a group that "
        "does not count",
    ),
    (OWN % "", "5: `metrics.t`: give exactly one of pattern and json"),
    (
        OWN % "pattern: (a), json: b",
        "5: `metrics.t`: give exactly one of pattern and json (found both)",
    ),
    (OWN % "jsn: b", "5: `metrics.t.jsn`: unknown key; did you mean `json`?"),
    (OWN % "json: 3", "5: `metrics.t.json`: should be text; a number needs quotes (found 3)"),
    (
        OWN % "json: a, file: run/x",
        "5: `metrics.t.file`: should be a file in the guest, as in /run/example.json",
    ),
    (
        OWN % "json: a, combine: median",
        "5: `metrics.t.combine`: should be 'sum', 'mean', 'max', 'min' or 'last' (found 'median')",
    ),
    (
        RIGHT + "metrics: {t: {json: a}}\n",
        "4: `metrics`: are what a program says; they go with `workload.command`",
    ),
    (
        RIGHT + f"workload: {{command: [{', '.join('x' * 2000)}]}}\n",
        "4: `workload.command`: init's line for it has 4033 characters, of which 4000 fit; bring a script in "
        "`files`",
    ),
    # Missing.
    (RIGHT.replace("name: x\n", ""), "1: `name`: is missing"),
    (RIGHT.replace("arms: {a: {}}\n", ""), "1: `arms`: is missing"),
    (TARBALL.format(key="url").replace("    url: a\n", ""), "3: `kernel.tarball.url`: is missing"),
    # Given twice.
    (RIGHT + "name: y\n", "4: key `name` is given twice"),
    (RIGHT + "guest:\n  memory: 64M\n  memory: 96M\n", "6: key `memory` is given twice"),
    (RIGHT.replace("{a: {}}", "{a: {}, a: {}}"), "3: key `a` is given twice"),
    (ARM + "patches: [{p: 1, p: 2}]\n", "6: key `p` is given twice"),
    # The kernel's source.
    (
        RIGHT.replace("kernel: {", "kernel: {tree: /x, "),
        "2: `kernel`: give exactly one of debian, tarball, git and tree (found debian, tree)",
    ),
    (
        RIGHT.replace("debian: linux-source-6.1", ""),
        "2: `kernel`: names no source, nor does arm a; as in `kernel: {debian: linux-source-6.1}`",
    ),
    (
        RIGHT.replace("linux-source-6.1", "linux"),
        "2: `kernel.debian`: should be a package, as in linux-source-6.1 or linux-source-6.1=6.1.176-1 "
        "(found 'linux')",
    ),
    (
        TARBALL.format(key="url").replace(SHA256, "beef"),
        "5: `kernel.tarball.sha256`: should be a SHA-256 in hexadecimal, 64 digits (found 'beef')",
    ),
    # Sizes that make no machine.
    (
        RIGHT + "guest:\n  boot_memory: 512M\n  memory: 1G\n",
        "6: `guest.memory`: 1G is more than boot_memory 512M: a balloon can only take away",
    ),
    (RIGHT + "guest: {memory: 1K}\n", "4: `guest.memory`: 1K is too little to boot in: at least 48M"),
    (RIGHT + "guest:\n  boot_memory: 100000G\n", "5: `guest.boot_memory`: 100000G is more than 64G"),
    (RIGHT + "guest: {memory: 65537K}\n", "4: `guest`: memory and boot_memory are whole MiB"),
    (RIGHT + "guest: {swap: 4K}\n", "4: `guest.swap`: 4K is neither 0M nor from 1M to 64G"),
    (RIGHT + "guest: {swap: 65G}\n", "4: `guest.swap`: 65G is neither 0M nor from 1M to 64G"),
    (
        RIGHT + "deadlines:\n  workload: 5\n",
        "5: `deadlines.workload`: 5 s is too short for a workload of 3 s in mode deterministic; "
        "give at least 17",
    ),
    (
        RIGHT + "mode: realtime\nworkload: {mmap_test: {seconds: 600.5}}\ndeadlines: {workload: 600}\n",
        "6: `deadlines.workload`: 600 s is too short for a workload of 600.5 s in mode realtime; "
        "give at least 630.5",
    ),
    (
        RIGHT + "accel: kvm\n",
        "4: `accel`: kvm is a choice for `mode: realtime`; deterministic guests are emulated",
    ),
    (
        RIGHT + "guest: {balloon: {step: {to: 64M}, ramp: {to: 64M}}}\n",
        "4: `guest.balloon`: give exactly one of step, ramp and oscillate (found step, ramp)",
    ),
    (
        RIGHT + "guest: {balloon: {step: {to: 4G}}}\n",
        "4: `guest.balloon`: 4G is not whole MiB from 48M to memory 128M",
    ),
    (
        RIGHT
        + "guest: {balloon: {ramp: {to: 64M, over: 1000000000}}}\nworkload: {mmap_test: {seconds: 3600}}\n",
        "4: `guest.balloon`: changes memory more than 8,192 times; a longer period, or `over`?",
    ),
    # Wrong types, in the words of YAML and not of Python.
    (RIGHT + "seeds: true\n", "4: `seeds`: should be a whole number (found true)"),
    (RIGHT + 'seeds: "3"\n', "4: `seeds`: should be a whole number (found '3')"),
    (RIGHT + "tracepoints: 1\n", "4: `tracepoints`: should be true or false (found 1)"),
    (RIGHT + "seeds: 3.0\n", "4: `seeds`: should be a whole number (found 3.0)"),
    (RIGHT + "seeds:\n", "4: `seeds`: should be a whole number (found nothing)"),
    (RIGHT + "seeds: 0\n", "4: `seeds`: should be at least 1 (found 0)"),
    (RIGHT + "seeds: -1\n", "4: `seeds`: should be at least 1 (found -1)"),
    (RIGHT + "accel: xen\n", "4: `accel`: should be 'auto', 'kvm' or 'tcg' (found 'xen')"),
    (RIGHT + "guest: 5\n", "4: `guest`: should be a mapping of keys to values (found 5)"),
    (RIGHT + "guest: {vcpus: 65}\n", "4: `guest.vcpus`: should be at most 64 (found 65)"),
    (
        RIGHT + "workload: {mmap_test: {seconds: true}}\n",
        "4: `workload.mmap_test.seconds`: should be a number (found true)",
    ),
    (
        RIGHT + "workload: {mmap_test: {footprint: '2'}}\n",
        "4: `workload.mmap_test.footprint`: should be a number (found '2')",
    ),
    (
        RIGHT + "deadlines: {boot: .inf}\n",
        "4: `deadlines.boot`: should be a number, and not infinite (found inf)",
    ),
    (
        RIGHT + "deadlines: {boot: .nan}\n",
        "4: `deadlines.boot`: should be a number, and not infinite (found nan)",
    ),
    (RIGHT.replace("{a: {}}", "{}"), "3: `arms`: should have at least one entry (found {})"),
    (RIGHT.replace("{a: {}}", "[a]"), "3: `arms`: should be a mapping of keys to values (found ['a'])"),
    (
        RIGHT.replace("{a: {}}", "\n  a:\n"),
        "4: `arms.a`: should be a mapping of keys to values (found nothing)",
    ),
    (
        RIGHT.replace("{a: {}}", "{A b: {}}"),
        "3: `arms.A b`: should be a name of lower-case letters, digits, `.`, `_` and `-`, of 64 at most "
        "(found 'A b')",
    ),
    (ARM + "patches: p\n", "6: `arms.b.patches`: should be a list, as in [a, b] (found 'p')"),
    (
        ARM + "patches:\n    - p\n    - 6.1\n",
        "8: `arms.b.patches.1`: should be text; a number needs quotes (found 6.1)",
    ),
    (
        RIGHT.replace("debian: linux-source-6.1", f'tarball: {{url: "http://[::1", sha256: {SHA256}}}'),
        "2: `kernel.tarball.url`: is not a URL: Invalid IPv6 URL",
    ),
    (
        RIGHT.replace("debian: linux-source-6.1", f'tarball: {{url: "http://a:b/", sha256: {SHA256}}}'),
        "2: `kernel.tarball.url`: is not a URL: Port could not be cast to integer value as 'b'",
    ),
    (
        RIGHT.replace("6.1}", "....}"),
        "2: `kernel.debian`: should be a package, as in linux-source-6.1 or linux-source-6.1=6.1.176-1 "
        "(found 'linux-source-....')",
    ),
    *(
        (
            RIGHT + f'guest: {{sysfs: {{"{path}": c}}}}\n',
            f"4: `guest.sysfs.{path}`: should be a path beneath /sys, as in kernel/mm/lru_gen/enabled "
            f"(found '{path}')",
        )
        for path in ("../proc/sysrq-trigger", "kernel/../../proc/x", "kernel/./x", "kernel/...")
    ),
    # YAML's own surprises.
    (RIGHT.replace("name: x", "name: 1"), "1: `name`: should be text; a number needs quotes (found 1)"),
    (RIGHT.replace("name: x", "name: no"), "1: `name`: should be text; a number needs quotes (found false)"),
    (RIGHT + "1: 2\n", "4: key `1` is not text; put it in quotes"),
    (RIGHT + "yes: 2\n", "4: key `yes` is not text; put it in quotes"),
    (RIGHT + "~: 2\n", "4: key `~` is not text; put it in quotes"),
    (RIGHT.replace("{a: {}}", "{6.1: {}}"), "3: key `6.1` is not text; put it in quotes"),
    (RIGHT + "? [a]\n: 2\n", "4: key is a list or a mapping; a key is text"),
    (RIGHT + "? {a: 1}\n: 2\n", "4: key is a list or a mapping; a key is text"),
    (RIGHT + "base: &b {}\n<<: *b\n", "4: `base`: unknown key; did you mean `phases`?"),
    (RIGHT + "seeds: 2001-99-99\n", "4: not YAML: this cannot be read as `timestamp`; text needs quotes"),
    (RIGHT + "seeds: 0b_\n", "4: not YAML: this cannot be read as `int`; text needs quotes"),
    (RIGHT + "seeds: !!bool x\n", "4: not YAML: this cannot be read as `bool`; text needs quotes"),
    (RIGHT + "seeds: !!timestamp x\n", "4: not YAML: this cannot be read as `timestamp`; text needs quotes"),
    (
        RIGHT + "seeds: " + "9" * 5000 + "\n",
        "4: not YAML: this cannot be read as `int`; text needs quotes",
    ),
    (RIGHT + "---\nseeds: 1\n", "4: has several documents; an experiment file has one"),
    (RIGHT + 'description: "\\ud800"\n', "4: character '\\ud800' in text"),
    (RIGHT.replace("debian: linux-source-6.1", 'tree: "a\\0b"'), "2: character '\\x00' in text"),
    # No experiment at all.
    ("", " an experiment is a mapping of keys to values, as in `name: x`"),
    ("# nothing\n", " an experiment is a mapping of keys to values, as in `name: x`"),
    ("- a\n", " an experiment is a mapping of keys to values, as in `name: x`"),
    ("just words\n", " an experiment is a mapping of keys to values, as in `name: x`"),
    ("name: x\n\tkernel: y\n", "2: not YAML: found character '\\t' that cannot start any token"),
    ("name: [x\n", "2: not YAML: expected ',' or ']', but got '<stream end>'"),
    ("name: x\nkernel: 'y\n", "3: not YAML: found unexpected end of stream"),
    ("[" * 5000, "1: nested too deeply"),
    (RIGHT + "description: " + "[" * 40 + "]" * 40, "4: nested too deeply"),
    (RIGHT + "guest: &a {memory: *a}\n", "4: an alias within its own anchor"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[message[:60] for _, message in MISTAKES])
def test_a_mistake_is_named_with_its_line_and_key(refusal: Refusal, text: str, message: str) -> None:
    assert refusal(text) == message


def test_every_mistake_has_a_line_of_its_own(refusal: Refusal) -> None:
    lines = refusal(RIGHT + "seedz: 3\nguest: {memory: 1}\naccel: xen\n").splitlines()
    assert sorted(line[:2] for line in lines) == ["4:", "5:", "6:"]


NAMED = ["misses", "direct_reclaims"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "metrics: {misses: {json: a}}\n",
            "5: `metrics`: misses: testbed has something of that name; give it another one",
        ),
        (
            "metrics: {any: {json: a}}\n",
            "5: `metrics`: any: testbed has something of that name; give it another one",
        ),
        (
            "metrics: {mine: {json: a}}\nprimary: {mines: {}}\n",
            "6: `primary`: mines: there is no such metric; did you mean `mine`?",
        ),
        # One mistake, one line.
        (
            "metrics: {mine: {pattern: a}}\nprimary: {mine: {}}\n",
            "5: `metrics.mine.pattern`: has 0 groups and should have one, the number; `(?:...)` is a group "
            "that does not count",
        ),
    ],
)
def test_metrics_of_ones_own_have_names_of_their_own(file: Path, more: str, message: str) -> None:
    file.write_text(RIGHT + "workload: {command: [x]}\n" + more)
    with pytest.raises(SpecError) as caught:
        load(file, metrics=NAMED)
    assert str(caught.value) == f"{file}:{message}"


def test_a_metric_of_ones_own_may_be_primary(file: Path) -> None:
    text = (
        "workload: {command: [x]}\nmetrics: {mine: {json: a.b, unit: KB/s}}\nprimary: {mine: {margin: 0.1}}\n"
    )
    file.write_text(RIGHT + text)
    experiment = load(file, metrics=NAMED)
    assert (experiment.metrics["mine"].path, experiment.metrics["mine"].unit) == ("a.b", "KB/s")
    assert list(experiment.primary) == ["mine"]


def keys_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key that a file may have; of free keys, of one that is right."""
    for name, field in model.model_fields.items():
        here = (*path, field.alias or name)
        yield here
        for below in file_module._below(field.annotation):
            free = () if file_module._is_model(below) else FREE[here[-1]]
            inner = below if not free else next(iter(file_module._below(get_args(below)[1])), None)
            if free:
                yield (*here, *free)
            if inner is not None:
                yield from keys_of(inner, (*here, *free))


FREE = {
    "arms": ("a",),
    "metrics": ("t",),
    "primary": ("p",),
    "phases": ("p",),
    "sysctl": ("vm.x",),
    "sysfs": ("a/x",),
    "matrix": ("guest.vcpus",),
}
WRONG: list[Any] = [
    *(None, True, -1, 0, 10**30, 1.5, float("inf"), float("nan"), "", "x", "x y", "\u00e9", "x" * 5000, "("),
    *([], [1], [None], ["x y"], [[]], {}, {"zz": 1}, {"A B": 1}, {"x": None}, {"x": [1]}),
]
# Words of a library, and of Python.
STRANGE = re.compile(
    r"pydantic|function-|constrained|\binput\b|value error|\bvalid\b|\btuple\b|dictionary|\bdict\b|\bint\b|"
    r"\bstr\b|_type|_error|mismatch|nonetype|\bstring\b|match pattern|class '|instance|"
    r"errors\.|not what it should",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", sorted(set(keys_of(Experiment))), ids=".".join)
def test_no_wrong_value_brings_words_of_a_library(file: Path, path: tuple[str, ...]) -> None:
    for wrong in WRONG:
        data: dict[str, Any] = {"name": "x", "kernel": {"debian": "linux-source-6.1"}, "arms": {"a": {}}}
        if path[0] == "metrics":
            data["workload"] = {"command": ["x"]}
        here = data
        for part in path[:-1]:
            here = here.setdefault(part, {})
            assert isinstance(here, dict)
        here[path[-1]] = wrong
        file.write_text(yaml.safe_dump(data))
        try:
            load(file)
        except SpecError as refused:
            for line in str(refused).splitlines():
                said = line.partition(" (found ")[0].replace(repr(wrong), "")
                assert line.startswith(str(file)) and not STRANGE.search(said.replace(str(file), "")), line


def test_an_executable_tag_is_not_executed(refusal: Refusal) -> None:
    assert refusal(RIGHT + "seeds: !!python/object/apply:os.getpid []\n").startswith(
        "4: not YAML: could not determine a constructor"
    )


def test_control_characters_are_refused(refusal: Refusal) -> None:
    assert "unacceptable character #x0001" in refusal(RIGHT + "description: \x01\n")


def test_what_is_not_utf8_is_refused(refusal: Refusal) -> None:
    assert refusal(RIGHT.encode("utf-16")) == " is not UTF-8 text"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nothing.yaml", "No such file or directory"), (".", "Is a directory")],
)
def test_what_cannot_be_opened_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {reason}"


# Each took a minute or a gigabyte, or more. Line, what is said there.
BOMBS = {
    "merges": (
        "a0: &a0 {k: 1}\n"
        + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 4)}]\n" for n in range(1, 16)),
        "13: has more than 20000 values, aliases counted in full",
    ),
    "aliases": (
        "a0: &a0 [x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 25)),
        "5: has more than 20000 values, aliases counted in full",
    ),
    "values": ("x: [" + "1," * 400_000 + "]", "1: has more than 20000 values, aliases counted in full"),
    "bytes": ("x: " + "y" * 10_000_000, " is larger than 1 MiB"),
    "base 60": ("x: " + "1:" * 500_000 + "1", "1: not YAML: this cannot be read as `int`; text needs quotes"),
    "levels": ("{a: " * 250_000, "1: nested too deeply"),
    "cells": (
        RIGHT + f"phases: {{{', '.join(f'a{n}: {n}' for n in range(6000))}}}\n"
        f"matrix: {{seeds: {list(range(1, 1000))}}}\n",
        "5: `matrix`: its combinations have more than 300000 values together",
    ),
}


@pytest.mark.parametrize(("text", "message"), BOMBS.values(), ids=BOMBS)
def test_a_file_that_grows_when_it_is_read_is_refused_at_once(
    refusal: Refusal, text: str, message: str
) -> None:
    began = cpu_seconds()
    assert refusal(text) == message
    assert cpu_seconds() - began < 5


def test_of_thousands_of_mistakes_the_first_are_told(refusal: Refusal) -> None:
    lines = refusal(RIGHT + "".join(f"k{n}: 1\n" for n in range(5000))).splitlines()
    assert len(lines) == 21 and lines[-1].endswith(" and 4980 mistakes more")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/dev/zero", "is not a regular file"),
        ("fifo", "is not a regular file"),
        ("/proc/self/mem", "is not a regular file"),
    ],
)
def test_an_experiment_is_a_regular_file(tmp_path: Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SpecError, match=f": {reason}$"):
        load(tmp_path / name)


# --- what does load -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((REPOSITORY / "experiments").rglob("*.yaml")), ids=lambda p: p.name)
def test_the_experiments_of_the_repository_load(path: Path) -> None:
    experiment = load(path)
    assert experiment.name == path.stem
    # What these are compared with is of the verb's own making.
    assert len(experiment.arms) >= (1 if path.stem in ("anon", "selfcheck", "direct-reclaim") else 2)
    assert not any(is_path(patch) for arm in experiment.arms.values() for patch in arm.patches)


def test_the_least_that_loads(file: Path) -> None:
    experiment = loaded(file, RIGHT)
    assert experiment.guest == GuestSpec(vcpus=8, boot_memory=512 * MiB, memory=128 * MiB, swap=256 * MiB)
    assert (experiment.seeds, experiment.accel, experiment.arms["a"].patches) == (5, "auto", ())


def test_tracepoints_are_counted_on_demand(file: Path) -> None:
    assert loaded(file, RIGHT).tracepoints is False
    assert loaded(file, RIGHT + "tracepoints: true\n").tracepoints is True


def test_arms_keep_their_order(file: Path) -> None:
    experiment = loaded(file, RIGHT.replace("{a: {}}", "{z: {}, m: {}, a: {}}"))
    assert list(experiment.arms) == ["z", "m", "a"]


def test_a_merge_key_merges(file: Path) -> None:
    experiment = loaded(file, RIGHT.replace("{a: {}}", "\n  a: &a {patches: [p]}\n  b:\n    <<: *a\n"))
    assert experiment.arms["b"].patches == ("p",)


def test_a_whole_number_does_for_seconds(file: Path) -> None:
    assert loaded(file, RIGHT + "deadlines: {boot: 30}\n").deadlines.boot == 30.0


def test_deadlines_are_worked_out_where_they_are_not_given(file: Path) -> None:
    shorter = loaded(file, RIGHT + "deadlines: {boot: 3, workload: 17}\n")
    worked_out = loaded(file, RIGHT).deadlines_of(deterministic=True)
    assert shorter.deadlines_of(deterministic=True) == Deadlines(3.0, worked_out.balloon, 17.0)
    larger = RIGHT + "guest: {vcpus: 64, boot_memory: 64G}\nworkload: {mmap_test: {seconds: 600}}\n"
    for deterministic in (True, False):
        small, large = (loaded(file, text).deadlines_of(deterministic) for text in (RIGHT, larger))
        assert (small.boot < large.boot, small.balloon < large.balloon) == (True, True)
        # Twice its time, for who also fills memory and sends results.
        assert (small.workload > 6, large.workload > 1200) == (True, True)


def test_a_quoted_number_is_a_name(file: Path) -> None:
    assert list(loaded(file, RIGHT.replace("{a: {}}", '{"6.1": {}}')).arms) == ["6.1"]


def test_a_dumped_experiment_is_the_same_experiment() -> None:
    experiment = load(EXPERIMENT)
    again = Experiment.model_validate(json.loads(json.dumps(experiment.model_dump(mode="json"))))
    assert again == experiment


@pytest.mark.parametrize(
    ("kernel", "value"),
    [
        ("tree: ../linux", "{up}/linux"),
        ("tree: /abs/linux", "/abs/linux"),
        ("tree: ~/linux", "{home}/linux"),
        ("git: {repository: ./linux, revision: v6.1}", "{here}/linux"),
        ("git: {repository: 'https://h/linux.git', revision: v6.1}", "https://h/linux.git"),
        ("git: {repository: 'git@h:linux.git', revision: v6.1}", "git@h:linux.git"),
        ("tarball: {url: linux.tar.xz, sha256: " + SHA256 + "}", "{here}/linux.tar.xz"),
        ("tarball: {url: 'https://h/linux.tar.xz', sha256: " + SHA256 + "}", "https://h/linux.tar.xz"),
    ],
)
def test_a_source_is_relative_to_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, value: str
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    got = loaded(file, RIGHT.replace("debian: linux-source-6.1", kernel)).kernel
    where = {"here": file.parent, "up": file.parent.parent, "home": "/home/somebody"}
    found = got.tree or (got.git and got.git.repository) or (got.tarball and got.tarball.url)
    assert str(found) == value.format(**where)


def test_patches_and_fragments_are_names_or_files(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RIGHT.replace("{a: {}}", "{a: {patches: [named, mine.patch, sub/other]}}")
    file.write_text(text.replace("6.1}", "6.1, config: [guest, ./mine.config]}"))
    monkeypatch.chdir(file.parent)
    experiment = load(Path(file.name))
    assert experiment.arms["a"].patches == ("named", f"{tmp_path}/mine.patch", f"{tmp_path}/sub/other")
    assert experiment.kernel.config == ("guest", f"{tmp_path}/mine.config")


def patches(file: Path, *words: str, kernel: str = "debian: linux-source-6.1", arm: str = "") -> list[str]:
    """What the patches of an arm are once the file is read, without the directory that it is in."""
    said = RIGHT.replace("{a: {}}", f"{{a: {{{arm}patches: {json.dumps(words)}}}}}")
    file.write_text(said.replace("debian: linux-source-6.1", kernel))
    return [word.replace(f"{file.parent}/", "") for word in load(file).arms["a"].patches]


def test_a_file_that_is_there_is_one_without_a_slash(file: Path) -> None:
    for name in ("two.mbx", "quilt/series", "instrumentation", "a[1].patch"):
        (file.parent / name).parent.mkdir(exist_ok=True)
        (file.parent / name).touch()
    (file.parent / "reclaim-capture").mkdir()
    # Series go first, and what is not there may be the name of one.
    words = ["two.mbx", "quilt", "instrumentation", "reclaim-capture", "mine", "a[1].patch"]
    assert patches(file, *words) == words
    absolute = load(file).arms["a"].patches
    assert [Path(word).is_absolute() for word in absolute] == [True, True, False, False, False, True]
    assert patches(file, "gone.mbox.gz") == ["gone.mbox.gz"]
    assert Path(load(file).arms["a"].patches[0]).is_absolute()


def test_patterns_are_files_in_the_order_of_their_names(file: Path) -> None:
    # Whatever is special in the name of the directory.
    top = file.parent / "x[1]"
    top.mkdir()
    for name in ("0002-b.patch", "0001-a.patch", "README"):
        (top / name).touch()
    file = top / file.name
    assert patches(file, "*.patch", "named", "./0*-a*") == [
        "0001-a.patch",
        "0002-b.patch",
        "named",
        "0001-a.patch",
    ]
    for wrong in ("*.diff", "nowhere/*.patch", "x**"):
        with pytest.raises(SpecError, match=re.escape(f"{file}: `{wrong}` names no patches: ")):
            patches(file, wrong)


@pytest.mark.parametrize(
    ("kernel", "arm", "word", "meant"),
    [
        ("git: {repository: ./linux, revision: v6.1}", "", "git:v6.1..a/topic", "git:linux:v6.1..a/topic"),
        ("tree: linux", "", "git:v6.1..topic", "git:linux:v6.1..topic"),
        ("debian: linux-source-6.1", "kernel: {tree: ./own}, ", "git:HEAD~2..", "git:own:HEAD~2.."),
        ("tree: linux", "", "git:./other:topic", "git:other:topic"),
        ("debian: linux-source-6.1", "", "git:v6.1..topic", "git:v6.1..topic"),
    ],
)
def test_a_range_is_of_the_repository_that_the_kernel_is_from(
    file: Path, kernel: str, arm: str, word: str, meant: str
) -> None:
    assert patches(file, word, kernel=kernel, arm=arm) == [meant]


def test_the_home_of_nobody_is_refused(refusal: Refusal) -> None:
    message = refusal(RIGHT.replace("debian: linux-source-6.1", "tree: ~nosuchuser/linux"))
    assert message.startswith(" `~nosuchuser/linux` leads nowhere")


# --- anything at all ------------------------------------------------------------------------------

TEXT = EXPERIMENT.read_text()
ODD = [
    "\t",
    "\0",
    "\x85",
    "\u2028",
    "\ufeff",
    "&a",
    "*a",
    "<<: *a",
    "!!",
    "!!set",
    "? ",
    "- ",
    ": ",
    "{",
    "]",
]
ODD += [
    "~",
    "|\n",
    "'",
    '"',
    "0x",
    "0o8",
    "1e999",
    "1:60",
    ".nan",
    "%YAML 9",
    "---\n",
    "...\n",
    "\\ud800",
    "9" * 5000,
]


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """The repository's experiment after an accident in an editor."""
    text = TEXT
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 30))
        put = draw(
            st.one_of(st.sampled_from(ODD), st.text(max_size=8), st.sampled_from(text.split() or [""]))
        )
        text = text[:at] + put + text[at + cut :]
    return text


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.binary(max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["1K", "64M", "65537K", "1025", "64G", "anon", "~x/y", "a/b", "a.patch", "git@h:x"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), scalars), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a tree, with each of its keys."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from places(value)


@st.composite
def rewritten(draw: st.DrawFn) -> str:
    """The repository's experiment with other values, and other keys, in some places."""
    data = experiment_data()
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(data))))
        if isinstance(container, dict) and draw(st.booleans()):
            container[draw(st.one_of(st.text(max_size=6), st.sampled_from(list(container))))] = draw(values)
        else:
            container[key] = draw(values)
    return yaml.safe_dump(data)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spec") / "x.yaml"


def loads_or_is_refused(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        experiment = load(file)
    except SpecError as refused:
        assert str(refused).startswith(f"{file}:")
        assert "\0" not in str(refused) and "Traceback" not in str(refused)
        return
    # What loads can be kept and reported.
    json.dumps(experiment.model_dump(mode="json"), allow_nan=False)
    str(experiment).encode()
    for size in (experiment.guest.memory, experiment.guest.boot_memory, experiment.guest.swap):
        assert parse_size(format_size(size)) == size


@settings(max_examples=150)
@given(text=mangled())
@example(text=TEXT + "workload: *a\n")
def test_an_accident_in_the_editor_is_no_traceback(scratch: Path, text: str) -> None:
    loads_or_is_refused(scratch, text)


@settings(max_examples=150)
@given(text=rewritten())
@example(text=RIGHT + "guest: {swap: 1500}\n")
def test_any_value_anywhere_is_no_traceback(scratch: Path, text: str) -> None:
    loads_or_is_refused(scratch, text)


@settings(max_examples=100)
@given(text=st.one_of(st.text(max_size=60), st.text("{}[]:-?&*!|>'\"%@`#, \nab0", max_size=60)))
def test_any_text_is_no_traceback(scratch: Path, text: str) -> None:
    loads_or_is_refused(scratch, text)


@settings(max_examples=50)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_no_traceback(scratch: Path, data: bytes) -> None:
    scratch.write_bytes(data)
    with pytest.raises(SpecError):
        load(scratch)
