import gc

import numpy as np
import pytest
import tensorflow as tf

from model.config import (
    MODEL_CONFIGS,
    TOKENIZER_CONFIGS,
    NgramTokenizerConfig,
    SentencePieceTokenizerConfig,
    WordTokenizerConfig,
)
from model.tokenizers import (
    BEGIN,
    END,
    TOKENIZERS,
    UNKNOWN,
    NgramTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
    encode,
    load_tokenizer,
    split_words,
    train_tokenizer,
)

CORPUS = [
    "The cat sat on the mat.\nThe dog ran home.\r\n",
    "今天天气很好,我们去公园。\n猫在睡觉。",
    "A small story about a cat, and a dog who didn't care.",
] * 10
TEXTS = ["The cat ran home.", "", "猫在公园 睡觉", "zebra 😀 quiz", "the cat", b"cut \xe7\x8c half"]
MODEL_TYPES = ("unigram", "bpe", "char")


def words_of(*texts):
    return [[word.decode() for word in row] for row in split_words(tf.constant(texts)).to_list()]


def ids(tokenizer, *texts):
    return tokenizer(tf.constant(texts, tf.string)).to_list()


def restored(tokenizer, *texts):
    tokens = tokenizer(tf.constant(texts, tf.string))
    return [text.decode() for text in tokenizer.detokenize(tokens).numpy()]


@pytest.fixture(scope="module")
def pieces():
    """One SentencePiece tokenizer of each type."""
    return {
        kind: train_tokenizer(
            CORPUS, SentencePieceTokenizerConfig(model_type=kind, vocabulary_size=340)
        )
        for kind in MODEL_TYPES
    }


@pytest.fixture(params=("word", "ngram", *MODEL_TYPES))
def any_tokenizer(request, pieces):
    """(config, tokenizer) of every kind."""
    if request.param in pieces:
        config = SentencePieceTokenizerConfig(model_type=request.param, vocabulary_size=340)
        return config, pieces[request.param]
    config = TOKENIZER_CONFIGS[request.param]()
    return config, train_tokenizer(CORPUS, config)


