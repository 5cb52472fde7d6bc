"""What each layer costs in accuracy when it is quantized, from one calibration and one conversion.

Measured on calibration samples, never on those that decide. Everything goes through a switchboard
(`qtrack.numerics.switchboard`), on which a mixture of float and integer layers is one forward pass.
"""

from qtrack.sensitivity.measuring import Sensitivity

__all__ = ["Sensitivity"]
