"""Time of the server's JSON beside orjson's own, in one process: `python benchmarks/json_codec.py`.

Two bodies: 1,000 rows of texts, and 1,000 x 128 floats. In: text to tensors, every type and shape
checked, beside `orjson.loads` of the same text. Out: tensors to text, beside `orjson.dumps` of the
same values; tensors hold texts as bytes, which orjson cannot write, so that it is timed with and
without decoding them. Each pair is timed in turns; the median of the ratios counts.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import orjson
from tensorflow.core.framework import types_pb2

from serving import codec, json_text

ROUNDS = 41
WORDS = "the film is a slow and quiet story about two brothers, well acted, naïve at times".split()


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    ratio = statistics.median(a / b for a, b in pairs)
    mine, orjsons = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"| {name} | {mine:.2f} | {orjsons:.2f} | {ratio:.2f} |")


def read(body: bytes, dtype: int) -> codec.Arrays:
    return codec.inputs_from_json(json_text.parse(body, max_depth=64), {"x": dtype})[0]


def write(array: np.ndarray) -> bytes:
    return codec.outputs_to_json({"y": array}, row_format=True)


def main() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(10, 60))) for _ in range(1000)]
    floats = rng.normal(size=(1000, 128)).astype(np.float32)
    text_body = orjson.dumps({"instances": texts})
    float_body = orjson.dumps({"instances": floats}, option=orjson.OPT_SERIALIZE_NUMPY)
    encoded = np.array([text.encode() for text in texts], object)

    print(
        f"Python {platform.python_version()}, orjson {orjson.__version__}, numpy {np.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} CPUs\n"
    )
    print("| body | ours, ms | orjson, ms | ratio |\n|---|---|---|---|")
    compare(
        f"1,000 texts in ({len(text_body) / 1e3:.0f} kB)",
        lambda: read(text_body, types_pb2.DT_STRING),
        lambda: orjson.loads(text_body),
    )
    compare(
        "1,000 texts out, orjson from str",
        lambda: write(encoded),
        lambda: orjson.dumps({"predictions": texts}),
    )
    compare(
        "1,000 texts out, orjson from bytes",
        lambda: write(encoded),
        lambda: orjson.dumps({"predictions": [text.decode() for text in encoded.tolist()]}),
    )
    compare(
        "1,000 texts in and out, orjson to str and from it",
        lambda: (read(text_body, types_pb2.DT_STRING), write(encoded)),
        lambda: orjson.dumps(orjson.loads(text_body)),
    )
    compare(
        f"1,000 x 128 floats in ({len(float_body) / 1e3:.0f} kB)",
        lambda: read(float_body, types_pb2.DT_FLOAT),
        lambda: orjson.loads(float_body),
    )
    compare(
        "1,000 x 128 floats out",
        lambda: write(floats),
        lambda: orjson.dumps({"predictions": floats}, option=orjson.OPT_SERIALIZE_NUMPY),
    )
    compare(
        "1,000 x 128 floats in and out",
        lambda: (read(float_body, types_pb2.DT_FLOAT), write(floats)),
        lambda: (
            orjson.loads(float_body),
            orjson.dumps({"predictions": floats}, option=orjson.OPT_SERIALIZE_NUMPY),
        ),
    )


if __name__ == "__main__":
    main()
