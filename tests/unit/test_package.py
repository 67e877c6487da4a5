# SPDX-License-Identifier: GPL-2.0-only
"""The package, installed away from the checkout: it has all that it works with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from testbed.experiment import load, schema
from testbed.host.errors import SpecError
from testbed.host.paths import data_directory, is_installed
from testbed.trials import prepare
from testbed.verbs import init
from tests.installed import Installed, install
from tests.unit.recorded import REPOSITORY

DATA = ("images", "kconfigs", "patches", "experiments")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("package"))


def files(directory: Path) -> dict[str, bytes]:
    """What git has beneath a directory of the checkout; elsewhere all that was not compiled there."""
    paths = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    if directory.is_relative_to(REPOSITORY):
        if not (REPOSITORY / ".git").exists():
            pytest.skip("not a git checkout")
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", directory],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        )
        paths = [REPOSITORY / name for name in listing.stdout.decode().split("\0") if name]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def in_the_checkout(program: str, cwd: Path) -> str:
    """What a Python program prints that runs with the checkout's package."""
    words = [sys.executable, "-c", program]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


# --- in the checkout ------------------------------------------------------------------------------


def test_a_checkout_works_with_what_is_in_it() -> None:
    assert not is_installed() and data_directory() == REPOSITORY


def test_only_set_up_and_the_version_know_of_the_checkout() -> None:
    """All else is data, and found by data_directory()."""
    package = REPOSITORY / "testbed"
    users = {path for path in package.rglob("*.py") if re.search(r"\bREPOSITORY\b", path.read_text())}
    assert users == {package / name for name in ("host/paths.py", "setup/bootstrap.py", "trials/prepare.py")}


def test_the_project_is_called_what_it_is_asked_for() -> None:
    assert PROJECT["name"] == prepare.DISTRIBUTION
    assert PROJECT["scripts"] == {"testbed": "testbed.__main__:main"}


