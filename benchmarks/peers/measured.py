"""Run a command and write its seconds, peak of resident memory and exit status as JSON.

    python measured.py FILE COMMAND ...

A small process of its own between the benchmark and the command: on Linux the peak of a child
begins at that of the process that started it, which in the benchmark holds torch and test images.
"""

import json
import os
import sys
import time

__all__ = ["measure"]


def measure(command: list[str]) -> dict[str, float]:
    """Run a command; the peak, in bytes, is that of the largest of its processes."""
    start = time.monotonic()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak": unit * usage.ru_maxrss,
    }


if __name__ == "__main__":
    out, *command = sys.argv[1:]
    figures = measure(command)
    with open(out, "w") as file:  # noqa: PTH123 (nothing is imported that need not be)
        json.dump(figures, file)
