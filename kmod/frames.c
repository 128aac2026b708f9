// SPDX-License-Identifier: GPL-2.0-only
/*
 * QUIC frames of 1-RTT packets. The readers below get @at behind the frame's type and return false
 * when the frame is cut short or impossible; where they leave @at then means nothing.
 */
#include "frames.h"

/* Most ranges read after the first one of an ACK frame; real ones have fewer gaps. */
#define ACK_RANGES_READ_MAX 512
#define CID_MAX		    20
#define RESET_TOKEN_SIZE    16
#define PATH_DATA_SIZE	    8
/* Of one type: RFC 9000 sections 4.6 and 19.11. */
#define STREAMS_MAX   (1ULL << 60)
#define STREAM_LENGTH 0x02
#define STREAM_OFFSET 0x04
/* Of a stream's number: RFC 9000 section 2.1. */
#define STREAM_OF_SERVER 0x01
#define STREAM_ONE_WAY	 0x02

/* Frames that not everybody may send. */
enum {
	RESET_STREAM = 0x04,
	STOP_SENDING = 0x05,
	NEW_TOKEN = 0x07,
	STREAM = 0x08,
	STREAM_LAST = 0x0f,
	MAX_STREAM_DATA = 0x11,
	STREAM_DATA_BLOCKED = 0x15,
	RETIRE_CONNECTION_ID = 0x19,
	HANDSHAKE_DONE = 0x1e,
};

unsigned int qre_varint_size(u64 value)
{
	if (value < 1 << 6)
		return 1;
	if (value < 1 << 14)
		return 2;
	return value < 1 << 30 ? 4 : 8;
}

unsigned int qre_varint_put(u8 *out, u64 value)
{
	unsigned int size = qre_varint_size(value), left;

	for (left = size; left--; value >>= 8)
		out[left] = (u8)value;
	/* log2 of the size */
	out[0] |= (u8)((size > 1) + (size > 2) + (size > 4)) << 6;
	return size;
}

bool qre_varint_get(const u8 **at, const u8 *end, u64 *value)
{
	const u8 *p = *at;
	unsigned int left;

	if (p == end)
		return false;
	left = (1U << (*p >> 6)) - 1;
	if ((size_t)(end - p) <= left)
		return false;
	*value = *p++ & 0x3f;
	while (left--)
		*value = *value << 8 | *p++;
	*at = p;
	return true;
}

static bool skip_bytes(const u8 **at, const u8 *end, u64 size)
{
	if (size > (u64)(end - *at))
		return false;
	*at += size;
	return true;
}

static bool skip_varints(const u8 **at, const u8 *end, unsigned int count)
{
	u64 value;

	while (count--) {
		if (!qre_varint_get(at, end, &value))
			return false;
	}
	return true;
}

/* Bytes whose count stands before them as a varint. */
static bool skip_vector(const u8 **at, const u8 *end, u64 *size)
{
	return qre_varint_get(at, end, size) && skip_bytes(at, end, *size);
}

static void skip_run(const u8 **at, const u8 *end, u8 type)
{
	while (*at != end && **at == type)
		++*at;
}

static bool read_ack(const u8 **at, const u8 *end, u8 type, struct qre_frame *f)
{
	u64 first, left, gap, size;

	if (!qre_varint_get(at, end, &f->ack.largest) || !qre_varint_get(at, end, &f->ack.delay) ||
	    !qre_varint_get(at, end, &f->ack.more) || !qre_varint_get(at, end, &f->ack.first_range))
		return false;
	if (f->ack.more > ACK_RANGES_READ_MAX || f->ack.first_range > f->ack.largest)
		return false;

	first = f->ack.largest - f->ack.first_range;
	f->ack.ranges = *at;
	for (left = f->ack.more; left; left--) {
		if (!qre_varint_get(at, end, &gap) || !qre_varint_get(at, end, &size))
			return false;
		if (gap + 2 > first || size > first - gap - 2)
			return false;
		first -= gap + 2 + size;
	}
	f->ack.ranges_end = *at;
	f->ack.counts = type == 0x03;
	return type == 0x02 ||
	       (qre_varint_get(at, end, &f->ack.ecn[0]) &&
		qre_varint_get(at, end, &f->ack.ecn[1]) && qre_varint_get(at, end, &f->ack.ecn[2]));
}

