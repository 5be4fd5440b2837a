"""torch's files as zip archives: sealed with a digest, and checked before torch reads them.

The comment of an archive that this program writes contains a digest of the whole file. (Zip's
CRC-32 of each entry, which torch does not check, does not cover the positions of the entries: torch
reads arbitrary memory if such a byte is damaged.)
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from pathlib import Path

SEAL = b"blake2b of all before: "  # and 32 bytes
SEAL_SIZE = len(SEAL) + 32


def seal(archive: io.BytesIO) -> None:
    """Put the digest into the comment of a zip archive; its last two bytes are the length."""
    view = archive.getbuffer()
    view[-2:] = struct.pack("<H", SEAL_SIZE)
    digest = hashlib.blake2b(view, digest_size=32).digest()
    view.release()
    archive.seek(0, io.SEEK_END)
    archive.write(SEAL + digest)


def fault_of(path: Path) -> str | None:
    """Return why an archive must not be read: it is damaged, or compressed (a possible zip bomb).

    Raises:
        zipfile.BadZipFile: the file is not an archive (zipfile may raise other errors, too).
    """
    if _seal_is_broken(path):
        return "damaged (checksum mismatch)"
    with zipfile.ZipFile(path) as archive:
        # before testing the entries' checksums, which unpacks them
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            return "compressed, unlike any file that torch writes"
        damaged = archive.testzip()
    return None if damaged is None else f"damaged (checksum mismatch in {damaged})"


def _seal_is_broken(path: Path) -> bool:
    """Return whether a file has a digest that does not match; without one, CRCs are checked."""
    with path.open("rb") as file:
        left = file.seek(0, io.SEEK_END) - SEAL_SIZE
        file.seek(max(left, 0))
        seal = file.read()
        if not seal.startswith(SEAL):
            return False
        file.seek(0)
        digest = hashlib.blake2b(digest_size=32)
        while left > 0:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
    return seal != SEAL + digest.digest()
