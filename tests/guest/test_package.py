# SPDX-License-Identifier: GPL-2.0-only
"""An installed package, away from the checkout, compares kernels: the same as the checkout's own."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import yaml

from testbed.experiment import load
from testbed.host.paths import REPOSITORY
from testbed.ledger.ledger import Ledger
from testbed.trials import prepare
from tests.guest.conftest import SOURCE, Lab
from tests.guest.test_experiment import workload
from tests.installed import install


def test_an_installed_package_measures_the_same_as_the_checkout(lab: Lab, tmp_path: Path) -> None:
    installed = install(tmp_path / "package")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = installed.testbed("init", "mine.yaml", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    file = elsewhere / "mine.yaml"
    data = yaml.safe_load(file.read_text())
    changes = {"seeds": 1, "workload": workload(seconds=0.5), "kernel": {**data["kernel"], "debian": SOURCE}}
    file.write_text(yaml.safe_dump({**data, **changes}))

    done = installed.testbed("compare", "mine.yaml", "--json", cwd=elsewhere, timeout=300)
    assert done.returncode == 0, done.stderr
    # Of the cache, in which kernels are by their content: nothing was built for the data's being elsewhere.
    assert "building " not in done.stderr and "2 trials: 2 to run" in done.stderr
    report = json.loads(done.stdout)
    provenance = report["provenance"]
    keys = {arm: kernel["build_key"] for arm, kernel in provenance["kernels"].items()}
    assert keys == {arm: lab.kernels[arm].key for arm in ("unpatched", "patched")}
    assert provenance["initramfs"]["sha256"] == lab.image.sha256
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert provenance["testbed"] == project["version"]

    # The checkout takes these trials for its own.
    ours = prepare.prepare(load(file), lab.cache, lambda _text: None)
    with Ledger.open(elsewhere / "results" / "example") as ledger:
        records = ledger.records()
    assert {trial.id for trial in ours.trials} == {record.trial for record in records}
    misses = {name: arm["metrics"]["misses"]["values"]["1"] for name, arm in report["arms"].items()}
    assert misses["unpatched"] > 0 == misses["patched"]
