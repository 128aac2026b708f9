/* SPDX-License-Identifier: GPL-2.0-only */
/* UDP sockets and their addresses, of IPv4 or IPv6: whichever is written. */
#ifndef ENDS_H
#define ENDS_H

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct end {
	socklen_t size;
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	};
};

static inline struct end end_of(const char *ip, uint16_t port)
{
	struct end made = {.size = sizeof(struct sockaddr_in)};

	if (strchr(ip, ':')) {
		made.size = sizeof(struct sockaddr_in6);
		made.v6.sin6_family = AF_INET6;
		made.v6.sin6_port = htons(port);
		inet_pton(AF_INET6, ip, &made.v6.sin6_addr);
	} else {
		made.v4.sin_family = AF_INET;
		made.v4.sin_port = htons(port);
		inet_pton(AF_INET, ip, &made.v4.sin_addr);
	}
	return made;
}

/* As in "10.9.0.2:5555" or "[fd09::2]:5555"; IPv4 at a socket of both as IPv4. */
static inline const char *end_text(const struct end *e)
{
	static char text[INET6_ADDRSTRLEN + 10];
	char ip[INET6_ADDRSTRLEN];

	if (e->any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &e->v4.sin_addr, ip, sizeof(ip));
		snprintf(text, sizeof(text), "%s:%u", ip, ntohs(e->v4.sin_port));
	} else if (IN6_IS_ADDR_V4MAPPED(&e->v6.sin6_addr)) {
		inet_ntop(AF_INET, e->v6.sin6_addr.s6_addr + 12, ip, sizeof(ip));
		snprintf(text, sizeof(text), "%s:%u", ip, ntohs(e->v6.sin6_port));
	} else {
		inet_ntop(AF_INET6, &e->v6.sin6_addr, ip, sizeof(ip));
		snprintf(text, sizeof(text), "[%s]:%u", ip, ntohs(e->v6.sin6_port));
	}
	return text;
}

/* One that is not bound yet, and tells the traffic class of what comes: the first byte of its
 * control message. */
static inline int end_socket(const struct end *e)
{
	int fd = socket(e->any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &one, sizeof(one));
	if (e->any.sa_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &one, sizeof(one));
	return fd;
}

static inline int end_traffic_class(const struct end *e, int fd, int value)
{
	if (e->any.sa_family == AF_INET6)
		return setsockopt(fd, IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof(value));
	return setsockopt(fd, IPPROTO_IP, IP_TOS, &value, sizeof(value));
}

#endif
