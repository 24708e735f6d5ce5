"""Multi-head attention: over one's own text, with an optional key/value cache, and over another.

Axes: B batch, T target steps, S source steps, N heads, H head size, D width.

The cache of one layer is a pair (keys, values), each float (B, N, S, H): position s of a row
stands in slot s, so rows of different lengths share a batch without shifting. Slots not yet
written hold zeros and are hidden by `may_attend`.
"""

import keras
import tensorflow as tf

from model.config.transformers import BlocksConfig
from model.positions import alibi, rotary
from model.products import Dense, product, product_type

Cache = tuple[tf.Tensor, tf.Tensor]
# What a score that may not count is lowered by: far beyond any score, and softmax gives exactly 0.
HIDDEN = -1e9


class SelfAttention(keras.layers.Layer):
    """Scaled dot-product attention (Vaswani et al., 2017, eq. 1), with positions in its scores.

    Call: `x` float (B, T, D); `position` int (B, T) or (1, T); `may_attend` bool broadcastable to
    (B, N, T, S), True where a target may look. Without a cache S = T. With one, the keys and
    values of `x` are written at `position` first, and the updated cache is returned beside the
    answer. `more_values` float (B, T, D) is added to the values of `x`. Returns float (B, T, D), or
    ((B, T, D), cache).

    The weights themselves are not dropped out: the random numbers for (B, N, T, S) cost as much
    as the rest of a small network's step.
    """

    def __init__(self, config: BlocksConfig, **kwargs):
        super().__init__(**kwargs)
        self.config, self.num_heads = config, config.num_heads
        self.head_size = config.width // config.num_heads
        self.qkv = dense(config, 3 * config.width, use_bias=False, name="qkv")
        self.output_projection = dense(
            config, config.width, is_last=True, use_bias=False, name="output_projection"
        )
        if config.qk_norm:
            self.query_norm, self.key_norm = rms_norm("query_norm"), rms_norm("key_norm")

    def build(self, shape):
        self.qkv.build(shape)
        self.output_projection.build(shape)
        if self.config.qk_norm:
            self.query_norm.build((None, self.num_heads, None, self.head_size))
            self.key_norm.build((None, self.num_heads, None, self.head_size))

    def call(self, x, position, may_attend, cache: Cache | None = None, more_values=None):
        B, T = tf.shape(x)[0], tf.shape(x)[1]
        qkv = tf.reshape(self.qkv(x), [B, T, 3, self.num_heads, self.head_size])
        q, k, v = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))  # (B, N, T, H) each
        if more_values is not None:
            more = tf.reshape(more_values, [B, T, self.num_heads, self.head_size])
            v += tf.transpose(more, [0, 2, 1, 3])
        if self.config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.config.positions == "rotary":
            q, k = rotary(q, position), rotary(k, position)
        if cache is not None:
            k, v = cache = _write(cache, k, v, position)  # (B, N, S, H) each
        bias = None
        if self.config.positions == "alibi":
            bias = alibi(position, tf.shape(k)[2], self.num_heads)
        y = self.output_projection(_attend(q, k, v, may_attend, product_type(self), bias))
        return y if cache is None else (y, cache)


