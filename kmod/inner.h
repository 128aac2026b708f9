/* SPDX-License-Identifier: GPL-2.0-only */
/* Inner packets (inner.c). Bottom halves are off, under RCU. */
#ifndef QRE_INNER_H
#define QRE_INNER_H

#include <linux/skbuff.h>
#include <linux/tcp.h>

#include "joiner.h"
#include "uapi/qre.h"

struct qre_session;

#define QRE_PULL 128 /* the most headers of a segment */

enum qre_way {
	QRE_WAY_NONE,
	QRE_WAY_WHOLE,	  /* unchanged, or cut as the super-packet's header says */
	QRE_WAY_CUT,	  /* TCP: by struct qre_inner */
	QRE_WAY_SPLIT,	  /* what is above the limit in two datagrams */
	QRE_WAY_FRAGMENT, /* IPv4 */
};

struct qre_fit {
	unsigned int limit; /* of what one datagram holds of an inner packet */
	enum qre_way way;
};

/* Why a packet of the stack's does not leave, whose sender was told then; QRE_DROP_UNSPEC: it
 * does, as @fit says. */
enum qre_drop qre_check_outgoing(struct qre_session *s, struct sk_buff *skb, bool ipv6,
				 struct qre_fit *fit);
/* The packets that it is sent as, a list of @count with finished checksums; NULL: no memory, and
 * @skb is the caller's still. Not of what is cut. */
struct sk_buff *qre_segments(struct sk_buff *skb, const struct qre_fit *fit, unsigned int *count);

/* One packet that leaves: all of @skb. Where it has @headers, the segment of @size bytes of its
 * data
 * @from there on, the @number'th. Where it has a @total, the part of @size bytes @from there on of
 * the @number'th packet in two. */
struct qre_inner {
	struct sk_buff *skb;
	unsigned int headers, total, from, size;
	unsigned int number;
	bool ipv6;
};
/* Copy it to @to, with a finished checksum; an error: not all of it. */
int qre_inner_put(const struct qre_inner *inner, u8 *to);
/* The bytes of it. */
static inline unsigned int qre_inner_size(const struct qre_inner *inner)
{
	return inner->headers + (inner->total ? QRE_PART_HEAD : 0) + inner->size;
}
static inline unsigned int qre_inner_headers(const struct sk_buff *skb)
{
	return skb_transport_offset(skb) + tcp_hdrlen(skb);
}
/* Empty, with room for a packet of @size bytes that arrived; NULL: no memory. */
static inline struct sk_buff *qre_inner_room(unsigned int size)
{
	struct sk_buff *skb = __alloc_skb(NET_SKB_PAD + size, GFP_ATOMIC | __GFP_NOWARN,
					  SKB_ALLOC_NAPI, NUMA_NO_NODE);

	if (skb)
		skb_reserve(skb, NET_SKB_PAD);
	return skb;
}
/* A packet that came out of the tunnel: the segments that a SYN asks for are made to fit the way
 * back. */
void qre_clamp_mss(const struct qre_session *s, struct sk_buff *skb, bool ipv6);

#endif
