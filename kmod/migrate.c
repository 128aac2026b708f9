// SPDX-License-Identifier: GPL-2.0-only
/*
 * The addresses of both ends: path validation (RFC 9000 section 8.2), migration of the peer and of
 * this end (section 9), and the connection IDs, none of which may be used on two paths (sections
 * 5.1, 9.5). Under qre_session.lock.
 *
 * A new address of the peer is a candidate until the peer has answered a PATH_CHALLENGE there, and
 * gets no more than three times the bytes received from it. One candidate at a time. The address
 * in use is challenged, too: if it still answers, the packet from elsewhere was only a copy
 * (section 9.3.3).
 */
#include <crypto/algapi.h>
#include <linux/random.h>
#include <linux/slab.h>
#include "compat.h"
#include "control.h"
#include "events.h"
#include "migrate.h"
#include "porttrial.h"
#include "send.h"
#include "session.h"
#include "socket.h"
#include "underlay.h"

#define QRE_PADDED     1200 /* section 8.2.1 */
#define QRE_PATH_LIFE  msecs_to_jiffies(1000)
#define QRE_OWED_BYTES (QRE_PEER_CIDS_OWED * 9)

/* --- the peer's connection IDs --- */

void qre_migrate_init(struct qre_session *s, const struct qre_cid *cid, u64 sequence,
		      const u8 *token)
{
	qre_peer_cids_init(&s->peer_cids, cid->bytes, cid->length, sequence, token);
	s->tx_cid = *cid;
	s->has_reset_token = token;
}

bool qre_is_reset_token(const struct qre_session *s, const u8 token[QRE_RESET_TOKEN_SIZE])
{
	const struct qre_peer_cid *used = &s->peer_cids.held[s->cid_used];

	return used->has_token && !crypto_memneq(token, used->token, QRE_RESET_TOKEN_SIZE);
}

/* What is owed is paid when there is room for another control frame; until then the timer asks. */
static void qre_pay(struct qre_session *s, struct qre_outbox *out)
{
	u8 *frames;

	if (likely(!s->peer_cids.owed_count) || s->life != QRE_LIFE_ESTABLISHED ||
	    !qre_control_room(s))
		return;
	frames = kmalloc(QRE_OWED_BYTES, GFP_ATOMIC);
	if (frames)
		qre_control_own(s, frames, qre_peer_cids_pay(&s->peer_cids, frames, QRE_OWED_BYTES),
				out);
}

/* Section 5.1.2: who makes us owe so many means harm. */
static void qre_retire(struct qre_session *s, int which, struct qre_outbox *out)
{
	if (!qre_peer_cids_retire(&s->peer_cids, which))
		qre_violated(s, QRE_CID_LIMIT_ERROR, out);
}

/* The address that a socket is bound to, or that one's port with the address that there was. */
static void qre_local_is(struct qre_session *s, const struct qre_socket *qs, u16 family)
{
	struct qre_address *local = &s->local[family == AF_INET6];

	if (qs->address.family == family && !qre_address_is_any(&qs->address))
		*local = qs->address;
	else
		local->port = qs->address.port;
}

void qre_cid_give_back(struct qre_session *s, int which, struct qre_outbox *out)
{
	qre_retire(s, which, out);
	qre_pay(s, out);
}

/* Everything goes to @peer with this one from here on; and leaves by @from, if that is not NULL. */
static void qre_path_use(struct qre_session *s, const struct qre_address *peer, int which,
			 struct qre_socket *from)
{
	const struct qre_peer_cid *cid = &s->peer_cids.held[which];

	spin_lock(&s->tx_lock);
	write_seqcount_begin(&s->addresses);
	if (from || peer->family != s->peer.family) /* the first one there is not another one */
		s->source = (struct qre_address){};
	if (from)
		qre_local_is(s, from, peer->family);
	s->peer = *peer;
	write_seqcount_end(&s->addresses);
	if (from) {
		WRITE_ONCE(s->port, s->port + 1);
		smp_wmb(); /* pairs with qre_port_for */
		WRITE_ONCE(s->socket, from);
	}
	s->tx_cid.length = cid->size;
	memcpy(s->tx_cid.bytes, cid->bytes, cid->size);
	spin_unlock(&s->tx_lock);
	s->cid_used = which;
	WRITE_ONCE(s->has_reset_token, cid->has_token);
	qre_mtu_resize(s);
}

