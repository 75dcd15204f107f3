"""The picture of several studies."""

import re
from pathlib import Path

import pytest
from PIL import Image

from cli.errors import UserError
from compare.analysis.ledger import Ledger
from compare.side_by_side import describe_amounts, draw

STUDIES = [Path("benchmarks/studies") / name for name in ("aws-api", "folk-tunes")]


def test_every_study_has_a_panel(tmp_path):
    draw(STUDIES, tmp_path / "two.png")
    draw(STUDIES[:1], tmp_path / "one.png")
    two, one = (Image.open(tmp_path / name) for name in ("two.png", "one.png"))
    assert two.width == 2 * one.width
    colours = {colour for _, colour in two.convert("RGB").getcolors(1 << 20)}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= colours  # from scratch, tuned


def test_the_guide_says_how_much_is_held_out_and_read():
    guide = Path("docs/guide.md").read_text()
    for folder in STUDIES:
        said = describe_amounts(folder.name, Ledger.read(folder))
        documents, held_out, *read = re.search(
            r": (\d+) documents held out, (\d+) kB; read: scratch (\S+) kB, full (\S+) kB, lora (\S+) kB$", said
        ).groups()
        assert f"{documents} documents ({held_out} kB)" in guide
        scratch, full, lora = read
        assert f"{scratch}, {lora} and {full} kB" in guide


def test_a_study_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="ledger not found"):
        draw([tmp_path], tmp_path / "none.png")
    rows = [line for line in (STUDIES[0] / "ledger.jsonl").open() if '"zero-shot-text' not in line]
    (tmp_path / "ledger.jsonl").write_text("".join(rows))
    with pytest.raises(UserError, match="holds no zero-shot and no baseline on text"):
        draw([tmp_path], tmp_path / "none.png")
