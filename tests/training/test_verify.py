"""The proof of resuming finds what is wrong: a single bit in a file, one thing left out of a state.

The programs that are killed here train nothing: they do what training does with files, in no time.
"""

import dataclasses
import random
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from training import verify
from training.checkpoints import write_checkpoint
from training.config import StageConfig, override
from training.datasets.config import DatasetConfig
from training.recipes import RECIPES, recipe
from training.runs import write_json
from training.strategies.catalogue import batches_per_update, resolve
from training.verify import (
    Kill,
    Timing,
    differences,
    draw_kills,
    prove,
    resume_point,
    short_settings,
)

ROOT = Path(__file__).resolve().parents[2]

# Comparing two folders

ARRAYS = {
    "weights/000:kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "weights/001:seed": np.array([3, 2**40], np.int64),
    "rule/000:iteration": np.array(7, np.int64),
}
PROGRESS = {"step": 12, "best_score": 0.1 + 0.2, "best_loss": float("inf"), "seconds": 3.5}
RESULTS = {
    "test": {"loss": 0.5, "labels": [{"f1": 0.25}, {"f1": 1.0}], "texts_per_second": 8.0},
    "steps": 12,
    "seconds": 3.5,
}


def run_in(folder, *, step=12, progress=(), arrays=(), best=(), results=()):
    last = folder / "checkpoints" / "last"
    write_checkpoint(last / "ckpt-5.npz", 5, {}, [])
    write_checkpoint(
        last / f"ckpt-{step}.npz", step, PROGRESS | dict(progress), (ARRAYS | dict(arrays)).items()
    )
    write_checkpoint(
        folder / "checkpoints" / "best" / "ckpt-8.npz", 8, {}, (ARRAYS | dict(best)).items()
    )
    write_json(folder / "results.json", RESULTS | dict(results))
    return folder


@pytest.fixture
def whole(tmp_path):
    return run_in(tmp_path / "a")


def test_runs_that_differ_in_seconds_alone_are_the_same(whole, tmp_path):
    slower = RESULTS["test"] | {"texts_per_second": 2.0}
    other = run_in(
        tmp_path / "b", progress={"seconds": 99.0}, results={"seconds": 99.0, "test": slower}
    )
    write_checkpoint(other / "checkpoints" / "last" / "ckpt-3.npz", 3, {}, [])  # not the newest
    assert differences(whole, other) == []
    assert differences(whole, whole) == []


def turned(name, bit):
    """ARRAYS[name] with one bit turned."""
    data = bytearray(ARRAYS[name].tobytes())
    data[bit // 8] ^= 1 << bit % 8
    return {name: np.frombuffer(data, ARRAYS[name].dtype).reshape(ARRAYS[name].shape)}


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_single_bit_is_found(whole, tmp_path, name, which):
    rng = random.Random(f"{name} {which}")
    for i in range(5):
        bit = rng.randrange(8 * ARRAYS[name].nbytes)
        changed = {"arrays" if which == "last" else "best": turned(name, bit)}
        (text,) = differences(whole, run_in(tmp_path / f"b{i}", **changed))
        assert text.startswith(f"checkpoints/{which}: {name} differs in 1 of {ARRAYS[name].size}")


def test_a_difference_says_where_and_how_much(whole, tmp_path):
    kernel = ARRAYS["weights/000:kernel"].copy()
    kernel[1, 1:] += 0.5
    other = run_in(tmp_path / "b", arrays={"weights/000:kernel": kernel})
    assert differences(whole, other) == [
        "checkpoints/last: weights/000:kernel differs in 2 of 6 numbers, first at (1, 1): "
        "np.float32(4.0) and np.float32(4.5)"
    ]


def test_minus_zero_is_not_zero_and_nan_is_itself(whole, tmp_path):
    seed = {"weights/002:rate": np.array([0.0, np.nan])}
    first = run_in(tmp_path / "b", arrays=seed)
    assert differences(first, run_in(tmp_path / "c", arrays=seed)) == []
    other = run_in(tmp_path / "d", arrays={"weights/002:rate": np.array([-0.0, np.nan])})
    (text,) = differences(first, other)
    assert "differs in 1 of 2 numbers, first at (0,)" in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"progress": {"best_score": 0.3}}, "last: best_score is 0.30000000000000004 and 0.3"),
        ({"progress": {"num_stale": 1}}, "last: num_stale is missing and 1"),
        ({"results": {"steps": 11}}, "results.json: steps is 12 and 11"),
        ({"results": {"ended": "early"}}, 'results.json: ended is missing and "early"'),
        (
            {"results": {"test": {"loss": 0.5, "labels": [{"f1": 0.25}, {"f1": 0.5}]}}},
            "results.json: test.labels.1.f1 is 1.0 and 0.5",
        ),
        (
            {"arrays": {"rule/000:iteration": np.array(7, np.int32)}},
            "rule/000:iteration is int64 () and int32 ()",
        ),
        ({"arrays": {"rule/001:slow": np.zeros(2)}}, "rule/001:slow is only in"),
    ],
    ids=str,
)
def test_every_other_difference_is_a_sentence(whole, tmp_path, changes, sentence):
    (text,) = differences(whole, run_in(tmp_path / "b", **changes))
    assert sentence in text


