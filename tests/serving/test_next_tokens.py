"""Writing through signatures: pieces, ends, and what is refused."""

import asyncio
import contextlib
import time

import numpy as np
import pytest
import tensorflow as tf
from toy_writer import CONTEXT, TAIL, answer_of, tokens_of, writer_model

from model import endpoints
from model.config.tokenizers import (
    ByteBPETokenizerConfig,
    BytesTokenizerConfig,
    SentencePieceTokenizerConfig,
)
from model.tokenizers import train_tokenizer
from serving import servable
from serving.batching import BatchingParameters, Pool
from serving.errors import Code, ServingError
from serving.next_tokens import NextTokensWriter
from serving.writing import Assembler, Request, Spelling


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writers")
    writer_model(folder / "bytes" / "1")
    writer_model(folder / "whole" / "1", is_concatenation=False)
    made = {name: servable.load(name, 1, folder / name / "1") for name in ("bytes", "whole")}
    yield made
    for one in made.values():
        one.close()


def pieces_of(writer: NextTokensWriter, request: Request) -> list:
    async def take():
        async with contextlib.aclosing(writer.write(request)) as pieces:
            return [piece async for piece in pieces]

    return asyncio.run(take())


@pytest.mark.parametrize("name", ["bytes", "whole"])
def test_pieces_are_the_whole_answer(loaded, name):
    settings = dict(
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        seed=3,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-1,
    )
    pieces = pieces_of(
        NextTokensWriter(loaded[name]), Request(prompt="小 prompt", max_tokens=90, **settings)
    )
    wanted = answer_of("小 prompt", **settings)
    assert "".join(piece.text for piece in pieces) == wanted
    assert [token for piece in pieces for token in piece.tokens] == tokens_of(wanted)
    assert [len(piece.tokens) for piece in pieces][:5] == [1, 2, 4, 8, 8]
    assert {piece.num_prompt_tokens for piece in pieces} == {10}
    assert [piece.finish_reason for piece in pieces][-2:] == [None, "stop"]
    assert all("\ufffd" not in piece.text for piece in pieces)


@pytest.mark.parametrize("name", ["bytes", "whole"])
def test_ends(loaded, name):
    writer = NextTokensWriter(loaded[name])

    def end(**settings):
        pieces = pieces_of(writer, Request(**settings))
        text = "".join(piece.text for piece in pieces)
        return text, sum(len(piece.tokens) for piece in pieces), pieces[-1].finish_reason

    wanted = answer_of("ab")
    assert end(prompt="ab", max_tokens=5) == (wanted[:5], 5, "length")
    assert end(prompt="ab", max_tokens=0) == ("", 0, "length")
    # In the middle of the first Chinese character.
    size = len(wanted.removesuffix(TAIL)) + 3
    assert end(prompt="ab", max_tokens=size) == (wanted[: size - 2] + "\ufffd", size, "length")
    stop = wanted.index("1.0 0.0")
    found = end(prompt="ab", max_tokens=90, stop=("狐", "1.0 0.0"))
    assert found == (wanted[:stop], stop + len("1.0 0.0"), "stop")
    # The context holds BEGIN, 32 tokens of the prompt and 63 of the answer.
    long = "x" * 32
    assert end(prompt=long, max_tokens=40)[1:] == (40, "length")
    pieces = pieces_of(writer, Request(prompt="y" * 500, max_tokens=90))
    assert pieces[0].num_prompt_tokens == CONTEXT // 2 - 1


def test_log_probabilities_come_with_the_tokens(loaded):
    pieces = pieces_of(
        NextTokensWriter(loaded["bytes"]), Request(prompt=(70, 71), max_tokens=4, logprobs=2)
    )
    entries = [entry for piece in pieces for entry in piece.logprobs]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [round(entry.logprob, 4) for entry in entries] == [-0.1, -0.2, -0.3, -0.4]
    assert [entry.top[0][0] for entry in entries] == tokens
    assert all(len(entry.top) == 2 for entry in entries)
    pieces = pieces_of(NextTokensWriter(loaded["bytes"]), Request(prompt="a", max_tokens=4))
    assert not any(piece.logprobs for piece in pieces)


def test_a_deadline_ends_it(loaded):
    request = Request(prompt="a", max_tokens=50, deadline=time.monotonic() - 1)
    with pytest.raises(ServingError) as caught:
        pieces_of(NextTokensWriter(loaded["bytes"]), request)
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_a_deadline_ends_embeddings_and_scores(loaded):
    writer, past = NextTokensWriter(loaded["bytes"]), time.monotonic() - 1
    for work in (writer.embed(["a"], past), writer.score([tokens_of("a")], past)):
        with pytest.raises(ServingError) as caught:
            asyncio.run(work)
        assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_texts_are_tokenized_and_tokens_spelled(loaded):
    for writer in map(NextTokensWriter, loaded.values()):
        short, long, empty = asyncio.run(writer.tokenize(["a小", "b" * 200, ""]))
        assert (short.tokens, short.num_tokens) == (tuple(tokens_of("a小")), 4)
        assert (len(long.tokens), long.num_tokens) == (CONTEXT, 200)
        assert (empty.tokens, empty.num_tokens) == ((), 0)
        assert asyncio.run(writer.spell(tokens_of("ab"))) == [b"a", b"b"]
    half = asyncio.run(NextTokensWriter(loaded["bytes"]).spell(tokens_of("小")[:1]))
    assert half == ["小".encode()[:1]]