class CrossAttention(keras.layers.Layer):
    """Attention of a target over a source text (Vaswani et al., 2017, sec. 3.2.3), unpositioned.

    Where a source token stands is for the source's own encoder to say, as in T5 (Raffel et al.,
    2020, sec. 2.1). Call: `x` float (B, T, D); `source` float (B, S, D), or what `keys_values` made
    of it, so that decoding reads it once; `may_attend` bool broadcastable to (B, N, T, S). Returns
    float (B, T, D).
    """

    def __init__(self, config: BlocksConfig, **kwargs):
        super().__init__(**kwargs)
        width, self.num_heads = config.width, config.num_heads
        self.head_size = width // config.num_heads
        self.query = dense(config, width, use_bias=False, name="query")
        self.key_value = dense(config, 2 * width, use_bias=False, name="key_value")
        self.output_projection = dense(
            config, width, is_last=True, use_bias=False, name="output_projection"
        )

    def build(self, shape):
        self.query.build(shape)
        self.key_value.build(shape)
        self.output_projection.build(shape)

    def keys_values(self, source) -> Cache:
        """`source` float (B, S, D) -> keys and values, each (B, N, S, H)."""
        B, S = tf.shape(source)[0], tf.shape(source)[1]
        kv = tf.reshape(self.key_value(source), [B, S, 2, self.num_heads, self.head_size])
        k, v = tf.unstack(tf.transpose(kv, [2, 0, 3, 1, 4]))
        return k, v

    def call(self, x, source, may_attend):
        k, v = source if isinstance(source, tuple) else self.keys_values(source)
        B, T = tf.shape(x)[0], tf.shape(x)[1]
        q = tf.reshape(self.query(x), [B, T, self.num_heads, self.head_size])
        q = tf.transpose(q, [0, 2, 1, 3])  # (B, N, T, H)
        return self.output_projection(_attend(q, k, v, may_attend, product_type(self)))


def _attend(q, k, v, may_attend, factors=None, bias=None):
    """Scaled dot-product attention, eq. 1: (B, N, T, H) over (B, N, S, H) twice -> (B, T, D).

    `bias` float32, broadcastable to (B, N, T, S), is added to the scores; `factors` is the type
    that those of products are rounded to.
    """
    q *= q.shape[-1] ** -0.5  # fewer numbers than the scores
    scores = tf.cast(product(q, k, factors, transpose_b=True), tf.float32)  # (B, N, T, S)
    # Added, not chosen by tf.where: the gradient passes a sum as it is.
    hidden = tf.where(may_attend, 0.0, HIDDEN)
    scores += hidden if bias is None else bias + hidden
    weights = tf.cast(tf.nn.softmax(scores), v.dtype)  # softmax in float32 under any policy
    y = tf.transpose(product(weights, v, factors), [0, 2, 1, 3])  # (B, T, N, H)
    return tf.reshape(y, [tf.shape(y)[0], tf.shape(y)[1], q.shape[1] * q.shape[-1]])


def dense(config: BlocksConfig, units: int, *, is_last: bool = False, **settings) -> Dense:
    """A layer of a block; with `initialization="gpt2"` as Radford et al. (2019, sec. 2.3) start it.

    `is_last` says that it ends a residual branch: its deviation is divided by the root of how many
    there are.
    """
    if config.initialization == "gpt2":
        stddev = 0.02 / (2 * config.num_layers) ** 0.5 if is_last else 0.02
        settings["kernel_initializer"] = keras.initializers.RandomNormal(stddev=stddev)
    return Dense(units, **settings)


def rms_norm(name: str) -> keras.layers.RMSNormalization:
    """x / sqrt(mean(x^2) + 1e-5) times a gain (Zhang & Sennrich, 2019, eq. 4)."""
    return keras.layers.RMSNormalization(epsilon=1e-5, name=name)


def empty_cache(
    batch_size, num_slots, num_layers: int, num_heads: int, head_size: int, dtype="float32"
):
    """One (keys, values) of zeros for each layer, `dtype` (B, N, S, H)."""
    zeros = tf.zeros([batch_size, num_heads, num_slots, head_size], dtype)
    return [(zeros, zeros) for _ in range(num_layers)]


def _write(cache: Cache, k, v, position) -> Cache:
    """Puts `k` and `v` (B, N, T, H) into the slots `position` (B, T) of the cache."""
    B, N, T = tf.shape(k)[0], tf.shape(k)[1], tf.shape(k)[2]
    row, head, slot = (
        tf.broadcast_to(index, [B, N, T])
        for index in (
            tf.range(B)[:, None, None],
            tf.range(N)[None, :, None],
            tf.broadcast_to(position, [B, T])[:, None, :],
        )
    )
    where = tf.stack([row, head, slot], axis=-1)  # (B, N, T, 3)
    keys, values = cache
    return (
        tf.tensor_scatter_nd_update(keys, where, k),
        tf.tensor_scatter_nd_update(values, where, v),
    )
