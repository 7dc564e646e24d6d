/* CRC-32C in hand-written C; the implementation is chosen at run time from what the CPU offers.
 *
 * Inside this file a checksum in progress is called "state": the register of the reflected CRC,
 * without the initial and final inversion. Polynomials are reflected: bit i of a 32-bit word is
 * x^(31-i).
 *
 * Sources:
 *   RFC 3720 (iSCSI), section 12.1 and appendix B.4: polynomial, conventions, test vectors.
 *   M. Kounavis, F. Berry, "A Systematic Approach to Building High Performance Software-Based CRC
 *     Generators", 2005: slicing-by-8.
 *   V. Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", Intel,
 *     2011: three interleaved streams.
 *   V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction",
 *     Intel, 2009: folding, here on 512-bit registers.
 */
#include "crc32c_impl.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define CRC32C_X86 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__) && defined(__GNUC__)
#define CRC32C_ARM 1
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

#define POLYNOMIAL UINT32_C(0x82F63B78)

/* Bytes per stream of the three-stream loops. 3 * 1360 + 16 is one 4 KiB block; 168 mops up. */
#define STREAM_LONG_BYTES 1360
#define STREAM_SHORT_BYTES 168

typedef uint32_t (*update_fn)(uint32_t state, const uint8_t *data, size_t length);

static uint32_t slice_table[8][256];

static uint64_t load64(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* ---- polynomial arithmetic ---- */

/* a * b mod P. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (uint32_t bit = UINT32_C(1) << 31; bit != 0; bit >>= 1) {
        if (a & bit)
            product ^= b;
        b = (b & 1) ? (b >> 1) ^ POLYNOMIAL : b >> 1;
    }
    return product;
}

/* base^exponent mod P, base given as a polynomial. */
static uint32_t power(uint32_t base, uint64_t exponent)
{
    uint32_t result = UINT32_C(1) << 31; /* x^0 */
    for (; exponent != 0; exponent >>= 1) {
        if (exponent & 1)
            result = multiply(result, base);
        base = multiply(base, base);
    }
    return result;
}

#define X_TO_1 (UINT32_C(1) << 30)
#define X_TO_8 (UINT32_C(1) << 23)

uint32_t crc32c_combine(uint32_t crc_first, uint32_t crc_second, uint64_t second_length_bytes)
{
    return multiply(crc_first, power(X_TO_8, second_length_bytes)) ^ crc_second;
}

/* ---- portable: slicing-by-8 ---- */

static void build_slice_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t state = byte;
        for (int bit = 0; bit < 8; bit++)
            state = (state & 1) ? (state >> 1) ^ POLYNOMIAL : state >> 1;
        slice_table[0][byte] = state;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int slice = 1; slice < 8; slice++) {
            uint32_t state = slice_table[slice - 1][byte];
            slice_table[slice][byte] = (state >> 8) ^ slice_table[0][state & 255];
        }
}

static uint32_t update_portable(uint32_t state, const uint8_t *data, size_t length)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    for (; length >= 8; data += 8, length -= 8) {
        uint64_t word = load64(data) ^ state;
        state = slice_table[7][word & 255] ^ slice_table[6][(word >> 8) & 255]
              ^ slice_table[5][(word >> 16) & 255] ^ slice_table[4][(word >> 24) & 255]
              ^ slice_table[3][(word >> 32) & 255] ^ slice_table[2][(word >> 40) & 255]
              ^ slice_table[1][(word >> 48) & 255] ^ slice_table[0][word >> 56];
    }
#endif
    for (; length > 0; data++, length--)
        state = (state >> 8) ^ slice_table[0][(state ^ *data) & 255];
    return state;
}

static int supported_always(void)
{
    return 1;
}

/* ---- CRC instructions: three interleaved streams, combined by table ---- */

#if defined(CRC32C_X86) || defined(CRC32C_ARM)

