"""Transformers: an encoder that classifies and a decoder that writes.

Axes: B batch, T steps, S cache slots, D width, F inner width, V vocabulary. Token id 0 is padding.
"""

import keras
import tensorflow as tf

from model.attention import SelfAttention, empty_cache
from model.config import TransformerDecoderConfig, TransformerEncoderConfig
from model.config.first_steps import Seq2SeqTransformerConfig
from model.dropout import Dropout
from model.heads import tied_logits


class Block(keras.layers.Layer):
    """Pre-norm residual block: attention, then a GELU network (Xiong et al., 2020, fig. 1b).

    Call: as `SelfAttention`; the cache, if one is given, is returned beside the answer. With
    `recompute` training keeps the input alone and computes the rest again for the gradient (Chen
    et al., 2016, sec. 3): the same numbers, less memory, one more forward pass.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        inner_width: int,
        dropout: float,
        dropout_kind: str = "elementwise",
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.recompute = recompute
        self.attention_norm = norm("attention_norm")
        self.attention = SelfAttention(width, num_heads, name="attention")
        self.inner_norm = norm("inner_norm")
        self.expand = keras.layers.Dense(
            inner_width, activation=keras.activations.gelu, name="expand"
        )
        self.contract = keras.layers.Dense(width, name="contract")
        self.dropout = Dropout(dropout, dropout_kind, name=f"{self.name}_dropout")

    def call(self, x, position, may_attend, cache=None, training=False):
        if cache is not None:
            y, cache = self.attention(self.attention_norm(x), position, may_attend, cache)
            return self._inner(x + y), cache
        # Drawn out here, so that a second computation drops the same units.
        seeds = [self.dropout.next_seed() for _ in range(2)] if training else [None, None]

        def activations(x):
            y = self.attention(self.attention_norm(x), position, may_attend)
            x = x + self.dropout(y, seed=seeds[0], training=training)
            return self._inner(x, seeds[1], training)

        return tf.recompute_grad(activations)(x) if self.recompute and training else activations(x)

    def _inner(self, x, seed=None, training=False):
        y = self.contract(self.expand(self.inner_norm(x)))
        return x + self.dropout(y, seed=seed, training=training)


class TransformerEncoder(keras.Model):
    """Classifies a text by the mean of its tokens' last hidden states.

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). A text without
    any token gets the logits of a zero vector, not NaN.

    `token_logits`, with `token_head` in the configuration, is the masked language model over the
    same weights (Devlin et al., 2019, sec. 3.1).
    """

    def __init__(self, config: TransformerEncoderConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.config = config
        self.embedding = keras.layers.Embedding(vocabulary_size, config.width, name="embedding")
        self.blocks = blocks(config)
        self.final_norm = norm("final_norm")
        self.dropout = Dropout(config.dropout, kind_outside_branches(config), name="dropout")
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")
        if config.token_head:
            self.token_bias = self.add_weight(
                shape=(vocabulary_size,), initializer="zeros", name="token_bias"
            )

    def call(self, tokens, training=False):
        x = tf.cast(self._hidden(tokens, training), tf.float32)  # sums of many steps in float32
        weight = tf.cast(tokens != 0, tf.float32)[:, :, None]
        mean = tf.math.divide_no_nan(
            tf.reduce_sum(x * weight, axis=1), tf.reduce_sum(weight, axis=1)
        )  # (B, D)
        return self.head(self.dropout(mean, training=training))

    def token_logits(self, tokens, training=False):
        """Which token stands at each step: int32 (B, T) -> logits float32 (B, T, V).

        The head is the embedding, transposed, and a bias of its own. Hide a token by writing
        UNKNOWN (id 1) in its place: a hidden word is one the network cannot read, so no id is
        added that only pre-training would know. Raises ValueError without `model.token_head`.
        """
        if not self.config.token_head:
            raise ValueError(
                "token_logits needs model.token_head=true, which makes the head's bias. "
                "Received: model.token_head=false"
            )
        logits = tied_logits(self._hidden(tokens, training), self.embedding)
        return logits + tf.cast(self.token_bias, tf.float32)

    def _hidden(self, tokens, training):
        """The last hidden states, normalised, (B, T, D); those of padding mean nothing."""
        may_attend = (tokens != 0)[:, None, None, :]  # (B, 1, 1, S)
        position = tf.range(tf.shape(tokens)[1])[None, :]
        x = self.dropout(self.embedding(tokens), training=training)
        for block in self.blocks:
            x = block(x, position, may_attend, training=training)
        return self.final_norm(x)


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
        super().__init__(name=config.name)
        self.config, self.vocabulary_size = config, vocabulary_size
        self.embedding = keras.layers.Embedding(
            vocabulary_size,
            config.width,
            # Logits start near zero: the head is this very matrix.
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="embedding",
        )
        self.blocks = blocks(config)
        self.final_norm = norm("final_norm")
        self.dropout = Dropout(config.dropout, kind_outside_branches(config), name="dropout")

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
        config, x = self.config, self.embedding(tokens)
        head_size = config.width // config.num_heads
        caches = empty_cache(
            B, num_slots, config.num_layers, config.num_heads, head_size, dtype=x.dtype
        )
        x, caches = self._run(x, position, may_attend, caches)
        last = tf.gather(x, lengths - 1, axis=1, batch_dims=1)  # (B, D)
        return self.logits(last), caches

    def decode(self, token, position, caches):
        num_slots = tf.shape(caches[0][0])[2]
        may_attend = tf.range(num_slots)[None, None, None, :] <= position[:, None, None, None]
        x = self.embedding(token[:, None])  # (B, 1, D)
        x, caches = self._run(x, position[:, None], may_attend, caches)
        return self.logits(x[:, 0]), caches

    def logits(self, x):
        return tied_logits(self.final_norm(x), self.embedding)

    def _run(self, x, position, may_attend, caches):
        updated = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block(x, position, may_attend, cache)
            updated.append(cache)
        return x, updated


def norm(name: str) -> keras.layers.LayerNormalization:
    return keras.layers.LayerNormalization(epsilon=1e-5, name=name)


def blocks(
    config: TransformerEncoderConfig | TransformerDecoderConfig | Seq2SeqTransformerConfig,
) -> list[Block]:
    """The stack that a configuration describes, named block_0 and on."""
    return [
        Block(
            config.width,
            config.num_heads,
            config.inner_width,
            config.dropout,
            config.dropout_kind,
            config.recompute,
            name=f"block_{i}",
        )
        for i in range(config.num_layers)
    ]


def kind_outside_branches(
    config: TransformerEncoderConfig | TransformerDecoderConfig | Seq2SeqTransformerConfig,
) -> str:
    """Embeddings are no residual branch: without theirs nothing would be left of a text."""
    return "elementwise" if config.dropout_kind == "layer" else config.dropout_kind