/* A spare one, or, when there is none, the one in use: section 9.5 permits that to who did not move
 * itself. */
static int qre_fresh_cid(struct qre_session *s)
{
	int which = QRE_PEER_CID_NONE;

	if (s->tx_cid.length)
		which = qre_peer_cids_take(&s->peer_cids, s->tx_cid.length);
	return which == QRE_PEER_CID_NONE ? s->cid_used : which;
}

/* The peer is at @peer, spoken to with this one. */
static void qre_path_move(struct qre_session *s, const struct qre_address *peer, int which,
			  struct qre_outbox *out)
{
	bool other_host = !qre_address_same_ip(peer, &s->peer);
	int before = s->cid_used;

	qre_path_use(s, peer, which, NULL);
	if (which != before)
		qre_retire(s, before, out);
	qre_routes_forget(s);
	qre_ecn_restart(s);
	if (other_host) { /* section 9.4 */
		s->rtt_sampled = false;
		s->probe_pending = false;
		s->srtt = QRE_INITIAL_RTT;
		s->rttvar = QRE_INITIAL_RTT / 2;
	}
	qre_mtu_begin(s);
	qre_pay(s, out);
}

/* To the peer the path is the same: section 9.4. */
void qre_path_leave_from(struct qre_session *s, struct qre_socket *qs, int which,
			 struct qre_outbox *out)
{
	int before = s->cid_used;

	qre_path_use(s, &s->peer, which, qs);
	qre_routes_forget(s);
	qre_cid_give_back(s, before, out);
}

/* Whoever uses one that the peer wants back gets another, if there is one. */
static void qre_cid_replace(struct qre_session *s, int *user, struct qre_outbox *out)
{
	int before = *user, which;

	if (!qre_peer_cids_wanted_back(&s->peer_cids, before))
		return;
	which = qre_peer_cids_take(&s->peer_cids, s->tx_cid.length);
	if (which == QRE_PEER_CID_NONE)
		return;
	if (user == &s->cid_used)
		qre_path_use(s, &s->peer, which, NULL);
	else
		*user = which;
	qre_retire(s, before, out);
}

static bool qre_path_is_set(const struct qre_session *s)
{
	return qre_address_is_set(&s->path.peer);
}

bool qre_cid_issued(struct qre_session *s, const struct qre_frame *f, struct qre_outbox *out)
{
	bool shared = qre_path_is_set(s) && s->path.cid == s->cid_used;
	u64 error = qre_peer_cids_issued(&s->peer_cids, f);

	if (error) {
		qre_violated(s, error, out);
		return false;
	}
	WRITE_ONCE(s->has_reset_token, s->peer_cids.held[s->cid_used].has_token);
	qre_cid_replace(s, &s->cid_used, out);
	if (shared)
		s->path.cid = s->cid_used;
	else if (qre_path_is_set(s))
		qre_cid_replace(s, &s->path.cid, out);
	if (s->trial.on && qre_peer_cids_wanted_back(&s->peer_cids, s->trial.cid))
		qre_port_drop(s, out);
	qre_pay(s, out);
	return s->life <= QRE_LIFE_ESTABLISHED;
}

/* --- paths --- */

static size_t qre_allowance(u64 received, u64 sent)
{
	return 3 * received > sent ? min_t(u64, 3 * received - sent, QRE_PADDED) : 0;
}

/* Frames to an address that is not validated; as many bytes as were sent, within what is allowed.
 */
static size_t qre_send_probe(struct qre_session *s, const u8 *frames, size_t size,
			     const struct qre_address *peer, int cid, size_t allowance,
			     struct qre_outbox *out)
{
	const struct qre_peer_cid *held = &s->peer_cids.held[cid];
	size_t bare = 1 + held->size + QRE_NUMBER_SIZE + size + QRE_TAG_SIZE;

