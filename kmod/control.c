// SPDX-License-Identifier: GPL-2.0-only
/*
 * The QUIC of an established session: acknowledgements, key phases, path validation, control frames
 * and their fate, idle and closing (RFC 9000 sections 8 to 10 and 13, RFC 9001 section 6, RFC
 * 9002). All of it runs under qre_session.lock; what has to be sent is left in an outbox.
 */
#include <crypto/algapi.h>
#include <linux/ktime.h>
#include <linux/slab.h>
#include "compat.h"
#include "control.h"
#include "device.h"
#include "events.h"
#include "key.h"
#include "porttrial.h"
#include "send.h"
#include "session.h"
#include "silence.h"
#include "socket.h"
#include "usedkeys.h"

#define QRE_ACK_DELAY	 msecs_to_jiffies(20) /* a server's */
#define QRE_ACK_EXPONENT 3		      /* ours: the default */
/* What is farther back was acknowledged before: a client's frames stay short. */
#define QRE_LONGEST_RANGE  ((1 << 14) - 1)
#define QRE_SHORTEST_RANGE ((1 << 6) - 1) /* in a client's last packet */
#define QRE_SHORT_ACK_MAX  (1 + 8 + 8 + 1 + 8)
#define QRE_LAST_ACK	   (1 + 4 + 4 + 1 + 1) /* what that one has, as a rule */
/* A client's handshake has counted so many packets that ask for an ACK, about. */
#define QRE_ACKS_BEFORE	     8
#define QRE_PIGGYBACK	     msecs_to_jiffies(5)
#define QRE_OLD_KEYS_LIMIT   msecs_to_jiffies(75)
#define QRE_PACKET_THRESHOLD 3
#define QRE_BACKOFF_MAX	     6
#define QRE_INTEGRITY_LIMIT  (1ULL << 52)
/* Packets with frames for user space: so many at once, and one more every so often. */
#define QRE_FRAMES_BURST    64
#define QRE_FRAMES_INTERVAL msecs_to_jiffies(125)

/*
 * A client's first packet has nothing but PADDING, when and as long as a browser acknowledges what
 * came last of the handshake: this long after the installation. The server sends from then on. One
 * that has said nothing until the second is asked: the first packet may be lost.
 */
#define QRE_FIRST_PACKET_AFTER msecs_to_jiffies(22)
#define QRE_ASKS_AFTER	       msecs_to_jiffies(2500)
#define QRE_AS_AN_ACK	       6

/* --- the outbox --- */

/* It lies before what is sealed. */
#define QRE_OUT(skb) ((struct qre_numbers *)(skb)->head)

void qre_outbox_flush(struct qre_session *s, struct qre_outbox *out)
{
	struct sk_buff *skb;

	while ((skb = __skb_dequeue(&out->packets))) {
		qre_send_plain(s, QRE_OUT(skb), skb->data, skb->len);
		consume_skb(skb);
	}
	if (out->unlink)
		qre_session_report_end(s);
}

static unsigned int qre_bare(u8 cid_size)
{
	return 1 + cid_size + QRE_NUMBER_SIZE + QRE_TAG_SIZE;
}

/* What the peer has of our packets: who uses the session has had the first one. */
static u64 qre_arrived_there(const struct qre_session *s)
{
	if (s->largest_acked != QRE_NO_NUMBER || !s->confirmed)
		return s->largest_acked;
	return QRE_PACKET_NUMBER_BASE;
}

/* @brief: with a number as short as a browser's. */
static u64 qre_put_packet(struct qre_session *s, struct qre_outbox *out, const u8 *frames,
			  size_t size, const struct qre_address *peer,
			  const struct qre_peer_cid *cid, size_t padded, bool brief)
{
	size_t bare = qre_bare(cid ? cid->size : s->tx_cid.length), wanted = size;
	struct qre_socket *through = cid ? qre_port_of(s, cid) : NULL;
	struct qre_numbers *numbers;
	struct sk_buff *skb;

	padded = min_t(size_t, padded, s->max_payload); /* rather less padding than no packet */
	if (padded > size + bare)
		wanted = padded - bare;
	if (wanted + bare > s->max_payload)
		return QRE_NO_NUMBER;
	skb = alloc_skb(sizeof(*numbers) + max_t(size_t, wanted, 4), GFP_ATOMIC);
	if (!skb)
		return QRE_NO_NUMBER;
	skb_reserve(skb, sizeof(*numbers));
	numbers = QRE_OUT(skb);
	if (!qre_take_numbers(s, 1, through || !qre_address_equal(peer, &s->peer), numbers)) {
		kfree_skb(skb);
		qre_control_end(s, QRE_LOSS_LIMIT, 0, out);
		return QRE_NO_NUMBER;
	}
	if (brief)
		numbers->size = qre_number_size(numbers->first, qre_arrived_there(s));
	/* There must be enough to sample: RFC 9001 section 5.4.2 */
	wanted = max_t(size_t, wanted, QRE_NUMBER_SIZE - numbers->size);
	numbers->target.peer = *peer;
	if (through) {
		refcount_inc(&through->refs);
		numbers->target.through = through;
	}
	if (cid) {
		numbers->cid.length = cid->size;
		memcpy(numbers->cid.bytes, cid->bytes, cid->size);
	}
	skb_put_data(skb, frames, size);
	skb_put_zero(skb, wanted - size);
	__skb_queue_tail(&out->packets, skb);
	return numbers->first;
}

