/* SPDX-License-Identifier: GPL-2.0-only */
/* The QUIC state of a session (control.c): what is acknowledged, lost, told and closed. All under
 * qre_session.lock. */
#ifndef QRE_CONTROL_H
#define QRE_CONTROL_H

#include <linux/skbuff.h>

#include "frames.h"
#include "peercids.h"
#include "qre.h"

struct qre_key;
struct qre_session;
struct timer_list;

#define QRE_CONTROLS_MAX    16 /* packets with control frames in flight */
#define QRE_CONTROL_TRIES   12
#define QRE_CONTROL_PACKETS (QRE_CONTROLS_MAX * QRE_CONTROL_TRIES)
#define QRE_INITIAL_RTT	    (100 * USEC_PER_MSEC)

struct qre_control { /* frames that are sent until they are acknowledged or given up */
	u64 request; /* of FRAME_SEND; QRE_NO_NUMBER: of our own */
	u64 last;    /* the packet that they were sent in last; QRE_NO_NUMBER: it was not sent */
	unsigned int tries;
	unsigned long sent_at;
	u8 *frames; /* NULL: a PING */
	size_t size;
	bool used;
};

struct qre_control_packet { /* one that control frames were sent in */
	u64 number;
	u8 control; /* which of them */
};

/*
 * What leaves when the lock is dropped. Control packets are numbered under the lock and sealed
 * behind it; events are collected, too, so that they keep their order.
 */
struct qre_outbox {
	struct sk_buff_head packets;
	bool unlink; /* the session has ended */
};

static inline void qre_outbox_init(struct qre_outbox *out)
{
	__skb_queue_head_init(&out->packets);
	out->unlink = false;
}
/* Without the lock, under RCU with bottom halves off. */
void qre_outbox_flush(struct qre_session *s, struct qre_outbox *out);

/* What came in one authentic, new packet. */
struct qre_arrived {
	u64 number;
	u64 epoch;
	enum qre_arrival arrival;
	u8 first; /* unmasked */
	u8 ecn;	  /* of the outer packet */
	struct qre_address source;
	const struct sk_buff *datagram; /* with its outer headers */
	u32 datagram_size;		/* UDP payload */
};
void qre_control_begin(struct qre_session *s, struct qre_outbox *out); /* after install */
/* A packet that is a DATAGRAM and nothing else, of the current path and key: the fast path. */
void qre_control_datagram(struct qre_session *s, const struct qre_arrived *a,
			  struct qre_outbox *out);
/*
 * Everything else. First what is in it, of a packet that did not arrive before; QRE_DROP_UNSPEC, or
 * why it is not taken: neither accepted nor acknowledged. Then what it does; true: there are
 * DATAGRAMs to be delivered.
 */
enum qre_drop qre_control_look(struct qre_session *s, const u8 *payload, size_t size,
			       struct qre_content *content);
bool qre_control_payload(struct qre_session *s, const struct qre_arrived *a,
			 const struct qre_content *content, const u8 *payload, size_t size,
			 struct qre_outbox *out);
void qre_control_closing(struct qre_session *s,
			 struct qre_outbox *out); /* a packet while closing */
void qre_control_end(struct qre_session *s, enum qre_loss why, u64 error, struct qre_outbox *out);
void qre_control_close(struct qre_session *s, struct qre_outbox *out);
int qre_control_frames(struct qre_session *s, u64 request, const u8 *frames, size_t size,
		       struct qre_outbox *out);
void qre_control_ping(struct qre_session *s, struct qre_outbox *out);
/* Something ack-eliciting leaves. */
void qre_control_eliciting(struct qre_session *s);
/* A PING, with PADDING up to @payload bytes, that is not sent again when it is lost: its number, or
 * QRE_NO_NUMBER. */
u64 qre_control_probe(struct qre_session *s, size_t payload, struct qre_outbox *out);
/* One packet of these frames to @peer, whose ID @cid is (NULL: the one in use), padded to a
 * datagram of @padded, or of what the peer takes. Its number, or QRE_NO_NUMBER. */
u64 qre_put_frames(struct qre_session *s, struct qre_outbox *out, const u8 *frames, size_t size,
		   const struct qre_address *peer, const struct qre_peer_cid *cid, size_t padded);
/* What went out longest ago goes out again; false: it was not before @before (@otherwise), or there
 * is nothing. */
bool qre_control_repeat(struct qre_session *s, bool otherwise, unsigned long before,
			struct qre_outbox *out);
/* A PING of a client, with PADDING up to a datagram of @padded, which is not sent again. */
void qre_control_ask(struct qre_session *s, size_t padded, struct qre_outbox *out);
/* No packet will ever have the next number. */
void qre_control_skip_number(struct qre_session *s);
/* The bytes of a packet around its frames. */
size_t qre_control_overhead(const struct qre_session *s);
/* Nothing comes back: these frames once, and the session is over. */
void qre_control_give_up(struct qre_session *s, const u8 *farewell, size_t size,
			 struct qre_outbox *out);
/* The peer broke QUIC inside an authenticated packet: tell it, and close the session. */
void qre_violated(struct qre_session *s, u64 error, struct qre_outbox *out);
/* Whether more frames can be in flight; frames of our own, sent until they are acknowledged. */
bool qre_control_room(const struct qre_session *s);
void qre_control_own(struct qre_session *s, u8 *frames, size_t size, struct qre_outbox *out);
bool qre_control_may_update(const struct qre_session *s);
/* The transmit key changes; the number it begins with is at least @number. @key is consumed. */
void qre_control_new_tx(struct qre_session *s, struct qre_key *key, u64 number);
unsigned long qre_control_pto(const struct qre_session *s); /* jiffies */
u64 qre_control_pto_us(const struct qre_session *s);
/* An ACK frame of everything, for a packet with @room; 0: none is wanted, or it does not fit. */
size_t qre_control_take_ack(struct qre_session *s, u8 *out, size_t room);
void qre_session_timer(struct timer_list *timer);
void qre_control_arm(struct qre_session *s, unsigned long at);

#endif
