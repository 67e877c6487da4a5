# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from pathlib import Path

import pytest

from testbed.host.errors import SpecError
from testbed.kernel import kconfig


def test_the_last_fragment_to_mention_a_symbol_wins() -> None:
    first = "# a comment\n\nCONFIG_SMP=y\nCONFIG_NR_CPUS=64\nCONFIG_SWAP=y\n"
    second = '# CONFIG_SMP is not set\nCONFIG_SWAP=n\nCONFIG_CMDLINE="a \\"b\\" c"\nCONFIG_BASE=0xfF\n'
    assert kconfig.merge([("first", first), ("second", second)]) == {
        "CONFIG_SMP": "# CONFIG_SMP is not set",
        "CONFIG_NR_CPUS": "CONFIG_NR_CPUS=64",
        "CONFIG_SWAP": "# CONFIG_SWAP is not set",
        "CONFIG_CMDLINE": 'CONFIG_CMDLINE="a \\"b\\" c"',
        "CONFIG_BASE": "CONFIG_BASE=0xfF",
    }


@pytest.mark.parametrize(
    "line",
    ["SMP=y", "CONFIG_SMP = y", "CONFIG_SMP=yes", "CONFIG_SMP", 'CONFIG_X="open', "CONFIG_SMP=y # why"],
)
def test_a_line_that_kconfig_would_pass_over_is_refused_with_its_place(line: str) -> None:
    with pytest.raises(SpecError, match=r"kernel\.config: mine:3: ") as refused:
        kconfig.merge([("mine", f"# one\nCONFIG_A=y\n{line}\n")])
    assert line in str(refused.value)


def test_lost_options_are_named_with_what_became_of_them() -> None:
    text = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\nCONFIG_N=4\n# CONFIG_D is not set\nCONFIG_E=n\n"
    requested = kconfig.merge([("f", text)])
    dotconfig = "#\n# Linux 6.1\n#\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=8\nCONFIG_E=m\n"
    assert kconfig.lost(requested, dotconfig) == [
        "CONFIG_B=y (# CONFIG_B is not set)",
        "CONFIG_C=y (absent)",
        "CONFIG_N=4 (CONFIG_N=8)",
        "# CONFIG_E is not set (CONFIG_E=m)",
    ]


def test_all_survived_is_the_empty_list() -> None:
    assert kconfig.lost({"CONFIG_A": "CONFIG_A=y"}, "CONFIG_A=y\n") == []


def test_fragments_come_by_name_or_by_path_in_order(tmp_path: Path) -> None:
    (tmp_path / "guest.config").write_text("CONFIG_A=y\n")
    own = tmp_path / "elsewhere" / "own.config"
    own.parent.mkdir()
    own.write_text("CONFIG_B=y\n")
    loaded = kconfig.load([str(own), "guest"], "6.1.7", tmp_path)
    assert loaded == [(str(own), "CONFIG_B=y\n"), ("guest", "CONFIG_A=y\n")]


def test_an_unknown_fragment_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "reclaim.config").write_text("")
    with pytest.raises(SpecError, match=r"kernel\.config: .*`reclam`.*\n.*did you mean `reclaim`"):
        kconfig.load(["reclam"], "6.1.7", tmp_path)
    with pytest.raises(SpecError, match=r"there are: reclaim"):
        kconfig.load(["zzz"], "6.1.7", tmp_path)


def test_a_fragment_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"kernel\.config: .*gone\.config"):
        kconfig.load([str(tmp_path / "gone.config")], "6.1.7")


@pytest.mark.parametrize(
    ("name", "reason"), [("zero.config", "is not a regular file"), ("huge.config", "is larger than 1 MiB")]
)
def test_a_fragment_is_a_regular_file_of_some_size(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "zero.config").symlink_to("/dev/zero")
    (tmp_path / "huge.config").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(SpecError, match=rf"kernel\.config: .*{name}: {reason}$"):
        kconfig.load([str(tmp_path / name)], "6.1.7")


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("6.1.192", "CONFIG_A=1"),
        ("6.9", "CONFIG_A=2"),
        ("6.10.1", "CONFIG_A=2"),
        ("7.0.0", "CONFIG_A=3"),
        ("10.0", "CONFIG_A=3"),
    ],
)
def test_what_newer_kernels_are_asked_for_comes_after_the_fragment_it_amends(
    tmp_path: Path, version: str, line: str
) -> None:
    for name, text in {"guest": "CONFIG_A=1", "6.9/guest": "CONFIG_A=2", "7.0/guest": "CONFIG_A=3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.config").write_text(f"{text}\n")
    (tmp_path / "reclaim.config").write_text("CONFIG_B=y\n")
    loaded = kconfig.load(["guest", "reclaim"], version, tmp_path)
    assert kconfig.merge(loaded) == {"CONFIG_A": line, "CONFIG_B": "CONFIG_B=y"}
    assert loaded[-1] == ("reclaim", "CONFIG_B=y\n")


def test_an_amendment_that_is_not_well_formed_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "guest.config").write_text("CONFIG_A=y\n")
    (tmp_path / "7.0").mkdir()
    (tmp_path / "7.0/guest.config").write_text("CONFIG_B\n")
    with pytest.raises(SpecError, match=r"kernel\.config: .*7\.0/guest\.config:1: "):
        kconfig.merge(kconfig.load(["guest"], "7.2.13", tmp_path))


@pytest.mark.parametrize(
    ("version", "model"),
    [
        ("6.1.192", "VOLUNTARY"),
        ("6.12.117", "VOLUNTARY"),
        ("7.0", "LAZY"),
        ("7.2.13", "LAZY"),
        ("7.3.4", "LAZY"),
    ],
)
def test_the_fragments_of_the_repository_are_well_formed(version: str, model: str) -> None:
    names = sorted(path.stem for path in kconfig.FRAGMENTS.glob("*.config"))
    merged = kconfig.merge(kconfig.load(names, version))
    assert merged["CONFIG_VIRTIO_BALLOON"] == "CONFIG_VIRTIO_BALLOON=y"
    assert [line for line in merged.values() if "PREEMPT" in line and line.endswith("=y")] == [
        f"CONFIG_PREEMPT_{model}=y"
    ]


def test_what_configurations_do_not_have_alike_is_told_by_option() -> None:
    texts = {
        "a": "CONFIG_SAME=y\n# CONFIG_OFF is not set\nCONFIG_NUMBER=1\n",
        "b": "CONFIG_SAME=y\nCONFIG_OFF=y\nCONFIG_NUMBER=2\n# CONFIG_ABSENT is not set\n",
    }
    assert kconfig.differences(texts) == {
        "CONFIG_NUMBER": {"a": "1", "b": "2"},
        "CONFIG_OFF": {"a": "n", "b": "y"},
    }


def test_a_single_option_is_a_fragment() -> None:
    assert kconfig.load(["CONFIG_X=y"], "6.1.0") == [("CONFIG_X=y", "CONFIG_X=y")]
    assert kconfig.merge(kconfig.load(["CONFIG_X=n"], "6.1.0")) == {"CONFIG_X": "# CONFIG_X is not set"}
