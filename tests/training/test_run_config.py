import dataclasses
import json

import pytest

from model.config import (
    BagOfNgramsConfig,
    ByteBPETokenizerConfig,
    BytesTokenizerConfig,
    CharacterTokenizerConfig,
    NgramTokenizerConfig,
    RecurrentConfig,
    SentencePieceTokenizerConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    ULMFiTLSTMConfig,
    WordpieceTokenizerConfig,
    WordTokenizerConfig,
)
from training.config import (
    CLASSIFICATION,
    GENERATION,
    NEEDS,
    NEEDS_OF_RUN,
    OptimizerConfig,
    RunConfig,
    StageConfig,
    override,
)
from training.datasets.config import DatasetConfig
from training.recipes import DEFAULT_RECIPES, RECIPES, recipe
from training.strategies.catalogue import OPTIMIZERS


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


def test_the_task_follows_from_the_network():
    assert small().task == CLASSIFICATION
    generator = small(tokenizer=SentencePieceTokenizerConfig(), model=TransformerDecoderConfig())
    assert generator.task == GENERATION


# Digest -------------------------------------------------------------------------------------------


TAUGHT = ["objective=distillation", "teacher=sentiment"]
# Another value for every setting of `small()`; those that need others beside them come along.
OTHERWISE = {
    "name": ["name=other"],
    "dataset.name": ["dataset.name=starter_topics"],
    "dataset.path": ["dataset.name=file", "dataset.path=b.csv"],
    "dataset.validation_path": ["dataset.validation_path=v.csv"],
    "dataset.test_path": ["dataset.test_path=t.csv"],
    "dataset.text_column": ["dataset.text_column=text"],
    "dataset.label_column": ["dataset.label_column=label"],
    "dataset.label_separator": ["target=labels", "dataset.label_separator=;"],
    "dataset.label_order": ["target=grade", "dataset.label_order=bad|good"],
    "dataset.streaming": ["dataset.streaming=true"],
    "dataset.join_validation": ["dataset.join_validation=true"],
    "dataset.max_examples": ["dataset.max_examples=10"],
    "tokenizer.name": ["tokenizer=ngram", "model=bag_of_ngrams"],
    "tokenizer.vocabulary_size": ["tokenizer.vocabulary_size=99"],
    "tokenizer.min_count": ["tokenizer.min_count=9"],
    "tokenizer.max_tokens": ["tokenizer.max_tokens=9"],
    "tokenizer.normalization": ["tokenizer.normalization=nfkc"],
    "tokenizer.simplify": ["tokenizer.simplify=true"],
    "model.name": ["model=recurrent"],
    "model.num_layers": ["model.num_layers=9"],
    "model.width": ["model.width=64"],
    "model.num_heads": ["model.num_heads=2"],
    "model.num_key_value_heads": ["model.num_key_value_heads=1"],
    "model.inner_width": ["model.inner_width=9"],
    "model.dropout": ["model.dropout=0.9"],
    "model.dropout_kind": ["model.dropout_kind=layer"],
    "model.recompute": ["model.recompute=true"],
    "model.token_head": ["model.token_head=true"],
    "model.positions": ["model.positions=alibi"],
    "model.max_positions": ["model.positions=learned", "model.max_positions=64"],
    "model.normalization": ["model.normalization=rms"],
    "model.activation": ["model.activation=swiglu"],
    "model.bias": ["model.bias=false"],
    "model.qk_norm": ["model.qk_norm=true"],
    "model.initialization": ["model.initialization=gpt2"],
    "model.zero_output_projections": ["model.zero_output_projections=true"],
    "optimizer.peak_learning_rate": ["optimizer.peak_learning_rate=9"],
    "optimizer.schedule": ["optimizer.schedule=constant"],
    "optimizer.weight_decay": ["optimizer.weight_decay=0.9"],
    "optimizer.embedding_rate_factor": ["optimizer.embedding_rate_factor=9"],
    "optimizer.clip_norm": ["optimizer.clip_norm=none"],
    "batch_size": ["batch_size=9"],
    "epochs": ["epochs=9"],
    "evaluate_every": ["evaluate_every=9"],
    "patience": ["patience=9"],
    "seed": ["seed=9"],
    "objective": TAUGHT,
    "strategy": ["strategy=ema(adamw)"],
    "trainable": ["trainable=head"],
    "rate_factors": ["rate_factors=head=2"],
    "max_tokens": ["max_tokens=9"],
    "max_updates": ["max_updates=9"],
    "keep": ["keep=last"],
    "stop_loss": ["stop_loss=0.1"],
    "stop_grad_norm": ["stop_grad_norm=0.1"],
    "stop_updates": ["stop_loss=0.1", "stop_updates=2"],
    "dropout": ["dropout=0.1"],
    "label_smoothing": ["label_smoothing=0.1"],
    "class_weights": ["class_weights=balanced"],
    "target": ["target=grade"],
    "calibrate": ["calibrate=false"],
    "mixture": ["mixture.name=starter_topics"],
    "mixture_share": ["mixture.name=starter_topics", "mixture_share=0.1"],
    "lora_rank": ["lora_rank=2"],
    "lora_alpha": ["lora_rank=2", "lora_alpha=2"],
    "lora_layers": ["lora_rank=2", "lora_layers=head"],
    "teacher": ["objective=distillation", "teacher=topics"],
    "distillation_temperature": [*TAUGHT, "distillation_temperature=9"],
    "distillation_share": [*TAUGHT, "distillation_share=0.9"],
    "precision": ["precision=mixed_bfloat16"],
    "deterministic": ["deterministic=false"],
    "xla": ["xla=true"],
    "updates_per_call": ["updates_per_call=9"],
    "vectors": ["vectors=glove.txt"],
    "tune_vectors": ["vectors=glove.txt", "tune_vectors=false"],
}
# These change when and how much is saved, but nothing that is computed.
IN_OTHER_STAGES = {"mask_rate"}  # the last one cannot have its objective
OF_GENERATORS = {"packing"}
SAME_RUN = {"save_every": ["save_every=9"], "keep_checkpoints": ["keep_checkpoints=9"]}


