import dataclasses
import json

import pytest

from model.config import (
    BagOfNgramsConfig,
    BidirectionalLSTMConfig,
    NgramTokenizerConfig,
    SentencePieceTokenizerConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    WordTokenizerConfig,
)
from training.config import (
    CLASSIFICATION,
    GENERATION,
    OPTIMIZER_NAMES,
    SCHEDULE_NAMES,
    OptimizerConfig,
    RunConfig,
    override,
)
from training.datasets.config import DatasetConfig
from training.optimizers import OPTIMIZERS
from training.recipes import DEFAULT_RECIPES, RECIPES, recipe
from training.schedules import SCHEDULES


def small(**changes):
    settings = {
        "name": "run",
        "dataset": DatasetConfig(name="starter_sentiment"),
        "tokenizer": WordTokenizerConfig(),
        "model": TransformerEncoderConfig(),
    }
    return RunConfig(**(settings | changes))


def leaves(config, prefix=""):
    """(name as the user types it, value) of every plain setting."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, prefix + field.name + ".")
        else:
            yield prefix + field.name, value


# Recipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_its_json(name):
    config = recipe(name)
    written = json.loads(json.dumps(config.to_dict()))
    assert RunConfig.from_dict(written) == config
    # ... and names the same folder: a recipe may write 5 where the file says 5.0.
    assert RunConfig.from_dict(written).digest("data") == config.digest("data")
    assert override(config, []).digest("data") == config.digest("data")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_after_its_key_and_says_what_it_is(name):
    assert recipe(name).name == name
    assert RECIPES[name].__doc__.strip()


def test_unknown_recipes_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'sentimnet'.*sentiment, .*tang_poems"):
        recipe("sentimnet")
    assert set(DEFAULT_RECIPES) <= set(RECIPES)


def test_the_names_of_the_configuration_are_those_of_the_tables():
    assert set(OPTIMIZER_NAMES) == set(OPTIMIZERS)
    assert set(SCHEDULE_NAMES) == set(SCHEDULES)


def test_the_task_follows_from_the_network():
    assert small().task == CLASSIFICATION
    generator = small(tokenizer=SentencePieceTokenizerConfig(), model=TransformerDecoderConfig())
    assert generator.task == GENERATION


# Digest -------------------------------------------------------------------------------------------


# Another value for every setting of `small()`; those that need others beside them come along.
OTHERWISE = {
    "name": ["name=other"],
    "dataset.name": ["dataset.name=starter_topics"],
    "dataset.path": ["dataset.name=file", "dataset.path=b.csv"],
    "dataset.validation_path": ["dataset.validation_path=v.csv"],
    "dataset.test_path": ["dataset.test_path=t.csv"],
    "dataset.text_column": ["dataset.text_column=text"],
    "dataset.label_column": ["dataset.label_column=label"],
    "dataset.max_examples": ["dataset.max_examples=10"],
    "tokenizer.name": ["tokenizer=ngram", "model=bag_of_ngrams"],
    "tokenizer.vocabulary_size": ["tokenizer.vocabulary_size=99"],
    "tokenizer.min_count": ["tokenizer.min_count=9"],
    "tokenizer.max_tokens": ["tokenizer.max_tokens=9"],
    "model.name": ["model=bidirectional_lstm"],
    "model.num_layers": ["model.num_layers=9"],
    "model.width": ["model.width=64"],
    "model.num_heads": ["model.num_heads=2"],
    "model.inner_width": ["model.inner_width=9"],
    "model.dropout": ["model.dropout=0.9"],
    "optimizer.name": ["optimizer.name=sgd"],
    "optimizer.peak_learning_rate": ["optimizer.peak_learning_rate=9"],
    "optimizer.schedule": ["optimizer.schedule=constant"],
    "optimizer.warmup_steps": ["optimizer.warmup_steps=9"],
    "optimizer.final_fraction": ["optimizer.final_fraction=0.9"],
    "optimizer.weight_decay": ["optimizer.weight_decay=0.9"],
    "optimizer.embedding_rate_factor": ["optimizer.embedding_rate_factor=9"],
    "optimizer.clip_norm": ["optimizer.clip_norm=none"],
    "batch_size": ["batch_size=9"],
    "epochs": ["epochs=9"],
    "evaluate_every": ["evaluate_every=9"],
    "patience": ["patience=9"],
    "seed": ["seed=9"],
}


def test_the_digest_changes_with_every_setting_and_with_the_data():
    assert set(OTHERWISE) == {name for name, _ in leaves(small())}
    digests = [small().digest("data"), small().digest("other data")]
    for name, assignments in OTHERWISE.items():
        config = small()
        if name.startswith("dataset.") and name not in ("dataset.name", "dataset.max_examples"):
            config = small(dataset=DatasetConfig(name="file", path="a.csv"))
            digests.append(config.digest("data"))
        digests.append(override(config, assignments).digest("data"))
    assert len(set(digests)) == 2 + len(OTHERWISE) + 1


def test_equal_settings_have_equal_digests():
    assert small().digest("data") == small().digest("data")
    assert small(epochs=5).digest("data") == small(epochs=5.0).digest("data")
    assert len(small().digest("data")) == 8


# Overrides ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("batch_size=7", 7),
        ("epochs=2", 2.0),
        ("epochs=0.25", 0.25),
        ("evaluate_every=100", 100),
        ("evaluate_every=none", None),
        ("optimizer.peak_learning_rate=1e-2", 0.01),
        ("optimizer.clip_norm=None", None),
        ("optimizer.clip_norm=2", 2.0),
        ("optimizer.name=sgd", "sgd"),
        ("dataset.max_examples=50", 50),
        ("model.dropout=0", 0.0),
        (" batch_size = 9 ", 9),
        ("name=a=b", ValueError),
        ("name=中文-1.0_x", "中文-1.0_x"),
    ],
)
def test_a_setting_is_read_as_its_type(assignment, value):
    if value is ValueError:
        with pytest.raises(ValueError, match="Received: 'a=b'"):
            override(small(), [assignment])
        return
    found = dict(leaves(override(small(evaluate_every=3), [assignment])))
    received = found[assignment.partition("=")[0].strip()]
    assert received == value and type(received) is type(value)


def test_an_override_changes_nothing_else():
    before, after = small(), override(small(), ["optimizer.warmup_steps=5"])
    differing = {name for name, value in leaves(before) if dict(leaves(after))[name] != value}
    assert differing == {"optimizer.warmup_steps"}
    assert before.optimizer.warmup_steps == 0


def test_sections_are_swapped_by_name_and_the_order_counts():
    config = override(small(), ["model=bidirectional_lstm", "model.units=5"])
    assert config.model == BidirectionalLSTMConfig(units=5)
    config = override(small(), ["tokenizer=ngram", "model=bag_of_ngrams"])
    assert (config.tokenizer, config.model) == (NgramTokenizerConfig(), BagOfNgramsConfig())
    # What was set before the swap belonged to the old section.
    config = override(small(), ["model.dropout=0.9", "model=transformer_encoder"])
    assert config.model == TransformerEncoderConfig()
    assert override(small(), ["batch_size=3", "batch_size=4"]).batch_size == 4


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("optimizer.learning_rate=1", ["optimizer.learning_rate", "Known: optimizer.name"]),
        ("optimizer.peak_lerning_rate=1", ["Did you mean optimizer.peak_learning_rate?"]),
        ("bach_size=1", ["Did you mean batch_size?", "Known: name, dataset"]),
        ("optimiser.name=sgd", ["Unknown setting optimiser.", "Did you mean optimizer?"]),
        ("model.units=3", ["Unknown setting model.units", "model.width"]),  # of another model
        ("model=lstm", ["model must be one of bag_of_ngrams, bidirectional_lstm", "'lstm'"]),
        ("tokenizer=bpe", ["tokenizer must be one of word, ngram, sentencepiece"]),
        ("model.name=bidirectional_lstm", ["model=NAME"]),
        ("optimizer=sgd", ["optimizer is a section", "optimizer.name", "'sgd'"]),
        ("dataset=imdb", ["dataset is a section", "dataset.name", "'imdb'"]),
        ("seed.value=3", ["seed has no settings inside", "seed.value"]),
        ("model.width.x=3", ["model.width has no settings inside"]),
        ("batch_size=ten", ["batch_size must be a whole number", "'ten'"]),
        ("batch_size=1.5", ["batch_size must be a whole number", "'1.5'"]),
        ("batch_size=none", ["batch_size must be a whole number", "'none'"]),
        ("optimizer.clip_norm=big", ["optimizer.clip_norm must be a number or none", "'big'"]),
        ("epochs=", ["epochs must be a number", "''"]),
        ("batch_size", ["--set takes name=value", "'batch_size'"]),
        ("=5", ["--set takes name=value"]),
    ],
)
def test_a_wrong_assignment_says_what_to_type(assignment, parts):
    with pytest.raises(ValueError) as refusal:
        override(small(), [assignment])
    for part in parts:
        assert part in str(refusal.value)


# Checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", ""),
        ("name", "../up"),
        ("name", ".."),
        ("name", "a b"),
        ("batch_size", 0),
        ("epochs", 0.0),
        ("epochs", float("inf")),
        ("epochs", float("nan")),
        ("evaluate_every", 0),
        ("patience", -1),
        ("seed", -1),
        ("optimizer.name", "adagrad"),
        ("optimizer.schedule", "linear"),
        ("optimizer.peak_learning_rate", 0.0),
        ("optimizer.peak_learning_rate", float("inf")),
        ("optimizer.peak_learning_rate", float("nan")),
        ("optimizer.warmup_steps", -1),
        ("optimizer.final_fraction", 1.5),
        ("optimizer.final_fraction", -0.1),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.embedding_rate_factor", 0.0),
        ("optimizer.clip_norm", 0.0),
        ("optimizer.clip_norm", -1.0),
        ("optimizer.clip_norm", float("inf")),  # inf * 0 would turn every gradient into NaN
    ],
)
def test_a_wrong_value_is_refused_under_its_name(setting, value):
    section, _, leaf = setting.rpartition(".")
    with pytest.raises(ValueError) as refusal:
        OptimizerConfig(**{leaf: value}) if section else small(**{leaf: value})
    assert str(refusal.value).startswith(f"{setting} must be ")
    assert str(refusal.value).endswith(f"Received: {value!r}")


@pytest.mark.parametrize("name", sorted(set(OPTIMIZER_NAMES) - {"adamw"}))
def test_weight_decay_is_for_adamw_alone(name):
    with pytest.raises(ValueError, match="optimizer.weight_decay must be 0, or above 0 with"):
        OptimizerConfig(name=name, weight_decay=0.1)
    assert OptimizerConfig(name="adamw", weight_decay=0.1).weight_decay == 0.1


@pytest.mark.parametrize(
    ("model", "tokenizer", "fits"),
    [
        (BagOfNgramsConfig(), NgramTokenizerConfig(), True),
        (BagOfNgramsConfig(), WordTokenizerConfig(), True),
        (BagOfNgramsConfig(), SentencePieceTokenizerConfig(), False),
        (BidirectionalLSTMConfig(), WordTokenizerConfig(), True),
        (BidirectionalLSTMConfig(), NgramTokenizerConfig(), False),  # a set has no order to read
        (TransformerEncoderConfig(), NgramTokenizerConfig(), False),
        (TransformerDecoderConfig(), SentencePieceTokenizerConfig(), True),
        (TransformerDecoderConfig(), WordTokenizerConfig(), False),  # words cannot be put together
    ],
)
def test_the_tokenizer_must_fit_the_network(model, tokenizer, fits):
    if fits:
        assert small(model=model, tokenizer=tokenizer).tokenizer is tokenizer
        return
    with pytest.raises(ValueError) as refusal:
        small(model=model, tokenizer=tokenizer)
    assert str(refusal.value).startswith("tokenizer must be ")
    assert f"for model={model.name}. Received: '{tokenizer.name}'" in str(refusal.value)


# Files --------------------------------------------------------------------------------------------


def written(**changes):
    """A config.json with `changes`; a value of ... takes the setting out."""
    values = small().to_dict() | changes
    return {name: value for name, value in values.items() if value is not ...}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([1, 2], ["The configuration must be an object", "[1, 2]"]),
        (written(batch=3), ["Unknown setting batch.", "Known: name"]),
        (written(name=..., dataset=...), ["Missing settings: name, dataset."]),
        (written(dataset={}), ["Missing settings: dataset.name."]),
        (written(dataset="imdb"), ["dataset must be an object of settings", "'imdb'"]),
        (written(model={"width": 8}), ["model.name must be one of", "None"]),
        (written(model={"name": "gpt"}), ["model.name must be one of", "'gpt'"]),
        (written(batch_size="32"), ["batch_size must be a whole number", "'32'"]),
        (written(batch_size=32.0), ["batch_size must be a whole number", "32.0"]),
        (written(batch_size=True), ["batch_size must be a whole number", "True"]),
        (written(epochs=None), ["epochs must be a number", "None"]),
        (written(name=3), ["name must be a text", "3"]),
        (written(optimizer={"clip_norm": "1"}), ["optimizer.clip_norm must be a number or none"]),
        (written(optimizer={"rate": 1}), ["Unknown setting optimizer.rate"]),
    ],
)
def test_a_wrong_file_says_where_it_is_wrong(values, parts):
    with pytest.raises(ValueError) as refusal:
        RunConfig.from_dict(values)
    for part in parts:
        assert part in str(refusal.value)


def test_what_a_file_leaves_out_is_the_default():
    values = written(optimizer=..., seed=..., tokenizer={"name": "word"})
    assert RunConfig.from_dict(values) == small()


def test_a_float_may_be_written_as_a_whole_number():
    config = RunConfig.from_dict(written(epochs=3, optimizer={"clip_norm": 2}))
    assert (config.epochs, config.optimizer.clip_norm) == (3.0, 2.0)
    assert type(config.epochs) is float and type(config.optimizer.clip_norm) is float
