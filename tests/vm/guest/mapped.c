// SPDX-License-Identifier: GPL-2.0-only
/*
 * mapped: makes a map as the loader's, registers it for the CIDs of its namespace, prints "held"
 * and stays. At SIGTERM it prints how many entries the map has, and ends.
 */
#define _GNU_SOURCE
#include <linux/bpf.h>
#include <signal.h>
#include <sys/syscall.h>

#include "genl.h"

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int entries(int map)
{
	uint8_t key[sizeof(struct qre_cid)], next[sizeof(struct qre_cid)];
	int count = 0;

	for (;;) {
		union bpf_attr attr = {.map_fd = map,
				       .key = count ? (uintptr_t)key : 0,
				       .next_key = (uintptr_t)next};

		if (bpf(BPF_MAP_GET_NEXT_KEY, &attr))
			return count;
		memcpy(key, next, sizeof(key));
		count++;
	}
}

int main(void)
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_HASH,
			       .key_size = sizeof(struct qre_cid),
			       .value_size = 4,
			       .max_entries = QRE_CIDS_MAX};
	static struct request r;
	static struct genl g;
	sigset_t end;
	uint32_t map;
	int error;

	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, NULL);
	map = bpf(BPF_MAP_CREATE, &attr);
	error = (int)map < 0 ? errno : genl_open(&g);
	if (!error) {
		genl_begin(&g, &r, g.family, QRE_CMD_CID_MAP_REGISTER, 0);
		genl_put(&r, QRE_A_FD, &map, 4);
		error = genl_ask(&g, &r, NULL);
	}
	if (error) {
		fprintf(stderr, "mapped: %s %s\n", strerror(error), g.words);
		return 1;
	}
	close(g.fd);
	printf("held\n");
	fflush(stdout);
	sigwait(&end, &error);
	printf("entries=%d\n", entries(map));
	return 0;
}
