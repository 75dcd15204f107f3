"""The built-in corpus of molecules (MOSES; Polykovskiy et al. 2020, arXiv:1811.12823) and its task.

    molecules       molsets   1.58 million drug-like molecules as SMILES strings   MIT

    drug-likeness   molecules   SMILES -> whether QED (Bickerton et al. 2012) is at least 0.8

QED combines eight properties, such as weight, polar surface and alerts, so it is not read off the
string. The training items are molecules of MOSES's training set, the test items of its scaffold
test set: molecules whose scaffolds (rings and what joins them) do not occur in training.
"""

import gzip
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from cli.errors import UserError
from data.documents import Corpus, Document, fingerprint_files
from data.items import Item, Task
from data.packages import package_folder

REQUIREMENT = "molsets==0.3.1"
DRUG_LIKE = 0.8
_FILES = {"train": "train", "validation": "test", "test": "test_scaffolds"}  # split -> file of MOSES


def _path(name: str) -> Path:
    return package_folder("moses", REQUIREMENT) / "dataset" / "data" / f"{name}.csv.gz"


def read_smiles(name: str) -> Iterator[str]:
    """The molecules of a file of MOSES: "train", "test" or "test_scaffolds"."""
    with gzip.open(_path(name), "rt", encoding="ascii") as file:
        next(file)  # the header
        for line in file:
            yield line.strip().partition(",")[0]


def molecules() -> Corpus:
    """One document per molecule of MOSES's training set."""

    def read() -> Iterator[Document]:
        for number, smiles in enumerate(read_smiles("train")):
            yield Document(f"moses/{number}", smiles)

    return Corpus("molecules", fingerprint_files([_path("train")]), read)


@cache
def drug_likeness(train_items: int, test_items: int) -> Task:
    """The task, with so many items, in an order that does not depend on their number.

    Raises UserError without RDKit.
    """
    try:
        from rdkit.Chem import QED, MolFromSmiles
    except ImportError:
        raise UserError("the task drug-likeness needs: pip install -e '.[molecules]'") from None
    splits: dict[str, list[Item]] = {}
    for (split, name), count in zip(_FILES.items(), (train_items, test_items, test_items), strict=True):
        order = sorted(read_smiles(name), key=lambda smiles: hashlib.sha256(smiles.encode()).digest())
        splits[split] = [
            Item(f"{name}/{smiles}", smiles, "yes" if QED.qed(MolFromSmiles(smiles)) >= DRUG_LIKE else "no")
            for smiles in order[:count]
        ]
    return Task("Molecule", "Drug-like", ["no", "yes"], splits["train"], splits["validation"], splits["test"])