def test_batches_may_be_smaller_than_what_is_asked(tmp_path):
    """A server that batches takes no more rows at once than its batches have."""
    path, pool = writer_model(tmp_path / "1"), Pool(2, "small")
    batching = BatchingParameters(max_batch_size=3, num_batch_threads=2)
    one = servable.load("w", 1, path, batching=batching, pool=pool)
    writer = NextTokensWriter(one)
    texts = ["a" * i for i in range(8)]
    assert [found.num_tokens for found in asyncio.run(writer.tokenize(texts))] == list(range(8))
    assert len(asyncio.run(writer.embed(texts))) == 8
    rows = [tokens_of(text) for text in texts]
    assert asyncio.run(writer.detokenize(rows)) == texts
    assert [score.tokens for score in asyncio.run(writer.score(rows))] == list(map(tuple, rows))
    request = Request(prompt="ab", max_tokens=90)
    pieces = pieces_of(writer, request)
    assert "".join(piece.text for piece in pieces) == answer_of("ab")
    assert asyncio.run(writer.embed(["b"] * 40)).shape == (40, 3)
    one.close()


def test_what_does_not_write_is_refused(repository):
    for name, words in (("classifier", "classifier:predict"), ("generator", "export it again")):
        with repository.acquire(name) as one, pytest.raises(ServingError, match=words) as caught:
            NextTokensWriter(one)
        assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def real(writer_exports):
    served = servable.load("writer", 1, writer_exports / "writer" / "1")
    yield served
    served.close()


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.5, "seed": 4}])
def test_pieces_of_a_network_are_its_text_at_once(real, settings):
    for prompt in ("abc", "", "猫 the", "the sea, the cat " * 40):  # the last is too long
        given = {"top_k": 0, "top_p": 1.0, "seed": 0} | settings
        inputs = {
            name: np.array(
                [given[name]], np.float32 if name in ("temperature", "top_p") else np.int32
            )
            for name in ("temperature", "top_k", "top_p", "seed")
        }
        inputs |= {"prompt": np.array([prompt.encode()], object), "max_tokens": np.int32([20])}
        answer = real.run("", inputs)
        pieces = pieces_of(
            NextTokensWriter(real), Request(prompt=prompt, max_tokens=20, **settings)
        )
        assert "".join(piece.text for piece in pieces).encode() == answer["text"][0]
        assert sum(len(piece.tokens) for piece in pieces) == answer["num_tokens"][0]
        assert pieces[-1].finish_reason.encode() == answer["finish_reason"][0]


@pytest.mark.parametrize("name", ["bytes", "byte_bpe", "unigram", "bpe", "char"])
def test_the_bytes_of_tokens_make_the_text(name):
    """For every tokenizer of ours that writes: texts are made of what `Spelling` is told."""
    texts = ["Füchslein 小狐狸 🦊 runs.\n", "a  b", "\U0001f469\u200d\U0001f467"]
    kinds = {
        "bytes": BytesTokenizerConfig(),
        "byte_bpe": ByteBPETokenizerConfig(vocabulary_size=280),
    }
    config = kinds.get(name) or SentencePieceTokenizerConfig(model_type=name, vocabulary_size=340)
    tokenizer = train_tokenizer(texts * 9, config)

    def detokenize(tokens, num_tokens):
        answer = endpoints.detokenize(tokenizer, tf.constant(tokens), tf.constant(num_tokens))
        return answer["text_bytes"].numpy()

    spelling = Spelling(detokenize)
    spelling.learn(range(tokenizer.vocabulary_size))
    rows = tokenizer(tf.constant(texts))
    whole = tokenizer.detokenize(rows).numpy()
    for row, text in zip(rows.to_list(), whole, strict=True):
        assembler = Assembler(Request(prompt="", max_tokens=999), num_prompt_tokens=0)
        parts = [assembler.add([token], spelling([token])).text for token in row]
        parts.append(assembler.add([], [], finish_reason="stop").text)
        assert "".join(parts).encode() == text
        assert not any("\ufffd" in part for part in parts)
        # The same cut anywhere, as an answer may end.
        for end in range(len(row)):
            cut = tf.ragged.constant([row[:end]], tf.int32, row_splits_dtype=tf.int64)
            joined = b"".join(spelling(row[:end])).decode(errors="replace").encode()
            assert joined == tokenizer.detokenize(cut).numpy()[0]


def test_a_text_is_as_likely_as_it_was_when_it_was_written(real):
    writer = NextTokensWriter(real)
    (prompt,) = asyncio.run(writer.tokenize(["abc 猫"]))
    request = Request(prompt=prompt.tokens, max_tokens=9, seed=2, logprobs=3)
    pieces = pieces_of(writer, request)
    written = tuple(token for piece in pieces for token in piece.tokens)
    entries = [entry for piece in pieces for entry in piece.logprobs]
    assert len(written) == len(entries) > 3
    scored, other = asyncio.run(writer.score([prompt.tokens + written, prompt.tokens]))
    assert scored.tokens == prompt.tokens + written
    for found, wanted in zip(scored.logprobs[-len(written) :], entries, strict=True):
        assert found.logprob == pytest.approx(wanted.logprob, abs=1e-4)
        assert found.top[0][1] == pytest.approx(wanted.top[0][1], abs=1e-4)
    assert other.logprobs[0].logprob == pytest.approx(scored.logprobs[0].logprob, abs=1e-4)
    with pytest.raises(ServingError, match="tokens that `tokenize` makes of its text"):
        asyncio.run(writer.score([(2, 2)]))
    vectors = asyncio.run(writer.embed(["abc", "", "猫"]))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
