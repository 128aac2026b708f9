// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which session an inner packet belongs to: AllowedIPs by longest prefix, both ways. A table of
 * hashed prefixes and the lengths that are in use: a lookup tries those, the longest first. Most
 * devices use one or two lengths.
 */
#include <linux/bitmap.h>
#include <linux/hash.h>
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
	unsigned int longest[2]; /* of them; QRE_LENGTHS: there is none */
	struct hlist_head buckets[1 << QRE_ALLOWED_BITS];
};

struct qre_allowed_ips *qre_allowed_ips_new(void)
{
	struct qre_allowed_ips *table = kvzalloc(sizeof(*table), GFP_KERNEL_ACCOUNT);

	if (table) {
		table->seed = get_random_u32();
		table->longest[0] = table->longest[1] = QRE_LENGTHS;
	}
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

static __be32 qre_first_bits(__be32 word, unsigned int bits)
{
	return bits ? word & cpu_to_be32(~0U << (32 - bits)) : 0;
}

/* The first @length bits of @address, which need not be aligned, the others 0. */
static void qre_masked(__be32 out[4], const void *address, unsigned int length, bool ipv6)
{
	unsigned int i;

	if (!ipv6) {
		memcpy(out, address, 4);
		out[0] = qre_first_bits(out[0], length);
		out[1] = out[2] = out[3] = 0;
		return;
	}
	memcpy(out, address, 16);
	for (i = 0; i < 4; i++)
		out[i] = qre_first_bits(out[i], clamp_t(int, (int)length - (int)i * 32, 0, 32));
}

static struct hlist_head *qre_bucket(struct qre_allowed_ips *table, const __be32 masked[4],
				     unsigned int length, bool ipv6)
{
	u32 bucket;

	if (ipv6)
		bucket = jhash2((const u32 *)masked, 4, table->seed + length) >>
			 (32 - QRE_ALLOWED_BITS);
	else
		bucket = hash_64(((u64)(__force u32)masked[0] << 8 | length) ^ table->seed,
				 QRE_ALLOWED_BITS);
	return &table->buckets[bucket];
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

static void qre_use_length(struct qre_allowed_ips *table, const struct qre_allowed *entry, int more)
{
	unsigned long *lengths = qre_lengths(table, entry->ipv6);
	u32 *users = &table->users[entry->ipv6][entry->length];

	*users += more;
	if (*users)
		set_bit(entry->length, lengths);
	else
		clear_bit(entry->length, lengths);
	WRITE_ONCE(table->longest[entry->ipv6], find_last_bit(lengths, QRE_LENGTHS));
}

void qre_allowed_ips_add(struct qre_allowed_ips *table, struct qre_allowed *entries,
			 unsigned int count)
{
	struct qre_allowed *entry;

	for (entry = entries; entry < entries + count; entry++) {
		hlist_add_head_rcu(&entry->node,
				   qre_bucket(table, entry->address, entry->length, entry->ipv6));
		qre_use_length(table, entry, 1);
	}
}

void qre_allowed_ips_remove(struct qre_allowed_ips *table, struct qre_allowed *entries,
			    unsigned int count)
{
	struct qre_allowed *entry;

	for (entry = entries; entry < entries + count; entry++) {
		hlist_del_rcu(&entry->node);
		qre_use_length(table, entry, -1);
	}
}

/* The next shorter one in use; QRE_LENGTHS: there is none. */
static unsigned int qre_shorter(struct qre_allowed_ips *table, unsigned int length, bool ipv6)
{
	unsigned int next = find_last_bit(qre_lengths(table, ipv6), length);

	return next < length ? next : QRE_LENGTHS;
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
	unsigned int length = READ_ONCE(table->longest[ipv6]);
	__be32 masked[4];

	while (length < QRE_LENGTHS) {
		struct qre_session *found;

		qre_masked(masked, address, length, ipv6);
		found = qre_allowed_best(qre_bucket(table, masked, length, ipv6), masked, length,
					 ipv6);
		if (found)
			return found;
		length = qre_shorter(table, length, ipv6);
	}
	return NULL;
}

bool qre_allowed_ips_owns(struct qre_allowed_ips *table, const struct qre_session *s,
			  const void *address, bool ipv6)
{
	unsigned int length = READ_ONCE(table->longest[ipv6]);
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
		if (any) /* the longest prefix is another session's */
			return false;
		length = qre_shorter(table, length, ipv6);
	}
	return false;
}
