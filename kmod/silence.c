// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a client does that hears nothing, as a browser: RFC 9002 section 6.2. What is exact to a
 * part of a round trip is here: at each probe timeout, which doubles, one packet number is left
 * out, and what had no answer longest goes out once more, or a PING as long as an inner packet that
 * was lost. After four timeouts user space is told what the path is like. When the session repeats
 * for the last time and ends, and with which words, user space says, for this silence alone: what
 * is acknowledged takes the order back. Without one the session goes on until it is idle.
 */
#include <net/genetlink.h>
#include "control.h"
#include "device.h"
#include "events.h"
#include "pathmtu.h"
#include "porttrial.h"
#include "session.h"
#include "silence.h"

/* Probe timeouts until the path is a bad one, and until the server is silent; the latter not
 * sooner than this: who is busy for a moment is not dead. */
#define QRE_DEGRADED_TIMEOUTS 4
#define QRE_SILENT_TIMEOUTS   (1 + 2 + 4)
#define QRE_SHORTEST_SILENCE  (2 * HZ)
#define QRE_REPEATS_DOUBLE    10 /* no longer than so often */
#define QRE_LONGEST_US	      (3600ULL * USEC_PER_SEC)
#define QRE_NEVER	      (MAX_JIFFY_OFFSET / 2)

/* So many probe timeouts, in jiffies. */
static unsigned long qre_timeouts(const struct qre_session *s, unsigned int count)
{
	return usecs_to_jiffies(min_t(u64, qre_control_pto_us(s) * count, QRE_LONGEST_US));
}

/* The moment at which something left began up to a jiffy ago: nothing is done too early. */
static unsigned long qre_repeat_at(const struct qre_session *s)
{
	unsigned int doubled = min_t(unsigned int, s->silence.repeats, QRE_REPEATS_DOUBLE);

	return READ_ONCE(s->last_sent) + qre_timeouts(s, 1U << doubled) + 1;
}

static unsigned long qre_degraded_at(const struct qre_session *s)
{
	return s->silence.since + qre_timeouts(s, QRE_DEGRADED_TIMEOUTS) + 1;
}

static unsigned long qre_told_at(const struct qre_session *s)
{
	return s->silence.since +
	       max_t(unsigned long, qre_timeouts(s, QRE_SILENT_TIMEOUTS), QRE_SHORTEST_SILENCE);
}

static void qre_sooner(unsigned long *at, unsigned long other)
{
	if (time_before(other, *at))
		*at = other;
}

static bool qre_silence_counts(const struct qre_session *s)
{
	return s->silence.unanswered && s->socket && s->life == QRE_LIFE_ESTABLISHED;
}

unsigned long qre_silence_at(const struct qre_session *s, unsigned long otherwise)
{
	const struct qre_silence *i = &s->silence;
	unsigned long at = otherwise;

	if (!qre_silence_counts(s))
		return otherwise;
	qre_sooner(&at, qre_repeat_at(s));
	if (!i->told)
		qre_sooner(&at, qre_told_at(s));
	if (s->begun && !i->degraded)
		qre_sooner(&at, qre_degraded_at(s));
	if (i->ordered && i->repeats_last)
		qre_sooner(&at, i->last_repeat_at);
	if (i->ordered)
		qre_sooner(&at, i->gives_up_at);
	return at;
}

/* The timer wheel is an eighth of what it waits for too late: so it is woken before, and again. */
unsigned long qre_silence_in_time(const struct qre_session *s, unsigned long at)
{
	long wait = at - jiffies;

	return qre_silence_counts(s) && wait > 32 ? at - wait / 8 : at;
}

static void qre_silence_begin(struct qre_session *s, bool several)
{
	struct qre_silence *i = &s->silence;

	WRITE_ONCE(i->unanswered, true);
	i->several = several;
	i->since = jiffies;
	i->repeats = 0;
	i->degraded = i->ordered = false;
	qre_control_arm(s, qre_silence_at(s, jiffies + QRE_NEVER));
}

void qre_silence_sent(struct qre_session *s)
{
	s->silence.newest = READ_ONCE(s->next_number) - 1;
	if (!s->silence.unanswered)
		qre_silence_begin(s, false);
}

void qre_silence_sent_data(struct qre_session *s, unsigned int size)
{
	struct qre_silence *i = &s->silence;

	if (i->data)
		return;
	WRITE_ONCE(i->data, true);
	i->data_size = size;
	i->data_at = jiffies;
}

static void qre_silence_broken(struct qre_session *s)
{
	if (likely(!s->silence.told))
		return;
	s->silence.told = false;
	qre_tell_session(s->qdev, s->id, QRE_EVENT_SESSION_ANSWERS);
}

