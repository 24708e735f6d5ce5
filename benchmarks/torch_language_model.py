"""The peer of benchmarks/language_model.py: its network and loop in plain PyTorch, driven by lines.

Needs torch and numpy, nothing of this repository. Reads one JSON object a line from standard input
and answers each with one: {"do": "updates", "count": N}, {"do": "evaluate"}, {"do": "weights",
"path": FILE}. Axes: B batch, T tokens, D width, H heads.
"""

import json
import math
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm residual block as nanoGPT has it, without biases and dropout."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output_projection = nn.Linear(width, width, bias=False)
        self.inner_norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        qkv = self.qkv(self.attention_norm(x)).split(D, dim=2)
        q, k, v = (y.view(B, T, self.num_heads, -1).transpose(1, 2) for y in qkv)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output_projection(y.transpose(1, 2).reshape(B, T, D))
        return x + self.contract(functional.gelu(self.expand(self.inner_norm(x))))


class Network(nn.Module):
    """Decoder with learned positions and a tied head; gives the summed loss, padding 0 left out."""

    def __init__(self, vocabulary_size, num_layers, num_heads, width, context):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, num_heads) for _ in range(num_layers)])
        self.final_norm = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                is_last = name.endswith(("output_projection.weight", "contract.weight"))
                nn.init.normal_(weight, 0.0, 0.02 / math.sqrt(2 * num_layers if is_last else 1))

    def forward(self, tokens, targets):
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.final_norm(x) @ self.embedding.weight.T
        return functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum"
        )


class Training:
    """nanoGPT's setting: AdamW (0.9, 0.99), decay of matrices 0.1, clip 1, warm-up, cosine."""

    def __init__(self, setting):
        torch.manual_seed(setting["seed"])
        torch.set_num_threads(setting["num_threads"])
        sizes = setting["network"]
        with np.load(setting["data"]) as data:
            self.train = torch.from_numpy(data["train"].astype(np.int64))
            self.windows = torch.from_numpy(data["tokens"].astype(np.int64))
            self.targets = torch.from_numpy(data["targets"].astype(np.int64))
        self.network = Network(**sizes)
        matrices = [w for w in self.network.parameters() if w.dim() >= 2]
        gains = [w for w in self.network.parameters() if w.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
            lr=setting["rate"],
            betas=(0.9, 0.99),
            fused=True,
        )
        self.loss = torch.compile(self.network) if setting["compile"] else self.network
        self.is_bfloat16 = setting["precision"] == "bfloat16"
        self.rate, self.updates, self.warmup = setting["rate"], setting["updates"], 100
        self.batch_size, self.context = setting["batch_size"], sizes["context"]
        self.generator = torch.Generator().manual_seed(setting["seed"])
        self.done = 0

    def batch(self):
        spare = len(self.train) - self.context
        start = torch.randint(spare, (self.batch_size, 1), generator=self.generator)
        rows = self.train[start + torch.arange(self.context + 1)]
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def rate_now(self):
        if self.done < self.warmup:
            return self.rate * (self.done + 1) / self.warmup
        share = min((self.done - self.warmup) / max(self.updates - self.warmup, 1), 1.0)
        return self.rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))

    def update(self):
        tokens, targets = self.batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_now()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bfloat16):
            loss = self.loss(tokens, targets) / targets.numel()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def compile(self):
        """Its minute is not training: gradients of a batch that is drawn again, thrown away."""
        before = self.generator.get_state()
        tokens, targets = self.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bfloat16):
            self.loss(tokens, targets).backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.generator.set_state(before)

    def evaluate(self):
        """Nats a target over all windows, in float32."""
        with torch.no_grad():
            parts = zip(self.windows.split(64), self.targets.split(64), strict=True)
            total = sum(float(self.network(*part)) for part in parts)
        return total / int((self.targets != 0).sum())

    def weights(self, path):
        """Every matrix as (inputs, outputs), embeddings as (rows, width)."""
        arrays = {}
        for name, weight in self.network.named_parameters():
            is_linear = weight.dim() == 2 and "embedding" not in name and "positions" not in name
            arrays[name] = (weight.T if is_linear else weight).detach().numpy()
        np.savez(path, **arrays)


def main():
    training = Training(json.loads(sys.argv[1]))
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = {}
        if order["do"] == "updates":
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(order["count"]):
                training.update()
            answer["seconds"] = time.perf_counter() - wall
            answer["processor_seconds"] = time.process_time() - processor
        elif order["do"] == "compile":
            training.compile()
        elif order["do"] == "evaluate":
            answer["loss"] = training.evaluate()
        elif order["do"] == "weights":
            training.weights(order["path"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
