"""Losses as sums and counts: averages are taken where all of a report is known.

Each takes a batch and its logits and returns float32 scalars "loss_sum" (nats), "num_targets" and
"num_correct"; padding counts nowhere.
"""

import tensorflow as tf


def classification_loss(batch, logits):
    """Cross-entropy of `batch["label"]` int32 (B,) under `logits` (B, K)."""
    return _cross_entropy(batch["label"], logits, tf.ones_like(batch["label"], tf.float32))


def language_model_loss(batch, logits):
    """Cross-entropy of `batch["targets"]` int32 (B, T), 0 is padding, under `logits` (B, T, V)."""
    return _cross_entropy(batch["targets"], logits, tf.cast(batch["targets"] != 0, tf.float32))


def _cross_entropy(targets, logits, weight):
    logits = tf.cast(logits, tf.float32)
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    is_correct = tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets
    return {
        "loss_sum": tf.reduce_sum(nats * weight),
        "num_targets": tf.reduce_sum(weight),
        "num_correct": tf.reduce_sum(tf.cast(is_correct, tf.float32) * weight),
    }
