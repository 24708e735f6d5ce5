"""Writing what is likely and not what was said: contrastive search.

Axes: B batch, K candidates, D width, S cache slots. Graph ops only, as `model/generation.py`.
"""

import tensorflow as tf

from model.generation import (
    answers,
    check_reads,
    one_for_each_prompt,
    read_prompts,
    take_rows,
    without_specials,
)
from model.tokenizers import END, PADDING, ReversibleTokenizer
from model.transformer import TransformerDecoder


def contrastive_search(
    model: TransformerDecoder,
    tokenizer: ReversibleTokenizer,
    prompt: tf.Tensor,
    max_tokens: tf.Tensor,
    alpha: tf.Tensor,
    num_candidates: int = 4,
) -> dict[str, tf.Tensor]:
    """Of the likeliest tokens the one that is likely and unlike the text (Su et al., 2022, eq. 5).

    `prompt` string (B,), `max_tokens` int32 (B,), `alpha` float32 (B,) in [0, 1]; the outputs are
    those of `generate`, nothing is drawn. Of the `num_candidates` likeliest tokens v that one is
    written whose (1 - alpha) p(v) - alpha max_j cos(h_v, h_j) is largest: h are the last hidden
    states, normalised as the head reads them, of the candidate and of each token before it, the
    prompt's too. Alpha 0 is greedy writing. The network reads every candidate, each with a copy of
    the cache.
    """
    check_reads(model, "contrastive search")
    if num_candidates < 1:
        raise ValueError(f"num_candidates must be at least 1. Received: {num_candidates}")
    one_for_each_prompt(prompt, {"max_tokens": max_tokens, "alpha": alpha})
    start = read_prompts(tokenizer, prompt, max_tokens, model.config.context_length)
    lengths, allowed, num_steps = start.lengths, start.allowed, start.num_steps
    B, T = tf.shape(lengths)[0], tf.shape(start.tokens)[1]
    K = tf.minimum(num_candidates, model.vocabulary_size)
    weight = tf.clip_by_value(alpha, 0.0, 1.0)[:, None]
    x, caches = model.read(
        start.tokens, tf.range(T)[None, :], model.empty_cache(B, start.num_slots)
    )
    logits = model.logits(tf.gather(x, lengths - 1, axis=1, batch_dims=1))

    def direction(x):
        return tf.math.l2_normalize(tf.cast(model.final_norm(x), tf.float32), axis=-1)

    seen = tf.pad(direction(x), [[0, 0], [0, start.num_slots - T], [0, 0]])  # (B, S, D)
    slot = tf.range(start.num_slots)[None, :]

    def unfinished(step, logits, caches, seen, is_finished, hit_end, num_tokens, written):
        return (step < num_steps) & ~tf.reduce_all(is_finished)

    def write_one(step, logits, caches, seen, is_finished, hit_end, num_tokens, written):
        p, candidates = tf.math.top_k(tf.nn.softmax(without_specials(logits)), k=K)  # (B, K)
        # Finished rows go on in place, at most in the last slot: nobody reads them again.
        position = tf.minimum(lengths + step, start.num_slots - 1)
        each = tf.repeat(tf.range(B), K)
        x, tried = model.read(
            tf.reshape(candidates, [-1, 1]),
            tf.repeat(position, K)[:, None],
            take_rows(caches, each),
        )
        x = tf.reshape(x, [B, K, model.config.width])
        theirs = direction(x)
        similar = tf.matmul(theirs, seen, transpose_b=True)  # (B, K, S)
        is_before = (slot < position[:, None])[:, None]
        similar = tf.reduce_max(tf.where(is_before, similar, -1.0), axis=-1)
        chosen = tf.argmax((1 - weight) * p - weight * similar, axis=1, output_type=tf.int32)
        token, x, own = (
            tf.gather(values, chosen, batch_dims=1) for values in (candidates, x, theirs)
        )
        caches = take_rows(tried, tf.range(B) * K + chosen)
        seen = tf.where((slot == position[:, None])[..., None], own[:, None], seen)
        ends = ~is_finished & (token == END)
        hit_end, is_finished = hit_end | ends, is_finished | ends
        written = tf.tensor_scatter_nd_update(
            written, [[step]], tf.where(is_finished, PADDING, token)[None]
        )
        num_tokens = num_tokens + tf.cast(~is_finished, tf.int32)
        is_finished = is_finished | (num_tokens >= allowed)
        logits = model.logits(x)
        return step + 1, logits, caches, seen, is_finished, hit_end, num_tokens, written

    none, written = tf.zeros([B], tf.int32), tf.zeros([num_steps, B], tf.int32)
    state = (0, logits, caches, seen, allowed <= 0, tf.zeros([B], tf.bool), none, written)
    *_, hit_end, num_tokens, written = tf.while_loop(unfinished, write_one, state)
    return answers(tokenizer, tf.transpose(written), num_tokens, hit_end)