u64 qre_put_frames(struct qre_session *s, struct qre_outbox *out, const u8 *frames, size_t size,
		   const struct qre_address *peer, const struct qre_peer_cid *cid, size_t padded)
{
	return qre_put_packet(s, out, frames, size, peer, cid, padded, false);
}

/* Of a client, which is a browser to whoever looks. */
static u64 qre_put_brief(struct qre_session *s, struct qre_outbox *out, const u8 *frames,
			 size_t size)
{
	return qre_put_packet(s, out, frames, size, &s->peer, NULL, 0, s->client);
}

/* --- time --- */

void qre_control_arm(struct qre_session *s, unsigned long at)
{
	if (s->life != QRE_LIFE_ENDED)
		timer_reduce(&s->timer, at);
}

u64 qre_control_pto_us(const struct qre_session *s)
{
	return s->srtt + max_t(u64, 4 * s->rttvar, USEC_PER_MSEC) +
	       (u64)s->max_ack_delay_ms * USEC_PER_MSEC;
}

unsigned long qre_control_pto(const struct qre_session *s)
{
	return max(usecs_to_jiffies(min_t(u64, qre_control_pto_us(s), 60 * USEC_PER_SEC)), 1UL);
}

static unsigned long qre_idle_at(const struct qre_session *s)
{
	return s->idle_base + max(msecs_to_jiffies(s->idle_ms), 3 * qre_control_pto(s));
}

void qre_control_eliciting(struct qre_session *s)
{
	s->last_sent = jiffies;
	if (!s->eliciting_sent) { /* section 10.1: the first one since a packet came restarts the
				     timer */
		WRITE_ONCE(s->eliciting_sent, true);
		s->idle_base = jiffies;
	}
	if (s->client)
		qre_silence_sent(s);
}

/* --- control frames in flight --- */

/* Packets of control @which are forgotten: all of them, or the oldest. */
static void qre_packets_forget(struct qre_session *s, unsigned int which, bool all)
{
	unsigned int kept = 0, i;
	bool found = false;

	for (i = 0; i < s->control_packet_count; i++) {
		if (s->control_packets[i].control == which && (all || !found))
			found = true;
		else
			s->control_packets[kept++] = s->control_packets[i];
	}
	s->control_packet_count = kept;
}

/* Numbers only grow: the table stays in order. */
static void qre_packets_add(struct qre_session *s, const struct qre_control *c, u64 number)
{
	unsigned int which = c - s->controls;

	if (c->tries >= QRE_CONTROL_TRIES)
		qre_packets_forget(s, which, false);
	/* A try that was not sent has no packet: there is always room. */
	s->control_packets[s->control_packet_count++] =
		(struct qre_control_packet){.number = number, .control = which};
}

/* A packet with control frames whose number is in the range; NULL: there is none. */
static const struct qre_control_packet *qre_packets_in(const struct qre_session *s,
						       const struct qre_range *range)
{
	unsigned int low = 0, high = s->control_packet_count, middle;

	while (low < high) {
		middle = (low + high) / 2;
		if (s->control_packets[middle].number < range->first)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == s->control_packet_count || s->control_packets[low].number > range->last)
		return NULL;
	return &s->control_packets[low];
}

static void qre_control_forget(struct qre_session *s, struct qre_control *c)
{
	qre_packets_forget(s, c - s->controls, true);
	kfree(c->frames);
	*c = (struct qre_control){};
}

/* The round trip is measured with this packet. */
static void qre_measure(struct qre_session *s, u64 number)
{
	s->probe_pending = true;
	s->probe_number = number;
	s->probe_at = ktime_get_ns();
}

static void qre_send_control(struct qre_session *s, struct qre_control *c, struct qre_outbox *out)
{
	static const u8 ping[] = {0x01};
	const u8 *frames = c->frames ?: ping;
	size_t size = c->frames ? c->size : sizeof(ping);
	u64 number;

	if (c->request == QRE_NO_NUMBER)
		number = qre_put_brief(s, out, frames, size);
	else
		number = qre_put_frames(s, out, frames, size, &s->peer, NULL, 0);
	c->sent_at = jiffies;
	c->last = number;
	if (number != QRE_NO_NUMBER) {
		qre_packets_add(s, c, number);
		qre_control_eliciting(s);
		if (!s->probe_pending)
			qre_measure(s, number);
	}
	c->tries++;
	qre_control_arm(s, c->sent_at + (qre_control_pto(s)
					 << min_t(unsigned int, c->tries - 1, QRE_BACKOFF_MAX)));
}

static struct qre_control *qre_control_new(struct qre_session *s, u64 request)
{
	unsigned int i;

	for (i = 0; i < QRE_CONTROLS_MAX; i++) {
		struct qre_control *c = &s->controls[i];

		if (c->used)
			continue;
		*c = (struct qre_control){.used = true, .request = request};
		return c;
	}
	return NULL;
}

