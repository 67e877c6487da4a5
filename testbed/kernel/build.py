# SPDX-License-Identifier: GPL-2.0-only
"""Kernels, built once: a cache addressed by everything that goes into one.

cache/ccache/          what the compiler made of each file, by its text
cache/kernels/<key>/   vmlinux, System.map, config, build.json: complete, or not there
cache/work/<hash>/     src and obj, reused by all kernels of a family of sources, a configuration and
                       a compiler, so that a second arm costs only what its patches change;
                       log, which is the lock on all this as well as the output of make;
                       conf, where configurations are made; state.json, which says what is in src;
                       tmp, the TMPDIR of compilers
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from testbed.experiment import ArmSpec
from testbed.host import files, owned, process, space
from testbed.host.errors import BuildError, HostError, SpecError
from testbed.host.files import locked
from testbed.host.paths import sha256
from testbed.kernel import kconfig, series
from testbed.kernel.series import Misfit, Patch
from testbed.kernel.source import Progress, Source, at_hand, silent

SCHEMA = 1  # of the key and of build.json: another number, another kernel
CONFIGURE_SECONDS = 120.0
BUILD_SECONDS = 3600.0
# What a work tree takes that has no objects yet, with what ccache keeps of them; and one that has.
FIRST_BYTES, LATER_BYTES = 300 << 20, 50 << 20
# Where less is left the disk is full.
FULL_BYTES = 1 << 20
# What kbuild and the shell that it works with can take in the path of a source. An equals sign would change
# the kernel, by way of gcc's -fmacro-prefix-map.
_FIT = re.compile(r"[\w/.,+@~-]+")

# What makes the same source the same image, anywhere and at any time. An empty LOCALVERSION keeps
# scripts/setlocalversion from looking for a git repository around the source.
VARIABLES = {
    "ARCH": "x86_64",
    "KBUILD_BUILD_HOST": "testbed",
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "testbed",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
    "LOCALVERSION": "",
}
INHERITED = ("PATH", "HOME")

# What the compiler makes of a text it makes once, whichever kernel of a work tree it is for. The user's own
# settings, which may trade rightness for speed, do not count.
CCACHE = {
    "CCACHE_CONFIGPATH": "/dev/null",
    "CCACHE_DEPEND": "1",  # by what was read, as the compiler says, with no preprocessor before it
    "CCACHE_MAXSIZE": "5G",
    "CCACHE_COMPRESSLEVEL": "1",
}


@dataclass(frozen=True)
class Plan:
    """What a kernel is to be made of. `key` names it; equal keys mean the same kernel."""

    key: str
    source: Source
    patches: tuple[Patch, ...]
    files: Mapping[str, bytes | None]  # what the patches change: new contents, None for a file that goes
    config: Mapping[str, str]
    tools: tuple[str, ...]
    cache: Path

    @property
    def directory(self) -> Path:
        """Where the kernel is once it is built."""
        return self.cache / "kernels" / self.key

    @property
    def patched(self) -> tuple[str, ...]:
        """The files that its patches are in, in short."""
        return tuple(dict.fromkeys(patch.label for patch in self.patches))

    @property
    def patches_sha256(self) -> dict[str, str]:
        """The hashes of its patches, by name."""
        return {patch.name: hashlib.sha256(patch.data).hexdigest() for patch in self.patches}

    @property
    def label(self) -> str:
        return " + ".join([self.source.label, *self.patched])


@dataclass(frozen=True)
class Kernel:
    """A kernel that is built, and where it comes from. `seconds` is the wall time that building took."""

    key: str
    directory: Path
    source: str
    patches: tuple[str, ...]
    version: str
    release: str
    tools: tuple[str, ...]
    vmlinux_sha256: str
    seconds: float

    @property
    def vmlinux(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def system_map(self) -> Path:
        return self.directory / "System.map"

    @property
    def config(self) -> Path:
        return self.directory / "config"


def plan(
    source: Source, fragments: Sequence[str], arm: ArmSpec, cache: Path, known: Container[str] | None = None
) -> Plan:
    """Work out what an arm's kernel is made of, and so its key. Builds nothing.

    With `known`, symbols that are not among them are not asked to be set: a kernel of before there was an
    option has to do without it. Raises SpecError for a patch that does not apply or a fragment that cannot be
    used.
    """
    read = functools.cache(source.read)
    patches = series.load(arm.patches, source.version, pristine=read)
    try:
        files = series.apply(patches, read)
    except Misfit as misfit:
        misfit.hint = "\n  ".join(filter(None, [misfit.hint, _where_it_applies(arm, source, cache)]))
        raise
    config = kconfig.merge(kconfig.load(fragments, source.version))
    if known is not None:
        config = {name: line for name, line in config.items() if name in known or kconfig.unset(line)}
    tools = tuple(_version_line(tool) for tool in ("gcc", "ld"))
    contents = {path: data and hashlib.sha256(data).hexdigest() for path, data in files.items()}
    key = _digest([SCHEMA, source.identity, contents, config, tools, VARIABLES])
    return Plan(key, source, patches, files, config, tools, cache.resolve())


def check(fragments: Sequence[str], arm: ArmSpec) -> None:
    """Raise SpecError for patches and fragments that are of no use whatever the source is."""
    for word in arm.patches:
        series.check(word)
    kconfig.merge(kconfig.load(fragments, kconfig.OLDEST))


def _where_it_applies(arm: ArmSpec, source: Source, cache: Path) -> str:
    """The versions of sources that are at hand to which all of an arm's patches apply; empty if none."""
    fitting: dict[str, None] = {}
    for other in at_hand(cache):
        if other.version != source.version and other.version not in fitting:
            with contextlib.suppress(SpecError):
                series.apply(series.load(arm.patches, other.version, pristine=other.read), other.read)
                fitting[other.version] = None
    return f"the patches of this arm apply to Linux {' and '.join(fitting)}, which is here" if fitting else ""


