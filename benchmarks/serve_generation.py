"""Many callers, one language model: python benchmarks/serve_generation.py [SIZE] [--parts P,...]

64 requests of mixed lengths (prompts of 4 to 61 tokens, answers of 16 to 128, drawn at temperature
0.8, top-k 40, top-p 0.95; for the large network 24 and 8 to 40), all at once or as a seeded Poisson
process, through the same weights:

* the engine of `python -m serving` with 16 slots, in this process;
* one at a time: `serving_default` of the export in a session, as a stock server runs it;
* static batches of 8, compiled: the same XLA steps, but whoever waits is taken together, up to 8,
  prompts padded to 64 and read in one call, and all answers come when the last of them is done.

Weights are random. SIZE is tiny (4 layers x 128) or small (6 x 384), of 8,192 tokens, or large (12
x 768) of 50,257. Parts: `load` (throughput, first tokens, gaps, cancelling, memory), `steps` (what
a call costs), `trace` (where a step's time goes, by XLA's own trace; --flame FILE draws it), `http`
(a server process, its start and the same requests as streams over HTTP). Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import httpx
import numpy as np
import tensorflow as tf
from flame import Frame, draw

from model import signatures as s
from model.config import ByteBPETokenizerConfig, TransformerDecoderConfig
from model.tokenizers import BEGIN
from serving import servable
from serving.decoder import Decoder, Text
from serving.engine import Engine
from serving.sockets import url_host
from serving.writing import Request
from training.config import RunConfig
from training.datasets.config import DatasetConfig
from training.datasets.examples import TextData
from training.export import export_learner
from training.language_model import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = (s.WEIGHTS_FLOAT32, s.WEIGHTS_BFLOAT16, s.WEIGHTS_INT8)
NUM_SLOTS, STATIC_ROWS, LONGEST_PROMPT = 16, 8, 64


@dataclass(frozen=True)
class Size:
    num_layers: int
    num_heads: int
    width: int
    context_length: int
    vocabulary_size: int = 8192
    num_requests: int = 64
    answers: tuple[int, int] = (16, 128)
    rounds: int = 3


SIZES = {
    "tiny": Size(4, 4, 128, 256),
    "small": Size(6, 6, 384, 512, rounds=1),
    "large": Size(12, 12, 768, 256, 50_257, num_requests=24, answers=(8, 40), rounds=1),
}


def make_export(name: str, folder: Path, weights: str) -> Path:
    size, generator = SIZES[name], random.Random(0)
    words = [
        "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        for _ in range(2 * size.vocabulary_size)
    ]
    texts = [" ".join(words)] * 3
    config = RunConfig(
        name=name,
        dataset=DatasetConfig(name="starter_stories"),
        tokenizer=ByteBPETokenizerConfig(vocabulary_size=size.vocabulary_size),
        model=TransformerDecoderConfig(
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            width=size.width,
            inner_width=4 * size.width,
            context_length=size.context_length,
            dropout=0.0,
        ),
    )
    data = TextData(train=texts, validation=texts, test=texts)
    learner = LanguageModel.create(config, data)
    if weights != s.WEIGHTS_FLOAT32:
        learner.store_weights(weights)
    return export_learner(learner, folder)


def requests(size: Size) -> list[Request]:
    generator = random.Random(0)
    made = []
    for seed in range(size.num_requests):
        length = min(max(int(generator.lognormvariate(2.9, 0.6)), 4), LONGEST_PROMPT - 3)
        made.append(
            Request(
                prompt=tuple(generator.randrange(4, size.vocabulary_size) for _ in range(length)),
                max_tokens=generator.randint(*size.answers),
                temperature=0.8,
                top_k=40,
                top_p=0.95,
                seed=seed,
            )
        )
    return made


class Timeline:
    """When each request came, when its first piece did, and its gaps; seconds."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.gaps: list[float] = []  # between pieces
        self.token_gaps: list[float] = []  # of tokens: a piece's gap over its tokens, each
        self.num_tokens = 0
        self.began = time.perf_counter()
        self.seconds = 0.0

    def end(self) -> Timeline:
        self.seconds = time.perf_counter() - self.began
        return self

    @property
    def per_second(self) -> float:
        return self.num_tokens / self.seconds


