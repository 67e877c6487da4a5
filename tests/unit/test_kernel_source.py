# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.experiment import GitSource, KernelSpec, TarballSource
from testbed.host import debian, process
from testbed.host.errors import HostError, SpecError
from testbed.kernel import source
from testbed.kernel.source import Source

FILES = {
    "Makefile": "# a comment\nVERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 192\nEXTRAVERSION = -x\n",
    "mm/vmscan.c": "int vmscan;\n",
    "mm/page_alloc.c": "int page_alloc;\n",
    "scripts/run.sh": "#!/bin/sh\n",
    ".gitignore": "*.o\n",
}


def grow(top: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (top / "scripts/run.sh").chmod(0o755)
    (top / "link").symlink_to("mm")
    return top


def contents(top: Path) -> dict[str, tuple[int, bytes]]:
    """Path -> mode and content of all files."""
    return {
        str(path.relative_to(top)): (path.stat().st_mode, path.read_bytes())
        for path in top.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def stamps(top: Path) -> dict[str, tuple[int, int]]:
    """Path -> inode and mtime: what shows that a file was touched."""
    paths = [path for path in top.rglob("*") if not path.is_dir()]
    return {str(p.relative_to(top)): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in paths}


def git(top: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, "-C", top, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def _plain_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return grow(tmp_path / "linux-6.1.192")


@pytest.fixture
def tarball(tree: Path) -> Path:
    path = tree.with_name("linux-6.1.192.tar.xz")
    subprocess.run(["tar", "-cJf", path, "-C", tree.parent, tree.name], check=True)
    return path


@pytest.fixture
def repository(tree: Path) -> Path:
    """Two commits; the first is tagged v1."""
    git(tree, "init", "-q", "-b", "main")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "one")
    git(tree, "tag", "v1")
    (tree / "mm/vmscan.c").write_text("int vmscan_two;\n")
    git(tree, "commit", "-qam", "two")
    return tree


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def from_tarball(url: str | Path, sha256: str, cache: Path) -> Source:
    return source.resolve(KernelSpec(tarball=TarballSource(url=str(url), sha256=sha256)), cache)


def from_git(repository: str | Path, revision: str, cache: Path) -> Source:
    spec = GitSource(repository=str(repository), revision=revision)
    return source.resolve(KernelSpec(git=spec), cache)


def from_tree(tree: Path, cache: Path) -> Source:
    return source.resolve(KernelSpec(tree=tree), cache)


# --- tarballs ------------------------------------------------------------------------------------


def test_a_tarball_is_unpacked_once_and_then_not_needed(tarball: Path, tree: Path, cache: Path) -> None:
    sha256 = digest(tarball)
    first = from_tarball(tarball, sha256, cache)
    tarball.unlink()
    again = from_tarball(tarball, sha256, cache)
    assert again == first
    assert (first.version, first.label) == ("6.1.192", "linux-6.1.192.tar.xz")
    first.checkout(cache / "work")
    assert contents(cache / "work") == contents(tree)
    assert (cache / "work/link").readlink() == Path("mm")


def test_processes_that_want_the_same_tarball_unpack_it_once(tarball: Path, cache: Path) -> None:
    spec = KernelSpec(tarball=TarballSource(url=str(tarball), sha256=digest(tarball)))
    said: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: source.resolve(spec, cache, said.append), range(4)))
    assert len(set(map(id, results))) == 4
    assert len({result.identity for result in results}) == 1
    assert len([line for line in said if line.startswith("unpacking")]) == 1


def test_what_a_killed_process_left_of_unpacking_is_no_obstacle(
    tarball: Path, tree: Path, cache: Path
) -> None:
    sha256 = digest(tarball)
    left = cache / "sources" / f"{sha256}.20261129.testbed.tmp"
    grow(left / "half", {**FILES, "mm/vmscan.c": "int vms"})
    from_tarball(tarball, sha256, cache).checkout(cache / "work")
    assert contents(cache / "work") == contents(tree)
    assert not left.exists()


