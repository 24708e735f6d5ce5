"""The peers of benchmarks/generation.py in plain PyTorch and transformers, driven by lines.

Needs torch, transformers and numpy, nothing of this repository. Reads one JSON object a line from
standard input and answers each with one. Random weights. Axes: B batch, T tokens, V vocabulary.
"""

import json
import sys
import time

import torch
from torch_language_model import Network
from transformers import GPT2Config, GPT2LMHeadModel


def hugging_face(size, precision):
    """`GPT2LMHeadModel.generate` with its key/value cache; all other settings are its own."""
    config = GPT2Config(
        vocab_size=size["vocabulary_size"],
        n_positions=size["context"],
        n_embd=size["width"],
        n_layer=size["num_layers"],
        n_head=size["num_heads"],
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval().to(precision)

    def write(tokens, num_tokens, settings):
        return model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=num_tokens,
            do_sample=not settings["greedy"],
            top_k=settings["top_k"],
            top_p=settings["top_p"],
        )

    return write


def without_cache(size, precision):
    """As nanoGPT's `generate`: the whole text again for each token."""
    names = ("num_layers", "num_heads", "width", "context")
    network = Network(size["vocabulary_size"], *(size[name] for name in names)).to(precision)

    def write(tokens, num_tokens, settings):
        for _ in range(num_tokens):
            x = network.embedding(tokens) + network.positions.weight[: tokens.shape[1]]
            for block in network.blocks:
                x = block(x)
            logits = network.final_norm(x[:, -1:])[:, 0] @ network.embedding.weight.T
            if settings["greedy"]:
                following = logits.argmax(dim=-1, keepdim=True)
            else:
                if settings["top_k"]:
                    least = torch.topk(logits, settings["top_k"]).values[:, -1:]
                    logits = logits.masked_fill(logits < least, -torch.inf)
                following = torch.multinomial(torch.softmax(logits.float(), -1), num_samples=1)
            tokens = torch.cat([tokens, following], dim=1)
        return tokens

    return write


def limits(num_bytes):
    """Bytes a second of a matrix times a vector of so many bytes, FLOP/s of a large product."""
    matrix, vector = torch.randn(num_bytes // 4 // 768, 768), torch.randn(768)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return {
        "bytes_per_second": num_bytes / fastest(lambda: matrix @ vector),
        "flops": 2 * 2048**3 / fastest(lambda: a @ b),
    }


def fastest(run):
    times = []
    for _ in range(10):
        since = time.perf_counter()
        run()
        times.append(time.perf_counter() - since)
    return min(times)


def main():
    setting = json.loads(sys.argv[1])
    torch.set_num_threads(setting["num_threads"])
    torch.manual_seed(0)
    make = hugging_face if setting["way"] == "hf" else without_cache
    with torch.inference_mode():
        write = make(setting["size"], getattr(torch, setting["precision"]))
        print("{}", flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "limits":
                print(json.dumps(limits(order["num_bytes"])), flush=True)
                continue
            shape = (order["batch"], order["prompt"])
            tokens = torch.randint(4, setting["size"]["vocabulary_size"], shape)
            since = time.perf_counter()
            written = write(tokens, order["num_tokens"], order)
            seconds = time.perf_counter() - since
            num_written = written.shape[1] - order["prompt"]
            print(json.dumps({"seconds": seconds, "num_tokens": num_written}), flush=True)


if __name__ == "__main__":
    main()
