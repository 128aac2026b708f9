// SPDX-License-Identifier: GPL-2.0-only
/* The search for the path's MTU. Each function leaves a state that the drawing in pathmtu.h has. */
#include "pathmtu.h"

/* Numbers that may overtake a packet before it is taken for lost: RFC 9002 section 6.1.1. */
#define PACKET_THRESHOLD 3
/* While nothing is acknowledged, something small is sent so often at most. */
#define WAIT_MS 1000

/* As quic-go, which most of the sites that a server looks like run, finds its way from 1200 to 1452
 * by halves. It takes its time: five round trips. */
const struct qre_pathmtu_plan qre_pathmtu_server = {
	1200, {1326, 1389, 1420, 1436}, 600000, 3000, 5};
/* The hello was as large as a browser's datagrams are: nothing is probed unless one of them is
 * lost, or more is needed. */
const struct qre_pathmtu_plan qre_pathmtu_client = {
	1200, {QRE_BROWSER_PAYLOAD, 1326, 1389, 1420, 1436}, 600000, 3000, 0};

/* The smallest size of the plan above @size that may be probed; 0: there is none. */
static u16 next_size(const struct qre_pathmtu *p, u16 size)
{
	const u16 *at;

	for (at = p->plan->sizes; *at; at++)
		if (*at > size)
			return *at <= p->bound ? *at : 0;
	return 0;
}

static u16 base_of(const struct qre_pathmtu *p)
{
	return p->bound < p->plan->base ? p->bound : p->plan->base;
}

/* The largest size of the plan that may be, or the base. */
static u16 size_within(const struct qre_pathmtu *p)
{
	u16 size = base_of(p);
	const u16 *at;

	for (at = p->plan->sizes; *at && *at <= p->bound; at++)
		size = *at;
	return size;
}

static void forget_probes(struct qre_pathmtu *p)
{
	p->tries = 0;
	p->flying = false;
	p->waiting = false;
}

static void settle(struct qre_pathmtu *p, u64 now)
{
	p->state = QRE_PATHMTU_SETTLED;
	p->quiet = false;
	p->flying = false;
	p->waiting = false;
	p->raise_at = next_size(p, p->size) ? now + p->plan->raise_ms : QRE_PATHMTU_NEVER;
}

/* When the search's next probe is due. */
static void pace(struct qre_pathmtu *p)
{
	p->due = p->paced + p->plan->spacing * (p->rtt / 1000) +
		 p->plan->spacing * (p->rtt % 1000) / 1000;
}

/* Probe the next size, if there is one. */
static void search(struct qre_pathmtu *p, u64 now)
{
	u16 size = next_size(p, p->size);

	forget_probes(p);
	if (!size) {
		settle(p, now);
		return;
	}
	p->state = QRE_PATHMTU_SEARCHING;
	p->probed = size;
	p->paced = now;
	pace(p);
}

/* A packet of about the size in use was lost: is that size still right? */
static void confirm(struct qre_pathmtu *p, u64 now)
{
	p->watched = QRE_PATHMTU_NONE;
	p->resume = p->state == QRE_PATHMTU_SEARCHING;
	p->state = QRE_PATHMTU_CONFIRMING;
	forget_probes(p);
	p->probed = p->size;
	p->due = now;
}

static void probe_acked(struct qre_pathmtu *p, u64 now)
{
	if (p->state == QRE_PATHMTU_CONFIRMING && !p->resume) {
		forget_probes(p);
		p->state = QRE_PATHMTU_SETTLED;
		return;
	}
	/* Perhaps late, when the search had given up. */
	if (p->probed > p->size && p->probed <= p->bound)
		p->size = p->probed;
	search(p, now);
}

static void probe_lost(struct qre_pathmtu *p, u64 now)
{
	p->flying = false;
	p->waiting = false;
	p->due = p->paced = now;
	if (p->state == QRE_PATHMTU_SEARCHING)
		pace(p);
	if (p->tries < QRE_PATHMTU_TRIES)
		return;
	if (p->state == QRE_PATHMTU_CONFIRMING)
		qre_pathmtu_begin(p, now, p->rtt);
	else
		settle(p, now);
}

void qre_pathmtu_init(struct qre_pathmtu *p, const struct qre_pathmtu_plan *plan, u16 bound)
{
	memset(p, 0, sizeof(*p));
	p->plan = plan;
	p->bound = bound;
	p->size = base_of(p);
	p->quiet = true;
	p->raise_at = QRE_PATHMTU_NEVER;
	p->quiet_until = QRE_PATHMTU_NEVER;
	p->watched = QRE_PATHMTU_NONE;
}

void qre_pathmtu_begin(struct qre_pathmtu *p, u64 now, u32 rtt)
{
	p->rtt = rtt;
	p->size = base_of(p);
	p->watched = QRE_PATHMTU_NONE;
	p->quiet = true;
	p->quiet_until = now + p->plan->quiet_ms;
	search(p, now);
}

void qre_pathmtu_rtt(struct qre_pathmtu *p, u32 rtt)
{
	p->rtt = rtt;
	if (p->state == QRE_PATHMTU_SEARCHING && !p->flying)
		pace(p);
}

