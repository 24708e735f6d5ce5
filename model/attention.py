"""Multi-head attention: over one's own text, with an optional key/value cache, and over another.

Axes: B batch, T target steps, S source steps or cache slots, N heads, K heads of keys and values,
H head size, D width.

The cache, here and nowhere else: a list with one pair (keys, values) for each layer, each of the
activations' type (B, K, S, H). Position s of a row stands in slot s, so rows of different lengths
share a batch without shifting, and a row goes back by writing over what it leaves. Keys are held as
scores use them, normalised and turned; they are never touched again. Slots not yet written hold
zeros, those behind a row's last token anything: `may_attend` hides both. The first axis is the
batch, so `tf.gather` on every tensor of it takes rows, or repeats them.
"""

import keras
import tensorflow as tf

from model.config.transformers import BlocksConfig
from model.positions import alibi, rotation, turned
from model.products import Dense, product, product_type, sizes

Cache = tuple[tf.Tensor, tf.Tensor]
# What a score that may not count is lowered by: far beyond any score, and softmax gives exactly 0.
HIDDEN = -1e9


class SelfAttention(keras.layers.Layer):
    """Scaled dot-product attention (Vaswani et al., 2017, eq. 1), with positions in its scores.

    Call: `x` float (B, T, D); `position` int (B, T) or (1, T); `may_attend` bool broadcastable to
    (B, N, T, S), True where a target may look. Without a cache S = T. With one, the keys and
    values of `x` are written at `position` first, and the updated cache is returned beside the
    answer. `more_values` float (B, T, K H) is added to the values of `x`. Returns float (B, T, D),
    or ((B, T, D), cache).

    With fewer heads of keys and values, K < N, head n reads those of number n K / N, rounded down
    (Ainslie et al., 2023, fig. 2; K = 1 is Shazeer, 2019): the cache is N / K times smaller.

    The weights themselves are not dropped out: the random numbers for (B, N, T, S) cost as much
    as the rest of a small network's step.
    """

    def __init__(self, config: BlocksConfig, **kwargs):
        super().__init__(**kwargs)
        self.config, self.num_heads = config, config.num_heads
        self.head_size = config.width // config.num_heads
        self.is_grouped = config.key_value_width != config.width
        if self.is_grouped:
            self.query = dense(config, config.width, use_bias=False, name="query")
            self.key_value = dense(
                config, 2 * config.key_value_width, use_bias=False, name="key_value"
            )
        else:
            self.qkv = dense(config, 3 * config.width, use_bias=False, name="qkv")
        self.output_projection = dense(
            config, config.width, is_last=True, use_bias=False, name="output_projection"
        )
        if config.qk_norm:
            self.query_norm, self.key_norm = rms_norm("query_norm"), rms_norm("key_norm")

    def build(self, shape):
        for layer in (self.query, self.key_value) if self.is_grouped else (self.qkv,):
            layer.build(shape)
        self.output_projection.build(shape)
        if self.config.qk_norm:
            self.query_norm.build((None, None, None, self.head_size))
            self.key_norm.build((None, None, None, self.head_size))

    def call(self, x, position, may_attend, cache: Cache | None = None, more_values=None):
        if self.is_grouped:
            (q,), (k, v) = self._heads(self.query(x), 1), self._heads(self.key_value(x), 2)
        else:
            q, k, v = self._heads(self.qkv(x), 3)  # (B, N, T, H), (B, K, T, H), (B, K, T, H)
        if more_values is not None:
            v += self._heads(more_values, 1)[0]
        if self.config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.config.positions == "rotary":
            turn = rotation(position, self.head_size)
            q, k = turned(q, turn), turned(k, turn)
        if cache is not None:
            k, v = cache = _write(cache, k, v, position)  # (B, K, S, H) each
        bias = None
        if self.config.positions == "alibi":
            bias = alibi(position, tf.shape(k)[2], self.num_heads)
        y = self.output_projection(_attend(q, k, v, may_attend, product_type(self), bias))
        return y if cache is None else (y, cache)

    def _heads(self, x, count: int) -> list[tf.Tensor]:
        """The `count` parts of (B, T, count N H), head by head: (B, N, T, H) each."""
        num_heads = x.shape[-1] // (count * self.head_size)
        B, T, _ = sizes(x)
        x = tf.reshape(x, [B, T, count, num_heads, self.head_size])
        return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))


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
        B, S, _ = sizes(source)
        kv = tf.reshape(self.key_value(source), [B, S, 2, self.num_heads, self.head_size])
        k, v = tf.unstack(tf.transpose(kv, [2, 0, 3, 1, 4]))
        return k, v

    def call(self, x, source, may_attend):
        k, v = source if isinstance(source, tuple) else self.keys_values(source)
        B, T, _ = sizes(x)
        q = tf.reshape(self.query(x), [B, T, self.num_heads, self.head_size])
        q = tf.transpose(q, [0, 2, 1, 3])  # (B, N, T, H)
        return self.output_projection(_attend(q, k, v, may_attend, product_type(self)))


