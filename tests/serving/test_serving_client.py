"""The client against made-up answers, and against the real app."""

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from model import signatures
from serving import client as client_module
from serving.client import (
    AccessDenied,
    AsyncClient,
    Classification,
    Client,
    ClientError,
    Generation,
    InvalidRequest,
    MetricsOff,
    ModelInfo,
    ModelNotFound,
    ModelNotReady,
    RequestTimedOut,
    ServerFailed,
    ServerUnreachable,
    VersionStatus,
)


def made_up(answers):
    """A client whose server answers by path: {path: (status, JSON or text)}; 404 otherwise."""

    def answer(request):
        status, body = answers.get(request.url.path, (404, "<h1>Not Found</h1>"))
        if isinstance(body, str):
            return httpx.Response(status, text=body)
        return httpx.Response(status, content=json.dumps(body))

    return Client(transport=httpx.MockTransport(answer))


def raising(error):
    def answer(request):
        raise error

    return Client(transport=httpx.MockTransport(answer))


def status_body(*entries):
    return {
        "model_version_status": [
            {"version": str(v), "state": s, "status": {"error_code": code, "error_message": text}}
            for v, s, code, text in entries
        ]
    }


PREDICT = "/v1/models/m:predict"
STATUS = "/v1/models/m"


@pytest.mark.parametrize(
    ("error", "expected", "advice"),
    [
        (httpx.ConnectError("refused"), ServerUnreachable, "python -m serving"),
        (httpx.ConnectTimeout("slow"), ServerUnreachable, "python -m serving"),
        (httpx.ReadTimeout("slow"), RequestTimedOut, "within 10 seconds"),
        (httpx.RemoteProtocolError("closed"), ServerFailed, "try again"),
    ],
)
def test_broken_connections(error, expected, advice):
    with pytest.raises(expected, match=advice):
        raising(error).predict("m", [1])


def test_the_page_of_metrics():
    page = "# TYPE :m counter\n"
    assert made_up({client_module.METRICS: (200, page)}).metrics() == page
    with pytest.raises(MetricsOff, match="--monitoring_config_file"):
        made_up({}).metrics()
    with pytest.raises(AccessDenied):
        made_up({client_module.METRICS: (401, {"error": "no key"})}).metrics()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, InvalidRequest),
        (409, InvalidRequest),
        (429, ModelNotReady),
        (499, InvalidRequest),
        (500, ServerFailed),
        (501, ServerFailed),
        (503, ModelNotReady),
        (504, RequestTimedOut),
    ],
)
def test_error_answers_carry_the_servers_text(status, expected):
    with pytest.raises(expected, match="the server's text"):
        made_up({PREDICT: (status, {"error": "the server's text"})}).predict("m", [1])


@pytest.mark.parametrize(
    "answer",
    [(200, "<html>hello</html>"), (200, {"x": 1}), (200, {"predictions": 5}), (502, "Bad Gateway")],
)
def test_something_else_on_the_port_is_named_as_such(answer):
    with pytest.raises(ServerFailed, match="check the address and port"):
        made_up({PREDICT: answer}).predict("m", [1])


NOT_FOUND = (404, {"error": "Servable not found for request: Latest(m)"})


def test_a_model_nobody_knows_is_not_found():
    with pytest.raises(ModelNotFound, match="'m'.*python -m training"):
        made_up({PREDICT: NOT_FOUND}).predict("m", [1])


def test_a_loading_model_is_not_ready_although_the_server_says_404():
    answers = {PREDICT: NOT_FOUND, STATUS: (200, status_body((1, "LOADING", "OK", "")))}
    with pytest.raises(ModelNotReady, match="still loading"):
        made_up(answers).predict("m", [1])


def test_a_model_that_failed_to_load_says_why():
    answers = {
        PREDICT: NOT_FOUND,
        STATUS: (200, status_body((1, "END", "NOT_FOUND", "no such file"))),
    }
    with pytest.raises(ModelNotReady, match="failed to load.*no such file"):
        made_up(answers).predict("m", [1])


