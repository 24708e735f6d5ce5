"""What a language model's export answers besides whole texts: a function for each signature.

Axes: B batch, C context length, T tokens read, V vocabulary. Names, shapes and types of inputs and
outputs are those of `model/signatures.py`. Graph ops only; each row depends on itself alone, so a
server may mix the rows of its callers.
"""

import keras
import tensorflow as tf

from model import signatures as s
from model.generation import text_of, without_specials, write
from model.samplers import Options, penalized, sample, uniforms
from model.tokenizers import BEGIN, PADDING, UNKNOWN, ReversibleTokenizer


def tokenize(tokenizer: ReversibleTokenizer, text: tf.Tensor, context: int) -> dict:
    """The last `context` tokens of each text string (B,), and how many it has."""
    ragged = tokenizer(text)
    num_tokens = tf.cast(ragged.row_lengths(), tf.int32)
    last = ragged[:, -context:]
    return {s.TOKENS: last.to_tensor(PADDING, shape=[None, context]), s.NUM_TOKENS: num_tokens}


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


def _likeliest(log_probabilities: tf.Tensor) -> list[tf.Tensor]:
    """Tokens int32 and log-probabilities float32 (..., NUM_TOP) of float32 (..., V)."""
    size = log_probabilities.shape[-1]
    best, tokens = tf.math.top_k(log_probabilities, k=min(s.NUM_TOP, size))
    return [tokens, best]


def _in_vocabulary(tokens: tf.Tensor, vocabulary_size: int) -> tf.Tensor:
    # A lookup that fails would fail the batch, and with it other callers.
    return tf.where((tokens >= 0) & (tokens < vocabulary_size), tokens, UNKNOWN)