static bool qre_controls_any(const struct qre_session *s)
{
	unsigned int i;

	for (i = 0; i < QRE_CONTROLS_MAX; i++)
		if (s->controls[i].used)
			return true;
	return false;
}

void qre_control_ping(struct qre_session *s, struct qre_outbox *out)
{
	struct qre_control *c = qre_control_new(s, QRE_NO_NUMBER);

	if (c)
		qre_send_control(s, c, out);
}

size_t qre_control_overhead(const struct qre_session *s)
{
	return qre_bare(s->tx_cid.length);
}

void qre_control_skip_number(struct qre_session *s)
{
	spin_lock(&s->tx_lock);
	s->next_number++;
	spin_unlock(&s->tx_lock);
}

/* The lost one measures nothing: its answer would be that of the one that stands for it. */
bool qre_control_repeat(struct qre_session *s, bool otherwise, unsigned long before,
			struct qre_outbox *out)
{
	struct qre_control *oldest = NULL;
	unsigned int i;

	for (i = 0; i < QRE_CONTROLS_MAX; i++) {
		struct qre_control *c = &s->controls[i];

		if (c->used && (!oldest || time_before(c->sent_at, oldest->sent_at)))
			oldest = c;
	}
	if (!oldest || (otherwise && !time_before(oldest->sent_at, before)))
		return false;
	if (oldest->tries >= QRE_CONTROL_TRIES && oldest->request != QRE_NO_NUMBER) {
		qre_tell_fate(s->qdev, s->id, oldest->request, false);
		qre_control_forget(s, oldest);
		return false;
	}
	qre_send_control(s, oldest, out);
	if (oldest->last != QRE_NO_NUMBER)
		qre_measure(s, oldest->last);
	return true;
}

void qre_control_ask(struct qre_session *s, size_t padded, struct qre_outbox *out)
{
	static const u8 ping[] = {0x01};
	u64 number = qre_put_packet(s, out, ping, sizeof(ping), &s->peer, NULL, padded, !padded);

	if (number == QRE_NO_NUMBER)
		return;
	qre_control_eliciting(s);
	qre_measure(s, number);
}

bool qre_control_room(const struct qre_session *s)
{
	unsigned int i;

	for (i = 0; i < QRE_CONTROLS_MAX; i++)
		if (!s->controls[i].used)
			return true;
	return false;
}

void qre_control_own(struct qre_session *s, u8 *frames, size_t size, struct qre_outbox *out)
{
	struct qre_control *c = qre_control_new(s, QRE_NO_NUMBER);

	c->frames = frames;
	c->size = size;
	qre_send_control(s, c, out);
}

/* Sequence numbers that these frames let the peer retire. */
static void qre_note_issued(struct qre_session *s, const u8 *frames, size_t size)
{
	const u8 *at = frames;
	struct qre_frame f;

	while (qre_frame_read(&at, frames + size, &f) > 0)
		if (f.kind == QRE_FRAME_NEW_CONNECTION_ID)
			s->issued = max(s->issued, f.cid.sequence);
}

u64 qre_control_probe(struct qre_session *s, size_t payload, struct qre_outbox *out)
{
	static const u8 ping[] = {0x01};
	u64 number = qre_put_frames(s, out, ping, sizeof(ping), &s->peer, NULL, payload);

	if (number != QRE_NO_NUMBER)
		qre_control_eliciting(s);
	return number;
}

int qre_control_frames(struct qre_session *s, u64 request, const u8 *frames, size_t size,
		       struct qre_outbox *out)
{
	struct qre_control *c;
	u8 *copy;

	if (s->life != QRE_LIFE_ESTABLISHED)
		return -ENOENT;
	if (size + qre_bare(s->tx_cid.length) > min_t(size_t, QRE_PATHMTU_BASE, s->max_payload))
		return -EMSGSIZE;
	copy = kmemdup(frames, size, GFP_ATOMIC);
	if (!copy)
		return -ENOMEM;
	c = qre_control_new(s, request);
	if (!c) {
		kfree(copy);
		return -ENOBUFS;
	}
	c->frames = copy;
	c->size = size;
	qre_note_issued(s, frames, size);
	qre_send_control(s, c, out);
	return 0;
}

/* Nothing has left yet. */
static bool qre_is_fresh(struct qre_session *s)
{
	return READ_ONCE(s->next_number) == QRE_PACKET_NUMBER_BASE;
}

static void qre_has_begun(struct qre_session *s)
{
	s->begun = true;
	qre_tell_session(s->qdev, s->id, QRE_EVENT_SESSION_BEGUN);
}

static void qre_confirm(struct qre_session *s)
{
	s->confirmed = true;
	qre_tell_session(s->qdev, s->id, QRE_EVENT_SESSION_CONFIRMED);
}

/* A silence that user space has given an end goes on until then, as a browser's. */
static bool qre_waits_for_its_peer(const struct qre_session *s)
{
	return !s->confirmed && !s->silence.ordered;
}

static void qre_first_timers(struct qre_session *s, struct qre_outbox *out)
{
	static const u8 padding[QRE_AS_AN_ACK];

	if (!s->begun && time_after_eq(jiffies, s->created + QRE_FIRST_PACKET_AFTER)) {
		if (qre_is_fresh(s))
			qre_put_brief(s, out, padding, sizeof(padding));
		qre_has_begun(s);
	}
	if (!s->confirmed && !s->asked && time_after_eq(jiffies, s->created + QRE_ASKS_AFTER)) {
		s->asked = true;
		if (!s->silence.unanswered)
			qre_control_ping(s, out);
	}
}

