"""Single-step optimisation: one gradient, one update a batch."""

import tensorflow as tf


def single_step(model, optimizer, loss_fn, *, clip_norm: float | None):
    """One batch in, one parameter update out.

    `loss_fn(batch, logits)` returns sums as `training/losses.py` says; the gradient is that of
    their mean. Clipping by the global norm (Pascanu et al., 2013) sees the whole gradient, rows
    of embeddings added up first. Returns a function batch -> sums and "grad_norm", all float32.
    """
    variables = model.trainable_variables

    @tf.function(reduce_retracing=True)
    def train_step(batch):
        with tf.GradientTape() as tape:
            sums = loss_fn(batch, model(batch["tokens"], training=True))
            loss = tf.math.divide_no_nan(sums["loss_sum"], sums["num_targets"])
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        gradients = [add_repeated_rows(gradient) for gradient in gradients]
        grad_norm = tf.linalg.global_norm(gradients)
        if clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, use_norm=grad_norm)
        optimizer.apply(gradients, variables)
        return sums | {"grad_norm": grad_norm}

    return train_step


def add_repeated_rows(gradient):
    """A sparse gradient with each row once; its norm is then that of the dense gradient."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, position = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)
