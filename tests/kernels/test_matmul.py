"""fp32 products through either library."""

import pytest
import torch

from lmkit.kernels.matmul import fast_matmul, onednn_is_exact


@pytest.mark.parametrize("shape", [(1, 7, 3), (33, 200, 1001), (700, 650, 512)])
def test_fast_products_have_the_rounding_error_of_fp32(shape):
    rows, inner, columns = shape
    torch.manual_seed(0)
    one, other = torch.randn(rows, inner), torch.randn(columns, inner)
    exact = one.double() @ other.double().T
    with fast_matmul():
        product = one @ other.T
    torch.testing.assert_close(product.double(), exact, rtol=1e-5, atol=2e-4)


def test_the_setting_is_as_before_also_after_an_error():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with pytest.raises(ZeroDivisionError), fast_matmul():
        1 / 0  # noqa: B018
    assert settings.fp32_precision == before


def test_the_probe_is_not_misled_by_autocast():
    onednn_is_exact.cache_clear()
    plain = onednn_is_exact()
    onednn_is_exact.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert onednn_is_exact() == plain
