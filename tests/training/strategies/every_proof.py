"""All proofs and planted faults, and the table that the documents show of them.

`python tests/training/strategies/every_proof.py` (or `make proofs`) measures everything and writes
docs/strategies.md anew.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # when run as a program

from tests.model import adaptation_proofs  # noqa: E402
from tests.training.strategies import (  # noqa: E402
    proofs_across,
    proofs_devices,
    proofs_gradients,
    proofs_optimizers,
)
from training.strategies.catalogue import PARTS  # noqa: E402

MODULES = (
    proofs_optimizers,
    proofs_gradients,
    proofs_across,
    proofs_devices,
    adaptation_proofs,
)
PROOFS = sorted((p for module in MODULES for p in module.PROOFS), key=lambda p: p.row)
MUTANTS = [mutant for module in MODULES for mutant in module.MUTANTS]

# Rows of the catalogue that have no proof here, and why.
LEFT_OUT: dict[int, str] = {}

HEADER = """# Strategies and their proofs

Written by `make proofs` from the tests; do not edit. Every claim is measured on small problems
(float64 unless it says otherwise) and held against its tolerance; every planted fault is a wrong
version of a strategy, kept in the tests, that a claim has to notice. The rows are those of the
catalogue of optimisation strategies in DESIGN.md.
"""


def proof_of(mutant):
    """The claim that `mutant` breaks."""
    (proof,) = [
        proof
        for proof in PROOFS
        if (proof.strategy, proof.claim) == (mutant.strategy, mutant.claim_it_breaks)
    ]
    return proof


def table_rows() -> list[str]:
    """The beginning of each claim's line, without what was observed."""
    return [
        f"| {p.row} | {p.strategy} | {p.kind} | {p.claim} | {p.holds} {p.tolerance:.2g} |"
        for p in PROOFS
    ]


def parts_table() -> list[str]:
    lines = ["| name | what it does | formula | source | numbers |", "|---|---|---|---|---|"]
    for part in PARTS.values():
        numbers = ", ".join(f"{name}={n.default:g}" for name, n in part.numbers.items())
        cells = (f"`{part.name}`", part.summary, part.formula, part.source, numbers)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def main() -> None:
    lines = [HEADER, "## Parts\n", *parts_table(), "\n## Claims\n"]
    lines += [
        "| row | strategy | kind | claim | holds if | observed |",
        "|---|---|---|---|---|---|",
    ]
    is_right = True
    for row, proof in zip(table_rows(), PROOFS, strict=True):
        observed, holds = proof.check()
        is_right &= holds
        lines.append(f"{row} {observed:.2g}{'' if holds else ' **FAILS**'} |")
    lines += [
        "\n## Planted faults\n",
        "| strategy | fault | noticed by | noticed |",
        "|---|---|---|---|",
    ]
    for mutant in MUTANTS:
        noticed = mutant.kills(proof_of(mutant))
        is_right &= noticed
        cells = (
            mutant.strategy,
            mutant.name,
            mutant.claim_it_breaks,
            "yes" if noticed else "**NO**",
        )
        lines.append("| " + " | ".join(cells) + " |")
    if LEFT_OUT:
        lines += ["\n## Left out\n"]
        lines += [f"* row {row}: {reason}" for row, reason in sorted(LEFT_OUT.items())]
    (ROOT / "docs" / "strategies.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(PROOFS)} claims, {len(MUTANTS)} planted faults: docs/strategies.md")
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
