/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packet numbers that have arrived: decoding (RFC 9000 App. A.3), the replay check and the source
 * of ACK ranges (RFC 9000 section 13.2.3). Depends on nothing but fixed-width types, so that the
 * very same code is tested, sanitised and fuzzed in user space.
 */
#ifndef QRE_ACKWIN_H
#define QRE_ACKWIN_H

#include "portable.h"

#define QRE_ACKWIN_BITS	      8192 /* numbers below the highest that may still arrive */
#define QRE_ACKWIN_MAX_RANGES 32   /* of one ACK frame */

/*
 * The window is [floor, floor + QRE_ACKWIN_BITS); bit (n % QRE_ACKWIN_BITS) is set when n arrived.
 * What lies below floor counts as arrived. From run_start up to floor everything really has: an ACK
 * range that reaches down to floor goes on to run_start.
 */
struct qre_ackwin {
	u64 highest; /* valid when any */
	u64 floor;   /* a multiple of 64, or the base */
	u64 run_start;
	bool any;
	u64 bits[QRE_ACKWIN_BITS / 64];
};

struct qre_range {
	u64 first;
	u64 last; /* inclusive */
};

enum qre_arrival {
	QRE_ARRIVAL_NEXT,      /* the highest so far, and the one after the highest before */
	QRE_ARRIVAL_REORDERED, /* new, but it leaves or fills a gap */
	QRE_ARRIVAL_REPLAYED,  /* arrived before, or may have */
};

/* Nothing below @base is ever accepted. @base may be any number. */
void qre_ackwin_init(struct qre_ackwin *w, u64 base);

/* Whether accepting @number would find that it arrived before, or may have. */
bool qre_ackwin_arrived(const struct qre_ackwin *w, u64 number);

/* Note that @number arrived. To be called after the packet was authenticated, never before. */
enum qre_arrival qre_ackwin_accept(struct qre_ackwin *w, u64 number);

/* The ranges that have arrived, highest first; at most @max of them. Returns how many. */
unsigned int qre_ackwin_ranges(const struct qre_ackwin *w, struct qre_range *out, unsigned int max);

/*
 * The full number of a truncated one of @size bytes (1 to 4), nearest to @expected (the highest
 * received plus one; for a window without any, its base).
 */
u64 qre_number_decode(u64 expected, u32 truncated, unsigned int size);

/* As few bytes of @number (1, 2 or 4) as a peer can read it from that has acknowledged @acked; ~0:
 * nothing yet. RFC 9000 section 17.1. */
u8 qre_number_size(u64 number, u64 acked);

#endif
