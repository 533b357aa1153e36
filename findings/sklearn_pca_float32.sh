#!/usr/bin/env bash
# PCA of scikit-learn invents a component if the features are float32 with a mean far from zero, such as the gray levels
# of frames. With more than ten samples for each feature its default solver is `covariance_eigh`. That sums the products
# of the raw features and then takes away those of the means. Rounding in either, also of the float32 means, remains.
#
# 2026-11-30, scikit-learn 1.9.1, numpy 2.4.6, scipy 1.17.1. (a) 20,000 float32 frames, 8 x 8, of a gray scene with a
# noise of 0.3 levels, in which one pixel, anywhere, is 3 levels brighter. All directions have about the same variance.
# The first two variances | the number of components for 90% of the variance. Seen:
#     gray level 0: 0.257 0.256 | 57 (full solver: 0.257 0.256 | 57)
#     gray level 100: 1.63 0.261 | 56 (full solver: 0.257 0.256 | 57)
#     gray level 200: 5.64 0.305 | 52 (full solver: 0.257 0.256 | 57)
#     gray level 200, frames less their mean: 0.257 0.256 | 57
#     gray level 200, the same frames as float64: 0.257 0.256 | 57
#     first component at level 200: cosine 0.75 to "all pixels alike" (full solver: 0.00)
# (b) 20,000 states of 16 numbers, made of three factors with variances of 9, 1 and 0.09. The first variances. Seen:
#     offset 0: 9.01 0.99 0.0936 0.0026
#     offset 100: 9.03 0.992 0.297 0.074
#     offset 1000: 21.7 8.17 1.01 0.868 (full solver: 9.01 0.99 0.0936 0.00262)
# (Other kernels of OpenBLAS change the third digit.)
#
# The docstring says of the solver: "Precompute the covariance matrix (on centered data)". The code does not center, to
# save a copy. The docstring warns of "input data with a large range of singular values". Here all 64 singular values of
# the centered frames are alike. It is the mean that counts, and PCA does not depend on the mean.
#
# Why it matters: PCA of frames or latents is how a study finds the dimension of a representation, draws it, or whitens
# it. The first axis of the plot is then a brightness of the whole frame that is in no frame, and explained variances
# are off by any factor. With 500 such frames the solver is another one, and the result is right.
# Expected before: the variances of the full solver, up to 1e-3, whatever the mean.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import numpy as np
import sklearn
from sklearn.decomposition import PCA

SAMPLES = 20000
print("scikit-learn", sklearn.__version__, "numpy", np.__version__)


def frames(level):
    random = np.random.default_rng(0)
    made = level + random.normal(0, 0.3, (SAMPLES, 64))
    made[np.arange(SAMPLES), random.integers(0, 64, SAMPLES)] += 3
    return made.astype(np.float32)


def states(offset):
    random = np.random.default_rng(0)
    factors = random.normal(size=(SAMPLES, 3)) * [3, 1, 0.3]
    mixing = np.linalg.qr(random.normal(size=(16, 3)))[0]
    return (offset + factors @ mixing.T + random.normal(0, 0.05, (SAMPLES, 16))).astype(np.float32)


def fit(data, **options):
    pca = PCA(0.9, **options).fit(data)
    if not options:
        assert pca._fit_svd_solver == "covariance_eigh"
    return pca


def show(pca):
    return f"{pca.explained_variance_[0]:.3g} {pca.explained_variance_[1]:.3g} | {pca.n_components_}"


good = True
for level in (0, 100, 200):
    data = frames(level)
    pca, full = fit(data), fit(data, svd_solver="full")
    print(f"gray level {level}: {show(pca)} (full solver: {show(full)})")
    factor = pca.explained_variance_[0] / full.explained_variance_[0]
    good &= abs(factor - 1) < 1e-3 if level == 0 else factor > 3
    good &= full.explained_variance_[0] < 0.27
centered, double = fit(data - data.mean(0, dtype=np.float64).astype(np.float32)), fit(data.astype(np.float64))
print("gray level 200, frames less their mean:", show(centered))
print("gray level 200, the same frames as float64:", show(double))
cosine = abs(pca.components_[0].sum()) / 8
other = abs(full.components_[0].sum()) / 8
print(f'first component at level 200: cosine {cosine:.2f} to "all pixels alike" (full solver: {other:.2f})')
good &= cosine > 0.5 > other and max(p.explained_variance_[0] for p in (centered, double)) < 0.27
good &= pca.n_components_ < full.n_components_ == double.n_components_
for offset in (0, 100, 1000):
    data = states(offset)
    found, right = (PCA(4, **options).fit(data).explained_variance_ for options in ({}, {"svd_solver": "full"}))
    end = f" (full solver: {' '.join(f'{v:.3g}' for v in right)})" if offset == 1000 else ""
    print(f"offset {offset}: {' '.join(f'{v:.3g}' for v in found)}{end}")
    good &= abs(right[0] - 9) < 0.3
good &= found[0] > 2 * right[0]
sys.exit(0 if good else 1)
PYTHON
