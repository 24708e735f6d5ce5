"""The metrics' page: Prometheus' text format under TensorFlow Serving's names."""

import re

import pytest
from starlette.testclient import TestClient

from serving import metrics, text_config
from serving.config import ConfigError
from serving.rest import create_app
from serving.timing import Timing


def lines_with(text):
    return [line for line in metrics.page().splitlines() if text in line]


def test_requests_are_counted_by_model_and_status():
    metrics.count_request("counted", "OK")
    metrics.count_request("counted", "OK")
    metrics.count_request('quoted "\\', "NOT_FOUND")
    name = ":tensorflow:serving:request_count"
    assert lines_with('"counted"') == [f'{name}{{model_name="counted",status="OK"}} 2']
    assert lines_with("quoted") == [f'{name}{{model_name="quoted \\"\\\\",status="NOT_FOUND"}} 1']
    assert lines_with(f"# TYPE {name} ") == [f"# TYPE {name} counter"]


def test_latencies_have_33_buckets_from_10_microseconds_and_one_for_the_rest():
    for seconds in (5e-6, 10e-6, 17e-6, 1e9):
        metrics.observe_runtime("bucketed", "Predict", seconds)
    lines = lines_with('"bucketed"')
    limits = [re.search(r'le="(.*)"', line) for line in lines]
    names = [match[1] for match in limits if match]
    assert names[:4] == ["10", "18", "32.4", "58.32"]
    assert names[-2:] == ["1.47476e+09", "+Inf"]
    assert len(names) == 34
    # A value on a limit belongs above it.
    assert [line.rpartition(" ")[2] for line in lines[:3]] == ["1", "3", "3"]
    labels = '{model_name="bucketed",API="Predict",runtime="TF1"}'
    assert lines[-2:] == [
        f":tensorflow:serving:runtime_latency_sum{labels} 1e+15",
        f":tensorflow:serving:runtime_latency_count{labels} 4",
    ]


def test_a_request_shows_where_its_time_went():
    timing = Timing(queue=2e-6, compute=3e-6, serialize=4e-6, version=7, signature="spam")
    metrics.observe_request("split", "predict", "REST", timing, 20e-6)
    stages = 'model_name="split",version="7",signature_name="spam",entrypoint="REST"'
    sums = [line for line in lines_with('"split"') if "_sum" in line]
    assert sums == [
        f":stepwise:serving:compute_latency_sum{{{stages}}} 3",
        f":stepwise:serving:queue_latency_sum{{{stages}}} 2",
        f":stepwise:serving:serialize_latency_sum{{{stages}}} 4",
        ':tensorflow:serving:request_latency_sum{model_name="split",API="predict",'
        'entrypoint="REST"} 20',
    ]


def test_metrics_without_labels_and_gauges():
    before = metrics.counter("/tensorflow/serving/batching_session/wrapped_run_count")
    metrics.observe_batch(rows=5, padded_rows=4099)
    name = ":tensorflow:serving:batching_session:wrapped_run_count"
    assert metrics.counter(name) == before + 1
    assert lines_with(name)[1] == f"{name}{{}} {before + 1}"
    padding = (
        ':tensorflow:serving:batching_session:padding_size_sum{execution_batch_size="4099"} 4094'
    )
    assert lines_with(padding)
    assert metrics.counter("no such name") is None

    metrics.watch("/test/waiting", lambda: 4)
    assert lines_with(":test:waiting") == ["# TYPE :test:waiting gauge", ":test:waiting{} 4"]


def test_every_metric_of_the_protocol_is_announced_before_it_is_used():
    announced = dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics.page(), re.M))
    batching = ":tensorflow:serving:batching_session:"
    expected = {
        ":tensorflow:serving:request_count": "counter",
        ":tensorflow:serving:request_latency": "histogram",
        ":tensorflow:serving:runtime_latency": "histogram",
        ":tensorflow:serving:request_example_counts": "histogram",
        ":tensorflow:serving:request_example_count_total": "counter",
        ":tensorflow:serving:request_log_count": "counter",
        ":tensorflow:serving:model_warmup_latency": "histogram",
        ":tensorflow:serving:model_warmup_records_read": "counter",
        f"{batching}queuing_latency": "histogram",
        f"{batching}wrapped_run_count": "counter",
        f"{batching}padding_size": "histogram",
        f"{batching}input_batch_size": "histogram",
        f"{batching}processed_batch_size": "histogram",
    }
    assert announced.items() >= expected.items()


def test_the_file_says_whether_and_where_the_page_is(tmp_path):
    file = tmp_path / "monitoring.config"
    assert metrics.page_path(None) is None
    for text, path in (
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config: { enable: true, path: "/m" }', "/m"),
        ('prometheus_config { path: "/m" }', None),
        ("", None),
    ):
        file.write_text(text)
        assert metrics.page_path(file) == path
    file.write_text("prometheus { }")
    with pytest.raises(ConfigError, match="--monitoring_config_file .*MonitoringConfig"):
        metrics.page_path(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        metrics.page_path(tmp_path / "absent")


def test_the_page_is_served_only_where_it_was_asked_for():
    with TestClient(create_app(None, "/monitoring/prometheus/metrics")) as client:
        answer = client.get("/monitoring/prometheus/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        assert "# TYPE :tensorflow:serving:request_count counter" in answer.text.splitlines()
    with TestClient(create_app(None)) as client:
        assert client.get("/monitoring/prometheus/metrics").status_code == 404


def test_batching_parameters_are_wrapped_scalars(tmp_path):
    file = tmp_path / "batching.pbtxt"
    file.write_text(
        'max_batch_size { value: 128 } thread_pool_name { value: "pool" }\n'
        "allowed_batch_sizes: [4, 128] pad_variable_length_inputs: true"
    )
    message = text_config.read("--batching_parameters_file", file, "BatchingParameters")
    assert message.max_batch_size.value == 128
    assert list(message.allowed_batch_sizes) == [4, 128]
    assert not message.HasField("num_batch_threads")
