"""The learners' programs: each finds its known answer, and its check notices when it does not."""

import dataclasses
import signal

import numpy as np
import pytest
import tensorflow as tf

from training import commands, first_steps
from training.__main__ import main
from training.config import override
from training.first_steps import PROBLEMS, take
from training.losses import TaskLoss
from training.recipes import FIRST_STEPS, RECIPES

TRANSFORMERS = ("copy_transformer", "reverse_transformer")
TURNS = [("copy_transformer", 1), ("reverse_transformer", -1)]  # in a slice
EVERY = [
    pytest.param(name, marks=[pytest.mark.slow] if name in TRANSFORMERS else [])
    for name in FIRST_STEPS
]


def findings_of(name, *settings):
    return take(override(FIRST_STEPS[name](), settings), lambda update, loss: None)


def failed(findings):
    return [finding.quantity for finding in findings if not finding.is_ok]


# The known answers


@pytest.mark.parametrize("name", EVERY)
def test_it_finds_the_known_answer(name, capsys):
    assert main(["fit", name]) == 0
    losses, table = capsys.readouterr().out.split("\n\n")
    first, *_, last = (float(line.split()[-1]) for line in losses.splitlines()[1:])
    assert last < 0.05 and last < first
    assert all(line.endswith(" yes") for line in table.splitlines()[1:])


@pytest.mark.parametrize("name", EVERY)
def test_the_check_fails_when_nothing_was_learned(name, capsys):
    spoilt = ["--set", "optimizer.peak_learning_rate=1e-9", "--set", "updates=3"]
    assert main(["fit", name, *spoilt]) == 1
    assert " NO\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", EVERY)
def test_the_check_fails_when_steps_go_uphill(name, monkeypatch):
    original = PROBLEMS[name]

    def turned(seed):
        problem = original(seed)

        def of_logits(batch, logits):
            sums = problem.loss.of_logits(batch, logits)
            return sums | {"loss_sum": -sums["loss_sum"]}

        return dataclasses.replace(problem, loss=TaskLoss(problem.loss.logits, of_logits))

    monkeypatch.setitem(first_steps.PROBLEMS, name, turned)
    assert failed(findings_of(name, "updates=10"))


@pytest.mark.parametrize(
    "strategy",
    ["momentum", "nesterov", "lookahead(sgd, k=5)", "accumulate(sgd, 2)", "ema(sgd, 0.9)"],
)
def test_other_strategies_find_the_same_line(strategy):
    assert not failed(findings_of("linear_regression", f"strategy={strategy}"))


def test_the_strategys_own_weights_are_checked():
    """An average over all of the way is not there yet, though the last weights are."""
    assert len(failed(findings_of("linear_regression", "strategy=ema(sgd, 0.9999)"))) == 3


def test_the_seed_decides_everything():
    first, again, other = (
        findings_of("linear_regression", f"seed={seed}", "updates=20") for seed in (3, 3, 4)
    )
    assert first == again and first != other


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_problems_differ_by_seed_and_fit_the_rule(name):
    arrays, other = PROBLEMS[name](0).arrays, PROBLEMS[name](1).arrays
    assert len({len(array) for array in arrays.values()}) == 1
    is_drawn = name != "lstm_classifier"  # whose sentences are written down
    assert any((arrays[k] != other[k]).any() for k in arrays) == is_drawn


# Each check, on answers made by hand


def test_least_squares_passes_and_a_little_beside_it_does_not():
    problem = PROBLEMS["linear_regression"](5)
    x, y = (problem.arrays[name][:, 0].astype(np.float64) for name in ("x", "y"))
    centred = x - x.mean()
    slope = (centred * y).sum() / (centred**2).sum()
    slope_variable, intercept_variable = problem.model.trainable_variables

    def failed_at(slope, intercept):
        slope_variable.assign([[slope]])
        intercept_variable.assign([intercept])
        return failed(problem.check())

    assert failed_at(slope, y.mean()) == []
    assert failed_at(slope + 0.01, y.mean()) == ["slope by least squares"]
    assert len(failed_at(slope, y.mean() + 0.01)) == 2
    assert len(failed_at(2.5, y.mean())) == 2
    assert problem.check()[2].known.startswith(f"{1 + np.mean(y - 2 * x - 1):.4f}")


