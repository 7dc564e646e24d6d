/* Zero detection. Blocks with data almost always show it in their first bytes, so those are looked
 * at alone; blocks of zeroes are read whole, in steps wide enough for the memory to be the limit.
 */
#include "zero_impl.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define ZERO_X86 1
#include <immintrin.h>
#endif

/* Bytes looked at between two decisions to go on. */
#define STEP_BYTES 256

static uint64_t load64(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* Everything that is no whole step. */
static int short_is_zero(const uint8_t *data, size_t length)
{
    uint64_t seen = 0;
    for (; length >= 8; data += 8, length -= 8)
        seen |= load64(data);
    for (; length > 0; data++, length--)
        seen |= *data;
    return seen == 0;
}

static int is_zero_portable(const uint8_t *data, size_t length)
{
    if (length >= STEP_BYTES && load64(data) != 0)
        return 0;
    for (; length >= STEP_BYTES; data += STEP_BYTES, length -= STEP_BYTES) {
        uint64_t seen = 0;
        for (size_t at = 0; at < STEP_BYTES; at += 8) /* the compiler makes vectors of this */
            seen |= load64(data + at);
        if (seen != 0)
            return 0;
    }
    return short_is_zero(data, length);
}

static int (*is_zero)(const uint8_t *data, size_t length) = is_zero_portable;

#ifdef ZERO_X86

#define LOAD(offset) _mm256_loadu_si256((const __m256i *)(data + (offset)))
#define EITHER(a, b) _mm256_or_si256((a), (b))

__attribute__((target("avx2"))) static int is_zero_avx2(const uint8_t *data, size_t length)
{
    if (length >= STEP_BYTES && load64(data) != 0)
        return 0;
    for (; length >= STEP_BYTES; data += STEP_BYTES, length -= STEP_BYTES) {
        __m256i low = EITHER(EITHER(LOAD(0), LOAD(32)), EITHER(LOAD(64), LOAD(96)));
        __m256i high = EITHER(EITHER(LOAD(128), LOAD(160)), EITHER(LOAD(192), LOAD(224)));
        __m256i seen = EITHER(low, high);
        if (!_mm256_testz_si256(seen, seen))
            return 0;
    }
    return short_is_zero(data, length);
}

#endif

void zero_setup(void)
{
#ifdef ZERO_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        is_zero = is_zero_avx2;
#endif
}

int zero_is_zero(const uint8_t *data, size_t length_bytes)
{
    return is_zero(data, length_bytes);
}

size_t zero_find_blocks(const uint8_t *data, size_t block_size_bytes, size_t block_count,
                        uint8_t *out)
{
    size_t zero_count = 0;
    for (size_t index = 0; index < block_count; index++) {
        out[index] = (uint8_t)is_zero(data + index * block_size_bytes, block_size_bytes);
        zero_count += out[index];
    }
    return zero_count;
}
