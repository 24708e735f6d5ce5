import collections
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import (
    RecurrentLanguageModelConfig,
    SentencePieceTokenizerConfig,
    TransformerDecoderConfig,
)
from model.generation import generate
from model.samplers import Options
from model.signatures import FINISH_REASON, GENERATOR_OUTPUTS, NUM_TOKENS, TEXT
from model.tokenizers import BEGIN, END, PADDING, UNKNOWN, train_tokenizer

CONTEXT = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter, so a text of n letters is n tokens."""
    config = SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100)
    return train_tokenizer([LETTERS] * 3, config)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Untrained, with weights so large that its taste in letters is firm."""
    config = TransformerDecoderConfig(
        num_layers=2, width=16, num_heads=2, inner_width=32, context_length=CONTEXT
    )
    model = build_model(config, tokenizer.vocabulary_size, seed=0)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.5, size=variable.shape))
    # A text that ends at once tests nothing: END gets a direction that is rarely taken.
    table = model.embedding.embeddings.numpy()
    table[END] *= 0.1
    model.embedding.embeddings.assign(table)
    return model


INPUTS = {
    "prompt": ("", tf.string),
    "max_tokens": (8, tf.int32),
    "temperature": (0.0, tf.float32),
    "top_k": (0, tf.int32),
    "top_p": (1.0, tf.float32),
    "seed": (0, tf.int32),
}


def graph_of(model, tokenizer):
    signature = [tf.TensorSpec([None], dtype, name) for name, (_, dtype) in INPUTS.items()]
    return tf.function(
        lambda *inputs: generate(model, tokenizer, *inputs), input_signature=signature
    )


@pytest.fixture(scope="module")
def graph(model, tokenizer):
    return graph_of(model, tokenizer)


@pytest.fixture(scope="module")
def run(graph):
    """run(prompts, **settings): a list of (text, num_tokens, reason), one for each prompt."""
    return caller(graph)


def caller(graph):
    def run(prompts, **settings):
        inputs = []
        for name, (default, dtype) in INPUTS.items():
            value = prompts if name == "prompt" else settings.get(name, default)
            inputs.append(tf.constant(np.broadcast_to(value, len(prompts)).tolist(), dtype))
        answer = graph(*inputs)
        assert tuple(answer) == GENERATOR_OUTPUTS
        columns = [answer[name].numpy().tolist() for name in (TEXT, NUM_TOKENS, FINISH_REASON)]
        return [(t.decode(), n, reason.decode()) for t, n, reason in zip(*columns, strict=True)]

    return run


@pytest.fixture(scope="module")
def logits_of(model):
    return tf.function(model, input_signature=[tf.TensorSpec([None, None], tf.int32)])


