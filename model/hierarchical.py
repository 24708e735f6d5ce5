"""A document as a sequence of sentences. Axes: B batch, T steps, M sentences, S words in each."""

import keras
import tensorflow as tf

from model.cells import recurrence
from model.config import HierarchicalConfig
from model.dropout import Dropout
from model.pooling import AttentionPooling


class Hierarchical(keras.Model):
    """Hierarchical attention network (Yang et al., 2016): words, sentences, a document.

    A bidirectional GRU reads the words of each sentence, and attention makes one vector of them; a
    second one reads the sentences likewise. All sentences are read side by side, so a long text
    takes as many steps as a sentence has words and a document sentences, not as many as it has
    words.

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). A token id says
    nothing of where a sentence ends: the text is cut every `sentence_tokens` tokens, counted from
    its beginning. Sentences of padding alone take no part; a text without any token is zeros.
    """

    def __init__(self, config: HierarchicalConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.config = config
        self.embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self.words, self.sentences = (
            keras.layers.Bidirectional(recurrence("gru", config.units, name=name), name=name)
            for name in ("words", "sentences")
        )
        self.word_attention = AttentionPooling(name="word_attention")
        self.sentence_attention = AttentionPooling(name="sentence_attention")
        self.dropout = Dropout(config.dropout, config.dropout_kind, name="dropout")
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")

    def call(self, tokens, training=False):
        S, T = self.config.sentence_tokens, tf.shape(tokens)[1]
        M = tf.maximum((T + S - 1) // S, 1)
        words = tf.reshape(tf.pad(tokens, [[0, 0], [0, M * S - T]]), [-1, S])  # (B * M, S)
        is_word = words != 0
        x = self.dropout(self.embedding(words), training=training)
        x = self.words(x, mask=is_word, training=training)
        x = self.word_attention(x, is_word)  # (B * M, 2 * units)
        x = tf.reshape(self.dropout(x, training=training), [-1, M, 2 * self.config.units])
        is_sentence = tf.reduce_any(tf.reshape(is_word, [-1, M, S]), axis=2)  # (B, M)
        x = self.sentences(x, mask=is_sentence, training=training)
        x = self.sentence_attention(x, is_sentence)
        return self.head(self.dropout(x, training=training))
