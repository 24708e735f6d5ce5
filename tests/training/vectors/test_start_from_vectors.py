"""A classifier whose embedding starts from a file of vectors."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from model.catalogue import CLASSIFIERS
from model.config import MODEL_CONFIGS
from training.config import RunConfig, override
from training.datasets.catalogue import load_dataset
from training.run import begin_run, fit_run, load_run
from training.runs import run_folder
from training.vectors import start
from training.vectors.start import embedding_of

SIZE = 4
VECTORS = "good 1 2 3 4\nBAD -1 -2 -3 -4\nfilm 0.5 0 0 x\nunused 9 9 9 9\n"


@pytest.fixture
def config(tmp_path):
    words = [("bad", "poor"), ("good", "great")]
    rows = [{"text": f"{words[i % 2][i % 3 // 2]} film", "label": i % 2} for i in range(60)]
    rows += [{"text": f"{row['text']} {i}", "label": row["label"]} for i, row in enumerate(rows)]
    data, vectors = tmp_path / "reviews.jsonl", tmp_path / "glove.txt"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    vectors.write_text(VECTORS, encoding="utf-8")
    return RunConfig.from_dict(
        {
            "name": "reviews",
            "dataset": {"name": "file", "path": str(data)},
            "tokenizer": {"name": "word"},
            "model": {"name": "recurrent", "embedding_size": SIZE, "units": 3},
            "optimizer": {"peak_learning_rate": 0.05},
            "strategy": "adam",
            "batch_size": 16,
            "max_updates": 4,
            "evaluate_every": 2,
            "vectors": str(vectors),
        }
    )


def begun(config, folder):
    return begin_run(config, folder, load_dataset(config.dataset, config.task))


def row_of(learner, word):
    return embedding_of(learner).numpy()[learner.tokenizer.words.index(word) + 2]


def test_found_rows_are_copied_and_the_rest_is_random_at_their_scale(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plain = begun(dataclasses.replace(config, vectors=None), tmp_path / "plain")
    learner = begun(config, tmp_path / "run")
    assert row_of(learner, "good").tolist() == [1, 2, 3, 4]
    assert row_of(learner, "bad").tolist() == [-1, -2, -3, -4]  # in another case
    others, before = (embedding_of(x).numpy() for x in (learner, plain))
    is_other = [0, 1, *(learner.tokenizer.words.index(w) + 2 for w in ("film", "poor", "great"))]
    factor = np.std([1, 2, 3, 4, -1, -2, -3, -4]) / before.std()
    np.testing.assert_allclose(others[is_other], before[is_other] * factor, rtol=1e-6)
    for a, b in zip(learner.model.variables, plain.model.variables, strict=True):
        assert a is embedding_of(learner) or np.array_equal(a.numpy(), b.numpy())


def test_coverage_and_broken_lines_are_told(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    learner = begun(config, tmp_path / "run")
    texts = load_dataset(config.dataset, config.task).train.texts
    words = [word for text in texts for word in text.split()]
    share = sum(word in ("good", "bad") for word in words) / len(words)
    size = len(learner.tokenizer.words)
    told = " ".join(caplog.messages)
    assert (
        f"glove.txt: 2 of {size} words of the vocabulary found ({2 / size:.1%}), 1 of them" in told
    )
    assert f"{share:.1%} of the running words" in told and 0.1 < share < 0.5
    assert "glove.txt: 1 line left out: line 3: no number: b'x'." in told


@pytest.mark.parametrize("tuned", [True, False])
def test_the_embedding_moves_only_if_it_is_tuned(config, tmp_path, tuned):
    config = override(config, [f"tune_vectors={tuned}"])
    before = embedding_of(begun(config, tmp_path / "begun")).numpy()
    folder, _ = fit_run(override(config, ["keep=last"]), tmp_path / "runs")
    after = embedding_of(load_run(folder)).numpy()
    assert (before != after).any() == tuned
    (stage,) = json.loads((folder / "stages.json").read_text())
    moved = stage["moved_by"]
    assert len(moved) > 3 and any("embedding" in path for path in moved) == tuned


WITH_EMBEDDING = {
    name: "model.embedding_size"
    if "embedding_size" in config.__dataclass_fields__
    else "model.width"
    for name, config in MODEL_CONFIGS.items()
    if name in CLASSIFIERS and name != "bag_of_ngrams" and "word" in config.tokenizers
}


@pytest.mark.parametrize("model", WITH_EMBEDDING)
def test_every_network_with_an_embedding_of_words_takes_them(config, tmp_path, model):
    changes = [f"model={model}", f"{WITH_EMBEDDING[model]}={SIZE}"]
    if model == "transformer_encoder":
        changes.append("model.num_heads=2")
    learner = begun(override(config, changes), tmp_path / "run")
    assert row_of(learner, "good").tolist() == [1, 2, 3, 4]


def test_a_run_begun_does_not_read_the_file_again(config, tmp_path, monkeypatch):
    """Killed before its first checkpoint, it still starts from the vectors."""
    first = embedding_of(begun(config, tmp_path / "run")).numpy()
    monkeypatch.setattr(start, "look_up", None)
    again = embedding_of(begun(config, tmp_path / "run")).numpy()
    np.testing.assert_array_equal(first, again)


def test_other_vectors_make_another_run(config, tmp_path):
    before = run_folder(tmp_path, config)
    assert run_folder(tmp_path, config) == before
    Path(config.vectors).write_text(VECTORS.replace("1 2", "1 3"))
    assert run_folder(tmp_path, config) != before
    with pytest.raises(ValueError, match="vectors=.*nowhere.txt cannot be read: No such file"):
        run_folder(tmp_path, override(config, [f"vectors={tmp_path}/nowhere.txt"]))


def test_vectors_of_another_length_are_refused_with_both_numbers(config, tmp_path):
    config = override(config, ["model.embedding_size=8"])
    with pytest.raises(ValueError, match=r"vectors of 4 numbers, and model.embedding_size is 8\."):
        begun(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()  # it is no run yet


@pytest.mark.parametrize(
    "changes",
    [["tokenizer=ngram", "model=bag_of_ngrams"], ["model=bag_of_ngrams"]],
)
def test_networks_without_an_embedding_of_words_are_refused(config, changes):
    with pytest.raises(ValueError, match="vectors must be none but for a classifier with an embed"):
        override(config, changes)


def test_tuning_without_vectors_does_nothing_and_is_refused(config):
    with pytest.raises(ValueError, match="tune_vectors does nothing here: it needs vectors"):
        override(dataclasses.replace(config, vectors=None), ["tune_vectors=false"])


@pytest.mark.data
def test_rows_of_the_real_glove_are_copied(config, tmp_path, real_vectors):
    path = real_vectors / "glove.6B.50d.first2446.txt"
    changes = [f"vectors={path}", "model.embedding_size=50"]
    learner = begun(override(config, changes), tmp_path / "run")
    np.testing.assert_allclose(row_of(learner, "good")[:2], [-0.35586, 0.5213], rtol=1e-6)