# Words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The quick, brown FOX.", ["the", "quick", ",", "brown", "fox", "."]),
        ("今天很好。", ["今", "天", "很", "好", "。"]),
        ("iPhone手机OK!", ["iphone", "手", "机", "ok", "!"]),
        ("don't stop", ["don't", "stop"]),
        ("3.14-a_b", ["3", ".", "14", "-", "a", "_", "b"]),
        ("ＡＢＣ１２!", ["abc12", "!"]),  # full width
        ("good😀👍film", ["good", "😀", "👍", "film"]),
        ("สวัสดี", list("สวัสดี")),
        ("ラーメン ﾈｺ", ["ラ", "ー", "メ", "ン", "ネ", "コ"]),  # half width becomes full width
        ("한국어 입니다", ["한국어", "입니다"]),  # spaced, so whole words
        ("Straße", ["strasse"]),  # case folding, not lower case
        ("e\u0301te\u0301", ["été"]),  # composed
        ("a\u3000b\u00a0c\td\n e", ["a", "b", "c", "d", "e"]),
        ("  ", []),
        ("", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == [words]


def test_bytes_that_are_not_utf8_become_one_mark_and_harm_no_neighbour():
    assert words_of(b"ab\xffcd", b"fine") == [["ab", "\ufffd", "cd"], ["fine"]]


# Word vocabulary ----------------------------------------------------------------------------------


def test_the_vocabulary_is_by_count_then_alphabet_and_rare_words_stay_out():
    config = WordTokenizerConfig(min_count=2)
    tokenizer = WordTokenizer.train(["b b b a a", "C c d", "a b 好 好"], config)
    # b 4, a 3, then c and 好 with 2 each, d only once.
    assert tokenizer.words == ["b", "a", "c", "好"]
    assert tokenizer.vocabulary_size == 6
    assert ids(tokenizer, "a b C 好 d e", "") == [[3, 2, 4, 5, UNKNOWN, UNKNOWN], []]


def test_the_order_of_the_texts_does_not_decide_ties():
    texts = ["x y z", "z y x w w w"]
    config = WordTokenizerConfig(min_count=1)
    forward, backward = WordTokenizer.train(texts, config), WordTokenizer.train(texts[::-1], config)
    assert forward.words == backward.words == ["w", "x", "y", "z"]


def test_the_vocabulary_and_the_text_are_cut():
    config = WordTokenizerConfig(vocabulary_size=4, min_count=1, max_tokens=3)
    tokenizer = WordTokenizer.train(["a a a b b c"], config)
    assert (tokenizer.words, tokenizer.vocabulary_size) == (["a", "b"], 4)
    assert ids(tokenizer, "b a c a a", "a") == [[3, 2, UNKNOWN], [2]]


# N-grams ------------------------------------------------------------------------------------------


def test_ngram_ids_are_those_that_saved_weights_were_trained_with():
    """Weights are rows by hash: a change of any id makes every earlier export answer noise."""
    words = NgramTokenizer(NgramTokenizerConfig(max_ngram=2, num_buckets=2**20))
    assert ids(words, "Good film", "好看", "") == [
        [231777, 365913, 646425],
        [360763, 847389, 971081],
        [],
    ]
    letters = NgramTokenizer(
        NgramTokenizerConfig(max_ngram=1, max_character_ngram=4, num_buckets=2**20)
    )
    assert ids(letters, "好看", "no") == [
        [421985, 494804, 847389, 971081],
        [13735, 227906, 544145, 996960],
    ]


def test_a_text_is_the_set_of_its_ngrams():
    tokenizer = NgramTokenizer(NgramTokenizerConfig(max_ngram=1))
    (once, twice) = ids(tokenizer, "good film", "film good film good good")
    assert once == twice and len(once) == 2
    assert once == sorted(once)


def test_ngrams_count_up_to_their_longest():
    tokenizer = NgramTokenizer(NgramTokenizerConfig(max_ngram=3, num_buckets=2**30))
    assert len(ids(tokenizer, "a b c d")[0]) == 4 + 3 + 2


def test_word_order_matters_from_two_words_on():
    one, two = (NgramTokenizer(NgramTokenizerConfig(max_ngram=n)) for n in (1, 2))
    assert ids(one, "not good") == ids(one, "good not")
    assert ids(two, "not good") != ids(two, "good not")


def test_ngrams_do_not_cross_from_one_text_into_the_next():
    tokenizer = NgramTokenizer(NgramTokenizerConfig(max_ngram=2, max_character_ngram=4))
    texts = ["one two", "", "three", "four five six", "two"]
    assert ids(tokenizer, *texts) == [ids(tokenizer, text)[0] for text in texts]


def test_pieces_of_words_are_no_words():
    """`<a>` the piece and a text that spells it out must not share a weight."""
    config = NgramTokenizerConfig(
        max_ngram=1, min_character_ngram=2, max_character_ngram=2, num_buckets=2**30
    )
    tokenizer = NgramTokenizer(config)
    (whole,) = ids(tokenizer, "abcd")
    assert len(whole) == 1 + 5  # abcd; <a ab bc cd d>
    assert not set(whole) & set(
        ids(NgramTokenizer(NgramTokenizerConfig(max_ngram=1, num_buckets=2**30)), "ab bc cd <a d>")[
            0
        ]
    )


def test_pieces_show_how_words_are_alike():
    config = NgramTokenizerConfig(max_ngram=1, max_character_ngram=4, num_buckets=2**30)
    tokenizer = NgramTokenizer(config)
    wonderful, wonderfully, awful = (
        set(row) for row in ids(tokenizer, "wonderful", "wonderfully", "drab")
    )
    assert len(wonderful & wonderfully) > 10 and not wonderful & awful


def test_every_bucket_is_used_and_none_is_padding():
    tokenizer = NgramTokenizer(NgramTokenizerConfig(max_ngram=1, num_buckets=5))
    (found,) = ids(tokenizer, " ".join(f"w{i}" for i in range(200)))
    assert found == [1, 2, 3, 4, 5]
    assert tokenizer.vocabulary_size == 6


# SentencePiece ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "text",
    [
        "The cat sat.",
        "  two  blanks, one at each end ",
        "\n\nlines\n",
        "tab\tand\rcarriage",
        "never seen: 😀👨‍👩‍👧 ǂ",
        "全角 ＡＢ　and ﬁ ligature",  # no normalisation but that of line ends
        "<s> </s> <unk> <0x41>",  # names of symbols are only text
        "猫",
        "",
    ],
)
def test_every_text_comes_back(pieces, kind, text):
    assert restored(pieces[kind], text) == [text]


