"""`fit --dry-run` and `fit --overfit-one-batch` on a file of a few lines."""

import json
import re

import numpy as np
import pytest

from training import checks
from training.__main__ import main
from training.checks import dry_run, overfit_one_batch, setting_lines
from training.config import RunConfig, override
from training.pipeline import ClassificationBatches
from training.recipes import RECIPES, recipe
from training.run import begin_run, load_dataset
from training.stages import build_stage

SMALL = (
    "model.width=16",
    "model.num_heads=2",
    "model.inner_width=16",
    "model.num_layers=1",
)


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    words = [["bad", "poor", "难看"], ["good", "great", "好看"]]
    lines = [{"text": f"{rng.choice(words[i % 2])} film {i}", "label": i % 2} for i in range(100)]
    return written(tmp_path / "reviews.jsonl", lines)


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def of_file(name, path, *settings) -> RunConfig:
    """A recipe on a file."""
    return override(recipe(name), ["dataset.name=file", f"dataset.path={path}", *settings])


@pytest.fixture
def config(path):
    return of_file(
        "sentiment",
        path,
        "tokenizer.num_buckets=1024",
        "model.naive_bayes_scale=0",
        "model.ngram_dropout=0",
        "optimizer.peak_learning_rate=0.1",
        "batch_size=16",
        "epochs=3",
    )


def value_of(lines, name):
    (line,) = [line.strip() for line in lines if line.strip().startswith(name + "  ")]
    return line.removeprefix(name).strip()


# The dry run


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_as_they_are_typed(name):
    """Typed after settings that differ, they give the same configuration again."""
    config = recipe(name)
    other = override(config, ["batch_size=7", "optimizer.clip_norm=none", "seed=5", "patience=9"])
    assert other != config
    assert override(other, setting_lines(config)) == config


def test_settings_that_do_nothing_are_not_listed():
    names = {line.partition("=")[0] for line in setting_lines(recipe("sentiment_ulmfit"))}
    assert {"earlier.head.dropout", "dropout", "model.units", "epochs"} <= names
    assert not {"earlier.head.lora_alpha", "mask_rate", "mixture_share", "model.dropout"} & names
    assert "mask_rate" in " ".join(setting_lines(recipe("sentiment_masked")))


