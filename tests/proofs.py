"""What a proof of a strategy is, and what shows that it could fail.

A `Proof` measures one number of the real thing and holds it against a tolerance; a `Mutant` is the
same strategy with one fault put in. A claim is worth its line in the table only if the mutants that
break it are noticed: `mutant.kills(proof)`.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from unittest.mock import patch

KINDS = ("identity", "golden", "differs", "resume", "composed")
AT_MOST, AT_LEAST = "at most", "at least"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One claim about a strategy. `measure` observes; `holds` says on which side of `tolerance`."""

    row: int  # of the catalogue
    strategy: str
    kind: str
    claim: str
    tolerance: float
    measure: Callable[[], float]
    holds: str = AT_MOST

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}. Received: {self.kind!r}")
        if self.holds not in (AT_MOST, AT_LEAST):
            raise ValueError(f"holds must be {AT_MOST!r} or {AT_LEAST!r}. Received: {self.holds!r}")

    def check(self) -> tuple[float, bool]:
        """The number observed and whether the claim holds; what is not a number holds nothing."""
        observed = float(self.measure())
        if math.isnan(observed):
            return observed, False
        if self.holds == AT_MOST:
            return observed, observed <= self.tolerance
        return observed, observed >= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A strategy with one fault, there while `apply()` is entered."""

    name: str
    strategy: str
    claim_it_breaks: str
    apply: Callable[[], AbstractContextManager]

    def kills(self, proof: Proof) -> bool:
        """True if `proof` fails with the fault in place, as it must. Errors are not failures."""
        with self.apply():
            _, holds = proof.check()
        return not holds


class Ledger:
    """The proofs and planted faults of one file.

    `@ledger.proof(row, strategy, kind, claim, tolerance)` stands above the function that measures;
    `ledger.mutant(name, breaks, (object, attribute, replacement), ...)` plants a fault that the
    proof `breaks` must notice.
    """

    def __init__(self) -> None:
        self.proofs: list[Proof] = []
        self.mutants: list[Mutant] = []

    def proof(
        self,
        row: int,
        strategy: str,
        kind: str,
        claim: str,
        tolerance: float,
        holds: str = AT_MOST,
    ) -> Callable[[Callable[[], float]], Proof]:
        def made(measure: Callable[[], float]) -> Proof:
            self.proofs.append(
                Proof(
                    row=row,
                    strategy=strategy,
                    kind=kind,
                    claim=claim,
                    tolerance=tolerance,
                    measure=measure,
                    holds=holds,
                )
            )
            return self.proofs[-1]

        return made

    def mutant(self, name: str, breaks: Proof, *patches: tuple) -> None:
        def apply() -> AbstractContextManager:
            stack = ExitStack()
            for where in patches:
                stack.enter_context(patch.object(*where))
            return stack

        self.planted(name, breaks, apply)

    def planted(
        self, name: str, breaks: Proof, apply: Callable[[], AbstractContextManager]
    ) -> None:
        """As `mutant`, for a fault that takes more than replacing attributes."""
        self.mutants.append(
            Mutant(name=name, strategy=breaks.strategy, claim_it_breaks=breaks.claim, apply=apply)
        )
