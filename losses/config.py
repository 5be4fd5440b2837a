"""The ``loss`` block of a config file, and the weighting that it describes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from losses.alwa import ALWA
from losses.cov import CoVWeighting
from losses.dwa import DWA
from losses.fixed import FixedWeights
from losses.gls import GLS
from losses.gradnorm import GradNorm
from losses.rlw import RandomWeights
from losses.self_balancing import SelfBalancing
from losses.uncertainty import UncertaintyWeighting
from losses.weighting import LossWeighting

_Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


TYPES_WITH_INITIAL = ("fixed", "alwa", "uncertainty", "gradnorm")


class BoxLossConfig(BaseModel, extra="forbid", frozen=True):
    """How predicted boxes are compared with the true ones."""

    type: Literal["l1", "smooth_l1", "giou", "diou", "ciou"] = Field(
        default="l1",
        description="box loss: l1 and smooth_l1 compare deltas; giou, diou and ciou compare "
        "decoded boxes",
    )
    beta: float = Field(
        default=1.0,
        ge=0,
        le=1_000_000,
        description="smooth_l1: quadratic below this difference, linear above it",
    )


class DWAConfig(BaseModel, extra="forbid", frozen=True):
    """Options of Dynamic Weight Average."""

    temperature: float = Field(
        default=2.0,
        gt=0,
        allow_inf_nan=False,
        description="softmax temperature; larger values keep the weights closer to 1",
    )


class RLWConfig(BaseModel, extra="forbid", frozen=True):
    """Options of random loss weighting."""

    seed: int = Field(default=0, description="seed of the random weights")


class GradNormConfig(BaseModel, extra="forbid", frozen=True):
    """Options of GradNorm."""

    alpha: float = Field(
        default=1.5,
        ge=0,
        allow_inf_nan=False,
        description="strength of the pull toward a common training rate; 0: equal gradient norms",
    )
    lr: float = Field(
        default=0.025,
        gt=0,
        allow_inf_nan=False,
        description="learning rate of the weights (Adam)",
    )


class WeightingConfig(BaseModel, extra="forbid", frozen=True):
    """The weights between paired losses."""

    type: Literal[
        "fixed",
        "alwa",
        "uncertainty",
        "dwa",
        "rlw",
        "gls",
        "cov",
        "self_balancing",
        "gradnorm",
    ] = Field(
        default="fixed",
        description="weighting method: fixed keeps the initial weights, every other type adjusts "
        "them during training (see docs/loss-weighting.md)",
    )
    variant: Literal[1, 2] = Field(
        default=2,
        description="alwa: statistic to compare: 1, mean + standard deviation; 2, standard "
        "deviation only",
    )
    interval: int = Field(
        default=100,
        ge=2,
        le=1_000_000,
        description="iterations per window; the losses of a window are kept, and statistics and "
        "updates computed once from them",
    )
    initial: tuple[_Weight, _Weight] = Field(
        default=(1.0, 1.0),
        description="fixed, alwa, uncertainty, gradnorm: initial weights of the two losses of "
        "every pair",
    )
    update: Literal["replace", "multiplicative", "unweighted"] = Field(
        default="replace",
        description="alwa: new weight: replace, reg / cls if cls > reg (the paper); "
        "multiplicative, weight * reg / cls if cls > reg; unweighted, min(weight * reg / cls, "
        "initial)",
    )
    pairs: dict[str, tuple[str, str]] | None = Field(
        default=None,
        min_length=1,
        description="pairs of loss names, the adjusted one first; null: the detector's pairs",
    )
    dwa: DWAConfig = Field(default=DWAConfig(), description="options of type dwa")
    rlw: RLWConfig = Field(default=RLWConfig(), description="options of type rlw")
    gradnorm: GradNormConfig = Field(
        default=GradNormConfig(), description="options of type gradnorm"
    )

    @model_validator(mode="after")
    def _initial_is_read(self) -> WeightingConfig:
        # Options of other types are ignored, so that overriding only type switches the method.
        # Initial weights are the exception: giving them where nothing applies them is an error.
        if self.initial != (1.0, 1.0) and self.type not in TYPES_WITH_INITIAL:
            raise ValueError(
                f"initial: {self.type} sets its own weights; leave initial out, or choose "
                f"type {', '.join(TYPES_WITH_INITIAL)}"
            )
        return self


class LossConfig(BaseModel, extra="forbid", frozen=True):
    """Losses and the weights between them."""

    box: BoxLossConfig = Field(
        default=BoxLossConfig(), description="box loss of RetinaNet's head or of the RoI box head"
    )
    rpn_box: BoxLossConfig = Field(
        default=BoxLossConfig(), description="box loss of the region proposal network"
    )
    weighting: WeightingConfig = Field(
        default=WeightingConfig(), description="weights between paired losses"
    )
    normalizer: Literal["batch", "image"] = Field(
        default="batch",
        description="RetinaNet: batch divides by the positives of the whole batch (the paper); "
        "image divides by those of each image and averages (torchvision)",
    )


def build_weighting(
    config: WeightingConfig,
    default_pairs: Mapping[str, tuple[str, str]],
    loss_names: Collection[str],
) -> LossWeighting:
    """Build the weighting that a config describes, for its own pairs or else the detector's.

    Args:
        config: the options.
        default_pairs: the detector's pairs, used where the config gives none.
        loss_names: the losses that the detector emits.

    Raises:
        ValueError: if a loss is in two pairs, or is not a loss of the detector.
    """
    pairs = default_pairs if config.pairs is None else config.pairs
    for pair, names in pairs.items():
        for name in names:
            if name not in loss_names:
                raise ValueError(
                    f"pair {pair!r}: the detector has no loss {name!r}; "
                    f"choose among {', '.join(loss_names)}"
                )
    interval, initial = config.interval, config.initial
    rules: dict[str, Callable[[], LossWeighting]] = {
        "fixed": lambda: FixedWeights(pairs, initial, interval),
        "alwa": lambda: ALWA(pairs, config.variant, interval, initial, config.update),
        "uncertainty": lambda: UncertaintyWeighting(pairs, interval, initial),
        "dwa": lambda: DWA(pairs, interval, config.dwa.temperature),
        "rlw": lambda: RandomWeights(pairs, interval, config.rlw.seed),
        "gls": lambda: GLS(pairs, interval),
        "cov": lambda: CoVWeighting(pairs, interval),
        "self_balancing": lambda: SelfBalancing(pairs, interval),
        "gradnorm": lambda: GradNorm(
            pairs, interval, initial, config.gradnorm.alpha, config.gradnorm.lr
        ),
    }
    return rules[config.type]()