/* RFC 9297 section 2.1, RFC 9484 section 6: quarter stream and context stand before the packet. */
static bool read_datagram(const u8 **at, const u8 *end, u8 type, struct qre_frame *f)
{
	u64 quarter_stream = 0, context = 0, size;

	if (type == 0x31) {
		const u8 *data;

		if (!qre_varint_get(at, end, &size))
			return false;
		data = *at;
		if (!skip_bytes(at, end, size))
			return false;
		end = *at;
		*at = data;
	}
	/* Their shortest form, which all but the oddest of peers send, is two zero bytes. */
	if (end - *at >= 2 && !((*at)[0] | (*at)[1])) {
		*at += 2;
	} else if (!qre_varint_get(at, end, &quarter_stream) ||
		   !qre_varint_get(at, end, &context)) {
		return false;
	}
	if (!(quarter_stream | context))
		f->kind = QRE_FRAME_DATAGRAM;
	else if (!quarter_stream && context == QRE_SPLIT_CONTEXT)
		f->kind = QRE_FRAME_DATAGRAM_PART;
	else
		f->kind = QRE_FRAME_DATAGRAM_UNKNOWN;
	f->datagram.data = *at;
	f->datagram.size = (size_t)(end - *at);
	*at = end;
	return true;
}

static bool read_stream(const u8 **at, const u8 *end, u8 type, struct qre_frame *f)
{
	u64 offset = 0, size;

	if (!qre_varint_get(at, end, &f->number))
		return false;
	if (type & STREAM_OFFSET && !qre_varint_get(at, end, &offset))
		return false;
	if (type & STREAM_LENGTH) {
		if (!skip_vector(at, end, &size))
			return false;
	} else {
		size = (u64)(end - *at);
		*at = end;
	}
	return offset + size <= QRE_VARINT_MAX;
}

static bool skip_crypto(const u8 **at, const u8 *end)
{
	u64 offset, size;

	return qre_varint_get(at, end, &offset) && skip_vector(at, end, &size) &&
	       offset + size <= QRE_VARINT_MAX;
}

static bool skip_new_token(const u8 **at, const u8 *end)
{
	u64 size;

	return skip_vector(at, end, &size) && size;
}

/* MAX_STREAMS and STREAMS_BLOCKED */
static bool skip_stream_count(const u8 **at, const u8 *end)
{
	u64 count;

	return qre_varint_get(at, end, &count) && count <= STREAMS_MAX;
}

static bool read_new_connection_id(const u8 **at, const u8 *end, struct qre_frame *f)
{
	if (!qre_varint_get(at, end, &f->cid.sequence) ||
	    !qre_varint_get(at, end, &f->cid.retire_prior_to))
		return false;
	if (f->cid.retire_prior_to > f->cid.sequence || *at == end)
		return false;
	f->cid.size = *(*at)++;
	f->cid.bytes = *at;
	return f->cid.size >= 1 && f->cid.size <= CID_MAX &&
	       skip_bytes(at, end, f->cid.size + RESET_TOKEN_SIZE);
}

static bool read_close(const u8 **at, const u8 *end, u8 type, struct qre_frame *f)
{
	u64 size;

	return qre_varint_get(at, end, &f->error) && skip_varints(at, end, type == 0x1c) &&
	       skip_vector(at, end, &size);
}

