"""The one door: which pair of families has a closed form, and how to ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
from jax import Array

from kljax import _batches, _record

_Rule = TypeVar("_Rule", bound=Callable[..., Any])
_Precision = Literal["default", "high"]


class ClosedForm(NamedTuple):
    """A registered pair.

    Attributes:
        q: family of the first argument.
        p: family of the second argument.
        formula: what is evaluated, in a line.
        cost: operations for one pair, in the size of an event.
        kl: the rule for one event, returning a scalar.
        terms: the rule for `kl_terms`, or None.
        cross_entropy: the rule for `cross_entropy`, or None.
        from_unit: the rule for KL(q ‖ N(loc, I)), of q and loc, or None.
        own_axes: whether event axes of one name may differ between q and p.
    """

    q: type
    p: type
    formula: str
    cost: str
    kl: Callable[[Any, Any], Array]
    terms: Callable[[Any, Any], Any] | None
    cross_entropy: Callable[[Any, Any], Array] | None
    from_unit: Callable[[Any, Array], Array] | None
    own_axes: bool = False

    def __repr__(self) -> str:
        return f"KL({self.q.__name__} ‖ {self.p.__name__}), {self.cost}: {self.formula}"


_TABLE: dict[tuple[type, type], ClosedForm] = {}


def register_kl(
    q: type,
    p: type,
    *,
    terms: Callable[[Any, Any], Any] | None = None,
    cross_entropy: Callable[[Any, Any], Array] | None = None,
    from_unit: Callable[[Any, Array], Array] | None = None,
    own_axes: bool = False,
    cost: str = "",
) -> Callable[[_Rule], _Rule]:
    """Registers the decorated function as the closed form of KL(q ‖ p).

    The rule sees one event of each (records whose fields have no batch axes) and returns a
    scalar in nats; batches, dtypes and shape errors are taken care of.

    Args:
        q: family of the first argument, a class made by `kljax.record`.
        p: family of the second argument.
        terms: rule that returns the parts of the divergence, for `kl_terms`.
        cross_entropy: rule for -E_q log p; without it, entropy + KL is used.
        from_unit: rule of q and p.loc, used where the covariance of p is known to be the
            identity while a program is traced: in numbers or NumPy arrays, not JAX arrays.
            So p has a loc, and its fields of the group `one_of="spread"` say by `unit` which
            value that is.
        own_axes: whether event axes of one name may differ between q and p, whose rule
            then says itself which events fit together.
        cost: operations for one pair, such as `"O(d)"`.

    Raises:
        TypeError: if a family was not made by `kljax.record`.
        ValueError: if the pair has a closed form already.
    """
    for family in (q, p):
        if not _record.is_family(family):
            raise TypeError(f"register_kl needs classes made by kljax.record; got {family!r}.")
    if (q, p) in _TABLE:
        raise ValueError(
            f"KL({q.__name__} ‖ {p.__name__}) is registered already; closed forms are "
            "never replaced, since compiled programs may hold the old one."
        )

    def register(rule: _Rule) -> _Rule:
        formula = (rule.__doc__ or rule.__name__).strip().splitlines()[0]
        _TABLE[q, p] = ClosedForm(
            q, p, formula, cost, rule, terms, cross_entropy, from_unit, own_axes
        )
        return rule

    return register


def closed_forms() -> tuple[ClosedForm, ...]:
    """Every registered pair, in the order of registration."""
    return tuple(_TABLE.values())


def closed_form(function: str, q: Any, p: Any) -> ClosedForm:
    """The entry of a pair, or the one error that says what there is instead."""
    found = _TABLE.get((type(q), type(p)))
    if found is not None:
        return found
    for name, x in (("q", q), ("p", p)):
        if not _record.is_record(x):
            raise TypeError(
                f"{function} needs two distributions, q first; {name} is {_record.describe(x)}."
            )
    left, right = type(q).__name__, type(p).__name__
    against = [form.p.__name__ for form in _TABLE.values() if form.q is type(q)]
    known = f"{left} has one against {', '.join(against)}" if against else (f"{left} has none")
    raise TypeError(
        f"no closed form is registered for KL({left} ‖ {right}); {known}. Add one with "
        "@kljax.register_kl."
    )


def _check_precision(precision: str) -> None:
    if precision not in ("default", "high"):
        raise ValueError(f"precision must be 'default' or 'high'; got {precision!r}.")


def kl_divergence(q: Any, p: Any, /, *, precision: _Precision = "default") -> Array:
    """KL(q ‖ p) = E_q[log q - log p], in nats.

    Args:
        q: the distribution that the expectation is under.
        p: the distribution that q is compared with. Batch shapes broadcast, event sizes
            must be equal.
        precision: `"default"` computes in the dtype of the parameters, at least float32;
            `"high"` computes in float64 and rounds the result and its derivatives to
            that dtype, for ill-conditioned covariance matrices in float32.

    Returns:
        Array of the broadcast batch shape, in float32 (float64 if a parameter is
        float64). Never negative; exactly 0 with gradient 0 at q = p; nan where a
        parameter is invalid.

    Raises:
        TypeError: if an argument is no distribution or the pair has no closed form.
        ValueError: if shapes or given parameters do not fit together.
    """
    _check_precision(precision)
    form = closed_form("kl_divergence", q, p)
    if form.from_unit is not None and _record.has_unit_spread(p):
        return _batches.call(_kl_from_unit, q, p.loc, family=form.p, precision=precision)
    return _batches.call(_kl_divergence, q, p, precision=precision)


@jax.jit(static_argnames="precision")
def _kl_divergence(q: Any, p: Any, *, precision: _Precision) -> Array:
    form = closed_form("kl_divergence", q, p)
    return over_batches(form, form.kl, q, p, precision=precision)


def over_batches(
    form: ClosedForm, rule: Callable[..., Any], q: Any, p: Any, *, precision: _Precision
) -> Any:
    """A rule of this pair, applied to batches."""
    records = {"q": q, "p": p}
    return _batches.over_batches(rule, records, precision=precision, own_axes=form.own_axes)


@jax.jit(static_argnames=("family", "precision"))
def _kl_from_unit(q: Any, loc: Any, *, family: type, precision: _Precision) -> Array:
    rule = _TABLE[type(q), family].from_unit
    assert rule is not None
    field = family.__dataclass_fields__["loc"]
    loc = _record.argument_of("p", field, loc)
    return _batches.over_batches(rule, {"q": q}, [loc], precision=precision)


def kl_terms(q: Any, p: Any, /, *, precision: _Precision = "default") -> Any:
    """The parts of KL(q ‖ p) that its formula is made of.

    For Gaussians a `GaussianTerms` record; see there. Arguments and errors as for
    `kl_divergence`.

    Returns:
        Record of arrays of the broadcast batch shape; their units are those of the record.
    """
    _check_precision(precision)
    if closed_form("kl_terms", q, p).terms is None:
        raise TypeError(
            f"KL({type(q).__name__} ‖ {type(p).__name__}) was registered without terms; "
            "give register_kl a terms rule."
        )
    return _batches.call(_kl_terms, q, p, precision=precision)


@jax.jit(static_argnames="precision")
def _kl_terms(q: Any, p: Any, *, precision: _Precision) -> Any:
    form = closed_form("kl_terms", q, p)
    assert form.terms is not None
    return over_batches(form, form.terms, q, p, precision=precision)
