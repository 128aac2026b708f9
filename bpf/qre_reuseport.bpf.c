// SPDX-License-Identifier: GPL-2.0-only
/*
 * Chooses between the two sockets of the server's port: slot 1 (the data plane) for short-header
 * packets whose destination connection ID is a routed one, slot 0 (user space) for everything else.
 * Where Listen has several addresses the sockets are bound to all of this machine's, and at the
 * others the port is closed: the kernel answers there as if nothing were bound. Nothing else is
 * dropped: whatever cannot be decided here belongs to slot 0, and when that is empty, to the
 * kernel's own choice. A short header does not tell its CID's length (RFC 9000, section 17.3.1):
 * every length that routed CIDs may have is tried, the shortest first. The set of them is set when
 * the program is loaded.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define QRE_MAX_CID_LEN 20
#define QRE_MAX_ROUTES	4096
#define QRE_MAX_LISTEN	8
#define QRE_SLOT_USER	0
#define QRE_SLOT_KERNEL 1
#define UDP_HEADER_LEN	8
#define LONG_HEADER	0x80

struct qre_cid_key {
	__u8 len;
	__u8 cid[QRE_MAX_CID_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, QRE_MAX_ROUTES);
	__type(key, struct qre_cid_key);
	__type(value, __u32);
} QRE_CID_ROUTES SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} QRE_SOCKETS SEC(".maps");

/*
 * What the loader sets before the program is loaded. Bit n of routed_cid_lengths: routed CIDs may
 * have n bytes. several: Listen has more than one address. listen: those, repeated to fill it, with
 * IPv4's mapped to IPv6 (RFC 4291, section 2.5.5.2).
 */
const volatile struct {
	__u32 routed_cid_lengths;
	__u32 several;
	__u32 listen[QRE_MAX_LISTEN][4];
} qre_settings = {.routed_cid_lengths = 1U << QRE_MAX_CID_LEN};

/*
 * Whether the address that a packet was sent to is Listen's. There is no branch for each address,
 * for the verifier's sake (see below). To a process that has CAP_BPF alone, kernels like 6.1
 * refuse to overwrite a part of a register that was put on the stack, so nothing but the packet is
 * put in to.
 */
static __always_inline bool qre_listens(struct sk_reuseport_md *md)
{
	__u32 first = 0, second = 0, third = bpf_htonl(0xffff), missed = 1, to[4], differs, i;

	if (md->eth_protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes_relative(md, offsetof(struct iphdr, daddr), &to[3],
						sizeof(to[3]), BPF_HDR_START_NET))
			return true;
	} else {
		if (bpf_skb_load_bytes_relative(md, offsetof(struct ipv6hdr, daddr), to, sizeof(to),
						BPF_HDR_START_NET))
			return true;
		first = to[0];
		second = to[1];
		third = to[2];
	}
#pragma clang loop unroll(full)
	for (i = 0; i < QRE_MAX_LISTEN; i++) {
		differs = first ^ qre_settings.listen[i][0];
		differs |= second ^ qre_settings.listen[i][1];
		differs |= third ^ qre_settings.listen[i][2];
		differs |= to[3] ^ qre_settings.listen[i][3];
		missed &= (differs | -differs) >> 31;
	}
	return !missed;
}

/*
 * The slot of a packet; data starts at the UDP header. Bytes behind the CID are 0 in a key: each
 * length adds to the one before. The loop is unrolled, because for a process that has CAP_BPF alone
 * the verifier also follows mispredicted branches, and would never leave it.
 */
static __always_inline __u32 qre_slot(struct sk_reuseport_md *md)
{
	__u32 lengths = qre_settings.routed_cid_lengths;
	struct qre_cid_key key = {};
	__u32 *slot;
	__u8 first;
	__u32 len;

	if (bpf_skb_load_bytes(md, UDP_HEADER_LEN, &first, sizeof(first)))
		return QRE_SLOT_USER;
	if (first & LONG_HEADER)
		return QRE_SLOT_USER;
#pragma clang loop unroll(full)
	for (len = 1; len <= QRE_MAX_CID_LEN; len++) {
		if (!(lengths & 1U << len))
			continue;
		if (bpf_skb_load_bytes(md, UDP_HEADER_LEN + 1, key.cid, len))
			break;
		key.len = len;
		slot = bpf_map_lookup_elem(&QRE_CID_ROUTES, &key);
		if (slot && *slot == QRE_SLOT_KERNEL)
			return QRE_SLOT_KERNEL;
	}
	return QRE_SLOT_USER;
}

SEC("sk_reuseport")
int qre_reuseport_demux(struct sk_reuseport_md *md)
{
	__u32 slot;

	if (qre_settings.several && !qre_listens(md))
		return SK_DROP;
	slot = qre_slot(md);
	if (!bpf_sk_select_reuseport(md, &QRE_SOCKETS, &slot, 0))
		return SK_PASS;
	/* Its socket is closed: the other one, or whatever the kernel takes. */
	slot = slot == QRE_SLOT_USER ? QRE_SLOT_KERNEL : QRE_SLOT_USER;
	bpf_sk_select_reuseport(md, &QRE_SOCKETS, &slot, 0);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "GPL";
