"""Language models on a corpus that stays on disk: tokenised, trained on, stopped, shared out."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.config import SentencePieceTokenizerConfig
from model.tokenizers import train_tokenizer
from training.checkpoints import checkpoint_files, read_checkpoint
from training.checks import _sizes
from training.config import RunConfig, override
from training.corpora import digest_of, shards_of
from training.datasets import DatasetConfig, load_dataset
from training.datasets import corpus as corpora
from training.packing import PackedBatches, language_model_batches
from training.run import fit_run
from training.runs import read_json
from training.shards import Shards
from training.stacking import stack
from training.strategies.processes import WorkerBatches
from training.strategies.replicas import _rows_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 300 short documents in two scripts."""
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "猫", "在睡觉", "and", "ran"]
    documents = [" ".join(rng.choice(words, rng.integers(2, 20))) + f" {i}" for i in range(300)]
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def as_if_it_were_large(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "PART_BYTES", 3_000)
    monkeypatch.setattr(corpora, "BLOCK_BYTES", 500)


def config(text, **settings):
    values = {
        "name": "corpus",
        "dataset": {"name": "file", "path": str(text), "streaming": True},
        "tokenizer": {"name": "sentencepiece", "model_type": "char", "vocabulary_size": 60},
        "model": {
            "name": "transformer_decoder",
            "num_layers": 1,
            "width": 8,
            "num_heads": 2,
            "inner_width": 8,
            "context_length": 16,
        },
        "packing": "packed",
        "batch_size": 4,
        "max_updates": 14,
        "evaluate_every": 7,
    }
    return RunConfig.from_dict(values | settings)


def tokenizer_of(data, **settings):
    """A tokenizer and its settings."""
    chosen = SentencePieceTokenizerConfig(**{"model_type": "char"} | settings)
    return train_tokenizer(data.train, chosen), chosen


def loaded(text):
    return load_dataset(DatasetConfig(name="file", path=str(text), streaming=True), "generation")


# Tokenising ---------------------------------------------------------------------------------------


def test_shards_hold_what_the_tokenizer_makes_of_each_document(text):
    data = loaded(text)
    tokenizer, settings = tokenizer_of(data)
    shards = shards_of(data.corpus, tokenizer, settings, num_threads=2)
    assert len(shards.shards) == len(data.corpus.parts) > 3
    found = [
        shards.document(shard, number).tolist()
        for shard in range(len(shards.shards))
        for number in range(shards.num_documents[shard])
    ]
    expected = [[2, *row, 3] for row in tokenizer(data.train).to_list()]
    assert found == expected
    assert shards.num_documents.sum() == data.num_documents == dict(_sizes(data))["train"]
    assert shards.longest.max() == max(map(len, expected))


def test_they_are_made_once_for_each_tokenizer(text, monkeypatch):
    data = loaded(text)
    one, other = tokenizer_of(data), tokenizer_of(data, model_type="unigram", vocabulary_size=300)
    assert digest_of(*one) == digest_of(*tokenizer_of(data)) != digest_of(*other)
    assert digest_of(one[0], other[1]) != digest_of(*one)  # not all settings are in the files
    folders = [shards_of(data.corpus, *each).folder for each in (one, other)]
    assert folders[0] != folders[1]
    monkeypatch.setattr(corpora, "_blocks", lambda span: pytest.fail("read again"))
    assert shards_of(data.corpus, *one).folder == folders[0]


# Runs ---------------------------------------------------------------------------------------------


def stop_before(monkeypatch, step):
    original = PackedBatches.at

    def at(self, asked):
        if asked == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, asked)

    monkeypatch.setattr(PackedBatches, "at", at)


def last_state(folder):
    return read_checkpoint(checkpoint_files(folder / "checkpoints" / "corpus" / "last")[0])


def test_a_stopped_run_on_a_corpus_ends_bit_for_bit_as_if_never_stopped(
    text, tmp_path, monkeypatch
):
    whole, outcome = fit_run(config(text), tmp_path / "whole")
    assert outcome.reason == "finished"
    with monkeypatch.context() as patch:
        stop_before(patch, 4)
        part, outcome = fit_run(config(text), tmp_path / "parts")
    assert outcome.reason == "interrupted" and outcome.step == 5
    again, outcome = fit_run(config(text), tmp_path / "parts")
    assert again == part and outcome.reason == "finished"
    states = last_state(whole), last_state(part)
    assert states[0].arrays.keys() == states[1].arrays.keys()
    for name, array in states[0].arrays.items():
        np.testing.assert_array_equal(array, states[1].arrays[name], err_msg=name)
    assert read_json(whole / "results.json")["test"] == read_json(part / "results.json")["test"]

    # What the log says of speed is the number of targets over the seconds beside it.
    data = loaded(text)
    shards = shards_of(data.corpus, *tokenizer_of(data, vocabulary_size=60))
    batches = language_model_batches(
        shards, num_tokens=16, packing="packed", end=3, batch_size=4, seed=0
    )
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    reports = [line for line in lines if "tokens_per_second" in line]
    assert [line["step"] for line in reports] == [7, 14]
    for line in reports:
        steps = range(line["step"] - 7, line["step"])
        counted = sum(np.count_nonzero(batches.at(i)["targets"]) for i in steps)
        reported = line["tokens_per_second"] * line["update_seconds"]
        assert reported == pytest.approx(counted, rel=1e-9)


