// SPDX-License-Identifier: GPL-2.0-only
/*
 * QUIC frames of 1-RTT packets. The readers below get @at behind the frame's type and return false
 * when the frame is cut short or impossible; where they leave @at then means nothing.
 */
#include "frames.h"

/* Ranges after the first of one ACK frame that are read; nobody has so many gaps. */
#define ACK_RANGES_READ_MAX 512
#define CID_MAX		    20
#define RESET_TOKEN_SIZE    16
#define PATH_DATA_SIZE	    8
/* Of one type: RFC 9000 sections 4.6 and 19.11. */
#define STREAMS_MAX   (1ULL << 60)
#define STREAM_LENGTH 0x02
#define STREAM_OFFSET 0x04

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
	return type == 0x02 || skip_varints(at, end, 3);
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
	f->kind = quarter_stream | context ? QRE_FRAME_DATAGRAM_UNKNOWN : QRE_FRAME_DATAGRAM;
	f->datagram.data = *at;
	f->datagram.size = (size_t)(end - *at);
	*at = end;
	return true;
}

static bool skip_stream(const u8 **at, const u8 *end, u8 type)
{
	u64 offset = 0, size;

	if (!skip_varints(at, end, 1))
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

static bool skip_new_connection_id(const u8 **at, const u8 *end)
{
	u64 sequence, retire_prior_to;
	u8 size;

	if (!qre_varint_get(at, end, &sequence) || !qre_varint_get(at, end, &retire_prior_to))
		return false;
	if (retire_prior_to > sequence || *at == end)
		return false;
	size = *(*at)++;
	return size >= 1 && size <= CID_MAX && skip_bytes(at, end, size + RESET_TOKEN_SIZE);
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
		return skip_new_connection_id(at, end);
	}

	f->kind = QRE_FRAME_OTHER;
	switch (type) {
	case 0x04: /* RESET_STREAM */
		return skip_varints(at, end, 3);
	case 0x05: /* STOP_SENDING */
	case 0x11: /* MAX_STREAM_DATA */
	case 0x15: /* STREAM_DATA_BLOCKED */
		return skip_varints(at, end, 2);
	case 0x10: /* MAX_DATA */
	case 0x14: /* DATA_BLOCKED */
	case 0x19: /* RETIRE_CONNECTION_ID */
		return skip_varints(at, end, 1);
	case 0x06:
		return skip_crypto(at, end);
	case 0x07:
		return skip_new_token(at, end);
	case 0x08 ... 0x0f:
		return skip_stream(at, end, type);
	case 0x12:
	case 0x13:
	case 0x16:
	case 0x17:
		return skip_stream_count(at, end);
	case 0x1e: /* HANDSHAKE_DONE */
		return true;
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
