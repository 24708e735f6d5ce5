"""How the next token is chosen. Axes: B batch, V vocabulary.

Every row brings its own settings and its own random number, so a row's choice does not depend on
the rows beside it.
"""

import tensorflow as tf


def uniforms(seed: tf.Tensor, count: int) -> tf.Tensor:
    """`count` numbers in [0, 1) a row from that row's seed alone: int32 (B,) -> float32 (B, count).

    A counter-based generator (Philox; Salmon et al., 2011): the same seed gives the same numbers
    in any batch and any process.
    """

    def row(one):
        return tf.random.stateless_uniform(
            [count], tf.stack([one, 0]), alg=tf.random.Algorithm.PHILOX
        )

    signature = tf.TensorSpec([count], tf.float32)
    return tf.map_fn(row, seed, fn_output_signature=signature)


def sample(
    logits: tf.Tensor,
    uniform: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
) -> tf.Tensor:
    """One token a row: temperature, then top-k (Fan et al., 2018), then top-p (Holtzman, 2020).

    `logits` float32 (B, V); `uniform` float32 (B,) in [0, 1); `temperature` float32 (B,), 0 is
    greedy; `top_k` int32 (B,), 0 keeps all; `top_p` float32 (B,), 1 keeps all. Returns int32 (B,).

    The token is found on the cumulative distribution of the sorted probabilities, so one random
    number decides it. top-p keeps the smallest set whose probability reaches `top_p`: a token
    stays when those before it do not reach it yet; the likeliest token always stays.
    """
    greedy = ~(temperature > 1e-6)  # NaN too
    # At 1,000 all logits are as good as equal; more would only lose them to rounding.
    scaled = logits / tf.where(greedy, 1.0, tf.minimum(temperature, 1e3))[:, None]
    vocabulary_size = tf.shape(logits)[-1]
    ordered, tokens = tf.math.top_k(scaled, k=vocabulary_size)  # (B, V), descending
    rank = tf.range(vocabulary_size)[None, :]
    limit = tf.where((top_k <= 0) | greedy, tf.where(greedy, 1, vocabulary_size), top_k)
    within_k = rank < limit[:, None]
    weights = tf.nn.softmax(tf.where(within_k, ordered, tf.float32.min))
    before = tf.cumsum(weights, axis=-1, exclusive=True)
    keep = within_k & ((before < top_p[:, None]) | (rank == 0))
    cumulative = tf.cumsum(tf.where(keep, weights, 0.0), axis=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    chosen = tf.reduce_sum(tf.cast(cumulative <= target, tf.int32), axis=-1)
    # Rounding could carry `target` up to the total itself: stay on the last kept token.
    last = tf.reduce_sum(tf.cast(keep, tf.int32), axis=-1) - 1
    return tf.gather(tokens, tf.minimum(chosen, last), batch_dims=1)
