/* SPDX-License-Identifier: GPL-2.0-only */
/* An outer address and port, of IPv4 or IPv6. */
#ifndef QRE_ADDRESS_H
#define QRE_ADDRESS_H

#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/skbuff.h>
#include <linux/socket.h>
#include <linux/string.h>
#include <linux/udp.h>
#include <net/ipv6.h>

/* All zero: none. An address of IPv4 is never written as a mapped one of IPv6. */
struct qre_address {
	union {
		__be32 ip4; /* zero behind it */
		struct in6_addr ip6;
	};
	u16 family; /* AF_INET, AF_INET6; AF_UNSPEC: none */
	__be16 port;
};

struct qre_endpoint { /* the outer addresses of both ends */
	struct qre_address local, peer;
};

static inline struct qre_address qre_address_v4(__be32 ip, __be16 port)
{
	struct qre_address made;

	memset(&made, 0, sizeof(made)); /* padding is none: it is compared, and told */
	made.ip4 = ip;
	made.family = AF_INET;
	made.port = port;
	return made;
}

static inline struct qre_address qre_address_v6(const struct in6_addr *ip, __be16 port)
{
	struct qre_address made;

	made.ip6 = *ip;
	made.family = AF_INET6;
	made.port = port;
	return made;
}

static inline bool qre_address_is_set(const struct qre_address *a)
{
	return a->family != AF_UNSPEC;
}

/* The same host: of the same family, whatever the ports are. */
static inline bool qre_address_same_ip(const struct qre_address *a, const struct qre_address *b)
{
	return a->family == b->family && ipv6_addr_equal(&a->ip6, &b->ip6);
}

static inline bool qre_address_equal(const struct qre_address *a, const struct qre_address *b)
{
	return qre_address_same_ip(a, b) && a->port == b->port;
}

/* 0.0.0.0 or ::, or none. */
static inline bool qre_address_is_any(const struct qre_address *a)
{
	return ipv6_addr_any(&a->ip6);
}

static inline unsigned int qre_ip_header_size(u16 family)
{
	return family == AF_INET6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* Of a UDP datagram that arrived: where it came from, and where it was sent to. */
static inline struct qre_address qre_address_from(const struct sk_buff *skb)
{
	if (skb->protocol == htons(ETH_P_IPV6))
		return qre_address_v6(&ipv6_hdr(skb)->saddr, udp_hdr(skb)->source);
	return qre_address_v4(ip_hdr(skb)->saddr, udp_hdr(skb)->source);
}

static inline struct qre_address qre_address_to(const struct sk_buff *skb)
{
	if (skb->protocol == htons(ETH_P_IPV6))
		return qre_address_v6(&ipv6_hdr(skb)->daddr, udp_hdr(skb)->dest);
	return qre_address_v4(ip_hdr(skb)->daddr, udp_hdr(skb)->dest);
}

#endif
