"""The door: who is let in, what is turned away and how, what an answer's headers tell."""

import asyncio
import hashlib
import json
import logging
import subprocess
import sys
import threading

import pytest

from serving import metrics
from serving.config import ConfigError, ServerConfig
from serving.door import Door
from serving.errors import Code
from serving.keys import API_KEYS
from serving.launcher import check_exposure
from serving.logs import JsonLines, configure
from serving.rates import RateLimit
from serving.request_ids import request_id_of
from serving.service import Service
from serving.timing import Timing

KEY = "user-key-0123456789"


@pytest.fixture(autouse=True)
def no_keys_of_ours(monkeypatch):
    monkeypatch.delenv(API_KEYS, raising=False)


class Waiting:
    is_draining = is_full = False


async def app(scope, receive, send):
    """Answers with the length of the body."""
    message = await receive()
    scope["state"]["timing"] = Timing(parse=0.001, compute=0.002)
    scope["state"]["model_version"] = 7
    body = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(*, config=None, service=None, inner=app, chunks=(b"",), headers=(), path="/v1/x", **door):
    """(status, headers, body) of one request whose body comes in `chunks`, then nothing."""
    sent, left = [], list(chunks)
    names = {name for name, _ in headers}
    if any(chunks) and not names & {"content-length", "transfer-encoding"}:
        headers = [*headers, ("transfer-encoding", "chunked")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": ("10.0.0.1", 5),
        "state": {},
    }

    async def receive():
        if not left:
            await asyncio.sleep(60)
        chunk = left.pop(0)
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    made = Door(inner, service or Waiting(), config or ServerConfig(), **door)
    asyncio.run(made(scope, receive, send))
    if not sent:
        return None
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent[1:])


def test_an_answer_tells_version_time_and_id():
    status, headers, body = ask(chunks=[b"ab", b"c"], headers=[("x-request-id", "a-1")])
    assert (status, body) == (200, b"3")
    assert headers["x-request-id"] == "a-1" and headers["x-model-version"] == "7"
    assert headers["server-timing"].startswith("parse;dur=1.000, queue;dur=0.000, compute;dur=2.0")


@pytest.mark.parametrize("given", ["", "a b", "é", "x" * 129, "a\nb"])
def test_an_id_that_cannot_stand_in_a_log_is_replaced(given):
    assert len(request_id_of({"x-request-id": given})) == 32


def test_a_body_may_be_as_large_as_the_limit_and_no_larger():
    config = ServerConfig(max_body_bytes=10)
    for size, expected in ((9, 200), (10, 200), (11, 413), (100, 413)):
        for headers in ([("content-length", str(size))], [("transfer-encoding", "chunked")]):
            status, found, body = ask(config=config, chunks=[b"x" * size], headers=headers)
            assert status == expected
            if status == 413:
                assert "--max-body-bytes" in json.loads(body)["error"]
                assert "connection" not in found  # a caller that still sends sees the answer


def test_a_large_body_is_refused_before_it_is_read():
    config = ServerConfig(max_body_bytes=10)
    status, *_ = ask(config=config, chunks=[], headers=[("content-length", "11")])
    assert status == 413  # and nothing was waited for


def test_a_body_in_too_many_pieces_is_refused():
    config = ServerConfig(max_body_chunks=3)
    assert ask(config=config, chunks=[b"x"] * 3)[0] == 200
    status, _, body = ask(config=config, chunks=[b"x"] * 4)
    assert status == 413 and b"--max-body-chunks" in body


def test_a_body_that_does_not_come_is_not_waited_for():
    config = ServerConfig(body_timeout_seconds=0.02)
    headers = [("content-length", "5")]
    status, found, body = ask(config=config, chunks=[], headers=headers)
    assert status == 408 and found["connection"] == "close"
    assert b"--body-timeout-seconds" in body


def test_a_body_may_take_as_long_as_its_size_asks_for():
    """By a clock that a piece of 64 KiB moves on by one second."""
    seconds = iter(range(1_000))
    config = ServerConfig(body_timeout_seconds=2.0)
    chunks = [b"x" * 65_536] * 20
    assert ask(config=config, chunks=chunks, clock=lambda: next(seconds))[0] == 200
    seconds = iter(range(1_000))
    slow = [b"x"] * 20
    assert ask(config=config, chunks=slow, clock=lambda: next(seconds))[0] == 408


def test_keys_open_everything_but_health(monkeypatch):
    monkeypatch.setenv(API_KEYS, KEY)
    status, headers, body = ask()
    assert status == 401 and headers["www-authenticate"] == "Bearer"
    assert "x-api-key" in json.loads(body)["error"]
    assert ask(headers=[("x-api-key", KEY)])[0] == 200
    for path in ("/healthz", "/readyz"):
        assert ask(path=path)[0] == 200


