# SPDX-License-Identifier: GPL-2.0-only
"""What a program misses in its guest, by what it says, and what brings it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# More is one story told again and again.
TOLD = 12
_LINES = 2000

_ENOSYS = r"function not implemented|\bENOSYS\b"
_ENOENT = r"no such file or directory|\bENOENT\b|nonexistent directory"
_EPERM = r"operation not permitted|permission denied|must be root|are you root|\bE(?:PERM|ACCES)\b"
_EAFNOSUPPORT = r"address family not supported|\bEAFNOSUPPORT\b"


@dataclass(frozen=True)
class _Kind:
    """Lines with both are of this kind; `what` and `remedy` take the groups of `subject`, and the line."""

    error: str
    subject: str
    what: str
    remedy: str


def _option(error: str, subject: str, what: str, option: str) -> _Kind:
    return _Kind(error, subject, what, f"kernel.config: a fragment with {option}=y")


# Of the first that fits a line it is.
_KINDS = (
    _option(_ENOSYS, r"\b(?:shm(?:get|at|ctl|dt)|sem(?:get|op|ctl)|msg(?:get|snd|rcv|ctl))\b|\bsysv\b",
            "System V IPC", "CONFIG_SYSVIPC"),
    _option(_ENOSYS, r"\bio_?uring", "io_uring", "CONFIG_IO_URING"),
    _option(_ENOSYS, r"\binotify", "inotify", "CONFIG_INOTIFY_USER"),
    _option(_ENOSYS, r"\bfanotify", "fanotify", "CONFIG_FANOTIFY"),
    _option(_ENOSYS, r"\bmq_(?:open|unlink|timed\w+|notify)|message queue", "POSIX message queues",
            "CONFIG_POSIX_MQUEUE"),
    _option(_ENOSYS, r"\bmemfd", "memfd_create", "CONFIG_MEMFD_CREATE"),
    _option(_ENOSYS, r"\buserfaultfd", "userfaultfd", "CONFIG_USERFAULTFD"),
    _option(_ENOSYS, r"\bperf_event_open|\bperf events?\b", "perf events", "CONFIG_PERF_EVENTS"),
    _option(_ENOSYS, r"\bbpf\b", "bpf", "CONFIG_BPF_SYSCALL"),
    _option(_ENOSYS, r"\bio_(?:setup|submit|getevents)|\baio\b|libaio", "asynchronous I/O", "CONFIG_AIO"),
    _option(_ENOSYS, r"\bseccomp\b", "seccomp", "CONFIG_SECCOMP"),
    _option(_ENOSYS, r"\b(?:add_key|keyctl|request_key)\b", "keys", "CONFIG_KEYS"),
    _option(_ENOSYS, r"\bmbind|\bset_mempolicy|\bget_mempolicy|\bmove_pages|\bmigrate_pages", "NUMA policies",
            "CONFIG_NUMA"),
    _option(_ENOSYS, r"\bsockets?\b|\bsocketpair|\btcp\b|\budp\b|\bconnect\b|\bbind\b|\blisten\b", "sockets",
            "CONFIG_NET=y, CONFIG_UNIX=y, CONFIG_INET"),
    _option(_EAFNOSUPPORT, r"\bipv6\b|\binet6\b|::1", "IPv6", "CONFIG_IPV6"),
    _option(_EAFNOSUPPORT, r"\btcp\b|\budp\b|\binet\b|\bipv?4?\b|\d+\.\d+\.\d+\.\d+|\blocalhost\b", "TCP/IP",
            "CONFIG_INET"),
    _option(_EAFNOSUPPORT, r"\bsocketpair|\bunix\b|\blocal socket", "local sockets", "CONFIG_UNIX"),
    _option(_EAFNOSUPPORT, "", "an address family of sockets", "CONFIG_UNIX=y (local) or CONFIG_INET"),
    _Kind(_ENOENT, r"/dev/(?:pts|ptmx)\b|\bopenpty\b", "terminals",
          "kernel.config: a fragment with CONFIG_UNIX98_PTYS=y"),
    _Kind(_EPERM, "", "the right to do this: `{line}`", "workload: `root: true`"),
    _Kind("error while loading shared libraries", r"libraries: ([^\s:]+): cannot open shared object",
          "the library {0}", "workload.files: `PATH:/lib/{0}`"),
    _Kind("", r"ModuleNotFoundError: No module named '([\w.]+)'", "Python's module {0}",
          "workload.files: its file or directory, to beside the script: `PATH:/bin/{0}`"),
    _Kind("", r"Can't locate (\S+) in @INC", "Perl's {0}", "workload.files: its file, to where @INC says"),
    _Kind("", r"^testbed-start: (\S+): " + f"(?:{_ENOENT})",
          "the program {0}, or what interprets or loads it", "workload.files: its path here"),
    _Kind("bad interpreter", r"(?:^|\s)(\S+): bad interpreter", "the interpreter {0}",
          "workload.files: `PATH:{0}`"),
    _Kind("", r"\benv: (?:can't execute )?['\u2018]?([^\s'\u2019:]+)['\u2019]?: " + f"(?:{_ENOENT})",
          "the program {0}", "workload.files: its path here"),
    _Kind("", r"\b(?:sh|bash|dash|ash|\S+\.sh): (?:(?:line )?\d+: )?([^\s:]+): (?:command )?not found$",
          "the program {0}", "workload.files: its path here"),
)  # fmt: skip
_COMPILED = tuple(
    (re.compile(kind.error, re.IGNORECASE), re.compile(kind.subject, re.IGNORECASE), kind) for kind in _KINDS
)


def lacking(output: str) -> list[str]:
    """A line for each thing of a well-known kind that a program says it has not got."""
    return list(dict.fromkeys(_told(output)))[:TOLD]


def _told(output: str) -> Iterator[str]:
    for line in output.splitlines()[:_LINES]:
        for error, subject, kind in _COMPILED:
            if error.search(line) and (found := subject.search(line[:500])):
                groups = [group or "" for group in found.groups()]
                shown = {"line": line.strip()[:80]}
                what, remedy = (text.format(*groups, **shown) for text in (kind.what, kind.remedy))
                yield f"missing in the guest: {what} ({remedy})"
                break
        else:
            if re.search(_ENOSYS, line, re.IGNORECASE):
                said = line.strip()[:80]
                yield f"missing in the guest: a system call of its kernel: {said} (kernel.config: its option)"
