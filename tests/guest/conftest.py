# SPDX-License-Identifier: GPL-2.0-only
"""Real guests on the kernels of the repository's own experiment, built here or found in the cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.experiment import Experiment, MiB, load
from testbed.guest import image
from testbed.guest.image import Image
from testbed.guest.live import LiveGuest
from testbed.guest.shape import Shape
from testbed.host.errors import HostError
from testbed.host.paths import REPOSITORY, cache_directory
from testbed.kernel import series
from testbed.kernel.build import Kernel
from testbed.kernel.series import Line
from testbed.kernel.source import Source
from testbed.ledger.document import parsed
from testbed.ledger.manifest import Manifest
from testbed.trials import prepare
from tests.guest import subject

EXPERIMENT = REPOSITORY / "experiments" / "reclaim-capture.yaml"
PUBLISHED = EXPERIMENT.with_suffix(".manifest.json")
# The very package that the published result was measured with, so that a newer one costs no further kernels.
SOURCE = parsed(Manifest, PUBLISHED.read_bytes()).pinned().kernel.debian
# Of a test that builds kernels itself: no shorter than a build may take.
BUILDS = pytest.mark.timeout(3600)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.guest)


def repository_data(name: str = EXPERIMENT.stem) -> dict[str, Any]:
    """An experiment of the repository, as its file has it, of SOURCE."""
    data = yaml.safe_load(EXPERIMENT.with_name(f"{name}.yaml").read_text())
    return {**data, "kernel": {**data["kernel"], "debian": SOURCE}}


@dataclass(frozen=True)
class Lab:
    """What a guest is made of."""

    experiment: Experiment
    kernels: Mapping[str, Kernel]
    image: Image
    cache: Path

    def guest(self, cmdline: str = "", arm: str = "unpatched", vcpus: int = 2) -> LiveGuest:
        shape = Shape("tcg", vcpus, 512 * MiB, cmdline)
        return LiveGuest(shape, self.kernels[arm].vmlinux, self.image.path)


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Says what takes minutes on an empty cache, or it would look as if nothing happened."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def past_capture(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", file=sys.stderr, flush=True)

    return past_capture


@pytest.fixture(scope="session")
def lab(tell: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    directory, cache = tmp_path_factory.mktemp("lab"), cache_directory()
    (directory / EXPERIMENT.name).write_text(yaml.safe_dump(repository_data(), sort_keys=False))
    experiment = load(directory / EXPERIMENT.name)
    return Lab(experiment, prepare.kernels(experiment, cache, tell), image.build(cache), cache)


@pytest.fixture(scope="module", params=series.lines(), ids=lambda line: str(line.directory))
def line(request: pytest.FixtureRequest) -> Line:
    """Each of the kernel lines."""
    assert isinstance(request.param, Line)
    return request.param


@pytest.fixture(scope="module")
def pristine(line: Line) -> Source:
    """Its source. Debian's newer suites, which have some of them, may be out of reach."""
    try:
        return subject.tree(line)
    except HostError as lacking:
        pytest.skip(f"left out: {lacking.message}")
