"""How a network knows where in a text a token stands.

Axes: B batch, T steps, N heads, H head size.
"""

import tensorflow as tf


def rotary(x: tf.Tensor, position: tf.Tensor, *, base: float = 10_000.0) -> tf.Tensor:
    """Rotary position embedding (Su et al., 2021, eq. 34), in the half-split layout.

    Channel i is paired with channel i + H/2 and the pair turned by position / base^(2i/H), so a
    dot product of two turned vectors depends on their distance alone.

    `x` float (B, N, T, H), H even; `position` int (B, T) or (1, T). Returns `x`'s shape and dtype;
    the angles are float32 under any policy.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-tf.range(half, dtype=tf.float32) / half)  # (H/2,)
    angle = tf.cast(position, tf.float32)[:, None, :, None] * frequency  # (B, 1, T, H/2)
    cosine, sine = tf.cast(tf.cos(angle), x.dtype), tf.cast(tf.sin(angle), x.dtype)
    first, second = x[..., :half], x[..., half:]
    return tf.concat([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
