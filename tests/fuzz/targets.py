"""What is fuzzed: each reader of outside files, fed with any bytes. Only InputError may come out.

Each target returns whether the bytes were accepted; what it accepts must be sound.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LambdaLR

from data.annotations import Annotations
from data.errors import InputError
from data.formats.coco import load_coco
from data.formats.voc import load_voc
from engine.checkpoint import STATE, load_latest, save_checkpoint
from engine.config import Config, load_config, override_config, parse_config
from engine.evaluation.comp4 import read_comp4
from engine.evaluation.detections import Detections
from engine.evaluation.evaluator import read_detections, score
from engine.resume import check_resume
from engine.state import TrainState
from losses import FixedWeights

HEIGHT, WIDTH = 48, 64
DECODED_PIXELS = 1 << 20  # masks of larger images are not decoded: that is slow, not wrong


class Fuzzed:
    """A folder in which the fuzzed file stands where a reader looks for it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.image = self._write("JPEGImages/a.jpg", picture())
        self._write("val/a.jpg", picture())
        self._write("ImageSets/Main/train.txt", b"a\n")
        self.annotations = self._scored()

    def _write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def _scored(self) -> Annotations:
        self._write("annotations/instances_val.json", SEEDS["coco"][0])
        return load_coco(self.folder, "val")

    def voc(self, content: bytes) -> None:
        self._write("Annotations/a.xml", content)
        annotations = load_voc(self.folder, ["train"])
        check_boxes(annotations)
        assert (annotations.boxes >= 0).all()

    def coco(self, content: bytes) -> None:
        self._write("annotations/instances_val.json", content)
        annotations = load_coco(self.folder, "val")
        check_boxes(annotations)
        for image in range(len(annotations)):
            if int(annotations.sizes[image].astype(np.int64).prod()) <= DECODED_PIXELS:
                rows = np.arange(len(annotations.boxes))[annotations.objects_of(image)]
                annotations.decode_masks(image, rows)

    def yaml(self, content: bytes) -> None:
        path = self._write("fuzzed.yaml", content)
        config = load_config(path)
        assert parse_config(config.model_dump(mode="json"), "again") == config

    def detections(self, content: bytes) -> None:
        """The first byte decides the format."""
        if content[:1] in (b"[", b"{"):
            read = read_detections(self._write("results.json", content), self.annotations)
        else:
            file = self._write("comp4/comp4_det_val_cat.txt", content)
            read = read_comp4(file.parent, self.annotations)
        check_detections(read, self.annotations)

    def checkpoint(self, content: bytes) -> None:
        """As --resume and evaluate.py read one; what is no archive is the pickle in a sound one."""
        self._write("run/last.pt", content if content[:2] == b"PK" else archive_of(content))
        resume(self.folder / "run")


def accepts(target: Callable[[bytes], None], content: bytes) -> bool:
    """Whether a reader takes the bytes. Anything but InputError is a finding."""
    try:
        target(content)
    except InputError:
        return False
    return True


def check_boxes(annotations: Annotations) -> None:
    assert np.isfinite(annotations.boxes).all()
    assert (annotations.boxes[:, 2:] > annotations.boxes[:, :2]).all()
    assert (annotations.labels >= 0).all()
    assert (annotations.labels < len(annotations.classes)).all()


def check_detections(read: Detections, annotations: Annotations) -> None:
    assert np.isfinite(read.boxes).all()
    assert np.isfinite(read.score).all()
    score(read, annotations)


def tiny_state() -> TrainState:
    detector = nn.Linear(2, 2)
    weighting = FixedWeights({"head": ("a", "b")}, (1.0, 1.0), interval=3)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1, momentum=0.9)
    schedule = LambdaLR(optimizer, lambda _: 1.0)
    return TrainState(detector, weighting, optimizer, schedule, GradScaler("cpu", enabled=False))


def tiny_checkpoint() -> dict[str, Any]:
    """What a run saves, around a detector of one layer."""
    state = tiny_state()
    state.detector(torch.ones(1, 2)).sum().backward()
    state.optimizer.step()
    identity = {"config": Config().model_dump(mode="json"), "classes": ["cat"], "global_batch": 2}
    return {**state.state_dict(), **identity}


