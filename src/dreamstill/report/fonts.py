"""Keep matplotlib's list of fonts out of the home folder, unless it is there already."""

import os
import stat
import tempfile
from pathlib import Path

__all__ = ["keep_fonts_out_of_home"]


def keep_fonts_out_of_home() -> None:
    """Let matplotlib write below the temporary folder; to be called before it is imported.

    Folders that it already has in the home folder, or MPLCONFIGDIR, stay in use.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
    if "MPLCONFIGDIR" in os.environ or home.is_dir():
        return
    own = f"dreamstill-{os.getuid() if hasattr(os, 'getuid') else 'fonts'}"
    folder = Path(tempfile.gettempdir()) / own
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        seen = folder.lstat()
    except OSError:
        return  # matplotlib has a way out of its own
    others = hasattr(os, "getuid") and (seen.st_uid != os.getuid() or seen.st_mode & 0o022)
    if stat.S_ISDIR(seen.st_mode) and not others:  # nobody else has put anything there
        os.environ["MPLCONFIGDIR"] = str(folder)
