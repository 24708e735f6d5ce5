"""How a network knows where in a text a token stands.

Axes: B batch, T target steps, S source steps, N heads, H head size, D width.
"""

import math

import tensorflow as tf


def rotary(x: tf.Tensor, position: tf.Tensor, *, base: float = 10_000.0) -> tf.Tensor:
    """Rotary position embedding (Su et al., 2021, eq. 34), in the half-split layout.

    Channel i is paired with channel i + H/2 and the pair turned by position / base^(2i/H), so a
    dot product of two turned vectors depends on their distance alone.

    `x` float (B, N, T, H), H even; `position` int (B, T) or (1, T). Returns `x`'s shape and dtype;
    the angles are float32 under any policy.
    """
    return turned(x, rotation(position, x.shape[-1], base=base))


def rotation(
    position: tf.Tensor, head_size: int, *, base: float = 10_000.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """What `rotary` turns by, for `turned`: cosines and sines float32 (B, 1, T, H/2)."""
    half = head_size // 2
    frequency = base ** (-tf.range(half, dtype=tf.float32) / half)  # (H/2,)
    angle = tf.cast(position, tf.float32)[:, None, :, None] * frequency
    return tf.cos(angle), tf.sin(angle)


def turned(x: tf.Tensor, by: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """`x` float (B, N, T, H) turned by a `rotation`."""
    cosine, sine = (tf.cast(part, x.dtype) for part in by)
    first, second = tf.split(x, 2, axis=-1)  # whose gradient is one copy; that of slices is sums
    return tf.concat([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def sinusoidal(position: tf.Tensor, width: int, *, base: float = 10_000.0) -> tf.Tensor:
    """Sines and cosines of the position (Vaswani et al., 2017, sec. 3.5), to be added.

    `position` int (B, T), `width` even -> float32 (B, T, D): channels 2i and 2i + 1 are the sine
    and cosine of position / base^(2i/D), so a shift by k turns every pair by one angle.
    """
    frequency = base ** (-tf.range(0, width, 2, dtype=tf.float32) / width)  # (D/2,)
    angle = tf.cast(position, tf.float32)[..., None] * frequency
    pairs = tf.stack([tf.sin(angle), tf.cos(angle)], axis=-1)  # (B, T, D/2, 2)
    return tf.reshape(pairs, tf.concat([tf.shape(position), [width]], axis=0))


def alibi_slopes(num_heads: int) -> list[float]:
    """How steeply each head forgets with distance (Press et al., 2022, sec. 3).

    2^(-8/n), 2^(-16/n), ... for n heads, a power of two; else those of the power below, and between
    them every other one of the power above, as in the authors' code.

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return slopes + between[: num_heads - power]


def alibi(position: tf.Tensor, num_sources, num_heads: int) -> tf.Tensor:
    """Minus the slope of each head times the distance, to be added to the scores of attention.

    `position` int (B, T) or (1, T) of the targets; sources stand at 0 to `num_sources` - 1. Returns
    float32 (B, N, T, S). Looking both ways, distance is that in either direction.
    """
    distance = tf.abs(position[:, :, None] - tf.range(num_sources)[None, None, :])  # (B, T, S)
    slopes = tf.constant(alibi_slopes(num_heads))[None, :, None, None]
    return -slopes * tf.cast(distance, tf.float32)[:, None]
