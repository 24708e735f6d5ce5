"""What the settings make of the gRPC server: sockets, TLS, health, reflection, keys, reloading."""

import asyncio
import concurrent.futures
import contextlib
import json
import threading

import grpc
import pytest
import tensorflow as tf
import trustme
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from test_grpc_server import predict_request, refused
from toy_exports import wait_until

from serving.config import ConfigError, ServerConfig
from serving.grpc_server import GrpcServer, _host
from serving.keys import ADMIN_KEYS, API_KEYS
from serving.rates import RateLimit
from serving.service import Service

PREDICT = predict_request("half_plus_two", {"x": [1.0]})


@contextlib.contextmanager
def running(repository, **settings):
    """A server of this process and its service; `settings` need a socket or a port."""
    service, rates = Service(repository), settings.pop("rates", None)
    server = GrpcServer(service, ServerConfig(**{"port": 0} | settings), rates)
    try:
        server.start("127.0.0.1")
        yield service, server
    finally:
        server.stop(0)
        service.close()


@pytest.fixture
def socket_path(tmp_path):
    return str(tmp_path / "s")  # short: a path of a socket may have 107 bytes


@contextlib.contextmanager
def channel_to(repository, socket_path, **settings):
    with (
        running(repository, grpc_socket_path=socket_path, **settings) as server,
        grpc.insecure_channel(f"unix:{socket_path}") as channel,
    ):
        yield channel, *server


def predict(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict


def test_a_unix_socket_is_enough(repository, socket_path):
    with channel_to(repository, socket_path) as (channel, *_):
        response = predict(channel)(PREDICT, timeout=10)
        assert list(response.outputs["y"].float_val) == [2.5]


def test_outputs_in_tensor_content_where_asked_for(repository, socket_path):
    settings = {"enable_serialization_as_tensor_content": True}
    with channel_to(repository, socket_path, **settings) as (channel, *_):
        output = predict(channel)(PREDICT, timeout=10).outputs["y"]
        assert output.tensor_content and not output.float_val
        assert tf.make_ndarray(output).tolist() == [2.5]
        words = predict_request("classifier", {"text": [b"good"]})
        assert predict(channel)(words, timeout=10).outputs["label"].string_val


def test_every_answer_has_an_id(repository, socket_path):
    with channel_to(repository, socket_path) as (channel, *_):

        def id_of(*given):
            _, call = predict(channel).with_call(PREDICT, timeout=10, metadata=given)
            return dict(call.initial_metadata())["x-request-id"]

        assert id_of(("x-request-id", "abc-1")) == "abc-1"
        made = id_of(("x-request-id", "no spaces here"))
        assert len(made) == 32 and made != id_of()


def test_bytes_that_are_no_message_are_the_callers_fault(repository, socket_path):
    with channel_to(repository, socket_path) as (channel, *_):
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        code, text = refused(call, b"\xff\xff\xff")
        assert code == "INVALID_ARGUMENT" and "tensorflow.serving.PredictRequest" in text


def test_keys_are_asked_for_and_an_admins_to_reload(repository, socket_path, monkeypatch):
    monkeypatch.setenv(API_KEYS, "user-key-0123456789")
    monkeypatch.setenv(ADMIN_KEYS, "admin-key-0123456789")
    with channel_to(repository, socket_path) as (channel, *_):
        assert refused(predict(channel), PREDICT)[0] == "UNAUTHENTICATED"
        key = (("authorization", "Bearer user-key-0123456789"),)
        assert predict(channel)(PREDICT, timeout=10, metadata=key)
        reload = model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest
        with pytest.raises(grpc.RpcError) as caught:
            reload(model_management_pb2.ReloadConfigRequest(), timeout=10, metadata=key)
        assert caught.value.code().name == "PERMISSION_DENIED"


def test_a_caller_may_ask_so_often_over_both_ways_together(repository, socket_path):
    rates = RateLimit("2/minute")
    with channel_to(repository, socket_path, rates=rates, rate_limit="2/minute") as (channel, *_):
        assert predict(channel)(PREDICT, timeout=10)
        assert rates.wait("") == 0  # as a request over REST would count
        code, details = refused(predict(channel), PREDICT)
        assert code == "RESOURCE_EXHAUSTED" and "--rate-limit=2/minute; come again in" in details


def test_reflection_wants_a_key_and_health_none(repository, socket_path, monkeypatch):
    monkeypatch.setenv(API_KEYS, "user-key-0123456789")
    settings = {"grpc_reflection": True, "enable_grpc_healthcheck_service": True}
    with channel_to(repository, socket_path, **settings) as (channel, *_):
        with pytest.raises(grpc.RpcError) as caught:
            services(channel)
        assert caught.value.code().name == "UNAUTHENTICATED"
        assert "A key is missing" in caught.value.details()
        assert services(channel, ("x-api-key", "user-key-0123456789"))
        assert health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=10
        )


