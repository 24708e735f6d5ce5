"""Recurrent cells over a sequence. Axes: B batch, T steps, D input width, U units."""

from collections.abc import Callable
from functools import partial

import keras
import tensorflow as tf


class PeepholeLSTMCell(keras.layers.Layer):
    """One step of an LSTM whose gates see its memory (Gers et al., 2002; Graves, 2013, eq. 7-11).

        i = sigmoid(x W_i + h U_i + p_i * c + b_i)      f = sigmoid(x W_f + h U_f + p_f * c + b_f)
        c' = f * c + i * tanh(x W_c + h U_c + b_c)      o = sigmoid(x W_o + h U_o + p_o * c' + b_o)
        h' = o * tanh(c')

    Call: input float (B, D), [h, c] each (B, U) -> h', [h', c']. `kernel` (D, 4U),
    `recurrent_kernel` (U, 4U) and `bias` (4U,) hold i, f, c, o side by side, as those of Keras'
    LSTM do, and start as they do there; `peephole` (3, U) holds p_i, p_f, p_o and starts at zero,
    so that a network begins as a plain LSTM.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units, self.state_size, self.output_size = units, [units, units], units

    def build(self, input_shape):
        U = self.units
        self.kernel = self.add_weight(shape=(input_shape[-1], 4 * U), name="kernel")
        self.recurrent_kernel = self.add_weight(
            shape=(U, 4 * U), initializer="orthogonal", name="recurrent_kernel"
        )
        self.bias = self.add_weight(shape=(4 * U,), initializer=_remembering, name="bias")
        self.peephole = self.add_weight(shape=(3, U), initializer="zeros", name="peephole")

    def call(self, x, states):
        h, c = states
        z = keras.ops.matmul(x, self.kernel) + keras.ops.matmul(h, self.recurrent_kernel)
        z_i, z_f, z_c, z_o = tf.split(z + self.bias, 4, axis=-1)
        p_i, p_f, p_o = tf.unstack(tf.convert_to_tensor(self.peephole))
        new_c = tf.sigmoid(z_f + p_f * c) * c + tf.sigmoid(z_i + p_i * c) * tf.tanh(z_c)
        new_h = tf.sigmoid(z_o + p_o * new_c) * tf.tanh(new_c)
        return new_h, [new_h, new_c]


def _remembering(shape, dtype):
    """One for the forget gate, zero for the others (Jozefowicz et al., 2015)."""
    return tf.repeat(tf.constant([0.0, 1.0, 0.0, 0.0], dtype), shape[0] // 4)


@keras.saving.register_keras_serializable("stepwise")  # as Bidirectional copies layers by that
class PeepholeLSTM(keras.layers.RNN):
    """`PeepholeLSTMCell` over a sequence, called as `keras.layers.LSTM` is."""

    def __init__(self, units: int, *, name: str = "peephole_lstm", dtype=None, **kwargs):
        cell = PeepholeLSTMCell(units, dtype=dtype, name="peephole_lstm_cell")
        super().__init__(cell, name=name, dtype=dtype, **kwargs)

    def get_config(self):
        config = super().get_config()
        del config["cell"]
        return {**config, "units": self.cell.units}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


# Keras' own where it has one: nothing that was tried is faster. The names are those that
# `model.config.checks.CELLS` takes.
CELLS: dict[str, Callable[..., keras.layers.RNN]] = {
    "rnn": keras.layers.SimpleRNN,  # Elman (1990)
    "lstm": keras.layers.LSTM,  # Hochreiter & Schmidhuber (1997), with the forget gate
    "peephole_lstm": PeepholeLSTM,
    "gru": keras.layers.GRU,  # resets behind the product, as cuDNN does
    "gru_reset_before": partial(keras.layers.GRU, reset_after=False),  # Cho et al. (2014)
}


def recurrence(cell: str, units: int, *, name: str, **kwargs) -> keras.layers.RNN:
    """Reads (B, T, D), a mask bool (B, T) and a state; gives the hidden states (B, T, U).

    A step without a token leaves the state as it is. `cell` is a name of `CELLS`.
    """
    return CELLS[cell](units, return_sequences=True, name=name, **kwargs)


def at_least_one_step(x):
    """A recurrence needs a step: an empty text (B, 0) becomes one of padding."""
    return tf.pad(x, [[0, 0], [0, tf.cast(tf.shape(x)[1] == 0, tf.int32)]])
