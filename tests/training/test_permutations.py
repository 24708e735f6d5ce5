import numpy as np
import pytest

from training.permutations import Permutation, hashed


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1_000, 4_096, 99_991])
@pytest.mark.parametrize("seed", [0, [7, 3]])
def test_every_number_comes_exactly_once(count, seed):
    order = Permutation(count, seed)(np.arange(count))
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_what_is_asked_for_piece_by_piece_is_what_is_asked_for_at_once():
    permutation = Permutation(10_007, 5)
    whole = permutation(np.arange(10_007))
    pieces = [
        Permutation(10_007, 5)(np.arange(i, min(i + 999, 10_007))) for i in range(0, 10_007, 999)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_numbers_beyond_32_bits_stay_apart():
    permutation = Permutation(3 * 10**12 + 7, 1)
    index = np.concatenate([np.arange(50_000), 3 * 10**12 - np.arange(50_000)])
    order = permutation(index)
    assert len(np.unique(order)) == len(index)
    assert order.min() >= 0 and order.max() < 3 * 10**12 + 7


def test_orders_look_random_and_differ_by_seed():
    count = 20_000
    orders = [Permutation(count, seed)(np.arange(count)) for seed in (1, 2, [1, 1])]
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.03
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03  # neighbours go anywhere
        counts = np.bincount(order[:4_000] // 1_000, minlength=20)  # 200 in each on average
        assert counts.min() > 120 and counts.max() < 280
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(orders[a] == orders[b]) < 0.002


def test_a_permutation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="1 to 2\\*\\*62 things. Received: 0"):
        Permutation(0, 1)


def test_hashes_depend_on_the_seed_and_on_every_column():
    a, b = np.arange(1, 1_001), np.zeros(1_000, int)
    found = [hashed([1], a, b), hashed([2], a, b), hashed([1], b, a), hashed([1, 0], a, b)]
    assert all(len(np.unique(values)) == 1_000 for values in found)
    for i, values in enumerate(found):
        assert not any(np.any(values == other) for other in found[:i])
    np.testing.assert_array_equal(hashed([1], a[7:9], b[7:9]), found[0][7:9])
