"""The determinism switch is torch's, and is put back."""

import pytest
import torch

from hasten.training.determinism import deterministic


@pytest.mark.parametrize("before", [False, True])
def test_torchs_setting_is_as_before_afterwards(before):
    torch.use_deterministic_algorithms(before)
    switches = (
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.cudnn_sdp_enabled,
    )
    kernels = [enabled() for enabled in switches]
    try:
        with pytest.raises(KeyError), deterministic(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            assert not any(enabled() for enabled in switches)
            assert not torch.utils.deterministic.fill_uninitialized_memory
            raise KeyError
        assert [enabled() for enabled in switches] == kernels
        assert torch.are_deterministic_algorithms_enabled() == before
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
        with deterministic(False):
            assert torch.are_deterministic_algorithms_enabled() == before
    finally:
        torch.use_deterministic_algorithms(False)
