"""Low-rank adapters (LoRA) on the matrices of a network that is already built."""

import re
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

_MATRICES = ("kernel", "embeddings")
_ADAPTABLE = keras.layers.Dense | keras.layers.EinsumDense | keras.layers.Embedding


def add_lora(
    model: keras.Model, pattern: str, rank: int, alpha: float, seed: int
) -> list[keras.layers.Layer]:
    """Adds alpha / rank * A B to every matrix whose path matches; returns the layers changed.

    W + alpha/r A B (Hu et al., 2022, sec. 4.1): A starts as `seed` draws it (He et al., 2015), B at
    zero, so the outputs are unchanged. `pattern` is a regular expression searched for in the paths
    of the matrices of Dense, EinsumDense and Embedding layers, such as `qkv|output_projection`; the
    weights of an LSTM cannot be adapted. Keras moves the matrix W from the layer's trainable to its
    non-trainable variables and appends A and B, float32, to the trainable ones, so optimizers and
    graphs made before do not fit any more; other variables stay trainable or not as they were.
    Raises ValueError when nothing matches, or when a layer has an adapter already.
    """
    for name, value in (("rank", rank), ("alpha", alpha)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0. Received: {value!r}")
    matrices = {
        variable.path: layer
        for layer in model._flatten_layers()
        if isinstance(layer, _ADAPTABLE)
        for variable in layer.variables
        if variable.name in _MATRICES
    }
    layers = [layer for path, layer in matrices.items() if re.search(pattern, path)]
    if not layers:
        raise ValueError(
            "pattern must match the path of a matrix of a Dense, EinsumDense or Embedding layer, "
            f"one of {', '.join(matrices)}. Received: {pattern!r}"
        )
    for layer, own_seed in zip(
        layers, np.random.default_rng(seed).integers(2**31, size=len(layers)), strict=True
    ):
        initializer = keras.initializers.HeUniform(seed=int(own_seed))
        layer.enable_lora(rank, lora_alpha=alpha, a_initializer=initializer)
    return layers


def lora_delta(layer: keras.layers.Layer) -> tf.Tensor:
    """What a layer's adapter adds to its matrix: alpha / rank * A B, float32, of its shape."""
    _, a, b = _parts(layer)
    return tf.matmul(a.value, b.value) * (layer.lora_alpha / layer.lora_rank)


def merge_lora(layers: Sequence[keras.layers.Layer]) -> None:
    """Adds each adapter to its matrix and sets B to zero: the same function, within rounding.

    The adapters stay, so training may go on in a new low-rank direction (Lialin et al., 2023).
    """
    for layer in layers:
        matrix, _, b = _parts(layer)
        matrix.assign_add(lora_delta(layer))
        b.assign(tf.zeros_like(b.value))


def _parts(layer: keras.layers.Layer):
    """The matrix and its A and B; by name, as `layer.kernel` is already their sum."""
    if not getattr(layer, "lora_enabled", False):
        raise ValueError(f"A layer of add_lora is needed, one with an adapter. Received: {layer}")
    variables = {variable.name: variable for variable in layer.variables}
    name = next(name for name in _MATRICES if name in variables)
    return variables[name], variables[f"lora_{name}_a"], variables[f"lora_{name}_b"]