def test_the_digest_changes_with_every_setting_and_with_the_data():
    names = {name for name, _ in leaves(small())}
    others = IN_OTHER_STAGES | OF_GENERATORS | {"earlier"}
    assert set(OTHERWISE) | set(SAME_RUN) | others == names
    digests = [small().digest("data"), small().digest("other data")]
    for name, assignments in OTHERWISE.items():
        config = small()
        if name.startswith("dataset.") and name not in ("dataset.name", "dataset.max_examples"):
            config = small(dataset=DatasetConfig(name="file", path="a.csv"))
            digests.append(config.digest("data"))
        digests.append(override(config, assignments).digest("data"))
    assert len(set(digests)) == 2 + len(OTHERWISE) + 1


def test_packing_is_for_generators_and_makes_another_run():
    generator = small(tokenizer=SentencePieceTokenizerConfig(), model=TransformerDecoderConfig())
    packed = override(generator, ["packing=packed"])
    assert packed.digest("data") != generator.digest("data")
    with pytest.raises(ValueError, match="packing does nothing here: it needs a generator"):
        override(small(), ["packing=packed"])


def test_how_often_is_saved_makes_no_other_run():
    for assignments in SAME_RUN.values():
        changed = override(small(), assignments)
        assert changed != small() and changed.digest("data") == small().digest("data")


def test_the_digest_changes_with_the_stages_before():
    stage = StageConfig(name="before")
    digests = {
        small(earlier=earlier).digest("data")
        for earlier in (
            (),
            (stage,),
            (dataclasses.replace(stage, epochs=9),),
            (dataclasses.replace(stage, mask_rate=0.1),),
        )
    }
    assert len(digests) == 4


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
        ("optimizer.weight_decay=1", 1.0),
        ("optimizer.weight_decay=linear(0, 0.1)", "linear(0, 0.1)"),
        ("optimizer.schedule=cosine(end=0.1, warmup=3)", "cosine(end=0.1, warmup=3)"),
        ("strategy=lookahead(sam(adamw), k=5)", "lookahead(sam(adamw), k=5)"),
        ("rate_factors=head=2, lstm=0.5", "head=2, lstm=0.5"),
        ("batch_size=full", "full"),
        ("max_tokens=linear(8, 32)", "linear(8, 32)"),
        ("max_tokens=none", None),
        ("xla=true", True),
        ("deterministic=False", False),
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
    before, after = small(), override(small(), ["optimizer.clip_norm=5"])
    differing = {name for name, value in leaves(before) if dict(leaves(after))[name] != value}
    assert differing == {"optimizer.clip_norm"}
    assert before.optimizer.clip_norm == 1.0


