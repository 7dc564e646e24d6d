# cython: language_level=3, boundscheck=False, wraparound=False
# cython: cdivision=True, initializedcheck=False
"""The three-state block map of a chunk. Contract: volcore/kernels/chunkmap.py.

The GIL stays held: a chunk's map is 1024 blocks and every operation ends within two
microseconds, less than giving the GIL up and waiting for it again. So calls on the same map also
exclude each other.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from common cimport check_length, run_end

cdef extern from "<endian.h>" nogil:
    uint32_t htole32(uint32_t number)
    uint32_t le32toh(uint32_t number)

cdef enum:
    ABSENT = 0
    DATA = 1
    ZERO = 2
    ZERO_OWNER = 0xFFFE
    UNRESOLVED = 0xFFFF
    PACKED_BLOCKS_MAX = 1024


cdef uint8_t FOUR_STATES[256][4]
"""The states of four blocks, for each byte that they are packed in."""


cdef void fill_four_states() noexcept:
    cdef int packed, block
    for packed in range(256):
        for block in range(4):
            FOUR_STATES[packed][block] = packed >> 2 * block & 3


fill_four_states()


# ---- cores: primitive arguments only; branch-free where the compiler can make vectors of them ----

cdef bint all_known(const uint8_t *states, Py_ssize_t count) noexcept nogil:
    cdef uint8_t worst = 0
    cdef Py_ssize_t at
    for at in range(count):
        worst = states[at] if states[at] > worst else worst
    return worst <= ZERO


cdef Py_ssize_t overlay_core(uint16_t *owners, uint32_t *crcs, const uint8_t *states,
                             const uint32_t *layer_crcs, Py_ssize_t count,
                             uint16_t layer_index) noexcept nogil:
    cdef Py_ssize_t at, unresolved = 0
    cdef bint open_block, takes
    for at in range(count):
        open_block = owners[at] == UNRESOLVED
        takes = open_block & (states[at] == DATA)
        crcs[at] = layer_crcs[at] if takes else crcs[at]
        owners[at] = layer_index if takes else owners[at]
        owners[at] = ZERO_OWNER if open_block & (states[at] == ZERO) else owners[at]
        unresolved += owners[at] == UNRESOLVED
    return unresolved


cdef void freeze_core(const uint8_t *states, uint32_t *crcs, Py_ssize_t count,
                      Py_ssize_t *data_count, Py_ssize_t *zero_count) noexcept nogil:
    cdef Py_ssize_t at, with_data = 0, with_zero = 0
    for at in range(count):
        with_data += states[at] == DATA
        with_zero += states[at] == ZERO
        crcs[at] = crcs[at] if states[at] == DATA else 0
    data_count[0] = with_data
    zero_count[0] = with_zero


cdef Py_ssize_t diff_core(uint8_t *changed, const uint8_t *states,
                          Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at, changed_count = 0
    for at in range(count):
        changed[at] |= states[at] != ABSENT
        changed_count += changed[at] != 0
    return changed_count


cdef void merge_core(uint8_t *lower_states, uint32_t *lower_crcs, const uint8_t *upper_states,
                     const uint32_t *upper_crcs, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at
    cdef uint32_t crc
    for at in range(count):
        crc = upper_crcs[at] if upper_states[at] == DATA else 0
        lower_crcs[at] = lower_crcs[at] if upper_states[at] == ABSENT else crc
        lower_states[at] = lower_states[at] if upper_states[at] == ABSENT else upper_states[at]


cdef Py_ssize_t owner_run_end(const uint16_t *owners, Py_ssize_t at,
                              Py_ssize_t end) noexcept nogil:
    # UNRESOLVED and ZERO_OWNER differ in the lowest bit alone: setting it makes them one.
    cdef uint16_t bit = 1 if owners[at] >= ZERO_OWNER else 0
    cdef uint16_t owner = owners[at] | bit
    cdef uint64_t bits = bit * <uint64_t>0x0001000100010001, word
    cdef uint64_t pattern = owner * <uint64_t>0x0001000100010001
    at += 1
    while at + 4 <= end:
        memcpy(&word, owners + at, 8)
        if (word | bits) != pattern:
            break
        at += 4
    while at < end and (owners[at] | bit) == owner:
        at += 1
    return at


cdef Py_ssize_t pack_crcs(const uint8_t *states, const uint32_t *crcs, uint32_t *packed,
                          Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at, kept = 0
    for at in range(count):
        packed[kept] = htole32(crcs[at])
        kept += states[at] == DATA
    return kept


cdef void unpack_crcs(const uint8_t *states, const uint8_t *packed, uint32_t *crcs,
                      Py_ssize_t count) noexcept nogil:
    # Eight at a time where they are alike, as in most maps.
    cdef Py_ssize_t at = 0, stop, block
    cdef uint64_t word
    cdef uint32_t crc
    while at < count:
        stop = at + 8
        if stop <= count:
            memcpy(&word, states + at, 8)
            if not word & <uint64_t>0x0101010101010101:  # no DATA
                memset(crcs + at, 0, 8 * sizeof(uint32_t))
                at = stop
                continue
            if word == <uint64_t>0x0101010101010101:
                memcpy(crcs + at, packed, 8 * sizeof(uint32_t))
                for block in range(at, stop):
                    crcs[block] = le32toh(crcs[block])
                packed += 8 * sizeof(uint32_t)
                at = stop
                continue
        for block in range(at, min(stop, count)):
            crcs[block] = 0
            if states[block] == DATA:
                memcpy(&crc, packed, 4)
                crcs[block] = le32toh(crc)
                packed += 4
        at = stop


cdef void pack_states(const uint8_t *states, uint8_t *packed, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(count // 4):
        packed[at] = (states[4 * at] | states[4 * at + 1] << 2 | states[4 * at + 2] << 4
                      | states[4 * at + 3] << 6)


cdef void unpack_states(const uint8_t *packed, uint8_t *states, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(count // 4):
        memcpy(states + 4 * at, FOUR_STATES[packed[at]], 4)


cdef Py_ssize_t data_count(const uint8_t *states, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at, found = 0
    for at in range(count):
        found += states[at] == DATA
    return found


# ---- shells ----

cdef int check_states(const uint8_t[::1] states) except -1:
    if states.shape[0] and not all_known(&states[0], states.shape[0]):
        raise ValueError("a block state is none of ABSENT, DATA, ZERO")
    return 0


cdef int check_range(Py_ssize_t first, Py_ssize_t count, Py_ssize_t length) except -1:
    if first < 0 or count < 0 or first > length or count > length - first:
        raise ValueError(f"blocks {first} + {count} are not within a map of {length}")
    return 0


def mark(uint8_t[::1] states not None, Py_ssize_t first_block, Py_ssize_t block_count,
         Py_ssize_t state):
    check_range(first_block, block_count, states.shape[0])
    if not ABSENT <= state <= ZERO:
        raise ValueError(f"block state {state} is none of ABSENT, DATA, ZERO")
    if block_count:
        memset(&states[first_block], <int>state, block_count)


def overlay(uint16_t[::1] owners not None, uint32_t[::1] crcs not None,
            const uint8_t[::1] layer_states not None, const uint32_t[::1] layer_crcs not None,
            Py_ssize_t layer_index):
    cdef Py_ssize_t count = owners.shape[0]
    check_length("crcs", crcs.shape[0], count)
    check_length("layer_states", layer_states.shape[0], count)
    check_length("layer_crcs", layer_crcs.shape[0], count)
    if not 0 <= layer_index < ZERO_OWNER:
        raise ValueError(f"layer_index must be 0 to {ZERO_OWNER - 1}, not {layer_index}")
    check_states(layer_states)
    if count == 0:
        return 0
    return overlay_core(&owners[0], &crcs[0], &layer_states[0], &layer_crcs[0], count,
                        <uint16_t>layer_index)


def resolve_runs(const uint16_t[::1] owners not None, Py_ssize_t first_block,
                 Py_ssize_t block_count):
    check_range(first_block, block_count, owners.shape[0])
    cdef Py_ssize_t at = first_block, end = first_block + block_count, stop
    runs = []
    while at < end:
        stop = owner_run_end(&owners[0], at, end)
        runs.append((at, stop - at, min(<int>owners[at], <int>ZERO_OWNER)))
        at = stop
    return runs


def state_runs(const uint8_t[::1] states not None, Py_ssize_t first_block,
               Py_ssize_t block_count):
    check_range(first_block, block_count, states.shape[0])
    check_states(states)
    cdef Py_ssize_t at = first_block, end = first_block + block_count, stop
    runs = []
    while at < end:
        stop = run_end(&states[0], at, end)
        runs.append((at, stop - at, states[at]))
        at = stop
    return runs


def freeze(const uint8_t[::1] states not None, uint32_t[::1] crcs not None):
    cdef Py_ssize_t data_count = 0, zero_count = 0
    check_length("crcs", crcs.shape[0], states.shape[0])
    check_states(states)
    if states.shape[0]:
        freeze_core(&states[0], &crcs[0], states.shape[0], &data_count, &zero_count)
    return data_count, zero_count


def diff(uint8_t[::1] changed not None, const uint8_t[::1] layer_states not None):
    check_length("layer_states", layer_states.shape[0], changed.shape[0])
    check_states(layer_states)
    if changed.shape[0] == 0:
        return 0
    return diff_core(&changed[0], &layer_states[0], changed.shape[0])


def merge(uint8_t[::1] lower_states not None, uint32_t[::1] lower_crcs not None,
          const uint8_t[::1] upper_states not None, const uint32_t[::1] upper_crcs not None):
    cdef Py_ssize_t count = lower_states.shape[0]
    check_length("lower_crcs", lower_crcs.shape[0], count)
    check_length("upper_states", upper_states.shape[0], count)
    check_length("upper_crcs", upper_crcs.shape[0], count)
    check_states(lower_states)
    check_states(upper_states)
    if count:
        merge_core(&lower_states[0], &lower_crcs[0], &upper_states[0], &upper_crcs[0], count)


cdef int check_packable(Py_ssize_t count) except -1:
    if count < 8 or count % 4 or count > PACKED_BLOCKS_MAX:
        raise ValueError(f"a map of {count} blocks has no packed form")
    return 0


def pack(const uint8_t[::1] states not None, const uint32_t[::1] crcs not None):
    cdef Py_ssize_t count = states.shape[0]
    check_packable(count)
    check_length("crcs", crcs.shape[0], count)
    check_states(states)
    cdef bint uniform = run_end(&states[0], 0, count) == count
    packed_states = PyBytes_FromStringAndSize(NULL, 1 if uniform else count // 4)
    if uniform:
        PyBytes_AS_STRING(packed_states)[0] = <char>states[0]
    else:
        pack_states(&states[0], <uint8_t *>PyBytes_AS_STRING(packed_states), count)
    cdef uint32_t kept_crcs[PACKED_BLOCKS_MAX]
    cdef Py_ssize_t kept = pack_crcs(&states[0], &crcs[0], kept_crcs, count)
    return packed_states, PyBytes_FromStringAndSize(<char *>kept_crcs, 4 * kept)


def unpack(const uint8_t[::1] packed_states not None, const uint8_t[::1] packed_crcs not None,
           uint8_t[::1] states not None, uint32_t[::1] crcs not None):
    cdef Py_ssize_t count = states.shape[0]
    check_packable(count)
    check_length("crcs", crcs.shape[0], count)
    cdef uint8_t found[PACKED_BLOCKS_MAX]
    if packed_states.shape[0] == 1:
        memset(found, packed_states[0], count)
    else:
        check_length("packed_states", packed_states.shape[0], count // 4)
        unpack_states(&packed_states[0], found, count)
    if not all_known(found, count):
        raise ValueError("a block state is none of ABSENT, DATA, ZERO")
    check_length("packed_crcs", packed_crcs.shape[0], 4 * data_count(found, count))
    memcpy(&states[0], found, count)
    unpack_crcs(found, &packed_crcs[0] if packed_crcs.shape[0] else NULL, &crcs[0], count)
