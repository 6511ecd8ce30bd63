"""The clock of a device: what turns ratios measured at any pace of the machine into milliseconds of one."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """What turns a measured ratio into milliseconds of one device.

    Attributes:
        reference_ms: latency of the reference, the unpruned network, at the clock's pace.
        exponent: g of `latency.pace`'s law; 0 leaves ratios as they were measured.
    """

    reference_ms: float
    exponent: float = 0.0

    def latency_ms(self, ratio: float, reference_ms: float) -> float:
        """A network's latency in ms as it would be at the clock's pace.

        Args:
            ratio: its latency over the reference's, as measured.
            reference_ms: the reference's at the time.
        """
        pace = math.log(reference_ms / self.reference_ms)
        return float(self.reference_ms * ratio ** (1.0 + self.exponent * pace))
