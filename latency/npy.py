"""Arrays in NumPy's file format, as they travel between a service and its clients."""

import io
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from latency.errors import InputError

NPY = "application/x-npy"
"""Media type of the format."""

# Longest header that is read; an array of numbers needs less than 128 bytes.
_LONGEST_HEADER = 1000


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """An array in NumPy's file format."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def npy_array(content: bytes) -> npt.NDArray[Any]:
    """The array of float32 or float64 in a file of NumPy's format, [n, …].

    Raises:
        InputError: it is none, or its header does not fit its length.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_LONGEST_HEADER)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError, TokenError) as error:
        raise InputError(f"The body is no {NPY} of version 1.0: {error}.") from error
    data = content[file.tell() :]
    # The length is known before anything of the size that the header states is made.
    n_bytes = dtype.itemsize
    for size in shape:
        n_bytes *= size
    if dtype.str not in ("<f4", "<f8") or fortran or len(shape) > 2 or n_bytes != len(data):
        raise InputError(
            f"A {NPY} holds float32 or float64 in rows, as long as its header says; got {dtype} of shape {shape} "
            f"in {len(data)} bytes."
        )
    return np.frombuffer(data, dtype=dtype).reshape(shape)
