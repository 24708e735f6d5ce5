"""Settings that the device decides unless the user does: `precision`, `xla`, and threads.

They are decided before a run has a folder, and written into its `config.json` as they were decided:
a run that goes on computes as it began, and one begun on other devices is another run. Nothing
heavy is imported where there is no GPU.

| | `precision` | `xla` |
|---|---|---|
| no GPU | float32 | false |
| GPUs that all have bfloat16 (compute capability 8.0, Ampere) | mixed_bfloat16 | |
| older ones | float32: mixed_float16 needs a strategy around loss_scale | |
| one GPU, and all batches of one shape (`packing=packed`, one batch size) | | true |
| several GPUs, or rows of many lengths, which XLA would pad to the longest | | false |

Threads are no part of a run: they are those of the process, see `use_threads`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config.transformers import BlocksConfig
from training.config import PACKED, RunConfig, is_private, override
from training.strategies.catalogue import resolve

logger = logging.getLogger(__name__)

AUTO = "auto"
DECIDED = ("precision", "xla")
_HAS_BFLOAT16 = (8, 0)
_DEVICE_FILES = ("nvidia[0-9]*", "kfd", "dxg")  # of NVIDIA, of AMD, of Windows' Linux


@dataclass(frozen=True)
class Gpu:
    name: str
    compute_capability: tuple[int, int] | None  # None: not one of NVIDIA's


def by_device(
    config: RunConfig,
    assignments: Iterable[str],
    *,
    is_new: bool = True,
    num_replicas: int | None = None,
    gpus: list[Gpu] | None = None,
) -> RunConfig:
    """`override(config, assignments)`, with what is left to the device decided.

    That is `precision` and `xla` where they are set to auto; of a recipe (`is_new`) also where they
    are not set, while a configuration that is read back keeps what it says. `num_replicas` is what
    --replicas asks for; `gpus` are those there are, found if not given.
    """
    pairs = [(assignment.partition("=")[0].strip(), assignment) for assignment in assignments]
    typed = {name: assignment.partition("=")[2].strip() for name, assignment in pairs}
    open_ones = [name for name in DECIDED if typed.get(name, AUTO if is_new else "") == AUTO]
    config = override(config, [pair for name, pair in pairs if name not in open_ones])
    if not open_ones:
        return config
    gpus = find_gpus() if gpus is None else gpus
    decided: dict[str, Any] = {}
    if "precision" in open_ones:
        # What a recipe says is said of processors: it stands where there is nothing else.
        keeps = is_new and not gpus
        decided["precision"] = config.precision if keeps else precision_for(gpus)
    if "xla" in open_ones:
        decided["xla"] = compiles_for(config, gpus, num_replicas)
    if gpus:
        said = ", ".join(f"{name}={str(value).lower()}" for name, value in decided.items())
        logger.info(f"For {len(gpus)} GPU{'s' * (len(gpus) > 1)} ({gpus[0].name}): {said}.")
    return dataclasses.replace(config, **decided)


def precision_for(gpus: list[Gpu]) -> str:
    """What layers compute in, as `precision` takes it."""
    has_bfloat16 = [(gpu.compute_capability or (0, 0)) >= _HAS_BFLOAT16 for gpu in gpus]
    return "mixed_bfloat16" if gpus and all(has_bfloat16) else "float32"


def compiles_for(config: RunConfig, gpus: list[Gpu], num_replicas: int | None = None) -> bool:
    """Whether XLA is to compile the updates of a run."""
    num_devices = len(gpus) if num_replicas is None else num_replicas
    if len(gpus) == 0 or num_devices > 1 or os.environ.get("TF_CONFIG"):
        return False
    return all(
        stage.packing == PACKED
        and isinstance(stage.batch_size, int)
        and not isinstance(stage.max_tokens, str)
        and not is_private(resolve(stage.strategy))
        for stage in config.stages
    )


def use_threads(config: RunConfig) -> None:
    """Before TensorFlow starts: operations side by side in place of threads inside each of them.

    For narrow Transformers on a processor of few cores, where an operation is too small to be cut:
    a quarter more updates a second at width 128 on two cores, and a fifth fewer at width 384 (see
    EXPERIMENTS.md). TF_NUM_INTRAOP_THREADS and TF_NUM_INTEROP_THREADS, where set, stand.
    """
    num_cores = os.cpu_count() or 1
    is_narrow = isinstance(config.model, BlocksConfig) and config.model.width < 256
    if not is_narrow or not 1 < num_cores <= 4 or _has_gpu_driver():
        return
    if {"TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"} & os.environ.keys():
        return
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    os.environ["TF_NUM_INTEROP_THREADS"] = str(num_cores)


def _has_gpu_driver() -> bool:
    return any(file for pattern in _DEVICE_FILES for file in Path("/dev").glob(pattern))


def find_gpus() -> list[Gpu]:
    """Those that TensorFlow sees; it is not asked, and not imported, where there is no driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    if not _has_gpu_driver():
        return []
    from model.runtime import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    details = [
        tf.config.experimental.get_device_details(device)
        for device in tf.config.list_physical_devices("GPU")
    ]
    return [
        Gpu(found.get("device_name", "GPU"), found.get("compute_capability")) for found in details
    ]
