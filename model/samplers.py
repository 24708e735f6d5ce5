"""How the next token is chosen. Axes: B batch, S slots, V vocabulary, C choices or stop strings.

Every row brings its own settings and its own random number, so a row's choice does not depend on
the rows beside it. A setting that is not given, None, is not traced and costs nothing.
"""

from typing import NamedTuple

import tensorflow as tf

from model.tokenizers import PADDING

_SORTED = 64  # of the likeliest tokens: most rows keep no more
_BLOCK = 256  # tokens that are summed at once
_BITS_OF_ONE = 0x3F800000  # of 1.0 as float32


class Options(NamedTuple):
    """What else narrows the next token, one value a row; None leaves it out of the graph.

    A number outside of its range never fails a batch, which other rows share: it acts as the
    nearest that makes sense, and a `repetition_penalty` that is not above 0 as 1.
    """

    min_p: tf.Tensor | None = None  # float32 (B,), in [0, 1]; 0 keeps all
    typical_p: tf.Tensor | None = None  # float32 (B,), in (0, 1]; 1 keeps all
    repetition_penalty: tf.Tensor | None = None  # float32 (B,), above 0; 1 changes nothing
    presence_penalty: tf.Tensor | None = None  # float32 (B,), 0 changes nothing
    frequency_penalty: tf.Tensor | None = None  # float32 (B,), 0 changes nothing
    no_repeat_ngram: tf.Tensor | None = None  # int32 (B,), tokens; 0 forbids nothing
    stop: tf.Tensor | None = None  # string (B, C), any of them ends the text; "" is none
    choices: tf.Tensor | None = None  # string (B, C), the text is one of them; "" is none


def uniforms(seed: tf.Tensor, count: int) -> tf.Tensor:
    """`count` numbers in [0, 1) a row from that row's seed alone: int32 (B,) -> float32 (B, count).

    A counter-based generator (Philox; Salmon et al., 2011): the same seed gives the same numbers
    in any batch and any process.
    """

    signature = tf.TensorSpec([count], tf.float32)
    return tf.map_fn(lambda one: uniforms_of(one, count), seed, fn_output_signature=signature)


def uniforms_of(seed: tf.Tensor, count: int) -> tf.Tensor:
    """The row of `uniforms` of one seed, int32 (): float32 (count,)."""
    return tf.random.stateless_uniform([count], tf.stack([seed, 0]), alg=tf.random.Algorithm.PHILOX)


def sample(
    logits: tf.Tensor,
    uniform: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
    min_p: tf.Tensor | None = None,
    typical_p: tf.Tensor | None = None,
) -> tf.Tensor:
    """One token a row, int32 (B,), from what `kept` keeps; `uniform` float32 (B,) in [0, 1).

    The token is found on the cumulative distribution in the order of the vocabulary, so one random
    number decides it. Of equally likely tokens a greedy row takes the first.
    """
    weights = kept(logits, temperature, top_k, top_p, min_p, typical_p)
    is_one = _is_greedy(temperature) | (top_k == 1)
    return pick(weights, tf.where(is_one, 0.0, uniform))


