// SPDX-License-Identifier: GPL-2.0-only
/* Whether the path bears ECN marks. */
#include "ecn.h"

void qre_ecn_begin(struct qre_ecn *e, u8 codepoint)
{
	memset(e, 0, sizeof(*e));
	e->codepoint = codepoint;
	e->state = codepoint ? QRE_ECN_TESTING : QRE_ECN_OFF;
	e->again = QRE_ECN_NEVER;
	memset(e->skipped, 0xff, sizeof(e->skipped));
}

void qre_ecn_skip(struct qre_ecn *e, u64 number)
{
	e->skipped[e->next_skipped++ % QRE_ECN_SKIPPED] = number;
}

u8 qre_ecn_mark(struct qre_ecn *e, u64 first, unsigned int count, u64 now, u64 test)
{
	switch (e->state) {
	case QRE_ECN_CAPABLE:
		return e->codepoint;
	case QRE_ECN_TESTING:
		if (!e->tested) {
			e->from = first;
			e->until = now + test;
		} else if (e->tested >= QRE_ECN_TEST_PACKETS || now >= e->until) {
			e->state = QRE_ECN_UNKNOWN;
			return 0;
		}
		e->tested = (u8)(count < 255U - e->tested ? e->tested + count : 255);
		e->to = first + count;
		return e->codepoint;
	default:
		return 0;
	}
}

/* How many numbers of both ranges are the same; those of the second end before @end. */
static u64 shared(u64 first, u64 last, u64 begin, u64 end)
{
	if (first < begin)
		first = begin;
	if (last >= end)
		last = end - 1;
	return begin < end && first <= last ? last - first + 1 : 0;
}

/* Marked packets in the range. */
static u64 marked(const struct qre_ecn *e, u64 first, u64 last)
{
	u64 found = shared(first, last, e->from, e->to);
	unsigned int i;

	if (e->again != QRE_ECN_NEVER)
		found += shared(first, last, e->again, QRE_ECN_NEVER);
	for (i = 0; found && i < QRE_ECN_SKIPPED; i++)
		if (e->skipped[i] >= first && e->skipped[i] <= last &&
		    (shared(e->skipped[i], e->skipped[i], e->from, e->to) ||
		     e->skipped[i] >= e->again))
			found--;
	return found;
}

/* Those above @before that are acknowledged. */
static u64 newly_acked(const struct qre_ecn *e, const struct qre_frame *f, u64 before)
{
	struct qre_ack_iter it;
	struct qre_range range;
	u64 found = 0;

	qre_ack_begin(&it, f);
	while (qre_ack_next(&it, &range)) {
		if (before != QRE_ECN_NEVER && range.last <= before)
			break;
		if (before != QRE_ECN_NEVER && range.first <= before)
			range.first = before + 1;
		found += marked(e, range.first, range.last);
	}
	return found;
}

/* Whether the counts can be those of the marks; section 13.4.2.1. */
static bool counted_rightly(const struct qre_ecn *e, const struct qre_frame *f, u64 newly)
{
	/* Of an ACK frame: ECT(0), ECT(1), CE. */
	unsigned int own = e->codepoint == 1, i;
	u64 more[3];

	if (!f->ack.counts)
		return !newly;
	for (i = 0; i < 3; i++) {
		if (f->ack.ecn[i] < e->counts[i])
			return false;
		more[i] = f->ack.ecn[i] - e->counts[i];
	}
	/* What was counted before the first acknowledgement may be older than the session. */
	if (e->counted && more[!own])
		return false;
	return more[own] + more[2] >= newly;
}

void qre_ecn_acked(struct qre_ecn *e, const struct qre_frame *f, u64 before, u64 next)
{
	u64 newly;

	if (e->state == QRE_ECN_OFF || e->state == QRE_ECN_FAILED)
		return;
	newly = newly_acked(e, f, before);
	if (!counted_rightly(e, f, newly)) {
		e->state = QRE_ECN_FAILED;
		return;
	}
	if (f->ack.counts) {
		e->counted = true;
		memcpy(e->counts, f->ack.ecn, sizeof(e->counts));
	}
	if (!newly || e->state == QRE_ECN_CAPABLE)
		return;
	/* The test has not ended: the next packets are marked anyhow. */
	e->again = e->state == QRE_ECN_TESTING ? e->to : next;
	e->state = QRE_ECN_CAPABLE;
}
