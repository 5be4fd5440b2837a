"""torchvision's backbones with a feature pyramid of any width; any stages can be frozen.

Parameter names and shapes are those of torchvision's detectors. Nothing here downloads weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from detector.fast.norm_folding import fold_norms
from detector.norm import DEFAULT_EPS, norm_layer, pyramid_norm_layer, set_eps

# The children of a network, stage by stage: the stem, then one stage for each halving.
RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
MOBILENET_STARTS = (0, 2, 4, 7, 13, 16)  # as torchvision's detectors divide MobileNetV3-Large
MOBILENET_CHANNELS = (16, 24, 40, 80, 160, 960)


class Body(NamedTuple):
    """A classification network, divided into stages.

    Attributes:
        network: its children are the layers, in order.
        stages: the names of the children of each stage, from the stem on.
        outputs: (pyramid level, child name, channels) of each map that the pyramid can read.
    """

    network: nn.Module
    stages: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[int, str, int], ...]


class Backbone(BackboneWithFPN):
    """A network and a pyramid: ``(B, 3, H, W)`` -> ordered dict of ``(B, C, H / 2^l, W / 2^l)``.

    Frozen stages neither train their parameters nor update the statistics of their norms.

    ``norm_eps`` is stored in the state dict: torchvision's published detectors were trained with an
    eps of 0, and a checkpoint made from one must be used with it. The entry exists only if it
    differs from 1e-5, so that the keys are otherwise torchvision's. An eps that was given
    explicitly is kept, whatever is loaded.

    Args:
        body: the network.
        levels: the level of each map that is returned, finest first.
        channels: channels of the pyramid.
        extra: computes the maps beyond the network's last one.
        trained_stages: number of stages to train, counted from the last.
        fpn_norm: normalization in the pyramid.
        norm_eps: eps of the network's norms; None: 1e-5, or that of the state that is loaded.

    Attributes:
        levels: the level of each map that is returned, finest first.
        lateral_names: names of the maps that RoI heads pool from (without the extra ones).
    """

    def __init__(
        self,
        body: Body,
        levels: tuple[int, ...],
        channels: int,
        extra: ExtraFPNBlock | None,
        trained_stages: int,
        fpn_norm: str,
        norm_eps: float | None,
    ) -> None:
        chosen = _choose_outputs(body, levels)
        super().__init__(
            body.network,
            {child: str(index) for index, (_, child, _) in enumerate(chosen)},
            [width for _, _, width in chosen],
            channels,
            extra_blocks=extra,
            norm_layer=pyramid_norm_layer(fpn_norm),
        )
        if extra is None:  # torchvision would add a max-pool
            # Deleted first: for a module set to None, torch would silently ignore loaded tensors.
            del self.fpn.extra_blocks
            self.fpn.extra_blocks = None
        self.levels = levels
        self.lateral_names = tuple(str(index) for index in range(len(chosen)))
        frozen = body.stages[: len(body.stages) - trained_stages]
        self.frozen_layers = tuple(name for stage in frozen for name in stage)
        for name in self.frozen_layers:
            self.body[name].requires_grad_(False)
        self._eps_is_given = norm_eps is not None
        self._norm_eps = DEFAULT_EPS
        if norm_eps is not None:
            self.norm_eps = norm_eps

    @property
    def norm_eps(self) -> float:
        """The eps of the network's norms (not the pyramid's)."""
        return self._norm_eps

    @norm_eps.setter
    def norm_eps(self, eps: float) -> None:
        self._norm_eps = eps
        set_eps(self.body, eps)

    @property
    def output_weights(self) -> list[Tensor]:
        """The weights of the pyramid's last convolutions, one for each map that is returned."""
        last = [block[0] for block in self.fpn.layer_blocks]
        coarse = [] if self.fpn.extra_blocks is None else [*self.fpn.extra_blocks.children()]
        return [layer.weight for layer in (*last, *coarse) if isinstance(layer, nn.Conv2d)]

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for name in self.frozen_layers:
            self.body[name].eval()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.norm_eps != DEFAULT_EPS:
            destination[prefix + "norm_eps"] = torch.tensor(self.norm_eps, dtype=torch.float64)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        eps = float(state_dict.pop(prefix + "norm_eps", DEFAULT_EPS))
        holds_norms = any(name.startswith(f"{prefix}body.") for name in state_dict)
        if holds_norms and not self._eps_is_given:
            self.norm_eps = eps
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class P6P7(LastLevelP6P7):
    """RetinaNet's coarse levels: P6 and, unless the pyramid ends there, P7.

    Args:
        in_channels: channels of the map that P6 is computed from.
        out_channels: channels of the pyramid.
        from_p5: compute P6 from P5, else from the network's last map.
        relu_before_p7: apply a ReLU between P6 and P7.
        with_p7: add P7.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        from_p5: bool,
        relu_before_p7: bool,
        with_p7: bool,
    ) -> None:
        super().__init__(in_channels, out_channels)
        self.use_P5 = from_p5
        self.relu_before_p7 = relu_before_p7
        self.with_p7 = with_p7
        if not with_p7:
            del self.p7

    def forward(
        self, p: list[Tensor], c: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        if not self.with_p7:
            return [*p, p6], [*names, "p6"]
        p7 = self.p7(F.relu(p6) if self.relu_before_p7 else p6)
        return [*p, p6, p7], [*names, "p6", "p7"]


def build_backbone(
    name: str,
    *,
    levels: tuple[int, ...],
    channels: int = 256,
    trainable_stages: int = 3,
    norm: str = "frozen",
    norm_eps: float | None = None,
    fpn_norm: str = "none",
    coarse: str = "max_pool",
    relu_before_p7: bool = True,
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: ``resnet18`` .. ``resnet152`` or ``mobilenet_v3_large``.
        levels: the pyramid's levels, finest first; ``(5, 5, 6)`` are torchvision's maps of
            MobileNetV3 in Faster R-CNN, two of which have stride 32.
        channels: channels of the pyramid.
        trainable_stages: 0 to 5 stages to train, counted from the last; 5 is the whole network.
        norm: normalization of the network, a name of ``detector.norm``.
        norm_eps: eps of the network's norms, see ``Backbone``.
        fpn_norm: normalization of the pyramid, a name of ``detector.norm`` or ``none``.
        coarse: source of levels beyond 5: ``p5`` or ``c5`` by convolutions, as in RetinaNet, or
            ``max_pool`` as in Faster R-CNN.
        relu_before_p7: apply a ReLU between P6 and P7.
    """
    body = _mobilenet(norm) if name == "mobilenet_v3_large" else _resnet(name, norm)
    extra = _coarse_levels(coarse, levels[-1], body.outputs[-1][2], channels, relu_before_p7)
    stages = len(body.stages) if trainable_stages == 5 else trainable_stages
    backbone = Backbone(body, levels, channels, extra, stages, fpn_norm, norm_eps)
    fold_norms(backbone.body)
    return backbone.train()