def test_a_dry_run_tells_what_the_run_will_be_and_writes_nothing(config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    lines = list(dry_run(config, tmp_path / "runs"))
    data = load_dataset(config.dataset, config.task)
    for split in ("train", "validation", "test"):
        assert value_of(lines, split) == str(len(getattr(data, split)))
    per_pass = len(data.train) // 16
    assert value_of(lines, "updates") == f"{3 * per_pass} at most; a pass takes {per_pass}"
    assert value_of(lines, "an update").startswith("1 of these batches: tokens 16 x ")
    assert value_of(lines, "moved") == "2,052 weights in 2 variables"
    assert "    adamw  bag_of_ngrams/bias (2,)" in lines
    # Of a network that knows how frequent the labels are.
    assert float(value_of(lines, "first loss")) == pytest.approx(np.log(2), abs=0.02)
    assert "  batch_size=16" in lines and "  model=bag_of_ngrams" in lines
    assert sorted(tmp_path.rglob("*")) == before


def test_the_first_loss_is_that_of_the_run(config, tmp_path):
    config = override(config, ["model.naive_bayes_scale=1"])
    learner = begin_run(config, tmp_path / "own", load_dataset(config.dataset, config.task))
    stage = build_stage(config, 0, learner)
    sums = stage.objective.loss(stage.batches.at(0))
    expected = float(sums["loss_sum"]) / float(sums["num_targets"])
    assert expected != pytest.approx(np.log(2), abs=0.01)
    assert value_of(list(dry_run(config, tmp_path)), "first loss") == f"{expected:.4f}"


def test_batches_of_an_update_are_those_of_the_strategy(config, tmp_path):
    config = override(config, ["strategy=lookahead(accumulate(sgd, 3), k=5)", "max_updates=4"])
    lines = list(dry_run(config, tmp_path))
    assert value_of(lines, "an update").startswith("3 of these batches: ")
    assert value_of(lines, "updates").startswith("4 at most")
    assert any(line.strip().startswith("sgd  bag_of_ngrams/") for line in lines)


def test_every_stage_is_built_on_its_own_variables(path, tmp_path):
    config = of_file("sentiment_lora", path, *SMALL, "batch_size=8", "lora_rank=2")
    lines = list(dry_run(config, tmp_path / "runs"))
    titles = [i for i, line in enumerate(lines) if line.startswith("\nStage ")]
    assert [lines[i].strip() for i in titles] == [
        "Stage 1 of 2: hidden_words",
        "Stage 2 of 2: sentiment_lora",
    ]
    first, second = lines[titles[0] : titles[1]], lines[titles[1] :]
    moved = [line for line in second if re.match(r"    adamw +\S+ \(", line)]
    assert moved and all("lora" in line or "head" in line for line in moved)
    assert "token_bias" in value_of(second, "not moved")
    assert any("adamw" in line and "embedding" in line for line in first)
    assert not (tmp_path / "runs").exists()


def test_muons_matrices_are_told_from_adamws_variables(path, tmp_path):
    config = of_file("sentiment_transformer", path, *SMALL, "batch_size=8", "strategy=muon")
    lines = list(dry_run(config, tmp_path))
    (qkv,) = [line.split("  ")[2] for line in lines if "qkv/kernel" in line]
    (embedding,) = [line.split("  ")[2] for line in lines if "embedding/embeddings" in line]
    assert qkv == "muon (3 of 16x16)" and embedding == "adamw"


def test_a_teacher_that_is_not_trained_is_said_and_not_trained(path, tmp_path):
    config = of_file("sentiment_distilled", path, "model.units=8", "batch_size=8")
    lines = list(dry_run(config, tmp_path / "runs"))
    assert any("teacher      sentiment is not trained yet" in line for line in lines)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_fails_where_the_run_would(config, tmp_path):
    with pytest.raises(ValueError, match="leaves nothing to train"):
        list(dry_run(override(config, ["trainable=nothing"]), tmp_path))


def test_a_first_loss_that_is_not_finite_is_an_error(config, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "_mean_loss", lambda said: float("nan"))
    with pytest.raises(FloatingPointError, match="sentiment: the loss of the first update is nan"):
        list(dry_run(config, tmp_path))


# One batch by heart


def test_a_network_that_can_learn_learns_one_batch(config, tmp_path, monkeypatch):
    asked, told = set(), []
    original = ClassificationBatches.at
    monkeypatch.setattr(
        ClassificationBatches, "at", lambda self, i: asked.add(i) or original(self, i)
    )
    before = sorted(tmp_path.rglob("*"))
    found = overfit_one_batch(config, report=lambda update, loss: told.append((update, loss)))
    assert found.is_near_zero and found.ratio <= 0.1
    assert found.first == pytest.approx(np.log(2), abs=0.02) and found.last == told[-1][1]
    assert told[0] == (1, found.first) and told[-1][0] == found.updates < 200
    assert asked == {0}
    assert sorted(tmp_path.rglob("*")) == before


def test_the_batch_is_that_of_an_update(config, monkeypatch):
    asked = set()
    original = ClassificationBatches.at
    monkeypatch.setattr(
        ClassificationBatches, "at", lambda self, i: asked.add(i) or original(self, i)
    )
    overfit_one_batch(override(config, ["strategy=accumulate(adamw, 3)"]), num_updates=2)
    assert asked == {0, 1, 2}


@pytest.mark.parametrize(
    "setting",
    ["optimizer.peak_learning_rate=1e-9", "trainable=bias"],
)
def test_what_keeps_it_from_learning_is_noticed(config, setting):
    found = overfit_one_batch(override(config, [setting]), num_updates=60)
    assert not found.is_near_zero and found.updates == 60
    assert 0.5 < found.ratio < 1.5


def test_labels_that_contradict_each_other_are_noticed(config, tmp_path):
    lines = [{"text": f"the same film {i % 5}", "label": (i // 5) % 2} for i in range(100)]
    written(tmp_path / "reviews.jsonl", lines)
    found = overfit_one_batch(override(config, ["batch_size=full"]), num_updates=60)
    assert found.ratio > 0.5


@pytest.mark.parametrize("held_up", [["model.ngram_dropout=0.9"], ["label_smoothing=0.5"]])
def test_what_holds_a_loss_up_on_purpose_is_off(config, held_up):
    assert overfit_one_batch(override(config, held_up)).is_near_zero


def test_a_pupil_learns_labels_without_its_teacher(path, tmp_path):
    config = of_file(
        "sentiment_distilled", path, "model.units=8", "batch_size=8", "model.embedding_size=8"
    )
    found = overfit_one_batch(override(config, ["optimizer.peak_learning_rate=0.03"]))
    assert found.is_near_zero


def test_a_stage_before_the_last_can_be_asked_for(path, monkeypatch):
    config = of_file(
        "sentiment_masked", path, *SMALL, "batch_size=4", "earlier.hidden_words.batch_size=8"
    )
    built = []
    original = checks.build_stage

    def watched(config, number, learner):
        built.append(original(config, number, learner))
        return built[-1]

    monkeypatch.setattr(checks, "build_stage", watched)
    found = overfit_one_batch(config, stage_name="hidden_words", num_updates=3)
    overfit_one_batch(config, num_updates=3)
    names = [stage.config.name for stage in built]
    assert names == ["hidden_words", "sentiment_masked"]
    assert [stage.batches.batch_size for stage in built] == [8, 4]
    assert found.first > 2  # nats, of tokens; of two labels it would be 0.7


def test_unknown_stages_and_numbers_are_refused(config):
    with pytest.raises(ValueError, match="--stage must be one of sentiment,.*'first'"):
        overfit_one_batch(config, stage_name="first")
    with pytest.raises(ValueError, match="--updates must be 1 or more. Received: 0"):
        overfit_one_batch(config, num_updates=0)


def test_a_loss_that_is_not_finite_ends_it(config):
    huge = override(config, ["optimizer.peak_learning_rate=1e38", "optimizer.clip_norm=none"])
    with pytest.raises(FloatingPointError, match="Lower optimizer.peak_learning_rate"):
        overfit_one_batch(huge)


# The command


@pytest.fixture
def fit(path, tmp_path):
    quick = ["tokenizer.num_buckets=1024", "optimizer.peak_learning_rate=0.1"]
    settings = [word for setting in quick for word in ("--set", setting)]

    def call(*words):
        runs = ["--runs", str(tmp_path / "runs")]
        return main([*runs, "fit", "sentiment", "--data", str(path), *settings, *words])

    yield call
    assert not (tmp_path / "runs").exists()


def test_the_dry_run_of_a_users_file_ends_with_code_0(fit, capsys, path):
    assert fit("--dry-run") == 0
    printed = capsys.readouterr().out
    assert f"dataset.path={path}" in printed and "Stage 1 of 1" in printed


def test_the_code_says_whether_it_learned(fit, capsys):
    assert fit("--overfit-one-batch") == 0
    assert "data, network and strategy can learn" in capsys.readouterr().out
    assert fit("--overfit-one-batch", "--updates", "1") == 1
    assert "--updates 2" in capsys.readouterr().out


def test_stages_that_were_not_trained_before_are_told(path, tmp_path, capsys):
    small = [f"--set={setting}" for setting in (*SMALL, "batch_size=4")]
    words = ["--runs", str(tmp_path / "runs"), "fit", "sentiment_masked", "--data", str(path)]
    words += [*small, "--overfit-one-batch", "--updates", "1"]
    assert main(words) == 1
    told = "This was stage sentiment_masked from the initial weights: hidden_words, which"
    assert told in capsys.readouterr().out
    assert main([*words, "--stage", "hidden_words"]) == 1
    assert "from the initial weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--updates", "5"], "--updates goes with"),
        (["--dry-run", "--stage", "sentiment"], "--stage goes with"),
    ],
)
def test_options_of_the_other_way_are_refused(fit, capsys, words, flags):
    assert fit(*words) == 1
    assert f"{flags} --overfit-one-batch" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["--restart", "--overfit-one-batch"])
def test_only_one_way_at_a_time(fit, capsys, other):
    with pytest.raises(SystemExit) as exit:
        fit("--dry-run", other)
    assert exit.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
