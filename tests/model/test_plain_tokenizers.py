"""The ids of the graph are those of plain Python, on texts that nobody would write."""

import dataclasses

import plain_tokenizers as plain
import pytest
import tensorflow as tf
from random_texts import random_texts
from sentencepiece import sentencepiece_model_pb2

from model.config import TOKENIZER_CONFIGS
from model.tokenizers import encode, train_tokenizer, valid_utf8

CORPUS = [
    "The cat sat on the mat, and didn't move.\nThe dog ran home; it barked 12345 times!\r\n",
    "今天天气很好,我们去公园。\n猫在睡觉。漢語和臺灣的天氣預報：今天下雨。",
    "A small story about a cat, and a dog who cared. Caring about stories, the cats retold them.",
    "Straße, ΣΊΣΥΦΟΣ, Привет мир, สวัสดี, 한국어 입니다, ﾈｺ and ラーメン, émigré, naïve: 3.14",
    "aaaaaaaaaa aaa a bbbb abab 👍👍 🎉 ' ’ '' \t tabs  and   blanks",
] * 6
WORDS = sorted({word for text in CORPUS for word in text.split()})
TEXTS = random_texts(10_000, seed=0, known=WORDS)


def how(tokenizer):
    return {"form": tokenizer.normalize.form, "simplified": tokenizer.normalize.simplified}


def ngrams(tokenizer):
    config = tokenizer.config
    return lambda text: plain.ngram_ids(
        text,
        max_ngram=config.max_ngram,
        characters=range(config.min_character_ngram, config.max_character_ngram + 1),
        num_buckets=config.num_buckets,
        has_counts=config.has_counts,
        **how(tokenizer),
    )


def sentencepiece(tokenizer):
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model_proto)
    encoder = plain.SentencePiece(proto)
    return lambda text: encoder(text, tokenizer.max_tokens, **how(tokenizer))


def by_words(function, vocabulary):
    return lambda tokenizer: (
        lambda text: function(
            text, getattr(tokenizer, vocabulary), tokenizer.max_tokens, **how(tokenizer)
        )
    )


# By case: the settings, and the plain tokenizer of one that was trained.
CASES = {
    "word": ({}, by_words(plain.word_ids, "words")),
    "word-none": ({"normalization": "none"}, by_words(plain.word_ids, "words")),
    "ngram": ({"max_character_ngram": 4}, ngrams),
    "ngram-counts": (
        {"max_character_ngram": 2, "min_character_ngram": 2, "has_counts": True},
        ngrams,
    ),
    "character": ({}, by_words(plain.character_ids, "characters")),
    "character-nfkc": ({"normalization": "nfkc"}, by_words(plain.character_ids, "characters")),
    "wordpiece": ({"vocabulary_size": 300}, by_words(plain.wordpiece_ids, "pieces")),
    "sentencepiece-unigram": ({"vocabulary_size": 460}, sentencepiece),
    "sentencepiece-bpe": ({"vocabulary_size": 460, "model_type": "bpe"}, sentencepiece),
    "sentencepiece-char": (
        {"vocabulary_size": 460, "model_type": "char", "normalization": "nfkc_cf"},
        sentencepiece,
    ),
    "byte_bpe": ({"vocabulary_size": 600}, by_words(plain.byte_bpe_ids, "merges")),
    "byte_bpe-nfkc_cf": (
        {"vocabulary_size": 600, "normalization": "nfkc_cf"},
        by_words(plain.byte_bpe_ids, "merges"),
    ),
    "bytes": ({}, lambda tokenizer: lambda text: plain.bytes_ids(text, tokenizer.max_tokens)),
}


def test_every_tokenizer_is_here():
    """But those of presets, which are what KerasHub makes them."""
    assert {case.split("-")[0] for case in CASES} == set(TOKENIZER_CONFIGS) - {"preset"}


def test_bytes_that_are_not_utf8_become_the_marks_that_python_puts():
    found = valid_utf8(tf.constant(TEXTS)).numpy()
    assert found.tolist() == [text.decode("utf-8", "replace").encode() for text in TEXTS]


@pytest.mark.parametrize("case", CASES)
def test_the_graph_gives_the_ids_of_plain_python(case):
    settings, plainly = CASES[case]
    config = TOKENIZER_CONFIGS[case.split("-")[0]](**settings)
    tokenizer = train_tokenizer(CORPUS, config)
    expected_of = plainly(tokenizer)
    seen = set()
    for text, row in zip(TEXTS, encode(tokenizer, TEXTS), strict=True):
        expected = expected_of(text)
        assert row.tolist() == expected, text
        seen.update(expected)
    # The texts reach most of the vocabulary, so most of it was compared.
    assert len(seen) > 0.5 * min(tokenizer.vocabulary_size, 2_000)


def test_simplified_characters_are_those_of_plain_python():
    """On request only, and after the rest: a full-width or a compatibility form has been undone."""
    for name in ("character", "word", "byte_bpe"):
        config = TOKENIZER_CONFIGS[name](simplify=True)
        tokenizer = train_tokenizer(CORPUS, config)
        table = tokenizer.normalize.simplified
        assert table["漢"] == "汉" and table["氣"] == "气" and "猫" not in table
        simplified, as_it_is = (
            encode(tokenizer, [text])[0].tolist() for text in ("汉语的天气", "漢語的天氣")
        )
        assert simplified == as_it_is
        expected_of = CASES[name][1](tokenizer)
        texts = [t.encode() for t in CORPUS] + TEXTS[:1_000]
        rows = encode(tokenizer, texts)
        assert [row.tolist() for row in rows] == [expected_of(text) for text in texts]
        kept = train_tokenizer(CORPUS, dataclasses.replace(config, simplify=False))
        first, second = (encode(kept, [text])[0].tolist() for text in ("汉语", "漢語"))
        assert first != second