def test_states_of_other_steps_differ(whole, tmp_path):
    found = differences(whole, run_in(tmp_path / "b", step=11, progress={"step": 11}))
    assert found == ["checkpoints/last: step is 12 and 11"]


def test_a_stage_is_compared_too(whole, tmp_path):
    other = run_in(tmp_path / "b")
    for folder, value in ((whole, 1.0), (other, 2.0)):
        path = folder / "checkpoints" / "stage-2" / "last" / "ckpt-1.npz"
        write_checkpoint(path, 1, {}, [("weights/000:kernel", np.array([value]))])
    (text,) = differences(whole, other)
    assert text.startswith("checkpoints/stage-2/last: weights/000:kernel differs")


def test_what_is_missing_differs(whole, tmp_path):
    other = run_in(tmp_path / "b")
    (other / "results.json").unlink()
    (other / "checkpoints" / "best" / "ckpt-8.npz").unlink()
    assert differences(whole, other) == [
        f"checkpoints/best: only in {whole}",
        f"results.json: missing in {other}",
    ]


def test_nothing_is_not_the_same_as_nothing(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "results.json", RESULTS)
    assert differences(tmp_path / "a", tmp_path / "b") == [f"no checkpoint in {tmp_path / 'a'}"]


def test_a_damaged_state_differs(whole, tmp_path):
    other = run_in(tmp_path / "b")
    path = other / "checkpoints" / "last" / "ckpt-12.npz"
    path.write_bytes(path.read_bytes()[:-1])
    (text,) = differences(whole, other)
    assert text.startswith("checkpoints/last: ") and "ckpt-12.npz is damaged" in text


# When to kill


@pytest.mark.parametrize("count", [1, 3, 5, 20])
def test_kills_leave_a_part_of_the_training_undone(count):
    timing = Timing(start_up=6.0, training=10.0)
    drawn = [draw_kills(random.Random(seed), count, timing) for seed in range(50)]
    for kills in drawn:
        training = [kill.seconds for kill in kills if not kill.in_start_up]
        starts = [kill.seconds for kill in kills if kill.in_start_up]
        assert len(starts) == count // 4 and len(kills) == count
        assert all(seconds >= 0 for seconds in training) and sum(training) < timing.training
        assert all(0 <= seconds <= timing.start_up for seconds in starts)
    assert len({tuple(kills) for kills in drawn}) == 50
    assert draw_kills(random.Random(3), count, timing) == drawn[3]


def test_kills_come_early_and_late():
    timing = Timing(start_up=6.0, training=10.0)
    moments = [draw_kills(random.Random(seed), 1, timing)[0].seconds for seed in range(200)]
    assert min(moments) < 0.5 and max(moments) > 9.5


