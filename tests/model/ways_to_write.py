"""What tests of ways to write share: letters as tokens, and networks that are tables."""

from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from model.config import SentencePieceTokenizerConfig
from model.signatures import FINISH_REASON, NUM_TOKENS, TEXT
from model.tokenizers import END, train_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 16


def letters_tokenizer():
    """One token a letter, so a text of n letters is n tokens."""
    config = SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100)
    return train_tokenizer([LETTERS] * 3, config)


def rows_of(answer):
    """Outputs of a generator as one (text, num_tokens, reason) for each row."""
    columns = [answer[name].numpy().tolist() for name in (TEXT, NUM_TOKENS, FINISH_REASON)]
    return [(text.decode(), n, reason.decode()) for text, n, reason in zip(*columns, strict=True)]


class Bigrams:
    """A network whose next token follows from the last one: probabilities of `letters` and END.

    `rows` has a row for each letter, then one for the beginning: (L + 1, L + 1), END last.
    """

    def __init__(self, tokenizer, letters, rows):
        self.letters = letters
        self.ids = [*tokenizer(tf.constant([letters])).to_list()[0], END]
        self.vocabulary_size = tokenizer.vocabulary_size
        table = np.full([self.vocabulary_size] * 2, -60.0, np.float32)
        table[:, self.ids] = np.log(rows[-1])  # after anything else, BEGIN too
        for token, row in zip(self.ids[:-1], rows, strict=False):
            table[token, self.ids] = np.log(row)
        self.table, self.rows = tf.constant(table), rows
        self.config = SimpleNamespace(context_length=CONTEXT)

    def log_probability(self, text, ends=True):
        """Of `text` after the beginning, its end included."""
        places = [self.letters.index(letter) for letter in text] + [len(self.letters)] * ends
        return sum(np.log(self.rows[a][b]) for a, b in zip([-1, *places], places, strict=False))

    def prefill(self, tokens, lengths, num_slots):
        last = tf.gather(tokens, lengths - 1, axis=1, batch_dims=1)
        return tf.gather(self.table, last), lengths

    def decode(self, token, position, cache):
        return tf.gather(self.table, token), cache

    # As a network that reads several tokens at once; its hidden state is the token.
    def empty_cache(self, batch_size, num_slots):
        return tf.zeros([batch_size], tf.int32)

    def read(self, tokens, position, cache):
        return tokens, cache

    def logits(self, tokens):
        return tf.gather(self.table, tokens)
