"""Writing with a smaller network that guesses and a larger one that decides.

Axes: B batch, G guesses, S cache slots, V vocabulary. Graph ops only, as `model/generation.py`.
"""

import keras
import tensorflow as tf

from model.generation import (
    answers,
    check_reads,
    one_for_each_prompt,
    read_prompts,
    without_specials,
)
from model.samplers import pick, probabilities, uniforms
from model.tokenizers import END, PADDING, ReversibleTokenizer


def speculate(
    model: keras.Model,
    draft: keras.Model,
    tokenizer: ReversibleTokenizer,
    prompt: tf.Tensor,
    max_tokens: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
    seed: tf.Tensor,
    num_guesses: int = 4,
) -> dict[str, tf.Tensor]:
    """What `generate` would write with `model`, in fewer calls of it.

    Leviathan et al. (2023), algorithm 1.

    Inputs and outputs are those of `generate`. At temperature 0 the text is the same, but for near
    ties that rounding turns. Else it is another draw from the same distribution: `draft` proposes
    `num_guesses` tokens from its probabilities q, `model` reads all of them at once and keeps each
    with probability min(1, p / q), and the first it does not keep is drawn from max(p - q, 0). If
    it keeps all of them it adds one of its own.

    Both networks have `read`, one vocabulary and one context. Numbers are drawn for each place of
    the answer from the row's seed, three a place, so a row does not depend on those beside it.
    """
    check_reads(model, "speculative decoding")
    check_reads(draft, "speculative decoding")
    if draft.vocabulary_size != model.vocabulary_size:
        raise ValueError(
            "the draft must have the vocabulary of the model that it guesses for: "
            f"{model.vocabulary_size} tokens. Received: {draft.vocabulary_size}"
        )
    context = model.config.context_length
    if draft.config.context_length < context:
        raise ValueError(
            f"the draft's context_length must be at least the model's, {context}. "
            f"Received: {draft.config.context_length}"
        )
    if num_guesses < 1:
        raise ValueError(f"num_guesses must be at least 1. Received: {num_guesses}")
    inputs = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k}
    one_for_each_prompt(prompt, inputs | {"top_p": top_p, "seed": seed})
    settings = (temperature, top_k, top_p)
    start = read_prompts(tokenizer, prompt, max_tokens, context)
    lengths, allowed, G = start.lengths, start.allowed, num_guesses
    B, num_slots = tf.shape(lengths)[0], start.num_slots + G + 1
    text = tf.pad(start.tokens, [[0, 0], [0, num_slots - tf.shape(start.tokens)[1]]])
    _, caches = model.prefill(start.tokens, lengths, num_slots)
    _, draft_caches = draft.prefill(start.tokens, lengths, num_slots)
    draws = tf.reshape(uniforms(seed, 3 * context), [B, context, 3])

    def unfinished(text, num_tokens, is_finished, hit_end, caches, draft_caches):
        return ~tf.reduce_all(is_finished)

    def write_some(text, num_tokens, is_finished, hit_end, caches, draft_caches):
        # What stands last has been read by none, or is read again to the same effect.
        last = lengths + num_tokens - 1  # (B,)
        place = tf.minimum(num_tokens[:, None] + tf.range(G + 1), context - 1)
        guess_draw, keep_draw, own_draw = tf.unstack(
            tf.gather(draws, place, batch_dims=1), axis=2
        )  # (B, G + 1) each
        # Two at first: the last guess of the round before may be unread.
        position = tf.maximum(tf.stack([last - 1, last], axis=1), 0)
        tokens = tf.gather(text, position, batch_dims=1)
        guesses, their_probabilities = [], []
        for i in range(G):
            x, draft_caches = draft.read(tokens, position, draft_caches)
            logits = without_specials(draft.logits(x[:, -1:])[:, 0])
            their_probabilities.append(probabilities(logits, *settings))
            guesses.append(pick(their_probabilities[-1], guess_draw[:, i]))
            tokens, position = guesses[-1][:, None], last[:, None] + i + 1
        guess = tf.stack(guesses, axis=1)  # (B, G)
        q = tf.stack(their_probabilities, axis=1)  # (B, G, V)
        position = last[:, None] + tf.range(G + 1)
        tokens = tf.concat([tf.gather(text, last[:, None], batch_dims=1), guess], axis=1)
        x, caches = model.read(tokens, position, caches)
        p = _each_place(model.logits(x), settings)  # (B, G + 1, V)
        p_guess, q_guess = (
            tf.gather(values[:, :G], guess[..., None], batch_dims=2)[..., 0] for values in (p, q)
        )
        is_kept = keep_draw[:, :G] * q_guess < p_guess
        num_kept = tf.reduce_sum(tf.math.cumprod(tf.cast(is_kept, tf.int32), axis=1), axis=1)
        p_next = tf.gather(p, num_kept, batch_dims=1)  # (B, V)
        q_next = tf.gather(tf.pad(q, [[0, 0], [0, 1], [0, 0]]), num_kept, batch_dims=1)
        rest = tf.maximum(p_next - q_next, 0.0)
        # By rounding nothing may be left of a guess that was not kept.
        rest = tf.where(tf.reduce_any(rest > 0, axis=1, keepdims=True), rest, p_next)
        own = pick(rest, tf.gather(own_draw, num_kept, batch_dims=1))
        index = tf.range(G + 1)[None, :]
        new = tf.where(index < num_kept[:, None], tf.pad(guess, [[0, 0], [0, 1]]), own[:, None])
        is_end = (index <= num_kept[:, None]) & (new == END)
        end = tf.reduce_min(tf.where(is_end, index, G + 1), axis=1)
        room = tf.where(is_finished, 0, allowed - num_tokens)
        taken = tf.minimum(tf.minimum(num_kept + 1, end), room)  # (B,)
        new = tf.where(index < taken[:, None], new, PADDING)
        row = tf.broadcast_to(tf.range(B)[:, None], tf.shape(new))
        text = tf.tensor_scatter_nd_update(text, tf.stack([row, position + 1], axis=-1), new)
        num_tokens = num_tokens + taken
        hit_end = hit_end | ((end <= num_kept) & (end < room))
        is_finished = is_finished | hit_end | (num_tokens >= allowed)
        return text, num_tokens, is_finished, hit_end, caches, draft_caches

    none = tf.zeros([B], tf.int32)
    state = (text, none, allowed <= 0, tf.zeros([B], tf.bool), caches, draft_caches)
    text, num_tokens, _, hit_end, *_ = tf.while_loop(unfinished, write_some, state)
    index = lengths[:, None] + tf.range(start.num_steps)
    return answers(tokenizer, tf.gather(text, index, batch_dims=1), num_tokens, hit_end)


def _each_place(logits, settings):
    """The probabilities of logits (B, T, V) by settings (B,): float32 (B, T, V)."""
    (B, T), V = tf.unstack(tf.shape(logits)[:2]), logits.shape[-1]
    flat = without_specials(tf.reshape(logits, [B * T, V]))
    settings = [tf.repeat(setting, T) for setting in settings]
    return tf.reshape(probabilities(flat, *settings), [B, T, V])
