// SPDX-License-Identifier: GPL-2.0-only
/*
 * blast IP PORT MILLISECONDS SIZE: sends UDP datagrams as fast as it can; prints
 * "sent N microseconds T". blast PORT: binds that port and reads nothing, so that nobody answers
 * "port unreachable".
 */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BETWEEN_LOOKS 64 /* datagrams from one look at the clock to the next */

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	static char data[1400];
	int64_t start, end, sent = 0;
	size_t size;

	if (fd < 0 || (argc != 2 && argc != 5))
		return 2;
	address.sin_port = htons(atoi(argv[argc == 2 ? 1 : 2]));
	if (argc == 2) {
		if (bind(fd, (void *)&address, sizeof(address)))
			return 1;
		for (;;)
			pause();
	}
	size = atoi(argv[4]);
	if (size > sizeof(data) || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1 ||
	    connect(fd, (void *)&address, sizeof(address)))
		return 1;
	start = now();
	end = start + atoi(argv[3]) * 1000LL;
	do {
		for (int i = 0; i < BETWEEN_LOOKS; i++)
			sent += send(fd, data, size, 0) > 0;
	} while (now() < end);
	printf("sent %lld microseconds %lld\n", (long long)sent, (long long)(now() - start));
	return 0;
}