@pytest.mark.parametrize("attribute", ["is_draining", "is_full"])
def test_what_cannot_be_worked_on_is_told_to_come_again(attribute):
    service = Waiting()
    setattr(service, attribute, True)
    status, headers, _ = ask(service=service, chunks=[], headers=[("content-length", "5")])
    assert status == (503 if attribute == "is_draining" else 429)
    assert int(headers["retry-after"]) >= 1
    assert ask(service=service, path="/healthz")[0] == 200


def refusals(monkeypatch):
    """An answer of each kind that the door gives by itself, by status, in functions of a path."""
    full, draining = Waiting(), Waiting()
    full.is_full = draining.is_draining = True
    small, slow = ServerConfig(max_body_bytes=3), ServerConfig(body_timeout_seconds=0.01)
    late = ServerConfig(request_timeout_seconds=0.06)
    length = [("content-length", "5")]

    async def never(scope, receive, send):
        await asyncio.sleep(60)

    async def broken(scope, receive, send):
        raise ValueError("a secret")

    def without_a_key(path):
        with monkeypatch.context() as patch:
            patch.setenv(API_KEYS, KEY)
            return ask(path=path)

    return {
        401: without_a_key,
        408: lambda path: ask(path=path, config=slow, chunks=[], headers=length),
        413: lambda path: ask(path=path, config=small, chunks=[b"12345"]),
        429: lambda path: ask(path=path, service=full),
        500: lambda path: ask(path=path, inner=broken),
        503: lambda path: ask(path=path, service=draining),
        504: lambda path: ask(path=path, config=late, inner=never),
    }


def test_what_the_door_refuses_has_the_form_of_the_url(monkeypatch):
    types = {401: "authentication_error", 429: "rate_limit_error"}
    for wanted, answer in refusals(monkeypatch).items():
        for path in ("/v1/completions", "/v1/chat/nothing", "/v1/responses"):
            status, _, body = answer(path)
            error = json.loads(body)["error"]
            assert error.keys() == {"message", "type", "param", "code"}, (wanted, path)
            kind = "server_error" if wanted >= 500 else "invalid_request_error"
            assert (status, error["type"]) == (wanted, types.get(wanted, kind))
        status, _, body = answer("/v1/models/completions")
        assert status == wanted and isinstance(json.loads(body)["error"], str)


def test_what_the_app_refuses_is_told_to_come_again_too():
    for code, closes in ((Code.RESOURCE_EXHAUSTED, False), (Code.UNAVAILABLE, True)):

        async def refusing(scope, receive, send, code=code):
            headers = [(b"content-type", b"application/json")]
            start = {"type": "http.response.start", "status": code.http_status, "headers": headers}
            await send(start)
            await send({"type": "http.response.body", "body": b"{}"})

        status, headers, _ = ask(inner=refusing)
        assert status == code.http_status and int(headers["retry-after"]) >= 1
        assert (headers.get("connection") == "close") is closes


def test_bodies_are_held_up_to_a_bound_also_while_they_come():
    door = Door(app, Waiting(), ServerConfig(max_body_bytes=10))
    statuses = []

    async def one(done):
        pieces = [b"x" * 9, b"x"]

        async def receive():
            if len(pieces) == 1:
                await done.wait()
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        async def send(message):
            if "status" in message:
                statuses.append(message["status"])

        scope = {"type": "http", "method": "POST", "path": "/v1", "state": {}}
        await door(scope | {"headers": [(b"content-length", b"10")]}, receive, send)

    async def many():
        done = asyncio.Event()
        tasks = [asyncio.create_task(one(done)) for _ in range(12)]
        while len(statuses) < 4:  # the ninth is one too many, and lets go of what it held
            await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(many(), 10))
    assert statuses[:4] == [429] * 4 and set(statuses[4:]) == {200}
    assert door._held == 0


def test_a_thread_whose_caller_has_gone_still_counts():
    leave, entered = threading.Event(), threading.Event()

    def work(repository):
        entered.set()
        leave.wait(10)

    async def run():
        service = Service(None, num_threads=1, max_waiting=1)
        held = asyncio.create_task(service.run(work))
        await asyncio.to_thread(entered.wait, 10)
        waiting = asyncio.create_task(service.run(work))
        await asyncio.sleep(0)
        for task in (held, waiting):  # the one has a thread, the other never gets one
            task.cancel()
        await asyncio.gather(held, waiting, return_exceptions=True)
        assert (service.num_running, service.num_waiting) == (1, 0)
        other = asyncio.create_task(service.run(lambda repository: "done"))
        await asyncio.sleep(0)
        assert service.num_waiting == 1 and service.is_full
        leave.set()
        assert await other == "done"
        assert service.num_running == 0
        service.close()

    asyncio.run(run())


