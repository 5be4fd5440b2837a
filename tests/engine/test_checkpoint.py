"""A checkpoint is whole or refused, never half, and never code."""

import os
import pickle
import resource
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from engine.checkpoint import STATE, load_checkpoint, load_latest, save_checkpoint
from engine.process import atomic_file
from engine.process.atomic_file import link_atomically, write_atomically
from engine.state import Progress


def contents(value: float = 1.0) -> dict[str, object]:
    state = {key: kind() for key, kind in STATE.items()}
    return {"detector": {"w": torch.full((64, 64), value)}, "classes": ["a"], "config": {}, **state}


def value_of(loaded: dict[str, object]) -> float:
    return float(loaded["detector"]["w"][0, 0])  # type: ignore[index]


def test_a_saved_checkpoint_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, contents())
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["detector"]["w"], torch.ones(64, 64))
    assert loaded["classes"] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_the_checkpoint_before_stays_as_previous(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        save_checkpoint(tmp_path / "last.pt", contents(value))
    assert value_of(load_checkpoint(tmp_path / "last.pt")) == 3.0
    assert value_of(load_checkpoint(tmp_path / "previous.pt")) == 2.0


def test_what_is_saved_as_previous_itself_is_saved(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path / "previous.pt", contents(value))
    assert value_of(load_checkpoint(tmp_path / "previous.pt")) == 2.0
    assert [file.name for file in tmp_path.iterdir()] == ["previous.pt"]


def test_a_link_keeps_its_contents_when_last_moves_on(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", contents(1.0))
    link_atomically(tmp_path / "last.pt", tmp_path / "best.pt")
    save_checkpoint(tmp_path / "last.pt", contents(2.0))
    assert value_of(load_checkpoint(tmp_path / "best.pt")) == 1.0


def test_a_link_made_twice_leaves_no_other_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", contents(1.0))
    for _ in range(2):
        link_atomically(tmp_path / "last.pt", tmp_path / "best.pt")
    assert {file.name for file in tmp_path.iterdir()} == {"last.pt", "best.pt"}


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_where_files_cannot_have_two_names_the_best_is_a_copy(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", contents(1.0))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        best = Path(folder) / "best.pt"
        link_atomically(tmp_path / "last.pt", best)
        assert value_of(load_checkpoint(best)) == 1.0
        assert [file.name for file in best.parent.iterdir()] == ["best.pt"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, contents(1.0))
    save_checkpoint(path, contents(2.0))
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[data.find(torch.full((64,), 2.0).numpy().tobytes()) + 100] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(os.urandom(5000))
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"last\.pt"):
        load_checkpoint(path)
    assert value_of(load_latest(tmp_path)[1]) == 1.0
    assert "last.pt" in caplog.text
    assert "previous.pt" in caplog.text


def test_every_flipped_byte_is_detected_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**contents(), "detector": {"w": torch.arange(6.0)}})
    data = path.read_bytes()
    directory = data.index(b"PK\1\2")  # its numbers lead torch to the entries
    for position in [*range(0, directory, 7), *range(directory, len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except InputError:
            continue
        assert torch.equal(loaded["detector"]["w"], torch.arange(6.0))


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(writer: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "last.pt", tmp_path / "ran"
    value = {**contents(), "version": 1, "extra": Malicious(marker)}
    if writer == "torch":
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=r"last\.pt") as error:
        load_checkpoint(path)
    assert "weights_only" not in str(error.value)  # torch's advice to run the code after all
    assert not marker.exists()


def test_foreign_weights_are_told_from_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"detector\.weights"):
        load_checkpoint(tmp_path / "resnet.pth")


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    torch.save({**contents(), "version": 99}, tmp_path / "last.pt")
    with pytest.raises(InputError, match="format 99"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("key", "value"),
    [("classes", "cat"), ("classes", []), ("classes", [1]), ("config", 3), ("detector", None)],
)
def test_a_checkpoint_with_a_part_of_the_wrong_type_is_refused(
    key: str, value: object, tmp_path: Path
) -> None:
    torch.save({"version": 1, **contents(), key: value}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=rf"last\.pt: its {key}"):
        load_checkpoint(tmp_path / "last.pt")


DEEP: dict[str, object] = {}
for _ in range(100):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("detector", {1: torch.ones(1)}),
        ("detector", {"w": 3}),
        ("config", {"train": 3}),
        ("config", {"train": None}),
        ("config", {1: {}}),
        ("config", {"train": {"freeze": {1: [0, 1]}}}),
        ("config", {"train": DEEP}),
    ],
)
def test_a_checkpoint_whose_parts_hold_what_they_cannot_is_refused(
    key: str, value: object, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "last.pt", {**contents(), key: value})
    with pytest.raises(InputError, match=rf"last\.pt: its {key} holds"):
        load_checkpoint(tmp_path / "last.pt")


