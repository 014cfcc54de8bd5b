"""Configuration of a narrower copy of a network."""

from typing import Any

from dreamstill.errors import ConfigError, quoted

__all__ = ["AUTO", "kept_share"]

AUTO = "auto:"
"""Prefix of the name of a student that is a narrower copy of its teacher."""


def kept_share(student: Any) -> float | None:
    """Return the share of every width that a student auto:SHARE keeps; None for other students.

    Raises ConfigError unless it is above 0 and below 1.

    >>> kept_share("auto:0.5"), kept_share("networks:small")
    (0.5, None)
    """
    if not isinstance(student, str) or not student.startswith(AUTO):
        return None
    try:
        share = float(student.removeprefix(AUTO))
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(
            f"a narrower copy of the teacher is written auto:SHARE, such as auto:0.5, with a share "
            f"of every width above 0 and below 1; got {quoted(student)}"
        )
    return share
