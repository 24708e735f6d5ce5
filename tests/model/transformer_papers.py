"""The Transformers' equations in plain NumPy, float64, one row, one head, one target at a time.

Weights come by the path of the variable within its network. Axes: T targets, S sources, H head
size, D width.
"""

import math

import numpy as np

# Options of TransformerDecoderConfig and TransformerEncoderConfig, each of them in one at least.
NANOGPT = {"positions": "learned", "bias": False, "initialization": "gpt2"}
FREE = {
    "normalization": "rms",
    "activation": "relu_squared",
    "qk_norm": True,
    "bias": False,
    "tied_head": False,
    "value_embeddings": True,
    "logit_cap": 3.0,
}
DECODERS = {
    "default": {},
    "nanogpt": NANOGPT,
    "free": FREE,
    "alibi-swiglu": {"positions": "alibi", "activation": "swiglu", "num_heads": 3},
    "sinusoidal-normed": {"positions": "sinusoidal", "qk_norm": True},
    "grouped": {"num_heads": 3, "num_key_value_heads": 1, "zero_output_projections": True},
    "grouped-alibi-values": {
        "num_heads": 6,
        "num_key_value_heads": 2,
        "positions": "alibi",
        "qk_norm": True,
        "value_embeddings": True,
    },
    "none-rms-further": {"positions": "none", "normalization": "rms", "further_tokens": 2},
}
ENCODERS = {
    "learned-swiglu": {"positions": "learned", "activation": "swiglu", "max_positions": 4},
    "alibi-rms": {"positions": "alibi", "normalization": "rms", "qk_norm": True},
    "sinusoidal-relu": {"positions": "sinusoidal", "activation": "relu_squared", "bias": False},
    "none": {"positions": "none", "initialization": "gpt2"},
}
VOCABULARY, LABELS = 11, 3
ROWS = [[3, 7, 9, 4, 10, 2], [5], [8, 2, 8]]


def padded(rows):
    length = max(map(len, rows))
    return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def turned(x):
    """Su et al. (2021), eq. 34: (T, H), step t turned as position t, pairs (i, i + H/2)."""
    y, half = x.copy(), x.shape[1] // 2
    for position in range(len(x)):
        for i in range(half):
            angle = position / 10_000 ** (2 * i / x.shape[1])
            a, b = x[position, i], x[position, i + half]
            y[position, i] = a * math.cos(angle) - b * math.sin(angle)
            y[position, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return y


def rms_norm(x, gain):
    return gain * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def layer_norm(x, gain, shift):
    centred = x - x.mean(axis=-1, keepdims=True)
    return gain * centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5) + shift


def attend(queries, keys, values, may_attend, slope=0.0):
    """Vaswani et al. (2017), eq. 1, and Press et al. (2022), sec. 3: one head, (T, H)."""
    rows = []
    for t, query in enumerate(queries):
        seen = [s for s in range(len(keys)) if may_attend[t, s]]
        scores = [query @ keys[s] / math.sqrt(len(query)) - slope * abs(t - s) for s in seen]
        rows.append(softmax(np.array(scores)) @ values[seen])
    return np.array(rows)


def self_attention(config, x, may_attend, weights, more_values=0.0):
    """(T, D) -> (T, D)"""
    shared = config.num_heads // (config.num_key_value_heads or config.num_heads)
    if shared == 1:
        q, k, v = np.split(x @ weights["qkv/kernel"], 3, axis=-1)
    else:  # Ainslie et al. (2023), fig. 2: neighbours share keys and values
        q = x @ weights["query/kernel"]
        k, v = np.split(x @ weights["key_value/kernel"], 2, axis=-1)
    v, size, heads = v + more_values, config.width // config.num_heads, []
    for head in range(config.num_heads):
        own = slice(head * size, (head + 1) * size)
        of_group = slice(head // shared * size, (head // shared + 1) * size)
        query, key = q[:, own], k[:, of_group]
        if config.qk_norm:
            query = rms_norm(query, weights["query_norm/scale"])
            key = rms_norm(key, weights["key_norm/scale"])
        if config.positions == "rotary":
            query, key = turned(query), turned(key)
        slope = SLOPES[config.num_heads][head] if config.positions == "alibi" else 0.0
        heads.append(attend(query, key, v[:, of_group], may_attend, slope))
    return np.concatenate(heads, axis=-1) @ weights["output_projection/kernel"]


SLOPES = {  # as the authors' code says; beyond a power of two, every other one of the next power
    2: [1 / 16, 1 / 256],
    3: [1 / 16, 1 / 256, 1 / 4],
    4: [1 / 4, 1 / 16, 1 / 64, 1 / 256],
    6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8],
}


