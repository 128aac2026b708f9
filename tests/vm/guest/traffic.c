// SPDX-License-Identifier: GPL-2.0-only
/*
 * traffic SECONDS: packets into the devices of the namespaces a and b, c and d, and at their ports,
 * from both ends: echo requests, datagrams, super-packets and streams inside, forged ones outside.
 */
#define _GNU_SOURCE
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/wait.h>

#include "choice.h"
#include "sessions.h"

static unsigned int pair;

/* Device @device of the other end. */
static void to_inner(struct sockaddr_in *to, unsigned int side, unsigned int device, uint16_t port)
{
	*to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
	to->sin_addr.s_addr = htonl(0x0a4d0000 | device << 8 | (side ? 1 : 2));
}

/* What the other end's kernel answers. */
static void send_echo(unsigned int side, int raw)
{
	struct {
		struct icmphdr header;
		uint8_t rest[1000];
	} echo = {.header = {.type = ICMP_ECHO}};
	size_t size = sizeof(echo.header) + below(sizeof(echo.rest));
	struct sockaddr_in to;

	echo.header.checksum = htons(0xf7ff); /* of that and zeroes */
	to_inner(&to, side, below(DEVICES), 0);
	sendto(raw, &echo, size, MSG_DONTWAIT, (void *)&to, sizeof(to));
}

/* A datagram, or some as one super-packet. */
static void send_datagrams(unsigned int side, int fd)
{
	uint8_t data[12000] = {};
	int segment = below(2) ? 0 : 300 + below(900);
	size_t size = segment ? below(sizeof(data)) : below(3000);
	struct sockaddr_in to;

	setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment));
	to_inner(&to, side, below(DEVICES), 9);
	sendto(fd, data, size, MSG_DONTWAIT, (void *)&to, sizeof(to));
}

/* At the port of a session, as if it were the other end's, by a socket of its version of IP. */
static void send_forged(unsigned int side, const int fds[2])
{
	unsigned int place = below(PLACES);
	struct end to = end_of(ip_of(!side, place), side ? PORT : FIRST_PORT + place);
	uint8_t packet[200] = {};

	packet[0] = below(8) ? 0x40 | below(64) : below(256);
	memset(packet + 1, 1 + place, QRE_CID_MAX);
	packet[1] ^= below(4) << 6;
	for (unsigned int k = 0; k < 16; k++)
		packet[1 + QRE_CID_MAX + k] = mixed(&state);
	sendto(fds[over_ipv6(place)], packet, below(sizeof(packet)), MSG_DONTWAIT, &to.any,
	       to.size);
}

/* Four times as long as the work took: a slow machine has time for its other work, too. */
static void rest(double began)
{
	usleep((0.02 + 4 * (now() - began)) * 1e6);
}

static void blast(unsigned int side, double end)
{
	int raw, inner, forged[2];

	state = pair * ENDS + side;
	enter(side);
	raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	inner = socket(AF_INET, SOCK_DGRAM, 0);
	forged[0] = socket(AF_INET, SOCK_DGRAM, 0);
	forged[1] = socket(AF_INET6, SOCK_DGRAM, 0);
	while (now() < end) {
		double began = now();

		for (unsigned int i = 0; i < 4; i++) {
			send_echo(side, raw);
			send_datagrams(side, inner);
			send_forged(side, forged);
		}
		rest(began);
	}
}

/* One stream after the other through some device, each for a second, out of one process. */
static void stream(unsigned int side, int listener)
{
	int one = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), other = -1;
	struct linger at_once = {.l_onoff = 1};
	double end = now() + 1, began;
	struct sockaddr_in to;
	static uint8_t data[30000];

	to_inner(&to, side, below(DEVICES), 7);
	setsockopt(one, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	connect(one, (void *)&to, sizeof(to));
	while (now() < end) {
		struct pollfd waiting[] = {{.fd = other < 0 ? listener : other, .events = POLLIN}};

		if (other < 0)
			other = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		else
			while (read(other, data, sizeof(data)) > 0)
				;
		began = now();
		(void)!write(one, data, sizeof(data));
		rest(began);
		poll(waiting, 1, 50);
	}
	close(one);
	close(other);
}

static void streams(unsigned int side, double end)
{
	struct sockaddr_in local = {.sin_family = AF_INET, .sin_port = htons(7)};
	int listener;

	state = pair * ENDS + side + 100;
	enter(!side);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (bind(listener, (void *)&local, sizeof(local)) || listen(listener, 16))
		die("listening");
	enter(side);
	while (now() < end) {
		stream(side, listener);
		sleep(1);
	}
}

int main(int argc, char **argv)
{
	double end = now() + atof(argv[argc - 1]);

	if (argc != 2)
		return 2;
	outer = OVER_BOTH;
	for (unsigned int kind = 0; kind < PAIRS * ENDS * 2; kind++) {
		if (fork())
			continue;
		pair = kind / 2 % PAIRS;
		open_sides(pair, false);
		if (kind < PAIRS * ENDS)
			blast(kind & 1, end);
		else
			streams(kind & 1, end);
		exit(0);
	}
	while (wait(NULL) > 0)
		;
	return 0;
}