def test_the_news_begin_with_this_version() -> None:
    headings = [line for line in (REPOSITORY / "NEWS.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0].split()[1] == PROJECT["version"]


def test_of_a_checkout_the_version_is_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    # Wherever it is asked, and whatever git has been told for another repository.
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet", "."], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    head = subprocess.run(
        ["git", f"--git-dir={REPOSITORY / '.git'}", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert prepare.own_version().removesuffix("-dirty") == head.stdout[:12]


def test_without_git_the_version_is_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare.own_version() == PROJECT["version"]


@pytest.mark.parametrize(
    ("target", "file"),
    [("", "experiment.yaml"), ("new/deep", "new/deep/experiment.yaml"), ("new/mine.yml", "new/mine.yml")],
)
def test_an_experiment_to_begin_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init.init(Path(target)) == Path(file)
    experiment = load(Path(file))
    assert len(experiment.arms) == 2 and experiment.primary and experiment.looks


def test_every_part_of_the_example_is_explained() -> None:
    lines = init.EXAMPLE.read_text().splitlines()
    for key in yaml.safe_load("\n".join(lines)):
        number = next(n for n, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert key == "description" or lines[number - 1].startswith("#"), key


@pytest.mark.parametrize(
    "target", ["", "experiment.yaml", "experiment.yaml/more", "experiment.yaml/more.yaml"]
)
def test_what_is_there_already_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiment.yaml").write_text("years of work\n")
    with pytest.raises(SpecError, match=r"experiment\.yaml.*(File exists|Not a directory)\n  name another"):
        init.init(Path(target))
    assert Path("experiment.yaml").read_text() == "years of work\n"
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


# --- installed --------------------------------------------------------------------------------------


def test_the_wheel_has_the_data_and_nothing_that_git_ignores(installed: Installed, tmp_path: Path) -> None:
    there = Path(
        installed.evaluate("from testbed.host import paths; print(paths.data_directory())", tmp_path)
    )
    assert there.is_relative_to(installed.directory)
    for name in DATA:
        assert files(there / name) == files(REPOSITORY / name), name
    ours = files(REPOSITORY / "testbed").keys() - {"setup/bootstrap.py"}
    packaged = {name for name in files(there.parent) if not name.startswith("data/")}
    assert packaged == ours


def test_the_sdist_has_what_git_has(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == files(REPOSITORY).keys() | {"PKG-INFO"}


def test_nothing_of_the_checkout_is_used(installed: Installed, tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, sys, testbed\n"
        "for module in pkgutil.walk_packages(testbed.__path__, 'testbed.'):\n"
        "    module.name == 'testbed.__main__' or importlib.import_module(module.name)\n"
        "ours = {m.__file__ for name, m in sys.modules.items() if name.split('.')[0] == 'testbed'}\n"
        "print(*ours, *sys.path, sep='\\n')"
    )
    places = [Path(line) for line in installed.evaluate(program, tmp_path).splitlines() if line]
    assert len(places) > 50 and REPOSITORY not in places
    inside = [place for place in places if place.is_relative_to(REPOSITORY)]
    # Where the dependencies are.
    assert all(place.is_relative_to(sys.prefix) for place in inside)


def test_an_installed_package_knows_its_version_in_anybodys_repository(
    installed: Installed, tmp_path: Path
) -> None:
    # That of the environment, and that of the current directory.
    for directory in (
        installed.directory,
        *next(installed.directory.glob("lib/*")).glob("site-packages"),
        tmp_path,
    ):
        subprocess.run(["git", "init", "--quiet", directory], check=True)
    program = "from testbed.trials import prepare; print(prepare.own_version())"
    assert installed.evaluate(program, tmp_path) == PROJECT["version"]


def test_an_installed_package_compiles_to_the_same_bytes(installed: Installed, tmp_path: Path) -> None:
    """A program of the guest's, with what all have in common; and the plugin's source is there."""
    program = (
        "import hashlib, pathlib; from testbed.guest import image, rendezvous\n"
        "source = image.IMAGES / 'src' / 'mmap_test.c'\n"
        "print(hashlib.sha256(image._compile(source, pathlib.Path.cwd())).hexdigest())\n"
        "print(hashlib.sha256(rendezvous.SOURCE.read_bytes()).hexdigest())"
    )
    assert installed.evaluate(program, tmp_path) == in_the_checkout(program, tmp_path)


def test_an_installed_package_makes_the_same_of_patches_and_fragments(
    installed: Installed, tmp_path: Path
) -> None:
    """All that the key of a kernel has of the data, for every line."""
    program = (
        "import hashlib; from testbed.kernel import kconfig, series\n"
        "for line in series.lines():\n"
        "    version = f'{line.directory}.1'\n"
        "    patches = series.load(series.names(version), version)\n"
        "    print(*(hashlib.sha256(patch.data).hexdigest() for patch in patches))\n"
        "    print(sorted(kconfig.merge(kconfig.load(['guest', 'reclaim', 'debug'], version)).values()))\n"
    )
    assert installed.evaluate(program, tmp_path) == in_the_checkout(program, tmp_path)


def test_what_needs_no_kernel_works_from_the_first_word(installed: Installed, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = installed.testbed("init", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "experiment.yaml\n", "")
    assert (tmp_path / "experiment.yaml").read_bytes() == init.EXAMPLE.read_bytes()
    done = installed.testbed("init", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    done = installed.testbed("schema", cwd=tmp_path, env=env)
    assert json.loads(done.stdout) == schema()
    done = installed.testbed("metrics", cwd=tmp_path, env=env)
    assert done.returncode == 0 and "`pages_per_second`" in done.stdout
    # It comes as far as the line of patches/, which it reads.
    done = installed.testbed("compare", "experiment.yaml", "--line", "5.4", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (
        2,
        "testbed: there is no kernel line `5.4`: 6.1, 6.12, 7.2, 7.3\n",
    )


def test_what_an_experiment_comes_to_is_explained(installed: Installed, tmp_path: Path) -> None:
    """On a source that is here: a tree with all that the patches change."""
    tree = tmp_path / "linux"
    tree.mkdir()
    (tree / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 192\n")
    (tmp_path / "x.yaml").write_text("name: x\nkernel: {tree: linux}\narms: {a: {}}\n")
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = installed.testbed("explain", "x.yaml", "--commands", cwd=tmp_path, env=home)
    assert done.returncode == 0, done.stderr
    assert "fragments guest reclaim\n" in done.stdout and "to be built: " in done.stdout


def test_the_doctor_asks_for_nothing_that_only_set_up_needs(installed: Installed, tmp_path: Path) -> None:
    done = installed.testbed("doctor", cwd=tmp_path)
    assert done.returncode in (0, 1) and not done.stderr
    assert "ok      gcc\n" in done.stdout
    assert "venv" not in done.stdout and "make " not in done.stdout
