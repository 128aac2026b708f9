// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sends pages of a file without a copy:
 *   pagecache stream FILE ADDRESS PORT: all of it by sendfile into a TCP connection
 *   pagecache sendfile|splice|vmsplice FILE ADDRESS PORT SOURCE SOURCE-PORT SIZE: a UDP datagram of
 *     each SIZE bytes of it
 *   pagecache sink ADDRESS PORT: what one TCP connection brings, on standard output
 *   pagecache mapped FILE: what a mapping of it shows, on standard output
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define BIND_TRIES 100

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

	if (inet_pton(AF_INET, ip, &a.sin_addr) != 1)
		die(ip);
	return a;
}

static size_t opened(const char *path, int *fd)
{
	struct stat s;

	*fd = open(path, O_RDONLY);
	if (*fd < 0 || fstat(*fd, &s))
		die(path);
	return s.st_size;
}

static const char *mapping(int fd, size_t size)
{
	const char *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		die("mmap");
	return map;
}

static void put(const char *data, size_t size)
{
	if (fwrite(data, 1, size, stdout) != size)
		die("stdout");
}

static int stream(const char *path, const char *ip, const char *port)
{
	struct sockaddr_in to = address(ip, port);
	int fd, sock = socket(AF_INET, SOCK_STREAM, 0);
	size_t left = opened(path, &fd);

	if (connect(sock, (void *)&to, sizeof(to)))
		die("connect");
	while (left) {
		ssize_t done = sendfile(sock, fd, NULL, left);

		if (done <= 0)
			die("sendfile");
		left -= done;
	}
	return 0;
}

static int sink(const char *ip, const char *port)
{
	struct sockaddr_in local = address(ip, port);
	int one = 1, sock = socket(AF_INET, SOCK_STREAM, 0), from;
	static char buffer[65536];
	ssize_t size;

	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(sock, (void *)&local, sizeof(local)) || listen(sock, 1))
		die("listen");
	from = accept(sock, NULL, NULL);
	while ((size = read(from, buffer, sizeof(buffer))) > 0)
		put(buffer, size);
	if (size < 0)
		die("read");
	return 0;
}

/* The pages of one datagram into the pipe. */
static ssize_t fill(const char *how, int fd, const char *map, loff_t at, int pipe_in, size_t size)
{
	struct iovec pages = {.iov_base = (void *)(map + at), .iov_len = size};

	if (!strcmp(how, "vmsplice"))
		return vmsplice(pipe_in, &pages, 1, SPLICE_F_GIFT);
	return splice(fd, &at, pipe_in, NULL, size, 0);
}

static int datagrams(char **argv)
{
	struct sockaddr_in to = address(argv[3], argv[4]), local = address(argv[5], argv[6]);
	size_t size = atoi(argv[7]), total, at;
	int fd, pipes[2], tries, sock = socket(AF_INET, SOCK_DGRAM, 0);
	const char *how = argv[1], *map;

	total = opened(argv[2], &fd);
	map = mapping(fd, total);
	/* Who had the port before may still be under way out. */
	for (tries = 0; bind(sock, (void *)&local, sizeof(local)); tries++) {
		if (errno != EADDRINUSE || tries == BIND_TRIES)
			die("bind");
		usleep(100000);
	}
	if (connect(sock, (void *)&to, sizeof(to)) || pipe(pipes))
		die("connect");
	for (at = 0; at + size <= total; at += size) {
		off_t offset = at;
		ssize_t sent;

		if (!strcmp(how, "sendfile")) {
			sent = sendfile(sock, fd, &offset, size);
		} else {
			if (fill(how, fd, map, at, pipes[1], size) != (ssize_t)size)
				die("filling the pipe");
			sent = splice(pipes[0], NULL, sock, NULL, size, 0);
		}
		if (sent != (ssize_t)size)
			die(how);
	}
	return 0;
}

int main(int argc, char **argv)
{
	size_t size;
	int fd;

	if (argc == 5 && !strcmp(argv[1], "stream"))
		return stream(argv[2], argv[3], argv[4]);
	if (argc == 4 && !strcmp(argv[1], "sink"))
		return sink(argv[2], argv[3]);
	if (argc == 8)
		return datagrams(argv);
	if (argc != 3 || strcmp(argv[1], "mapped"))
		return 2;
	size = opened(argv[2], &fd);
	put(mapping(fd, size), size);
	return 0;
}
