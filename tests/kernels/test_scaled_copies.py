"""scaled_copies: every value in its place, nothing beside it, sources read anew."""

import pytest
import torch

from hasten.kernels.scaled_copies import scaled_copies


def made(device, source=torch.float32, target=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    wide = torch.full((9, 70), float("nan"), device=device).to(target)
    sources = [torch.randn(*shape, generator=generator).to(device, source) for shape in [(9, 3), (2, 1), (4, 2500)]]
    targets = [wide[:, 64:67], wide[2:4, 69:], torch.empty(4, 2500, device=device, dtype=target)]
    return wide, list(zip(sources, targets, (1.0, -0.5, 3.0), strict=True))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float32, torch.float16)])
def test_every_value_in_its_place(device, impl, dtypes):
    wide, copies = made(device, *dtypes)
    before = wide.clone()
    table = scaled_copies.table(copies, impl)
    for _ in range(2):
        table.run()
        for source, target, factor in copies:
            assert torch.equal(target, (source * factor).to(target.dtype))
            source += 1  # the next run reads what is there then
    before[:, 64:67], before[2:4, 69:] = wide[:, 64:67], wide[2:4, 69:]
    assert torch.equal(wide.nan_to_num(-7), before.nan_to_num(-7))


def test_bfloat16_is_one_rounding(device, impl):
    _, copies = made(device)
    scaled_copies.table(copies, impl).run()
    for source, target, factor in copies:
        torch.testing.assert_close(target.float(), source * factor, rtol=2.0**-7, atol=0)


def test_what_one_launch_cannot_do_has_no_table(device):
    _, copies = made(device)
    source, target, factor = copies[0]
    assert scaled_copies.table([copies[1], (source.double(), target, factor)]) is None
    assert scaled_copies.table([(source.t().contiguous().t(), target, factor)]) is None
