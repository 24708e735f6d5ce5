"""Batching: which tasks run together and when, what goes into a run and what comes back."""

import asyncio
import concurrent.futures
import dataclasses
import math
import threading

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient
from tensorflow_serving.apis import predict_pb2
from toy_exports import classifier_model, gate_model, mixed_model, scale_model, wait_until

from serving import metrics, servable
from serving.batching import (
    Batcher,
    BatchingParameters,
    Pool,
    Queues,
    Task,
    read_parameters,
)
from serving.codec import tensor_to_proto
from serving.config import ConfigError, ServerConfig
from serving.errors import Code, ServingError
from serving.repository import Repository
from serving.rest import create_app
from serving.service import DEFAULT_THREADS, MAX_THREADS, Service, num_threads
from serving.timing import Timing

KEY = (("x:0",), ("y:0",))


def task(rows, now=0.0):
    return Task((np.arange(rows),), rows, now)


def rows_of(taken):
    return None if taken is None else [task.rows for task in taken[1]]


# ------------------------------------------------------------ when a batch runs


def test_a_batch_runs_when_it_is_full_or_its_first_task_has_waited_long_enough():
    queues, parameters = (
        Queues(),
        BatchingParameters(max_batch_size=4, batch_timeout_micros=2_000_000),
    )
    assert queues.due() == math.inf
    queues.add("a", parameters, task(1), 10.0)
    queues.add("a", parameters, task(2), 11.0)
    assert queues.due() == 12.0
    assert queues.take(11.9) is None
    assert rows_of(queues.take(12.0)) == [1, 2]
    assert queues.take(100.0) is None

    queues.add("a", parameters, task(3), 20.0)
    queues.add("a", parameters, task(1), 20.0)
    assert queues.due() == -math.inf
    assert rows_of(queues.take(20.0)) == [3, 1]


def test_a_task_that_does_not_fit_closes_the_batch_before_it():
    queues, parameters = (
        Queues(),
        BatchingParameters(max_batch_size=4, batch_timeout_micros=1_000_000),
    )
    queues.add("a", parameters, task(3), 0.0)
    queues.add("a", parameters, task(2), 0.0)
    assert rows_of(queues.take(0.0)) == [3]
    assert queues.take(0.0) is None
    assert rows_of(queues.take(1.0)) == [2]


def test_without_a_timeout_whatever_waits_is_taken():
    queues, parameters = Queues(), BatchingParameters()
    for _ in range(3):
        queues.add("a", parameters, task(1), 5.0)
    assert rows_of(queues.take(5.0)) == [1, 1, 1]


def test_queues_take_turns_and_never_mix():
    queues, parameters = Queues(), BatchingParameters(max_batch_size=1)
    for key in ("a", "a", "b", "a"):
        queues.add(key, parameters, task(1), 0.0)
    assert [queues.take(0.0)[0] for _ in range(4)] == ["a", "b", "a", "a"]


def test_a_full_queue_refuses_and_a_task_too_large_is_an_error():
    queues = Queues()
    parameters = BatchingParameters(max_batch_size=2, max_enqueued_batches=2)
    for rows in (2, 1, 1):
        queues.add("a", parameters, task(rows), 0.0)
    with pytest.raises(ServingError) as caught:
        queues.add("a", parameters, task(1), 0.0)
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == (
        "The batch scheduling queue to which this task was submitted is full"
    )
    queues.add("b", parameters, task(1), 0.0)  # another queue has room
    with pytest.raises(ServingError) as caught:
        queues.add("c", parameters, task(3), 0.0)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == "Task size 3 is larger than maximum input batch size 2"
    assert queues.take(0.0)[0] == "a"
    queues.add("a", parameters, task(1), 0.0)


def test_a_large_task_is_split_over_batches():
    queues = Queues()
    parameters = BatchingParameters(
        max_batch_size=100,
        max_execution_batch_size=4,
        enable_large_batch_splitting=True,
        max_enqueued_batches=3,
    )
    queues.add("a", parameters, task(3), 0.0)
    parts = queues.add("a", parameters, task(8), 0.0)
    assert [part.inputs[0].tolist() for part in parts] == [[0], [1, 2, 3, 4], [5, 6, 7]]
    with pytest.raises(ServingError, match="is full"):
        queues.add("a", parameters, task(2), 0.0)
    assert [rows_of(queues.take(0.0)) for _ in range(3)] == [[3, 1], [4], [3]]


# ------------------------------------------------------------ what goes into a run