void qre_pathmtu_proven(struct qre_pathmtu *p, u16 size, u64 ago, u64 now)
{
	u16 most = size < p->bound ? size : p->bound, proven = p->size;
	const u16 *at;

	if (p->state != QRE_PATHMTU_SEARCHING)
		return;
	for (at = p->plan->sizes; *at && *at <= most; at++)
		if (*at > proven)
			proven = *at;
	if (proven == p->size)
		return;
	p->size = proven;
	search(p, now > ago ? now - ago : 0);
}

void qre_pathmtu_bound(struct qre_pathmtu *p, u16 bound, u64 now)
{
	u16 before = p->bound;

	p->bound = bound;
	if (bound == before)
		return;
	if (p->state == QRE_PATHMTU_IDLE) {
		p->size = base_of(p);
		return;
	}
	if (bound < p->size) {
		p->size = size_within(p);
		p->watched = QRE_PATHMTU_NONE;
		search(p, now);
	} else if (p->size < p->plan->base) { /* refused by this machine */
		qre_pathmtu_begin(p, now, p->rtt);
	} else if (p->state == QRE_PATHMTU_SETTLED ? bound > before : p->probed > bound) {
		search(p, now);
	}
}

/* A stream may stand still, or a sender be without word, until the fate of this probe is known. */
static bool escorts(const struct qre_pathmtu *p)
{
	return p->state == QRE_PATHMTU_CONFIRMING || p->tries > 1;
}

enum qre_pathmtu_action qre_pathmtu_next(struct qre_pathmtu *p, u64 now, u64 pto)
{
	if (p->quiet && now >= p->quiet_until)
		p->quiet = false;
	if (p->watched != QRE_PATHMTU_NONE && now >= p->watched_until)
		confirm(p, now);
	if (p->state == QRE_PATHMTU_SETTLED && now >= p->raise_at)
		search(p, now);
	if (p->state == QRE_PATHMTU_IDLE || p->state == QRE_PATHMTU_SETTLED)
		return QRE_PATHMTU_NOTHING;
	if (p->flying && !p->escorted && escorts(p)) {
		p->escorted = true;
		return QRE_PATHMTU_PING;
	}
	if (now < p->due)
		return QRE_PATHMTU_NOTHING;
	if (p->flying) {
		if (p->heard <= p->numbers[p->tries - 1]) {
			p->waiting = true;
			p->due = now + (pto > WAIT_MS ? pto : WAIT_MS);
			return QRE_PATHMTU_PING;
		}
		probe_lost(p, now);
		if (p->state == QRE_PATHMTU_SETTLED || now < p->due)
			return QRE_PATHMTU_NOTHING;
	}
	return QRE_PATHMTU_PROBE;
}

u64 qre_pathmtu_due(const struct qre_pathmtu *p)
{
	u64 due = p->state == QRE_PATHMTU_SETTLED ? p->raise_at
		  : p->state == QRE_PATHMTU_IDLE  ? QRE_PATHMTU_NEVER
						  : p->due;

	if (p->quiet && p->quiet_until < due)
		due = p->quiet_until;
	if (p->watched != QRE_PATHMTU_NONE && p->watched_until < due)
		due = p->watched_until;
	return due;
}

void qre_pathmtu_sent(struct qre_pathmtu *p, u64 number, u64 now, u64 pto)
{
	p->due = now + pto;
	if (number == QRE_PATHMTU_NONE || p->tries == QRE_PATHMTU_TRIES)
		return;
	p->numbers[p->tries++] = number;
	p->flying = true;
	p->escorted = false;
}

bool qre_pathmtu_watches(const struct qre_pathmtu *p)
{
	return p->size > p->plan->base && p->watched == QRE_PATHMTU_NONE &&
	       p->state != QRE_PATHMTU_CONFIRMING;
}

void qre_pathmtu_watch(struct qre_pathmtu *p, u64 number, u64 now, u64 pto)
{
	if (!qre_pathmtu_watches(p))
		return;
	p->watched = number;
	p->watched_until = now + pto;
}

bool qre_pathmtu_listens(const struct qre_pathmtu *p)
{
	return p->tries || p->watched != QRE_PATHMTU_NONE;
}

void qre_pathmtu_acked(struct qre_pathmtu *p, u64 first, u64 last, u64 now)
{
	unsigned int i;

	if (p->watched != QRE_PATHMTU_NONE && p->watched >= first && p->watched <= last)
		p->watched = QRE_PATHMTU_NONE;
	for (i = 0; i < p->tries; i++) {
		if (p->numbers[i] >= first && p->numbers[i] <= last) {
			probe_acked(p, now);
			return;
		}
	}
}

void qre_pathmtu_heard(struct qre_pathmtu *p, u64 largest, u64 now)
{
	u64 last;

	if (largest > p->heard)
		p->heard = largest;
	if (p->watched != QRE_PATHMTU_NONE && largest >= PACKET_THRESHOLD &&
	    p->watched <= largest - PACKET_THRESHOLD) {
		confirm(p, now);
		return;
	}
	if (!p->flying)
		return;
	last = p->numbers[p->tries - 1];
	/* One that is merely late is believed when it comes (qre_pathmtu_acked). */
	if (largest > last &&
	    (p->escorted || p->waiting || now >= p->due || largest - last >= PACKET_THRESHOLD))
		probe_lost(p, now);
}

u16 qre_pathmtu_hope(const struct qre_pathmtu *p)
{
	return size_within(p);
}