def test_a_sitting_goes_on_after_the_stages_that_are_over(tmp_path):
    assert resume_point(tmp_path) == 0
    for stage, step in (("pretrain", 5), ("pretrain", 30), ("finetune", 9), ("finetune", 10)):
        write_checkpoint(
            tmp_path / "checkpoints" / stage / "last" / f"ckpt-{step}.npz", step, {}, []
        )
        if stage == "pretrain":
            assert resume_point(tmp_path) == step
    write_json(tmp_path / "stages.json", [{"stage": "pretrain", "steps": 30}])
    assert resume_point(tmp_path) == 40


# The shortened recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_shortened_recipe_passes_its_data_several_times(name):
    config = override(recipe(name), short_settings(recipe(name)))
    for stage in config.stages:
        assert 12 <= stage.max_updates <= 100
        assert stage.evaluate_every * 2 < stage.max_updates and stage.patience == 0
        if isinstance(stage.batch_size, int):
            num_batches = stage.max_updates * batches_per_update(resolve(stage.strategy))
            dataset = stage.dataset or config.dataset
            assert dataset.max_examples * 2 <= num_batches * stage.batch_size


def test_stages_and_mixtures_are_shortened_too():
    earlier = StageConfig(
        name="pretrain",
        dataset=DatasetConfig(name="sst2"),
        mixture=DatasetConfig(name="imdb", max_examples=9),
        strategy="accumulate(adamw, 16)",
        batch_size="linear(8, 64)",
        max_updates=5_000,
    )
    config = dataclasses.replace(recipe("sentiment"), earlier=(earlier,), batch_size=8)
    (first, last) = override(config, short_settings(config)).stages
    assert (first.dataset.max_examples, first.mixture.max_examples) == (800, 9)
    assert first.max_updates == 25  # each reads 16 batches
    assert (last.dataset.max_examples, last.max_updates) == (200, 100)


def test_fewer_examples_than_that_stay_fewer():
    config = override(recipe("sentiment"), ["dataset.max_examples=7"])
    assert "dataset.max_examples=7" in short_settings(config)


# The whole, with a program in the place of training

TRAINER = """
    import json, sys, time
    from pathlib import Path
    from types import SimpleNamespace
    import numpy as np
    from training.checkpoints import Checkpoints
    from training.runs import write_json

    folder, fault, STEPS = Path(sys.argv[1]) / "run-0", sys.argv[2], int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)

    class Variable:
        def __init__(self, name):
            self.path, self.dtype, self.shape, self.array = name, "float64", (3,), np.zeros(3)
        def numpy(self): return self.array
        def assign(self, array): self.array = array.copy()

    weight, momentum = Variable("weight"), Variable("momentum")
    model = SimpleNamespace(variables=[weight])
    rule = SimpleNamespace(variables=[] if fault == "momentum left out" else [momentum])
    checkpoints = Checkpoints(folder / "checkpoints" / "run", model, rule)
    start = checkpoints.restore_last()
    if fault == "fails" and start:
        sys.exit("It does not want to go on.")
    metrics = folder / "metrics.jsonl"
    began, lines = time.monotonic(), metrics.read_text().splitlines() if metrics.exists() else []
    metrics.write_text("".join(line + "\\n" for line in lines if json.loads(line)["step"] <= start))
    for step in range(start, STEPS + 1):
        if step % 10 == 0:
            with metrics.open("a") as file:
                line = {"step": step, "seconds": time.monotonic() - began}
                file.write(json.dumps(line) + "\\n")
            checkpoints.progress["seconds"] = time.monotonic()
            checkpoints.save_last(step)
            checkpoints.save_best(step)
        rng = np.random.default_rng(None if fault == "no seed" else [7, step])
        momentum.assign(0.9 * momentum.array + rng.normal(size=3))
        weight.assign(weight.array - 0.1 * momentum.array)
        time.sleep(0.004)
    write_json(folder / "results.json", {"weight": weight.array.tolist(), "seconds": time.time()})
"""


def proof_of(tmp_path, fault="none", *, kills=2, steps=150, seed=0):
    def command(runs):
        program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(TRAINER)}"
        return [sys.executable, "-c", program, str(runs), fault, str(steps)]

    return prove(command, tmp_path, "run-0", kills=kills, seed=seed)


