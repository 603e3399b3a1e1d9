"""Operators of torch that PopTorch refuses, though the simulator's host could run them, and what to use instead.

Each is one that torch gives to the device whole, and for which PopTorch 3.4 has no handler (`c10::aten::` symbols
of `poptorch/source/`), so that `ErrorOnUnsupportedAten.cpp` stops the compilation.  `docs/simulator.md` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch._ops import OpOverload

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph.sources import Origin, describe

ON_THE_HOST = "compute it before the model is called, or in the model on the host by `poptorch.CPU`"

INSTEAD: dict[str, tuple[str, ...]] = {
    ON_THE_HOST: (
        *("cholesky", "cholesky_inverse", "_cholesky_solve_helper", "geqrf", "ormqr", "lu_unpack"),
        *("linalg_cholesky_ex", "linalg_eig", "_linalg_eigh", "_linalg_eigvals", "linalg_inv_ex"),
        *("_linalg_det", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd", "linalg_lstsq", "linalg_lu"),
        *("linalg_lu_factor_ex", "linalg_lu_solve", "linalg_ldl_factor_ex", "linalg_ldl_solve", "linalg_qr"),
        *("linalg_householder_product", "linalg_matrix_exp", "linalg_solve_triangular", "triangular_solve"),
        *("_fft_c2c", "_fft_c2r", "_fft_r2c", "view_as_complex", "view_as_real", "angle"),
        *("digamma", "erfinv", "i0", "igamma", "igammac", "lgamma", "mvlgamma", "polygamma"),
        *(
            "special_bessel_j0",
            "special_bessel_j1",
            "special_bessel_y0",
            "special_bessel_y1",
            "special_erfcx",
        ),
        *("special_i0e", "special_i1", "special_i1e", "special_ndtri", "special_zeta"),
        *("grid_sampler_2d", "grid_sampler_3d", "gcd", "lcm", "nextafter", "frexp", "segment_reduce"),
        *("cummax", "cummin"),
    ),
    "draw on the host and pass the result in, or draw with `torch.rand`, `randn`, `bernoulli`, `Tensor.uniform_`, "
    "`normal_`, `exponential_` or `random_`, which the IPU has": (
        *("multinomial", "poisson", "binomial", "geometric", "cauchy", "log_normal"),
        *("_sample_dirichlet", "_standard_gamma"),
    ),
    "use `torch.sort` or `torch.topk` and an index into its result": ("kthvalue", "mode", "nanmedian"),
    "use `torch.bincount` of bucket numbers that `torch.bucketize` gives": (
        *("histc", "histogram", "_histogramdd_from_bin_cts", "_histogramdd_bin_edges"),
    ),
    "use `torch.bucketize`": ("searchsorted",),
    "use the logarithm of a `torch.cumsum` of exponentials, less their maximum": ("_logcumsumexp",),
    "use a pooling with a fixed kernel, `max_pool2d` or `max_pool3d`": (
        *("adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "fractional_max_pool3d"),
        *("max_unpool2d", "max_unpool3d"),
    ),
    "use `smooth_l1_loss`, of which it is a multiple": ("huber_loss",),
    "use `multilabel_soft_margin_loss` or `cross_entropy`": (
        *("multi_margin_loss", "multilabel_margin_loss_forward"),
    ),
    "use `torch.reshape` and `permute`": ("pixel_unshuffle", "channel_shuffle"),
    "use `torch.nn.functional.pad` of two dimensions at a time": ("reflection_pad3d",),
    "use `index_select` or `gather` of the flattened tensor": ("take",),
    "use `torch.where`": ("masked_scatter", "heaviside"),
    "give the recurrent layer the padded sequences, and mask what follows their ends": (
        *("_pack_padded_sequence", "_pad_packed_sequence"),
    ),
    "pass dense tensors": (
        "_to_sparse",
        "_to_sparse_csr",
        "_to_sparse_csc",
        "_to_sparse_bsr",
        "_to_sparse_bsc",
    ),
}

_INSTEAD_OF = {f"aten::{name}": hint for hint, names in INSTEAD.items() for name in names}


def check_supported(func: OpOverload, origin: Origin) -> None:
    """Raises Error for an operator that PopTorch lacks, with its place and what to use instead."""
    hint = _INSTEAD_OF.get(func._schema.name)
    if hint is not None:
        raise poptorch_error(
            f"Unsupported ops found in compiled model: [{func._schema.name}]. {describe(func, origin)} has no "
            f"counterpart on the IPU: {hint}."
        )


def refused() -> Iterator[str]:
    """The names of all operators that are refused."""
    yield from _INSTEAD_OF
