# SPDX-License-Identifier: GPL-2.0-only
"""The JSON Schema of experiment files takes what testbed takes, and tells an editor what is wrong."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from testbed.experiment import model as experiment
from testbed.experiment import own, schema, workloads
from tests.unit.recorded import REPOSITORY, experiment_data

SCHEMA = schema()
VALIDATOR = Draft202012Validator(SCHEMA)
EXPERIMENTS = sorted((REPOSITORY / "experiments").rglob("*.yaml"))

Change = Callable[[Any], object]


def test_it_is_a_schema_and_says_of_which_kind() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_experiments_of_the_repository_are_valid(path: Any) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text()))


def test_there_are_experiments() -> None:
    assert len(EXPERIMENTS) >= 3


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(matrix={"guest.vcpus": [2, 8], "workload": [{"memcg": {}}]}),
        lambda e: e.update(kernel={"git": {"repository": "/linux", "revision": "v6.1"}}),
        lambda e: e.update(kernel={"tree": "../linux", "config": ["guest", "./mine.config"]}),
        lambda e: e.update(workload={"command": ["stress", "{seed}"], "files": ["./x:bin/x"], "seconds": 2}),
        lambda e: e["guest"].update(balloon={"ramp": {"to": "96M", "at": 1, "over": 0.5}}, swap="0M"),
        lambda e: e["guest"].update(memory="131072K", boot_memory="1GiB"),
        lambda e: e.update(phases={"warm": 0, "rest": 1.5}, minutes=5, sequential=False),
        lambda e: e["arms"]["patched"].update(sysfs={"kernel/mm/lru_gen/enabled": "y"}),
        lambda e: e["arms"]["patched"].update(command_line=["transparent_hugepage=always", "quiet"]),
        lambda e: e.update(first_seed=101),
    ],
)
def test_what_testbed_takes_is_valid(change: Change) -> None:
    said = experiment_data()
    change(said)
    VALIDATOR.validate(said)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda e: e.update(seedz=3), []),
        (lambda e: e.pop("arms"), []),
        (lambda e: e.update(seeds="3"), ["seeds"]),
        (lambda e: e.update(seeds=0), ["seeds"]),
        (lambda e: e.update(seeds=2.5), ["seeds"]),
        (lambda e: e.update(mode="fast"), ["mode"]),
        (lambda e: e.update(alpha=0.5), ["alpha"]),
        (lambda e: e.update(name="No Name"), ["name"]),
        (lambda e: e.update(arms={}), ["arms"]),
        (lambda e: e["arms"].update({"Bad Name": {}}), ["arms"]),
        (lambda e: e["arms"]["patched"].update(patch=["x"]), ["arms", "patched"]),
        (lambda e: e["arms"]["patched"].update(patches="instrumentation"), ["arms", "patched", "patches"]),
        (lambda e: e["arms"]["patched"].update(sysctl={"swappiness": 1}), ["arms", "patched", "sysctl"]),
        (lambda e: e["arms"]["patched"].update(command_line=["a b"]), ["arms", "patched", "command_line", 0]),
        (lambda e: e["arms"]["patched"].update(command_line="quiet"), ["arms", "patched", "command_line"]),
        (lambda e: e.update(first_seed=0), ["first_seed"]),
        (lambda e: e["guest"].update(memory=128), ["guest", "memory"]),
        (lambda e: e["guest"].update(memory="128"), ["guest", "memory"]),
        (lambda e: e["guest"].update(vcpu=8), ["guest"]),
        (lambda e: e["guest"].update(vcpus=65), ["guest", "vcpus"]),
        (lambda e: e["guest"].update(mglru="on"), ["guest", "mglru"]),
        (lambda e: e["primary"]["wait_share"].update(margin=5), ["primary", "wait_share", "margin"]),
        (lambda e: e.update(primary={name: {} for name in "abcd"}), ["primary"]),
        (lambda e: e.update(matrix={"guest.vcpus": 2}), ["matrix", "guest.vcpus"]),
        (lambda e: e.update(matrix={"guest.vcpus": []}), ["matrix", "guest.vcpus"]),
    ],
)
def test_a_mistake_is_found_where_it_is(change: Change, place: list[str]) -> None:
    said = experiment_data()
    change(said)
    errors = list(VALIDATOR.iter_errors(said))
    assert [list(error.absolute_path) for error in errors] == [place]


# --- what an editor shows ------------------------------------------------------------------------


def models() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "Experiment", {key: value for key, value in SCHEMA.items() if key != "$defs"}
    yield from SCHEMA["$defs"].items()


# Keys that no field can be called.
ALIASES = {"path": "json"}


def docstrings() -> dict[str, tuple[str, dict[str, str]]]:
    """Class -> its docstring, and key -> what stands beneath the key, as the source has them."""
    found = {}
    for module in (experiment, workloads, own):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                keys = {
                    ALIASES.get(before.target.id, before.target.id): inspect.cleandoc(after.value.value)
                    for before, after in zip(node.body, node.body[1:], strict=False)
                    if isinstance(before, ast.AnnAssign)
                    and isinstance(before.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and isinstance(after.value.value, str)
                }
                found[node.name] = (ast.get_docstring(node) or "", keys)
    return found


def test_what_stands_beneath_a_key_describes_it() -> None:
    told = 0
    known = docstrings()
    for name, model in models():
        about, keys = known[name]
        assert about and model["description"] == about, name
        for key, text in keys.items():
            assert model["properties"][key]["description"] == text, (name, key)
            told += 1
    assert told >= 30


# Of these the name says it all, or the model that they refer to.
PLAIN = {"name", "description", "mode", "seconds", "tasks", "pages", "order", "footprint", "swappiness", "to"}
PLAIN |= {"vcpus", "url", "sha256", "repository", "revision", "debian", "tree", "watermark_scale_factor"}
PLAIN |= {"hogs", "at", "over", "period", "boot", "balloon", "workload"}


def test_every_other_key_is_plain_or_refers_to_a_model() -> None:
    for name, model in models():
        for key, said in model["properties"].items():
            refers = "$ref" in said or any("$ref" in choice for choice in said.get("anyOf", ()))
            assert "description" in said or refers or key in PLAIN, f"{name}.{key} has no description"


def test_every_default_is_what_one_may_write() -> None:
    defaults = 0
    for name, model in models():
        for key, said in model["properties"].items():
            if "default" in said:
                defaults += 1
                Draft202012Validator({**said, "$defs": SCHEMA["$defs"]}).validate(said["default"])
            assert "default" in said or said.get("default", 0) is not None, (name, key)
    assert defaults >= 40
    assert SCHEMA["$defs"]["GuestSpec"]["properties"]["memory"]["default"] == "128M"


def test_all_keys_are_there_and_no_others() -> None:
    for name, model in models():
        kind = getattr(experiment, name, None) or getattr(workloads, name)
        assert list(model["properties"]) == [ALIASES.get(key, key) for key in kind.model_fields]
        assert model["additionalProperties"] is False


def test_the_schema_is_made_anew_each_time() -> None:
    changed = copy.deepcopy(SCHEMA)
    schema()["properties"].clear()
    assert schema() == changed
