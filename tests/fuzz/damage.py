"""Damage to files: bytes changed anywhere, and JSON with any part replaced, left out or added."""

import copy

from hypothesis import strategies as st

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "../../etc/passwd", "/etc/passwd", "\ud800", "0" * 64, 10**400, -1, 1e308])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


_POISON = (b"\xff", b"[" * 50_000, b"\0", b"NaN", b"\n", b"{}", b"1" * 5_000)


@st.composite
def damaged(draw, data):
    """Bytes of a file, cut, lengthened or changed in a few places."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([0, 1, 1, 4, len(data)]))
        data[place : place + length] = draw(st.binary(max_size=6) | st.sampled_from(_POISON))
    return bytes(data)


@st.composite
def restructured(draw, content):
    """A JSON value of which one part is another, is left out, or is new."""
    content = copy.deepcopy(content)
    holder, key = {"": content}, ""
    for _ in range(draw(st.integers(0, 6))):
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        holder, key = inner, draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if action == "remove" and holder is not content and key != "":
        del holder[key]
    elif action == "add" and isinstance(holder[key], dict):
        holder[key][draw(st.text(max_size=6))] = draw(values)
    else:
        holder[key] = draw(values)
    return holder[""] if key == "" else content
