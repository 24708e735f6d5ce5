"""Writing text beside Hugging Face and nanoGPT: python benchmarks/generation.py

Networks of random weights: tiny (4 layers x 128, 8,192 tokens), small (6 x 384, 8,192) and large
(12 x 768, 50,257), a prompt of 32 tokens, then --new tokens for every row. Ours are the loop of
`model.generation` as an export holds it, in plain ops ("portable"), and the same loop compiled as a
whole ("XLA"); the peers are `GPT2LMHeadModel.generate` with its cache, in float32 and bfloat16, and
nanoGPT's way without a cache, in benchmarks/torch_generation.py by the Python of --torch-python, as
torch is none of our requirements. Each way is a process of its own, and calls take turns.

Prints machine, versions, command and Markdown: milliseconds a step (a token of every row, the
prompt's reading included), medians of --blocks calls, over the fastest Hugging Face; and what part
of the limit is reached: weights, in the bytes they are stored in, and cache over the bytes a second
of a matrix times a vector of as many, by PyTorch or XLA and with one thread or all, whichever reads
fastest; or the FLOPs over those of PyTorch's large product, if that takes longer.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.processes import Process  # noqa: E402

PROMPT = 32  # tokens
SIZES = {
    "tiny": {"num_layers": 4, "num_heads": 4, "width": 128, "vocabulary_size": 8_192},
    "small": {"num_layers": 6, "num_heads": 6, "width": 384, "vocabulary_size": 8_192},
    "large": {"num_layers": 12, "num_heads": 12, "width": 768, "vocabulary_size": 50_257},
}
for size in SIZES.values():
    size["context"] = 256
NEW = {"tiny": 64, "small": 32, "large": 16}  # tokens of a call


class Ours:
    """Prefill and the loop of `model.generation`, without a tokenizer at both ends."""

    def __init__(self, setting: dict):
        import tensorflow as tf

        from model.catalogue import build_model
        from model.config import TransformerDecoderConfig
        from model.stored import store

        self.tf, size = tf, setting["size"]
        config = TransformerDecoderConfig(
            num_layers=size["num_layers"],
            num_heads=size["num_heads"],
            width=size["width"],
            inner_width=4 * size["width"],
            context_length=size["context"],
            positions="learned",
            initialization="gpt2",
        )
        self.model = build_model(config, size["vocabulary_size"], seed=0)
        self.parameters = self.model.count_params()
        if setting["weights"] != "float32":
            store(self.model, setting["weights"])
        self.compiled, self.functions = setting["way"] == "XLA", {}

    def run(self, order: dict) -> dict:
        if order["do"] == "limits":
            return {"bytes_per_second": self.bytes_per_second(order["num_bytes"])}
        tf, shape = self.tf, (order["batch"], order["prompt"])
        key, V = (*shape, order["num_tokens"]), self.model.vocabulary_size
        tokens = tf.constant(np.random.default_rng(0).integers(4, V, shape), tf.int32)
        rows = [[0.0 if order["greedy"] else 1.0], [order["top_k"]], [order["top_p"]], [1]]
        inputs = [tf.constant(row * shape[0]) for row in rows]
        since = time.perf_counter()
        if key not in self.functions:
            function = tf.function(
                lambda *inputs: self.write(order["num_tokens"], *inputs),
                jit_compile=self.compiled,
                autograph=False,
            )
            # A concrete function, as a signature is: to look for it costs what two tokens do.
            self.functions[key] = function.get_concrete_function(tokens, *inputs)
        written = self.functions[key](tokens, *inputs).numpy()
        return {"seconds": time.perf_counter() - since, "num_tokens": written.shape[1]}

    def bytes_per_second(self, num_bytes: int) -> float:
        """Of a vector times a matrix of so many bytes, compiled: the best of ten calls."""
        tf, repeats = self.tf, 8  # so that the call itself does not count

        @tf.function(jit_compile=True, autograph=False)
        def products(x, matrix):
            def product(i, x):
                y = tf.matmul(x, matrix, transpose_b=True)
                return i + 1, x + 1e-9 * tf.reduce_max(y)

            return tf.while_loop(lambda i, x: i < repeats, product, (0, x))[1]

        inputs = tf.random.normal([1, 768]), tf.random.normal([num_bytes // 4 // 768, 768])
        times = []
        for _ in range(11):
            since = time.perf_counter()
            products(*inputs).numpy()
            times.append(time.perf_counter() - since)
        return repeats * num_bytes / min(times[1:])

    def write(self, num_steps, tokens, temperature, top_k, top_p, seed):
        tf = self.tf
        from model.generation import write
        from model.samplers import sample, uniforms
        from model.stored import held
        from model.tokenizers import END

        B, T = tf.unstack(tf.shape(tokens))
        lengths = tf.fill([B], T)
        draws = uniforms(seed, num_steps)
        num_slots = tokens.shape[1] + num_steps

        def choose(logits, step, written):
            # Nobody ends, so that all write as much.
            logits = tf.where(tf.range(logits.shape[-1]) <= END, tf.float32.min, logits)
            return sample(logits, draws[:, step], temperature, top_k, top_p)

        # As an export does, plain ops unpack what is stored in front of the loop. XLA multiplies
        # one row without that, but several rows by copies only.
        several = self.compiled and tokens.shape[0] > 1
        is_held = several or not self.compiled
        with held(self.model, with_head=several) if is_held else contextlib.nullcontext():
            logits, caches = self.model.prefill(tokens, lengths, num_slots)
            return write(
                self.model,
                logits,
                caches,
                lengths=lengths,
                allowed=tf.fill([B], num_steps),
                num_steps=num_steps,
                choose=choose,
            ).tokens


def serve(setting: dict) -> None:
    """Answers orders, a JSON object a line; what a process of ours does."""
    runner = Ours(setting)
    print(json.dumps({"parameters": runner.parameters}), flush=True)
    for line in sys.stdin:
        print(json.dumps(runner.run(json.loads(line))), flush=True)


def ways(options) -> dict:
    size = SIZES[options.size]

    def ours(way, weights, num_threads):
        setting = json.dumps({"size": size, "way": way, "weights": weights})
        # oneDNN's kernels are slower on products of few rows.
        return lambda: Process(
            [sys.executable, __file__, "--serve", setting],
            TF_NUM_INTRAOP_THREADS=str(num_threads),
            TF_ENABLE_ONEDNN_OPTS=str(int(options.onednn)),
        )

    def peer(way, precision, num_threads):
        setting = {"size": size, "way": way, "precision": precision, "num_threads": num_threads}
        script = str(ROOT / "benchmarks" / "torch_generation.py")
        return lambda: Process([options.torch_python, script, json.dumps(setting)])

    found = {}
    counts = {n: f"{n} thread{'s' * (n > 1)}" for n in range(1, options.threads + 1)}
    for weights, way in itertools.product(options.weights, ("XLA", "portable")):
        stored = "" if weights == "float32" else f", {weights}"
        for n, count in counts.items():
            found[f"Stepwise {way}{stored}, {count}"] = ours(way, weights, n)
    if options.torch_python:
        for precision in ("float32", "bfloat16"):
            for n, count in counts.items():
                found[f"Hugging Face, {precision}, {count}"] = peer("hf", precision, n)
        found["without cache (nanoGPT), float32"] = peer("plain", "float32", options.threads)
    wanted = options.ways or [""]
    return {name: way for name, way in found.items() if any(word in name for word in wanted)}


BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of a weight


def weights_of(name: str) -> str:
    """How a way of ours stores its weights; the peers are held to the limit of float32."""
    found = (kind for kind in BYTES if f", {kind}" in name and "Stepwise" in name)
    return next(found, "float32")


def rates_of(started: dict, parameters: int, kinds: Iterable[str]) -> dict:
    """Bytes a second by kind of weights, and FLOP/s, the most that a process of any way reaches."""
    rates: dict = {"bytes_per_second": {}}
    for kind in kinds:
        num_bytes = BYTES[kind] * parameters
        found = {}
        for name, process in started.items():
            if "Hugging Face, float32" in name or "Stepwise XLA, " in name:
                answer = process.ask(do="limits", num_bytes=num_bytes)
                found[name] = answer["bytes_per_second"]
                rates["flops"] = max(rates.get("flops", 0.0), answer.get("flops", 0.0))
        rates["bytes_per_second"][kind] = max(found.values())
        read = ", ".join(f"{rate / 1e9:.1f} by {name}" for name, rate in found.items())
        print(f"{num_bytes / 1e6:.0f} MB of {kind}, GB/s of a matrix times a vector: {read}")
    print(f"product of 2,048 x 2,048: {rates['flops'] / 1e9:.0f} GFLOP/s")
    return rates


def limit_of(size: dict, parameters: int, batch: int, num_tokens: int, rates: dict, kind) -> float:
    """Seconds a step takes at least, by memory or arithmetic; embeddings are looked up."""
    slots = PROMPT + num_tokens / 2
    weights = parameters - size["context"] * size["width"]
    cache = 2 * size["num_layers"] * size["width"] * slots * batch
    moving = (BYTES[kind] * weights + 4 * cache) / rates["bytes_per_second"][kind]
    return max(moving, batch * 2 * (weights + cache / batch) / rates["flops"])


def measure(options) -> None:
    size, new = SIZES[options.size], options.new or NEW[options.size]
    started = {}
    for name, way in ways(options).items():
        try:
            started[name] = way()
        except (RuntimeError, OSError) as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    parameters = next(p.first["parameters"] for n, p in started.items() if "Stepwise" in n)
    peers = [name for name in started if "Hugging Face" in name]
    rates = rates_of(started, parameters, options.weights) if peers else None
    for batch in options.batch:
        for mode in options.modes:
            top_k, top_p = (50, 1.0) if mode == "top_k" else (0, 0.95 if mode == "top_p" else 1.0)
            order = {
                "do": "write",
                "batch": batch,
                "prompt": PROMPT,
                "num_tokens": new,
                "greedy": mode == "greedy",
                "top_k": top_k,
                "top_p": top_p,
            }
            first = {name: process.ask(**order)["seconds"] for name, process in started.items()}
            steps: dict[str, list[float]] = {name: [] for name in started}
            for _ in range(options.blocks):
                for name, process in started.items():
                    answer = process.ask(**order)
                    if answer["num_tokens"] != new:
                        raise RuntimeError(f"{name} wrote {answer['num_tokens']} tokens of {new}")
                    steps[name].append(1000 * answer["seconds"] / new)
            report(options, batch, mode, steps, first, peers, rates, parameters, new, size)
    for process in started.values():
        process.close()


def report(options, batch, mode, steps, first, peers, rates, parameters, new, size) -> None:
    medians = {name: float(np.median(found)) for name, found in steps.items()}
    best = min((medians[name] for name in peers), default=None)
    what = f"{options.size}, batch {batch}, {mode}"
    columns = "ms a step | quartiles | tokens a second | over Hugging Face | of the limit"
    print(f"\n| {what} | {columns} | first call, s |")
    print("|---|---|---|---|---|---|---|")
    for name, found in steps.items():
        low, high = np.percentile(found, [25, 75])
        over = f"{best / medians[name]:.2f}" if best else ""
        part = ""
        if rates:
            least = limit_of(size, parameters, batch, new, rates, weights_of(name))
            part = f"{1000 * least / medians[name]:.2f}"
        print(
            f"| {name} | {medians[name]:.2f} | {low:.2f} to {high:.2f} | "
            f"{1000 * batch / medians[name]:,.0f} | {over} | {part} | {first[name]:.1f} |",
            flush=True,
        )
    for way in ("Stepwise XLA", "Stepwise portable", "Hugging Face"):
        names = [name for name in medians if way in name]
        if names:
            name = min(names, key=medians.__getitem__)
            over = f", {best / medians[name]:.2f} times Hugging Face" if best else ""
            print(f"Best: {name}, {medians[name]:.3f} ms{over}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--torch-python", help="the Python of an environment with transformers")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=("greedy", "sample", "top_k", "top_p"),
        default=["greedy", "sample"],
        help="sample draws from all, top_k from the likeliest 50, top_p from 0.95",
    )
    parser.add_argument("--new", type=int, help="tokens of a call; by default as the size says")
    parser.add_argument("--blocks", type=int, default=5, help="calls of each way")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--onednn", action="store_true", help="TensorFlow's oneDNN kernels")
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=("float32", "bfloat16", "int8"),
        default=["float32"],
        help="how ours are stored",
    )
    parser.add_argument("--ways", nargs="+", help="only those with one of these words in the name")
    options = parser.parse_args()
    if options.serve:
        serve(json.loads(options.serve))
        return
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{p} {version(p)}" for p in ("tensorflow", "keras", "numpy")))
    if options.torch_python:
        code = "from importlib.metadata import version as v\n"
        code += "print('torch', v('torch') + ', transformers', v('transformers'))"
        print(subprocess.check_output([options.torch_python, "-c", code], text=True).strip())
    print(f"command: python benchmarks/generation.py {' '.join(sys.argv[1:])}", flush=True)
    measure(options)


if __name__ == "__main__":
    main()