void qre_control_begin(struct qre_session *s, struct qre_outbox *out)
{
	s->frame_tokens = QRE_FRAMES_BURST;
	s->frame_tokens_at = jiffies;
	qre_ack_policy_init(&s->ack_policy, QRE_ACKS_BEFORE);
	if (s->client && s->socket && qre_is_fresh(s)) {
		qre_control_arm(s, s->created + QRE_FIRST_PACKET_AFTER);
	} else if (s->client && s->socket) { /* it goes on after a restart */
		qre_control_ping(s, out);
		qre_has_begun(s);
	}
	if (!s->confirmed)
		qre_control_arm(s, s->created + msecs_to_jiffies(QRE_CONFIRM_MS));
	qre_control_arm(s, qre_idle_at(s));
}

/* --- acknowledgements --- */

size_t qre_control_take_ack(struct qre_session *s, u8 *out, size_t room)
{
	struct qre_range ranges[QRE_ACKWIN_MAX_RANGES];
	unsigned int count;
	size_t size;
	u64 delay;

	if (!s->ack_wanted || s->life != QRE_LIFE_ESTABLISHED)
		return 0;
	/* A new key phase is acknowledged under new keys only: RFC 9001 section 6.2 */
	if (rcu_dereference_protected(s->rx, lockdep_is_held(&s->lock))->epoch > s->epoch)
		return 0;
	count = qre_ackwin_ranges(&s->window, ranges, QRE_ACKWIN_MAX_RANGES);
	if (!count)
		return 0;
	if (s->client && ranges[0].last - ranges[0].first > QRE_LONGEST_RANGE)
		ranges[0].first = ranges[0].last - QRE_LONGEST_RANGE;
	delay = (u64)jiffies_to_usecs(jiffies - s->largest_at) >> QRE_ACK_EXPONENT;
	size = qre_ack_put(out, room, ranges, count, delay,
			   s->ecn[0] | s->ecn[1] | s->ecn[2] ? s->ecn : NULL);
	if (size) {
		s->ack_wanted = false;
		s->ack_sent = jiffies;
		qre_ack_policy_sent(&s->ack_policy);
	}
	return size;
}

static void qre_send_ack(struct qre_session *s, struct qre_outbox *out)
{
	u8 frame[QRE_ACK_FRAME_MAX];
	size_t size = qre_control_take_ack(s, frame, sizeof(frame));

	if (size)
		qre_put_brief(s, out, frame, size);
}

static unsigned long qre_ack_at(const struct qre_session *s)
{
	u64 rtt = s->rtt_sampled ? s->rtt_least : s->srtt;

	if (!s->client)
		return s->ack_since + QRE_ACK_DELAY;
	return s->ack_since + usecs_to_jiffies(qre_ack_policy_delay(&s->ack_policy, rtt));
}

static void qre_want_ack(struct qre_session *s, bool at_once, struct qre_outbox *out)
{
	bool due = s->client && qre_ack_policy_arrived(&s->ack_policy);

	if (!s->ack_wanted) {
		s->ack_wanted = true;
		s->ack_since = jiffies;
		qre_control_arm(s, qre_ack_at(s));
	}
	if (at_once && s->ack_sent != jiffies) /* section 13.2.1; one a tick is enough */
		due = true;
	if (due)
		qre_send_ack(s, out);
}

static void qre_rtt_sample(struct qre_session *s, const struct qre_frame *f)
{
	u64 rtt = div_u64(ktime_get_ns() - s->probe_at, NSEC_PER_USEC);
	u64 delay = min_t(u64, f->ack.delay, 1ULL << 20) << s->ack_delay_exponent;
	u64 difference;

	s->probe_pending = false;
	rtt = min_t(u64, rtt, 10 * USEC_PER_SEC);
	delay = min_t(u64, delay, (u64)s->max_ack_delay_ms * USEC_PER_MSEC);
	if (!s->rtt_sampled) {
		s->rtt_sampled = true;
		s->rtt_least = rtt;
		s->srtt = rtt;
		s->rttvar = rtt / 2;
		return;
	}
	s->rtt_least = min(s->rtt_least, rtt);
	if (rtt > delay + USEC_PER_MSEC)
		rtt -= delay;
	difference = s->srtt > rtt ? s->srtt - rtt : rtt - s->srtt;
	s->rttvar = (3 * s->rttvar + difference) / 4;
	s->srtt = (7 * s->srtt + rtt) / 8;
}

/* A range costs a search; a control that is found, one walk through the table, and it is gone. */
static void qre_acknowledged_controls(struct qre_session *s, const struct qre_frame *f)
{
	const struct qre_control_packet *packet;
	struct qre_control *c;
	struct qre_ack_iter it;
	struct qre_range range;

	qre_ack_begin(&it, f);
	while (s->control_packet_count && qre_ack_next(&it, &range)) {
		while ((packet = qre_packets_in(s, &range))) {
			c = &s->controls[packet->control];
			if (c->request != QRE_NO_NUMBER)
				qre_tell_fate(s->qdev, s->id, c->request, true);
			qre_control_forget(s, c);
		}
	}
}

