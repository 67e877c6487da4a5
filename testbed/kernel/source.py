# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources: a Debian package, a release tarball, a git revision, a local tree.

Whatever it comes from, a source is fixed to the last byte when it is resolved, and named by its content.
There are two kinds. A tarball is unpacked once, and work trees are farms of hard links to it. A git tree
is checked out by git, which touches only what differs; a local tree is made one, in a repository of ours.
The user's own repositories and trees are only ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from testbed.experiment import GitSource, SourceSpec, TarballSource
from testbed.host import debian, files, owned, process, space
from testbed.host.errors import BuildError, HostError, SpecError, TestbedError
from testbed.host.files import locked
from testbed.host.paths import sha256
from testbed.host.process import Deadline

DEBIAN_SOURCES = Path("/usr/src")
UNPACK_SECONDS = 600.0
GIT_SECONDS = 600.0
DOWNLOAD_SECONDS = 3600.0
SILENCE_SECONDS = 60.0  # that a server may keep
# How much larger a source is than its tarball.
GROWTH = {".bz2": 10, ".gz": 8, ".xz": 12}
MOST_DOWNLOADED = 4 << 30  # bytes; of a kernel's source, not packed, there are 1.5 GiB

Progress = Callable[[str], None]


def silent(_message: str) -> None:
    """Progress that nobody wants to see."""


class Source(ABC):
    """The source of one kernel.

    `identity` is a hash of the content. Work trees of one `family` resemble each other and are worth
    sharing. `label` is for people.
    """

    identity: str
    family: str
    label: str

    @property
    def version(self) -> str:
        """As in 6.1.192. Raises SpecError when this is not a kernel."""
        return _version(self.read("Makefile"), self.label)

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """The pristine content of a regular file, None when there is none at `path`."""

    @abstractmethod
    def checkout(self, dest: Path) -> None:
        """Make `dest` hold this source and nothing else, whatever it held before.

        Only files that differ are touched. These get a new modification time, since that is what make
        goes by. The caller sees to it that nobody else uses `dest`.
        """


def resolve(spec: SourceSpec, cache: Path, progress: Progress = silent) -> Source:
    """Find the source that an experiment asks for; unpack or fetch it if it is not in the cache.

    Raises SpecError naming the key that is wrong, HostError for a missing package or network.
    """
    cache = cache.resolve()  # make and git run elsewhere
    if spec.debian is not None:
        key, source = "debian", _debian(spec.debian, cache, progress)
    elif spec.tarball is not None:
        key, source = "tarball.url", _release(spec.tarball, cache, progress)
    elif spec.git is not None:
        key, source = "git.repository", _revision(spec.git, cache, progress)
    else:
        assert spec.tree is not None  # the spec has exactly one of the four
        key, source = "tree", _local_tree(spec.tree, cache, progress)
    try:
        progress(f"the source is {source.label}, Linux {source.version}")
    except SpecError as error:
        raise SpecError(f"kernel.{key}: {error.message}") from error
    return source


def at_hand(cache: Path) -> Iterator[Source]:
    """The kernels that were unpacked into the cache before, whatever they are from."""
    for makefile in sorted(cache.resolve().glob("sources/*/Makefile")):
        tree = makefile.parent
        unpacked = Unpacked(f"sha256:{tree.name}", "", tree.name, tree)
        with contextlib.suppress(SpecError):
            _ = unpacked.version
            yield unpacked


def _version(makefile: bytes | None, label: str) -> str:
    pattern = rb"^(VERSION|PATCHLEVEL|SUBLEVEL)[ \t]*=[ \t]*(\d+)[ \t]*$"
    parts = {name: int(value) for name, value in re.findall(pattern, makefile or b"", re.MULTILINE)}
    if not {b"VERSION", b"PATCHLEVEL"} <= parts.keys():
        raise SpecError(f"{label} is not a kernel: it has no Makefile with VERSION and PATCHLEVEL")
    return f"{parts[b'VERSION']}.{parts[b'PATCHLEVEL']}.{parts.get(b'SUBLEVEL', 0)}"