def test_a_pass_over_a_corpus_and_over_the_same_in_memory_has_the_same_targets(text):
    data = loaded(text)
    tokenizer, settings = tokenizer_of(data)
    memory = [np.array([2, *row, 3], np.int32) for row in tokenizer(data.train).to_list()]
    passes = []
    for documents in (shards_of(data.corpus, tokenizer, settings), memory):
        batches = language_model_batches(documents, num_tokens=16, end=3, batch_size=1, seed=0)
        rows = [batches.at(i)["targets"] for i in range(batches.num_batches)]
        passes.append(np.sort(np.concatenate([row.ravel() for row in rows])))
    np.testing.assert_array_equal(*passes)


def test_packed_rows_are_for_generators_and_for_whole_orders(text):
    with pytest.raises(ValueError, match="packing must be one of documents, packed"):
        config(text, packing="tight")
    with pytest.raises(ValueError, match="batch_size must be a number or a schedule with packing"):
        config(text, batch_size="full")
    with pytest.raises(ValueError, match="packing must be documents with dp_sgd"):
        config(text, strategy="dp_sgd(sgd)")


# Several workers ----------------------------------------------------------------------------------


def recorded(text, monkeypatch):
    """Batches of a corpus, and the list of (shard, start) rows that were read."""
    data = loaded(text)
    shards = shards_of(data.corpus, *tokenizer_of(data, vocabulary_size=60))
    assert isinstance(shards, Shards)
    batches = language_model_batches(
        shards, num_tokens=16, packing="packed", end=3, batch_size=5, seed=0
    )
    reads, window = [], batches.window
    monkeypatch.setattr(
        batches, "window", lambda s, start, n: reads.append((s, start)) or window(s, start, n)
    )
    return batches, reads


class Place:
    def __init__(self, index, num):
        self.index, self.num = index, num


@pytest.mark.parametrize("batches_per_update", [1, 2])
def test_workers_read_a_pass_together_and_no_row_twice(text, monkeypatch, batches_per_update):
    batches, reads = recorded(text, monkeypatch)
    num_updates = batches.num_batches // (3 * batches_per_update)
    whole = [batches.at(i)["tokens"] for i in range(num_updates * 3 * batches_per_update)]
    alone = sorted(reads)
    of_worker = []
    for index in range(3):
        reads.clear()
        own = WorkerBatches(batches, Place(index, 3), batches_per_update)
        rows = [own.at(i)["tokens"] for i in range(num_updates * batches_per_update)]
        of_worker.append((set(reads), rows))
        assert len(reads) == len(of_worker[-1][0]) == 5 * num_updates * batches_per_update
    assert sorted(row for rows, _ in of_worker for row in rows) == alone
    for update in range(num_updates):
        span = slice(update * batches_per_update, (update + 1) * batches_per_update)
        together = np.concatenate([batch for _, rows in of_worker for batch in rows[span]])
        first = update * 3 * batches_per_update
        np.testing.assert_array_equal(
            together, np.concatenate(whole[first : first + 3 * batches_per_update])
        )


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_the_rows_of_replicas_together_are_the_batch_and_nothing_is_there_twice(
    text, monkeypatch, num_replicas
):
    batches, reads = recorded(text, monkeypatch)
    seen = []
    for update in range(batches.num_batches // 2):
        stacked = stack([batches.at(2 * update), batches.at(2 * update + 1)])
        parts = [_rows_of(stacked, replica, num_replicas) for replica in range(num_replicas)]
        for number in range(2):
            rows = [tuple(row) for part in parts for row in part["tokens"][number].tolist()]
            assert sorted(rows) == sorted(map(tuple, stacked["tokens"][number].tolist()))
            seen += rows
    assert len(set(reads)) == len(reads) == len(seen)


FIT_ON_TWO = """
import json, sys
from pathlib import Path
from training.config import RunConfig
from training.datasets import corpus
from training.devices import choose_replicas
from training.run import fit_run

corpus.PART_BYTES, corpus.BLOCK_BYTES = 3_000, 500
config = RunConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
fit_run(config, Path(sys.argv[2]), replicas=choose_replicas(config, 2))
"""


@pytest.mark.slow
def test_two_replicas_are_trained_on_a_corpus_as_one_device_is(text, tmp_path):
    """Logical devices: TensorFlow can be told of them only while it starts."""
    run = override(config(text), ["model.dropout=0"])  # masks are drawn by each replica
    one, _ = fit_run(run, tmp_path / "one")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(run.to_dict()), encoding="utf-8")
    program = [sys.executable, "-c", FIT_ON_TWO, str(file), str(tmp_path / "two")]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    two = tmp_path / "two" / one.name
    for name, array in last_state(one).arrays.items():
        np.testing.assert_allclose(
            last_state(two).arrays[name], array, rtol=1e-3, atol=1e-5, err_msg=name
        )