class _Reloaded:
    """A repository that remembers."""

    def reload(self, models, timeout):
        self.models, self.timeout = models, timeout


def test_a_reload_passes_the_models_on_and_tells_the_growth_of_counters(socket_path, tmp_path):
    repository = _Reloaded()
    with channel_to(repository, socket_path) as (channel, *_):
        reload = model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest
        request = model_management_pb2.ReloadConfigRequest()
        assert refused(reload, request) == (
            "INVALID_ARGUMENT",
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported",
        )
        text_format.Parse(
            f'config {{ model_config_list {{ config {{ name: "a" base_path: "{tmp_path}" '
            'model_platform: "tensorflow" } } } metric_names: "/tensorflow/serving/request_count"',
            request,
        )
        response = reload(request, timeout=10)
        [model] = repository.models
        assert (model.name, model.base_path) == ("a", tmp_path)
        assert 0 < repository.timeout < 11  # or its thread would wait for ever for a lost caller
        assert response.HasField("status") and response.status.error_code == 0
        [metric] = response.metric
        assert metric.name == "/tensorflow/serving/request_count"
        assert metric.int64_value_increase == 0


def test_health_follows_the_drain(repository, socket_path):
    settings = {"enable_grpc_healthcheck_service": True}
    with channel_to(repository, socket_path, **settings) as (channel, _, server):
        check = health_pb2_grpc.HealthStub(channel).Check
        serving = health_pb2.HealthCheckResponse
        for name in ("", "ModelService", "PredictionService"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert check(request, timeout=10).status == serving.SERVING
        unknown = health_pb2.HealthCheckRequest(service="no")
        assert refused(check, unknown)[0] == "NOT_FOUND"
        server.drain()
        request = health_pb2.HealthCheckRequest()
        assert check(request, timeout=10).status == serving.NOT_SERVING


def services(channel, *metadata):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    [answer] = stub.ServerReflectionInfo(asked, timeout=10, metadata=metadata)
    return {service.name for service in answer.list_services_response.service}


def test_reflection_lists_both_services_only_where_asked_for(repository, socket_path):
    with channel_to(repository, socket_path, grpc_reflection=True) as (channel, *_):
        found = services(channel)
        assert "tensorflow.serving.PredictionService" in found
        assert "tensorflow.serving.ModelService" in found
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        symbol = "tensorflow.serving.PredictionService"
        asked = iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)])
        [answer] = stub.ServerReflectionInfo(asked, timeout=10)
        assert answer.file_descriptor_response.file_descriptor_proto
    with channel_to(repository, socket_path) as (channel, *_), pytest.raises(grpc.RpcError):
        services(channel)


def test_tls_by_the_stock_file(repository, tmp_path, free_port):
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("client")
    texts = {
        "server_key": server.private_key_pem,
        "server_cert": server.cert_chain_pems[0],
        "custom_ca": authority.cert_pem,
    }
    file = tmp_path / "ssl.config"
    lines = [f"{name}: {json.dumps(pem.bytes().decode())}" for name, pem in texts.items()]
    file.write_text("\n".join([*lines, "client_verify: true"]))
    with running(repository, port=free_port, ssl_config_file=file):
        known = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            client.private_key_pem.bytes(),
            client.cert_chain_pems[0].bytes(),
        )
        address = f"localhost:{free_port}"
        with grpc.secure_channel(address, known) as channel:
            assert predict(channel)(PREDICT, timeout=10)
        stranger = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(address, stranger) as channel:
            assert refused(predict(channel), PREDICT)[0] == "UNAVAILABLE"
        with grpc.insecure_channel(address) as channel:
            assert refused(predict(channel), PREDICT)[0] == "UNAVAILABLE"


def test_what_cannot_be_set_is_refused(repository, tmp_path):
    file = tmp_path / "ssl.config"
    file.write_text('server_key: "a"')
    for settings, text in (
        ({"grpc_channel_arguments": "a"}, "grpc_channel_arguments"),
        ({"ssl_config_file": file}, "server_key and server_cert"),
    ):
        with (
            pytest.raises(ConfigError, match=text),
            running(repository, grpc_socket_path=str(tmp_path / "s"), **settings),
        ):
            pass


