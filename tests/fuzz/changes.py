"""What several kinds of hostile inputs have in common: odd values, damaged bytes, structures changed in one place."""

import copy
import random

VALUES = [
    *(0, -1, 10**9, 10**30, 2.5, float("nan"), float("inf"), None, True, [], {}, [[]]),
    *("", "x" * 5000, "\x1b[31m\n\u202e", "../../x", "/x", "\ud800", "=1+1", "<script>", r"\input{x}"),
]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """`content` with bits flipped, cut, repeated, or with bytes in the place of others."""
    kind, at = chance.randrange(5), chance.randrange(len(content))
    if chance.random() < 0.5:
        at = chance.randrange(min(len(content), 4000))  # where the structure is
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + chance.randbytes(chance.randrange(1, 64)) + content[at:]
    if kind == 2:
        return content[:at] + content[at + chance.randrange(1, 64) :]
    if kind == 3:
        return content[:at] + chance.randbytes(chance.randrange(1, 16)) + content[at + 16 :]
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(content))
        content = content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    return content


def edited(content, chance: random.Random, odd=VALUES):
    """A copy of nested dicts and lists with one entry, at any depth, replaced, removed or renamed."""
    content = copy.deepcopy(content)
    inside = content
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = chance.choice(keys)
        deeper = inside[key]
        if isinstance(deeper, dict | list) and deeper and chance.random() < 0.8:
            inside = deeper
            continue
        way = chance.randrange(4)
        if way == 0:
            del inside[key]
        elif way == 1 and isinstance(inside, dict):
            inside[chance.choice(["", "x", 3, "\x1b"])] = inside.pop(key)
        else:
            inside[key] = chance.choice(odd)
        return content
