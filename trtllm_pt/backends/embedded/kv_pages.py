"""The pages of the KV cache: which sequences hold them, and which are kept for reuse as a prefix. Rank 0 only."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from trtllm_pt.backends.embedded.constants import PAGE

ROOT = -1  # the parent of a sequence's first page

# (page of the previous 16 tokens, key of these 16 tokens). The chain of previous pages identifies all tokens before.
PageKey = tuple[int, bytes]


def pages_for(tokens: int) -> int:
    """Return the number of pages that `tokens` tokens need."""
    return -(-tokens // PAGE)


def page_key(tokens: array[int], page: int, salt: bytes = b"") -> bytes:
    """Return the tokens of page number `page` of a sequence as bytes of int64. The page must be full.

    The key of the first page ends with the salt. So no page is shared with sequences that have another salt, because
    the chain of pages of each begins with another page.
    """
    key = tokens[page * PAGE : (page + 1) * PAGE].tobytes()
    return key if page else key + salt


class PagePool:
    """A fixed number of pages. Each page is free, held by one or more sequences, or idle: not held, but kept for reuse.

    A full page is registered under its tokens and its parent, the page before it. This chain is exact because a page
    never loses its registered parent: a sequence that holds a page also holds its parent, sequences release their last
    page first, and the page that was released first is the first to be overwritten.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._references = [0] * total
        self._keys: list[PageKey | None] = [None] * total
        self._registered: dict[PageKey, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # in order of release

    @property
    def available(self) -> int:
        """Pages that can be allocated now."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Pages that sequences hold."""
        return self.total - self.available

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Return the longest run of registered pages for a sequence whose full pages have these keys.

        Takes no references.
        """
        pages: list[int] = []
        parent = ROOT
        for key in keys:
            page = self._registered.get((parent, key))
            if page is None:
                break
            pages.append(page)
            parent = page
        return pages

    def idle(self, pages: Sequence[int]) -> int:
        """Return how many of `pages` no sequence holds. `share` reduces `available` by this number."""
        return sum(not self._references[page] for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """Take one reference to each of these registered pages."""
        for page in pages:
            if not self._references[page]:
                del self._idle[page]
            self._references[page] += 1

    def allocate(self) -> int:
        """Return a page to write to, with one reference: a free one, otherwise the one that was idle longest."""
        assert self.available, "the caller checks `available` first"
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            key = self._keys[page]
            assert key is not None
            del self._registered[key]
            self._keys[page] = None
        self._references[page] = 1
        return page

    def register(self, page: int, parent: int, key: bytes) -> int:
        """Register a full page for reuse, and return the page to hold from now on.

        If the same tokens are already registered, that is the other page, whose content is the same bit for bit;
        `page` is then released.
        """
        twin = self._registered.setdefault((parent, key), page)
        if twin == page:
            self._keys[page] = (parent, key)
        else:
            self.share([twin])
            self.release([page])
        return twin

    def release(self, pages: Sequence[int]) -> None:
        """Release a sequence's pages, which are given in the sequence's order."""
        for page in reversed(pages):
            self._references[page] -= 1
            assert self._references[page] >= 0, f"page {page} was released twice"
            if not self._references[page]:
                if self._keys[page] is None:
                    self._free.append(page)
                else:
                    self._idle[page] = None

    def check_integrity(self, holders: Iterable[Sequence[int]] = ()) -> None:
        """Assert that all fields are consistent. `holders` are the page lists of all live sequences."""
        counts = Counter(page for pages in holders for page in pages)
        assert self._references == [counts[page] for page in range(self.total)], "references differ from the holders"
        held = [page for page in range(self.total) if self._references[page]]
        everything = sorted([*self._free, *self._idle, *held])
        assert everything == list(range(self.total)), "free + idle + held are not all pages"
        assert self._registered == {key: page for page, key in enumerate(self._keys) if key is not None}
        assert all(self._keys[page] is not None for page in self._idle) and not any(self._keys[p] for p in self._free)
        for parent, _ in self._registered:
            assert parent == ROOT or self._keys[parent] is not None, f"page {parent} lost its key before its children"
