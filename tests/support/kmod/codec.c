// SPDX-License-Identifier: GPL-2.0-only
/*
 * The sources of the module that are built for user space, too, behind a pipe: a request a line on
 * standard input, its answer a line on standard output. "!" says that the input was refused. Bytes
 * are hexadecimal, "-" is none; numbers are decimal. Every input and output lies in an allocation
 * of just its size, so that the address sanitizer sees a single byte too many.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ackpolicy.h"
#include "ackwin.h"
#include "ecn.h"
#include "frames.h"
#include "pathmtu.h"
#include "peercids.h"
#include "tcpopt.h"

static const char *const kinds[] = {
	[QRE_FRAME_PADDING] = "PADDING",
	[QRE_FRAME_PING] = "PING",
	[QRE_FRAME_ACK] = "ACK",
	[QRE_FRAME_DATAGRAM] = "DATAGRAM",
	[QRE_FRAME_DATAGRAM_PART] = "DATAGRAM_PART",
	[QRE_FRAME_DATAGRAM_UNKNOWN] = "DATAGRAM_UNKNOWN",
	[QRE_FRAME_PATH_CHALLENGE] = "PATH_CHALLENGE",
	[QRE_FRAME_PATH_RESPONSE] = "PATH_RESPONSE",
	[QRE_FRAME_CONNECTION_CLOSE] = "CONNECTION_CLOSE",
	[QRE_FRAME_NEW_CONNECTION_ID] = "NEW_CONNECTION_ID",
	[QRE_FRAME_HANDSHAKE_DONE] = "HANDSHAKE_DONE",
	[QRE_FRAME_OTHER] = "OTHER",
};

static char *word(void)
{
	return strtok(NULL, " \n");
}

static u64 number(void)
{
	const char *text = word();

	if (!text)
		exit(3);
	return strtoull(text, NULL, 10);
}

static void *block(size_t size)
{
	void *allocated = malloc(size);

	if (!allocated)
		exit(4);
	return allocated;
}

static u8 *bytes(size_t *size)
{
	const char *text = word();
	unsigned int byte;
	u8 *data;

	if (!text)
		exit(3);
	*size = *text == '-' ? 0 : strlen(text) / 2;
	data = block(*size);
	for (size_t at = 0; at < *size; at++) {
		if (sscanf(text + 2 * at, "%2x", &byte) != 1)
			exit(3);
		data[at] = (u8)byte;
	}
	return data;
}

static void say_bytes(const u8 *data, size_t size)
{
	if (!size)
		printf(" -");
	else
		putchar(' ');
	while (size--)
		printf("%02x", *data++);
}

/* frames BYTES: of each frame its kind, its size, what it holds; then ";". */
static void do_frames(void)
{
	size_t size;
	u8 *data = bytes(&size);
	const u8 *at = data, *before = at;
	struct qre_ack_iter it;
	struct qre_range range;
	struct qre_frame f;
	int read;

	while ((read = qre_frame_read(&at, data + size, &f)) == 1) {
		if (f.raw != before || f.raw + f.raw_size != at)
			exit(5);
		before = at;
		printf("%s %zu", kinds[f.kind], f.raw_size);
		switch (f.kind) {
		case QRE_FRAME_ACK:
			printf(" %" PRIu64 " %d", f.ack.delay, f.ack.counts);
			for (int i = 0; i < 3; i++)
				printf(" %" PRIu64, f.ack.counts ? f.ack.ecn[i] : 0);
			qre_ack_begin(&it, &f);
			while (qre_ack_next(&it, &range))
				printf(" %" PRIu64 " %" PRIu64, range.first, range.last);
			break;
		case QRE_FRAME_DATAGRAM:
		case QRE_FRAME_DATAGRAM_PART:
		case QRE_FRAME_DATAGRAM_UNKNOWN:
			say_bytes(f.datagram.data, f.datagram.size);
			break;
		case QRE_FRAME_PATH_CHALLENGE:
		case QRE_FRAME_PATH_RESPONSE:
			say_bytes(f.path, 8);
			break;
		case QRE_FRAME_CONNECTION_CLOSE:
			printf(" %" PRIu64, f.error);
			break;
		case QRE_FRAME_NEW_CONNECTION_ID:
			printf(" %" PRIu64 " %" PRIu64, f.cid.sequence, f.cid.retire_prior_to);
			break;
		default:
			break;
		}
		putchar(';');
	}
	if (read < 0)
		putchar('!');
	free(data);
}

/*
 * content CLIENT GIVES TAKES SPLITS ISSUED BYTES: the error of the payload, or "0", the last challenge,
 * what is passed, and unknown DATAGRAMs, whether there are known ones, eliciting, probing.
 */
