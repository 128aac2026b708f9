// SPDX-License-Identifier: GPL-2.0-only
/*
 * Receive: QUIC packets of live sessions become inner packets. Decryption writes into a fresh
 * buffer: what was received may be shared with a file's page cache, and GCM writes before it
 * verifies. A buffer and a request a CPU are kept, so that a packet that is not authentic costs no
 * allocation.
 */
#include <crypto/aead.h>
#include <crypto/algapi.h>
#include <linux/scatterlist.h>
#include <net/ip.h>
#include <net/inet_ecn.h>
#include <net/ip_tunnels.h>
#include <net/ipv6.h>
#include <net/udp.h>
#include "compat.h"
#include "session.h"

#define QRE_INTEGRITY_LIMIT (1ULL << 52)
#define QRE_PLAIN_ROOM	    1536 /* of the kept buffer */
/* So that the IP header behind the DATAGRAM head is aligned to four. */
#define QRE_PLAIN_PAD (NET_SKB_PAD + 1)

/* --- requests and buffers, one a CPU kept --- */

static DEFINE_PER_CPU(struct qre_work *, qre_spare_work);
static DEFINE_PER_CPU(struct sk_buff *, qre_spare_skb);
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
	{
		kfree_sensitive(per_cpu(qre_spare_work, cpu));
		kfree_skb(per_cpu(qre_spare_skb, cpu));
	}
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
	}
	return w;
}

void qre_work_give(struct qre_work *w)
{
	w = this_cpu_xchg(qre_spare_work, w);
	if (unlikely(w))
		kfree(w);
}

static struct sk_buff *qre_buffer_take(unsigned int size)
{
	struct sk_buff *skb;

	if (unlikely(size > QRE_PLAIN_ROOM)) {
		skb = alloc_skb(QRE_PLAIN_PAD + size, GFP_ATOMIC);
	} else {
		skb = this_cpu_xchg(qre_spare_skb, NULL);
		if (skb)
			return skb;
		skb = alloc_skb(QRE_PLAIN_PAD + QRE_PLAIN_ROOM, GFP_ATOMIC);
	}
	if (skb)
		skb_reserve(skb, QRE_PLAIN_PAD);
	return skb;
}

static void qre_buffer_give(struct sk_buff *skb)
{
	skb_trim(skb, 0);
	if (skb_tailroom(skb) < QRE_PLAIN_ROOM) {
		kfree_skb(skb);
		return;
	}
	skb = this_cpu_xchg(qre_spare_skb, skb);
	if (unlikely(skb))
		kfree_skb(skb);
}

/* --- inner packets --- */

/* Length and addresses as the header says; a longer buffer is cut. */
static bool qre_inner_valid(struct sk_buff *skb)
{
	unsigned int size;

	skb_reset_network_header(skb);
	if (skb->len < 1)
		return false;
	if (skb->data[0] >> 4 == 4) {
		if (skb->len < sizeof(struct iphdr) || ip_hdr(skb)->ihl < 5)
			return false;
		size = ntohs(ip_hdr(skb)->tot_len);
		if (size < ip_hdr(skb)->ihl * 4U)
			return false;
		skb->protocol = htons(ETH_P_IP);
	} else if (skb->data[0] >> 4 == 6) {
		if (skb->len < sizeof(struct ipv6hdr))
			return false;
		size = ntohs(ipv6_hdr(skb)->payload_len) + sizeof(struct ipv6hdr);
		skb->protocol = htons(ETH_P_IPV6);
	} else {
		return false;
	}
	if (size > skb->len)
		return false;
	skb_trim(skb, size);
	return true;
}

/* RFC 6040 section 4.2. False: to be dropped. */
static bool qre_inner_ecn(struct sk_buff *skb, u8 outer)
{
	u8 inner = skb->protocol == htons(ETH_P_IP) ? ip_hdr(skb)->tos
						    : ipv6_get_dsfield(ipv6_hdr(skb));

	return INET_ECN_decapsulate(skb, outer, inner) <= 1;
}

/* Consumes @skb, whose data is the inner packet. Bottom halves are off, under RCU. */
static void qre_deliver(struct qre_session *s, struct sk_buff *skb, u8 ecn)
{
	struct qre_device *qdev = s->qdev;
	enum qre_drop drop = QRE_DROP_BAD_PACKET;
	bool ipv6;

	if (unlikely(!qre_inner_valid(skb)))
		goto dropped;
	ipv6 = skb->protocol == htons(ETH_P_IPV6);
	drop = QRE_DROP_SOURCE_NOT_ALLOWED;
	if (unlikely(!qre_allowed_ips_owns(
		    qdev->allowed_ips, s,
		    ipv6 ? (void *)&ipv6_hdr(skb)->saddr : (void *)&ip_hdr(skb)->saddr, ipv6)))
		goto dropped;
	drop = QRE_DROP_CONGESTION;
	if (unlikely(!qre_inner_ecn(skb, ecn)))
		goto dropped;
	skb->dev = qdev->dev;
	/* The AEAD verified every byte since the other end, which finished the checksums. */
	skb->ip_summed = CHECKSUM_UNNECESSARY;
	skb->csum_level = ~0;
	qre_count_session(s, true, 1, skb->len);
	gro_cells_receive(&qdev->gro, skb);
	return;
dropped:
	qre_count_drop(qdev, drop, 1);
	kfree_skb(skb);
}