def p(values: list[float], percent: int) -> float:
    """A percentile, in milliseconds."""
    return 1000 * float(np.percentile(values, percent)) if values else float("nan")


def arrivals(rate: float, count: int) -> list[float]:
    """Seconds from the start; rate 0: all at once."""
    generator, at, times = random.Random(1), 0.0, []
    for _ in range(count):
        if rate:
            at += generator.expovariate(rate)
        times.append(at)
    return times


async def through(write: Callable, rate: float, asked: list[Request]) -> Timeline:
    """All requests through `write(request)`, an async iterator of (number of tokens) a piece."""
    line = Timeline()

    async def take(request: Request, at: float) -> None:
        await asyncio.sleep(max(line.began + at - time.perf_counter(), 0))
        came = last = time.perf_counter()
        is_first = True
        async with contextlib.aclosing(write(request)) as pieces:
            async for count in pieces:
                now = time.perf_counter()
                if is_first:
                    line.first.append(now - came)
                elif count:
                    line.gaps.append(now - last)
                    line.token_gaps += [(now - last) / count] * count
                last, is_first = now, False
                line.num_tokens += count

    await asyncio.gather(*map(take, asked, arrivals(rate, len(asked))))
    return line.end()


# ---------------------------------------------------------------- the ways to write


def by_engine(engine: Engine) -> Callable:
    async def write(request: Request):
        async with contextlib.aclosing(engine.write(request)) as pieces:
            async for piece in pieces:
                yield len(piece.tokens)

    return write


def in_batches(run: Callable[[list[Request]], list[int]], most: int) -> Callable:
    """Whoever waits, up to `most`, together; all of them get their answers at its end."""
    waiting: list[tuple[Request, asyncio.Future]] = []
    lock = asyncio.Lock()

    async def write(request: Request):
        future = asyncio.get_running_loop().create_future()
        waiting.append((request, future))
        async with lock:
            if not future.done():
                batch = waiting[:most]
                del waiting[:most]
                counts = await asyncio.to_thread(run, [one for one, _ in batch])
                for (_, one), count in zip(batch, counts, strict=True):
                    one.set_result(count)
        yield await future

    return write


Texts = dict[tuple[int, ...], str]


def by_signature(served: servable.Servable, request: Request, texts: Texts) -> dict:
    settings = (
        np.array([texts[request.prompt]], object),
        *(
            np.array([value], kind)
            for value, kind in (
                (request.max_tokens, np.int32),
                (request.temperature, np.float32),
                (request.top_k, np.int32),
                (request.top_p, np.float32),
                (request.seed, np.int32),
            )
        ),
    )
    return served.run(s.SERVING_DEFAULT, dict(zip(s.GENERATOR_INPUTS, settings, strict=True)))


def one_at_a_time(served: servable.Servable, texts: Texts) -> Callable:
    def run(batch: list[Request]) -> list[int]:
        return by_signature(served, batch[0], texts)[s.NUM_TOKENS].tolist()

    return in_batches(run, 1)


async def equal_texts(
    engine: Engine, served: servable.Servable, asked: list[Request], texts: Texts
) -> str:
    """Of greedy texts whose prompts survive being written and read: all at once against alone."""
    read = await engine.tokenize([texts[request.prompt] for request in asked])
    greedy = [
        replace(request, temperature=0.0)
        for request, tokens in zip(asked, read, strict=True)
        if tokens.tokens == request.prompt
    ][:16]

    async def write(request: Request) -> str:
        async with contextlib.aclosing(engine.write(request)) as pieces:
            return "".join([piece.text async for piece in pieces])

    ours = await asyncio.gather(*map(write, greedy))
    theirs = [by_signature(served, request, texts)[s.TEXT][0].decode() for request in greedy]
    equal = sum(one == other for one, other in zip(ours, theirs, strict=True))
    return f"{equal} of {len(greedy)} greedy texts are those of `serving_default` alone."


