"""Transformers: an encoder that classifies and a decoder that writes.

Axes: B batch, T steps, S cache slots, D width, F inner width, V vocabulary. Token id 0 is padding.
"""

import keras
import tensorflow as tf

from model.attention import SelfAttention, empty_cache
from model.config import TransformerDecoderConfig, TransformerEncoderConfig


class Block(keras.layers.Layer):
    """Pre-norm residual block: attention, then a GELU network (Xiong et al., 2020, fig. 1b).

    Call: as `SelfAttention`; the cache, if one is given, is returned beside the answer.
    """

    def __init__(self, width: int, num_heads: int, inner_width: int, dropout: float, **kwargs):
        super().__init__(**kwargs)
        self.attention_norm = keras.layers.LayerNormalization(epsilon=1e-5)
        self.attention = SelfAttention(width, num_heads)
        self.inner_norm = keras.layers.LayerNormalization(epsilon=1e-5)
        self.expand = keras.layers.Dense(inner_width, activation=keras.activations.gelu)
        self.contract = keras.layers.Dense(width)
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, x, position, may_attend, cache=None, training=False):
        y = self.attention(self.attention_norm(x), position, may_attend, cache)
        if cache is not None:
            y, cache = y
        x = x + self.dropout(y, training=training)
        y = self.contract(self.expand(self.inner_norm(x)))
        x = x + self.dropout(y, training=training)
        return x if cache is None else (x, cache)


class TransformerEncoder(keras.Model):
    """Classifies a text by the mean of its tokens' last hidden states.

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). A text without
    any token gets the logits of a zero vector, not NaN.
    """

    def __init__(self, config: TransformerEncoderConfig, vocabulary_size: int, num_labels: int):
        super().__init__()
        self.embedding = keras.layers.Embedding(vocabulary_size, config.width, name="embedding")
        self.blocks = [
            Block(config.width, config.num_heads, config.inner_width, config.dropout)
            for _ in range(config.num_layers)
        ]
        self.final_norm = keras.layers.LayerNormalization(epsilon=1e-5)
        self.dropout = keras.layers.Dropout(config.dropout)
        self.head = keras.layers.Dense(num_labels, name="head")

    def call(self, tokens, training=False):
        is_token = tokens != 0  # (B, T)
        position = tf.range(tf.shape(tokens)[1])[None, :]
        x = self.dropout(self.embedding(tokens), training=training)  # (B, T, D)
        for block in self.blocks:
            x = block(x, position, is_token[:, None, None, :], training=training)
        weight = tf.cast(is_token, x.dtype)[:, :, None]
        total = tf.reduce_sum(self.final_norm(x) * weight, axis=1)  # (B, D)
        mean = tf.math.divide_no_nan(total, tf.reduce_sum(weight, axis=1))
        return self.head(self.dropout(mean, training=training))


class TransformerDecoder(keras.Model):
    """Language model: each position predicts the next token from those before it.

    Three ways to run the same weights, equal within rounding:

    * `model(tokens, training=...)`: int32 (B, T) -> logits (B, T, V), for training and scoring;
    * `prefill(tokens, lengths, num_slots)`: reads whole prompts, returns the logits after each
      row's last token (B, V) and a cache with room for `num_slots` tokens;
    * `decode(token, position, cache)`: one more token a row, int32 (B,) at `position` int32 (B,),
      returns logits (B, V) and the new cache.

    The output head is the embedding, transposed (Press & Wolf, 2017). Logits are float32.
    """

    def __init__(self, config: TransformerDecoderConfig, vocabulary_size: int):
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.embedding = keras.layers.Embedding(
            vocabulary_size,
            config.width,
            # Logits start near zero: the head is this very matrix.
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="embedding",
        )
        self.blocks = [
            Block(config.width, config.num_heads, config.inner_width, config.dropout)
            for _ in range(config.num_layers)
        ]
        self.final_norm = keras.layers.LayerNormalization(epsilon=1e-5)
        self.dropout = keras.layers.Dropout(config.dropout)

    def call(self, tokens, training=False):
        T = tf.shape(tokens)[1]
        position = tf.range(T)[None, :]
        past = tf.linalg.band_part(tf.ones([T, T], tf.bool), -1, 0)  # (T, S)
        x = self.dropout(self.embedding(tokens), training=training)  # (B, T, D)
        for block in self.blocks:
            x = block(x, position, past, training=training)
        return self.logits(x)  # (B, T, V)

    def prefill(self, tokens, lengths, num_slots):
        """`tokens` int32 (B, T) padded on the right, `lengths` int32 (B,) >= 1, T <= num_slots."""
        B, T = tf.shape(tokens)[0], tf.shape(tokens)[1]
        position = tf.range(T)[None, :]
        # Slots at and after a row's length hold padding until decoding writes over them; a target
        # at position p looks at slots 0..p only, so it never meets them.
        may_attend = tf.range(num_slots)[None, :] <= tf.range(T)[:, None]  # (T, S)
        config = self.config
        caches = empty_cache(
            B, num_slots, config.num_layers, config.num_heads, config.width // config.num_heads
        )
        x, caches = self._run(self.embedding(tokens), position, may_attend, caches)
        last = tf.gather(x, lengths - 1, axis=1, batch_dims=1)  # (B, D)
        return self.logits(last), caches

    def decode(self, token, position, caches):
        num_slots = tf.shape(caches[0][0])[2]
        may_attend = tf.range(num_slots)[None, None, None, :] <= position[:, None, None, None]
        x = self.embedding(token[:, None])  # (B, 1, D)
        x, caches = self._run(x, position[:, None], may_attend, caches)
        return self.logits(x[:, 0]), caches

    def logits(self, x):
        x = self.final_norm(x)
        weights = tf.convert_to_tensor(self.embedding.embeddings)  # (V, D)
        flat = tf.matmul(tf.reshape(x, [-1, self.config.width]), weights, transpose_b=True)
        shape = tf.concat([tf.shape(x)[:-1], [self.vocabulary_size]], axis=0)
        return tf.cast(tf.reshape(flat, shape), tf.float32)

    def _run(self, x, position, may_attend, caches):
        updated = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block(x, position, may_attend, cache)
            updated.append(cache)
        return x, updated
