"""An encoder-decoder Transformer: one text in, another out.

Axes: B batch, S source steps, T target steps, D width, V vocabulary. Token id 0 is padding.
"""

import keras
import tensorflow as tf

from model.attention import CrossAttention, SelfAttention, empty_cache
from model.config.first_steps import Seq2SeqTransformerConfig
from model.dropout import Dropout
from model.heads import tied_logits
from model.transformer import Place, blocks, inner_layers, kind_outside_branches, norm

_BEGIN, _END = 2, 3  # as model/tokenizers.py writes them


class DecoderBlock(keras.layers.Layer):
    """Pre-norm residual block: causal attention, attention to the source, the inner network.

    Call: `x` float (B, T, D), `position` and `may_attend` as `SelfAttention`, `source` and
    `is_source` bool (B, 1, 1, S) as `CrossAttention`. The cache, if one is given, is returned
    beside the answer. `recompute` as in `model.transformer.Block`.
    """

    def __init__(self, config: Seq2SeqTransformerConfig, **kwargs):
        super().__init__(**kwargs)
        self.recompute = config.recompute
        self.attention_norm = norm(config, "attention_norm")
        self.attention = SelfAttention(config, name="attention")
        self.cross_norm = norm(config, "cross_norm")
        self.cross_attention = CrossAttention(config, name="cross_attention")
        self.inner_norm = norm(config, "inner_norm")
        self.expand, self.contract = inner_layers(config)
        self.dropout = Dropout(config.dropout, config.dropout_kind, name=f"{self.name}_dropout")

    def call(self, x, position, may_attend, source, is_source, cache=None, training=False):
        if cache is not None:
            y, cache = self.attention(self.attention_norm(x), position, may_attend, cache)
            return self._rest(x + y, source, is_source), cache
        # Drawn out here, so that a second computation drops the same units.
        seeds = [self.dropout.next_seed() for _ in range(3)] if training else [None] * 3

        def activations(x, source):
            y = self.attention(self.attention_norm(x), position, may_attend)
            x = x + self.dropout(y, seed=seeds[0], training=training)
            return self._rest(x, source, is_source, seeds[1:], training)

        if self.recompute and training:
            activations = tf.recompute_grad(activations)
        return activations(x, source)

    def _rest(self, x, source, is_source, seeds=(None, None), training=False):
        y = self.cross_attention(self.cross_norm(x), source, is_source)
        x = x + self.dropout(y, seed=seeds[0], training=training)
        y = self.contract(self.expand(self.inner_norm(x)))
        return x + self.dropout(y, seed=seeds[1], training=training)


class Seq2SeqTransformer(keras.Model):
    """Reads a source text and predicts a target's next tokens (Vaswani et al., 2017, fig. 1).

    Call: `source` int32 (B, S), `target` int32 (B, T) -> logits float32 (B, T, V); each target
    step sees the whole source and the target up to itself, and nobody sees padding. One embedding
    serves both texts and, transposed, the output (sec. 3.4). Differs from the paper in pre-norm
    blocks and, unless `positions` is sinusoidal, in how it is told where a token stands.
    """

    def __init__(self, config: Seq2SeqTransformerConfig, vocabulary_size: int):
        super().__init__(name=config.name)
        self.config = config
        self.embedding = keras.layers.Embedding(
            vocabulary_size,
            config.width,
            # Logits start near zero: the head is this very matrix.
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="embedding",
        )
        self.place = Place(config, config.max_positions, name="place")
        self.encoder_blocks = blocks(config)
        self.encoder_norm = norm(config, "encoder_norm")
        self.decoder_blocks = [
            DecoderBlock(config, name=f"decoder_block_{i}") for i in range(config.num_layers)
        ]
        self.decoder_norm = norm(config, "decoder_norm")
        self.dropout = Dropout(config.dropout, kind_outside_branches(config), name="dropout")

    def call(self, source, target, training=False):
        x_source, is_source = self.encode(source, training=training)
        T = tf.shape(target)[1]
        position = tf.range(T)[None, :]
        past = tf.linalg.band_part(tf.ones([T, T], tf.bool), -1, 0)  # (T, T)
        may_attend = past & (target != 0)[:, None, None, :]  # (B, 1, T, T)
        x = self.dropout(self.place(self.embedding(target), position), training=training)
        for block in self.decoder_blocks:
            x = block(x, position, may_attend, x_source, is_source, training=training)
        return tied_logits(self.decoder_norm(x), self.embedding)

    def encode(self, source, training=False):
        """int32 (B, S) -> hidden states (B, S, D) and `is_source` bool (B, 1, 1, S)."""
        is_source = (source != 0)[:, None, None, :]
        position = tf.range(tf.shape(source)[1])[None, :]
        x = self.place(self.embedding(source), position)  # (B, S, D)
        x = self.dropout(x, training=training)
        for block in self.encoder_blocks:
            x = block(x, position, is_source, training=training)
        return self.encoder_norm(x), is_source

    def decode(self, source, max_tokens: int):
        """The likeliest token at every step: int32 (B, S) -> int32 (B, max_tokens).

        Without begin and end; a row that ended goes on with padding, as does one that is short.
        """
        x_source, is_source = self.encode(source)
        sources = [b.cross_attention.keys_values(x_source) for b in self.decoder_blocks]
        B, config = tf.shape(source)[0], self.config
        caches = empty_cache(
            B,
            max_tokens,
            config.num_layers,
            config.num_heads,
            config.width // config.num_heads,
            dtype=self.compute_dtype,
        )

        def write_one(step, token, is_finished, caches, written):
            logits, caches = self._decode_one(token, step, caches, sources, is_source)
            token = tf.argmax(logits, axis=-1, output_type=tf.int32)  # (B,)
            is_finished = is_finished | (token == _END)
            shown = tf.where(is_finished, 0, token)
            written = tf.tensor_scatter_nd_update(written, [[step]], shown[None])
            return step + 1, token, is_finished, caches, written

        def unfinished(step, token, is_finished, caches, written):
            return (step < max_tokens) & ~tf.reduce_all(is_finished)

        begin, none = tf.fill([B], _BEGIN), tf.zeros([B], tf.bool)
        start = (0, begin, none, caches, tf.zeros([max_tokens, B], tf.int32))
        *_, written = tf.while_loop(unfinished, write_one, start)
        return tf.transpose(written)

    def _decode_one(self, token, step, caches, sources, is_source):
        num_slots = tf.shape(caches[0][0])[2]
        may_attend = (tf.range(num_slots) <= step)[None, None, None, :]
        position = tf.fill([tf.shape(token)[0], 1], step)
        x, updated = self.place(self.embedding(token[:, None]), position), []  # (B, 1, D)
        for block, keys_values, cache in zip(self.decoder_blocks, sources, caches, strict=True):
            x, cache = block(x, position, may_attend, keys_values, is_source, cache)
            updated.append(cache)
        return tied_logits(self.decoder_norm(x)[:, 0], self.embedding), updated
