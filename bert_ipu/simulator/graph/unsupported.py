"""Operators of torch that PopTorch refuses, though the simulator's host could run them, and what to use instead.

Each is one that torch gives to the device whole, and for which PopTorch 3.4 has no handler (`c10::aten::` symbols
of `poptorch/source/`), so that `ErrorOnUnsupportedAten.cpp` stops the compilation.  `docs/simulator.md` lists them.
"""

from __future__ import annotations

from typing import Optional

from torch._ops import OpOverload

ON_THE_HOST = "compute it before the model is called, or in the model on the host by `poptorch.CPU`"

INSTEAD: dict[str, str] = {
    ON_THE_HOST: """
        cholesky cholesky_inverse _cholesky_solve_helper geqrf ormqr lu_unpack linalg_cholesky_ex
        linalg_eig _linalg_eigh _linalg_eigvals linalg_inv_ex _linalg_det _linalg_slogdet
        _linalg_solve_ex _linalg_svd linalg_lstsq linalg_lu linalg_lu_factor_ex linalg_lu_solve
        linalg_ldl_factor_ex linalg_ldl_solve linalg_qr linalg_householder_product linalg_matrix_exp
        linalg_solve_triangular triangular_solve _fft_c2c _fft_c2r _fft_r2c view_as_complex view_as_real
        angle digamma erfinv i0 igamma igammac lgamma mvlgamma polygamma special_bessel_j0
        special_bessel_j1 special_bessel_y0 special_bessel_y1 special_erfcx special_i0e special_i1
        special_i1e special_ndtri special_zeta special_log_ndtr special_airy_ai
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
        special_modified_bessel_k1 special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
        special_spherical_bessel_j0 special_chebyshev_polynomial_t special_chebyshev_polynomial_u
        special_chebyshev_polynomial_v special_chebyshev_polynomial_w
        special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
        special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w
        special_hermite_polynomial_h special_hermite_polynomial_he special_laguerre_polynomial_l
        special_legendre_polynomial_p linalg_pinv cholesky_solve grid_sampler_2d grid_sampler_3d gcd lcm
        nextafter frexp segment_reduce cummax cummin
    """,
    "draw on the host and pass the result in, or draw with `torch.rand`, `randn`, `bernoulli`, `Tensor.uniform_`, "
    "`normal_`, `exponential_` or `random_`, which the IPU has": """
        multinomial poisson binomial geometric cauchy log_normal _sample_dirichlet _standard_gamma
    """,
    "use `torch.sort` or `torch.topk` and an index into its result": "kthvalue mode nanmedian",
    "use `torch.bincount` of bucket numbers that `torch.bucketize` gives": """
        histc histogram _histogramdd_from_bin_cts _histogramdd_bin_edges
    """,
    "use `torch.bucketize`": "searchsorted",
    "use the logarithm of a `torch.cumsum` of exponentials, less their maximum": """
        logcumsumexp _logcumsumexp
    """,
    "use a pooling with a fixed kernel, `max_pool2d` or `max_pool3d`": """
        adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d
        max_unpool3d
    """,
    "use `smooth_l1_loss`, of which it is a multiple": "huber_loss",
    "use `multilabel_soft_margin_loss` or `cross_entropy`": """
        multi_margin_loss multilabel_margin_loss_forward
    """,
    "use `torch.reshape` and `permute`": "pixel_unshuffle channel_shuffle",
    "use `torch.nn.functional.pad` of two dimensions at a time": "reflection_pad3d",
    "use `index_select` or `gather` of the flattened tensor": "take",
    "use slices, `unfold`, `diagonal` or `reshape`": "as_strided as_strided_copy as_strided_scatter",
    "use `torch.where`": "masked_scatter heaviside nan_to_num copysign signbit isposinf isneginf",
    "use `torch.maximum` and `torch.minimum`": "fmax fmin",
    "use `torch.amin` and `torch.amax`": "aminmax",
    "use `torch.sign`": "sgn",
    "use `!=` of booleans": "logical_xor",
    "compare with `==` in a dimension more, and take `any` of it": "isin",
    "write it as `a + weight * (b - a)`": "lerp",
    "use `torch.pow(2, x)`": "exp2",
    "use `torch.sqrt` of the sum of squares": "hypot",
    "multiply by `torch.log`, and choose the limit with `torch.where`": """
        xlogy special_xlog1py special_entr
    """,
    "use `torch.log(x / (1 - x))`": "logit",
    "divide `torch.sin` by its argument": "sinc",
    "use `torch.logsumexp` of the stacked operands": "logaddexp logaddexp2",
    "multiply by a power of two, or use `torch.floor_divide`": """
        bitwise_left_shift bitwise_right_shift
    """,
    "use `scatter` or `scatter_add` with an index of the source's shape, or `poptorch.dynamic_update`": """
        index_add index_copy put
    """,
    "use `torch.dot`": "vdot",
    "use the sum of `torch.diagonal`": "trace",
    "use `torch.bmm` and a sum": "addbmm",
    "use `torch.cdist`": "_pdist_forward",
    "divide by `torch.norm` where it is too large": "renorm",
    'use `mode="nearest"`, or `mode="bilinear"` or `"bicubic"` without `antialias`': """
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    """,
    "give the recurrent layer the padded sequences, and mask what follows their ends": """
        _pack_padded_sequence _pad_packed_sequence
    """,
    "pass dense tensors": "_to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc",
}
"""What to do instead, and of which operators, by ATen's names."""

_INSTEAD_OF = {f"aten::{name}": hint for hint, names in INSTEAD.items() for name in names.split()}


def way_around(func: OpOverload) -> Optional[str]:
    """What to do instead of calling an operator that PopTorch lacks; None for all others."""
    return _INSTEAD_OF.get(func._schema.name)
