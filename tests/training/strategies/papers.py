"""What each optimizer does to one variable, in NumPy, transcribed from the papers' equations.

Each takes the weights, the gradients g_1, g_2, ..., the learning rate and the decoupled decay, and
yields the weights after each update.
"""

import numpy as np

EPSILON = 1e-7


def sgd(w, gradients, lr, decay):
    for g in gradients:
        w = (1 - lr * decay) * w - lr * g
        yield w


def momentum(w, gradients, lr, decay):
    """Polyak (1964)."""
    v = 0.0
    for g in gradients:
        v = 0.9 * v - lr * g
        w = (1 - lr * decay) * w + v
        yield w


def nesterov(w, gradients, lr, decay):
    """Sutskever et al. (2013), eq. 3-4, written for the point theta + mu v that g is taken at."""
    v = 0.0
    for g in gradients:
        theta = (1 - lr * decay) * w - 0.9 * v
        v = 0.9 * v - lr * g
        w = theta + v + 0.9 * v
        yield w


def rmsprop(w, gradients, lr, decay):
    """Hinton (2012), lecture 6e; epsilon under the root."""
    square = 0.0
    for g in gradients:
        square = 0.9 * square + 0.1 * g**2
        w = (1 - lr * decay) * w - lr * g / np.sqrt(square + EPSILON)
        yield w


def adam(w, gradients, lr, decay):
    """Kingma & Ba (2015), the order of operations at the end of sec. 2."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        w = (1 - lr * decay) * w - step * m / (np.sqrt(v) + EPSILON)
        yield w


def lion(w, gradients, lr, decay):
    """Chen et al. (2023), alg. 2."""
    m = 0.0
    for g in gradients:
        w = w - lr * (np.sign(0.9 * m + 0.1 * g) + decay * w)
        m = 0.99 * m + 0.01 * g
        yield w


def adafactor(w, gradients, lr, decay):
    """Shazeer & Stern (2018), alg. 4 for matrices and 5 for vectors, with sums as written there."""
    R = C = V = 0.0
    for t, g in enumerate(gradients, start=1):
        beta, square = 1 - t**-0.8, g**2 + 1e-30
        if w.ndim == 2:
            R = beta * R + (1 - beta) * square.sum(1)
            C = beta * C + (1 - beta) * square.sum(0)
            V = np.outer(R, C) / R.sum()
        else:
            V = beta * V + (1 - beta) * square
        u = g / np.sqrt(V)
        u /= max(1.0, np.sqrt(np.mean(u**2)))
        alpha = lr * max(1e-3, np.sqrt(np.mean(w**2)))
        w = (1 - lr * decay) * w - alpha * u
        yield w


def lamb(w, gradients, lr, decay):
    """You et al. (2020), alg. 2."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        r = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + EPSILON)
        u = r + decay * w
        w = w - lr * np.linalg.norm(w) / np.linalg.norm(u) * u
        yield w


def muon(w, gradients, lr, decay):
    """Jordan et al. (2024), the quintic applied to the singular values themselves."""
    if w.ndim == 1:
        yield from adam(w, gradients, 0.15 * lr, decay)
        return
    m = 0.0
    for g in gradients:
        m = 0.95 * m + g
        U, S, V = np.linalg.svd(g + 0.95 * m, full_matrices=False)
        S = S / (np.linalg.norm(S) + 1e-7)
        for _ in range(5):
            S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
        num_inputs, num_outputs = w.shape
        step = lr * np.sqrt(max(1, num_outputs / num_inputs)) * (U * S) @ V
        w = (1 - lr * decay) * w - step
        yield w


def schedule_free(w, gradients, lr, decay, beta_2=None):
    """Defazio et al. (2024), alg. 1; with a constant rate the weights of the average are equal."""
    x = y = z = w
    v = 0.0
    for t, g in enumerate(gradients, start=1):
        if beta_2:
            v = beta_2 * v + (1 - beta_2) * g**2
            g = g / (np.sqrt(v / (1 - beta_2**t)) + 1e-8)
        z = z - lr * (g + decay * y)
        x = (1 - 1 / t) * x + z / t
        y = 0.1 * z + 0.9 * x
        yield y


PAPERS = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adam,
    "lion": lion,
    "adafactor": adafactor,
    "lamb": lamb,
    "muon": muon,
    "schedule_free_sgd": schedule_free,
    "schedule_free_adamw": lambda *given: schedule_free(*given, beta_2=0.999),
}
