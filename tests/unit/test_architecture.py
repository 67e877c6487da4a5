# SPDX-License-Identifier: GPL-2.0-only
"""What the layout promises, held by walking over the sources."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.recorded import REPOSITORY

PACKAGE = REPOSITORY / "testbed"


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@functools.cache
def imports(module: str) -> set[str]:
    """What a module imports, anywhere in it: modules in full, `from x import y` as x or, if one, x.y."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "testbed"}


def theirs(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)} - {"testbed"}


# --- imports point down ----------------------------------------------------------------------------

# Room -> the rooms that it may look into, besides itself. From the bottom to the top.
ROOMS: dict[str, set[str]] = {
    "host": set(),
    "wire": set(),
    "experiment": {"host"},
    "kernel": {"host", "experiment"},
    "guest": {"host", "wire", "experiment"},
    "setup": {"host", "guest"},
    "ledger": {"host", "experiment"},
    "analysis": {"wire", "ledger"},
    "trials": {"host", "wire", "experiment", "kernel", "guest", "ledger", "analysis"},
    "report": {"experiment", "ledger", "analysis"},
    "verbs": {
        *("host", "experiment", "kernel", "guest", "setup", "ledger", "analysis", "trials", "report"),
    },
    "terminal": {"host", "ledger", "report", "verbs"},
}
# The door may open everything; nobody opens the door.
DOORS = {"cli", "__main__"}


def room(module: str) -> str:
    return module.removeprefix("testbed").lstrip(".").split(".")[0]


def may_import(module: str, other: str) -> bool:
    if room(module) in DOORS:
        return room(other) != "__main__"
    return room(other) in ROOMS[room(module)] | {room(module), ""}


@every_module
def test_imports_point_down(module: str) -> None:
    assert {other for other in ours(module) if not may_import(module, other)} == set()


def test_the_rooms_are_those_that_exist() -> None:
    assert {room(module) for module in MODULES} - {""} == set(ROOMS) | DOORS


def test_the_plan_of_the_house_is_simple() -> None:
    """Few arrows between rooms, modules that a person can hold in mind, and a door that is only a door."""
    arrows = {(room(module), room(other)) for module in MODULES for other in ours(module)}
    assert len({(a, b) for a, b in arrows if a != b and a and b}) <= 50
    lines = {module: len(MODULES[module].read_text().splitlines()) for module in MODULES}
    assert {module: count for module, count in lines.items() if count > 600} == {}
    assert lines["testbed.cli"] <= 450