def table(printed):
    """Rows of (kill, run, killed after, resumed from)."""
    lines = [line.split() for line in printed.splitlines()]
    return [line for line in lines if len(line) == 4 and line[0].isdecimal()]


def test_an_exact_program_is_found_exact(tmp_path, capsys):
    assert proof_of(tmp_path, kills=6) == []
    printed = capsys.readouterr().out
    assert "Identical after 6 kills: 3 arrays of 9 numbers" in printed
    rows = table(printed)
    assert [row[0] for row in rows] == list("123456")
    resumed = [int(row[3]) for row in rows if row[1] == "b"]
    assert resumed == sorted(resumed) and 0 < resumed[-1] <= 150


@pytest.mark.parametrize(
    ("fault", "where", "verdict"),
    [
        ("momentum left out", "weights/000:weight", "the difference comes from resuming"),
        ("no seed", "results.json: weight.0", "this machine does not compute the same twice"),
    ],
)
def test_a_program_with_a_fault_is_found_out(tmp_path, capsys, fault, where, verdict):
    found = proof_of(tmp_path, fault)
    assert any(where in text for text in found)
    printed = capsys.readouterr().out
    assert "Different after " in printed and verdict in printed
    assert "Identical" not in printed


def test_a_program_that_fails_is_quoted(tmp_path):
    with pytest.raises(ValueError, match=r"ended with code 1(?s:.)*does not want to go on"):
        proof_of(tmp_path, "fails")


def test_a_run_that_ends_before_its_kill_is_followed_by_another(tmp_path, capsys, monkeypatch):
    late, early = [Kill(False, 60.0)], [Kill(False, 0.01)]
    plans = iter([late, early])
    monkeypatch.setattr(verify, "draw_kills", lambda *_: next(plans))
    assert proof_of(tmp_path, kills=1, steps=60) == []
    assert [row[:2] for row in table(capsys.readouterr().out)] == [["1", "b2"]]


def test_a_program_too_short_to_kill_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "NUM_SPARE_RUNS", 0)
    monkeypatch.setattr(verify, "draw_kills", lambda *_: [Kill(False, 60.0)])
    with pytest.raises(ValueError, match="0 of 2 kills struck.*max_updates"):
        proof_of(tmp_path, steps=1)


# The command


def options(**changes):
    given = {"recipe": "sentiment", "set": [], "kills": 3, "seed": 0} | changes
    return SimpleNamespace(**given)


@pytest.mark.parametrize("found", [[], ["weights differ"]])
def test_the_command_answers_with_its_code_and_keeps_what_differs(monkeypatch, capsys, found):
    seen = []

    def prove(command, folder, run_name, *, kills, seed):
        seen.append((command(folder / "a"), folder, kills, seed))
        return found

    monkeypatch.setattr(verify, "prove", prove)
    code = verify.verify_resume(options(set=["batch_size=8", "patience=2"], kills=4, seed=9))
    ((command, folder, kills, seed),) = seen
    assert code == len(found) and (kills, seed) == (4, 9)
    assert command[:3] == [sys.executable, "-m", "training"]
    assert command[3:7] == ["--runs", str(folder / "a"), "fit", "sentiment"]
    assert command[-3:] == ["batch_size=8", "--set", "patience=2"]  # what the user sets goes last
    assert "dataset.max_examples=200" in command  # of batches of 8
    assert folder.exists() == bool(found)
    assert (f"kept in {folder}" in capsys.readouterr().out) == bool(found)
    if found:
        folder.rmdir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kills": 0}, "--kills must be 1 or more. Received: 0"),
        ({"recipe": "sentimental"}, "Unknown recipe"),
        ({"set": ["batch=8"]}, "Unknown setting batch"),
        ({"set": ["epochs=2"]}, "epochs does nothing here: it needs max_updates=none"),
    ],
)
def test_what_is_mistyped_is_said_before_anything_starts(monkeypatch, changes, message):
    monkeypatch.setattr(verify, "prove", lambda *_, **__: pytest.fail("it started"))
    with pytest.raises(ValueError, match=message):
        verify.verify_resume(options(**changes))
