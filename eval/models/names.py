"""Short names for what lies at different places. Pure.

Two runs may have one folder name, as in jan/vitb and feb/vitb: the name alone says which is meant only where no other
place ends alike.
"""

from collections import Counter
from collections.abc import Iterable


def short_names(urls: Iterable[str]) -> dict[str, str]:
    """Return a name for each place: the end of its path that no other place has, the fewest whole parts of it.

    Costs one pass over the places for each part of the longest path that is needed.

    Args:
        urls: folders, local or not; the same one twice is one place.
    """
    parts = {url: url.rstrip("/").split("/") for url in urls}
    names: dict[str, str] = {}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        ends = {url: "/".join(each[-length:]) for url, each in parts.items()}
        num_places = Counter(ends.values())
        names |= {url: end for url, end in ends.items() if url not in names and num_places[end] == 1 and end}
        if len(names) == len(parts):
            break
    return {url: names.get(url, url) for url in parts}
