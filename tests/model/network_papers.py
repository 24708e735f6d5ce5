"""The papers' equations in plain NumPy, one text and one step at a time, without any padding.

Weights are arrays as the layers keep them; gates lie side by side. Only functions that also hold
for complex numbers are used, so that `complex_step` can differentiate what is written here.
"""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# Cells: x (D,), the state, weights -> (h, the new state) ------------------------------------------


def rnn(x, state, W, U, b):
    """Elman (1990)."""
    (h,) = state
    h = np.tanh(x @ W + h @ U + b)
    return h, (h,)


def lstm(x, state, W, U, b):
    """Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000)."""
    return peephole_lstm(x, state, W, U, b, np.zeros((3, len(state[0]))))


def peephole_lstm(x, state, W, U, b, p):
    """Graves (2013), eq. 7 to 11; the peepholes are diagonal matrices."""
    h, c = state
    (W_i, W_f, W_c, W_o), (U_i, U_f, U_c, U_o) = np.split(W, 4, axis=1), np.split(U, 4, axis=1)
    b_i, b_f, b_c, b_o = np.split(b, 4)
    i = sigmoid(x @ W_i + h @ U_i + p[0] * c + b_i)
    f = sigmoid(x @ W_f + h @ U_f + p[1] * c + b_f)
    c = f * c + i * np.tanh(x @ W_c + h @ U_c + b_c)
    o = sigmoid(x @ W_o + h @ U_o + p[2] * c + b_o)
    h = o * np.tanh(c)
    return h, (h, c)


def gru_reset_before(x, state, W, U, b):
    """Cho et al. (2014), eq. 5 to 8, and a bias."""
    (h,) = state
    (W_z, W_r, W_h), (U_z, U_r, U_h) = np.split(W, 3, axis=1), np.split(U, 3, axis=1)
    b_z, b_r, b_h = np.split(b, 3)
    z = sigmoid(x @ W_z + h @ U_z + b_z)
    r = sigmoid(x @ W_r + h @ U_r + b_r)
    candidate = np.tanh(x @ W_h + (r * h) @ U_h + b_h)
    h = z * h + (1 - z) * candidate
    return h, (h,)


def gru(x, state, W, U, b):
    """As Keras and cuDNN have it: the reset gate behind the product, and a bias on each side."""
    (h,) = state
    (W_z, W_r, W_h), (U_z, U_r, U_h) = np.split(W, 3, axis=1), np.split(U, 3, axis=1)
    (b_z, b_r, b_h), (d_z, d_r, d_h) = np.split(b[0], 3), np.split(b[1], 3)
    z = sigmoid(x @ W_z + b_z + h @ U_z + d_z)
    r = sigmoid(x @ W_r + b_r + h @ U_r + d_r)
    candidate = np.tanh(x @ W_h + b_h + r * (h @ U_h + d_h))
    h = z * h + (1 - z) * candidate
    return h, (h,)


CELLS = {
    "rnn": (rnn, 1),  # and how many vectors its state has
    "lstm": (lstm, 2),
    "peephole_lstm": (peephole_lstm, 2),
    "gru": (gru, 1),
    "gru_reset_before": (gru_reset_before, 1),
}


def read(cell, x, weights, state=None, is_token=None):
    """Steps of one row, x (T, D) -> (a list of h, the last state); a step may have no token."""
    step, num_states = CELLS[cell]
    if state is None:
        state = (np.zeros(weights[1].shape[0]),) * num_states
    hidden = []
    for t in range(len(x)):
        if is_token is None or is_token[t]:
            h, state = step(x[t], state, *weights)
            hidden.append(h)
    return hidden, state


def read_both_ways(cell, x, forward, backward):
    """Hidden states (T, 2U), and where each direction ends (2U,)."""
    to_right, _ = read(cell, x, forward)
    to_left, _ = read(cell, x[::-1], backward)
    hidden = [np.concatenate(pair) for pair in zip(to_right, to_left[::-1], strict=True)]
    return np.array(hidden), np.concatenate([to_right[-1], to_left[-1]])


# Windows and poolings: x (T, D) -> (T, F) or (D,) -------------------------------------------------


def convolution(x, kernel, bias):
    """kernel (size, D, F): the window of step t begins (size - 1) // 2 steps before it."""
    size, T = len(kernel), len(x)
    out = np.tile(bias, (T, 1)).astype(float)
    for t in range(T):
        for k in range(size):
            seen = t + k - (size - 1) // 2
            if 0 <= seen < T:
                out[t] += x[seen] @ kernel[k]
    return out


def halved(x):
    """The largest of three steps, at every second step."""
    return np.array([x[t : t + 3].max(axis=0) for t in range(0, len(x), 2)])


def attention_pooling(x, W, b, query):
    """Yang et al. (2016), eq. 5 to 7."""
    weight = np.exp(np.tanh(x @ W + b) @ query)
    return weight @ x / weight.sum()


# Gradients ----------------------------------------------------------------------------------------


def complex_step(function, arrays):
    """The gradient of `function(arrays)`, a number, for every entry of each array.

    f'(w) = Im f(w + i e) / e is exact to rounding with e this small, as nothing is subtracted
    (Squire & Trapp, 1998).
    """
    step, gradients = 1e-30, []
    for number, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            moved = array.astype(complex)
            moved[index] += 1j * step
            changed = [*arrays[:number], moved, *arrays[number + 1 :]]
            gradient[index] = np.imag(function(changed)) / step
        gradients.append(gradient)
    return gradients
