// SPDX-License-Identifier: GPL-2.0-only
/* How often a client acknowledges. qre/wire/ack_policy.py is the same for the user data plane. */
#include "ackpolicy.h"

/* Chromium's */
#define EVERY	    2
#define LATER_FROM  100 /* packets */
#define LATER_EVERY 10
#define DELAY_US    25000
#define LEAST_US    1000

static bool later(const struct qre_ack_policy *p)
{
	return p->received > LATER_FROM;
}

void qre_ack_policy_init(struct qre_ack_policy *p, u64 received)
{
	p->received = received;
	p->waiting = 0;
}

bool qre_ack_policy_arrived(struct qre_ack_policy *p)
{
	p->received++;
	if (++p->waiting < (later(p) ? LATER_EVERY : EVERY))
		return false;
	p->waiting = 0;
	return true;
}

void qre_ack_policy_sent(struct qre_ack_policy *p)
{
	p->waiting = 0;
}

u32 qre_ack_policy_delay(const struct qre_ack_policy *p, u64 rtt)
{
	u64 quarter = rtt / 4;

	if (!later(p) || quarter >= DELAY_US)
		return DELAY_US;
	return quarter > LEAST_US ? (u32)quarter : LEAST_US;
}
