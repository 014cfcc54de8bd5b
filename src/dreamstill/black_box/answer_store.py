"""Answers by image, and the number of queries, in an SQLite file that survives a kill."""

import sqlite3
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dreamstill.errors import RunError
from dreamstill.files.reading import StrPath, check_file

__all__ = ["AnswerStore"]

TABLES = (
    "create table if not exists facts (name text primary key, value) without rowid",
    "create table if not exists answers (image blob primary key, answer blob) without rowid",
)
FACTS = "insert or ignore into facts values ('owner', ?), ('spent', 0), ('examined', 0)"
VARIABLES = 500
"""Images in a query of the database, which has a limit."""


class AnswerStore:
    """Answers by image; every change is written whole or not at all.

    Args:
        path: the file, made if it is absent; None keeps everything in memory.
        owner: whose answers these are, and how it is asked.

    Raises:
        RunError: the file is no such store, or holds the answers of another owner.

    """

    def __init__(self, path: StrPath | None, owner: str) -> None:
        self.path = path or "memory"
        if path is not None and Path(path).exists():
            check_file(path, RunError)
        with self._understood():
            self._database = sqlite3.connect(
                path or ":memory:",
                timeout=60,
                isolation_level=None,
                check_same_thread=False,  # another thread may collect it
            )
            weakref.finalize(self, self._database.close)
            with self._changing():
                for table in TABLES:
                    self._database.execute(table)
                self._database.execute(FACTS, (owner,))
            found = self._fact("owner")
        if found != owner:
            raise RunError(
                f"{path} holds the answers of {found}, not of {owner}: give another cache"
            )

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(f"{self.path} is no usable cache of answers: {error}") from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the database in one transaction, alone among all processes."""
        with self._understood(), self._database:
            self._database.execute("begin immediate")
            yield

    def _fact(self, name: str) -> str | int:
        with self._understood():
            rows = self._database.execute("select value from facts where name = ?", (name,))
            value: str | int = rows.fetchone()[0]
            return value

    @property
    def spent(self) -> int:
        """Queries so far, by all that have used this store."""
        return int(self._fact("spent"))

    def spend(self, num: int, budget: int) -> bool:
        """Count `num` queries, which are to be sent, and return True if `budget` allows them."""
        with self._changing():
            changed = self._database.execute(
                "update facts set value = value + ?1 where name = 'spent' and value + ?1 <= ?2",
                (num, budget),
            )
            return changed.rowcount == 1

    @property
    def examined(self) -> bool:
        """Whether the owner has been examined."""
        return bool(self._fact("examined"))

    def set_examined(self) -> None:
        """Note that the owner has been examined."""
        with self._changing():
            self._database.execute("update facts set value = 1 where name = 'examined'")

    def find(self, images: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the answers that are known, by image."""
        found: dict[bytes, bytes] = {}
        with self._understood():
            for start in range(0, len(images), VARIABLES):
                some = images[start : start + VARIABLES]
                marks = ", ".join("?" * len(some))
                query = f"select image, answer from answers where image in ({marks})"
                found.update(self._database.execute(query, some).fetchall())
        return found

    def keep(self, answers: Mapping[bytes, bytes]) -> None:
        """Store answers by image."""
        with self._changing():
            self._database.executemany(
                "insert or replace into answers values (?, ?)", answers.items()
            )
