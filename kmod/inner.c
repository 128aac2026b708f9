// SPDX-License-Identifier: GPL-2.0-only
/*
 * Inner packets and the size that the path leaves for them. What is too large is cut when it is
 * TCP, fragmented when it is IPv4 and may be; otherwise it is dropped and its sender is told (RFC
 * 1191, RFC 4443). Senders remember the size for ten minutes: a temporary one is not reported.
 */
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/tcp.h>
#include <net/icmp.h>
#include <net/ip.h>
#include <net/ip6_checksum.h>
#include <net/ipv6.h>
#include <net/tcp.h>
#include "compat.h"
#include "device.h"
#include "inner.h"
#include "session.h"
#include "tcpopt.h"

#define QRE_CUT_LEAST 64 /* bytes of data that a segment has at least, or TCP is not cut */

/* --- TCP --- */

/*
 * Whether a super-packet is what TCP makes: then it is cut here, and each segment is encrypted from
 * where it lies. Anything else takes the stack's way.
 */
static bool qre_can_cut(struct sk_buff *skb, bool ipv6)
{
	const unsigned int known = SKB_GSO_TCPV4 | SKB_GSO_TCPV6 | SKB_GSO_TCP_ECN;
	unsigned int network = ipv6 ? sizeof(struct ipv6hdr) : ip_hdr(skb)->ihl * 4U, headers;

	if (!skb_is_gso(skb) || skb_shinfo(skb)->gso_type & ~known || skb->encapsulation ||
	    skb_has_frag_list(skb) || skb->ip_summed != CHECKSUM_PARTIAL ||
	    skb_network_offset(skb) || !skb_transport_header_was_set(skb) ||
	    skb_transport_offset(skb) != network || skb_checksum_start_offset(skb) != network ||
	    !pskb_may_pull(skb, network + sizeof(struct tcphdr)))
		return false;
	if (ipv6 ? ipv6_hdr(skb)->nexthdr != IPPROTO_TCP : ip_hdr(skb)->protocol != IPPROTO_TCP)
		return false;
	headers = network + tcp_hdrlen(skb);
	return tcp_hdrlen(skb) >= sizeof(struct tcphdr) && headers <= QRE_PULL &&
	       pskb_may_pull(skb, headers) && skb->len > headers;
}

/* Whether a checksum that was computed already is right: what is cut gets a new one. */
static bool qre_tcp_sum_right(struct sk_buff *skb, bool ipv6, unsigned int network)
{
	unsigned int size = skb->len - network;
	__wsum sum;

	if (skb->ip_summed == CHECKSUM_PARTIAL)
		return skb_checksum_start_offset(skb) == network;
	sum = skb_checksum(skb, network, size, 0);
	return !(ipv6 ? csum_ipv6_magic(&ipv6_hdr(skb)->saddr, &ipv6_hdr(skb)->daddr, size,
					IPPROTO_TCP, sum)
		      : csum_tcpudp_magic(ip_hdr(skb)->saddr, ip_hdr(skb)->daddr, size, IPPROTO_TCP,
					  sum));
}

/* The same of one segment that is too large. */
static bool qre_can_divide(struct sk_buff *skb, bool ipv6)
{
	unsigned int network = ipv6 ? sizeof(struct ipv6hdr) : ip_hdr(skb)->ihl * 4U;

	if (skb->encapsulation || skb_network_offset(skb))
		return false;
	if (ipv6 ? ipv6_hdr(skb)->nexthdr != IPPROTO_TCP ||
			    ntohs(ipv6_hdr(skb)->payload_len) + network != skb->len
		 : ip_hdr(skb)->protocol != IPPROTO_TCP || ip_is_fragment(ip_hdr(skb)) ||
			    network < sizeof(struct iphdr) ||
			    ntohs(ip_hdr(skb)->tot_len) != skb->len)
		return false;
	if (!pskb_may_pull(skb, network + sizeof(struct tcphdr)) ||
	    (skb_has_frag_list(skb) && skb_linearize(skb)))
		return false;
	skb_set_transport_header(skb, network);
	return network + tcp_hdrlen(skb) <= QRE_PULL &&
	       pskb_may_pull(skb, network + tcp_hdrlen(skb)) &&
	       qre_tcp_divisible(skb_transport_header(skb), skb->len - network) &&
	       qre_tcp_sum_right(skb, ipv6, network);
}

