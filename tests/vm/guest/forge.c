// SPDX-License-Identifier: GPL-2.0-only
/*
 * Forges ICMP "fragmentation needed" (RFC 1191): forge FROM MTU SENDER PORT PEER PORT COUNT tells
 * SENDER that its UDP packets from its port to the peer's are above MTU, as a router of the address
 * FROM would. Of IPv6, "packet too big" (RFC 8201); FROM is then an address of this machine.
 */
#include <arpa/inet.h>
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ends.h"

struct forged {
	struct iphdr ip;
	struct icmphdr icmp;
	struct iphdr quoted_ip;
	struct udphdr quoted_udp;
	uint8_t quoted[64];
};

_Static_assert(sizeof(struct forged) == 120, "it lies as it is sent");

static uint16_t checksum(const void *data, size_t size)
{
	const uint8_t *at = data;
	uint32_t sum = 0;

	for (size_t i = 0; i < size; i++)
		sum += i % 2 ? at[i] : (uint32_t)at[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

static void fill_ip(struct iphdr *ip, size_t size, int protocol, const char *from, const char *to)
{
	*ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 60, .protocol = protocol};
	ip->tot_len = htons(size);
	ip->frag_off = htons(0x4000);
	inet_pton(AF_INET, from, &ip->saddr);
	inet_pton(AF_INET, to, &ip->daddr);
	ip->check = checksum(ip, sizeof(*ip));
}

static int repeat(int fd, const void *what, size_t size, const struct end *to, int count)
{
	for (; count; count--) {
		if (sendto(fd, what, size, 0, &to->any, to->size) < 0) {
			perror("forge");
			return 1;
		}
		usleep(10000);
	}
	return 0;
}

/* The kernel writes the outer header, and the checksum. */
static int forge_v6(char **argv)
{
	struct end from = end_of(argv[1], 0), to = end_of(argv[3], 0), peer = end_of(argv[5], 0);
	struct {
		struct icmp6_hdr icmp;
		struct ip6_hdr ip;
		struct udphdr udp;
		uint8_t quoted[64];
	} f = {.icmp = {.icmp6_type = ICMP6_PACKET_TOO_BIG}, .quoted = {0x43}};
	int fd = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);

	if (fd < 0 || bind(fd, &from.any, from.size)) {
		perror(argv[1]);
		return 2;
	}
	f.icmp.icmp6_mtu = htonl(atoi(argv[2]));
	f.ip.ip6_flow = htonl(6U << 28);
	f.ip.ip6_plen = htons(1260);
	f.ip.ip6_nxt = IPPROTO_UDP;
	f.ip.ip6_hlim = 60;
	f.ip.ip6_src = to.v6.sin6_addr;
	f.ip.ip6_dst = peer.v6.sin6_addr;
	f.udp.source = htons(atoi(argv[4]));
	f.udp.dest = htons(atoi(argv[6]));
	f.udp.len = htons(1260);
	return repeat(fd, &f, sizeof(f), &to, atoi(argv[7]));
}

int main(int argc, char **argv)
{
	static struct forged f;
	struct end to;
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);

	if (argc != 8 || fd < 0) {
		fprintf(stderr, "forge FROM MTU SENDER PORT PEER PORT COUNT, as root\n");
		return 2;
	}
	if (strchr(argv[3], ':'))
		return forge_v6(argv);
	fill_ip(&f.ip, sizeof(f), IPPROTO_ICMP, argv[1], argv[3]);
	fill_ip(&f.quoted_ip, 1300, IPPROTO_UDP, argv[3], argv[5]);
	f.quoted_udp.source = htons(atoi(argv[4]));
	f.quoted_udp.dest = htons(atoi(argv[6]));
	f.quoted_udp.len = htons(1280);
	f.quoted[0] = 0x43;
	f.icmp.type = ICMP_DEST_UNREACH;
	f.icmp.code = ICMP_FRAG_NEEDED;
	f.icmp.un.frag.mtu = htons(atoi(argv[2]));
	f.icmp.checksum = checksum(&f.icmp, sizeof(f) - sizeof(f.ip));
	to = end_of(argv[3], 0);
	return repeat(fd, &f, sizeof(f), &to, atoi(argv[7]));
}