static void qre_marks_acked(struct qre_session *s, const struct qre_frame *f)
{
	BUILD_BUG_ON(QRE_ECN_NEVER != QRE_NO_NUMBER);
	spin_lock(&s->tx_lock);
	qre_ecn_acked(&s->ecn_tx, f, s->largest_acked, s->next_number);
	spin_unlock(&s->tx_lock);
}

/* False: the session is over. */
static bool qre_ack_received(struct qre_session *s, const struct qre_frame *f, u64 epoch,
			     struct qre_outbox *out)
{
	u64 next, first_sent, heard;

	spin_lock(&s->tx_lock);
	next = s->next_number;
	first_sent = s->first_sent;
	spin_unlock(&s->tx_lock);
	if (f->ack.largest >= next) {
		qre_violated(s, QRE_PROTOCOL_VIOLATION, out);
		return false;
	}
	if (s->largest_acked == QRE_NO_NUMBER || f->ack.largest > s->largest_acked) {
		qre_marks_acked(s, f);
		s->largest_acked = f->ack.largest;
	}
	heard = qre_port_heard(s, f);
	if (heard != QRE_NO_NUMBER &&
	    (s->largest_heard == QRE_NO_NUMBER || heard > s->largest_heard)) {
		s->largest_heard = heard;
		if (s->client)
			qre_silence_answered(s);
	}
	if (s->probe_pending && s->largest_heard != QRE_NO_NUMBER &&
	    s->largest_heard >= s->probe_number) {
		qre_rtt_sample(s, f);
		qre_mtu_rtt(s);
	}
	qre_acknowledged_controls(s, f);
	if (s->client && s->control_packet_count)
		qre_control_arm(s, jiffies + qre_control_pto(s));
	qre_mtu_acked(s, f, out);
	if (f->ack.largest >= first_sent) {
		if (epoch < s->epoch) { /* acknowledged under older keys than it was sent with */
			qre_violated(s, QRE_KEY_UPDATE_ERROR, out);
			return false;
		}
		if (!s->phase_acked) {
			s->phase_acked = true;
			s->phase_acked_at = jiffies;
			qre_control_arm(s, jiffies + 3 * qre_control_pto(s) + 1);
		}
	}
	return true;
}

/* --- keys --- */

bool qre_control_may_update(const struct qre_session *s)
{
	return s->phase_acked && time_after_eq(jiffies, s->phase_acked_at + 3 * qre_control_pto(s));
}

void qre_control_new_tx(struct qre_session *s, struct qre_key *key, u64 number)
{
	struct qre_key *old;

	spin_lock(&s->tx_lock);
	old = s->tx;
	s->tx = key;
	s->next_number = max(s->next_number, number);
	s->first_sent = s->next_number;
	spin_unlock(&s->tx_lock);
	s->epoch = key->epoch;
	s->phase_acked = false;
	qre_key_put(old);
}

/*
 * @a opened under the next receive keys: the peer has begun the next phase, and our transmit keys
 * follow before anything is acknowledged (RFC 9001 section 6.2). False: the session is over.
 */
static bool qre_flip(struct qre_session *s, const struct qre_arrived *a, struct qre_outbox *out)
{
	struct qre_key *rx = rcu_dereference_protected(s->rx, lockdep_is_held(&s->lock));
	struct qre_key *next = rcu_dereference_protected(s->rx_next, lockdep_is_held(&s->lock));
	struct qre_key *fresh, *previous;

	previous = rcu_replace_pointer(s->rx_previous, rx, lockdep_is_held(&s->lock));
	qre_key_put(previous);
	s->previous_until = jiffies + min(3 * qre_control_pto(s), QRE_OLD_KEYS_LIMIT);
	qre_control_arm(s, s->previous_until);
	rcu_assign_pointer(s->rx, next);
	RCU_INIT_POINTER(s->rx_next, NULL);
	WRITE_ONCE(s->first_received, a->number);
	if (next->epoch == s->epoch) { /* the peer has followed our own update */
		rcu_assign_pointer(s->rx_next, s->rx_after);
		s->rx_after = NULL;
		return true;
	}
	fresh = s->tx_next;
	if (fresh && qre_used_key_claim(fresh->used)) {
		qre_control_end(s, QRE_LOSS_LIMIT, 0, out); /* rather no session than a key twice */
		return false;
	}
	if (fresh) { /* or acknowledgements are withheld until update-session */
		s->tx_next = NULL;
		qre_control_new_tx(s, fresh, 0);
		s->keys = s->next;
		memzero_explicit(&s->next, sizeof(s->next));
		s->has_next = false;
		s->has_next_tx = false;
	}
	qre_tell_epoch(s->qdev, s->id, QRE_EVENT_KEY_PHASE_CHANGED, next->epoch);
	return true;
}

static bool qre_keys_flipped(struct qre_session *s, const struct qre_arrived *a,
			     struct qre_outbox *out)
{
	struct qre_key *rx = rcu_dereference_protected(s->rx, lockdep_is_held(&s->lock));
	struct qre_key *next = rcu_dereference_protected(s->rx_next, lockdep_is_held(&s->lock));

