"""Bytes that a client might send: valid messages, almost valid ones, and noise."""

import struct
from random import Random

from .. import client as c
from .target import SIZE_BYTES

EDGES_32 = (0, 1, 2, 4, 27, 28, 4095, 4096, 65536, 2**25, 2**25 + 1, 2**31 - 1, 2**31, 2**32 - 1)
EDGES_64 = (0, 1, 511, SIZE_BYTES - 1, SIZE_BYTES, SIZE_BYTES + 1, 2**63 - 1, 2**63, 2**64 - 1)
MAGICS = (0x25609513, 0x67446698, 0x668E33EF, 0, 0xFFFFFFFF, 0x13956025, 0x21E41C71)
OPTIONS = (*range(15), 77, 2**31, 2**32 - 1)
WRITE_DATA_MAX = 70_000


def edge(dice: Random, edges: tuple[int, ...], bits: int) -> int:
    """A number that likes limits and their neighbours."""
    kind = dice.random()
    if kind < 0.5:
        return dice.choice(edges)
    if kind < 0.8:
        return (dice.choice(edges) + dice.randrange(-3, 4)) % (1 << bits)
    return dice.getrandbits(bits)


def mutated(dice: Random, data: bytes) -> bytes:
    """`data` with one to four faults: bits, bytes, cuts, repeats, insertions, edge numbers."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(out) + 1)
        match dice.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(out):
                out[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del out[at : at + dice.randint(1, 40)]
            case 3:
                out[at:at] = out[at : at + dice.randint(1, 200)]
            case 4:
                out[at:at] = dice.randbytes(dice.randint(1, 30))
            case _:
                size = dice.choice((4, 8))
                edges = EDGES_32 if size == 4 else EDGES_64
                out[at : at + size] = edge(dice, edges, 8 * size).to_bytes(size, "big")
    return bytes(out)


def option(dice: Random, export: str) -> bytes:
    """One option, in one of three good; the others lie about something."""
    data = dice.choice(
        (
            b"",
            c.info_data(export, *range(dice.randrange(5))),
            c.info_data(export, *(dice.randrange(2**16) for _ in range(dice.randrange(40)))),
            c.meta_data(export, "base:allocation"),
            c.meta_data(export, *("x" * dice.randrange(300) for _ in range(dice.randrange(60)))),
            c.string(export),
            export.encode(),
            dice.randbytes(dice.randrange(500)),
            struct.pack(">I", edge(dice, EDGES_32, 32)) + export.encode(),
        )
    )
    length = len(data) if dice.random() < 0.8 else edge(dice, EDGES_32, 32)
    magic = c.IHAVEOPT if dice.random() < 0.95 else dice.getrandbits(64)
    message = struct.pack(">QII", magic, dice.choice(OPTIONS), length) + data
    return message if dice.random() < 0.7 else mutated(dice, message)


def handshake(export: str, *, structured: bool, final: int = c.GO) -> bytes:
    """All that a client sends up to its last option, without waiting for answers."""
    messages = [struct.pack(">I", 3)]
    if structured:
        messages.append(packed_option(c.STRUCTURED))
        messages.append(packed_option(c.SET_META, c.meta_data(export, "base:allocation")))
    data = export.encode() if final == c.EXPORT_NAME else c.info_data(export)
    return b"".join([*messages, packed_option(final, data)])


def packed_option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", c.IHAVEOPT, number, len(data)) + data


def request(dice: Random) -> bytes:
    """One request with its payload, most of them wrong somewhere."""
    command = dice.choice((*range(9), c.READ, c.WRITE, c.WRITE, c.STATUS, dice.getrandbits(16)))
    if command == c.DISC and dice.random() < 0.8:
        command = c.READ
    flags = dice.choice((0, 0, c.FUA, c.NO_HOLE, c.DF, c.REQ_ONE, 1 << dice.randrange(16)))
    offset = edge(dice, EDGES_64, 64)
    if dice.random() < 0.6:
        offset = dice.randrange(SIZE_BYTES)
    length = dice.choice((edge(dice, EDGES_32, 32), dice.randrange(WRITE_DATA_MAX), 4096))
    payload = b""
    if command == c.WRITE:
        if dice.random() < 0.85:
            length = dice.randrange(WRITE_DATA_MAX)
        payload = dice.randbytes(min(length, WRITE_DATA_MAX))
    magic = MAGICS[0] if dice.random() < 0.97 else dice.choice(MAGICS)
    header = struct.pack(">IHHQQI", magic, flags, command, dice.getrandbits(64), offset, length)
    if dice.random() < 0.05:
        header = mutated(dice, header)
    return header + payload
