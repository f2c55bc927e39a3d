"""The pages of the KV cache: who holds which, and which hold a prefix worth keeping. Rank 0 only."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from trtllm_pt.backends.embedded.constants import PAGE

ROOT = -1  # the parent of a sequence's first page

# (page of the 16 tokens before, these 16 tokens): with the chain, all tokens from the start
PageKey = tuple[int, bytes]


def pages_for(tokens: int) -> int:
    """Pages that `tokens` tokens fill."""
    return -(-tokens // PAGE)


def page_key(tokens: array[int], page: int) -> bytes:
    """The tokens (int64) of the full page number `page` of a sequence."""
    return tokens[page * PAGE : (page + 1) * PAGE].tobytes()


class PagePool:
    """A fixed number of pages, each free, held by sequences (counted), or idle: held by none, but kept for reuse.

    A full page is registered under its tokens and the page before it. That chain is exact because a page never loses
    its registered parent: whoever holds a page holds its parent, sequences let go of their last page first, and the
    page that was let go first is the first to be overwritten.
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
        return self.total - self.available

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """The longest run of registered pages for a sequence whose full pages hold `keys`. Takes no reference."""
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
        """How many of `pages` nobody holds: those that `share` takes away from `available`."""
        return sum(not self._references[page] for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """Take one reference to each of these registered pages."""
        for page in pages:
            if not self._references[page]:
                del self._idle[page]
            self._references[page] += 1

    def allocate(self) -> int:
        """A page to write to, with one reference; overwrites the longest idle page when none is free."""
        assert self.available, "the caller looks at `available` first"
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
        """Offer a full page for reuse. Returns the page to hold from now on: where the same tokens are registered
        already that is the other page, whose content is the same to the bit, and `page` is free again."""
        twin = self._registered.setdefault((parent, key), page)
        if twin == page:
            self._keys[page] = (parent, key)
        else:
            self.share([twin])
            self.release([page])
        return twin

    def release(self, pages: Sequence[int]) -> None:
        """Let go of a sequence's pages, given in its order."""
        for page in reversed(pages):
            self._references[page] -= 1
            assert self._references[page] >= 0, f"page {page} was released twice"
            if not self._references[page]:
                if self._keys[page] is None:
                    self._free.append(page)
                else:
                    self._idle[page] = None

    def check_integrity(self, holders: Iterable[Sequence[int]] = ()) -> None:
        """Assert that the books agree: `holders` are the page lists of all live sequences."""
        counts = Counter(page for pages in holders for page in pages)
        assert self._references == [counts[page] for page in range(self.total)], "references differ from the holders"
        held = [page for page in range(self.total) if self._references[page]]
        everything = sorted([*self._free, *self._idle, *held])
        assert everything == list(range(self.total)), "free + idle + held are not all pages"
        assert self._registered == {key: page for page, key in enumerate(self._keys) if key is not None}
        assert all(self._keys[page] is not None for page in self._idle) and not any(self._keys[p] for p in self._free)
        for parent, _ in self._registered:
            assert parent == ROOT or self._keys[parent] is not None, f"page {parent} lost its key before its children"