class FakePool:
    """Collects tasks until `size` are there, then runs them in the caller of the last one."""

    name = "fake"

    def __init__(self, size=1):
        self.size, self.tasks, self.now = size, [], 0.0

    def clock(self):
        return self.now

    def submit(self, batcher, key, task):
        self.tasks.append(task)
        if len(self.tasks) == self.size:
            self.now += 1.0
            tasks, self.tasks = self.tasks, []
            batcher.process(key, tasks)
        return [task]


def run_together(parameters, arrays, run, timeouts=None):
    """Answers or errors of one batch of tasks, and the arrays the run was given."""
    seen = []

    def recorded(key, inputs, timeout):
        seen.append(inputs)
        return run(*inputs)

    batcher = Batcher(parameters, FakePool(len(arrays)), recorded)
    timeouts = timeouts or [None] * len(arrays)

    def one(array, timeout):
        try:
            return batcher.run(KEY, (array,), timeout, Timing())
        except ServingError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(arrays)) as threads:
        futures = []
        for i, (array, timeout) in enumerate(zip(arrays, timeouts, strict=True)):
            futures.append(threads.submit(one, array, timeout))
            if i < len(arrays) - 1:
                wait_until(lambda i=i: len(batcher._pool.tasks) == i + 1)
        return [future.result(10) for future in futures], seen


def test_a_batch_is_rounded_up_with_the_first_row_of_its_last_task():
    parameters = BatchingParameters(max_batch_size=8, allowed_batch_sizes=(2, 8))
    arrays = [np.array([1, 2]), np.array([3, 4])]
    answers, seen = run_together(parameters, arrays, lambda x: [x * 10])
    assert seen[0][0].tolist() == [1, 2, 3, 4, 3, 3, 3, 3]
    assert [answer[0].tolist() for answer in answers] == [[10, 20], [30, 40]]


def test_other_shapes_fail_all_tasks_unless_padding_is_on():
    arrays = [np.array([[1, 2, 3]]), np.array([[7]])]
    answers, seen = run_together(BatchingParameters(), arrays, lambda x: [x])
    assert not seen
    for answer in answers:
        assert answer.code is Code.FAILED_PRECONDITION
        assert answer.message.startswith("Tensors with name 'x:0' from different tasks have")

    parameters = BatchingParameters(pad_variable_length_inputs=True)
    answers, seen = run_together(parameters, arrays, lambda x: [x])
    assert seen[0][0].tolist() == [[1, 2, 3], [7, 7, 7]]  # its own first element, not zero
    words = [np.array([[b"a"]], object), np.array([[b"b", b"c"]], object)]
    _, seen = run_together(parameters, words, lambda x: [x])
    assert seen[0][0].tolist() == [[b"a", b"a"], [b"b", b"c"]]
    answers, _ = run_together(parameters, [np.ones((1, 2)), np.ones((1, 0))], lambda x: [x])
    assert answers[1].message == "Got empty tensor in batch of non-empty tensors."


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.array(3), "Batched output tensor has 0 dimensions"),
        (
            np.array([1, 2, 3]),
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors",
        ),
    ],
)
def test_outputs_must_have_a_row_for_each_row(output, message):
    arrays = [np.array([1]), np.array([2])]
    answers, _ = run_together(BatchingParameters(), arrays, lambda x: [output])
    assert [(a.code, a.message) for a in answers] == [(Code.FAILED_PRECONDITION, message)] * 2


