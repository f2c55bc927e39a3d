"""The page pool: counts, reuse, order of overwriting."""

from __future__ import annotations

import numpy as np
import pytest

from trtllm_pt.backends.embedded.kv_pages import ROOT, PagePool, pages_for


def chain(pool: PagePool, keys: list[bytes]) -> list[int]:
    """A sequence that wrote full pages with these contents."""
    pages: list[int] = []
    for key in keys:
        page = pool.allocate()
        pages.append(pool.register(page, pages[-1] if pages else ROOT, key))
    return pages


def test_pages_for() -> None:
    assert [pages_for(n) for n in (0, 1, 16, 17, 32, 33)] == [0, 1, 1, 2, 2, 3]


def test_unregistered_pages_are_free_again() -> None:
    pool = PagePool(3)
    pages = [pool.allocate() for _ in range(3)]
    assert sorted(pages) == [0, 1, 2] and pool.available == 0 and pool.held == 3
    pool.check_integrity([pages])
    pool.release(pages)
    assert pool.available == 3 and pool.held == 0
    pool.check_integrity()


def test_a_prefix_is_found_while_held_and_when_idle() -> None:
    pool = PagePool(4)
    pages = chain(pool, [b"a", b"b", b"c"])
    assert pool.match([b"a", b"b", b"x", b"c"]) == pages[:2]
    assert pool.match([b"b"]) == []  # the same tokens elsewhere are not the same prefix
    pool.release(pages)
    pool.check_integrity()
    assert pool.available == 4 and pool.match([b"a", b"b", b"c"]) == pages
    assert pool.idle(pages) == 3
    pool.share(pages[:2])
    assert pool.idle(pages) == 1 and pool.available == 2
    pool.share(pages[:2])
    pool.check_integrity([pages[:2], pages[:2]])
    pool.release(pages[:2])
    assert pool.available == 2
    pool.release(pages[:2])
    pool.check_integrity()


def test_the_longest_idle_is_overwritten_first_and_children_before_parents() -> None:
    pool = PagePool(4)
    old = chain(pool, [b"a", b"b"])
    pool.release(old)
    new = chain(pool, [b"c", b"d"])
    pool.release(new)
    assert [pool.allocate() for _ in range(2)] == [old[1], old[0]]
    assert pool.match([b"a"]) == [] and pool.match([b"c", b"d"]) == new
    pool.share(new[:1])  # used again: now younger than d
    pool.release(new[:1])
    assert pool.allocate() == new[1]
    assert pool.match([b"c", b"d"]) == new[:1]
    pool.check_integrity([[*old, new[1]]])


def test_the_same_content_written_twice_is_kept_once() -> None:
    pool = PagePool(4)
    first, second = chain(pool, [b"a", b"b"]), chain(pool, [b"a", b"b"])
    assert first == second and pool.available == 2
    pool.check_integrity([first, second])


def test_releasing_twice_is_caught() -> None:
    pool = PagePool(1)
    page = pool.allocate()
    pool.release([page])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([page])


def test_integrity_sees_a_leak() -> None:
    pool = PagePool(2)
    pool.allocate()
    with pytest.raises(AssertionError, match="holders"):
        pool.check_integrity()


def test_random_use_keeps_the_books() -> None:
    rng = np.random.default_rng(5)
    pool = PagePool(24)
    live: list[list[int]] = []
    for _ in range(3000):
        if live and (rng.random() < 0.5 or pool.available < 4):
            pool.release(live.pop(int(rng.integers(len(live)))))
            pool.check_integrity(live)
            continue
        keys = [bytes([int(k)]) for k in rng.integers(0, 2, 4)]
        pages = pool.match(keys)
        pool.share(pages)
        for key in keys[len(pages) :]:
            pages.append(pool.register(pool.allocate(), pages[-1] if pages else ROOT, key))
        live.append(pages)
        pool.check_integrity(live)
    pool.check_integrity(live)