def text_of(decoder: Decoder, request: Request) -> Text:
    prompt = (BEGIN, *request.prompt)
    return Text(request, prompt, decoder.draws(request.seed), request.max_tokens)


def static_batches(path: Path, warm: list[Request]) -> Callable[[list[Request]], list[int]]:
    """The decoder's compiled steps with all steps in one call, and prompts read 8 at a time."""
    decoder = Decoder(
        path, num_slots=STATIC_ROWS, max_steps=128, chunk=LONGEST_PROMPT, progress=lambda text: None
    )

    @tf.function(jit_compile=True)
    def read_all(tokens, num_tokens):
        empty = [
            tf.zeros([STATIC_ROWS, spec.shape[1], LONGEST_PROMPT, spec.shape[3]], spec.dtype)
            for spec in decoder.specs
        ]
        return decoder.decoded(tokens, num_tokens, tf.zeros_like(num_tokens), empty)[1]

    def run(batch: list[Request]) -> list[int]:
        texts = [text_of(decoder, request) for request in batch]
        padded = np.zeros([STATIC_ROWS, LONGEST_PROMPT], np.int32)
        lengths = np.ones([STATIC_ROWS], np.int32)
        for row, text in enumerate(texts):
            padded[row, : len(text.prompt) - 1] = text.prompt[:-1]
            lengths[row] = max(len(text.prompt) - 1, 1)
        staged = read_all(tf.constant(padded), tf.constant(lengths))
        for row, text in enumerate(texts):
            decoder.put(row, tuple(tensor[row : row + 1] for tensor in staged), text)
        return decoder.write(len(batch), 128).num_tokens[: len(batch)].tolist()

    run(warm[:STATIC_ROWS])
    return run


# ---------------------------------------------------------------- what is measured


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    sys.stdout.flush()


def header(*cells: str) -> None:
    print()
    row(*cells)
    print("|" + "---|" * len(cells))


def memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_load(path: Path, size: str) -> None:
    served = servable.load(size, 1, path)
    before = memory()
    progress: list[str] = []
    began = time.perf_counter()
    decoder = Decoder(path, num_slots=NUM_SLOTS, max_steps=8, chunk=64, progress=progress.append)
    seconds = time.perf_counter() - began
    engine = Engine(served, decoder)
    print(
        f"Engine of {size}: made in {seconds:.1f} s ({'; '.join(progress)}). It takes "
        f"{(memory() - before) / 2**20:.0f} MB; a slot of the whole context "
        f"{decoder.context_length * decoder.bytes_per_token / 2**20:.2f} MB."
    )
    asked = requests(SIZES[size])
    texts = asyncio.run(engine.detokenize([request.prompt for request in asked]))
    known = {request.prompt: text for request, text in zip(asked, texts, strict=True)}
    makers = {
        "engine": lambda: by_engine(engine),
        "one at a time": lambda: one_at_a_time(served, known),
        "static batches of 8, compiled": lambda: in_batches(static, STATIC_ROWS),
    }
    static = static_batches(path, asked)
    rounds = SIZES[size].rounds
    print(f"\n{asyncio.run(equal_texts(engine, served, asked, known))}")

    def tell(names: Iterable[str], rate: float) -> dict[str, float]:
        """A line of the table for each way, medians of rounds in which they took turns; their
        tokens a second."""
        lines: dict[str, list[Timeline]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, some in lines.items():
                some.append(asyncio.run(through(makers[name](), rate, asked)))
        for name, some in lines.items():
            values = (
                (p(one.first, 50), p(one.first, 95), p(one.gaps, 95), p(one.token_gaps, 95))
                for one in some
            )
            middle = [statistics.median(column) for column in zip(*values, strict=True)]
            row(name, round(statistics.median(one.per_second for one in some)), *middle)
        return {
            name: statistics.median(one.per_second for one in some) for name, some in lines.items()
        }

    quiet = asyncio.run(through(by_engine(engine), 0, asked[:1]))
    for one in asked[1:6]:
        more = asyncio.run(through(by_engine(engine), 0, [one]))
        quiet.gaps += more.gaps
        quiet.token_gaps += more.token_gaps
    columns = ("first token p50, ms", "p95", "gap of pieces p95", "gap a token p95")
    header("all at once", "tokens/s", *columns)
    full = tell(makers, 0)
    row("engine, one text alone", "", "", "", p(quiet.gaps, 95), p(quiet.token_gaps, 95))
    mean = statistics.mean(request.max_tokens for request in asked)
    # At the load of each way those who can bear it: both peers stand at that of one at a time.
    for other in makers:
        rate = 0.8 * full[other] / mean
        header(f"{rate:.1f} requests/s, 0.8 of {other}", "tokens/s", *columns)
        tell([name for name in makers if full[name] >= full[other]], rate)
    waits = asyncio.run(cancels(engine))
    print(
        f"\nCancelled to free slot, {NUM_SLOTS} texts at once, {len(waits)} times: "
        f"p50 {p(waits, 50):.1f} ms, p95 {p(waits, 95):.1f} ms"
    )
    engine.close()


async def cancels(engine: Engine) -> list[float]:
    """Seconds from `aclose` to a slot that is free, all slots being taken."""
    generator, waits = random.Random(2), []
    for _ in range(6):
        streams = [
            engine.write(Request(prompt=(5, 6), max_tokens=200, seed=seed, top_k=40))
            for seed in range(NUM_SLOTS)
        ]
        for stream in streams:
            await anext(stream)
        generator.shuffle(streams)
        for stream in streams:
            await asyncio.sleep(generator.random() * 0.01)
            free = engine.scheduler.num_free
            began = time.perf_counter()
            await stream.aclose()
            while engine.scheduler.num_free <= free and engine.scheduler.num_writing:
                await asyncio.sleep(0.0002)
            waits.append(time.perf_counter() - began)
    return waits


def full_rows(decoder: Decoder, B: int, S: int) -> Callable[[int], float]:
    """Rows that fill a cache of S slots; gives how many seconds a call of K steps takes."""
    decoder.reset()
    prompt = (5,) * (S - 11)
    staged = decoder.empty(S)
    settings = {"max_tokens": 1000, "temperature": 0.8, "top_k": 40, "top_p": 0.95}
    requests = [Request(prompt=prompt, seed=number, **settings) for number in range(B)]
    texts = [text_of(decoder, request) for request in requests]

    def seconds(K: int) -> float:
        times = []
        for _ in range(15):
            for number, text in enumerate(texts):
                decoder.put(number, staged, text)
            began = time.perf_counter()
            decoder.write(B, K)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    return seconds


def measure_steps(path: Path, size: str) -> None:
    """What a call costs by rows, slots and steps."""
    decoder = Decoder(path, num_slots=NUM_SLOTS, max_steps=8, chunk=64, progress=lambda text: None)
    header("rows", "slots of the cache", "ms a step, 1 a call", "4", "8", "of a row, 8 a call")
    for S in decoder.lengths:
        for B in decoder.batch_sizes:
            seconds = full_rows(decoder, B, S)
            costs = [1000 * seconds(K) / K for K in (1, 4, 8)]
            row(B, S, *(f"{cost:.2f}" for cost in costs), f"{costs[-1] / B:.3f}")


# Where an op of a step belongs, by its name in the graph: the first that is found in it.
GROUPS = {
    "cache: keys and values written": r"attention_\d+/TensorScatterUpdate",
    "attention: its matrices": r"attention_\d+/(qkv|query|key_value|output_projection)",
    "attention: scores, softmax, values": r"attention_\d+/",
    "inner network": r"expand|contract",
    "norms and residual sums": r"norm_\d+/|block_\d+_\d+/add",
    "logits": r"PartitionedCall/(head.*/)?MatMul$",
    "embedding, positions, masks": r"PartitionedCall/",
    "top-k and top-p": r"^while/cond_1",
    "drawing, counting, text": r"",
}
CALLS = 10  # traced


# What draws a token; the other groups are the network.
CHOOSING = ("top-k and top-p", "drawing, counting, text")
BETWEEN = "between ops, and of the call"


def measure_trace(path: Path, size: str, picture: Path | None) -> None:
    """Where a step's time goes: XLA's trace of each op, by the op's name in the graph."""
    frames = []
    decoder = Decoder(path, num_slots=NUM_SLOTS, max_steps=8, chunk=64, progress=lambda text: None)
    S = decoder.lengths[-1]
    columns: list[dict[str, float]] = []
    for B in (1, NUM_SLOTS):
        seconds = full_rows(decoder, B, S)
        one, all_ = 1000 * seconds(1), 1000 * seconds(8)
        step = (all_ - one) / 7
        inputs = decoder.inputs(B, 8)
        function = tf.function(decoder.write_steps, autograph=False, jit_compile=True)
        ops = ops_of(function.experimental_get_compiler_ir(*inputs)(stage="optimized_hlo"))
        spent = dict.fromkeys(GROUPS, 0.0)
        whole, times = traced(function, inputs)
        rows = "1 row" if B == 1 else f"{B} rows"
        frame = Frame(f"a step of {rows}, {size}, {S} slots", "#e5e7eb")
        for name in ops.keys() & times.keys():
            group, full = ops[name]
            # The median, as some wait for the other core; some run once in a call, not in a step.
            cost = statistics.median(times[name]) * len(times[name]) / CALLS / 8
            spent[group] += cost
            frame.add(path_of(group, full, name), cost)
        between = whole / 8 - sum(spent.values())
        frame.add([(BETWEEN, "#d1d5db")], between)
        frames.append(frame)
        column = spent | {BETWEEN: between, "a step": whole / 8}
        columns.append(column | {"not traced: a step": step, "besides, once a call": one - step})
    header(f"{size}, ms", f"1 row x {S} slots", f"{NUM_SLOTS} rows x {S} slots")
    for part in columns[0]:
        row(part, *(f"{column[part]:.3f}" for column in columns))
    if picture:
        picture.write_text(draw(frames, "XLA's trace, medians; as wide as long, the dearest first"))


# Colours of a half and of what is below it.
HALVES = {
    "network": ("#5eead4", "#99f6e4", "#ccfbf1"),
    "choosing tokens": ("#fdba74", "#fed7aa", "#ffedd5"),
}


def path_of(group: str, full: str, name: str) -> list[tuple[str, str]]:
    """Where an op stands in the flame graph; layers lie upon each other."""
    half = "choosing tokens" if group in CHOOSING else "network"
    parts = [part for part in re.sub(r"_\d+", "", full).split("/") if "PartitionedCall" not in part]
    short = "/".join(parts[-2:]).removeprefix("while/") or re.sub(r"[.\d]+$", "", name)
    return list(zip((half, group, short), HALVES[half], strict=True))


def ops_of(program: str) -> dict[str, tuple[str, str]]:
    """Group and name in the graph of each op of an optimized HLO program, but for those that only
    call others. What has no name belongs to what it reads."""
    named: dict[str, str] = {}  # computation, or op -> the first name in it
    found: list[tuple[str, str]] = []
    computation = ""
    for line in program.splitlines():
        if opened := re.match(r"(?:ENTRY )?%([\w.-]+) \(", line):
            computation = opened[1]
        op = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(([^)]*)", line)
        if not op:
            continue
        name = re.search(r'op_name="(?:[^";]*;)?([^"]*)"', line)
        called = re.search(r"calls=%([\w.-]+)", line)
        full = name[1] if name else named.get(called[1], "") if called else ""
        if full:
            named.setdefault(computation, full)
        else:
            read = re.findall(r"%([\w.-]+)", op[3])
            full = next((named[one] for one in read if named.get(one)), "")
        named[op[1]] = full
        if op[2] not in ("while", "conditional", "call", "parameter", "tuple"):
            found.append((op[1], full))
    return {
        op: (next(group for group, pattern in GROUPS.items() if re.search(pattern, full)), full)
        for op, full in found
    }


def traced(
    function: Callable, inputs: tuple[tf.Tensor, ...]
) -> tuple[float, dict[str, list[float]]]:
    """Milliseconds of a call, the median of `CALLS`, and of each op at each time that it ran."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    whole, times = [], defaultdict(list)
    for _ in range(2):
        function(*inputs)
    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3, python_tracer_level=0)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, options=options):
            for _ in range(CALLS):
                began = time.perf_counter()
                function(*inputs)[0].numpy()
                whole.append(1000 * (time.perf_counter() - began))
        (file,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                times[plane.event_metadata[event.metadata_id].name].append(event.duration_ps / 1e9)
    return statistics.median(whole), times


def measure_http(path: Path, size: str) -> None:
    port = 18711
    with tempfile.TemporaryDirectory() as cache:
        starts = ("by signatures", "with --wait-for-engine", "the same, its --xla-cache filled")
        for name in starts:
            command = [sys.executable, "-m", "serving", "--engine=embedded", "--port=0"]
            command += [f"--grpc_socket_path={cache}/grpc", f"--rest_api_port={port}"]
            command += [f"--exports={path.parents[1]}", f"--xla-cache={cache}"]
            command += ["--wait-for-engine"] if name != starts[0] else []
            began = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            try:
                asyncio.run(first_token(port, size))
                print(
                    f"\n`python -m serving` to the first token over HTTP, {name}: "
                    f"{time.perf_counter() - began:.1f} s"
                )
                if name == starts[-1]:
                    asyncio.run(over_http(port, size))
            finally:
                process.terminate()
                process.wait()


def url_of(port: int) -> str:
    return f"http://{url_host('127.0.0.1')}:{port}/v1/completions"


def body_of(size: str, request: Request) -> dict:
    return {
        "model": size,
        "prompt": list(request.prompt),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "seed": request.seed,
        "stream": True,
    }


async def first_token(port: int, size: str) -> None:
    async with httpx.AsyncClient(timeout=300) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                async with client.stream(
                    "POST", url_of(port), json=body_of(size, requests(SIZES[size])[0])
                ) as response:
                    if response.status_code == 200:
                        async for line in response.aiter_lines():
                            if line.startswith("data: "):
                                return
            await asyncio.sleep(0.05)


async def over_http(port: int, size: str) -> None:
    asked = requests(SIZES[size])
    limits = httpx.Limits(max_connections=len(asked))
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:

        async def write(request: Request):
            async with client.stream("POST", url_of(port), json=body_of(size, request)) as response:
                if response.status_code != 200:
                    raise RuntimeError((await response.aread()).decode())
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        yield len(event["choices"]) and 1

        await through(write, 0, asked)
        header(
            "over HTTP, streams; the client on the same cores",
            "events/s",
            "first token p50, ms",
            "p95",
            "gap p95",
        )
        line = await through(write, 0, asked)
        row(
            "all at once",
            round(line.per_second),
            p(line.first, 50),
            p(line.first, 95),
            p(line.gaps, 95),
        )
        tokens = sum(request.max_tokens for request in asked)
        row("... tokens/s", round(tokens / line.seconds), "", "", "")


PARTS = {
    "load": measure_load,
    "steps": measure_steps,
    "http": measure_http,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", nargs="?", choices=SIZES, default="tiny")
    parser.add_argument("--parts", default="load")
    parser.add_argument("--weights", choices=WEIGHTS, default=s.WEIGHTS_FLOAT32)
    parser.add_argument("--flame", type=Path, help="of the part trace: an SVG of it")
    parser.add_argument("--exports", type=Path, help="made there once, and found there again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        exports = options.exports or Path(temporary)
        folder = exports / f"{options.size}_{options.weights}"
        path = folder / options.size / "1"
        if not path.is_dir():
            path = make_export(options.size, folder, options.weights)
        for part in options.parts.split(","):
            if part == "trace":
                measure_trace(path, options.size, options.flame)
            else:
                PARTS[part](path, options.size)


if __name__ == "__main__":
    main()
