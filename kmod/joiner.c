// SPDX-License-Identifier: GPL-2.0-only
/*
 * Joins packets that came in two datagrams. Parts wait for each other in their session's joiner and
 * arrive in any order. What a peer can make it keep is bounded: so many parts, of which the oldest
 * gives way, and none is joined that has waited for longer than a second, or for so many other
 * packets that its identifier may come again. A part is joined with the other one of the same
 * identifier, the same length of the packet, and exactly the bytes that are missing; where anything
 * else has its identifier, the older one is given up.
 */
#include <linux/jiffies.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <net/inet_ecn.h>
#include "device.h"
#include "inner.h"
#include "joiner.h"

#define QRE_PARTS_KEPT 32
#define QRE_PART_WAITS HZ
/* Identifiers behind the newest, which half the circle ahead of it are, too */
#define QRE_PART_BEHIND 1024
#define QRE_PART_AHEAD	0x8000

struct qre_part {
	u16 identifier, total, size;
	bool second;
	u8 ecn;
	const u8 *bytes; /* of its own while it is kept */
	unsigned long until;
};

struct qre_joiner {
	spinlock_t lock;
	unsigned int count;
	struct qre_part kept[QRE_PARTS_KEPT]; /* the oldest first */
};

struct qre_joiner *qre_joiner_new(void)
{
	struct qre_joiner *j = kzalloc(sizeof(*j), GFP_KERNEL_ACCOUNT);

	if (j)
		spin_lock_init(&j->lock);
	return j;
}

void qre_joiner_free(struct qre_joiner *j)
{
	unsigned int i;

	for (i = 0; j && i < j->count; i++)
		kfree(j->kept[i].bytes);
	kfree(j);
}

/* False: its length is impossible. */
static bool qre_part_read(struct qre_part *part, const u8 *content, size_t size)
{
	u16 told;

	if (size <= QRE_PART_HEAD)
		return false;
	told = content[2] << 8 | content[3];
	part->identifier = content[0] << 8 | content[1];
	part->second = told & QRE_PART_SECOND;
	part->total = told & ~QRE_PART_SECOND;
	part->bytes = content + QRE_PART_HEAD;
	size -= QRE_PART_HEAD;
	part->size = size;
	return size < part->total && part->total <= QRE_SPLIT_MAX;
}

/* Take the part at this place, which is the caller's then. */
static struct qre_part qre_part_take(struct qre_joiner *j, unsigned int at)
{
	struct qre_part part = j->kept[at];

	memmove(j->kept + at, j->kept + at + 1, (--j->count - at) * sizeof(*j->kept));
	return part;
}

static struct sk_buff *qre_parts_joined(const struct qre_part *one, const struct qre_part *other)
{
	const struct qre_part *first = one->second ? other : one;
	const struct qre_part *second = one->second ? one : other;
	struct sk_buff *skb = qre_inner_room(one->total);

	if (skb) {
		skb_put_data(skb, first->bytes, first->size);
		skb_put_data(skb, second->bytes, second->size);
	}
	return skb;
}

static bool qre_parts_fit(const struct qre_part *one, const struct qre_part *other)
{
	return one->second != other->second && one->total == other->total &&
	       one->total == one->size + other->size && time_before(jiffies, one->until);
}

static void qre_part_give_up(struct qre_joiner *j, struct qre_device *qdev)
{
	kfree(qre_part_take(j, 0).bytes);
	qre_count_drop(qdev, QRE_DROP_PART_ALONE, 1);
}

/* The oldest, when this one is of a packet much later. */
static void qre_parts_forget(struct qre_joiner *j, struct qre_device *qdev, u16 identifier)
{
	while (j->count) {
		u16 behind = identifier - j->kept[0].identifier;

		if (behind < QRE_PART_BEHIND || behind >= QRE_PART_AHEAD)
			return;
		qre_part_give_up(j, qdev);
	}
}

/* Keep it until the other one comes. */
static void qre_part_keep(struct qre_joiner *j, struct qre_device *qdev, struct qre_part *part)
{
	u8 *bytes = kmemdup(part->bytes, part->size, GFP_ATOMIC | __GFP_NOWARN);

	if (!bytes) {
		qre_count_drop(qdev, QRE_DROP_NO_MEMORY, 1);
		return;
	}
	if (j->count == QRE_PARTS_KEPT)
		qre_part_give_up(j, qdev);
	part->bytes = bytes;
	part->until = jiffies + QRE_PART_WAITS;
	j->kept[j->count++] = *part;
}

struct sk_buff *qre_join(struct qre_joiner *j, struct qre_device *qdev, const u8 *content,
			 size_t size, u8 *ecn)
{
	struct sk_buff *packet = NULL;
	struct qre_part part, kept;
	unsigned int at;

	if (!qre_part_read(&part, content, size)) {
		qre_count_drop(qdev, QRE_DROP_MALFORMED, 1);
		return NULL;
	}
	part.ecn = *ecn;
	spin_lock(&j->lock);
	qre_parts_forget(j, qdev, part.identifier);
	for (at = 0; at < j->count; at++)
		if (j->kept[at].identifier == part.identifier)
			break;
	if (at == j->count) {
		qre_part_keep(j, qdev, &part);
		goto unlock;
	}
	kept = qre_part_take(j, at);
	if (qre_parts_fit(&kept, &part)) {
		packet = qre_parts_joined(&kept, &part);
		if (kept.ecn == INET_ECN_CE) /* RFC 3168 section 5.3 */
			*ecn = INET_ECN_CE;
		if (!packet)
			qre_count_drop(qdev, QRE_DROP_NO_MEMORY, 1);
	} else {
		qre_count_drop(qdev, QRE_DROP_PART_ALONE, 1);
		qre_part_keep(j, qdev, &part);
	}
	kfree(kept.bytes);
unlock:
	spin_unlock(&j->lock);
	return packet;
}
