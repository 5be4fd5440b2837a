"""Downloads of large files over HTTP: resumed when interrupted, and verified before renaming."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

from data.errors import InputError, shown
from scripts.dataset_tools.archives import Archive
from scripts.dataset_tools.output_folder import writing
from scripts.dataset_tools.progress import progress_of_bytes

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_BUSY = (408, 429)  # status codes of a server that may answer later
# Errors of a broken connection; HTTP errors are handled before.
_BROKEN = (OSError, http.client.HTTPException)


def fetch(archive: Archive, folder: Path, base: str | None, attempts: int = 5) -> tuple[Path, str]:
    """Download an archive into a folder unless it is there; returns its path and its MD5.

    The data stay in ``<name>.part`` until the file is complete and its checksum is correct; a later
    call resumes from there. A broken connection is retried, each time after a longer pause.

    Raises:
        InputError: the URL, the disk or the downloaded file cannot be used.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if not path.exists():
        url = archive.url_at(base)
        _check_address(url)
        _check_space(folder, archive, part)
        _fetch_part(url, part, attempts)
        digest = _check(archive, part, url)
        os.replace(part, path)
        return path, digest
    return path, _check(archive, path, str(path))


def _check_address(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or a bracket
        is_address = False
    if not is_address or not re.fullmatch(r"[!-~]+", url):
        raise InputError(
            f"{shown(url)}: is not an http:// or https:// URL; correct --base (percent-encode "
            "spaces and non-ASCII characters)"
        )


def _check_space(folder: Path, archive: Archive, part: Path) -> None:
    missing = archive.bytes - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise InputError(
            f"{folder}: {archive.name} needs {missing / 1e9:.1f} GB more, but {free / 1e9:.1f} GB "
            "are free; free disk space, or choose another --root"
        )


def _fetch_part(url: str, part: Path, attempts: int) -> None:
    for attempt in range(1, attempts + 1):
        before = _size(part)
        try:
            _receive(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in _BUSY:
                raise InputError(
                    f"{url}: the server answered {error.code} {error.reason}; check --base"
                ) from None
            problem = f"the server answered {error.code} {error.reason}"
        except _BROKEN as error:
            problem = str(error) or type(error).__name__
        if attempt == attempts:
            raise InputError(f"{url}: {problem}; {_size(part)} bytes are kept, run again to resume")
        if _size(part) == before:
            pause = min(2.0**attempt, 30.0)
            print(f"{url}: {problem}; retrying in {pause:.0f} s", file=sys.stderr, flush=True)
            time.sleep(pause)


def _receive(url: str, part: Path) -> None:
    """Request the missing bytes and append them, or restart if the server sends the whole file."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if _total_of(error.headers.get("Content-Range", "")) == start:
            return  # nothing is missing
        part.unlink()
        _receive(url, part)
        return
    with response:
        start, total = _place(response, start)
        with part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            _copy(response, file, start, total, part.stem)
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _place(response: http.client.HTTPResponse, wanted: int) -> tuple[int, int | None]:
    """Return the offset of a response's bytes, and the size of the whole file if known."""
    if response.status == 206:
        given = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if given is None or int(given[1]) != wanted:
            raise ConnectionError("the server sent another range than requested")
        return wanted, None if given[2] == "*" else int(given[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _total_of(content_range: str) -> int | None:
    total = content_range.rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _copy(
    response: http.client.HTTPResponse, file: IO[bytes], start: int, total: int | None, name: str
) -> None:
    with progress_of_bytes(name, total, start) as bar:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _check(archive: Archive, path: Path, source: str) -> str:
    """Return the MD5 of a file; if it is wrong, delete the file and raise InputError."""
    digest = md5_of(path)
    if digest != archive.md5:
        size = _size(path)
        path.unlink()
        raise InputError(
            f"{source}: has MD5 {digest} ({size} bytes) instead of {archive.md5} ({archive.bytes} "
            "bytes), so it was deleted; run again, or use another --base"
        )
    return digest


def md5_of(path: Path) -> str:
    """Return the MD5 of a file; it detects damage, not tampering."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, progress_of_bytes(f"check {path.stem}", _size(path)) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
