"""Transformers: an encoder that classifies and a decoder that writes.

Axes: B batch, T steps, S cache slots, D width, F inner width, V vocabulary. Token id 0 is padding.
"""

import keras
import tensorflow as tf

from model.attention import SelfAttention, dense, empty_cache, rms_norm
from model.config import TransformerDecoderConfig, TransformerEncoderConfig
from model.config.transformers import BlocksConfig
from model.dropout import Dropout
from model.heads import tied_logits
from model.positions import sinusoidal
from model.products import Dense, Embedding
from model.written_out import LayerNormalization, gelu


class Block(keras.layers.Layer):
    """Pre-norm residual block: attention, then the inner network (Xiong et al., 2020, fig. 1b).

    Call: as `SelfAttention`; the cache, if one is given, is returned beside the answer. With
    `recompute` training keeps the input alone and computes the rest again for the gradient (Chen
    et al., 2016, sec. 3): the same numbers, less memory, one more forward pass.
    """

    def __init__(self, config: BlocksConfig, **kwargs):
        super().__init__(**kwargs)
        self.recompute = config.recompute
        self.attention_norm = norm(config, "attention_norm")
        self.attention = SelfAttention(config, name="attention")
        self.inner_norm = norm(config, "inner_norm")
        self.expand, self.contract = inner_layers(config)
        self.dropout = Dropout(config.dropout, config.dropout_kind, name=f"{self.name}_dropout")

    def call(self, x, position, may_attend, cache=None, more_values=None, training=False):
        if cache is not None:
            y, cache = self.attention(
                self.attention_norm(x), position, may_attend, cache, more_values
            )
            return self._rest(x + y), cache
        # Drawn out here, so that a second computation drops the same units.
        seeds = [self.dropout.next_seed() for _ in range(2)] if training else [None, None]

        def activations(x, *more):
            y = self.attention(self.attention_norm(x), position, may_attend, None, *more)
            x = x + self.dropout(y, seed=seeds[0], training=training)
            return self._rest(x, seeds[1], training)

        if self.recompute and training:
            activations = tf.recompute_grad(activations)
        return activations(x) if more_values is None else activations(x, more_values)

    def _rest(self, x, seed=None, training=False):
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
        self.embedding = keras.layers.Embedding(
            vocabulary_size,
            config.width,
            # Made where it is used only: to make one draws a seed.
            embeddings_initializer=small_normal() if config.initialization == "gpt2" else "uniform",
            name="embedding",
        )
        self.place = Place(config, config.max_positions, name="place")
        self.blocks = blocks(config)
        self.final_norm = norm(config, "final_norm")
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
        x = self.dropout(self.place(self.embedding(tokens), position), training=training)
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

    The last two are `read`, which takes any number of tokens of each row, and `logits`. The layout
    of the cache is in `model/attention.py`.

    The output head is the embedding, transposed (Press & Wolf, 2017), unless `tied_head` is false.
    With `value_embeddings` every block adds to the values of attention what a table of its own
    holds for each token (after Jordan et al., modded-nanogpt, 2024). With a `logit_cap` c logits
    are c tanh(logits / c) (Gemma Team, 2024, Gemma 2). Logits are float32.

    `further_tokens` n adds n blocks that stand beside the last one and read what it reads; by the
    same norm and head, `all_logits` predicts with each of them a token further ahead. They are for
    training (Gloeckle et al., 2024, sec. 2): writing text uses none of them.
    """

    def __init__(self, config: TransformerDecoderConfig, vocabulary_size: int):
        super().__init__(name=config.name)
        self.config, self.vocabulary_size = config, vocabulary_size
        self.embedding = Embedding(
            vocabulary_size,
            config.width,
            # Logits start near zero: the head is this very matrix.
            embeddings_initializer=small_normal(),
            name="embedding",
        )
        self.place = Place(config, config.context_length, name="place")
        self.blocks = blocks(config)
        self.values = [
            Embedding(
                vocabulary_size,
                config.key_value_width,
                embeddings_initializer=small_normal(),
                name=f"value_embedding_{i}",
            )
            for i in range(config.num_layers if config.value_embeddings else 0)
        ]
        self.final_norm = norm(config, "final_norm")
        self.dropout = Dropout(config.dropout, kind_outside_branches(config), name="dropout")
        self.head = None
        if not config.tied_head:
            self.head = Dense(
                vocabulary_size,
                use_bias=False,
                kernel_initializer=small_normal(),
                name="head",
            )
        self.further = [Block(config, name=f"further_{i}") for i in range(config.further_tokens)]

    def call(self, tokens, training=False):
        return self.logits(self._hidden(tokens, training)[0])  # (B, T, V)

    def all_logits(self, tokens, training=False):
        """The next token and the `further_tokens` n behind it: (B, T) -> float32 (B, T, 1 + n, V).

        Entry k of the third axis is of the token k steps after the next.
        """
        return self.logits(tf.stack(self._hidden(tokens, training), axis=2))

    def _hidden(self, tokens, training):
        """1 + n hidden states (B, T, D), the last block's and those of the blocks beside it."""
        T = tf.shape(tokens)[1]
        position = tf.range(T)[None, :]
        past = tf.linalg.band_part(tf.ones([T, T], tf.bool), -1, 0)  # (T, S)
        x = self.place(self.embedding(tokens), position)  # (B, T, D)
        x = self.dropout(x, training=training)
        for block, more in zip(self.blocks, self._values_of(tokens), strict=True):
            trunk, x = x, block(x, position, past, more_values=more, training=training)
        return [x, *(block(trunk, position, past, training=training) for block in self.further)]

    def states(self, tokens):
        """What `logits` and `embeddings_of` read of each token: int32 (B, T) -> float (B, T, D)."""
        return self._hidden(tokens, training=False)[0]

    def embeddings_of(self, x):
        """The last hidden states as the head sees them, (B, T, D)."""
        return self.final_norm(x)

    def prefill(self, tokens, lengths, num_slots):
        """`tokens` int32 (B, T) padded on the right, `lengths` int32 (B,) >= 1, T <= num_slots."""
        # Slots at and after a row's length hold padding until decoding writes over them.
        position = tf.range(tf.shape(tokens)[1])[None, :]
        x, caches = self.read(tokens, position, self.empty_cache(tf.shape(tokens)[0], num_slots))
        last = tf.gather(x, lengths - 1, axis=1, batch_dims=1)  # (B, D)
        return self.logits(last), caches

    def decode(self, token, position, caches):
        x, caches = self.read(token[:, None], position[:, None], caches)
        return self.logits(x[:, 0]), caches

    def empty_cache(self, batch_size, num_slots):
        """Room for `num_slots` tokens of each row, none of them read yet."""
        config, dtype = self.config, self.embedding.compute_dtype
        num_heads = config.num_key_value_heads or config.num_heads
        head_size = config.width // config.num_heads
        return empty_cache(
            batch_size, num_slots, config.num_layers, num_heads, head_size, dtype=dtype
        )

    def read(self, tokens, position, caches):
        """Writes tokens into their slots: int32 (B, T) at `position` int32 (B, T) or (1, T).

        Returns the hidden states (B, T, D), which `logits` turns into predictions, and the new
        cache. A token looks at slots up to its own position, so it never meets what stands behind.
        """
        num_slots = tf.shape(caches[0][0])[2]
        may_attend = tf.range(num_slots) <= position[:, None, :, None]  # (B, 1, T, S)
        x = self.place(self.embedding(tokens), position)  # (B, T, D)
        updated = []
        for block, more, cache in zip(self.blocks, self._values_of(tokens), caches, strict=True):
            x, cache = block(x, position, may_attend, cache, more)
            updated.append(cache)
        return x, updated

    def logits(self, x):
        x, cap = self.final_norm(x), self.config.logit_cap
        if self.head is None:
            logits = tied_logits(x, self.embedding)
        else:
            logits = tf.cast(self.head(x), tf.float32)
        return logits if cap is None else cap * tf.tanh(logits / cap)

    def _values_of(self, tokens) -> list:
        """What each block adds to its values: float (B, T, K H), or nothing."""
        return [table(tokens) for table in self.values] or [None] * len(self.blocks)


