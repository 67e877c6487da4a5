# SPDX-License-Identifier: GPL-2.0-only
"""What a killed process leaves is removed by the next, and what a living one has stays."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testbed import cli
from testbed.host import files, owned
from testbed.host.paths import checked
from testbed.ledger.ledger import Ledger
from testbed.verbs import clean
from tests.unit.recorded import REPOSITORY, pair, record

# Programs that stand still with something half made, beneath a directory: kind -> program.
HALF_MADE = {
    "a directory in TMPDIR": """
with owned.directory() as made:
    stand_still(made)
""",
    "a patch that is being applied": """
from testbed.kernel import series
patch = b"--- a/x\\n+++ b/x\\n@@ -1 +1 @@\\n-1\\n+2\\n"
series.apply(series.read("x.patch", patch), lambda _path: stand_still(home))
""",
    "a file that is being written": """
with files.staged(home / "x") as draft:
    stand_still(draft)
""",
    "what is made once": """
files.once(home / "x", stand_still)
""",
    "a log of a result": """
from testbed.ledger.ledger import Ledger
with Ledger.create(home / "result"), files.staged(home / "result/logs/x.log.gz") as draft:
    stand_still(draft)
""",
    "a snapshot": """
from dataclasses import replace
from testbed.guest import snapshot
from tests.unit.test_guest_faults import deterministic
trial = deterministic("no-qemu", home)
(home / "snapshots" / trial.start.key).unlink()
snapshot._take = lambda _start, _plugin, path, *_: stand_still(path)
snapshot.ensure(trial.start, lambda: home, home, 1.0)
""",
    "the files of a guest": """
from testbed.guest.deterministic import ResumedGuest
from tests.unit.test_guest_faults import SHAPE
guest = ResumedGuest(SHAPE, home, home, given={"run": b"x"}, plugin=home, snapshot=home)
with contextlib.ExitStack() as stack, guest._wired(0, stack):
    stand_still(home)
""",
}
PROGRAM = """
import contextlib, sys, time
from pathlib import Path
from testbed.host import files, owned
home = Path(sys.argv[1])
def stand_still(_path):
    print("made", flush=True)
    sys.stdin.read()
{body}
"""


@contextlib.contextmanager
def standing_still(body: str, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has made something by half; it goes on at the end of its input."""
    words = [sys.executable, "-c", PROGRAM.format(body=body), str(home)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "TMPDIR": str(home)}
    with subprocess.Popen(words, cwd=REPOSITORY, env=environment, **pipes) as child:  # type: ignore[call-overload]
        try:
            assert child.stdout.readline() == b"made\n"
            yield child
        finally:
            child.kill()


def drafts(home: Path) -> set[Path]:
    return {path for path in home.rglob("*.tmp") if path.is_dir()}


@pytest.mark.parametrize("kind", HALF_MADE)
def test_what_a_killed_process_leaves_goes_and_what_a_living_one_has_stays(kind: str, tmp_path: Path) -> None:
    body = HALF_MADE[kind]
    with standing_still(body, tmp_path) as killed:
        left = drafts(tmp_path)
        assert left
        killed.send_signal(signal.SIGKILL)
    assert drafts(tmp_path) == left
    if kind in ("a directory in TMPDIR", "a patch that is being applied", "a file that is being written"):
        with standing_still(body, tmp_path):
            theirs = drafts(tmp_path)
            assert theirs and not theirs & left
            with standing_still(body, tmp_path):
                assert drafts(tmp_path) > theirs
    else:
        with standing_still(body, tmp_path):
            assert drafts(tmp_path) and not drafts(tmp_path) & left


def test_what_dead_processes_left_goes_when_a_result_is_opened_though_nothing_is_written(
    tmp_path: Path,
) -> None:
    body = HALF_MADE["a log of a result"]
    with standing_still(body, tmp_path) as killed:
        killed.kill()
    assert drafts(tmp_path)
    with Ledger.create(tmp_path / "result"):
        assert drafts(tmp_path) == set()


