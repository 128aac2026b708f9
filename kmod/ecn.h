/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether the path bears ECN marks (RFC 9000 section 13.4.2 and App. A.4): the first packets are
 * marked; then none is until acknowledgements have counted the marks rightly, and if one ever does
 * not, none is any more. Depends on nothing but fixed-width types (see ackwin.h).
 *
 *	OFF --- a codepoint is wanted ---> TESTING --- ten packets, or three PTO ---> UNKNOWN
 *	                                      \--- counted rightly ---> CAPABLE <--- /
 *	                                       \-- not counted, or wrongly, from any --> FAILED
 *
 * Another path, or another codepoint, begins anew.
 */
#ifndef QRE_ECN_H
#define QRE_ECN_H

#include "frames.h"

#define QRE_ECN_TEST_PACKETS 10
#define QRE_ECN_SKIPPED	     8
#define QRE_ECN_NEVER	     (~0ULL)

enum qre_ecn_state {
	QRE_ECN_OFF,
	QRE_ECN_TESTING,
	QRE_ECN_UNKNOWN,
	QRE_ECN_CAPABLE,
	QRE_ECN_FAILED,
};

struct qre_ecn {
	enum qre_ecn_state state;
	u8 codepoint; /* of the IP header: ECT(1) is 1, ECT(0) is 2 */
	u8 tested;    /* packets that the test has marked */
	u64 from, to; /* their numbers, @to not among them */
	u64 again;    /* everything from this number on is marked; QRE_ECN_NEVER: nothing is */
	u64 until;    /* when the test ends */
	u64 skipped[QRE_ECN_SKIPPED]; /* numbers among them that are not; QRE_ECN_NEVER: none */
	unsigned int next_skipped;
	bool counted; /* the peer's last counts: */
	u64 counts[3];
};

/* @codepoint 0: nothing is marked. */
void qre_ecn_begin(struct qre_ecn *e, u8 codepoint);
/* What the @count packets from number @first on bear. @test: how long a test lasts, in the unit of
 * @now. */
u8 qre_ecn_mark(struct qre_ecn *e, u64 first, unsigned int count, u64 now, u64 test);
/* The packet with this number takes another path, without a mark. */
void qre_ecn_skip(struct qre_ecn *e, u64 number);
/*
 * An acknowledgement whose largest number is above @before, the largest acknowledged until then;
 * QRE_ECN_NEVER: none was. @next: the next number that is taken.
 */
void qre_ecn_acked(struct qre_ecn *e, const struct qre_frame *f, u64 before, u64 next);

#endif
