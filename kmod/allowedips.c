// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which session an inner packet belongs to: AllowedIPs by longest prefix, both ways. A table of
 * hashed prefixes and the lengths that are in use: a lookup tries those, the longest first. Most
 * devices use one or two lengths.
 */
#include <linux/bitmap.h>
#include <linux/jhash.h>
#include <linux/random.h>
#include <linux/slab.h>
#include "allowedips.h"
#include "namespace.h"
#include "session.h"

#define QRE_ALLOWED_BITS 12
#define QRE_LENGTHS	 129

struct qre_allowed {
	struct hlist_node node;
	struct qre_session *session;
	__be32 address[4];
	u8 length;
	bool ipv6;
};

struct qre_allowed_ips {
	u32 seed;
	u32 users[2][QRE_LENGTHS];
	DECLARE_BITMAP(lengths4, QRE_LENGTHS);
	DECLARE_BITMAP(lengths6, QRE_LENGTHS);
	struct hlist_head buckets[1 << QRE_ALLOWED_BITS];
};

struct qre_allowed_ips *qre_allowed_ips_new(void)
{
	struct qre_allowed_ips *table = kvzalloc(sizeof(*table), GFP_KERNEL_ACCOUNT);

	if (table)
		table->seed = get_random_u32();
	return table;
}

void qre_allowed_ips_free(struct qre_allowed_ips *table)
{
	kvfree(table);
}

static unsigned long *qre_lengths(struct qre_allowed_ips *table, bool ipv6)
{
	return ipv6 ? table->lengths6 : table->lengths4;
}

/* The first @length bits of @address, the others 0. */
static void qre_masked(__be32 out[4], const void *address, unsigned int length, bool ipv6)
{
	unsigned int i, words = ipv6 ? 4 : 1;

	memset(out, 0, 16);
	memcpy(out, address, words * 4);
	for (i = 0; i < words; i++) {
		unsigned int bits = length > i * 32 ? min(length - i * 32, 32U) : 0;

		if (bits < 32)
			out[i] &= bits ? cpu_to_be32(~0U << (32 - bits)) : 0;
	}
}

static struct hlist_head *qre_bucket(struct qre_allowed_ips *table, const __be32 masked[4],
				     unsigned int length, bool ipv6)
{
	u32 hash = ipv6 ? jhash2((const u32 *)masked, 4, table->seed + length)
			: jhash_2words((__force u32)masked[0], length, table->seed);

	return &table->buckets[hash >> (32 - QRE_ALLOWED_BITS)];
}

static bool qre_matches(const struct qre_allowed *entry, const __be32 masked[4],
			unsigned int length, bool ipv6)
{
	return entry->length == length && entry->ipv6 == ipv6 && entry->address[0] == masked[0] &&
	       (!ipv6 || !memcmp(entry->address, masked, 16));
}

struct qre_allowed *qre_allowed_ips_new_entries(struct qre_session *s,
						const struct qre_allowed_ip *ips,
						unsigned int *count)
{
	static const struct qre_allowed_ip all[] = {{.family = 4}, {.family = 6}};
	struct qre_allowed *entries;
	unsigned int i;

	if (!*count) {
		ips = all;
		*count = ARRAY_SIZE(all);
	}
	entries = kvcalloc(*count, sizeof(*entries), GFP_KERNEL_ACCOUNT);
	if (!entries)
		return NULL;
	for (i = 0; i < *count; i++) {
		struct qre_allowed *entry = &entries[i];

		entry->session = s;
		entry->length = ips[i].prefix;
		entry->ipv6 = ips[i].family == 6;
		qre_masked(entry->address, ips[i].address, entry->length, entry->ipv6);
	}
	return entries;
}

void qre_allowed_ips_add(struct qre_allowed_ips *table, struct qre_allowed *entries,
			 unsigned int count)
{
	struct qre_allowed *entry;

	for (entry = entries; entry < entries + count; entry++) {
		hlist_add_head_rcu(&entry->node,
				   qre_bucket(table, entry->address, entry->length, entry->ipv6));
		if (!table->users[entry->ipv6][entry->length]++)
			set_bit(entry->length, qre_lengths(table, entry->ipv6));
	}
}

void qre_allowed_ips_remove(struct qre_allowed_ips *table, struct qre_allowed *entries,
			    unsigned int count)
{
	struct qre_allowed *entry;

	for (entry = entries; entry < entries + count; entry++) {
		hlist_del_rcu(&entry->node);
		if (!--table->users[entry->ipv6][entry->length])
			clear_bit(entry->length, qre_lengths(table, entry->ipv6));
	}
}

/* Newest first; an established session before one that is held or ending. */
static struct qre_session *qre_allowed_best(struct hlist_head *bucket, const __be32 masked[4],
					    unsigned int length, bool ipv6)
{
	struct qre_session *other = NULL;
	struct qre_allowed *entry;

	hlist_for_each_entry_rcu(entry, bucket, node) {
		if (!qre_matches(entry, masked, length, ipv6))
			continue;
		if (READ_ONCE(entry->session->life) == QRE_LIFE_ESTABLISHED)
			return entry->session;
		if (!other)
			other = entry->session;
	}
	return other;
}

struct qre_session *qre_allowed_ips_find(struct qre_allowed_ips *table, const void *address,
					 bool ipv6)
{
	unsigned long *lengths = qre_lengths(table, ipv6);
	unsigned int length = find_last_bit(lengths, QRE_LENGTHS);
	__be32 masked[4];

	while (length < QRE_LENGTHS) {
		struct qre_session *found;

		qre_masked(masked, address, length, ipv6);
		found = qre_allowed_best(qre_bucket(table, masked, length, ipv6), masked, length,
					 ipv6);
		if (found)
			return found;
		if (!length)
			break;
		length = find_last_bit(lengths, length) < length ? find_last_bit(lengths, length)
								 : QRE_LENGTHS;
	}
	return NULL;
}

bool qre_allowed_ips_owns(struct qre_allowed_ips *table, const struct qre_session *s,
			  const void *address, bool ipv6)
{
	unsigned long *lengths = qre_lengths(table, ipv6);
	unsigned int length = find_last_bit(lengths, QRE_LENGTHS);
	__be32 masked[4];

	while (length < QRE_LENGTHS) {
		struct qre_allowed *entry;
		bool any = false;

		qre_masked(masked, address, length, ipv6);
		hlist_for_each_entry_rcu(entry, qre_bucket(table, masked, length, ipv6), node) {
			if (!qre_matches(entry, masked, length, ipv6))
				continue;
			if (entry->session == s)
				return true;
			any = true;
		}
		if (any || !length) /* the longest prefix is somebody else's */
			return false;
		length = find_last_bit(lengths, length) < length ? find_last_bit(lengths, length)
								 : QRE_LENGTHS;
	}
	return false;
}