# --- tarballs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unpacked(Source):
    """A pristine directory in the cache; nothing in it is ever written."""

    identity: str
    family: str
    label: str
    directory: Path

    def read(self, path: str) -> bytes | None:
        file = self.directory / path
        # A path that leads through a symbolic link is not the path of a file of the source.
        if file.resolve() != self.directory.resolve() / path or not file.is_file():
            return None
        return file.read_bytes()

    def checkout(self, dest: Path) -> None:
        if dest.exists():
            _mirror(self.directory, dest)
        else:
            dest.parent.mkdir(parents=True, exist_ok=True)
            process.run(["cp", "-al", self.directory, dest], timeout=UNPACK_SECONDS)


def _mirror(pristine: Path, dest: Path) -> None:
    """Make `dest` equal to `pristine`. Files that differ are copied: a link would bring its old mtime."""
    with os.scandir(pristine) as entries:
        wanted = {entry.name: entry for entry in entries}
    with os.scandir(dest) as entries:
        present = {entry.name: entry for entry in entries}
    for name in present.keys() - wanted.keys():
        _remove(dest / name)
    for name, entry in wanted.items():
        target = dest / name
        if entry.is_dir(follow_symlinks=False):
            if name not in present or not present[name].is_dir(follow_symlinks=False):
                _remove(target)
                target.mkdir()
            _mirror(Path(entry.path), target)
        elif name not in present or not _same(entry, present[name]):
            _remove(target)
            shutil.copy(entry.path, target, follow_symlinks=False)


def _same(one: os.DirEntry[str], other: os.DirEntry[str]) -> bool:
    if os.path.samestat(one.stat(follow_symlinks=False), other.stat(follow_symlinks=False)):
        return True
    regular = one.is_file(follow_symlinks=False) and other.is_file(follow_symlinks=False)
    return regular and Path(one.path).read_bytes() == Path(other.path).read_bytes()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _debian(package: str, cache: Path, progress: Progress) -> Source:
    archive, version = _debian_archive(package, cache, progress)
    digest = sha256(archive)
    tree = cache / "sources" / digest
    files.once(tree, lambda draft: _unpack(archive, draft, progress), progress=progress)
    name = package.partition("=")[0]
    # Of a line, one version follows the other: few files change.
    return Unpacked(f"sha256:{digest}", f"debian:{name}", f"{name} {version}", tree)


def _debian_archive(package: str, cache: Path, progress: Progress) -> tuple[Path, str]:
    """The tarball and version of a package, NAME or NAME=VERSION: as installed, or fetched into the cache."""
    name, _, exactly = package.partition("=")
    installed = DEBIAN_SOURCES / f"{name}.tar.xz"
    if installed.is_file():
        query = ["dpkg-query", "--show", "--showformat=${Version}", name]
        version = process.run(query, timeout=10, error=HostError).stdout.decode().strip()
        if exactly in ("", version):
            return installed, version
    newest = cache / "debian" / name
    if newest.is_dir() and exactly == (newest / "version").read_text():
        package = name
    fetched = cache / "debian" / package
    # One lock for all packages, since they share apt's lists.
    files.once(
        fetched,
        lambda draft: _fetch(package, cache, draft, progress),
        lock=cache / "debian" / "lock",
        progress=progress,
    )
    return fetched / f"{name}.tar.xz", (fetched / "version").read_text()


