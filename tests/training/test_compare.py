"""The comparison's order, budgets and resuming, on fakes that train nothing."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from comparison_records import record

from training.compare import (
    Budget,
    Cost,
    Entry,
    compare_recipe,
    comparison_folder,
    entries_of,
    facts,
    in_turn,
    parse_budget,
    run_comparison,
    split_strategies,
    updates_for,
)
from training.config import override
from training.recipes import recipe
from training.report import write_report

ENTRIES = [Entry(name, f"{name}()", {"strategy": name}) for name in ("adamw", "sam", "sgd")]
IDENTITY = {"recipe": "sentiment", "settings": {"batch_size": 32}, "data": "f00d"}
TWO_THOUSAND = Budget(2000, "updates")


class Fake:
    """Trains nothing, remembers what was asked for, and fails where it is told to."""

    def __init__(self, failures=None, costs=None):
        self.failures, self.costs = failures or {}, costs or {}
        self.trained, self.timed = [], []

    def train(self, config, seed, updates, folder):
        name = config["strategy"]
        self.trained.append((name, seed, updates))
        failure = self.failures.get((name, seed))
        if isinstance(failure, BaseException):
            raise failure
        return record(name, seed) | {"updates": updates} | (failure or {})

    def calibrate(self, config):
        name = config["strategy"]
        self.timed.append(name)
        cost = self.costs.get(name, Cost(0.03, 1))
        if isinstance(cost, Exception):
            raise cost
        return cost

    def run(self, folder, entries=ENTRIES, seeds=range(2), budget=TWO_THOUSAND, identity=IDENTITY):
        return run_comparison(
            entries,
            folder=folder,
            identity=identity,
            budget=budget,
            seeds=seeds,
            train=self.train,
            calibrate=self.calibrate,
        )


def test_budgets_are_read():
    assert parse_budget("60s") == Budget(60, "s")
    assert parse_budget(" 1.5 s") == Budget(1.5, "s")
    assert parse_budget("2000updates") == parse_budget("2000 update") == TWO_THOUSAND
    assert parse_budget("4000evaluations") == Budget(4000, "evaluations")
    assert str(parse_budget("1.5s")) == "1.5s"


@pytest.mark.parametrize("text", ["", "60", "0s", "-3s", "1.5updates", "2000steps", "1e3s", "nans"])
def test_other_budgets_are_refused_with_what_is_expected(text):
    with pytest.raises(ValueError, match="--budget takes seconds, updates or gradient") as error:
        parse_budget(text)
    assert repr(text) in str(error.value)


def test_strategies_are_split_outside_brackets():
    text = "adamw,lookahead(sam(accumulate(adamw, 4)), k=5), diloco:4x20"
    assert split_strategies(text) == [
        "adamw",
        "lookahead(sam(accumulate(adamw, 4)), k=5)",
        "diloco:4x20",
    ]


@pytest.mark.parametrize("text", ["", "adamw,,sam", "adamw,"])
def test_an_empty_strategy_is_refused(text):
    with pytest.raises(ValueError, match="--strategies takes names with commas"):
        split_strategies(text)


def test_a_strategy_typed_twice_is_refused():
    with pytest.raises(ValueError, match="names sam more than once"):
        split_strategies("adamw,sam,sam")


@pytest.mark.parametrize(
    ("label", "strategy"),
    [
        ("sgd", "sgd"),
        ("momentum:0.5", "momentum(momentum=0.5)"),
        ("accumulate:4", "accumulate(rmsprop(rho=0.8), k=4)"),
        ("lookahead:5x0.4+sam", "lookahead(sam(rmsprop(rho=0.8), rho=0.05), k=5, alpha=0.4)"),
        ("lookahead:5+sgd", "lookahead(sgd, k=5, alpha=0.5)"),
        ("lookahead(sgd, k=3)", "lookahead(sgd, k=3, alpha=0.5)"),
        ("ema(sam(sgd, 0.1), 0.9)", "ema(sam(sgd, rho=0.1), beta=0.9)"),
    ],
)
def test_short_forms_stand_around_the_optimizer_of_the_recipe(label, strategy):
    config = dataclasses.replace(recipe("sentiment"), strategy="sam(rmsprop(0.8))")
    (entry,) = entries_of(label, config)
    assert (entry.label, entry.strategy) == (label, strategy)
    assert entry.config == dataclasses.replace(config, strategy=strategy)


@pytest.mark.parametrize("label", ["adam:w", "no_such_part:4", "accumulate(adamw", "sam(4)"])
def test_a_strategy_that_makes_no_sense_is_refused_by_the_option(label):
    with pytest.raises(ValueError, match="--strategies"):
        entries_of(label, recipe("sentiment"))


@pytest.mark.parametrize(
    ("budget", "cost", "updates"),
    [
        ("60s", Cost(0.03, 1), 2000),
        ("60s", Cost(0.06, 2), 1000),
        ("0.7s", Cost(0.1, 1), 7),  # 0.7 / 0.1 is 6.999... in binary fractions
        ("1s", Cost(5.0, 1), 1),
        ("1000evaluations", Cost(9.0, 8), 125),
        ("2000updates", Cost(9.0, 8), 2000),
    ],
)
def test_a_budget_pays_for_so_many_updates(budget, cost, updates):
    assert updates_for(parse_budget(budget), cost) == updates


def test_seeds_are_the_outer_loop_and_the_first_strategy_rotates():
    turns = [(entry.label, seed) for entry, seed in in_turn(ENTRIES, [0, 1, 2])]
    assert turns == [
        *[("adamw", 0), ("sam", 0), ("sgd", 0)],
        *[("sam", 1), ("sgd", 1), ("adamw", 1)],
        *[("sgd", 2), ("adamw", 2), ("sam", 2)],
    ]


def test_every_strategy_is_trained_with_every_seed(tmp_path):
    fake = Fake()
    outcome = fake.run(tmp_path)
    assert [t[:2] for t in fake.trained] == [(e.label, s) for e, s in in_turn(ENTRIES, range(2))]
    assert {updates for *_, updates in fake.trained} == {2000}
    assert fake.timed == []  # updates need no clock
    assert len(outcome.records) == outcome.num_expected == 6
    assert not outcome.is_interrupted
    assert outcome.records[1]["strategy"] == "sam()"


def test_what_is_done_is_reused(tmp_path):
    first = Fake().run(tmp_path)
    again = Fake()
    assert again.run(tmp_path) == first
    assert again.trained == []


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path):
    uninterrupted = Fake().run(tmp_path / "whole")
    stopping = Fake({("sgd", 0): {"ended": "interrupted"}})
    outcome = stopping.run(tmp_path / "parts")
    assert outcome.is_interrupted
    assert [r["label"] for r in outcome.records] == ["adamw", "sam"]
    rest = Fake()
    assert rest.run(tmp_path / "parts") == uninterrupted
    assert [t[:2] for t in rest.trained] == [("sgd", 0), ("sam", 1), ("sgd", 1), ("adamw", 1)]


def test_an_error_keeps_what_was_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Fake({("sam", 0): KeyboardInterrupt()}).run(tmp_path)
    rest = Fake()
    rest.run(tmp_path)
    assert rest.trained[0][:2] == ("sam", 0)


@pytest.mark.parametrize(
    "failure",
    [
        FloatingPointError("Not finite at update 7."),
        {"ended": "diverged", "message": "Not finite at update 7.", "score": math.nan},
        {"ended": "finished", "message": "Not finite at update 7.", "score": math.inf},
    ],
)
def test_a_strategy_that_diverges_does_not_stop_the_others(tmp_path, failure):
    fake = Fake({("sam", 0): failure})
    records = fake.run(tmp_path).records
    assert len(fake.trained) == 6
    diverged = [r for r in records if r["ended"] == "diverged"]
    assert [(r["label"], r["seed"]) for r in diverged] == [("sam", 0)]
    assert diverged[0]["message"] == "Not finite at update 7."
    assert diverged[0]["score"] is None
    again = Fake()
    assert again.run(tmp_path).records == records
    assert again.trained == []  # a divergence is a result


def test_records_are_json_that_anything_can_read(tmp_path):
    curve = [{"updates": 0, "loss": math.nan, "validation_loss": -math.inf}]
    Fake({("sam", 0): {"curve": curve}}).run(tmp_path)
    refuse = pytest.fail
    for path in (tmp_path / "records").iterdir():
        json.loads(path.read_text(), parse_constant=refuse)


def test_seconds_become_updates_of_each_strategy_once(tmp_path):
    costs = {"adamw": Cost(0.01, 1), "sam": Cost(0.02, 2), "sgd": Cost(0.005, 1)}
    fake = Fake({("adamw", 1): KeyboardInterrupt()}, costs)
    with pytest.raises(KeyboardInterrupt):
        fake.run(tmp_path, budget=Budget(10, "s"))
    assert fake.timed == ["adamw", "sam", "sgd"]
    planned = dict(t[::2] for t in fake.trained)
    assert planned == {"adamw": 1000, "sam": 500, "sgd": 2000}
    slower = Fake(costs={name: Cost(1.0, 1) for name in costs})
    slower.run(tmp_path, budget=Budget(10, "s"))
    assert slower.timed == []
    assert slower.trained == [("adamw", 1, 1000)]  # the plan that it was begun with


def test_gradient_evaluations_become_updates(tmp_path):
    fake = Fake(costs={"sam": Cost(0.1, 8)})
    fake.run(tmp_path, budget=Budget(4000, "evaluations"), seeds=[0])
    assert fake.trained == [("adamw", 0, 4000), ("sam", 0, 500), ("sgd", 0, 4000)]


def test_diverging_while_timed_is_diverging(tmp_path):
    fake = Fake(costs={"sgd": FloatingPointError("Not finite at update 2.")})
    records = fake.run(tmp_path, budget=Budget(10, "s")).records
    lost = [r for r in records if r["label"] == "sgd"]
    assert [(r["ended"], r["message"]) for r in lost] == [
        ("diverged", "Not finite at update 2.")
    ] * 2
    assert "sgd" not in {name for name, *_ in fake.trained}


def test_strategies_and_seeds_may_be_added(tmp_path):
    Fake().run(tmp_path, entries=ENTRIES[:2], seeds=range(1))
    more = Fake()
    outcome = more.run(tmp_path, seeds=range(2))
    assert sorted(t[:2] for t in more.trained) == [
        *[("adamw", 1), ("sam", 1), ("sgd", 0), ("sgd", 1)]
    ]
    assert len(outcome.records) == 6


def test_a_label_is_what_was_typed_last(tmp_path):
    Fake().run(tmp_path, seeds=[0])
    renamed = [Entry("AdamW", "adamw()", {"strategy": "adamw"})]
    again = Fake()
    assert again.run(tmp_path, entries=renamed, seeds=[0]).records[0]["label"] == "AdamW"
    assert again.trained == []


def test_two_names_of_one_strategy_are_refused(tmp_path):
    twice = [*ENTRIES, Entry("SAM", "sam()", {})]
    with pytest.raises(ValueError, match="sam and SAM are the same strategy"):
        Fake().run(tmp_path, entries=twice)


def test_another_comparison_in_the_folder_is_refused_by_name(tmp_path):
    Fake().run(tmp_path)
    other = IDENTITY | {"settings": {"batch_size": 8}}
    with pytest.raises(
        ValueError, match=r"settings.batch_size was 32 there and is 8 now.*--output"
    ):
        Fake().run(tmp_path, identity=other)
    with pytest.raises(ValueError, match="budget was '2000updates' there and is '60s' now"):
        Fake().run(tmp_path, budget=Budget(60, "s"))


def test_the_folder_follows_from_settings_and_budget(tmp_path):
    first = comparison_folder(tmp_path, "sentiment", IDENTITY, TWO_THOUSAND)
    assert first == comparison_folder(tmp_path, "sentiment", dict(IDENTITY), TWO_THOUSAND)
    assert first.name.startswith("sentiment-")
    other = IDENTITY | {"data": "beef"}
    assert first != comparison_folder(tmp_path, "sentiment", other, TWO_THOUSAND)
    assert first != comparison_folder(tmp_path, "sentiment", IDENTITY, Budget(60, "s"))


def test_a_strategy_at_another_rate_is_another_run(tmp_path):
    config = recipe("sentiment")
    slow, fast = entries_of("muon@0.02,muon@0.05", config)
    assert slow.config.strategy == fast.config.strategy == "muon(momentum=0.95, adamw_rate=0.15)"
    fake = Fake()

    def train(config, seed, updates, folder):
        rate = config.optimizer.peak_learning_rate
        return fake.train({"strategy": str(rate)}, seed, updates, folder)

    for entries in ([slow], [fast], [slow, fast]):
        run_comparison(
            entries,
            folder=tmp_path,
            identity=IDENTITY,
            budget=TWO_THOUSAND,
            seeds=[0],
            train=train,
            calibrate=fake.calibrate,
        )
    assert [name for name, *_ in fake.trained] == ["0.02", "0.05"]
    # The recipe's own rate, written out, is no other one.
    plain, typed = entries_of(f"adamw,adamw@{config.optimizer.peak_learning_rate}", config)
    assert plain.strategy == typed.strategy


def test_strategies_that_look_alike_have_records_of_their_own(tmp_path):
    alike = [Entry(name, name, {"strategy": name}) for name in ("a(b, 4)", "a(b 4)", "a-b-4")]
    assert len(Fake().run(tmp_path, entries=alike, seeds=[0]).records) == 3
    assert len(list((tmp_path / "records").iterdir())) == 3


def test_facts_say_whether_all_began_from_the_same_weights():
    records = [record(label, seed) for label in ("adamw", "sam") for seed in range(2)]
    assert facts(records, TWO_THOUSAND) == [
        "All strategies began from the same weights (by digest) with seeds 0 (digest of se), "
        "1 (digest of se)."
    ]
    records[3] |= {"initial_weights": "other weights"}
    _, warning = facts(records, TWO_THOUSAND)
    assert warning.startswith("Beware: with seed 1 not all strategies began")
    assert "sam" in warning


def test_facts_say_how_far_wall_times_are_equal():
    records = [record("adamw", 0) | {"seconds": 57.1}, record("sam", 0) | {"seconds": 63.2}]
    assert "Taken: 57.1 to 63.2 s." in facts(records, Budget(60, "s"))[-1]


def test_facts_name_runs_that_stopped_early():
    early = record("sam", 1) | {"ended": "early"}
    assert facts([early], TWO_THOUSAND)[-1].endswith("before the budget was spent: sam (seed 1).")


def test_a_whole_comparison_is_trained_and_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake = Fake(costs={"sam": Cost(0.1, 2), "adamw": Cost(0.05, 1)})

    def train(config, seed, updates, folder):
        label = config.strategy.partition("(")[0]
        return fake.train({"strategy": label}, seed, updates, folder)

    def calibrate(config):
        return fake.calibrate({"strategy": config.strategy.partition("(")[0]})

    comparison, folder, is_interrupted = compare_recipe(
        "sentiment",
        override(recipe("sentiment"), ["batch_size=8"]),
        data="f00d",
        strategies="adamw,sam",
        budget="10s",
        num_seeds=2,
        output=None,
        train=train,
        calibrate=calibrate,
    )
    assert folder.parent == Path("comparisons")
    assert not is_interrupted
    assert fake.trained == [
        ("adamw", 0, 200),
        ("sam", 0, 100),
        ("sam", 1, 100),
        ("adamw", 1, 200),
    ]
    assert comparison.title == "sentiment: 2 strategies, 2 seeds"
    assert comparison.settings["batch_size"] == "8"
    assert comparison.settings["strategy sam"].startswith("sam(adamw")
    results = write_report(comparison, folder)
    assert [result.label for result in results] == ["adamw", "sam"]
    page = (folder / "report.html").read_text()
    assert "10 seconds of training each" in page
    assert "optimizer.peak_learning_rate" in page
