/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The transmit keys that storm.c and faults.c made, in a file that they map and numbers.c reads: it
 * opens what was captured with them. Keys are added before the kernel learns them, and stay.
 */
#ifndef LEDGER_H
#define LEDGER_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "uapi/qre.h"

#define LEDGER_KEYS (1U << 20)

enum ledger_use {
	LEDGER_MADE,  /* nothing may be sent with it */
	LEDGER_TAKEN, /* the kernel has it, perhaps as the next one */
	LEDGER_USED,  /* as the one that it sends with: it is never to be taken again */
};

struct ledger_key {
	uint8_t pair, side, place; /* of who sends with it */
	uint8_t use, ready;
	uint8_t key[QRE_KEY_SIZE], iv[QRE_IV_SIZE], hp[QRE_KEY_SIZE];
};

struct ledger {
	uint32_t count;
	struct ledger_key keys[LEDGER_KEYS];
};

/* NULL: errno says why. The file is as large as it is used. */
static inline struct ledger *ledger_open(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	void *at = MAP_FAILED;

	if (fd >= 0 && !ftruncate(fd, sizeof(struct ledger)))
		at = mmap(NULL, sizeof(struct ledger), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return at == MAP_FAILED ? NULL : at;
}

/* Which one it is; LEDGER_KEYS: the book is full. */
static inline uint32_t ledger_add(struct ledger *l, const struct ledger_key *key)
{
	uint32_t at = __atomic_fetch_add(&l->count, 1, __ATOMIC_SEQ_CST);

	if (at >= LEDGER_KEYS)
		return LEDGER_KEYS;
	l->keys[at] = *key;
	__atomic_store_n(&l->keys[at].ready, 1, __ATOMIC_SEQ_CST);
	return at;
}

static inline void ledger_use(struct ledger *l, uint32_t at, enum ledger_use use)
{
	if (at < LEDGER_KEYS && l->keys[at].use < use)
		l->keys[at].use = use;
}

static inline uint32_t ledger_count(const struct ledger *l)
{
	uint32_t count = __atomic_load_n(&l->count, __ATOMIC_SEQ_CST);

	return count < LEDGER_KEYS ? count : LEDGER_KEYS;
}

#endif