#ifdef CRC32C_X86
/* Newer compilers give the CRC instructions a feature of their own; older ones lack the word. */
#if defined(__clang__) || __GNUC__ >= 11
#define CRC_FEATURES "sse4.2,crc32"
#else
#define CRC_FEATURES "sse4.2"
#endif
#define TARGET_CRC __attribute__((target(CRC_FEATURES)))
#define CRC_INSTRUCTION_NAME "sse4.2"
#define CRC64(state, word) ((uint32_t)_mm_crc32_u64((state), (word)))
#define CRC8(state, byte) _mm_crc32_u8((state), (byte))

static int supported_crc(void)
{
    return __builtin_cpu_supports("sse4.2");
}
#else
#define CRC_INSTRUCTION_NAME "armv8-crc"
#ifdef __clang__
#define TARGET_CRC __attribute__((target("crc")))
#define CRC64(state, word) __builtin_arm_crc32cd((state), (word))
#define CRC8(state, byte) __builtin_arm_crc32cb((state), (byte))
#else
#define TARGET_CRC __attribute__((target("+crc")))
#define CRC64(state, word) __builtin_aarch64_crc32cx((state), (word))
#define CRC8(state, byte) __builtin_aarch64_crc32cb((state), (byte))
#endif

static int supported_crc(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
}
#endif

/* shift_*[i][v] is byte i = v of a state, moved on over one stream's length of zero bytes. */
static uint32_t shift_long[4][256];
static uint32_t shift_short[4][256];

static void build_shift_table(uint32_t table[4][256], uint64_t length_bytes)
{
    uint32_t factor = power(X_TO_8, length_bytes);
    for (int place = 0; place < 4; place++)
        for (uint32_t byte = 0; byte < 256; byte++)
            table[place][byte] = multiply(byte << (8 * place), factor);
}

static inline uint32_t shift(uint32_t table[4][256], uint32_t state)
{
    return table[0][state & 255] ^ table[1][(state >> 8) & 255] ^ table[2][(state >> 16) & 255]
         ^ table[3][state >> 24];
}

TARGET_CRC static inline uint32_t three_streams(uint32_t state, const uint8_t *data, size_t stream,
                                                uint32_t table[4][256])
{
    uint32_t second = 0, third = 0;
    for (size_t at = 0; at < stream; at += 8) {
        state = CRC64(state, load64(data + at));
        second = CRC64(second, load64(data + stream + at));
        third = CRC64(third, load64(data + 2 * stream + at));
    }
    return shift(table, shift(table, state) ^ second) ^ third;
}

TARGET_CRC static uint32_t update_crc(uint32_t state, const uint8_t *data, size_t length)
{
    for (; length >= 3 * STREAM_LONG_BYTES; length -= 3 * STREAM_LONG_BYTES) {
        state = three_streams(state, data, STREAM_LONG_BYTES, shift_long);
        data += 3 * STREAM_LONG_BYTES;
    }
    for (; length >= 3 * STREAM_SHORT_BYTES; length -= 3 * STREAM_SHORT_BYTES) {
        state = three_streams(state, data, STREAM_SHORT_BYTES, shift_short);
        data += 3 * STREAM_SHORT_BYTES;
    }
    for (; length >= 8; data += 8, length -= 8)
        state = CRC64(state, load64(data));
    for (; length > 0; data++, length--)
        state = CRC8(state, *data);
    return state;
}

#endif

/* ---- AVX-512 carry-less multiplication: folding ---- */

#ifdef CRC32C_X86

#define TARGET_FOLD \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,vpclmulqdq,pclmul," CRC_FEATURES)))

/* Below this the set-up and the final reduction cost more than three streams. */
#define FOLD_MIN_BYTES 512
/* Hardware prefetch stops at a 4 KiB page; this looks two pages ahead, and only into the second
 * cache, which has room for more lines on their way than the first. */
#define PREFETCH_BYTES 8192

/* Pairs (first quadword, second quadword) of constants that move a 128-bit lane on by bits. */
static uint64_t fold_by_2048[2], fold_by_1024[2], fold_by_512[2], fold_lanes[8];