static void do_content(void)
{
	struct qre_sender from = {.client = number()};
	struct qre_content c;
	size_t size;
	u8 *data, *passed;

	from.gives_cids = number();
	from.takes_cids = number();
	from.splits = number();
	from.issued = number();
	data = bytes(&size);
	qre_content_read(&c, &from, data, size);
	printf("%" PRIu64, c.error);
	if (!c.error) {
		passed = block(c.passed);
		qre_content_passed(passed, data, size);
		say_bytes(c.challenge, c.challenge ? 8 : 0);
		say_bytes(passed, c.passed);
		printf(" %u %d %d %d", c.unknown, c.datagrams, c.eliciting, c.only_probing);
		free(passed);
	}
	free(data);
}

/* varint BYTES: its value and its size. */
static void do_varint(void)
{
	size_t size;
	u8 *data = bytes(&size);
	const u8 *at = data;
	u64 value;

	if (qre_varint_get(&at, data + size, &value))
		printf("%" PRIu64 " %td", value, at - data);
	else
		putchar('!');
	free(data);
}

/* put VALUE: the bytes of the varint. */
static void do_put(void)
{
	u64 value = number();
	unsigned int size = qre_varint_size(value);
	u8 *out = block(size);

	if (qre_varint_put(out, value) != size)
		exit(5);
	say_bytes(out, size);
	free(out);
}

/* ack ROOM DELAY ECN ECT0 ECT1 CE COUNT then FIRST LAST of each range: the frame. */
static void do_ack(void)
{
	size_t room = number(), size;
	u64 delay = number(), with_ecn = number();
	u64 ecn[3] = {number(), number(), number()};
	unsigned int count = (unsigned int)number();
	struct qre_range *ranges = block(count * sizeof(*ranges));
	u8 *out = block(room);

	for (unsigned int i = 0; i < count; i++) {
		ranges[i].first = number();
		ranges[i].last = number();
	}
	size = qre_ack_put(out, room, ranges, count, delay, with_ecn ? ecn : NULL);
	if (size > room)
		exit(5);
	say_bytes(out, size);
	free(out);
	free(ranges);
}

/* close ERROR APPLICATION: the frame. */
static void do_close(void)
{
	u8 *out = block(QRE_CLOSE_FRAME_MAX);
	u64 error = number();

	say_bytes(out, qre_close_put(out, error, number()));
	free(out);
}

/* path RESPONSE BYTES: the frame. */
static void do_path(void)
{
	u8 *out = block(QRE_PATH_FRAME_SIZE);
	bool response = number();
	size_t size;
	u8 *data = bytes(&size);

	if (size != 8)
		exit(3);
	qre_path_put(out, response, data);
	say_bytes(out, QRE_PATH_FRAME_SIZE);
	free(data);
	free(out);
}

/* decode EXPECTED TRUNCATED SIZE: the whole number. */
static void do_decode(void)
{
	u64 expected = number();
	u32 truncated = (u32)number();

	printf("%" PRIu64, qre_number_decode(expected, truncated, (unsigned int)number()));
}

/* number-size NUMBER ACKED */
static void do_number_size(void)
{
	u64 of = number();

	printf("%u", qre_number_size(of, number()));
}

/*
 * acks RECEIVED RTT WHAT: WHAT is a letter for each thing that happens, "a" a packet that arrives,
 * "s" an ACK that is sent. After each packet whether an ACK is due, then how long one may wait.
 */
static void do_acks(void)
{
	struct qre_ack_policy policy;
	const char *what;
	u64 rtt;

	qre_ack_policy_init(&policy, number());
	rtt = number();
	for (what = word(); what && *what; what++) {
		if (*what == 'a')
			printf("%d", qre_ack_policy_arrived(&policy));
		else
			qre_ack_policy_sent(&policy);
	}
	printf(" %u", qre_ack_policy_delay(&policy, rtt));
}

/*
 * window BASE MAX COUNT NUMBERS: what became of each number (0, 1, 2), the window's floor, and at
 * most MAX ranges.
 */
static void do_window(void)
{
	struct qre_ackwin *w = block(sizeof(*w));
	struct qre_range *ranges;
	unsigned int max, count;

	qre_ackwin_init(w, number());
	max = (unsigned int)number();
	count = (unsigned int)number();
	while (count--) {
		u64 next = number();
		bool arrived = qre_ackwin_arrived(w, next);
		enum qre_arrival arrival = qre_ackwin_accept(w, next);

		if (arrived != (arrival == QRE_ARRIVAL_REPLAYED) || !qre_ackwin_arrived(w, next))
			exit(5);
		printf("%d", arrival);
	}
	printf(" %" PRIu64, w->floor);
	ranges = block(max * sizeof(*ranges));
	count = qre_ackwin_ranges(w, ranges, max);
	if (count > max)
		exit(5);
	for (unsigned int i = 0; i < count; i++)
		printf(" %" PRIu64 " %" PRIu64, ranges[i].first, ranges[i].last);
	free(ranges);
	free(w);
}

