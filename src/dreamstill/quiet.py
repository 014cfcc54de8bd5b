"""Suppress the output of libraries, and of this one."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet", "without_messages"]


@contextlib.contextmanager
def without_messages() -> Iterator[None]:
    """Suppress this package's own messages and warnings inside the context."""
    logger = logging.getLogger("dreamstill")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output, logs and warnings of libraries inside the context."""
    loggers = [logging.getLogger(name) for name in ("", "torch", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