/* A lane is q0 * x^64 + q1. Moving it by d bits is q0 * x^(64+d) + q1 * x^d. A product of two
 * reflected quadwords comes out one power of x too high, hence the - 1; a constant, reduced to 32
 * bits, sits in the upper half of its quadword, because in a reflected quadword bit 63 is x^0. */
static void build_fold_pair(uint64_t pair[2], uint64_t distance_bits)
{
    pair[0] = (uint64_t)power(X_TO_1, distance_bits + 64 - 1) << 32;
    pair[1] = (uint64_t)power(X_TO_1, distance_bits - 1) << 32;
}

static void build_fold_constants(void)
{
    build_fold_pair(fold_by_2048, 2048);
    build_fold_pair(fold_by_1024, 1024);
    build_fold_pair(fold_by_512, 512);
    build_fold_pair(fold_lanes, 384);
    build_fold_pair(fold_lanes + 2, 256);
    build_fold_pair(fold_lanes + 4, 128);
    /* fold_lanes[6..7] stay 0: the last lane is where the others go. */
}

static int supported_fold(void)
{
    return supported_crc() && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("avx512f")
        && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("vpclmulqdq");
}

TARGET_FOLD static inline __m512i constant(const uint64_t pair[2])
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)pair));
}

/* accumulator moved on by the distance of key, plus next. */
TARGET_FOLD static inline __m512i fold(__m512i accumulator, __m512i key, __m512i next)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(accumulator, key, 0x00),
                                     _mm512_clmulepi64_epi128(accumulator, key, 0x11), next, 0x96);
}

/* Four accumulators of 64 bytes each, in order, to the state they stand for. */
TARGET_FOLD static inline uint32_t reduce(__m512i a, __m512i b, __m512i c, __m512i d)
{
    __m512i by_512 = constant(fold_by_512);
    __m512i sum = fold(fold(a, by_512, b), constant(fold_by_1024), fold(c, by_512, d));
    __m512i moved = fold(sum, _mm512_loadu_si512(fold_lanes), _mm512_setzero_si512());
    __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(moved),
                                    _mm512_extracti64x4_epi64(moved, 1));
    __m128i lane = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    lane = _mm_xor_si128(lane, _mm512_extracti32x4_epi32(sum, 3));
    return CRC64(CRC64(0, (uint64_t)_mm_extract_epi64(lane, 0)),
                 (uint64_t)_mm_extract_epi64(lane, 1));
}

TARGET_FOLD static uint32_t update_fold(uint32_t state, const uint8_t *data, size_t length)
{
    if (length < FOLD_MIN_BYTES)
        return update_crc(state, data, length);
    __m512i key = constant(fold_by_2048);
    __m512i a = _mm512_loadu_si512(data), b = _mm512_loadu_si512(data + 64);
    __m512i c = _mm512_loadu_si512(data + 128), d = _mm512_loadu_si512(data + 192);
    a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)state)));
    for (data += 256, length -= 256; length >= 256; data += 256, length -= 256) {
        /* An address past the end is never dereferenced by a prefetch; uintptr_t keeps C happy. */
        uintptr_t ahead = (uintptr_t)data + PREFETCH_BYTES;
        _mm_prefetch((const char *)ahead, _MM_HINT_T1);
        _mm_prefetch((const char *)(ahead + 64), _MM_HINT_T1);
        _mm_prefetch((const char *)(ahead + 128), _MM_HINT_T1);
        _mm_prefetch((const char *)(ahead + 192), _MM_HINT_T1);
        a = fold(a, key, _mm512_loadu_si512(data));
        b = fold(b, key, _mm512_loadu_si512(data + 64));
        c = fold(c, key, _mm512_loadu_si512(data + 128));
        d = fold(d, key, _mm512_loadu_si512(data + 192));
    }
    return update_crc(reduce(a, b, c, d), data, length);
}

#endif

/* ---- choice ---- */