def pick(weights: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """An index in proportion to weights float32 (B, V) >= 0, by one number a row: int32 (B,)."""
    V = weights.shape[-1]
    if V <= 2 * _BLOCK:
        cumulative = tf.cumsum(weights, axis=-1)
        return _reached(weights, cumulative, uniform * cumulative[:, -1])
    # First the block of the vocabulary, then the token in it: a running sum over all of it is slow.
    num_blocks = -(-V // _BLOCK)
    blocks = tf.pad(weights, [[0, 0], [0, num_blocks * _BLOCK - V]])
    blocks = tf.reshape(blocks, [tf.shape(weights)[0], num_blocks, _BLOCK])
    sums = tf.reduce_sum(blocks, axis=-1)  # (B, blocks)
    cumulative = tf.cumsum(sums, axis=-1)
    target = uniform * cumulative[:, -1]
    block = _reached(sums, cumulative, target)
    before = tf.gather(cumulative - sums, block, batch_dims=1)
    own = tf.gather(blocks, block, batch_dims=1)  # (B, _BLOCK)
    inside = _reached(own, tf.cumsum(own, axis=-1), tf.maximum(target - before, 0.0))
    return block * _BLOCK + inside


def _reached(weights: tf.Tensor, cumulative: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Where the running sum (B, N) of weights first exceeds `target` (B,): int32 (B,)."""
    chosen = tf.reduce_sum(tf.cast(cumulative <= target[:, None], tf.int32), axis=-1)
    # Rounding could carry `target` up to the total itself: stay on the last with a weight.
    index = tf.range(weights.shape[-1])[None, :]
    last = tf.reduce_max(tf.where(weights > 0, index, 0), axis=-1)
    return tf.minimum(chosen, last)


def probabilities(
    logits: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
    min_p: tf.Tensor | None = None,
    typical_p: tf.Tensor | None = None,
) -> tf.Tensor:
    """With what probability `sample` draws each token: float32 (B, V), rows sum to 1."""
    weights = kept(logits, temperature, top_k, top_p, min_p, typical_p)
    is_one = _is_greedy(temperature) | (top_k == 1)
    first = tf.one_hot(pick(weights, tf.zeros_like(temperature)), weights.shape[-1])
    weights = tf.where(is_one[:, None], first, weights)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def kept(
    logits: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
    min_p: tf.Tensor | None = None,
    typical_p: tf.Tensor | None = None,
) -> tf.Tensor:
    """The weight of each token, float32 (B, V), 1 for the likeliest and 0 if it is not kept.

    `logits` float32 (B, V). In this order: `temperature` float32 (B,), 0 is greedy; `top_k` int32
    (B,), 0 keeps all (Fan et al., 2018); `top_p` float32 (B,), 1 keeps all (Holtzman et al., 2020);
    `min_p` float32 (B,), 0 keeps all (Nguyen et al., 2024); `typical_p` float32 (B,), 1 keeps all
    (Meister et al., 2023, eq. 10).

    top-p keeps the smallest set whose probability reaches `top_p`: a token stays when those before
    it do not reach it yet. min-p keeps what is at least `min_p` times as likely as the likeliest.
    Locally typical sampling keeps, of what is left, the smallest set that reaches `typical_p`,
    those first whose information -log p is nearest to the entropy. One token always stays: the
    likeliest, or the most typical. By top-k and top-p equally likely tokens stay or go together.
    """
    is_greedy = _is_greedy(temperature)
    # At 1,000 all logits are as good as equal; more would only lose them to rounding.
    divisor = tf.where(is_greedy, 1.0, tf.minimum(temperature, 1e3))[:, None]
    best = tf.reduce_max(logits, axis=-1, keepdims=True)
    weights = tf.exp((logits - best) / divisor)  # (B, V), unsorted: sorting costs more than a layer
    has_limit = ((top_k > 0) | ~(top_p >= 1.0)) & ~is_greedy
    least = tf.cond(
        tf.reduce_any(has_limit),
        lambda: _least_kept(weights, top_k, top_p),
        lambda: tf.zeros_like(temperature),
    )
    least = tf.where(is_greedy, 1.0, least)
    if min_p is not None:
        least = tf.maximum(least, tf.where(min_p > 0, tf.minimum(min_p, 1.0), 0.0))  # NaN is 0
    weights = tf.where(weights >= least[:, None], weights, 0.0)
    if typical_p is not None:
        weights = tf.where(_is_typical(weights, typical_p), weights, 0.0)
    return weights


def _is_greedy(temperature: tf.Tensor) -> tf.Tensor:
    return ~(temperature > 1e-6)  # NaN too


def _least_kept(weights: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor) -> tf.Tensor:
    """The smallest weight of (B, V) in [0, 1] that top-k and top-p keep: float32 (B,).

    Most rows keep a few likely tokens, which are sorted. For the others the smallest weight is
    found by halving the range of its bits, which are in the order of the numbers.
    """
    V = weights.shape[-1]
    K = min(_SORTED, V)
    total = tf.reduce_sum(weights, axis=-1)
    ordered, _ = tf.math.top_k(weights, k=K)  # (B, K), descending
    limit = tf.where(top_k <= 0, V, tf.minimum(top_k, V))[:, None]
    rank = tf.range(K)[None, :]
    cumulative = tf.cumsum(tf.where(rank < limit, ordered, 0.0), axis=-1)
    kth = tf.reduce_min(tf.where(rank < limit, ordered, 1.0), axis=-1)
    is_sorted = limit[:, 0] <= K
    share = tf.where(top_p > 0, top_p, 0.0)  # NaN is 0, which keeps the likeliest
    enough = share * tf.where(is_sorted, cumulative[:, -1], total)
    reached = cumulative >= enough[:, None]
    nucleus = tf.reduce_max(tf.where(reached, ordered, 0.0), axis=-1)
    keeps_all = top_p >= 1.0
    found = tf.maximum(tf.where(limit[:, 0] >= V, 0.0, kth), tf.where(keeps_all, 0.0, nucleus))
    if V == K:
        return found
    is_found = (is_sorted | (limit[:, 0] >= V)) & (keeps_all | reached[:, -1])
    # Of rows that need it the weight of rank k, then what reaches the share of those above it.
    has_k = ~is_found & (limit[:, 0] < V)
    wanted = tf.cast(limit[:, 0], tf.float32)
    kth = _largest(lambda least: tf.cast(weights >= least, tf.float32), wanted, has_k)
    kth = tf.where(has_k, kth, 0.0)
    above = weights > kth[:, None]
    mass = tf.reduce_sum(tf.where(above, weights, 0.0), axis=-1)
    num_above = tf.reduce_sum(tf.cast(above, tf.float32), axis=-1)
    mass = tf.where(has_k, mass + (wanted - num_above) * kth, total)
    has_p = ~is_found & ~keeps_all
    nucleus = _largest(lambda least: tf.where(weights >= least, weights, 0.0), share * mass, has_p)
    slow = tf.maximum(kth, tf.where(has_p, nucleus, 0.0))
    return tf.where(is_found, found, slow)


def _largest(counted, wanted: tf.Tensor, is_asked: tf.Tensor) -> tf.Tensor:
    """The largest x (B,) in [0, 1] with the sum of `counted(x)` (B, V) at least `wanted` (B,).

    Rows that are not asked for get any number. No loop is run where none is.
    """
    low = tf.zeros_like(wanted, tf.int32)
    high = tf.where(is_asked, _BITS_OF_ONE + 1, 1)

    def halve(low, high):
        middle = low + (high - low) // 2
        total = tf.reduce_sum(counted(tf.bitcast(middle, tf.float32)[:, None]), axis=-1)
        is_enough = (total >= wanted) & (high - low > 1)
        is_short = (total < wanted) & (high - low > 1)
        return tf.where(is_enough, middle, low), tf.where(is_short, middle, high)

    low, _ = tf.while_loop(
        lambda low, high: tf.reduce_any(high - low > 1), halve, (low, high), maximum_iterations=32
    )
    return tf.bitcast(low, tf.float32)


def _is_typical(weights: tf.Tensor, typical_p: tf.Tensor) -> tf.Tensor:
    """bool (B, V) for weights (B, V) that need not sum to 1; 0 is never typical."""
    weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
    possible = weights > 0
    information = -tf.math.log(tf.where(possible, weights, 1.0))
    entropy = tf.reduce_sum(weights * information, axis=-1, keepdims=True)
    distance = tf.where(possible, tf.abs(information - entropy), tf.float32.max)
    order = tf.argsort(distance, axis=-1, stable=True)
    before = tf.cumsum(tf.gather(weights, order, batch_dims=1), axis=-1, exclusive=True)
    is_first = tf.range(tf.shape(weights)[-1])[None, :] == 0
    # 1 keeps all, though rounding may bring the sum there early.
    keep = (before < typical_p[:, None]) | (typical_p >= 1.0)[:, None] | is_first
    return possible & tf.gather(keep, tf.argsort(order, axis=-1), batch_dims=1)


def penalized(logits: tf.Tensor, text: tf.Tensor, answer: tf.Tensor, options: Options) -> tf.Tensor:
    """Logits float32 (B, V), lowered for what was written: `text` is prompt and answer.

    `text` and `answer` int32 (B, S), PADDING where nothing stands. The repetition penalty divides
    the logit of every token of the text, or multiplies it if it is below 0 (Keskar et al., 2019,
    sec. 4.1, who only divide, which raises such a logit). Of the answer's tokens alone the presence
    penalty is subtracted once and the frequency penalty as often as the token stands there (as
    in OpenAI's API).
    """
    vocabulary_size = tf.shape(logits)[-1]
    if options.repetition_penalty is not None:
        given = options.repetition_penalty
        penalty = tf.where(given > 0, given, 1.0)[:, None]
        lowered = tf.where(logits > 0, logits / penalty, logits * penalty)
        logits = tf.where(_counts(text, text != PADDING, vocabulary_size) > 0, lowered, logits)
    if options.presence_penalty is None and options.frequency_penalty is None:
        return logits
    counts = _counts(answer, answer != PADDING, vocabulary_size)
    if options.presence_penalty is not None:
        logits -= options.presence_penalty[:, None] * tf.cast(counts > 0, tf.float32)
    if options.frequency_penalty is not None:
        logits -= options.frequency_penalty[:, None] * counts
    return logits


def would_repeat(text: tf.Tensor, end, ngram: tf.Tensor, vocabulary_size) -> tf.Tensor:
    """Which tokens would end an n-gram that stands in the text: bool (B, V).

    Paulus et al. (2018), sec. 2.5, for any n.
    `text` int32 (B, S): each row ends before slot `end`, with PADDING in front of it; `ngram` int32
    (B,), 0 for none, 1 for every token of the text.
    """
    slot = tf.range(tf.shape(text)[1])[None, :]

    def compare(distance, follows):
        """Whether the token `distance` before a slot is that before the end."""
        is_same = tf.roll(text, distance, axis=1) == text[:, end - distance, None]
        is_same &= slot >= distance
        return distance + 1, follows & (is_same | (distance >= ngram)[:, None])

    start = (slot < end) & (text != PADDING) & (ngram > 0)[:, None]
    longest = tf.minimum(tf.reduce_max(tf.concat([ngram, [0]], 0)), end + 1)
    _, follows = tf.while_loop(lambda distance, _: distance < longest, compare, (1, start))
    return _counts(text, follows, vocabulary_size) > 0


def _counts(tokens: tf.Tensor, is_counted: tf.Tensor, vocabulary_size) -> tf.Tensor:
    """How often each token stands in a row of (B, S) where it counts: float32 (B, V)."""
    B = tf.shape(tokens)[0]
    row = tf.broadcast_to(tf.range(B)[:, None], tf.shape(tokens))
    where = tf.stack([row, tokens], axis=-1)
    return tf.scatter_nd(where, tf.cast(is_counted, tf.float32), [B, vocabulary_size])


def fits_choices(choices: tf.Tensor, answer: tf.Tensor, step, vocabulary_size) -> tf.Tensor:
    """bool (B, V): which tokens go on with one of the row's choices; all of them if it has none.

    `choices` int32 (B, C, L), each ended by END and then PADDING, PADDING alone for none; `answer`
    int32 (B, S), of which `step` tokens are written.
    """
    longest = tf.shape(choices)[2]
    answer = tf.pad(answer, [[0, 0], [0, longest]])[:, None, :longest]
    begins = tf.reduce_all((choices == answer) | (tf.range(longest) >= step), axis=-1)  # (B, C)
    # A row that is finished goes on behind its last choice: nothing fits, and nobody reads it.
    token = tf.gather(tf.pad(choices, [[0, 0], [0, 0], [0, 1]]), tf.minimum(step, longest), axis=2)
    fits = _counts(token, begins & (token != PADDING), vocabulary_size) > 0
    is_free = tf.reduce_all(choices == PADDING, axis=[1, 2])
    return fits | is_free[:, None]


def first_occurrence(text: tf.Tensor, strings: tf.Tensor) -> tf.Tensor:
    """Byte where the first of a row's strings begins in its text, or -1: int32 (B,).

    `text` string (B,), `strings` string (B, C), "" for none. Equal bytes of valid UTF-8 are equal
    characters.
    """
    sizes, size = tf.strings.length(strings), tf.strings.length(text)
    longest = tf.reduce_max(tf.concat([tf.reshape(sizes, [-1]), [1]], 0))
    width = tf.reduce_max(tf.concat([size, [1]], 0))
    theirs = tf.io.decode_raw(strings, tf.uint8, fixed_length=longest)  # (B, C, bytes)
    ours = tf.io.decode_raw(text, tf.uint8, fixed_length=width)  # (B, bytes)

    def compare(i, begins):
        is_same = tf.roll(ours, -i, axis=1)[:, None] == theirs[:, :, i, None]
        return i + 1, begins & (is_same | (i >= sizes)[..., None])

    start = tf.range(width)
    fits = start + sizes[..., None] <= size[:, None, None]  # (B, C, bytes)
    begins = fits & (sizes > 0)[..., None]
    _, begins = tf.while_loop(lambda i, _: i < longest, compare, (0, begins))
    first = tf.reduce_min(tf.where(tf.reduce_any(begins, axis=1), start, width), axis=-1)
    return tf.where(first < width, first, -1)
