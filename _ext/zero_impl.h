/* Zero detection: interface of zero_impl.c. No allocation; any thread, once zero_setup has run. */
#ifndef VOLCORE_ZERO_IMPL_H
#define VOLCORE_ZERO_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* Chooses the implementation for this CPU. Call once, before anything else. */
void zero_setup(void);

/* 1 when every byte is 0 (also for no bytes), else 0. Stops at the first step with a byte set. */
int zero_is_zero(const uint8_t *data, size_t length_bytes);
/* out[i] = zero_is_zero of block i; returns the number of zero blocks. */
size_t zero_find_blocks(const uint8_t *data, size_t block_size_bytes, size_t block_count,
                        uint8_t *out);

#endif