def test_sections_are_swapped_by_name_and_the_order_counts():
    config = override(small(), ["model=recurrent", "model.units=5"])
    assert config.model == RecurrentConfig(units=5)
    config = override(small(), ["tokenizer=ngram", "model=bag_of_ngrams"])
    assert (config.tokenizer, config.model) == (NgramTokenizerConfig(), BagOfNgramsConfig())
    # What was set before the swap belonged to the old section.
    config = override(small(), ["model.dropout=0.9", "model=transformer_encoder"])
    assert config.model == TransformerEncoderConfig()
    assert override(small(), ["batch_size=3", "batch_size=4"]).batch_size == 4


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("optimizer.learning_rate=1", ["optimizer.learning_rate", "Known: optimizer.peak"]),
        ("optimizer.peak_lerning_rate=1", ["Did you mean optimizer.peak_learning_rate?"]),
        ("bach_size=1", ["Did you mean batch_size?", "Known: name, dataset"]),
        ("optimizer.name=sgd", ["Unknown setting optimizer.name", "optimizer.schedule"]),
        ("strategy=adagrad", ["unknown part 'adagrad'", "Optimizers: ", "adamw", "lookahead"]),
        ("strategy=sam(lookahead(adamw))", ["Turn them around: lookahead(sam(...))"]),
        ("optimiser.clip_norm=1", ["Unknown setting optimiser.", "Did you mean optimizer?"]),
        ("model.units=3", ["Unknown setting model.units", "model.width"]),  # of another model
        ("model=lstm", ["model must be one of bag_of_ngrams, text_cnn", "'lstm'"]),
        ("tokenizer=bpe", ["tokenizer must be one of word, ngram, sentencepiece"]),
        ("model.name=recurrent", ["model=NAME"]),
        ("optimizer=sgd", ["optimizer is a section", "optimizer.schedule", "'sgd'"]),
        ("dataset=imdb", ["dataset is a section", "dataset.name", "'imdb'"]),
        ("seed.value=3", ["seed has no settings inside", "seed.value"]),
        ("model.width.x=3", ["model.width has no settings inside"]),
        ("batch_size=ten", ["batch_size must be a number or one of constant", "'ten'"]),
        ("seed=1.5", ["seed must be a whole number", "'1.5'"]),
        ("seed=none", ["seed must be a whole number", "'none'"]),
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
        ("objective", "rewards"),
        ("max_updates", 0),
        ("max_tokens", 0),
        ("keep", "first"),
        ("stop_loss", -0.1),
        ("stop_grad_norm", -0.1),
        ("stop_updates", 0),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("mask_rate", 0.0),
        ("mask_rate", 1.0),
        ("lora_rank", -1),
        ("lora_alpha", 0.0),
        ("teacher", "sentiment"),  # with nothing to learn from it
        ("distillation_temperature", 0.0),
        ("distillation_share", -0.1),
        ("distillation_share", 1.1),
        ("trainable", "("),
        ("lora_layers", "["),
        ("rate_factors", "head"),
        ("rate_factors", "=2"),
        ("rate_factors", "head=-1"),
        ("rate_factors", "head=2, lstm=fast"),
        ("rate_factors", "head=inf"),
        ("precision", "float16"),
        ("updates_per_call", 0),
        ("save_every", -1.0),
        ("keep_checkpoints", 0),
        ("optimizer.peak_learning_rate", 0.0),
        ("optimizer.peak_learning_rate", float("inf")),
        ("optimizer.peak_learning_rate", float("nan")),
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
    assert f"Received: {value!r}" in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("strategy", "adamw("),
        ("strategy", "lookahead(5)"),
        ("strategy", "adagrad"),
        ("strategy", "sam(adamw, rho=-1)"),
        ("batch_size", "growing"),
        ("batch_size", "linear(0, 8)"),
        ("max_tokens", "linear(8)extra"),
        ("max_tokens", "linear(0, 8)"),
        ("dropout", "linear(0, 1.5)"),
        ("dropout", "-0.1"),
        ("mixture_share", "linear(0, 1.5)"),
        ("mixture_share", "half"),
        ("optimizer.schedule", "cosinus"),
        ("optimizer.schedule", "linear(1, -1)"),
        ("optimizer.schedule", "cosine(warmup=-1)"),
        ("optimizer.weight_decay", "linear(0, -0.1)"),
        ("optimizer.weight_decay", "heavy"),
    ],
)
def test_a_wrong_expression_is_refused_under_its_name(setting, value):
    section, _, leaf = setting.rpartition(".")
    with pytest.raises(ValueError) as refusal:
        OptimizerConfig(**{leaf: value}) if section else small(**{leaf: value}, max_updates=4)
    assert setting in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"batch_size": "linear(2, 8)"}, ["max_updates must be set when batch_size is a schedule"]),
        ({"batch_size": "full", "strategy": "dp_sgd(sgd)"}, ["batch_size must be a number with"]),
        (
            {"batch_size": "full", "mixture": DatasetConfig(name="imdb")},
            ["mixture must be none with dp_sgd", "batch_size=full", "'imdb'"],
        ),
        (
            {"strategy": "dp_sgd(sgd)", "mixture": DatasetConfig(name="imdb")},
            ["mixture must be none with dp_sgd", "'imdb'"],
        ),
        (
            {"strategy": "dp_sgd(sgd)", "earlier": "sgd"},
            ["earlier must be empty with dp_sgd", "the first to see the texts", "['before']"],
        ),
        (
            {"strategy": "dp_sgd(sgd)", "earlier": "private"},
            ["earlier must be empty with dp_sgd", "['before']"],
        ),
        ({"earlier": "private"}, ["earlier must be empty with dp_sgd", "['before']"]),
        (
            {"strategy": "dp_sgd(sgd)", "objective": "distillation", "teacher": "topics"},
            ["teacher must be none with dp_sgd", "'topics'"],
        ),
        (
            {"optimizer": OptimizerConfig(schedule="plateau(patience=3)"), "patience": 3},
            ["patience must be 0, or above the 3 evaluations", "it would end first"],
        ),
        ({"objective": "distillation"}, ["teacher must be a recipe's name", "None"]),
        ({"objective": "language_model"}, ["objective must be supervised or distillation"]),
        (
            {"precision": "mixed_float16"},
            ["strategy must be around loss_scale with precision=mixed_float16", "'adamw'"],
        ),
        (
            {"precision": "mixed_float16", "strategy": "loss_scale(adamw)", "earlier": "sgd"},
            ["strategy must be around loss_scale", "'sgd'"],
        ),
        ({"earlier": "same name"}, ["earlier must be stages of different names", "'run', 'run'"]),
        (
            {"model": TransformerDecoderConfig(), "objective": "distillation", "teacher": "topics"},
            ["objective must be one of supervised"],
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, parts):
    earlier = {
        "sgd": (StageConfig(name="before", strategy="sgd"),),
        "same name": (StageConfig(name="run"),),
        "private": (StageConfig(name="before", strategy="ema(dp_sgd(sgd))"),),
    }
    if "earlier" in changes:
        changes = changes | {"earlier": earlier[changes["earlier"]]}
    if isinstance(changes.get("model"), TransformerDecoderConfig):
        changes = changes | {"tokenizer": SentencePieceTokenizerConfig()}
    with pytest.raises(ValueError) as refusal:
        small(**changes)
    for part in parts:
        assert part in str(refusal.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_goes_with_every_optimizer(name):
    for decay in (0.1, "linear(0, 0.1)"):
        optimizer = OptimizerConfig(weight_decay=decay, schedule="constant")
        config = small(strategy=name, optimizer=optimizer)
        assert config.optimizer.weight_decay == decay


def test_rate_factors_are_pairs_in_order():
    config = small(rate_factors=" embedding=0.1, lstm_[01]=0 ,a=b=2,")
    assert config.factors() == [("embedding", 0.1), ("lstm_[01]", 0.0), ("a=b", 2.0)]
    assert small().factors() == []


@pytest.mark.parametrize(
    ("model", "tokenizer", "fits"),
    [
        (BagOfNgramsConfig(), NgramTokenizerConfig(), True),
        (BagOfNgramsConfig(), WordTokenizerConfig(), True),
        (BagOfNgramsConfig(), SentencePieceTokenizerConfig(), False),
        (RecurrentConfig(), WordTokenizerConfig(), True),
        (RecurrentConfig(), NgramTokenizerConfig(), False),  # a set has no order to read
        (TransformerEncoderConfig(), NgramTokenizerConfig(), False),
        (TransformerDecoderConfig(), SentencePieceTokenizerConfig(), True),
        (TransformerDecoderConfig(), WordTokenizerConfig(), False),  # words cannot be put together
        (TransformerDecoderConfig(), ByteBPETokenizerConfig(), True),
        (TransformerDecoderConfig(), BytesTokenizerConfig(), True),
        (TransformerDecoderConfig(), WordpieceTokenizerConfig(), False),
        (TransformerDecoderConfig(), CharacterTokenizerConfig(), False),
        (RecurrentConfig(), CharacterTokenizerConfig(), True),
        (TransformerEncoderConfig(), WordpieceTokenizerConfig(), True),
        (TransformerEncoderConfig(), SentencePieceTokenizerConfig(), True),
        (ULMFiTLSTMConfig(), ByteBPETokenizerConfig(), True),
        (BagOfNgramsConfig(), BytesTokenizerConfig(), False),
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
        (written(seed="32"), ["seed must be a whole number", "'32'"]),
        (written(batch_size=32.0), ["batch_size must be a whole number or a text", "32.0"]),
        (written(batch_size=True), ["batch_size must be a whole number or a text", "True"]),
        (written(earlier=3), ["earlier must be a list of stages", "3"]),
        (written(earlier={"name": "a"}), ["earlier must be a list of stages"]),
        (written(earlier=["a"]), ["earlier.0 must be an object of settings", "'a'"]),
        (written(earlier=[{"epochs": 2}]), ["Missing settings: earlier.0.name."]),
        (written(earlier=[{"name": "a", "seed": 2}]), ["Unknown setting earlier.a.seed"]),
        (written(earlier=[{"name": "a", "xla": True}]), ["Unknown setting earlier.a.xla"]),
        (written(mixture={"path": "b.csv"}), ["Missing settings: mixture.name."]),
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


# Stages -------------------------------------------------------------------------------------------


def staged(**changes):
    settings = {
        "model": ULMFiTLSTMConfig(),
        "earlier": (
            StageConfig(name="pretrain", objective="language_model"),
            StageConfig(name="warm", trainable="head", strategy="sgd"),
        ),
    }
    return small(**(settings | changes))


def test_every_setting_of_two_stages_before_comes_back_from_json():
    file = DatasetConfig(
        name="file",
        path="a.csv",
        validation_path="v.csv",
        test_path="t.csv",
        text_column="text",
        label_column="label",
        streaming=False,
        max_examples=9,
    )
    # Another value than the default's for every setting of a stage.
    whole = StageConfig(
        name="pretrain",
        dataset=file,
        objective="masked_language_model",
        strategy="lookahead(sam(accumulate(sgd, 4)), k=5)",
        optimizer=OptimizerConfig(
            peak_learning_rate=0.5,
            schedule="one_cycle",
            weight_decay="linear(0, 0.1)",
            embedding_rate_factor=2.0,
            clip_norm=None,
        ),
        trainable="embedding|lstm",
        rate_factors="embedding=0.1",
        batch_size="linear(2, 8)",
        packing="packed",
        max_tokens="linear(8, 32)",
        epochs=2.5,
        max_updates=7,
        evaluate_every=3,
        patience=0,
        keep="last",
        stop_loss=0.1,
        stop_grad_norm=0.2,
        stop_updates=3,
        dropout="linear(0.5, 0.1)",
        label_smoothing=0.1,
        class_weights="balanced",
        mixture=DatasetConfig(name="starter_topics"),
        mixture_share="linear(0, 1)",
        mask_rate=0.3,
        lora_rank=2,
        lora_alpha=4.0,
        lora_layers="head",
        distillation_temperature=3.0,
        distillation_share=0.25,
    )
    default = StageConfig(name="pretrain")
    for field in dataclasses.fields(StageConfig):
        if field.name not in ("name", "teacher"):
            assert getattr(whole, field.name) != getattr(default, field.name), field.name
    taught = StageConfig(name="taught", objective="distillation", teacher="topics")
    config = staged(earlier=(whole, taught))
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.digest("data") == config.digest("data")
    assert again.stages == (whole, taught, again)


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        ("earlier.warm.epochs=2", lambda s: (s[1].epochs, 2.0)),
        ("earlier.pretrain.optimizer.clip_norm=none", lambda s: (s[0].optimizer.clip_norm, None)),
        (
            "earlier.pretrain.optimizer.schedule=linear",
            lambda s: (s[0].optimizer.schedule, "linear"),
        ),
        ("earlier.warm.trainable=a=b", lambda s: (s[1].trainable, "a=b")),
        ("earlier.warm.name=other", lambda s: (s[1].name, "other")),
        (
            "earlier.warm.dataset.name=starter_topics",
            lambda s: (s[1].dataset, DatasetConfig(name="starter_topics")),
        ),
        (
            "earlier.warm.mixture.name=starter_topics",
            lambda s: (s[1].mixture, DatasetConfig(name="starter_topics")),
        ),
    ],
)
def test_a_setting_of_a_stage_is_set_by_the_name_of_the_stage(assignment, read):
    before = staged()
    after = override(before, [assignment])
    value, expected = read(after.stages)
    assert value == expected and type(value) is type(expected)
    # One stage has changed, and the run itself in nothing besides.
    assert sum(a != b for a, b in zip(before.earlier, after.earlier, strict=True)) == 1
    assert dataclasses.replace(after, earlier=before.earlier) == before


def test_a_section_that_was_left_out_begins_with_its_name_and_ends_with_none():
    config = override(
        staged(), ["earlier.warm.dataset.name=imdb", "earlier.warm.dataset.max_examples=5"]
    )
    assert config.earlier[1].dataset == DatasetConfig(name="imdb", max_examples=5)
    assert override(config, ["earlier.warm.dataset=none"]) == staged()
    config = override(staged(), ["mixture.name=imdb", "mixture_share=0.1"])
    assert config.mixture == DatasetConfig(name="imdb")
    assert override(config, ["mixture=None"]) == staged(mixture_share="0.1")
    # The name comes first: it decides what else may be said.
    with pytest.raises(ValueError, match="Missing settings: mixture.name"):
        override(staged(), ["mixture.max_examples=5"])
    with pytest.raises(ValueError, match="Missing settings: dataset.name|dataset must be"):
        override(staged(), ["dataset=none"])


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("earlier.first.epochs=2", ["earlier.first.epochs: no earlier stage is named 'first'"]),
        ("earlier.first.epochs=2", ["Stages before the last: pretrain, warm."]),
        ("earlier.run.epochs=2", ["no earlier stage is named 'run'"]),
        (
            "earlier.warm.epoch=2",
            ["Unknown setting earlier.warm.epoch. Did you mean earlier.warm.ep"],
        ),
        ("earlier.warm.seed=2", ["Unknown setting earlier.warm.seed."]),
        (
            "earlier.warm.optimizer.peak_rate=2",
            [
                "Unknown setting earlier.warm.optimizer.peak_rate.",
                "earlier.warm.optimizer.clip_norm",
            ],
        ),
        ("earlier.warm.optimiser.clip_norm=2", ["Unknown setting earlier.warm.optimiser."]),
        ("earlier.warm.epochs=many", ["earlier.warm.epochs must be a number", "'many'"]),
        ("earlier.warm.epochs.x=2", ["earlier.warm.epochs has no settings inside"]),
        ("earlier.warm.optimizer=sgd", ["earlier.warm.optimizer is a section"]),
        ("earlier.warm=none", ["earlier.NAME.SETTING"]),
        ("earlier=none", ["earlier.NAME.SETTING"]),
        ("earlier.warm.batch_size=0", ["batch_size must be above 0"]),
    ],
)
def test_a_wrong_setting_of_a_stage_says_what_to_type(assignment, parts):
    with pytest.raises(ValueError) as refusal:
        override(staged(), [assignment])
    for part in parts:
        assert part in str(refusal.value)


