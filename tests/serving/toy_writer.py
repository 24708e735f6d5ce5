"""A small SavedModel with the signatures that a writer asks for, without a network inside.

Tokens are bytes: byte 0 is id 4. The answer to a prompt tells the settings and how many tokens the
prompt had, so a test knows it beforehand (`answer_of`), and it turns to "?" where what was written
before does not come back.
"""

from pathlib import Path

import tensorflow as tf

from model import signatures as s

CONTEXT = 96
FIRST_BYTE = 4
TAIL = " 小狐狸🦊."
_FLOATS = (s.TEMPERATURE, s.TOP_P, s.MIN_P)
_PENALTIES = (s.REPETITION_PENALTY, s.PRESENCE_PENALTY, s.FREQUENCY_PENALTY)
_NEXT = {
    s.TOKENS: tf.TensorSpec([None, CONTEXT], tf.int32, s.TOKENS),
    **{
        name: tf.TensorSpec([None], tf.int32, name)
        for name in (s.NUM_PROMPT, s.NUM_TOKENS, s.MAX_TOKENS, s.TOP_K, s.SEED)
    },
    **{name: tf.TensorSpec([None], tf.float32, name) for name in (*_FLOATS, *_PENALTIES)},
}


def answer_of(prompt: str, **settings: float) -> str:
    """What the model writes after `prompt` when nothing cuts it off."""
    values = {
        s.TEMPERATURE: 1.0,
        s.TOP_K: 0,
        s.TOP_P: 1.0,
        s.SEED: 0,
        s.MIN_P: 0.0,
        s.REPETITION_PENALTY: 1.0,
        s.PRESENCE_PENALTY: 0.0,
        s.FREQUENCY_PENALTY: 0.0,
    } | settings
    shown = [
        f"{values[name]:.1f}" if name in _FLOATS + _PENALTIES else str(values[name])
        for name in (s.TEMPERATURE, s.TOP_K, s.TOP_P, s.SEED, s.MIN_P, *_PENALTIES)
    ]
    return " ".join([str(len(prompt.encode())), *shown]) + TAIL


def tokens_of(text: str) -> list[int]:
    return [byte + FIRST_BYTE for byte in text.encode()]


