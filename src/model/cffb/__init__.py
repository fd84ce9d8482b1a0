"""KRGN's CFFB as one operator: two 3x3 convolutions of the same input side by side, one dilated, each with its PReLU,
summed ("Towards lightweight image super-resolution via re-parameterized kernel recalibration"). And, on CPUs without
gradients, the taps of a PMRB: four 1x1 convolutions with what lies between them.

torch's separate operators pass over memory six times for a CFFB, which takes longer than the arithmetic.

CPU: C++ (`cffb.cpp`, `pmrb.cpp`), compiled for this processor by one call of the C++ compiler, and only on request:

    build(dtype)            now, as a user of the library does
    build_when_needed()     by the first forward pass that needs it, as every command does

GPU: the Triton kernels of `triton.py`. They need no request: Triton compiles them when the first tensor on a GPU comes,
and they are compared with torch's operators on a small map before that one is computed.

torch's separate operators run where the fused ones cannot be used or were not requested, and everywhere if the
environment has `KRGN_FUSED=0`. After a request, the log says in one line which run.

Deterministic: the same inputs give the same bits on the same processor, for any number of threads.

    layers.py       fits, cffb, var_mean, taps_fit, taps: what the network calls
    operators.py    the operators as torch knows them: devices, shapes, gradients, counts of operations
    cpu.py          calls of the C++ library
    library.py      builds and loads it
    gpu.py          the comparison that comes before the first use of `triton.py`
"""

from .layers import cffb, fits, taps, taps_fit, var_mean
from .library import Unavailable, build, build_when_needed

__all__ = ["Unavailable", "build", "build_when_needed", "cffb", "fits", "taps", "taps_fit", "var_mean"]
