"""torch's files as zip archives: sealed with a digest, and checked before torch reads them.

The comment of an archive that this program writes holds a digest of the whole file. (The CRC-32
that zip has for each entry, and that torch does not compare, does not cover where the entries
stand: torch reads arbitrary memory when such a byte is damaged.)
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
    """Put the digest into the comment of a zip archive, whose length are its last two bytes."""
    view = archive.getbuffer()
    view[-2:] = struct.pack("<H", SEAL_SIZE)
    digest = hashlib.blake2b(view, digest_size=32).digest()
    view.release()
    archive.seek(0, io.SEEK_END)
    archive.write(SEAL + digest)


def fault_of(path: Path) -> str | None:
    """What an archive is that must not be read: damaged, or compressed and so perhaps a bomb.

    Raises zipfile.BadZipFile, or another error of zipfile's, for what is no archive.
    """
    if _seal_is_broken(path):
        return "damaged (its checksum is another)"
    with zipfile.ZipFile(path) as archive:
        # before the checksums of the entries, for which they are unpacked
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            return "compressed, which torch's files never are"
        damaged = archive.testzip()
    return None if damaged is None else f"damaged (checksum of {damaged})"


def _seal_is_broken(path: Path) -> bool:
    """Whether a file has a digest that is not its own; one without it has CRCs to be checked."""
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
