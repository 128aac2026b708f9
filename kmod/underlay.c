// SPDX-License-Identifier: GPL-2.0-only
/*
 * The way to the peer: routes, and the headers of UDP and IP before packets that are sealed. A
 * socket of IPv6 that is bound to every address speaks IPv4, too. Then addresses are those of IPv4
 * all the same, and so are routes and headers.
 */
#include <linux/security.h>
#include <net/dst_cache.h>
#include <net/inet_ecn.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include <net/route.h>
#include <net/udp.h>
#include "compat.h"
#include "device.h"
#include "migrate.h"
#include "mtu.h"
#include "session.h"
#include "socket.h"
#include "underlay.h"

/* What decides the route besides the addresses. User space may change it at any time: the mark of
 * its socket, or of the device for those that we opened; the device that a socket is bound to. */
struct qre_selector {
	u32 mark;
	int bound;
};

static struct qre_selector qre_selector_of(const struct qre_session *s, const struct qre_socket *qs)
{
	return (struct qre_selector){
		.mark = qs->kernel ? READ_ONCE(s->qdev->fwmark) : READ_ONCE(qs->sk->sk_mark),
		.bound = READ_ONCE(qs->sk->sk_bound_dev_if),
	};
}

void qre_routes_forget(struct qre_session *s)
{
	dst_cache_reset(&s->dst[0]);
	dst_cache_reset(&s->dst[1]);
}

/* Routes that were found by another selector are forgotten. */
static void qre_selector_cached(struct qre_session *s, struct qre_selector by)
{
	if (likely(by.mark == READ_ONCE(s->dst_mark) && by.bound == READ_ONCE(s->dst_bound)))
		return;
	WRITE_ONCE(s->dst_mark, by.mark);
	WRITE_ONCE(s->dst_bound, by.bound);
	qre_routes_forget(s);
}

/* --- IPv4 --- */

/* As a UDP socket looks for it: rules by mark, user, ports and device, IPsec and LSMs hold. */
static struct dst_entry *qre_route_v4(const struct qre_socket *qs, const struct qre_address *peer,
				      struct qre_selector by, struct qre_address *source)
{
	struct sock *sk = qs->sk;
	struct flowi4 flow;
	struct rtable *rt;

	memset(&flow, 0, sizeof(flow));
	flow.saddr = source->ip4;
	flow.daddr = peer->ip4;
	flow.fl4_dport = peer->port;
	flow.fl4_sport = qs->address.port;
	flow.flowi4_mark = by.mark;
	flow.flowi4_oif = by.bound;
	flow.flowi4_proto = IPPROTO_UDP;
	flow.flowi4_flags = inet_sk_flowi_flags(sk);
	flow.flowi4_uid = sock_net_uid(sock_net(sk), sk);
	security_sk_classify_flow(sk, flowi4_to_flowi_common(&flow));
	rt = ip_route_output_flow(sock_net(sk), &flow, sk);
	source->ip4 = flow.saddr;
	return IS_ERR(rt) ? ERR_CAST(rt) : &rt->dst;
}

/* As the socket identifies what it must not fragment, where the number means nothing (RFC 6864
 * section 4.1): an unconnected one, as any server's, with 0; a connected one, as a client's,
 * counts, and goes on where its handshake was. What segments a super-packet numbers on from there;
 * no client that has 0 is seen to do that. */
static void qre_identify(struct qre_session *s, struct sock *sk, struct sk_buff *skb)
{
	bool connected = inet_sk(sk)->inet_daddr;
	u16 more = skb_is_gso(skb) ? skb_shinfo(skb)->gso_segs - 1 : 0;

	ip_select_ident_segs(sock_net(sk), skb, sk, more + 1);
	if (connected && qre_ident_is_the_last)
		ip_hdr(skb)->id = htons(ntohs(ip_hdr(skb)->id) - more);
	if (s->client && !connected && skb_is_gso(skb))
		skb_shinfo(skb)->gso_type |= SKB_GSO_TCP_FIXEDID;
}

