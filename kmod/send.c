// SPDX-License-Identifier: GPL-2.0-only
/*
 * Transmit: inner packets become QUIC packets. Each segment is copied once, behind its header into
 * a page of ours, its checksum finished on the way, and encrypted there: what a transmitted skb
 * refers to is TCP's retransmit queue, or the page cache of a file, and the cipher is slower over
 * many pieces than over one. Packets of equal size leave as one UDP-GSO packet.
 */
#include <crypto/aead.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/scatterlist.h>
#include <linux/tcp.h>
#include <net/icmp.h>
#include <net/inet_ecn.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include <net/udp.h>
#include "allowedips.h"
#include "compat.h"
#include "control.h"
#include "device.h"
#include "events.h"
#include "inner.h"
#include "key.h"
#include "mtu.h"
#include "namespace.h"
#include "pages.h"
#include "receive.h"
#include "send.h"
#include "session.h"
#include "socket.h"
#include "underlay.h"

#define QRE_GSO_MAX_BYTES 65000 /* of one outer super-packet, below IP's 65535 */
/* What most devices put before the headers of IP and UDP: others make more room. */
#define QRE_DEVICE_ROOM 64

/* --- numbers --- */

/* What the profile wants. A site whose packets were seen marked CE sends ECT(0), or they could not
 * have been. */
static u8 qre_codepoint(const struct qre_session *s)
{
	u8 wanted = READ_ONCE(s->qdev->ecn);

	return wanted == INET_ECN_CE ? INET_ECN_ECT_0 : wanted;
}

void qre_ecn_restart(struct qre_session *s)
{
	spin_lock(&s->tx_lock);
	s->ecn_test = 3 * qre_control_pto(s);
	qre_ecn_begin(&s->ecn_tx, qre_codepoint(s));
	spin_unlock(&s->tx_lock);
}

/* The codepoint of these numbers; tx_lock is held. */
static u8 qre_take_ecn(struct qre_session *s, u64 first, unsigned int count, bool elsewhere)
{
	u8 wanted = qre_codepoint(s);

	if (unlikely(wanted != s->ecn_tx.codepoint))
		qre_ecn_begin(&s->ecn_tx, wanted);
	if (likely(!wanted))
		return 0;
	if (unlikely(elsewhere)) {
		qre_ecn_skip(&s->ecn_tx, first);
		return 0;
	}
	return qre_ecn_mark(&s->ecn_tx, first, count, get_jiffies_64(), s->ecn_test);
}

bool qre_take_numbers(struct qre_session *s, unsigned int count, bool elsewhere,
		      struct qre_numbers *numbers)
{
	struct qre_key *key = NULL;
	bool ask = false;
	u64 used, epoch = 0;

	spin_lock(&s->tx_lock);
	used = s->next_number + count - s->first_sent;
	if (used <= QRE_HARD_PACKET_LIMIT && s->next_number + count < QRE_VARINT_MAX) {
		numbers->first = s->next_number;
		numbers->size = QRE_NUMBER_SIZE;
		s->next_number += count;
		numbers->cid = s->tx_cid;
		numbers->target = (struct qre_target){
			.peer = s->peer,
			.port = s->port,
			.ecn = qre_take_ecn(s, numbers->first, count, elsewhere),
		};
		key = qre_key_get(s->tx);
		epoch = s->tx->epoch;
		if (used > s->rekey_after && s->rekey_asked != epoch) {
			s->rekey_asked = epoch;
			ask = true;
		}
	}
	spin_unlock(&s->tx_lock);
	if (ask)
		qre_tell_epoch(s->qdev, s->id, QRE_EVENT_REKEY_DUE, epoch);
	numbers->key = key;
	return key;
}

/* --- one outer packet under construction --- */

struct qre_batch {
	struct qre_session *session;
	struct sk_buff *outer;
	struct qre_target target; /* with a reference, if it has a socket */
	struct qre_cid cid;	  /* that they bear */
	u8 number_size;
	atomic_t pending; /* packets being encrypted, and one for the function that adds them */
	bool failed;	  /* one of them: the numbers are lost, nothing leaves */
	bool masked;	  /* their headers are protected */
	u16 sizes;	  /* of every packet but the last */
	u16 count;
	u32 inner_bytes;
	u32 inner_packets;
	u16 last; /* size of the last one */
	struct {
		u8 *at;
		u64 number;
	} packets[QRE_GSO_MAX_SEGS];
};

