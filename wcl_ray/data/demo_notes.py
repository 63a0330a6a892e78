"""The museum's notes on the beetles of the demo data, and their information about the species.

T is the species, uniform over twelve. Its notes pass two noisy channels. With probability
``misfiled`` they are those of another beetle, of any species. Then every informative note is a
fixed function f_j of the noted species, but with probability ``noise`` one of its other values,
each equally likely; some are missing, with a fixed probability. Other notes are independent of T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SPECIES = (
    "ladybird", "scarab", "stag", "rhino", "longhorn", "weevil",
    "firefly", "diver", "shield", "tiger", "click", "jewel",
)  # fmt: skip
# Pairs of species (families A to F) share their way of life; only their looks distinguish them.
FAMILY = "ABCBDEEFAFDC"

Value = str | int


def _of(species: Sequence[str]) -> tuple[str, ...]:
    return tuple("yes" if name in species else "no" for name in SPECIES)


def _by(**families: Value) -> tuple[Value, ...]:
    table = {family: value for group, value in families.items() for family in group}
    return tuple(table[family] for family in FAMILY)


# Binary notes, note → value of each species. The first ``informative`` of them are used.
BITS: dict[str, tuple[Value, ...]] = {
    "nocturnal": _by(BDE="yes", ACF="no"),
    "horned": _of(("stag", "rhino", "weevil", "tiger")),
    "damp": _by(AEF="yes", BCD="no"),
    "social": _by(ABE="yes", CDF="no"),
    "flies": _of(("ladybird", "scarab", "rhino", "firefly", "diver", "tiger")),
    "hairy": _of(("scarab", "longhorn", "weevil", "firefly", "shield", "click")),
    "glossy": _of(("ladybird", "scarab", "stag", "diver", "click", "jewel")),
    "sings": _of(("scarab", "rhino", "longhorn", "weevil", "shield", "tiger")),
}
# Notes of several values, all of them used.
TRAITS: dict[str, tuple[Value, ...]] = {
    "body": ("round", "round", "long", "round", "long", "tapered",
             "long", "round", "tapered", "tapered", "long", "tapered"),
    "diet": _by(AF="prey", CD="wood", BE="leaves"),
    "habitat": _by(CDE="forest", AB="meadow", F="pond"),
    "ridges": _by(AC=4, BF=6, DE=9),
    "region": _by(AD="north", BE="south", CF="coast"),
}  # fmt: skip
MISSING = {"social": 0.05, "diet": 0.1}
# Fair coins; the first ``nuisance`` of them are used.
COINS: dict[str, tuple[Value, ...]] = {
    "sex": ("f", "m"),
    "pinned": ("left", "right"),
    "ink": ("black", "blue"),
    "paper": (0, 1),
    "drawer": ("lower", "upper"),
    "weekend": ("no", "yes"),
}
BLIND: dict[str, tuple[Value, ...]] = {
    "month": ("April", "May", "June", "July", "August", "September"),
    "shelf": tuple("ABCDEFGH"),
}
LENGTH = _by(A=8, F=13, E=18, D=23, C=29, B=35)  # mm, with a spread of 8 %
TAGS: dict[str, str] = {"pest": "DE", "protected": "BC", "common": "A"}  # tag → families
BLIND_TAGS = {"photographed": 0.15, "donated": 0.1}  # tag → share


def used(informative: int, nuisance: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the informative and the uninformative notes, without ``length_mm`` and ``tags``.

    Raises:
        ValueError: more bits or coins than there are.
    """
    for name, number, most in (
        ("informative", informative, len(BITS)),
        ("nuisance", nuisance, len(COINS)),
    ):
        if not 0 <= number <= most:
            raise ValueError(f"demo data: {name} is {number}; it is in 0 to {most}")
    return (*list(BITS)[:informative], *TRAITS), (*list(COINS)[:nuisance], *BLIND)


