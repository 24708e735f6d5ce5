"""The search on made-up trainings: spaces, pruning, divergence, and going on after a stop."""

import dataclasses
import json
import math

import pytest

from training.config import override
from training.recipes import RECIPES, recipe
from training.search import (
    Choice,
    Range,
    best_trial,
    check_space,
    default_space,
    fit_command,
    num_done,
    parse_space,
    search,
    search_folder,
    trial_rows,
    write_search,
)

SPACE = parse_space("optimizer.peak_learning_rate=1e-4..1e-1:log,batch_size=8|16|32")
IDENTITY = {"recipe": "sentiment", "space": "as above"}


class Training:
    """Best at a rate of 1e-2, at every evaluation a little better; remembers what it was given."""

    def __init__(self, failures=None, num_evaluations=4):
        self.failures, self.num_evaluations, self.tried = failures or {}, num_evaluations, []

    def __call__(self, assignments, number, on_evaluation):
        self.tried.append(assignments)
        if number in self.failures:
            raise self.failures[number]
        rate = float(dict(a.split("=") for a in assignments)["optimizer.peak_learning_rate"])
        score = 1 - 0.2 * abs(math.log10(rate) + 2)
        on_evaluation(0, 0.0)
        # Twice the batch size is half as many updates between evaluations.
        every = 3200 // int(assignments[1].removeprefix("batch_size="))
        for step in range(1, self.num_evaluations + 1):
            on_evaluation(step * every, score - 0.1 / step)
        return score - 0.1 / self.num_evaluations

    def run(self, folder, num_trials=12, **changes):
        settings = {"identity": IDENTITY, "seed": 0, "higher_is_better": True} | changes
        return search(SPACE, folder=folder, num_trials=num_trials, train=self, **settings)


def test_spaces_are_read():
    text = (
        "optimizer.peak_learning_rate=1e-4..1e-2:log, batch_size=8|16 ,"
        "strategy=lookahead(adamw, k=5)|sam(adamw),optimizer.warmup_steps=0..100,"
        "model.dropout=0..0.5"
    )
    assert parse_space(text) == {
        "optimizer.peak_learning_rate": Range(1e-4, 1e-2, is_log=True, is_whole=False),
        "batch_size": Choice(("8", "16")),
        "strategy": Choice(("lookahead(adamw, k=5)", "sam(adamw)")),
        "optimizer.warmup_steps": Range(0, 100, is_log=False, is_whole=True),
        "model.dropout": Range(0, 0.5, is_log=False, is_whole=False),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "takes name=low..high"),
        ("batch_size", "takes name=low..high.*'batch_size'"),
        ("batch_size=", "takes name=low..high"),
        ("batch_size=8|16,batch_size=4|2", "names batch_size more than once"),
        ("rate=1..0", "rate takes low..high with low below high.*'1..0'"),
        ("rate=0..1:log", "both above 0"),
        ("rate=1..2:exp", "rate takes low..high"),
        ("rate=a..b", "rate takes low..high"),
        ("rate=1..nan", "rate takes low..high"),
        ("rate=1..2..3", "rate takes low..high"),
        ("batch_size=8||16", "takes different values"),
        ("batch_size=8|8", "takes different values"),
    ],
)
def test_other_spaces_are_refused_with_what_is_expected(text, message):
    with pytest.raises(ValueError, match=message):
        parse_space(text)


@pytest.mark.parametrize("name", RECIPES)
def test_the_default_space_of_every_recipe_fits_its_settings(name):
    config = recipe(name)
    space = parse_space(default_space(config.to_dict()))
    rates = space["optimizer.peak_learning_rate"]
    assert rates.low < config.optimizer.peak_learning_rate < rates.high
    for setting, values in space.items():
        ends = values.values if isinstance(values, Choice) else (values.low, values.high)
        for end in ends:
            override(config, [f"{setting}={end}"])


def test_what_follows_a_schedule_is_not_searched():
    stories = recipe("stories")
    config = dataclasses.replace(
        stories,
        max_updates=9,
        batch_size="linear(8, 64)",
        optimizer=dataclasses.replace(stories.optimizer, weight_decay="cosine(end=0.1)"),
    )
    assert set(parse_space(default_space(config.to_dict()))) == {
        "optimizer.peak_learning_rate",
        "model.dropout",
    }


def test_it_finds_the_better_settings(tmp_path):
    study = Training().run(tmp_path, num_trials=25)
    assert num_done(study) == 25
    best = best_trial(study)
    rate = float(best.user_attrs["assignments"][0].split("=")[1])
    assert 3e-3 < rate < 3e-2
    as_losses = Training().run(tmp_path / "losses", higher_is_better=False)
    worst = best_trial(as_losses)
    assert worst.value == min(t.value for t in as_losses.trials if t.state.name == "COMPLETE")


