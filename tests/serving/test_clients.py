"""OpenAI's API, asked by clients that people have besides OpenAI's own."""

import asyncio
from operator import itemgetter

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai_server import repository_of, serving
from toy_writer import answer_of, tokens_of, writer_model

from serving.config import ServerConfig

TEMPLATE = "Be short.\nUser: Hi!\nAssistant: Hello.\nUser: Who?\nAssistant:"
MESSAGES = [
    SystemMessage("Be short."),
    HumanMessage("Hi!"),
    AIMessage("Hello."),
    HumanMessage("Who?"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    writer_model(folder / "writer" / "4")
    with repository_of(folder) as models, serving(models, ServerConfig()) as running:
        yield running


@pytest.fixture(scope="module")
def settings(server):
    return {"base_url": f"{server.url}/v1", "api_key": "none", "model": "writer", "max_retries": 0}


# LangChain ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def langchain(settings):
    return OpenAI(**settings, max_tokens=90, temperature=0.5, top_p=0.9, seed=5)


def test_langchain_completes(langchain):
    wanted = answer_of("Once 小 ", temperature=0.5, top_p=0.9, seed=5)
    assert langchain.invoke("Once 小 ") == wanted
    assert "".join(langchain.stream("Once 小 ")) == wanted
    assert langchain.invoke("Once 小 ", stop=["狐"]) == wanted[: wanted.index("狐")]


def test_langchain_asks_for_several_and_in_a_loop(langchain):
    wanted = [answer_of(p, temperature=0.5, top_p=0.9, seed=5) for p in ("a", "bcd")]
    answer = langchain.generate(["a", "bcd"])  # one request
    assert [row[0].text for row in answer.generations] == wanted
    assert answer.llm_output["token_usage"]["prompt_tokens"] == 4
    assert langchain.batch(["a", "bcd"]) == wanted

    async def stream():
        try:
            return [part async for part in langchain.astream("a")]
        finally:
            await langchain.async_client._client.close()  # which LangChain leaves to the collector

    parts = asyncio.run(stream())
    assert len(parts) > 3 and "".join(parts) == wanted[0]


def test_langchain_chats(settings):
    chat = ChatOpenAI(**settings, max_tokens=30, temperature=0.5, seed=5, stream_usage=True)
    answer = chat.invoke(MESSAGES)
    wanted = answer_of(TEMPLATE, temperature=0.5, seed=5)[:30]
    assert answer.content == wanted
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["input_tokens"] == len(TEMPLATE)
    assert answer.usage_metadata["output_tokens"] == 30
    parts = list(chat.stream(MESSAGES))
    assert len(parts) > 3 and "".join(part.content for part in parts) == answer.content
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert whole.usage_metadata == answer.usage_metadata


def test_langchain_embeds(settings):
    embeddings = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
    one, four = embeddings.embed_documents(["a", "abcd"])
    assert one == pytest.approx([0.5**0.5, 0.5**0.5, 0], abs=1e-6)
    assert four == pytest.approx([4 / 17**0.5, 1 / 17**0.5, 0], abs=1e-6)
    assert embeddings.embed_query("abcd") == four


# lm-evaluation-harness ----------------------------------------------------------------------------
# Its `local-completions` (0.4.13), whose 760 MB of packages are not installed for these tests: the
# bodies it sends, and what it reads of the answers (`parse_logprobs`, `parse_generations`).


def ask(server, **body):
    answer = httpx.post(f"{server.url}/v1/completions", json={"model": "writer"} | body)
    assert answer.status_code == 200, answer.text
    return sorted(answer.json()["choices"], key=itemgetter("index"))


def test_the_harness_asks_how_likely_continuations_are(server):
    """`loglikelihood`: a batch of tokens; the token written besides is left out by [:-1]."""
    pairs = [("ab ", "c"), ("ab ", "cd"), ("x", "小")]
    batch = [tokens_of(context + continuation) for context, continuation in pairs]
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices = ask(server, prompt=batch, **asked)
    found = []
    for choice, (context, _) in zip(choices, pairs, strict=True):
        logprobs = choice["logprobs"]
        place = slice(len(tokens_of(context)), -1)
        own, top = logprobs["token_logprobs"][place], logprobs["top_logprobs"][place]
        is_greedy = all(a == max(b.values()) for a, b in zip(own, top, strict=True))
        found.append((sum(own), is_greedy))
        assert len(logprobs["tokens"]) == len(logprobs["text_offset"])
    # The toy's token at place p has -0.5 (p + 1), and is the likeliest one at odd places.
    assert found == [(-2.0, True), (-2.0 - 2.5, False), (-1.0 - 1.5 - 2.0, False)]
    assert choices[1]["text"].startswith("ab cd") and len(choices[1]["text"]) == 6


def test_the_harness_may_send_texts(server):
    """`tokenized_requests=False`."""
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    of_text, of_tokens = (
        ask(server, prompt=prompt, **asked) for prompt in (["abcd"], [tokens_of("abcd")])
    )
    assert of_text == of_tokens


@pytest.mark.parametrize("is_text", [True, False])
def test_the_harness_asks_for_texts_until_a_stop(server, is_text):
    """`generate_until`: greedy, of a batch, up to its stop strings."""
    prompts = ["Q: 1\nA:", "Q: 小\nA:"]
    wanted = [answer_of(prompt, temperature=0, seed=1234) for prompt in prompts]
    choices = ask(
        server,
        prompt=prompts if is_text else [tokens_of(prompt) for prompt in prompts],
        max_tokens=256,
        temperature=0,
        stop=["\n\n", "狐狸"],
        seed=1234,
    )
    found = [choice["text"] for choice in choices]
    assert found == [text[: text.index("狐狸")] for text in wanted]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "stop"]
