"""What every record can do: a tidy frame, and JSON that is checked on both ways."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pandas as pd

from evitlab.records.environment import Environment
from evitlab.schema import decode, encode


def write_atomically(
    path: str | os.PathLike[str], data: bytes | str, *, keep: Path | None = None
) -> Path:
    """Write a file so that a reader, or a killed run, sees the old content or the new, never half.

    Args:
        path: target; missing parent folders are made.
        data: text is written as UTF-8 with the line endings it has.
        keep: where the old content goes, if any; between the two renames it is only there.

    Raises:
        OSError: the folder cannot be made or written (with the errno's own subclass, such as
            `PermissionError`); the message names the target.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(error, path) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the folder is not there or not ours: nothing was left behind
    return path


def unwritable(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """The system's error of whatever file was tried, as one that names what was asked for."""
    return OSError(error.errno, f"cannot write here ({error.strerror})", str(path))


def check_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Raise now what `write_atomically` would raise later, after minutes of work; makes nothing.

    Args:
        path: a file that is going to be written, or with `folder` what files go into.

    Raises:
        OSError: as there.
        ValueError: no system takes such a path.
    """
    place = Path(path)
    try:
        if place.is_dir() and not folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with suppress(FileNotFoundError):
            place.lstat()  # a name that is too long, or a file where a folder is expected
        above = (place / "file" if folder else place).absolute().parents
        there = next(parent for parent in above if os.path.lexists(parent))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise unwritable(error, path) from error


class Record:
    """Mixin for frozen dataclasses: a tidy frame, and JSON that is checked on both ways.

    Fields may be bool, int, float, str, None, nested dataclasses, tuples, and dicts of such plain
    values (sequences inside a dict come back as tuples).
    """

    def to_frame(self) -> pd.DataFrame:
        """One row: the plain fields, then the environment card's.

        Where both have a column of the same name, the record's own stands.
        """
        return pd.DataFrame([{**_plain_columns(self), **_card_columns(self)}])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as JSON, atomically.

        Raises:
            ValueError: a value is NaN, infinite or not of the field's type.
            OSError: the folder cannot be written.
        """
        plain = encode(self, type(self).__name__)
        decode(plain, type(self), type(self).__name__)  # refuse now what `load` would refuse
        content = json.dumps({"record": type(self).__name__, **plain}, indent=1, allow_nan=False)
        return write_atomically(path, content + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: broken JSON, another type of record, a missing or unknown field, or a value
                that is not finite or not of the field's type; one line with file and field.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # of numbers too long, or lists too deep, too
            raise ValueError(f"{path}: not a JSON record: {error}") from error
        if not isinstance(content, dict) or "record" not in content:
            raise ValueError(f'{path}: not a record: expected an object with the key "record"')
        found = content.pop("record")
        if found != cls.__name__:
            raise ValueError(f"{path}: expected a record of type {cls.__name__}, got {found!r}")
        try:
            return decode(content, cls, cls.__name__)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None


def _plain_columns(record: Any) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {
        name: value
        for name, value in values.items()
        if value is None or isinstance(value, (bool, int, float, str))
    }


def _card_columns(record: Any) -> dict[str, Any]:
    card = getattr(record, "environment", None)
    if not isinstance(card, Environment):
        return {}
    own = _plain_columns(record)
    return {name: value for name, value in dataclasses.asdict(card).items() if name not in own}