class Place(keras.layers.Layer):
    """Tells embeddings where they stand, if that is by adding: float (B, T, D) -> the same.

    `learned`: a table of `num_positions` rows; what stands behind them stands at the last.
    `sinusoidal`: the embedding times sqrt(D), plus sines and cosines (Vaswani et al., 2017, 3.4 and
    3.5). Other positions are told to attention, and nothing happens here.
    """

    def __init__(self, config: BlocksConfig, num_positions: int, **kwargs):
        super().__init__(**kwargs)
        self.config, self.num_positions = config, num_positions
        if config.positions == "learned":
            self.table = Embedding(
                num_positions,
                config.width,
                embeddings_initializer=small_normal(),
                name="position_embedding",
            )

    def call(self, x, position):
        if self.config.positions == "learned":
            return x + self.table(tf.minimum(position, self.num_positions - 1))
        if self.config.positions == "sinusoidal":
            width = self.config.width
            return x * width**0.5 + tf.cast(sinusoidal(position, width), x.dtype)
        return x


def inner_layers(config: BlocksConfig) -> tuple[keras.layers.Dense, keras.layers.Dense]:
    """The two layers of a block's inner network, D to F to D: W2 f(W1 x), each with its bias.

    f is GELU (Hendrycks & Gimpel, 2016, the exact one), relu(x)^2 (So et al., 2021), or, for
    SwiGLU, silu(a) b of the two halves a and b of W1 x (Shazeer, 2020, eq. 6), so that W1 has 2 F
    columns. That makes 3 D F weights in place of 2 D F: as many with 2/3 of the inner width.
    """
    is_gated = config.activation == "swiglu"
    expand = dense(
        config,
        config.inner_width * (2 if is_gated else 1),
        activation=_ACTIVATIONS[config.activation],
        use_bias=config.bias,
        name="gate_expand" if is_gated else "expand",  # two maps side by side, to optimizers
    )
    contract = dense(config, config.width, is_last=True, use_bias=config.bias, name="contract")
    return expand, contract


def _relu_squared(x):
    return tf.square(tf.nn.relu(x))


def _swiglu(x):
    gate, value = tf.split(x, 2, axis=-1)
    return tf.nn.silu(gate) * value


_ACTIVATIONS = {
    "gelu": gelu,
    "relu_squared": _relu_squared,
    "swiglu": _swiglu,
}


def small_normal() -> keras.initializers.Initializer:
    """How GPT-2 starts its matrices; each call draws another seed."""
    return keras.initializers.RandomNormal(stddev=0.02)


def norm(config: BlocksConfig, name: str) -> keras.layers.Layer:
    if config.normalization == "rms":
        return rms_norm(name)
    return LayerNormalization(epsilon=1e-5, center=config.bias, name=name)


def blocks(config: BlocksConfig) -> list[Block]:
    """The stack that a configuration describes, named block_0 and on."""
    return [Block(config, name=f"block_{i}") for i in range(config.num_layers)]


def kind_outside_branches(config: BlocksConfig) -> str:
    """Embeddings are no residual branch: without theirs nothing would be left of a text."""
    return "elementwise" if config.dropout_kind == "layer" else config.dropout_kind