	if (a->epoch == rx->epoch) {
		if (a->number < s->first_received)
			WRITE_ONCE(s->first_received, a->number);
		return true;
	}
	if (next && a->epoch == next->epoch)
		return qre_flip(s, a, out);
	return true; /* of the previous phase, late */
}

/* --- packets --- */

/* What every authentic, new packet does. */
static bool qre_arrived(struct qre_session *s, const struct qre_arrived *a, struct qre_outbox *out)
{
	if (!qre_keys_flipped(s, a, out))
		return false;
	s->received = true;
	s->last_receive = s->idle_base = jiffies;
	s->eliciting_sent = false;
	if (unlikely(s->life == QRE_LIFE_HELD)) {
		WRITE_ONCE(s->life, QRE_LIFE_ESTABLISHED);
		qre_confirm(s);
	}
	if (unlikely(!s->confirmed)) /* of a client: who sends has heard from us */
		qre_confirm(s);
	if (unlikely(s->path_mtu.state == QRE_PATHMTU_IDLE) && s->confirmed)
		qre_mtu_begin(s);
	if (a->number == s->window.highest)
		s->largest_at = jiffies;
	if (a->ecn)
		s->ecn[a->ecn == 2 ? 0 : a->ecn == 1 ? 1 : 2]++;
	return true;
}

void qre_control_datagram(struct qre_session *s, const struct qre_arrived *a,
			  struct qre_outbox *out)
{
	if (!qre_arrived(s, a, out))
		return;
	if (unlikely(!qre_address_equal(&a->source, &s->peer)))
		qre_from_elsewhere(s, a, a->number == s->window.highest, NULL, out);
	qre_want_ack(s, a->arrival == QRE_ARRIVAL_REORDERED || a->ecn == 3, out);
}

/* Packets with frames for user space are taken at the rate that it can be told of them. */
static bool qre_frames_budget(struct qre_session *s)
{
	unsigned long since = jiffies - s->frame_tokens_at;
	unsigned long more = since / QRE_FRAMES_INTERVAL;

	s->frame_tokens = min_t(unsigned long, s->frame_tokens + more, QRE_FRAMES_BURST);
	s->frame_tokens_at += more * QRE_FRAMES_INTERVAL;
	if (s->frame_tokens) {
		s->frame_tokens--;
		return true;
	}
	if (!s->frames_limited) {
		s->frames_limited = true;
		qre_tell_session(s->qdev, s->id, QRE_EVENT_FRAMES_LIMITED);
	}
	return false;
}

enum qre_drop qre_control_look(struct qre_session *s, const u8 *payload, size_t size,
			       struct qre_content *content)
{
	const struct qre_sender peer = {
		.client = !s->client,
		.gives_cids = s->tx_cid.length,
		.takes_cids = s->rx_cid_size,
		.splits = s->joiner,
		.issued = s->issued,
	};

	qre_content_read(content, &peer, payload, size);
	if (!content->error && content->passed && !qre_frames_budget(s))
		return QRE_DROP_FRAMES_LIMIT;
	return QRE_DROP_UNSPEC;
}

/* What the others do is in the content. False: the session is over. */
static bool qre_frame_received(struct qre_session *s, const struct qre_arrived *a,
			       const struct qre_frame *f, struct qre_outbox *out)
{
	switch (f->kind) {
	case QRE_FRAME_ACK:
		return qre_ack_received(s, f, a->epoch, out);
	case QRE_FRAME_PATH_RESPONSE:
		qre_path_answered(s, f->path, out);
		return s->life <= QRE_LIFE_ESTABLISHED;
	case QRE_FRAME_NEW_CONNECTION_ID:
		return qre_cid_issued(s, f, out);
	case QRE_FRAME_CONNECTION_CLOSE:
		qre_control_end(s, QRE_LOSS_CLOSED, f->error, out);
		return false;
	default:
		return true;
	}
}

/*
 * RFC 9000 section 17.3.1: reserved bits are judged when the packet is authentic. A payload is read
 * four times at most, each time byte by byte, and answered by one packet at most.
 */
bool qre_control_payload(struct qre_session *s, const struct qre_arrived *a,
			 const struct qre_content *content, const u8 *payload, size_t size,
			 struct qre_outbox *out)
{
	const u8 *at = payload;
	struct qre_frame f;

	if (!qre_arrived(s, a, out))
		return false;
	if (a->first & 0x18 || content->error) {
		qre_violated(s, content->error ?: QRE_PROTOCOL_VIOLATION, out);
		return false;
	}
	while (qre_frame_read(&at, payload + size, &f) > 0)
		if (!qre_frame_received(s, a, &f, out))
			return false;
	if (content->unknown)
		qre_count_drop(s->qdev, QRE_DROP_UNKNOWN_CONTEXT, content->unknown);
	if (content->passed)
		qre_tell_frames(s->qdev, s->id, payload, size, content->passed);
	if (!qre_address_equal(&a->source, &s->peer))
		qre_from_elsewhere(s, a, a->number == s->window.highest && !content->only_probing,
				   content->challenge, out);
	else if (content->challenge)
		qre_answer_challenge(s, content->challenge, out);
	if (content->eliciting)
		qre_want_ack(s, a->arrival == QRE_ARRIVAL_REORDERED || a->ecn == 3, out);
	return content->datagrams;
}

