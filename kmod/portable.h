/* SPDX-License-Identifier: GPL-2.0-only */
/* What the sources that are built for user space, too, are made of. */
#ifndef QRE_PORTABLE_H
#define QRE_PORTABLE_H

#ifdef __KERNEL__
#include <linux/bitops.h>
#include <linux/string.h>
#include <linux/types.h>
#else
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define noinline __attribute__((noinline))

static inline int fls64(u64 word)
{
	return word ? 64 - __builtin_clzll(word) : 0;
}
#endif

#endif