	if (allowance < bare ||
	    qre_put_frames(s, out, frames, size, peer, held, allowance) == QRE_NO_NUMBER)
		return 0;
	return allowance;
}

static void qre_path_forget(struct qre_session *s, struct qre_outbox *out)
{
	int cid = s->path.cid;
	bool own = qre_path_is_set(s) && cid != s->cid_used;

	s->path = (struct qre_path){};
	if (own) { /* it was seen there: never anywhere else */
		qre_retire(s, cid, out);
		qre_pay(s, out);
	}
}

size_t qre_challenge_put(struct qre_challenges *c, u8 *frame)
{
	get_random_bytes(c->data[c->count], sizeof(c->data[0]));
	qre_path_put(frame, false, c->data[c->count++]);
	return QRE_PATH_FRAME_SIZE;
}

bool qre_challenged(const struct qre_challenges *c, const u8 *data)
{
	bool ours = false;
	unsigned int i;

	for (i = 0; i < c->count; i++)
		ours |= !crypto_memneq(data, c->data[i], sizeof(c->data[0]));
	return ours;
}

/* The path in use, no more often than a PTO allows: copies may come from many addresses. */
static void qre_challenge_before(struct qre_session *s, struct qre_outbox *out)
{
	u8 frame[QRE_PATH_FRAME_SIZE];

	if (s->path.before_answered || s->path.before.count == QRE_CHALLENGES_MAX ||
	    time_before(jiffies, s->challenged_at + qre_control_pto(s)))
		return;
	s->challenged_at = jiffies;
	qre_challenge_put(&s->path.before, frame);
	qre_put_frames(s, out, frame, sizeof(frame), &s->peer, NULL, QRE_PADDED);
}

/* To the candidate: a PATH_CHALLENGE if one is due, and the answer to its own, if there is one. */
static void qre_speak_to(struct qre_session *s, bool challenge, const u8 *answer,
			 struct qre_outbox *out)
{
	struct qre_path *path = &s->path;
	u8 frames[2 * QRE_PATH_FRAME_SIZE];
	size_t size = 0;

	if (answer) {
		qre_path_put(frames, true, answer);
		size += QRE_PATH_FRAME_SIZE;
	}
	if (challenge && path->challenges.count < QRE_CHALLENGES_MAX) {
		path->next_at = jiffies + (qre_control_pto(s) << path->challenges.count);
		size += qre_challenge_put(&path->challenges, frames + size);
	} else if (challenge) {
		path->next_at = path->expires;
	}
	if (size)
		path->sent += qre_send_probe(s, frames, size, &path->peer, path->cid,
					     qre_allowance(path->received, path->sent), out);
	if (challenge)
		qre_challenge_before(s, out);
	qre_control_arm(s, path->next_at);
}

/* A peer of the other family is answered from the address that it speaks to. */
static void qre_speaks_to(struct qre_session *s, const struct qre_arrived *a)
{
	struct qre_address local = qre_address_to(a->datagram);

	if (a->source.family == s->peer.family)
		return;
	spin_lock(&s->tx_lock);
	write_seqcount_begin(&s->addresses);
	s->local[local.family == AF_INET6] = local;
	write_seqcount_end(&s->addresses);
	spin_unlock(&s->tx_lock);
}

void qre_from_elsewhere(struct qre_session *s, const struct qre_arrived *a, bool newest,
			const u8 *challenge, struct qre_outbox *out)
{
	struct qre_path *path = &s->path;
	u8 frame[QRE_PATH_FRAME_SIZE];

	if (s->client) /* a server does not move: what comes from elsewhere is dropped before */
		return;
	if (!qre_path_is_set(s) || (!qre_address_equal(&path->peer, &a->source) && newest)) {
		qre_path_forget(s, out);
		qre_speaks_to(s, a);
		*path = (struct qre_path){
			.peer = a->source,
			.cid = qre_fresh_cid(s),
			.expires = jiffies + max(3 * qre_control_pto(s), QRE_PATH_LIFE),
		};
		path->next_at = path->expires; /* a mere probe is only answered */
	}
	if (qre_address_equal(&path->peer, &a->source)) {
		path->received += a->datagram_size;
		qre_speak_to(s, newest && !path->challenges.count, challenge, out);
	} else if (challenge) { /* section 8.2.2: always, where it came from, within what it brought
				 */
		qre_path_put(frame, true, challenge);
		qre_send_probe(s, frame, sizeof(frame), &a->source, s->cid_used,
			       qre_allowance(a->datagram_size, 0), out);
	}
}