# Settings that need others ------------------------------------------------------------------------


# What does nothing in `staged()`, the others that let it do something, and what is told of it.
IDLE = {
    "epochs=3": (["max_updates=9"], ["max_updates=none"], "max_updates=none"),
    "optimizer.clip_norm=2": (["strategy=dp_sgd(sgd)"], ["strategy=sgd"], "without dp_sgd"),
    "stop_updates=2": ([], ["stop_grad_norm=0.1"], "stop_loss or stop_grad_norm"),
    "mixture_share=0.2": ([], ["mixture.name=imdb"], "mixture.name"),
    "lora_alpha=2": ([], ["lora_rank=2"], "lora_rank above 0"),
    "lora_layers=head": ([], ["lora_rank=2"], "lora_rank above 0"),
    "distillation_temperature=3": ([], TAUGHT, "objective=distillation and teacher"),
    "distillation_share=0.2": ([], TAUGHT, "objective=distillation and teacher"),
    "earlier.warm.lora_alpha=2": (
        ["lora_rank=2"],  # of another stage
        ["earlier.warm.lora_rank=2"],
        "earlier.warm.lora_rank above 0",
    ),
    "earlier.pretrain.mask_rate=0.2": (
        [],
        ["earlier.pretrain.objective=masked_language_model"],
        "earlier.pretrain.objective=masked_language_model",
    ),
    "updates_per_call=4": (
        ["stop_loss=0.1", "earlier.warm.stop_loss=0.1", "earlier.pretrain.stop_grad_norm=0.1"],
        ["earlier.warm.stop_loss=none"],
        "without stop_loss and stop_grad_norm",
    ),
    "model.dropout=0.2": (
        ["dropout=0.1", "earlier.warm.dropout=0.1", "earlier.pretrain.dropout=0.1"],
        ["earlier.warm.dropout=none"],
        "a stage with dropout=none",
    ),
}


