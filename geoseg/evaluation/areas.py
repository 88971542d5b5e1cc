"""Ground covered by each class: as mapped, and corrected for the errors that the labels show."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from geoseg.arrays import FloatArray
from geoseg.evaluation.blocks import Blocks
from geoseg.evaluation.result import AreaEstimate
from geoseg.network.metrics import ratio

CONFIDENCE = 0.95
M2_PER_HA = 1e4
_FEWEST_UNITS = 3


def estimate_areas(blocks: Blocks, mapped_m2: FloatArray) -> AreaEstimate:
    """Areas of all classes from a map and a labelled sample of it, stratified by mapped class.

    With A_i the area mapped as class i and p_ij the share of it that is class j in the sample, class j covers
    Σ_i A_i p_ij. Neighbouring pixels are wrong together, so blocks are the sampling units: p_ij is a ratio of sums
    over blocks, and its variance is that of the blocks' deviations from it (Taylor linearisation). With single
    pixels as blocks that is equation 10 of Olofsson et al. but for n − 1. The interval is Student's.

    ``mapped_m2`` is the area of each class in the whole map, (K,).

    Returns:
        Areas in ha; NaN if a class is mapped and the sample has none of it. Margins are NaN below three blocks.

    References:
        Olofsson et al. 2014 (see `AreaEstimate`); Cochran, Sampling Techniques, 3rd ed. 1977, sections 6 and 9.
    """
    classes = len(mapped_m2)
    sample = blocks.area_matrix()  # m², row = truth
    in_stratum = sample.sum(axis=0)
    share = ratio(sample, np.broadcast_to(in_stratum, sample.shape)).T  # (mapped, true)
    present = mapped_m2 > 0
    estimated = mapped_m2[present] @ share[present]
    grown = np.where(present & (in_stratum > 0), mapped_m2 / np.where(in_stratum > 0, in_stratum, 1), 0)
    true, mapped = blocks.cell // classes, blocks.cell % classes
    area = blocks.pixels * blocks.pixel_m2[blocks.block]
    units = len(blocks.pixel_m2)
    deviation, own = np.zeros((units, classes)), np.zeros((units, classes))
    np.add.at(deviation, (blocks.block, true), grown[mapped] * area)
    np.add.at(own, (blocks.block, mapped), area)
    deviation -= own @ (grown[:, None] * np.nan_to_num(share))
    used = int((own.sum(axis=1) > 0).sum())
    margin = np.full(classes, np.nan)
    if used >= _FEWEST_UNITS:
        error = np.sqrt(used / (used - 1) * (deviation**2).sum(axis=0))
        margin = np.where(np.isnan(estimated), np.nan, student(used - 1) * error)
    return AreaEstimate(mapped_m2 / M2_PER_HA, estimated / M2_PER_HA, margin / M2_PER_HA)


def student(freedom: int) -> float:
    """Student's quantile of a two-sided interval, within 3 % from two degrees of freedom on, 0.1 % from six on.

    References:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom ** (i + 1) for i, term in enumerate(terms))
