/* SPDX-License-Identifier: GPL-2.0-only */
/* Another port of a client whose session hears nothing (porttrial.c). */
#ifndef QRE_PORTTRIAL_H
#define QRE_PORTTRIAL_H

#include "migrate.h"
#include "qre.h"

struct netlink_ext_ack;
struct qre_device;
struct qre_frame;
struct qre_outbox;
struct qre_peer_cid;
struct qre_session;
struct qre_socket;

/* Under qre_session.lock; sockets come and go under qre_net.lock, too. */
struct qre_port_trial {
	struct qre_socket *socket; /* NULL: there is none */
	bool on;		   /* a port is tried: by that socket, with this ID of the peer's */
	bool answered;
	int cid;
	u8 wanted; /* PATH_CHALLENGEs */
	struct qre_challenges challenges;
	u64 numbers[QRE_CHALLENGES_MAX]; /* of the packets with them, the last trial's */
	unsigned int number_count;
	unsigned long begun, apart, next_at;
	struct qre_socket *left; /* the one before, read for a while; NULL: none */
	unsigned long left_until;
};

/* qre_net.lock is held: SESSION_TRY_PORT, SESSION_MOVE, SESSION_DROP_PORT. */
int qre_session_try_port(struct qre_device *qdev, const u8 *id, u32 fd, u8 challenges, u64 apart_ms,
			 struct netlink_ext_ack *extack);
int qre_session_move(struct qre_device *qdev, const u8 *id, struct netlink_ext_ack *extack);
int qre_session_drop_port(struct qre_device *qdev, const u8 *id, struct netlink_ext_ack *extack);
/* qre_net.lock is held, and nothing else: sockets that are needed no more go. The second, of a
 * session that is unpublished: all of them. */
void qre_ports_tidy(struct qre_session *s);
void qre_ports_end(struct qre_session *s);

/* The rest under qre_session.lock. Whether another port can be tried. */
bool qre_port_is_possible(const struct qre_session *s);
/* The socket of the port that is tried with this ID; NULL: it is not such a one. */
struct qre_socket *qre_port_of(const struct qre_session *s, const struct qre_peer_cid *cid);
/* PATH_RESPONSE. */
void qre_port_answered(struct qre_session *s, const u8 *data);
/* The largest acknowledged number that is not of the trial, which says nothing of the path in use;
 * QRE_NO_NUMBER: there is none. */
u64 qre_port_heard(const struct qre_session *s, const struct qre_frame *f);
/* The trial is in vain, which user space is told. */
void qre_port_drop(struct qre_session *s, struct qre_outbox *out);
void qre_port_timers(struct qre_session *s, struct qre_outbox *out);
unsigned long qre_port_at(const struct qre_session *s, unsigned long otherwise);

#endif
