"""Made-up atlases: planted domains, and the finished studies of a domain."""

import json

import numpy as np

from cli.recipes import to_toml, validate
from compare.domains import SMALL, Domain, Features, Outcome, View
from compare.plan import plan
from configs.study_recipe import StudyRecipe

SIZES, SECONDS = (1 / 64, 1 / 16, 1 / 4, 1), 60.0
PACE = 1e9  # no size of the planted domains is more than training reads


def planted(seed, count=12, noise=0.03, slope=0.3, distance=0.5, apart=0.0, bend=0.0):
    """Domains in which text and distance from the foundation favour training from scratch.

    `apart` is the standard deviation of what no feature shows, shared by all outcomes of a domain; `bend` lowers
    the slope as the text grows.
    """
    draw = np.random.default_rng(seed)

    def domain(number):
        ratio, size = draw.normal(0.2, 0.5), 10 ** draw.uniform(5.5, 8)

        def outcome(share, factor):
            at = np.log10(size * share) - 6
            value = slope * at - bend * at**2 + distance * ratio + 0.2 * np.log10(factor)
            return Outcome(size * share, SECONDS * factor, value + own + draw.normal(0, noise), ratio)

        def view(share):
            early = outcome(share, 0.5).advantage
            return View(size * share, Features(ratio, early, draw.uniform(0.2, 0.6), draw.random(), PACE))

        own = draw.normal(0, apart)
        outcomes = [outcome(share, 1) for share in SIZES] + [outcome(1, 4), outcome(SIZES[0], 4)]
        return Domain(f"domain-{number}", [view(SIZES[0]), view(1)], outcomes)

    return [domain(number) for number in range(count)]


def write_study(folder, scratch, lora, full=0.1):
    """A finished study of one domain; bits per byte by (size, factor); full fine-tuning needs `full` more."""
    folder.mkdir(parents=True)
    shared = {"axis": "text", "seed": 0, "foundation": "", "edition": 2, "document_bytes": [8] * 4, "overlap": 0.25}
    factors = sorted({factor for _, factor in scratch} - {1.0})
    recipe = {
        "text_methods": ["xz", "zero-shot", "scratch", "full", "lora"],
        "shares": sorted({size for size, _ in scratch}),
        "seeds": [0],
        "budget_factors": factors,
        "tries": 1,
        "task": {"name": ""},
    }
    study = validate(StudyRecipe, recipe, "the study")
    (folder / "config.toml").write_text(to_toml(study))
    tuned = {"lora": lora, "full": {key: value + full for key, value in lora.items()}}
    rows = [{"id": "calibration", "edition": 2, "threads": 1, "speeds": {"scratch-text": {"step_seconds": 0.5}}}]
    for cell in plan(study):
        own = shared | cell._asdict() | {"id": cell.name}
        if cell.method in ("xz", "zero-shot"):
            value, more = (2.0 / cell.size**0.5, {}) if cell.method == "xz" else (4.0, {"document_tokens": [4] * 4})
        else:
            value = tuned.get(cell.method, scratch)[cell.size, cell.factor]
            seconds = SECONDS * cell.factor
            more = {"seen_bytes": cell.size * 1e6, "training_seconds": seconds, "training_steps": 2 * seconds}
            more |= {"epochs": 6.0 * cell.factor / cell.size, "validation_bits": value}
        rows.append(own | {"document_bits": [8 * value] * 4} | more)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "answer.md").write_text("done\n")


def write_domain(path, scratch, lora):
    """The two studies of a domain: of all of its text, and of its smallest size alone."""
    write_study(path, scratch, lora)
    small = [{(0.25, factor): bits[0.25, 1.0] for factor in (0.5, 1.0, 4.0)} for bits in (scratch, lora)]
    write_study(path.with_name(path.name + SMALL), *small)
