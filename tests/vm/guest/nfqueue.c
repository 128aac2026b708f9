// SPDX-License-Identifier: GPL-2.0-only
/*
 * nfqueue NUMBER: accepts whatever is queued there, prints "open", and then of each packet its hook
 * and length, "right HOOK LENGTH", or "wrong HOOK LENGTH" when its header says another one.
 */
#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct message {
	struct nlmsghdr header;
	struct nfgenmsg generic;
	struct nlattr attribute;
	uint8_t value[8];
};

static void ask(int fd, uint16_t queue, uint16_t type, uint16_t attribute, const void *value,
		size_t size)
{
	struct message m = {
		.header = {.nlmsg_len = offsetof(struct message, value) + NLA_ALIGN(size),
			   .nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | type,
			   .nlmsg_flags = NLM_F_REQUEST},
		.generic = {.version = NFNETLINK_V0, .res_id = htons(queue)},
		.attribute = {.nla_len = NLA_HDRLEN + size, .nla_type = attribute},
	};

	memcpy(m.value, value, size);
	if (send(fd, &m, m.header.nlmsg_len, 0) < 0)
		exit(1);
}

static const struct nlattr *find(const struct nlmsghdr *n, uint16_t type)
{
	const uint8_t *at = (const uint8_t *)NLMSG_DATA(n) + NLMSG_ALIGN(sizeof(struct nfgenmsg));
	const uint8_t *end = (const uint8_t *)n + n->nlmsg_len;

	while (at + NLA_HDRLEN <= end) {
		const struct nlattr *a = (const void *)at;

		if ((a->nla_type & NLA_TYPE_MASK) == type)
			return a;
		at += NLA_ALIGN(a->nla_len);
	}
	return NULL;
}

static void queued(int fd, uint16_t queue, const struct nlmsghdr *n)
{
	const struct nlattr *head = find(n, NFQA_PACKET_HDR), *payload = find(n, NFQA_PAYLOAD);
	const struct nfqnl_msg_packet_hdr *packet = (const void *)(head + 1);
	struct nfqnl_msg_verdict_hdr verdict = {.verdict = htonl(NF_ACCEPT)};
	const uint8_t *ip = (const uint8_t *)(payload + 1);
	size_t size = payload->nla_len - NLA_HDRLEN;
	size_t told = ip[0] >> 4 == 4 ? ip[2] << 8 | ip[3] : 40 + (ip[4] << 8 | ip[5]);

	verdict.id = packet->packet_id;
	printf("%s %d %zu\n", told == size ? "right" : "wrong", packet->hook, size);
	fflush(stdout);
	ask(fd, queue, NFQNL_MSG_VERDICT, NFQA_VERDICT_HDR, &verdict, sizeof(verdict));
}

int main(int argc, char **argv)
{
	struct nfqnl_msg_config_cmd bind = {.command = NFQNL_CFG_CMD_BIND};
	struct nfqnl_msg_config_params copy = {.copy_range = htonl(0xffff),
					       .copy_mode = NFQNL_COPY_PACKET};
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
	static uint8_t buffer[1 << 17];
	uint16_t queue;
	int size;

	if (argc != 2 || fd < 0)
		return 2;
	queue = atoi(argv[1]);
	ask(fd, queue, NFQNL_MSG_CONFIG, NFQA_CFG_CMD, &bind, sizeof(bind));
	ask(fd, queue, NFQNL_MSG_CONFIG, NFQA_CFG_PARAMS, &copy, sizeof(copy));
	printf("open\n");
	fflush(stdout);
	while ((size = recv(fd, buffer, sizeof(buffer), 0)) > 0) {
		struct nlmsghdr *n = (void *)buffer;

		for (; NLMSG_OK(n, size); n = NLMSG_NEXT(n, size))
			if (n->nlmsg_type == (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
				queued(fd, queue, n);
	}
	return 1;
}