def _fetch(package: str, cache: Path, target: Path, progress: Progress) -> None:
    """Fetch a package's tarball and version into a directory. The caller holds the lock."""
    try:
        deb = debian.fetch(package, cache, progress)
    except HostError as failed:
        raise HostError(
            f"kernel.debian: {package} is neither in {DEBIAN_SOURCES} nor to be had: {failed.message}",
            f"apt-get install {package}, or give kernel.tarball, kernel.git or kernel.tree",
        ) from failed
    archive = f"{package.partition('=')[0]}.tar.xz"
    debian.unpack(deb, target / "root")
    (target / "root" / str(DEBIAN_SOURCES)[1:] / archive).rename(target / archive)
    (target / "version").write_text(debian.version(deb))
    _remove(target / "root")
    deb.unlink()


def _release(spec: TarballSource, cache: Path, progress: Progress) -> Source:
    name = spec.url.rsplit("/", 1)[-1]
    tree = cache / "sources" / spec.sha256

    def make(draft: Path) -> None:
        with _at_hand(spec.url, draft.with_name(f"download-{name}"), progress) as archive:
            _verify(archive, spec)
            _unpack(archive, draft, progress)

    files.once(tree, make, progress=progress)
    identity = f"sha256:{spec.sha256}"
    return Unpacked(identity, identity, name, tree)


def _verify(archive: Path, spec: TarballSource) -> None:
    if (actual := sha256(archive)) != spec.sha256:
        raise SpecError(f"kernel.tarball.sha256: {spec.url} has {actual}, not {spec.sha256}")


@contextmanager
def _at_hand(url: str, staging: Path, progress: Progress) -> Iterator[Path]:
    """The file at a URL or path. What has to be downloaded is in `staging` while the context lasts."""
    if "://" not in url or url.startswith("file://"):
        path = Path(url2pathname(urlsplit(url).path) if "://" in url else url)
        if not path.is_file():
            raise SpecError(f"kernel.tarball.url: {url}: no such file")
        yield path
        return
    try:
        progress(f"downloading {url}")
        _download(url, staging)
        yield staging
    finally:
        staging.unlink(missing_ok=True)


def _download(url: str, file: Path) -> None:
    if not url.startswith(("http://", "https://")):
        raise SpecError(f"kernel.tarball.url: {url}: only http, https, file and paths are understood")
    deadline = Deadline(DOWNLOAD_SECONDS)
    try:
        with (
            space.told(file.parent),
            urllib.request.urlopen(url, timeout=SILENCE_SECONDS) as answer,  # noqa: S310
            file.open("wb") as out,
        ):
            while chunk := answer.read(1 << 20):
                out.write(chunk)
                if out.tell() > MOST_DOWNLOADED:
                    raise HostError(f"{url}: is larger than {MOST_DOWNLOADED >> 30} GiB")
                if deadline.expired:
                    raise HostError(f"{url}: not downloaded within {deadline.seconds:.0f} s")
    except (OSError, ValueError, HTTPException) as failed:
        raise HostError(f"{url}: {failed}", "check kernel.tarball.url, network and disk") from failed


def _unpack(archive: Path, tree: Path, progress: Progress) -> None:
    """Unpack the one top directory of a tarball to `tree`, a draft."""
    wanted = archive.stat().st_size * GROWTH.get(archive.suffix, 1)
    space.require(tree.parents[1], wanted, "a kernel's source")
    progress(f"unpacking {archive.name}")
    unpacked = tree.with_name("unpacked")
    unpacked.mkdir()
    # To tar, a colon in its name would mean another machine, and a backslash in that of a -C another letter.
    extract = ["tar", "--force-local", "-x", "-f", str(archive.resolve()), "--no-same-owner"]
    process.run(extract, cwd=unpacked, timeout=UNPACK_SECONDS)
    top = list(unpacked.iterdir())
    if len(top) != 1 or not top[0].is_dir():
        raise SpecError(
            f"kernel.tarball.url: {archive.name} is not a kernel: it has not a single top directory"
        )
    top[0].rename(tree)


# --- git -----------------------------------------------------------------------------------------

# What a user's configuration could otherwise do to a checkout, or our commands to a user's repository.
_SETTINGS = (
    "apply.ignoreWhitespace=no",
    "apply.whitespace=nowarn",
    "core.autocrlf=false",
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.sparseCheckout=false",
    "core.splitIndex=false",
    "gc.auto=0",
)


