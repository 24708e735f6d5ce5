"""What a language model's export answers besides whole texts: a function for each signature.

Axes: B batch, C context length, T tokens read, D width, V vocabulary. Names, shapes and types of
inputs and outputs are those of `model/signatures.py`. Graph ops only; each row depends on itself
alone, so a server may mix the rows of its callers.
"""

import keras
import tensorflow as tf

from model import signatures as s
from model.generation import text_of, window, without_specials, write
from model.samplers import Options, penalized, sample, uniforms
from model.tokenizers import BEGIN, PADDING, UNKNOWN, ReversibleTokenizer

_SCORED_AT_ONCE = 256  # tokens, so that their logits stay few


def tokenize(tokenizer: ReversibleTokenizer, text: tf.Tensor, context: int) -> dict:
    """The last `context` tokens of each text string (B,), and how many it has."""
    ragged = tokenizer(text)
    num_tokens = tf.cast(ragged.row_lengths(), tf.int32)
    start = tf.maximum(num_tokens - context, 0)
    return {s.TOKENS: window(ragged, start, context), s.NUM_TOKENS: num_tokens}


def detokenize(tokenizer: ReversibleTokenizer, tokens: tf.Tensor, num_tokens: tf.Tensor) -> dict:
    """Text string (B,) of the first `num_tokens` of each row; padding writes nothing.

    With it its bytes, from a tokenizer whose texts are those of its tokens one after another.
    """
    num_tokens = tf.clip_by_value(num_tokens, 0, tf.shape(tokens)[1])
    tokens = _in_vocabulary(tokens, tokenizer.vocabulary_size)
    answer = {s.TEXT: text_of(tokenizer, tokens, num_tokens)}
    if hasattr(tokenizer, "join"):
        rows = tf.RaggedTensor.from_tensor(tokens, lengths=num_tokens)
        answer[s.TEXT_BYTES] = tokenizer.join(rows)
    return answer


