# SPDX-License-Identifier: GPL-2.0-only
"""Every error that testbed raises on purpose.

    TestbedError
    +-- SpecError       the experiment, a patch or an option is wrong     exit 2
    +-- HostError       this machine lacks something                      exit 3
    |   +-- NoKvm           KVM is wanted and does not work
    |   +-- NoDeterminism   deterministic guests are wanted, and there is no QEMU for them
    +-- NoSpace         a disk is full                                    exit 3
    +-- BuildError      a kernel or an image could not be made            exit 3
    +-- StoreError      the ledger cannot be read or written              exit 3
    +-- Interrupted     the user asked to stop                            exit 130
    +-- GuestError      a guest did not do what was asked                 exit 3
        +-- GuestLost       QEMU, QMP or the host failed: says nothing about the kernel
        +-- GuestFailed     the kernel or the workload failed: this is a result
            +-- Panic, Hang, OutOfMemory

Library code raises; only cli.py prints and exits.
"""

from __future__ import annotations

# Before what a guest's error has from its console, and before the command that boots it by hand.
CONSOLE, BY_HAND = "the console's last lines:", "to run it by hand:"


class TestbedError(Exception):
    """Something went wrong; `message` says what and where, `hint` what to do about it."""

    __test__ = False
    exit_status = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class SpecError(TestbedError):
    """Bad input: the message names file and key."""

    exit_status = 2


class HostError(TestbedError):
    """This machine cannot do what is asked; the hint is the remedy."""


class NoKvm(HostError):
    """KVM is wanted, and does not boot the kernel in question here."""


class NoDeterminism(HostError):
    """Deterministic guests are wanted, and no QEMU that can be had here runs them."""


class NoSpace(TestbedError):
    """A disk is full, or a quota. Nothing leads on until there is space.

    So it is no HostError, for which there may be another way.
    """


class BuildError(TestbedError):
    """A kernel or an image could not be built."""


class StoreError(TestbedError):
    """The ledger of a result directory cannot be used."""


class Interrupted(TestbedError):
    """The user asked to stop."""

    exit_status = 130


class GuestError(TestbedError):
    """A guest did not do what was asked of it."""

    # Whether the hint has the console's tail and the command to run it by hand.
    explained = False


class GuestLost(GuestError):
    """The infrastructure failed (QEMU, QMP, host); the kernel under test is not to blame."""


class GuestFailed(GuestError):
    """The kernel or the workload failed. A result, not an accident: kept and shown."""

    outcome = "failed"


class Panic(GuestFailed):
    """The kernel panicked."""

    outcome = "panic"


class Hang(GuestFailed):
    """The guest did not get on within its deadline."""

    outcome = "hang"


class OutOfMemory(GuestFailed):
    """The OOM killer took a task of the workload."""

    outcome = "oom"
