"""Recurrent networks. Axes: B batch, T steps, D features, V vocabulary. Token id 0 is padding."""

import keras
import tensorflow as tf

from model import pooling
from model.cells import at_least_one_step, recurrence
from model.config import RecurrentConfig, RecurrentLanguageModelConfig, ULMFiTLSTMConfig
from model.dropout import Dropout
from model.heads import tied_logits

# Of each layer: (h,), or (h, c) of an LSTM, each float32 (B, units of the layer).
State = list[tuple[tf.Tensor, ...]]


class Recurrent(keras.Model):
    """Embedding, recurrent layers in one or both directions, one vector for the text.

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). Padding is
    skipped by the recurrence and by the pooling; a text without any token pools to zeros. The last
    hidden state of a layer in both directions (Schuster & Paliwal, 1997) is where each one ends:
    the forward half at the last token, the backward half at the first.
    """

    def __init__(self, config: RecurrentConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.config = config
        self.embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self.recurrences = []
        for i in range(config.num_layers):
            layer = recurrence(config.cell, config.units, name=f"{config.cell}_{i}")
            if config.bidirectional:
                layer = keras.layers.Bidirectional(layer, name=layer.name)
            self.recurrences.append(layer)
        self.dropout = Dropout(config.dropout, config.dropout_kind, name="dropout")
        self.pool = pooling.pooling(config.pooling)
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")

    def call(self, tokens, training=False):
        tokens = at_least_one_step(tokens)
        is_token = tokens != 0  # (B, T)
        x = self.embedding(tokens)
        for layer in self.recurrences:
            x = layer(self.dropout(x, training=training), mask=is_token, training=training)
        if self.config.pooling == "last" and self.config.bidirectional:
            forward, backward = tf.split(x, 2, axis=-1)
            pooled = tf.concat([pooling.last(forward, is_token), backward[:, 0]], axis=-1)
        else:
            pooled = self.pool(x, is_token)  # (B, units), or twice that in both directions
        return self.head(self.dropout(pooled, training=training))


class RecurrentStack(keras.layers.Layer):
    """Embedding and left-to-right layers of a `cell`, dropout before each and behind the last.

    The last layer is as wide as the embedding, so that the embedding can be its head (Merity et
    al., 2018, sec. 4.5, whose dropped recurrent weights and activation penalties are left out).

    Call: `tokens` int32 (B, T), `is_token` bool (B, T), `state` or None for zeros -> (hidden
    states float (B, T, D), the new state). Steps without a token leave the state as it is, and
    their own hidden states mean nothing.
    """

    def __init__(
        self,
        config: ULMFiTLSTMConfig | RecurrentLanguageModelConfig,
        vocabulary_size: int,
        cell: str = "lstm",
    ):
        super().__init__(name="stack")
        self.embedding = keras.layers.Embedding(
            vocabulary_size,
            config.embedding_size,
            # Logits start near zero, as the head is this very matrix; yet large enough that the
            # layers hear it from the first update on (Merity et al., 2018, sec. 5).
            embeddings_initializer=keras.initializers.RandomUniform(-0.1, 0.1),
            name="embedding",
        )
        units = [config.units] * (config.num_layers - 1) + [config.embedding_size]
        self.recurrences = [
            recurrence(cell, size, return_state=True, name=f"{cell}_{i}")
            for i, size in enumerate(units)
        ]
        self.dropout = Dropout(config.dropout, config.dropout_kind, name="dropout")

    def build(self, *_):
        self.embedding.build()
        size = self.embedding.output_dim
        for layer in self.recurrences:
            layer.build((None, None, size))
            size = layer.cell.units

    def call(self, tokens, is_token, state: State | None = None, training=False):
        tokens, is_token = at_least_one_step(tokens), at_least_one_step(is_token)
        x = self.dropout(self.embedding(tokens), training=training)
        new_state = []
        for layer, start in zip(self.recurrences, state or self.zero_state(tokens), strict=True):
            x, *end = layer(x, initial_state=list(start), mask=is_token, training=training)
            x = self.dropout(x, training=training)
            new_state.append(_in_float32(end))
        return x, new_state

    def step(self, token, state: State):
        """One token a row, int32 (B,) -> (hidden state (B, D), the new state)."""
        x, new_state = self.embedding(token), []
        for layer, start in zip(self.recurrences, state, strict=True):
            x, end = layer.cell(x, [tf.cast(value, x.dtype) for value in start])
            new_state.append(_in_float32(end))
        return x, new_state

    def zero_state(self, tokens) -> State:
        B = tf.shape(tokens)[0]
        return [
            tuple(tf.zeros([B, size]) for size in layer.state_size) for layer in self.recurrences
        ]


class ULMFiTLSTM(keras.Model):
    """Classifies by the last hidden state, the maximum and the mean (Howard & Ruder, 2018, 3.3).

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels), from the three
    poolings over a text's tokens, put side by side; a text without any token pools to zeros. The
    paper's head has one more hidden layer.

    `token_logits` is the language model over the same weights. Layers are named embedding,
    lstm_0, lstm_1, ..., head, so that a stage can choose them by their variables' paths.
    """

    def __init__(self, config: ULMFiTLSTMConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.config = config
        self.stack = RecurrentStack(config, vocabulary_size)
        self.head_dropout = Dropout(config.dropout, name="head_dropout")
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")
        self.token_bias = self.add_weight(
            shape=(vocabulary_size,), initializer="zeros", name="token_bias"
        )

    def call(self, tokens, training=False):
        tokens = at_least_one_step(tokens)
        is_token = tokens != 0  # (B, T)
        x, _ = self.stack(tokens, is_token, training=training)
        x = tf.cast(x, tf.float32)  # (B, T, D); padding repeats the step before it
        pooled = [x[:, -1], pooling.maximum(x, is_token), pooling.mean(x, is_token)]
        pooled = tf.concat(pooled, axis=1)  # (B, 3D)
        return self.head(self.head_dropout(pooled, training=training))

    def token_logits(self, tokens, training=False):
        """The next token after each step: int32 (B, T) -> logits float32 (B, T, V).

        The head is the embedding, transposed, and a bias of its own.
        """
        x, _ = self.stack(tokens, tokens != 0, training=training)
        logits = tied_logits(x, self.stack.embedding)[:, : tf.shape(tokens)[1]]
        return logits + tf.cast(self.token_bias, tf.float32)


class RecurrentLanguageModel(keras.Model):
    """Language model whose memory is a state of fixed size, carried as far as one likes.

    * `model(tokens, training, state, return_state)`: int32 (B, T) -> logits float32 (B, T, V), or
      (logits, state). A long text in pieces, each given the state of the one before, gives the
      logits of the whole: what truncated back-propagation needs (Williams & Peng, 1990; stopping
      the gradient at the state is the caller's). `state` is a list with a tuple for each layer,
      (h, c) of an LSTM and (h,) of the others, float32 (B, units of the layer); None is zeros.
      Padding, id 0, leaves it as it is.
    * `prefill` and `decode` as `TransformerDecoder`; the state is the cache, so `num_slots` and
      `position` change nothing.

    The output head is the embedding, transposed (Press & Wolf, 2017).
    """

    def __init__(self, config: RecurrentLanguageModelConfig, vocabulary_size: int):
        super().__init__(name=config.name)
        self.config, self.vocabulary_size = config, vocabulary_size
        self.stack = RecurrentStack(config, vocabulary_size, config.cell)

    def call(self, tokens, training=False, state: State | None = None, return_state=False):
        x, state = self.stack(tokens, tokens != 0, state, training=training)
        logits = tied_logits(x, self.stack.embedding)[:, : tf.shape(tokens)[1]]  # (B, T, V)
        return (logits, state) if return_state else logits

    def states(self, tokens):
        """What `logits` and `embeddings_of` read of each token: int32 (B, T) -> float (B, T, D)."""
        return self.stack(tokens, tokens != 0)[0][:, : tf.shape(tokens)[1]]

    def embeddings_of(self, x):
        return x

    def logits(self, x):
        return tied_logits(x, self.stack.embedding)

    def prefill(self, tokens, lengths, num_slots):
        """`tokens` int32 (B, T) padded on the right, `lengths` int32 (B,) >= 1."""
        is_token = tf.range(tf.shape(tokens)[1])[None, :] < lengths[:, None]
        x, state = self.stack(tokens, is_token)
        return tied_logits(x[:, -1], self.stack.embedding), state  # padding repeats the last step

    def decode(self, token, position, caches):
        x, state = self.stack.step(token, caches)
        return tied_logits(x, self.stack.embedding), state


def _in_float32(state) -> tuple[tf.Tensor, ...]:
    return tuple(tf.cast(value, tf.float32) for value in state)
