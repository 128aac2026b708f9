/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * QUIC frames of 1-RTT packets (RFC 9000 section 19, RFC 9221 section 4): read and written here and
 * nowhere else. Depends on nothing but fixed-width types (see ackwin.h). Nothing is read past the
 * end of the payload, and nothing is allocated.
 */
#ifndef QRE_FRAMES_H
#define QRE_FRAMES_H

#include "ackwin.h"

#define QRE_VARINT_MAX	  ((1ULL << 62) - 1)
#define QRE_SPLIT_CONTEXT 2 /* of packets in two datagrams */

/* Transport error codes, RFC 9000 section 20.1 */
#define QRE_STREAM_STATE_ERROR	 0x05
#define QRE_FRAME_ENCODING_ERROR 0x07
#define QRE_CID_LIMIT_ERROR	 0x09
#define QRE_PROTOCOL_VIOLATION	 0x0a
#define QRE_KEY_UPDATE_ERROR	 0x0e
#define QRE_H3_NO_ERROR		 0x100 /* RFC 9114 section 8.1 */

enum qre_frame_kind {
	QRE_FRAME_PADDING, /* a run of them */
	QRE_FRAME_PING,	   /* a run of them */
	QRE_FRAME_ACK,
	QRE_FRAME_DATAGRAM,	    /* quarter stream 0, context 0: data is an IP packet */
	QRE_FRAME_DATAGRAM_PART,    /* quarter stream 0, context 2: one of two parts of a packet */
	QRE_FRAME_DATAGRAM_UNKNOWN, /* of another stream or context */
	QRE_FRAME_PATH_CHALLENGE,
	QRE_FRAME_PATH_RESPONSE,
	QRE_FRAME_CONNECTION_CLOSE,
	QRE_FRAME_NEW_CONNECTION_ID,
	QRE_FRAME_HANDSHAKE_DONE,
	QRE_FRAME_OTHER, /* whole frames for user space: STREAM, RETIRE_CONNECTION_ID, ... */
};

struct qre_frame {
	enum qre_frame_kind kind;
	const u8 *raw; /* the whole frame */
	size_t raw_size;
	union {
		struct {
			const u8 *data;
			size_t size;
		} datagram;
		struct {
			u64 largest;
			u64 delay;	 /* in units of the sender's exponent */
			u64 first_range; /* so largest - first_range is the first number of it */
			u64 more;	 /* further ranges, at ranges .. ranges_end */
			const u8 *ranges;
			const u8 *ranges_end;
			bool counts; /* ecn is there: ECT(0), ECT(1), CE */
			u64 ecn[3];
		} ack;
		struct {
			u64 sequence, retire_prior_to;
			const u8 *bytes; /* size of them, then the reset token */
			u8 size;
		} cid;
		const u8 *path; /* 8 bytes */
		u64 error;	/* CONNECTION_CLOSE, of either kind */
		u64 number;	/* OTHER: what it begins with, a stream's or sequence number */
	};
};

/*
 * Read the frame at *@at and move *@at behind it. 1: @f is filled; 0: the payload is at its end;
 * -1: it is no frame of a 1-RTT packet, or it is cut short (a FRAME_ENCODING_ERROR). Every range of
 * an ACK has been checked (none below zero; more than 512 are an error): qre_ack_next never fails.
 */
int qre_frame_read(const u8 **at, const u8 *end, struct qre_frame *f);

/* Who sent a payload, and what may be in it for that. */
struct qre_sender {
	bool client;
	bool gives_cids; /* what we send to it bears a connection ID that is not empty */
	bool takes_cids; /* its packets have one of our CIDs */
	bool splits;	 /* it may send packets in two parts */
	u64 issued;	 /* highest sequence number of our connection IDs */
};

/* What the frames of one payload add up to, before any of them has an effect. */
struct qre_content {
	u64 error; /* the transport error that the payload is; 0: none, and everything else holds */
	const u8 *challenge;  /* of the last PATH_CHALLENGE; NULL: there is none */
	size_t passed;	      /* bytes of frames for user space (QRE_FRAME_OTHER) */
	unsigned int unknown; /* DATAGRAMs of another stream or context, or parts that may not be */
	bool datagrams;	      /* of ours there are some */
	bool eliciting;
	bool only_probing; /* section 9.1 */
};

/* Reads each frame once. A payload of no frames is an error, too (section 12.4). */
void qre_content_read(struct qre_content *c, const struct qre_sender *from, const u8 *payload,
		      size_t size);
/* The frames for user space, one behind the other, at @out, which has room for c->passed bytes. */
void qre_content_passed(u8 *out, const u8 *payload, size_t size);

/* Ranges of an ACK frame, highest first. False when there are no more. */
struct qre_ack_iter {
	const u8 *at;
	const u8 *end;
	u64 left; /* next included */
	struct qre_range next;
};
void qre_ack_begin(struct qre_ack_iter *it, const struct qre_frame *f);
bool qre_ack_next(struct qre_ack_iter *it, struct qre_range *range);

/* Bytes of @value as a varint: 1, 2, 4 or 8. */
unsigned int qre_varint_size(u64 value);
/* Writes it at @out, which has room for 8; returns its size. */
unsigned int qre_varint_put(u8 *out, u64 value);
/* Reads one and moves *@at behind it; false when it is cut short. */
bool qre_varint_get(const u8 **at, const u8 *end, u64 *value);

#define QRE_ACK_FRAME_MAX (1 + 8 + 8 + 8 + 8 + 16 * QRE_ACKWIN_MAX_RANGES + 24)
/*
 * An ACK of @count (at least 1) ranges, highest first; as many of them as fit into @room. With @ecn
 * the counts of ECT(0), ECT(1), CE. Returns the size; 0 when not even one range fits.
 */
size_t qre_ack_put(u8 *out, size_t room, const struct qre_range *ranges, unsigned int count,
		   u64 delay, const u64 ecn[3]);

/* CONNECTION_CLOSE without a reason phrase: 0x1d when @application, else 0x1c of frame type 0. */
#define QRE_CLOSE_FRAME_MAX (1 + 8 + 1 + 1)
size_t qre_close_put(u8 *out, u64 error, bool application);

#define QRE_PATH_FRAME_SIZE 9
void qre_path_put(u8 *out, bool response, const u8 data[8]);

#endif
