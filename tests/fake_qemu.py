#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A process that stands in for QEMU to inject faults: real QMP on a real socket, a real console on pipes.

    fake_qemu.py FAULT QEMU-ARGUMENTS...

Without a fault it greets, boots a guest that answers init's commands, and plays the workload's part of
a recorded log. Faults: see FAULTS.
"""

import gzip
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
SNAPSHOT = b"a machine that has booted" * 4096
FAULTS = (
    "none",
    "not-qmp",  # greets with something else
    "mute",  # accepts the connection and says nothing
    "die-at-start",  # prints an error and ends before QMP is up
    "die-at-boot",
    "die-in-workload",
    "refuse-balloon",  # the command fails
    "stuck-balloon",  # the balloon stops half-way
    "stop",  # the machine is stopped by QEMU, as when KVM fails
    "reset",  # the guest resets itself (a triple fault)
    "corrupt-frame",  # a kernel message lands in a frame
    "stubborn",  # neither quit nor SIGTERM ends it
    "few-cpus",  # the guest brings up 4 CPUs
    "fail",  # the workload ends with status 1
    "refuse-set",  # init cannot write a setting
    "refuse-sysctl",  # the kernel does not take one of its command line
    # Of deterministic guests:
    "hang",  # the guest executes, and says nothing
    "stall",  # QEMU executes nothing any more
    "starve",  # it executes an instruction now and then, for seconds
    "full",  # there is no space for its snapshot
)


def options(text: str) -> dict[str, str]:
    """What QEMU understands by `name=value,...`: a comma ends a value, and two are one."""
    parts = text.replace(",,", "\0").split(",")
    pairs = [part.replace("\0", ",").partition("=") for part in parts]
    return {name: value for name, _, value in pairs}


def say(text: str) -> None:
    os.write(1, text.encode())


class Fake:
    def __init__(self, fault: str, arguments: list[str]) -> None:
        self.fault = fault
        fd = re.search(r"id=qmp,fd=(\d+)", " ".join(arguments))
        assert fd
        self.socket = socket.socket(fileno=int(fd[1]))
        self.memory = int(arguments[arguments.index("-m") + 1].rstrip("M")) << 20
        self.status = "prelaunch"
        # The other end of the rendezvous, and where the guest's time is told.
        words = dict(itertools.pairwise(arguments))
        plugin = options(words.get("-plugin", "fd=-1,clock=-1"))
        self.plugin = socket.socket(fileno=int(plugin["fd"])) if "file" in plugin else None
        self.clock_fd = int(plugin["clock"])
        self.incoming = "-incoming" in arguments
        given = [options(value) for word, value in itertools.pairwise(arguments) if word == "-fw_cfg"]
        texts = {}
        for each in given:
            if not Path(each["file"]).is_file():
                sys.exit(f"qemu-system-x86_64: can't load {each['file']}")
            texts[each["name"]] = Path(each["file"]).read_text()
        self.told = texts.get("opt/testbed/run", "").strip()

    def send(self, message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: object) -> None:
        self.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}})

    def serve(self) -> None:
        if self.fault == "not-qmp":
            self.socket.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        if self.fault == "mute":
            time.sleep(60)
        version = {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": "fake"}
        self.send({"QMP": {"version": version, "capabilities": []}})
        for request in self.requests():
            reply = self.answer(request["execute"], request.get("arguments", {}))
            self.send({**reply, "id": request.get("id")})
            if request["execute"] == "cont":
                threading.Thread(target=self.boot, daemon=True).start()
            if request["execute"] == "quit" and self.fault != "stubborn":
                os._exit(0)

    def requests(self) -> Iterator[dict[str, Any]]:
        """QMP is a stream of JSON objects; nothing need be between them."""
        text = ""
        while data := self.socket.recv(65536):
            text += data.decode()
            while text.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(text := text.lstrip())
                except ValueError:
                    break
                text = text[end:]
                yield request

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, object]:
        if command == "balloon":
            if self.fault == "refuse-balloon":
                return {"error": {"class": "DeviceNotActive", "desc": "No balloon device"}}
            stuck = self.fault == "stuck-balloon"
            self.memory = (self.memory + arguments["value"]) // 2 if stuck else arguments["value"]
        moved: dict[str, object] = {"status": "completed"}
        if self.fault == "full":
            moved = {"status": "failed", "error-desc": "Unable to write to file: No space left on device"}
        if command in ("migrate", "migrate-incoming"):
            file = Path(arguments["channels"][0]["addr"]["filename"])
            if command == "migrate" and self.fault != "full":
                try:
                    file.write_bytes(SNAPSHOT)
                except OSError as failed:
                    return {"error": {"class": "GenericError", "desc": f"Unable to write: {failed.strerror}"}}
            if command == "migrate-incoming" and not file.is_file():
                return {"error": {"class": "GenericError", "desc": "No such file or directory"}}
        results: dict[str, dict[str, object]] = {
            "query-balloon": {"actual": self.memory},
            "query-status": {"status": self.status, "running": self.status == "running"},
            "query-migrate": moved,
        }
        return {"return": results.get(command, {})}

    def boot(self) -> None:
        self.status = "running"
        if self.plugin and self.incoming:
            self.run_from_the_snapshot(self.plugin)
            return
        if self.plugin:
            self.boot_to_the_snapshot(self.plugin)
            return
        say("Linux version 6.1.0\n")
        if self.fault == "die-at-boot":
            print("qemu-system-x86_64: out of luck", file=sys.stderr, flush=True)
            os._exit(1)
        if self.fault == "reset":
            self.event("SHUTDOWN", guest=True, reason="guest-reset")
            os._exit(0)
        if self.fault == "stop":
            print("KVM internal error. Suberror: 1", file=sys.stderr, flush=True)
            self.status = "internal-error"
            self.event("STOP")
            time.sleep(60)
        if self.fault == "refuse-sysctl":
            say("[    0.5] Failed to set sysctl parameter 'vm.x=1 2': parameter not found\r\n")
        say(f"\n#tb:ready release=6.1.0 cpus={4 if self.fault == 'few-cpus' else 8}\n")
        for line in sys.stdin:
            self.obey(line.split())

    def meet(self, plugin: socket.socket) -> None:
        """Stand still at a rendezvous until the host lets the guest go on."""
        plugin.send(b"m" + bytes(16))
        while plugin.recv(17)[:1] not in (b"g", b"f", b""):
            pass

    def execute(self) -> None:
        """Pass the time as the fault has it."""
        executed = 1000
        for _ in range({"none": 0, "full": 0, "starve": 30}.get(self.fault, 6000)):
            executed += {"hang": 1_000_000_000, "starve": 1}.get(self.fault, 0)
            os.pwrite(self.clock_fd, executed.to_bytes(8, "little"), 0)
            time.sleep(0.1)

    def boot_to_the_snapshot(self, plugin: socket.socket) -> None:
        self.meet(plugin)
        self.execute()
        say("Linux version 6.1.0\n\n#tb:ready release=6.1.0 cpus=8\n")
        self.meet(plugin)

    def run_from_the_snapshot(self, plugin: socket.socket) -> None:
        for _ in range(2):
            self.meet(plugin)
        self.execute()
        # So that the logs of two seeds differ.
        say(f"/init: {self.told}\n")
        say("\n#tb:memory total_kb=100000 free_kb=50000\n")
        self.obey(["run"])

    def obey(self, words: list[str]) -> None:
        match words[0]:
            case "memory":
                say(f"\n#tb:memory total_kb={self.memory >> 10} free_kb={self.memory >> 11}\n")
            case "run" if self.fault == "die-in-workload":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "run":
                log = gzip.decompress((DATA / "unpatched.log.gz").read_bytes())
                part = log[log.index(b"\n#tb:start") :]
                if self.fault == "corrupt-frame":
                    part = part.replace(
                        b"pgfault", b"[   12.3] mmap_test: page allocation failure\r\npgfault", 1
                    )
                if self.fault == "fail":
                    part = part.replace(b"#tb:end status=0", b"#tb:end status=1")
                os.write(1, part)
            case "set" if self.fault == "refuse-set":
                say("/init: line 170: write error: Device or resource busy\n")
                say(f"\n#tb:error ns=1 {' '.join(words)}\n")
            case _:
                say("\n#tb:ok\n")


def main() -> None:
    fault, arguments = sys.argv[1], sys.argv[2:]
    assert fault in FAULTS, fault
    if "--version" in arguments:
        print("QEMU emulator version 0.0.0 (fake)")
        return
    if not any("id=qmp" in word for word in arguments):
        # It is asked which plugins it takes.
        sys.exit("API version 0: this QEMU supports only a minimum version of 2")
    if fault == "die-at-start":
        sys.exit("qemu-system-x86_64: -accel tcg: no such luck")
    if fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        Fake(fault, arguments).serve()
    except RuntimeError as failed:
        # No thread, where processes are limited.
        sys.exit(f"qemu-system-x86_64: {failed}")


main()
