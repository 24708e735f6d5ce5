"""Made-up records of a comparison, as `training/compare.py` keeps them."""

import numpy as np

COSTS = {"adamw": (1, 0.03), "lookahead:5": (1, 0.031), "sam": (2, 0.06)}


def record(label, seed, *, floor=0.4, ended="finished", higher_is_better=True, updates=1000):
    """A loss that falls from 0.69 to `floor`; that of a diverged run rises after a third."""
    evaluations, seconds = COSTS.get(label, (1, 0.03))
    noise = np.random.default_rng([seed, len(label)])
    curve = []
    for step in range(0, updates + 1, 100):
        loss = floor + (0.69 - floor) * np.exp(-step / 200) + 0.001 * noise.normal()
        if ended == "diverged":
            loss += np.expm1(max(step - updates / 3, 0) / 100)
        curve.append(
            {
                "updates": step,
                "gradient_evaluations": step * evaluations,
                "seconds": step * seconds,
                "loss": loss,
                "validation_loss": loss,
                "validation_accuracy": 1 - loss,
            }
        )
    last = curve[-1]
    name = "validation_accuracy" if higher_is_better else "validation_loss"
    return {
        "strategy": label,
        "label": label,
        "seed": seed,
        "ended": ended,
        "updates": updates,
        "gradient_evaluations": last["gradient_evaluations"],
        "seconds": last["seconds"],
        "score_name": name,
        "higher_is_better": higher_is_better,
        "score": None if ended == "diverged" else last[name],
        "test": {"accuracy": 0.9 - last["loss"], "loss": last["loss"] + 0.1},
        "curve": curve,
        "initial_weights": f"digest of seed {seed}",
        "message": "The loss is not finite any more." if ended == "diverged" else "",
    }


def records(floors, seeds=range(3), **options):
    """`floors[label]`, in turn over the seeds; None diverges."""
    return [
        record(label, seed, floor=floor or 0.5, **options)
        if floor
        else record(label, seed, ended="diverged", **options)
        for seed in seeds
        for label, floor in floors.items()
    ]
