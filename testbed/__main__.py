# SPDX-License-Identifier: GPL-2.0-only
# PYTHON_ARGCOMPLETE_OK
"""The door, in front of all that has to be loaded: without room or time for that there is a line, too."""

from __future__ import annotations

import errno
import resource
import sys

from testbed.host.errors import HostError, Interrupted

# Address space that numpy and scipy need. With less, they may end the process in their own way.
LEAST_BYTES = 600 << 20


def main() -> int:
    """Do what cli.main() does; where there is no memory for it, say so, and return HostError's status."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    said = "out of memory"
    try:
        if limit == resource.RLIM_INFINITY or limit >= LEAST_BYTES:
            from testbed import cli  # noqa: PLC0415

            return cli.main()
    except KeyboardInterrupt:
        # While it is loaded, or the command line is read.
        sys.stderr.write("testbed: stopped\n")
        return Interrupted.exit_status
    except MemoryError:
        pass
    except ImportError as failed:
        said = f"cannot be loaded: {_reason(failed)}"
    except OSError as failed:
        if failed.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        said = f"{failed.strerror}: `ulimit -n` allows {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    except RuntimeError as failed:
        if "can't start new thread" not in str(failed):
            raise
        said = str(failed)
    if limit != resource.RLIM_INFINITY:
        said += f": `ulimit -v` allows {limit >> 20} MiB, and at least {LEAST_BYTES >> 20} are needed"
    sys.stderr.write(f"testbed: {said}\n")
    return HostError.exit_status


def _reason(failed: BaseException) -> str:
    """What it all began with; numpy has pages of advice after that."""
    while inner := failed.__cause__ or failed.__context__:
        failed = inner
    return str(failed).partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
