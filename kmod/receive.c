// SPDX-License-Identifier: GPL-2.0-only
/*
 * Receive: QUIC packets of live sessions become inner packets. Decryption writes into a fresh
 * buffer: what was received may be shared with a file's page cache, and GCM writes before it
 * verifies. A request a CPU is kept, and what was written is given back, so that a packet that is
 * not authentic costs no allocation.
 */
#include <crypto/aead.h>
#include <crypto/algapi.h>
#include <linux/scatterlist.h>
#include <net/ip.h>
#include <net/dsfield.h>
#include <net/inet_ecn.h>
#include <net/ip_tunnels.h>
#include <net/ipv6.h>
#include <net/udp.h>
#include "allowedips.h"
#include "compat.h"
#include "control.h"
#include "device.h"
#include "gro.h"
#include "inner.h"
#include "joiner.h"
#include "key.h"
#include "namespace.h"
#include "pages.h"
#include "receive.h"
#include "session.h"
#include "socket.h"
#include "strays.h"

#define QRE_INTEGRITY_LIMIT (1ULL << 52)
#define QRE_RESET_SIZE	    21 /* of the shortest stateless reset: RFC 9000 section 10.3 */
/* Of a packet: what its session is found by and its header is read with. */
#define QRE_BEGINNING (QRE_HEADER_MAX + QRE_SAMPLE_SIZE)
#define QRE_COPIED    256 /* a smaller packet must not keep a large page */
/* So that the IP header behind the DATAGRAM head is aligned to four. */
#define QRE_PLAIN_PAD (NET_SKB_PAD + 1)

/* --- requests, one a CPU kept --- */

static DEFINE_PER_CPU(struct qre_work *, qre_spare_work);
static unsigned int qre_request_size;

int qre_work_init(void)
{
	struct crypto_aead *aead = crypto_alloc_aead("gcm(aes)", 0, 0);

	if (IS_ERR(aead))
		return PTR_ERR(aead);
	/* Of whatever driver is picked now or later: the best is chosen first, others ask for less
	 * or fail. */
	qre_request_size = sizeof(struct aead_request) + crypto_aead_reqsize(aead) + 256;
	crypto_free_aead(aead);
	return 0;
}

void qre_work_exit(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		kfree_sensitive(per_cpu(qre_spare_work, cpu));
}

struct qre_work *qre_work_take(struct qre_key *key)
{
	struct qre_work *w = this_cpu_xchg(qre_spare_work, NULL);

	if (sizeof(struct aead_request) + crypto_aead_reqsize(key->aead) > qre_request_size) {
		if (w)
			qre_work_give(w);
		return NULL;
	}
	if (!w) {
		w = kmalloc(ALIGN(sizeof(*w), CRYPTO_MINALIGN) + qre_request_size, GFP_ATOMIC);
		if (!w)
			return NULL;
		w->request = (void *)w + ALIGN(sizeof(*w), CRYPTO_MINALIGN);
		sg_init_table(w->src, ARRAY_SIZE(w->src));
		sg_init_table(w->opened, ARRAY_SIZE(w->opened));
		sg_init_table(w->sealed, ARRAY_SIZE(w->sealed));
		w->src_end = ARRAY_SIZE(w->src) - 1;
	}
	return w;
}

void qre_work_give(struct qre_work *w)
{
	w = this_cpu_xchg(qre_spare_work, w);
	if (unlikely(w))
		kfree(w);
}

/* --- ciphertext --- */

/* What lies in @skb from @at on, if it is in one piece, as of most packets. */
static const u8 *qre_in_one_piece(const struct sk_buff *skb, unsigned int at)
{
	const skb_frag_t *frag = skb_shinfo(skb)->frags;

	if (skb_headlen(skb) == skb->len)
		return skb->data + at;
	if (skb_headlen(skb) != at || skb_shinfo(skb)->nr_frags != 1 ||
	    skb_frag_size(frag) != skb->len - at)
		return NULL;
	return skb_frag_address(frag);
}

/* The beginning of a UDP datagram's content: nothing is pulled, as what arrived in pages would be
 * copied to a new head. */
