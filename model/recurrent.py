"""Recurrent networks. Axes: B batch, T steps, D features, V vocabulary. Token id 0 is padding."""

import keras
import tensorflow as tf

from model.config import BidirectionalLSTMConfig, LSTMLanguageModelConfig, ULMFiTLSTMConfig
from model.dropout import Dropout
from model.heads import tied_logits

State = list[tuple[tf.Tensor, tf.Tensor]]  # (h, c) of each layer, float32 (B, units of the layer)


class BidirectionalLSTM(keras.Model):
    """Both directions of an LSTM (Hochreiter & Schmidhuber, 1997), maximum over time.

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). Padding is
    skipped by the recurrence and never the maximum; a text without any token pools to zeros.
    """

    def __init__(self, config: BidirectionalLSTMConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self.lstm = keras.layers.Bidirectional(
            keras.layers.LSTM(config.units, return_sequences=True, name="lstm"), name="lstm"
        )
        self.dropout = Dropout(config.dropout, config.dropout_kind, name="dropout")
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")

    def call(self, tokens, training=False):
        tokens = _at_least_one_step(tokens)
        is_token = tokens != 0  # (B, T)
        x = self.dropout(self.embedding(tokens), training=training)
        x = self.lstm(x, mask=is_token, training=training)  # (B, T, 2 * units)
        return self.head(self.dropout(_maximum(x, is_token), training=training))


class LSTMStack(keras.layers.Layer):
    """Embedding and left-to-right LSTMs, dropout in front of each and behind the last.

    The last layer is as wide as the embedding, so that the embedding can be its head (Merity et
    al., 2018, sec. 4.5, whose dropped recurrent weights and activation penalties are left out).

    Call: `tokens` int32 (B, T), `is_token` bool (B, T), `state` or None for zeros -> (hidden
    states float (B, T, D), the new state). Steps without a token leave the state as it is, and
    their own hidden states mean nothing.
    """

    def __init__(self, config: ULMFiTLSTMConfig | LSTMLanguageModelConfig, vocabulary_size: int):
        super().__init__(name="stack")
        self.embedding = keras.layers.Embedding(
            vocabulary_size,
            config.embedding_size,
            # Logits start near zero, as the head is this very matrix; yet large enough that the
            # LSTMs hear it from the first update on (Merity et al., 2018, sec. 5).
            embeddings_initializer=keras.initializers.RandomUniform(-0.1, 0.1),
            name="embedding",
        )
        units = [config.units] * (config.num_layers - 1) + [config.embedding_size]
        self.lstms = [
            keras.layers.LSTM(size, return_sequences=True, return_state=True, name=f"lstm_{i}")
            for i, size in enumerate(units)
        ]
        self.dropout = Dropout(config.dropout, config.dropout_kind, name="dropout")

    def build(self, *_):
        self.embedding.build()
        size = self.embedding.output_dim
        for lstm in self.lstms:
            lstm.build((None, None, size))
            size = lstm.units

    def call(self, tokens, is_token, state: State | None = None, training=False):
        tokens, is_token = _at_least_one_step(tokens), _at_least_one_step(is_token)
        x = self.dropout(self.embedding(tokens), training=training)
        new_state = []
        for lstm, start in zip(self.lstms, state or self.zero_state(tokens), strict=True):
            x, h, c = lstm(x, initial_state=list(start), mask=is_token, training=training)
            x = self.dropout(x, training=training)
            new_state.append((tf.cast(h, tf.float32), tf.cast(c, tf.float32)))
        return x, new_state

    def step(self, token, state: State):
        """One token a row, int32 (B,) -> (hidden state (B, D), the new state)."""
        x, new_state = self.embedding(token), []
        for lstm, (h, c) in zip(self.lstms, state, strict=True):
            x, (h, c) = lstm.cell(x, [tf.cast(h, x.dtype), tf.cast(c, x.dtype)])
            new_state.append((tf.cast(h, tf.float32), tf.cast(c, tf.float32)))
        return x, new_state

    def zero_state(self, tokens) -> State:
        B = tf.shape(tokens)[0]
        return [(tf.zeros([B, lstm.units]), tf.zeros([B, lstm.units])) for lstm in self.lstms]


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
        self.stack = LSTMStack(config, vocabulary_size)
        self.head_dropout = Dropout(config.dropout, name="head_dropout")
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")
        self.token_bias = self.add_weight(
            shape=(vocabulary_size,), initializer="zeros", name="token_bias"
        )

    def call(self, tokens, training=False):
        tokens = _at_least_one_step(tokens)
        is_token = tokens != 0  # (B, T)
        x, _ = self.stack(tokens, is_token, training=training)
        x = tf.cast(x, tf.float32)  # (B, T, D); padding repeats the step before it
        weight = tf.cast(is_token, tf.float32)[:, :, None]
        mean = tf.math.divide_no_nan(
            tf.reduce_sum(x * weight, axis=1), tf.reduce_sum(weight, axis=1)
        )
        pooled = tf.concat([x[:, -1], _maximum(x, is_token), mean], axis=1)  # (B, 3D)
        return self.head(self.head_dropout(pooled, training=training))

    def token_logits(self, tokens, training=False):
        """The next token after each step: int32 (B, T) -> logits float32 (B, T, V).

        The head is the embedding, transposed, and a bias of its own.
        """
        x, _ = self.stack(tokens, tokens != 0, training=training)
        logits = tied_logits(x, self.stack.embedding)[:, : tf.shape(tokens)[1]]
        return logits + tf.cast(self.token_bias, tf.float32)


class LSTMLanguageModel(keras.Model):
    """Language model whose memory is a state of fixed size, carried as far as one likes.

    * `model(tokens, training, state, return_state)`: int32 (B, T) -> logits float32 (B, T, V), or
      (logits, state). A long text in pieces, each given the state of the one before, gives the
      logits of the whole: what truncated back-propagation needs (Williams & Peng, 1990; stopping
      the gradient at the state is the caller's). `state` is a list of (h, c), one for each layer,
      float32 (B, units of the layer); None is zeros. Padding, id 0, leaves it as it is.
    * `prefill` and `decode` as `TransformerDecoder`; the state is the cache, so `num_slots` and
      `position` change nothing.

    The output head is the embedding, transposed (Press & Wolf, 2017).
    """

    def __init__(self, config: LSTMLanguageModelConfig, vocabulary_size: int):
        super().__init__(name=config.name)
        self.config, self.vocabulary_size = config, vocabulary_size
        self.stack = LSTMStack(config, vocabulary_size)

    def call(self, tokens, training=False, state: State | None = None, return_state=False):
        x, state = self.stack(tokens, tokens != 0, state, training=training)
        logits = tied_logits(x, self.stack.embedding)[:, : tf.shape(tokens)[1]]  # (B, T, V)
        return (logits, state) if return_state else logits

    def prefill(self, tokens, lengths, num_slots):
        """`tokens` int32 (B, T) padded on the right, `lengths` int32 (B,) >= 1."""
        is_token = tf.range(tf.shape(tokens)[1])[None, :] < lengths[:, None]
        x, state = self.stack(tokens, is_token)
        return tied_logits(x[:, -1], self.stack.embedding), state  # padding repeats the last step

    def decode(self, token, position, caches):
        x, state = self.stack.step(token, caches)
        return tied_logits(x, self.stack.embedding), state


def _at_least_one_step(x):
    """A recurrence needs a step: an empty text (B, 0) becomes one of padding."""
    return tf.pad(x, [[0, 0], [0, tf.cast(tf.shape(x)[1] == 0, tf.int32)]])


def _maximum(x, is_token):
    """Over the steps with a token, (B, T, D) -> (B, D); zeros where a row has none."""
    maximum = tf.reduce_max(tf.where(is_token[:, :, None], x, x.dtype.min), axis=1)
    return tf.where(tf.reduce_any(is_token, axis=1)[:, None], maximum, tf.zeros_like(maximum))