def test_channel_arguments_reach_the_server(repository, socket_path):
    settings = {"grpc_channel_arguments": "grpc.max_receive_message_length=64"}
    with channel_to(repository, socket_path, **settings) as (channel, *_):
        request = predict_request("half_plus_two", {"x": [1.0] * 100})
        assert refused(predict(channel), request)[0] == "RESOURCE_EXHAUSTED"
        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = "mixed"
        assert model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=10)


def profile(channel, milliseconds, session="a", *, key=(), in_answer=True):
    """A trace under way: field 1 is its length, 6 the session, 9 asks for it in the answer."""
    body = (
        b"\x08"
        + bytes([milliseconds & 0x7F | 0x80, milliseconds >> 7])
        + b"2\x01"
        + session.encode()
    )
    call = channel.unary_unary("/tensorflow.ProfilerService/Profile")
    return call.future(body + b"H\x01" * in_answer, timeout=20, metadata=key)


def terminate(channel, session):
    return channel.unary_unary("/tensorflow.ProfilerService/Terminate")(
        b"\n\x01" + session.encode(), timeout=10
    )


def test_a_trace_shows_what_ran_meanwhile(repository, socket_path):
    with channel_to(repository, socket_path) as (channel, *_):
        both = [profile(channel, 100, session) for session in "ab"]
        while not all(trace.done() for trace in both):
            predict(channel)(PREDICT, timeout=10)
        found = {trace.code().name: trace for trace in both}
        assert set(found) == {"OK", "ALREADY_EXISTS"}  # one at a time
        trace = found["OK"].result()
        assert b"/host:CPU" in trace and b"AddV2" in trace
        # Without being asked otherwise: as a file that the client writes.
        assert b"xplane.pb" in profile(channel, 1, in_answer=False).result()