/* One a CPU is kept. */
static DEFINE_PER_CPU(struct qre_batch *, qre_spare_batch);

static void qre_batch_free(struct qre_batch *b)
{
	kfree(this_cpu_xchg(qre_spare_batch, b));
}

void qre_send_exit(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		kfree(per_cpu(qre_spare_batch, cpu));
}

static unsigned int qre_header_size(const struct qre_batch *b)
{
	return 1 + b->cid.length + b->number_size;
}

static unsigned int qre_put_header(const struct qre_batch *b, const struct qre_key *key, u64 number,
				   u8 *out)
{
	unsigned int size = 1 + b->cid.length;
	__be32 low = cpu_to_be32((u32)(number << 8 * (QRE_NUMBER_SIZE - b->number_size)));

	/* Fixed bit, spin bit 0, reserved bits 0, the key phase, the size of the number. */
	out[0] = 0x40 | (key->epoch & 1) << 2 | (b->number_size - 1);
	memcpy(out + 1, b->cid.bytes, QRE_CID_MAX); /* excess bytes are overwritten */
	memcpy(out + size, &low, sizeof(low));
	return size + b->number_size;
}

/* @direct: by the processor, which was begun with. */
static void qre_protect_header(const struct qre_batch *b, u8 *packet, bool direct)
{
	unsigned int at = 1 + b->cid.length, i;
	const u8 *sample = packet + at + QRE_NUMBER_SIZE;
	struct qre_hp *hp = b->session->tx_hp;
	u8 mask[QRE_SAMPLE_SIZE];

	if (direct)
		qre_aes_block(&hp->aes, mask, sample);
	else
		qre_hp_mask(hp, mask, sample);
	packet[0] ^= mask[0] & 0x1f;
	for (i = 0; i < b->number_size; i++)
		packet[at + i] ^= mask[1 + i];
}

static void qre_batch_finish(struct qre_batch *b)
{
	struct qre_session *s = b->session;
	struct sk_buff *skb = b->outer;
	unsigned int i;

	if (unlikely(b->failed || !b->count)) { /* there was no memory for it */
		local_bh_disable();
		qre_count_drop(s->qdev, QRE_DROP_NO_MEMORY, b->count);
		local_bh_enable();
		kfree_skb(skb);
		goto done;
	}
	for (i = 0; i < b->count && !b->masked; i++)
		qre_protect_header(b, b->packets[i].at, false);
	if (b->count > 1) {
		skb_shinfo(skb)->gso_size = b->sizes;
		skb_shinfo(skb)->gso_segs = b->count;
		skb_shinfo(skb)->gso_type = SKB_GSO_UDP_L4;
		skb->ip_summed = CHECKSUM_PARTIAL;
		skb->csum_start = skb_headroom(skb) - sizeof(struct udphdr);
		skb->csum_offset = offsetof(struct udphdr, check);
	}
	local_bh_disable();
	rcu_read_lock();
	if (b->inner_bytes)
		qre_count_session(s, false, b->inner_packets, b->inner_bytes);
	qre_udp_send(s, skb, &b->target, b->count);
	rcu_read_unlock();
	local_bh_enable();
done:
	qre_socket_put(b->target.through);
	qre_session_put(s);
	qre_batch_free(b);
}

static void qre_batch_done(struct qre_batch *b)
{
	if (atomic_dec_and_test(&b->pending))
		qre_batch_finish(b);
}

/* An outer packet without a byte yet; NULL: no memory. */
static struct sk_buff *qre_outer_new(u16 family)
{
	/* No more room than that: whoever splits the packet makes as much for each part. */
	unsigned int room = QRE_DEVICE_ROOM + qre_ip_header_size(family) + sizeof(struct udphdr);
	unsigned int size = SKB_DATA_ALIGN(room) + SKB_DATA_ALIGN(sizeof(struct skb_shared_info));
	struct sk_buff *skb;
	struct page *page;
	u8 *head = qre_piece_take(QRE_HEADS, size, &page);

	if (!head)
		return NULL;
	skb = napi_build_skb(head, size);
	if (!skb) {
		qre_piece_give(QRE_HEADS, head, size, page);
		return NULL;
	}
	skb_reserve(skb, room);
	return skb;
}

/* NULL: no memory, or the session was found under RCU and has ended since. */
static struct qre_batch *qre_batch_new(struct qre_session *s, const struct qre_numbers *numbers)
{
	struct qre_batch *b = this_cpu_xchg(qre_spare_batch, NULL);