/* The headers of a segment whose data has the checksum @sum. */
static void qre_cut_headers(const struct qre_inner *inner, u8 *headers, __wsum sum)
{
	unsigned int network = skb_transport_offset(inner->skb), own = tcp_hdrlen(inner->skb);
	struct tcphdr *th = (struct tcphdr *)(headers + network);

	memcpy(headers, inner->skb->data, network + own);
	th->seq = htonl(ntohl(th->seq) + inner->from);
	if (inner->headers + inner->from + inner->size < inner->skb->len) {
		th->fin = 0;
		th->psh = 0;
	}
	if (inner->number)
		th->cwr = 0;
	th->check = 0;
	sum = csum_partial(th, own, sum);
	if (inner->ipv6) {
		struct ipv6hdr *ip6 = (struct ipv6hdr *)headers;

		ip6->payload_len = htons(own + inner->size);
		th->check = csum_ipv6_magic(&ip6->saddr, &ip6->daddr, own + inner->size,
					    IPPROTO_TCP, sum);
	} else {
		struct iphdr *ip = (struct iphdr *)headers;

		ip->tot_len = htons(network + own + inner->size);
		ip->id = htons(ntohs(ip->id) + inner->number);
		ip_send_check(ip);
		th->check = csum_tcpudp_magic(ip->saddr, ip->daddr, own + inner->size, IPPROTO_TCP,
					      sum);
	}
}

/* A packet whose checksum its device was to finish. */
static int qre_put_unfinished(const struct sk_buff *skb, u8 *to)
{
	unsigned int start = skb_checksum_start_offset(skb);
	__sum16 sum;

	if (skb_copy_bits(skb, 0, to, start))
		return -EFAULT;
	sum = csum_fold(skb_copy_and_csum_bits(skb, start, to + start, skb->len - start));
	/* UDP's 0 means none (RFC 768). */
	sum = sum ?: CSUM_MANGLED_0;
	memcpy(to + start + skb->csum_offset, &sum, sizeof(sum));
	return 0;
}

static void qre_put_part_head(const struct qre_inner *inner, u8 *to)
{
	__be16 head[] = {
		htons(inner->number),
		htons(inner->total | (inner->from ? QRE_PART_SECOND : 0)),
	};

	BUILD_BUG_ON(sizeof(head) != QRE_PART_HEAD);
	memcpy(to, head, sizeof(head));
}

int qre_inner_put(const struct qre_inner *inner, u8 *to)
{
	u8 headers[QRE_PULL] __aligned(4);
	__wsum sum;

	if (inner->headers) {
		sum = skb_copy_and_csum_bits(inner->skb, inner->headers + inner->from,
					     to + inner->headers, inner->size);
		qre_cut_headers(inner, headers, sum);
		memcpy(to, headers, inner->headers);
		return 0;
	}
	if (inner->total) {
		qre_put_part_head(inner, to);
		return skb_copy_bits(inner->skb, inner->from, to + QRE_PART_HEAD, inner->size);
	}
	if (inner->skb->ip_summed == CHECKSUM_PARTIAL)
		return qre_put_unfinished(inner->skb, to);
	return skb_copy_bits(inner->skb, 0, to, inner->size);
}

void qre_clamp_mss(const struct qre_session *s, struct sk_buff *skb, bool ipv6)
{
	unsigned int network = ipv6 ? sizeof(struct ipv6hdr) : ip_hdr(skb)->ihl * 4U;
	unsigned int most = READ_ONCE(s->mtu.clamp);

	if (!ipv6 && ip_is_fragment(ip_hdr(skb)))
		return;
	if (skb_headlen(skb) < network + sizeof(struct tcphdr) ||
	    !(tcp_flag_byte((struct tcphdr *)(skb->data + network)) & TCPHDR_SYN))
		return;
	most -= (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct tcphdr);
	qre_tcp_clamp_mss(skb->data + network, skb_headlen(skb) - network, most, false);
}

/* --- what fits --- */

/* Section 7.1 of RFC 9484: who forwards a packet into the tunnel counts down its hops. */
static bool qre_count_down(struct sk_buff *skb, bool ipv6)
{
	if (skb_cow_head(skb, 0))
		return false;
	if (ipv6) {
		if (ipv6_hdr(skb)->hop_limit <= 1) {
			icmpv6_ndo_send(skb, ICMPV6_TIME_EXCEED, ICMPV6_EXC_HOPLIMIT, 0);
			return false;
		}
		ipv6_hdr(skb)->hop_limit--;
		return true;
	}
	if (ip_hdr(skb)->ttl <= 1) {
		icmp_ndo_send(skb, ICMP_TIME_EXCEEDED, ICMP_EXC_TTL, 0);
		return false;
	}
	ip_decrease_ttl(ip_hdr(skb));
	return true;
}