@pytest.mark.parametrize("assignment", IDLE)
def test_a_setting_that_would_do_nothing_is_refused_with_what_it_needs(assignment):
    around, needed, told = IDLE[assignment]
    path, _, _ = assignment.partition("=")
    before = staged(earlier=()) if "dp_sgd" in str(around) else staged()
    with pytest.raises(ValueError) as refusal:
        override(before, [assignment, *around])
    assert str(refusal.value).startswith(f"{path} does nothing here: it needs ")
    assert told in str(refusal.value)
    # ... whichever is typed first, what counts is how all are in the end.
    assert override(before, [assignment, *around, *needed]) != before
    assert override(before, [*around, *needed, assignment]) != before


@pytest.mark.parametrize(
    ("recipe_name", "assignment", "needed"),
    [
        ("sst2", "model.naive_bayes_scale=1", "strategy=sgd"),
        ("sst2", "model.smoothing=1", "strategy=sgd"),
        ("chnsenticorp", "model.smoothing=1", "model.naive_bayes_scale=1"),
        ("shakespeare", "tokenizer.max_tokens=9", "model=transformer_encoder"),
        (
            "chnsenticorp",
            "tokenizer.min_character_ngram=2",
            "tokenizer.max_character_ngram=4",
        ),
    ],
)
def test_so_is_one_of_a_network_or_a_tokenizer(recipe_name, assignment, needed):
    around = ["strategy=dp_sgd(sgd)"] if needed == "strategy=sgd" else []
    with pytest.raises(ValueError, match="does nothing here: it needs"):
        override(recipe(recipe_name), [assignment, *around])
    override(recipe(recipe_name), [assignment, needed])


