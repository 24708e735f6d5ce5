"""Workers of DiLoCo and Local SGD that are processes: what each keeps, and the command itself."""

import json
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.training.strategies.proofs_devices import run_config
from tests.training.test_devices import Command, cluster
from training.checkpoints import Checkpoints, checkpoint_files, read_checkpoint
from training.devices import check_replicas, choose_replicas
from training.loop import Plan, fit
from training.strategies.processes import Workers

SEEDS = "seed_generator_state"


class Told:
    """An exchange in which the other processes have said what they are to say."""

    def __init__(self, *others, index=0):
        self.others, self.index, self.num = list(others), index, len(others) + 1

    def numbers(self, value):
        return [*self.others[: self.index], float(value), *self.others[self.index :]]


# What a process keeps and agrees on ---------------------------------------------------------------


def test_all_go_on_from_the_oldest_of_their_newest_checkpoints():
    assert Workers(Told(30.0)).common_step(40) == 30
    assert Workers(Told(30.0)).common_step(20) == 20
    assert Workers(Told(-1.0)).common_step(-1) == -1
    assert Workers(Told(-1.0)).common_step(0) == -1
    with pytest.raises(ValueError, match=r"Worker 1 has no checkpoint, and worker 0 .* update 40"):
        Workers(Told(-1.0)).common_step(40)


def test_a_request_of_any_process_is_one_of_all():
    assert Workers(Told(0.0)).any_of(False, True) == (False, True)
    assert Workers(Told(2.0, 0.0)).any_of(True, False) == (True, True)
    assert Workers(Told(0.0, 0.0)).any_of(False, False) == (False, False)
    assert Workers(Told(1.0)).any(False) is True


def test_the_metrics_of_the_chief_decide():
    assert Workers(Told(0.25, index=1)).of_chief({"loss": 0.5}) == {"loss": 0.25}
    assert Workers(Told(0.25)).of_chief({"loss": 0.5}) == {"loss": 0.5}


def test_only_the_chief_keeps_its_state_where_a_run_of_one_process_has_it(tmp_path):
    chief, other = Workers(Told(0.0)), Workers(Told(0.0, index=1))
    assert chief.state_folder(tmp_path) == tmp_path
    assert other.state_folder(tmp_path) == tmp_path / "worker-1"
    assert chief.keeps_state and other.keeps_state and not other.is_chief


class Number:
    def __init__(self, value):
        self.value, self.path = np.float32(value), "number"
        self.dtype, self.shape = self.value.dtype, ()

    def numpy(self):
        return self.value

    def assign(self, value):
        self.value = value


def saved_at(folder, *steps, common):
    number = Number(0)
    model = SimpleNamespace(variables=[number])
    checkpoints = Checkpoints(folder, model, common_step=common)
    for step in steps:
        number.assign(np.float32(step))
        checkpoints.save_last(step)
    number.assign(np.float32(-7))
    return number, checkpoints


def test_an_older_state_is_gone_on_from_when_another_process_has_no_newer_one(tmp_path):
    told = []
    number, checkpoints = saved_at(tmp_path, 10, 20, common=lambda s: told.append(s) or 10)
    assert checkpoints.restore_last() == 10 == number.value == checkpoints.progress["step"]
    assert told == [20]
    checkpoints.save_last(15)  # what comes after it is of another course
    assert [path.stem for path in checkpoint_files(tmp_path / "last")] == ["ckpt-15", "ckpt-10"]


def test_nothing_is_restored_when_another_process_has_nothing(tmp_path):
    number, checkpoints = saved_at(tmp_path, 0, common=lambda step: -1)
    assert checkpoints.restore_last() == 0 and number.value == -7
    assert checkpoints.progress["best_step"] == -1


def test_a_state_that_only_others_have_is_an_error(tmp_path):
    _, checkpoints = saved_at(tmp_path, 10, 20, 30, common=lambda step: 10)
    with pytest.raises(ValueError, match=r"no intact checkpoint of update 10.*--restart"):
        checkpoints.restore_last()


# Choosing and refusing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "diloco(adamw, 3)"}, r"has workers=3, .* 2 processes.*Write workers=2"),
        ({"strategy": "diloco(adamw)", "xla": True}, "Set xla=false"),
        ({"strategy": "diloco(adamw)", "stop_loss": 0.1}, "stop_loss looks at every update"),
        ({"strategy": "diloco(adamw)", "stop_grad_norm": 0.1}, "stop_grad_norm looks at every"),
        (
            {
                "strategy": "diloco(adamw)",
                "earlier": [{"name": "warm", "strategy": "sgd", "max_updates": 1}],
            },
            r"warm: strategy=sgd has no workers.*diloco\(sgd, workers=2\)",
        ),
    ],
)
def test_what_processes_cannot_do_is_refused_with_what_to_write(
    settings, message, tmp_path, monkeypatch
):
    monkeypatch.setenv("TF_CONFIG", cluster(["a:1", "b:1"], 0))
    config = run_config("bag_of_ngrams", tmp_path, **settings)
    with pytest.raises(ValueError, match=message):
        choose_replicas(config)
    with pytest.raises(ValueError, match=message):
        check_replicas(config, Workers(Told(0.0)))


# The loop -----------------------------------------------------------------------------------------


class Counting:
    """A rule that says nothing of interest, in batches that are only counted."""

    weights: list = []
    num_batches = num_evaluations = 1

    def evaluation_weights(self):
        return None

    def diagnostics(self):
        return {}


