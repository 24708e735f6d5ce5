"""Every strategy keeps its promises, and every promise notices the fault that breaks it."""

import pytest

from tests.proofs import KINDS
from tests.training.strategies.every_proof import (
    LEFT_OUT,
    MUTANTS,
    NOT_APPLICABLE,
    PROOFS,
    ROWS,
    STRATEGIES,
    claim_cells,
    fault_cells,
    left_out_cells,
    line,
    not_applicable_cells,
    part_cells,
    proof_of,
    row_cells,
)
from training.strategies.catalogue import PARTS


def _proof(proof):
    # Claims about replicas are measured by one program, whose answer a worker keeps.
    marks = [pytest.mark.xdist_group("replicas")] if proof.row == 15 else []
    return pytest.param(proof, marks=marks, id=f"{proof.row}-{proof.strategy}-{proof.claim}"[:90])


@pytest.mark.parametrize("proof", list(map(_proof, PROOFS)))
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


def test_every_strategy_has_a_fault_that_is_noticed():
    assert {proof.strategy for proof in PROOFS} == {mutant.strategy for mutant in MUTANTS}


def test_every_row_of_the_catalogue_is_there_or_named_as_left_out():
    rows = {proof.row for proof in PROOFS} | {row for row, _, _ in LEFT_OUT}
    assert rows == ROWS.keys() == set(range(32))


def test_every_kind_of_claim_is_there_or_does_not_apply():
    proven = {(proof.strategy, proof.kind) for proof in PROOFS}
    without = {(strategy, kind) for strategy, kind, _ in not_applicable_cells()}
    wanted = {(strategy, kind) for strategy in STRATEGIES for kind in KINDS}
    assert proven | without == wanted, wanted ^ (proven | without)
    assert not proven & without
    assert not NOT_APPLICABLE.keys() & PARTS.keys()  # a part has claims of all kinds


def rows_of(text: str, title: str) -> list[str]:
    """The lines of the first table below a title, without its head."""
    _, found, rest = text.partition(f"\n{title}\n")
    assert found, f"{title!r} is missing: run `make proofs`"
    lines = []
    for each in rest.strip().splitlines():
        if not each.startswith("|"):
            break
        lines.append(each)
    return lines[2:]


def test_the_documented_table_lists_these_claims(request):
    """Observed numbers may differ from machine to machine; what is claimed may not."""
    text = (request.config.rootpath / "docs" / "strategies.md").read_text(encoding="utf-8")
    for title, cells in (
        ("## Rows of the catalogue", row_cells()),
        ("### Left out", left_out_cells()),
        ("### Kinds of claim that do not apply", not_applicable_cells()),
        ("## Parts", part_cells()),
    ):
        assert rows_of(text, title) == [line(each) for each in cells], f"{title}: `make proofs`"
    for title, cells in (("## Claims", claim_cells()), ("## Planted faults", fault_cells())):
        written = [row.rpartition(" | ")[0] + " |" for row in rows_of(text, title)]
        assert written == [line(each) for each in cells], f"{title}: run `make proofs`"
    assert "**FAILS**" not in text and "**NO**" not in text
