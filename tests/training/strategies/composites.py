"""Expressions of several parts, on which what composes is tried, and numbers that undo a part.

Together the composites hold every part of the catalogue.
"""

COMPOSITES = (
    "lookahead(sam(accumulate(adamw, 4)), k=5)",
    "ema(diloco(accumulate(sgd, 2), 2, 4))",
    "swa(lookahead(lion), 0.05)",
    "ema(accumulate(adamw, 2), 0.5)",
    "swa(accumulate(momentum, 3), 0, every=2)",
    "ema(lookahead(sam(adam), k=2, alpha=0.3))",
    "lookahead(accumulate(sam(nesterov), 2), 3)",
    "sam(accumulate(lamb, 2))",
    "accumulate(sam(rmsprop), 2)",
    "extragradient(accumulate(sgd, 2))",
    "ema(extragradient(adam))",
    "local_sgd(adamw, 2, 3)",
    "local_sgd(sam(accumulate(adafactor, 2)), 2, 2)",
    "swa(local_sgd(momentum, 3, 2), 0)",
    "diloco(adamw, 3, 2)",
    "diloco(sam(lion), 2, 3, 0.5, 0.8)",
    "reptile(accumulate(adamw, 2), 3)",
    "ema(reptile(sam(adam), 2), 0.9)",
    "accumulate(truncate(momentum, 3), 2)",
    "ema(sam(truncate(sgd, 4)), 0.5)",
    "loss_scale(gradient_noise(l2(fgm(accumulate(adamw, 2)), 0.01)))",
    "lookahead(dp_sgd(momentum, 0.5, 0.5), 2)",
    "swa(accumulate(r_drop(adam), 2), 0)",
    "diloco(l1(fgm(r_drop(momentum)), 0.01), 2, 3)",
    "lookahead(loss_scale(l2(muon, 0.1), 8, 2), 3)",
    "l1(accumulate(schedule_free_adamw, 2), 0.01)",
    "sam(schedule_free_sgd)",
)

# With these numbers a part does nothing. Of some that is true under a condition, which
# test_composition.py keeps: of `reptile`, which begins its optimizer anew, within a cycle; of
# `dp_sgd`, which divides by the expected number of rows, where every batch has as many; of `r_drop`
# without dropout; and `fgm`, which adds two gradients, is then the rule inside of twice the loss.
NEUTRAL: dict[str, dict[str, float]] = {
    "accumulate": {"k": 1},
    "truncate": {"window": 100},
    "sam": {"rho": 0.0},
    "extragradient": {"rate": 0.0},
    "fgm": {"epsilon": 0.0},
    "dp_sgd": {"clip": 1e9, "noise": 0.0},
    "l1": {"c": 0.0},
    "l2": {"c": 0.0},
    "gradient_noise": {"eta": 0.0},
    "loss_scale": {"initial": 1024.0},  # or any other power of two
    "r_drop": {"alpha": 0.0},
    "lookahead": {"alpha": 1.0},
    "local_sgd": {"workers": 1, "steps": 1},
    "diloco": {"workers": 1, "steps": 1, "rate": 1.0, "momentum": 0.0},
    "reptile": {"k": 1000},
    "ema": {"beta": 0.0},
    "swa": {"start": 1.0},
}
