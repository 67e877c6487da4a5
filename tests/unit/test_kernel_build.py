# SPDX-License-Identifier: GPL-2.0-only
"""Builds of a very small "kernel": two C files and a Makefile that behaves like kbuild where it matters."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.experiment import ArmSpec, GitSource, KernelSpec, TarballSource
from testbed.host import process
from testbed.host.errors import BuildError, HostError, NoSpace, SpecError
from testbed.kernel import build as build_module
from testbed.kernel import source
from testbed.kernel.build import Kernel, Plan, build, plan, published
from tests.helpers import Disk, told

# Every compiler notes its work in obj/compiled. A `gate` (a pipe) in $HOME holds up the last of them until
# somebody writes to it. Objects come with .cmd files written after them, as in kbuild.
MAKEFILE = r"""
VERSION = 6
PATCHLEVEL = 1
SUBLEVEL = 7

tinyconfig:
	echo CONFIG_TINY=y >$O/.config
olddefconfig:
	sed -i /CONFIG_GONE/d $O/.config
vmlinux: $O/vmlinux
$O/vmlinux: $O/mm/one.o $O/mm/two.o
	test ! -p $$HOME/gate || cat $$HOME/gate
	ld -r -o $@ $^
	echo map >$O/System.map
	mkdir -p $O/include/config
	echo 6.1.7-fake >$O/include/config/kernel.release
$O/mm/%.o: mm/%.c $O/.config
	mkdir -p $O/mm
	echo $* >>$O/compiled
	$(CC) -frandom-seed=1 $(KCFLAGS) -DHOST='"$(KBUILD_BUILD_HOST)"' -c -o $@ $<
	echo "$*" >$O/mm/.$*.o.cmd
"""
ONE = "const char *one(void)\n{\n\treturn HOST;\n}\n"
TWO = "int two(void)\n{\n\treturn 2;\n}\n"
DRIVER = """
import sys
from pathlib import Path
from testbed.kernel import build, source
from testbed.experiment import ArmSpec, KernelSpec, TarballSource
url, sha256, fragment, cache = sys.argv[1:]
spec = KernelSpec(tarball=TarballSource(url=url, sha256=sha256))
plan = build.plan(source.resolve(spec, Path(cache)), [fragment], ArmSpec(), Path(cache))
kernel = build.build(plan, 2, lambda message: print(message, flush=True))
print(kernel.vmlinux_sha256, flush=True)
"""


class Workshop:
    """A tarball of the small kernel, a fragment, and a cache."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.cache = top / "cache"
        tree = top / "linux"
        (tree / "mm").mkdir(parents=True)
        (tree / "Makefile").write_text(MAKEFILE)
        (tree / "mm/one.c").write_text(ONE)
        (tree / "mm/two.c").write_text(TWO)
        self.tarball = top / "linux.tar"
        subprocess.run(["tar", "-cf", self.tarball, "-C", top, "linux"], check=True)
        self.fragment = self.fragment_of("CONFIG_SWAP=y\n")

    def fragment_of(self, text: str) -> Path:
        path = self.top / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.config"
        path.write_text(text)
        return path

    def patch(self, name: str, path: str, old: str, new: str) -> Path:
        """A patch file; an empty `old` makes a new file."""
        sides = [f"a/{path}" if old else "/dev/null", f"b/{path}"]
        lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), sides[0], sides[1])
        (self.top / name).write_text("".join(lines))
        return self.top / name

    def plan(self, *patches: Path, cache: Path | None = None, fragment: Path | None = None) -> Plan:
        digest = hashlib.sha256(self.tarball.read_bytes()).hexdigest()
        spec = KernelSpec(tarball=TarballSource(url=str(self.tarball), sha256=digest))
        cache = cache or self.cache
        arm = ArmSpec(patches=tuple(map(str, patches)))
        return plan(source.resolve(spec, cache), [str(fragment or self.fragment)], arm, cache)

    def build(self, *patches: Path, cache: Path | None = None) -> Kernel:
        return build(self.plan(*patches, cache=cache))

    @property
    def work(self) -> Path:
        (path,) = (self.cache / "work").iterdir()
        return path

    def compiled(self) -> list[str]:
        """What has been compiled since this was last asked."""
        record = self.work / "obj/compiled"
        names = sorted(record.read_text().split()) if record.exists() else []
        record.unlink(missing_ok=True)
        return names

    def start(self) -> subprocess.Popen[bytes]:
        """Another process that builds the unpatched kernel."""
        digest = hashlib.sha256(self.tarball.read_bytes()).hexdigest()
        arguments = [str(self.tarball), digest, str(self.fragment), str(self.cache)]
        return process.spawn([sys.executable, "-c", DRIVER, *arguments])


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture
def two_three(shop: Workshop) -> Path:
    return shop.patch("two-three.patch", "mm/two.c", TWO, TWO.replace("return 2", "return 3"))


