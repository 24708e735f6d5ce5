"""All proofs and planted faults, and the tables that the documents show of them.

`python tests/training/strategies/every_proof.py` (or `make proofs`) measures everything and writes
docs/strategies.md anew.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # when run as a program

from tests.model import adaptation_proofs  # noqa: E402
from tests.proofs import AT_MOST, KINDS, Mutant, Proof  # noqa: E402
from tests.training.strategies import (  # noqa: E402
    proofs_accumulation,
    proofs_across,
    proofs_alike,
    proofs_devices,
    proofs_optimizers,
    proofs_precision,
    proofs_privacy,
    proofs_regularisers,
    proofs_sharpness,
    proofs_stages,
    proofs_truncation,
)
from tests.training.strategies.composites import COMPOSITES  # noqa: E402
from training.strategies import build  # noqa: E402
from training.strategies.catalogue import PARTS, resolve  # noqa: E402

MODULES = (
    proofs_optimizers,
    proofs_accumulation,
    proofs_sharpness,
    proofs_truncation,
    proofs_privacy,
    proofs_precision,
    proofs_regularisers,
    proofs_across,
    proofs_alike,
    proofs_devices,
    proofs_stages,
    adaptation_proofs,
)

NO_ROW = 0
ROWS: dict[int, str] = {
    1: "SGD, momentum, Nesterov",
    2: "RMSProp, Adam, AdamW",
    3: "Lion, Adafactor, Lamb, Muon",
    4: "Gradient accumulation",
    5: "Lookahead",
    6: "EMA / Polyak-Ruppert, SWA",
    7: "Schedule-Free",
    8: "SAM",
    9: "Extragradient",
    10: "Local SGD / FedAvg",
    11: "DiLoCo",
    12: "Reptile, MAML",
    13: "Truncated back-propagation through time",
    14: "Schedules",
    15: "Clipping",
    16: "DP-SGD",
    17: "Gradient checkpointing",
    18: "Mixed precision and loss scaling",
    19: "XLA on or off, updates per call",
    20: "Exact resume",
    21: "ULMFiT: gradual unfreezing, discriminative rates",
    22: "Stages: adaptation, curriculum, stacking, sequence-length warm-up",
    23: "LoRA, ReLoRA",
    24: "Distillation",
    25: "DPO",
    26: "Dynamic evaluation",
    27: "TENT",
    28: "Test-time training, also on nearest neighbours",
    29: "Neural cache, kNN-LM",
    30: "Decoding in several steps",
    31: "Privacy of an export",
    NO_ROW: "Regularisers, which the catalogue does not number",
}

# (row, what of it has no proof here, why)
LEFT_OUT = [
    (12, "MAML", "not built: the gradient through the inner updates is a cost that Reptile saves"),
    (22, "stacking and growth", "not built: no network here grows while it is trained"),
    (22, "curriculum", "no strategy of its own: a stage with a data set of its own is one"),
    (
        22,
        "sequence-length and batch-size warm-up",
        "schedules (row 14) of max_tokens and batch_size; tests/training/test_stages.py follows "
        "the lengths of a run, test_pipeline.py the sizes of its batches",
    ),
    (
        23,
        "ReLoRA",
        "no strategy of its own: stages of LoRA one after the other, each merged as row 23 says",
    ),
    (
        25,
        "DPO",
        "not built: it wants pairs of a better and a worse answer, and no data set has any",
    ),
    (29, "neural cache and kNN-LM", "not built: they remember and do not optimise anything"),
    (
        30,
        "beam search and other decoding in several steps",
        "part of generation, where no weight moves: tests/model/test_generation.py",
    ),
    (
        31,
        "no optimizer state and no path of the machine in an export",
        "a property of files: tests/training/test_export.py looks for both in every export",
    ),
]

_PRECISION = "a precision of the network and no rule of its own"
_EXECUTION = "a way to execute any rule, equal to the other way; that is all there is to claim"
_AT_PREDICTION = "stands around a network that is trained already and holds no strategy"
_STATELESS = "has no state of its own"
# strategy -> kinds of claim that it has none of -> why
NOT_APPLICABLE: dict[str, dict[str, str]] = {
    "clip_norm": {"resume": _STATELESS},
    "mixed_float16": {
        "golden": "float32 is what it is held against",
        "resume": "the weights are float32, and its scale is the state of loss_scale",
    },
    "mixed_bfloat16": {
        "golden": "float32 is what it is held against",
        "resume": f"{_STATELESS}: the weights are float32",
        "composed": _PRECISION,
    },
    "recompute": {"golden": "the same gradient without it is the claim", "resume": _STATELESS},
    "xla": {
        "golden": _EXECUTION,
        "differs": _EXECUTION,
        "resume": _STATELESS,
        "composed": "every network and strategy may be compiled; the claims name some",
    },
    "calls": {
        "golden": _EXECUTION,
        "differs": _EXECUTION,
        "resume": _STATELESS,
        "composed": "test_composition.py takes the updates of every composite three a call",
    },
    "checkpoints": {
        "identity": "resuming is the identity",
        "golden": "the uninterrupted run is what it is held against",
        "differs": "a run that was stopped must not differ",
    },
    "stages": {
        "golden": "a hand-over of weights, which are equal or are not",
        "resume": "tests/training/test_stages.py stops whole runs in their stages and between them",
        "composed": "a stage has any strategy; test_stages.py runs stages with different ones",
    },
    "dynamic_evaluation": {"composed": _AT_PREDICTION},
    "tent": {"composed": _AT_PREDICTION},
    "test_time_training": {"composed": _AT_PREDICTION},
    "neighbour_training": {"composed": _AT_PREDICTION},
}

PROOFS: list[Proof] = sorted(
    (proof for module in MODULES for proof in module.PROOFS),
    key=lambda proof: (proof.row == NO_ROW, proof.row),
)
MUTANTS: list[Mutant] = [mutant for module in MODULES for mutant in module.MUTANTS]
STRATEGIES = list(dict.fromkeys(proof.strategy for proof in PROOFS))

HEADER = """# Strategies and their proofs

