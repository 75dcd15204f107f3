"""A passage store for retrieval: vector search and BM25 in LanceDB, with incremental updates.

    python -m prompting.store RECIPE [--store DIR] [--data.corpus my-notes/ …]

stores the training documents of a corpus. Run again, it adds new documents, replaces changed ones
and removes deleted ones. Held-out documents are never stored.
"""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cli.atomic import read_json, to_json, write_atomically
from cli.console import say, track
from cli.errors import UserError, run_command
from cli.recipes import Parser, parse
from configs.prompt_recipe import StoreRecipe
from data.prepare import prepare
from data.splits import read_documents

ENCODER = "wordllama"  # its package contains its weights
SEARCH_METHODS = ("hybrid", "vector", "bm25")
RRF_CONSTANT = 60  # of reciprocal rank fusion (Cormack et al. 2009)
DEPTH = 50  # passages of each search method that are fused
BATCH = 256  # documents per write


class Passage(NamedTuple):
    """A retrieved piece of a document."""

    document: str
    text: str
    score: float


class Store:
    """Passages of documents, searched by vectors (cosine), by words (BM25), or by both (hybrid)."""

    def __init__(self, folder: Path, chunk_chars: int = 0):
        """Open the store in `folder`, or create it with passages of at most `chunk_chars` characters.

        Raises UserError if there is no store and no `chunk_chars` is given, or if the store was
        created with other settings.
        """
        try:
            import lancedb
        except ImportError:
            raise UserError("retrieval needs: pip install -e '.[retrieval]'") from None
        self.folder, about = folder, folder / "store.json"
        is_new = not about.exists()
        if is_new and not chunk_chars:
            raise UserError(f"{folder}: no store; create one with python -m prompting.store")
        known = {"encoder": ENCODER, "chunk_chars": chunk_chars} if is_new else read_json(about)
        if not isinstance(known, dict) or not known.keys() >= {"encoder", "chunk_chars"}:
            raise UserError(f"{about}: is damaged; delete {folder} and create the store again")
        for name, given in (("encoder", ENCODER), ("chunk_chars", chunk_chars or known["chunk_chars"])):
            if given != known[name]:
                raise UserError(
                    f"{folder}: was created with {name} = {known[name]!r}, not {given!r}; use another folder"
                )
        self.chunk_chars: int = known["chunk_chars"]
        self.encode = load_encoder()
        if is_new:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(about, to_json(known) + "\n")
        self.base = lancedb.connect(folder)
        self.table: Any = None
        if "passages" in self.base.list_tables().tables:
            self.table = self.base.open_table("passages")

    def update(self, texts: Iterable[tuple[str, str]]) -> dict[str, int]:
        """Make the store hold exactly these (id, text) documents; returns counts by action.

        Unchanged documents are not encoded again.
        """
        stored, wanted = self._stored_hashes(), {}
        fresh: list[tuple[str, str, str]] = []
        for name, text in texts:
            wanted[name] = hashlib.sha256(text.encode()).hexdigest()
            if stored.get(name) != wanted[name]:
                fresh.append((name, text, wanted[name]))
        removed = [name for name in stored if name not in wanted]
        changed = [name for name, *_ in fresh if name in stored]
        self._delete([*removed, *changed])
        self._insert(fresh)
        return {
            "added": len(fresh) - len(changed),
            "changed": len(changed),
            "removed": len(removed),
            "kept": len(wanted) - len(fresh),
        }

    def search(self, question: str, count: int, method: str = "hybrid") -> list[Passage]:
        """The `count` best passages, best first, by one of SEARCH_METHODS; UserError if the store is empty."""
        if self.table is None or not self.table.count_rows():
            raise UserError(f"{self.folder}: the store is empty; add documents first")
        depth = count if method != "hybrid" else max(count, DEPTH)
        ranked = []
        if method != "bm25":
            (vector,) = self.encode([question])
            found = self.table.search(vector).distance_type("cosine").limit(depth).to_list()
            ranked.append([(row, 1 - row["_distance"]) for row in found])
        if method != "vector":
            words = " ".join(re.findall(r"\w+", question))  # punctuation would be query syntax
            found = self.table.search(words, query_type="fts").limit(depth).to_list()
            ranked.append([(row, row["_score"]) for row in found])
        if method != "hybrid":
            return [Passage(row["document"], row["text"], score) for row, score in ranked[0]]
        scores: dict[tuple[str, str], float] = {}
        for rows in ranked:
            for rank, (row, _) in enumerate(rows, 1):
                key = row["document"], row["text"]
                scores[key] = scores.get(key, 0.0) + 1 / (RRF_CONSTANT + rank)
        best = sorted(scores, key=lambda key: -scores[key])[:count]
        return [Passage(*key, scores[key]) for key in best]

    def _stored_hashes(self) -> dict[str, str]:
        if self.table is None:
            return {}
        rows = self.table.search().select(["document", "hash"]).limit(None).to_list()
        return {row["document"]: row["hash"] for row in rows}

    def _delete(self, names: Sequence[str]) -> None:
        if self.table is None:
            return
        for start in range(0, len(names), BATCH):
            quoted = (name.replace("'", "''") for name in names[start : start + BATCH])
            self.table.delete("document IN (" + ", ".join(f"'{name}'" for name in quoted) + ")")

    def _insert(self, fresh: Sequence[tuple[str, str, str]]) -> None:
        # A batch holds whole documents, so an interrupted update stores no partial document.
        starts = range(0, len(fresh), BATCH)
        for start in track(starts, "encoding passages", len(starts)):
            part = [
                (name, piece, digest)
                for name, text, digest in fresh[start : start + BATCH]
                for piece in split_passages(text, self.chunk_chars)
            ]
            if not part:
                continue
            vectors = self.encode([piece for _, piece, _ in part])
            rows = [
                {"document": name, "text": piece, "hash": digest, "vector": vector}
                for (name, piece, digest), vector in zip(part, vectors, strict=True)
            ]
            if self.table is None:
                self.table = self.base.create_table("passages", rows)
            else:
                self.table.add(rows)
        if self.table is not None and (fresh or not self.table.list_indices()):
            from lancedb.index import FTS

            self.table.create_index("text", config=FTS(), replace=True)


