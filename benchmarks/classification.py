"""Accuracy beside scikit-learn's, on the same rows: python benchmarks/classification.py [RECIPE...]

For each recipe: Stepwise as it trains it here, TF-IDF (word 1-2-grams and character 1-4-grams)
with logistic regression, and multinomial naive Bayes over the same n-grams' presence. All three
learn from the training split and are measured on the test split; settings are fixed, nothing looks
at the test split to choose them. Where test texts also occur in training, a second figure leaves
those out. Prints the machine, the versions and a Markdown table.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline, make_union

from training.datasets import load_dataset, unseen_test_indices
from training.recipes import recipe
from training.run import fit_run, load_run
from training.runs import RESULTS_FILE, read_json

DEFAULT = ["sentiment", "topics", "sst2", "imdb", "chnsenticorp", "tnews", "ag_news_sample"]
# A word, one Chinese character, or one mark: what a text has to offer in either language.
TOKEN = r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|[^\w\s]"


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


def measure(name: str, runs: Path) -> list[tuple]:
    config = recipe(name)
    data = load_dataset(config.dataset, config.task)
    unseen = unseen_test_indices(data)
    rows = []

    def add(who: str, predicted: np.ndarray, seconds: float) -> None:
        is_right = np.asarray(predicted) == data.test.labels
        rest = f"{is_right[unseen].mean():.2%}" if len(unseen) < len(data.test) else ""
        rows.append((name, who, f"{is_right.mean():.2%}", rest, f"{seconds:.1f}"))

    began = time.perf_counter()
    folder, _ = fit_run(config, runs)
    seconds = read_json(folder / RESULTS_FILE)["seconds"]  # of all stages together
    probabilities = load_run(folder).probabilities(data.test.texts)
    add(f"Stepwise {config.model.name}", probabilities.argmax(axis=1), seconds)
    print(f"# {name}: all of fit_run took {time.perf_counter() - began:.1f} s", file=sys.stderr)
    for who, pipeline in peers().items():
        began = time.perf_counter()
        pipeline.fit(data.train.texts, data.train.labels)
        seconds = time.perf_counter() - began
        add(who, pipeline.predict(data.test.texts), seconds)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", default=DEFAULT)
    options = parser.parse_args()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    packages = ("tensorflow", "keras", "scikit-learn", "numpy")
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{package} {version(package)}" for package in packages))
    print(f"command: python benchmarks/classification.py {' '.join(options.recipes)}\n")
    print("| recipe | model | test accuracy | without repeats of training texts | training s |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.recipes:
            for row in measure(name, Path(folder)):
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