Written by `make proofs` from the tests; do not edit. Every claim is measured on small problems
(float64 unless it says otherwise) and held against its tolerance; every planted fault is a wrong
version of a strategy, kept in the tests, that a claim has to notice.
"""
MATRIX = """## What is proven of each

How many claims there are of each kind, and the worst value observed: the largest where a claim
bounds a number from above, the smallest (≥) where from below. *identity*: equal to something
simpler where it has to be; *golden*: the numbers of a closed form or a published source; *differs*:
not equal where it must not be; *resume*: stopped and gone on, or undone, bit for bit; *composed*:
right around or inside other parts. The last column names the parts with which it is proven
together, by these claims or in a composite that test_composition.py tries. Why a cell is empty
stands below.
"""


def proof_of(mutant: Mutant) -> Proof:
    """The claim that `mutant` breaks."""
    (proof,) = [
        proof
        for proof in PROOFS
        if (proof.strategy, proof.claim) == (mutant.strategy, mutant.claim_it_breaks)
    ]
    return proof


# Tables -------------------------------------------------------------------------------------------


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(columns: str, rows: Iterable[Iterable[str]]) -> list[str]:
    names = columns.split(", ")
    return [line(names), "|" + "---|" * len(names), *map(line, rows)]


def row_of(number: int) -> str:
    return str(number) if number else "–"


def claim_cells() -> list[tuple[str, ...]]:
    """Each claim's cells, without what was observed."""
    return [
        (row_of(p.row), p.strategy, p.kind, p.claim, f"{p.holds} {p.tolerance:.2g}") for p in PROOFS
    ]


def fault_cells() -> list[tuple[str, ...]]:
    """Each planted fault's cells, without whether it was noticed."""
    return [(m.strategy, m.name, m.claim_it_breaks) for m in MUTANTS]


def part_cells() -> list[tuple[str, ...]]:
    return [
        (
            f"`{part.name}`",
            part.summary,
            part.formula,
            part.source,
            ", ".join(f"{name}={n.default:g}" for name, n in part.numbers.items()),
        )
        for part in PARTS.values()
    ]


def left_out_cells() -> list[tuple[str, ...]]:
    return [(str(row), what, why) for row, what, why in LEFT_OUT]


def not_applicable_cells() -> list[tuple[str, ...]]:
    return [
        (strategy, kind, why)
        for strategy, kinds in NOT_APPLICABLE.items()
        for kind, why in kinds.items()
    ]