/* --- packets that opened --- */

/* Authentic: consumes w->skb, whose data is the plaintext. Bottom halves are off, under RCU. */
static void qre_opened(struct qre_work *w)
{
	static const u8 head[QRE_DATAGRAM_HEAD] = {0x30, 0, 0};
	struct qre_session *s = w->session;
	struct sk_buff *skb = w->skb;
	struct qre_arrived arrived = {
		.number = w->number,
		.epoch = w->key->epoch,
		.first = w->first,
		.ecn = w->ecn,
		.source = w->source,
		.datagram_size = w->size,
	};
	enum qre_drop drop = QRE_DROP_CLOSING;
	const u8 *inner = NULL;
	size_t inner_size = 0;
	struct qre_outbox out;
	bool plain;

	qre_outbox_init(&out);
	plain = skb->len >= QRE_DATAGRAM_HEAD && !(w->first & 0x18) &&
		!memcmp(skb->data, head, QRE_DATAGRAM_HEAD);
	spin_lock(&s->lock);
	if (unlikely(s->life >= QRE_LIFE_CLOSING))
		goto dropped;
	drop = QRE_DROP_BELOW_BASE;
	if (unlikely(w->number < QRE_PACKET_NUMBER_BASE))
		goto dropped;
	drop = QRE_DROP_REPLAYED;
	arrived.arrival = qre_ackwin_accept(&s->window, w->number);
	if (unlikely(arrived.arrival == QRE_ARRIVAL_REPLAYED))
		goto dropped;
	if (likely(plain)) {
		qre_control_datagram(s, &arrived, &out);
		inner = skb->data + QRE_DATAGRAM_HEAD;
		inner_size = skb->len - QRE_DATAGRAM_HEAD;
	} else {
		qre_control_payload(s, &arrived, skb->data, skb->len, &out, &inner, &inner_size);
	}
	spin_unlock(&s->lock);
	if (unlikely(out.unlink || !skb_queue_empty(&out.packets)))
		qre_outbox_flush(s, &out);
	if (!inner) {
		consume_skb(skb);
		return;
	}
	skb_pull(skb, inner - skb->data);
	skb_trim(skb, inner_size);
	qre_deliver(s, skb, w->ecn);
	return;
dropped:
	spin_unlock(&s->lock);
	qre_count_drop(s->qdev, drop, 1);
	qre_buffer_give(skb);
}

/* Not authentic: a stateless reset (RFC 9000 section 10.3.1), or noise. */
static void qre_not_opened(struct qre_work *w)
{
	struct qre_session *s = w->session;
	u8 token[QRE_RESET_TOKEN_SIZE];
	struct qre_outbox out;

	qre_outbox_init(&out);
	if (s->has_reset_token &&
	    !skb_copy_bits(w->source_skb, w->source_skb->len - sizeof(token), token,
			   sizeof(token)) &&
	    !crypto_memneq(token, s->reset_token, sizeof(token))) {
		spin_lock(&s->lock);
		qre_control_end(s, QRE_LOSS_RESET, 0, &out);
		spin_unlock(&s->lock);
		qre_outbox_flush(s, &out);
		return;
	}
	qre_count_drop(s->qdev, QRE_DROP_DECRYPT_FAILED, 1);
	spin_lock(&s->lock);
	if (++s->failed_opens >= QRE_INTEGRITY_LIMIT)
		qre_control_end(s, QRE_LOSS_LIMIT, 0, &out);
	spin_unlock(&s->lock);
	if (out.unlink)
		qre_outbox_flush(s, &out);
}

static void qre_open_finish(struct qre_work *w, int error)
{
	if (likely(!error)) {
		qre_opened(w);
	} else {
		if (error == -EBADMSG)
			qre_not_opened(w);
		else /* the driver had no room */
			qre_count_drop(w->session->qdev, QRE_DROP_NO_MEMORY, 1);
		qre_buffer_give(w->skb);
	}
	qre_key_put(w->key);
	consume_skb(w->source_skb);
}