def next_tokens(
    model: keras.Model,
    tokens: tf.Tensor,
    num_prompt: tf.Tensor,
    num_tokens: tf.Tensor,
    max_tokens: tf.Tensor,
    temperature: tf.Tensor,
    top_k: tf.Tensor,
    top_p: tf.Tensor,
    seed: tf.Tensor,
    min_p: tf.Tensor,
    repetition_penalty: tf.Tensor,
    presence_penalty: tf.Tensor,
    frequency_penalty: tf.Tensor,
) -> dict:
    """The tokens that follow `tokens` int32 (B, C): a prompt and what was written since.

    So many were written already, `num_tokens` - `num_prompt`, that the next random number of the
    seed is that one: a text asked for in pieces is the text of `model.generation.generate`, whose
    options the other inputs are. A text of C - 1 tokens fills the context, begin included. Numbers
    out of range act as the nearest that makes sense, an unknown token as UNKNOWN.
    """
    C, V = model.config.context_length, model.vocabulary_size
    num_tokens = tf.clip_by_value(num_tokens, 0, C)
    num_prompt = tf.clip_by_value(num_prompt, 0, num_tokens)
    place = tf.range(C)[None, :]
    tokens = tf.where(place < num_tokens[:, None], _in_vocabulary(tokens, V), PADDING)
    lengths = tf.minimum(num_tokens, C - 1) + 1  # with the begin
    asked = tf.clip_by_value(max_tokens, 0, C)
    allowed = tf.minimum(asked, C - lengths)
    num_steps = tf.reduce_max(tf.concat([allowed, [0]], 0))
    T = tf.reduce_max(tf.concat([lengths, [1]], 0))
    read = tf.pad(tokens[:, : T - 1], [[0, 0], [1, 0]], constant_values=BEGIN)
    logits, caches = model.prefill(read, lengths, T + num_steps)
    draws, first = uniforms(seed, C), num_tokens - num_prompt
    penalties = Options(
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )
    off = (repetition_penalty == 1.0) & (presence_penalty == 0.0) & (frequency_penalty == 0.0)
    is_penalized = ~tf.reduce_all(off)
    answer = tf.where(place >= num_prompt[:, None], tokens, PADDING)

    def choose(logits, step, written):
        def lowered():
            new = tf.transpose(written)
            text, own = (tf.concat([part, new], axis=1) for part in (tokens, answer))
            return penalized(logits, text, own, penalties)

        logits = tf.cond(is_penalized, lowered, lambda: logits)
        uniform = tf.gather(draws, tf.minimum(first + step, C - 1), batch_dims=1)
        return sample(without_specials(logits), uniform, temperature, top_k, top_p, min_p)

    def note(logits, token):
        everything = tf.nn.log_softmax(logits)
        return [tf.gather(everything, token, batch_dims=1), *_likeliest(everything)]

    written = write(
        model,
        logits,
        caches,
        lengths=lengths,
        allowed=allowed,
        num_steps=num_steps,
        choose=choose,
        note=note,
    )
    # As wide as was asked for: no row's shape depends on how much room another one has.
    missing = tf.reduce_max(tf.concat([asked, [0]], 0)) - num_steps
    is_written = tf.range(num_steps) < written.num_tokens[:, None]  # (B, steps)
    notes = [
        tf.where(is_written if x.shape.rank == 2 else is_written[..., None], x, tf.zeros_like(x))
        for x in written.notes
    ]
    outputs = [
        tf.pad(x, [[0, 0], [0, missing]] + [[0, 0]] * (x.shape.rank - 2))
        for x in (written.tokens, *notes)
    ]
    is_full = lengths + written.num_tokens >= C
    reason = tf.where(is_full, s.FINISH_LENGTH, s.FINISH_NOT)
    return {
        s.TOKENS: outputs[0],
        s.NUM_TOKENS: written.num_tokens,
        s.FINISH_REASON: tf.where(written.hit_end, s.FINISH_STOP, reason),
        s.LOGPROBS: outputs[1],
        s.TOP_TOKENS: outputs[2],
        s.TOP_LOGPROBS: outputs[3],
    }