def load_encoder() -> Callable[[Sequence[str]], np.ndarray]:
    """A sentence encoder: texts -> (N, width) float32 of norm 1. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec(ENCODER)
    if spec is None or spec.origin is None:
        raise UserError("the sentence encoder needs: pip install -e '.[retrieval]'")
    from wordllama import WordLlama

    # The package contains weights and tokenizer, but looks there only with this cache_dir.
    model = WordLlama.load(cache_dir=Path(spec.origin).parent, disable_download=True)
    return lambda texts: np.asarray(model.embed(list(texts), norm=True), np.float32)


def split_passages(text: str, size: int) -> list[str]:
    """Passages of at most `size` characters, split at the last line end, sentence end or space."""
    pieces, rest = [], text.strip()
    while len(rest) > size:
        cuts = [rest.rfind("\n", 0, size), *(m.end() for m in re.finditer(r"[.!?]\s", rest[:size]))]
        cut = max([c for c in cuts if c > size // 2] or [rest.rfind(" ", 0, size)])
        cut = cut if cut > 0 else size
        pieces.append(rest[:cut].strip())
        rest = rest[cut:].strip()
    return [piece for piece in (*pieces, rest) if piece]


def main() -> None:
    """Entry point of `python -m prompting.store`."""
    parser = Parser(__doc__, add_help=False)
    parser.add_argument("--store", type=Path, help="folder of the store (default: stores/RECIPE)")
    recipe, own = parse(StoreRecipe, parser)
    folder = own.store or Path("stores") / Path(own.config).stem
    prepared = prepare(recipe.data)
    store = Store(folder, recipe.chunk_chars)
    rows = read_documents(prepared, "train")  # held-out documents must not be retrievable
    counts = store.update((row["id"], row["text"]) for row in rows)
    say(f"{folder}: documents " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))


if __name__ == "__main__":
    run_command(main)
