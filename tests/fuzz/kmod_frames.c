// SPDX-License-Identifier: GPL-2.0-only
/*
 * Any bytes as a payload: frames follow each other without a gap and lie inside it, what they point
 * to lies inside them, an ACK's ranges descend, and what is written of one is read back.
 */
#include "frames.h"
#include "kmod_check.h"

#define RANGES_MAX 513

static void check_inside(const struct qre_frame *f, const u8 *data, size_t size)
{
	check(data > f->raw && size <= (size_t)(f->raw + f->raw_size - data));
}

static unsigned int read_ranges(const struct qre_frame *f, struct qre_range *ranges)
{
	unsigned int count = 0;
	struct qre_ack_iter it;

	qre_ack_begin(&it, f);
	while (qre_ack_next(&it, &ranges[count])) {
		check(ranges[count].first <= ranges[count].last);
		check(!count || ranges[count].last + 1 < ranges[count - 1].first);
		check(++count <= RANGES_MAX);
	}
	check(count == f->ack.more + 1);
	check(ranges[0].last == f->ack.largest && f->ack.largest <= QRE_VARINT_MAX);
	return count;
}

/* With so much room as the frame took, or less: the numbers of the shortest form take no more. */
static void write_ack(const struct qre_frame *f, const struct qre_range *ranges, unsigned int count)
{
	static struct qre_range again[RANGES_MAX + 1];
	const u64 ecn[3] = {0, 1, QRE_VARINT_MAX};
	size_t room = f->raw_size - f->raw_size * (f->ack.delay % 3) / 4;
	bool with_ecn = f->ack.delay & 8;
	u8 *out = malloc(room);
	struct qre_frame g;
	unsigned int told;
	const u8 *at = out;
	size_t size;

	size = qre_ack_put(out, room, ranges, count, f->ack.delay, with_ecn ? ecn : NULL);
	check(size <= room);
	check(size || with_ecn || room < f->raw_size);
	if (size) {
		check(qre_frame_read(&at, out + size, &g) == 1 && g.kind == QRE_FRAME_ACK);
		check(at == out + size && g.ack.delay == f->ack.delay);
		told = read_ranges(&g, again);
		check(told <= count && (told == count || with_ecn || room < f->raw_size));
		check(!memcmp(again, ranges, told * sizeof(*ranges)));
	}
	free(out);
}

static void check_frame(const struct qre_frame *f)
{
	static struct qre_range ranges[RANGES_MAX + 1];
	unsigned int count;

	switch (f->kind) {
	case QRE_FRAME_PADDING:
	case QRE_FRAME_PING:
		for (size_t at = 0; at < f->raw_size; at++)
			check(f->raw[at] == f->raw[0]);
		break;
	case QRE_FRAME_ACK:
		check_inside(f, f->ack.ranges, (size_t)(f->ack.ranges_end - f->ack.ranges));
		count = read_ranges(f, ranges);
		write_ack(f, ranges, count);
		break;
	case QRE_FRAME_DATAGRAM:
	case QRE_FRAME_DATAGRAM_PART:
	case QRE_FRAME_DATAGRAM_UNKNOWN:
		check_inside(f, f->datagram.data, f->datagram.size);
		check(f->datagram.data + f->datagram.size == f->raw + f->raw_size);
		break;
	case QRE_FRAME_PATH_CHALLENGE:
	case QRE_FRAME_PATH_RESPONSE:
		check(f->raw_size == QRE_PATH_FRAME_SIZE);
		check_inside(f, f->path, 8);
		break;
	case QRE_FRAME_CONNECTION_CLOSE:
		check(f->error <= QRE_VARINT_MAX);
		break;
	case QRE_FRAME_NEW_CONNECTION_ID:
		check_inside(f, f->cid.bytes, f->cid.size + 16U);
		check(f->cid.size && f->cid.size <= 20);
		check(f->cid.retire_prior_to <= f->cid.sequence);
		break;
	case QRE_FRAME_HANDSHAKE_DONE:
	case QRE_FRAME_OTHER:
		break;
	}
}

/* What a payload adds up to lies in it, and its frames for user space are whole frames. */
static void check_content(const u8 *data, size_t size, bool whole)
{
	const struct qre_sender from = {
		.client = size & 1,
		.gives_cids = size & 2,
		.takes_cids = size & 4,
		.splits = size & 16,
		.issued = size & 8 ? QRE_VARINT_MAX : 1,
	};
	struct qre_content c;
	struct qre_frame f;
	const u8 *at;
	u8 *passed;

	qre_content_read(&c, &from, data, size);
	check(c.error || (whole && size));
	if (c.error)
		return;
	check(!c.challenge || (c.challenge > data && c.challenge + 8 <= data + size));
	check(c.passed <= size);
	passed = malloc(c.passed);
	qre_content_passed(passed, data, size);
	at = passed;
	while (at != passed + c.passed)
		check(qre_frame_read(&at, passed + c.passed, &f) == 1 && f.kind == QRE_FRAME_OTHER);
	free(passed);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	const u8 *at = data, *before = data;
	struct qre_frame f;
	int read;

	while ((read = qre_frame_read(&at, data + size, &f)) == 1) {
		check(f.raw == before && f.raw_size && f.raw + f.raw_size == at);
		check(at <= data + size);
		check_frame(&f);
		before = at;
	}
	if (read == 0)
		check(at == data + size);
	check_content(data, size, read == 0);
	return 0;
}
