"""The picture of several studies."""

from pathlib import Path

import pytest
from PIL import Image

from cli.errors import UserError
from compare.analysis.ledger import Ledger
from compare.side_by_side import distance, draw

STUDIES = [Path("benchmarks/studies") / name for name in ("aws-api", "folk-tunes")]


def test_every_study_has_a_panel(tmp_path):
    draw(STUDIES, tmp_path / "two.png")
    draw(STUDIES[:1], tmp_path / "one.png")
    two, one = (Image.open(tmp_path / name) for name in ("two.png", "one.png"))
    assert two.width == 2 * one.width
    colours = {colour for _, colour in two.convert("RGB").getcolors(1 << 20)}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= colours  # from scratch, tuned


def test_the_distance_is_of_the_foundation_to_xz():
    near, far = (distance(Ledger.read(folder)) for folder in STUDIES)
    assert near == pytest.approx(0.936, abs=1e-3)
    assert far == pytest.approx(1.495, abs=1e-3)


def test_a_folder_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(UserError, match="ledger not found"):
        draw([tmp_path], tmp_path / "none.png")
