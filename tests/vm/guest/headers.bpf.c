// SPDX-License-Identifier: GPL-2.0-only
/*
 * What tc and generic XDP see of a device that carries IP and nothing before it: "seen" counts the
 * packets whose first byte, length and link-layer offset are an IP packet's, and the others.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { RIGHT, WRONG, KINDS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

struct head {
	__u8 version, tos;
	__be16 size;	/* of an IPv4 packet */
	__be16 payload; /* of an IPv6 packet, its header not counted */
	__u8 rest[14];
};

static void count(__u32 kind)
{
	__u64 *counter = bpf_map_lookup_elem(&seen, &kind);

	if (counter)
		__sync_fetch_and_add(counter, 1);
}

static int whole(const struct head *head, __u64 length)
{
	switch (head->version >> 4) {
	case 4:
		return bpf_ntohs(head->size) == length;
	case 6:
		return bpf_ntohs(head->payload) + 40ULL == length;
	}
	return 0;
}

SEC("xdp")
int xdp_sees(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct head *head = data;

	count((void *)(head + 1) <= end && whole(head, (__u64)(end - data)) ? RIGHT : WRONG);
	return XDP_PASS;
}

SEC("tc")
int tc_sees(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct head *head = data, link = {};

	if ((void *)(head + 1) > end || !whole(head, skb->len) ||
	    bpf_skb_load_bytes_relative(skb, 0, &link, sizeof(link), BPF_HDR_START_MAC) ||
	    !whole(&link, skb->len) ||
	    bpf_skb_load_bytes_relative(skb, 0, &link, sizeof(link), BPF_HDR_START_NET) ||
	    !whole(&link, skb->len))
		count(WRONG);
	else
		count(RIGHT);
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";
