"""Mutations of a file's content: of its bytes, or of its values under its syntax and checksums."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Mutation = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, rng: random.Random) -> bytes:
    """A few bits or bytes, half of the time in the first kilobyte: headers break more than payloads."""
    changed = bytearray(content)
    end = min(len(changed), 1024) if rng.random() < 0.5 else len(changed)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(end)
        changed[place] = rng.choice((changed[place] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def double(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return rng.choice((content * 2, content[:end] + content[start:]))


def splice(content: bytes, rng: random.Random) -> bytes:
    """A piece that is removed, moved or replaced."""
    start, end = _span(content, rng)
    place = rng.randrange(len(content))
    piece = rng.choice((b"", content[start:end], bytes(end - start), rng.randbytes(end - start)))
    return content[:place] + piece + content[place + rng.choice((0, len(piece))) :]


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, start + rng.randrange(1, 1 + min(256, len(content) - start))


VALUES = (
    *("null", "true", "false", "0", "-1", "1.5", "1e999", "-0.0", "NaN", "Infinity", "-Infinity", str(2**63)),
    *("9" * 400, "-" + "9" * 400, "9" * 5000, '"' + "9" * 400 + '"', "[" + "9" * 400 + "]"),
    *('""', '"x"', '"\\ud800"', '"\\u0000"', '"a\\nb"', '"../.."', '"/"', '"nan"', '"%s"' % ("x" * 300)),
    *('"%s"' % ("x" * 70_000), '"%s"' % ("yyyyyyyyy/" * 600)),
    *("[]", "{}", "[null]", '{"a": 1}', "[[[[1]]]]", '[{"a": {"b": []}}]', "[" * 100_000 + "]" * 100_000),
)
YAML_VALUES = (".nan", ".inf", "2026-01-01", "&a [*a]", "*b", "!!python/name:os.system", "0x_", "? [1]", "!!binary a")


def swap(content: bytes, rng: random.Random, values: tuple[str, ...] = VALUES) -> bytes:
    """One value of JSON replaced, one key or item removed or repeated."""
    document = {"": yaml.safe_load(content) if values is not VALUES else json.loads(content)}
    holder, key = rng.choice(list(_places(document)))
    action = rng.random()
    if action < 0.1 and holder is not document:
        del holder[key]
    elif action < 0.15 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif action < 0.2 and isinstance(holder, dict) and holder is not document:
        holder["@@"] = holder.pop(key)
    else:
        holder[key] = "@@"
    return json.dumps(document[""]).replace('"@@"', rng.choice(values)).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def swap_in_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = swap(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def in_png(content: bytes, rng: random.Random) -> bytes:
    """A chunk changed, with a checksum that fits."""
    start, chunks = 8, []
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        chunks.append((start, end))
        start = end
    start, end = rng.choice(chunks)
    body = content[start + 4 : start + 8] + in_bytes(content[start + 8 : end - 4] or b"\0", rng)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return content[:start] + chunk + content[end:]


def in_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header changed, with a length that fits."""
    size = int.from_bytes(content[:8], "little")
    header = swap(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def in_zip(content: bytes, rng: random.Random) -> bytes:
    """A member of a checkpoint changed, half of the time its pickle, with a checksum that fits."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        chosen = rng.choice([name for name in names if name.endswith("data.pkl")] if rng.random() < 0.5 else names)
        for name in names:
            member = source.read(name)
            target.writestr(name, in_bytes(member, rng) if name == chosen and member else member)
    return out.getvalue()


def in_bytes(content: bytes, rng: random.Random) -> bytes:
    mutation = rng.choice((flip, flip, cut, double, splice))
    return mutation(content, rng)
