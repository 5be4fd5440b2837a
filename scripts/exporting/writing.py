"""The three kinds of files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import InputError
from engine.trained import Trained
from scripts.exporting.one_image import OUTPUTS, for_one_image

OPSET = 17
Runner = Callable[[Tensor], tuple[Tensor, ...]]


def facts(trained: Trained) -> dict[str, str]:
    """What a user of the file must know, as text by name."""
    return {
        "classes": json.dumps(trained.classes),
        "detector": trained.config.detector.type,
        "image_size": json.dumps(trained.config.data.image_size),
        "input": "uint8 RGB (3, height, width), resized by data.image_size, not normalized",
        "outputs": "boxes (D, 4) xyxy in pixels of the input, labels (D,), scores (D,)"
        + (", masks (D, 1, M, M) in their boxes" if has_masks(trained) else ""),
    }


def has_masks(trained: Trained) -> bool:
    """Whether the detector gives masks."""
    return trained.config.detector.type == "mask_rcnn"


def write_torchscript(trained: Trained, example: Tensor, path: Path) -> Runner:
    """Trace the detector; the returned function runs the file that was written."""
    model = for_one_image(trained.detector)
    with _writing(path), torch.no_grad():
        traced = torch.jit.trace(model, example, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files=facts(trained))
        loaded: nn.Module = torch.jit.load(str(path), map_location=example.device)

    def run(image: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found: tuple[Tensor, ...] = loaded(image)
        return found

    return run


def write_onnx(trained: Trained, example: Tensor, path: Path) -> Runner:
    """Write ONNX by the tracing exporter; the returned function runs the file in onnxruntime.

    Raises:
        InputError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"onnx: needs {error.name}, which is not installed; run: pip install '.[export]'"
        ) from None
    names = OUTPUTS if has_masks(trained) else OUTPUTS[:3]
    model = for_one_image(trained.detector)
    with _writing(path), torch.no_grad():
        torch.onnx.export(
            model,
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(names),
            dynamic_axes={
                "image": {1: "height", 2: "width"},
                **{name: {0: "detections"} for name in names},
            },
        )
    written = onnx.load(str(path))
    onnx.helper.set_model_props(written, facts(trained))
    onnx.checker.check_model(written)
    onnx.save(written, str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {"image": image.cpu().numpy()})
        return tuple(torch.from_numpy(np.asarray(output)) for output in outputs)

    return run


def write_safetensors(trained: Trained, path: Path) -> Mapping[str, Tensor]:
    """Write the weights by their names in the state dict; returns what the file holds."""
    from safetensors.torch import load_file, save_file

    weights = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in trained.detector.state_dict().items()
    }
    with _writing(path):
        save_file(weights, str(path), metadata=facts(trained))
    read: dict[str, Tensor] = load_file(str(path))
    return read


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors of the disk become one line; warnings are silenced.

    Tracing warns of every branch on a number, all of which are constants here, and that TorchScript
    gives way to torch.export, which refuses these detectors.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