static bool qre_read_beginning(const struct sk_buff *skb, u8 beginning[QRE_BEGINNING],
			       unsigned int size)
{
	const u8 *content = qre_in_one_piece(skb, sizeof(struct udphdr));

	if (unlikely(!content || size < QRE_BEGINNING))
		return !skb_copy_bits(skb, sizeof(struct udphdr), beginning, size);
	memcpy(beginning, content, QRE_BEGINNING);
	return true;
}

/* w->src: @size bytes of w->head, then @rest. */
static void qre_source_flat(struct qre_work *w, unsigned int size, const u8 *rest,
			    unsigned int rest_size)
{
	sg_unmark_end(w->src + w->src_end);
	sg_set_buf(w->src, w->head, size);
	sg_set_buf(w->src + 1, rest, rest_size);
	sg_mark_end(w->src + 1);
	w->src_end = 1;
}

/* The same, and what lies in @skb from @at on; false: that is too many pieces. */
static bool qre_source(struct qre_work *w, unsigned int size, struct sk_buff *skb, unsigned int at,
		       unsigned int rest)
{
	int nents;

	sg_unmark_end(w->src + w->src_end);
	sg_set_buf(w->src, w->head, size);
	nents = skb_to_sgvec(skb, w->src + 1, at, rest);
	if (unlikely(nents < 0)) {
		sg_init_table(w->src, ARRAY_SIZE(w->src));
		w->src_end = ARRAY_SIZE(w->src) - 1;
		return false;
	}
	w->src_end = nents;
	sg_mark_end(w->src + nents);
	return true;
}

/* --- plaintext --- */

/* Room for @size bytes, which become an skb's without being copied. */
static bool qre_plain_take(struct qre_work *w, unsigned int size)
{
	w->piece_size = SKB_DATA_ALIGN(QRE_PLAIN_PAD + size) +
			SKB_DATA_ALIGN(sizeof(struct skb_shared_info));
	w->pool = size <= QRE_COPIED ? QRE_SMALL : QRE_PLAINTEXT;
	w->piece = qre_piece_take(w->pool, w->piece_size, &w->page);
	return w->piece;
}

static void qre_plain_give(struct qre_work *w)
{
	qre_piece_give(w->pool, w->piece, w->piece_size, w->page);
}

static struct sk_buff *qre_plain_copy(const u8 *at, unsigned int size)
{
	struct sk_buff *skb = qre_inner_room(size);

	if (skb)
		skb_put_data(skb, at, size);
	return skb;
}

/* An skb of @size bytes @at in the plaintext, which is consumed; NULL: no memory. */
static struct sk_buff *qre_plain_skb(struct qre_work *w, const u8 *at, unsigned int size)
{
	struct sk_buff *skb;

	if (size <= QRE_COPIED && w->pool != QRE_SMALL) {
		skb = qre_plain_copy(at, size);
		qre_plain_give(w);
		return skb;
	}
	skb = napi_build_skb(w->piece, w->piece_size);
	if (!skb) {
		qre_plain_give(w);
		return NULL;
	}
	skb_reserve(skb, at - w->piece);
	skb_put(skb, size);
	return skb;
}

/* --- inner packets --- */

struct qre_inner_packet {
	const u8 *at;
	unsigned int size; /* as its header says: bytes behind that do not belong to it */
	unsigned int transport;
	u8 ecn;
	bool ipv6;
	bool joined; /* nothing but its checksum tells that both parts belong together */
};

/* Lengths as the header at @at says, of @room bytes at most. It is read byte by byte: it need not
 * be aligned. */
static bool qre_inner_valid(struct qre_inner_packet *p, const u8 *at, unsigned int room)
{
	unsigned int least;

	p->at = at;
	p->joined = false;
	p->ipv6 = room && at[0] >> 4 == 6;
	least = p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (room < least || (!p->ipv6 && at[0] >> 4 != 4))
		return false;
	if (p->ipv6) {
		p->size = (at[4] << 8 | at[5]) + least;
		p->ecn = at[1] >> 4 & INET_ECN_MASK;
		p->transport = least;
	} else {
		p->size = at[2] << 8 | at[3];
		p->ecn = at[1] & INET_ECN_MASK;
		p->transport = (at[0] & 0x0f) * 4;
	}
	return p->transport >= least && p->transport <= p->size && p->size <= room;
}

