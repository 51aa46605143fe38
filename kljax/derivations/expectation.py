"""Expectations, each with several honest ways to compute it.

A law is the image loc + root xi of a fixed standard law, or a finite list of probabilities.
A route says where the integrand is evaluated:

    cubature   Gauss nodes that move with the parameters: exact for polynomials, and so are
               the derivatives of the sum
    sigma      2 d points, exact for polynomials of degree 3
    grid       nodes that stay, weights that carry the density: derivatives act on q alone
    score      nodes that stay where they are, reweighted: the score-function gradient
    at         a single point, any point: what algebra under an expectation must survive
    samples    independent draws
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kljax.derivations import expression as ex
from kljax.derivations import layout
from kljax.derivations.expression import Constant, Expr, Index, Op, Symbol
from kljax.derivations.layout import Box
from kljax.derivations.series import Series

LOG_2PI = ex.Named(math.log(2 * math.pi), "log 2π")


class Law(NamedTuple):
    """What an expectation is over.

    Attributes:
        label: its name, such as q.
        base: `normal`, `exponential`, `uniform` or `finite`.
        loc: shift; the probabilities of a finite law.
        root: a scale, a vector of scales or a lower triangular matrix.
        log_density: function of a point.
    """

    label: str
    base: str
    loc: Any
    root: Any
    log_density: Callable[[Any], Any]


class Route(NamedTuple):
    """How expectations of a line are computed; `nodes` of them an axis, where that is free."""

    kind: str
    nodes: int = 3


CUBATURE = Route("cubature")
SIGMA = Route("sigma")
GRID = Route("grid", 1201)
SCORE = Route("score")


def cubature(count: int) -> Route:
    """Gauss nodes, exact for polynomials of degree 2 count - 1."""
    return Route("cubature", count)


# ---- densities and laws ---------------------------------------------------------------------


def _show_log_normal(x: Box, loc: Box, spread: Box) -> Box:
    inside = layout.row(layout.SUM, x, layout.operator(";"), loc, layout.operator(","), spread)
    return layout.row(
        layout.APPLICATION,
        layout.word("log"),
        layout.word("N"),
        layout.fence(inside),
    )


def _log_normal(x: Any, loc: Any, variance: Any) -> Any:
    return -((x - loc) ** 2) / (2 * variance) - ex.log(variance) / 2 - LOG_2PI / 2


def _log_gaussian(x: Any, loc: Any, covariance: Any) -> Any:
    delta = x - loc
    square = ex.dot(delta, ex.matmul(ex.inv(covariance), delta))
    return -(square + ex.logdet(covariance) + ex.dimension(loc) * LOG_2PI) / 2


# log N(x; m, v) of a number, log N(x; m, S) of a vector.
log_normal = Op("log_normal", _log_normal, _show_log_normal)
log_gaussian = Op("log_gaussian", _log_gaussian, _show_log_normal)


def normal(loc: Any, scale: Any, label: str = "q") -> Law:
    """The normal law of a number."""
    return Law(label, "normal", loc, scale, lambda x: log_normal(x, loc, scale**2))


def normal_by_variance(loc: Any, variance: Any, label: str = "q") -> Law:
    """The normal law of a number, by its variance."""
    root = ex.sqrt(variance)
    return Law(label, "normal", loc, root, lambda x: log_normal(x, loc, variance))


def independent(loc: Any, scale: Any, label: str = "q") -> Law:
    """The normal law of a vector with independent coordinates."""

    def log_density(x: Any) -> Any:
        return ex.sum_over(loc, lambda i: log_normal(x[i], loc[i], scale[i] ** 2))

    return Law(label, "normal", loc, scale, log_density)


def gaussian(loc: Any, covariance: Any, label: str = "q") -> Law:
    """The normal law of a vector."""
    root = ex.cholesky(covariance)
    return Law(label, "normal", loc, root, lambda x: log_gaussian(x, loc, covariance))


def gaussian_by_factor(loc: Any, factor: Any, label: str = "q") -> Law:
    """The normal law of loc + factor xi."""
    return Law(label, "normal", loc, factor, lambda x: log_gaussian(x, loc, factor @ factor.T))


def exponential(rate: Any, label: str = "q") -> Law:
    """The law with density rate exp(-rate x) on x > 0."""
    return Law(label, "exponential", 0 * rate, 1 / rate, lambda x: ex.log(rate) - rate * x)


def uniform(low: Any, width: Any, label: str = "q") -> Law:
    """The uniform law on low < x < low + width."""
    return Law(label, "uniform", low, width, lambda x: -ex.log(width) + 0 * x)


def line() -> Law:
    """No law at all: an integral over the whole line is a sum over a fixed grid."""
    return Law("", "line", 0.0, 1.0, lambda x: 0.0 * x)


def finite(probabilities: Any, label: str = "q") -> Law:
    """The law of a place 0, 1, ... with these probabilities; the place is an index."""
    return Law(label, "finite", probabilities, 0.0, lambda i: ex.log(probabilities[i]))


# ---- standard nodes -------------------------------------------------------------------------


def _gauss(base: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    match base:
        case "normal":
            nodes, weights = np.polynomial.hermite_e.hermegauss(count)
        case "exponential":
            nodes, weights = np.polynomial.laguerre.laggauss(count)
        case "uniform":
            nodes, weights = np.polynomial.legendre.leggauss(count)
            nodes = (nodes + 1) / 2
        case _:
            raise ValueError(f"no Gauss nodes are known for the base law {base!r}.")
    return nodes, weights / weights.sum()


@functools.cache
def _standard_nodes(base: str, route: Route, dim: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (n,) or (n, dim), and weights (n,), of a standard law."""
    if route.kind == "sigma" and base == "normal":
        size = dim or 1
        nodes = math.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])
        weights = np.full(2 * size, 1 / (2 * size))
    else:
        line, weight = _gauss(base, route.nodes)
        nodes = np.array(list(itertools.product(line, repeat=dim or 1)))
        weights = np.array([np.prod(w) for w in itertools.product(weight, repeat=dim or 1)])
    return (nodes, weights) if dim is not None else (nodes[:, 0], weights)


