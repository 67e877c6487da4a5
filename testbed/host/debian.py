# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages without installing them: from any suite of the mirror that this machine uses.

apt does the work, with a configuration and lists of its own in the cache, so that the system's are not
touched and no root is needed; it also checks the archive's signatures. Standard library only.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.host import files, owned, process
from testbed.host.errors import HostError

# The newest version in any of them is taken; names such as linux-source-6.1 are in few.
SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid")
# Between the releases' updates a kernel is newest there; it is also where older ones are kept.
SECURITY_SUITES = ("bookworm-security", "trixie-security")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FETCH_SECONDS = 900.0


@dataclass(frozen=True)
class Package:
    """One version of a package, and the hash of its .deb."""

    name: str
    version: str
    sha256: str


def mirror(archive: str = "debian") -> str | None:
    """The mirror of a Debian archive in this machine's apt configuration; None on another distribution."""
    if shutil.which("apt-get") is None or not KEYRING.exists():
        return None
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    done = process.run(listing, timeout=60, error=HostError, check=False)
    # By its path, since apt knows an archive's origin only once it has fetched its lists.
    uris = [uri for uri in done.stdout.decode().split() if uri.rstrip("/").endswith(f"/{archive}")]
    return uris[0] if uris else None


def fetch_pinned(package: Package, cache: Path, progress: Callable[[str], None]) -> Path:
    """Download exactly this package; return its .deb in the cache.

    Raises HostError when there is no mirror, it is not published any more, or its hash differs.
    """
    deb = fetch(f"{package.name}={package.version}", cache, progress)
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    if digest != package.sha256:
        deb.unlink()
        raise HostError(f"{deb.name}: sha256 is {digest}, not {package.sha256}")
    return deb


def fetch(package: str, cache: Path, progress: Callable[[str], None]) -> Path:
    """Download a package, NAME or NAME=VERSION; return its .deb in the cache.

    The caller keeps others from doing the same. Raises HostError when there is no mirror or the package
    is in none of SUITES and SECURITY_SUITES.
    """
    apt = _apt(cache, package)
    progress(f"fetching {package} from the distribution's mirror")
    # A suite that the mirror lacks is an error to apt, but none to us if another has the package.
    process.run(["apt-get", *apt, "update"], timeout=FETCH_SECONDS, error=HostError, check=False)
    debs = cache / "apt" / "deb"
    process.run(["apt-get", *apt, "download", package], cwd=debs, timeout=FETCH_SECONDS, error=HostError)
    name, _, exactly = package.partition("=")
    # In the name of a file a colon is escaped.
    pattern = f"{name}_{exactly.replace(':', '%3a') or '*'}_*.deb"
    newest = max(debs.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise HostError(f"{package}: apt has downloaded no package of that name")
    return newest


def versions(
    packages: Sequence[str], cache: Path, progress: Callable[[str], None] = lambda _: None
) -> dict[str, list[str]]:
    """The versions of packages in all suites, the newest first. Raises HostError when there is no mirror."""
    apt = _apt(cache, ", ".join(packages))
    with files.locked(cache / "debian" / "lock", progress):
        process.run(["apt-get", *apt, "update"], timeout=FETCH_SECONDS, error=HostError, check=False)
        told = process.run(["apt-cache", *apt, "madison", *packages], timeout=FETCH_SECONDS, error=HostError)
    found: dict[str, dict[str, None]] = {package: {} for package in packages}
    for row in (line.split("|") for line in told.stdout.decode().splitlines()):
        if len(row) > 1:
            found.setdefault(row[0].strip(), {})[row[1].strip()] = None
    return {package: list(known) for package, known in found.items()}


def _apt(cache: Path, package: str) -> list[str]:
    """The options that make apt one of our own. Raises HostError when there is no mirror."""
    uri = mirror()
    if uri is None:
        raise HostError(f"{package} cannot be had: apt knows no Debian mirror here")
    room = owned.make(cache / "apt")
    for name in ("lists/partial", "archives/partial", "deb"):
        (room / name).mkdir(parents=True, exist_ok=True)
    sources = room / "sources.list"
    # Mirrors that have both have them side by side.
    security = mirror("debian-security") or f"{uri.rstrip('/')}-security"
    archives = ((uri, SUITES), (security, SECURITY_SUITES))
    lines = (
        f"deb [signed-by={KEYRING}] {where} {suite} main\n" for where, names in archives for suite in names
    )
    sources.write_text("".join(lines))
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": room / "lists",
        "Dir::Cache": room,
        # What is installed here has no say in which version is the newest.
        "Dir::State::Status": "/dev/null",
        "APT::Default-Release": "",
        # Or apt would change to a user who may not enter the cache.
        "APT::Sandbox::User": "root",
    }
    return ["-qq", *(f"-o{key}={value}" for key, value in options.items())]


def version(deb: Path) -> str:
    """The version of a .deb."""
    field = ["dpkg-deb", "--field", str(deb), "Version"]
    return process.run(field, timeout=60, error=HostError).stdout.decode().strip()


def unpack(deb: Path, target: Path) -> None:
    """Unpack a .deb's files into a directory, to what is there already."""
    target.mkdir(parents=True, exist_ok=True)
    process.run(["dpkg-deb", "--extract", str(deb), str(target)], timeout=FETCH_SECONDS, error=HostError)
