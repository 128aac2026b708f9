/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How often a client acknowledges: as a browser, which does so for every second packet, later for
 * every tenth, and for fewer after a while (RFC 9000 section 13.2.2). Depends on nothing but
 * fixed-width types (see ackwin.h).
 */
#ifndef QRE_ACKPOLICY_H
#define QRE_ACKPOLICY_H

#include "portable.h"

struct qre_ack_policy {
	u64 received; /* packets that ask for an ACK */
	u8 waiting;   /* of them, since the last ACK */
};

/* @received of them were counted by the handshake. */
void qre_ack_policy_init(struct qre_ack_policy *p, u64 received);
/* Another one has arrived: whether an ACK is due at once. */
bool qre_ack_policy_arrived(struct qre_ack_policy *p);
/* An ACK of everything is sent. */
void qre_ack_policy_sent(struct qre_ack_policy *p);
/* How long one packet may wait, in microseconds; @rtt is the path's shortest, or a guess. */
u32 qre_ack_policy_delay(const struct qre_ack_policy *p, u64 rtt);

#endif