def test_inputs_must_have_a_common_first_dimension():
    batcher = Batcher(BatchingParameters(), FakePool(), lambda *_: [])
    for inputs, message in (
        ((), "Batching Run() must have at least one input tensor"),
        ((np.array(1),), "Batching Run() input tensors must have at least one dimension"),
        (
            (np.ones(2), np.ones(3)),
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
    ):
        with pytest.raises(ServingError) as caught:
            batcher.run(KEY, inputs, None, Timing())
        assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


def test_a_batch_runs_as_long_as_one_of_its_tasks_has_time_left():
    arrays = [np.array([1]), np.array([2])]  # the fake pool lets them wait for 1 s
    answers, seen = run_together(BatchingParameters(), arrays, lambda x: [x], [0.5, 3.0])
    assert [answer[0].tolist() for answer in answers] == [[1], [2]]
    answers, seen = run_together(BatchingParameters(), arrays, lambda x: [x], [0.5, 0.9])
    assert not seen
    for answer in answers:
        assert answer.code is Code.RESOURCE_EXHAUSTED
        assert answer.message == "Run() timeout exceeded while waiting in batching queue"


def test_the_run_gets_the_latest_deadline_and_callers_learn_where_the_time_went():
    given = []
    batcher = Batcher(BatchingParameters(), FakePool(), lambda k, x, t: (given.append(t), x)[1])
    timing = Timing()
    batcher.run(KEY, (np.array([1, 2]),), 5.0, timing)
    batcher.run(KEY, (np.array([1]),), None, Timing())
    assert given == [4.0, None]
    assert (timing.queue, timing.batch_rows) == (1.0, 2)


def test_no_rows_are_a_batch_too():
    parameters = BatchingParameters(max_batch_size=8, allowed_batch_sizes=(8,))
    answers, seen = run_together(parameters, [np.zeros((0, 2))], lambda x: [x])
    assert answers[0][0].shape == (0, 2)


# ------------------------------------------------------------ threads


def test_the_pool_mixes_what_waits_while_its_threads_are_busy():
    pool, runs, go_on = Pool(1, "test"), [], threading.Event()

    def run(key, inputs, timeout):
        runs.append(inputs[0].tolist())
        assert go_on.wait(10)
        return [inputs[0] + 1]

    batcher = Batcher(BatchingParameters(), pool, run)
    with concurrent.futures.ThreadPoolExecutor(5) as threads:
        first = threads.submit(batcher.run, KEY, (np.array([0]),), None, Timing())
        wait_until(lambda: runs)
        others = [
            threads.submit(batcher.run, KEY, (np.array([i]),), None, Timing()) for i in range(1, 5)
        ]
        wait_until(lambda: sum(len(q.batches[0].tasks) for q in pool._queues._queues.values()) == 4)
        go_on.set()
        assert [f.result(10)[0].tolist() for f in (first, *others)] == [[1], [2], [3], [4], [5]]
    assert runs[0] == [0]
    assert sorted(runs[1]) == [1, 2, 3, 4]
    pool.close()


def test_a_batch_that_is_not_full_runs_when_its_time_has_come():
    pool = Pool(2, "test")
    batcher = Batcher(BatchingParameters(batch_timeout_micros=1000), pool, lambda k, x, t: list(x))
    assert batcher.run(KEY, (np.array([4]),), None, Timing())[0].tolist() == [4]
    pool.close()


def test_an_error_of_ours_reaches_every_caller_and_the_pool_lives_on():
    pool, answers = Pool(1, "test"), iter([KeyError("bug"), None])

    def run(key, inputs, timeout):
        error = next(answers)
        if error:
            raise error
        return list(inputs)

    batcher = Batcher(BatchingParameters(), pool, run)
    with pytest.raises(KeyError, match="bug"):
        batcher.run(KEY, (np.array([1]),), None, Timing())
    assert batcher.run(KEY, (np.array([1]),), None, Timing())[0].tolist() == [1]
    pool.close()


# ------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            BatchingParameters(max_batch_size=8, allowed_batch_sizes=(2, 4)),
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 8",
        ),
        (
            BatchingParameters(
                max_batch_size=8,
                max_execution_batch_size=4,
                enable_large_batch_splitting=True,
                allowed_batch_sizes=(2, 8),
            ),
            "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; "
            "last entry was 8; expected 4",
        ),
        (
            BatchingParameters(
                max_batch_size=8, enable_large_batch_splitting=True, allowed_batch_sizes=(8, 8)
            ),
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        (BatchingParameters(num_batch_threads=0), "num_batch_threads must be positive; was 0"),
        (
            BatchingParameters(batch_timeout_micros=-1),
            "batch_timeout_micros must be non-negative; was -1",
        ),
    ],
)
def test_parameters_that_cannot_work(parameters, message):
    with pytest.raises(ServingError) as caught:
        parameters.check()
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


def test_parameters_come_from_a_text_format_file(tmp_path):
    file = tmp_path / "batching"
    file.write_text(
        "max_batch_size { value: 128 }\nbatch_timeout_micros { value: 0 }\n"
        'thread_pool_name { value: "pool" } pad_variable_length_inputs: true\n'
        "allowed_batch_sizes: 4 allowed_batch_sizes: 128\n"
        "enable_large_batch_splitting { value: false }"
    )
    assert read_parameters("--flag", file) == BatchingParameters(
        max_batch_size=128,
        batch_timeout_micros=0,
        thread_pool_name="pool",
        pad_variable_length_inputs=True,
        allowed_batch_sizes=(4, 128),
    )
    file.write_text("max_batch_size: 128")
    with pytest.raises(ConfigError, match="--flag"):
        read_parameters("--flag", file)