/* Found out before anything is allocated: some sixty packets may lie in one. */
static enum qre_drop qre_inner_check(struct qre_work *w, struct qre_inner_packet *p, const u8 *at,
				     unsigned int room, u8 ecn)
{
	if (unlikely(!qre_inner_valid(p, at, room)))
		return QRE_DROP_BAD_PACKET;
	if (unlikely(!qre_allowed_ips_owns(w->session->qdev->allowed_ips, w->session,
					   at + (p->ipv6 ? offsetof(struct ipv6hdr, saddr)
							 : offsetof(struct iphdr, saddr)),
					   p->ipv6)))
		return QRE_DROP_SOURCE_NOT_ALLOWED;
	/* RFC 6040 section 4.2 */
	if (unlikely(ecn == INET_ECN_CE && p->ecn == INET_ECN_NOT_ECT))
		return QRE_DROP_CONGESTION;
	return QRE_DROP_UNSPEC;
}

/*
 * Consumes @skb, whose data is the inner packet; NULL: there was no memory for it. Bottom halves
 * are off, under RCU. Whoever meets it (GRO, tc, XDP, packet sockets, another device that it is
 * sent to) finds every header where it is on a device without a link-layer header; what else an skb
 * can bear is a new one's.
 */
static void qre_deliver(struct qre_session *s, struct sk_buff *skb,
			const struct qre_inner_packet *p, u8 ecn)
{
	struct qre_device *qdev = s->qdev;

	if (unlikely(!skb)) {
		qre_count_drop(qdev, QRE_DROP_NO_MEMORY, 1);
		return;
	}
	skb->dev = qdev->dev;
	skb->protocol = p->ipv6 ? htons(ETH_P_IPV6) : htons(ETH_P_IP);
	skb_reset_mac_header(skb);
	skb_reset_network_header(skb);
	skb_set_transport_header(skb, p->transport);
	INET_ECN_decapsulate(skb, ecn, p->ecn);
	/* The AEAD verified every byte since the other end, which finished the checksums. */
	skb->ip_summed = unlikely(p->joined) ? CHECKSUM_NONE : CHECKSUM_UNNECESSARY;
	skb->csum_level = ~0;
	if (p->ipv6 ? ipv6_hdr(skb)->nexthdr == IPPROTO_TCP : ip_hdr(skb)->protocol == IPPROTO_TCP)
		qre_clamp_mss(s, skb, p->ipv6);
	qre_count_session(s, true, 1, skb->len);
	qre_gro_receive(qdev->gro, skb);
}

/* Consumes the plaintext, with an inner packet @at in it. */
static void qre_deliver_last(struct qre_work *w, const u8 *at, unsigned int size)
{
	struct qre_inner_packet packet;
	enum qre_drop drop = qre_inner_check(w, &packet, at, size, w->ecn);

	if (likely(drop == QRE_DROP_UNSPEC)) {
		qre_deliver(w->session, qre_plain_skb(w, at, packet.size), &packet, w->ecn);
		return;
	}
	qre_count_drop(w->session->qdev, drop, 1);
	qre_plain_give(w);
}

/* A part of a packet: delivers the packet if it is whole now. */
static void qre_deliver_part(struct qre_work *w, const u8 *at, size_t size)
{
	struct qre_device *qdev = w->session->qdev;
	u8 ecn = w->ecn;
	struct sk_buff *skb = qre_join(w->session->joiner, qdev, at, size, &ecn);
	struct qre_inner_packet packet;
	enum qre_drop drop;

	if (!skb)
		return;
	drop = qre_inner_check(w, &packet, skb->data, skb->len, ecn);
	packet.joined = true;
	if (unlikely(drop != QRE_DROP_UNSPEC)) {
		qre_count_drop(qdev, drop, 1);
		kfree_skb(skb);
		return;
	}
	skb_trim(skb, packet.size);
	qre_deliver(w->session, skb, &packet, ecn);
}