/* mss MOST PARTIAL BYTES: whether it was changed, and the header. */
static void do_mss(void)
{
	u64 most = number(), partial = number();
	size_t size;
	u8 *data = bytes(&size);

	printf("%d", qre_tcp_clamp_mss(data, size, (u16)most, partial));
	say_bytes(data, size);
	free(data);
}

/* divisible BYTES: whether the segment is. */
static void do_divisible(void)
{
	size_t size;
	u8 *data = bytes(&size);

	printf("%d", qre_tcp_divisible(data, size));
	free(data);
}

static struct qre_pathmtu path_mtu;

static void say_path_mtu(enum qre_pathmtu_action action)
{
	const struct qre_pathmtu *p = &path_mtu;

	printf("%d %d %u %u %u %d %d %d %" PRIu64, action, p->state, p->size, p->probed,
	       qre_pathmtu_hope(p), p->quiet, qre_pathmtu_watches(p), qre_pathmtu_listens(p),
	       qre_pathmtu_due(p));
}

/* mtu-new CLIENT BOUND */
static void do_mtu_new(void)
{
	const struct qre_pathmtu_plan *plan = number() ? &qre_pathmtu_client : &qre_pathmtu_server;

	qre_pathmtu_init(&path_mtu, plan, (u16)number());
	say_path_mtu(QRE_PATHMTU_NOTHING);
}

/* mtu-begin NOW RTT */
static void do_mtu_begin(void)
{
	u64 now = number();

	qre_pathmtu_begin(&path_mtu, now, (u32)number());
	say_path_mtu(QRE_PATHMTU_NOTHING);
}

/* mtu-rtt RTT */
static void do_mtu_rtt(void)
{
	qre_pathmtu_rtt(&path_mtu, (u32)number());
	say_path_mtu(QRE_PATHMTU_NOTHING);
}

/* mtu-proven SIZE AGO NOW */
static void do_mtu_proven(void)
{
	u16 size = (u16)number();
	u64 ago = number();

	qre_pathmtu_proven(&path_mtu, size, ago, number());
	say_path_mtu(QRE_PATHMTU_NOTHING);
}

/* mtu-bound BOUND NOW */
static void do_mtu_bound(void)
{
	u16 bound = (u16)number();

	qre_pathmtu_bound(&path_mtu, bound, number());
	say_path_mtu(QRE_PATHMTU_NOTHING);
}

/* mtu-next NOW PTO */
static void do_mtu_next(void)
{
	u64 now = number();

	say_path_mtu(qre_pathmtu_next(&path_mtu, now, number()));
}

/* mtu-sent NUMBER NOW PTO */
static void do_mtu_sent(void)
{
	u64 sent = number(), now = number();

	qre_pathmtu_sent(&path_mtu, sent, now, number());
	say_path_mtu(QRE_PATHMTU_NOTHING);
}

/* mtu-watch NUMBER NOW PTO */
static void do_mtu_watch(void)
{
	u64 sent = number(), now = number();

	qre_pathmtu_watch(&path_mtu, sent, now, number());
	say_path_mtu(QRE_PATHMTU_NOTHING);
}

/* mtu-acked NOW COUNT then FIRST LAST of each range, highest first */
static void do_mtu_acked(void)
{
	u64 now = number(), count = number(), largest = 0;

	for (u64 i = 0; i < count; i++) {
		u64 first = number(), last = number();

		largest = i ? largest : last;
		qre_pathmtu_acked(&path_mtu, first, last, now);
	}
	qre_pathmtu_heard(&path_mtu, largest, now);
	say_path_mtu(QRE_PATHMTU_NOTHING);
}

/* --- marks --- */

static struct qre_ecn marks;

static void say_marks(void)
{
	printf("%d", marks.state);
}

/* ecn-begin CODEPOINT: the state. */
static void do_ecn_begin(void)
{
	qre_ecn_begin(&marks, (u8)number());
	say_marks();
}

/* ecn-mark FIRST COUNT NOW TEST: the state, and what the packets bear. */
static void do_ecn_mark(void)
{
	u64 first = number();
	unsigned int count = (unsigned int)number();
	u64 now = number();
	u8 codepoint = qre_ecn_mark(&marks, first, count, now, number());

	say_marks();
	printf(" %u", codepoint);
}

/* ecn-skip NUMBER: the state. */
static void do_ecn_skip(void)
{
	qre_ecn_skip(&marks, number());
	say_marks();
}

/* The next word: a frame of this kind, which lies in what is returned. */
static u8 *frame(struct qre_frame *f, enum qre_frame_kind kind)
{
	size_t size;
	u8 *data = bytes(&size);
	const u8 *at = data;

	if (qre_frame_read(&at, data + size, f) != 1 || f->kind != kind)
		exit(3);
	return data;
}

