"""The corpus of molecules and its task, checked with RDKit."""

import pytest

from benchmarks.molecules import score
from configs.schema import DataConfig, TaskConfig
from data.molecules import DRUG_LIKE, molecules, read_smiles
from data.tasks import load_task

Chem = pytest.importorskip("rdkit.Chem")


def test_the_corpus_has_one_document_per_molecule():
    documents = molecules().read()
    first = [next(documents) for _ in range(100)]
    assert first[0] == ("moses/0", "CCCS(=O)c1ccc2[nH]c(=NC(=O)OC)[nH]c2c1", "", "", "", 0)
    assert all(Chem.MolFromSmiles(document.text) for document in first)


def test_labels_follow_qed_and_test_scaffolds_are_not_in_training():
    from rdkit.Chem.QED import qed
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    config = TaskConfig(name="drug-likeness", train_items=300, test_items=40)
    task = load_task(config, DataConfig(corpus="molecules"))
    assert (len(task.train), len(task.validation), len(task.test)) == (300, 40, 40)
    for item in task.test:
        assert item.label == ("yes" if qed(Chem.MolFromSmiles(item.text)) >= DRUG_LIKE else "no")
    assert {item.label for item in task.train} == set(task.labels)
    scaffolds = {MurckoScaffoldSmiles(smiles=item.text) for item in task.train}
    assert not scaffolds & {MurckoScaffoldSmiles(smiles=item.text) for item in task.test}
    more = load_task(config.model_copy(update={"train_items": 400}), DataConfig(corpus="molecules"))
    assert more.train[:300] == task.train


def test_written_molecules_are_scored_as_moses_does():
    known = next(read_smiles("train"))
    new = "C" * 30
    assert score([known, known, new, "C(", ""]) == {"samples": 5, "valid": 3 / 5, "unique": 2 / 3, "novel": 1 / 2}