def test_every_error_is_a_client_error():
    for kind in (
        ServerUnreachable,
        ModelNotFound,
        ModelNotReady,
        InvalidRequest,
        ServerFailed,
        RequestTimedOut,
    ):
        assert issubclass(kind, ClientError)


@pytest.mark.parametrize("url", ["127.0.0.1:8501", "localhost", "ftp://x", ""])
def test_an_address_without_scheme_is_refused(url):
    with pytest.raises(ClientError, match="http://127.0.0.1:8501"):
        Client(url)


def test_a_stock_server_lists_the_names_it_is_asked_for():
    metadata = {
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {"text": {}},
                        "outputs": {"label": {}, "scores": {}, "labels": {}},
                    }
                }
            }
        }
    }
    served = status_body((2, "END", "INTERNAL", "broken"), (1, "AVAILABLE", "OK", ""))
    client = made_up({STATUS: (200, served), "/v1/models/m/metadata": (200, metadata)})
    assert client.models(["m", "unknown"]) == [ModelInfo("m", 1, "AVAILABLE", "classifier")]
    assert client.models() == []


def test_alive_means_that_anything_answers():
    assert made_up({}).is_alive()
    assert not raising(httpx.ConnectError("refused")).is_alive()
    assert not made_up({"/healthz": (502, "Bad Gateway")}).is_alive()


def test_bytes_travel_as_base64():
    def echo(request):
        return httpx.Response(200, json={"predictions": json.loads(request.content)["instances"]})

    client = Client(transport=httpx.MockTransport(echo))
    assert client.predict("m", [b"\xff"]) == [{"b64": "/w=="}]
    with pytest.raises(TypeError, match="object"):
        client.predict("m", [object()])


def test_no_texts_make_no_request():
    assert raising(AssertionError("asked")).classify("m", []) == []


def test_the_names_are_those_of_the_signatures():
    assert client_module.CLASSIFIER_INPUTS == set(signatures.CLASSIFIER_INPUTS)
    assert client_module.CLASSIFIER_OUTPUTS == set(signatures.CLASSIFIER_OUTPUTS)
    assert client_module.GENERATOR_INPUTS == set(signatures.GENERATOR_INPUTS)
    assert client_module.MULTI_LABEL_OUTPUTS == set(signatures.MULTI_LABEL_OUTPUTS)
    assert client_module.REGRESSOR_OUTPUTS == set(signatures.REGRESSOR_OUTPUTS)
    assert client_module.GENERATOR_OUTPUTS == set(signatures.GENERATOR_OUTPUTS)


