"""The built-in corpora: text inside installed packages, read in place; and the tasks made from them.

    folk-tunes      music21           three tune books of 1782 to 1883, in ABC  public domain
    aws-api         botocore          documentation of every AWS operation      Apache-2.0
    python-stdlib   the interpreter   the standard library's own source         PSF
    molecules       molsets           drug-like molecules: data/molecules.py    MIT

The pretraining data of any recent foundation model almost certainly contains aws-api and
python-stdlib.

    tune-key        folk-tunes      notes -> key (the ten most frequent)
    api-service     aws-api         first sentence of the documentation -> service (the twelve with most operations)

The input of a task never contains the label. Items keep the split of their document, so no melody is
in two splits. `api-service` needs every service in the training split, so its corpus must be split
document by document (data.group_field = "document").
"""

import gzip
import hashlib
import html
import json
import re
import sysconfig
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from data.documents import Corpus, Document, fingerprint_files
from data.items import Item, Task
from data.molecules import drug_likeness, molecules
from data.packages import package_folder

# Matches a header field such as `K:G`, but not the notes `A:|` at the end of a repeat.
_ABC_HEADER = re.compile(r"(?m)^[A-Zw]:(?!\|).*")
_ABC_COMMENT = re.compile("%.*")
_ABC_QUOTED = re.compile(r'"[^"]*"|`')
_ABC_ORNAMENT = re.compile(r"\{[^}]*\}|![^!]*!|\[[A-Z]:[^\]]*\]")
_LETTERS = bytes.maketrans(b"ABCDEFGabcdefg", bytes(range(7)) * 2)
_NOT_LETTERS = bytes(set(range(256)) - set(b"ABCDEFGabcdefg"))
_MODES = {"": "", "maj": "", "ion": "", "m": "m", "min": "m", "aeo": "m", "dor": "dor", "mix": "mix"}


def folk_tunes() -> Corpus:
    """4,000-odd fiddle tunes: Ryan's Mammoth Collection, O'Neill's 1850, Aird's Airs.

    Each document is one tune: the header lines M, L, R, K and the notes. Two books often contain
    the same melody, so the group is the first 24 note letters, and near-duplicate removal compares
    the intervals of the melody, which do not depend on the key.
    """
    root = package_folder("music21", "music21==10.5.1") / "corpus"
    files = sorted(p for book in ("ryansMammoth", "oneills1850", "airdsAirs") for p in (root / book).glob("*.abc"))

    def read() -> Iterator[Document]:
        for path in files:
            raw = path.read_bytes()
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                text = raw.decode("latin-1")
            for number, tune in enumerate(re.split(r"(?m)^(?=X:)", text.replace("\r\n", "\n"))):
                if not tune.startswith("X:"):
                    continue
                body = abc_body(tune)
                letters = melody(body)
                if letters:
                    intervals = ["abcdefg"[b - a] for a, b in pairwise(letters)]  # modulo 7
                    yield Document(
                        id=f"{path.parent.name}/{path.stem}/{number}",
                        text=body,
                        group="".join("abcdefg"[i] for i in letters[:24]),
                        dedup_text=" ".join(intervals),
                    )

    return Corpus("folk-tunes", fingerprint_files(files), read)


def abc_body(tune: str) -> str:
    """Remove titles, credits, comments, fingerings and words from an ABC tune."""
    lines = []
    for line in map(str.rstrip, _ABC_COMMENT.sub("", tune).split("\n")):
        if not _ABC_HEADER.match(line):
            lines += [_ABC_QUOTED.sub("", line)] if line else []
        elif line[0] in "MLRK":
            lines.append(f"{line[:2]}{line[2:].strip()}")
    return "\n".join(lines)


def melody(body: str) -> bytes:
    """Return the note letters of an ABC body as 0–6 (a–g); skips octaves, accidentals, grace notes."""
    notes = _ABC_HEADER.sub("", body).replace("\n", "")
    return _ABC_ORNAMENT.sub("", notes).encode().translate(_LETTERS, _NOT_LETTERS)


