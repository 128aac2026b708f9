/* SPDX-License-Identifier: GPL-2.0-only */
/* The path's MTU (mtu.c), under qre_session.lock unless said otherwise. */
#ifndef QRE_MTU_H
#define QRE_MTU_H

#include <linux/types.h>

struct dst_entry;
struct qre_frame;
struct qre_outbox;
struct qre_session;

/* What the path's MTU means to the data path: written under qre_session.lock, read anywhere. */
struct qre_mtu {
	u16 inner;	/* the largest inner packet that fits into one datagram */
	u16 inner_ipv6; /* the same of IPv6 */
	u16 clamp;	/* the one that TCP's segments may be made for */
	u16 first_hop;	/* the largest UDP payload that leaves this machine; 0: none has left yet */
	bool quiet;	/* a search goes on: @inner may grow soon, so it is not reported */
	bool watches;	/* a packet above QRE_PATHMTU_BASE should be watched */
};

void qre_mtu_init(struct qre_session *s);
/* The session is confirmed, or its path is another one: the timer begins the search. */
void qre_mtu_begin(struct qre_session *s);
/* The round trip was measured anew. */
void qre_mtu_rtt(struct qre_session *s);
/* A payload of this size, sent by whoever did the handshake @ago_ms ago, has arrived. */
void qre_mtu_proven(struct qre_session *s, u16 payload, u64 ago_ms);
/* The connection ID has another length. */
void qre_mtu_resize(struct qre_session *s);
void qre_mtu_acked(struct qre_session *s, const struct qre_frame *f, struct qre_outbox *out);
void qre_mtu_timers(struct qre_session *s, struct qre_outbox *out);
unsigned long qre_mtu_at(const struct qre_session *s); /* when the timer should run */
/* Without the lock, bottom halves off: a packet above QRE_PATHMTU_BASE has this number. */
void qre_mtu_watch(struct qre_session *s, u64 number);
/* The largest packet that goes in two where @inner fit into one; 0: none does. Any context */
unsigned int qre_mtu_in_two(const struct qre_session *s, unsigned int inner);
/* The largest of IPv6 in one datagram; 0: the path is too narrow for IPv6. Any context */
unsigned int qre_mtu_carries_ipv6(const struct qre_session *s);
/* Without the lock, bottom halves off: whether a payload can leave by this route, as far as this
 * machine knows. */
bool qre_mtu_leaves(struct qre_session *s, const struct dst_entry *dst, u16 family,
		    unsigned int payload);

#endif