/* Consumes the plaintext, whose frames were found to be whole; some are DATAGRAMs. */
static void qre_deliver_all(struct qre_work *w, const u8 *payload, size_t size)
{
	const u8 *at = payload, *last = NULL;
	struct qre_inner_packet packet;
	unsigned int last_size = 0;
	enum qre_drop drop;
	struct qre_frame f;

	while (qre_frame_read(&at, payload + size, &f) > 0) {
		if (f.kind == QRE_FRAME_DATAGRAM_PART && w->session->joiner)
			qre_deliver_part(w, f.datagram.data, f.datagram.size);
		if (f.kind != QRE_FRAME_DATAGRAM)
			continue;
		if (last) {
			drop = qre_inner_check(w, &packet, last, last_size, w->ecn);
			if (drop == QRE_DROP_UNSPEC)
				qre_deliver(w->session, qre_plain_copy(last, packet.size), &packet,
					    w->ecn);
			else
				qre_count_drop(w->session->qdev, drop, 1);
		}
		last = f.datagram.data;
		last_size = f.datagram.size;
	}
	if (last)
		qre_deliver_last(w, last, last_size);
	else
		qre_plain_give(w);
}

/* --- packets that opened --- */

/* Authentic: consumes the plaintext. Bottom halves are off, under RCU. */
static void qre_opened(struct qre_work *w)
{
	static const u8 head[QRE_DATAGRAM_HEAD] = {0x30, 0, 0};
	struct qre_session *s = w->session;
	const u8 *payload = w->piece + QRE_PLAIN_PAD;
	size_t size = w->plain_size;
	struct qre_arrived arrived = {
		.number = w->number,
		.epoch = w->key->epoch,
		.first = w->first,
		.ecn = w->ecn,
		.source = w->source,
		.datagram = w->source_skb,
		.datagram_size = w->size,
	};
	enum qre_drop drop = QRE_DROP_CLOSING;
	bool plain, datagrams = true;
	struct qre_content content;
	struct qre_outbox out;

	qre_outbox_init(&out);
	plain = size >= QRE_DATAGRAM_HEAD && !(w->first & 0x18) &&
		!memcmp(payload, head, QRE_DATAGRAM_HEAD);
	spin_lock(&s->lock);
	if (unlikely(s->life >= QRE_LIFE_CLOSING))
		goto dropped;
	drop = QRE_DROP_BELOW_BASE;
	if (unlikely(w->number < QRE_PACKET_NUMBER_BASE))
		goto dropped;
	if (unlikely(!plain) && !qre_ackwin_arrived(&s->window, w->number)) {
		drop = qre_control_look(s, payload, size, &content);
		if (unlikely(drop != QRE_DROP_UNSPEC))
			goto dropped;
	}
	drop = QRE_DROP_REPLAYED;
	arrived.arrival = qre_ackwin_accept(&s->window, w->number);
	if (unlikely(arrived.arrival == QRE_ARRIVAL_REPLAYED))
		goto dropped;
	if (likely(plain))
		qre_control_datagram(s, &arrived, &out);
	else
		datagrams = qre_control_payload(s, &arrived, &content, payload, size, &out);
	spin_unlock(&s->lock);
	if (unlikely(out.unlink || !skb_queue_empty(&out.packets)))
		qre_outbox_flush(s, &out);
	if (likely(plain))
		qre_deliver_last(w, payload + QRE_DATAGRAM_HEAD, size - QRE_DATAGRAM_HEAD);
	else if (datagrams)
		qre_deliver_all(w, payload, size);
	else
		qre_plain_give(w);
	return;
dropped:
	spin_unlock(&s->lock);
	qre_count_drop(s->qdev, drop, 1);
	qre_plain_give(w);
}

/*
 * Whether it is a stateless reset, which ends the session (RFC 9000 section 10.3.1): asked of every
 * datagram from the peer that cannot be read, whatever the reason: a reset has any length, and its
 * first bytes are random.
 */
static bool qre_reset_by(struct qre_session *s, const struct sk_buff *skb,
			 const struct qre_address *source)
{
	u8 token[QRE_RESET_TOKEN_SIZE];
	struct qre_outbox out;
	bool reset;

	if (likely(!READ_ONCE(s->has_reset_token)) || skb->len < QRE_RESET_SIZE ||
	    !qre_session_at(s, source) ||
	    skb_copy_bits(skb, skb->len - sizeof(token), token, sizeof(token)))
		return false;
	qre_outbox_init(&out);
	spin_lock(&s->lock);
	reset = qre_is_reset_token(s, token);
	if (reset)
		qre_control_end(s, QRE_LOSS_RESET, 0, &out);
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	return reset;
}

