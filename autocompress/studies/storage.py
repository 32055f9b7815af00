"""Opens what studies are kept in: a database by URL, or a journal, a file that only grows.

A file that is deleted while a search runs is still held open, so it is written again from there
before the search is told.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from autocompress.errors import StorageError, first_line

LOCK_SECONDS = 60.0  # that a locked SQLite file is waited for
CONNECT_SECONDS = 10  # that a database server has to answer
_JOURNAL = "journal://"
_DRIVERS = {"postgresql": "psycopg2-binary", "mysql": "pymysql"}
_HINT = (
    "Check the URL (for example sqlite:///study.db, postgresql://host/name or "
    "journal:///folder/study.journal). A file that was damaged can be deleted; "
    "its search starts over."
)

StoredStudy = optuna.Study  # an Optuna study as its storage gives it; only few speak to it directly


TROUBLES = (SQLAlchemyError, StorageInternalError)  # what a storage that is locked or gone raises


def default_storage(folder: Path) -> str:
    """URL of the SQLite file in a run folder."""
    return f"sqlite:///{(folder / 'study.db').absolute()}"


def storage_url(given: str) -> str:
    """URL of a storage as a person names it, with an absolute path where it is a file.

    A path that ends in ``.journal`` is a storage, too.
    """
    if "://" not in given and given.endswith(".journal"):
        given = _JOURNAL + given
    if given.startswith(_JOURNAL):
        return _JOURNAL + str(Path(given.removeprefix(_JOURNAL)).expanduser().absolute())
    path = file_of(given)
    if path is None or path.is_absolute() or str(path).startswith((":memory:", "file:")):
        return given
    absolute = make_url(given).set(database=str(path.expanduser().absolute()))
    return absolute.render_as_string(hide_password=False)


def file_of(url: str) -> Path | None:
    """The file of a SQLite database or journal; ``None`` for any other storage."""
    if url.startswith(_JOURNAL):
        return Path(storage_url(url).removeprefix(_JOURNAL))
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    return Path(parsed.database) if url.startswith("sqlite") and parsed.database else None


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Connect to a storage.

    Raises:
        StorageError: it cannot be reached or is no database of Optuna's.
    """
    # Optuna announces every new study on stderr, to people who did not ask for Optuna.
    optuna.logging.set_verbosity(max(optuna.logging.get_verbosity(), optuna.logging.WARNING))
    try:
        url = storage_url(url)
        if url.startswith(_JOURNAL):
            backend = _HeldJournal(url.removeprefix(_JOURNAL))
            return optuna.storages.JournalStorage(backend)
        return _open_database(url)
    except ImportError as error:
        kind = url.partition(":")[0].partition("+")[0]
        name = _DRIVERS.get(kind)
        hint = f"Install one, for example: pip install {name}" if name else "Install one."
        what = f"the storage {_shown(url)} needs a driver for {kind} that is not installed"
        raise StorageError(what, hint=hint) from error
    except Exception as error:  # drivers raise their own types; all mean the same to the user
        if _is_locked(error):
            raise _locked(url) from error
        what = f"the storage {_shown(url)} cannot be opened: {first_line(error)}"
        raise StorageError(what, hint=_HINT) from error


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Say in one paragraph what a storage raises that is locked, full or gone.

    Args:
        url: of the storage; or whose it is (``of study 'demo'``) where that is not known.

    Raises:
        StorageError: in place of what the database's driver or Optuna raised.
    """
    try:
        yield
    except TROUBLES as error:
        cause = error.__cause__ or error
        if _is_locked(cause):
            raise _locked(url) from error
        raise StorageError(
            f"the storage {_shown(url)} cannot be used: {first_line(cause)}",
            hint="Its disk may be full or gone, or its server. What had finished is kept; once it "
            "answers again, --resume goes on with it.",
        ) from error


def settle(study: optuna.Study) -> None:
    """Merge SQLite's log into its file, so that the run folder can be copied and only read."""
    engine = getattr(study._storage, "engine", None) or getattr(
        getattr(study._storage, "_backend", None), "engine", None
    )
    if engine is None or engine.dialect.name != "sqlite":
        return
    with suppress(SQLAlchemyError, StorageError), engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=0")  # whoever else has it open settles it
        connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
    engine.dispose()


def _open_database(url: str) -> optuna.storages.RDBStorage:
    if not url.startswith("sqlite"):
        arguments = {"connect_timeout": CONNECT_SECONDS} if url.startswith("postgresql") else {}
        options: dict[str, Any] = {"connect_args": arguments, "pool_pre_ping": True}
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    options = {"connect_args": {"timeout": LOCK_SECONDS}}
    storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
    storage.engine.dispose()  # the connections made so far were opened without these
    event.listen(storage.engine, "connect", _commit_quickly)
    path = file_of(url)
    if path is not None:
        held = _HeldDatabase(path)
        event.listen(storage.engine, "connect", held.remember)
        event.listen(storage.engine, "checkout", held.check)
    return storage


def _commit_quickly(connection: sqlite3.Connection, _record: object) -> None:
    """Let SQLite append to a log at each commit instead of syncing the whole file.

    A commit then survives the end of the process, also by a kill; a trial makes a dozen.
    """
    with suppress(sqlite3.OperationalError):  # a study in a folder that is only read
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA journal_mode=WAL")


class _HeldDatabase:
    """Sees that the file of a connection is still the one in its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def remember(self, _connection: sqlite3.Connection, record: Any) -> None:
        record.info["inode"] = _inode(self.path)

    def check(self, connection: sqlite3.Connection, record: Any, _proxy: object) -> None:
        """Write the database again, and say so, when its file is gone."""
        if _inode(self.path) == record.info["inode"]:
            return
        _make_room(self.path)
        for companion in ("-wal", "-shm"):  # they belong to what was deleted
            self.path.with_name(self.path.name + companion).unlink(missing_ok=True)
        with sqlite3.connect(self.path) as again:
            connection.backup(again)
        again.close()
        record.invalidate()  # the next connection is to the new file
        raise _was_deleted(self.path)


class _HeldJournal(JournalFileBackend):
    """A journal that sees that its file is still the one in its folder."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = Path(path)
        self._hold()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Read what was appended since."""
        self._check()
        return super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append."""
        self._check()
        super().append_logs(logs)

    def _hold(self) -> None:
        self._held = self.path.open("rb")
        self._inode = _inode(self.path)

    def _check(self) -> None:
        if _inode(self.path) == self._inode:
            return
        _make_room(self.path)
        self._held.seek(0)
        with self.path.open("wb") as again:
            shutil.copyfileobj(self._held, again)
        self._held.close()
        self._hold()
        raise _was_deleted(self.path)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _make_room(path: Path) -> None:
    """Make the folder of a file that is gone.

    Raises:
        StorageError: another file is there; it is left alone.
    """
    if path.exists():
        raise StorageError(
            f"the storage {path} was replaced by another file while it was in use",
            hint="Search in a folder that nothing else writes to.",
        )
    with suppress(OSError):  # writing the file says what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)


def _was_deleted(path: Path) -> StorageError:
    return StorageError(
        f"the storage {path} was deleted while it was in use",
        hint="It has been written again with all that had finished; --resume goes on with it.",
    )


def _is_locked(error: BaseException) -> bool:
    return " is locked" in first_line(error)


def _locked(url: str) -> StorageError:
    return StorageError(
        f"the storage {_shown(url)} is locked by another process",
        hint="End that process (`fuser FILE` says which it is), or wait until it is done, and "
        "give the same command again. What had finished is kept.",
    )


def _shown(url: str) -> str:
    """A URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url
