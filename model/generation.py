"""Writing text: prefill the prompts, then decode one token a row until every row is done.

Axes: B batch, S cache slots. Everything is graph ops, so the same function generates in Python,
inside an export, and in stock TensorFlow Serving.
"""

import keras
import tensorflow as tf

from model import signatures
from model.samplers import sample, uniforms
from model.tokenizers import BEGIN, END, PADDING, ReversibleTokenizer


def generate(
    model: keras.Model,
    tokenizer: ReversibleTokenizer,
    prompt: tf.Tensor,
    max_tokens: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
    seed: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Continues each prompt; inputs and outputs as `model/signatures.py` says, all (B,).

    `model` is a network of `model.catalogue.GENERATORS`: `prefill`, `decode` and a configuration
    with a `context_length` are what is asked of it.

    A row stops at the end-of-text token, after its `max_tokens`, or when the context is full. Of
    a prompt that is too long the last tokens are read, so many that the answer has room: its
    `max_tokens`, but at most half of the context. A row's text depends on its own inputs only;
    inputs of other shapes than `prompt`'s are refused.
    """
    for name, value in zip(
        signatures.GENERATOR_INPUTS,
        (prompt, max_tokens, temperature, top_k, top_p, seed),
        strict=True,
    ):
        tf.debugging.assert_equal(
            tf.shape(value), tf.shape(prompt), f"{name} must have one value for each prompt."
        )
    context = model.config.context_length
    tokens = tokenizer(prompt)
    tokens = tf.concat([tf.fill([tokens.nrows(), 1], BEGIN), tokens], axis=1)
    # Of a long prompt the end is kept, with room for the answer: half of the context if asked for.
    room = tf.clip_by_value(max_tokens, 1, context // 2)  # (B,)
    surplus = tf.maximum(tokens.row_lengths() - tf.cast(context - room, tf.int64), 0)
    index = tf.ragged.range(surplus, tokens.row_lengths())
    tokens = tf.gather(tokens, index, batch_dims=1)
    lengths = tf.cast(tokens.row_lengths(), tf.int32)  # (B,), at least 1: the BEGIN
    allowed = tf.clip_by_value(max_tokens, 0, context - lengths)  # (B,)
    num_steps = tf.reduce_max(tf.concat([allowed, [0]], 0))
    num_slots = tf.reduce_max(tf.concat([lengths, [1]], 0)) + num_steps
    logits, caches = model.prefill(tokens.to_tensor(PADDING), lengths, num_slots)
    draws = uniforms(seed, context)  # (B, context): drawn whole, so no other setting moves them
    B = tf.shape(lengths)[0]
    written = tf.zeros([num_steps, B], tf.int32)  # an empty TensorArray could not be stacked

    def unfinished(step, logits, caches, is_finished, hit_end, num_tokens, written):
        return (step < num_steps) & ~tf.reduce_all(is_finished)

    def write_one(step, logits, caches, is_finished, hit_end, num_tokens, written):
        logits = _without_specials(logits)
        token = sample(logits, draws[:, step], temperature, top_k, top_p)  # (B,)
        ends = ~is_finished & (token == END)
        hit_end = hit_end | ends
        is_finished = is_finished | ends
        written = tf.tensor_scatter_nd_update(
            written, [[step]], tf.where(is_finished, PADDING, token)[None]
        )
        num_tokens = num_tokens + tf.cast(~is_finished, tf.int32)
        is_finished = is_finished | (num_tokens >= allowed)
        # Finished rows go on in place, at most in the last slot: nobody reads them again.
        position = tf.minimum(lengths + step, num_slots - 1)
        logits, caches = model.decode(token, position, caches)
        return step + 1, logits, caches, is_finished, hit_end, num_tokens, written

    none = tf.zeros([B], tf.int32)
    start = (0, logits, caches, allowed <= 0, tf.zeros([B], tf.bool), none, written)
    *_, hit_end, num_tokens, written = tf.while_loop(unfinished, write_one, start)
    answer = tf.RaggedTensor.from_tensor(tf.transpose(written), lengths=num_tokens)
    return {
        signatures.TEXT: tokenizer.detokenize(answer),
        signatures.NUM_TOKENS: num_tokens,
        signatures.FINISH_REASON: tf.where(
            hit_end, signatures.FINISH_STOP, signatures.FINISH_LENGTH
        ),
    }


def _without_specials(logits: tf.Tensor) -> tf.Tensor:
    """Padding, unknown and begin are never written: (B, V) with END and the pieces left."""
    index = tf.range(tf.shape(logits)[-1])
    return tf.where(index < END, tf.float32.min, logits)
