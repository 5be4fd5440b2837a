"""Downloads from a file server on this machine: resumed, checked, unpacked into their folder."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from datasets_on_disk import write_voc

from data.build import build_annotations
from data.config import DataConfig
from data.errors import InputError
from scripts.dataset_tools import archives
from scripts.dataset_tools.archives import Archive
from scripts.dataset_tools.downloading import fetch
from scripts.dataset_tools.unpacking import unpack
from scripts.datasets import main


class FileServer:
    """Serves ``files``; notes the ranges asked for, and can break off after some bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.break_after: list[int] = []  # bytes, of the next answers
        self.knows_ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{self._server.server_port}/mirror"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        content = self.files.get(request.path.removeprefix("/mirror/"))
        if content is None:
            request.send_error(404)
            return
        start = int(re.findall(r"bytes=(\d+)-", asked)[0]) if asked and self.knows_ranges else 0
        if start >= len(content) > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            end = len(content) - 1
            request.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        body = content[start:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.break_after:
            body = body[: self.break_after.pop(0)]
        request.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


def an_archive(content: bytes, name: str = "data.tar", md5: str = "right") -> Archive:
    known = hashlib.md5(content).hexdigest() if md5 == "right" else md5
    return Archive(f"http://publisher.invalid/{name}", len(content), known, ".")


def a_tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


CONTENT = bytes(range(256)) * 400


def test_a_download_has_the_bytes_and_the_checksum_of_the_file(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["data.tar"] = CONTENT
    path, md5 = fetch(an_archive(CONTENT), tmp_path, server.base)
    assert path.read_bytes() == CONTENT
    assert md5 == hashlib.md5(CONTENT).hexdigest()
    assert os.listdir(tmp_path) == ["data.tar"]


def test_what_arrived_is_not_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    server.files["data.tar"] = CONTENT
    (tmp_path / "data.tar.part").write_bytes(CONTENT[:1000])
    path, _ = fetch(an_archive(CONTENT), tmp_path, server.base)
    assert server.ranges == ["bytes=1000-"]
    assert path.read_bytes() == CONTENT


def test_a_broken_connection_is_taken_up_where_it_broke(server: FileServer, tmp_path: Path) -> None:
    server.files["data.tar"] = CONTENT
    server.break_after = [5000, 7000]
    path, _ = fetch(an_archive(CONTENT), tmp_path, server.base)
    assert server.ranges == [None, "bytes=5000-", "bytes=12000-"]
    assert path.read_bytes() == CONTENT


def test_a_failed_download_keeps_what_arrived_for_the_next_call(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["data.tar"] = CONTENT
    server.break_after = [5000]
    with pytest.raises(InputError, match=r"5000 bytes are kept, run again"):
        fetch(an_archive(CONTENT), tmp_path, server.base, attempts=1)
    path, _ = fetch(an_archive(CONTENT), tmp_path, server.base, attempts=1)
    assert server.ranges[1:] == ["bytes=5000-"]
    assert path.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_file_from_its_start(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["data.tar"] = CONTENT
    server.knows_ranges = False
    (tmp_path / "data.tar.part").write_bytes(b"x" * 1000)
    path, _ = fetch(an_archive(CONTENT), tmp_path, server.base)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_that_is_whole_or_too_long_comes_out_right(
    server: FileServer, tmp_path: Path, extra: int
) -> None:
    server.files["data.tar"] = CONTENT
    (tmp_path / "data.tar.part").write_bytes(CONTENT + b"x" * extra)
    path, _ = fetch(an_archive(CONTENT), tmp_path, server.base)
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file_behind(server: FileServer, tmp_path: Path) -> None:
    server.files["data.tar"] = CONTENT[:-1] + b"?"
    with pytest.raises(InputError, match=r"has MD5 \w+ .* instead of .*run again"):
        fetch(an_archive(CONTENT), tmp_path, server.base)
    assert os.listdir(tmp_path) == []


def test_an_archive_that_is_there_is_checked_and_not_fetched(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "data.tar").write_bytes(CONTENT)
    fetch(an_archive(CONTENT), tmp_path, server.base)
    assert server.ranges == []


def test_a_missing_file_and_a_wrong_address_are_said(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"answered 404.*check --base"):
        fetch(an_archive(CONTENT), tmp_path, server.base)
    for base in (
        "file:///etc",
        "http://",
        "http://h:abc",
        "http://[::1",
        "http://h/\u00fc",
        "http://h/a b",
    ):
        with pytest.raises(InputError, match=r"not an http:// or https:// URL"):
            fetch(an_archive(CONTENT), tmp_path, base)


def test_an_archive_larger_than_the_disk_is_refused_at_once(tmp_path: Path) -> None:
    archive = Archive("http://publisher.invalid/a.tar", 1 << 60, "", ".")
    with pytest.raises(InputError, match=r"needs .* GB more"):
        fetch(archive, tmp_path, None)


def test_the_command_downloads_unpacks_and_can_be_repeated(
    server: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = a_tar({"VOCdevkit/VOC2007/Annotations/1.xml": b"<annotation/>"})
    archive = an_archive(content, "VOCtest.tar")
    monkeypatch.setitem(archives.DATASETS, "voc2007", (archive,))
    server.files["VOCtest.tar"] = content
    command = ["download", "voc2007", "--root", str(tmp_path), "--base", server.base]
    for _ in range(2):
        assert main(command) == 0
    assert (tmp_path / "VOCdevkit/VOC2007/Annotations/1.xml").read_bytes() == b"<annotation/>"
    assert f"MD5 {archive.md5} is correct" in capsys.readouterr().out
    assert len(server.ranges) == 1


def test_all_published_archives_have_a_checksum_and_a_size() -> None:
    for archive in sum(archives.DATASETS.values(), ()):
        assert re.fullmatch("[0-9a-f]{32}", archive.md5)
        assert archive.bytes > 1e8
        assert archive.url_at("http://here/") == f"http://here/{archive.name}"


def test_tar_and_zip_unpack_to_the_same_files(tmp_path: Path) -> None:
    members = {"a/b.txt": b"one", "./c.txt": b"two", "a/empty": b""}
    (tmp_path / "x.tar").write_bytes(a_tar(members))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a/", b"")
        for name, content in members.items():
            file.writestr(name, content)
    for archive in ("x.tar", "x.zip"):
        folder = tmp_path / f"{archive}-out"
        assert unpack(tmp_path / archive, folder) == 3
        for name, content in members.items():
            assert (folder / name).read_bytes() == content


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "C:/out", "a\\b"])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    (tmp_path / "x.tar").write_bytes(a_tar({"first.txt": b"1", name: b"2"}))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("first.txt", b"1")
        file.writestr(name, b"2")
    for archive in ("x.tar", "x.zip"):
        with pytest.raises(InputError, match="may leave the root"):
            unpack(tmp_path / archive, inside)
    assert not inside.exists()  # names are checked before the first file is written
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("link")
    entry.type, entry.linkname = kind, "/etc"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(entry)
    with pytest.raises(InputError, match="link or special file"):
        unpack(tmp_path / "x.tar", tmp_path / "inside")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(entry, "/etc")
    with pytest.raises(InputError, match="link or special file"):
        unpack(tmp_path / "x.zip", tmp_path / "inside")


def test_nothing_is_written_through_a_link_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/a").symlink_to(tmp_path / "outside")
    (tmp_path / "x.tar").write_bytes(a_tar({"a/b.txt": b"1"}))
    with pytest.raises(InputError, match="through a link"):
        unpack(tmp_path / "x.tar", tmp_path / "inside")
    assert os.listdir(tmp_path / "outside") == []


def test_an_archive_that_explodes_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(70_000_000))
    with pytest.raises(InputError, match="more than 20 times its size"):
        unpack(tmp_path / "x.zip", tmp_path / "inside")


@pytest.mark.parametrize("cut", [1, 600, 5000])
def test_a_cut_archive_is_called_damaged(tmp_path: Path, cut: int) -> None:
    (tmp_path / "x.tar").write_bytes(a_tar({"a": b"1" * 3000, "b": b"2" * 3000})[:cut])
    with pytest.raises(InputError, match="is damaged"):
        unpack(tmp_path / "x.tar", tmp_path / "inside")


def test_unpacking_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(a_tar({"a": b"12345", "b": b"67890"}))
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "a").write_bytes(b"12345")
    (folder / ".b.part").write_bytes(b"67")
    before = (folder / "a").stat().st_ino
    unpack(tmp_path / "x.tar", folder)
    assert (folder / "a").stat().st_ino == before
    assert sorted(os.listdir(folder)) == ["a", "b"]
    assert (folder / "b").read_bytes() == b"67890"


def test_vocs_defaults_fit_what_the_archives_of_2007_unpack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    splits = {"trainval": ["a"], "test": ["b"]}
    write_voc(Path("datasets/VOCdevkit/VOC2007"), {"a": [], "b": []}, splits)
    config = DataConfig(format="voc")
    assert [
        build_annotations(config, split).names.tolist() for split in (config.train, config.val)
    ] == [["a"], ["b"]]
