"""From the names and numbers of a recipe to a rule that takes updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.config import OptimizerConfig
from training.optimizers import build_optimizer
from training.strategies.accumulation import Accumulate
from training.strategies.adversarial import FastGradient
from training.strategies.averaging import ExponentialMovingAverage, StochasticWeightAverage
from training.strategies.catalogue import LOSS, resolve
from training.strategies.local_sgd import DiLoCo, LocalSGD
from training.strategies.lookahead import Lookahead
from training.strategies.loss_scaling import LossScale
from training.strategies.penalties import L1, L2, GradientNoise
from training.strategies.privacy import DifferentiallyPrivate
from training.strategies.processes import Exchange
from training.strategies.r_drop import RDrop
from training.strategies.replicas import Replicas
from training.strategies.reptile import Reptile
from training.strategies.rules import Loss, OptimizerRule, UpdateRule
from training.strategies.sharpness import Extragradient, SharpnessAware
from training.strategies.truncation import Truncate


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a part may need to know of the run besides its own numbers."""

    num_updates: int
    seed: int = 0
    batch_size: int | None = None  # rows one update reads, on average
    exchange: Exchange | None = None  # each worker is a process


# Each is called with the inner rule, the run, and its numbers of `catalogue.py` by name.
RULES: dict[str, Callable[..., UpdateRule]] = {
    "accumulate": lambda inner, run, k: Accumulate(inner, k),
    "truncate": lambda inner, run, window: Truncate(inner, window),
    "sam": lambda inner, run, rho: SharpnessAware(inner, rho),
    "extragradient": lambda inner, run, rate: Extragradient(inner, rate),
    "fgm": lambda inner, run, epsilon: FastGradient(inner, epsilon),
    "dp_sgd": lambda inner, run, clip, noise: DifferentiallyPrivate(
        inner, clip, noise, batch_size=run.batch_size, seed=run.seed
    ),
    "l1": lambda inner, run, c: L1(inner, c),
    "l2": lambda inner, run, c: L2(inner, c),
    "gradient_noise": lambda inner, run, eta, gamma: GradientNoise(
        inner, eta, gamma, seed=run.seed
    ),
    "loss_scale": lambda inner, run, initial, growth_updates: LossScale(
        inner, initial, growth_updates
    ),
    "lookahead": lambda inner, run, k, alpha: Lookahead(inner, k, alpha),
    "local_sgd": lambda inner, run, workers, steps: LocalSGD(inner, workers, steps, run.exchange),
    "diloco": lambda inner, run, workers, steps, rate, momentum: DiLoCo(
        inner, workers, steps, rate, momentum, run.exchange
    ),
    "reptile": lambda inner, run, k, rate: Reptile(inner, k, rate),
    "ema": lambda inner, run, beta: ExponentialMovingAverage(inner, beta),
    "swa": lambda inner, run, start, every: StochasticWeightAverage(
        inner, round(start * run.num_updates), every
    ),
}
# Each is called with a loss (and its logits) and gives another one.
LOSSES: dict[str, Callable[..., Loss]] = {
    "r_drop": lambda loss, run, alpha: RDrop(loss, alpha),
}


def build_rule(
    expression: str,
    loss: Loss,
    weights: Sequence,
    config: OptimizerConfig,
    *,
    num_updates: int,
    seed: int = 0,
    batch_size: int | None = None,
    rate_factors: Sequence[tuple[str, float]] = (),
    replicas: Replicas | None = None,
    exchange: Exchange | None = None,
) -> UpdateRule:
    """The rule that `expression` names, such as `lookahead(sam(accumulate(adamw, 4)), k=5)`.

    `loss` gives the sums of one batch (a `training.losses.TaskLoss`, where a part asks for more
    than sums); `weights` are the Keras variables to move; `batch_size` is the expected number of
    rows of an update, all replicas together, which `dp_sgd` divides by; with `exchange`
    every worker of the strategy is a process. Raises ValueError as `catalogue.resolve` does, and
    for a part that the network does not go with.
    """
    *around, innermost = resolve(expression)
    run = Run(num_updates=num_updates, seed=seed, batch_size=batch_size, exchange=exchange)
    for link in reversed(around):
        if link.part.level == LOSS:
            loss = LOSSES[link.name](loss, run, **link.numbers)
    rule: UpdateRule = OptimizerRule(
        loss,
        build_optimizer(innermost, config, weights, num_updates, rate_factors),
        list(weights),
        clip_norm=config.clip_norm,
        replicas=replicas,
    )
    rule.num_evaluations = getattr(loss, "num_passes", 1)
    for link in reversed(around):
        if link.part.level != LOSS:
            rule = RULES[link.name](rule, run, **link.numbers)
    return rule