def _bytes(text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    sizes = tf.strings.length(text)
    width = tf.reduce_max(tf.concat([sizes, [1]], 0))
    raw = tf.io.decode_raw(text, tf.uint8, fixed_length=width)
    return tf.cast(raw, tf.int32) + FIRST_BYTE, sizes


class _Writer(tf.Module):
    def __init__(self):
        super().__init__()
        singles = [b""] * FIRST_BYTE + [bytes([byte]) for byte in range(256)]
        self.spelled = tf.constant(singles)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, s.TEXT)])
    def tokenize(self, text):
        tokens, sizes = _bytes(text)
        width = tf.shape(tokens)[1]
        place = tf.range(CONTEXT)[None] + tf.maximum(sizes - CONTEXT, 0)[:, None]
        last = tf.gather(tokens, tf.minimum(place, width - 1), batch_dims=1)
        return {s.TOKENS: tf.where(place < sizes[:, None], last, 0), s.NUM_TOKENS: sizes}

    def text_bytes(self, tokens, num_tokens):
        place = tf.range(CONTEXT)[None]
        pieces = tf.where(place < num_tokens[:, None], tf.gather(self.spelled, tokens), b"")
        return tf.strings.reduce_join(pieces, axis=1)

    @tf.function(input_signature=[_NEXT[s.TOKENS], _NEXT[s.NUM_TOKENS]])
    def detokenize(self, tokens, num_tokens):
        data = self.text_bytes(tokens, num_tokens)
        text = tf.strings.unicode_transcode(data, "UTF-8", "UTF-8", errors="replace")
        return {s.TEXT: text, s.TEXT_BYTES: data}

    @tf.function(input_signature=[_NEXT[s.TOKENS], _NEXT[s.NUM_TOKENS]])
    def detokenize_whole(self, tokens, num_tokens):
        return {s.TEXT: self.detokenize(tokens, num_tokens)[s.TEXT]}

    @tf.function(input_signature=[_NEXT[name] for name in s.NEXT_TOKENS_INPUTS])
    def next_tokens(self, tokens, num_prompt, num_tokens, max_tokens, *settings):
        shown = [
            tf.strings.as_string(x, precision=1 if x.dtype == tf.float32 else -1) for x in settings
        ]
        text = tf.strings.join([tf.strings.as_string(num_prompt), *shown], " ") + TAIL
        target, size = _bytes(text)
        first = num_tokens - num_prompt
        # What was written comes back right behind the prompt.
        place = tf.range(CONTEXT)[None]
        index = place - num_prompt[:, None]
        wanted = tf.gather(
            target, tf.clip_by_value(index, 0, tf.shape(target)[1] - 1), batch_dims=1
        )
        is_written = (index >= 0) & (place < num_tokens[:, None])
        is_sound = tf.reduce_all(~is_written | (wanted == tokens), axis=1)
        steps = tf.reduce_max(tf.concat([max_tokens, [0]], 0))
        room = tf.minimum(size - first, CONTEXT - 1 - num_tokens)
        num = tf.clip_by_value(max_tokens, 0, room)
        step = tf.range(steps)[None]
        new = tf.gather(
            target, tf.minimum(first[:, None] + step, tf.shape(target)[1] - 1), batch_dims=1
        )
        new = tf.where(is_sound[:, None], new, ord("?") + FIRST_BYTE)
        mask = step < num[:, None]
        new = tf.where(mask, new, 0)
        ends = first + num >= size
        is_full = num_tokens + num + 1 >= CONTEXT
        logprobs = tf.where(mask, -0.1 * tf.cast(first[:, None] + step + 1, tf.float32), 0.0)
        return {
            s.TOKENS: new,
            s.NUM_TOKENS: num,
            s.FINISH_REASON: tf.where(ends, "stop", tf.where(is_full, "length", "")),
            s.LOGPROBS: logprobs,
            s.TOP_TOKENS: new[..., None] + tf.range(5),
            s.TOP_LOGPROBS: logprobs[..., None] - tf.range(5.0),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, s.TEXT)])
    def score(self, text):
        """Every token is as likely as its place; the likeliest is another one at even places."""
        found = self.tokenize(text)
        place = tf.range(CONTEXT)[None]
        mask = place < found[s.NUM_TOKENS][:, None]
        logprobs = tf.where(mask, -0.5 * tf.cast(place + 1, tf.float32), 0.0)
        best = tf.where(place % 2 == 0, logprobs + 0.25, logprobs)
        tokens = tf.where(mask, found[s.TOKENS] + 1 - place % 2, 0)
        return found | {
            s.LOGPROBS: logprobs,
            s.TOP_TOKENS: tokens[..., None] + tf.range(5),
            s.TOP_LOGPROBS: best[..., None] - tf.range(5.0),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, s.TEXT)])
    def embed(self, text):
        sizes = tf.cast(tf.strings.length(text), tf.float32)
        vectors = tf.stack([sizes, tf.ones_like(sizes), tf.zeros_like(sizes)], axis=1)
        return {s.EMBEDDING: tf.math.l2_normalize(vectors, axis=1)}


def writer_model(path: Path, *, is_concatenation: bool = True) -> Path:
    module = _Writer()
    detokenize = module.detokenize if is_concatenation else module.detokenize_whole
    tf.saved_model.save(
        module,
        str(path),
        signatures={
            s.TOKENIZE: module.tokenize,
            s.DETOKENIZE: detokenize,
            s.NEXT_TOKENS: module.next_tokens,
            s.SCORE: module.score,
            s.EMBED: module.embed,
        },
    )
    return path
