"""Bands of wavenumbers, shared by metrics, losses and the statistics of data; this module does not import jax."""

from __future__ import annotations

# First and last wavenumber of a band, in waves per domain length; the high band is everything above.
LOW_BAND = (0, 3)
MID_BAND = (4, 11)