/* With a PING, which is no probe: that tells a server whose peer seems to have moved that it has
 * not (section 9.3.3). */
void qre_answer_challenge(struct qre_session *s, const u8 *data, struct qre_outbox *out)
{
	u8 frames[QRE_PATH_FRAME_SIZE + 1];

	qre_path_put(frames, true, data);
	frames[QRE_PATH_FRAME_SIZE] = 0x01;
	qre_put_frames(s, out, frames, sizeof(frames), &s->peer, NULL, QRE_PADDED);
}

void qre_path_answered(struct qre_session *s, const u8 *data, struct qre_outbox *out)
{
	struct qre_path *path = &s->path;
	struct qre_address peer = path->peer;
	struct qre_endpoint endpoint;
	int cid = path->cid;

	qre_port_answered(s, data);
	if (!qre_path_is_set(s))
		return;
	if (qre_challenged(&path->before, data))
		path->before_answered = true;
	if (!qre_challenged(&path->challenges, data))
		return;
	*path = (struct qre_path){};
	qre_path_move(s, &peer, cid, out);
	endpoint = qre_addresses(s);
	qre_tell_moved(s->qdev, s->id, &endpoint);
}

void qre_peer_is(struct qre_session *s, const struct qre_address *peer, struct qre_outbox *out)
{
	if (qre_address_equal(peer, &s->peer))
		return;
	qre_path_forget(s, out);
	qre_path_move(s, peer, qre_fresh_cid(s), out);
}

unsigned long qre_path_at(const struct qre_session *s)
{
	unsigned long at = jiffies + MAX_JIFFY_OFFSET / 2;

	if (qre_path_is_set(s))
		at = time_before(s->path.next_at, s->path.expires) ? s->path.next_at
								   : s->path.expires;
	if (s->peer_cids.owed_count && time_before(jiffies + qre_control_pto(s), at))
		at = jiffies + qre_control_pto(s);
	return at;
}

void qre_path_timers(struct qre_session *s, struct qre_outbox *out)
{
	if (qre_path_is_set(s) && time_after_eq(jiffies, s->path.expires))
		qre_path_forget(s, out);
	if (qre_path_is_set(s) && time_after_eq(jiffies, s->path.next_at))
		qre_speak_to(s, true, NULL, out);
	qre_pay(s, out);
}

/* --- our own address --- */

struct qre_endpoint qre_addresses(const struct qre_session *s)
{
	struct qre_endpoint now = {.local = s->local[s->peer.family == AF_INET6], .peer = s->peer};

	if (!qre_address_is_set(&now.local)) { /* as the route says */
		now.local.family = s->peer.family;
		now.local.port = s->endpoint.local.port;
	}
	return now;
}

bool qre_source_is(struct qre_session *s, const struct qre_address *source)
{
	struct qre_outbox out;
	bool may = true;

	qre_outbox_init(&out);
	spin_lock(&s->lock);
	if (unlikely(source->port !=
		     READ_ONCE(s->socket)->address.port)) { /* the session has left that port */
		spin_unlock(&s->lock);
		return false;
	}
	if (qre_address_is_set(&s->source) && !qre_address_equal(&s->source, source) &&
	    source->family == s->peer.family && s->life == QRE_LIFE_ESTABLISHED) {
		int which = qre_fresh_cid(s);

		may = which == s->cid_used;
		qre_path_move(s, &s->peer, which, &out);
	}
	if (source->family == s->peer.family) { /* or the peer has just moved */
		spin_lock(&s->tx_lock);
		write_seqcount_begin(&s->addresses);
		s->source = *source;
		write_seqcount_end(&s->addresses);
		spin_unlock(&s->tx_lock);
	}
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	return may;
}