def resume(folder: Path) -> None:
    _, saved = load_latest(folder)
    override_config(saved["config"], [], "last.pt")
    check_resume(saved, Config(), world_size=1, allow_changed=True)
    tiny_state().load_state_dict(saved)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def voc_seed() -> bytes:
    return b"""<?xml version="1.0" encoding="utf-8"?>
<annotation><filename>a.jpg</filename>
<size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>cat</name><difficult>1</difficult><truncated>0</truncated>
<bndbox><xmin>2</xmin><ymin>3.5</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmax>9</xmax><ymax>9</ymax><xmin>1</xmin><ymin>1</ymin></bndbox>
<part><name>head</name></part></object></annotation>"""


def coco_seed() -> bytes:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[10:20, 5:9] = 1
    text = coco_mask.encode(pixels)["counts"].decode()
    box = {"image_id": 7, "category_id": 3, "bbox": [2, 3, 30, 20.5], "area": 12, "iscrowd": 0}
    segmentations: list[Any] = [
        [[2, 3, 30, 3, 30, 20.5]],
        {"size": [HEIGHT, WIDTH], "counts": text},
        {"size": [HEIGHT, WIDTH], "counts": [100, 7, HEIGHT * WIDTH - 107]},
        [],
    ]
    content = {
        "info": {"year": 2020},
        "images": [{"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {**box, "id": number, "segmentation": segmentation}
            for number, segmentation in enumerate(segmentations)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
    }
    return json.dumps(content).encode()


def results_seed() -> bytes:
    entry = {"image_id": 7, "category_id": 3, "score": 0.5, "bbox": [1.5, 2, 30, 20]}
    counts = coco_mask.encode(np.ones((HEIGHT, WIDTH), np.uint8, order="F"))["counts"].decode()
    mask = {"size": [HEIGHT, WIDTH], "counts": counts}
    return json.dumps([{**entry, "segmentation": mask}, {**entry, "segmentation": mask}]).encode()


def yaml_seed() -> bytes:
    return b"""# a run
detector:
  {type: faster_rcnn, backbone: resnet18, weights: none, anchors: {sizes: [16, 32, 64, 128, 256]}}
loss: {box: {type: ciou}, weighting: {type: alwa, interval: 50, initial: [1.0, 0.5]}}
data:
  format: voc
  root: "some/folder"
  train: [VOC2007/trainval, 'VOC2012/trainval']
  augment:
    - HorizontalFlip: {p: 0.5}
train: {epochs: 3, lr: 1.0e-4, milestones: [1, 2], amp: bf16, name: ~}
"""


def checkpoint_seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "last.pt", tiny_checkpoint())
        return (Path(folder) / "last.pt").read_bytes()


def archive_of(pickle: bytes) -> bytes:
    """The archive of a checkpoint with another pickle in it."""
    whole, buffer = zipfile.ZipFile(io.BytesIO(SEEDS["checkpoint"][0])), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as changed:
        for entry in whole.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            changed.writestr(entry.filename, pickle if is_pickle else whole.read(entry))
    return buffer.getvalue()


def pickle_of(archive: bytes) -> bytes:
    return zipfile.ZipFile(io.BytesIO(archive)).read("archive/data.pkl")


def words_of(*texts: bytes) -> list[bytes]:
    """The words and signs that texts of a format are made of."""
    return sorted({word for text in texts for word in re.findall(rb"[\w.]{1,64}|[^\w\s]", text)})


SEEDS: dict[str, list[bytes]] = {
    "voc": [voc_seed()],
    "coco": [coco_seed()],
    "yaml": [yaml_seed()],
    "detections": [results_seed(), b"a 0.5 1 2 30 40\na 1e-3 1.5 2 3 4.25\n"],
    "checkpoint": [checkpoint_seed()],
}
SEEDS["checkpoint"].append(pickle_of(SEEDS["checkpoint"][0]))
assert set(STATE) <= set(tiny_checkpoint())
