"""Stages of a run: what each starts from, moves and leaves alone, and what the run ends with."""

import json
import logging
import re
import signal

import numpy as np
import pytest
import tensorflow as tf

from model.dropout import dropout_rates
from training import recipes
from training.checkpoints import checkpoint_files, read_checkpoint
from training.classification import Classifier
from training.config import RunConfig
from training.datasets.catalogue import load_dataset
from training.objectives import _MaskedBatches, _TaughtBatches
from training.pipeline import ClassificationBatches
from training.run import begin_run, fit_run, load_run
from training.runs import read_json
from training.schedules import tabulate
from training.stacking import stack
from training.stages import build_stage, widest_shapes
from training.strategies.compiled import compile_updates
from training.strategies.rules import evaluating
from training.verify import differences

WORDS = [
    ["bad", "poor", "awful", "dull", "cold"],
    ["good", "great", "warm", "clever", "bright"],
]


def write_texts(path, count, seed=0, labels=("bad", "good")):
    """Reviews of one to three telling words, no two alike."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        words = rng.choice(WORDS[i % 2], 1 + i % 3)
        text = f"the film {seed}{i} was {' and '.join(words)}"
        lines.append(json.dumps({"text": text, "label": labels[i % 2]}))
    path.write_text("\n".join(lines) + "\n")
    return {"name": "file", "path": str(path)}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("data") / "reviews.jsonl", 120)


def run_config(dataset, **changes):
    values = {
        "name": "label",
        "dataset": dataset,
        "tokenizer": {"name": "word", "min_count": 1, "max_tokens": 16},
        "model": {"name": "ulmfit_lstm", "embedding_size": 8, "units": 6, "dropout": 0.2},
        "optimizer": {"peak_learning_rate": 0.02},
        "batch_size": 8,
        "max_updates": 8,
        "evaluate_every": 4,
        "patience": 0,
        "keep_checkpoints": 100,
    }
    return RunConfig.from_dict(values | changes)


ENCODER = {
    "name": "transformer_encoder",
    "num_layers": 1,
    "width": 8,
    "num_heads": 2,
    "inner_width": 8,
    "token_head": True,
}
BAG = {"model": {"name": "bag_of_ngrams", "naive_bayes_scale": 0.0, "ngram_dropout": 0.0}}


def begin(config):
    """A learner as a run begins with it."""
    return Classifier.create(config, load_dataset(config.dataset, config.task))


def stage_of(config, learner=None):
    return build_stage(config, len(config.earlier), learner or begin(config))


def take_updates(stage, count):
    """What the first `count` updates say."""
    update, size = compile_updates(stage.rule), stage.rule.num_batches
    said = []
    for step in range(count):
        batches = [stage.batches.at(i) for i in range(step * size, (step + 1) * size)]
        said.append({name: float(value[0]) for name, value in update(stack(batches)).items()})
    return said


def arrays(folder, stage, kind, step=None):
    """{path of a variable of the network: value} of a checkpoint, the newest unless told."""
    files = {
        int(p.stem.removeprefix("ckpt-")): p
        for p in checkpoint_files(folder / "checkpoints" / stage / kind)
    }
    checkpoint = read_checkpoint(files[max(files) if step is None else step])
    weights = {}
    for name, value in checkpoint.arrays.items():
        kind, _, path = name.partition(":")
        if kind.startswith("weights/"):
            while path in weights:  # layers of one kind, told apart by their order
                path += "'"
            weights[path] = value
    return weights


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def is_weight(name):
    return "seed" not in name and "dropout" not in name


# A run of three stages ----------------------------------------------------------------------------


def three_stages(dataset):
    before = [
        {
            "name": "read",
            "objective": "language_model",
            "trainable": "embedding|lstm_|token",
            "max_updates": 6,
            "evaluate_every": 3,
            "batch_size": 8,
            "optimizer": {"peak_learning_rate": 0.02},
            "dropout": "linear(0.5, 0.1)",
        },
        {
            "name": "head",
            "trainable": "head",
            "strategy": "sgd",
            "keep": "last",
            "max_updates": 3,
            "batch_size": 8,
        },
    ]
    factors = "embedding=0.1, lstm_0=0.3"
    return run_config(dataset, earlier=before, rate_factors=factors, strategy="ema(adamw)")


@pytest.fixture(scope="module")
def staged(reviews, tmp_path_factory):
    """(configuration, folder of the run, how it ended)."""
    config = three_stages(reviews)
    return config, *fit_run(config, tmp_path_factory.mktemp("staged"))


def test_each_stage_starts_from_what_the_one_before_it_kept(staged):
    _, folder, _ = staged
    kept = read_json(folder / "stages.json")[0]["best_step"]
    end_of_read = arrays(folder, "read", "best", kept)
    start_of_head = arrays(folder, "head", "last", 0)
    assert {name for name in changed(end_of_read, start_of_head) if is_weight(name)} == set()
    # Where the stage before moved them, dropout rates are again as built.
    rates = [value for name, value in start_of_head.items() if name.endswith("dropout_rate")]
    assert rates and all(rate == np.float32(0.2) for rate in rates)

    start_of_label = arrays(folder, "label", "last", 0)
    assert changed(arrays(folder, "head", "best", 3), start_of_label) == set()


def test_only_what_a_stage_names_is_moved(staged):
    config, folder, _ = staged
    for stage in config.stages:
        before = arrays(folder, stage.name, "last", 0)
        after = arrays(folder, stage.name, "last")
        moved = {name for name in changed(before, after) if is_weight(name)}
        named = {name for name in before if re.search(stage.trainable, name) and is_weight(name)}
        if stage.name != "read":  # the bias of token logits: labels do not depend on it
            named = {name for name in named if "token_bias" not in name}
        if stage.name == "read":  # no embedding, no LSTM looks at the head: it stays bit for bit
            assert not any("head" in name for name in named)
        assert moved == named, stage.name
        assert moved


def test_pre_training_lowers_its_own_loss(staged):
    _, folder, _ = staged
    losses = [
        line["validation_loss"]
        for line in metrics_of(folder)
        if line["stage"] == "read" and "validation_loss" in line
    ]
    assert len(losses) == 3 and losses[-1] < losses[0]


def test_the_lines_of_all_stages_count_on(staged):
    config, folder, outcome = staged
    lines = metrics_of(folder)
    names = [line["stage"] for line in lines]
    assert list(dict.fromkeys(names)) == ["read", "head", "label"]
    assert names == sorted(names, key=["read", "head", "label"].index)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == 6 + 3 + 8
    assert {line["step"] for line in lines if line["stage"] == "head"} == {6, 9}

    results = read_json(folder / "results.json")
    assert [(s["stage"], s["steps"], s["ended"]) for s in results["stages"]] == [
        ("read", 6, "finished"),
        ("head", 3, "finished"),
        ("label", 8, "finished"),
    ]
    assert results["stages"] == read_json(folder / "stages.json")
    assert results["steps"] == results["gradient_evaluations"] == 17
    assert results["best_step"] == results["stages"][-1]["best_step"] == outcome.best_step
    assert results["kept_step"] == results["stages"][-1]["kept_step"]
    assert results["stages"][1]["kept_step"] == 3  # keep=last


def test_what_is_loaded_is_what_was_evaluated(staged, tmp_path):
    config, folder, _ = staged
    learner, data = load_run(folder), load_dataset(config.dataset, config.task)
    results = read_json(folder / "results.json")
    assert learner.evaluate(data.test, tmp_path) == results["test"]
    assert learner.figures_of(data.validation) == results["validation"]
    best = [line for line in metrics_of(folder) if line["step"] == 9 + results["best_step"]]
    assert (
        results["validation"]["loss"]
        == [
            line["validation_loss"]
            for line in best
            if line["stage"] == "label" and "validation_loss" in line
        ][0]
    )


@pytest.mark.slow
def test_the_vocabulary_knows_the_texts_of_every_stage(reviews, tmp_path):
    other = write_texts(tmp_path / "other.jsonl", 60, seed=7)
    before = [{"name": "read", "objective": "language_model", "dataset": other, "max_updates": 1}]
    config = run_config(reviews, earlier=before, max_updates=1)
    folder, _ = fit_run(config, tmp_path / "runs")
    words = set(load_run(folder).tokenizer.words)
    train = load_dataset(config.earlier[0].dataset, config.task).train.texts
    assert {text.split()[2] for text in train} <= words


def test_a_word_is_as_rare_however_many_stages_read_it(reviews, tmp_path):
    """Every review has a number of its own: seen once, they are unknown, by min_count."""
    other = write_texts(tmp_path / "other.jsonl", 60, seed=7)
    settings = {"tokenizer": {"name": "word", "min_count": 2, "max_tokens": 16}}

    def words(name, **changes):
        config = run_config(reviews, **settings, **changes)
        data = load_dataset(config.dataset, config.task)
        return set(begin_run(config, tmp_path / name, data).tokenizer.words)

    stage = {"name": "read", "objective": "language_model"}
    again = words("again", earlier=[stage, stage | {"name": "read_again"}])
    assert again == words("once")
    # ... and the words of a data set that is mixed in are known.
    rare = run_config(reviews, mixture=other)
    tokenizer = begin_run(rare, tmp_path / "mixed", load_dataset(rare.dataset, rare.task)).tokenizer
    texts = load_dataset(rare.mixture, rare.task).train.texts
    assert {text.split()[2] for text in texts} <= set(tokenizer.words)


def stop_before(monkeypatch, index):
    original = ClassificationBatches.at

    def at(self, asked):
        if asked == index:
            signal.raise_signal(signal.SIGINT)
        return original(self, asked)

    monkeypatch.setattr(ClassificationBatches, "at", at)


def test_a_run_stopped_in_its_last_stage_ends_as_if_never_stopped(staged, tmp_path, monkeypatch):
    config, whole, _ = staged
    with monkeypatch.context() as patch:
        stop_before(patch, 5)  # the stage before the last takes three
        part, outcome = fit_run(config, tmp_path)
    assert (outcome.reason, outcome.step) == ("interrupted", 6)
    assert not (part / "results.json").exists()
    assert [stage["stage"] for stage in read_json(part / "stages.json")] == ["read", "head"]

    again, outcome = fit_run(config, tmp_path)
    assert again == part and outcome.reason == "finished"
    assert differences(part, whole) == []
    for stage in config.stages:  # not only the last state: all that both have
        both = [
            {path.name for path in checkpoint_files(f / "checkpoints" / stage.name / "last")}
            for f in (part, whole)
        ]
        assert both[1] <= both[0]
        for name in both[1]:
            a, b = (
                read_checkpoint(f / "checkpoints" / stage.name / "last" / name).arrays
                for f in (part, whole)
            )
            assert changed(a, b) == set()


@pytest.mark.slow
def test_a_run_stopped_between_two_stages_goes_on_with_the_second(staged, tmp_path, monkeypatch):
    """Killed after a stage was written down, before the next one had a checkpoint."""
    config, whole, _ = staged
    from training import run

    def dies(*arguments, **settings):
        raise MemoryError("killed")

    original = run.fit_stage
    with monkeypatch.context() as patch:
        patch.setattr(
            run,
            "fit_stage",
            lambda config, stage, *rest: (dies if stage.config.name == "head" else original)(
                config, stage, *rest
            ),
        )
        with pytest.raises(MemoryError):
            fit_run(config, tmp_path)
    part, _ = fit_run(config, tmp_path)
    assert differences(part, whole) == []


# What moves how far -------------------------------------------------------------------------------


def test_rate_factors_are_the_ratios_of_the_first_updates(reviews):
    changes = {
        "strategy": "sgd",
        "optimizer": {"peak_learning_rate": 1.0, "schedule": "constant", "clip_norm": None},
    }

    def norms(rate_factors):
        stage = stage_of(run_config(reviews, rate_factors=rate_factors, **changes))
        before = [weight.numpy() for weight in stage.rule.weights]
        take_updates(stage, 1)
        pairs = zip(stage.rule.weights, before, strict=True)
        return {w.path: np.linalg.norm((w.numpy() - b).astype("float64")) for w, b in pairs}

    plain, scaled = norms(""), norms("embedding=0.1, lstm_[01]=0.5, lstm_0=0.3, head/bias=0")
    expected = {"embedding": 0.1, "lstm_0": 0.15, "lstm_1": 0.5, "head/kernel": 1, "head/bias": 0}
    assert len(plain) == 1 + 3 + 3 + 2 and min(plain.values()) > 0
    for path, norm in plain.items():
        (factor,) = (value for part, value in expected.items() if part in path)
        assert scaled[path] == pytest.approx(factor * norm, rel=1e-3), path


def test_weights_that_nothing_names_are_refused_with_those_there_are(reviews):
    with pytest.raises(ValueError) as refusal:
        stage_of(run_config(reviews, trainable="attention"))
    for part in ("label: trainable='attention' leaves nothing", "lstm_0/lstm_cell/kernel", "head"):
        assert part in str(refusal.value)


def test_dropout_follows_its_schedule(reviews, tmp_path):
    config = run_config(reviews, dropout="linear(0.6, 0.1)", keep="last", updates_per_call=3)
    folder, _ = fit_run(config, tmp_path)
    table = tabulate("linear(0.6, 0.1)", 8).astype("float32")
    seen = {}
    for step in (0, 4, 8):
        state = arrays(folder, "label", "last", step)
        seen[step] = {float(v) for name, v in state.items() if name.endswith("dropout_rate")}
    # A state after t updates has the rate of update t - 1; before the first it is as built.
    assert seen == {0: {float(np.float32(0.2))}, 4: {float(table[3])}, 8: {float(table[7])}}
    rates = [float(rate.numpy()) for rate in dropout_rates(load_run(folder).model)]
    assert len(rates) == 2 and set(rates) == {float(table[7])}


def test_the_rate_of_dropout_is_felt_by_the_updates(reviews):
    """Not only stored: the loss of the first update is that of a network built with the rate."""

    def losses(**changes):
        return [s["loss_sum"] for s in take_updates(stage_of(run_config(reviews, **changes)), 2)]

    model = {"name": "ulmfit_lstm", "embedding_size": 8, "units": 6}
    assert losses(dropout="0.6") == losses(model=model | {"dropout": 0.6})
    assert losses(dropout="0.6") != losses(model=model | {"dropout": 0.1})


def test_a_warm_up_that_the_stage_is_too_short_for_is_told(reviews, caplog):
    schedules = {
        "optimizer": {"schedule": "linear(warmup=5)", "weight_decay": "linear(0, 0.1, warmup=4)"},
        "max_tokens": "linear(2, 6, warmup=6, warmup_start=1)",
    }
    with caplog.at_level(logging.WARNING):
        stage_of(run_config(reviews, **schedules, **BAG, batch_size="full"))
    told = [record.getMessage() for record in caplog.records if "warm-up" in record.getMessage()]
    assert [re.search(r"of ([\w.]+)=.*takes (\d+) .*place of (\d+)", t).groups() for t in told] == [
        ("optimizer.schedule", "4", "5"),
        ("max_tokens", "4", "6"),
    ]


# Which weights a stage ends with ------------------------------------------------------------------


def test_a_stage_may_keep_its_last_weights(reviews, tmp_path):
    # A rate at which it gets worse, so that best and last are far apart.
    changes = BAG | {
        "strategy": "sgd",
        "optimizer": {
            "peak_learning_rate": 30.0,
            "schedule": "linear(0.001, 1)",
            "clip_norm": None,
        },
        "evaluate_every": 1,
        "label_smoothing": 0.5,
    }
    folders = {
        keep: fit_run(run_config(reviews, keep=keep, **changes), tmp_path)[0]
        for keep in ("best", "last")
    }
    best_step = read_json(folders["best"] / "results.json")["best_step"]
    assert best_step < 8
    for keep, step in (("best", best_step), ("last", 8)):
        folder = folders[keep]
        lines = [
            line
            for line in metrics_of(folder)
            if line["step"] == step and "validation_loss" in line
        ]
        results = read_json(folder / "results.json")
        assert results["validation"]["loss"] == lines[-1]["validation_loss"]
        (stage,) = read_json(folder / "stages.json")
        assert stage["kept_step"] == results["kept_step"] == step
        assert stage["best_step"] == results["best_step"] == best_step
        kept, then = arrays(folder, "label", "best", step), arrays(folder, "label", "last", step)
        assert changed(kept, then) == set()


# Batches ------------------------------------------------------------------------------------------


def test_full_batches_are_one_big_batch_and_one_update_a_pass(tmp_path):
    dataset = write_texts(tmp_path / "many.jsonl", 500)
    changes = BAG | {
        "strategy": "sgd",
        "max_updates": None,
        "epochs": 3,
        "optimizer": {"peak_learning_rate": 1.0, "clip_norm": None},
    }
    config = run_config(dataset, batch_size="full", **changes)
    num_texts = len(load_dataset(config.dataset, config.task).train)
    assert num_texts > 256  # so that it is read in pieces
    full, big = stage_of(config), stage_of(run_config(dataset, batch_size=num_texts, **changes))
    assert (full.rule.num_batches, big.rule.num_batches) == (2, 1)
    assert full.num_updates == big.num_updates == 3
    assert full.updates_of_a_pass == big.updates_of_a_pass == 1
    said = take_updates(full, 3), take_updates(big, 3)
    for a, b in zip(*said, strict=True):
        assert a["num_targets"] == b["num_targets"] == num_texts
        assert a["loss_sum"] == pytest.approx(b["loss_sum"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    assert said[0][-1]["loss_sum"] < said[0][0]["loss_sum"]
    for a, b in zip(full.rule.weights, big.rule.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)
        assert np.abs(a.numpy()).max() > 1e-3


def test_the_length_of_texts_may_grow(reviews, tmp_path):
    config = run_config(reviews, max_tokens="linear(2, 6)", max_updates=None, epochs=1)
    stage = stage_of(config)
    widths = [stage.batches.at(i)["tokens"].shape[1] for i in range(stage.num_updates)]
    assert widths[0] == 2 and widths[-1] in (5, 6) and widths == sorted(widths)
    assert stage.num_updates == stage.batches.num_batches
    _, outcome = fit_run(config, tmp_path)
    assert outcome.step == stage.num_updates


def test_batches_of_a_second_data_set_are_mixed_in(reviews, tmp_path):
    other = write_texts(tmp_path / "other.jsonl", 60, seed=7)
    settings = BAG | {"tokenizer": {"name": "word", "min_count": 1}, "max_updates": None}
    config = run_config(reviews, mixture=other, mixture_share="0.4", epochs=2, **settings)
    # The words of the second data set are known, or its numbers would all be one.
    learner = Classifier.create(
        config,
        load_dataset(config.dataset, config.task),
        load_dataset(config.mixture, config.task).train.texts,
    )
    stage = stage_of(config, learner)
    assert stage.num_updates == 2 * stage.batches.num_batches
    ids = {word: i for i, word in enumerate(learner.tokenizer.words, 2)}
    of_other = {
        i for word, i in ids.items() if word.startswith("7") and word not in ids_of(reviews)
    }
    from_other = []
    for index in range(stage.num_updates):
        batch = stage.batches.at(index)
        rows = [bool(of_other & set(row.tolist())) for row in batch["tokens"]]
        assert len(set(rows)) == 1  # a batch is of one source
        from_other.append(rows[0])
    assert 0.15 < np.mean(from_other) < 0.65

    _, outcome = fit_run(config, tmp_path / "runs")
    assert outcome.step == stage.num_updates


def ids_of(dataset):
    with open(dataset["path"]) as file:
        return {json.loads(line)["text"].split()[2] for line in file}


@pytest.mark.parametrize("setting", ["mixture", "earlier"])
def test_labels_that_the_run_does_not_have_are_refused(reviews, tmp_path, setting):
    """Their numbers would silently mean other labels."""
    other = write_texts(tmp_path / "other.jsonl", 60, seed=7, labels=("good", "terrible"))
    stage = {"name": "before", "dataset": other, "max_updates": 1}
    value = other if setting == "mixture" else [stage]
    with pytest.raises(ValueError, match="must have the labels of the run, bad, good. .*terrible"):
        fit_run(run_config(reviews, **{setting: value}, **BAG), tmp_path)


def test_a_private_run_starts_from_nothing_that_was_read(reviews):
    """A start from naive Bayes is made of every text and label, and no epsilon covers that."""
    bag = {"model": {"name": "bag_of_ngrams", "naive_bayes_scale": 1.0}}
    learners = {}
    for strategy in ("sgd", "dp_sgd(sgd)"):
        config = run_config(reviews, strategy=strategy, **bag)
        learners[strategy] = begin(config)
        stage_of(config, learners[strategy])
    moved = {
        strategy: any(np.abs(w.numpy()).max() > 0 for w in learner.model.trainable_variables)
        for strategy, learner in learners.items()
    }
    assert moved == {"sgd": True, "dp_sgd(sgd)": False}


# Objectives ---------------------------------------------------------------------------------------


def test_hidden_tokens_are_learned_by_an_encoder(reviews, tmp_path):
    before = {
        "name": "hidden",
        "objective": "masked_language_model",
        "max_updates": 40,
        "batch_size": 16,
        "evaluate_every": 20,
        "mask_rate": 0.3,
        "optimizer": {"peak_learning_rate": 0.01},
    }
    config = run_config(reviews, earlier=[before], model=ENCODER, max_updates=2)
    folder, _ = fit_run(config, tmp_path)
    losses = [
        line["validation_loss"]
        for line in metrics_of(folder)
        if line["stage"] == "hidden" and "validation_loss" in line
    ]
    assert losses[-1] < losses[0]  # which starts at the unigram loss
    before, after = (arrays(folder, "hidden", "last", step) for step in (0, 40))
    moved = changed(before, after)
    assert any("token" in name for name in moved)
    assert not any("/head/" in name for name in moved)


def test_what_is_hidden_is_what_is_to_be_guessed(reviews):
    before = {"name": "hidden", "objective": "masked_language_model", "mask_rate": 0.3}
    config = run_config(reviews, earlier=[before | {"max_updates": 9}], model=ENCODER)
    stage = build_stage(config, 0, begin(config))
    shown, targets = [], []
    for index in range(9):
        batch = stage.batches.at(index)
        np.testing.assert_array_equal(batch["tokens"], stage.batches.at(index)["tokens"])
        shown.append(batch["tokens"].ravel())
        targets.append(batch["targets"].ravel())
    shown, targets = np.concatenate(shown), np.concatenate(targets)
    is_asked = targets != 0
    assert (shown[is_asked] != 0).all()
    assert is_asked.sum() / (shown != 0).sum() == pytest.approx(0.3, abs=0.05)
    is_mask, is_same = shown[is_asked] == 1, shown[is_asked] == targets[is_asked]
    assert is_mask.mean() == pytest.approx(0.8, abs=0.1)
    assert is_same.mean() == pytest.approx(0.1, abs=0.07)


def test_an_empty_batch_has_the_fields_of_any_other():
    """Poisson sampling may draw nobody; such a batch is stacked with others all the same."""
    rows, labels = [np.array([2, 3, 4], np.int32)] * 40, np.zeros(40, np.int32)
    settings = {"batch_size": 1, "seed": 0, "sampling": "poisson"}
    taught = _TaughtBatches(rows, labels, np.ones((40, 3), np.float32), **settings)
    for batches in (taught, _MaskedBatches(rows, 0.5, 9, **settings)):
        found = [batches.at(i) for i in range(20)]
        empty = [batch for batch in found if not batch["weight"].any()]
        assert 0 < len(empty) < 20
        stacked = stack(found)
        for name, value in found[0].items():
            assert {batch[name].dtype for batch in found} == {value.dtype}
            assert stacked[name].ndim == 1 + value.ndim


def test_all_batches_of_a_compiled_update_have_one_shape():
    rows = [np.arange(2, 2 + length, dtype=np.int32) for length in (3, 3, 3, 5, 2, 7, 1)]
    labels = np.zeros(7, np.int32)
    settings = {"batch_size": 2, "seed": 0}
    # As many labels as a batch may have tokens: they are told apart all the same.
    taught = _TaughtBatches(rows, labels, np.ones((7, 3), np.float32), **settings)
    masked = _MaskedBatches(rows, 0.5, 9, **settings)
    expected = {"tokens": (2, 7), "label": (2,), "targets": (2, 7), "teacher_logits": (2, 3)}
    for batches in (taught, masked):
        shapes = widest_shapes(batches)
        assert shapes == {name: expected[name] for name in batches.at(0)}
        for index in range(9):
            stacked = stack([batches.at(index)], shapes=False, pad_to=shapes)
            assert {name: stacked[name].shape[1:] for name in shapes} == shapes


@pytest.mark.parametrize("objective", ["language_model", "masked_language_model"])
def test_a_network_without_token_logits_is_refused(reviews, tmp_path, objective):
    before = {"name": "read", "objective": objective}
    with pytest.raises(ValueError, match=f"objective={objective} needs .*model=bag_of_ngrams"):
        fit_run(run_config(reviews, earlier=[before], **BAG), tmp_path)


@pytest.mark.parametrize("objective", ["language_model", "masked_language_model"])
def test_windows_to_pre_train_on_have_a_length(reviews, tmp_path, objective):
    config = run_config(
        reviews,
        model=ENCODER | {"token_head": True},
        tokenizer={"name": "bytes", "max_tokens": None},
        earlier=[{"name": "read", "objective": objective}],
    )
    with pytest.raises(ValueError, match="tokenizer.max_tokens, which must be a number"):
        fit_run(config, tmp_path)


# LoRA ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(reviews, tmp_path_factory):
    """(configuration, folder) of a run whose last stage learns low-rank changes alone."""
    config = run_config(
        reviews,
        model=ENCODER,
        lora_rank=2,
        lora_alpha=4.0,
        lora_layers="qkv|expand|contract|head/kernel",
        keep="last",
        strategy="ema(adamw)",
        optimizer={"peak_learning_rate": 0.05},
        earlier=[{"name": "warm", "max_updates": 2, "batch_size": 8}],
    )
    folder, _ = fit_run(config, tmp_path_factory.mktemp("lora"))
    return config, folder


def test_only_the_low_rank_factors_are_moved(adapted):
    _, folder = adapted
    before, after = (arrays(folder, "label", "last", step) for step in (0, 8))
    moved = {name for name in changed(before, after) if is_weight(name)}
    factors = {name for name in before if "lora_" in name}
    assert len(factors) == 2 * 4 and moved == factors
    # The base is what the stage before ended with, bit for bit.
    kept = arrays(folder, "warm", "best")
    assert all(before[name].tobytes() == kept[name].tobytes() for name in kept if is_weight(name))


def test_only_the_low_rank_factors_have_gradients_and_state(reviews):
    config = run_config(reviews, model=ENCODER, lora_rank=2, lora_layers="expand|head/kernel")
    stage = stage_of(config)
    assert sorted(weight.name for weight in stage.rule.weights) == [
        *["lora_kernel_a"] * 2,
        *["lora_kernel_b"] * 2,
    ]
    gradients, _ = stage.rule.gradient(stack([stage.batches.at(0)]))
    assert all(gradient is not None for gradient in gradients)


def test_what_is_kept_has_the_changes_merged_into_the_kernels(adapted):
    """An average of the factors is what is evaluated, so that is what is merged."""
    config, folder = adapted
    base, kept = arrays(folder, "label", "last", 8), arrays(folder, "label", "best", 8)
    assert not any("lora" in name for name in kept)
    adapted_kernels = {name.rpartition("/")[0] for name in base if "lora_" in name}
    for name, value in kept.items():
        if name.rpartition("/")[0] not in adapted_kernels or name.endswith("bias"):
            assert value.tobytes() == base[name].tobytes(), name
            continue
        change = value - base[name]
        assert np.abs(change).max() > 1e-4
        # Of rank 2: all further singular values are rounding.
        singular = np.linalg.svd(change.astype("float64"), compute_uv=False)
        assert singular[2:].max(initial=0.0) < 1e-5 * max(singular[0], 1.0)


@pytest.mark.slow
def test_a_run_with_low_rank_changes_is_loaded_and_exported_as_evaluated(adapted, tmp_path):
    from training.export import export_run

    config, folder = adapted
    learner, data = load_run(folder), load_dataset(config.dataset, config.task)
    results = read_json(folder / "results.json")
    assert learner.evaluate(data.test, tmp_path) == results["test"]
    # What the last evaluation while training saw, before anything was merged for good.
    last = [line for line in metrics_of(folder) if "validation_loss" in line][-1]
    assert results["validation"]["loss"] == pytest.approx(last["validation_loss"], rel=1e-5)
    assert not any("lora" in variable.path for variable in learner.model.variables)

    served = tf.saved_model.load(str(export_run(folder, tmp_path / "exports")))
    answers = served.signatures["serving_default"](tf.constant(data.test.texts))
    np.testing.assert_allclose(
        answers["scores"].numpy(), learner.probabilities(data.test.texts), atol=1e-5
    )


def test_a_stage_of_low_rank_changes_is_left_as_it_was_by_evaluating(reviews):
    stage = stage_of(run_config(reviews, model=ENCODER, lora_rank=2, strategy="ema(adamw)"))
    take_updates(stage, 3)
    state = [*stage.plain, *stage.rule.weights]
    before = [variable.numpy() for variable in state]
    with stage.evaluating():
        within = [variable.numpy() for variable in state]
        with evaluating(stage.rule):
            pass
    after = [variable.numpy() for variable in state]
    assert any((a != b).any() for a, b in zip(before, within, strict=True))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_stopped_stage_of_low_rank_changes_goes_on(adapted, tmp_path, monkeypatch):
    config, whole = adapted
    with monkeypatch.context() as patch:
        stop_before(patch, 5)
        _, outcome = fit_run(config, tmp_path)
    assert outcome.reason == "interrupted"
    part, _ = fit_run(config, tmp_path)
    assert differences(part, whole) == []


# Distillation -------------------------------------------------------------------------------------


@pytest.fixture
def teacher(reviews, monkeypatch):
    """A recipe on the same texts, other network."""
    config = run_config(reviews, name="tutor", optimizer={"peak_learning_rate": 0.5}, **BAG)
    monkeypatch.setitem(recipes.RECIPES, "tutor", lambda: config)
    return config


@pytest.mark.slow
def test_a_share_of_nothing_is_plain_training_bit_for_bit(reviews, teacher, tmp_path):
    taught = {"objective": "distillation", "teacher": "tutor", "label_smoothing": 0.1}
    student = run_config(reviews, **taught, distillation_share=0.0)
    a, _ = fit_run(student, tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").glob("tutor-*/results.json")]
    b, _ = fit_run(run_config(reviews, label_smoothing=0.1), tmp_path / "plain")
    assert differences(a, b) == []

    # ... and a share of half is not: the teacher, trained once, is asked.
    half, _ = fit_run(run_config(reviews, **taught), tmp_path / "runs")
    assert differences(half, b) != []
    assert len(list((tmp_path / "runs").glob("tutor-*"))) == 1


def test_a_teacher_teaches_a_second_data_set_too(reviews, tmp_path):
    other = write_texts(tmp_path / "other.jsonl", 60, seed=7)
    config = run_config(
        reviews, objective="distillation", teacher="tutor", mixture=other, mixture_share="0.5"
    )
    stage = build_stage(
        config, 0, begin(config), teacher=lambda texts: np.full((len(texts), 2), len(texts))
    )
    taught = {float(stage.batches.at(i)["teacher_logits"].max()) for i in range(8)}
    assert len(taught) == 2  # by the number of texts of each


@pytest.mark.slow
def test_a_stage_before_the_last_may_have_a_teacher(reviews, teacher, tmp_path):
    before = {
        "name": "taught",
        "objective": "distillation",
        "teacher": "tutor",
        "max_updates": 2,
        "distillation_share": 1.0,
    }
    folder, _ = fit_run(run_config(reviews, earlier=[before], max_updates=2), tmp_path)
    assert [s["stage"] for s in read_json(folder / "results.json")["stages"]] == ["taught", "label"]


def test_a_teacher_of_other_labels_is_refused(reviews, monkeypatch, tmp_path):
    other = write_texts(tmp_path / "other.jsonl", 60, seed=7, labels=("good", "terrible"))
    config = run_config(other, name="tutor", max_updates=1, **BAG)
    monkeypatch.setitem(recipes.RECIPES, "tutor", lambda: config)
    student = run_config(reviews, objective="distillation", teacher="tutor", **BAG)
    with pytest.raises(ValueError, match="teacher must be a recipe with the labels bad, good"):
        fit_run(student, tmp_path / "runs")


@pytest.mark.slow
def test_a_student_comes_closer_to_its_teacher(reviews, teacher, tmp_path):
    student = run_config(
        reviews,
        objective="distillation",
        teacher="tutor",
        distillation_share=1.0,
        max_updates=60,
        evaluate_every=60,
        keep="last",
    )
    folder, _ = fit_run(student, tmp_path)
    texts = load_dataset(student.dataset, student.task).train.texts
    (of_teacher,) = tmp_path.glob("tutor-*")
    wanted = load_run(of_teacher).probabilities(texts)
    learner = load_run(folder)
    distance = np.abs(learner.probabilities(texts) - wanted).mean()
    untrained = Classifier.load(student, folder, learner.label_names)
    assert distance < 0.5 * np.abs(untrained.probabilities(texts) - wanted).mean()