@pytest.mark.parametrize(
    "assignments",
    [
        ["strategy=dp_sgd(sgd)", "optimizer.clip_norm=none"],
        ["stop_loss=0.1", "updates_per_call=1"],
        ["strategy=dp_sgd(sgd)", "model.naive_bayes_scale=0"],
    ],
)
def test_what_would_do_nothing_may_be_turned_off(assignments):
    override(recipe("sst2"), assignments)


def test_what_a_recipe_leaves_idle_is_no_mistake():
    config = small(lora_alpha=2.0, max_updates=3, epochs=9.0)
    assert override(config, ["batch_size=3"]) == dataclasses.replace(config, batch_size=3)
    # ... and becomes none by what is typed beside it.
    assert override(small(epochs=9.0), ["max_updates=3"]).max_updates == 3


def test_only_settings_that_there_are_need_others():
    names = {name for name, _ in leaves(small())} | {"optimizer.clip_norm"}
    assert set(NEEDS) <= names
    of_bag = ("ngram_dropout", "naive_bayes_scale", "smoothing", "weighting", "min_texts")
    of_other_models = {f"model.{name}" for name in of_bag}
    assert set(NEEDS_OF_RUN) - of_other_models - {"tokenizer.min_character_ngram"} <= names
    assert {n for n, _ in leaves(recipe("sentiment"))} >= of_other_models


def test_without_stages_before_none_can_be_set():
    with pytest.raises(ValueError, match="'warm'. Stages before the last: none"):
        override(small(), ["earlier.warm.epochs=2"])


def test_the_run_is_its_own_last_stage():
    config = staged()
    assert [stage.name for stage in config.stages] == ["pretrain", "warm", "run"]
    assert config.stages[-1] is config
    assert small().stages == (small(),)