def published(plan: Plan) -> Kernel | None:
    """The kernel of a plan, if it is in the cache and whole."""
    try:
        facts = json.loads((plan.directory / "build.json").read_text())
        digest = sha256(plan.directory / "vmlinux")
    except (OSError, ValueError):
        return None
    if digest != facts["vmlinux_sha256"] or not owned.use(plan.directory):
        return None
    return Kernel(
        key=plan.key,
        directory=plan.directory,
        source=plan.source.label,
        patches=tuple(patch.name for patch in plan.patches),
        version=plan.source.version,
        release=facts["release"],
        tools=plan.tools,
        vmlinux_sha256=digest,
        seconds=facts["seconds"],
    )


def build(plan: Plan, jobs: int | None = None, progress: Progress = silent) -> Kernel:
    """The kernel of a plan, built unless it is in the cache, by `jobs` compilers (default: CPUs + 1).

    However this ends, the cache is sound and the next call goes on from there. Raises SpecError when the
    configuration does not come out as requested, BuildError when the kernel does not compile.
    """
    if kernel := published(plan):
        return kernel
    if not _FIT.fullmatch(str(plan.cache)):
        raise HostError(
            f"{plan.cache}: no kernel can be built there: make takes letters, digits and -_.,+@~ in a path; "
            "let XDG_CACHE_HOME name another directory"
        )
    work = owned.make(_work(plan))
    owned.make(plan.cache / "ccache")
    # Being the standard output of make, the log stays locked until the last compiler is gone, even when
    # this process is killed and they are not.
    with locked(work / "log", progress) as log:
        if kernel := published(plan):  # by the process that had the lock
            return kernel
        log.truncate(0)
        started = time.monotonic()
        first = not (work / "obj" / "vmlinux").exists()
        space.require(work, FIRST_BYTES if first else LATER_BYTES, "building a kernel")
        progress(f"building {plan.label}")
        with space.told(work):
            # What a compiler leaves that is killed.
            shutil.rmtree(work / "tmp", ignore_errors=True)
            (work / "tmp").mkdir()
            _sync(plan, work)
            _drop_unfinished(work / "obj")
            _configure(plan, work, log)
            _make(work, "obj", ["vmlinux", f"-j{jobs or (os.cpu_count() or 1) + 1}"], log, BUILD_SECONDS)
            _publish(plan, work, time.monotonic() - started)
    kernel = published(plan)
    if kernel is None:
        raise BuildError(f"{plan.directory}: changed as it was being written")
    progress(f"built {plan.label} in {kernel.seconds:.0f} s")
    return kernel


