# SPDX-License-Identifier: GPL-2.0-only
"""Patches as people have them, split as git does: mails, mailboxes and plain diffs, packed or not.

The message of a mail is never applied. Where git leaves ends of lines to its options, those of the headers
tell: CRs there come of the way that a mail took, and any others are a file's.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.host import files, owned, space
from testbed.host.errors import SpecError
from testbed.kernel import source

NO_REPOSITORY = Path("/dev/null")
MAIL_SECONDS = 60.0
ROOM_BYTES = 1 << 20

# Of a file with patches, packed or not.
MOST_BYTES = 32 * files.MiB
# The first bytes of what is packed, and what unpacks it.
_PACKED: dict[bytes, Callable[[io.BytesIO], gzip.GzipFile | lzma.LZMAFile]] = {
    b"\x1f\x8b": lambda data: gzip.GzipFile(fileobj=data),
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_SETTINGS = ("-c", "mailinfo.scissors=false", "-c", "mailinfo.quotedCr=nowarn")
_HEADER = re.compile(rb"^[A-Za-z-]+:[^\n]*$", re.MULTILINE)
_FILE_HEADER = re.compile(rb"^(?:diff --git |\+\+\+ )[^\n]*$", re.MULTILINE)
_DIFF = re.compile(rb"^(?:diff -|Index: |--- \S|\+\+\+ \S|@@ -|Binary files |GIT binary patch)", re.MULTILINE)
# What `git format-patch` has between message and diff: a diff in front of that is an example.
_END_OF_MESSAGE = re.compile(rb"^---\n(?=(?: .+ \| .+\n)+ \d+ files? changed)", re.MULTILINE)
# What `git am` leaves out in front of a subject.
_TAGS = re.compile(r"(?:\s|:|re:|\[[^\]]*\])*", re.IGNORECASE)


@dataclass(frozen=True)
class Mail:
    """A commit as it was sent, or a diff: all of it, its diff, its subject with and without `[PATCH 1/2]`."""

    data: bytes
    diff: bytes
    tagged: str

    @property
    def subject(self) -> str:
        return self.tagged[len(self._tags) :].strip()

    @property
    def number(self) -> tuple[int, int] | None:
        """Which it is of how many, if it says so; a cover letter is 0."""
        said = re.search(r"\[(?:[^\]]*\s)?(\d+)/(\d+)\]", self._tags)
        return (int(said[1]), int(said[2])) if said else None

    @property
    def version(self) -> int:
        """Of its series, as in `[PATCH v2]`."""
        said = re.search(r"\[(?:[^\]]*\s)?v(\d+)\b", self._tags, re.IGNORECASE)
        return int(said[1]) if said else 1

    @property
    def cover(self) -> bool:
        return self.number is not None and self.number[0] == 0

    @property
    def answer(self) -> bool:
        return self.tagged.lower().startswith("re:")

    @property
    def _tags(self) -> str:
        tags = _TAGS.match(self.tagged)
        return tags[0] if tags else ""


def split(data: bytes, name: str) -> list[Mail]:
    """The commits in the bytes of a file, in order; none if it is a cover letter.

    Of a mailbox, mails without a diff are left out, and answers, if there is what they answer to. Raises
    SpecError that begins with `name` for what is no patch.
    """
    data = _unpack(data, name)
    if not data.strip():
        raise SpecError(f"{name}: is empty", "`git format-patch` of a range without commits gives that")
    with owned.directory() as scratch:
        # `git mailinfo` does not notice when it cannot write.
        space.require(scratch, 3 * len(data) + ROOM_BYTES, "reading a patch")
        letters = _letters(data, scratch, name)
        mails = [_mail(letter, scratch, name) for letter in letters]
    patches = [mail for mail in mails if _DIFF.search(mail.diff) and not mail.cover]
    if not patches and not any(mail.cover for mail in mails):
        raise _no_patch(data, name)
    return _in_order([mail for mail in patches if not mail.answer] or patches, name)


def _unpack(data: bytes, name: str) -> bytes:
    for magic, opened in _PACKED.items():
        if data.startswith(magic):
            try:
                with opened(io.BytesIO(data)) as file:
                    return files.at_most(file, MOST_BYTES, Path(name))
            except (OSError, EOFError, lzma.LZMAError, zlib.error) as bad:
                raise SpecError(f"{name}: cannot be unpacked: {files.reason(bad)}", "fetch it again") from bad
    return data


def _letters(data: bytes, scratch: Path, name: str) -> list[bytes]:
    """The mails of a mailbox; of anything else, all of it."""
    if b"\nFrom " not in data:
        return [data]
    (scratch / "box").write_bytes(data)
    done = _git("mailsplit", "-b", "--keep-cr", "-o.", "box", cwd=scratch)
    if done.returncode != 0:
        raise SpecError(f"{name}: git cannot split it into mails: {_said(done)}")
    letters = [file.read_bytes() for file in sorted(scratch.glob("[0-9]*"))]
    return letters if len(letters) > 1 else [data]


def _mail(letter: bytes, scratch: Path, name: str) -> Mail:
    text = _as_sent(letter, _HEADER)
    done = _git("mailinfo", "-k", "--encoding=UTF-8", "message", "patch", cwd=scratch, stdin=text)
    if done.returncode != 0:
        raise SpecError(f"{name}: not a mail that git can read: {_said(done)}")
    subject = re.search(rb"^Subject: (.*)$", done.stdout, re.MULTILINE)
    diff = _as_sent((scratch / "patch").read_bytes(), _FILE_HEADER)
    if end := _END_OF_MESSAGE.search(diff):
        diff = diff[end.start() :]
    return Mail(letter, diff, subject[1].decode(errors="replace").strip() if subject else "")


def _as_sent(text: bytes, line: re.Pattern[bytes]) -> bytes:
    """Without the CRs that it got on its way, if the first such line has one: that is none of a file's."""
    first = line.search(text)
    return text.replace(b"\r\n", b"\n") if first and first[0].endswith(b"\r") else text


def _in_order(mails: list[Mail], name: str) -> list[Mail]:
    """By their numbers if they are one series, as a thread has them in the order of arrival."""
    versions = {mail.version for mail in mails if mail.number}
    if len(versions) > 1:
        which = ", ".join(f"v{version}" for version in sorted(versions))
        raise SpecError(f"{name}: has several versions of a series: {which}", "`b4 am` takes the newest")
    numbers = [mail.number for mail in mails]
    if sorted(number or (0, 0) for number in numbers) == [(n, len(mails)) for n in range(1, len(mails) + 1)]:
        return sorted(mails, key=lambda mail: mail.number or (0, 0))
    return mails


def _no_patch(data: bytes, name: str) -> SpecError:
    if re.match(rb"\s*<(!doctype|html|\?xml)", data, re.IGNORECASE):
        return SpecError(
            f"{name}: is a web page, not a patch",
            "the mail itself is at the same address with `raw` after it (lore), or .patch (GitHub, cgit)",
        )
    if re.search(rb"^> ?(?:diff -|--- |\+\+\+ |@@ -)", data, re.MULTILINE):
        return SpecError(
            f"{name}: is no patch: it only quotes one", "take the mail that it answers: `b4 am MESSAGE-ID`"
        )
    return SpecError(
        f"{name}: is no patch: there is no diff in it", "`git format-patch`, `git diff` or `diff -u` make one"
    )


def _git(*words: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    words = (*_SETTINGS, *words)
    return source.git(NO_REPOSITORY, *words, cwd=cwd, stdin=stdin, timeout=MAIL_SECONDS, check=False)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode(errors="replace").strip().partition("\n")[0]
