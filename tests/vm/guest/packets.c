// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sends the UDP datagrams of a file, again and again: packets FILE ADDRESS COUNT SEED. A record of
 * the file is four little-endian u16 (size, from which byte on one is changed or 0xffff, source
 * port, destination port) and the payload. Raw, so that a port that is in use can be the source;
 * what is longer than the MTU leaves in fragments. Prints how long it took: "sent COUNT nanoseconds
 * N".
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WHOLE	   0xffff
#define UDP_HEADER 8

struct record {
	uint16_t size, mutable_from, source_port, port;
	uint8_t data[];
};

static uint64_t state;

static uint64_t next_random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static size_t datagram(uint8_t *out, const struct record *r)
{
	uint16_t header[4] = {htons(r->source_port), htons(r->port),
			      htons((uint16_t)(r->size + UDP_HEADER)), 0};

	memcpy(out, header, sizeof(header));
	memcpy(out + UDP_HEADER, r->data, r->size);
	if (r->mutable_from < r->size)
		out[UDP_HEADER + r->mutable_from + next_random() % (r->size - r->mutable_from)] ^=
			(uint8_t)(1 + next_random() % 255);
	return UDP_HEADER + (size_t)r->size;
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	long long began;
	struct sockaddr_in to = {.sin_family = AF_INET};
	static uint8_t out[UDP_HEADER + 65536];
	int fd, sock, small = 1;
	const uint8_t *file;
	struct stat s;
	size_t at = 0;
	long left;

	if (argc != 5)
		return 2;
	left = atol(argv[3]);
	state = strtoull(argv[4], NULL, 0) | 1;
	fd = open(argv[1], O_RDONLY);
	if (fd < 0 || fstat(fd, &s))
		die(argv[1]);
	file = malloc(s.st_size);
	if (!file || read(fd, (void *)file, s.st_size) != s.st_size)
		die("read");
	sock = socket(AF_INET, SOCK_RAW, IPPROTO_UDP);
	if (sock < 0 || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1)
		die("socket");
	setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	began = now();
	for (; left; left--) {
		struct record r;
		size_t size;

		if (at == (size_t)s.st_size)
			at = 0;
		memcpy(&r, file + at, sizeof(r));
		size = datagram(out, (const void *)(file + at));
		while (sendto(sock, out, size, 0, (void *)&to, sizeof(to)) != (ssize_t)size)
			if (errno != ENOBUFS) /* fragments that nobody has fetched yet */
				die("sendto");
			else
				sched_yield();
		at += sizeof(r) + r.size;
	}
	printf("sent %s nanoseconds %lld\n", argv[3], now() - began);
	return 0;
}
