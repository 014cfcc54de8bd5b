"""The command line: reads what was typed, runs it, and says mistakes in a line."""

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from types import FrameType

from dreamstill.cli.parser import parse
from dreamstill.errors import DreamstillError, first_line, is_out_of_memory, one_line, shown

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0 when it worked, 2 on a user's mistake, 130 on Ctrl-C, and 141 where whoever read the
    output has gone, as a shell has it.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = argparse.Namespace()
    try:
        try:
            arguments = parse(sys.argv[1:] if argv is None else argv)
            _run(arguments)
        finally:
            _flush()
    except BrokenPipeError:
        return 141
    except (DreamstillError, OSError) as error:  # a folder that may not be read is the user's too
        return _fail(_of_system(error) if isinstance(error, OSError) else str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(f"out of memory: {first_line(error)}; lower sizes")
    except KeyboardInterrupt:
        more = "; it goes on with --resume" if _can_resume(arguments) else ""
        print(f"dreamstill: stopped{more}", file=sys.stderr)
        return 130
    return 0


def _find_users_modules() -> None:
    """The user's module:function is in the working folder, and no library is: it comes last."""
    here = str(Path.cwd())
    if sys.path[0] in ("", here):  # where Python puts it for -m and -c
        sys.path.pop(0)
    if not {"", here} & {*sys.path}:
        sys.path.append(here)


def _run(arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        if arguments.json:  # the result alone goes to stdout, whatever a factory prints
            stack.enter_context(redirect_stdout(sys.stderr))
        elif isinstance(sys.stdout, io.TextIOWrapper):  # a path need not be of its encoding
            sys.stdout.reconfigure(errors="backslashreplace")
        _find_users_modules()
        from dreamstill.cli.commands import RUN  # imports torch, which takes seconds
        from dreamstill.cli.terminal import Bars
        from dreamstill.pipelines.process import settle_process

        settle_process()
        arguments.bars = stack.enter_context(Bars(quiet=arguments.json))
        result = RUN.get(arguments.command, RUN["compress"])(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))


def _flush() -> None:
    """Write out what was printed; where that fails, Python need not try again on its way out."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _of_system(error: OSError) -> str:
    """Return what the system says, and of which file."""
    names = [shown(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([error.strerror or str(error), *names])


def _fail(message: str) -> int:
    print(f"dreamstill: {one_line(message)}", file=sys.stderr)
    return 2


def _can_resume(arguments: argparse.Namespace) -> bool:
    """Tell whether the command can resume, and its directory holds something to resume."""
    from dreamstill.pipelines.run_directory import is_vacant

    resume, out = (getattr(arguments, name, None) for name in ("resume", "out"))
    folder = Path(resume if isinstance(resume, str) else out or "")
    return hasattr(arguments, "resume") and not is_vacant(folder)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
