"""Every kernel compiles ahead of time, in every shipped configuration, without a GPU."""

import pytest

pytest.importorskip("triton")

from kernels.inspect import ARCHITECTURES, KERNELS, SHARED_LIMIT, compile_all, compiling

OPCODE = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
MULTIPLIES = {"forward", "backward_keys", "backward_queries", "symmetric_product"}
SPILLED_LIMIT = 192  # bytes per thread if head_dim > 64; otherwise 0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return list(compile_all(ARCHITECTURES, KERNELS))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_everything_compiles_without_spilling(compiled, arch):
    found = [row for row in compiled if row.arch == arch]
    assert len({row.kernel for row in found}) == 16
    for row in found:
        wide = row.settings.get("D", 0) > 64
        assert row.spilled <= (SPILLED_LIMIT if wide else 0), row
        assert 0 < row.registers <= 512, row
        assert row.shared <= SHARED_LIMIT[arch], row
        assert row.tensor_memory <= 512, row
        if row.kernel in MULTIPLIES and row.settings["PRECISION"] != "ieee":
            assert row.matrix.get(OPCODE[arch], 0) > 0, row
    for kernel in ("forward", "backward_keys", "backward_queries"):
        assert {row.settings["BOUNDED"] for row in found if row.kernel == kernel} == {True, False}


def test_compiling_restores_the_driver():
    import triton

    before = triton.runtime.driver._active
    with compiling("sm_90"):
        assert triton.runtime.driver.active.get_current_target().arch == 90
    assert triton.runtime.driver._active is before
