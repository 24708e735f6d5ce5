import collections
import dataclasses
import gc
import itertools
import random

import numpy as np
import pytest
import tensorflow as tf
from random_texts import random_texts

from model.config import (
    MODEL_CONFIGS,
    TOKENIZER_CONFIGS,
    ByteBPETokenizerConfig,
    CharacterTokenizerConfig,
    NgramTokenizerConfig,
    SentencePieceTokenizerConfig,
    WordpieceTokenizerConfig,
    WordTokenizerConfig,
)
from model.tokenizers import (
    BEGIN,
    END,
    TOKENIZERS,
    UNKNOWN,
    ByteBPETokenizer,
    BytesTokenizer,
    CharacterTokenizer,
    NgramTokenizer,
    SentencePieceTokenizer,
    WordpieceTokenizer,
    WordTokenizer,
    encode,
    load_tokenizer,
    split_words,
    train_tokenizer,
)
from model.tokenizers.byte_level import split_pieces
from model.tokenizers.merges import learn_merges

CORPUS = [
    "The cat sat on the mat.\nThe dog ran home.\r\n",
    "今天天气很好,我们去公园。\n猫在睡觉。",
    "A small story about a cat, and a dog who didn't care.",
] * 10
TEXTS = ["The cat ran home.", "", "猫在公园 睡觉", "zebra 😀 quiz", "the cat", b"cut \xe7\x8c half"]
OWN = [name for name in TOKENIZERS if name != "preset"]  # whose vocabulary a run makes itself
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


@pytest.fixture(
    params=("word", "ngram", "character", "wordpiece", "byte_bpe", "bytes", *MODEL_TYPES)
)
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


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_a_text_is_the_bytes_of_its_pieces(pieces, kind):
    """As SentencePiece itself puts texts together."""
    tokenizer = pieces[kind]
    tokens = tokenizer(tf.constant(TEXTS))
    assert (
        tokenizer.join(tokens).numpy().tolist()
        == tokenizer.pieces.detokenize(tokens).numpy().tolist()
    )
    every = tf.range(tokenizer.vocabulary_size)[:, None]
    alone = tokenizer.pieces.detokenize(tf.RaggedTensor.from_tensor(every)).numpy()
    spelled = tokenizer.detokenize(tf.RaggedTensor.from_tensor(every)).numpy()
    assert spelled.tolist() == alone.tolist()
    for row in tokens.to_list():
        assert b"".join(tokenizer.token_bytes.numpy()[row]) == tokenizer.join(
            tf.ragged.constant([row], tf.int32)
        )


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
    for name in ("word", "character", "wordpiece", "sentencepiece"):
        with pytest.raises(ValueError, match="needs text"):
            train_tokenizer(["", "\n"], TOKENIZER_CONFIGS[name]())
    with pytest.raises(ValueError, match="tokenizer.min_count=3 times"):
        train_tokenizer(["a a"], WordTokenizerConfig(min_count=3))


# Characters ---------------------------------------------------------------------------------------


def test_characters_are_by_count_then_code_point_and_blanks_are_among_them():
    tokenizer = CharacterTokenizer.train(["Ab a\nb", "猫猫 A"], CharacterTokenizerConfig())
    assert tokenizer.characters == ["a", " ", "b", "猫"]
    assert ids(tokenizer, "ＡＢ 猫\n", "") == [[2, 4, 3, 5, UNKNOWN], []]


def test_a_text_of_characters_is_cut():
    tokenizer = CharacterTokenizer(["a"], max_tokens=3)
    assert ids(tokenizer, "aaaaa") == [[2, 2, 2]]


# Word pieces --------------------------------------------------------------------------------------


def test_words_are_cut_into_their_longest_pieces_from_the_left():
    tokenizer = WordpieceTokenizer(["un", "##aff", "##able", "##a", "u", "##n"], max_tokens=9)
    assert ids(tokenizer, "Unaffable un, unx", "") == [[2, 3, 4, 2, UNKNOWN, UNKNOWN], []]
    assert ids(tokenizer, "una" * 200) == [[UNKNOWN]]  # more than 100 bytes


def test_the_unknown_word_and_pieces_spelled_out_are_only_text():
    tokenizer = WordpieceTokenizer(["a", "##a", "unk", "#"], max_tokens=9)
    assert ids(tokenizer, "[UNK] ##a [PAD]") == [
        [UNKNOWN, 4, UNKNOWN, 5, 5, 2, UNKNOWN, UNKNOWN, UNKNOWN]
    ]