void qre_silence_answered(struct qre_session *s)
{
	struct qre_silence *i = &s->silence;
	u64 newest_data = READ_ONCE(i->newest_data), newest = max(i->newest, newest_data);

	if (newest_data <= s->largest_heard)
		WRITE_ONCE(i->data, false);
	else
		i->data_size = READ_ONCE(i->newest_size);
	if (newest <= s->largest_heard) {
		WRITE_ONCE(i->unanswered, false);
		i->ordered = false;
	} else {
		qre_silence_begin(s, newest > s->largest_heard + 1);
	}
	qre_silence_broken(s);
}

void qre_silence_begin_path(struct qre_session *s)
{
	WRITE_ONCE(s->last_sent, jiffies);
	qre_silence_begin(s, true);
	qre_silence_broken(s);
}

/* --- time --- */

/* Whatever of the unanswered went out longest ago. */
static void qre_silence_repeat(struct qre_session *s, struct qre_outbox *out)
{
	struct qre_silence *i = &s->silence;
	size_t padded = 0;

	if (qre_control_repeat(s, i->data, i->data_at, out))
		return;
	if (i->data)
		padded = min_t(size_t, qre_control_overhead(s) + QRE_DATAGRAM_HEAD + i->data_size,
			       QRE_BROWSER_PAYLOAD);
	qre_control_ask(s, padded, out);
	i->data_at = jiffies;
}

static void qre_silence_degrade(struct qre_session *s)
{
	struct qre_degraded path = {
		.smoothed = min_t(u64, s->srtt, QRE_LONGEST_US),
		.variation = min_t(u64, s->rttvar, QRE_LONGEST_US),
		.pto = min_t(u64, qre_control_pto_us(s), QRE_LONGEST_US),
		.several = s->silence.several,
		.spare = qre_port_is_possible(s),
	};

	s->silence.degraded = true;
	qre_tell_degraded(s->qdev, s->id, &path);
}

void qre_silence_timers(struct qre_session *s, struct qre_outbox *out)
{
	struct qre_silence *i = &s->silence;

	if (!qre_silence_counts(s))
		return;
	if (i->ordered && time_after_eq(jiffies, i->gives_up_at)) {
		qre_control_give_up(s, i->farewell, i->farewell_size, out);
		return;
	}
	if (time_after_eq(jiffies, qre_repeat_at(s))) {
		qre_control_skip_number(s);
		i->repeats++;
		qre_silence_repeat(s, out);
	}
	if (i->ordered && i->repeats_last && time_after_eq(jiffies, i->last_repeat_at)) {
		i->repeats_last = false;
		if (qre_silence_counts(s))
			qre_silence_repeat(s, out);
	}
	if (!qre_silence_counts(s)) /* it had no number left */
		return;
	if (s->begun && !i->degraded && time_after_eq(jiffies, qre_degraded_at(s)))
		qre_silence_degrade(s);
	if (!i->told && time_after_eq(jiffies, qre_told_at(s))) {
		i->told = true;
		qre_tell_session(s->qdev, s->id, QRE_EVENT_SESSION_SILENT);
	}
}

/* --- what user space says --- */

int qre_session_give_up(struct qre_device *qdev, const u8 *id, u64 last_repeat_ms, u64 gives_up_ms,
			const u8 *farewell, size_t size, struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_session_find(qdev, id);
	struct qre_silence *i;
	int error = 0;

	if (!s || !s->client || READ_ONCE(s->life) != QRE_LIFE_ESTABLISHED) {
		NL_SET_ERR_MSG(extack, "SessionId: there is no such established client session");
		return -ENOENT;
	}
	if (size > QRE_FAREWELL_MAX) {
		NL_SET_ERR_MSG(extack, "Frames: these are too long for a farewell");
		return -EMSGSIZE;
	}
	spin_lock_bh(&s->lock);
	i = &s->silence;
	if (!i->unanswered || !i->degraded) {
		NL_SET_ERR_MSG(extack, "SessionId: the server answers");
		error = -EALREADY;
	} else {
		i->ordered = i->repeats_last = true;
		i->last_repeat_at = i->since + msecs_to_jiffies(last_repeat_ms) + 1;
		i->gives_up_at = i->since + msecs_to_jiffies(gives_up_ms) + 1;
		memcpy(i->farewell, farewell, size);
		i->farewell_size = size;
		qre_control_arm(s, qre_silence_at(s, jiffies + QRE_NEVER));
	}
	spin_unlock_bh(&s->lock);
	return error;
}
