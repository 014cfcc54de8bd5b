"""Suppress the output of libraries, and of this one."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

__all__ = ["quiet", "quiet_native", "without_messages"]


@contextlib.contextmanager
def without_messages(*, below: int = logging.ERROR) -> Iterator[None]:
    """Suppress this package's own messages below a level inside the context."""
    logger = logging.getLogger("dreamstill")
    level = logger.level
    logger.setLevel(below)
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


@contextlib.contextmanager
def quiet_native() -> Iterator[None]:
    """Suppress what libraries in C++ write to the process's standard error inside the context."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed already
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