@dataclass(frozen=True)
class GitTree(Source):
    """A tree object in a git repository."""

    identity: str
    family: str
    label: str
    git_dir: Path

    def read(self, path: str) -> bytes | None:
        listing = git(self.git_dir, "ls-tree", "-z", "--full-tree", self.identity, "--", path).stdout
        mode, _type, blob = (listing.split(b"\t")[0].decode().split() or ("", "", ""))[:3]
        if not mode.startswith("100"):
            return None
        return git(self.git_dir, "cat-file", "blob", blob).stdout

    def checkout(self, dest: Path) -> None:
        dest.mkdir(parents=True, exist_ok=True)
        index = dest.with_name(f"{dest.name}.index")
        # Left by a process that was killed.
        index.with_name(f"{index.name}.lock").unlink(missing_ok=True)
        env = {"GIT_INDEX_FILE": str(index)}
        for command in (["read-tree", "--reset", "-u", self.identity], ["clean", "-ffdxq"]):
            git(self.git_dir, f"--work-tree={dest}", *command, cwd=dest, env=env)


def git(
    git_dir: Path,
    *words: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout: float = GIT_SECONDS,
    error: type[TestbedError] = BuildError,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run git on a repository, safe from what its or the user's configuration says."""
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    return process.run(
        ["git", *settings, f"--git-dir={git_dir}", *words],
        cwd=cwd,
        env={"GIT_TERMINAL_PROMPT": "0", **(env or {})},
        stdin=stdin,
        timeout=timeout,
        error=error,
        check=check,
    )


def git_directory(path: Path) -> Path:
    """Where git's own files would be, if a path is a work tree or a bare repository."""
    return path / ".git" if (path / ".git").exists() else path


def local(path: Path) -> Path:
    """The git directory of a local repository. Raises SpecError when it is none."""
    git_dir = git_directory(path)
    if git(git_dir, "rev-parse", "--git-dir", check=False).returncode != 0:
        raise SpecError(f"{path}: not a git repository")
    return git_dir


def parse(git_dir: Path, revision: str) -> str | None:
    """The hash that a revision stands for; None when there is none."""
    words = ("rev-parse", "--verify", "--quiet", "--end-of-options", revision)
    return git(git_dir, *words, check=False).stdout.decode().strip() or None


def _revision(spec: GitSource, cache: Path, progress: Progress) -> Source:
    if "://" in spec.repository:
        git_dir = _repository(cache, spec.repository)
        with locked(git_dir.with_suffix(".lock"), progress):
            commit = _fetched(git_dir, spec, progress)
    else:
        try:
            git_dir = local(Path(spec.repository))
        except SpecError as none:
            raise SpecError(f"kernel.git.repository: {none.message}") from none
        commit = parse(git_dir, f"{spec.revision}^{{commit}}")
    tree = commit and parse(git_dir, f"{commit}^{{tree}}")
    if commit is None or tree is None:
        raise SpecError(f"kernel.git.revision: {spec.repository} has no commit `{spec.revision}`")
    label = f"{spec.repository} {spec.revision} ({commit[:12]})"
    return GitTree(tree, f"git:{spec.repository}", label, git_dir)


def _repository(cache: Path, name: str) -> Path:
    """A bare repository of ours."""
    path = cache / "git" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.git"
    owned.make(path)
    git(path, "init", "--quiet", "--bare")
    return path


def _fetched(git_dir: Path, spec: GitSource, progress: Progress) -> str | None:
    """Fetch a revision and return its commit. What a full hash names can not change: it is fetched once."""
    whole_hash = re.fullmatch(r"[0-9a-f]{40}", spec.revision)
    if whole_hash and (commit := parse(git_dir, f"{spec.revision}^{{commit}}")):
        return commit
    progress(f"fetching {spec.revision} from {spec.repository}")
    fetch = ("fetch", "--quiet", "--no-tags", "--force")
    shallow = git(git_dir, *fetch, "--depth=1", "--", spec.repository, spec.revision, check=False)
    if shallow.returncode == 0:
        return parse(git_dir, "FETCH_HEAD^{commit}")
    # A server gives out names and, if it likes, whole hashes; the rest takes its history to work out.
    if re.fullmatch(r"[0-9a-f]{7,40}|.*[~^@].*", spec.revision):
        progress(f"fetching all of {spec.repository}")
        heads, tags = "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*"
        whole = (*fetch, "--depth=2147483647", "--", spec.repository, heads, tags)
        git(git_dir, *whole, timeout=DOWNLOAD_SECONDS, error=HostError)
        return parse(git_dir, f"{spec.revision}^{{commit}}")
    reason = shallow.stderr.decode(errors="replace").strip()
    if "couldn't find remote ref" in reason or "invalid refspec" in reason:
        return None
    raise HostError(f"cannot fetch from {spec.repository}", reason)


# --- local trees ---------------------------------------------------------------------------------


def _local_tree(path: Path, cache: Path, progress: Progress) -> Source:
    """The present state of a directory as a tree object in a repository of ours."""
    if not path.is_dir():
        raise SpecError(f"kernel.tree: {path}: no such directory")
    # Not a matter of taste: `tree: ~` would copy all of a home directory before anybody noticed.
    makefile = path / "Makefile"
    _version(makefile.read_bytes() if makefile.is_file() else None, f"kernel.tree: {path}")
    theirs = path / ".git"
    store = _repository(cache, str(theirs if theirs.exists() else path))
    with locked(store.with_suffix(".lock"), progress):
        index = store / "index"
        index.with_name("index.lock").unlink(missing_ok=True)  # left by a process that was killed
        env = {"GIT_INDEX_FILE": str(index)}
        if theirs.exists():
            progress(f"looking for changes in {path}")
            _borrow(theirs, store)
            env["GIT_OBJECT_DIRECTORY"] = str(store / "objects")
            git(theirs, f"--work-tree={path}", "add", "--all", cwd=path, env=env)
        else:
            _refuse_built(path)
            progress(f"reading {path}")
            git(store, f"--work-tree={path}", "add", "--all", "--force", cwd=path, env=env)
        tree = git(store, "write-tree", env=env).stdout.decode().strip()
    return GitTree(tree, f"tree:{path}", _describe(path, tree), store)


def _borrow(theirs: Path, store: Path) -> None:
    """Give `store` the objects and a copy of the index of a user's repository.

    All that git changes over there is the mtime of objects it finds it need not write, as it does to keep
    them from `git gc`.
    """

    def locate(name: str) -> Path:
        words = ("rev-parse", "--path-format=absolute", "--git-path", name)
        return Path(git(theirs, *words).stdout.decode().rstrip("\n"))

    (store / "objects/info").mkdir(exist_ok=True)
    (store / "objects/info/alternates").write_text(f"{locate('objects')}\n")
    (store / "index").unlink(missing_ok=True)
    if (index := locate("index")).exists():
        # With its mtime: a file that changed after that is one which git has to read.
        shutil.copy2(index, store / "index")


def _refuse_built(path: Path) -> None:
    for trace in (".config", "include/config"):
        if (path / trace).exists():
            raise SpecError(
                f"kernel.tree: {path} has been built in (it has {trace}), which kbuild does not take",
                f"make -C {path} mrproper",
            )


def _describe(path: Path, tree: str) -> str:
    head = parse(path / ".git", "HEAD") if (path / ".git").exists() else None
    if head is None:
        return f"{path} ({tree[:12]})"
    changed = parse(path / ".git", f"{head}^{{tree}}") != tree
    return f"{path} ({head[:12]}{f' with changes, {tree[:12]}' if changed else ''})"
