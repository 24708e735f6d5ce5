import numpy as np
import pytest
import tensorflow as tf
from ways_to_write import CONTEXT, letters_tokenizer, rows_of

from model.catalogue import build_model
from model.config import RecurrentLanguageModelConfig, TransformerDecoderConfig
from model.contrastive import contrastive_search
from model.tokenizers import BEGIN, END

SIZES = {"num_layers": 1, "width": 16, "num_heads": 2, "inner_width": 16}
PROMPTS, MAX_TOKENS, ALPHAS = (
    ["abc", "", "hello w", "q", "zz"],
    [7, 6, 5, 0, 7],
    [0.6, 0.3, 0.9, 0.5, 0.0],
)


@pytest.fixture(scope="module")
def tokenizer():
    return letters_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    config = TransformerDecoderConfig(**SIZES, context_length=CONTEXT)
    model, rng = build_model(config, tokenizer.vocabulary_size, seed=0), np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.4, size=variable.shape))
    return model


def searcher(model, tokenizer, num_candidates):
    specs = [tf.TensorSpec([None], dtype) for dtype in (tf.string, tf.int32, tf.float32)]
    graph = tf.function(
        lambda *inputs: contrastive_search(model, tokenizer, *inputs, num_candidates),
        input_signature=specs,
    )

    def run(prompts, max_tokens, alphas):
        inputs = zip((prompts, max_tokens, alphas), specs, strict=True)
        return rows_of(graph(*(tf.constant(values, spec.dtype) for values, spec in inputs)))

    return run


def by_hand(read, tokenizer, prompt, max_tokens, alpha, num_candidates):
    """eq. 5 from the whole text every time: no cache, no batch."""
    tokens = [BEGIN, *tokenizer(tf.constant([prompt])).to_list()[0]]
    written, reason = [], "length"
    while len(written) < max_tokens:
        logits, states = (y[0].numpy() for y in read(tf.constant([tokens])))
        p = np.exp(logits[-1, END:] - np.logaddexp.reduce(logits[-1, END:]))
        best, token = -np.inf, None
        for candidate in END + np.argsort(-p)[:num_candidates]:
            own = read(tf.constant([[*tokens, candidate]]))[1][0, -1].numpy()
            norms = np.linalg.norm(states, axis=1) * np.linalg.norm(own)
            score = (1 - alpha) * p[candidate - END] - alpha * (states @ own / norms).max()
            if score > best:
                best, token = score, int(candidate)
        if token == END:
            reason = "stop"
            break
        written.append(token)
        tokens.append(token)
    text = tokenizer.detokenize(tf.ragged.constant([written], tf.int32)).numpy()[0].decode()
    return text, len(written), reason


@pytest.fixture(scope="module")
def read(model):
    def logits_and_states(tokens):
        (x,) = model._hidden(tokens, False)
        return model.logits(x), model.final_norm(x)

    return tf.function(logits_and_states, input_signature=[tf.TensorSpec([None, None], tf.int32)])


def test_each_row_writes_what_the_formula_says_by_its_own_alpha(model, read, tokenizer):
    run = searcher(model, tokenizer, 3)
    together = run(PROMPTS, MAX_TOKENS, ALPHAS)
    for row, answer in zip(zip(PROMPTS, MAX_TOKENS, ALPHAS, strict=True), together, strict=True):
        assert answer == by_hand(read, tokenizer, *row, 3)
        assert run(*([value] for value in row)) == [answer]
    greedy = run(PROMPTS, MAX_TOKENS, [0.0] * 5)
    assert [a == b for a, b in zip(greedy, together, strict=True)][:3] != [True] * 3
    assert greedy == searcher(model, tokenizer, 1)(PROMPTS, MAX_TOKENS, ALPHAS)
    assert run([], [], []) == []


def test_what_it_can_not_do_is_refused(model, tokenizer):
    config = RecurrentLanguageModelConfig(embedding_size=8, units=8, context_length=CONTEXT)
    recurrent = build_model(config, tokenizer.vocabulary_size, seed=0)
    inputs = (tf.constant(["a"]), tf.constant([1]), tf.constant([0.5]))
    with pytest.raises(ValueError, match="contrastive search needs .* recurrent_language_model"):
        contrastive_search(recurrent, tokenizer, *inputs)
    with pytest.raises(ValueError, match="num_candidates must be at least 1. Received: 0"):
        contrastive_search(model, tokenizer, *inputs, 0)
