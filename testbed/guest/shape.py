# SPDX-License-Identifier: GPL-2.0-only
"""The machine as QEMU's command line. Pure: shape in, words out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from testbed.experiment import MiB

# `icount` is emulation in which virtual time is the number of instructions executed.
AccelName = Literal["kvm", "tcg", "icount"]

# The RAM disk takes no memory but for what is written to it; init gives it a file system as large as memory.
# `panic=-1` with -no-reboot ends QEMU when the kernel panics, so nobody waits for a dead guest.
_CMDLINE = "console=ttyS0 panic=-1 oops=panic brd.rd_nr=1 brd.rd_size=67108864"
# What QEMU and the kernel are told, per accelerator. Under emulation on a busy host, calibrating delay
# loops takes seconds and the TSCs look unstable. For icount, see docs/determinism.md.
_ACCEL = {
    "kvm": (("-accel", "kvm", "-cpu", "host"), ""),
    "tcg": (("-accel", "tcg,thread=multi", "-cpu", "max"), "tsc=reliable lpj=10000000"),
    "icount": (
        (
            *("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"),
            # A string instruction counts once per repetition: fast ones (erms) would clear a page in 4096.
            *("-cpu", "max,-erms,-fsrm", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1"),
        ),
        "maxcpus=1 idle=poll nokaslr tsc=reliable lpj=4000000 cpu_init_udelay=0 random.trust_cpu=1 "
        "no_timer_check noreplace-smp",
    ),
}


# QEMU's own: it may start no program and take no further rights.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class Shape:
    """All that decides what machine the kernel sees. Memory is in bytes, `extra` are words for QEMU.

    The kernel is told what all arms are set to (`settings`), and then what one is (`cmdline`).
    """

    accel: AccelName
    vcpus: int
    boot_memory: int
    cmdline: str = ""
    extra: tuple[str, ...] = ()
    settings: str = ""

    @property
    def kernel_cmdline(self) -> str:
        return " ".join(filter(None, [_CMDLINE, self.settings, _ACCEL[self.accel][1], self.cmdline]))


@dataclass(frozen=True)
class Plugin:
    """A plugin of QEMU's, and what it is told: open files, by name, and whatever else."""

    path: Path
    fds: Mapping[str, int]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wiring:
    """What QEMU is connected to on our side.

    `given` are files that the guest finds in fw_cfg as opt/testbed/NAME; `incoming` is whether the machine
    waits for a snapshot to be loaded; beneath `writable` is where QEMU may write.
    """

    qmp_fd: int
    given: Mapping[str, Path] = field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()
    incoming: bool = False
    writable: tuple[Path, ...] = ()

    @property
    def fds(self) -> tuple[int, ...]:
        """What QEMU has to have open."""
        return (self.qmp_fd, *(fd for plugin in self.plugins for fd in plugin.fds.values()))


def argv(shape: Shape, qemu: str, vmlinux: Path, initramfs: Path, wiring: Wiring) -> list[str]:
    """QEMU with its console on standard input and output and QMP on an open socket, not yet running.

    The console is a pair of pipes, since a socket pushes back after some hundred one-byte writes.
    """
    words = [
        *_machine(shape, qemu, vmlinux, initramfs),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={wiring.qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-sandbox", _SANDBOX),
        "-S",
    ]
    for name, path in wiring.given.items():
        words += ["-fw_cfg", f"name=opt/testbed/{name},{file_option(path)}"]
    for plugin in wiring.plugins:
        told = [f"{name}={fd}" for name, fd in plugin.fds.items()]
        words += ["-plugin", ",".join([file_option(plugin.path), *told, *plugin.options])]
    if wiring.incoming:
        words += ["-incoming", "defer"]
    return words


def file_option(path: Path) -> str:
    """A path as one of QEMU's options, whatever is in it: a comma ends it unless it is doubled."""
    return "file=" + str(path).replace(",", ",,")


def identity(shape: Shape) -> list[str]:
    """All that a guest can see of its machine, as words that tell it from any other."""
    return list(_machine(shape, "", Path(), Path()))


def by_hand(shape: Shape, qemu: str, vmlinux: Path, initramfs: Path) -> list[str]:
    """The same machine for a person at a terminal: console and monitor on it (Ctrl-A c switches)."""
    return [*_machine(shape, qemu, vmlinux, initramfs), "-serial", "mon:stdio"]


def _machine(shape: Shape, qemu: str, vmlinux: Path, initramfs: Path) -> Sequence[str]:
    # With an ioeventfd another thread would serve the guest's kick, some time later.
    balloon = "virtio-balloon-pci,id=balloon,deflate-on-oom=off"
    return [
        qemu,
        *("-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-nic", "none"),
        *("-machine", "q35", *_ACCEL[shape.accel][0]),
        *("-smp", str(shape.vcpus), "-m", f"{shape.boot_memory // MiB}M"),
        *("-kernel", str(vmlinux), "-initrd", str(initramfs), "-append", shape.kernel_cmdline),
        *("-device", balloon + (",ioeventfd=off" if shape.accel == "icount" else "")),
        *shape.extra,
    ]