/* What ICMP said of the route's MTU is not obeyed, as a forwarding machine does not: the session
 * finds out by itself (pathmtu.h). */
static void qre_xmit_v4(struct qre_session *s, struct sock *sk, struct dst_entry *dst,
			struct sk_buff *skb, u8 ecn, const struct qre_address *source,
			const struct qre_address *peer)
{
	struct iphdr *ip;

	udp_set_csum(false, skb, source->ip4, peer->ip4, skb->len);
	ip = skb_push(skb, sizeof(*ip));
	skb_reset_network_header(skb);
	memset(IPCB(skb), 0, sizeof(*IPCB(skb)));
	IPCB(skb)->flags = IPSKB_FORWARDED;
	*ip = (struct iphdr){
		.version = IPVERSION,
		.ihl = sizeof(*ip) / 4,
		.tos = ecn,
		.ttl = ip4_dst_hoplimit(dst),
		.frag_off = htons(IP_DF),
		.protocol = IPPROTO_UDP,
		.saddr = source->ip4,
		.daddr = peer->ip4,
	};
	qre_identify(s, sk, skb);
	skb_dst_set(skb, dst);
	ip_local_out(sock_net(sk), sk, skb);
}

/* --- IPv6 --- */

#if IS_ENABLED(CONFIG_IPV6)
#include <net/addrconf.h>
#include <net/ip6_checksum.h>
#include <net/ip6_route.h>

/* Whether this machine has it; of a socket that is bound to a device, on the same side of a VRF. */
static bool qre_is_ours(struct net *net, const struct in6_addr *ip, int bound)
{
	struct net_device *dev = bound ? dev_get_by_index_rcu(net, bound) : NULL;

	return (dev || !bound) && ipv6_chk_addr(net, ip, dev, 0);
}

/* The same. A source that this machine does not have is refused, as by IPv4's routes. */
static struct dst_entry *qre_route_v6(const struct qre_socket *qs, const struct qre_address *peer,
				      struct qre_selector by, struct qre_address *source)
{
	struct sock *sk = qs->sk;
	struct dst_entry *dst;
	struct flowi6 flow;

	if (READ_ONCE(sk->sk_family) != AF_INET6)
		return ERR_PTR(-EAFNOSUPPORT);
	if (!qre_address_is_any(source) && !(inet_sk_flowi_flags(sk) & FLOWI_FLAG_ANYSRC) &&
	    !qre_is_ours(sock_net(sk), &source->ip6, by.bound))
		return ERR_PTR(-EINVAL);
	memset(&flow, 0, sizeof(flow));
	flow.saddr = source->ip6;
	flow.daddr = peer->ip6;
	flow.fl6_dport = peer->port;
	flow.fl6_sport = qs->address.port;
	flow.flowi6_mark = by.mark;
	flow.flowi6_oif = by.bound;
	flow.flowi6_proto = IPPROTO_UDP;
	flow.flowi6_uid = sock_net_uid(sock_net(sk), sk);
	security_sk_classify_flow(sk, flowi6_to_flowi_common(&flow));
	dst = ip6_dst_lookup_flow(sock_net(sk), sk, &flow, NULL);
	source->ip6 = flow.saddr;
	return dst;
}

/* As the socket labels what it sends: by its own hash when it is connected, otherwise by that of
 * the addresses and ports. */
static __be32 qre_flow_label(struct sock *sk, struct sk_buff *skb, const struct qre_address *source,
			     const struct qre_address *peer)
{
	struct net *net = sock_net(sk);
	struct flowi6 flow = {
		.saddr = source->ip6,
		.daddr = peer->ip6,
		.fl6_sport = source->port,
		.fl6_dport = peer->port,
		.flowi6_proto = IPPROTO_UDP,
	};

	skb_set_hash_from_sk(skb, sk);
	return ip6_make_flowlabel(net, skb, 0, ip6_default_np_autolabel(net), &flow);
}

