// SPDX-License-Identifier: GPL-2.0-only
/*
 * A client that hears nothing tries another port, as a browser (RFC 9000 sections 8.2, 9.2 and
 * 9.5). User space lends the socket, says how many PATH_CHALLENGEs leave by it, and how far apart,
 * and whether the session moves when one was answered. They bear a spare connection ID; the port in
 * use goes on meanwhile. Numbers are of the one row that the session has.
 *
 *	SESSION_TRY_PORT -> on --- PATH_RESPONSE ---> answered --- SESSION_MOVE ---> the session's
 *			     \--- time is over ----------\--- SESSION_DROP_PORT ---> gone
 *
 * Without a word of user space a port that answered goes, too: alone the module never moves. A
 * port that was left is read for a while: what was on its way is the session's, and a closed port
 * would answer with ICMP. Sockets go where they may be unhooked, under qre_net.lock: a timer leaves
 * that to qre_net.reap.
 */
#include <net/genetlink.h>
#include "control.h"
#include "device.h"
#include "events.h"
#include "namespace.h"
#include "pathmtu.h"
#include "porttrial.h"
#include "session.h"
#include "silence.h"
#include "socket.h"

#define QRE_DECIDE_WITHIN HZ	   /* user space, when a port has answered */
#define QRE_PORT_LINGERS  (5 * HZ) /* as the user data plane */

bool qre_port_is_possible(const struct qre_session *s)
{
	return s->tx_cid.length && !s->trial.on && qre_peer_cids_any_spare(&s->peer_cids);
}

struct qre_socket *qre_port_of(const struct qre_session *s, const struct qre_peer_cid *cid)
{
	return s->trial.on && cid == &s->peer_cids.held[s->trial.cid] ? s->trial.socket : NULL;
}

/* --- the trial, under qre_session.lock --- */

/* The first one left within the jiffy at which it began: the others are not too early. */
static void qre_port_challenge(struct qre_session *s, struct qre_outbox *out)
{
	struct qre_port_trial *t = &s->trial;
	u8 frame[QRE_PATH_FRAME_SIZE];
	u64 number;

	qre_challenge_put(&t->challenges, frame);
	t->next_at = t->begun + t->challenges.count * t->apart + 1;
	number = qre_put_frames(s, out, frame, sizeof(frame), &s->peer, &s->peer_cids.held[t->cid],
				QRE_BROWSER_PAYLOAD);
	if (number != QRE_NO_NUMBER)
		t->numbers[t->number_count++] = number;
	qre_control_arm(s, qre_silence_in_time(s, t->next_at));
}

/* An observer has seen the ID at that port: it is never used again. */
static void qre_port_end(struct qre_session *s, struct qre_outbox *out)
{
	s->trial.on = false;
	qre_cid_give_back(s, s->trial.cid, out);
}

void qre_port_drop(struct qre_session *s, struct qre_outbox *out)
{
	qre_port_end(s, out);
	qre_tell_session(s->qdev, s->id, QRE_EVENT_PORT_DROPPED);
	qre_session_report_ports(s);
}

void qre_port_answered(struct qre_session *s, const u8 *data)
{
	struct qre_port_trial *t = &s->trial;

	if (!t->on || t->answered || !qre_challenged(&t->challenges, data))
		return;
	t->answered = true;
	t->next_at = jiffies + QRE_DECIDE_WITHIN;
	qre_control_arm(s, t->next_at);
	qre_tell_port(s->qdev, s->id, &s->peer_cids.held[t->cid]);
}

static bool qre_port_has(const struct qre_port_trial *t, u64 number)
{
	unsigned int i;

	for (i = 0; i < t->number_count; i++)
		if (t->numbers[i] == number)
			return true;
	return false;
}

u64 qre_port_heard(const struct qre_session *s, const struct qre_frame *f)
{
	const struct qre_port_trial *t = &s->trial;
	struct qre_ack_iter it;
	struct qre_range range;

	if (likely(!t->number_count))
		return f->ack.largest;
	qre_ack_begin(&it, f);
	while (qre_ack_next(&it, &range)) {
		u64 left = range.last - range.first + 1;

		while (left && qre_port_has(t, range.first + left - 1))
			left--;
		if (left)
			return range.first + left - 1;
	}
	return QRE_NO_NUMBER;
}

static bool qre_port_left_goes(const struct qre_session *s)
{
	return s->trial.left && time_after_eq(jiffies, s->trial.left_until);
}

unsigned long qre_port_at(const struct qre_session *s, unsigned long otherwise)
{
	const struct qre_port_trial *t = &s->trial;
	unsigned long at = otherwise;

	if (t->on && time_before(t->next_at, at))
		at = t->next_at;
	if (t->left && !qre_session_reports_ports(s) && time_before(t->left_until, at))
		at = t->left_until;
	return at;
}

void qre_port_timers(struct qre_session *s, struct qre_outbox *out)
{
	struct qre_port_trial *t = &s->trial;

	if (qre_port_left_goes(s))
		qre_session_report_ports(s);
	if (!t->on || s->life != QRE_LIFE_ESTABLISHED || time_before(jiffies, t->next_at))
		return;
	if (t->answered || t->challenges.count == t->wanted)
		qre_port_drop(s, out);
	else
		qre_port_challenge(s, out);
}

/* --- sockets, under qre_net.lock --- */

