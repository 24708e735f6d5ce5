"""How the learning rate moves over a run. Steps are parameter updates."""

import keras

from training.config import OptimizerConfig


def cosine(config: OptimizerConfig, steps: int):
    """Linear warm-up to the peak, then half a cosine (Loshchilov & Hutter, 2017, eq. 5)."""
    # A warm-up longer than a short run would never reach the peak.
    warmup_steps = min(config.warmup_steps, steps // 2)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else config.peak_learning_rate,
        decay_steps=max(steps - warmup_steps, 1),
        alpha=config.final_fraction,
        warmup_target=config.peak_learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def constant(config: OptimizerConfig, steps: int):
    """Linear warm-up to the peak, then the peak."""
    warmup_steps = min(config.warmup_steps, steps // 2)
    if not warmup_steps:
        return config.peak_learning_rate
    return keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=0.0,
        decay_steps=warmup_steps,
        end_learning_rate=config.peak_learning_rate,
    )


SCHEDULES = {"cosine": cosine, "constant": constant}