/* The IP layer drops what is larger than the route remembers: mtu.c knows that, too. */
static void qre_xmit_v6(struct sock *sk, struct dst_entry *dst, struct sk_buff *skb, u8 ecn,
			const struct qre_address *source, const struct qre_address *peer)
{
	struct ipv6hdr *ip;

	udp6_set_csum(false, skb, &source->ip6, &peer->ip6, skb->len);
	ip = skb_push(skb, sizeof(*ip));
	skb_reset_network_header(skb);
	memset(IP6CB(skb), 0, sizeof(*IP6CB(skb)));
	ip6_flow_hdr(ip, ecn, qre_flow_label(sk, skb, source, peer));
	ip->payload_len = htons(skb->len - sizeof(*ip));
	ip->nexthdr = IPPROTO_UDP;
	ip->hop_limit = ip6_dst_hoplimit(dst);
	ip->saddr = source->ip6;
	ip->daddr = peer->ip6;
	skb->protocol = htons(ETH_P_IPV6);
	skb_dst_set(skb, dst);
	ip6_local_out(sock_net(sk), sk, skb);
}

static struct dst_entry *qre_cached_v6(struct dst_cache *cache, struct in6_addr *source)
{
	return dst_cache_get_ip6(cache, source);
}

static void qre_cache_v6(struct dst_cache *cache, struct dst_entry *dst,
			 const struct in6_addr *source)
{
	dst_cache_set_ip6(cache, dst, source);
}

#else /* no socket is of IPv6 then */

static struct dst_entry *qre_route_v6(const struct qre_socket *qs, const struct qre_address *peer,
				      struct qre_selector by, struct qre_address *source)
{
	return ERR_PTR(-EAFNOSUPPORT);
}

static void qre_xmit_v6(struct sock *sk, struct dst_entry *dst, struct sk_buff *skb, u8 ecn,
			const struct qre_address *source, const struct qre_address *peer)
{
	dst_release(dst);
	kfree_skb(skb);
}

static struct dst_entry *qre_cached_v6(struct dst_cache *cache, struct in6_addr *source)
{
	return NULL;
}

static void qre_cache_v6(struct dst_cache *cache, struct dst_entry *dst,
			 const struct in6_addr *source)
{
}

#endif

/* --- both --- */

static struct dst_entry *qre_cached(struct qre_session *s, struct qre_address *source)
{
	struct rtable *rt;

	if (source->family == AF_INET6)
		return qre_cached_v6(&s->dst[1], &source->ip6);
	rt = dst_cache_get_ip4(&s->dst[0], &source->ip4);
	return rt ? &rt->dst : NULL;
}

static void qre_cache(struct qre_session *s, struct dst_entry *dst,
		      const struct qre_address *source)
{
	if (source->family == AF_INET6)
		qre_cache_v6(&s->dst[1], dst, &source->ip6);
	else
		dst_cache_set_ip4(&s->dst[0], dst, source->ip4);
}

static struct dst_entry *qre_route_found(const struct qre_socket *qs,
					 const struct qre_address *peer, struct qre_selector by,
					 struct qre_address *source)
{
	return peer->family == AF_INET6 ? qre_route_v6(qs, peer, by, source)
					: qre_route_v4(qs, peer, by, source);
}

/* No address in particular, or the one that the socket is bound to. */
static struct qre_address qre_source_any(const struct qre_socket *qs,
					 const struct qre_address *peer)
{
	struct qre_address source = {.family = peer->family, .port = qs->address.port};

	if (qs->address.family == peer->family)
		source = qs->address;
	return source;
}

static struct qre_address qre_source_wanted(struct qre_session *s, const struct qre_socket *qs,
					    const struct qre_address *peer)
{
	struct qre_address local = qre_session_local(s, peer->family);

	if (!qre_address_is_set(&local) || qre_address_is_any(&local))
		return qre_source_any(qs, peer);
	local.port = qs->address.port;
	return local;
}

/* @own: by the session's own port, whose routes are remembered. */
static struct dst_entry *qre_route(struct qre_session *s, struct qre_socket *qs, bool own,
				   const struct qre_address *peer, struct qre_selector by,
				   struct qre_address *source)
{
	bool cached = own && qre_session_at(s, peer);
	struct qre_selector now;
	struct dst_entry *dst;