def test_all_settings_lie_in_the_space(tmp_path):
    training = Training()
    training.run(tmp_path, num_trials=8)
    for rate, size in training.tried:
        assert 1e-4 <= float(rate.removeprefix("optimizer.peak_learning_rate=")) <= 1e-1
        assert size in ("batch_size=8", "batch_size=16", "batch_size=32")


def test_whole_numbers_stay_whole(tmp_path):
    tried = []

    def train(assignments, number, on_evaluation):
        tried.append(int(assignments[0].removeprefix("optimizer.warmup_steps=")))
        return float(tried[-1])

    space = parse_space("optimizer.warmup_steps=3..9")
    settings = {"num_trials": 6, "seed": 0, "higher_is_better": True, "identity": {}}
    search(space, folder=tmp_path, train=train, **settings)
    assert set(tried) <= set(range(3, 10))


def test_hopeless_trials_are_pruned(tmp_path):
    study = Training().run(tmp_path, num_trials=20)
    pruned = [t for t in study.trials if t.state.name == "PRUNED"]
    assert pruned
    finished = [t.value for t in study.trials if t.state.name == "COMPLETE"]
    assert all(t.last_step >= 2 for t in pruned)  # the second evaluation is the first to judge by
    sizes = {t.params["batch_size"] for t in pruned}
    assert len(sizes) > 1  # trials are compared although their evaluations lie at other updates
    assert max(t.value for t in pruned) < max(finished)
    assert "pruned" in {row[1] for row in trial_rows(study, "validation_accuracy")}


def test_the_same_command_goes_on_to_so_many_trials_in_all(tmp_path):
    whole = Training()
    whole.run(tmp_path / "whole", num_trials=12)
    first, second = Training(), Training()
    first.run(tmp_path / "parts", num_trials=7)
    second.run(tmp_path / "parts", num_trials=12)
    assert first.tried + second.tried == whole.tried
    third = Training()
    third.run(tmp_path / "parts", num_trials=12)
    assert third.tried == []
    other = Training()
    other.run(tmp_path / "other", num_trials=3, seed=1)
    assert other.tried != whole.tried[:3]


def test_an_interrupted_trial_is_tried_again(tmp_path):
    whole = Training()
    whole.run(tmp_path / "whole", num_trials=9)
    stopped = Training({7: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path / "parts", num_trials=9)
    rest = Training()
    study = rest.run(tmp_path / "parts", num_trials=9)
    assert num_done(study) == 9
    assert stopped.tried[:-1] + rest.tried == whole.tried
    assert stopped.tried[-1] == rest.tried[0]


def test_a_trial_that_a_kill_left_behind_is_tried_again(tmp_path):
    import optuna

    Training().run(tmp_path, num_trials=2)
    store = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.load_study(study_name="search", storage=store).ask()  # and the process is gone
    study = Training().run(tmp_path, num_trials=3)
    assert num_done(study) == 3
    assert not [t for t in study.trials if t.state.name == "RUNNING"]


def test_divergence_counts_as_the_worst(tmp_path):
    failures = {1: FloatingPointError("Not finite at update 3."), 2: FloatingPointError("Again.")}
    study = Training(failures).run(tmp_path, num_trials=6)
    assert num_done(study) == 6
    rows = trial_rows(study, "validation_accuracy")
    assert [row[1] for row in rows].count("diverged") == 2
    assert "diverged" not in best_trial(study).user_attrs
    write_search(study, folder=tmp_path, recipe="sentiment", score_name="validation_accuracy")
    kept = json.loads((tmp_path / "search.json").read_text(), parse_constant=pytest.fail)
    assert [t["score"] for t in kept["trials"][:2]] == [None, None]


def test_refused_settings_are_a_trial_that_failed_and_the_search_goes_on(tmp_path):
    failures = {1: ValueError("strategy: truncate wants a state."), 4: FloatingPointError("NaN.")}
    training = Training(failures)
    study = training.run(tmp_path, num_trials=6)
    assert num_done(study) == 6 and len(training.tried) == 6
    ended = [row[1] for row in trial_rows(study, "validation_accuracy")]
    assert (ended.count("refused"), ended.count("diverged")) == (1, 1)
    assert not {"refused", "diverged"} & set(best_trial(study).user_attrs)
    write_search(study, folder=tmp_path, recipe="sentiment", score_name="validation_accuracy")
    kept = json.loads((tmp_path / "search.json").read_text(), parse_constant=pytest.fail)
    first, second = kept["trials"][:2]
    assert (first["ended"], first["score"]) == ("refused", None)
    assert first["reason"] == "strategy: truncate wants a state." and second["reason"] == ""
    # Not tried again by the same command, and of no use when there is nothing else.
    assert num_done(Training().run(tmp_path, num_trials=6)) == 6
    alone = Training({1: ValueError("No.")}).run(tmp_path / "alone", num_trials=1)
    with pytest.raises(ValueError, match="No trial reached its end.*The last that failed: No."):
        best_trial(alone)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strategy=adamw|adagrad", "--space strategy=adagrad would always be refused: .*adagrad"),
        ("batch_size=8|0,patience=0|3", "--space batch_size=0 would .*above 0"),
        ("optimizer.warmup=0..9", "--space optimizer.warmup=0 would .*Unknown setting"),
        ("model.ngram_dropout=1.0..2.0", "model.ngram_dropout=1 would .*below 1"),
        ("lora_alpha=1..8", "lora_alpha=1 would .*it needs lora_rank above 0"),
        ("tokenizer=ngram|word,tokenizer.max_tokens=9..99", "tokenizer=ngram would .*max_tokens"),
        ("lora_rank=0|2,lora_alpha=1..8", "lora_rank=0 would .*lora_alpha does nothing"),
        ("strategy=sgd|dp_sgd(sgd),batch_size=full", r"--space strategy=dp_sgd\(sgd\) would"),
    ],
)
def test_what_could_only_be_refused_is_refused_before_the_first_trial(text, message):
    config = recipe("sentiment")
    with pytest.raises(ValueError, match=message):
        check_space(parse_space(text), lambda assignments: override(config, assignments))


