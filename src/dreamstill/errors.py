"""Typed errors for mistakes of the user, which the command line prints in one line."""

import re

__all__ = [
    "BudgetError",
    "DataError",
    "DreamstillError",
    "ExportError",
    "NonFiniteError",
    "RunError",
    "ConfigError",
    "TeacherError",
    "first_line",
    "is_out_of_memory",
    "one_line",
    "quoted",
]

MOST_SHOWN = 200
"""Maximum characters of a third-party error: torch lists every backend that it knows."""
LONGEST = 380
"""Maximum characters of a message: below 400 with the name of the command."""


class DreamstillError(ValueError):
    """Base class; a message says in one line which value is wrong and what would be right."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class TeacherError(DreamstillError):
    """Error in a teacher's file, factory, card or first forward pass."""


class BudgetError(TeacherError):
    """Queries beyond the budget of a black box; raised before any of them is sent."""


class ConfigError(DreamstillError):
    """Setting that is unknown, out of range, or contradicts another."""


class DataError(DreamstillError):
    """Error in the images or labels that the user provides."""


class RunError(DreamstillError):
    """Run directory that cannot be created, written, read or resumed."""


class ExportError(DreamstillError):
    """Exported file that does not load, or whose output differs from the network's."""


class NonFiniteError(DreamstillError):
    """Loss that became NaN or infinite; the step ended before the weights were updated."""


def one_line(message: object, most: int = LONGEST) -> str:
    r"""Return a message as one printable line; cut the middle to fit in `most` characters.

    >>> one_line("no file at\n" + 300 * "a" + "\x00", 40)
    'no file at aaaaaaaaaaaaa ... aaaaaaa\\x00'
    """
    text = re.sub(r"\s*[\r\n]+\s*", " ", str(message))
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) <= most:
        return text
    end = (most - 5) // 3
    return f"{text[: most - 5 - end]} ... {text[-end:]}"


def quoted(value: object, most: int = 100) -> str:
    """Return the repr of a value for a message, at most `most` characters.

    >>> quoted([1, "a"]), quoted(10**5000)
    ("[1, 'a']", 'int, too large to print')
    """
    try:
        return one_line(repr(value), most)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in itself
        return f"{type(value).__name__}, too large to print"


def first_line(error: BaseException) -> str:
    r"""Return the first non-empty line of a third-party error's message, without colors.

    >>> first_line(ValueError("\n \x1b[96mstep 1\x1b[0m failed\nmore"))
    'step 1 failed'
    >>> first_line(AssertionError())
    'AssertionError()'
    """
    lines = [line.strip() for line in re.sub("\x1b\\[[0-9;]*m", "", str(error)).splitlines()]
    line = next(filter(None, lines), repr(error))
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}..."


def innermost(error: BaseException) -> str:
    """Return the first line of the message of an error's original cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of Python or torch, on a CPU or GPU, means that memory ran out.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    signs = ("DefaultCPUAllocator", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)
