"""Near duplicates among many short texts, without comparing every pair.

A text becomes the set of its 5-character shingles (2 for scripts without spaces), after NFKC, case folding and one
space for any white space. Two texts are compared by the Jaccard index of their sets, J = |A ∩ B| / |A ∪ B|. MinHash
keeps the minima of a set under P permutations; two sets share each minimum with probability J, so texts that agree in
one of b bands of r minima are candidates (probability 1 - (1 - J^r)^b). Each candidate pair is then compared: exactly
up to 256 shingles, beyond that by the 256 smallest hashes of the union (standard error 0.03).

Shingles of characters, not words: with one word changed, 85 % of the short texts of ComVE (22 words) stay above 0.8 by
characters, 31 % by word triples. Shingles that nine rows in ten share are left out when they make up more than half of
a row: with a long common instruction all rows would look alike.

Cost: about 50 us and 1.5 KB per text, then a sort per band. In a band, a row is compared with its 4 neighbours (more in
small datasets) and the nearest rows of each other split, so a template that puts every row into one bucket costs
n log n and not n²; pairs may be missed in such a bucket, but each band orders it differently.

Source: Broder 1997, "On the resemblance and containment of documents"; bands: Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", section 3.4; bottom-k: Cohen & Kaplan 2007.

Shapes: R distinct texts, P permutations, S splits.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PERMUTATIONS = 128
_KEPT = 256
"""Smallest shingle hashes kept per text: all of them for most short texts."""
_NEIGHBOURS = (4, 50)
"""Fewest and most rows of its bucket that a row is compared with in a band: more when there are few texts."""
_FAILURES = (12, 500)
"""Fewest and most failed comparisons of a row before it is skipped: bounds the work when all texts are similar."""
_WORK = 200_000
"""Neighbours, or failures, of all texts together."""
_SLACK = 0.12
"""A candidate whose MinHash estimate (standard error 0.035) is this far below the threshold is not compared."""
_MAX_CHARACTERS = 1_000_000
"""Characters of a text that are compared."""
_MIN_SAMPLE = 50


_MARKS = re.compile(r"[^\w\s\x00-\x7f]{31,}")
"""Where more consecutive combining marks may be than any script needs: composing them takes quadratic time."""
_MAX_MARKS = 30
"""As Unicode's stream-safe format allows (UAX #15, section 13)."""


def normalised(text: str) -> str:
    """The text without differences of case, white space and Unicode composition."""
    return " ".join(unicodedata.normalize("NFKC", _MARKS.sub(_fewer_marks, text)).casefold().split())


def _fewer_marks(run_of_marks: re.Match[str]) -> str:
    kept, run = [], 0
    for character in run_of_marks[0]:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def text_hash(normal: str) -> int:
    """A 64-bit hash of a normalised text; two of a million texts collide with probability 3e-8."""
    return int.from_bytes(blake2b(normal.encode("utf-8"), digest_size=8).digest(), "little")