def test_other_peoples_things_stay(tmp_path: Path) -> None:
    names = ("testbed-main", "testbed-checkout", "x.abcdefgh.tmp", ".testbed.tmp", "x.testbed.tmp", "x.lock")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "x.abcdefgh.testbed.tmp").write_text("a file")
    (tmp_path / "y.abcdefgh.testbed.tmp").symlink_to(tmp_path / names[0])
    owned.remove_left(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(names) + 2


def test_what_is_taken_for_a_dead_ones_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process looks at the worst of moments."""
    lock, removed = owned._shared, list[Path]()

    def late(path: Path) -> int | None:
        if not removed:
            removed.append(path)
            owned.remove_left(tmp_path)
        return lock(path)

    monkeypatch.setattr(owned, "_shared", late)
    with owned.directory(tmp_path) as made:
        assert not removed[0].exists() and made.is_dir() and made != removed[0]
        owned.remove_left(tmp_path)
        assert made.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_many_that_make_and_remove_do_not_disturb_each_other(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for _ in range(50):
            with owned.directory(tmp_path) as made:
                (made / "x").write_text(str(number))
                owned.remove_left(tmp_path)
                assert (made / "x").read_text() == str(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(owned, "remove_left", looked.append)
    for number in range(5):
        files.write(tmp_path / str(number), "x")
    assert looked == [tmp_path]


def test_what_is_used_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert not owned.use(path) and owned.remove(path)
    path.mkdir()
    with standing_still("assert owned.use(home / 'x')\nstand_still(home)", tmp_path):
        assert not owned.remove(path) and path.is_dir()
    assert owned.remove(path) and not path.exists()


# --- the cache -----------------------------------------------------------------------------------

USING = """
files.once(home / "kernels/used", lambda draft: draft.mkdir())
owned.make(home / "snapshots")
stand_still(home)
"""


def test_the_cache_is_freed_but_for_what_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "testbed"
    for name in (
        "kernels/used/vmlinux",
        "kernels/other/vmlinux",
        "snapshots/x",
        "sources/x/Makefile",
        "ccache/a",
    ):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(bytes(1 << 20))
    # In a work tree the same files.
    (cache / "work/x/src").mkdir(parents=True)
    (cache / "work/x/src/Makefile").hardlink_to(cache / "sources/x/Makefile")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.main(["doctor"])
    notes = [line.split()[1:5] for line in capsys.readouterr().out.splitlines() if "MiB in" in line]
    assert notes[0] == ["2", "MiB", "in", f"{cache / 'kernels'}:"]
    assert sum(int(note[0]) for note in notes) == 5
    with standing_still(USING, cache):
        assert cli.main(["clean", "--cache"]) == 0
    said = capsys.readouterr()
    assert said.out == f"3 MiB freed in {cache}\n"
    assert said.err.splitlines() == [
        f"{cache / name}: left, since another process uses it" for name in ("kernels/used", "snapshots")
    ]
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == ["vmlinux", "x"]
    assert cli.main(["clean", "--cache"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"2 MiB freed in {cache}\n", "")
    assert cli.main(["clean", "--cache"]) == 0
    with pytest.raises(SystemExit):
        cli.main(["clean"])


def test_all_that_is_kept_there_is_known(tmp_path: Path) -> None:
    modules = "".join(path.read_text() for path in sorted((REPOSITORY / "testbed").rglob("*.py")))
    kept = set(re.findall(r'\bcache(?:_directory\(\))? / "([a-z-]+)"', modules))
    assert kept >= {"kernels", "snapshots", "patches", "matplotlib"}
    assert kept <= set(clean.ROOMS) | {"lock"}


def test_who_has_no_home_gets_nothing_left_in_tmpdir(tmp_path: Path) -> None:
    pair(tmp_path / "result")
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "HOME": "/dev/null", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment |= {"TMPDIR": str(tmp_path / "tmp")}
    for name in ("XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        environment.pop(name, None)
    words = [sys.executable, "-m", "testbed", "report", str(tmp_path / "result")]
    ran = subprocess.run(words, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "Matplotlib" not in ran.stderr
    assert (tmp_path / "cache" / "testbed" / "matplotlib").is_dir()


# --- where it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/a" * 1900, r"X: the path /a(/a)*\.\.\. has 3800 bytes: name a directory of at most 1000"),
        ("/" + "x" * 250 + "/y" * 400, "X: the path"),
        ("/\udcff", r"X: b'/\\xff' is not UTF-8: name another directory"),
    ],
)
def test_what_cannot_be_the_cache_is_said_in_a_line(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", name)
    assert cli.main(["doctor"]) == 3
    said = capsys.readouterr()
    assert said.out == "" and re.fullmatch(f"testbed: {message.replace('X', 'XDG_CACHE_HOME')}.*\n", said.err)


def test_tmpdir_is_checked_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path
    while len(str(deep)) <= 1000:
        deep /= "x" * 200
    for name in [*reversed(deep.parents), deep]:
        name.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(deep))
    with pytest.raises(Exception, match=r"^TMPDIR: the path "), owned.directory():
        pass
    assert checked(tmp_path, "TMPDIR") == tmp_path


def test_a_result_may_have_any_name_but_a_long_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a b", "a,b", "a'b", 'a"b', "a=b", "100%", "ä", "a\nb", "a?b#c", "x" * 200):
        with Ledger.create(tmp_path / name) as ledger:
            ledger.add(record("a", 1), b"log")
        with Ledger.open(tmp_path / name) as ledger:
            assert [ledger.log(record) for record in ledger.records()] == [b"log"]
    longest = tmp_path / ("x" * 200) / ("y" * (480 - len(str(tmp_path)) - 202))
    with Ledger.create(longest) as ledger:
        ledger.add(record("a", 1), b"log")
    for long in (f"{longest}z", "/a" * 1900):
        assert cli.main(["report", long]) == 2
        said = capsys.readouterr().err
        assert re.fullmatch("testbed: .*: its path has .* bytes, .* can have 480: name another .*\n", said)


def test_an_example_is_written_however_deep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own way calls itself for each level, and ends at a thousand."""
    deep = Path(str(tmp_path) + "/a" * 1800)
    try:
        assert cli.main(["init", str(deep)]) == 0
        assert (deep / "experiment.yaml").is_file()
    finally:
        # Nor can pytest remove it.
        subprocess.run(["rm", "-r", tmp_path / "a"], check=True)
    assert cli.main(["init", str(tmp_path) + "/a" * 2100]) == 3
    assert not (tmp_path / "a").exists()
    assert re.fullmatch(r"testbed: \[Errno 36\] File name too long: .*\n", capsys.readouterr().err)


def test_a_lock_is_waited_for_while_something_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.mkdir()
    removing, done = threading.Event(), list[bool]()

    def wait() -> None:
        removing.set()
        done.append(owned.use(path))

    with owned._exclusive(path):
        user = threading.Thread(target=wait)
        user.start()
        assert removing.wait(5)
        path.rmdir()
    user.join()
    assert done == [False]


def test_threads_use_the_same_at_once(tmp_path: Path) -> None:
    """What one of them closes twice may be something else's by then."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: owned.use(tmp_path), range(4000)))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
