"""Every strategy keeps its promises, and every promise notices the fault that breaks it."""

import pytest

from tests.training.strategies.every_proof import (
    LEFT_OUT,
    MUTANTS,
    PROOFS,
    proof_of,
    table_rows,
)
from training.strategies.catalogue import PARTS


@pytest.mark.parametrize("proof", PROOFS, ids=lambda p: f"{p.row}-{p.strategy}-{p.claim}"[:90])
def test_the_claim_holds(proof):
    observed, holds = proof.check()
    assert holds, f"{proof.claim}: observed {observed:g}, {proof.holds} {proof.tolerance:g}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.strategy}-{m.name}"[:90])
def test_the_planted_fault_is_noticed(mutant):
    assert mutant.kills(proof_of(mutant))


def test_claims_and_faults_have_names_of_their_own():
    claims = [(proof.strategy, proof.claim) for proof in PROOFS]
    faults = [(mutant.strategy, mutant.name, mutant.claim_it_breaks) for mutant in MUTANTS]
    assert len(set(claims)) == len(claims) and len(set(faults)) == len(faults)


def test_every_part_of_the_table_is_proven():
    assert PARTS.keys() <= {proof.strategy for proof in PROOFS}


def test_every_row_of_the_catalogue_is_there_or_named_as_left_out():
    rows = {*range(1, 20), *range(21, 29)}
    assert {proof.row for proof in PROOFS} | LEFT_OUT.keys() >= rows


def test_the_documented_table_lists_these_claims(request):
    """Observed numbers may differ from machine to machine; what is claimed may not."""
    text = (request.config.rootpath / "docs" / "strategies.md").read_text(encoding="utf-8")
    for row in table_rows():
        assert row in text, f"{row}: run `make proofs` to write docs/strategies.md anew"
    for mutant in MUTANTS:
        assert mutant.name in text, f"{mutant.name}: run `make proofs`"
