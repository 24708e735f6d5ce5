"""Accuracy beside its targets: python benchmarks/classification.py [SET...] [--seeds 3] [--peers]

Two figures for each set, each the mean of the seeds on the test split, which nothing looks at to
choose anything: the best within 20 minutes of training, or --long seconds, and the recipe cut to 60
seconds (`fit RECIPE --budget 60s`). The first is `fit auto` where networks beside the bag help,
else the recipe in full. Where test texts also occur in training, a second figure leaves those out.

With `--peers` also TF-IDF (word 1-2-grams and character 1-4-grams) with logistic regression, and
multinomial naive Bayes over the same n-grams' presence, by scikit-learn on the same rows.

Runs are kept in --runs: the same command goes on where it was stopped and trains nothing twice.
Prints the machine, the versions and a Markdown table.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline, make_union

from training.auto import fit_auto
from training.budget import within
from training.config import CLASSIFICATION
from training.datasets import load_dataset, unseen_test_indices
from training.recipes import recipe
from training.refit import refitted
from training.run import fit_run
from training.runs import RESULTS_FILE, read_json, write_json

LONG, SHORT = 1200.0, 60.0  # seconds
COLUMNS = ("long", "short")
# A word, one Chinese character, or one mark: what a text has to offer in either language.
TOKEN = r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|[^\w\s]"


@dataclass(frozen=True)
class Goal:
    """What is known of a set and what is to be reached, accuracies in percent."""

    reference: str
    target: float | None
    recipe: str
    is_auto: bool = True  # within 20 minutes: `fit auto`, else the recipe in full


GOALS = {
    "starter_sentiment": Goal("", None, "sentiment", is_auto=False),
    "starter_topics": Goal("", None, "topics", is_auto=False),
    "sst2": Goal("naive Bayes 82.5, CNN with phrases 83.5", 84.0, "sst2"),
    "imdb": Goal("fastText 90.56, NB-SVM 91.2, GloVe-LSTM 92.1", 92.0, "imdb"),
    "chnsenticorp": Goal("TextCNN 91.1, BiLSTM 89.8 to 92.4", 92.5, "chnsenticorp"),
    "tnews": Goal("naive Bayes 52.8, ALBERT-tiny 53.6, BERT 56.1", 56.0, "tnews"),
    "thucnews": Goal("naive Bayes 87.3", 90.5, "thucnews"),
    "ag_news_sample": Goal("naive Bayes 86.9", 88.5, "ag_news_sample"),
    "20newsgroups": Goal("naive Bayes 77.9, fastText 79.4, LR 83.2", 84.5, "newsgroups"),
    "weibo2018": Goal("86.4", 88.0, "weibo2018"),
    "waimai_10k": Goal("87.7", 90.5, "waimai_10k"),
    "online_shopping_10_cats": Goal("90.7", 94.0, "online_shopping"),
}


def results_within(
    goal: Goal, seed: int, seconds: float, runs: Path, refit: bool
) -> dict[str, Any]:
    """What the best within `seconds` of training writes down; interrupted, it raises."""
    config = replace(recipe(goal.recipe), seed=seed)
    if goal.is_auto and seconds > SHORT:
        found = fit_auto(
            config.dataset,
            seconds,
            runs,
            change=lambda candidate: replace(candidate, seed=seed),
            refit=refit,
        )
        if found is None:
            raise KeyboardInterrupt
        return read_json(found[0] / RESULTS_FILE)
    fitted = within(config, seconds / 2 if refit else seconds, runs).config
    folder, outcome = fit_run(fitted, runs)
    if refit and outcome.reason != "interrupted":
        first = read_json(folder / RESULTS_FILE)["seconds"]
        folder, outcome = fit_run(refitted(fitted, folder), runs)
        if outcome.reason != "interrupted":
            results = read_json(folder / RESULTS_FILE)
            return results | {"seconds": results["seconds"] + first}
    if outcome.reason == "interrupted":
        raise KeyboardInterrupt
    return read_json(folder / RESULTS_FILE)


def peers() -> dict:
    def features(vectorizer, **options):
        return make_union(
            vectorizer(token_pattern=TOKEN, ngram_range=(1, 2), **options),
            vectorizer(analyzer="char_wb", ngram_range=(1, 4), **options),
        )

    return {
        "TF-IDF + logistic regression": make_pipeline(
            features(TfidfVectorizer, sublinear_tf=True, dtype=np.float32),
            LogisticRegression(C=10.0, max_iter=300, solver="saga", tol=1e-3, random_state=0),
        ),
        "multinomial naive Bayes": make_pipeline(
            features(CountVectorizer, binary=True, dtype=np.float32), MultinomialNB(alpha=1.0)
        ),
    }


def results_of_peer(name: str, config, runs: Path) -> dict[str, Any]:
    """As those of a run, kept in a file of its own."""
    path = runs / "peers" / f"{config.dataset.name}-{name.replace(' ', '_')}.json"
    if path.is_file():
        return read_json(path)
    data: Any = load_dataset(config.dataset, CLASSIFICATION)
    pipeline, began = peers()[name], time.perf_counter()
    pipeline.fit(data.train.texts, data.train.labels)
    seconds = time.perf_counter() - began
    is_right = pipeline.predict(data.test.texts) == data.test.labels
    test: dict[str, Any] = {"accuracy": float(is_right.mean())}
    unseen = unseen_test_indices(data)
    if 0 < len(unseen) < len(is_right):
        test["without_repeats"] = {"accuracy": float(is_right[unseen].mean())}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"test": test, "seconds": seconds})
    return read_json(path)


def rows_of(
    name: str,
    num_seeds: int,
    runs: Path,
    *,
    columns: list[str],
    long: float,
    with_peers: bool,
    refit: bool,
) -> list[list[str]]:
    goal, how, cells = GOALS[name], GOALS[name].recipe, []
    for column, seconds in {"long": long, "short": SHORT}.items():
        if column not in columns:
            cells += ["", "", ""]
            continue
        found = [results_within(goal, seed, seconds, runs, refit) for seed in range(num_seeds)]
        if "members" in found[0]:
            how = "auto: " + " + ".join(found[0]["members"])
        cells += _cells(found)
    target = f"{goal.target:.1f}" if goal.target else ""
    rows = [[name, how, goal.reference, target, *cells]]
    for who in peers() if with_peers else ():
        found = results_of_peer(who, recipe(goal.recipe), runs)
        rows.append([name, who, "", "", *_cells([found]), "", "", ""])
    return rows


def _cells(results: list[dict[str, Any]]) -> list[str]:
    """Mean accuracy and its range, the same without repeats, and seconds of training."""
    tests = [result["test"] for result in results]
    repeats = [test["without_repeats"] for test in tests if "without_repeats" in test]
    seconds = np.mean([result["seconds"] for result in results])
    return [_mean(tests), _mean(repeats) if repeats else "", f"{seconds:.0f}"]


def _mean(tests: list[dict[str, Any]]) -> str:
    values = [100 * test["accuracy"] for test in tests]
    apart = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{apart}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", choices=[*GOALS, []], help="all of them")
    parser.add_argument("--seeds", type=int, default=3, help="runs for each figure (3)")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument(
        "--refit", action="store_true", help="in the end on training and validation together"
    )
    parser.add_argument(
        "--long", type=float, default=LONG, help=f"seconds of the long column ({LONG:g})"
    )
    parser.add_argument("--peers", action="store_true", help="scikit-learn's beside it")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="are kept here")
    options = parser.parse_args()
    names = options.sets or list(GOALS)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    packages = ("tensorflow", "keras", "scikit-learn", "numpy")
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{package} {version(package)}" for package in packages))
    print(f"command: python benchmarks/classification.py {' '.join(sys.argv[1:])}\n")
    minutes = options.long / 60
    print(
        f"| set | by | reference | target | best in {minutes:g} min | without repeats | s "
        "| best in 60 s | without repeats | s |"
    )
    print("|---" * 10 + "|", flush=True)
    for name in names:
        for row in rows_of(
            name,
            options.seeds,
            options.runs,
            columns=options.columns,
            long=options.long,
            with_peers=options.peers,
            refit=options.refit,
        ):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