/* What cannot be read is dropped and counted, unless it is passed on as a stranger's: true. */
static bool qre_unreadable(struct qre_session *s, bool stray, enum qre_drop why)
{
	if (stray && qre_stray_passes(s))
		return true;
	qre_count_drop(s->qdev, stray ? QRE_DROP_STRAY : why, 1);
	return false;
}

/* Not authentic: a stateless reset, noise, or a stranger's, which is passed on: true. */
static bool qre_not_opened(struct qre_work *w)
{
	struct qre_session *s = w->session;
	struct qre_outbox out;

	if (qre_reset_by(s, w->source_skb, &w->source))
		return false;
	qre_outbox_init(&out);
	spin_lock(&s->lock);
	if (++s->failed_opens >= QRE_INTEGRITY_LIMIT)
		qre_control_end(s, QRE_LOSS_LIMIT, 0, &out);
	spin_unlock(&s->lock);
	if (out.unlink)
		qre_outbox_flush(s, &out);
	return qre_unreadable(s, w->stray_from, QRE_DROP_DECRYPT_FAILED);
}

/* Consumes w->source_skb, unless it is a stranger's: true. */
static bool qre_open_finish(struct qre_work *w, int error)
{
	bool stray = false;

	if (likely(!error)) {
		qre_opened(w);
	} else {
		if (error == -EBADMSG)
			stray = qre_not_opened(w);
		else /* the driver had no room */
			qre_count_drop(w->session->qdev, QRE_DROP_NO_MEMORY, 1);
		qre_plain_give(w);
	}
	qre_key_put(w->key);
	if (likely(!stray))
		napi_consume_skb(w->source_skb, 1);
	return stray;
}

static void qre_open_done(QRE_CRYPTO_ARG arg, int error)
{
	struct qre_work *w = QRE_CRYPTO_CONTEXT(arg);
	struct qre_session *s = w->session;

	if (error == -EINPROGRESS)
		return;
	local_bh_disable();
	rcu_read_lock();
	if (qre_open_finish(w, error))
		qre_stray_return(w->source_skb);
	rcu_read_unlock();
	local_bh_enable();
	dev_put(w->stray_from);
	qre_session_put(s);
	kfree(w);
}

/* --- packets that arrive --- */

/* The receive keys for a packet with this phase bit and number; NULL: there are none. RFC 9001
 * section 6.3 */
static struct qre_key *qre_choose_key(struct qre_session *s, u8 first, u64 number)
{
	struct qre_key *current_key = rcu_dereference(s->rx), *key;
	u64 first_received;

	if (!(first & 0x04) == !(current_key->epoch & 1))
		return qre_key_get(current_key);
	first_received = READ_ONCE(s->first_received);
	key = rcu_dereference(s->rx_previous);
	if (key) {
		if (number >= first_received)
			return NULL;
	} else {
		key = rcu_dereference(s->rx_next);
		if (!key || (first_received != QRE_NO_NUMBER && number <= first_received))
			return NULL;
	}
	return qre_key_get(key);
}

/* The header that begins a packet, without its protection, into w->head; its size. */
static unsigned int qre_unprotect(struct qre_session *s, struct qre_work *w,
				  const u8 beginning[QRE_BEGINNING])
{
	unsigned int at = 1 + s->rx_cid_size, size, i;
	u8 mask[QRE_SAMPLE_SIZE];
	u64 expected;
	u32 truncated = 0;

	memcpy(w->head, beginning, QRE_BEGINNING);
	qre_hp_mask(s->rx_hp, mask, w->head + at + QRE_NUMBER_SIZE);
	w->head[0] ^= mask[0] & 0x1f;
	w->first = w->head[0];
	size = (w->first & 0x03) + 1;
	for (i = 0; i < size; i++) {
		w->head[at + i] ^= mask[1 + i];
		truncated = truncated << 8 | w->head[at + i];
	}
	expected = READ_ONCE(s->window.any) ? READ_ONCE(s->window.highest) + 1
					    : QRE_PACKET_NUMBER_BASE;
	w->number = qre_number_decode(expected, truncated, size);
	return at + size;
}