def take_notes(
    count: int,
    rng: np.random.Generator,
    noise: float = 0.03,
    misfiled: float = 0.1,
    informative: int = 5,
    nuisance: int = 1,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Species int64 (count,) and the notes on each beetle, object (count,) each; ``tags`` is a
    list of lists, ``length_mm`` is float64. Missing values are None.

    Raises:
        ValueError: a parameter out of range.
    """
    _check(noise=noise, misfiled=misfiled)
    telling, blind = used(informative, nuisance)
    species = rng.integers(0, len(SPECIES), count)
    swapped = rng.random(count) < misfiled
    noted = np.where(swapped, rng.integers(0, len(SPECIES), count), species)
    columns: dict[str, Any] = {}
    for name in telling:
        values = _values(name)
        kinds = np.array(_kinds(values), dtype=object)
        index = np.array([_kinds(values).index(v) for v in values])[noted]
        slip = rng.integers(1, len(kinds), count) * (rng.random(count) < noise)
        columns[name] = kinds[(index + slip) % len(kinds)]
        columns[name][rng.random(count) < MISSING.get(name, 0.0)] = None
    for name in blind:
        kinds = np.array(_values(name), dtype=object)
        columns[name] = kinds[rng.integers(0, len(kinds), count)]
    columns["length_mm"] = np.round(np.array(LENGTH)[noted] * rng.normal(1, 0.08, count), 1)
    tags: list[list[str]] = [[] for _ in range(count)]
    family = np.array(list(FAMILY))[noted]
    for tag, owners in TAGS.items():
        share = np.where(np.isin(family, list(owners)), 0.6, noise / 2)
        for row in np.flatnonzero(rng.random(count) < share):
            tags[row].append(tag)
    for tag, chance in BLIND_TAGS.items():
        for row in np.flatnonzero(rng.random(count) < chance):
            tags[row].append(tag)
    columns["tags"] = tags
    return species, columns


def true_information(
    columns: Sequence[str] | None = None,
    noise: float = 0.03,
    misfiled: float = 0.1,
    informative: int = 5,
    nuisance: int = 1,
) -> tuple[float, float]:
    """I(Z;T) and H(Z|T) in bits, where Z is the joint value of the given notes.

    Given the noted species s, note j of V values is v with probability

        p_j(v|s) = (1 - m_j) · ((1 - noise)·[v = f_j(s)] + noise/(V - 1)·[v ≠ f_j(s)])

    and missing with probability m_j. The notes are independent given s, so

        q(z|s) = Π_j p_j(z_j|s),   P(z|t) = (1 - misfiled)·q(z|t) + misfiled/12 · Σ_s q(z|s)
        H(Z|T) = −1/12 · Σ_t Σ_z P(z|t) log₂ P(z|t)
        I(Z;T) = H(Z) − H(Z|T)   with   P(z) = 1/12 · Σ_t P(z|t)

    by enumeration of every z. Uninformative notes are not enumerated: one of V values adds log₂ V
    to H(Z|T).

    Args:
        columns: names of notes except ``length_mm`` and ``tags``. Default: the binary ones,
            ``informative`` bits and ``nuisance`` coins.
        noise: flip probability of the channel.
        misfiled: share of beetles with the notes of another.

    Raises:
        ValueError: a name that is not such a note, a parameter out of range, or more than 2^22
            joint values to enumerate.
    """
    _check(noise=noise, misfiled=misfiled)
    if columns is None:
        telling, blind = used(informative, nuisance)
        columns = [name for name in (*telling, *blind) if name in BITS or name in COINS]
    tables = [_channel(name, noise) for name in columns if name in BITS or name in TRAITS]
    blank = sum(np.log2(len(_values(n))) for n in columns if n in COINS or n in BLIND)
    unknown = [n for n in columns if not any(n in t for t in (BITS, TRAITS, COINS, BLIND))]
    if unknown:
        known = ", ".join((*BITS, *TRAITS, *COINS, *BLIND))
        raise ValueError(f"demo data: no exact information for {unknown[0]!r}; only for {known}")
    if np.prod([float(p.shape[1]) for p in tables]) > 2**22:
        raise ValueError("demo data: too many joint values to enumerate; name fewer columns")
    joint = np.ones((len(SPECIES), 1))  # q(z|s), one column per joint value
    for p in tables:
        joint = (joint[:, :, None] * p[:, None, :]).reshape(len(SPECIES), -1)
    total = joint.mean(0)
    given = float(_bits((1 - misfiled) * joint + misfiled * total).sum()) / len(SPECIES)
    return float(_bits(total).sum()) - given, given + float(blank)


def _bits(p: np.ndarray) -> np.ndarray:
    return -p * np.log2(np.where(p > 0, p, 1.0))


def _channel(name: str, noise: float) -> np.ndarray:
    """P(value | species), float64 (12, values), with a last column for missing if possible."""
    values, missing = _values(name), MISSING.get(name, 0.0)
    kinds = _kinds(values)
    table = np.full((len(SPECIES), len(kinds)), noise / (len(kinds) - 1))
    for species, value in enumerate(values):
        table[species, kinds.index(value)] = 1 - noise
    if not missing:
        return table
    return np.column_stack([table * (1 - missing), np.full(len(SPECIES), missing)])


def _values(name: str) -> tuple[Value, ...]:
    return {**BITS, **TRAITS, **COINS, **BLIND}[name]


def _kinds(values: Sequence[Value]) -> list[Value]:
    return sorted(set(values), key=str)


def _check(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"demo data: {name} is a probability in [0, 1], not {value}")