def greedy_by_hand(logits_of, tokenizer, prompt, max_tokens):
    """The same text from the plain call on all tokens so far: no cache, no batch, no graph."""
    room = min(max_tokens, CONTEXT // 2)
    tokens = [BEGIN, *tokenizer(tf.constant([prompt])).to_list()[0][-(CONTEXT - room - 1) :]]
    written = []
    while len(written) < max_tokens and len(tokens) < CONTEXT:
        logits = logits_of(tf.constant([tokens]))[0, -1].numpy()
        logits[[PADDING, UNKNOWN, BEGIN]] = -np.inf
        token = int(logits.argmax())
        if token == END:
            return written, "stop"
        written.append(token)
        tokens.append(token)
    return written, "length"


def text_of(tokenizer, tokens):
    return tokenizer.detokenize(tf.ragged.constant([tokens], tf.int32)).numpy()[0].decode()


PROMPTS = ["abc", "", "q", "the quick brown", "abcdefghijklmnopqrstuvwxyz", "zz", "hello w"]
MIXED = {
    "max_tokens": [8, 3, 100, 5, 4, 0, 12],
    "temperature": [1.0, 0.0, 2.0, 0.8, 1.0, 1.0, 1.5],
    "top_k": [0, 0, 3, 0, 5, 0, 2],
    "top_p": [1.0, 1.0, 0.9, 0.8, 1.0, 0.5, 1.0],
    "seed": [1, 2, 3, 4, 5, 6, 7],
}


@pytest.mark.parametrize("max_tokens", [6, 50])
def test_greedy_text_is_what_the_plain_model_would_say(run, logits_of, tokenizer, max_tokens):
    for prompt, (text, num_tokens, reason) in zip(
        PROMPTS, run(PROMPTS, max_tokens=max_tokens), strict=True
    ):
        tokens, expected_reason = greedy_by_hand(logits_of, tokenizer, prompt, max_tokens)
        assert (text, num_tokens) == (text_of(tokenizer, tokens), len(tokens)), prompt
        assert reason == expected_reason


def test_a_row_writes_the_same_alone_and_in_any_company(run):
    together = run(PROMPTS, **MIXED)
    assert len({text for text, *_ in together}) > 4
    for i, prompt in enumerate(PROMPTS):
        own = {name: values[i] for name, values in MIXED.items()}
        assert run([prompt], **own) == [together[i]], prompt
    backwards = {name: values[::-1] for name, values in MIXED.items()}
    assert run(PROMPTS[::-1], **backwards)[::-1] == together


def test_the_seed_decides_the_text(run):
    settings = {"temperature": 1.5, "max_tokens": 10}
    texts = run(["abc"] * 4, seed=[1, 2, 1, 3], **settings)
    assert texts[0] == texts[2] == run(["abc"], seed=1, **settings)[0]
    assert len({text for text, *_ in texts}) == 3
    greedy = run(["abc"] * 2, seed=[1, 2])
    assert greedy[0] == greedy[1]


def test_a_shorter_answer_is_the_beginning_of_a_longer_one(run):
    """The same seed, so the settings for length move no random number."""
    long, _, _ = run(["ab"], temperature=1.5, seed=3, max_tokens=10)[0]
    short, num_tokens, reason = run(["ab"], temperature=1.5, seed=3, max_tokens=4)[0]
    assert len(long) > 4 and long.startswith(short)
    assert (num_tokens, reason) == (4, "length")


@pytest.mark.parametrize("max_tokens", [0, -1, -(2**31)])
def test_nothing_is_written_when_nothing_is_asked_for(run, max_tokens):
    assert run(["abc", ""], max_tokens=max_tokens) == [("", 0, "length")] * 2


def test_the_context_bounds_prompt_and_answer_together(run):
    prompts = [LETTERS[:n] for n in (0, 5, 14, 15, 26)]
    counts = [n for _, n, _ in run(prompts, max_tokens=2**31 - 1, temperature=2.0, top_p=0.9)]
    # BEGIN takes one place; of a prompt too long half of the context is read.
    assert all(count <= most for count, most in zip(counts, [15, 10, 8, 8, 8], strict=True))
    assert max(counts[:2]) > 8 and max(counts[2:]) > 1


def test_a_prompt_that_is_too_long_is_read_from_its_end(run):
    """As much of it as leaves the answer its room: `max_tokens`, at most half of the context."""
    for max_tokens, room in ((3, 3), (50, CONTEXT // 2)):
        last = LETTERS[-(CONTEXT - room) :]
        settings = {"temperature": 2.0, "seed": 9, "max_tokens": max_tokens}
        whole, kept, other = run([LETTERS, last, "a" * 11 + LETTERS[:15]], **settings)
        assert whole == kept and 1 <= whole[1] <= room
        assert run(["zzzz" + last], **settings)[0] == kept
        assert other != whole


@pytest.mark.parametrize("name", [name for name in INPUTS if name != "prompt"])
def test_inputs_of_another_size_than_the_prompts_are_refused(graph, name):
    inputs = {alias: tf.constant([value] * 2, dtype) for alias, (value, dtype) in INPUTS.items()}
    inputs[name] = inputs[name][:1]
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name} must have one value"):
        graph(*inputs.values())


def test_an_empty_batch_gives_empty_answers(run):
    assert run([]) == []


# Options ------------------------------------------------------------------------------------------

OPTIONS = {  # what changes nothing
    "min_p": (0.0, tf.float32),
    "typical_p": (1.0, tf.float32),
    "repetition_penalty": (1.0, tf.float32),
    "presence_penalty": (0.0, tf.float32),
    "frequency_penalty": (0.0, tf.float32),
    "no_repeat_ngram": (0, tf.int32),
    "stop": ((), tf.string),
    "choices": ((), tf.string),
}


def optional_graph(model, tokenizer, names):
    """The same for those of OPTIONS that are named, behind the six inputs."""
    signature = [tf.TensorSpec([None], dtype) for _, dtype in INPUTS.values()]
    for name in names:
        default, dtype = OPTIONS[name]
        signature.append(tf.TensorSpec([None, None] if default == () else [None], dtype))

    def write(*inputs):
        given = dict(zip(names, inputs[len(INPUTS) :], strict=True))
        return generate(model, tokenizer, *inputs[: len(INPUTS)], Options(**given))

    return tf.function(write, input_signature=signature)


def optional_caller(graph):
    """Settings are one for all rows, or a list with one for each; texts are padded with ""."""

    def run(prompts, **settings):
        def plain(*inputs):
            more = []
            for name, (default, dtype) in OPTIONS.items():
                value = settings.get(name, default)
                if default == ():
                    rows = value if isinstance(value, list) else [value] * len(prompts)
                    length = max(map(len, rows), default=0)
                    padded = [[*row, *[""] * (length - len(row))] for row in rows]
                    value = np.array(padded, object).reshape(len(prompts), length)
                else:
                    value = np.broadcast_to(value, len(prompts))
                more.append(tf.constant(value.tolist(), dtype, np.shape(value)))
            return graph(*inputs, *more)

        return caller(plain)(prompts, **{k: v for k, v in settings.items() if k in INPUTS})

    return run


@pytest.fixture(scope="module")
def narrowed(model, tokenizer):
    return optional_caller(optional_graph(model, tokenizer, list(OPTIONS)))


def test_options_that_change_nothing_change_nothing(run, narrowed):
    assert narrowed(PROMPTS, **MIXED) == run(PROMPTS, **MIXED)


def ops_of(graph):
    definition = graph.get_concrete_function().graph.as_graph_def()
    nodes = [*definition.node]
    for function in definition.library.function:
        nodes += function.node_def
    return collections.Counter(node.op for node in nodes)


def test_options_that_are_not_given_are_not_in_the_graph(tokenizer):
    model = scripted({}, tokenizer.vocabulary_size)
    plain = ops_of(graph_of(model, tokenizer))
    assert ops_of(optional_graph(model, tokenizer, [])) == plain
    assert not {"ScatterNd", "DecodePaddedRaw", "Roll", "Log"} & set(plain)
    for name in OPTIONS:
        more = ops_of(optional_graph(model, tokenizer, [name])) - plain
        assert more.total() > 0, name


def greedy_with_penalties(logits_of, tokenizer, prompt, max_tokens, settings):
    """As `greedy_by_hand`, with repetition, presence, frequency and n-grams in plain Python."""
    tokens = [BEGIN, *tokenizer(tf.constant([prompt])).to_list()[0]]
    written = []
    while len(written) < max_tokens:
        logits = logits_of(tf.constant([tokens]))[0, -1].numpy()
        for token in set(tokens):
            penalty = settings.get("repetition_penalty", 1.0)
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        for token in set(written):
            logits[token] -= settings.get("presence_penalty", 0.0)
            logits[token] -= settings.get("frequency_penalty", 0.0) * written.count(token)
        n = settings.get("no_repeat_ngram", 0)
        for i in range(len(tokens) - n + 1 if n else 0):
            if tokens[i : i + n - 1] == tokens[len(tokens) - n + 1 :]:
                logits[tokens[i + n - 1]] = -np.inf
        logits[[PADDING, UNKNOWN, BEGIN]] = -np.inf
        token = int(logits.argmax())
        if token == END:
            break
        written.append(token)
        tokens.append(token)
    return text_of(tokenizer, written)


PENALTIES = [
    {},
    {"repetition_penalty": 3.0},
    {"presence_penalty": 4.0},
    {"frequency_penalty": 1.5},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2},
    {"repetition_penalty": 1.3, "presence_penalty": -1.0, "no_repeat_ngram": 3},
]


def test_each_row_is_penalized_by_its_own_settings(narrowed, logits_of, tokenizer):
    for prompt in ("ababab", "zz"):
        columns = {
            name: [row.get(name, OPTIONS[name][0]) for row in PENALTIES]
            for name in list(OPTIONS)[2:6]
        }
        texts = [t for t, *_ in narrowed([prompt] * len(PENALTIES), max_tokens=7, **columns)]
        expected = [
            greedy_with_penalties(logits_of, tokenizer, prompt, 7, settings)
            for settings in PENALTIES
        ]
        assert texts == expected
        assert len(set(texts)) > 2


NARROW = {
    "min_p": [0.2, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0],
    "typical_p": [1.0, 1.0, 0.9, 0.5, 1.0, 1.0, 1.0],
    "repetition_penalty": [1.0, 2.0, 1.0, 1.0, 1.5, 1.0, 1.0],
    "presence_penalty": [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5],
    "frequency_penalty": [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5],
    "no_repeat_ngram": [2, 0, 0, 3, 0, 0, 1],
    "stop": [("a",), (), ("x", "yz", "m"), (), (), ("b",), ("e", "o")],
    "choices": [(), ("cab", "fig"), (), (), ("dad", "egg", "a"), (), ()],
}


def test_no_option_lets_rows_see_each_other(narrowed):
    together = narrowed(PROMPTS, **MIXED, **NARROW)
    assert together != narrowed(PROMPTS, **MIXED)
    for i in (0, 2, 4, 6):
        own = {name: [values[i]] for name, values in (MIXED | NARROW).items()}
        assert narrowed([PROMPTS[i]], **own) == [together[i]], PROMPTS[i]


def test_a_text_ends_in_front_of_the_first_stop_string(narrowed):
    """The text, cut by hand; tokens of the string are counted, as the network wrote them."""
    settings = {"temperature": 1.5, "seed": list(range(12)), "max_tokens": 10}
    whole = narrowed(["ab"] * 12, **settings)
    stop = ("q", whole[3][0][2:4], whole[5][0][1])
    cut = 0
    for (text, num_tokens, reason), (full, n, why) in zip(
        narrowed(["ab"] * 12, stop=stop, **settings), whole, strict=True
    ):
        ends = [(full.find(string) + len(string), string) for string in stop if string in full]
        if not ends:
            assert (text, num_tokens, reason) == (full, n, why)
            continue
        first = min(ends)[0]  # the string that is complete first
        begin = min(full[:first].find(string) for string in stop if string in full[:first])
        assert (text, num_tokens, reason) == (full[:begin], first, "stop")
        cut += 1
    assert 2 <= cut < 12


def test_a_text_is_one_of_its_choices(narrowed, logits_of, tokenizer):
    """Drawn token by token: the probability of a choice is a product over what still fits."""
    choices, count = ("cab", "cat", "c", "dog"), 400
    answers = narrowed(
        ["ab"] * count, choices=choices, temperature=1.0, seed=list(range(count)), max_tokens=9
    )
    assert {(n, reason) for _, n, reason in answers} == {(1, "stop"), (3, "stop")}
    texts = [text for text, *_ in answers]
    start = [BEGIN, *tokenizer(tf.constant(["ab"])).to_list()[0]]
    spelled = [[*tokenizer(tf.constant([c])).to_list()[0], END] for c in choices]
    for choice, tokens in zip(choices, spelled, strict=True):
        probability = 1.0
        for i, token in enumerate(tokens):
            fitting = sorted({t[i] for t in spelled if t[:i] == tokens[:i]})
            logits = logits_of(tf.constant([start + tokens[:i]]))[0, -1].numpy()[fitting]
            weights = np.exp(logits - logits.max())
            probability *= weights[fitting.index(token)] / weights.sum()
        deviation = np.sqrt(count * probability * (1 - probability))
        assert abs(texts.count(choice) - count * probability) < 4 * deviation + 1e-3, choice
    assert len(set(texts)) > 1
    # Cut like any text; a repeated n-gram is allowed where nothing else would be left.
    assert narrowed(["a"], choices=("cab",), max_tokens=2) == [("ca", 2, "length")]
    assert narrowed(["a"], choices=("aaa",), no_repeat_ngram=1) == [("aaa", 3, "stop")]


def test_wrong_options_are_refused(narrowed, model, tokenizer):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"can write[^[]*\[\W*ca1"):
        narrowed(["a", "b"], choices=("cab", "ca1"))
    inputs = [tf.constant([value], dtype) for value, dtype in INPUTS.values()]
    with pytest.raises(ValueError, match=r"stop must have rank 2. Received: shape \(1,\)"):
        generate(model, tokenizer, *inputs, Options(stop=tf.constant(["a"])))
    with pytest.raises(tf.errors.InvalidArgumentError, match="min_p must have one value"):
        generate(model, tokenizer, *inputs, Options(min_p=tf.constant([0.1, 0.2])))


