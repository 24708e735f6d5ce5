"""The state of the recurrent language model, and the two uses of the ULMFiT network."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import RecurrentLanguageModelConfig, ULMFiTLSTMConfig
from model.config.checks import CELLS

TOKENS = np.array([[3, 7, 9, 4, 12, 2, 8], [5, 2, 11, 6, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0]], np.int32)


def with_random_weights(model):
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.3, size=variable.shape))
    return model


@pytest.fixture(scope="module", params=CELLS)
def language_model(request):
    config = RecurrentLanguageModelConfig(
        cell=request.param, embedding_size=8, units=6, num_layers=3
    )
    return with_random_weights(build_model(config, 20, seed=0))


@pytest.fixture(scope="module")
def ulmfit():
    config = ULMFiTLSTMConfig(embedding_size=8, units=6, num_layers=3)
    return with_random_weights(build_model(config, 20, 3, seed=0))


# Language model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(3,), (1, 2, 6), range(1, 7)])
def test_a_text_in_pieces_is_the_text_as_a_whole(language_model, cuts):
    whole, last = language_model(TOKENS, return_state=True)
    state, logits = None, []
    for piece in np.split(TOKENS, list(cuts), axis=1):
        some, state = language_model(piece, state=state, return_state=True)
        logits.append(some)
    is_token = TOKENS != 0
    np.testing.assert_allclose(np.concatenate(logits, axis=1)[is_token], whole[is_token], atol=1e-6)
    for a, b in zip(tf.nest.flatten(state), tf.nest.flatten(last), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(whole[:, 3:] - language_model(TOKENS[:, 3:])).max() > 1e-3  # the state matters


def test_the_state_is_float32_of_one_or_two_vectors_for_each_layer(language_model):
    _, state = language_model(TOKENS, return_state=True)
    number = 2 if "lstm" in language_model.config.cell else 1
    assert [[v.shape for v in layer] for layer in state] == [[(3, n)] * number for n in (6, 6, 8)]
    assert {value.dtype for value in tf.nest.flatten(state)} == {tf.float32}


def test_padding_leaves_the_state_exactly_as_it_is(language_model):
    _, state = language_model(TOKENS[:, :5], return_state=True)
    _, later = language_model(np.zeros((3, 4), np.int32), state=state, return_state=True)
    _, longer = language_model(np.pad(TOKENS[:, :5], [(0, 0), (0, 3)]), return_state=True)
    _, empty = language_model(np.zeros((3, 0), np.int32), state=state, return_state=True)
    for a, *others in zip(*map(tf.nest.flatten, (state, later, longer, empty)), strict=True):
        for b in others:
            np.testing.assert_array_equal(a, b)


def test_one_token_at_a_time_is_the_text_as_a_whole(language_model):
    tokens = TOKENS[:1]
    whole = language_model(tokens).numpy()
    logits, state = language_model.prefill(
        np.pad(tokens[:, :3], [(0, 0), (0, 2)]), tf.constant([3]), 9
    )
    np.testing.assert_allclose(logits, whole[:, 2], atol=1e-5)
    for step in range(3, tokens.shape[1]):
        logits, state = language_model.decode(tokens[:, step], tf.constant([step]), state)
        np.testing.assert_allclose(logits, whole[:, step], atol=1e-5)


def test_no_steps_give_no_logits(language_model):
    assert language_model(np.zeros((3, 0), np.int32)).shape == (3, 0, 20)


def test_the_gradient_goes_back_through_a_state_unless_it_is_stopped(language_model):
    table = language_model.stack.embedding.embeddings.value

    def gradient_of_first(stop):
        with tf.GradientTape() as tape:
            _, state = language_model(TOKENS[:1, :2], return_state=True)
            state = tf.nest.map_structure(tf.stop_gradient, state) if stop else state
            # Of the hidden states, as the head would reach every row of the table.
            x, _ = language_model.stack(TOKENS[:1, 2:], TOKENS[:1, 2:] != 0, state)
            total = tf.reduce_sum(tf.sin(x))
        return tf.convert_to_tensor(tape.gradient(total, table)).numpy()[TOKENS[0, 0]]

    assert np.any(gradient_of_first(stop=False))
    assert not np.any(gradient_of_first(stop=True))


# ULMFiT -------------------------------------------------------------------------------------------


def test_the_head_reads_last_maximum_and_mean_over_the_tokens(ulmfit):
    hidden, _ = ulmfit.stack(TOKENS, TOKENS != 0)
    pooled = []
    for row, length in zip(hidden.numpy(), (TOKENS != 0).sum(1), strict=True):
        row = row[:length]
        pooled.append(np.concatenate([row[-1], row.max(0), row.mean(0)]))
    expected = np.array(pooled) @ ulmfit.head.kernel.numpy() + ulmfit.head.bias.numpy()
    np.testing.assert_allclose(ulmfit(TOKENS), expected, atol=1e-5)


@pytest.mark.parametrize("position", [1, 4])
def test_token_logits_see_the_past_alone(ulmfit, position):
    tokens = TOKENS[:1]
    changed = tokens.copy()
    changed[:, position] = 13
    before, after = (ulmfit.token_logits(x).numpy() for x in (tokens, changed))
    assert (before.shape, before.dtype) == ((1, 7, 20), np.float32)
    np.testing.assert_allclose(before[:, :position], after[:, :position], atol=1e-6)
    assert (np.abs(before - after).max(-1)[0, position:] > 1e-4).all()


def test_token_logits_are_the_hidden_states_against_the_embedding_and_a_bias(ulmfit):
    hidden, _ = ulmfit.stack(TOKENS, TOKENS != 0)
    expected = hidden.numpy() @ ulmfit.stack.embedding.embeddings.numpy().T
    expected += ulmfit.token_bias.numpy()
    np.testing.assert_allclose(ulmfit.token_logits(TOKENS), expected, atol=1e-5)


def test_layers_can_be_chosen_by_their_paths(ulmfit):
    chosen = {
        pattern: [v.path for v in ulmfit.trainable_variables if re.search(pattern, v.path)]
        for pattern in ("embedding", "lstm_0", "lstm_1", "lstm_2", "head", "token_bias")
    }
    assert [len(paths) for paths in chosen.values()] == [1, 3, 3, 3, 2, 1]
    assert len({path for paths in chosen.values() for path in paths}) == len(
        ulmfit.trainable_variables
    )


def test_pre_training_moves_all_that_the_classifier_shares_and_learns_the_texts():
    config = ULMFiTLSTMConfig(embedding_size=8, units=8, dropout=0.0)
    model = build_model(config, 20, 3, seed=0)
    start = {variable.path: variable.numpy() for variable in model.trainable_variables}
    texts = np.array([[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]], np.int32)
    variables = [v for v in model.trainable_variables if "head/" not in v.path]
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(variables)

    @tf.function
    def step():
        values = [variable.value for variable in variables]
        with tf.GradientTape() as tape:
            logits = model.token_logits(texts[:, :-1], training=True)
            nats = tf.nn.sparse_softmax_cross_entropy_with_logits(texts[:, 1:], logits)
            loss = tf.reduce_mean(nats)
        gradients = tape.gradient(loss, values)
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], variables)
        return loss

    losses = [float(step()) for _ in range(100)]
    assert losses[0] > 2 and losses[-1] < 0.2, losses[::10]
    for variable in model.trainable_variables:
        has_moved = (variable.numpy() != start[variable.path]).any()
        assert has_moved == ("head/" not in variable.path), variable.path
