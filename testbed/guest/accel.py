# SPDX-License-Identifier: GPL-2.0-only
"""Which accelerator: decided by booting, since /dev/kvm may open and still not run any kernel."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from testbed.guest.live import LiveGuest
from testbed.guest.qemu import QEMU, qemu_version
from testbed.guest.shape import AccelName, Shape
from testbed.host import files
from testbed.host.errors import GuestError, NoKvm

# A guest under KVM is ready in about a second, and a broken one never is.
PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Accel:
    """What was chosen, and why, in one line."""

    name: AccelName
    reason: str


def choose(
    wanted: Literal["auto", "kvm", "tcg"],
    shape: Shape,
    vmlinux: Path,
    initramfs: Path,
    cache: Path,
    *,
    qemu: str = QEMU,
    cancel: threading.Event | None = None,
) -> Accel:
    """The accelerator for guests of this shape; `auto` and `kvm` boot the kernel under KVM to know.

    What came of that is remembered in `cache` until the host boots again or the inputs change.
    Raises NoKvm when `kvm` is wanted and does not work.
    """
    if wanted == "tcg":
        return Accel("tcg", "asked for")
    probe = dataclasses.replace(shape, accel="kvm")
    note = cache / "accel" / f"{_occasion(probe, vmlinux, initramfs, qemu)}.json"
    try:
        refusal = json.loads(note.read_text())
    except (OSError, ValueError):
        refusal = _refusal(probe, vmlinux, initramfs, qemu, cancel)
        emulated = dataclasses.replace(probe, accel="tcg")
        # Only a kernel that boots without KVM tells anything about KVM.
        if refusal is None or _refusal(emulated, vmlinux, initramfs, qemu, cancel) is None:
            note.parent.mkdir(parents=True, exist_ok=True)
            files.write(note, json.dumps(refusal))
    if refusal is None:
        return Accel("kvm", "a probe booted under KVM")
    if wanted == "kvm":
        raise NoKvm(f"KVM does not work here: {refusal}", "use `accel: tcg` or `auto`")
    return Accel("tcg", f"emulation, since KVM does not work here: {refusal}")


def _occasion(shape: Shape, vmlinux: Path, initramfs: Path, qemu: str) -> str:
    """What the outcome of a probe depends on: this boot of this host, its /dev/kvm, QEMU and the guest."""
    device = Path("/dev/kvm")
    status = device.stat() if device.exists() else None
    parts = [
        Path("/proc/sys/kernel/random/boot_id").read_text(),
        str(status and (status.st_mode, status.st_uid, status.st_gid, os.access(device, os.R_OK | os.W_OK))),
        qemu_version(qemu),
        repr(shape),
        hashlib.sha256(vmlinux.read_bytes()).hexdigest(),
        hashlib.sha256(initramfs.read_bytes()).hexdigest(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _refusal(
    shape: Shape, vmlinux: Path, initramfs: Path, qemu: str, cancel: threading.Event | None
) -> str | None:
    """Why a guest of this shape does not boot, in one line; None when it does."""
    if shape.accel == "kvm" and not Path("/dev/kvm").exists():
        return "there is no /dev/kvm"
    try:
        with LiveGuest(shape, vmlinux, initramfs, qemu=qemu, cancel=cancel) as guest:
            guest.boot(PROBE_SECONDS)
    except GuestError as failed:
        return failed.message + _first_complaint(failed.hint)
    return None


def _first_complaint(hint: str) -> str:
    complaints = [line.strip() for line in hint.splitlines() if line.strip().startswith("KVM")]
    return f" ({complaints[0]})" if complaints else ""