@pytest.fixture
def gate(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A closed gate. The call opens it for good, once somebody has come to it."""
    pipe = shop.top / "gate"
    os.mkfifo(pipe)
    monkeypatch.setenv("HOME", str(shop.top))

    def open_gate() -> None:
        with pipe.open("w"):
            pipe.unlink()

    yield open_gate
    if pipe.exists():
        os.close(os.open(pipe, os.O_RDWR))  # lets go of whoever is at it


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = process.Deadline(10)
    while not condition():
        assert not deadline.expired
        time.sleep(0.01)


def line_of(child: subprocess.Popen[bytes]) -> str:
    """The next line that a child prints."""
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], 10)[0], "the child says nothing"
    line = child.stdout.readline().decode()
    assert line, "the child has ended"
    return line


# --- what is built -------------------------------------------------------------------------------


def test_a_kernel_is_published_with_what_there_is_to_know(shop: Workshop, two_three: Path) -> None:
    kernel = shop.build(two_three)
    assert (kernel.version, kernel.release) == ("6.1.7", "6.1.7-fake")
    assert kernel.source == "linux.tar"
    assert kernel.patches == (str(two_three),)
    assert kernel.tools[0].startswith("gcc") and "ld" in kernel.tools[1].lower()
    assert kernel.vmlinux_sha256 == hashlib.sha256(kernel.vmlinux.read_bytes()).hexdigest()
    assert kernel.system_map.read_text() == "map\n"
    assert "CONFIG_SWAP=y" in kernel.config.read_text().splitlines()
    facts = json.loads((kernel.directory / "build.json").read_text())
    assert facts["patches"] == {str(two_three): hashlib.sha256(two_three.read_bytes()).hexdigest()}


def test_a_kernel_at_hand_to_which_the_patches_apply_is_named(shop: Workshop) -> None:
    other = shop.cache / "sources/other"
    (other / "mm").mkdir(parents=True)
    (other / "Makefile").write_text("VERSION = 9\nPATCHLEVEL = 9\n")
    (other / "mm/one.c").write_text("int other;\n")
    (shop.cache / "sources/none").mkdir()
    (shop.cache / "sources/none/Makefile").write_text("all:\n")
    fits = shop.patch("fits.patch", "mm/one.c", "int other;\n", "int another;\n")
    with pytest.raises(SpecError, match=r"fits\.patch: does not apply: mm/one\.c: hunk 1 of 1") as bad:
        shop.plan(fits)
    assert bad.value.hint.splitlines()[-1] == "  the patches of this arm apply to Linux 9.9.0, which is here"
    with pytest.raises(SpecError, match="does not apply") as bad:
        shop.plan(fits, shop.patch("no.patch", "mm/one.c", "int no;\n", "int yes;\n"))
    assert "9.9.0" not in bad.value.hint


def test_another_arm_recompiles_only_what_its_patches_change(shop: Workshop, two_three: Path) -> None:
    one = shop.patch("one.patch", "mm/one.c", ONE, ONE.replace("HOST", '"one"'))
    more = shop.patch("more.patch", "mm/one.c", ONE, ONE.replace("HOST", '"more"'))
    keys = set()
    for arm, compiled in (
        ([], ["one", "two"]),
        ([two_three], ["two"]),
        ([two_three, one], ["one"]),
        ([two_three, more], ["one"]),
        ([one], ["one", "two"]),
    ):
        keys.add(shop.build(*arm).vmlinux_sha256)
        assert shop.compiled() == compiled, arm
    assert len(keys) == 5


def test_a_text_is_compiled_once_however_often_a_work_tree_comes_back_to_it(
    shop: Workshop, two_three: Path
) -> None:
    shop.build()
    shop.build(two_three)
    assert hits(shop.cache) == 0
    back = shop.build(shop.patch("new.patch", "mm/new.h", "", "#error never included\n"))
    assert hits(shop.cache) == 1
    assert back.vmlinux_sha256 == shop.build().vmlinux_sha256


def hits(cache: Path) -> int:
    """How often what ccache has was taken."""
    env = {"CCACHE_CONFIGPATH": "/dev/null", "CCACHE_DIR": str(cache / "ccache")}
    told = process.run(["ccache", "--print-stats"], timeout=10, env=env).stdout.decode()
    counts = dict(line.split("\t") for line in told.splitlines())
    return int(counts["direct_cache_hit"]) + int(counts["preprocessed_cache_hit"])


def test_the_same_inputs_give_the_same_bytes_by_any_way(
    shop: Workshop, two_three: Path, tmp_path: Path
) -> None:
    new = shop.patch("new.patch", "mm/new.h", "", "#error never included\n")
    shop.build(two_three)
    by_way_of_another = shop.build(new)
    shop.build()
    clean = shop.build(new, cache=tmp_path / "another" / "cache")
    assert clean.key == by_way_of_another.key
    assert clean.vmlinux.read_bytes() == by_way_of_another.vmlinux.read_bytes()
    assert not (shop.work / "src/mm/new.h").exists()


def test_the_environment_does_not_get_in(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clean = shop.build()
    for name, value in {"KCFLAGS": "-DHOST=3", "MAKEFLAGS": "-n", "KBUILD_BUILD_HOST": "mine"}.items():
        monkeypatch.setenv(name, value)
    other = shop.build(cache=tmp_path / "other")
    assert other.vmlinux_sha256 == clean.vmlinux_sha256


def test_the_pristine_source_stays_so(shop: Workshop, two_three: Path) -> None:
    shop.build(two_three)
    pristine = shop.plan().source
    assert isinstance(pristine, source.Unpacked)
    assert (pristine.directory / "mm/two.c").read_text() == TWO
    assert (shop.work / "src/mm/two.c").read_text() != TWO


def test_revisions_of_a_repository_share_objects(shop: Workshop) -> None:
    repository = shop.top / "linux"
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm1"], ["tag", "v1"]):
        subprocess.run(["git", "-C", repository, *IDENTITY, *words], check=True)
    (repository / "mm/two.c").write_text(TWO.replace("2", "4"))
    subprocess.run(["git", "-C", repository, *IDENTITY, "commit", "-qam2"], check=True)
    compiled = []
    for revision in ("v1", "HEAD"):
        spec = KernelSpec(git=GitSource(repository=str(repository), revision=revision))
        found = source.resolve(spec, shop.cache)
        build(plan(found, [str(shop.fragment)], ArmSpec(), shop.cache))
        compiled.append(shop.compiled())
    assert compiled == [["one", "two"], ["two"]]


def test_versions_of_a_debian_package_share_objects(shop: Workshop, tmp_path: Path) -> None:
    """What is built on top of another version's is what is built from nothing."""
    for package, two in (("linux-source-9.9", TWO), ("linux-source-9.9=9.9.1-1", TWO.replace("2", "4"))):
        (shop.top / "linux/mm/two.c").write_text(two)
        for cache in (shop.cache, tmp_path / "elsewhere"):
            there = cache / "debian" / package
            there.mkdir(parents=True)
            archive = there / "linux-source-9.9.tar.xz"
            subprocess.run(["tar", "-cJf", archive, "-C", shop.top, "linux"], check=True)
            (there / "version").write_text(package.partition("=")[2] or "9.9.2-1")

    def made(package: str, cache: Path) -> Kernel:
        found = source.resolve(KernelSpec(debian=package), cache)
        return build(plan(found, [str(shop.fragment)], ArmSpec(), cache))

    made("linux-source-9.9", shop.cache)
    assert shop.compiled() == ["one", "two"]
    older = made("linux-source-9.9=9.9.1-1", shop.cache)
    assert shop.compiled() == ["two"]
    assert made("linux-source-9.9=9.9.1-1", tmp_path / "elsewhere").vmlinux_sha256 == older.vmlinux_sha256


IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


# --- the key -------------------------------------------------------------------------------------


def test_the_key_is_what_goes_in(shop: Workshop, two_three: Path) -> None:
    base = shop.plan()
    renamed = two_three.with_name("renamed.patch")
    renamed.write_bytes(b"A description.\n\n" + two_three.read_bytes())
    other_config = shop.fragment_of("CONFIG_SWAP=n\n")
    assert shop.plan().key == base.key
    assert shop.plan(two_three).key == shop.plan(renamed).key
    assert len({base.key, shop.plan(two_three).key, shop.plan(fragment=other_config).key}) == 3
    assert published(base) is None
    assert not (shop.cache / "work").exists()


def test_another_compiler_is_another_key(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shop.plan().key
    gcc = shop.top / "bin/gcc"
    gcc.parent.mkdir()
    gcc.write_text("#!/bin/sh\necho gcc 99\n")
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gcc.parent}:{os.environ['PATH']}")
    assert shop.plan().key != before


def test_a_patch_that_does_not_apply_is_found_before_anything_is_built(shop: Workshop) -> None:
    bad = shop.patch("bad.patch", "mm/two.c", "int other;\n", "int others;\n")
    with pytest.raises(SpecError, match=r"bad\.patch: does not apply: mm/two\.c: hunk 1 of 1, at line 1\n"):
        shop.plan(bad)


# --- the cache -----------------------------------------------------------------------------------


def test_a_published_kernel_is_returned_without_work(shop: Workshop) -> None:
    kernel = shop.build()
    (shop.cache / "work").rename(shop.top / "away")
    assert shop.build() == kernel
    assert not (shop.cache / "work").exists()


def test_a_damaged_kernel_is_built_again(shop: Workshop) -> None:
    kernel = shop.build()
    original = kernel.vmlinux.read_bytes()
    kernel.vmlinux.write_bytes(original[:100])
    assert shop.build().vmlinux.read_bytes() == original


def test_a_kernel_that_does_not_compile_shows_why_and_is_not_published(
    shop: Workshop, two_three: Path
) -> None:
    bad = shop.patch("bad.patch", "mm/two.c", TWO, TWO.replace("return 2", "return nothing"))
    with pytest.raises(BuildError, match=r"(?s)exit status 2.*two\.c:3:.*error:.*nothing") as failed:
        shop.build(bad)
    log = shop.work / "log"
    assert str(log) in failed.value.message
    assert "nothing" in log.read_text()
    assert list((shop.cache / "kernels").glob("*")) == []
    good = shop.build(two_three)
    assert list((shop.cache / "kernels").iterdir()) == [good.directory]
    assert "nothing" not in log.read_text()


def test_options_that_were_lost_are_named(shop: Workshop) -> None:
    fragment = shop.fragment_of("CONFIG_GONE=y\nCONFIG_KEPT=y\n")
    with pytest.raises(SpecError) as refused:
        build(shop.plan(fragment=fragment))
    assert refused.value.message.startswith("kernel.config: Linux 6.1.7")
    assert refused.value.message.endswith(": CONFIG_GONE=y (absent)")
    assert not (shop.cache / "kernels").exists()


# --- interruptions -------------------------------------------------------------------------------


def test_ctrl_c_between_two_files_is_made_good(
    shop: Workshop, two_three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.build(shop.patch("new.patch", "mm/new.h", "", "#error never included\n"))
    put = build_module.put

    def interrupted(file: Path, data: bytes | None) -> None:
        put(file, data)
        if file.name == "two.c":
            raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shop.build(two_three)
    monkeypatch.undo()
    kernel = shop.build()
    assert kernel.vmlinux_sha256 == shop.build(cache=tmp_path / "clean").vmlinux_sha256


def test_a_sync_that_was_interrupted_is_made_good(shop: Workshop, two_three: Path, tmp_path: Path) -> None:
    shop.build()
    shop.compiled()
    (shop.work / "state.json").write_text('{"identity": ')
    for name in ("two.c", "stray.c"):  # replaced, as put() does, by a sync that nobody recorded
        (shop.work / "src/staging").write_text("int half;\n")
        (shop.work / "src/staging").rename(shop.work / "src/mm" / name)
    kernel = shop.build(two_three)
    assert shop.compiled() == ["two"]
    assert not (shop.work / "src/mm/stray.c").exists()
    assert kernel.vmlinux_sha256 == shop.build(two_three, cache=tmp_path / "clean").vmlinux_sha256


def test_an_object_that_was_half_written_is_not_linked(
    shop: Workshop, two_three: Path, tmp_path: Path
) -> None:
    shop.build()
    shop.compiled()
    (shop.work / "obj/mm/one.o").write_bytes(b"\x7fELF")
    kernel = shop.build(two_three)
    assert shop.compiled() == ["one", "two"]
    assert kernel.vmlinux_sha256 == shop.build(two_three, cache=tmp_path / "clean").vmlinux_sha256


def test_two_processes_build_one_kernel_once(shop: Workshop, gate: Callable[[], None]) -> None:
    first = shop.start()
    second = None
    try:
        while "building" not in line_of(first):
            pass
        second = shop.start()
        while "waiting for another process" not in line_of(second):
            pass
        gate()
        (out, _), (other, _) = first.communicate(timeout=10), second.communicate(timeout=10)
    finally:
        for child in filter(None, (first, second)):
            process.end(child)
    assert out.splitlines()[-1] == other.splitlines()[-1]
    assert b"building" not in other
    assert shop.compiled() == ["one", "two"]


def test_a_builder_that_is_killed_publishes_nothing(shop: Workshop, gate: Callable[[], None]) -> None:
    child = shop.start()
    try:
        wait_for(lambda: len(list(shop.cache.glob("work/*/obj/mm/.*.cmd"))) == 2)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        # What make had started lives on, and nobody may work beside it.
        next_one = shop.start()
        try:
            while "waiting for another process" not in line_of(next_one):
                pass
            assert not (shop.cache / "kernels").exists()
            gate()
            out, _ = next_one.communicate(timeout=10)
        finally:
            process.end(next_one)
    finally:
        process.end(child)
    assert out.decode().split()[-1] == shop.build().vmlinux_sha256
    assert shop.compiled() == ["one", "two"]


def test_after_ctrl_c_nothing_runs_and_the_next_call_goes_on(
    shop: Workshop, gate: Callable[[], None]
) -> None:
    child = shop.start()
    try:
        wait_for(lambda: len(list(shop.cache.glob("work/*/obj/mm/.*.cmd"))) == 2)
        child.send_signal(signal.SIGINT)
        assert child.wait(10) != 0
    finally:
        process.end(child)
    assert not (shop.cache / "kernels").exists()
    (shop.top / "gate").unlink()
    said: list[str] = []
    build(shop.plan(), progress=said.append)
    assert not any("waiting" in message for message in said)
    assert shop.compiled() == ["one", "two"]


# --- where it is built ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a b", "a:b", "a=b", "a'b", 'a"b', "a%b", "a$b", "a#b", "a\nb", "a\\b", "a;b"]
)
def test_what_make_cannot_take_in_a_path_is_said_in_a_line(shop: Workshop, name: str) -> None:
    cache = shop.top / name
    with pytest.raises(HostError, match="no kernel can be built there") as refused:
        shop.build(cache=cache)
    assert refused.value.message.startswith(f"{cache}: ") and "XDG_CACHE_HOME" in refused.value.message
    assert not (cache / "work").exists()


def test_what_a_killed_compiler_left_goes_with_the_next_build(shop: Workshop) -> None:
    shop.build()
    left = shop.work / "tmp" / "cc123456.s"
    left.write_text("half")
    assert f"TMPDIR={left.parent}" in build_module.command(shop.plan())
    shop.build(shop.patch("one.patch", "mm/one.c", ONE, ONE.replace("HOST", "HOST HOST")))
    assert left.parent.is_dir() and not left.exists()


def test_a_path_may_have_commas_and_other_letters(shop: Workshop) -> None:
    built = shop.build(cache=shop.top / "a,b+c@d~e_é")
    assert built.vmlinux_sha256 == shop.build().vmlinux_sha256


def test_a_full_disk_is_no_compilers_fault(
    disk: Disk, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = disk.directory
    with pytest.raises(
        NoSpace, match=r"/disk/work/\w+: \d MiB free, and building a kernel takes about 300 MiB: "
    ):
        shop.build(cache=cache)
    for name in ("FIRST_BYTES", "LATER_BYTES"):
        monkeypatch.setattr(build_module, name, 0)
    for left in range(0, 48 << 10, 8 << 10):
        disk.fill(left)
        try:
            shop.build(cache=cache)
        except NoSpace as full:
            assert re.search(told(disk), str(full))
        disk.free()
    assert shop.build(cache=cache).vmlinux_sha256 == shop.build().vmlinux_sha256