void qre_ports_tidy(struct qre_session *s)
{
	struct qre_socket *tried = NULL, *left = NULL;

	spin_lock_bh(&s->lock);
	if (!s->trial.on)
		swap(tried, s->trial.socket);
	if (qre_port_left_goes(s))
		swap(left, s->trial.left);
	else if (s->trial.left) /* the timer did not count while this was on its way */
		qre_control_arm(s, s->trial.left_until);
	spin_unlock_bh(&s->lock);
	qre_socket_return(tried);
	qre_socket_return(left);
}

void qre_ports_end(struct qre_session *s)
{
	spin_lock_bh(&s->lock);
	s->trial.on = false;
	s->trial.left_until = jiffies;
	spin_unlock_bh(&s->lock);
	qre_ports_tidy(s);
}

/* --- what user space says --- */

static struct qre_session *qre_port_session(struct qre_device *qdev, const u8 *id,
					    struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_session_find(qdev, id);

	if (s && s->client && READ_ONCE(s->life) == QRE_LIFE_ESTABLISHED)
		return s;
	NL_SET_ERR_MSG(extack, "SessionId: there is no such established client session");
	return NULL;
}

/* Under qre_session.lock. */
static int qre_port_is_wanted(const struct qre_session *s, struct netlink_ext_ack *extack)
{
	if (s->life == QRE_LIFE_ESTABLISHED && s->silence.unanswered && s->silence.degraded)
		return 0;
	NL_SET_ERR_MSG(extack, "SessionId: the server answers");
	return -EALREADY;
}

static int qre_port_begin(struct qre_session *s, struct qre_socket *qs, u8 challenges, u64 apart_ms,
			  struct qre_outbox *out, struct netlink_ext_ack *extack)
{
	struct qre_port_trial *t = &s->trial;
	int error = qre_port_is_wanted(s, extack), which;

	if (error)
		return error;
	if (t->socket) { /* or its socket has not gone yet */
		NL_SET_ERR_MSG(extack, "SessionId: another port is tried already");
		return -EBUSY;
	}
	if (!qre_port_is_possible(s)) {
		NL_SET_ERR_MSG(extack, "SessionId: the peer has given no spare connection id");
		return -EADDRNOTAVAIL;
	}
	which = qre_peer_cids_take(&s->peer_cids, s->tx_cid.length);
	*t = (struct qre_port_trial){
		.socket = qs,
		.on = true,
		.cid = which,
		.wanted = min_t(u8, challenges, QRE_CHALLENGES_MAX),
		.begun = jiffies,
		.apart = msecs_to_jiffies(apart_ms),
		.left = t->left,
		.left_until = t->left_until,
	};
	s->largest_heard = s->largest_acked; /* it may be an earlier trial's */
	qre_socket_admit(qs, s);
	qre_port_challenge(s, out);
	return 0;
}

int qre_session_try_port(struct qre_device *qdev, const u8 *id, u32 fd, u8 challenges, u64 apart_ms,
			 struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_port_session(qdev, id, extack);
	struct qre_socket *qs;
	struct qre_outbox out;
	int error;

	if (!s)
		return -ENOENT;
	qre_ports_tidy(s);
	qs = qre_socket_lend(s, fd, extack);
	if (IS_ERR(qs))
		return PTR_ERR(qs);
	qre_outbox_init(&out);
	local_bh_disable();
	rcu_read_lock();
	spin_lock(&s->lock);
	error = qre_port_begin(s, qs, challenges, apart_ms, &out, extack);
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	rcu_read_unlock();
	local_bh_enable();
	if (error)
		qre_socket_return(qs);
	return error;
}

/* The socket before stays readable; the one before that goes. */
static struct qre_socket *qre_port_move(struct qre_session *s, struct qre_outbox *out)
{
	struct qre_port_trial *t = &s->trial;
	struct qre_socket *earlier = t->left;

	t->left = s->socket;
	t->left_until = jiffies + QRE_PORT_LINGERS;
	t->on = false;
	qre_path_leave_from(s, t->socket, t->cid, out);
	t->socket = NULL;
	s->probe_pending = false; /* what measured it has stayed on the old path */
	qre_silence_begin_path(s);
	qre_control_arm(s, t->left_until);
	return earlier;
}

int qre_session_move(struct qre_device *qdev, const u8 *id, struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_port_session(qdev, id, extack);
	struct qre_socket *earlier = NULL;
	struct qre_outbox out;
	int error;

	if (!s)
		return -ENOENT;
	qre_outbox_init(&out);
	local_bh_disable();
	rcu_read_lock();
	spin_lock(&s->lock);
	error = qre_port_is_wanted(s, extack);
	if (!error && !(s->trial.on && s->trial.answered)) {
		NL_SET_ERR_MSG(extack, "SessionId: no port is tried that answers");
		error = -ENOENT;
	}
	if (!error)
		earlier = qre_port_move(s, &out);
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	rcu_read_unlock();
	local_bh_enable();
	qre_socket_return(earlier);
	return error;
}

int qre_session_drop_port(struct qre_device *qdev, const u8 *id, struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_port_session(qdev, id, extack);
	struct qre_outbox out;
	int error = 0;

	if (!s)
		return -ENOENT;
	qre_outbox_init(&out);
	local_bh_disable();
	rcu_read_lock();
	spin_lock(&s->lock);
	if (s->trial.on) {
		qre_port_end(s, &out);
	} else {
		NL_SET_ERR_MSG(extack, "SessionId: no port is tried");
		error = -ENOENT;
	}
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	rcu_read_unlock();
	local_bh_enable();
	qre_ports_tidy(s);
	return error;
}
