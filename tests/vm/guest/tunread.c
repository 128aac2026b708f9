// SPDX-License-Identifier: GPL-2.0-only
/*
 * tunread NAME: opens a tun device, prints "open", and then of each packet that leaves by it
 * whether its length is what its header says: "right LENGTH" or "wrong LENGTH".
 */
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static size_t told(const uint8_t *packet, size_t size)
{
	if (size >= 20 && packet[0] >> 4 == 4)
		return packet[2] << 8 | packet[3];
	if (size >= 40 && packet[0] >> 4 == 6)
		return 40U + (packet[4] << 8 | packet[5]);
	return 0;
}

int main(int argc, char **argv)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR);
	static uint8_t packet[65536];
	ssize_t size;

	if (argc != 2 || fd < 0)
		return 2;
	strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
	if (ioctl(fd, TUNSETIFF, &request)) {
		perror(argv[1]);
		return 1;
	}
	printf("open\n");
	fflush(stdout);
	while ((size = read(fd, packet, sizeof(packet))) > 0) {
		printf("%s %zd\n", told(packet, size) == (size_t)size ? "right" : "wrong", size);
		fflush(stdout);
	}
	return 0;
}