	if (!b)
		b = kmalloc(sizeof(*b), GFP_ATOMIC);
	if (!b)
		return NULL;
	b->outer = qre_outer_new(numbers->target.peer.family);
	if (!b->outer || !qre_session_get(s)) {
		kfree_skb(b->outer);
		qre_batch_free(b);
		return NULL;
	}
	b->session = s;
	b->target = numbers->target;
	if (unlikely(b->target.through))
		refcount_inc(&b->target.through->refs);
	b->cid = numbers->cid;
	b->number_size = numbers->size;
	atomic_set(&b->pending, 1);
	b->failed = false;
	b->masked = false;
	b->count = 0;
	b->sizes = 0;
	b->inner_bytes = 0;
	b->inner_packets = 0;
	return b;
}

static void qre_count_unsent(struct qre_session *s)
{
	bool ended = READ_ONCE(s->life) == QRE_LIFE_ENDED;

	qre_count_drop(s->qdev, ended ? QRE_DROP_CLOSING : QRE_DROP_NO_MEMORY, 1);
}

/* @size contiguous bytes at the end of the outer packet; NULL: no memory, or no fragment left. */
static u8 *qre_batch_extend(struct qre_batch *b, unsigned int size)
{
	struct skb_shared_info *info = skb_shinfo(b->outer);
	unsigned int last = info->nr_frags;
	struct page *page;
	u8 *at = qre_piece_take(QRE_CIPHERTEXT, size, &page);
	u32 offset;

	if (!at)
		return NULL;
	offset = at - (u8 *)page_address(page);
	if (last && skb_frag_page(&info->frags[last - 1]) == page &&
	    skb_frag_off(&info->frags[last - 1]) + skb_frag_size(&info->frags[last - 1]) ==
		    offset) {
		skb_frag_size_add(&info->frags[last - 1], size);
		put_page(page); /* the fragment has a reference */
	} else {
		if (last == MAX_SKB_FRAGS) {
			qre_piece_give(QRE_CIPHERTEXT, at, size, page);
			return NULL;
		}
		skb_fill_page_desc(b->outer, last, page, offset, size);
	}
	b->outer->len += size;
	b->outer->data_len += size;
	b->outer->truesize += size;
	return at;
}

/* --- encryption --- */

static void qre_sealed(QRE_CRYPTO_ARG arg, int error)
{
	struct qre_work *w = QRE_CRYPTO_CONTEXT(arg);
	struct qre_batch *b = w->context;

	if (error == -EINPROGRESS)
		return;
	if (error)
		WRITE_ONCE(b->failed, true);
	qre_key_put(w->key);
	kfree(w);
	qre_batch_done(b);
}

/*
 * Encrypt the packet @at, a header of so many bytes and @plain bytes behind it, where it lies: the
 * page is ours. *@work is what to go on with: NULL when a driver has it still.
 */
static void qre_seal(struct qre_batch *b, struct qre_work **work, struct qre_key *key, u64 number,
		     u8 *at, unsigned int header, unsigned int plain)
{
	struct qre_work *w = *work ?: qre_work_take(key);
	int error;

	*work = w;
	if (!w) {
		b->failed = true;
		return;
	}
	sg_set_buf(w->sealed, at, header + plain + QRE_TAG_SIZE);
	qre_make_nonce(w->iv, key, number);
	w->context = b;
	w->key = key;
	aead_request_set_tfm(w->request, key->aead);
	aead_request_set_callback(w->request, 0, qre_sealed, w);
	aead_request_set_ad(w->request, header);
	aead_request_set_crypt(w->request, w->sealed, w->sealed, plain, w->iv);
	/* For an asynchronous driver, which answers when we are gone. */
	atomic_inc(&b->pending);
	refcount_inc(&key->refs);
	error = crypto_aead_encrypt(w->request);
	if (error == -EINPROGRESS) {
		*work = NULL;
		return;
	}
	if (error)
		b->failed = true;
	qre_key_put(key);
	atomic_dec(&b->pending);
}