def test_a_wrong_hash_is_refused_with_the_actual_one(tarball: Path, cache: Path) -> None:
    for url in (str(tarball), f"file://{tarball}"):
        with pytest.raises(SpecError, match=rf"kernel\.tarball\.sha256: .*{digest(tarball)}"):
            from_tarball(url, "0" * 64, cache)
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.fixture
def server(tarball: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tarball.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_a_tarball_is_downloaded_and_nothing_but_its_tree_kept(
    server: str, tarball: Path, tree: Path, cache: Path
) -> None:
    found = from_tarball(f"{server}/{tarball.name}", digest(tarball), cache)
    found.checkout(cache / "work")
    assert contents(cache / "work") == contents(tree)
    assert [path.name for path in (cache / "sources").iterdir() if path.suffix != ".lock"] == [
        digest(tarball)
    ]


def test_a_download_that_fails_names_the_url(server: str, cache: Path) -> None:
    with pytest.raises(HostError, match=r"nowhere\.tar\.xz: .*404"):
        from_tarball(f"{server}/nowhere.tar.xz", "0" * 64, cache)
    with pytest.raises(SpecError, match=r"kernel\.tarball\.url: ftp://"):
        from_tarball("ftp://example.org/linux.tar.xz", "0" * 64, cache)
    for nowhere in ("/nowhere/linux.tar.xz", "/dev/zero", "file:///nowhere", "file:///dev/zero"):
        with pytest.raises(SpecError, match=rf"kernel\.tarball\.url: {nowhere}: no such file"):
            from_tarball(nowhere, "0" * 64, cache)


def test_a_server_that_speaks_something_else_is_named(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 ready\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/linux.tar.xz"
        with pytest.raises(HostError, match=f"{url}: 220 ready"):
            from_tarball(url, "0" * 64, cache)


def test_a_tarball_of_something_else_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bash").mkdir()
    (tmp_path / "bash/Makefile").write_text("all:\n")
    path = tmp_path / "bash.tar"
    subprocess.run(["tar", "-cf", path, "-C", tmp_path, "bash"], check=True)
    with pytest.raises(SpecError, match=r"kernel\.tarball\.url: .*not a kernel: it has no Makefile"):
        from_tarball(path, digest(path), cache)
    subprocess.run(["tar", "-cf", path, "-C", tmp_path / "bash", "Makefile"], check=True)
    with pytest.raises(SpecError, match=r"kernel\.tarball\.url: bash\.tar .*single top directory"):
        from_tarball(path, digest(path), cache)


def test_a_debian_package_is_its_tarball_and_its_version(
    tarball: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = tmp_path / "bin/dpkg-query"
    query.parent.mkdir()
    query.write_text("#!/bin/sh\necho 6.1.192-2\n")
    query.chmod(0o755)
    monkeypatch.setenv("PATH", f"{query.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(source, "DEBIAN_SOURCES", tmp_path)
    tarball.rename(tmp_path / "linux-source-6.1.tar.xz")
    found = source.resolve(KernelSpec(debian="linux-source-6.1"), cache)
    assert (found.label, found.version) == ("linux-source-6.1 6.1.192-2", "6.1.192")


def test_the_versions_of_all_packages_take_one_look_at_the_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(words: list[str], **_: object) -> SimpleNamespace:
        asked.append(words[-1] if words[0] == "apt-get" else " ".join(words))
        rows = b"l-6.1 | 6.1.192-1 | m\nl-6.12 | 6.12.9-1 | m\nl-6.1 | 6.1.176-1 | m\nl-6.1 | 6.1.192-1 | n\n"
        return SimpleNamespace(stdout=rows)

    monkeypatch.setattr(debian, "_apt", lambda *_: [])
    monkeypatch.setattr(process, "run", run)
    (tmp_path / "debian").mkdir()
    assert debian.versions(["l-6.1", "l-6.12", "l-9"], tmp_path) == {
        "l-6.1": ["6.1.192-1", "6.1.176-1"],
        "l-6.12": ["6.12.9-1"],
        "l-9": [],
    }
    assert asked == ["update", "apt-cache madison l-6.1 l-6.12 l-9"]


def test_another_version_of_a_debian_package_is_fetched_once(
    tarball: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(package: str, *_: object) -> Path:
        asked.append(package)
        deb = tmp_path / "x.deb"
        deb.write_text(package.partition("=")[2] or "6.1.200-1")
        return deb

    def unpack(_deb: Path, root: Path) -> None:
        there = root / "usr/src"
        there.mkdir(parents=True)
        shutil.copy(tarball, there / "linux-source-6.1.tar.xz")

    monkeypatch.setattr(debian, "fetch", fetch)
    monkeypatch.setattr(debian, "unpack", unpack)
    monkeypatch.setattr(debian, "version", Path.read_text)
    newest, older, newest_again = (
        source.resolve(KernelSpec(debian=f"linux-source-6.1{version}"), cache).label
        for version in ("", "=6.1.190-1", "=6.1.200-1")
    )
    assert newest == newest_again == "linux-source-6.1 6.1.200-1"
    assert older == "linux-source-6.1 6.1.190-1"
    assert asked == ["linux-source-6.1", "linux-source-6.1=6.1.190-1"]


def test_a_package_that_is_not_installed_comes_with_the_remedy(cache: Path) -> None:
    with pytest.raises(HostError, match=r"apt-get install linux-source-99\.1"):
        source.resolve(KernelSpec(debian="linux-source-99.1"), cache)


# --- checking out --------------------------------------------------------------------------------


@pytest.fixture(params=["tarball", "git", "tree"])
def kind(request: pytest.FixtureRequest, cache: Path) -> Source:
    if request.param == "tarball":
        path: Path = request.getfixturevalue("tarball")
        return from_tarball(path, digest(path), cache)
    if request.param == "git":
        return from_git(request.getfixturevalue("repository"), "v1", cache)
    return from_tree(request.getfixturevalue("tree"), cache)


def test_a_checkout_repairs_what_differs_and_touches_nothing_else(kind: Source, cache: Path) -> None:
    work = cache / "work/src"
    kind.checkout(work)
    whole, before = contents(work), stamps(work)
    replacement = work / "replacement"
    replacement.write_text("int changed;\n")
    replacement.replace(work / "mm/vmscan.c")
    (work / "mm/page_alloc.c").unlink()
    (work / "scripts/run.sh").unlink()
    (work / "scripts").rmdir()
    (work / "scripts").write_text("a file in the place of a directory\n")
    (work / "new/dir").mkdir(parents=True)
    (work / "new/dir/file.o").write_text("")
    kind.checkout(work)
    assert contents(work) == whole
    assert not (work / "new").exists()
    touched = {name for name, stamp in stamps(work).items() if stamp != before[name]}
    assert touched == {"mm/vmscan.c", "mm/page_alloc.c", "scripts/run.sh"}
    # make would not see a file that is older than its object.
    assert all(stamps(work)[name][1] > before[name][1] for name in touched)


def test_reading_gives_pristine_files_and_only_files(kind: Source, cache: Path) -> None:
    assert kind.read("mm/vmscan.c") == b"int vmscan;\n"
    for path in ("mm", "mm/none.c", "link", "link/vmscan.c", "none/none"):
        assert kind.read(path) is None, path


# --- git -----------------------------------------------------------------------------------------


def test_revisions_are_trees_and_share_a_work_tree(repository: Path, cache: Path) -> None:
    work = cache / "work"
    one, two = (from_git(repository, revision, cache) for revision in ("v1", "main"))
    assert one.identity == git(repository, "rev-parse", "v1^{tree}")
    assert one.family == two.family
    assert one.label.endswith(f"v1 ({git(repository, 'rev-parse', 'v1')[:12]})")
    one.checkout(work)
    before = stamps(work)
    two.checkout(work)
    assert (work / "mm/vmscan.c").read_text() == "int vmscan_two;\n"
    assert {name for name, stamp in stamps(work).items() if stamp != before[name]} == {"mm/vmscan.c"}


def test_a_checkout_that_was_killed_is_taken_up(repository: Path, cache: Path) -> None:
    work = cache / "work"
    from_git(repository, "v1", cache).checkout(work)
    (cache / "work.index.lock").write_text("")
    from_git(repository, "main", cache).checkout(work)
    assert (work / "mm/vmscan.c").read_text() == "int vmscan_two;\n"


def test_the_users_repository_is_only_read(repository: Path, cache: Path) -> None:
    hook = repository / ".git/hooks/post-index-change"
    hook.write_text("#!/bin/sh\ntouch .git/hook-ran\n")
    hook.chmod(0o755)
    (repository / "mm/vmscan.c").write_text("int uncommitted;\n")
    (repository / "mm/untracked.c").write_text("int untracked;\n")
    before = contents(repository)
    from_git(repository, "HEAD~1", cache).checkout(cache / "a")
    from_tree(repository, cache).checkout(cache / "b")
    assert contents(repository) == before


def test_a_revision_or_repository_that_is_not_there_is_refused(
    repository: Path, cache: Path, tmp_path: Path
) -> None:
    for revision in ("v99", "--help", "v1:Makefile"):
        with pytest.raises(SpecError, match=r"kernel\.git\.revision: .*no commit"):
            from_git(repository, revision, cache)
    with pytest.raises(SpecError, match=r"kernel\.git\.repository: .*not a git repository"):
        from_git(tmp_path / "none", "v1", cache)


def test_a_remote_revision_is_fetched(repository: Path, cache: Path) -> None:
    url = f"file://{repository}"
    first = git(repository, "rev-parse", "v1")
    for revision in ("v1", "main~1", first[:9], first):
        found = from_git(url, revision, cache)
        assert found.read("mm/vmscan.c") == b"int vmscan;\n"
    assert from_git(url, "main", cache).read("mm/vmscan.c") == b"int vmscan_two;\n"
    with pytest.raises(SpecError, match=r"kernel\.git\.revision: .*`v99`"):
        from_git(url, "v99", cache)
    repository.rename(repository.with_name("gone"))
    # A hash is fetched once; a name may have moved.
    assert from_git(url, first, cache).read("mm/vmscan.c") == b"int vmscan;\n"
    with pytest.raises(HostError, match=r"cannot fetch from file://"):
        from_git(url, "main", cache)


# --- local trees ---------------------------------------------------------------------------------


def test_a_tree_in_git_is_its_present_state(repository: Path, cache: Path) -> None:
    clean = from_tree(repository, cache)
    assert clean.identity == git(repository, "rev-parse", "HEAD^{tree}")
    assert "changes" not in clean.label
    (repository / "mm/vmscan.c").write_text("int uncommitted;\n")
    (repository / "mm/untracked.c").write_text("int untracked;\n")
    (repository / "mm/page_alloc.c").unlink()
    (repository / "mm/ignored.o").write_text("")
    dirty = from_tree(repository, cache)
    assert "with changes" in dirty.label
    dirty.checkout(cache / "work")
    expected = {name: data for name, data in contents(repository).items() if not name.startswith(".git/")}
    del expected["mm/ignored.o"]
    assert contents(cache / "work") == expected
    # What is fixed stays fixed, whatever the user does next.
    (repository / "mm/vmscan.c").write_text("int later;\n")
    assert dirty.read("mm/vmscan.c") == b"int uncommitted;\n"
    assert from_tree(repository, cache).identity != dirty.identity


def test_a_linked_worktree_is_a_tree_in_git(repository: Path, cache: Path) -> None:
    other = repository.with_name("other")
    git(repository, "worktree", "add", "-q", str(other), "v1")
    (other / "mm/ignored.o").write_text("")
    assert from_tree(other, cache).identity == git(repository, "rev-parse", "v1^{tree}")


def test_a_plain_tree_is_named_by_its_content(tree: Path, cache: Path) -> None:
    (tree / "mm/ignored.o").write_text("not ignored where there is no git\n")
    first = from_tree(tree, cache)
    assert from_tree(tree, cache) == first
    assert first.read("mm/ignored.o") is not None
    (tree / "mm/vmscan.c").write_text("int edited;\n")
    second = from_tree(tree, cache)
    assert (second.identity != first.identity, second.family) == (True, first.family)
    (tree / "mm/vmscan.c").write_text(FILES["mm/vmscan.c"])
    assert from_tree(tree, cache).identity == first.identity


def test_a_plain_tree_that_was_built_in_is_refused_with_the_remedy(tree: Path, cache: Path) -> None:
    (tree / ".config").write_text("")
    with pytest.raises(SpecError, match=r"kernel\.tree: .*\.config.*\n.*mrproper"):
        from_tree(tree, cache)


def test_a_directory_that_is_no_kernel_is_refused_before_it_is_read(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(SpecError, match=r"kernel\.tree: .*no such directory"):
        from_tree(tmp_path / "none", cache)
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("x")
    with pytest.raises(SpecError, match=r"kernel\.tree: .*not a kernel"):
        from_tree(home, cache)
    assert not cache.exists()
