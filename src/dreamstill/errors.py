"""Every mistake of a user has one typed error here; the command line prints it in one line."""

import re

__all__ = [
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
    "shown",
]

MOST_SHOWN = 200
"""Characters of somebody else's error: torch's name every backend that it knows."""
LONGEST = 380
"""Characters of a message; with the name of the command it stays below 400."""


class DreamstillError(ValueError):
    """Base of every error that names a value of the user's and what would be right, in a line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class TeacherError(DreamstillError):
    """The teacher's file, factory, card or first forward pass is wrong."""


class ConfigError(DreamstillError):
    """A setting is outside its range, unknown, or contradicts another."""


class DataError(DreamstillError):
    """Images or labels handed in for evaluation are wrong."""


class RunError(DreamstillError):
    """A run's folder cannot be created, written, or resumed."""


class ExportError(DreamstillError):
    """An exported file does not load in its runtime or does not compute what the model does."""


class NonFiniteError(DreamstillError):
    """A loss became NaN or infinite; the step was stopped before the update."""


def one_line(message: object, most: int = LONGEST) -> str:
    r"""Return a message as one printable line of at most `most` characters, its middle left out.

    >>> one_line("no file at\n" + 300 * "a" + "\x00", 40)
    'no file at aaaaaaaaaaaaa ... aaaaaaa\\x00'
    """
    text = re.sub(r"\s*[\r\n]+\s*", " ", str(message))
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) <= most:
        return text
    end = (most - 5) // 3
    return f"{text[: most - 5 - end]} ... {text[-end:]}"


def shown(value: object, most: int = 100) -> str:
    """Return a value's repr for a message, of at most `most` characters.

    >>> shown([1, "a"]), shown(10**5000)
    ("[1, 'a']", 'int, too large to print')
    """
    try:
        return one_line(repr(value), most)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in itself
        return f"{type(value).__name__}, too large to print"


def first_line(error: BaseException) -> str:
    r"""What an error of somebody else's says, in a line: the first that says anything, uncolored.

    >>> first_line(ValueError("\n \x1b[96mstep 1\x1b[0m failed\nmore"))
    'step 1 failed'
    >>> first_line(AssertionError())
    'AssertionError()'
    """
    lines = [line.strip() for line in re.sub("\x1b\\[[0-9;]*m", "", str(error)).splitlines()]
    line = next(filter(None, lines), repr(error))
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}..."


def innermost(error: BaseException) -> str:
    """What the first cause of an error of somebody else's says, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, torch's on a CPU, torch's on a GPU, or a size that no machine has.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    signs = ("DefaultCPUAllocator", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)