/* Of a packet that came in IP fragments: its copy, opened where it lies. */
static bool qre_gather(struct qre_work *w, unsigned int header, struct sk_buff *skb,
		       unsigned int sealed)
{
	u8 *copy = w->piece + QRE_PLAIN_PAD;

	qre_source_flat(w, header, copy, sealed);
	return !skb_copy_bits(skb, header, copy, sealed);
}

/* By the processor, in what qre_key_begin began: a packet in one piece is opened from where it
 * lies, any other is copied to where it is opened. */
static int qre_open_directly(struct qre_work *w, unsigned int header, struct sk_buff *skb,
			     unsigned int sealed)
{
	const u8 *packet = qre_in_one_piece(skb, 0);
	u8 *to = w->piece + QRE_PLAIN_PAD;

	if (likely(packet))
		packet += header;
	else if (skb_copy_bits(skb, header, to, sealed))
		return -EFAULT;
	else
		packet = to;
	return qre_gcm_open(&w->key->gcm, w->iv, w->head, header, packet, w->plain_size, to)
		       ? 0
		       : -EBADMSG;
}

/* By the crypto layer; -EINPROGRESS: qre_open_done will be called. */
static int qre_open_by_request(struct qre_work *w, unsigned int header, struct sk_buff *skb,
			       unsigned int sealed)
{
	if (unlikely(skb_has_frag_list(skb) ? !qre_gather(w, header, skb, sealed)
					    : !qre_source(w, header, skb, header, sealed)))
		return -EFAULT;
	sg_set_buf(w->opened, w->head, header);
	sg_set_buf(w->opened + 1, w->piece + QRE_PLAIN_PAD, max(w->plain_size, 1U));
	aead_request_set_tfm(w->request, w->key->aead);
	aead_request_set_callback(w->request, 0, qre_open_done, w);
	aead_request_set_ad(w->request, header);
	aead_request_set_crypt(w->request, w->src, w->opened, sealed, w->iv);
	return crypto_aead_decrypt(w->request);
}

static int qre_open(struct qre_work *w, unsigned int header, struct sk_buff *skb,
		    unsigned int sealed)
{
	int error;

	qre_make_nonce(w->iv, w->key, w->number);
	if (unlikely(!qre_key_begin(w->key)))
		return qre_open_by_request(w, header, skb, sealed);
	error = qre_open_directly(w, header, skb, sealed);
	qre_direct_end();
	return error;
}

/*
 * A short-header packet with a connection ID of this session; @skb's data is the QUIC packet, and
 * this its beginning. Consumes it, unless it is a stranger's (it @may be), which is left as it was:
 * true; and the reference on the session.
 */
static bool qre_receive(struct qre_session *s, struct sk_buff *skb,
			const u8 beginning[QRE_BEGINNING], const struct qre_address *source, u8 ecn,
			bool may)
{
	enum qre_drop drop = QRE_DROP_MALFORMED;
	unsigned int header, sealed;
	struct qre_outbox out;
	struct qre_work *w;
	bool stray = false;
	int error;

	if (unlikely(READ_ONCE(s->life) >= QRE_LIFE_CLOSING)) {
		qre_outbox_init(&out);
		spin_lock(&s->lock);
		qre_control_closing(s, &out);
		spin_unlock(&s->lock);
		qre_outbox_flush(s, &out);
		drop = QRE_DROP_CLOSING;
		goto dropped;
	}
	header = 1 + s->rx_cid_size + QRE_NUMBER_SIZE + QRE_SAMPLE_SIZE;
	if (unlikely(skb->len < header || skb->len > QRE_UDP_PAYLOAD_MAX))
		goto dropped;
	if (s->client && unlikely(!qre_session_at(s, source))) {
		drop = QRE_DROP_WRONG_ADDRESS;
		goto dropped;
	}
	drop = QRE_DROP_NO_MEMORY;
	w = qre_work_take(rcu_dereference(s->rx));
	if (unlikely(!w))
		goto dropped;
	header = qre_unprotect(s, w, beginning);
	w->key = qre_choose_key(s, w->first, w->number);
	if (unlikely(!w->key)) {
		drop = QRE_DROP_NO_KEYS;
		goto give;
	}
	sealed = skb->len - header;
	if (unlikely(sealed < QRE_TAG_SIZE)) { /* shorter numbers than the sample allows for */
		drop = QRE_DROP_MALFORMED;
		goto put;
	}
	w->plain_size = sealed - QRE_TAG_SIZE;
	if (unlikely(!qre_plain_take(w, sealed)))
		goto put;
	w->session = s;
	w->source = *source;
	w->ecn = ecn;
	w->size = skb->len;
	w->source_skb = skb;
	w->stray_from = NULL;
	if (unlikely(may)) { /* for an asynchronous driver */
		w->stray_from = skb->dev;
		dev_hold(w->stray_from);
		skb_dst_force(skb);
	}
	error = qre_open(w, header, skb, sealed);
	if (error == -EINPROGRESS) /* an asynchronous driver: it has the references */
		return false;
	stray = qre_open_finish(w, error);
	dev_put(w->stray_from);
	qre_session_put(s);
	qre_work_give(w);
	return stray;
put:
	qre_key_put(w->key);
give:
	qre_work_give(w);
dropped:
	if (drop != QRE_DROP_MALFORMED && drop != QRE_DROP_NO_KEYS)
		qre_count_drop(s->qdev, drop, 1);
	else if (!qre_reset_by(s, skb, source))
		stray = qre_unreadable(s, may, drop);
	if (!stray)
		kfree_skb(skb);
	qre_session_put(s);
	return stray;
}

