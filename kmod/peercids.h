/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The connection IDs that the peer gave us, and what is owed for them (RFC 9000 section 5.1): a few
 * at most, each in use on one path, spare, or gone. Depends on nothing but fixed-width types (see
 * ackwin.h).
 *
 *	spare --- qre_peer_cids_take() ---> used --- qre_peer_cids_retire() ---> owed ---> gone
 *	   \--------------- Retire Prior To ------------------------------------/
 *
 * One that is used and that the peer wants back stays so until its user has another: whoever uses
 *it asks qre_peer_cids_wanted_back().
 */
#ifndef QRE_PEERCIDS_H
#define QRE_PEERCIDS_H

#include "frames.h"

#define QRE_PEER_CIDS	   8 /* at once; active_connection_id_limit of our handshakes is 2 */
#define QRE_PEER_CIDS_OWED 16
#define QRE_PEER_CID_SIZE  20
#define QRE_PEER_TOKEN	   16
#define QRE_PEER_CID_NONE  (-1)

struct qre_peer_cid {
	enum { QRE_PEER_CID_FREE, QRE_PEER_CID_SPARE, QRE_PEER_CID_USED } state;
	u64 sequence;
	u8 size;
	u8 bytes[QRE_PEER_CID_SIZE];
	bool has_token; /* the first one's may be unknown */
	u8 token[QRE_PEER_TOKEN];
};

struct qre_peer_cids {
	struct qre_peer_cid held[QRE_PEER_CIDS];
	u64 retire_prior_to;	      /* the highest that was asked for */
	u64 owed[QRE_PEER_CIDS_OWED]; /* sequence numbers to be retired */
	unsigned int owed_count;
};

/* The first is in held[0], and used. @token NULL: it has none. */
void qre_peer_cids_init(struct qre_peer_cids *c, const u8 *bytes, u8 size, u64 sequence,
			const u8 *token);
/* A NEW_CONNECTION_ID frame. 0, or the transport error that it is (sections 5.1.1, 5.1.2, 19.15).
 */
u64 qre_peer_cids_issued(struct qre_peer_cids *c, const struct qre_frame *f);
/* A spare one, of @size bytes if there is one, for a new path; QRE_PEER_CID_NONE: there is none. */
int qre_peer_cids_take(struct qre_peer_cids *c, u8 size);
bool qre_peer_cids_any_spare(const struct qre_peer_cids *c);
bool qre_peer_cids_wanted_back(const struct qre_peer_cids *c, int which);
/* It is not used any more: its sequence number is owed. False: too many are. */
bool qre_peer_cids_retire(struct qre_peer_cids *c, int which);
/* RETIRE_CONNECTION_ID frames of what is owed, as many as fit; those are owed no more. Their size.
 */
size_t qre_peer_cids_pay(struct qre_peer_cids *c, u8 *out, size_t room);

#endif
