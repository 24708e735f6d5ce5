"""Training a small GPT beside PyTorch and Keras: python benchmarks/language_model.py

The network of nanoGPT's setting for a CPU (4 layers, 4 heads, width 128, context 64, batch 12, no
dropout) on the characters of Tiny Shakespeare, or with --size large 6 layers of 384 over 256
characters. PyTorch runs in benchmarks/torch_language_model.py by the Python of --torch-python, as
torch is none of our requirements; it gets the very ids and windows of ours. Each way to train is a
process of its own with its own threads, and blocks of updates take turns.

--part speed: characters a second, medians and quartiles of the blocks, ratio to the fastest
PyTorch. --part loss: PyTorch's AdamW for --updates updates, then the same network by the recipe
`shakespeare_nanogpt` until it is as good, and what it reaches in PyTorch's time; losses are those
of the same windows of the last tenth of the text. Prints machine, versions, command, Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.processes import Process  # noqa: E402

SIZES = {
    "small": {"num_layers": 4, "num_heads": 4, "width": 128, "context": 64, "batch": 12},
    "large": {"num_layers": 6, "num_heads": 6, "width": 384, "context": 256, "batch": 8},
}
WINDOWS = 512  # of the validation text, for every loss
DEFAULT = ""  # TensorFlow's own choice of threads


def our_config(size: dict, network: dict | None = None, **settings):
    """The recipe at a size; `network` changes settings of its model."""
    from model.config import TransformerDecoderConfig
    from training.recipes import recipe

    config = recipe("shakespeare_nanogpt")
    model = TransformerDecoderConfig(
        num_layers=size["num_layers"],
        num_heads=size["num_heads"],
        width=size["width"],
        inner_width=4 * size["width"],
        context_length=size["context"],
        positions="learned",
        bias=False,
        initialization="gpt2",
        dropout=0.0,
    )
    model = replace(model, **(network or {}))
    return replace(config, **{"model": model, "batch_size": size["batch"]} | settings)


class Ours:
    """The recipe's own stage and compiled updates, as `fit` takes them."""

    def __init__(self, setting: dict, folder: Path):
        from training.config import OptimizerConfig
        from training.datasets import load_dataset
        from training.recipes import recipe
        from training.run import begin_run
        from training.stages import build_stage
        from training.strategies.compiled import compile_updates

        size = SIZES[setting["size"]] | setting.get("sizes", {})
        settings = {"max_updates": setting["updates"], "precision": setting["precision"]}
        settings |= setting.get("settings", {})
        if setting["strategy"] != "muon":
            settings["strategy"] = setting["strategy"]
            settings["optimizer"] = OptimizerConfig(
                peak_learning_rate=1e-3, schedule="cosine(end=0.1, warmup=100)", weight_decay=0.1
            )
        if "rate" in setting:
            optimizer = recipe("shakespeare_nanogpt").optimizer
            settings["optimizer"] = replace(optimizer, peak_learning_rate=setting["rate"])
        config = our_config(size, setting.get("network"), **settings)
        self.data = load_dataset(config.dataset, config.task)
        self.learner = begin_run(config, folder / "run", self.data)
        self.stage = build_stage(config, 0, self.learner)
        self.take = compile_updates(self.stage.rule)
        self.per_call, self.step = setting["per_call"], 0
        self.windows = windows_of(self.learner, self.data, size)

    def updates(self, count: int) -> None:
        from training.stacking import stack

        end = self.step + count
        while self.step < end:
            several = min(self.per_call, end - self.step)
            batches = [self.stage.batches.at(i) for i in range(self.step, self.step + several)]
            shapes = [batch["tokens"].shape for batch in batches]
            alike = next((i for i, s in enumerate(shapes) if s != shapes[0]), several)
            said = self.take(stack(batches[:alike]))
            self.step += alike
        float(said["loss_sum"][-1])

    def evaluate(self) -> float:
        import tensorflow as tf

        from training.losses import language_model_loss

        if not hasattr(self, "_sums"):
            self._sums = tf.function(
                lambda tokens, targets: language_model_loss(
                    {"targets": targets}, self.learner.model(tokens, training=False)
                )
            )
        total = count = 0.0
        for start in range(0, WINDOWS, 64):
            sums = self._sums(*(part[start : start + 64] for part in self.windows))
            total, count = total + float(sums["loss_sum"]), count + float(sums["num_targets"])
        return total / count


