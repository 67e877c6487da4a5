# SPDX-License-Identifier: GPL-2.0-only
"""The machine as QEMU's command line. Pure: shape in, words out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from testbed.spec import MiB

AccelName = Literal["kvm", "tcg"]

# `panic=-1` with -no-reboot ends QEMU when the kernel panics, so nobody waits for a dead guest.
_CMDLINE = "console=ttyS0 panic=-1 oops=panic brd.rd_nr=1 brd.rd_size=4096"
# Under emulation on a busy host, calibrating delay loops takes seconds and the TSCs look unstable.
_CMDLINE_TCG = "tsc=reliable lpj=10000000"


@dataclass(frozen=True)
class Shape:
    """All that decides what machine the kernel sees. Memory is in bytes."""

    accel: AccelName
    vcpus: int
    boot_memory: int
    cmdline: str = ""

    @property
    def kernel_cmdline(self) -> str:
        parts = [_CMDLINE, _CMDLINE_TCG if self.accel == "tcg" else "", self.cmdline]
        return " ".join(filter(None, parts))


def argv(shape: Shape, qemu: str, vmlinux: Path, initramfs: Path, qmp_fd: int) -> list[str]:
    """QEMU with its console on standard input and output and QMP on an open socket, not yet running.

    The console is a pair of pipes, since a socket pushes back after some hundred one-byte writes.
    """
    return [
        *_machine(shape, qemu, vmlinux, initramfs),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        "-S",
    ]


def by_hand(shape: Shape, qemu: str, vmlinux: Path, initramfs: Path) -> list[str]:
    """The same machine for a person at a terminal: console and monitor on it (Ctrl-A c switches)."""
    return [*_machine(shape, qemu, vmlinux, initramfs), "-serial", "mon:stdio"]


def _machine(shape: Shape, qemu: str, vmlinux: Path, initramfs: Path) -> Sequence[str]:
    accel = {"kvm": ("kvm", "host"), "tcg": ("tcg,thread=multi", "max")}[shape.accel]
    return [
        qemu,
        *("-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-nic", "none"),
        *("-machine", "q35", "-accel", accel[0], "-cpu", accel[1]),
        *("-smp", str(shape.vcpus), "-m", f"{shape.boot_memory // MiB}M"),
        *("-kernel", str(vmlinux), "-initrd", str(initramfs), "-append", shape.kernel_cmdline),
        *("-device", "virtio-balloon-pci,id=balloon,deflate-on-oom=off"),
    ]
