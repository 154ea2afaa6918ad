"""JSON documents with a few values changed, removed or moved, for property tests."""

import copy
import math

from hypothesis import strategies as st

ODD = [
    None, True, False, 0, -1, 1, 7, 2.5, 1e308, -1e308, math.inf, -math.inf, math.nan, 10**9, -(10**9), 10**30, "", " ",
    "7", "name", "\ud800", "a\nb", [], {}, [[]], [None], {"": None}, [1, 2, 3], [0.5, 0.5, 0.5], {"0": "a"}, "x" * 1000,
]  # fmt: skip


@st.composite
def mutated_json(draw, document, *, odd=ODD):
    """Return a copy of a document with one to three changes; the rest is as it was."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(changed))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        action = draw(st.sampled_from(("replace", "replace", "replace", "remove", "copy")))
        if action == "remove":
            del holder[key]
        elif action == "copy":  # a value from elsewhere: of the right kind in the wrong place
            other, its_key = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other[its_key])
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(odd)))
    return changed


def _places(value):
    """Every key and index in a document, the inner ones first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner)
        yield value, key