static void qre_count_socket(struct qre_socket *qs, bool passed)
{
	struct qre_socket_stats *stats = this_cpu_ptr(qs->stats);

	u64_stats_update_begin(&stats->syncp);
	u64_stats_inc(passed ? &stats->passed : &stats->rx);
	u64_stats_update_end(&stats->syncp);
}

/* A reset bears no connection ID of ours: it may be the client's that speaks from this socket. What
 * it ended stays ended if the datagram goes to the socket's queue besides. */
static void qre_reset_elsewhere(struct qre_socket *qs, struct sk_buff *skb,
				const struct qre_address *source)
{
	struct qre_session *client = rcu_dereference(qs->client);

	if (!client || !READ_ONCE(client->has_reset_token) || !qre_session_get(client))
		return;
	__skb_pull(skb, sizeof(struct udphdr));
	qre_reset_by(client, skb, source);
	__skb_push(skb, sizeof(struct udphdr));
	qre_session_put(client);
}

/*
 * A UDP datagram of a hooked socket, its data at the UDP header. 1: not ours, it goes to the
 * socket's queue, untouched. Called with bottom halves off, under RCU.
 */
int qre_encap_rcv(struct sock *sk, struct sk_buff *skb)
{
	struct qre_socket *qs = qre_socket_of(sk);
	struct qre_session *s;
	struct qre_address source;
	u8 beginning[QRE_BEGINNING];
	unsigned int size;
	u8 ecn;

	if (unlikely(!qs))
		return 1;
	if (unlikely(qre_stray_returns(skb)))
		goto pass;
	if (unlikely(skb->len <= sizeof(struct udphdr) ||
		     !udp_hdr(skb)->source)) /* nobody can be answered there */
		goto pass;
	size = min_t(unsigned int, sizeof(beginning), skb->len - sizeof(struct udphdr));
	if (unlikely(!qre_read_beginning(skb, beginning, size)))
		goto pass;
	/* A short header: RFC 9000 section 17.3.1 */
	if ((beginning[0] & 0xc0) != 0x40)
		goto pass;
	source = qre_address_from(skb);
	s = qre_socket_session(qs, beginning + 1, size - 1);
	if (unlikely(!s)) {
		qre_reset_elsewhere(qs, skb, &source);
		goto pass;
	}
	if (!qre_session_get(s))
		goto pass;
	ecn = source.family == AF_INET6 ? ipv6_get_dsfield(ipv6_hdr(skb)) : ip_hdr(skb)->tos;
	ecn &= INET_ECN_MASK;
	__skb_pull(skb, sizeof(struct udphdr));
	if (unlikely(qre_receive(s, skb, beginning, &source, ecn,
				 qre_stray_possible(s, qs, &source)))) {
		__skb_push(skb, sizeof(struct udphdr));
		goto pass;
	}
	qre_count_socket(qs, false);
	return 0;
pass:
	qre_count_socket(qs, true);
	return 1;
}
