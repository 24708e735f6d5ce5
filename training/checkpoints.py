"""The last and the best state of a run on disk, each replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf


class Checkpoints:
    """Weights, optimizer slots, random state and progress of one run.

    `last` is where an interrupted run goes on; `best` is what is evaluated and exported.
    `progress` are the loop's own numbers; they travel with the weights so that a resumed run
    knows its step, its best score and its patience. TensorFlow writes a new file beside the old
    one and renames an index last, so a kill at any moment leaves a checkpoint that loads.
    """

    def __init__(self, folder: Path, model, optimizer=None):
        self.progress = {
            "step": tf.Variable(0, dtype=tf.int64, trainable=False),
            "best_step": tf.Variable(-1, dtype=tf.int64, trainable=False),
            "best_score": tf.Variable(float("-inf"), dtype=tf.float64, trainable=False),
            "best_loss": tf.Variable(float("inf"), dtype=tf.float64, trainable=False),
            "num_stale": tf.Variable(0, dtype=tf.int64, trainable=False),
            "seconds": tf.Variable(0.0, dtype=tf.float64, trainable=False),
        }
        weights = [variable.value for variable in model.variables]  # dropout seeds included
        slots = [variable.value for variable in optimizer.variables] if optimizer else []
        self.weights = tf.train.Checkpoint(weights=weights)
        everything = tf.train.Checkpoint(weights=weights, slots=slots, progress=self.progress)
        self.last = tf.train.CheckpointManager(everything, str(folder / "last"), max_to_keep=1)
        self.best = tf.train.CheckpointManager(self.weights, str(folder / "best"), max_to_keep=1)

    def restore_last(self) -> int:
        """Loads the newest state if there is one; returns the number of updates done."""
        if self.last.latest_checkpoint:
            status = self.last.checkpoint.restore(self.last.latest_checkpoint)
            status.assert_existing_objects_matched()
        return int(self.progress["step"])

    def restore_best(self) -> None:
        """Loads the best weights; raises FileNotFoundError when none were saved yet."""
        path = self.best.latest_checkpoint
        if not path:
            raise FileNotFoundError(
                f"No checkpoint in {self.best.directory}. The run has not got as far as its first "
                "evaluation: fit it first."
            )
        self.weights.restore(path).assert_existing_objects_matched().expect_partial()

    def save_last(self, step: int) -> None:
        self.progress["step"].assign(step)
        self.last.save(checkpoint_number=step)

    def save_best(self, step: int) -> None:
        self.best.save(checkpoint_number=step)
