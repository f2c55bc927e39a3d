"""Sizes that are known only at run time, as integer polynomials: `num_tokens`, `2*batch_size`, `num_tokens*heads+1`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

Monomial = tuple[str, ...]


class Symbolic:
    """A polynomial over named dimensions, {(name, …): coefficient}; arithmetic gives an int where it can."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Monomial, int]) -> None:
        self.terms = {names: factor for names, factor in terms.items() if factor}

    @staticmethod
    def named(name: str) -> Symbolic:
        return Symbolic({(name,): 1})

    @staticmethod
    def of(value: Size) -> Symbolic:
        return value if isinstance(value, Symbolic) else Symbolic({(): int(value)})

    def simplified(self) -> Size:
        return self.terms.get((), 0) if set(self.terms) <= {()} else self

    def __add__(self, other: Size) -> Size:
        terms = dict(self.terms)
        for names, factor in Symbolic.of(other).terms.items():
            terms[names] = terms.get(names, 0) + factor
        return Symbolic(terms).simplified()

    def __mul__(self, other: Size) -> Size:
        terms: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in Symbolic.of(other).terms.items():
                names = tuple(sorted(left + right))
                terms[names] = terms.get(names, 0) + a * b
        return Symbolic(terms).simplified()

    def __sub__(self, other: Size) -> Size:
        return self + Symbolic.of(other) * -1

    def __rsub__(self, other: Size) -> Size:
        return Symbolic.of(other) - self

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Symbolic) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def __repr__(self) -> str:
        parts = ("*".join([*([str(f)] if f != 1 or not names else []), *names]) for names, f in self.terms.items())
        return "+".join(sorted(parts))


Size = int | Symbolic


def divide(a: Size, b: Size) -> Size:
    """a // b, exact where b is a number or one product that divides every term; else a new unknown."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    divisor = Symbolic.of(b).terms
    if len(divisor) == 1:
        ((names, factor),) = divisor.items()
        terms = [_divide_term(term, names, factor) for term in Symbolic.of(a).terms.items()]
        if None not in terms:
            return Symbolic(dict(term for term in terms if term is not None)).simplified()
    return Symbolic.named(f"({a!r})//({b!r})")


def _divide_term(term: tuple[Monomial, int], names: Monomial, factor: int) -> tuple[Monomial, int] | None:
    rest = list(term[0])
    for name in names:
        if name not in rest:
            return None
        rest.remove(name)
    return None if term[1] % factor else (tuple(rest), term[1] // factor)


def smaller(a: Size, b: Size) -> Size:
    """min(a, b); a size that is not known yet is at least 1."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if a == b:
        return a
    return 1 if 1 in (a, b) else Symbolic.named(f"min({a!r},{b!r})")


def larger(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if a == b:
        return a
    for one, other in ((a, b), (b, a)):
        if isinstance(one, int) and one <= 1:
            return other
    return Symbolic.named(f"max({a!r},{b!r})")


def product(sizes: Iterable[Size]) -> Size:
    return reduce(lambda a, b: a * b, sizes, 1)