ONE = {"a": torch.ones(())}
WINDOW = {"step": 3, "loss_mean": ONE, "loss_std": ONE}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("progress", {"epoch": value}) for value in ("1", -1, None, 1.0, True, 2**63)],
        *[("progress", {"batch": -3}), ("progress", {"best_score": "x"})],
        *[("unlogged", value) for value in (3, [], {}, {"epoch": 1})],
        *[("windows", [value]) for value in (1, {}, {**WINDOW, "step": "3"})],
        *[
            ("windows", [{**WINDOW, "loss_std": value}])
            for value in (None, {"a": "b"}, {"a": torch.ones(2)}, {1: torch.ones(())})
        ],
    ],
)
def test_a_state_that_no_run_can_have_is_no_place_to_go_on_from(
    key: str, value: object, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "last.pt", {**contents(), key: value})
    with pytest.raises(InputError, match=rf"last\.pt: its {key} (has|hold|is) "):
        load_latest(tmp_path)


def test_a_state_that_a_run_can_have_is_a_place_to_go_on_from(tmp_path: Path) -> None:
    for progress in (Progress(), Progress(1, 2, 7, 1, best_score=0.5, best_epoch=1)):
        state = {"progress": asdict(progress), "windows": [WINDOW]}
        save_checkpoint(tmp_path / "last.pt", {**contents(), **state})
        assert load_latest(tmp_path)[1]["progress"] == asdict(progress)


@pytest.mark.parametrize("key", STATE)
def test_a_checkpoint_without_a_part_of_its_state_is_no_place_to_go_on_from(
    key: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "last.pt", {**contents(), key: "x"})
    assert load_checkpoint(tmp_path / "last.pt")[key] == "x"  # good enough to be evaluated
    with pytest.raises(InputError, match=rf"last\.pt: its {key} is 'x'"):
        load_latest(tmp_path)


def test_a_compressed_checkpoint_which_may_be_a_bomb_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", contents())
    with (
        zipfile.ZipFile(tmp_path / "last.pt") as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
    with pytest.raises(InputError, match=r"bomb\.pt: is compressed"):
        load_checkpoint(tmp_path / "bomb.pt")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits a process of its own")
def test_a_full_disk_leaves_the_old_checkpoints_and_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for value in (1.0, 2.0):
        save_checkpoint(path, contents(value))
    process = os.fork()
    if not process:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # of the 17,000 bytes it takes
        try:
            save_checkpoint(path, contents(3.0))
        except InputError as error:
            os._exit(0 if "cannot be written: File too large" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert value_of(load_checkpoint(path)) == 2.0
    assert value_of(load_checkpoint(tmp_path / "previous.pt")) == 1.0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, b"scores")
        assert os.read(reader, 10) == b"scores"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_name_of_an_open_file_stays_one(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        name = tmp_path / "stdout"  # as /dev/stdout is one
        name.symlink_to(f"/proc/self/fd/{file.fileno()}")
        write_atomically(name, b"scores")
    assert name.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"scores"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writes from a second process")
def test_two_processes_may_write_one_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    process = os.fork()
    try:
        for _ in range(50):
            write_atomically(path, b"0" * 1_000_000)
    except BaseException:
        if not process:
            os._exit(1)
        raise
    if not process:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert path.read_bytes() == b"0" * 1_000_000
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_resume_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no checkpoint yet; omit --resume, or use --req"):
        load_latest(tmp_path)


def test_a_failed_write_leaves_the_old_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    for value in (1.0, 2.0):
        save_checkpoint(path, contents(value))
    monkeypatch.setattr(atomic_file.secrets, "token_hex", lambda _: "0")
    (tmp_path / ".last.pt.0.tmp").mkdir()  # the temporary file cannot be opened
    with pytest.raises(InputError, match=r"last\.pt: cannot be written: .*; free disk space"):
        save_checkpoint(path, contents(3.0))
    assert value_of(load_checkpoint(path)) == 2.0
    assert value_of(load_checkpoint(tmp_path / "previous.pt")) == 1.0
