"""Types of arrays, one name each for the whole package; shapes are told where the arrays are used."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

AnyArray: TypeAlias = npt.NDArray[Any]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
Int16Array: TypeAlias = npt.NDArray[np.int16]
Int32Array: TypeAlias = npt.NDArray[np.int32]
IntArray: TypeAlias = npt.NDArray[np.int64]
Float32Array: TypeAlias = npt.NDArray[np.float32]
FloatArray: TypeAlias = npt.NDArray[np.float64]

Pixels: TypeAlias = npt.NDArray[Any]  # imagery (B, H, W) or (B, N), in the file's data type
Valid: TypeAlias = npt.NDArray[np.bool_]  # where imagery is valid: (H, W) or (N,)
Geometries: TypeAlias = npt.NDArray[Any]  # shapely geometries (N,)
