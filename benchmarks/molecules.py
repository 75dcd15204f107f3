"""Molecules that a trained run writes: how many are valid, distinct and new.

    python -m benchmarks.molecules RUN [--count 10000] [--rows 128]

Samples SMILES strings and checks them with RDKit, as MOSES does (Polykovskiy et al. 2020,
arXiv:1811.12823): valid is the share that RDKit parses; unique the share of distinct molecules among
the valid ones; novel the share of these that are not in the training set. Twice: at temperature 1, and
without tokens that have less than 0.2 % of the likeliest one's probability (min-p; Nguyen et al.
2024, arXiv:2407.01082). Writes benchmarks/results/DEVICE/molecules.json, beside MOSES's published table.
"""

import argparse
from pathlib import Path

from benchmarks.record import record
from cli.console import track
from cli.errors import UserError
from data.molecules import read_smiles
from model.inference import load_for_generation
from model.sample import sample
from train.metrics import read_metrics

MOST_TOKENS = 120
FIRST_SEED = 30_000  # min-p was chosen on samples of lower seeds
SAMPLINGS = {"ours": 0.0, "ours, min-p 0.002": 0.002}
PUBLISHED = {  # MOSES, mean of three runs: valid, unique of 10,000, novel
    "CharRNN": (0.9748, 0.9994, 0.8419),
    "VAE": (0.9767, 0.9984, 0.6949),
    "JTN-VAE": (1.0, 0.9996, 0.9143),
    "LatentGAN": (0.8966, 0.9968, 0.9498),
    "n-gram": (0.2376, 0.9217, 0.9694),
}


def write_molecules(run: Path, count: int, rows: int, min_p: float) -> list[str]:
    """`count` sampled strings; "" for one that did not end."""
    model, tokenizer, _ = load_for_generation(str(run), "float32", "auto", rows)
    found: list[str] = []
    batches = -(-count // rows)
    for batch in track(range(batches), "sampling", batches):
        options = {"num_samples": rows, "seed": FIRST_SEED + batch, "min_p": min_p}
        *_, streams = sample(model, tokenizer, "", max_new_tokens=MOST_TOKENS, **options)
        found += [stream.text.strip() if stream.stopped != "length" else "" for stream in streams]
    return found[:count]


def score(written: list[str]) -> dict[str, float]:
    """Shares of valid strings, of distinct molecules among them, and of new ones among these."""
    try:
        from rdkit import RDLogger
        from rdkit.Chem import MolFromSmiles, MolToSmiles
    except ImportError:
        raise UserError("benchmarks.molecules needs: pip install -e '.[molecules]'") from None
    RDLogger.DisableLog("rdApp.*")
    molecules = [MolFromSmiles(text) if text else None for text in written]
    valid = [MolToSmiles(molecule) for molecule in molecules if molecule is not None]
    unique, known = set(valid), set(read_smiles("train"))
    return {
        "samples": len(written),
        "valid": len(valid) / len(written),
        "unique": len(unique) / max(1, len(valid)),
        "novel": len(unique - known) / max(1, len(unique)),
    }


def main() -> None:
    """Entry point of `python -m benchmarks.molecules`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=128, help="strings that are sampled at a time")
    args = parser.parse_args()
    rows: list[dict] = []
    for name, min_p in SAMPLINGS.items():
        rows.append({"model": name, **score(write_molecules(args.run, args.count, args.rows, min_p))})
    trained = [row for row in read_metrics(args.run) if "seconds" in row][-1]
    training = {key: trained[key] for key in ("step", "tokens", "epoch", "seconds")}
    rows += [{"model": name, "valid": v, "unique": u, "novel": n} for name, (v, u, n) in PUBLISHED.items()]
    for row in rows:
        print("  ".join(f"{key} {value:.4f}" if isinstance(value, float) else str(value) for key, value in row.items()))
    print(f"written: {record('molecules', {'run': str(args.run), 'training': training, 'rows': rows})}")


if __name__ == "__main__":
    main()