def test_no_line_divides_the_disc_from_the_ring():
    points, label = first_steps.disc_and_ring(np.random.default_rng(0), 400)
    best = 0.0
    for angle in np.linspace(0, 2 * np.pi, 360, endpoint=False):
        order = np.argsort(points @ [np.cos(angle), np.sin(angle)])
        ones_before = np.cumsum([0, *label[order]])
        zeros_before = np.arange(len(label) + 1) - ones_before
        right = zeros_before + (label.sum() - ones_before)  # zeros below the line, ones above
        best = max(best, right.max() / len(label))
    assert best < 0.85
    radius = np.linalg.norm(points, axis=1)
    assert radius[label == 0].max() <= 1 and radius[label == 1].min() >= 1.5


def test_targets_say_whether_the_ones_so_far_are_odd():
    tokens, targets = first_steps.zeros_and_ones(
        np.random.default_rng(0), 50, shortest=3, longest=6
    )
    assert {int((row != 0).sum()) for row in tokens} == {3, 4, 5, 6}
    for row, expected in zip(tokens, targets, strict=True):
        ones = 0
        for token, target in zip(row, expected, strict=True):
            ones += token == 2
            assert target == (0 if token == 0 else 1 + ones % 2)


def answers(source, turn):
    """What is to be said of each source, by hand: int32 (B, 7)."""
    said = np.zeros((len(source), 7), np.int32)
    for line, row in zip(said, source, strict=True):
        text = [token for token in row if token][1:-1][::turn]  # without begin and end
        line[: len(text)] = text
    return said


@pytest.mark.parametrize(("name", "turn"), TURNS)
def test_every_letter_of_the_answer_counts_and_so_does_its_end(name, turn, monkeypatch):
    problem = PROBLEMS[name](0)

    def failed_with(row, column, change):
        def decode(source, max_tokens):
            assert max_tokens == 7
            said = answers(source, turn)
            said[row, column] += change
            return tf.constant(said)

        monkeypatch.setattr(problem.model, "decode", decode)
        return failed(problem.check())

    assert failed_with(7, 2, 0) == []
    for wrong in ((7, 2, 1), (7, 6, 5)):  # another letter; no end after six letters
        assert failed_with(*wrong) == ["new texts said without a mistake"]
    assert len(failed_with(0, 0, 1)) == 2  # the first one is shown besides


@pytest.mark.parametrize(("name", "turn"), TURNS)
def test_it_learns_answers_and_is_asked_new_texts(name, turn, monkeypatch):
    problem, asked = PROBLEMS[name](0), []
    arrays = problem.arrays
    texts = answers(arrays["source"], turn)
    for row in range(20):
        text = [token for token in texts[row] if token]
        read, said = ([t for t in arrays[k][row] if t] for k in ("tokens", "targets"))
        assert read == [2, *text] and said == [*text, 3]

    monkeypatch.setattr(
        problem.model, "decode", lambda source, n: asked.append(source) or tf.zeros([200, n])
    )
    problem.check()
    rows = [tuple(row) for row in np.concatenate([arrays["source"], asked[0]]).tolist()]
    assert len(rows) == len(arrays["source"]) + 200 == len(set(rows))


# The command