# --- the steps -----------------------------------------------------------------------------------


def _sync(plan: Plan, work: Path) -> None:
    """Bring the work tree from whatever it holds to the source with the patches, touching little."""
    note = work / "state.json"
    try:
        state = json.loads(note.read_text())
    except (OSError, ValueError):
        state = {}
    note.unlink(missing_ok=True)  # until it is written again, nobody knows what is in src
    patched = set(state.get("patched", ()))
    if state.get("identity") != plan.source.identity:
        plan.source.checkout(work / "src")
    for path in sorted(patched | plan.files.keys()):
        data = plan.files[path] if path in plan.files else plan.source.read(path)
        put(work / "src" / path, data)
    note.write_text(json.dumps({"identity": plan.source.identity, "patched": sorted(plan.files)}))


def put(file: Path, data: bytes | None) -> None:
    """Give a file its content, unless it has it: its mtime tells make whether there is work to do.

    It is replaced and never written to, since it may be a link to the pristine file.
    """
    if data is None:
        file.unlink(missing_ok=True)
    elif not file.is_file() or file.read_bytes() != data:
        # The only executables that kbuild needs are scripts.
        mode = file.stat().st_mode if file.is_file() else 0o755 if data.startswith(b"#!") else 0o644
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, data, mode=mode)


def _drop_unfinished(obj: Path) -> None:
    """Remove what was being written when an earlier make was killed.

    kbuild writes .x.o.cmd when x.o is done, and later goes by the command in it and the mtime of x.o:
    an x.o that was half written over an old one would pass for finished.
    """
    for command in obj.rglob(".*.cmd"):
        target = command.with_name(command.name[1:].removesuffix(".cmd"))
        if target.is_file() and target.stat().st_mtime_ns > command.stat().st_mtime_ns:
            target.unlink()


def _configure(plan: Plan, work: Path, log: IO[bytes]) -> None:
    """Make the configuration, beside obj so that its .config changes only when the result does."""
    dotconfig = work / "conf" / ".config"
    _make(work, "conf", ["tinyconfig"], log, CONFIGURE_SECONDS)
    with dotconfig.open("a") as file:
        file.writelines(f"{line}\n" for line in plan.config.values())
    _make(work, "conf", ["olddefconfig"], log, CONFIGURE_SECONDS)
    if lost := kconfig.lost(plan.config, dotconfig.read_text()):
        raise SpecError(
            f"kernel.config: Linux {plan.source.version} does not have it so: {', '.join(lost)}",
            "an option that is absent is unknown there, or something that it depends on is not set",
        )
    put(work / "obj" / ".config", dotconfig.read_bytes())


def compiled(plan: Plan) -> frozenset[str]:
    """The files of the source that went into what was last built where a plan's kernel is built.

    From what kbuild notes of every object; empty if nothing was built there yet.
    """
    work = _work(plan)
    top = f"{work / 'src'}/"
    return frozenset(
        word.removeprefix(top)
        for command in (work / "obj").rglob(".*.o.cmd")
        for word in command.read_text(errors="replace").split()
        if word.startswith(top)
    )


def assembly(plan: Plan, text: str) -> str:
    """What the compiler makes of a text in C, as if it were a file of mm/ in a plan's kernel.

    For numbers that only the compiler knows. Raises BuildError where no kernel of the family has been built,
    or when the text does not compile.
    """
    work = _work(plan)
    try:
        noted = (work / "obj/mm/.page_alloc.o.cmd").read_text()
        patched = json.loads((work / "state.json").read_text())["patched"]
    except (OSError, ValueError) as absent:
        raise BuildError(f"{work}: no kernel was built there: {absent}") from absent
    first, _, _ = noted.partition("\n")[0].partition(" := ")[2].partition(" ; ")
    words = shlex.split(first)
    compiler = words[words.index("gcc") : words.index("-c")]
    flags = [word for word in compiler[1:] if not word.startswith("-Wp,-M")]
    with owned.directory() as over:
        # What is there may be another kernel of the family by now.
        for path in {*patched, *plan.files}:
            data = plan.files[path] if path in plan.files else plan.source.read(path)
            if path.endswith(".h") and data is not None:
                put(over / path, data)
        first_of_all = [f"-I{over / 'mm'}", f"-I{over / 'include'}", f"-I{work / 'src' / 'mm'}"]
        argv = [compiler[0], *first_of_all, *flags, "-S", "-o", "-", "-x", "c", "-"]
        done = process.run(argv, timeout=CONFIGURE_SECONDS, cwd=work / "obj", stdin=text.encode())
    return done.stdout.decode()


