"""Compiled kernels on disk: one file per specialisation, written at once or not at all, verified before use.

Machine code is read only from a folder that nobody else can write to: the user's own cache, or the folder `shipped` that
comes with the package. Any number of processes may write the same entry; the last complete one stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile

from onnx_explain_kernels.compiler import Binary
from onnx_explain_kernels.errors import ArgumentError
from onnx_explain_kernels.specialisation import Specialisation

VARIABLE = "ONNX_EXPLAIN_KERNEL_CACHE"
SHIPPED = Path(__file__).with_name("shipped")
_MAGIC = b"onnx-explain kernel 1\n"
_LARGEST = 64 * 2**20  # no kernel comes near; a larger file is not ours


def encode(binary: Binary) -> bytes:
    """A compiled kernel as the bytes of its file: magic, SHA-256 of the rest, header length, JSON header, code."""
    header = {
        "specialisation": binary.specialisation.described(),
        "digest": binary.specialisation.digest,
        **{k: getattr(binary, k) for k in ("name", "shared", "scratch", "stages", "compiler")},
    }
    text = json.dumps(header).encode()
    body = struct.pack("<I", len(text)) + text + binary.code
    return _MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> tuple[str, Binary]:
    """(digest it was stored under, compiled kernel).

    Raises:
        ArgumentError: the bytes are not a whole, unchanged entry.

    """
    start = len(_MAGIC) + 32
    body = data[start:]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:
        raise ArgumentError("The stored kernel is damaged.")
    try:
        length = struct.unpack_from("<I", body)[0]
        header = json.loads(body[4 : 4 + length])
        spec, digest = Specialisation.read(header.pop("specialisation")), header.pop("digest")
        return digest, Binary(specialisation=spec, code=body[4 + length :], **header)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"The stored kernel is damaged: {error}.") from error


def why_not_private(folder: Path) -> str | None:
    """None where the user alone can write to a folder and to what leads to it; else what is wrong."""
    if not hasattr(os, "geteuid"):
        return None
    me = os.geteuid()
    for place in (folder, *folder.parents):
        about = place.stat()
        # a group of one's own, with the number of its user, is nobody else
        own_group = about.st_gid == os.getegid() == me
        shared = about.st_mode & (stat.S_IWOTH if own_group else stat.S_IWGRP | stat.S_IWOTH)
        sticky = place != folder and about.st_mode & stat.S_ISVTX  # nobody can rename what is mine, as in /tmp
        if about.st_uid not in ((me,) if place == folder else (me, 0)):
            return f"{place} belongs to another user"
        if shared and not sticky:
            return f"{place} can be written by other users"
    return None


def compilers() -> str:
    """The installed compilers, as part of a folder's name: what another version compiled is not taken over."""
    found = []
    for name in ("triton", "numba-cuda"):
        with suppress(PackageNotFoundError):
            found.append(f"{name}-{version(name)}")
    return re.sub(r"[^\w.+-]", "_", "_".join(found)) or "none"


def default_folder() -> Path:
    """``$ONNX_EXPLAIN_KERNEL_CACHE``, else ``onnx-explain/kernels`` in the user's cache."""
    own = os.environ.get(VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(own) if own else base / "onnx-explain" / "kernels") / compilers()


class Store:
    """The user's compiled kernels and those that were shipped.

    `refused` says why nothing is kept on disk (the folder is not private, or cannot be made), or is None.
    """

    def __init__(self, folder: Path | None = None, *, shipped: Path | None = SHIPPED) -> None:
        """Open the store; a folder that is not the user's alone is neither read nor written."""
        self.folder: Path | None = (folder or default_folder()).absolute()
        self.shipped = shipped
        self.refused: str | None = None
        try:
            for place in (*reversed(self.folder.parents), self.folder):
                if not place.exists():  # mkdir(parents=True) would leave the parents to the umask
                    place.mkdir(mode=0o700, exist_ok=True)
            self.folder = self.folder.resolve()
            self.refused = why_not_private(self.folder)
        except OSError as error:
            self.refused = f"{self.folder} cannot be made: {error.strerror}"
        if self.refused:
            self.folder = None

    def find(self, digest: str) -> Binary | None:
        """The kernel stored under a digest, or None; a damaged entry of the user's own is removed."""
        for folder in (self.folder, self.shipped):
            if folder is None:
                continue
            path = folder / f"{digest}.kernel"
            data = self._read(path, mine=folder == self.folder)
            if data is None:
                continue
            with suppress(ArgumentError):
                found, binary = decode(data)
                if found == digest == binary.specialisation.digest:
                    return binary
            if folder == self.folder:
                with suppress(OSError):
                    path.unlink()
        return None

    def keep(self, binary: Binary) -> None:
        """Store a kernel; whoever reads meanwhile sees the old file, the new one, or none."""
        if self.folder is None:
            return
        with suppress(OSError):  # a full disk costs the next start a compilation, not this run its result
            with NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".part", delete=False) as file:
                try:
                    file.write(encode(binary))
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    Path(file.name).unlink()
                    raise
            Path(file.name).replace(self.folder / f"{binary.specialisation.digest}.kernel")

    @staticmethod
    def _read(path: Path, *, mine: bool) -> bytes | None:
        """A file's bytes, unless it is a link, or someone else owns or may write it."""
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            return None
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(handle)
            foreign = mine and hasattr(os, "geteuid") and about.st_uid != os.geteuid()
            writable = hasattr(os, "geteuid") and about.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if mine else 0))
            if not stat.S_ISREG(about.st_mode) or foreign or writable or about.st_size > _LARGEST:
                return None
            return file.read()
