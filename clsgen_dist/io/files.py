"""Atomic file writes, and the one message for files that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from clsgen_dist.errors import DiskFullError, SettingsError, UserError


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "w", *, durable: bool = False, **options: Any) -> Iterator[IO[Any]]:
    """A file to write next to ``path``, which takes its name once the block has ended without an error.

    Each process writes a temporary file of its own, so that two of them cannot mix; the later one wins.

    Args:
        path: where the file appears; links are followed, and a device is written directly, as a shell would.
        mode: of :func:`open`.
        durable: flush file and folder to the disk before it counts (two fsyncs).
        options: further arguments of :func:`open`; text is UTF-8 unless they say otherwise.
    """
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    if path.exists() and not path.is_file():
        with path.open(mode, **options) as file:
            yield file
        return
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, **options) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


def atomic_write(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file: all of it, or nothing."""
    with atomic_file(path, durable=durable) as file:
        file.write(text)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that a user asked for; SettingsError where folder or file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except UserError:  # what is written may be read and computed meanwhile
        raise
    except (OSError, ValueError) as error:  # ValueError: an image format that matplotlib does not know
        raise SettingsError(f"{path} cannot be written ({error}); choose another file") from error


def require_writable(file: str | Path | None, *, picture: bool = False) -> None:
    """SettingsError now, not after the work, if the file cannot be written or is in no image format we can write."""
    if file is None:
        return
    path = Path(file)
    if picture:
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if path.suffix and path.suffix[1:].lower() not in known:
            raise SettingsError(
                f"{path} cannot be written: {path.suffix} is none of {', '.join(sorted(known))}; use .png"
            )
    existed = path.exists()
    with writing(path), path.open("a"):
        pass
    if not existed:
        path.unlink()


@contextlib.contextmanager
def disk_full_as_user_error(folder: Path) -> Iterator[None]:
    """A full disk or quota, wherever it shows first, is for the user to fix; other errors of a disk are crashes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"{error.filename or folder} cannot be written ({error.strerror}): make room on the disk of {folder}, or "
            "ask for more quota, then resume with --resume auto"
        ) from error