/* Its packets are all there: encrypt them, and send it. */
static void qre_batch_close(struct qre_batch *b, struct qre_work **work, struct qre_key *key)
{
	unsigned int header = qre_header_size(b), i;
	bool direct = b->session->tx_hp->direct && qre_key_begin(key);
	u8 iv[QRE_IV_SIZE];

	for (i = 0; i < b->count; i++) {
		unsigned int size = i + 1 < b->count ? b->sizes : b->last;
		unsigned int plain = size - header - QRE_TAG_SIZE;
		u64 number = b->packets[i].number;
		u8 *at = b->packets[i].at;

		if (unlikely(!direct)) {
			qre_seal(b, work, key, number, at, header, plain);
			continue;
		}
		qre_make_nonce(iv, key, number);
		qre_gcm_seal(&key->gcm, iv, at, header, plain);
		qre_protect_header(b, at, true);
	}
	if (likely(direct)) {
		b->masked = true;
		qre_direct_end();
	}
	qre_batch_done(b);
}

/* Room for a packet of @total bytes, header and number in it; NULL: no memory. */
static u8 *qre_batch_packet(struct qre_batch *b, const struct qre_key *key, u64 number,
			    unsigned int total)
{
	u8 *at = qre_batch_extend(b, total);

	if (!at)
		return NULL;
	if (!b->count)
		b->sizes = total;
	b->last = total;
	b->packets[b->count].at = at;
	b->packets[b->count++].number = number;
	return at + qre_put_header(b, key, number, at);
}

/*
 * One inner packet into the batch. 0; -EAGAIN: the batch is full, begin another; other: it is lost.
 * @ack: frames that go before the DATAGRAM.
 */
static int qre_batch_add(struct qre_batch *b, const struct qre_key *key, u64 number,
			 const struct qre_inner *inner, const u8 *ack, unsigned int ack_size)
{
	unsigned int size = qre_inner_size(inner), total;
	u8 *to;

	total = qre_header_size(b) + ack_size + QRE_DATAGRAM_HEAD + size + QRE_TAG_SIZE;
	if (b->count && (b->count == QRE_GSO_MAX_SEGS || total > b->sizes || b->last != b->sizes ||
			 b->outer->len + total > QRE_GSO_MAX_BYTES))
		return -EAGAIN;
	to = qre_batch_packet(b, key, number, total);
	if (!to)
		return b->count ? -EAGAIN : -ENOMEM;
	memcpy(to, ack, ack_size);
	to += ack_size;
	*to++ = 0x30; /* DATAGRAM to the end of the packet, quarter stream 0 */
	*to++ = 0;
	*to++ = inner->total ? QRE_SPLIT_CONTEXT : 0;
	if (unlikely(qre_inner_put(inner, to)))
		b->failed = true;
	b->inner_bytes += inner->headers + inner->size;
	b->inner_packets += !inner->total || !inner->from;
	return 0;
}

/* Inner packets that leave one after the other, with numbers that are taken at once. */
struct qre_sending {
	struct qre_session *session;
	struct qre_work *work;
	struct qre_batch *batch;
	struct qre_numbers numbers;
	u64 number; /* the next one */
	u64 large;  /* the number of a packet above QRE_PATHMTU_BASE; QRE_NO_NUMBER: none was */
};

/* False: the session has no number left, and ends. Bottom halves are off, under RCU. */
static bool qre_sending_begin(struct qre_sending *to, struct qre_session *s, unsigned int count)
{
	struct qre_outbox out;

	to->session = s;
	to->work = NULL;
	to->batch = NULL;
	to->large = QRE_NO_NUMBER;
	if (likely(qre_take_numbers(s, count, false, &to->numbers))) {
		to->number = to->numbers.first;
		return true;
	}
	qre_outbox_init(&out);
	spin_lock(&s->lock);
	qre_control_end(s, QRE_LOSS_LIMIT, 0, &out);
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	return false;
}

static void qre_sending_add(struct qre_sending *to, const struct qre_inner *inner, const u8 *ack,
			    unsigned int ack_size)
{
	struct qre_key *key = to->numbers.key;
	u64 number = to->number++;
	int error = -EAGAIN;

	if (to->batch)
		error = qre_batch_add(to->batch, key, number, inner, ack, ack_size);
	if (error == -EAGAIN) {
		if (to->batch)
			qre_batch_close(to->batch, &to->work, key);
		to->batch = qre_batch_new(to->session, &to->numbers);
		error = to->batch ? qre_batch_add(to->batch, key, number, inner, ack, ack_size)
				  : -ENOMEM;
		/* The first packet of a batch is its largest. */
		if (!error && to->batch->sizes > QRE_PATHMTU_BASE)
			to->large = number;
	}
	if (unlikely(error))
		qre_count_unsent(to->session);
}