/* --- the end --- */

void qre_control_end(struct qre_session *s, enum qre_loss why, u64 error, struct qre_outbox *out)
{
	if (s->life == QRE_LIFE_ENDED)
		return;
	if (s->life != QRE_LIFE_CLOSING)
		qre_tell_lost(s->qdev, s->id, why, error);
	WRITE_ONCE(s->life, QRE_LIFE_ENDED);
	out->unlink = true;
}

/* @once: whatever comes, with a number as short as a browser's. */
static void qre_closing(struct qre_session *s, const u8 *frame, size_t size, bool once,
			struct qre_outbox *out)
{
	if (s->life >= QRE_LIFE_CLOSING)
		return;
	if (qre_put_packet(s, out, frame, size, &s->peer, NULL, 0, once) == QRE_NO_NUMBER ||
	    s->life == QRE_LIFE_ENDED) {
		WRITE_ONCE(s->life, QRE_LIFE_ENDED);
		out->unlink = true;
		return;
	}
	s->close_packet = once ? NULL : kmemdup(frame, size, GFP_ATOMIC);
	s->close_size = s->close_packet ? size : 0;
	WRITE_ONCE(s->life, QRE_LIFE_CLOSING);
	s->closing_until = jiffies + 3 * qre_control_pto(s);
	qre_control_arm(s, s->closing_until);
}

void qre_violated(struct qre_session *s, u64 error, struct qre_outbox *out)
{
	u8 frame[QRE_CLOSE_FRAME_MAX];

	qre_count_drop(s->qdev, QRE_DROP_MALFORMED, 1);
	qre_tell_lost(s->qdev, s->id, QRE_LOSS_PROTOCOL, error);
	qre_closing(s, frame, qre_close_put(frame, error, false), false, out);
}

void qre_control_close(struct qre_session *s, struct qre_outbox *out)
{
	u8 frame[QRE_CLOSE_FRAME_MAX];

	qre_closing(s, frame, qre_close_put(frame, QRE_H3_NO_ERROR, true), false, out);
}

/* With an ACK of the newest packets, which is as short here without ECN counts; or as much PADDING,
 * where nothing but the handshake was received.
 */
void qre_control_give_up(struct qre_session *s, const u8 *farewell, size_t size,
			 struct qre_outbox *out)
{
	struct qre_key *rx = rcu_dereference_protected(s->rx, lockdep_is_held(&s->lock));
	u8 frames[QRE_SHORT_ACK_MAX + QRE_FAREWELL_MAX];
	u64 delay = (u64)jiffies_to_usecs(jiffies - s->largest_at) >> QRE_ACK_EXPONENT;
	struct qre_range newest;
	size_t ack = QRE_LAST_ACK;

	memset(frames, 0, QRE_LAST_ACK);
	if (rx->epoch <= s->epoch && qre_ackwin_ranges(&s->window, &newest, 1)) {
		if (newest.last - newest.first > QRE_SHORTEST_RANGE)
			newest.first = newest.last - QRE_SHORTEST_RANGE;
		ack = qre_ack_put(frames, QRE_SHORT_ACK_MAX, &newest, 1, delay, NULL);
	}
	memcpy(frames + ack, farewell, size);
	qre_tell_lost(s->qdev, s->id, QRE_LOSS_UNANSWERED, 0);
	qre_closing(s, frames, ack + size, true, out);
}

/* Section 10.2.1: CONNECTION_CLOSE again, ever more rarely. */
void qre_control_closing(struct qre_session *s, struct qre_outbox *out)
{
	if (s->life != QRE_LIFE_CLOSING || !s->close_size)
		return;
	if (is_power_of_2(++s->closing_received))
		qre_put_frames(s, out, s->close_packet, s->close_size, &s->peer, NULL, 0);
}

/* --- timers --- */

static void qre_key_timers(struct qre_session *s)
{
	struct qre_key *old;

	if (rcu_access_pointer(s->rx_previous) && time_after_eq(jiffies, s->previous_until)) {
		old = rcu_replace_pointer(s->rx_previous, NULL, lockdep_is_held(&s->lock));
		qre_key_put(old);
	}
	if (s->announced != s->epoch && qre_control_may_update(s)) {
		s->announced = s->epoch;
		qre_tell_epoch(s->qdev, s->id, QRE_EVENT_KEY_PHASE_CONFIRMED, s->epoch);
	}
}

static unsigned long qre_control_due(const struct qre_session *s, const struct qre_control *c)
{
	if (c->last != QRE_NO_NUMBER && s->largest_acked != QRE_NO_NUMBER &&
	    c->last + QRE_PACKET_THRESHOLD <= s->largest_acked)
		return c->sent_at;
	/* While a client hears nothing, what is repeated is silence.c's. */
	if (c->last != QRE_NO_NUMBER && s->silence.unanswered)
		return jiffies + MAX_JIFFY_OFFSET / 2;
	return c->sent_at +
	       (qre_control_pto(s) << min_t(unsigned int, c->tries - 1, QRE_BACKOFF_MAX));
}