static const struct {
    const char *name;
    int (*supported)(void);
    update_fn update;
} implementations[] = {
#ifdef CRC32C_X86
    {"avx512-vpclmulqdq", supported_fold, update_fold},
#endif
#if defined(CRC32C_X86) || defined(CRC32C_ARM)
    {CRC_INSTRUCTION_NAME, supported_crc, update_crc},
#endif
    {"portable", supported_always, update_portable},
};

#define IMPLEMENTATION_COUNT (sizeof implementations / sizeof implementations[0])

/* The only state: set in crc32c_setup, changed by tests alone. */
static size_t current;

void crc32c_setup(void)
{
#ifdef CRC32C_X86
    __builtin_cpu_init();
    build_fold_constants();
#endif
#if defined(CRC32C_X86) || defined(CRC32C_ARM)
    build_shift_table(shift_long, STREAM_LONG_BYTES);
    build_shift_table(shift_short, STREAM_SHORT_BYTES);
#endif
    build_slice_table();
    for (current = 0; !implementations[current].supported();)
        current++;
}

const char *crc32c_name(size_t index)
{
    for (size_t at = 0; at < IMPLEMENTATION_COUNT; at++)
        if (implementations[at].supported() && index-- == 0)
            return implementations[at].name;
    return NULL;
}

const char *crc32c_current(void)
{
    return implementations[current].name;
}

int crc32c_use(const char *name)
{
    for (size_t at = 0; at < IMPLEMENTATION_COUNT; at++)
        if (strcmp(implementations[at].name, name) == 0 && implementations[at].supported()) {
            current = at;
            return 0;
        }
    return -1;
}

const char *crc32c_missing_feature(void)
{
#ifdef CRC32C_X86
    __builtin_cpu_init();
#ifdef __SSE4_2__
    if (!__builtin_cpu_supports("sse4.2"))
        return "sse4.2";
#endif
#ifdef __AVX__
    if (!__builtin_cpu_supports("avx"))
        return "avx";
#endif
#ifdef __AVX2__
    if (!__builtin_cpu_supports("avx2"))
        return "avx2";
#endif
#ifdef __BMI2__
    if (!__builtin_cpu_supports("bmi2"))
        return "bmi2";
#endif
#ifdef __AVX512F__
    if (!__builtin_cpu_supports("avx512f"))
        return "avx512f";
#endif
#endif
    return NULL;
}

/* ---- operations ---- */

uint32_t crc32c_update(uint32_t crc, const uint8_t *data, size_t length_bytes)
{
    return ~implementations[current].update(~crc, data, length_bytes);
}

void crc32c_blocks(const uint8_t *data, size_t block_size_bytes, size_t block_count, uint32_t *out)
{
    update_fn update = implementations[current].update;
    for (size_t index = 0; index < block_count; index++)
        out[index] = ~update(~UINT32_C(0), data + index * block_size_bytes, block_size_bytes);
}

size_t crc32c_find_bad(const uint8_t *data, size_t block_size_bytes, size_t block_count,
                       const uint32_t *expected)
{
    update_fn update = implementations[current].update;
    for (size_t index = 0; index < block_count; index++, data += block_size_bytes)
        if (expected[index] != (uint32_t)~update(~UINT32_C(0), data, block_size_bytes))
            return index;
    return block_count;
}

void crc32c_copy_blocks(uint8_t *target, const uint8_t *source, size_t block_size_bytes,
                        size_t block_count, uint32_t *out)
{
    size_t length = block_size_bytes * block_count;
    uintptr_t from = (uintptr_t)source, to = (uintptr_t)target;
    if (from < to + length && to < from + length) {
        memmove(target, source, length);
        crc32c_blocks(target, block_size_bytes, block_count, out);
        return;
    }
    update_fn update = implementations[current].update;
    for (size_t at = 0, index = 0; index < block_count; index++, at += block_size_bytes) {
        memcpy(target + at, source + at, block_size_bytes);
        out[index] = ~update(~UINT32_C(0), target + at, block_size_bytes);
    }
}
