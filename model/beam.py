"""Writing the likeliest text: beam search.

Axes: B batch, W beams, V vocabulary, S cache slots. Graph ops only, as `model/generation.py`.
"""

import keras
import tensorflow as tf

from model.generation import (
    answers,
    one_for_each_prompt,
    read_prompts,
    take_rows,
    without_specials,
)
from model.tokenizers import END, PADDING, ReversibleTokenizer


def beam_search(
    model: keras.Model,
    tokenizer: ReversibleTokenizer,
    prompt: tf.Tensor,
    max_tokens: tf.Tensor,
    length_penalty: tf.Tensor,
    num_beams: int,
) -> dict[str, tf.Tensor]:
    """The text of the highest score among `num_beams` kept at every step; nothing is drawn.

    `prompt` string (B,), `max_tokens` int32 (B,), `length_penalty` a float32 (B,), at least 0; the
    outputs are those of `generate`. A text Y of |Y| tokens, its end included, scores
    log P(Y) 6^a / (5 + |Y|)^a (Wu et al., 2016, eq. 14 without coverage): 0 is the likeliest text,
    which tends to be short, more favours longer ones. One beam and a = 0 is greedy writing.

    A text that has ended keeps its score and leaves its beam to another. A row is done when no beam
    can still reach the best ended text, however likely its rest, or when its tokens are used up;
    then beams without an end compete too, with reason "length".
    """
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1. Received: {num_beams}")
    inputs = {"max_tokens": max_tokens, "length_penalty": length_penalty}
    one_for_each_prompt(prompt, inputs)
    start = read_prompts(tokenizer, prompt, max_tokens, model.config.context_length)
    B, W, num_steps = tf.shape(start.lengths)[0], num_beams, start.num_steps
    allowed = start.allowed
    exponent = tf.maximum(length_penalty, 0.0)
    each = tf.repeat(tf.range(B), W)
    logits, caches = model.prefill(start.tokens, start.lengths, start.num_slots)
    logits, caches = take_rows(logits, each), take_rows(caches, each)  # (B W, V)
    # All beams of a row are the same at first: one of them may go on.
    is_first = tf.range(W)[None, :] == 0
    scores = tf.where(is_first, tf.zeros([B, 1]), _NEVER)  # (B, W)
    written = tf.zeros([B, W, num_steps], tf.int32)
    best = tf.fill([B], _NEVER)  # of the texts that ended
    best_text, best_size = tf.zeros([B, num_steps], tf.int32), tf.zeros([B], tf.int32)

    def penalty(size):
        return tf.pow((5.0 + tf.cast(size, tf.float32)) / 6.0, exponent)  # (B,)

    def is_open(step, scores, best):
        # The best that a beam can become: every further token certain, as many as there may be.
        bound = tf.reduce_max(scores, axis=1) / penalty(allowed)
        return (step < allowed) & (bound > best)

    def unfinished(step, logits, caches, scores, written, best, best_text, best_size):
        return tf.reduce_any(is_open(step, scores, best))

    def write_one(step, logits, caches, scores, written, best, best_text, best_size):
        vocabulary_size = tf.shape(logits)[-1]
        goes_on = is_open(step, scores, best)  # (B,)
        steps = tf.nn.log_softmax(without_specials(logits))
        total = scores[..., None] + tf.reshape(steps, [B, W, vocabulary_size])
        total = tf.reshape(total, [B, W * vocabulary_size])
        # Of twice as many no more than half are ends, so W can go on.
        values, index = tf.math.top_k(total, k=tf.minimum(2 * W, W * vocabulary_size))
        source, is_end = index // vocabulary_size, index % vocabulary_size == END  # (B, 2 W)
        # A text ends where its end is among the W likeliest ways to go on.
        may_end = is_end & (tf.range(tf.shape(values)[1])[None, :] < W)
        rank = tf.argmax(tf.where(may_end, values, tf.float32.min), axis=1, output_type=tf.int32)
        ended = tf.gather(values, rank, batch_dims=1) / penalty(step + 1)
        is_better = goes_on & tf.reduce_any(may_end, axis=1) & (ended > best)
        best = tf.where(is_better, ended, best)
        best_size = tf.where(is_better, step, best_size)
        text = tf.gather(written, tf.gather(source, rank, batch_dims=1), batch_dims=1)
        best_text = tf.where(is_better[:, None], text, best_text)  # (B, steps)
        values, rank = tf.math.top_k(tf.where(is_end, tf.float32.min, values), k=W)
        token = tf.gather(index % vocabulary_size, rank, batch_dims=1)  # (B, W)
        source = tf.gather(source, rank, batch_dims=1)
        moved = tf.gather(written, source, batch_dims=1)
        is_now = tf.range(num_steps) == step
        moved = tf.where(is_now, token[..., None], moved)
        scores = tf.where(goes_on[:, None], values, scores)
        written = tf.where(goes_on[:, None, None], moved, written)
        rows = tf.reshape(tf.range(B)[:, None] * W + source, [-1])
        # Rows that are done go on in place, at most in the last slot: nobody reads them again.
        position = tf.repeat(tf.minimum(start.lengths + step, start.num_slots - 1), W)
        logits, caches = model.decode(tf.reshape(token, [-1]), position, take_rows(caches, rows))
        return step + 1, logits, caches, scores, written, best, best_text, best_size

    state = (0, logits, caches, scores, written, best, best_text, best_size)
    *_, scores, written, best, best_text, best_size = tf.while_loop(unfinished, write_one, state)
    cut = tf.reduce_max(scores, axis=1) / penalty(allowed)
    # Only a row that used up its tokens has beams as long as that.
    hit_end = best >= cut
    longest = tf.gather(written, tf.argmax(scores, axis=1), batch_dims=1)
    text = tf.where(hit_end[:, None], best_text, longest)
    size = tf.where(hit_end, best_size, allowed)
    text = tf.where(tf.range(num_steps)[None, :] < size[:, None], text, PADDING)
    return answers(tokenizer, text, size, hit_end)


_NEVER = -1e30  # the score of a beam that is none; finite, so that sums with it stay so