def shingles(normal: str) -> NDArray[np.uint32]:
    """Sorted distinct hashes of the text's 5-character shingles (2-character ones if it is written without spaces)."""
    points = np.frombuffer(normal[:_MAX_CHARACTERS].encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    # From U+2E80 on: Han, kana and Hangul. A word there is one to three characters.
    size = 2 if (points >= 0x2E80).mean() > 0.5 else 5
    count = max(1, len(points) - size + 1)
    hash_ = np.zeros(count, dtype=np.uint64)
    for shift in range(min(size, len(points))):
        hash_ = hash_ * np.uint64(0x9E3779B97F4A7C15) + points[shift : shift + count]
    hash_ ^= hash_ >> np.uint64(29)
    hash_ *= np.uint64(0xBF58476D1CE4E5B9)
    hash_ ^= hash_ >> np.uint64(32)
    return np.unique(hash_.astype(np.uint32))


@dataclass(frozen=True)
class Template:
    """The shingles that nearly every row shares, if they make up most of a row."""

    shingles: NDArray[np.uint32]
    share: float
    """Of the median row's shingles; 0 when there is no template."""

    @classmethod
    def none(cls) -> Template:
        """No template."""
        return cls(np.array([], dtype=np.uint32), 0.0)

    @classmethod
    def of(cls, normals: Iterable[str]) -> Template:
        """The template of a sample of normalised texts."""
        sets = [shingles(normal) for normal in set(normals)]
        if len(sets) < _MIN_SAMPLE:
            return cls.none()
        distinct, counts = np.unique(np.concatenate(sets), return_counts=True)
        common = distinct[counts >= 0.9 * len(sets)]
        share = float(np.median([np.isin(s, common, assume_unique=True).mean() for s in sets]))
        return cls(common, share) if share > 0.5 else cls.none()

    def without(self, hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """``found`` without the template; unchanged if nothing else would be left."""
        if not len(self.shingles):
            return hashes
        own = hashes[~np.isin(hashes, self.shingles, assume_unique=True)]
        return own if len(own) else hashes


class Sketches:
    """MinHash signatures and smallest shingle hashes of the texts added, in that order."""

    def __init__(self, template: Template) -> None:
        from datasketch import MinHash

        self._template = template
        self._minhash: Any = MinHash(num_perm=_PERMUTATIONS, hashfunc=int)
        self._signatures = array("I")
        self.smallest: list[NDArray[np.uint32]] = []

    def __len__(self) -> int:
        return len(self.smallest)

    def add(self, normal: str) -> None:
        """Add a text."""
        hashes = self._template.without(shingles(normal))
        self._minhash.clear()
        self._minhash.update_batch(hashes.tolist())
        self._signatures.frombytes(self._minhash.hashvalues.astype(np.uint32).tobytes())
        self.smallest.append(hashes[:_KEPT].copy())

    def signatures(self) -> NDArray[np.uint32]:
        """``[R, P]``."""
        return np.frombuffer(self._signatures, dtype=np.uint32).reshape(-1, _PERMUTATIONS)


def jaccard(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    """Jaccard index from the smallest hashes of two texts; exact where these are all of their hashes."""
    both = np.intersect1d(a, b, assume_unique=True)
    if len(a) < _KEPT and len(b) < _KEPT:
        return len(both) / (len(a) + len(b) - len(both))
    union = np.union1d(a, b)[:_KEPT]
    return float(np.count_nonzero(both <= union[-1]) / len(union))


@dataclass(frozen=True)
class NearDuplicates:
    """For each text, one near duplicate in each split, and the group it is in."""

    partner_RS: NDArray[np.int64]
    """The text found in that split, or -1."""
    jaccard_RS: NDArray[np.float64]
    group_R: NDArray[np.int64]
    """The same number for texts that are linked by near duplicates."""
    is_lower_bound: bool
    """Whether some texts were skipped, so that there may be more near duplicates."""


def near_duplicates(sketches: Sketches, split_R: Sequence[int], splits: int, threshold: float) -> NearDuplicates:
    """Pairs of texts with a Jaccard index of ``threshold`` or more, each text against each split."""
    texts = len(sketches)
    signatures_RP, split_of = sketches.signatures(), np.asarray(split_R, dtype=np.int64)
    partner_RS = np.full((texts, splits), -1, dtype=np.int64)
    jaccard_RS = np.zeros((texts, splits))
    max_failures = _per_text(texts, _FAILURES)
    groups, failed_R, incomplete = _Groups(texts), np.zeros(texts, dtype=np.int64), False
    for i_K, j_K in _candidates(signatures_RP, split_of, threshold):
        roots = groups.lowest_R()
        known = (
            (roots[i_K] == roots[j_K]) & (partner_RS[i_K, split_of[j_K]] >= 0) & (partner_RS[j_K, split_of[i_K]] >= 0)
        )
        i_K, j_K = i_K[~known], j_K[~known]
        estimates = [
            (signatures_RP[i_K[part]] == signatures_RP[j_K[part]]).mean(axis=1)
            for part in np.array_split(np.arange(len(i_K)), len(i_K) // 100_000 + 1)
        ]
        likely = np.concatenate(estimates) >= threshold - _SLACK
        for i, j in zip(i_K[likely].tolist(), j_K[likely].tolist(), strict=True):
            there, here = split_of[j], split_of[i]
            if partner_RS[i, there] >= 0 and partner_RS[j, here] >= 0 and groups.lowest(i) == groups.lowest(j):
                continue
            if failed_R[i] >= max_failures and failed_R[j] >= max_failures:
                incomplete = True
                continue
            similarity = jaccard(sketches.smallest[i], sketches.smallest[j])
            if similarity < threshold:
                failed_R[i] += 1
                failed_R[j] += 1
                continue
            groups.merge(i, j)
            for one, other, split in ((i, j, there), (j, i, here)):
                if similarity > jaccard_RS[one, split]:
                    partner_RS[one, split], jaccard_RS[one, split] = other, similarity
    return NearDuplicates(partner_RS, jaccard_RS, groups.lowest_R(), incomplete)


def _candidates(
    signatures_RP: NDArray[np.uint32], split_R: NDArray[np.int64], threshold: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Per band, pairs of texts that agree in it: neighbours in the bucket, and the nearest of every other split."""
    from datasketch import MinHashLSH

    # Missing a pair is worse than an extra comparison.
    lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.05, 0.95))
    keys = [_band_key(signatures_RP[:, band * lsh.r : (band + 1) * lsh.r]) for band in range(lsh.b)]
    for band, key_R in enumerate(keys):
        order = np.lexsort((keys[(band + 1) % len(keys)], key_R))
        key, split = key_R[order], split_R[order]
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.array([], dtype=np.int64)
        start_R = np.repeat(starts, np.diff(np.r_[starts, len(key)]))
        place_R = np.arange(len(key))
        candidate_pairs = []
        for distance in range(1, _per_text(len(key), _NEIGHBOURS) + 1):
            later = place_R[distance:][start_R[distance:] <= place_R[:-distance]]
            candidate_pairs.append((later - distance, later))
        for other in np.unique(split):
            before = np.maximum.accumulate(np.where(split == other, place_R, -1))
            for nearest in (before, _next(split == other)):
                there = (nearest >= 0) & (split != other)
                there[there] &= start_R[nearest[there]] == start_R[there]
                candidate_pairs.append((nearest[there], place_R[there]))
        first = np.concatenate([pair[0] for pair in candidate_pairs])
        second = np.concatenate([pair[1] for pair in candidate_pairs])
        codes = np.unique(first * max(1, len(key)) + second)
        yield order[codes // max(1, len(key))], order[codes % max(1, len(key))]


def _per_text(texts: int, bounds: tuple[int, int]) -> int:
    """One text's share of the total work, within bounds."""
    return max(bounds[0], min(bounds[1], _WORK // max(1, texts)))


def _next(is_wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each position the next wanted one; -1 if there is none."""
    places = len(is_wanted)
    after = np.minimum.accumulate(np.where(is_wanted, np.arange(places), places)[::-1])[::-1]
    return np.where(after == places, -1, after)


def _band_key(minima: NDArray[np.uint32]) -> NDArray[np.uint64]:
    key = np.zeros(len(minima), dtype=np.uint64)
    for column in minima.T:
        key = key * np.uint64(0x9E3779B97F4A7C15) + column
        key ^= key >> np.uint64(31)
    return key


class _Groups:
    """Texts that are linked: a forest in which each text points to a lower one of its group, the lowest to itself."""

    def __init__(self, texts: int) -> None:
        self._parent_R = np.arange(texts)

    def lowest(self, text: int) -> int:
        """The lowest text of a text's group."""
        parent = self._parent_R
        while (above := parent[text]) != text:
            parent[text] = parent[above]
            text = above
        return int(text)

    def merge(self, first: int, second: int) -> None:
        """Link two texts."""
        low, high = sorted((self.lowest(first), self.lowest(second)))
        self._parent_R[high] = low

    def lowest_R(self) -> NDArray[np.int64]:
        """``[R]`` the lowest text of each text's group; a few passes over an array."""
        while not np.array_equal(above_R := self._parent_R[self._parent_R], self._parent_R):
            self._parent_R = above_R
        return self._parent_R.copy()