/* How a packet can leave, of which @limit bytes fit into a datagram, and @most into two. */
static enum qre_way qre_way(struct sk_buff *skb, bool ipv6, unsigned int limit, unsigned int most)
{
	if (skb_is_gso(skb)) {
		if (qre_can_cut(skb, ipv6) && qre_inner_headers(skb) + QRE_CUT_LEAST <= limit)
			return QRE_WAY_CUT;
		if (skb_gso_validate_network_len(skb, limit))
			return QRE_WAY_WHOLE;
		return skb_gso_validate_network_len(skb, most) ? QRE_WAY_SPLIT : QRE_WAY_NONE;
	}
	if (likely(skb->len <= limit))
		return QRE_WAY_WHOLE;
	if (qre_can_divide(skb, ipv6) && qre_inner_headers(skb) + QRE_CUT_LEAST <= limit)
		return QRE_WAY_CUT;
	if (skb->len <= most)
		return QRE_WAY_SPLIT;
	/* Options are not copied to each fragment alike (RFC 791): who uses them learns the limit.
	 */
	if (!ipv6 && !(ip_hdr(skb)->frag_off & htons(IP_DF)) &&
	    ip_hdr(skb)->ihl * 4 == sizeof(struct iphdr))
		return QRE_WAY_FRAGMENT;
	return QRE_WAY_NONE;
}

static void qre_tell_too_big(struct sk_buff *skb, bool ipv6, unsigned int limit)
{
	if (ipv6)
		icmpv6_ndo_send(skb, ICMPV6_PKT_TOOBIG, 0, limit);
	else
		icmp_ndo_send(skb, ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, htonl(limit));
}

enum qre_drop qre_check_outgoing(struct qre_session *s, struct sk_buff *skb, bool ipv6,
				 struct qre_fit *fit)
{
	bool quiet = READ_ONCE(s->mtu.quiet);
	unsigned int most;

	switch (READ_ONCE(s->life)) {
	case QRE_LIFE_ESTABLISHED:
		break;
	case QRE_LIFE_HELD:
		return QRE_DROP_HELD;
	default:
		return QRE_DROP_CLOSING;
	}
	fit->limit = ipv6 ? READ_ONCE(s->mtu.inner_ipv6) : READ_ONCE(s->mtu.inner);
	most = max(fit->limit, qre_mtu_in_two(s, fit->limit));
	/* Every link must carry IPv6 packets of this size: RFC 8200 section 5. */
	if (ipv6 && unlikely(most < IPV6_MIN_MTU) && !quiet) {
		icmpv6_ndo_send(skb, ICMPV6_DEST_UNREACH, ICMPV6_ADM_PROHIBITED, 0);
		return QRE_DROP_IPV6_REFUSED;
	}
	fit->way = qre_way(skb, ipv6, fit->limit, most);
	if (unlikely(fit->way == QRE_WAY_NONE)) {
		if (!quiet)
			qre_tell_too_big(skb, ipv6, most);
		return QRE_DROP_TOO_BIG;
	}
	return qre_count_down(skb, ipv6) ? QRE_DROP_UNSPEC : QRE_DROP_TTL_EXPIRED;
}

/* --- pieces --- */

/* An IPv4 packet in fragments of at most @limit bytes; consumed unless NULL: no memory. */
static struct sk_buff *qre_fragments(struct sk_buff *skb, unsigned int limit, unsigned int *count)
{
	struct sk_buff *list = NULL, **end = &list, *one;
	struct ip_frag_state state;

	memset(IPCB(skb), 0, sizeof(*IPCB(skb)));
	ip_frag_init(skb, sizeof(struct iphdr), 0, limit - sizeof(struct iphdr), false, &state);
	for (*count = 0; state.left; ++*count) {
		one = ip_frag_next(skb, &state);
		if (IS_ERR(one)) {
			kfree_skb_list(list);
			return NULL;
		}
		*end = one;
		end = &one->next;
	}
	consume_skb(skb);
	return list;
}

/* Whether the checksum that is to be finished lies in the packet. */
static bool qre_can_finish(const struct sk_buff *skb)
{
	int start = skb_checksum_start_offset(skb);

	return start >= 0 && start + skb->csum_offset + sizeof(__sum16) <= skb->len;
}

struct sk_buff *qre_segments(struct sk_buff *skb, const struct qre_fit *fit, unsigned int *count)
{
	struct sk_buff *list, *one;

	*count = 1;
	if (!skb_is_gso(skb)) {
		bool finished = skb->ip_summed != CHECKSUM_PARTIAL;

		if (fit->way != QRE_WAY_FRAGMENT)
			return finished || qre_can_finish(skb) ? skb : NULL;
		if (!finished && skb_checksum_help(skb))
			return NULL;
		return qre_fragments(skb, fit->limit, count);
	}
	list = skb_gso_segment(skb, NETIF_F_SG); /* no checksum offload: they are computed here */
	if (IS_ERR_OR_NULL(list))
		return NULL;
	consume_skb(skb);
	*count = 0;
	for (one = list; one; one = one->next)
		++*count;
	return list;
}