static void qre_control_timers(struct qre_session *s, struct qre_outbox *out)
{
	unsigned int i;

	for (i = 0; i < QRE_CONTROLS_MAX; i++) {
		struct qre_control *c = &s->controls[i];

		if (!c->used || time_before(jiffies, qre_control_due(s, c)))
			continue;
		if (c->tries >= QRE_CONTROL_TRIES && c->request != QRE_NO_NUMBER) {
			qre_tell_fate(s->qdev, s->id, c->request, false);
			qre_control_forget(s, c);
			continue;
		}
		qre_send_control(s, c, out);
	}
}

/* What is under way is repeated, and does the same. */
static bool qre_may_keep_alive(const struct qre_session *s)
{
	return s->keepalive && s->life == QRE_LIFE_ESTABLISHED &&
	       !(s->client ? s->silence.unanswered : qre_controls_any(s));
}

static unsigned long qre_keepalive_at(const struct qre_session *s)
{
	unsigned long heard = s->received ? s->last_receive : s->created;
	unsigned long at = heard + msecs_to_jiffies(s->client ? s->idle_ms / 2 : 24 * 3600 * 1000);

	if (s->keepalive_ms) {
		unsigned long other = s->last_sent + msecs_to_jiffies(s->keepalive_ms);

		if (time_before(other, at))
			at = other;
	}
	return at;
}

static void qre_sooner(unsigned long *at, unsigned long other)
{
	if (time_before(other, *at))
		*at = other;
}

/* When the timer wants to run again. */
static unsigned long qre_deadline(const struct qre_session *s)
{
	unsigned long at = qre_idle_at(s);
	unsigned int i;

	if (s->life == QRE_LIFE_CLOSING)
		return s->closing_until;
	if (qre_waits_for_its_peer(s))
		qre_sooner(&at, s->created + msecs_to_jiffies(QRE_CONFIRM_MS));
	if (s->client && s->socket && !s->begun)
		qre_sooner(&at, s->created + QRE_FIRST_PACKET_AFTER);
	if (s->client && s->socket && !s->confirmed && !s->asked)
		qre_sooner(&at, s->created + QRE_ASKS_AFTER);
	if (s->ack_wanted)
		qre_sooner(&at, qre_ack_at(s));
	if (rcu_access_pointer(s->rx_previous))
		qre_sooner(&at, s->previous_until);
	if (s->phase_acked && s->announced != s->epoch)
		qre_sooner(&at, s->phase_acked_at + 3 * qre_control_pto(s));
	for (i = 0; i < QRE_CONTROLS_MAX; i++)
		if (s->controls[i].used)
			qre_sooner(&at, qre_control_due(s, &s->controls[i]));
	if (qre_may_keep_alive(s))
		qre_sooner(&at, qre_keepalive_at(s));
	qre_sooner(&at, qre_silence_at(s, at));
	qre_sooner(&at, qre_port_at(s, at));
	qre_sooner(&at, qre_mtu_at(s));
	qre_sooner(&at, qre_path_at(s));
	return at;
}

static void qre_timers(struct qre_session *s, struct qre_outbox *out)
{
	if (s->life == QRE_LIFE_CLOSING) {
		if (time_after_eq(jiffies, s->closing_until)) {
			WRITE_ONCE(s->life, QRE_LIFE_ENDED);
			out->unlink = true;
		}
		return;
	}
	if (qre_waits_for_its_peer(s) &&
	    time_after_eq(jiffies, s->created + msecs_to_jiffies(QRE_CONFIRM_MS))) {
		qre_control_end(s, QRE_LOSS_UNCONFIRMED, 0, out);
		return;
	}
	if (time_after_eq(jiffies, qre_idle_at(s))) {
		qre_control_end(s, QRE_LOSS_IDLE, 0, out);
		return;
	}
	if (s->ack_wanted && time_after_eq(jiffies, qre_ack_at(s))) {
		qre_send_ack(s, out);
		if (s->ack_wanted) /* withheld, or no memory: not at once again */
			s->ack_since = jiffies;
	}
	qre_key_timers(s);
	qre_path_timers(s, out);
	if (s->life != QRE_LIFE_ESTABLISHED && s->life != QRE_LIFE_HELD)
		return;
	if (s->socket) {
		if (s->client)
			qre_first_timers(s, out);
		qre_control_timers(s, out);
		qre_silence_timers(s, out);
		qre_port_timers(s, out);
	}
	qre_mtu_timers(s, out);
	if (s->socket && qre_may_keep_alive(s) && time_after_eq(jiffies, qre_keepalive_at(s)))
		qre_control_ping(s, out);
}

void qre_session_timer(struct timer_list *timer)
{
	struct qre_session *s = timer_container_of(s, timer, timer);
	struct qre_outbox out;
	unsigned long at;

	qre_outbox_init(&out);
	rcu_read_lock();
	spin_lock(&s->lock);
	if (s->life != QRE_LIFE_ENDED)
		qre_timers(s, &out);
	if (s->life != QRE_LIFE_ENDED) {
		at = qre_silence_in_time(s, qre_deadline(s));
		mod_timer(&s->timer, time_after(at, jiffies) ? at : jiffies + 1);
	}
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	rcu_read_unlock();
}
