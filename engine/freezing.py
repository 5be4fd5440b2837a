"""Freeze modules of a detector for some epochs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from data.errors import InputError
from detector.fast.cuda_graphs import forget_recordings
from engine.run_config import TrainConfig

# Layers that forward passes in training mode change, or that draw random numbers.
STATEFUL_IN_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


class Freezing:
    """Freezes modules in given epochs: no gradients, no updates of batch norm statistics.

    What the detector's own options freeze (``detector.trainable_stages``, ``norm``) stays frozen.

    Args:
        spans: the first epoch, counted from 0, and the one after the last, by module name.

    Raises:
        InputError: a module does not exist or has no trainable parameters, or nothing would be
            trained in some epoch.
    """

    def __init__(self, detector: nn.Module, spans: Mapping[str, tuple[int, int]]) -> None:
        self._detector = detector
        self._frozen: list[str] = []
        self._trained = [value for value in detector.parameters() if value.requires_grad]
        self._modules = {name: _find_module(detector, name) for name in spans}
        self._spans = spans
        for name, (start, _) in spans.items():
            if not any(value.requires_grad for value in self._modules[name].parameters()):
                raise InputError(f"train.freeze: {name!r} has no trainable parameters; remove it")
            if not self._trained_in(start):
                raise InputError(
                    f"train.freeze: nothing would be trained in epoch {start}; freeze fewer parts"
                )

    def apply(self, epoch: int) -> None:
        """Freeze the modules of an epoch and unfreeze the others.

        The detector must be in training mode.
        """
        trained = self._trained_in(epoch)
        for parameter in self._trained:
            parameter.requires_grad_(id(parameter) in trained)
        frozen = frozen_in(self._spans, epoch)
        for name in frozen:
            # Only these layers: the RPN, for example, proposes fewer boxes in evaluation mode.
            for layer in self._modules[name].modules():
                if isinstance(layer, STATEFUL_IN_TRAINING):
                    layer.eval()
        if frozen != self._frozen:
            forget_recordings(self._detector)
        self._frozen = frozen

    def _trained_in(self, epoch: int) -> set[int]:
        """The ``id()`` of each parameter that is trained in an epoch."""
        frozen = [self._modules[name].parameters() for name in frozen_in(self._spans, epoch)]
        return {id(value) for value in self._trained} - {id(v) for part in frozen for v in part}


def frozen_in(spans: Mapping[str, tuple[int, int]], epoch: int) -> list[str]:
    """The names of the modules that are frozen in an epoch."""
    return [name for name, (start, end) in spans.items() if start <= epoch < end]


def refuse_random_frozen(config: TrainConfig, random: Collection[str], weights: str) -> None:
    """Refuse modules that have random initial weights and are frozen in every epoch.

    Args:
        config: config of the run, with its frozen modules and epochs.
        random: names of the parameters and buffers that ``weights`` do not contain.
        weights: ``detector.weights``.

    Raises:
        InputError: there are such modules.
    """
    frozen: dict[tuple[str, ...], list[str]] = {}  # by the names that freeze it
    for value in sorted(random):
        spans = {name: span for name, span in config.freeze.items() if value.startswith(f"{name}.")}
        if all(frozen_in(spans, epoch) for epoch in range(config.epochs)):
            frozen.setdefault(tuple(spans), []).append(value)
    for names, values in frozen.items():
        more = f" and {len(values) - 1} more" if len(values) > 1 else ""
        raise InputError(
            f"train.freeze: {' and '.join(map(repr, names))} would keep random weights "
            f"({values[0]}{more}) in all {config.epochs} epochs, as detector.weights={weights} "
            "does not contain them; choose other weights, freeze less, or train it in some epochs"
        )


def _find_module(detector: nn.Module, name: str) -> nn.Module:
    try:
        return detector.get_submodule(name)
    except AttributeError:
        parts = [part for part, _ in detector.named_children()]
        parts += [
            f"backbone.{part}" for part, _ in detector.get_submodule("backbone").named_children()
        ]
        raise InputError(
            f"train.freeze: the detector has no module {name!r}; choose from {', '.join(parts)} "
            "and the modules inside them"
        ) from None