def score(model: keras.Model, tokenizer: ReversibleTokenizer, text: tf.Tensor) -> dict:
    """How likely each token of a text is after those before it, and what is likeliest there.

    Of a text of more than C tokens the last C are scored, as if it began there. Zeros behind them.
    """
    C = model.config.context_length
    answer = tokenize(tokenizer, text, C)
    counted = tf.minimum(answer[s.NUM_TOKENS], C)
    T = tf.reduce_max(tf.concat([counted, [1]], 0))
    tokens = answer[s.TOKENS][:, :T]
    read = tf.pad(tokens[:, :-1], [[0, 0], [1, 0]], constant_values=BEGIN)
    # All logits at once would be B T V numbers, more than all that is said of them.
    has_states = hasattr(model, "states")
    x = model.states(read) if has_states else model(read)
    B, N = tf.shape(x)[0], tf.size(tokens)
    size = tf.clip_by_value(N, 1, _SCORED_AT_ONCE)
    pieces = -(-N // size)
    x, own = (
        tf.reshape(
            tf.pad(tf.reshape(y, [N, *tail]), [[0, pieces * size - N]] + [[0, 0]] * len(tail)),
            [pieces, size, *tail],
        )
        for y, tail in ((x, [x.shape[-1]]), (tokens, []))
    )

    def score_piece(piece):
        x, own = piece
        everything = tf.nn.log_softmax(model.logits(x) if has_states else x)  # (size, V)
        return (tf.gather(everything, own, batch_dims=1), *_likeliest(everything))

    kinds = (tf.float32, tf.int32, tf.float32)
    found = tf.map_fn(score_piece, (x, own), fn_output_signature=kinds, parallel_iterations=1)
    for name, y in zip((s.LOGPROBS, s.TOP_TOKENS, s.TOP_LOGPROBS), found, strict=True):
        tail = y.shape[2:]
        y = tf.reshape(tf.reshape(y, [pieces * size, *tail])[:N], [B, T, *tail])
        is_token = tf.reshape(tf.range(T) < counted[:, None], [B, T] + [1] * len(tail))
        y = tf.where(is_token, y, tf.zeros_like(y))
        answer[name] = tf.pad(y, [[0, 0], [0, C - T]] + [[0, 0]] * len(tail))
    return answer


def embed(model: keras.Model, tokenizer: ReversibleTokenizer, text: tf.Tensor) -> dict:
    """The mean of the last hidden states over a text and the begin in front, of length 1.

    Of a text that does not fit the context the end is read. An empty text has an embedding too.
    """
    answer = tokenize(tokenizer, text, model.config.context_length - 1)
    lengths = tf.minimum(answer[s.NUM_TOKENS], model.config.context_length - 1) + 1
    T = tf.reduce_max(tf.concat([lengths, [1]], 0))
    read = tf.pad(answer[s.TOKENS][:, : T - 1], [[0, 0], [1, 0]], constant_values=BEGIN)
    x = tf.cast(model.embeddings_of(model.states(read)), tf.float32)  # (B, T, D)
    is_token = tf.cast(tf.range(T) < lengths[:, None], tf.float32)
    return {s.EMBEDDING: tf.math.l2_normalize(tf.einsum("btd,bt->bd", x, is_token), axis=-1)}


def prefill(model: keras.Model, tokens: tf.Tensor, num_tokens: tf.Tensor) -> dict:
    """Reads the first `num_tokens` of `tokens` int32 (B, T) into an empty cache of T slots."""
    T = tf.shape(tokens)[1]
    lengths = tf.clip_by_value(num_tokens, 1, T)
    logits, caches = model.prefill(_in_vocabulary(tokens, model.vocabulary_size), lengths, T)
    return {s.LOGITS: logits, **_named(caches)}


def decode(
    model: keras.Model, tokens: tf.Tensor, num_tokens: tf.Tensor, position: tf.Tensor, *cache
) -> dict:
    """Reads more tokens of each row into its cache, the tensors of `cache_names` in order.

    The first `num_tokens` of `tokens` int32 (B, T), to stand at `position` and behind: one to
    write a text, some to go on with a prompt. No row may end behind the last slot.
    """
    caches = list(zip(cache[::2], cache[1::2], strict=True))
    num_slots, T = tf.shape(cache[0])[2], tf.shape(tokens)[1]
    last = tf.clip_by_value(num_tokens, 1, T) - 1
    # Padding repeats a row's last token in its place, which writes the same once more.
    index = tf.minimum(tf.range(T), last[:, None])  # (B, T)
    tokens = tf.gather(_in_vocabulary(tokens, model.vocabulary_size), index, batch_dims=1)
    place = tf.clip_by_value(position[:, None] + index, 0, num_slots - 1)
    x, caches = model.read(tokens, place, caches)
    x = tf.gather(x, last, axis=1, batch_dims=1)
    return {s.LOGITS: model.logits(x), **_named(caches)}


def _named(caches) -> dict:
    tensors = [tensor for pair in caches for tensor in pair]
    return dict(zip(s.cache_names(len(caches)), tensors, strict=True))


def _likeliest(log_probabilities: tf.Tensor) -> list[tf.Tensor]:
    """Tokens int32 and log-probabilities float32 (..., NUM_TOP) of float32 (..., V)."""
    size = log_probabilities.shape[-1]
    best, tokens = tf.math.top_k(log_probabilities, k=min(s.NUM_TOP, size))
    return [tokens, best]


def _in_vocabulary(tokens: tf.Tensor, vocabulary_size: int) -> tf.Tensor:
    # A lookup that fails would fail the batch, and with it other callers.
    return tf.where((tokens >= 0) & (tokens < vocabulary_size), tokens, UNKNOWN)
