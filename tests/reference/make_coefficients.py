"""Prints the polynomial coefficients of kljax/special.py: Chebyshev fits with 60 digits."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
from mpmath import mpf

mpmath.mp.dps = 60

# Of (e^x - 1 - x) / x^2 and of (atanh(sqrt t) / sqrt t - 1) / t: terms in single and double.
FITS = {
    "_PHI": (-0.7, 0.7, 7, 13),
    "_ATANH": (0, 0.3605, 8, 18),
}


def phi(x: mpf) -> mpf:
    if abs(x) < mpf("1e-3"):
        return mpmath.fsum(x**j / mpmath.factorial(j + 2) for j in range(20))
    return (mpmath.expm1(x) - x) / x**2


def atanh_tail(t: mpf) -> mpf:
    if t < mpf("1e-3"):
        return mpmath.fsum(t**j / (2 * j + 3) for j in range(30))
    s = mpmath.sqrt(t)
    return (mpmath.atanh(s) / s - 1) / t


def fit(function: Callable[[mpf], mpf], low: float, high: float, terms: int) -> list[mpf]:
    """Coefficients from the constant upwards."""
    interval = [mpf(str(low)), mpf(str(high))]
    return mpmath.chebyfit(function, interval, terms)[::-1]


def main() -> None:
    for name, (low, high, single, double) in FITS.items():
        function = atanh_tail if name == "_ATANH" else phi
        for terms, digits in ((single, 10), (double, 17)):
            print(name, f"{terms} terms")
            for coefficient in fit(function, low, high, terms):
                print("   ", mpmath.nstr(coefficient, digits))


if __name__ == "__main__":
    main()
