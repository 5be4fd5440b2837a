"""Files of weights: wrappers and metadata are understood, files from strangers do no harm."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from data.errors import InputError
from detector.pretrained.weight_archive import seal
from detector.pretrained.weight_files import fetch_weights, read_weights


@pytest.mark.parametrize("classes", ["cat, dog", "[1, 2]", '{"0": "cat"}', "[" * 100_000, ""])
def test_what_other_programs_call_classes_is_passed_over(classes: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, {"classes": classes})
    stored = read_weights(path)
    assert (stored.classes, list(stored.state)) == (None, ["a"])


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."]
)
def test_what_wrapped_the_model_is_no_part_of_its_names(prefix: str, tmp_path: Path) -> None:
    state = {"backbone.body.weight": torch.ones(2), "head.bias": torch.zeros(1)}
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "x.pth")
    assert list(read_weights(tmp_path / "x.pth").state) == list(state)
    partly = {prefix + "head.bias": torch.ones(2), "head.bias": torch.zeros(1)}
    torch.save(partly, tmp_path / "x.pth")
    assert list(read_weights(tmp_path / "x.pth").state) == list(partly)


class Exploit:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploited",)


def write_bad_file(kind: str, path: Path) -> None:
    if kind == "truncated":
        torch.save({"conv1.weight": torch.zeros(100, 3)}, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "malicious":
        path.write_bytes(pickle.dumps({"conv1.weight": Exploit()}, protocol=2))
    elif kind == "malicious zip":
        torch.save({"conv1.weight": Exploit()}, path)
    else:
        content = {
            "a list": [1, 2],
            "numbers": {"a": 1},
            "nothing": {},
            "a tensor": torch.ones(2),
        }
        torch.save(content[kind], path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "empty",
        "text",
        "malicious",
        "malicious zip",
        "a list",
        "numbers",
        "nothing",
        "a tensor",
    ],
)
def test_bad_files_are_named_and_nothing_runs(
    kind: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights.{ending}"
    write_bad_file(kind, path)
    with pytest.raises(InputError, match=str(path)) as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.arange(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(900, 902).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged \(checksum mismatch in"):
        read_weights(path)


def test_our_own_checkpoint_is_checked_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    buffer = io.BytesIO()
    torch.save({"detector": {"conv1.weight": torch.arange(1000)}}, buffer)
    seal(buffer)
    path.write_bytes(buffer.getvalue())
    assert list(read_weights(path).state) == ["conv1.weight"]
    content = bytearray(buffer.getvalue())
    content[content.index(b"PK\1\2") + 4] ^= 1  # of the directory, which has no checksum
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"best\.pt is damaged \(checksum mismatch"):
        read_weights(path)


def test_compressed_weights_which_may_be_a_bomb_are_refused(tmp_path: Path) -> None:
    path, bomb = tmp_path / "weights.pth", tmp_path / "bomb.pth"
    torch.save({"conv1.weight": torch.zeros(1000, 1000)}, path)
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    with pytest.raises(InputError, match=r"bomb\.pth is compressed"):
        read_weights(bomb)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.pth", Path("imagnet")):
        with pytest.raises(InputError, match=f"{path}: file not found; choose imagenet"):
            read_weights(path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder served over HTTP, and the address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def serve(folder: Path, right_hash: bool = True) -> str:
    torch.save({"conv1.weight": torch.arange(12.0).view(4, 3)}, folder / "file")
    digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()
    name = f"network-{digest[:8] if right_hash else '00000000'}.pth"
    (folder / "file").rename(folder / name)
    return name


def test_weights_are_fetched_once_and_kept(server: tuple[str, Path], cache: Path) -> None:
    address, folder = server
    name = serve(folder)
    fetched = fetch_weights(f"{address}/{name}")
    assert fetched.source == str(cache / name)
    (folder / name).unlink()
    again = fetch_weights(f"{address}/{name}")
    assert torch.equal(again.state["conv1.weight"], fetched.state["conv1.weight"])


def test_a_download_with_the_wrong_hash_is_refused(server: tuple[str, Path], cache: Path) -> None:
    address, folder = server
    name = serve(folder, right_hash=False)
    with pytest.raises(InputError, match="invalid hash"):
        fetch_weights(f"{address}/{name}")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no.such.host.invalid"])
def test_offline_the_message_says_where_to_put_the_file(address: str, cache: Path) -> None:
    with pytest.raises(InputError) as raised:
        fetch_weights(f"{address}/network-01234567.pth")
    assert f"put the file network-01234567.pth at {cache / 'network-01234567.pth'}" in str(
        raised.value
    )


def test_a_missing_file_on_the_server_says_where_to_put_it(
    server: tuple[str, Path], cache: Path
) -> None:
    with pytest.raises(InputError, match="404") as raised:
        fetch_weights(f"{server[0]}/network-01234567.pth")
    assert str(cache) in str(raised.value)