static void qre_sending_end(struct qre_sending *to)
{
	if (to->large != QRE_NO_NUMBER && READ_ONCE(to->session->mtu.watches))
		qre_mtu_watch(to->session, to->large);
	if (to->batch)
		qre_batch_close(to->batch, &to->work, to->numbers.key);
	if (to->work)
		qre_work_give(to->work);
	qre_key_put(to->numbers.key);
}

/* A packet in two, the first as large as it can be: not before its checksum is finished. */
static void qre_sending_split(struct qre_sending *to, struct sk_buff *skb, unsigned int limit)
{
	struct qre_inner inner = {
		.skb = skb,
		.total = skb->len,
		.size = limit - QRE_PART_HEAD,
		.number = atomic_inc_return(&to->session->split),
	};

	if (unlikely(skb->ip_summed == CHECKSUM_PARTIAL && skb_checksum_help(skb))) {
		to->number += 2;
		qre_count_unsent(to->session);
		return;
	}
	qre_sending_add(to, &inner, NULL, 0);
	inner.from = inner.size;
	inner.size = inner.total - inner.from;
	qre_sending_add(to, &inner, NULL, 0);
}

/* Inner packets, a list of @count that is consumed; those above @limit in two. Bottom halves are
 * off, under RCU. */
static void qre_send_list(struct qre_session *s, struct sk_buff *list, unsigned int count,
			  unsigned int limit, const u8 *ack, unsigned int ack_size)
{
	struct sk_buff *skb, *next;
	struct qre_sending to;

	for (skb = list; skb; skb = skb->next)
		count += skb->len > limit;
	if (unlikely(!qre_sending_begin(&to, s, count))) {
		kfree_skb_list(list);
		return;
	}
	skb_list_walk_safe(list, skb, next) {
		struct qre_inner inner = {.skb = skb, .size = skb->len};

		skb_mark_not_on_list(skb);
		/* The ACK rides on the last one. */
		if (likely(skb->len <= limit))
			qre_sending_add(&to, &inner, ack, next ? 0 : ack_size);
		else
			qre_sending_split(&to, skb, limit);
		napi_consume_skb(skb, 1);
	}
	qre_sending_end(&to);
}

void qre_send_plain(struct qre_session *s, const struct qre_numbers *numbers, const u8 *plain,
		    size_t size)
{
	struct qre_batch *b = qre_batch_new(s, numbers);
	struct qre_work *work = NULL;
	u8 *to = NULL;

	if (b)
		to = qre_batch_packet(b, numbers->key, numbers->first,
				      qre_header_size(b) + size + QRE_TAG_SIZE);
	if (to)
		memcpy(to, plain, size);
	else
		qre_count_unsent(s);
	if (b)
		qre_batch_close(b, &work, numbers->key);
	if (work)
		qre_work_give(work);
	qre_key_put(numbers->key);
	qre_socket_put(numbers->target.through);
}

/* --- from the stack --- */

/* Consumes TCP that is to be cut, so that no packet is above @limit. Bottom halves are off, under
 * RCU. */
static void qre_send_cut(struct qre_session *s, struct sk_buff *skb, bool ipv6, unsigned int limit)
{
	unsigned int headers = qre_inner_headers(skb), all = skb->len - headers;
	struct qre_inner inner = {.skb = skb, .headers = headers, .ipv6 = ipv6};
	unsigned int most = limit - headers;
	struct qre_sending to;

	if (skb_is_gso(skb))
		most = min_t(unsigned int, most, skb_shinfo(skb)->gso_size);
	if (unlikely(!qre_sending_begin(&to, s, DIV_ROUND_UP(all, most)))) {
		kfree_skb(skb);
		return;
	}
	for (; inner.from < all; inner.from += most, inner.number++) {
		inner.size = min(most, all - inner.from);
		qre_sending_add(&to, &inner, NULL, 0);
	}
	qre_sending_end(&to);
	napi_consume_skb(skb, 1);
}

/* An ACK that is due goes along when it fits. */
static unsigned int qre_piggyback(struct qre_session *s, u8 *ack, unsigned int room)
{
	unsigned int size = 0;

	if (!READ_ONCE(s->ack_wanted) || room < 8 ||
	    time_before(jiffies, READ_ONCE(s->ack_sent) + msecs_to_jiffies(5)))
		return 0;
	spin_lock(&s->lock);
	size = qre_control_take_ack(s, ack, room);
	spin_unlock(&s->lock);
	return size;
}