def test_names_of_symbols_in_a_text_are_no_symbols(pieces):
    for tokenizer in pieces.values():
        (tokens,) = ids(tokenizer, "<s> </s>")
        assert not {BEGIN, END} & set(tokens)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_line_ends_of_windows_become_ours(pieces, kind):
    assert restored(pieces[kind], "cat\r\ndog\r\n") == ["cat\ndog\n"]


def test_a_character_is_a_token_and_an_unknown_one_is_one_unknown(pieces):
    (tokens,) = ids(pieces["char"], "cat 猫😀")
    assert len(tokens) == 6
    assert tokens[-1] == UNKNOWN and UNKNOWN not in tokens[:-1]
    assert restored(pieces["char"], "a cat\n猫") == ["a cat\n猫"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_bytes_cut_in_half_are_shown_as_such(pieces, kind):
    tokenizer = pieces[kind]
    (tokens,) = ids(tokenizer, "😀")
    assert len(tokens) >= 4 and UNKNOWN not in tokens
    text = tokenizer.detokenize(tf.ragged.constant([tokens[:-1]], tf.int32)).numpy()[0].decode()
    assert set(text.replace(" ", "")) == {"\ufffd"}


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_a_tokenizer_outlives_another_of_the_same_model(pieces, kind):
    proto = pieces[kind].model_proto
    kept, thrown = (SentencePieceTokenizer(bytes(bytearray(proto))) for _ in range(2))
    expected = ids(thrown, "The cat")
    del thrown
    gc.collect()
    assert ids(kept, "The cat") == expected
    assert restored(kept, "The cat") == ["The cat"]


def test_one_tokenizer_does_not_answer_for_another(pieces):
    answers = {kind: ids(tokenizer, "The cat sat") for kind, tokenizer in pieces.items()}
    assert len(answers["char"][0]) == 11 > len(answers["bpe"][0])
    for kind, tokenizer in pieces.items():
        assert ids(SentencePieceTokenizer(tokenizer.model_proto), "The cat sat") == answers[kind]


def test_training_twice_gives_the_same_model(pieces):
    for kind, tokenizer in pieces.items():
        config = SentencePieceTokenizerConfig(model_type=kind, vocabulary_size=340)
        assert train_tokenizer(CORPUS, config).model_proto == tokenizer.model_proto


def test_a_vocabulary_needs_text():
    with pytest.raises(ValueError, match="needs text"):
        SentencePieceTokenizer.train(["", " \n"], SentencePieceTokenizerConfig())


# All of them --------------------------------------------------------------------------------------


def test_the_tables_name_the_same_things():
    assert TOKENIZERS.keys() == TOKENIZER_CONFIGS.keys()
    for table in (TOKENIZER_CONFIGS, MODEL_CONFIGS):
        assert {name: config().name for name, config in table.items()} == {n: n for n in table}


def test_a_tokenizer_read_from_its_folder_gives_the_same_ids(any_tokenizer, tmp_path):
    config, tokenizer = any_tokenizer
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path, config)
    assert ids(loaded, *TEXTS) == ids(tokenizer, *TEXTS)
    assert loaded.vocabulary_size == tokenizer.vocabulary_size


def test_ids_stay_inside_the_vocabulary_and_off_the_padding(any_tokenizer):
    _, tokenizer = any_tokenizer
    found = np.concatenate([row for row in ids(tokenizer, *TEXTS) if row])
    assert 1 <= found.min() and found.max() < tokenizer.vocabulary_size


def test_encode_equals_one_call_a_text(any_tokenizer):
    _, tokenizer = any_tokenizer
    texts = [f"{text} {i}" for i in range(400) for text in ("cat", "猫 the", "")] + [""]  # 1,201
    rows = encode(tokenizer, texts)
    assert len(rows) == len(texts) and all(row.dtype == np.int32 for row in rows)
    for i in (0, 1, 2, 1022, 1023, 1024, 1025, 1200):  # around the edge of a chunk
        assert rows[i].tolist() == ids(tokenizer, texts[i])[0]
    assert encode(tokenizer, []) == []


def test_a_tokenizer_is_made_of_graph_ops(any_tokenizer):
    """The export carries it: the same ids inside a graph, for an empty batch too."""
    _, tokenizer = any_tokenizer
    spec = tf.TensorSpec([None], tf.string)
    graph = tf.function(lambda text: tokenizer(text), input_signature=[spec])
    assert graph(tf.constant(TEXTS)).to_list() == ids(tokenizer, *TEXTS)
    assert graph(tf.constant([], tf.string)).to_list() == []