def test_a_batch_may_fill_with_requests_that_wait_in_threads(tmp_path):
    file = tmp_path / "batching"
    file.write_text("max_batch_size { value: 64 }")
    with_file = {"enable_batching": True, "batching_parameters_file": file}
    assert num_threads(ServerConfig(**with_file)) == 128
    assert num_threads(ServerConfig(enable_batching=True)) == MAX_THREADS
    assert num_threads(ServerConfig(max_running_requests=3, **with_file)) == 3
    assert num_threads(ServerConfig()) == DEFAULT_THREADS


# ------------------------------------------------------------ a model behind it


def batched(path, tmp_path, text, **config):
    file = tmp_path / "batching"
    file.write_text(text)
    load = servable.loader(
        ServerConfig(
            enable_batching=True,
            batching_parameters_file=file,
            allow_foreign=True,
            allow_ops=("WriteFile", "MatchingFiles"),
            **config,
        )
    )
    return load("m", 1, path)


def test_batched_equals_alone(tmp_path):
    path = classifier_model(tmp_path / "1")
    alone = servable.load("m", 1, path)
    # All eight rows must be there before any runs, or the timeout fails the test.
    together = batched(
        path,
        tmp_path,
        "max_batch_size { value: 8 } batch_timeout_micros { value: 60000000 }",
    )
    texts = [[b"good"], [b"bad", b"a good film"], [b""], [b"no", b"x", b"good", b"y"]]
    timings = [Timing() for _ in texts]

    def run(text, timing):
        return together.run("", {"text": np.array(text, object)}, timeout=90, timing=timing)

    with concurrent.futures.ThreadPoolExecutor(len(texts)) as threads:
        answers = list(threads.map(run, texts, timings))
    for text, answer in zip(texts, answers, strict=True):
        expected = alone.run("", {"text": np.array(text, object)})
        np.testing.assert_allclose(answer["scores"], expected["scores"], atol=1e-5)
        assert answer["label"].tolist() == expected["label"].tolist()
        assert answer["labels"].tolist() == expected["labels"].tolist()
    assert [timing.batch_rows for timing in timings] == [8] * 4
    assert all(timing.compute > 0 for timing in timings)
    alone.close()
    together.close()


def test_a_batch_fails_as_one(tmp_path):
    together = batched(
        mixed_model(tmp_path / "1"),
        tmp_path,
        "max_batch_size { value: 2 } batch_timeout_micros { value: 60000000 }",
    )

    def run(signature, width):
        try:
            return together.run(signature, {"x": np.ones((1, width), np.float32)})
        except ServingError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        errors = list(threads.map(run, ["needs_vector"] * 2, [3, 3]))
        assert [error.code for error in errors] == [Code.INVALID_ARGUMENT] * 2
        errors = list(threads.map(run, ["scalar"] * 2, [2, 2]))
        assert {e.message for e in errors} == {"Batched output tensor has 0 dimensions"}
    together.close()


def test_parameters_that_cannot_work_fail_the_load(tmp_path):
    with pytest.raises(ServingError, match="Last entry in allowed_batch_sizes must match"):
        batched(classifier_model(tmp_path / "1"), tmp_path, "allowed_batch_sizes: 4")


def test_each_version_may_have_parameters_of_its_own(tmp_path):
    with_file, without = classifier_model(tmp_path / "1"), classifier_model(tmp_path / "2")
    (with_file / "batching_params.pbtxt").write_text("max_batch_size { value: 1 }")
    config = {"enable_per_model_batching_parameters": True}
    two = {"text": np.array([b"a", b"b"], object)}
    limited = batched(with_file, tmp_path, "", **config)
    with pytest.raises(ServingError, match="Task size 2 is larger"):
        limited.run("", two)
    timing = Timing()
    unbatched = batched(without, tmp_path, "max_batch_size { value: 1 }", **config)
    assert unbatched.run("", two, timing=timing)["label"].shape == (2,)
    assert timing.batch_rows == 0
    limited.close()
    unbatched.close()