def test_word_pieces_are_characters_then_what_is_frequent_together():
    config = WordpieceTokenizerConfig(vocabulary_size=10, min_count=2)
    tokenizer = WordpieceTokenizer.train(["ab abc abc ab", "bc 猫"], config)
    # Characters by count; ab is seen 4 times and ab+c twice; b+c, seen once as a word, is not.
    assert tokenizer.pieces == ["##b", "a", "##c", "ab", "abc"]
    assert ids(tokenizer, "abc ab abb") == [[6, 5, 5, 2]]


# Bytes --------------------------------------------------------------------------------------------


def test_bytes_are_numbered_after_the_special_tokens():
    assert ids(BytesTokenizer(), "\0aé", b"\xff") == [[4, 101, 199, 173], [259]]
    assert ids(BytesTokenizer(max_tokens=2), "abc") == [[101, 102]]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The cat sat.", ["The", " cat", " sat", "."]),
        ("a   b\n\n c", ["a", "  ", " b", "\n\n", " c"]),
        ("x2 12 !?a", ["x", "2", " 12", " !?", "a"]),
        ("don't", ["don", "'", "t"]),
        ("今天，猫", ["今天", "，", "猫"]),
        ("ne\u0301e กำ", ["ne\u0301e", " กำ"]),
        ("a\0\1b\0\2", ["a", "\0\1", "b", "\0\2"]),
        (b"a \xff\xfe b", ["a", b" \xff\xfe", " b"]),
    ],
)
def test_pieces(text, pieces):
    (found,) = split_pieces(tf.constant([text])).to_list()
    assert [piece for piece in found if piece] == [
        piece if isinstance(piece, bytes) else piece.encode() for piece in pieces
    ]


def test_merges_are_those_of_the_paper():
    """Sennrich et al., 2016, algorithm 1: its words, without the mark of a word's end."""
    words = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    config = ByteBPETokenizerConfig(vocabulary_size=260 + 6)
    tokenizer = ByteBPETokenizer.train(words, config)
    merged = [token.decode() for token in tokenizer.token_bytes.numpy()[260:]]
    assert merged == ["es", "est", "lo", "low", "ew", "new"]
    assert restored(tokenizer, "lowest") == ["lowest"]
    assert ids(tokenizer, "lowest new") == [[263, 261, 36, 265]]


def test_learning_quickly_is_learning_by_counting_anew():
    draw = random.Random(1)
    words = ["".join(draw.choices("aab", k=draw.randrange(1, 9))) for _ in range(60)]
    symbols, counts = [[ord(c) for c in word] for word in words], [draw.randrange(1, 4)] * 60
    expected, now = [], [tuple(word) for word in symbols]
    for new_id in range(200, 225):
        totals = collections.Counter()
        for word, count in zip(now, counts, strict=True):
            for pair in itertools.pairwise(word):
                totals[pair] += count
        pair, total = min(totals.items(), key=lambda item: (-item[1], item[0]))
        if total < 5:
            break
        expected.append(pair)
        now = [replaced(word, pair, new_id) for word in now]
    assert len(expected) > 10
    settings = {"first_id": 200, "num_merges": 25, "min_count": 5}
    assert learn_merges(symbols, counts, **settings) == expected


def replaced(word, pair, new_id):
    """`word` with each `pair` as `new_id`, by the text of it."""
    text = "".join(map(chr, word)).replace("".join(map(chr, pair)), chr(new_id))
    return tuple(map(ord, text))


def test_merges_stop_at_pairs_that_are_too_rare():
    few = ByteBPETokenizer.train(["ab ab cd"], ByteBPETokenizerConfig())
    assert few.vocabulary_size == 261  # ab; the blank before it is seen once
    assert ByteBPETokenizer.train(["", "a"], ByteBPETokenizerConfig()).vocabulary_size == 260


def test_a_long_word_is_joined_in_parts():
    tokenizer = ByteBPETokenizer.train(["a" * 1_000], ByteBPETokenizerConfig())
    assert max(map(len, tokenizer.token_bytes.numpy())) <= 48
    assert restored(tokenizer, "a" * 1_000 + " b") == ["a" * 1_000 + " b"]