def _attend(q, k, v, may_attend, factors=None, bias=None):
    """Scaled dot-product attention, eq. 1: (B, N, T, H) over (B, K, S, H) twice -> (B, T, D).

    `bias` float32, broadcastable to (B, N, T, S), is added to the scores; `factors` is the type
    that those of products are rounded to.
    """
    q *= q.shape[-1] ** -0.5  # fewer numbers than the scores
    B, _, T, _ = sizes(q)
    N, K, H = q.shape[1], k.shape[1], q.shape[3]
    S = sizes(k)[2] if K != N else None
    if K != N:  # the heads of a group side by side, as more targets: no key is copied
        q = tf.reshape(q, [B, K, N // K * T, H])
    scores = tf.cast(product(q, k, factors, transpose_b=True), tf.float32)
    if K != N:
        scores = tf.reshape(scores, [B, N, T, S])
    # Added, not chosen by tf.where: the gradient passes a sum as it is.
    hidden = tf.where(may_attend, 0.0, HIDDEN)
    scores += hidden if bias is None else bias + hidden
    weights = tf.cast(tf.nn.softmax(scores), v.dtype)  # softmax in float32 under any policy
    if K != N:
        weights = tf.reshape(weights, [B, K, N // K * T, S])
    y = product(weights, v, factors)
    if K != N:
        y = tf.reshape(y, [B, N, T, H])
    return tf.reshape(tf.transpose(y, [0, 2, 1, 3]), [B, T, N * H])


def dense(config: BlocksConfig, units: int, *, is_last: bool = False, **settings) -> Dense:
    """A layer of a block; with `initialization="gpt2"` as Radford et al. (2019, sec. 2.3) start it.

    `is_last` says that it ends a residual branch: its deviation is divided by the root of how many
    there are. With `zero_output_projections` it starts at zero, so that every block begins as the
    identity (Zhang et al., 2019, Fixup, sec. 3).
    """
    if is_last and config.zero_output_projections:
        settings["kernel_initializer"] = "zeros"
    elif config.initialization == "gpt2":
        stddev = 0.02 / (2 * config.num_layers) ** 0.5 if is_last else 0.02
        settings["kernel_initializer"] = keras.initializers.RandomNormal(stddev=stddev)
    return Dense(units, **settings)


def rms_norm(name: str) -> keras.layers.RMSNormalization:
    """x / sqrt(mean(x^2) + 1e-5) times a gain (Zhang & Sennrich, 2019, eq. 4)."""
    return keras.layers.RMSNormalization(epsilon=1e-5, name=name)


def empty_cache(
    batch_size, num_slots, num_layers: int, num_heads: int, head_size: int, dtype="float32"
) -> list[Cache]:
    """A cache of zeros as the module's docstring says; `num_heads` is K."""
    zeros = tf.zeros([batch_size, num_heads, num_slots, head_size], dtype)
    return [(zeros, zeros) for _ in range(num_layers)]


def _write(cache: Cache, k, v, position) -> Cache:
    """Puts `k` and `v` (B, K, T, H) into the slots `position` (B, T) of the cache."""
    B, K, T, _ = sizes(k)
    all_of_them = tf.stack([B, K, T])
    row, head, slot = (
        tf.broadcast_to(index, all_of_them)
        for index in (
            tf.reshape(tf.range(B), [-1, 1, 1]),
            tf.reshape(tf.range(K), [-1, 1]),
            tf.expand_dims(position, 1),
        )
    )
    where = tf.stack([row, head, slot], axis=-1)  # (B, K, T, 3)
    keys, values = cache
    return (
        tf.tensor_scatter_nd_update(keys, where, k),
        tf.tensor_scatter_nd_update(values, where, v),
    )
