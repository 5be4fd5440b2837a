"""The options of the block ``loss`` of a config."""

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
        description="the box loss: l1 and smooth_l1 compare deltas, the others decoded boxes",
    )
    beta: float = Field(
        default=1.0,
        ge=0,
        le=1_000_000,
        description="smooth_l1 is squared below this difference and linear above it",
    )


class DWAConfig(BaseModel, extra="forbid", frozen=True):
    """Options of Dynamic Weight Average."""

    temperature: float = Field(
        default=2.0,
        gt=0,
        allow_inf_nan=False,
        description="the larger, the closer the weights stay to 1",
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
        description="pull to a common training rate; 0 makes the gradients equally large",
    )
    lr: float = Field(
        default=0.025,
        gt=0,
        allow_inf_nan=False,
        description="learning rate of the weights, which Adam moves",
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
        description="fixed keeps the initial weights, every other type adjusts them while "
        "training: see docs/loss-weighting.md",
    )
    variant: Literal[1, 2] = Field(
        default=2,
        description="alwa: 1 compares mean + standard deviation, 2 the standard deviation",
    )
    interval: int = Field(
        default=100,
        ge=2,
        le=1_000_000,
        description="iterations in a window, whose losses are kept: statistics and updates come "
        "once in each",
    )
    initial: tuple[_Weight, _Weight] = Field(
        default=(1.0, 1.0),
        description="fixed, alwa, uncertainty, gradnorm: the weights of the two losses of every "
        "pair at the beginning",
    )
    update: Literal["replace", "multiplicative", "unweighted"] = Field(
        default="replace", description="alwa: the rule of the update; replace is the paper's"
    )
    pairs: dict[str, tuple[str, str]] | None = Field(
        default=None,
        min_length=1,
        description="pairs of loss names, the adjusted one first; null takes the detector's",
    )
    dwa: DWAConfig = Field(default=DWAConfig(), description="options of type dwa")
    rlw: RLWConfig = Field(default=RLWConfig(), description="options of type rlw")
    gradnorm: GradNormConfig = Field(
        default=GradNormConfig(), description="options of type gradnorm"
    )

    @model_validator(mode="after")
    def _initial_is_read(self) -> WeightingConfig:
        # Other keys of another type stay unread, so that overriding type alone switches the rule;
        # but whoever gives weights is told that nobody would apply them.
        if self.initial != (1.0, 1.0) and self.type not in TYPES_WITH_INITIAL:
            raise ValueError(
                f"initial: {self.type} sets its weights by itself; leave initial out, or choose "
                f"type {', '.join(TYPES_WITH_INITIAL)}"
            )
        return self


class LossConfig(BaseModel, extra="forbid", frozen=True):
    """Losses and the weights between them."""

    box: BoxLossConfig = Field(
        default=BoxLossConfig(), description="box loss of RetinaNet's head, or of the RoI head"
    )
    rpn_box: BoxLossConfig = Field(
        default=BoxLossConfig(), description="box loss of the region proposal network"
    )
    weighting: WeightingConfig = Field(
        default=WeightingConfig(), description="weights between paired losses"
    )
    normalizer: Literal["batch", "image"] = Field(
        default="batch",
        description="batch divides by the positives of the whole batch, as the paper does; "
        "image divides by those of each image and averages, as torchvision does; RetinaNet alone",
    )


def build_weighting(
    config: WeightingConfig,
    default_pairs: Mapping[str, tuple[str, str]],
    loss_names: Collection[str],
) -> LossWeighting:
    """The weighting that a config describes, for its own pairs or else the detector's.

    Args:
        loss_names: the losses that the detector emits.

    Raises:
        ValueError: if a loss stands in two pairs, or is none of the detector's.
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
