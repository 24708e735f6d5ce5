"""Beginnings of prompts that are kept: what is found, what is asked for, what is thrown away."""

import random

import numpy as np

from serving.prefix_cache import PrefixCache

BYTES = 8  # of a block of two tokens, an int32 each


class Values:
    """Stands for a prompt's keys and values: each block is its tokens and all before them."""

    def __init__(self, tokens):
        self.tokens, self.asked = tokens, []

    def __call__(self, start, end):
        self.asked.append((start, end))
        return np.array([sum(self.tokens[:start]), sum(self.tokens[:end])], np.int32)


def put(cache, *tokens):
    values = Values(tokens)
    cache.put(tokens, values)
    return values.asked


def found(cache, *tokens):
    return [block.tolist() for block in cache.find(tokens)]


def test_the_longest_known_beginning_is_found_in_whole_blocks():
    cache = PrefixCache(1000, block=2)
    put(cache, 1, 2, 3, 4, 5)
    assert found(cache, 1, 2, 3, 4, 5, 6) == [[0, 3], [3, 10]]
    assert found(cache, 1, 2, 3, 9) == [[0, 3]]
    assert found(cache, 1) == found(cache, 2, 2, 3, 4) == []


def test_equal_tokens_behind_another_beginning_are_another_block():
    cache = PrefixCache(1000, block=2)
    put(cache, 1, 2, 7, 7)
    assert found(cache, 3, 4, 7, 7) == []
    put(cache, 3, 4, 7, 7)
    assert found(cache, 1, 2, 7, 7)[1] == [3, 17] and found(cache, 3, 4, 7, 7)[1] == [7, 21]


def test_what_is_known_is_not_asked_for_again():
    cache = PrefixCache(1000, block=2)
    assert put(cache, 1, 2, 3, 4) == [(0, 2), (2, 4)]
    assert put(cache, 1, 2, 5, 6) == [(2, 4)]
    assert put(cache, 1, 2, 5, 6) == []


def test_what_was_not_used_for_longest_goes_first_and_beginnings_last():
    cache = PrefixCache(4 * BYTES, block=2)
    put(cache, 1, 2, 3, 4)
    put(cache, 5, 6)
    put(cache, 7, 8)
    found(cache, 1, 2, 3, 4)
    put(cache, 9, 9)  # in place of 5, 6
    assert found(cache, 5, 6) == [] and len(found(cache, 1, 2, 3, 4)) == 2
    put(cache, 0, 0)  # of 7, 8
    put(cache, 0, 1)  # of 9, 9
    put(cache, 0, 2)  # of the end of the oldest, not of its beginning
    assert len(found(cache, 1, 2, 3, 4)) == 1


def test_memory_is_bounded_and_counted():
    generator = random.Random(0)
    cache = PrefixCache(10 * BYTES, block=2)
    for _ in range(500):
        prompt = [generator.randint(0, 2) for _ in range(generator.randint(0, 16))]
        put(cache, *prompt)
        assert cache.num_bytes == len(cache) * BYTES <= 10 * BYTES
        blocks = found(cache, *prompt)
        assert blocks == [Values(prompt)(2 * i, 2 * i + 2).tolist() for i in range(len(blocks))]
        assert len(blocks) >= min(len(prompt) // 2, 8), "what was put in last is not there"


def test_a_prompt_larger_than_the_cache_leaves_its_beginning():
    cache = PrefixCache(2 * BYTES, block=2)
    put(cache, 1, 2, 3, 4, 5, 6, 7, 8)
    assert len(found(cache, 1, 2, 3, 4, 5, 6, 7, 8)) == 2


def test_no_memory_keeps_nothing():
    cache = PrefixCache(0, block=2)
    put(cache, 1, 2)
    assert found(cache, 1, 2) == [] and cache.num_bytes == 0
