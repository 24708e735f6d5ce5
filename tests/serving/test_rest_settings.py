"""What the settings change for a REST caller: limits, CORS, time limit; and what is counted."""

import random
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from serving import metrics
from serving.config import ServerConfig
from serving.rest import create_app
from serving.service import Service

CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}


@pytest.fixture(scope="module")
def strict(repository):
    """A server with small limits and CORS; `scopes` holds what it left for other layers."""
    config = replace(
        ServerConfig(),
        max_rows=3,
        max_characters=4,
        max_json_depth=5,
        max_inflated_bytes=1000,
        rest_api_enable_cors_support=True,
    )
    app = create_app(Service(repository), None, config)
    scopes = []

    async def recorded(scope, receive, send):
        scopes.append(scope)
        await app(scope, receive, send)

    with TestClient(recorded) as client:
        client.scopes = scopes
        yield client


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("types:predict", {"instances": [1.0] * 4}, "'instances' holds 4 rows; --max-rows allows "
         "3 in a request."),
        ("examples:regress", {"examples": [{}] * 4}, "'examples' holds 4 rows; --max-rows allows "
         "3 in a request."),
        ("types:predict", {"signature_name": "string", "inputs": ["ok", "éééé", "ééééé"]},
         "A text holds 5 characters; --max-characters allows 4."),
        ("examples:classify", {"examples": [{"x": 1.0}, {"y": ["abcde"]}]},
         "A text holds 5 characters; --max-characters allows 4."),
        ("examples:classify", {"context": {"y": "abcde"}, "examples": [{}]},
         "A text holds 5 characters; --max-characters allows 4."),
        ("types:predict", {"instances": [[[[[1.0]]]]]},
         "Lists and objects are nested 6 deep; --max-json-depth allows 5."),
    ],
)  # fmt: skip
def test_limits(strict, path, body, text):
    response = strict.post(f"/v1/models/{path}", json=body)
    assert (response.status_code, response.json()) == (400, {"error": text})


def test_within_the_limits(strict):
    body = {"signature_name": "string", "instances": [["éééé"]] * 3}
    response = strict.post("/v1/models/types:predict", json=body)
    assert response.json() == {"predictions": [["éééé"]] * 3}


def test_cors_headers_are_on_every_answer_below_v1_when_asked_for(strict, rest):
    for path in ("/v1/models", "/v1/models/no", "/v1/bad", f"/v1/models/mixed/versions/{2**63}"):
        assert CORS.items() <= strict.get(path).headers.items()
        assert not CORS.keys() & rest.get(path).headers.keys()
    origin = {"Origin": "https://a.example"}
    assert CORS.items() <= strict.options("/v1/models/mixed", headers=origin).headers.items()
    assert not CORS.keys() & strict.get("/healthz").headers.keys()


def test_errors_are_pretty_printed(rest):
    text = rest.get("/v1/bad").text
    assert text == '{\n    "error": "Malformed request: GET /v1/bad"\n}'


def test_other_layers_are_told_who_answered_and_where_time_went(strict):
    strict.post("/v1/models/half%5Fplus_two:predict", json={"instances": [1.0]})
    state = strict.scopes[-1]["state"]
    assert (state["model_name"], state["model_version"]) == ("half_plus_two", 3)
    timing = state["timing"]
    assert min(timing.parse, timing.compute, timing.serialize) > 0
    strict.get("/v1/models/half_plus_two/metadata")
    assert strict.scopes[-1]["state"]["model_version"] == 3


def test_a_run_that_takes_too_long_is_a_504(repository, tmp_path):
    leave = tmp_path / "leave"
    config = replace(ServerConfig(), rest_api_timeout_in_ms=50)
    body = {"instances": [{"entry": str(tmp_path / "entry"), "leave": str(leave)}]}
    with TestClient(create_app(Service(repository), None, config)) as client:
        try:
            response = client.post("/v1/models/gate:predict", json=body)
        finally:
            leave.touch()
    assert response.status_code == 504


def test_requests_are_counted_by_status_and_timed_by_method(rest):
    rest.post("/v1/models/half_plus_two:PREDICT", json={"instances": [1.0]})
    rest.post("/v1/models/half_plus_two:predict", content="{")
    page = metrics.page()
    for status in ("OK", "INVALID_ARGUMENT"):
        labels = f'{{model_name="half_plus_two",status="{status}"}}'
        assert f":tensorflow:serving:request_count{labels} " in page
    labels = '{model_name="half_plus_two",API="predict",entrypoint="REST"}'
    assert f":tensorflow:serving:request_latency_count{labels} " in page
    labels = '{model_name="half_plus_two",API="Predict",runtime="TF1"}'
    assert f":tensorflow:serving:runtime_latency_count{labels} " in page


SEEDS = [
    ("types:predict", b'{"signature_name": "string", "instances": [{"b64": "YQ=="}, "\\u00e9"]}'),
    ("types:predict", b'{"signature_name": "int32", "inputs": [[1, 2], [-3, 4]]}'),
    ("types:predict", b'{"signature_name": "float32", "instances": [NaN, 1e5, -0.5, Infinity]}'),
    ("mixed:predict", b'{"instances": [{"words": "a", "counts": [1, 2], "is_loud": true}]}'),
    ("examples:classify", b'{"context": {"x": 1.0}, "examples": [{"x": [2.0]}, {"y": true}]}'),
]  # fmt: skip


def test_mutated_bodies_are_answers_or_errors_of_the_caller(rest):
    rng = random.Random(0)
    tokens = [b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\u", b"\xff", b"\0", b"null", b"1e999"]
    statuses = set()
    for _ in range(800):
        path, seed = rng.choice(SEEDS)
        body = bytearray(seed)
        for _ in range(rng.randrange(1, 4)):
            start = rng.randrange(len(body) + 1)
            end = start + rng.choice([0, 0, 1, 5])
            body[start:end] = rng.choice([*tokens, bytes([rng.randrange(256)]), b""])
        response = rest.post(f"/v1/models/{path}", content=bytes(body))
        statuses.add(response.status_code)
        assert response.status_code in (200, 400), (path, bytes(body), response.text)
    assert statuses == {200, 400}
