"""From the names and numbers of a recipe to a rule that takes updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.config import OptimizerConfig
from training.optimizers import build_optimizer
from training.strategies.accumulation import Accumulate
from training.strategies.averaging import ExponentialMovingAverage, StochasticWeightAverage
from training.strategies.catalogue import LOSS, resolve
from training.strategies.local_sgd import DiLoCo, LocalSGD
from training.strategies.lookahead import Lookahead
from training.strategies.processes import Exchange
from training.strategies.replicas import Replicas
from training.strategies.reptile import Reptile
from training.strategies.rules import Loss, OptimizerRule, UpdateRule
from training.strategies.sharpness import Extragradient, SharpnessAware


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a part may need to know of the run besides its own numbers."""

    num_updates: int
    seed: int = 0
    exchange: Exchange | None = None  # each worker is a process


# Each is called with the inner rule, the run, and its numbers of `catalogue.py` by name.
RULES: dict[str, Callable[..., UpdateRule]] = {
    "accumulate": lambda inner, run, k: Accumulate(inner, k),
    "sam": lambda inner, run, rho: SharpnessAware(inner, rho),
    "extragradient": lambda inner, run, rate: Extragradient(inner, rate),
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
LOSSES: dict[str, Callable[..., Loss]] = {}


def build_rule(
    expression: str,
    loss: Loss,
    weights: Sequence,
    config: OptimizerConfig,
    *,
    num_updates: int,
    seed: int = 0,
    rate_factors: Sequence[tuple[str, float]] = (),
    replicas: Replicas | None = None,
    exchange: Exchange | None = None,
) -> UpdateRule:
    """The rule that `expression` names, such as `lookahead(sam(accumulate(adamw, 4)), k=5)`.

    `loss` gives the sums of one batch; `weights` are the Keras variables to move; with `exchange`
    every worker of the strategy is a process. Raises ValueError as `catalogue.resolve` does.
    """
    *around, innermost = resolve(expression)
    run = Run(num_updates=num_updates, seed=seed, exchange=exchange)
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
    for link in reversed(around):
        if link.part.level != LOSS:
            rule = RULES[link.name](rule, run, **link.numbers)
    return rule