def _fixed_nodes(base: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for an integral over the whole line, or half of it.

    The trapezoidal sum of a smooth function that dies off at both ends converges faster than
    any power of the step: the error is e^(-2 pi^2 s^2 / h^2) for a normal law of scale s.
    """
    if base == "normal":
        nodes = np.linspace(-60.0, 60.0, count)
        return nodes, np.full(count, 120.0 / (count - 1))
    if base == "exponential":
        # x = e^u, so that both ends die off.
        u = np.linspace(-36.0, math.log(400.0), count)
        return np.exp(u), np.exp(u) * (u[1] - u[0])
    raise ValueError(f"no fixed grid is known for the base law {base!r}.")


def _log_standard(base: str, xi: Any) -> Any:
    if base == "normal":
        return -(xi * xi) / 2 - LOG_2PI / 2
    if base == "exponential":
        return -xi
    raise ValueError(f"the base law {base!r} has no smooth density to reweight with.")


def _rank(x: Any) -> int:
    return x.rank if isinstance(x, Series) else jnp.ndim(x)


def _place(loc: Any, root: Any, xi: Any) -> Any:
    """Loc + root xi, for a scale, a vector of scales or a matrix."""
    return loc + (ex.matmul(root, xi) if _rank(root) == 2 else root * xi)


def _log_density(base: str, loc: Any, root: Any, x: Any) -> Any:
    match _rank(root):
        case 0:
            return _log_standard(base, (x - loc) / root) - ex.log(root)
        case 1:
            xi = (x - loc) / root
            return ex.SUM(_log_standard(base, xi) - ex.log(root))
        case _:
            xi = ex.matmul(ex.inv(root), x - loc)
            return ex.SUM(_log_standard(base, xi) - ex.log(ex.diagonal(root)))


# ---- the readings of E ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ExpectationOp(Op):
    """E or an integral, of a law."""

    base: str = "normal"
    integral: bool = False


def _expectation_op(law: Law, integral: bool) -> ExpectationOp:
    def show(_loc: Box, _root: Box, body: Box, bound: Box) -> Box:
        if law.base == "line":
            differential = layout.row(layout.ATOM, layout.operator("d"), bound)
            inside = layout.hold(body, layout.PRODUCT)
            return layout.row(layout.PRODUCT, layout.operator("∫"), inside, differential)
        if integral:
            density = layout.row(layout.ATOM, layout.name(law.label), layout.fence(bound))
            differential = layout.row(layout.ATOM, layout.operator("d"), bound)
            inside = layout.fence(body, "[", "]")
            return layout.row(
                layout.PRODUCT, layout.operator("∫"), density, inside, differential
            )
        sign = layout.index(layout.word("E"), layout.name(law.label))
        return layout.row(layout.APPLICATION, sign, layout.fence(body, "[", "]"))

    name = "integral" if integral else "expectation"
    return ExpectationOp(name, ex.LEAF.compute, show, law.base, integral)


class Symbolic:
    """E read as notation."""

    def __init__(self, law: Law):
        self._law = law

    def __call__(self, function: Callable[[Any], Any], law: Law | None = None) -> Expr:
        return self._bind(function, law or self._law, False)

    def integral(self, function: Callable[[Any], Any], law: Law | None = None) -> Expr:
        return self._bind(function, law or self._law, True)

    def _bind(self, function: Callable[[Any], Any], law: Law, integral: bool) -> Expr:
        op = _expectation_op(law, integral)
        return ex.binder(op, (law.loc, law.root), function, ex.variable_name(function))


class Numeric:
    """E read as numbers, differentiable by JAX."""

    def __init__(self, law: Law, route: Route):
        self._law = law
        self._route = route

    def __call__(self, function: Callable[[Any], Any], law: Law | None = None) -> Array:
        return self._compute(function, law or self._law, self._route)

    def integral(self, function: Callable[[Any], Any], law: Law | None = None) -> Array:
        return self._compute(function, law or self._law, GRID)

    def _compute(self, function: Callable[[Any], Any], law: Law, route: Route) -> Array:
        if law.base == "finite":
            places = jnp.arange(law.loc.shape[0])
            return _weighted(law.loc, jax.vmap(function)(places))
        loc, root = jnp.asarray(law.loc), jnp.asarray(law.root)
        if law.base == "line":
            nodes, weights = _fixed_nodes("normal", GRID.nodes)
            return _weighted(jnp.asarray(weights), jax.vmap(function)(jnp.asarray(nodes)))
        if route.kind == "grid":
            nodes, weights = _fixed_nodes(law.base, route.nodes)
        else:
            dim = loc.shape[0] if loc.ndim else None
            nodes, weights = _standard_nodes(law.base, route, dim)

        def one(node: Array) -> tuple[Any, Any]:
            return _node(law.base, route.kind, loc, root, node, function)

        values, factors = jax.vmap(one)(jnp.asarray(nodes))
        return _weighted(jnp.asarray(weights) * factors, values)


def _weighted(weights: Array, values: Array) -> Array:
    return jnp.tensordot(weights, values, 1, precision="highest")


def _node(
    base: str, kind: str, loc: Any, root: Any, node: Any, function: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """The integrand at a node, and the factor of the node's weight."""
    if kind == "grid":
        return function(node), ex.exp(_log_density(base, loc, root, node))
    x = _place(loc, root, node)
    if kind != "score":
        return function(x), 1.0
    x = ex.stop_gradient(x)
    log_q = _log_density(base, loc, root, x)
    return function(x), ex.exp(log_q - ex.stop_gradient(log_q))


# ---- the tree among series ------------------------------------------------------------------


class Reading:
    """Evaluates trees of one line at one batch of points, remembering every node.

    An altered formula shares all nodes but those on the way to its root with the original,
    so that only these are evaluated anew.

    Args:
        values: parameters by their symbol.
        route: where expectations are evaluated.
        at: with the route `at`, function of an event's shape to the coefficients of the
            point (2^count, *event, batch): it may move, as no law singles it out.
        draws: with the route `samples`, function of (base, event's shape) to independent
            draws (*event, n, batch).
    """

    def __init__(
        self,
        values: dict[Symbol, Series],
        route: Route,
        at: Callable[[tuple[int, ...]], np.ndarray] | None = None,
        draws: Callable[[str, tuple[int, ...]], np.ndarray] | None = None,
    ):
        self._bound: dict[Symbol, Series | Index] = dict(values)
        self._count = next(iter(values.values())).count
        self._route = route
        self._at = at
        self._draws = draws
        self._memory: dict[tuple[Expr, int, int], Any] = {}

    def shapes(self) -> dict[Expr, tuple[int, ...]]:
        """The event shape of every node evaluated so far."""
        return {
            key[0]: value.shape if isinstance(value, Series) else np.shape(value)
            for key, value in self._memory.items()
            if not isinstance(value, Index)
        }

    def __call__(self, x: Expr) -> Series:
        return self._value(x, 0, self._count)

    def _value(self, x: Expr, depth: int, count: int) -> Any:
        if isinstance(x, Constant):
            return x.value
        key = (x, depth, count)
        if key not in self._memory:
            self._memory[key] = self._compute(x, depth, count)
        return self._memory[key]

    def _compute(self, x: Expr, depth: int, count: int) -> Any:
        if isinstance(x, Symbol):
            value = self._bound[x]
            return value if isinstance(value, Index) else value.deepen(depth, count)
        if x.bound is None:
            return x.op.compute(*(self._value(a, depth, count) for a in x.args))
        if isinstance(x.op, ExpectationOp):
            return self._expectation(x, depth, count)
        if x.op in (ex.SUM_OVER, ex.SUM_BUT_LAST):
            return self._sum(x, depth, count)
        if x.op is ex.LOG_MEAN_EXP:
            return self._log_mean_exp(x, depth, count)
        return self._gradient(x, depth, count)

    def _log_mean_exp(self, x: Expr, depth: int, count: int) -> Series:
        size = self._value(x.args[0], depth, count).shape[0]
        exponents = self._bind(x, Index(depth + 1), depth + 1, count)
        peak = exponents.parts[0].max(axis=-2, keepdims=True)
        shifted = Series(exponents.parts.copy(), exponents.depth)
        shifted.parts[0] -= peak
        total = (_sum_nodes(shifted.exp(), size) * (1 / size)).log()
        total.parts[0] += peak[..., 0, :]
        return total

    def _series(self, value: Any, depth: int, count: int) -> Series:
        if isinstance(value, Series):
            return value.deepen(depth, count)
        value = np.asarray(value, np.float64)
        parts = np.zeros((1 << count, *value.shape, *(1,) * (depth + 1)))
        parts[0] = value.reshape(parts.shape[1:])
        return Series(parts, depth)

    def _bind(self, x: Expr, value: Series | Index, depth: int, count: int) -> Series:
        assert x.bound is not None
        self._bound[x.bound] = value
        return self._series(self._value(x.args[-1], depth, count), depth, count)

    def _sum(self, x: Expr, depth: int, count: int) -> Series:
        size = self._value(x.args[0], depth, count).shape[0]
        body = self._bind(x, Index(depth + 1), depth + 1, count)
        if x.op is ex.SUM_OVER:
            return _sum_nodes(body, size)
        kept = self._nodes(np.arange(size)[:, None] < size - 1.0, 0, depth + 1, count)
        return _sum_nodes(body * kept, size)

    def _expectation(self, x: Expr, depth: int, count: int) -> Series:
        op = x.op
        assert isinstance(op, ExpectationOp)
        loc = self._series(self._value(x.args[0], depth, count), depth + 1, count)
        root = self._series(self._value(x.args[1], depth, count), depth + 1, count)
        if op.base == "finite":
            index = Index(depth + 1)
            body = self._bind(x, index, depth + 1, count)
            if self._route.kind == "at":
                # Any weights that add up to 1.
                weights = np.arange(1.0, loc.shape[0] + 1)
                loc = self._series(weights / weights.sum(), depth + 1, count)
            return _sum_nodes(body * ex.item.compute(loc, index), loc.shape[0])
        if op.base == "line" and self._route.kind != "at":
            nodes, weights = _fixed_nodes("normal", GRID.nodes)
            node = self._nodes(nodes[:, None], 0, depth + 1, count)
            weight = self._nodes(weights[:, None], 0, depth + 1, count)
            return _sum_nodes(self._bind(x, node, depth + 1, count) * weight, GRID.nodes)
        shape = loc.shape or root.shape[:1]
        kind = self._route.kind
        if op.integral and kind not in ("at", "samples"):
            kind = "grid"
        if kind == "at":
            assert self._at is not None
            return self._at_point(x, shape, depth, count)
        weights = None
        if kind == "samples":
            assert self._draws is not None
            nodes = self._draws(op.base, shape)
        elif kind == "grid":
            count_of_nodes = GRID.nodes if op.integral else self._route.nodes
            nodes, weights = _fixed_nodes(op.base, count_of_nodes)
        else:
            dim = shape[0] if shape else None
            nodes, weights = _standard_nodes(op.base, self._route, dim)
        if weights is not None:
            nodes = np.moveaxis(np.asarray(nodes), 0, -1)[..., None]
        node = self._nodes(nodes, len(shape), depth + 1, count)
        body, factor = _node(
            op.base, kind, loc, root, node, lambda v: self._bind(x, v, depth + 1, count)
        )
        size = nodes.shape[-2]
        if weights is None:
            return _sum_nodes(body, size) * (1 / size)
        weight = self._nodes(weights[:, None], 0, depth + 1, count)
        return _sum_nodes(body * (weight * factor), size)

    def _at_point(self, x: Expr, shape: tuple[int, ...], depth: int, count: int) -> Series:
        assert self._at is not None
        coefficients = self._at(shape)
        ones = (1,) * (depth + 1)
        split = (*coefficients.shape[: 1 + len(shape)], *ones, coefficients.shape[-1])
        point = Series(coefficients.reshape(split), depth + 1).deepen(depth + 1, count)
        return _sum_nodes(self._bind(x, point, depth + 1, count), 1)

    def _nodes(self, nodes: np.ndarray, rank: int, depth: int, count: int) -> Series:
        """Constant numbers (*event, n, batch) along the newest node axis."""
        shape = nodes.shape[:rank] + (1,) * (depth - 1) + nodes.shape[rank:]
        parts = np.zeros((1 << count, *shape))
        parts[0] = nodes.reshape(shape)
        return Series(parts, depth)

    def _gradient(self, x: Expr, depth: int, count: int) -> Series:
        at = self._series(self._value(x.args[0], depth, count), depth, count)
        shape = at.shape
        size = int(np.prod(shape))
        moved = at.deepen(depth + 1, count + 1)
        parts = np.broadcast_to(
            moved.parts,
            np.broadcast_shapes(moved.parts.shape, (1, *shape, *(1,) * depth, size, 1)),
        ).copy()
        basis = np.eye(size).reshape(*shape, *(1,) * depth, size, 1)
        parts[1 << count] += basis
        body = self._bind(x, Series(parts, depth + 1), depth + 1, count + 1)
        while body.rank:
            body = ex.SUM.compute(body) if body.rank == 1 else body.contract("i...->...")
        slopes = body.parts[1 << count :]
        slopes = np.moveaxis(slopes, -2, 1)
        if slopes.shape[1] != size:
            slopes = np.broadcast_to(slopes, (len(slopes), size, *slopes.shape[2:]))
        return Series(slopes.reshape(len(slopes), *shape, *slopes.shape[2:]), depth)


def _sum_nodes(x: Series, size: int) -> Series:
    """The sum over the newest axis of nodes; what no node changes counts `size` times."""
    total = x.parts.sum(axis=-2)
    return Series(total if x.parts.shape[-2] == size else total * size, x.depth - 1)
