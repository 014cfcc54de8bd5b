"""Import plug-ins: modules that register methods, distillation losses or tasks."""

import importlib
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from dreamstill.config import Text, from_plain
from dreamstill.distillation.config import LOSS_NAMES
from dreamstill.errors import ConfigError, first_line
from dreamstill.files.reading import check_file
from dreamstill.pipelines.config import STAGE_CONFIGS
from dreamstill.synthesis.registry import METHODS

__all__ = ["GROUP", "load_plugins"]

GROUP = "dreamstill.plugins"
"""Entry points of installed packages whose modules are plug-ins."""


def load_plugins(sources: Any) -> None:
    """Import the plug-ins of installed packages, and those named.

    Args:
        sources: list of paths of .py files and names of modules, or None.

    Raises:
        ConfigError: `sources` is no list of strings; or a plug-in is missing, fails, has the name
            of another module, or registers nothing.

    """
    named: Sequence[str] = from_plain(tuple[Text, ...] | None, sources, "plugin") or ()
    for source in (*(point.module for point in entry_points(group=GROUP)), *named):
        _load(source)


def _load(source: str) -> None:
    path, name = Path(source), source
    is_file = path.suffix == ".py"
    if is_file:
        check_file(path, ConfigError, "plug-in")
        path, name = path.resolve(), path.stem
        if str(path.parent) not in sys.path:  # last, so that it shadows no library
            sys.path.append(str(path.parent))
    known, before = name in sys.modules, _num_registered()
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's own code can raise anything
        raise ConfigError(f"cannot import the plug-in {source}: {first_line(error)}") from error
    found = getattr(module, "__file__", None)
    if is_file and (found is None or Path(found).resolve() != path):
        raise ConfigError(
            f"the plug-in {source} has the name of the module {found or name}: rename it"
        )
    if not known and _num_registered() == before:
        raise ConfigError(
            f"the plug-in {source} registers nothing: call ds.register_method, register_stage or "
            "register_loss in it"
        )


def _num_registered() -> int:
    # image programs need torch: a plug-in that registers one has imported it
    programs = sys.modules.get("dreamstill.synthesis.programs.registry")
    num_programs = len(programs.PROGRAMS) if programs else 0
    return num_programs + len(METHODS) + len(STAGE_CONFIGS) + len(LOSS_NAMES)
