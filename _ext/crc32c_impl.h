/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78): interface of crc32c_impl.c.
 *
 * Checksums at this interface are finished values (initial and final inversion done), as in RFC
 * 3720; 0 is the checksum of no bytes. Every function but crc32c_setup and crc32c_use may run on any
 * number of threads at once. Nothing here allocates, blocks or keeps a pointer.
 */
#ifndef VOLCORE_CRC32C_IMPL_H
#define VOLCORE_CRC32C_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* Builds the tables and chooses the fastest implementation. Call once, before anything else. */
void crc32c_setup(void);

/* Name of the index-th implementation that this CPU runs, fastest first, or NULL past the last. */
const char *crc32c_name(size_t index);
const char *crc32c_current(void);
/* Makes the named implementation the current one. 0, or -1 when this CPU or build lacks it. */
int crc32c_use(const char *name);

/* Name of a CPU feature that the compiler was told to assume and this CPU lacks, or NULL. */
const char *crc32c_missing_feature(void);

/* Continues a checksum over more data. */
uint32_t crc32c_update(uint32_t crc, const uint8_t *data, size_t length_bytes);
void crc32c_blocks(const uint8_t *data, size_t block_size_bytes, size_t block_count, uint32_t *out);
/* Index of the first block whose checksum differs from expected[index], or block_count. */
size_t crc32c_find_bad(const uint8_t *data, size_t block_size_bytes, size_t block_count,
                       const uint32_t *expected);
/* Checksums are those of the bytes that arrived in target. The ranges may overlap. */
void crc32c_copy_blocks(uint8_t *target, const uint8_t *source, size_t block_size_bytes,
                        size_t block_count, uint32_t *out);
/* Checksum of the concatenation of two byte strings, from theirs and the length of the second. */
uint32_t crc32c_combine(uint32_t crc_first, uint32_t crc_second, uint64_t second_length_bytes);

#endif