	if (likely(own))
		qre_selector_cached(s, by);
	if (cached) {
		*source = (struct qre_address){.family = peer->family, .port = qs->address.port};
		dst = qre_cached(s, source);
		if (dst)
			return dst;
	}
	*source = own ? qre_source_wanted(s, qs, peer) : qre_source_any(qs, peer);
	dst = qre_route_found(qs, peer, by, source);
	if (IS_ERR(dst) && PTR_ERR(dst) == -EINVAL && !qre_address_is_any(source)) {
		*source = qre_source_any(qs, peer); /* the address is gone: any other */
		if (qre_address_is_any(source))
			dst = qre_route_found(qs, peer, by, source);
	}
	if (IS_ERR(dst))
		return NULL;
	if (dst->dev == s->qdev->dev) { /* a way into the tunnel itself */
		dst_release(dst);
		return NULL;
	}
	if (!cached)
		return dst;
	qre_cache(s, dst, source);
	/* Who changed it meanwhile forgot what was in the cache before this was. */
	smp_mb();
	now = qre_selector_of(s, qs);
	if (unlikely(now.mark != by.mark || now.bound != by.bound || !qre_session_at(s, peer) ||
		     READ_ONCE(s->socket) != qs))
		qre_routes_forget(s);
	return dst;
}

static void qre_put_udp(struct sk_buff *skb, const struct qre_address *source,
			const struct qre_address *peer)
{
	struct udphdr *udp = skb_push(skb, sizeof(*udp));

	skb_reset_transport_header(skb);
	udp->source = source->port;
	udp->dest = peer->port;
	udp->len = htons(skb->len);
}

/* The port that packets were numbered for. What is under way while the session moves to another one
 * is lost, as all that went to the old one: with the ID of the one it would be seen at the other.
 */
static struct qre_socket *qre_port_for(struct qre_session *s, const struct qre_target *to)
{
	struct qre_socket *qs = to->through;

	if (unlikely(qs))
		return qs;
	qs = READ_ONCE(s->socket);
	smp_rmb(); /* pairs with qre_path_use: a new socket is seen with its number */
	return likely(to->port == READ_ONCE(s->port)) ? qs : NULL;
}

void qre_udp_send(struct qre_session *s, struct sk_buff *skb, const struct qre_target *to,
		  unsigned int packets)
{
	unsigned int size = skb_is_gso(skb) ? skb_shinfo(skb)->gso_size : skb->len;
	const struct qre_address *peer = &to->peer;
	struct qre_socket *qs = qre_port_for(s, to);
	enum qre_drop why = QRE_DROP_NO_ROUTE;
	bool own = !to->through;
	struct qre_address source;
	struct qre_selector by;
	struct dst_entry *dst;

	if (unlikely(!qs)) {
		why = READ_ONCE(s->socket) ? QRE_DROP_MOVED : QRE_DROP_NO_ROUTE;
		goto drop;
	}
	if (unlikely(!qre_address_is_set(peer)))
		goto drop;
	by = qre_selector_of(s, qs);
	dst = qre_route(s, qs, own, peer, by, &source);
	if (unlikely(!dst))
		goto drop;
	if (likely(own && qre_session_at(s, peer))) {
		if (unlikely(!qre_session_leaves_from(s, &source)) && !qre_source_is(s, &source))
			goto put;
		if (unlikely(!qre_mtu_leaves(s, dst, peer->family, size))) {
			why = QRE_DROP_TOO_BIG;
			goto put;
		}
	}
	qre_put_udp(skb, &source, peer);
	skb->mark = by.mark;
	skb->priority = READ_ONCE(qs->sk->sk_priority);
	if (peer->family == AF_INET6)
		qre_xmit_v6(qs->sk, dst, skb, to->ecn, &source, peer);
	else
		qre_xmit_v4(s, qs->sk, dst, skb, to->ecn, &source, peer);
	return;
put:
	dst_release(dst);
drop:
	qre_count_drop(s->qdev, why, packets);
	kfree_skb(skb);
}
