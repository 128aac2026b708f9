/* SPDX-License-Identifier: GPL-2.0-only */
/* Memory for what is sealed and opened (pages.c). Bottom halves are off. */
#ifndef QRE_PAGES_H
#define QRE_PAGES_H

#include <linux/types.h>

struct page;

/* QRE_SMALL: plaintext that a socket may keep: its pages are small. QRE_HEADS: of outer packets.
 * All are of one size, so each is aligned as that is. */
enum qre_pool { QRE_CIPHERTEXT, QRE_PLAINTEXT, QRE_SMALL, QRE_HEADS, QRE_POOLS };

/* @size contiguous bytes that are not zeroed, with a reference on their page; NULL: no memory. */
u8 *qre_piece_take(enum qre_pool pool, unsigned int size, struct page **page);
/* Not used after all. */
void qre_piece_give(enum qre_pool pool, u8 *at, unsigned int size, struct page *page);
void qre_pages_exit(void);

#endif
