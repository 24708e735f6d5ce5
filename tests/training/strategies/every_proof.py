"""All proofs and planted faults, and the table that the documents show of them.

`python tests/training/strategies/every_proof.py` measures everything and writes docs/strategies.md.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # as pytest has it
    sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 2, 3)]
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "model"))

import proofs_across
import proofs_gradients
import proofs_optimizers

MODULES = [proofs_optimizers, proofs_gradients, proofs_across]
PROOFS = [proof for module in MODULES for proof in module.PROOFS]
MUTANTS = [mutant for module in MODULES for mutant in module.MUTANTS]
