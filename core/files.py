"""Files and folders that appear whole or not at all.

A process killed while it writes leaves the previous file as it was; at worst a hidden temporary
neighbour stays behind. A folder is exchanged in two moves, since no single one can replace a full
folder: killed between them, the previous folder lies beside its place as `.edgeadapt-*.old`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def may_write(folder: Path) -> bool:
    """Whether a file can be made in ``folder``, for all that permissions say."""
    return os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it there when the block ends without an error.

    The temporary name ends in the suffix of ``path``, because encoders choose a format by it.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".edgeadapt-", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0600, a result gets what open() gives
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; move it there when the block ends without error."""
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".edgeadapt-"))
    try:
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
            file.chmod(0o666 & ~_umask())  # some writers make private files
        temporary.chmod(0o777 & ~_umask())
        old = Path(f"{temporary}.old")
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
