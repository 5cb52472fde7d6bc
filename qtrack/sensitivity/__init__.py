"""What each layer costs in accuracy when it is quantized, and in time at each precision, on one model.

Accuracy is measured on calibration samples, never on those that decide. It goes through a switchboard
(`qtrack.numerics.switchboard`), on which a mixture of float and integer layers is one forward pass.
"""

from qtrack.sensitivity.measuring import Sensitivity, Switched

__all__ = ["Sensitivity", "Switched"]
