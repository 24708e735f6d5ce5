"""A stub of the client, and what the tests do with a page and read from it."""

import html
import math
import re
from pathlib import Path

import streamlit as st
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from serving.client import (
    Classification,
    Generation,
    ModelInfo,
    ModelNotFound,
    Part,
    VersionStatus,
)
from ui import backend

APP = Path(backend.__file__).with_name("app.py")

SENTIMENT = ModelInfo("sentiment", 3, "AVAILABLE", "classifier")
TOPICS = ModelInfo("topics", 1, "AVAILABLE", "classifier")
STORIES = ModelInfo("stories", 7, "AVAILABLE", "generator")


class StubClient:
    """Answers like `serving.client.Client`, notes what it was asked, and fails when told to."""

    def __init__(self) -> None:
        self.listed: list[ModelInfo] = [SENTIMENT, TOPICS, STORIES]
        self.can_list = True
        self.scores = {"negative": 0.125, "positive": 0.875}
        self.generation = Generation(" and then it rained.", 5, "stop")
        self.statuses: dict[str, list[VersionStatus]] = {}
        self.state_error: Exception | None = None
        self.answer_error: Exception | None = None
        self.stream_error: Exception | None = None  # of a server without streams
        self.metrics_text = metrics_page()
        self.is_stopped_by_click = self.is_closed = False
        self.num_truncated_tokens = 0
        self.break_error: Exception | None = None  # after the first part
        self.classified: list[tuple[str, list[str]]] = []
        self.generated: list[tuple[str, str, dict]] = []

    def models(self, names=()):
        if self.state_error:
            raise self.state_error
        if self.can_list:
            return [model for model in self.listed if not names or model.name in names]
        return [model for model in self.listed if model.name in names]

    def classify(self, model, texts):
        self.classified.append((model, list(texts)))
        if self.answer_error:
            raise self.answer_error
        label = max(self.scores, key=self.scores.__getitem__)
        return [Classification(label, self.scores) for _ in texts]

    def write(self, model, prompt, *, timeout, **options):
        self.generated.append((model, prompt, options))
        if self.stream_error:
            raise self.stream_error
        if self.answer_error:
            raise self.answer_error
        try:
            for word in re.findall(r"\s*\S+|\s+", self.generation.text):
                yield Part(word, None, 1, 136, self.num_truncated_tokens)
                if self.break_error:
                    raise self.break_error
                if self.is_stopped_by_click:
                    st.stop()  # a click ends the script where it next speaks to the browser
            counts = (self.generation.num_tokens, 136, self.num_truncated_tokens)
            yield Part("", self.generation.finish_reason, *counts)
        finally:
            self.is_closed = True

    def generate(self, model, prompt, *, timeout, **options):
        self.generated.append((model, prompt, options))
        if self.answer_error:
            raise self.answer_error
        return self.generation

    def metrics(self):
        if self.state_error:
            raise self.state_error
        return self.metrics_text

    def status(self, model):
        if model in self.statuses:
            return self.statuses[model]
        found = [known for known in self.listed if known.name == model]
        if not found:
            raise ModelNotFound(f"no model {model}")
        return [VersionStatus(found[0].version, found[0].state, "OK", "")]

    def metadata(self, model):
        found = next(known for known in self.listed if known.name == model)
        fields = {
            "classifier": (("text",), ("label", "scores", "labels")),
            "multi_label": (("text",), ("is_label", "scores", "labels")),
            "regressor": (("text",), ("value",)),
            "generator": (("prompt", "max_tokens"), ("text", "num_tokens", "finish_reason")),
        }[found.kind]
        inputs, outputs = ({name: _tensor() for name in names} for names in fields)
        signatures = {
            "serving_default": {"inputs": inputs, "outputs": outputs},
            "__saved_model_init_op": {"inputs": {}, "outputs": {}},
        }
        return {"metadata": {"signature_def": {"signature_def": signatures}}}


def metrics_page(first=None, next=None, wait=None, steps=None, counters=None, gauges=None) -> str:
    """The server's metrics: {upper limit in microseconds: how many lie in the bucket below it} of
    three histograms of the model stories, the count and the sum of its steps, numbers of it, and
    numbers of the whole server."""
    lines = ["# TYPE :stepwise:serving:streams gauge"]
    times = {"to_first_token": first, "between_tokens": next}
    histograms = {f"time_{name}": found for name, found in times.items()}
    for name, found in (histograms | {"generation_queue_latency": wait}).items():
        name, below = f":stepwise:serving:{name}", 0
        lines.append(f"# TYPE {name} histogram")
        for limit, count in (found and found | {math.inf: found.get(math.inf, 0)} or {}).items():
            below += count
            le = "+Inf" if limit == math.inf else f"{limit:g}"
            lines.append(f'{name}_bucket{{model_name="stories",le="{le}"}} {below}')
        if found:
            lines.append(f'{name}_count{{model_name="stories"}} {below}')
    if steps:
        name = ":stepwise:serving:generation_batch_size"
        lines.append(f"# TYPE {name} histogram")
        lines.append(f'{name}_bucket{{model_name="stories",le="+Inf"}} {steps[0]}')
        lines.append(f'{name}_sum{{model_name="stories"}} {steps[1]}')
        lines.append(f'{name}_count{{model_name="stories"}} {steps[0]}')
    for name, number in (counters or {}).items():
        lines.append(f"# TYPE :stepwise:serving:{name} untyped")
        lines.append(f':stepwise:serving:{name}{{model_name="stories"}} {number}')
    for name, number in (gauges or {}).items():
        lines.append(f"# TYPE :stepwise:serving:{name} gauge")
        lines.append(f":stepwise:serving:{name}{{}} {number}")
    return "\n".join(lines) + "\n"


def _tensor() -> dict:
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    return {"dtype": "DT_STRING", "tensor_shape": shape, "name": "x:0"}


def go_to(at: AppTest, page: str) -> AppTest:
    # AppTest.switch_page knows pages that are files; ours are functions.
    at._page_hash = calc_hash(page)
    return look_again(at)


def look_again(at: AppTest) -> AppTest:
    """Runs the page with a fresh look at the server, as it happens when time has passed."""
    backend.server_state.clear()
    backend.details.clear()
    backend.counts.clear()
    at.run()
    assert not at.exception
    return at


def click(at: AppTest, key: str) -> AppTest:
    at.button(key=key).click().run()
    assert not at.exception
    return at


def bodies(at: AppTest) -> str:
    """The HTML that the page shows, without the stylesheet."""
    return "\n".join(element.body for element in at.html if "<style>" not in element.body)


def words(at: AppTest) -> str:
    """What a reader sees of that HTML: every tag gone, every escape undone, in this order."""
    return html.unescape(re.sub(r"<[^<>]*>", "|", bodies(at)))


def notices(at: AppTest) -> list[str]:
    found = re.findall(r'<div class="sw-notice[^>]*>(.*?)(?=<details>|</div>)', bodies(at), re.S)
    return [html.unescape(sentence) for sentence in found]