def test_processes_agree_when_they_meet_and_on_evaluations_alone(tmp_path):
    asked, steps = [], []

    def take(batches):
        steps.append(batches["step"] + batches["count"])
        values = np.full(batches["count"], 1.0, np.float32)
        return dict.fromkeys(("loss_sum", "num_targets", "num_correct", "grad_norm"), values)

    def agree(stop, save):
        asked.append(steps[-1])
        return False, steps[-1] == 12  # another process asks for a save

    checkpoints = Checkpoints(tmp_path, SimpleNamespace(variables=[]), keep=10)
    outcome = fit(
        Plan(steps=30, evaluate_every=15, updates_per_call=4, save_every=0.0, agree_every=6),
        rule=Counting(),
        take_updates=take,
        batches_of=lambda step, count: {"step": step, "count": count},
        evaluate=lambda: {"loss": 1.0},
        score=lambda metrics: -metrics["loss"],
        checkpoints=checkpoints,
        log=SimpleNamespace(unit="texts", begin=lambda *a: None, report=lambda *a: None),
        agree=agree,
    )
    assert outcome.reason == "finished"
    assert steps == [4, 8, 12, 15, 19, 23, 27, 30]
    assert asked == [8, 12, 15, 19, 27, 30]  # 6, 12, 18 and 24 are in the calls before these
    # Its own clock, past `save_every` all the time, does not decide.
    saved = [int(path.stem[5:]) for path in checkpoint_files(tmp_path / "last")]
    assert saved == [30, 15, 0]


# The command --------------------------------------------------------------------------------------


def last_state(folder):
    return read_checkpoint(checkpoint_files(folder / "checkpoints" / "bag_of_ngrams" / "last")[0])


def shared_weights(checkpoint):
    weights = {n: a for n, a in checkpoint.arrays.items() if n.startswith("weights/")}
    return {n: a for n, a in weights.items() if SEEDS not in n}


def read_results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_two_processes_end_where_two_simulated_workers_do(tmp_path):
    strategy = "ema(diloco(accumulate(adamw, 2), workers=2, steps=3), 0.8)"
    warm = {"name": "warm", "strategy": "local_sgd(adamw, 2, 4)", "max_updates": 10}
    command = Command(
        tmp_path, strategy=strategy, evaluate_every=20, updates_per_call=4, earlier=[warm]
    )
    command.start("simulated")
    command.start_two("processes")
    codes, texts = command.ends()
    assert codes == [0, 0, 0], texts
    simulated, run = command.run("simulated"), command.run("processes")
    expected, chief, other = (last_state(f) for f in (simulated, run, run / "worker-1"))
    assert expected.step == chief.step == other.step == 50
    assert_close(shared_weights(chief), shared_weights(expected), 1e-6)
    assert_close(shared_weights(other), shared_weights(chief), 0.0)
    # They were at work on texts of their own.
    moments = [n for n in chief.arrays if "workers/" in n and chief.arrays[n].size > 9]
    assert any(np.abs(chief.arrays[n] - other.arrays[n]).max() > 1e-5 for n in moments)
    # The chief's best weights are those of the run, its results those of the simulation.
    assert "On the test split" in texts[1] and "On the test split" not in texts[2]
    found, wanted = read_results(run), read_results(simulated)
    for name in ("best_step", "steps", "gradient_evaluations", "ended"):
        assert found[name] == wanted[name]
    for split in ("test", "validation"):
        numbers = [n for n, v in wanted[split].items() if isinstance(v, float)]
        assert_close(
            {n: found[split][n] for n in numbers}, {n: wanted[split][n] for n in numbers}, 1e-5
        )
    steps = []
    for folder in (simulated, run):
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps.append([json.loads(line)["step"] for line in lines])
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_stopped_workers_go_on_together_and_end_as_if_never_stopped(tmp_path):
    command = Command(
        tmp_path,
        strategy="diloco(adamw, workers=2, steps=7)",
        max_updates=900,
        evaluate_every=60,
        keep="last",
        dropout=0.2,
        deterministic=True,
    )
    command.start_two("whole")
    codes, texts = command.ends()
    assert codes == [0, 0], texts
    command.start_two("stopped")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "stopped").glob("*/checkpoints/*/last/ckpt-60.npz")):
        assert time.monotonic() < deadline and command.processes[0].poll() is None
        time.sleep(0.02)
    command.processes[1].send_signal(signal.SIGTERM)
    codes, texts = command.ends()
    assert codes == [130, 130], texts
    run = command.run("stopped")
    chief, other = last_state(run), last_state(run / "worker-1")
    assert 60 <= chief.step == other.step < 900
    seeds = [next(a for n, a in c.arrays.items() if SEEDS in n) for c in (chief, other)]
    assert seeds[0][0] != seeds[1][0] and seeds[0][1] == seeds[1][1] > 0
    # As if the second one had been killed before it had saved: both go on from the one before.
    files = checkpoint_files(run / "worker-1" / "checkpoints" / "bag_of_ngrams" / "last")
    files[0].unlink()
    command.start_two("stopped")
    codes, texts = command.ends()
    assert codes == [0, 0], texts
    before = int(files[1].stem.removeprefix("ckpt-"))
    assert f"Going on from update {before} of 900" in texts[0]
    whole = command.run("whole")
    for folder, as_wanted in ((run, whole), (run / "worker-1", whole / "worker-1")):
        assert_close(last_state(folder).arrays, last_state(as_wanted).arrays, 0.0)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_others_with_an_error(tmp_path):
    command = Command(
        tmp_path, strategy="local_sgd(adamw, 2, 5)", max_updates=100_000, evaluate_every=50
    )
    command.start_two("runs")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "runs").glob("*/worker-1/checkpoints/*/last/ckpt-50.npz")):
        assert time.monotonic() < deadline and command.processes[0].poll() is None
        time.sleep(0.1)
    command.processes[1].kill()
    codes, texts = command.ends()
    assert codes[0] not in (0, None) and codes[1] == -signal.SIGKILL
    assert "another process" in texts[0], texts[0][-2000:]