def aws_api() -> Corpus:
    """Documentation of AWS operations and data types, one document each, without HTML.

    The entries of a service share boilerplate, so the group is the service.
    """
    root = package_folder("botocore", "botocore==1.44.5") / "data"
    files = sorted(root.glob("*/*/service-2.json.gz"))

    def read() -> Iterator[Document]:
        seen: set[bytes] = set()

        def strip_repeated(documentation: str) -> str:
            text = re.sub(r"<[^>]+>", " ", documentation)
            text = re.sub(r"\s+", " ", html.unescape(text)).strip()
            key = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if not text or key in seen:
                return ""
            seen.add(key)
            return text

        for path in files:
            with gzip.open(path) as file:
                api = json.load(file)
            service = path.parent.parent.name
            for kind in ("operations", "shapes"):
                for name, item in api.get(kind, {}).items():
                    lines = [strip_repeated(item.get("documentation", ""))]
                    for member, details in item.get("members", {}).items():
                        text = strip_repeated(details.get("documentation", ""))
                        lines += [f"{member}: {text}"] if text else []
                    text = "\n".join(line for line in lines if line)
                    if text:
                        document_id = f"{service}/{path.parent.name}/{kind[:-1]}/{name}"
                        yield Document(document_id, f"{name}\n{text}", service)

    return Corpus("aws-api", fingerprint_files(files), read)


def python_stdlib() -> Corpus:
    """Modules of the standard library, one file each, without tests and installed packages.

    The group is the top-level package, so all files of a package are in the same split.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    files = sorted(p for p in root.rglob("*.py") if not skipped & set(p.relative_to(root).parts[:-1]))

    def read() -> Iterator[Document]:
        for path in files:
            name = path.relative_to(root)
            text = path.read_bytes().decode("utf-8", errors="replace")
            yield Document(str(name), text, name.parts[0])

    return Corpus("python-stdlib", fingerprint_files(files), read)


BUILTIN = {"folk-tunes": folk_tunes, "aws-api": aws_api, "python-stdlib": python_stdlib, "molecules": molecules}


class TaskBuilder(NamedTuple):
    """How to make the items of a classification task from the documents of a corpus."""

    field: str
    answer: str
    classes: int
    """Number of most frequent labels in the closed set."""
    source: str
    """What an item is made from, for error messages."""
    make_items: Callable[[dict], Iterator[Item]]


def _tune_key_items(document: dict) -> Iterator[Item]:
    keys: list[str] = []
    notes = ""
    for line in document["text"].split("\n"):
        if not _ABC_HEADER.match(line):
            notes += line.strip(" \\")
        elif line[0] == "K":
            keys.append(line[2:].strip())
    notes = re.sub(r"\[[KMR]:[^\]]*\]", "", notes)
    match = re.match(r"([A-G][#b]?)\s*(\w*)", keys[0]) if len(keys) == 1 else None
    mode = match[2].lower()[:3] if match else "?"
    if match and notes and mode in _MODES:
        yield Item(document["id"], notes, match[1] + _MODES[mode])


def _api_service_items(document: dict) -> Iterator[Item]:
    service, _, kind, _ = document["id"].split("/")
    _, _, text = document["text"].partition("\n")
    sentence = re.split(r"(?<=[.!?])\s", text.split("\n")[0], maxsplit=1)[0]
    if kind == "operation" and len(sentence) >= 20 and service.lower() not in sentence.lower():
        yield Item(document["id"], sentence, service)


TASKS = {
    "tune-key": TaskBuilder("Tune", "Key", 10, "tune with a key", _tune_key_items),
    "api-service": TaskBuilder(
        "Description",
        "Service",
        12,
        'service that is also in the train split: set data.group_field = "document"',
        _api_service_items,
    ),
}
WHOLE_TASKS: dict[str, Callable[[int, int], Task]] = {"drug-likeness": drug_likeness}  # with splits of their own