# A state in place of a cache ----------------------------------------------------------------------


def test_a_recurrent_network_writes_what_its_plain_call_would_say(tokenizer, tmp_path):
    """In the process, and from an export that knows only TensorFlow's ops."""
    config = RecurrentLanguageModelConfig(embedding_size=16, units=12, context_length=CONTEXT)
    model = build_model(config, tokenizer.vocabulary_size, seed=0)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.8, size=variable.shape))
    logits_of = tf.function(model, input_signature=[tf.TensorSpec([None, None], tf.int32)])
    answers = caller(graph_of(model, tokenizer))(PROMPTS, max_tokens=6)
    assert len({text for text, *_ in answers}) > 2
    for prompt, (text, num_tokens, reason) in zip(PROMPTS, answers, strict=True):
        tokens, expected_reason = greedy_by_hand(logits_of, tokenizer, prompt, 6)
        assert (text, num_tokens) == (text_of(tokenizer, tokens), len(tokens)), prompt
        assert reason == expected_reason

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(tokenizer)
    signature = [tf.TensorSpec([None], dtype, name) for name, (_, dtype) in INPUTS.items()]
    archive.add_endpoint("write", lambda *x: generate(model, tokenizer, *x), signature)
    archive.write_out(str(tmp_path / "export"), verbose=False)
    loaded = tf.saved_model.load(tmp_path / "export")

    def exported(*inputs):
        answer = loaded.write(*inputs)  # sorted by name
        return {name: answer[name] for name in GENERATOR_OUTPUTS}

    assert caller(exported)(PROMPTS, max_tokens=6) == answers


