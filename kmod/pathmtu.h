/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How large a UDP payload the path takes: DPLPMTUD (RFC 8899, RFC 9000 section 14.3) as a state
 * machine without packets, clock or memory of its own. Depends on nothing but fixed-width types
 * (see ackwin.h). Time is in milliseconds and never goes back.
 *
 *   IDLE -- begin --> SEARCHING -- no larger size, or three probes of one lost --> SETTLED
 *                       ^   ^                                                      |   |
 *                       |   +---- every ten minutes, or with a wider first hop ----+   |
 *                       |                                                              v
 *                       +-- three probes of the size in use lost: from the base -- CONFIRMING
 *
 * Of the packets above the base one at a time is watched; when it is lost, the size in use is
 * confirmed by probes. A probe is lost when a packet with a higher number was acknowledged and it
 * was not: a path on which nothing at all is acknowledged is down, and tells nothing of its MTU.
 * Where a stream may stand still until the answer is known, a small packet is sent behind the probe
 * so that there is one to acknowledge. ICMP errors are ignored: anybody can forge them, and the
 * probes find the same.
 */
#ifndef QRE_PATHMTU_H
#define QRE_PATHMTU_H

#include "portable.h"

#define QRE_PATHMTU_BASE    1200 /* every path that QUIC runs over takes it: RFC 9000 section 14 */
#define QRE_PATHMTU_TRIES   3	 /* MAX_PROBES of RFC 8899 section 5.1.2 */
#define QRE_PATHMTU_SIZES   8
#define QRE_BROWSER_PAYLOAD 1250 /* the largest datagram of a client's handshake */
#define QRE_PATHMTU_NEVER   (~0ULL)
#define QRE_PATHMTU_NONE    (~0ULL) /* no packet number */

/* What an end of one role does. */
struct qre_pathmtu_plan {
	u16 base;			  /* BASE_PLPMTU, which the handshake has proven */
	u16 sizes[QRE_PATHMTU_SIZES + 1]; /* probed one after the other: ascending, above the base;
					     then 0 */
	u32 raise_ms; /* PMTU_RAISE_TIMER: larger sizes are tried again after that */
	u32 quiet_ms; /* for so long a search from the base may leave senders without word of what
			 fits */
	u8 spacing;   /* round trips before each probe of a search */
};

extern const struct qre_pathmtu_plan qre_pathmtu_server;
extern const struct qre_pathmtu_plan qre_pathmtu_client;

enum qre_pathmtu_state {
	QRE_PATHMTU_IDLE,
	QRE_PATHMTU_SEARCHING,
	QRE_PATHMTU_SETTLED,
	QRE_PATHMTU_CONFIRMING,
};

struct qre_pathmtu {
	const struct qre_pathmtu_plan *plan;
	enum qre_pathmtu_state state;
	u16 size;      /* in use: no packet but a probe is larger */
	u16 bound;     /* nothing is larger: what the peer takes, and the first hop */
	u16 probed;    /* the size of the probes below */
	u8 tries;      /* how many of them were sent */
	bool flying;   /* the fate of the last one is not known */
	bool escorted; /* a small packet was sent right behind it */
	bool waiting;  /* its time is over, and nothing later was acknowledged yet */
	bool resume;   /* a search goes on once the size in use is confirmed */
	bool quiet;    /* the size in use is where a search began, not what the path takes */
	u64 numbers[QRE_PATHMTU_TRIES];
	u64 heard; /* the largest number acknowledged */
	u64 due;   /* of the probe: when to send it, or to decide its fate */
	u64 paced; /* what the search's next probe keeps its distance from */
	u32 rtt;   /* of the path, microseconds, as it is known */
	u64 raise_at;
	u64 quiet_until;
	u64 watched; /* the number of the packet that is watched */
	u64 watched_until;
};

/* What is to be done now. */
enum qre_pathmtu_action {
	QRE_PATHMTU_NOTHING,
	QRE_PATHMTU_PROBE, /* send PING and PADDING in a payload of p->probed; then call _sent */
	QRE_PATHMTU_PING,  /* send something small that is acknowledged */
};

void qre_pathmtu_init(struct qre_pathmtu *p, const struct qre_pathmtu_plan *plan, u16 bound);
/* The session is confirmed, or its path is another one: search from the base. @rtt: microseconds.
 */
void qre_pathmtu_begin(struct qre_pathmtu *p, u64 now, u32 rtt);
/* The path's round trip, measured anew. */
void qre_pathmtu_rtt(struct qre_pathmtu *p, u32 rtt);
/* A payload of @size, which somebody else sent on this path @ago milliseconds ago, has arrived. */
void qre_pathmtu_proven(struct qre_pathmtu *p, u16 size, u64 ago, u64 now);
/* This machine itself cannot send a payload above @bound, or the peer does not take it. */
void qre_pathmtu_bound(struct qre_pathmtu *p, u16 bound, u64 now);
/* To be called until it says NOTHING, when something has happened and when it is due. @pto: the
 * present probe timeout. */
enum qre_pathmtu_action qre_pathmtu_next(struct qre_pathmtu *p, u64 now, u64 pto);
u64 qre_pathmtu_due(const struct qre_pathmtu *p); /* QRE_PATHMTU_NEVER: not by itself */
/* The probe has this number; NONE: there was no memory for it, it is asked for again. */
void qre_pathmtu_sent(struct qre_pathmtu *p, u64 number, u64 now, u64 pto);
/* Whether a packet above the base should be watched, and that this one is. */
bool qre_pathmtu_watches(const struct qre_pathmtu *p);
void qre_pathmtu_watch(struct qre_pathmtu *p, u64 number, u64 now, u64 pto);
/* Whether an acknowledgement matters. If so: each of its ranges, then once its largest number. */
bool qre_pathmtu_listens(const struct qre_pathmtu *p);
void qre_pathmtu_acked(struct qre_pathmtu *p, u64 first, u64 last, u64 now);
void qre_pathmtu_heard(struct qre_pathmtu *p, u64 largest, u64 now);
/* The largest payload that the path may still turn out to take. */
u16 qre_pathmtu_hope(const struct qre_pathmtu *p);

#endif
