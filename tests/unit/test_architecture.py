# SPDX-License-Identifier: GPL-2.0-only
"""What the layout promises, held by walking over the sources."""

from __future__ import annotations

import ast
import functools
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
    "progress": {"ledger", "report"},
    "verbs": {"host", "experiment", "kernel", "guest", "ledger", "analysis", "trials", "report", "progress"},
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
    # The verdict is a door as long as nothing prints one.
    doors = ("testbed.__main__", "testbed.setup.bootstrap", "testbed.analysis.verdict")
    assert set(MODULES) - reached(*doors) == set()


# --- what touches the world ------------------------------------------------------------------------

PURE_LIBRARY = {
    *("__future__", "collections", "dataclasses", "functools", "itertools", "json", "math", "re"),
    *("statistics", "typing", "zlib", "pydantic"),
}
PURE = [m for m in MODULES if room(m) in ("analysis", "report", "wire")] + [
    "testbed.ledger.document",
    "testbed.ledger.manifest",
    "testbed.ledger.plan",
    "testbed.ledger.record",
    "testbed.guest.shape",
]


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_imports_nothing_that_touches_the_world(module: str) -> None:
    # shape.py names paths, it opens none.
    more = {
        "testbed.guest.shape": {"pathlib"},
        "testbed.ledger.document": {"reprlib"},
        "testbed.report.bisection": {"matplotlib", "rich"},
        "testbed.report.text": {"rich"},
        "testbed.report.matrix": {"rich"},
        "testbed.report.selfcheck": {"rich"},
        "testbed.report.table": {"rich"},
        "testbed.report.gate": {"difflib"},
        "testbed.report.html": {"base64", "jinja2"},
        "testbed.report.interchange": {"xml"},
        "testbed.report.pictures": {"matplotlib"},
        "testbed.report.plots": {"io", "matplotlib", "numpy"},
        "testbed.analysis.bisect": {"heapq", "numpy", "scipy"},
        "testbed.analysis.shift": {"numpy", "scipy"},
        "testbed.analysis.selfcheck": {"scipy"},
        # Resampling starts from a seed that is written there.
        "testbed.analysis.statistics": {"bisect", "numpy", "scipy"},
        "testbed.analysis.verdict": {"numpy"},
    }
    assert theirs(module) <= PURE_LIBRARY | more.get(module, set())


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_opens_nothing(module: str) -> None:
    called = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
    touching = {"open", "input", "print", "exec", "eval", "__import__", "hash", "id"}
    methods = (".read_text", ".read_bytes", ".write_text", ".open", ".exists", ".print", ".resolve")
    assert not called & touching and not any(name.endswith(methods) for name in called)


# Of `spec`, the report uses what an experiment is and how a size is written, and nothing that reads files.
def test_the_report_reads_no_experiment_files() -> None:
    used = {
        (module, alias.name)
        for module in MODULES
        if room(module) == "report"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and node.module == "testbed.experiment"
        for alias in node.names
    }
    assert {name for _, name in used} <= {"BalloonSpec", "Experiment", "Json", "Model", "format_size"}


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
    found = starts_a_process(module)
    assert found == ({"subprocess.Popen"} if module == "testbed.host.process" else set())


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
    excused = ("testbed.host.lock", "testbed.guest.rendezvous")
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