static void qre_open_done(QRE_CRYPTO_ARG arg, int error)
{
	struct qre_work *w = QRE_CRYPTO_CONTEXT(arg);
	struct qre_session *s = w->session;

	if (error == -EINPROGRESS)
		return;
	local_bh_disable();
	rcu_read_lock();
	qre_open_finish(w, error);
	rcu_read_unlock();
	local_bh_enable();
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

/* The header of @skb (data at the QUIC packet, pulled) without its protection, into w->head; its
 * size. */
static unsigned int qre_unprotect(struct qre_session *s, struct qre_work *w,
				  const struct sk_buff *skb)
{
	unsigned int at = 1 + s->rx_cid_size, size, i;
	u8 mask[QRE_SAMPLE_SIZE];
	u64 expected;
	u32 truncated = 0;

	qre_hp_mask(s->rx_hp, mask, skb->data + at + QRE_NUMBER_SIZE);
	memcpy(w->head, skb->data, at + QRE_NUMBER_SIZE);
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

/* A short-header packet of this session; @skb's data is the QUIC packet. Consumes it. */
static void qre_receive(struct qre_session *s, struct sk_buff *skb, union qre_peer source, u8 ecn)
{
	enum qre_drop drop = QRE_DROP_MALFORMED;
	unsigned int header, sealed;
	struct qre_outbox out;
	struct qre_work *w;
	int nents, error;

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
	if (unlikely(skb->len < header || !pskb_may_pull(skb, header)))
		goto dropped;
	if (s->client && unlikely(source.word != READ_ONCE(s->peer.word))) {
		drop = QRE_DROP_WRONG_ADDRESS;
		goto dropped;
	}
	drop = QRE_DROP_NO_MEMORY;
	w = qre_work_take(rcu_dereference(s->rx));
	if (unlikely(!w))
		goto dropped;
	header = qre_unprotect(s, w, skb);
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
	w->skb = qre_buffer_take(sealed);
	if (unlikely(!w->skb))
		goto put;
	if (unlikely(skb_has_frag_list(skb) && skb_linearize(skb)))
		goto give_buffer;
	sg_init_table(w->src, skb_shinfo(skb)->nr_frags + 2U);
	sg_set_buf(w->src, w->head, header);
	nents = skb_to_sgvec(skb, w->src + 1, header, sealed);
	if (unlikely(nents < 0))
		goto give_buffer;
	skb_put(w->skb, sealed - QRE_TAG_SIZE);
	sg_init_table(w->dst, 2);
	sg_set_buf(w->dst, w->head, header);
	sg_set_buf(w->dst + 1, w->skb->data, max(sealed - QRE_TAG_SIZE, 1U));
	w->session = s;
	w->source = source;
	w->ecn = ecn;
	w->size = skb->len;
	w->source_skb = skb;
	qre_make_nonce(w->iv, w->key, w->number);
	aead_request_set_tfm(w->request, w->key->aead);
	aead_request_set_callback(w->request, 0, qre_open_done, w);
	aead_request_set_ad(w->request, header);
	aead_request_set_crypt(w->request, w->src, w->dst, sealed, w->iv);
	refcount_inc(&s->refs); /* for an asynchronous driver, which answers when we are gone */
	error = crypto_aead_decrypt(w->request);
	if (error == -EINPROGRESS)
		return;
	qre_open_finish(w, error);
	qre_session_put(s);
	qre_work_give(w);
	return;
give_buffer:
	qre_buffer_give(w->skb);
put:
	qre_key_put(w->key);
give:
	qre_work_give(w);
dropped:
	qre_count_drop(s->qdev, drop, 1);
	kfree_skb(skb);
}

static void qre_count_socket(struct qre_socket *qs, bool passed)
{
	struct qre_socket_stats *stats = this_cpu_ptr(qs->stats);

	u64_stats_update_begin(&stats->syncp);
	u64_stats_inc(passed ? &stats->passed : &stats->rx);
	u64_stats_update_end(&stats->syncp);
}

/*
 * A UDP datagram of a hooked socket, its data at the UDP header. 1: not ours, it goes to the
 * socket's queue, untouched. Called with bottom halves off, under RCU.
 */
int qre_encap_rcv(struct sock *sk, struct sk_buff *skb)
{
	struct qre_socket *qs = qre_socket_of(sk);
	struct qre_session *s;
	union qre_peer source;
	unsigned int pull;
	u8 ecn;

	if (unlikely(!qs))
		return 1;
	pull = sizeof(struct udphdr) + 1 + QRE_CID_MAX;
	pull = min(pull, skb->len);
	if (unlikely(pull <= sizeof(struct udphdr) || !pskb_may_pull(skb, pull)))
		goto pass;
	/* A short header: RFC 9000 section 17.3.1 */
	if ((skb->data[sizeof(struct udphdr)] & 0xc0) != 0x40)
		goto pass;
	s = qre_socket_session(qs, skb->data + sizeof(struct udphdr) + 1,
			       pull - sizeof(struct udphdr) - 1);
	if (!s || !qre_session_get(s))
		goto pass;
	source = (union qre_peer){.ip = ip_hdr(skb)->saddr, .port = udp_hdr(skb)->source};
	ecn = ip_hdr(skb)->tos & INET_ECN_MASK;
	qre_count_socket(qs, false);
	__skb_pull(skb, sizeof(struct udphdr));
	qre_receive(s, skb, source, ecn);
	qre_session_put(s);
	return 0;
pass:
	qre_count_socket(qs, true);
	return 1;
}
