"""Class maps as arrays: the strategy that draws them, and how the tracer is given one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st


def framed(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    return np.pad(values.astype(np.int16), 1, constant_values=-1)


@st.composite
def maps(draw: st.DrawFn, largest: int = 24) -> npt.NDArray[np.uint8]:
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = generator.integers(0, draw(st.integers(1, 8)), (height, width))
    factor = draw(st.integers(1, 4))
    values = np.kron(coarse, np.ones((factor, factor), int))[:height, :width].astype(np.uint8)
    speckled = generator.random((height, width)) < draw(st.sampled_from([0.0, 0.1, 0.5]))
    values[speckled] = generator.integers(0, 8, int(speckled.sum()))
    values[generator.random((height, width)) < draw(st.sampled_from([0.0, 0.1]))] = 255
    return values
