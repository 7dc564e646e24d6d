"""Oracle of the three-state block map."""

import struct
from itertools import groupby

from volcore.kernels.pure.checks import check_lengths, signed_size, view

ABSENT, DATA, ZERO = range(3)
ZERO_OWNER, UNRESOLVED = 0xFFFE, 0xFFFF
PACKED_BLOCKS_MAX = 1024


def _check_states(states: memoryview) -> None:
    if any(state > ZERO for state in states):
        raise ValueError("a block state is none of ABSENT, DATA, ZERO")


def _check_range(first_block: int, block_count: int, length: int) -> None:
    first, count = signed_size(first_block), signed_size(block_count)
    if first < 0 or count < 0 or first + count > length:
        raise ValueError(f"blocks {first} + {count} are not within a map of {length}")


def _runs(values: list[int], first_block: int) -> list[tuple[int, int, int]]:
    runs = []
    for value, group in groupby(values):
        block_count = len(list(group))
        runs.append((first_block, block_count, value))
        first_block += block_count
    return runs


def mark(states: object, first_block: int, block_count: int, state: int) -> None:
    """See the public face."""
    blocks = view(states, writable=True)
    new_state = signed_size(state)
    _check_range(first_block, block_count, len(blocks))
    if not ABSENT <= new_state <= ZERO:
        raise ValueError(f"block state {state} is none of ABSENT, DATA, ZERO")
    blocks[first_block : first_block + block_count] = bytes([new_state]) * block_count


def overlay(
    owners: object, crcs: object, layer_states: object, layer_crcs: object, layer_index: int
) -> int:
    """See the public face."""
    owner, crc = view(owners, "H", writable=True), view(crcs, "I", writable=True)
    state, layer_crc = view(layer_states), view(layer_crcs, "I")
    check_lengths(len(owner), crc, state, layer_crc)
    if not 0 <= signed_size(layer_index) < ZERO_OWNER:
        raise ValueError(f"layer_index must be 0 to {ZERO_OWNER - 1}, not {layer_index}")
    _check_states(state)
    for block in range(len(owner)):
        if owner[block] != UNRESOLVED:
            continue
        if state[block] == DATA:
            owner[block], crc[block] = layer_index, layer_crc[block]
        elif state[block] == ZERO:
            owner[block] = ZERO_OWNER
    return list(owner).count(UNRESOLVED)


def resolve_runs(owners: object, first_block: int, block_count: int) -> list[tuple[int, int, int]]:
    """See the public face."""
    blocks = view(owners, "H")
    _check_range(first_block, block_count, len(blocks))
    end = first_block + block_count
    return _runs([min(owner, ZERO_OWNER) for owner in blocks[first_block:end]], first_block)


def state_runs(states: object, first_block: int, block_count: int) -> list[tuple[int, int, int]]:
    """See the public face."""
    blocks = view(states)
    _check_range(first_block, block_count, len(blocks))
    _check_states(blocks)
    return _runs(list(blocks[first_block : first_block + block_count]), first_block)


def freeze(states: object, crcs: object) -> tuple[int, int]:
    """See the public face."""
    state, crc = view(states), view(crcs, "I", writable=True)
    check_lengths(len(state), crc)
    _check_states(state)
    for block in range(len(state)):
        if state[block] != DATA:
            crc[block] = 0
    return list(state).count(DATA), list(state).count(ZERO)


def diff(changed: object, layer_states: object) -> int:
    """See the public face."""
    flags, state = view(changed, writable=True), view(layer_states)
    check_lengths(len(flags), state)
    _check_states(state)
    for block in range(len(flags)):
        flags[block] |= state[block] != ABSENT
    return len(flags) - list(flags).count(0)


def merge(
    lower_states: object, lower_crcs: object, upper_states: object, upper_crcs: object
) -> None:
    """See the public face."""
    lower, lower_crc = view(lower_states, writable=True), view(lower_crcs, "I", writable=True)
    upper, upper_crc = view(upper_states), view(upper_crcs, "I")
    check_lengths(len(lower), lower_crc, upper, upper_crc)
    _check_states(lower)
    _check_states(upper)
    for block in range(len(lower)):
        if upper[block] != ABSENT:
            lower[block] = upper[block]
            lower_crc[block] = upper_crc[block] if upper[block] == DATA else 0


def _check_packable(count: int) -> None:
    if count < 8 or count % 4 or count > PACKED_BLOCKS_MAX:
        raise ValueError(f"a map of {count} blocks has no packed form")


def pack(states: object, crcs: object) -> tuple[bytes, bytes]:
    """See the public face."""
    state, crc = view(states), view(crcs, "I")
    _check_packable(len(state))
    check_lengths(len(state), crc)
    _check_states(state)
    kept = [crc[block] for block in range(len(state)) if state[block] == DATA]
    packed_crcs = struct.pack(f"<{len(kept)}I", *kept)
    if len(set(state)) == 1:
        return bytes([state[0]]), packed_crcs
    number = sum(value << 2 * block for block, value in enumerate(state))
    return number.to_bytes(len(state) // 4, "little"), packed_crcs


def unpack(packed_states: object, packed_crcs: object, states: object, crcs: object) -> None:
    """See the public face."""
    packed, packed_crc = view(packed_states), view(packed_crcs)
    state, crc = view(states, writable=True), view(crcs, "I", writable=True)
    _check_packable(len(state))
    check_lengths(len(state), crc)
    if len(packed) == 1:
        found = [packed[0]] * len(state)
    else:
        check_lengths(len(state) // 4, packed)
        number = int.from_bytes(packed, "little")
        found = [number >> 2 * block & 3 for block in range(len(state))]
    if any(value > ZERO for value in found):
        raise ValueError("a block state is none of ABSENT, DATA, ZERO")
    check_lengths(4 * found.count(DATA), packed_crc)
    kept = iter(struct.unpack(f"<{found.count(DATA)}I", packed_crc))
    for block, value in enumerate(found):
        state[block], crc[block] = value, next(kept) if value == DATA else 0