class KerasFit(Ours):
    """The same network by `model.fit(jit_compile=True, steps_per_execution=16)`."""

    def __init__(self, setting: dict, folder: Path):
        import keras

        super().__init__(setting | {"strategy": "adamw"}, folder)
        size, train = SIZES[setting["size"]], self.learner.encoded(self.data.train)
        ids, rng = np.concatenate(train), np.random.default_rng(0)
        starts = rng.integers(len(ids) - size["context"] - 1, size=(4_096, 1))
        rows = ids[starts + np.arange(size["context"] + 1)]
        self.x, self.y, self.batch = rows[:, :-1], rows[:, 1:], size["batch"]
        self.learner.model.compile(
            optimizer=keras.optimizers.AdamW(1e-3, weight_decay=0.1, global_clipnorm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True,
            steps_per_execution=16,
        )

    def updates(self, count: int) -> None:
        rows = count * self.batch
        x, y = (np.resize(part, (rows, part.shape[1])) for part in (self.x, self.y))
        self.learner.model.fit(x, y, batch_size=self.batch, epochs=1, verbose=0, shuffle=False)


def windows_of(learner, data, size: dict) -> tuple[np.ndarray, np.ndarray]:
    """`WINDOWS` windows spread evenly over the validation text: tokens and targets, int32."""
    ids = np.concatenate(learner.encoded(data.validation))
    starts = np.linspace(0, len(ids) - size["context"] - 1, WINDOWS).astype(int)
    rows = ids[starts[:, None] + np.arange(size["context"] + 1)].astype(np.int32)
    return rows[:, :-1], rows[:, 1:]


def serve(setting: dict) -> None:
    """Answers orders, a JSON object a line; what a process of ours does."""
    with tempfile.TemporaryDirectory() as folder:
        make = KerasFit if setting["strategy"] == "fit" else Ours
        runner = make(setting, Path(folder))
        print("{}", flush=True)
        for line in sys.stdin:
            order, answer = json.loads(line), {}
            if order["do"] == "updates":
                since = time.perf_counter()
                runner.updates(order["count"])
                answer["seconds"] = time.perf_counter() - since
            else:
                answer["loss"] = runner.evaluate()
                answer["weights"] = runner.learner.model.count_params()
            print(json.dumps(answer), flush=True)


def ours(size: str, precision: str, *, strategy: str, per_call: int, threads: str, updates: int):
    setting = {"size": size, "precision": precision, "strategy": strategy}
    setting |= {"per_call": per_call, "updates": updates}
    return Process(
        [sys.executable, __file__, "--serve", json.dumps(setting)], **threads_of(threads)
    )


def threads_of(threads: str) -> dict[str, str]:
    """TensorFlow's variables for 1x2: one thread in an operation, two operations at once."""
    if not threads:
        return {}
    inside, beside = threads.split("x")
    return {"TF_NUM_INTRAOP_THREADS": inside, "TF_NUM_INTEROP_THREADS": beside}


def torchs(python: str, size: str, data: Path, *, precision: str, compiled: bool, updates: int):
    chosen = SIZES[size]
    with np.load(data) as arrays:
        vocabulary = int(arrays["vocabulary_size"])
    setting = {
        "network": {k: chosen[k] for k in ("num_layers", "num_heads", "width", "context")}
        | {"vocabulary_size": vocabulary},
        "seed": 0,
        "num_threads": os.cpu_count(),
        "data": str(data),
        "rate": 1e-3,
        "compile": compiled,
        "precision": precision,
        "updates": updates,
        "batch_size": chosen["batch"],
    }
    script = str(ROOT / "benchmarks" / "torch_language_model.py")
    return Process([python, script, json.dumps(setting)])


def write_data(size: str, path: Path) -> None:
    """The ids that PyTorch reads: our tokenizer's, begin and end of documents included."""
    from training.datasets import load_dataset
    from training.language_model import LanguageModel

    config = our_config(SIZES[size])
    data = load_dataset(config.dataset, config.task)
    learner = LanguageModel.create(config, data)
    tokens, targets = windows_of(learner, data, SIZES[size])
    train = np.concatenate(learner.encoded(data.train))
    vocabulary_size = learner.tokenizer.vocabulary_size
    np.savez(path, train=train, tokens=tokens, targets=targets, vocabulary_size=vocabulary_size)


def speed(options, data: Path) -> None:
    size, many = options.size, 10_000
    ways = {
        "PyTorch eager, float32": lambda: peer("float32", False),
        "PyTorch eager, bfloat16": lambda: peer("bfloat16", False),
        "PyTorch compiled, float32": lambda: peer("float32", True),
        "PyTorch compiled, bfloat16": lambda: peer("bfloat16", True),
        "Keras fit, XLA, 16 steps a call": lambda: ours(
            size, "float32", strategy="fit", per_call=16, threads=DEFAULT, updates=many
        ),
    }

    def peer(precision, compiled):
        return torchs(
            options.torch_python,
            size,
            data,
            precision=precision,
            compiled=compiled,
            updates=many,
        )

    for precision in ("float32", "bfloat16_products"):
        for threads in (DEFAULT, f"1x{os.cpu_count()}"):
            ways[f"Stepwise, {precision}, threads {threads or 'default'}"] = (
                lambda precision=precision, threads=threads: ours(
                    size, precision, strategy="adamw", per_call=16, threads=threads, updates=many
                )
            )
    if not options.torch_python:
        ways = {name: way for name, way in ways.items() if "PyTorch" not in name}
    started, rates = {}, {}
    for name, way in ways.items():
        try:
            started[name] = way()
            started[name].ask(do="updates", count=32)  # traces and compiles
        except RuntimeError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            started.pop(name, None)
    for _ in range(options.blocks):
        for name, process in started.items():
            seconds = process.ask(do="updates", count=options.per_block)["seconds"]
            characters = options.per_block * SIZES[size]["batch"] * SIZES[size]["context"]
            rates.setdefault(name, []).append(characters / seconds)
    for process in started.values():
        process.close()
    best = max((np.median(r) for n, r in rates.items() if "PyTorch" in n), default=None)
    keras_fit = np.median(rates["Keras fit, XLA, 16 steps a call"])
    print(f"\n| {size} | characters a second | quartiles | over best PyTorch | over Keras fit |")
    print("|---|---|---|---|---|")
    for name, found in rates.items():
        low, middle, high = np.percentile(found, [25, 50, 75])
        over = f"{middle / best:.2f}" if best else ""
        print(
            f"| {name} | {middle:,.0f} | {low:,.0f} to {high:,.0f} | {over} | "
            f"{middle / keras_fit:.2f} |"
        )


def loss(options, data: Path) -> None:
    peer = torchs(
        options.torch_python,
        "small",
        data,
        precision=options.torch_precision,
        compiled=options.compile,
        updates=options.updates,
    )
    if options.compile:
        peer.ask(do="compile")
    seconds = peer.ask(do="updates", count=options.updates)["seconds"]
    goal = peer.ask(do="evaluate")["loss"]
    peer.close()
    print("\n| run | updates | seconds of training | loss |\n|---|---|---|---|")
    how = f"{'compiled' if options.compile else 'eager'}, {options.torch_precision}"
    print(f"| PyTorch, AdamW, {how} | {options.updates} | {seconds:.1f} | {goal:.3f} |")
    for share in options.shares:
        # Of the same seconds: first how many updates they hold, then a schedule of that length.
        trial = ours(
            "small", options.precision, strategy="muon", per_call=16, threads=options.threads,
            updates=10_000,
        )  # fmt: skip
        trial.ask(do="updates", count=64)
        cost = trial.ask(do="updates", count=160)["seconds"] / 160
        trial.close()
        count = max(int(share * seconds / cost), 32)
        run = ours(
            "small", options.precision, strategy="muon", per_call=16, threads=options.threads,
            updates=count,
        )  # fmt: skip
        spent = run.ask(do="updates", count=count)["seconds"]
        found = run.ask(do="evaluate")["loss"]
        run.close()
        print(f"| Stepwise, Muon, {share:.2f} of the time | {count} | {spent:.1f} | {found:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--torch-python", help="the Python of an environment with torch and numpy")
    parser.add_argument("--part", choices=("speed", "loss"), default="speed")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--per-block", type=int, default=48, help="updates in a block")
    parser.add_argument("--updates", type=int, default=2_000, help="of PyTorch, for --part loss")
    parser.add_argument("--compile", action="store_true", help="PyTorch's loss run compiled")
    parser.add_argument(
        "--torch-precision", choices=("float32", "bfloat16"), default="float32", help="of that run"
    )
    parser.add_argument("--shares", type=float, nargs="+", default=[0.33, 1.0])
    parser.add_argument("--precision", default="bfloat16_products")
    parser.add_argument("--threads", default=f"1x{os.cpu_count()}")
    options = parser.parse_args()
    if options.serve:
        serve(json.loads(options.serve))
        return
    if options.part == "loss" and not options.torch_python:
        parser.error("--part loss needs --torch-python, the Python of an environment with torch")
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{p} {version(p)}" for p in ("tensorflow", "keras", "numpy")))
    print(f"command: python benchmarks/language_model.py {' '.join(sys.argv[1:])}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        write_data(options.size if options.part == "speed" else "small", data)
        (speed if options.part == "speed" else loss)(options, data)


if __name__ == "__main__":
    main()
