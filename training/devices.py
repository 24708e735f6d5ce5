"""Which devices a run is trained on: one, several of this process, or those of several processes.

All of it is `tf.distribute`. What the replicas then do is in `training/strategies/replicas.py`, and
what processes do that are workers of their own in `processes.py` beside it.
"""

from __future__ import annotations

import logging
import os

import tensorflow as tf

from training.config import RunConfig
from training.strategies.catalogue import WITH_WORKERS, Link, num_workers, resolve
from training.strategies.processes import Exchange, Workers, place
from training.strategies.replicas import Replicas

logger = logging.getLogger(__name__)


def choose_replicas(config: RunConfig, num: int | None = None) -> Replicas:
    """The replicas that each see a part of every batch, by what there is and what is asked for.

    * TF_CONFIG names several processes: one replica in each (`MultiWorkerMirroredStrategy`). All
      have to be started with the same command and to see the same files; this waits for them. Of a
      strategy with workers (`diloco`, `local_sgd`) each process is one worker.
    * `num`, or else the number of GPUs, is above 1: that many of this process
      (`MirroredStrategy`), on GPUs if there are any, else on as many parts of the processor.
    * Otherwise one device; so, too, with several GPUs for a run that cannot be shared out, which is
      logged.

    Has to be called before TensorFlow computes anything. Raises ValueError if that is too late, for
    a number that cannot be had, and for a run that cannot do what is asked for.
    """
    num_processes, index = place(os.environ)
    if num_processes > 1:
        return _of_processes(config, num, num_processes, index)
    gpus = tf.config.list_physical_devices("GPU")
    if num is not None and (num < 1 or (gpus and num > len(gpus))):
        limit = f" and at most {len(gpus)}, the number of GPUs" if gpus else ""
        raise ValueError(f"--replicas must be 1 or more{limit}. Received: {num}")
    count = max(len(gpus), 1) if num is None else num
    reason = refusal(config)
    if count > 1 and reason and num is None:
        logger.info(f"One of {count} GPUs is used: {reason}.")
    if count == 1 or (reason and num is None):
        return Replicas()
    _require_none(reason)
    if not gpus:
        _divide_processor(count)
    devices = [f"{'GPU' if gpus else 'CPU'}:{i}" for i in range(count)]
    logger.info(f"{count} replicas: {', '.join(devices)}.")
    return Replicas(tf.distribute.MirroredStrategy(devices))


def _of_processes(config: RunConfig, num: int | None, num_processes: int, index: int) -> Replicas:
    if num is not None:
        raise ValueError(
            "--replicas divides one process, and with TF_CONFIG every process is one replica. "
            f"Leave out one of them. Received: --replicas {num}, {num_processes} processes"
        )
    are_workers = any(num_workers(stage.strategy) for stage in config.stages)
    _require_none(refusal_of_workers(config, num_processes) if are_workers else refusal(config))
    if index:
        logging.getLogger("training").setLevel(logging.WARNING)  # the chief says it for all
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    num_devices = strategy.num_replicas_in_sync
    if not are_workers:
        logger.info(f"{num_processes} processes, {num_devices} replicas.")
        return Replicas(strategy, num_processes=num_processes, index=index)
    if num_devices != num_processes:
        raise ValueError(
            "A worker trains on one device. Show one GPU to each process (CUDA_VISIBLE_DEVICES). "
            f"Received: {num_devices} devices, {num_processes} processes"
        )
    logger.info(f"{num_processes} processes, each of them one worker.")
    return Workers(Exchange(strategy, num_processes, index))


def check_replicas(config: RunConfig, replicas: Replicas) -> None:
    """Raises ValueError, with what to write instead, for what several replicas cannot do."""
    if replicas.exchange:
        _require_none(refusal_of_workers(config, replicas.num_processes))
    elif replicas.num > 1:
        _require_none(refusal(config))


def refusal_of_workers(config: RunConfig, num_processes: int) -> str | None:
    """Why so many processes cannot be the workers of a run, and what to write instead."""
    if config.xla:
        return "xla=true cannot compile a meeting of processes. Set xla=false"
    for stage in config.stages:
        num = num_workers(stage.strategy)
        if num is None:
            return (
                f"{stage.name}: strategy={stage.strategy} has no workers, and other stages of the "
                f"run have. Write diloco({stage.strategy}, workers={num_processes}), say, or leave "
                "out TF_CONFIG: workers are simulated on one device"
            )
        if num != num_processes:
            return (
                f"{stage.name}: strategy={stage.strategy} has workers={num}, and TF_CONFIG names "
                f"{num_processes} processes, each of which is one worker. Write "
                f"workers={num_processes}, or start {num} processes"
            )
        for setting in ("stop_loss", "stop_grad_norm"):
            if getattr(stage, setting) is not None:
                return (
                    f"{stage.name}: {setting} looks at every update, and each process knows only "
                    "that of its own worker. Leave it out, and stop by patience instead"
                )
    return None


def refusal(config: RunConfig) -> str | None:
    """Why the batches of a run cannot be shared out to replicas, and what to write instead."""
    if config.xla:
        return (
            "xla=true compiles for one device, as TensorFlow cannot compile a replicated update. "
            "Set xla=false, or train on one device"
        )
    for stage in config.stages:
        if reason := refusal_of_chain(resolve(stage.strategy)):
            return f"{stage.name}: strategy={stage.strategy}: {reason}"
    return None


def refusal_of_chain(chain: list[Link]) -> str | None:
    """The same of one strategy."""
    names = [link.name for link in chain]
    for name in names:
        if name in WITH_WORKERS:
            return (
                f"the workers of {name} take updates of their own, so no batch is shared out to "
                "them. Leave out --replicas: they are simulated on one device, or each is a "
                "process of TF_CONFIG"
            )
    if "dp_sgd" in names:
        return "what dp_sgd promises is proven on one device alone. Train on one device"
    for i, outer in enumerate(names):
        for inner in names[i + 1 :]:
            if outer in _LOOPS and inner in _MEETINGS:
                return (
                    f"{inner} needs the gradient of all replicas, which cannot meet inside the "
                    f"loop of {outer}. Write {inner}({outer}(...)), or train on one device"
                )
    return None


def _require_none(reason: str | None) -> None:
    if reason:
        raise ValueError(f"Several devices or processes cannot train this run: {reason}.")


_LOOPS = ("accumulate", "truncate")  # over parts of a batch, on each replica by itself
_MEETINGS = ("sam", "extragradient", "fgm")  # add up over the replicas to make a gradient


def _divide_processor(count: int) -> None:
    processor = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
    try:
        tf.config.set_logical_device_configuration(processor, parts)
    except RuntimeError as error:
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise ValueError(
                f"--replicas {count} divides the processor, which has to be done before "
                "TensorFlow computes anything. Start a process of its own for this run."
            ) from error