def test_a_run_in_a_batch_has_a_time_limit(tmp_path):
    together = batched(gate_model(tmp_path / "1"), tmp_path, "")
    before = metrics.counter("/tensorflow/serving/batching_session/wrapped_run_count")
    files = {
        alias: np.array([str(tmp_path / alias).encode()], object) for alias in ("entry", "leave")
    }
    with pytest.raises(ServingError) as caught:
        together.run("", files, timeout=0.2)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    after = metrics.counter("/tensorflow/serving/batching_session/wrapped_run_count")
    assert after == before + 1
    together.close()


def batching_server(exports, file):
    """What a server of `exports` that batches by `file` has: its settings and its models."""
    config = ServerConfig(
        exports=exports, enable_batching=True, batching_parameters_file=file, allow_foreign=True
    )
    repository = Repository(config, servable.loader(config))
    repository.start()
    wait_until(lambda: repository.readiness()[0])
    return config, repository


@pytest.mark.asyncio
async def test_callers_over_rest_wait_for_their_batch_without_a_thread(tmp_path):
    """The one thread would hold all but the first; whoever leaves leaves its row behind."""
    scale_model(tmp_path / "exports" / "m" / "1")
    file = tmp_path / "batching"
    file.write_text(
        "max_batch_size { value: 8 } max_execution_batch_size { value: 4 } "
        "batch_timeout_micros { value: 60000000 } "
        "max_enqueued_batches { value: 3 } enable_large_batch_splitting { value: true }"
    )
    config, repository = batching_server(tmp_path / "exports", file)
    service = Service(repository, 1)
    transport = httpx.ASGITransport(create_app(service, None, config))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

        async def ask(*rows):
            body = {"instances": [[row] for row in rows]}
            return await client.post("/v1/models/m:predict", json=body)

        one, two = asyncio.ensure_future(ask(2.0)), asyncio.ensure_future(ask(4.0))
        while service.num_running + service.num_waiting < 2:
            await asyncio.sleep(0)
        two.cancel()
        with pytest.raises(asyncio.CancelledError):
            await two
        # Two rows fill the first batch and four make the second; the others' would wait a minute.
        last = await asyncio.wait_for(ask(6.0, 8.0, 10.0, 12.0, 14.0, 16.0), 30)
        assert last.json() == {"predictions": [[x] for x in (5.0, 6.0, 7.0, 8.0, 9.0, 10.0)]}
        assert (await one).json() == {"predictions": [[3.0]]}
        assert service.num_running == service.num_waiting == 0
        wrong = await client.post("/v1/models/m:predict", json={"instances": [2.0, [3.0]]})
        assert wrong.status_code == 400 and "error" in wrong.json()
    with repository.acquire("m") as loaded:
        loaded.release()
        assert loaded.is_idle
        loaded.retain()
    assert repository.stop(10)


def scale_request(*rows):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tensor_to_proto(np.array(rows, np.float32)[:, None]))
    return request


def test_callers_over_rest_and_grpc_share_a_batch_and_grpc_takes_no_thread(tmp_path, serve_grpc):
    scale_model(tmp_path / "exports" / "m" / "1")
    file = tmp_path / "batching"
    # Seven rows make a batch; fewer would wait for longer than this test may take.
    file.write_text("max_batch_size { value: 7 } batch_timeout_micros { value: 60000000 }")
    config, repository = batching_server(tmp_path / "exports", file)
    config = dataclasses.replace(config, grpc_max_threads=1)
    service = Service(repository, 1)
    with (
        serve_grpc(service, config) as stubs,
        TestClient(create_app(Service(repository, 1), None, config)) as rest,
    ):
        predict = stubs.prediction.Predict.future
        left = predict(scale_request(1.0, 1.0), timeout=50)
        over_grpc = [predict(scale_request(row), timeout=50) for row in (4.0, 6.0, 8.0)]
        filtered = scale_request(10.0)
        filtered.output_filter.append("y")
        over_grpc.append(predict(filtered, timeout=50))
        wait_until(lambda: service.num_running == 5)
        left.cancel()  # its rows stay in the batch
        answer = rest.post("/v1/models/m:predict", json={"instances": [[2.0]]})
        assert answer.json() == {"predictions": [[3.0]]}
        outputs = [list(call.result(50).outputs["y"].float_val) for call in over_grpc]
        assert outputs == [[4.0], [5.0], [6.0], [7.0]]
        assert left.cancelled()
        wait_until(lambda: service.num_running == 0)

        unknown = scale_request(1.0)
        unknown.output_filter.append("z")
        error = predict(unknown, timeout=50).exception(50)
        assert error.code().name == "INVALID_ARGUMENT" and "alias not found" in error.details()
    assert repository.stop(10)