def test_a_trace_ends_when_told(repository, socket_path):
    with channel_to(repository, socket_path) as (channel, *_):
        trace = profile(channel, 16_000)
        while True:
            with contextlib.suppress(grpc.RpcError):  # not begun yet
                terminate(channel, "a")
                break
        assert trace.result(timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            terminate(channel, "a")
        assert caught.value.code().name == "NOT_FOUND"


def test_no_trace_without_an_admins_key_or_where_it_is_off(repository, socket_path, monkeypatch):
    monkeypatch.setenv(API_KEYS, "user-key-0123456789")
    monkeypatch.setenv(ADMIN_KEYS, "admin-key-0123456789")
    with channel_to(repository, socket_path) as (channel, *_):
        key = (("x-api-key", "user-key-0123456789"),)
        assert profile(channel, 1, key=key).code().name == "PERMISSION_DENIED"
        key = (("x-api-key", "admin-key-0123456789"),)
        assert profile(channel, 1, key=key).code().name == "OK"
    with channel_to(repository, socket_path, enable_profiler=False) as (channel, *_):
        assert profile(channel, 1, key=key).code().name == "UNIMPLEMENTED"


def test_broken_options_of_a_trace_are_the_callers_fault(repository, socket_path):
    with channel_to(repository, socket_path) as (channel, *_):
        call = channel.unary_unary("/tensorflow.ProfilerService/Profile")
        code, text = refused(call, b"\x08\x01\x22\x03\xff\xff\xff")
        assert code == "INVALID_ARGUMENT" and "ProfileOptions" in text


def test_a_trace_is_no_longer_than_memory_bears(repository, socket_path):
    with channel_to(repository, socket_path) as (channel, *_):
        call = channel.unary_unary("/tensorflow.ProfilerService/Profile")
        code, text = refused(call, b"\x08\xc1\xcf\x24\x32\x01a")  # 600,001 ms
        assert code == "INVALID_ARGUMENT" and "600000" in text and "600001" in text


class Held:
    """A repository whose models wait for `leave`."""

    def __init__(self, repository):
        self._repository, self.leave = repository, threading.Event()

    @contextlib.contextmanager
    def acquire(self, *wanted):
        assert self.leave.wait(20)
        with self._repository.acquire(*wanted) as servable:
            yield servable


def test_what_waits_for_a_thread_is_finished_by_a_drain(repository, socket_path):
    held = Held(repository)
    with (
        channel_to(held, socket_path, grpc_max_threads=1) as (channel, service, _),
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        calls = [predict(channel).future(PREDICT, timeout=20) for _ in range(5)]
        wait_until(lambda: service.num_running == 5)
        drained = threads.submit(asyncio.run, service.drain(20))
        wait_until(lambda: service.is_draining)
        assert refused(predict(channel), PREDICT)[0] == "UNAVAILABLE"
        held.leave.set()
        assert [list(call.result().outputs["y"].float_val) for call in calls] == [[2.5]] * 5
        assert drained.result() == 0


def test_only_so_many_may_wait_for_a_thread(repository, socket_path):
    held = Held(repository)
    service = Service(held, num_threads=1, max_waiting=2)
    server = GrpcServer(service, ServerConfig(port=0, grpc_socket_path=socket_path))
    server.start("127.0.0.1")
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        calls = [predict(channel).future(PREDICT, timeout=20) for _ in range(3)]
        wait_until(lambda: service.num_running == 3)
        code, text = refused(predict(channel), PREDICT)
        assert code == "RESOURCE_EXHAUSTED" and "--max-waiting-requests" in text
        held.leave.set()
        assert all(call.result() for call in calls)
    server.stop(0)


def test_who_sends_no_message_to_other_services_holds_no_model_up(repository, socket_path):
    may_end = threading.Event()

    def never():
        may_end.wait(20)
        yield b""

    settings = {"enable_grpc_healthcheck_service": True, "grpc_max_threads": 1}
    with channel_to(repository, socket_path, **settings) as (channel, *_):
        paths = ("/tensorflow.ProfilerService/Profile", "/grpc.health.v1.Health/Check")
        slow = [channel.stream_unary(path).future(never(), timeout=20) for path in paths * 4]
        assert predict(channel)(PREDICT, timeout=10)
        may_end.set()
        for call in slow:
            call.exception()


def test_a_tensor_is_not_filled_up_beyond_the_limit(repository, socket_path):
    def asked(size, *values):
        proto = TensorProto(dtype=types_pb2.DT_FLOAT, float_val=values)
        proto.tensor_shape.dim.add(size=size)
        return predict_request("half_plus_two", {"x": proto})

    with channel_to(repository, socket_path, max_inflated_bytes=400) as (channel, *_):
        assert len(predict(channel)(asked(100, 1.0), timeout=10).outputs["y"].float_val) == 100
        code, text = refused(predict(channel), asked(101, 1.0))
        assert code == "INVALID_ARGUMENT"
        assert "x has 101 values, 1 were sent" in text and "--max-inflated-bytes allows 400" in text
        assert predict(channel)(asked(101, *[1.0] * 101), timeout=10)  # nothing to fill up
        text = TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"a" * 100])
        text.tensor_shape.dim.add(size=10**12)
        request = predict_request("classifier", {"text": text})
        assert "--max-inflated-bytes" in refused(predict(channel), request)[1]


def test_the_limits_on_texts_rows_and_messages_hold_over_grpc(repository, socket_path):
    settings = {"max_characters": 5, "max_rows": 2, "max_body_bytes": 4000}
    with channel_to(repository, socket_path, **settings) as (channel, *_):
        assert predict(channel)(predict_request("classifier", {"text": ["éééé5"]}), timeout=10)
        code, text = refused(predict(channel), predict_request("classifier", {"text": ["6" * 6]}))
        assert code == "INVALID_ARGUMENT" and "--max-characters allows 5" in text
        large = predict_request("half_plus_two", {"x": [1.0] * 2000})
        assert refused(predict(channel), large)[0] == "RESOURCE_EXHAUSTED"
        regress = regression_pb2.RegressionRequest()
        regress.model_spec.name = "examples"
        regress.model_spec.signature_name = "regress_x_to_y"
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for number, is_fine in ((2, True), (3, False)):
            del regress.input.example_list.examples[:]
            for _ in range(number):
                example = regress.input.example_list.examples.add()
                example.features.feature["x"].float_list.value.append(2.0)
            if is_fine:
                assert len(stub.Regress(regress, timeout=10).result.regressions) == number
            else:
                assert "--max-rows allows 2" in refused(stub.Regress, regress)[1]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("ipv6:[::1]:5000", "::1"),
        ("unix:", ""),
    ],
)
def test_the_address_of_a_caller_is_the_one_of_rest(peer, host):
    assert _host(peer) == host
