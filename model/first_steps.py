"""The first networks of a learner, each as small as it can be.

Axes: B batch, T steps, D features, L labels. Token id 0 is padding. `model.catalogue.construct`
makes their variables from a seed.
"""

import keras

from model.config.first_steps import (
    DenseClassifierConfig,
    LinearRegressionConfig,
    LSTMClassifierConfig,
    LSTMTaggerConfig,
)


class LinearRegression(keras.Model):
    """y = w x + b. Call: float (B, 1) -> float32 (B, 1)."""

    def __init__(self, config: LinearRegressionConfig):
        super().__init__(name=config.name, dtype="float32")
        self.line = keras.layers.Dense(1, dtype="float32", name="line")

    def call(self, x, training=False):
        return self.line(x)


class DenseClassifier(keras.Model):
    """A hidden layer of rectified units. Call: features float (B, D) -> logits float32 (B, L)."""

    def __init__(self, config: DenseClassifierConfig, num_labels: int):
        super().__init__(name=config.name)
        self.hidden = keras.layers.Dense(config.units, activation="relu", name="hidden")
        self.head = keras.layers.Dense(num_labels, dtype="float32", name="head")

    def call(self, features, training=False):
        return self.head(self.hidden(features))


class LSTMTagger(keras.Model):
    """A label for every token, from the text up to it. Call: int32 (B, T) -> float32 (B, T, L).

    Padding on the right changes no token's logits; those at padding mean nothing.
    """

    def __init__(self, config: LSTMTaggerConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self.lstm = keras.layers.LSTM(config.units, return_sequences=True, name="lstm")
        self.head = keras.layers.Dense(num_labels, dtype="float32", name="head")

    def call(self, tokens, training=False):
        x = self.embedding(tokens)  # (B, T, D)
        return self.head(self.lstm(x, mask=tokens != 0, training=training))


class LSTMClassifier(keras.Model):
    """A label from the state after the last token. Call: int32 (B, T), T >= 1 -> float32 (B, L).

    One logit is enough for two classes, with a sigmoid. Padding leaves the state as it is.
    """

    def __init__(self, config: LSTMClassifierConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self.lstm = keras.layers.LSTM(config.units, name="lstm")
        self.head = keras.layers.Dense(num_labels, dtype="float32", name="head")

    def call(self, tokens, training=False):
        x = self.embedding(tokens)  # (B, T, D)
        return self.head(self.lstm(x, mask=tokens != 0, training=training))