def numbers_of(assembly: str) -> dict[str, int]:
    """The numbers that the compiler has left in its output, as <linux/kbuild.h> makes it do so."""
    return {name: int(value) for name, value in re.findall(r"->(\w+) \$?(-?\d+) ", assembly)}


def command(plan: Plan) -> list[str]:
    """What compiles a plan's kernel once source and configuration are in place, for a person to see."""
    return kbuild(_work(plan), "obj", ["vmlinux"])


def _work(plan: Plan) -> Path:
    """Where it is built: kernels of one family follow each other there, so that little is compiled anew."""
    return plan.cache / "work" / _digest([plan.source.family, plan.config, plan.tools])[:16]


def kbuild(work: Path, output: str, words: Sequence[str]) -> list[str]:
    """What makes `words` of `work`/src in `work`/`output`, in an environment of nothing but this.

    Variables such as MAKEFLAGS, CROSS_COMPILE, KCFLAGS and CPATH change kernels.
    """
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    places = {"CCACHE_DIR": work.parents[1] / "ccache", "TMPDIR": work / "tmp"}
    settings = {**inherited, **VARIABLES, **CCACHE, **places}
    variables = [f"{name}={value}" for name, value in settings.items()]
    source, objects = str(work / "src"), f"O={work / output}"
    return ["env", "-i", *variables, "make", "-C", source, objects, "CC=ccache gcc", *words]


def _make(work: Path, output: str, words: Sequence[str], log: IO[bytes], timeout: float) -> None:
    (work / output).mkdir(exist_ok=True)
    argv = kbuild(work, output, words)
    done = process.run(argv, timeout=timeout, log=log, check=False)
    if done.returncode != 0:
        # Then its log may not say so, being there itself.
        space.require(work, FULL_BYTES, "building a kernel")
        raise BuildError(
            f"`{process.pasteable(argv)}` failed with exit status {done.returncode}; "
            f"its output is in {log.name}",
            _first_errors(Path(log.name).read_text(errors="replace")),
        )


def _first_errors(output: str) -> str:
    telling = re.compile(r"error:|Error |not found|undefined reference")
    lines = [line for line in output.splitlines() if telling.search(line)]
    return "\n  ".join(lines[:10]) if lines else process.tail(output).strip()


def _publish(plan: Plan, work: Path, seconds: float) -> None:
    """Copy the results out of the work tree and put them in place in one step."""
    obj = work / "obj"
    plan.directory.parent.mkdir(parents=True, exist_ok=True)
    if plan.directory.exists() and published(plan) is None:
        shutil.rmtree(plan.directory)  # somebody has damaged it
    # Another family of sources may have made the same kernel meanwhile; theirs is as good.
    with files.staged(plan.directory) as draft:
        draft.mkdir()
        for result, name in {"vmlinux": "vmlinux", "System.map": "System.map", ".config": "config"}.items():
            shutil.copyfile(obj / result, draft / name)
        facts = {
            "schema": SCHEMA,
            "source": {"label": plan.source.label, "identity": plan.source.identity},
            "patches": plan.patches_sha256,
            "tools": plan.tools,
            "release": (obj / "include/config/kernel.release").read_text().strip(),
            "vmlinux_sha256": sha256(draft / "vmlinux"),
            "seconds": round(seconds, 1),
        }
        (draft / "build.json").write_text(json.dumps(facts, indent=2) + "\n")


# --- naming --------------------------------------------------------------------------------------


def _version_line(tool: str) -> str:
    return process.run([tool, "--version"], timeout=10).stdout.decode().splitlines()[0]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