def test_the_client_needs_nothing_but_httpx():
    code = (
        "import sys, serving.client\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'numpy', 'model')"
        " or m.startswith('serving.') and m != 'serving.client'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- against the real app


@pytest.fixture(scope="module")
def client(rest):
    def forward(request):
        answer = rest.request(
            request.method,
            request.url.raw_path.decode(),
            content=request.content,
            headers=dict(request.headers),
        )
        return httpx.Response(answer.status_code, content=answer.content)

    with Client(transport=httpx.MockTransport(forward)) as client:
        yield client


def test_classify(client):
    answers = client.classify("classifier", ["so good", "什么"])
    assert [type(answer) for answer in answers] == [Classification] * 2
    assert [answer.label for answer in answers] == ["positive", "negative"]
    assert list(answers[0].scores) == ["negative", "positive", "neutral"]  # the model's order
    assert answers[0].scores["positive"] == pytest.approx(0.8)


def test_one_text_is_no_list_of_letters(client):
    with pytest.raises(InvalidRequest, match="Texts are a list of str. Received one str: 'good'"):
        client.classify("classifier", "good")


def test_generate_sends_every_setting(client):
    answer = client.generate(
        "generator", "从前", max_tokens=7, temperature=0.5, top_k=4, top_p=1, seed=3
    )
    assert answer == Generation("从前 0.50 4.00 1.00 3.00", 7, "length")


def test_the_wrong_kind_of_model_is_an_invalid_request(client):
    with pytest.raises(InvalidRequest, match="correct the input"):
        client.classify("half_plus_two", ["a"])
    with pytest.raises(InvalidRequest):
        client.generate("classifier", "a")


def test_models_status_metadata(client):
    kinds = {model.name: model.kind for model in client.models()}
    assert kinds["classifier"] == "classifier"
    assert kinds["generator"] == "generator"
    assert kinds["mixed"] is None
    assert client.models(["types"]) == [ModelInfo("types", 3, "AVAILABLE", None)]
    assert client.status("mixed") == [VersionStatus(3, "AVAILABLE", "OK", "")]
    assert client.metadata("mixed")["model_spec"]["version"] == "3"
    assert client.is_alive()


def test_versions_signatures_and_columns(client):
    assert client.predict("half_plus_two", [2.0], version=3) == [3.0]
    assert client.predict_columns("mixed", {"x": [1.5]}, signature_name="scalar") == 1.5
    with pytest.raises(ModelNotFound, match="version 8 of model 'mixed'"):
        client.predict("mixed", [1], version=8)
    with pytest.raises(ModelNotFound, match="'no such/model'"):
        client.predict("no such/model", [1])


def test_not_a_number_and_bad_utf8_are_read(client):
    values = client.predict("mixed", [0.0, -1.0], signature_name="divide")
    assert values == [float("inf"), -1.0]
    assert client.predict("mixed", ["a"], signature_name="invalid_text") == ["a\ufffd"]


def asked(*answers, **settings):
    """What a prediction gives, how long was slept, and the headers of the last request."""
    left, slept, headers = list(answers), [], []

    def answer(request):
        headers.append(request.headers)
        status, more = left.pop(0)
        body = {"predictions": [1]} if status == 200 else {"error": "busy"}
        return httpx.Response(status, json=body, headers=more)

    client = Client(transport=httpx.MockTransport(answer), sleep=slept.append, **settings)
    try:
        found = client.predict("m", [1])
    except ClientError as error:
        found = error
    return found, slept, headers[-1]


BUSY = (429, {"retry-after": "2"})


def test_a_busy_server_is_asked_again_when_it_says():
    found, slept, _ = asked(BUSY, (503, {"retry-after": "1"}), (200, {}))
    assert found == [1]
    assert 2 <= slept[0] <= 3 and 1 <= slept[1] <= 1.5


@pytest.mark.parametrize(
    ("answers", "settings"),
    [
        ([BUSY] * 3, {}),  # two retries
        ([BUSY], {"retries": 0}),
        ([(429, {"retry-after": "60"})], {}),  # longer than the caller would wait
        ([(503, {})], {}),  # does not say when: it may have begun to compute
        ([BUSY, BUSY], {"timeout": 3.5}),  # the second wait would be too long
    ],
)
def test_it_is_asked_no_more_often_than_that(answers, settings):
    found, slept, _ = asked(*answers, **settings)
    assert isinstance(found, ModelNotReady)
    assert len(slept) == len(answers) - 1


def test_a_failure_is_not_asked_for_again():
    found, slept, _ = asked((500, {"retry-after": "1"}))
    assert isinstance(found, ServerFailed) and not slept


def test_a_key_is_sent_along(monkeypatch):
    monkeypatch.delenv("STEPWISE_API_KEY", raising=False)
    assert "x-api-key" not in asked((200, {}))[2]
    assert asked((200, {}), api_key="given")[2]["x-api-key"] == "given"
    monkeypatch.setenv("STEPWISE_API_KEY", "of-the-environment")
    assert asked((200, {}))[2]["x-api-key"] == "of-the-environment"
    for status in (401, 403):
        found = asked((status, {}))[0]
        assert isinstance(found, AccessDenied) and "STEPWISE_API_KEY" in str(found)


# ---------------------------------------------------------------- streams, and an event loop


STREAM = b"""\
: a comment
event: token
data: {"text": "Once"}

data: {"text":
data: "upon"}

data: [DONE]

data: {"text": "nobody reads this"}

"""


class Parts(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces of 7 bytes, which cut lines anywhere; knows whether it was closed."""

    def __init__(self, content):
        self.content, self.is_closed, self.error = content, False, None

    def __iter__(self):
        for i in range(0, len(self.content), 7):
            yield self.content[i : i + 7]
        if self.error:
            raise self.error

    async def __aiter__(self):
        for part in self:
            yield part

    def close(self):
        self.is_closed = True

    async def aclose(self):
        self.is_closed = True


def streamed(parts, *before):
    """Settings of a client that is answered by `before`, then by the stream, and what it sends."""
    left, bodies, slept = list(before), [], []

    def answer(request):
        bodies.append(json.loads(request.content))
        return left.pop(0) if left else httpx.Response(200, stream=parts)

    return {"transport": httpx.MockTransport(answer)}, bodies, slept


EVENTS = [{"text": "Once"}, {"text": "upon"}]
TURNED_AWAY = {"status_code": 429, "headers": {"retry-after": "1"}, "json": {"error": "busy"}}


def test_the_events_of_a_stream_come_parsed_and_end_at_done():
    parts = Parts(STREAM)
    settings, bodies, slept = streamed(parts, httpx.Response(**TURNED_AWAY))
    client = Client(sleep=slept.append, **settings)
    assert list(client.stream("/v1/completions", {"prompt": "a"})) == EVENTS
    assert bodies == [{"prompt": "a"}] * 2 and len(slept) == 1 and parts.is_closed


def test_whoever_leaves_a_stream_hangs_up():
    parts = Parts(STREAM)
    events = Client(**streamed(parts)[0]).stream("/v1/completions", {})
    assert next(events) == EVENTS[0] and not parts.is_closed
    events.close()
    assert parts.is_closed


def test_a_stream_that_is_refused_broken_or_nonsense_raises():
    refusal = httpx.Response(400, json={"error": "n must be 1"})
    with pytest.raises(InvalidRequest, match="n must be 1"):
        list(Client(**streamed(None, refusal)[0]).stream("/v1/completions", {}))
    with pytest.raises(ServerFailed, match="is no JSON: 'oh'"):
        list(Client(**streamed(Parts(b"data: oh\n\n"))[0]).stream("/v1/completions", {}))
    parts = Parts(STREAM[:40])
    parts.error = httpx.RemoteProtocolError("cut off")
    with pytest.raises(ServerFailed, match="cut off"):
        list(Client(**streamed(parts)[0]).stream("/v1/completions", {}))


@pytest.mark.asyncio
async def test_an_event_loop_has_the_same_calls(client):
    async def forward(request):
        return client._http._transport.handle_request(request)

    async with AsyncClient(transport=httpx.MockTransport(forward)) as other:
        assert await other.classify("classifier", ["so good"]) == client.classify(
            "classifier", ["so good"]
        )
        assert await other.predict("half_plus_two", [2.0]) == [3.0]
        assert await other.models(["types"]) == client.models(["types"])
        assert await other.metadata("mixed") == client.metadata("mixed")
        with pytest.raises(ModelNotFound, match="version 8 of model 'mixed'"):
            await other.predict("mixed", [1], version=8)
    public = {name for name in vars(Client) | vars(Client.__mro__[1]) if name[0] != "_"}
    assert public == {name for name in dir(AsyncClient) if name[0] != "_"}


@pytest.mark.asyncio
async def test_an_event_loop_has_deadlines_retries_and_streams():
    slept = []

    async def asleep(seconds):
        slept.append(seconds)

    async def never(request):
        await asyncio.sleep(60)

    slow = AsyncClient(transport=httpx.MockTransport(never), timeout=0.01)
    with pytest.raises(RequestTimedOut, match=r"within 0.01 seconds"):
        await slow.predict("m", [1])
    assert not await slow.is_alive()

    parts = Parts(STREAM)
    settings, bodies, _ = streamed(parts, httpx.Response(**TURNED_AWAY))
    client = AsyncClient(sleep=asleep, **settings)
    assert [event async for event in client.stream("/v1/completions", {})] == EVENTS
    assert len(bodies) == 2 and len(slept) == 1 and parts.is_closed

    parts = Parts(STREAM)
    events = AsyncClient(**streamed(parts)[0]).stream("/v1/completions", {})
    assert await anext(events) == EVENTS[0] and not parts.is_closed
    await events.aclose()
    assert parts.is_closed