def test_a_caller_may_ask_so_often():
    door_config = ServerConfig(rate_limit="2/minute")
    limit = RateLimit.from_config(door_config)
    assert [limit.wait("a") > 0 for _ in range(3)] == [False, False, True]
    assert limit.wait("b") == 0
    with pytest.raises(ConfigError, match="--rate-limit takes"):
        RateLimit("often")
    before = metrics.counter("/stepwise/serving/shed_requests")
    statuses = []

    class Same(Door):
        async def __call__(self, scope, receive, send):
            for _ in range(3):
                await super().__call__(dict(scope, state={}), receive, send)

    sent = []

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            sent.append(dict(message["headers"]))

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/v1", "headers": [], "client": ("a", 1)}
    rates = RateLimit.from_config(door_config)
    asyncio.run(Same(app, Waiting(), door_config, rates=rates)(scope, receive, send))
    assert statuses == [200, 200, 429] and b"retry-after" in sent[-1]
    assert metrics.counter("/stepwise/serving/shed_requests") == before + 1


def test_who_was_turned_away_stands_in_the_log(caplog, monkeypatch):
    monkeypatch.setenv(API_KEYS, KEY)
    with caplog.at_level(logging.INFO, logger="serving.access"):
        assert ask(headers=[("x-api-key", "no such key")])[0] == 401
        config = ServerConfig(rate_limit="1/minute")
        rates = RateLimit.from_config(config)
        for status in (200, 429):
            found = ask(config=config, headers=[("x-api-key", KEY)], rates=rates)
            assert found[0] == status
    lines = [record.fields for record in caplog.records if record.name == "serving.access"]
    assert [(line["status"], line["caller"]) for line in lines] == [
        (401, ""),
        (200, hashlib.sha256(KEY.encode()).hexdigest()[:8]),
        (429, hashlib.sha256(KEY.encode()).hexdigest()[:8]),
    ]
    assert {line["address"] for line in lines} == {"10.0.0.1"}


def test_a_scraper_reads_the_metrics_while_callers_are_held_back(tmp_path):
    monitoring = tmp_path / "monitoring.config"
    monitoring.write_text("prometheus_config { enable: true path: '/numbers' }")
    config = ServerConfig(rate_limit="1/minute", monitoring_config_file=monitoring)
    rates = RateLimit.from_config(config)
    paths = ("/v1/x", "/numbers", "/v1/x", "/numbers")
    statuses = [ask(config=config, rates=rates, path=path)[0] for path in paths]
    assert statuses == [200, 200, 429, 200]


async def slow(scope, receive, send):
    await receive()
    await asyncio.sleep(30)


def test_a_request_that_takes_too_long_is_ended():
    config = ServerConfig(request_timeout_seconds=0.1)
    status, _, body = ask(config=config, inner=slow)
    assert status == 504 and b"--request-timeout-seconds" in body


def test_a_caller_that_hangs_up_frees_its_place():
    ended = []

    async def watched(scope, receive, send):
        await receive()
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    assert ask(inner=watched, chunks=[b"x", None]) is None
    # The first message says that more is to come, which never does: the body is not whole.
    assert not ended
    assert ask(inner=watched, chunks=[None]) is None
    assert ended == [True]


def test_a_bug_of_ours_is_an_answer_too(caplog):
    async def broken(scope, receive, send):
        raise ZeroDivisionError("secret")

    status, _, body = ask(inner=broken)
    assert status == 500 and b"secret" not in body
    assert "ZeroDivisionError" in caplog.text


def test_logs_are_json_lines_without_texts(caplog):
    with caplog.at_level(logging.INFO, logger="serving.access"):
        ask(chunks=[b"a private text"], headers=[("x-request-id", "a-1")])
    [record] = [r for r in caplog.records if r.name == "serving.access"]
    line = json.loads(JsonLines().format(record))
    assert line["status"] == 200 and line["path"] == "/v1/x" and line["request_id"] == "a-1"
    assert line["compute"] == 0.002 and line["version"] == 7
    assert "private" not in json.dumps(line)
    with pytest.raises(ConfigError, match="--log-format"):
        configure("xml")


def test_a_log_that_cannot_be_written_is_lost_and_no_more():
    code = "from serving.logs import configure; configure('json'); import logging; "
    code += "log = logging.getLogger('serving'); [log.error('x' * 999) for _ in range(99)]; exit(7)"
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stderr=full).returncode == 7


def test_other_machines_are_let_in_with_keys_only(monkeypatch):
    open_to_all = ServerConfig(host="0.0.0.0")
    with pytest.raises(ConfigError, match="--insecure"):
        check_exposure(open_to_all, "embedded")
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.5"):
        check_exposure(ServerConfig(host=host), "embedded")
    check_exposure(ServerConfig(host="0.0.0.0", insecure=True), "embedded")
    monkeypatch.setenv(API_KEYS, KEY)
    for engine in ("embedded", "remote"):
        check_exposure(open_to_all, engine)
    with pytest.raises(ConfigError, match="--insecure"):
        check_exposure(open_to_all, "docker")
    with pytest.raises(ConfigError, match="go together"):
        check_exposure(ServerConfig(tls_key="key.pem"), "embedded")