def _resnet(name: str, norm: str) -> Body:
    network = get_model(name, weights=None, norm_layer=norm_layer(norm))
    widest = network.fc.in_features
    outputs = tuple(
        (level, f"layer{level - 1}", widest // 2 ** (5 - level)) for level in (2, 3, 4, 5)
    )
    return Body(network, RESNET_STAGES, outputs)


def _mobilenet(norm: str) -> Body:
    network = get_model("mobilenet_v3_large", weights=None, norm_layer=norm_layer(norm)).features
    ends = (*MOBILENET_STARTS[1:], len(network))
    stages = tuple(
        tuple(str(block) for block in range(start, end))
        for start, end in zip(MOBILENET_STARTS, ends, strict=True)
    )
    children = zip((1, 2, 3, 4, 5, 5), MOBILENET_STARTS, MOBILENET_CHANNELS, strict=True)
    return Body(network, stages, tuple((level, str(child), c) for level, child, c in children))


def _choose_outputs(body: Body, levels: Sequence[int]) -> list[tuple[int, str, int]]:
    """Choose the map of each level: the deepest one, or several if a level is repeated."""
    chosen = []
    for level in sorted({level for level in levels if level <= 5}):
        maps = [output for output in body.outputs if output[0] == level]
        chosen += maps[-levels.count(level) :]
    return chosen


def _coarse_levels(
    coarse: str, last: int, body_channels: int, channels: int, relu_before_p7: bool
) -> ExtraFPNBlock | None:
    if last == 5:
        return None
    if coarse == "max_pool":
        return LastLevelMaxPool()
    in_channels = channels if coarse == "p5" else body_channels
    return P6P7(in_channels, channels, coarse == "p5", relu_before_p7, with_p7=last == 7)