# Scripted: a stand-in for the network whose next token follows from the last one only -----------


def scripted(next_token, vocabulary_size):
    """Writes `next_token[t]` after t; whatever stands before it would never be written."""
    table = np.full((vocabulary_size, vocabulary_size), -5.0, np.float32)
    for token, following in next_token.items():
        table[token, following] = 5.0
    table[:, [PADDING, UNKNOWN, BEGIN]] = 50.0  # and the specials tempt everywhere
    table = tf.constant(table)

    def prefill(tokens, lengths, num_slots):
        return tf.gather(table, tf.gather(tokens, lengths - 1, axis=1, batch_dims=1)), lengths

    def decode(token, position, cache):
        return tf.gather(table, token), cache

    config = SimpleNamespace(context_length=CONTEXT)
    return SimpleNamespace(config=config, prefill=prefill, decode=decode)


@pytest.fixture(scope="module")
def script(tokenizer):
    """a -> b -> c -> end; x -> y -> x -> ...; the empty text -> end."""
    a, b, c, x, y = tokenizer(tf.constant(["abcxy"])).to_list()[0]
    following = {BEGIN: END, a: b, b: c, c: END, x: y, y: x, END: x}
    return caller(graph_of(scripted(following, tokenizer.vocabulary_size), tokenizer))


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_the_end_of_text_stops_a_row_and_is_neither_counted_nor_shown(script, temperature):
    assert script(["a", "x", "", "b"], max_tokens=5, temperature=temperature) == [
        ("bc", 2, "stop"),
        ("yxyxy", 5, "length"),
        ("", 0, "stop"),
        ("c", 1, "stop"),
    ]


def test_the_last_token_allowed_is_no_stop(script):
    """The text would end next, but the limit comes first."""
    assert script(["a", "a"], max_tokens=[2, 3]) == [("bc", 2, "length"), ("bc", 2, "stop")]


def test_padding_unknown_and_begin_are_never_written(script):
    texts = script(["x"] * 20, max_tokens=14, temperature=5.0, seed=list(range(20)))
    assert all(n == len(text) and "⁇" not in text for text, n, _ in texts)
    assert len({text for text, *_ in texts}) > 15  # hot enough to draw anything