def test_it_uses_batches_of_the_asked_size(monkeypatch):
    original, seen = PROBLEMS["dense_classifier"], []

    def watched(seed):
        problem = original(seed)

        def logits(batch):
            seen.append(batch["features"].shape[0])
            return problem.loss.logits(batch)

        return dataclasses.replace(problem, loss=TaskLoss(logits, problem.loss.of_logits))

    monkeypatch.setitem(first_steps.PROBLEMS, "dense_classifier", watched)
    findings_of("dense_classifier", "updates=2")
    assert set(seen) == {1}
    seen.clear()
    findings_of("dense_classifier", "updates=2", "batch_size=full")
    assert set(seen) == {200}


def test_a_full_batch_of_several_pieces_is_one_gradient():
    step = override(FIRST_STEPS["linear_regression"](), ["updates=2"])
    arrays = {"x": np.zeros((600, 1), np.float32)}
    batches = first_steps.ArrayBatches(arrays, step)
    assert batches.plan.num_batches == 3 and batches.strategy == "accumulate(sgd, k=3)"
    stacked = batches.of_update(1, 3)
    assert stacked["shape/x"].tolist() == [[256, 1], [256, 1], [88, 1]]


def test_list_groups_them_before_the_recipes(capsys):
    assert main(["list"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "First steps (python -m training fit NAME)"
    assert [line.split()[0] for line in lines[: len(FIRST_STEPS)]] == list(FIRST_STEPS)
    assert not FIRST_STEPS.keys() & RECIPES.keys()


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--set", "update=1"], ["Unknown setting update.", "Did you mean updates?", "batch_size"]),
        (["--set", "optimizer.rate=1"], ["optimizer.peak_learning_rate"]),
        (["--set", "optimizer.peak_learning_rate=0"], ["above 0", "0.0"]),
        (["--set", "optimizer.schedule=plateau"], ["optimizer.schedule must be", "validation"]),
        (
            ["--set", "strategy=schedule_free_sgd", "--set", "optimizer.schedule=cosine"],
            ["optimizer.schedule must be constant", "schedule_free_sgd"],
        ),
        (["--set", "model=lstm"], ["Unknown setting model"]),
        (["--set", "batch_size=half"], ["batch_size must be", "'half'", "full"]),
        (["--set", "batch_size=0"], ["batch_size must be", "0"]),
        (["--set", "updates=0"], ["updates must be above 0"]),
        (["--set", "updates=many"], ["updates must be a whole number", "'many'"]),
        (["--set", "seed=-1"], ["seed must be 0 or more"]),
        (["--set", "strategy=lookahead"], ["lookahead goes around an optimizer"]),
        (["--set", "name=lstm_tagger"], ["python -m training fit lstm_tagger"]),
        (["--set", "name=line"], ["name must be", "'line'", "linear_regression"]),
        (["--data", "x.csv", "--dry-run"], ["--dry-run, --data cannot go with linear_regression"]),
        (["--overfit-one-batch", "--updates", "0"], ["--overfit-one-batch, --updates cannot"]),
        (["--name", "mine"], ["--name cannot go with linear_regression"]),
    ],
)
def test_a_mistake_is_one_sentence_and_code_1(words, fragments, capsys):
    assert main(["fit", "linear_regression", *words]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert [fragment for fragment in fragments if fragment not in error] == []


def test_other_commands_say_how_to_run_it(capsys):
    assert main(["all", "lstm_tagger"]) == 1
    assert "python -m training fit lstm_tagger" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_one_sentence(capsys):
    huge = ["--set", "optimizer.peak_learning_rate=1e30", "--set", "updates=20"]
    assert main(["fit", "linear_regression", *huge]) == 1
    assert "Lower optimizer.peak_learning_rate" in capsys.readouterr().err


def test_interrupting_ends_it_cleanly(capsys, monkeypatch):
    def interrupted(update, loss):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(commands, "_print_loss", interrupted)
    assert main(["fit", "linear_regression"]) == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "Stopped. Nothing of a first step is kept."
    assert "known answer" not in captured.out


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--runs", "runs", "fit", "linear_regression"]) == 0
    assert not list(tmp_path.iterdir())
