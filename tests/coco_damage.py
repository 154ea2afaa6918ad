"""Damage to COCO files, as hypothesis draws it: values of the wrong kind anywhere, fields lost, rows twice."""

import copy

from hypothesis import strategies as st

ODD_NUMBERS = [
    0, 1, -1, 2, 3, 5, 0.5, 1e9, -1e9, 1e308, float("nan"), float("inf"), 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30,
    131070, 131071,
]  # fmt: skip
ODD_TEXTS = [
    "", "0", "1", "5", "-3", "disc", "Disc", "oooo0", "Q", "€", "../../etc/passwd", r"C:\val\3.png", "3.png", "x" * 300,
    "a\0", "\ud800", "%33.png",
]  # fmt: skip
ODD = st.one_of(
    st.sampled_from(
        [None, True, False, [], {}, [None], [[]], [{}], [[1, 2, 3, 4, 5, 6]], {"size": [9, 9], "counts": [81]}]
    ),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.recursive(
        st.sampled_from([None, 1, -1, 1e9, "x", float("nan")]),
        lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner),
        max_leaves=12,
    ),
)


def places(value, path=()):
    """The path of every value in lists and objects, but of only the first and last few members of a list."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in sorted({*range(min(2, len(value))), *range(max(0, len(value) - 2), len(value))}):
            yield from places(value[index], (*path, index))


@st.composite
def damaged(draw, document):
    """A copy of a document with one to three kinds of damage."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(document) if path] or [None]))
        if path is None:
            break
        *way, last = path
        around = document
        for step in way:
            around = around[step]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "twice", "swap"]))
        if kind == "remove":
            del around[last]
        elif kind == "twice" and isinstance(around, list):
            around.append(copy.deepcopy(around[last]))
        elif kind == "swap":
            other = draw(st.sampled_from(sorted(around) if isinstance(around, dict) else range(len(around))))
            around[last], around[other] = around[other], around[last]
        else:
            around[last] = copy.deepcopy(draw(ODD))
    return document
