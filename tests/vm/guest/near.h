/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef QRE_GUEST_NEAR_H
#define QRE_GUEST_NEAR_H

#include <stdint.h>

/* The number whose last @size bytes are @low and that is nearest to @expected: RFC 9000 App. A.3.
 */
static inline uint64_t number_near(uint64_t expected, uint32_t low, unsigned int size)
{
	uint64_t window = 1ULL << 8 * size, near = (expected & ~(window - 1)) | low;

	if (near + window / 2 <= expected)
		return near + window;
	if (near > expected + window / 2 && near >= window)
		return near - window;
	return near;
}

#endif
