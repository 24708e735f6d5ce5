"""Writing text: prefill the prompts, then decode one token a row until every row is done.

Axes: B batch, T prompt, S cache slots. Everything is graph ops, so the same function generates in
Python, inside an export, and in stock TensorFlow Serving. Other ways to write: `model/beam.py`,
`model/contrastive.py`, `model/speculative.py`.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from model import signatures
from model.samplers import (
    Options,
    first_occurrence,
    fits_choices,
    penalized,
    sample,
    uniforms,
    would_repeat,
)
from model.tokenizers import BEGIN, END, PADDING, UNKNOWN, ReversibleTokenizer

_NO_OPTIONS = Options()


def generate(
    model: keras.Model,
    tokenizer: ReversibleTokenizer,
    prompt: tf.Tensor,
    max_tokens: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
    seed: tf.Tensor,
    options: Options = _NO_OPTIONS,
) -> dict[str, tf.Tensor]:
    """Continues each prompt; inputs and outputs as `model/signatures.py` says, all (B,).

    `model` is a network of `model.catalogue.GENERATORS`: `prefill`, `decode` and a configuration
    with a `context_length` are what is asked of it.

    A row stops at the end-of-text token, after its `max_tokens`, or when the context is full. Of
    a prompt that is too long the last tokens are read, so many that the answer has room: its
    `max_tokens`, but at most half of the context. A row's text depends on its own inputs only;
    inputs of other shapes than `prompt`'s are refused.

    Of `options` only what is given is traced. Logits go through the penalties, then what may not be
    written is taken out: repeated n-grams, but not of a row with choices, and what fits none of
    them. Then the token is drawn. A text that holds one of its `stop` strings ends there, without
    it; its tokens are counted. It is looked for in the whole answer after every token. A choice is
    written by the tokens that the tokenizer gives it, at each step by their probability among those
    that fit; `max_tokens` cuts it as any text. InvalidArgumentError if the tokenizer can not write
    it.
    """
    inputs = (prompt, max_tokens, temperature, top_k, top_p, seed)
    one_for_each_prompt(prompt, dict(zip(signatures.GENERATOR_INPUTS, inputs, strict=True)))
    for name, value in options._asdict().items():
        if value is None:
            continue
        rank = 2 if name in ("stop", "choices") else 1
        if value.shape.rank != rank:
            raise ValueError(f"{name} must have rank {rank}. Received: shape {value.shape}")
        one_for_each_prompt(prompt, {name: value})
    context = model.config.context_length
    start = read_prompts(tokenizer, prompt, max_tokens, context)
    lengths, allowed, num_steps = start.lengths, start.allowed, start.num_steps
    logits, caches = model.prefill(start.tokens, lengths, start.num_slots)
    draws = uniforms(seed, context)  # (B, context): drawn whole, so no other setting moves them
    narrow = _narrowing(tokenizer, start.tokens, lengths, options)

    def choose(logits, step, written):
        logits = narrow(logits, step, written)
        return sample(
            logits, draws[:, step], temperature, top_k, top_p, options.min_p, options.typical_p
        )

    def has_stopped(written, num_tokens):
        text = text_of(tokenizer, tf.transpose(written), num_tokens)
        return first_occurrence(text, options.stop) >= 0

    written = write(
        model,
        logits,
        caches,
        lengths=lengths,
        allowed=allowed,
        num_steps=num_steps,
        choose=choose,
        has_stopped=None if options.stop is None else has_stopped,
    )
    result = answers(tokenizer, written.tokens, written.num_tokens, written.hit_end)
    if options.stop is not None:
        text = result[signatures.TEXT]
        end = first_occurrence(text, options.stop)
        size = tf.where(end < 0, tf.strings.length(text), end)
        result[signatures.TEXT] = tf.strings.substr(text, tf.zeros_like(size), size)
    return result


class Written(NamedTuple):
    """What `write` wrote, the first `num_tokens` of each row."""

    tokens: tf.Tensor  # int32 (B, steps), PADDING behind them
    num_tokens: tf.Tensor  # int32 (B,)
    hit_end: tf.Tensor  # bool (B,), whether the network ended the text
    notes: list[
        tf.Tensor
    ]  # what `note` said of each token, (B, steps, ...) each; anything behind them


def write(
    model,
    logits,
    caches,
    *,
    lengths,
    allowed,
    num_steps,
    choose,
    has_stopped=None,
    note=lambda logits, token: [],
) -> Written:
    """The loop of every way that draws one token after another.

    `logits` float32 (B, V) and `caches` are of a prefill of `lengths` int32 (B,) tokens; row b
    writes at most `allowed[b]` tokens, no row more than `num_steps`, and the cache has room for
    them all. `choose(logits, step, written (steps, B))` gives the next token int32 (B,),
    `has_stopped(written, num_tokens)` bool (B,) whether a text is done besides by END, and
    `note(logits, token)` a list of tensors (B, ...) to keep of each step.
    """
    num_slots = tf.reduce_max(tf.concat([lengths, [1]], 0)) + num_steps
    most = tf.maximum(num_steps, 1)  # the first token is chosen in front of the loop

    def write_one(step, logits, is_finished, hit_end, num_tokens, written, notes):
        token = choose(logits, step, written)  # (B,)
        ends = ~is_finished & (token == END)
        hit_end = hit_end | ends
        is_finished = is_finished | ends
        new = (tf.where(is_finished, PADDING, token), *note(logits, token))
        if notes is None:
            pads = [[0, most - 1]]
            written, *notes = (tf.pad(x[None], pads + [[0, 0]] * x.shape.rank) for x in new)
        else:
            buffers = zip((written, *notes), new, strict=True)
            written, *notes = (
                tf.tensor_scatter_nd_update(y, [[step]], x[None]) for y, x in buffers
            )
        num_tokens = num_tokens + tf.cast(~is_finished, tf.int32)
        is_finished = is_finished | (num_tokens >= allowed)
        if has_stopped is not None:
            stops = has_stopped(written, num_tokens)
            hit_end, is_finished = hit_end | stops, is_finished | stops
        return token, is_finished, hit_end, num_tokens, written, notes

    def unfinished(step, caches, token, is_finished, hit_end, num_tokens, written, notes):
        return (step < num_steps) & ~tf.reduce_all(is_finished)

    def read_and_write(step, caches, token, *state):
        # Finished rows go on in place, at most in the last slot: nobody reads them again.
        position = tf.minimum(lengths + step - 1, num_slots - 1)
        logits, caches = model.decode(token, position, caches)
        return step + 1, caches, *write_one(step, logits, *state)

    B = tf.shape(lengths)[0]
    none = tf.zeros([B], tf.int32)
    state = (allowed <= 0, tf.zeros([B], tf.bool), none, tf.zeros([most, B], tf.int32), None)
    first = write_one(0, logits, *state)
    *_, hit_end, num_tokens, written, notes = tf.while_loop(
        unfinished, read_and_write, (1, caches, *first)
    )
    written, *notes = (
        tf.transpose(x[:num_steps], [1, 0, *range(2, x.shape.rank)]) for x in (written, *notes)
    )
    return Written(written, num_tokens, hit_end, notes)


class Prompts(NamedTuple):
    """What a way to write starts from; no row writes more than `num_steps` tokens."""

    tokens: tf.Tensor  # int32 (B, T), padded on the right
    lengths: tf.Tensor  # int32 (B,), at least 1: the BEGIN
    allowed: tf.Tensor  # int32 (B,), how many tokens the answer may have
    num_steps: tf.Tensor  # int32, the most of them
    num_slots: tf.Tensor  # int32, of the cache


def read_prompts(tokenizer, prompt, max_tokens, context: int) -> Prompts:
    """Prompts as tokens, with what is left of `context` for answers, as `generate` says."""
    pieces = tokenizer(prompt)
    lengths = tf.cast(pieces.row_lengths(), tf.int32) + 1  # with the begin
    # Of a long prompt the end is kept behind the begin, with room for the answer: half of the
    # context if asked for.
    room = tf.clip_by_value(max_tokens, 1, context // 2)  # (B,)
    surplus = tf.maximum(lengths - (context - room), 0)
    lengths -= surplus
    T = tf.reduce_max(tf.concat([lengths, [1]], 0))
    tokens = tf.where(tf.range(T)[None, :] == 0, BEGIN, window(pieces, surplus - 1, T))
    allowed = tf.clip_by_value(max_tokens, 0, context - lengths)
    num_steps = tf.reduce_max(tf.concat([allowed, [0]], 0))
    return Prompts(tokens, lengths, allowed, num_steps, T + num_steps)


def window(tokens: tf.RaggedTensor, start: tf.Tensor, width) -> tf.Tensor:
    """Of each row of (B, T) the tokens from `start` int32 (B,) on: int32 (B, `width`).

    PADDING where a row has none. (To slice a ragged tensor takes hundreds of operations.)
    """
    splits = tf.cast(tokens.row_splits, tf.int32)
    index = (splits[:-1] + start)[:, None] + tf.range(width)
    is_inside = (index >= splits[:-1, None]) & (index < splits[1:, None])
    values = tf.pad(tokens.values, [[0, 1]], constant_values=PADDING)
    return tf.gather(values, tf.where(is_inside, index, splits[-1]))


def answers(tokenizer, written, num_tokens, hit_end) -> dict[str, tf.Tensor]:
    """Outputs of a generator from `written` int32 (B, steps), the first `num_tokens` of each row.

    `hit_end` bool (B,): whether the network ended the text.
    """
    return {
        signatures.TEXT: text_of(tokenizer, written, num_tokens),
        signatures.NUM_TOKENS: num_tokens,
        signatures.FINISH_REASON: tf.where(
            hit_end, signatures.FINISH_STOP, signatures.FINISH_LENGTH
        ),
    }


def one_for_each_prompt(prompt, inputs: dict[str, tf.Tensor]) -> None:
    """Refuses inputs by name whose first axis is not that of `prompt`."""
    for name, value in inputs.items():
        tf.debugging.assert_equal(
            tf.shape(value)[:1], tf.shape(prompt), f"{name} must have one value for each prompt."
        )


def without_specials(logits: tf.Tensor) -> tf.Tensor:
    """Padding, unknown and begin are never written: (B, V) with END and the pieces left."""
    index = tf.range(tf.shape(logits)[-1])
    return tf.where(index < END, tf.float32.min, logits)


def take_rows(tensors, rows):
    """The rows `rows` int32 (B,) of every tensor of a cache or a state."""
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), tensors)


def check_reads(model: keras.Model, way: str) -> None:
    if not hasattr(model, "read"):
        raise ValueError(
            f"{way} needs a network that reads several tokens at once and can go back, "
            f"as transformer_decoder. Received: {model.name}"
        )


def text_of(tokenizer, tokens, num_tokens) -> tf.Tensor:
    """Text string (B,) of `tokens` int32 (B, S), the first `num_tokens` int32 (B,) of each row."""
    return tokenizer.detokenize(tf.RaggedTensor.from_tensor(tokens, lengths=num_tokens))


def _narrowing(tokenizer, tokens, lengths, options: Options):
    """(logits (B, V), step, written (steps, B)) -> the logits of what may be written next."""
    choices = None if options.choices is None else _choices(tokenizer, options.choices)
    looks_back = (
        options.repetition_penalty,
        options.presence_penalty,
        options.frequency_penalty,
        options.no_repeat_ngram,
    )
    if choices is None and all(option is None for option in looks_back):
        return lambda logits, step, written: without_specials(logits)
    # On the right, so that every row's answer follows its prompt in the same slot.
    T = tf.shape(tokens)[1]
    moved = tf.range(T)[None, :] - (T - lengths[:, None])  # (B, T)
    prompts = tf.gather(tokens, tf.maximum(moved, 0), batch_dims=1)
    prompts = tf.where(moved < 0, PADDING, prompts)

    def narrow(logits, step, written):
        vocabulary_size, answer = tf.shape(logits)[-1], tf.transpose(written)
        text = tf.concat([prompts, answer], axis=1)
        logits = penalized(logits, text, answer, options)
        if options.no_repeat_ngram is not None:
            ngram = options.no_repeat_ngram
            if choices is not None:  # or nothing might be left to write
                ngram = tf.where(tf.reduce_any(choices != PADDING, axis=[1, 2]), 0, ngram)
            repeated = would_repeat(text, T + step, ngram, vocabulary_size)
            logits = tf.where(repeated, tf.float32.min, logits)
        if choices is not None:
            fits = fits_choices(choices, answer, step, vocabulary_size)
            logits = tf.where(fits, logits, tf.float32.min)
        return without_specials(logits)

    return narrow


def _choices(tokenizer, choices: tf.Tensor) -> tf.Tensor:
    """string (B, C) -> int32 (B, C, L) as `fits_choices` takes them."""
    shape, flat = tf.shape(choices), tf.reshape(choices, [-1])
    tokens = tokenizer(flat)
    can_write = (tokenizer.detokenize(tokens) == flat) & tf.reduce_all(tokens != UNKNOWN, axis=1)
    tf.debugging.Assert(
        tf.reduce_all(can_write),
        [
            "choices must be texts that the tokenizer can write. It can not write:",
            tf.boolean_mask(flat, ~can_write),
        ],
    )
    ends = tf.where(flat != "", END, PADDING)[:, None]
    tokens = tf.concat([tokens, ends], axis=1).to_tensor(PADDING)
    return tf.reshape(tokens, tf.concat([shape, [-1]], 0))
