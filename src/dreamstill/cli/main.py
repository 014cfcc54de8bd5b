"""Entry point of the command line; errors are printed in one line."""

import argparse
import io
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from dreamstill.cli.parser import parse
from dreamstill.errors import (
    ConfigError,
    DreamstillError,
    first_line,
    is_out_of_memory,
    one_line,
    quoted,
)

__all__ = ["main"]

WAIT = 10.0
"""Seconds after which a process that is not the main one says what is wrong with it alone."""
IN_PROCESSES = ("distill", "synthesize")
"""Commands that several processes can run together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    It is 0 on success, 1 if a goal was missed, 2 on an error of the user, 130 on Ctrl-C and 141 on
    a broken pipe.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = argparse.Namespace()
    try:
        try:
            _find_users_modules()
            arguments = parse(sys.argv[1:] if argv is None else argv)
            result = _run(arguments)
        finally:
            _flush()
    except BrokenPipeError:
        return 141
    except (DreamstillError, OSError) as error:  # such as an unreadable directory
        return _fail(_system_message(error) if isinstance(error, OSError) else str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(f"out of memory: {first_line(error)}; lower sizes")
    except KeyboardInterrupt:
        if _rank():
            return 130
        print(f"dreamstill: stopped{_how_to_resume(arguments)}", file=sys.stderr)
        return 130
    return int(isinstance(result, dict) and bool(result.get("missed")))


def _find_users_modules() -> None:
    """Put the working directory last on sys.path, so that its modules do not shadow libraries."""
    here = str(Path.cwd())
    if sys.path[0] in ("", here):  # Python puts it there for -m and -c
        sys.path.pop(0)
    if not {"", here} & {*sys.path}:
        sys.path.append(here)


def _run(arguments: argparse.Namespace) -> Any:
    with ExitStack() as stack:
        if _rank():
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
        elif arguments.json:  # a factory may print, and stdout must hold the result alone
            stack.enter_context(redirect_stdout(sys.stderr))
        elif isinstance(sys.stdout, io.TextIOWrapper):  # not every path fits its encoding
            sys.stdout.reconfigure(errors="backslashreplace")
        from dreamstill.cli.commands import RUN  # imports torch, which takes seconds
        from dreamstill.cli.terminal import Bars
        from dreamstill.pipelines.process import flush_denormals
        from dreamstill.process_group import started_by_torchrun

        flush_denormals()
        if started_by_torchrun() > 1 and arguments.command not in IN_PROCESSES:
            raise ConfigError(
                f"dreamstill {arguments.command} runs in one process: start it without torchrun; "
                f"{' and '.join(IN_PROCESSES)} run in several"
            )
        arguments.bars = stack.enter_context(Bars(quiet=arguments.json))
        result = RUN.get(arguments.command, RUN["compress"])(arguments)
    if arguments.json and not _rank():
        print(json.dumps(result, indent=2))
    return result


def _flush() -> None:
    """Flush stdout; on failure, redirect it so that Python does not try again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _system_message(error: OSError) -> str:
    """Return the message of a system error with its file names."""
    names = [quoted(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([error.strerror or str(error), *names])


def _fail(message: str) -> int:
    try:
        if _rank():  # the main process says the same, and torchrun then stops this one
            time.sleep(WAIT)
        print(f"dreamstill: {one_line(message)}", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    return 2


def _rank() -> int:
    """Return the number of this process among those that torchrun has started."""
    return int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _how_to_resume(arguments: argparse.Namespace) -> str:
    """Return the end of a sentence that says how a run goes on, or "" where it does not."""
    from dreamstill.pipelines.run_directory import is_vacant

    resume, out = (getattr(arguments, name, None) for name in ("resume", "out"))
    folder = Path(resume if isinstance(resume, str) else out or "")
    if not hasattr(arguments, "resume") or is_vacant(folder):
        return ""
    if arguments.command == "distill":
        return f"; it goes on with: dreamstill distill --resume {folder}"
    return "; the same command with --resume goes on"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
