"""Several micro-batches as one dict of arrays, for graph code that reads all of an update at once.

Axes: M micro-batches, B rows of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.pipeline import Batch


def stack(
    batches: Sequence[Batch],
    *,
    shapes: bool = True,
    pad_to: Mapping[str, tuple[int, ...]] | None = None,
) -> Batch:
    """Every field with an axis M in front, padded with 0 to a common shape.

    `pad_to` gives the shapes of some fields instead, for graph code that is compiled for one shape;
    fields that it leaves out get as many rows. Where something may be padded (M > 1 or `pad_to`),
    "shape/<field>" int32 (M, rank) tells what each had, to cut the padding off again. With
    `shapes=False` that is left out, and "weight" float32 (M, B) added unless the batches have it
    already: 0 for the rows that were added, whose loss must not count. The fields of the result
    depend on the arguments and the fields of the batches, never on the data.

    Raises ValueError for batches of different fields or larger than `pad_to`.
    """
    pad_to = pad_to or {}
    if not batches or any(batch.keys() != batches[0].keys() for batch in batches):
        found = [list(batch) for batch in batches]
        raise ValueError(f"Batches to stack must have the same fields. Received: {found}")
    if unknown := pad_to.keys() - batches[0].keys():
        raise ValueError(
            f"pad_to names fields of the batches: {', '.join(batches[0])}. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    may_pad = len(batches) > 1 or bool(pad_to)
    if may_pad and not shapes:
        batches = [_weight(batch) | batch for batch in batches]
    num_rows = max([*map(_num_rows, batches), *(shape[0] for shape in pad_to.values())])
    stacked = {}
    for name in batches[0]:
        arrays = [batch[name] for batch in batches]
        own = np.array([array.shape for array in arrays], np.int32)  # (M, rank)
        largest = tuple(own.max(axis=0).tolist())
        stacked[name] = _padded(name, arrays, largest, pad_to.get(name, (num_rows, *largest[1:])))
        if may_pad and shapes:
            stacked[f"shape/{name}"] = own
    return stacked


def _padded(
    name: str, arrays: Sequence[np.ndarray], largest: tuple[int, ...], shape: tuple[int, ...]
) -> np.ndarray:
    if len(shape) != len(largest) or any(a > b for a, b in zip(largest, shape, strict=True)):
        raise ValueError(f"pad_to[{name!r}] must be {largest} or more. Received: {tuple(shape)}")
    stacked = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[tuple(map(slice, array.shape))] = array
    return stacked


def _weight(batch: Batch) -> Batch:
    return {"weight": np.ones(_num_rows(batch), np.float32)}


def _num_rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))