static bool read_body(const u8 **at, const u8 *end, u8 type, struct qre_frame *f)
{
	switch (type) {
	case 0x30:
	case 0x31:
		return read_datagram(at, end, type, f);
	case 0x00:
		f->kind = QRE_FRAME_PADDING;
		skip_run(at, end, type);
		return true;
	case 0x01:
		f->kind = QRE_FRAME_PING;
		skip_run(at, end, type);
		return true;
	case 0x02:
	case 0x03:
		f->kind = QRE_FRAME_ACK;
		return read_ack(at, end, type, f);
	case 0x1a:
	case 0x1b:
		f->kind = type == 0x1a ? QRE_FRAME_PATH_CHALLENGE : QRE_FRAME_PATH_RESPONSE;
		f->path = *at;
		return skip_bytes(at, end, PATH_DATA_SIZE);
	case 0x1c:
	case 0x1d:
		f->kind = QRE_FRAME_CONNECTION_CLOSE;
		return read_close(at, end, type, f);
	case 0x18:
		f->kind = QRE_FRAME_NEW_CONNECTION_ID;
		return read_new_connection_id(at, end, f);
	case HANDSHAKE_DONE:
		f->kind = QRE_FRAME_HANDSHAKE_DONE;
		return true;
	}

	f->kind = QRE_FRAME_OTHER;
	switch (type) {
	case RESET_STREAM:
		return qre_varint_get(at, end, &f->number) && skip_varints(at, end, 2);
	case STOP_SENDING:
	case MAX_STREAM_DATA:
	case STREAM_DATA_BLOCKED:
		return qre_varint_get(at, end, &f->number) && skip_varints(at, end, 1);
	case RETIRE_CONNECTION_ID:
		return qre_varint_get(at, end, &f->number);
	case 0x10: /* MAX_DATA */
	case 0x14: /* DATA_BLOCKED */
		return skip_varints(at, end, 1);
	case 0x06:
		return skip_crypto(at, end);
	case NEW_TOKEN:
		return skip_new_token(at, end);
	case STREAM ... STREAM_LAST:
		return read_stream(at, end, type, f);
	case 0x12:
	case 0x13:
	case 0x16:
	case 0x17:
		return skip_stream_count(at, end);
	}
	return false;
}

int qre_frame_read(const u8 **at, const u8 *end, struct qre_frame *f)
{
	const u8 *p = *at;

	if (p == end)
		return 0;
	f->raw = p++;
	if (!read_body(&p, end, *f->raw, f))
		return -1;
	f->raw_size = (size_t)(p - f->raw);
	*at = p;
	return 1;
}

/* Whether the stream runs one way, away from @client or from its peer. */
static bool one_way(u64 stream, bool client)
{
	return stream & STREAM_ONE_WAY && !(stream & STREAM_OF_SERVER) == client;
}

/* RFC 9000 section 19: the error that it is to have sent this frame, which is whole; 0: none. */
static u64 misplaced(const struct qre_frame *f, const struct qre_sender *from)
{
	switch (*f->raw) {
	case HANDSHAKE_DONE:
	case NEW_TOKEN:
		return from->client ? QRE_PROTOCOL_VIOLATION : 0;
	case RESET_STREAM:
	case STREAM ... STREAM_LAST:
	case STREAM_DATA_BLOCKED: /* on a stream that only we send on */
		return one_way(f->number, !from->client) ? QRE_STREAM_STATE_ERROR : 0;
	case STOP_SENDING:
	case MAX_STREAM_DATA: /* on one that only the sender of this sends on */
		return one_way(f->number, from->client) ? QRE_STREAM_STATE_ERROR : 0;
	case 0x18: /* NEW_CONNECTION_ID */
		return from->gives_cids ? 0 : QRE_PROTOCOL_VIOLATION;
	case RETIRE_CONNECTION_ID:
		return from->takes_cids && f->number <= from->issued ? 0 : QRE_PROTOCOL_VIOLATION;
	}
	return 0;
}

static void add_up(struct qre_content *c, const struct qre_sender *from, const struct qre_frame *f)
{
	switch (f->kind) {
	case QRE_FRAME_PADDING:
		return;
	case QRE_FRAME_ACK:
	case QRE_FRAME_CONNECTION_CLOSE:
		c->only_probing = false;
		return;
	case QRE_FRAME_PATH_CHALLENGE:
		c->challenge = f->path;
		break;
	case QRE_FRAME_PATH_RESPONSE:
	case QRE_FRAME_NEW_CONNECTION_ID:
		break;
	case QRE_FRAME_DATAGRAM:
		c->datagrams = true;
		c->only_probing = false;
		break;
	case QRE_FRAME_DATAGRAM_PART:
		c->datagrams |= from->splits;
		c->unknown += !from->splits;
		c->only_probing = false;
		break;
	case QRE_FRAME_DATAGRAM_UNKNOWN:
		c->unknown++;
		c->only_probing = false;
		break;
	case QRE_FRAME_OTHER:
		c->passed += f->raw_size;
		c->only_probing = false;
		break;
	case QRE_FRAME_PING:
	case QRE_FRAME_HANDSHAKE_DONE:
		c->only_probing = false;
		break;
	}
	c->eliciting = true;
}