@pytest.mark.parametrize("name", ["bytes", "byte_bpe"])
def test_any_bytes_come_back(name):
    config = TOKENIZER_CONFIGS[name](max_tokens=None)
    tokenizer, texts = train_tokenizer(CORPUS, config), random_texts(10_000, seed=1)
    tokens = tokenizer(tf.constant(texts))
    assert tokenizer.join(tokens).numpy().tolist() == texts
    # What is shown of them is text.
    shown = [text.decode("utf-8", "replace").encode() for text in texts]
    assert tokenizer.detokenize(tokens).numpy().tolist() == shown


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


@pytest.mark.parametrize("name", OWN)
def test_training_again_gives_the_same_ids(name):
    config = TOKENIZER_CONFIGS[name]()
    first, second = (train_tokenizer(texts, config) for texts in (CORPUS, CORPUS[::-1]))
    assert ids(first, *CORPUS[:3]) == ids(second, *CORPUS[:3])


@pytest.mark.parametrize("name", [name for name in OWN if name != "bytes"])
def test_normalization_is_a_setting(name):
    texts = ["ＣＡＴ cat CAT café cafe\u0301"] * 4
    kinds = {
        form: train_tokenizer(texts, TOKENIZER_CONFIGS[name](normalization=form, **room(name)))
        for form in ("nfkc_cf", "nfkc", "none")
    }
    same = {
        form: [
            ids(tokenizer, a) == ids(tokenizer, b)
            for a, b in (("cat", "CAT"), ("CAT", "ＣＡＴ"), ("café", "cafe\u0301"))
        ]
        for form, tokenizer in kinds.items()
    }
    assert same == {
        "nfkc_cf": [True, True, True],
        "nfkc": [False, True, True],
        "none": [False, False, False],
    }


def room(name):
    return {"vocabulary_size": 300} if name == "sentencepiece" else {}


def test_a_text_to_classify_is_cut_and_a_document_is_not():
    for name in ("sentencepiece", "byte_bpe", "bytes"):
        config = TOKENIZER_CONFIGS[name](max_tokens=4)
        whole = dataclasses.replace(config, max_tokens=None)
        texts = ["The cat sat on the mat and the dog ran home", "a"]
        (long, short), (cut, kept) = (
            ids(train_tokenizer(CORPUS, settings), *texts) for settings in (whole, config)
        )
        assert cut == long[:4] and len(long) > 4 and kept == short


@pytest.mark.parametrize(
    ("name", "file", "content", "told"),
    [
        ("word", "vocabulary.json", None, "it is missing"),
        ("word", "vocabulary.json", '["a", "b', "it is not JSON"),
        ("word", "vocabulary.json", '["a", "a"]', "it holds ['a', 'a']"),
        ("word", "vocabulary.json", '{"a": 1}', "it holds {'a': 1}"),
        ("character", "vocabulary.json", '["ab"]', "it holds"),
        ("character", "vocabulary.json", "\ud800", "it is not JSON"),
        ("wordpiece", "vocabulary.json", "[1]", "it holds [1]"),
        ("wordpiece", "vocabulary.json", '["a", ""]', "it holds ['a', '']"),
        ("word", "vocabulary.json", "[]", "it holds []"),
        ("byte_bpe", "merges.json", "[[4, 260]]", "it holds [[4, 260]]"),
        ("byte_bpe", "merges.json", "[[4]]", "it holds [[4]]"),
        ("byte_bpe", "merges.json", "", "it is not JSON"),
        ("sentencepiece", "sentencepiece.model", None, "it is missing"),
        ("sentencepiece", "sentencepiece.model", "broken", "SentencePiece cannot read it"),
        ("sentencepiece", "sentencepiece.model", "", "SentencePiece cannot read it"),
        ("ngram", "simplified.json", None, "it is missing"),
        ("ngram", "simplified.json", "{}", "it holds {}"),
        ("ngram", "simplified.json", '{"a": "bc"}', "it holds"),
    ],
)
def test_a_damaged_vocabulary_is_refused(tmp_path, name, file, content, told):
    if content is not None:
        (tmp_path / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    config = TOKENIZER_CONFIGS[name](**({"simplify": True} if "simplified" in file else {}))
    with pytest.raises(ValueError) as refusal:
        load_tokenizer(tmp_path, config)
    assert str(refusal.value).startswith(f"{tmp_path / file} must be the vocabulary that this run")
    assert told in str(refusal.value) and "train again" in str(refusal.value)