@pytest.mark.parametrize(
    "text",
    [
        "strategy=sgd|dp_sgd(sgd),batch_size=8|full",  # some of its trials are refused
        "tokenizer=ngram|word",
        "lora_rank=1|2,lora_alpha=1..8",
        "optimizer.weight_decay=0..0.1",
    ],
)
def test_what_goes_with_some_of_the_others_may_be_tried(text):
    config = recipe("sentiment")
    check_space(parse_space(text), lambda assignments: override(config, assignments))


def test_a_space_too_large_to_look_at_is_left_to_the_trials():
    looked_at = []
    many = ",".join(f"setting{i}=1|2|3" for i in range(8))
    check_space(parse_space(many), looked_at.append)
    assert looked_at == []


def test_dropout_that_follows_a_schedule_is_not_searched():
    names = parse_space(default_space(recipe("sentiment_ulmfit").to_dict()))
    assert "model.dropout" not in names


def test_a_score_that_is_not_finite_is_divergence(tmp_path):
    settings = {"num_trials": 1, "seed": 0, "higher_is_better": True, "identity": {}}
    study = search(SPACE, folder=tmp_path, train=lambda *_: math.nan, **settings)
    assert trial_rows(study, "score")[1][1] == "diverged"
    with pytest.raises(ValueError, match="No trial reached its end with a finite score"):
        best_trial(study)


def test_other_errors_end_the_search(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        Training({2: OSError("disk full")}).run(tmp_path)


def test_another_search_in_the_folder_is_refused_by_name(tmp_path):
    Training().run(tmp_path, num_trials=1)
    with pytest.raises(ValueError, match="holds another search: space differ.*--output"):
        Training().run(tmp_path, num_trials=1, identity=IDENTITY | {"space": "other"})
    assert search_folder(tmp_path, "sentiment", IDENTITY) == search_folder(
        tmp_path, "sentiment", dict(IDENTITY)
    )
    assert search_folder(tmp_path, "sentiment", IDENTITY) != search_folder(
        tmp_path, "sentiment", {}
    )


def test_the_best_settings_are_a_command_to_type(tmp_path):
    study = Training().run(tmp_path, num_trials=6)
    best = best_trial(study)
    rate, size = best.user_attrs["assignments"]
    assert fit_command("sentiment", best, ["strategy=sam(adamw)"]) == (
        f"python -m training fit sentiment --set 'strategy=sam(adamw)' --set {rate} --set {size}"
    )


def test_tables_put_the_best_first(tmp_path):
    study = Training().run(tmp_path, num_trials=8)
    text = write_search(
        study, folder=tmp_path, recipe="sentiment", score_name="validation_accuracy"
    )
    assert f"{best_trial(study).value:.4f}" in text.splitlines()[2]
    rows = trial_rows(study, "validation_accuracy")
    assert rows[0] == [
        "trial",
        "ended",
        "validation accuracy",
        "updates",
        "optimizer.peak_learning_rate",
        "batch_size",
    ]
    assert len(rows) == 9
    assert (tmp_path / "search.md").read_text().count("\n| ") == 9
    kept = json.loads((tmp_path / "search.json").read_text())
    assert len(kept["trials"]) == 8
    first = next(t for t in kept["trials"] if t["ended"] == "finished")
    assert first["evaluations"][-1]["score"] == first["score"]
    size = int(first["settings"][1].removeprefix("batch_size="))
    assert [e["updates"] for e in first["evaluations"]] == [3200 // size * i for i in range(1, 5)]