void qre_content_read(struct qre_content *c, const struct qre_sender *from, const u8 *payload,
		      size_t size)
{
	const u8 *at = payload;
	struct qre_frame f;
	int more;

	memset(c, 0, sizeof(*c));
	c->only_probing = true;
	if (!size)
		c->error = QRE_PROTOCOL_VIOLATION;
	while (!c->error && (more = qre_frame_read(&at, payload + size, &f))) {
		c->error = more < 0 ? QRE_FRAME_ENCODING_ERROR : misplaced(&f, from);
		if (!c->error)
			add_up(c, from, &f);
	}
}

void qre_content_passed(u8 *out, const u8 *payload, size_t size)
{
	const u8 *at = payload;
	struct qre_frame f;

	while (qre_frame_read(&at, payload + size, &f) > 0) {
		if (f.kind != QRE_FRAME_OTHER)
			continue;
		memcpy(out, f.raw, f.raw_size);
		out += f.raw_size;
	}
}

void qre_ack_begin(struct qre_ack_iter *it, const struct qre_frame *f)
{
	it->at = f->ack.ranges;
	it->end = f->ack.ranges_end;
	it->left = f->ack.more + 1;
	it->next.last = f->ack.largest;
	it->next.first = f->ack.largest - f->ack.first_range;
}

bool qre_ack_next(struct qre_ack_iter *it, struct qre_range *range)
{
	u64 gap, size;

	if (!it->left)
		return false;
	*range = it->next;
	if (--it->left) {
		if (!qre_varint_get(&it->at, it->end, &gap) ||
		    !qre_varint_get(&it->at, it->end, &size)) {
			it->left = 0; /* never: read_ack saw them */
			return true;
		}
		it->next.last = range->first - gap - 2;
		it->next.first = it->next.last - size;
	}
	return true;
}

size_t qre_ack_put(u8 *out, size_t room, const struct qre_range *ranges, unsigned int count,
		   u64 delay, const u64 ecn[3])
{
	u64 largest = ranges[0].last, first_range = ranges[0].last - ranges[0].first;
	size_t fixed, size = 0;
	unsigned int more, i;
	u8 *p = out;

	fixed = 1 + qre_varint_size(largest) + qre_varint_size(delay) +
		qre_varint_size(first_range);
	for (i = 0; ecn && i < 3; i++)
		fixed += qre_varint_size(ecn[i]);
	if (fixed + qre_varint_size(0) > room)
		return 0;
	for (more = 0; more + 1 < count; more++) {
		const struct qre_range *above = &ranges[more], *range = above + 1;

		size += qre_varint_size(above->first - range->last - 2) +
			qre_varint_size(range->last - range->first);
		if (fixed + qre_varint_size(more + 1) + size > room)
			break;
	}

	*p++ = ecn ? 0x03 : 0x02;
	p += qre_varint_put(p, largest);
	p += qre_varint_put(p, delay);
	p += qre_varint_put(p, more);
	p += qre_varint_put(p, first_range);
	for (i = 1; i <= more; i++) {
		p += qre_varint_put(p, ranges[i - 1].first - ranges[i].last - 2);
		p += qre_varint_put(p, ranges[i].last - ranges[i].first);
	}
	for (i = 0; ecn && i < 3; i++)
		p += qre_varint_put(p, ecn[i]);
	return (size_t)(p - out);
}

size_t qre_close_put(u8 *out, u64 error, bool application)
{
	u8 *p = out;

	*p++ = application ? 0x1d : 0x1c;
	p += qre_varint_put(p, error);
	if (!application)
		*p++ = 0; /* frame type */
	*p++ = 0;	  /* length of the reason phrase */
	return (size_t)(p - out);
}

void qre_path_put(u8 *out, bool response, const u8 data[8])
{
	out[0] = response ? 0x1b : 0x1a;
	memcpy(out + 1, data, PATH_DATA_SIZE);
}