def test_functions_are_short() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef)
    )
    assert lengths[len(lengths) * 99 // 100] <= 45


def test_documents_have_types() -> None:
    """No dictionaries that are read by key, and few values of which nothing is known."""
    nodes = [node for module in MODULES for node in ast.walk(tree(module))]
    by_key = [
        node
        for node in nodes
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    ]
    unknown = [node for node in nodes if isinstance(node, ast.Name) and node.id == "Any"]
    assert (len(by_key) <= 80, len(unknown) <= 40) == (True, True), (len(by_key), len(unknown))


def test_no_room_is_above_itself() -> None:
    """The table has no cycle: what a room may look into comes before it."""
    above: set[str] = set()
    for name, allowed in ROOMS.items():
        assert allowed <= above, name
        above.add(name)


def reached(*doors: str) -> set[str]:
    found: set[str] = set()
    waiting = list(doors)
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        waiting += ours(module)
        # Importing a module imports the packages that it is in.
        waiting += [".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 1)]
    return found


def test_there_is_no_dead_module() -> None:
    doors = ("testbed.__main__", "testbed.setup.bootstrap")
    assert set(MODULES) - reached(*doors) == set()


# --- what touches the world ------------------------------------------------------------------------

PURE_LIBRARY = {
    *("__future__", "collections", "dataclasses", "functools", "itertools", "json", "math", "re"),
    *("statistics", "typing", "zlib", "pydantic"),
}


def says_that_it_is_pure(module: str) -> bool:
    """Whether the first paragraph of what it is for ends so."""
    about = (ast.get_docstring(tree(module)) or "").split("\n\n")[0]
    return bool(re.search(r"\bPure\b", about))


PURE_ROOMS = ("analysis", "report", "wire")
PURE = [m for m in MODULES if room(m) in PURE_ROOMS or says_that_it_is_pure(m)]


def test_modules_that_say_they_are_pure_are_those_that_should_be() -> None:
    elsewhere = {m for m in PURE if room(m) not in PURE_ROOMS}
    assert elsewhere == {
        "testbed.experiment.script",
        "testbed.experiment.selfcheck",
        "testbed.guest.shape",
        "testbed.kernel.hunks",
        *("testbed.ledger.manifest", "testbed.ledger.plan", "testbed.ledger.record"),
    }


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_imports_nothing_that_touches_the_world(module: str) -> None:
    # What is drawn or written, and what is calculated with. shape.py names paths, it opens none.
    more = {
        "analysis": {"bisect", "heapq", "numpy", "scipy"},
        "report": {"base64", "difflib", "io", "jinja2", "matplotlib", "numpy", "rich", "xml"},
        "guest": {"pathlib"},
    }
    assert theirs(module) <= PURE_LIBRARY | more.get(room(module), set())


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_opens_nothing(module: str) -> None:
    called = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
    touching = {"open", "input", "print", "exec", "eval", "__import__", "hash", "id"}
    methods = (".read_text", ".read_bytes", ".write_text", ".open", ".exists", ".print", ".resolve")
    assert not called & touching and not any(name.endswith(methods) for name in called)


def test_the_report_reads_no_experiment_files() -> None:
    """What an experiment is, and how its values are written, and nothing that opens its file."""
    used = {
        alias.name
        for module in MODULES
        if room(module) == "report"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[:2] == ["testbed", "experiment"]
        for alias in node.names
    }
    assert used <= {"ALPHA", "BalloonSpec", "Experiment", "Json", "Model", "describe", "format_size"}
    assert not any("testbed.experiment.file" in ours(m) for m in MODULES if room(m) == "report")


STARTERS = {
    *("run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"),
}
OTHER_STARTERS = (
    *("os.system", "os.popen", "os.fork", "os.forkpty", "os.exec", "os.spawn", "os.posix_spawn"),
    *(
        "pty.",
        "multiprocessing.",
        "asyncio.create_subprocess",
        "pexpect.spawn",
        "pexpect.run",
        "pexpect.popen",
    ),
)


def starts_a_process(module: str) -> set[str]:
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            head, _, last = name.rpartition(".")
            if (head == "subprocess" and last in STARTERS) or name.startswith(OTHER_STARTERS):
                found.add(name)
        elif isinstance(node, ast.ImportFrom) and node.module in ("subprocess", "multiprocessing", "pty"):
            found.add(f"from {node.module}")
    return found


@every_module
def test_only_one_module_starts_processes(module: str) -> None:
    # Which becomes the program that `process` starts it for.
    allowed = {"testbed.host.process": {"subprocess.Popen"}, "testbed.host.confine": {"os.execvp"}}
    assert starts_a_process(module) == allowed.get(module, set())


@every_module
def test_only_types_and_errors_of_subprocess_are_named(module: str) -> None:
    if "subprocess" in theirs(module) and module != "testbed.host.process":
        used = {
            node.attr
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "subprocess"
        }
        assert used <= {"TimeoutExpired", "Popen", "CompletedProcess", "CalledProcessError"}


@every_module
def test_no_command_goes_through_a_shell(module: str) -> None:
    shells = [
        ast.unparse(node)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "shell"
        and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert shells == []


@every_module
def test_nothing_draws_lots(module: str) -> None:
    assert not theirs(module) & {"random", "secrets", "uuid"}


@every_module
def test_nothing_sleeps_without_a_reason(module: str) -> None:
    """No bare sleep polling: every wait is on something and has a deadline."""
    slept = {
        ast.unparse(node.func)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("sleep")
    }
    # A file lock that other processes hold, and the state of a process, can only be asked for again.
    excused = ("testbed.host.files", "testbed.guest.rendezvous")
    assert slept <= ({"time.sleep"} if module in excused else set())


# --- set-up has nothing but the standard library ---------------------------------------------------

SET_UP = sorted(reached("testbed.setup.bootstrap"))


@pytest.mark.parametrize("module", SET_UP)
def test_set_up_uses_the_standard_library_only(module: str) -> None:
    assert theirs(module) <= set(sys.stdlib_module_names)


def test_set_up_runs_before_anything_is_installed() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import testbed.setup.bootstrap;"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] == 'testbed'))"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == SET_UP


def test_what_is_slow_to_import_is_imported_where_it_is_used() -> None:
    program = "import sys, testbed.cli; print(*{'matplotlib', 'numpy', 'scipy'} & set(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "\n", "")


# --- every file says under which licence it is -----------------------------------------------------

LICENSED = (".py", ".c", ".h", ".sh", ".yaml", ".yml", ".config")
LICENSED_NAMES = ("Makefile", "init", "run")


def files_of_the_repository() -> Iterator[Path]:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    for name in filter(None, listing.decode().split("\0")):
        path = REPOSITORY / name
        if path.is_file() and (path.suffix in LICENSED or path.name in LICENSED_NAMES):
            yield path


def test_every_source_has_its_licence_in_the_first_lines() -> None:
    sources = list(files_of_the_repository())
    assert len(sources) > 50
    without = []
    for path in sources:
        lines = path.read_text().splitlines()
        first = lines[1] if lines and lines[0].startswith("#!") else "".join(lines[:1])
        if first.lstrip("#/* ").removesuffix(" */") != "SPDX-License-Identifier: GPL-2.0-only":
            without.append(str(path.relative_to(REPOSITORY)))
    assert without == []


# --- few, deep modules -----------------------------------------------------------------------------


@every_module
def test_a_module_says_what_it_is_for(module: str) -> None:
    source = tree(module)
    if source.body and module != "testbed.__main__":
        assert ast.get_docstring(source)
