"""Writers of the three export formats.

Each file is built in memory and written atomically, so that a full disk leaves no partial file and
keeps an earlier export.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import InputError
from engine.process.atomic_file import write_atomically
from engine.trained import Trained
from scripts.exporting.one_image import OUTPUTS, for_one_image

OPSET = 17
Runner = Callable[[Tensor], tuple[Tensor, ...]]


def facts(trained: Trained) -> dict[str, str]:
    """Return the metadata of an exported file, as text by key."""
    return {
        "classes": json.dumps(trained.classes),
        "detector": trained.config.detector.type,
        "image_size": json.dumps(trained.config.data.image_size),
        "input": "uint8 RGB (3, height, width), resized by data.image_size, not normalized",
        "outputs": "boxes (D, 4) xyxy in pixels of the input, labels (D,), scores (D,)"
        + (", masks (D, 1, M, M) in their boxes" if has_masks(trained) else ""),
    }


def has_masks(trained: Trained) -> bool:
    """Return whether the detector predicts masks."""
    return trained.config.detector.type == "mask_rcnn"


def write_torchscript(trained: Trained, example: Tensor, path: Path) -> Runner:
    """Trace the detector; the returned function runs the file that was written.

    Raises:
        InputError: it cannot be written.
    """
    # The weights are constants of the file: without gradients its outputs convert to arrays.
    model, content = for_one_image(trained.detector).requires_grad_(False), BytesIO()
    with _no_warnings(), torch.no_grad():
        traced = torch.jit.trace(model, example, check_trace=False)
        torch.jit.save(traced, content, _extra_files=facts(trained))
        write_atomically(path, content.getbuffer())
        loaded: nn.Module = torch.jit.load(str(path), map_location=example.device)

    def run(image: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found: tuple[Tensor, ...] = loaded(image)
        return found

    return run


def write_onnx(trained: Trained, example: Tensor, path: Path) -> Runner:
    """Write ONNX by the tracing exporter; the returned function runs the file in onnxruntime.

    Raises:
        InputError: onnx or onnxruntime is not installed, or the file cannot be written.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"onnx: needs {error.name}, which is not installed; run: pip install -e '.[export]'"
        ) from None
    names = OUTPUTS if has_masks(trained) else OUTPUTS[:3]
    model, content = for_one_image(trained.detector), BytesIO()
    with _no_warnings(), torch.no_grad():
        torch.onnx.export(
            model,
            (example,),
            content,  # type: ignore[arg-type]  # paths are declared; this exporter takes both
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(names),
            dynamic_axes={
                "image": {1: "height", 2: "width"},
                **{name: {0: "detections"} for name in names},
            },
        )
    exported = onnx.load_model_from_string(content.getvalue())
    onnx.helper.set_model_props(exported, facts(trained))
    onnx.checker.check_model(exported)
    write_atomically(path, exported.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {"image": image.cpu().numpy()})
        return tuple(torch.from_numpy(np.asarray(output)) for output in outputs)

    return run


def write_safetensors(trained: Trained, path: Path) -> Mapping[str, Tensor]:
    """Write the weights by their names in the state dict; returns what the file holds.

    Raises:
        InputError: it cannot be written.
    """
    from safetensors.torch import load_file, save

    weights = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in trained.detector.state_dict().items()
    }
    write_atomically(path, save(weights, metadata=facts(trained)))
    read: dict[str, Tensor] = load_file(str(path))
    return read


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence warnings.

    Tracing warns about every branch on a number, all of which are constants here, and that
    TorchScript is replaced by torch.export, which cannot trace these detectors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