def cross_attention(config, x, source, may_attend, weights):
    """(T, D), (S, D) -> (T, D)"""
    q = x @ weights["query/kernel"]
    k, v = np.split(source @ weights["key_value/kernel"], 2, axis=-1)
    size = config.width // config.num_heads
    owns = [slice(head * size, (head + 1) * size) for head in range(config.num_heads)]
    heads = [attend(q[:, own], k[:, own], v[:, own], may_attend) for own in owns]
    return np.concatenate(heads, axis=-1) @ weights["output_projection/kernel"]


def inner(config, x, weights):
    name = "gate_expand" if config.activation == "swiglu" else "expand"
    x = x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)
    if config.activation == "swiglu":
        gate, value = np.split(x, 2, axis=-1)
        x = gate / (1 + np.exp(-gate)) * value
    elif config.activation == "relu_squared":
        x = np.maximum(x, 0) ** 2
    else:
        x = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return x @ weights["contract/kernel"] + weights.get("contract/bias", 0.0)


def part(weights, name):
    """The weights of one layer, by their paths within it."""
    return {k.removeprefix(f"{name}/"): w for k, w in weights.items() if k.startswith(f"{name}/")}


def norm(config, x, weights):
    if config.normalization == "rms":
        return rms_norm(x, weights["scale"])
    return layer_norm(x, weights["gamma"], weights.get("beta", 0.0))


def placed(config, x, weights):
    """Embeddings (T, D) with what the position adds to them."""
    if config.positions == "learned":
        table = weights["place/position_embedding/embeddings"]
        return np.array([row + table[min(t, len(table) - 1)] for t, row in enumerate(x)])
    if config.positions == "sinusoidal":  # Vaswani et al. (2017), sec. 3.4 and 3.5
        x = x * math.sqrt(config.width)
        for t in range(len(x)):
            for i in range(config.width // 2):
                angle = t / 10_000 ** (2 * i / config.width)
                x[t, 2 * i] += math.sin(angle)
                x[t, 2 * i + 1] += math.cos(angle)
    return x


def block(config, x, may_attend, weights, more_values=0.0):
    """Xiong et al. (2020), fig. 1b."""
    y = norm(config, x, part(weights, "attention_norm"))
    x = x + self_attention(config, y, may_attend, part(weights, "attention"), more_values)
    return x + inner(config, norm(config, x, part(weights, "inner_norm")), weights)


def decoder(config, tokens, weights):
    """Logits (T, 1 + further tokens, V) of one text."""
    embedding, more = weights["embedding/embeddings"], [0.0] * config.num_layers
    if config.value_embeddings:
        more = [weights[f"value_embedding_{i}/embeddings"][tokens] for i in range(len(more))]
    x = placed(config, embedding[tokens], weights)
    past = np.tril(np.ones([len(tokens)] * 2, bool))
    for i in range(config.num_layers - 1):
        x = block(config, x, past, part(weights, f"block_{i}"), more[i])
    last = part(weights, f"block_{config.num_layers - 1}")
    hidden = [block(config, x, past, last, more[-1])]
    for i in range(config.further_tokens):  # from what the last block read
        hidden.append(block(config, x, past, part(weights, f"further_{i}")))
    x = norm(config, np.stack(hidden, axis=1), part(weights, "final_norm"))
    logits = x @ (embedding.T if config.tied_head else weights["head/kernel"])
    cap = config.logit_cap
    return logits if cap is None else cap * np.tanh(logits / cap)


def encoder(config, tokens, weights):
    """Logits (K,) of one text without padding."""
    x = placed(config, weights["embedding/embeddings"][tokens], weights)
    for i in range(config.num_layers):
        x = block(config, x, np.ones([len(tokens)] * 2, bool), part(weights, f"block_{i}"))
    x = norm(config, x, part(weights, "final_norm"))
    return x.mean(axis=0) @ weights["head/kernel"] + weights["head/bias"]
