// SPDX-License-Identifier: GPL-2.0-only
/* See usedkeys.h. Keys are kept as keyed hashes of 64 bits: they cannot be had back. */
#include <linux/hashtable.h>
#include <linux/list.h>
#include <linux/random.h>
#include <linux/refcount.h>
#include <linux/siphash.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include "uapi/qre.h"
#include "usedkeys.h"

#define QRE_RETIRED_MAX 16384 /* keys that a namespace remembers besides those in use */
#define QRE_ORPHANS_MAX 65536 /* of namespaces that have ended, together */

struct qre_key_book {
	struct list_head retired; /* oldest first */
	unsigned int count, most;
	bool ended;
	refcount_t refs; /* the namespace, and every key that is not retired */
};

struct qre_used_key {
	struct hlist_node node; /* qre_used; unhashed: not claimed */
	struct list_head entry; /* qre_key_book.retired */
	struct qre_key_book *book;
	u64 hash;
};

/* All of it is under the lock. */
static DEFINE_SPINLOCK(qre_used_lock);
static DEFINE_HASHTABLE(qre_used, 14);
static struct qre_key_book qre_orphans = {
	.retired = LIST_HEAD_INIT(qre_orphans.retired),
	.most = QRE_ORPHANS_MAX,
};
static siphash_key_t qre_used_secret;

static void qre_book_put(struct qre_key_book *book)
{
	if (refcount_dec_and_test(&book->refs))
		kfree(book);
}

/* The oldest one makes room, when there are too many. */
static struct qre_used_key *qre_book_overflow(struct qre_key_book *book)
{
	struct qre_used_key *oldest;

	if (book->count <= book->most)
		return NULL;
	oldest = list_first_entry(&book->retired, struct qre_used_key, entry);
	list_del(&oldest->entry);
	hash_del(&oldest->node);
	book->count--;
	return oldest;
}

struct qre_key_book *qre_key_book_new(void)
{
	struct qre_key_book *book = kzalloc(sizeof(*book), GFP_KERNEL_ACCOUNT);

	if (!book)
		return NULL;
	INIT_LIST_HEAD(&book->retired);
	book->most = QRE_RETIRED_MAX;
	refcount_set(&book->refs, 1);
	return book;
}

void qre_key_book_end(struct qre_key_book *book)
{
	struct qre_used_key *oldest;

	spin_lock_bh(&qre_used_lock);
	book->ended = true;
	list_splice_tail_init(&book->retired, &qre_orphans.retired);
	qre_orphans.count += book->count;
	book->count = 0;
	spin_unlock_bh(&qre_used_lock);
	do { /* one at a time: others wait for the lock with bottom halves off */
		spin_lock_bh(&qre_used_lock);
		oldest = qre_book_overflow(&qre_orphans);
		spin_unlock_bh(&qre_used_lock);
		kfree(oldest);
	} while (oldest);
	qre_book_put(book);
}

struct qre_used_key *qre_used_key_new(struct qre_key_book *book, const u8 *key)
{
	struct qre_used_key *used = kzalloc(sizeof(*used), GFP_KERNEL_ACCOUNT);

	if (!used)
		return NULL;
	used->hash = siphash(key, QRE_KEY_SIZE, &qre_used_secret);
	used->book = book;
	refcount_inc(&book->refs);
	return used;
}

int qre_used_key_claim(struct qre_used_key *used)
{
	struct qre_used_key *other;
	int error = 0;

	spin_lock_bh(&qre_used_lock);
	hash_for_each_possible(qre_used, other, node, used->hash) if (other->hash == used->hash)
		error = -EEXIST;
	if (!error)
		hash_add(qre_used, &used->node, used->hash);
	spin_unlock_bh(&qre_used_lock);
	return error;
}

void qre_used_key_retire(struct qre_used_key *used)
{
	struct qre_key_book *book, *into;
	struct qre_used_key *gone = used;

	if (!used)
		return;
	book = used->book;
	spin_lock_bh(&qre_used_lock);
	if (hash_hashed(&used->node)) {
		into = book->ended ? &qre_orphans : book;
		list_add_tail(&used->entry, &into->retired);
		into->count++;
		gone = qre_book_overflow(into);
	}
	spin_unlock_bh(&qre_used_lock);
	kfree(gone);
	qre_book_put(book);
}

void qre_used_keys_init(void)
{
	get_random_bytes(&qre_used_secret, sizeof(qre_used_secret));
}

void qre_used_keys_exit(void)
{
	struct qre_used_key *used, *next;

	WARN_ON(!hash_empty(qre_used) && list_empty(&qre_orphans.retired));
	list_for_each_entry_safe(used, next, &qre_orphans.retired, entry)
		kfree(used);
	memzero_explicit(&qre_used_secret, sizeof(qre_used_secret));
}
