/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which transmit keys were used since the module was loaded, so that a packet number can never be
 * used twice under one key. Looked up for the whole machine; a namespace pushes out only what it
 * used itself, and what it used outlives it. A key in use is never pushed out.
 */
#ifndef QRE_USEDKEYS_H
#define QRE_USEDKEYS_H

#include <linux/types.h>

struct qre_key_book; /* of one namespace */
struct qre_used_key;

struct qre_key_book *qre_key_book_new(void); /* NULL: no memory */
/* The namespace ends. What was used stays remembered. */
void qre_key_book_end(struct qre_key_book *book);

/* Room for remembering @key, not published yet. NULL: no memory. Process context. */
struct qre_used_key *qre_used_key_new(struct qre_key_book *book, const u8 *key);
/* From now on the key counts as used: 0, or -EEXIST when it does already. Allocates nothing; any
 * context. */
int qre_used_key_claim(struct qre_used_key *used);
/* Nothing is sent under the key any more; one that was not claimed is forgotten. Any context; NULL
 * is fine. */
void qre_used_key_retire(struct qre_used_key *used);

void qre_used_keys_init(void);
void qre_used_keys_exit(void); /* every key is retired, every book has ended */

#endif
