/* SPDX-License-Identifier: GPL-2.0-only */
/* Addresses and the peer's connection IDs (migrate.c). All under qre_session.lock but the last. */
#ifndef QRE_MIGRATE_H
#define QRE_MIGRATE_H

#include "qre.h"

struct qre_arrived;
struct qre_frame;
struct qre_outbox;
struct qre_session;
struct qre_socket;

#define QRE_CHALLENGES_MAX 4

struct qre_challenges { /* PATH_CHALLENGEs that were sent on one path */
	u8 data[QRE_CHALLENGES_MAX][8];
	unsigned int count;
};
/* One more, as a frame of QRE_PATH_FRAME_SIZE bytes: its size. Whether @data answers one. */
size_t qre_challenge_put(struct qre_challenges *c, u8 *frame);
bool qre_challenged(const struct qre_challenges *c, const u8 *data);

struct qre_path {		 /* an address that is being validated: RFC 9000 section 8.2, 9.3 */
	struct qre_address peer; /* or not set */
	int cid;		 /* which of the peer's is used there */
	struct qre_challenges challenges;
	struct qre_challenges before; /* on the path in use, which may still be the peer's */
	bool before_answered;
	unsigned long next_at, expires;
	u64 received, sent;
};

void qre_migrate_init(struct qre_session *s, const struct qre_cid *cid, u64 sequence,
		      const u8 *token);
/* An authentic packet came from another address than the peer's; @newest: it is the newest, and
 * more than a probe. @challenge: a PATH_CHALLENGE's data in it, or NULL. */
void qre_from_elsewhere(struct qre_session *s, const struct qre_arrived *a, bool newest,
			const u8 *challenge, struct qre_outbox *out);
/* A PATH_CHALLENGE from the peer's address. */
void qre_answer_challenge(struct qre_session *s, const u8 *data, struct qre_outbox *out);
void qre_path_answered(struct qre_session *s, const u8 *data, struct qre_outbox *out);
/* NEW_CONNECTION_ID. False: the session is over. */
bool qre_cid_issued(struct qre_session *s, const struct qre_frame *f, struct qre_outbox *out);
/* User space says where the peer is. */
void qre_peer_is(struct qre_session *s, const struct qre_address *peer, struct qre_outbox *out);
/* This ID of the peer's was seen on a path that is not taken. */
void qre_cid_give_back(struct qre_session *s, int which, struct qre_outbox *out);
/* A client's packets leave by this socket from here on, with this ID. qre_net.lock is held, too. */
void qre_path_leave_from(struct qre_session *s, struct qre_socket *qs, int which,
			 struct qre_outbox *out);
void qre_path_timers(struct qre_session *s, struct qre_outbox *out);
unsigned long qre_path_at(const struct qre_session *s); /* when the timer should run */
/* Whether these are the last bytes of a stateless reset. */
bool qre_is_reset_token(const struct qre_session *s, const u8 token[QRE_RESET_TOKEN_SIZE]);
/* Where both ends are. Of a session with an underlay, one whose peer was heard or told. */
struct qre_endpoint qre_addresses(const struct qre_session *s);
/* Without the lock, bottom halves off: packets leave from another address of ours. Whether the one
 * in hand may, too: not if its connection ID was seen at the other one, and there is a fresh one.
 */
bool qre_source_is(struct qre_session *s, const struct qre_address *source);

#endif