/* ecn-acked BEFORE NEXT ACK-FRAME: the state. */
static void do_ecn_acked(void)
{
	u64 before = number(), next = number();
	struct qre_frame f;
	u8 *data = frame(&f, QRE_FRAME_ACK);

	qre_ecn_acked(&marks, &f, before, next);
	say_marks();
	free(data);
}

/* --- connection IDs of the peer --- */

static struct qre_peer_cids cids;

/* Of each that is held, its place, "s" or "u", sequence number and bytes; then what is owed. */
static void say_cids(void)
{
	for (int i = 0; i < QRE_PEER_CIDS; i++) {
		struct qre_peer_cid *one = &cids.held[i];

		if (one->state == QRE_PEER_CID_FREE)
			continue;
		printf(" %d %s %" PRIu64, i, one->state == QRE_PEER_CID_USED ? "used" : "spare",
		       one->sequence);
		say_bytes(one->bytes, one->size);
		say_bytes(one->token, one->has_token ? QRE_PEER_TOKEN : 0);
	}
	printf(";");
	for (unsigned int i = 0; i < cids.owed_count; i++)
		printf(" %" PRIu64, cids.owed[i]);
}

/* cids-new SEQUENCE CID TOKEN: a token of no bytes is none. */
static void do_cids_new(void)
{
	u64 sequence = number();
	size_t size, token_size;
	u8 *cid = bytes(&size), *token = bytes(&token_size);

	qre_peer_cids_init(&cids, cid, (u8)size, sequence, token_size ? token : NULL);
	printf("0");
	say_cids();
	free(cid);
	free(token);
}

/* cids-issued FRAME: the error first. */
static void do_cids_issued(void)
{
	struct qre_frame f;
	u8 *data = frame(&f, QRE_FRAME_NEW_CONNECTION_ID);

	printf("%" PRIu64, qre_peer_cids_issued(&cids, &f));
	say_cids();
	free(data);
}

/* cids-take SIZE: the place first. */
static void do_cids_take(void)
{
	printf("%d", qre_peer_cids_take(&cids, (u8)number()));
	say_cids();
}

/* cids-wanted PLACE: whether the peer wants it back. */
static void do_cids_wanted(void)
{
	printf("%d", qre_peer_cids_wanted_back(&cids, (int)number()));
	say_cids();
}

/* cids-retire PLACE: whether so much may be owed. */
static void do_cids_retire(void)
{
	printf("%d", qre_peer_cids_retire(&cids, (int)number()));
	say_cids();
}

/* cids-pay ROOM: the frames. */
static void do_cids_pay(void)
{
	size_t room = number(), size;
	u8 *out = block(room);

	size = qre_peer_cids_pay(&cids, out, room);
	if (size > room)
		exit(5);
	printf("0");
	say_cids();
	printf(";");
	say_bytes(out, size);
	free(out);
}

static const struct {
	const char *name;
	void (*run)(void);
} requests[] = {
	{"ecn-begin", do_ecn_begin},
	{"ecn-mark", do_ecn_mark},
	{"ecn-skip", do_ecn_skip},
	{"ecn-acked", do_ecn_acked},
	{"cids-new", do_cids_new},
	{"cids-issued", do_cids_issued},
	{"cids-take", do_cids_take},
	{"cids-wanted", do_cids_wanted},
	{"cids-retire", do_cids_retire},
	{"cids-pay", do_cids_pay},
	{"frames", do_frames},
	{"content", do_content},
	{"varint", do_varint},
	{"put", do_put},
	{"ack", do_ack},
	{"close", do_close},
	{"path", do_path},
	{"decode", do_decode},
	{"number-size", do_number_size},
	{"acks", do_acks},
	{"window", do_window},
	{"mss", do_mss},
	{"divisible", do_divisible},
	{"mtu-new", do_mtu_new},
	{"mtu-begin", do_mtu_begin},
	{"mtu-rtt", do_mtu_rtt},
	{"mtu-proven", do_mtu_proven},
	{"mtu-bound", do_mtu_bound},
	{"mtu-next", do_mtu_next},
	{"mtu-sent", do_mtu_sent},
	{"mtu-watch", do_mtu_watch},
	{"mtu-acked", do_mtu_acked},
};

int main(void)
{
	char *line = NULL, *name;
	size_t room = 0, i;

	while (getline(&line, &room, stdin) > 0) {
		name = strtok(line, " \n");
		for (i = 0; name && i < sizeof(requests) / sizeof(*requests); i++) {
			if (!strcmp(name, requests[i].name)) {
				requests[i].run();
				break;
			}
		}
		putchar('\n');
		fflush(stdout);
	}
	free(line);
	return 0;
}