def row_cells() -> list[tuple[str, ...]]:
    """Each row's number and name, and the strategies that are proven of it."""
    named = []
    for number, name in ROWS.items():
        proven = dict.fromkeys(p.strategy for p in PROOFS if p.row == number)
        named.append((row_of(number), name, ", ".join(proven) or "left out, see below"))
    return named


def matrix_cells(observed: dict[Proof, float], parts: dict[str, set[str]]) -> Iterator[list[str]]:
    for strategy in STRATEGIES:
        mine = [proof for proof in PROOFS if proof.strategy == strategy]
        rows = ", ".join(dict.fromkeys(row_of(proof.row) for proof in mine))
        kinds = [_cell([p for p in mine if p.kind == kind], observed) for kind in KINDS]
        yield [rows, strategy, *kinds, ", ".join(p for p in PARTS if p in parts[strategy]) or "–"]


def _cell(proofs: list[Proof], observed: dict[Proof, float]) -> str:
    if not proofs:
        return "–"
    above = [observed[p] for p in proofs if p.holds == AT_MOST]
    below = [observed[p] for p in proofs if p.holds != AT_MOST]
    worst = [f"{max(above):.2g}"] if above else []
    worst += [f"≥ {min(below):.2g}"] if below else []
    return f"{len(proofs)}: {', '.join(worst)}"


def parts_of_composites(strategy: str) -> set[str]:
    """The other parts of the composites that hold `strategy`."""
    chains = [{link.name for link in resolve(expression)} for expression in COMPOSITES]
    return set().union(*(chain for chain in chains if strategy in chain)) - {strategy}


@contextmanager
def noting_chains() -> Iterator[list[set[str]]]:
    """Inside, the parts of every rule that is built are noted."""
    chains: list[set[str]] = []

    def noted(expression, *arguments, resolve: Callable = build.resolve):
        chain = resolve(expression, *arguments)
        chains.append({link.name for link in chain})
        return chain

    with patch.object(build, "resolve", noted):
        yield chains


def measured() -> tuple[dict[Proof, float], dict[Proof, bool], dict[str, set[str]]]:
    """What every claim observes, whether it holds, and the parts each strategy is proven with."""
    observed, holds = {}, {}
    parts = {strategy: parts_of_composites(strategy) for strategy in STRATEGIES}
    for proof in PROOFS:
        with noting_chains() as chains:
            observed[proof], holds[proof] = proof.check()
        if proof.kind == "composed":
            together = [c for c in chains if proof.strategy in c or proof.strategy not in PARTS]
            parts[proof.strategy] |= set().union(*together) - {proof.strategy}
    return observed, holds, parts


def main() -> None:
    observed, holds, parts = measured()
    columns = f"row, strategy, {', '.join(KINDS)}, composed with"
    lines = [HEADER, MATRIX, *table(columns, matrix_cells(observed, parts))]
    lines += ["\n### Kinds of claim that do not apply\n"]
    lines += table("strategy, kind, why", not_applicable_cells())
    lines += ["\n## Rows of the catalogue\n", *table("row, name, proven", row_cells())]
    lines += ["\n### Left out\n", *table("row, what, why", left_out_cells())]
    lines += [
        "\n## Parts\n",
        *table("name, what it does, formula, source, numbers", part_cells()),
        "\n## Claims\n",
        *table(
            "row, strategy, kind, claim, holds if, observed",
            (
                (*cells, f"{observed[p]:.2g}" + ("" if holds[p] else " **FAILS**"))
                for cells, p in zip(claim_cells(), PROOFS, strict=True)
            ),
        ),
    ]
    noticed = [mutant.kills(proof_of(mutant)) for mutant in MUTANTS]
    lines += [
        "\n## Planted faults\n",
        *table(
            "strategy, fault, noticed by, noticed",
            (
                (*cells, "yes" if is_noticed else "**NO**")
                for cells, is_noticed in zip(fault_cells(), noticed, strict=True)
            ),
        ),
    ]
    (ROOT / "docs" / "strategies.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(PROOFS)} claims, {len(MUTANTS)} planted faults: docs/strategies.md")
    sys.exit(not (all(holds.values()) and all(noticed)))


if __name__ == "__main__":
    main()
