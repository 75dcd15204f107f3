"""Launch settings: plain functions of the architecture and the shape."""

import pytest
import torch

from kernels.attention import config as attention
from kernels.device import next_power_of_2, warps
from kernels.linear_cross_entropy import config as loss
from kernels.mlp import config as mlp
from kernels.newton_schulz import config as newton_schulz
from kernels.norm import config as norm
from kernels.rope import config as rope

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx942", "interpreter")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attention_has_tiles_for_every_pass_width_and_dtype(arch):
    for which in ("forward", "keys", "queries"):
        for head_dim in (1, 16, 64, 80, 128):
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                tiles = attention.config(arch, which, head_dim, dtype)
                # A matrix instruction takes 16 rows; a program has 4 or 8 warps.
                assert min(tiles.M, tiles.N) >= 16
                assert {tiles.M, tiles.N} <= {16, 32, 64, 128}
                assert tiles.warps in (4, 8)
                # Rows of LSE and delta are padded to 128, so a tile of queries must divide 128.
                assert 128 % tiles.M == 0
                assert not tiles.descriptor or (arch.startswith("sm_") and dtype != torch.float32)


def test_attention_uses_the_nearest_older_architecture():
    bf16 = torch.bfloat16
    tables = {arch: attention.config(arch, "keys", 64, bf16) for arch in ARCHITECTURES}
    assert tables["sm_86"] == tables["sm_89"] == tables["sm_120"] == tables["sm_80"]
    assert tables["sm_103"] == tables["sm_100"]
    descriptors = {arch for arch, tiles in tables.items() if tiles.descriptor}
    assert descriptors == {"sm_90", "sm_100", "sm_103"}
    assert [attention.padded_width(D) for D in (1, 16, 17, 80, 128)] == [16, 16, 32, 128, 128]


def test_warps_use_eight_elements_per_lane_and_at_most_512_lanes():
    assert [warps("sm_90", n) for n in (16, 256, 1024, 4096, 65536)] == [1, 1, 4, 16, 16]
    assert [warps("gfx942", n) for n in (16, 1024, 4096, 65536)] == [1, 2, 8, 8]
    assert [next_power_of_2(n) for n in (1, 2, 3, 576, 49152)] == [1, 2, 4, 1024, 65536]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_other_kernels_cover_their_row_with_powers_of_two(arch):
    assert norm.config(arch, 576)["BLOCK"] == 1024
    assert loss.config(arch, 49152)["BLOCK"] == 4096
    assert loss.config(arch, 300)["BLOCK"] == 512
    tile = rope.config(arch, 9, 80)
    assert (tile["HEADS"], tile["HALF"]) == (16, 64)
    for dtype in (torch.bfloat16, torch.float32):
        tiles = newton_schulz.config(arch, dtype)
        assert all(n & (n - 1) == 0 for n in tiles.values() if n != 3)
    for found in (norm.config(arch, 7), rope.config(arch, 1, 2), mlp.config(arch), tile):
        assert all(n > 0 and n & (n - 1) == 0 for n in found.values()), found