/* An inner packet as it leaves, or the first part of one. */
static unsigned int qre_leaves_as(const struct sk_buff *skb, const struct qre_fit *fit)
{
	unsigned int size = skb->len;

	if (skb_is_gso(skb)) {
		size = skb_transport_offset(skb) + skb_shinfo(skb)->gso_size;
		size += skb_is_gso_tcp(skb) ? tcp_hdrlen(skb) : sizeof(struct udphdr);
	}
	return min(size, fit->limit);
}

/* Inner packets of @size bytes. */
static void qre_sent_datagrams(struct qre_session *s, unsigned int size)
{
	WRITE_ONCE(s->last_sent, jiffies);
	if (s->client) {
		WRITE_ONCE(s->silence.newest_data, READ_ONCE(s->next_number) - 1);
		WRITE_ONCE(s->silence.newest_size, size);
	}
	if (!READ_ONCE(s->eliciting_sent) ||
	    (s->client && !(READ_ONCE(s->silence.unanswered) && READ_ONCE(s->silence.data)))) {
		spin_lock(&s->lock);
		qre_control_eliciting(s);
		if (s->client)
			qre_silence_sent_data(s, size);
		if (!s->probe_pending) {
			s->probe_pending = true;
			s->probe_number = READ_ONCE(s->next_number) - 1;
			s->probe_at = ktime_get_ns();
		}
		spin_unlock(&s->lock);
	}
}

netdev_tx_t qre_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct qre_device *qdev = netdev_priv(dev);
	u8 ack[64]; /* a short one: the long form goes by the timer */
	enum qre_drop drop = QRE_DROP_BAD_PACKET;
	unsigned int count, size, ack_size = 0;
	struct qre_session *s;
	struct sk_buff *list;
	struct qre_fit fit;
	bool ipv6;

	rcu_read_lock();
	if (skb->protocol == htons(ETH_P_IP) && pskb_may_pull(skb, sizeof(struct iphdr)) &&
	    ip_hdr(skb)->version == 4) {
		ipv6 = false;
		s = qre_allowed_ips_find(qdev->allowed_ips, &ip_hdr(skb)->daddr, false);
	} else if (skb->protocol == htons(ETH_P_IPV6) &&
		   pskb_may_pull(skb, sizeof(struct ipv6hdr)) && ipv6_hdr(skb)->version == 6) {
		ipv6 = true;
		s = qre_allowed_ips_find(qdev->allowed_ips, &ipv6_hdr(skb)->daddr, true);
	} else {
		goto dropped;
	}
	if (unlikely(!s)) {
		if (ipv6)
			icmpv6_ndo_send(skb, ICMPV6_DEST_UNREACH, ICMPV6_ADDR_UNREACH, 0);
		else
			icmp_ndo_send(skb, ICMP_DEST_UNREACH, ICMP_HOST_UNREACH, 0);
		drop = QRE_DROP_NO_SESSION;
		goto dropped;
	}
	drop = qre_check_outgoing(s, skb, ipv6, &fit);
	if (unlikely(drop != QRE_DROP_UNSPEC))
		goto dropped;
	skb_scrub_packet(skb, false);
	size = qre_leaves_as(skb, &fit);
	if (fit.way == QRE_WAY_WHOLE && !skb_is_gso(skb))
		ack_size = qre_piggyback(s, ack,
					 min_t(unsigned int, sizeof(ack), fit.limit - skb->len));
	if (fit.way == QRE_WAY_CUT) {
		qre_send_cut(s, skb, ipv6, fit.limit);
		qre_sent_datagrams(s, size);
		rcu_read_unlock();
		return NETDEV_TX_OK;
	}
	list = qre_segments(skb, &fit, &count);
	if (unlikely(!list)) {
		drop = QRE_DROP_NO_MEMORY;
		goto dropped;
	}
	qre_send_list(s, list, count, fit.way == QRE_WAY_SPLIT ? fit.limit : UINT_MAX, ack,
		      ack_size);
	qre_sent_datagrams(s, size + ack_size);
	rcu_read_unlock();
	return NETDEV_TX_OK;
dropped:
	rcu_read_unlock();
	qre_count_drop(qdev, drop, max_t(unsigned int, skb_shinfo(skb)->gso_segs, 1));
	kfree_skb(skb);
	return NETDEV_TX_OK;
}
