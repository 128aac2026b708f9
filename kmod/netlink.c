// SPDX-License-Identifier: GPL-2.0-only
/* Generic netlink family "qre": requests in, replies out. What an attribute must look like is in
 * attributes.c. */
#include <crypto/algapi.h>
#include <linux/ip.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <linux/udp.h>
#include <net/genetlink.h>
#include "attributes.h"
#include "cid.h"
#include "cidmap.h"
#include "compat.h"
#include "device.h"
#include "events.h"
#include "family.h"
#include "namespace.h"
#include "netlink.h"
#include "session.h"
#include "socket.h"

/* Bytes of a device's reply besides its Dest profile. */
#define QRE_DEVICE_REPLY 12288

/* --- what every command does first --- */

static struct qre_net *qre_net_begin(struct genl_info *info)
{
	struct qre_net *qn = qre_net_of(genl_info_net(info));

	mutex_lock(&qn->lock);
	return qn;
}

static struct qre_device *qre_named(struct net *net, struct nlattr **attrs,
				    struct netlink_ext_ack *extack)
{
	struct qre_device *qdev = NULL;

	if (attrs[QRE_A_IFNAME])
		qdev = qre_device_by_name(net, nla_data(attrs[QRE_A_IFNAME]));
	else if (attrs[QRE_A_IFINDEX])
		qdev = qre_device_by_index(net, nla_get_u32(attrs[QRE_A_IFINDEX]));
	else
		return ERR_PTR(qre_miss(QRE_A_IFNAME, extack));
	if (!qdev) {
		NL_SET_ERR_MSG(extack, "Device: there is no such qre device in this namespace");
		return ERR_PTR(-ENODEV);
	}
	return qdev;
}

static int qre_check_capable(struct sk_buff *request, struct net *net,
			     struct netlink_ext_ack *extack)
{
	if (qre_may(request, net))
		return 0;
	NL_SET_ERR_MSG(extack, QRE_NOT_CAPABLE);
	return -EPERM;
}

/* A command on one device, under the namespace's lock. */
static int qre_on_device(struct genl_info *info,
			 int (*command)(struct qre_device *qdev, struct nlattr **attrs,
					struct netlink_ext_ack *extack))
{
	struct qre_net *qn;
	struct qre_device *qdev;
	int error;

	error = qre_check_needed(info->genlhdr->cmd, info->attrs, info->extack);
	if (error)
		return error;
	qn = qre_net_begin(info);
	qdev = qre_named(qn->net, info->attrs, info->extack);
	error = IS_ERR(qdev) ? PTR_ERR(qdev) : command(qdev, info->attrs, info->extack);
	mutex_unlock(&qn->lock);
	return error;
}

/* --- devices --- */

static void qre_text(char *out, size_t size, const struct nlattr *nla)
{
	if (nla)
		nla_strscpy(out, nla, size);
}

static struct qre_address qre_read_ip(struct nlattr **attrs, u8 v4, u8 v6, __be16 port)
{
	struct in6_addr ip;

	if (!attrs[v6])
		return qre_address_v4(nla_get_be32(attrs[v4]), port);
	ip = nla_get_in6_addr(attrs[v6]);
	return qre_address_v6(&ip, port);
}

/* Of both addresses IPv6's holds. */
static void qre_read_listen(struct qre_address *listen, struct nlattr **attrs)
{
	__be16 port = listen->port;

	if (attrs[QRE_A_LISTEN_PORT])
		port = nla_get_be16(attrs[QRE_A_LISTEN_PORT]);
	if (attrs[QRE_A_LISTEN_IP] || attrs[QRE_A_LISTEN_IPV6])
		*listen = qre_read_ip(attrs, QRE_A_LISTEN_IP, QRE_A_LISTEN_IPV6, port);
	listen->port = port;
}

static void qre_read_config(struct qre_device_config *config, struct nlattr **attrs)
{
	if (attrs[QRE_A_ROLE])
		config->role = nla_get_u8(attrs[QRE_A_ROLE]);
	qre_text(config->dest, sizeof(config->dest), attrs[QRE_A_DEST]);
	qre_text(config->server_name, sizeof(config->server_name), attrs[QRE_A_SERVER_NAME]);
	qre_text(config->endpoint, sizeof(config->endpoint), attrs[QRE_A_ENDPOINT]);
	qre_read_listen(&config->listen, attrs);
	if (attrs[QRE_A_KEEPALIVE])
		config->keepalive = nla_get_u16(attrs[QRE_A_KEEPALIVE]);
	if (attrs[QRE_A_MAX_SESSIONS])
		config->max_sessions = nla_get_u32(attrs[QRE_A_MAX_SESSIONS]);
	if (attrs[QRE_A_FWMARK])
		config->fwmark = nla_get_u32(attrs[QRE_A_FWMARK]);
}

static int qre_cmd_device_set(struct sk_buff *request, struct genl_info *info)
{
	struct netlink_ext_ack *extack = info->extack;
	struct qre_device_config *config;
	struct qre_device *qdev, *made = NULL;
	struct qre_net *qn;
	u32 mtu = 0;
	int error;

	error = qre_check_needed(info->genlhdr->cmd, info->attrs, extack);
	if (error)
		return error;
	/* "%d" would be a pattern: the device would have another name than was asked for. */
	if (!dev_valid_name(nla_data(info->attrs[QRE_A_IFNAME])) ||
	    strchr(nla_data(info->attrs[QRE_A_IFNAME]), '%'))
		return qre_out_of_range(QRE_A_IFNAME, info->attrs, extack);
	config = kzalloc(sizeof(*config), GFP_KERNEL);
	if (!config)
		return -ENOMEM;
	if (info->attrs[QRE_A_MTU])
		mtu = nla_get_u32(info->attrs[QRE_A_MTU]);
	rtnl_lock();
	qn = qre_net_of(genl_info_net(info));
	qdev = qre_device_by_name(qn->net, nla_data(info->attrs[QRE_A_IFNAME]));
	if (!qdev) {
		made = qre_device_create(qn->net, nla_data(info->attrs[QRE_A_IFNAME]), extack);
		qdev = made;
	}
	mutex_lock(&qn->lock);
	if (IS_ERR(qdev)) {
		error = PTR_ERR(qdev);
		made = NULL;
		if (error == -EEXIST)
			NL_SET_ERR_MSG(extack, "Device: another interface has this name");
	} else {
		*config = qdev->config;
		qre_read_config(config, info->attrs);
		error = qre_device_configure(qdev, config, mtu, extack);
	}
	mutex_unlock(&qn->lock);
	if (error && made)
		qre_device_destroy(made);
	rtnl_unlock();
	kfree(config);
	return error;
}

static int qre_cmd_device_del(struct sk_buff *request, struct genl_info *info)
{
	struct qre_device *qdev;
	struct qre_net *qn;
	int error;

	error = qre_check_needed(info->genlhdr->cmd, info->attrs, info->extack);
	if (error)
		return error;
	rtnl_lock();
	qn = qre_net_begin(info);
	qdev = qre_named(qn->net, info->attrs, info->extack);
	mutex_unlock(&qn->lock); /* RTNL keeps it where it is */
	if (IS_ERR(qdev))
		error = PTR_ERR(qdev);
	else
		qre_device_destroy(qdev);
	rtnl_unlock();
	return error;
}

static int qre_put_drops(struct sk_buff *skb, const struct qre_totals *totals)
{
	struct nlattr *nest = nla_nest_start(skb, QRE_A_DROPS);
	unsigned int i;

	if (!nest)
		return -EMSGSIZE;
	for (i = 1; i <= QRE_DROP_MAX; i++)
		if (totals->drops[i] &&
		    nla_put_u64_64bit(skb, i, totals->drops[i], QRE_DROP_UNSPEC))
			return -EMSGSIZE;
	nla_nest_end(skb, nest);
	return 0;
}

static int qre_put_totals(struct sk_buff *skb, const struct qre_totals *t)
{
	return nla_put_u64_64bit(skb, QRE_A_RX_PACKETS, t->rx_packets, QRE_A_PAD) ?:
	       nla_put_u64_64bit(skb, QRE_A_RX_BYTES, t->rx_bytes, QRE_A_PAD) ?:
	       nla_put_u64_64bit(skb, QRE_A_TX_PACKETS, t->tx_packets, QRE_A_PAD) ?:
	       nla_put_u64_64bit(skb, QRE_A_TX_BYTES, t->tx_bytes, QRE_A_PAD) ?:
	       qre_put_drops(skb, t);
}

static int qre_put_config(struct sk_buff *skb, const struct qre_device_config *c)
{
	return nla_put_string(skb, QRE_A_DEST, c->dest) ?:
	       nla_put_string(skb, QRE_A_SERVER_NAME, c->server_name) ?:
	       nla_put_string(skb, QRE_A_ENDPOINT, c->endpoint) ?:
	       (c->listen.family == AF_INET6
			? nla_put(skb, QRE_A_LISTEN_IPV6, QRE_IPV6_SIZE, &c->listen.ip6)
			: nla_put_be32(skb, QRE_A_LISTEN_IP, c->listen.ip4)) ?:
	       nla_put_be16(skb, QRE_A_LISTEN_PORT, c->listen.port) ?:
	       nla_put_u16(skb, QRE_A_KEEPALIVE, c->keepalive) ?:
	       nla_put_u32(skb, QRE_A_MAX_SESSIONS, c->max_sessions) ?:
	       nla_put_u32(skb, QRE_A_FWMARK, c->fwmark);
}

/* What a namespace has once is reported with each of its devices. */
static int qre_put_shared(struct sk_buff *skb, struct qre_net *qn)
{
	struct qre_shared_info shared;
	int error = 0;

	if (qn->map.map)
		error = nla_put_u32(skb, QRE_A_MAP_ID, qn->map.id) ?:
			nla_put_u32(skb, QRE_A_MAP_ENTRIES, qn->map.entries) ?:
			nla_put_u32(skb, QRE_A_MAP_MISSING, qn->map.missing) ?:
			nla_put_u64_64bit(skb, QRE_A_MAP_SYNC_FAILURES, qn->map.failures,
					  QRE_A_PAD);
	qre_shared_tell(qn, &shared);
	if (!error && shared.set)
		error = (shared.address.family == AF_INET6
			? nla_put(skb, QRE_A_SHARED_IPV6, QRE_IPV6_SIZE, &shared.address.ip6)
			: nla_put_be32(skb, QRE_A_SHARED_IP, shared.address.ip4)) ?:
			nla_put_be16(skb, QRE_A_SHARED_PORT, shared.address.port) ?:
			nla_put_u64_64bit(skb, QRE_A_SHARED_RX, shared.rx, QRE_A_PAD) ?:
			nla_put_u64_64bit(skb, QRE_A_SHARED_PASSED, shared.passed, QRE_A_PAD);
	if (!error && qn->loader.set)
		error = nla_put_string(skb, QRE_A_LOADER_PROGRAM, qn->loader.program) ?:
			nla_put_string(skb, QRE_A_LOADER_PIN_DIR, qn->loader.pin_dir) ?:
			nla_put_u8(skb, QRE_A_LOADER_CID_LENGTH, qn->loader.cid_length) ?:
			nla_put_u32(skb, QRE_A_LOADER_PID, qn->loader.pid);
	return error;
}

static int qre_put_cids(struct sk_buff *skb, const struct qre_device *qdev)
{
	struct nlattr *array =
		nla_reserve(skb, QRE_A_CIDS, qdev->cid_count * sizeof(struct qre_cid));
	struct qre_cid_entry *entry;
	struct qre_cid *at;

	if (!array)
		return -EMSGSIZE;
	at = nla_data(array);
	list_for_each_entry(entry, &qdev->cids, device_entry)
		memcpy(at++, &entry->cid, sizeof(*at));
	return 0;
}

static u32 qre_adopted(struct qre_net *qn, const struct qre_device *qdev)
{
	struct qre_cid_entry *entry;
	u32 count = 0;

	list_for_each_entry(entry, &qn->cids, entry)
		count += entry->qdev == qdev;
	return count;
}

/* What everybody in the namespace may see of a device. */
static int qre_put_counters(struct sk_buff *skb, struct qre_device *qdev)
{
	struct qre_totals totals;

	qre_device_totals(qdev, &totals);
	return nla_put_u32(skb, QRE_A_IFINDEX, qdev->dev->ifindex) ?:
	       nla_put_string(skb, QRE_A_IFNAME, qdev->dev->name) ?:
	       nla_put_u32(skb, QRE_A_MTU, qdev->dev->mtu) ?:
	       nla_put_u8(skb, QRE_A_ROLE, qdev->config.role) ?:
	       nla_put_u32(skb, QRE_A_SESSIONS, qdev->session_count) ?:
	       qre_put_totals(skb, &totals);
}

/* The rest, for who may change it. */
static int qre_put_whole(struct sk_buff *skb, struct qre_device *qdev)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));

	return qre_put_config(skb, &qdev->config) ?:
	       qre_put_shared(skb, qn) ?:
	       qre_put_cids(skb, qdev) ?:
	       nla_put_u32(skb, QRE_A_ADOPTED, qre_adopted(qn, qdev)) ?:
	       nla_put_u8(skb, QRE_A_ECN, qdev->ecn) ?:
	       (qdev->dest_profile_size ? nla_put(skb, QRE_A_DEST_PROFILE, qdev->dest_profile_size,
						  qdev->dest_profile) :
					  0);
}

static int qre_put_device(struct sk_buff *skb, struct qre_device *qdev, bool whole, u32 portid,
			  u32 seq, int flags)
{
	void *header = genlmsg_put(skb, portid, seq, &qre_family, flags, QRE_CMD_DEVICE_GET);

	if (!header)
		return -EMSGSIZE;
	if (qre_put_counters(skb, qdev) || (whole && qre_put_whole(skb, qdev))) {
		genlmsg_cancel(skb, header);
		return -EMSGSIZE;
	}
	genlmsg_end(skb, header);
	return 0;
}

static int qre_cmd_device_get(struct sk_buff *request, struct genl_info *info)
{
	struct qre_device *qdev;
	struct sk_buff *reply;
	struct qre_net *qn;
	int error;

	error = qre_check_needed(info->genlhdr->cmd, info->attrs, info->extack);
	if (error)
		return error;
	reply = genlmsg_new(QRE_DEVICE_REPLY + QRE_DEST_PROFILE_MAX, GFP_KERNEL);
	if (!reply)
		return -ENOMEM;
	qn = qre_net_begin(info);
	qdev = qre_named(qn->net, info->attrs, info->extack);
	error = IS_ERR(qdev) ? PTR_ERR(qdev)
			     : qre_put_device(reply, qdev, qre_may(request, qn->net),
					      info->snd_portid, info->snd_seq, 0);
	mutex_unlock(&qn->lock);
	if (error) {
		nlmsg_free(reply);
		return error;
	}
	return genlmsg_reply(reply, info);
}

/* So that every answer fits the first buffer, too. */
static int qre_dump_start(struct netlink_callback *cb)
{
	cb->min_dump_alloc = QRE_DEVICE_REPLY + QRE_DEST_PROFILE_MAX;
	return 0;
}

/* Continues behind the index of the last device in the dump. */
static int qre_dump_devices(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct qre_net *qn = qre_net_of(sock_net(skb->sk));
	struct qre_device *qdev;
	int error = 0;

	mutex_lock(&qn->lock);
	for (;;) {
		struct qre_device *next = NULL;

		list_for_each_entry(qdev, &qn->devices, entry)
			if (qdev->dev->ifindex > cb->args[0] &&
			    (!next || qdev->dev->ifindex < next->dev->ifindex))
				next = qdev;
		if (!next)
			break;
		error = qre_put_device(skb, next, qre_may(cb->skb, qn->net),
				       NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, NLM_F_MULTI);
		if (error)
			break;
		cb->args[0] = next->dev->ifindex;
	}
	mutex_unlock(&qn->lock);
	return skb->len ?: error;
}

static int qre_set_profile(struct qre_device *qdev, struct nlattr **attrs,
			   struct netlink_ext_ack *extack)
{
	struct nlattr *profile = attrs[QRE_A_DEST_PROFILE];
	u8 *copy = NULL;

	if (profile && nla_len(profile)) {
		copy = nla_memdup(profile, GFP_KERNEL);
		if (!copy)
			return -ENOMEM;
	}
	if (profile) {
		kfree(qdev->dest_profile);
		qdev->dest_profile = copy;
		qdev->dest_profile_size = copy ? nla_len(profile) : 0;
	}
	if (attrs[QRE_A_ECN])
		WRITE_ONCE(qdev->ecn, nla_get_u8(attrs[QRE_A_ECN]));
	return 0;
}

static int qre_cmd_profile(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_set_profile);
}

/* --- sessions --- */

static void qre_bytes(u8 *out, const struct nlattr *nla, size_t size)
{
	if (nla)
		memcpy(out, nla_data(nla), size);
}

static void qre_read_cid(struct qre_cid *cid, const struct nlattr *nla)
{
	cid->length = nla_len(nla);
	memcpy(cid->bytes, nla_data(nla), cid->length);
}

/* These together or none. */
static int qre_together(struct nlattr **attrs, const u8 *group, unsigned int count, bool *given,
			struct netlink_ext_ack *extack)
{
	unsigned int i, present = 0;

	for (i = 0; i < count; i++)
		present += !!attrs[group[i]];
	*given = present;
	if (!present || present == count)
		return 0;
	for (i = 0; attrs[group[i]]; i++)
		;
	return qre_miss(group[i], extack);
}

/* An address that a socket can be bound to, or that it can send to: never one that stands for
 * others, or that means nothing without its device. */
static bool qre_address_suits(const struct qre_address *a, bool peer)
{
	int kind;

	if (a->family == AF_INET)
		return !ipv4_is_multicast(a->ip4) && !ipv4_is_lbcast(a->ip4) &&
		       !(peer && ipv4_is_zeronet(a->ip4));
	kind = ipv6_addr_type(&a->ip6);
	return !(kind & (IPV6_ADDR_MULTICAST | IPV6_ADDR_LINKLOCAL | IPV6_ADDR_MAPPED)) &&
	       !(peer && kind == IPV6_ADDR_ANY);
}

/* A socket that is bound to :: speaks IPv4, too. */
static int qre_read_endpoint(struct qre_session_params *p, struct nlattr **attrs,
			     struct netlink_ext_ack *extack)
{
	bool local6 = attrs[QRE_A_LOCAL_IPV6] || (attrs[QRE_A_PEER_IPV6] && !attrs[QRE_A_LOCAL_IP]);
	bool peer6 = attrs[QRE_A_PEER_IPV6] || (attrs[QRE_A_LOCAL_IPV6] && !attrs[QRE_A_PEER_IP]);
	const u8 group[] = {local6 ? QRE_A_LOCAL_IPV6 : QRE_A_LOCAL_IP, QRE_A_LOCAL_PORT,
			    peer6 ? QRE_A_PEER_IPV6 : QRE_A_PEER_IP, QRE_A_PEER_PORT};
	struct qre_endpoint *e = &p->endpoint;
	int error;

	error = qre_together(attrs, group, ARRAY_SIZE(group), &p->has_endpoint, extack);
	if (error || !p->has_endpoint)
		return error;
	if (local6 && attrs[QRE_A_LOCAL_IP])
		return qre_out_of_range(QRE_A_LOCAL_IP, attrs, extack);
	if (peer6 && attrs[QRE_A_PEER_IP])
		return qre_out_of_range(QRE_A_PEER_IP, attrs, extack);
	e->local = qre_read_ip(attrs, QRE_A_LOCAL_IP, QRE_A_LOCAL_IPV6,
			       nla_get_be16(attrs[QRE_A_LOCAL_PORT]));
	e->peer = qre_read_ip(attrs, QRE_A_PEER_IP, QRE_A_PEER_IPV6,
			      nla_get_be16(attrs[QRE_A_PEER_PORT]));
	if (!e->local.port)
		return qre_out_of_range(QRE_A_LOCAL_PORT, attrs, extack);
	if (!e->peer.port)
		return qre_out_of_range(QRE_A_PEER_PORT, attrs, extack);
	if (!qre_address_suits(&e->local, false))
		return qre_out_of_range(group[0], attrs, extack);
	if (!qre_address_suits(&e->peer, true))
		return qre_out_of_range(group[2], attrs, extack);
	if (local6 != peer6 && !(local6 && qre_address_is_any(&e->local))) {
		NL_SET_ERR_MSG_ATTR(extack, attrs[group[2]], QRE_OTHER_FAMILY);
		return -EAFNOSUPPORT;
	}
	return 0;
}

static int qre_read_next(struct qre_session_params *p, struct nlattr **attrs,
			 struct netlink_ext_ack *extack)
{
	static const u8 tx[] = {QRE_A_NEXT_TX_KEY, QRE_A_NEXT_TX_IV};
	static const u8 rx[] = {QRE_A_NEXT_RX_KEY, QRE_A_NEXT_RX_IV};
	int error;

	error = qre_together(attrs, tx, 2, &p->has_next_tx, extack)
			?: qre_together(attrs, rx, 2, &p->has_next_rx, extack);
	if (error)
		return error;
	qre_bytes(p->next.tx_key, attrs[QRE_A_NEXT_TX_KEY], QRE_KEY_SIZE);
	qre_bytes(p->next.tx_iv, attrs[QRE_A_NEXT_TX_IV], QRE_IV_SIZE);
	qre_bytes(p->next.rx_key, attrs[QRE_A_NEXT_RX_KEY], QRE_KEY_SIZE);
	qre_bytes(p->next.rx_iv, attrs[QRE_A_NEXT_RX_IV], QRE_IV_SIZE);
	if (!attrs[QRE_A_NEXT_RX_HP_KEY])
		return 0;
	if (!p->has_next_rx)
		return qre_miss(QRE_A_NEXT_RX_KEY, extack);
	if (attrs[QRE_A_RX_HP_KEY] &&
	    crypto_memneq(nla_data(attrs[QRE_A_NEXT_RX_HP_KEY]), nla_data(attrs[QRE_A_RX_HP_KEY]),
			  QRE_KEY_SIZE)) {
		NL_SET_ERR_MSG_ATTR(extack, attrs[QRE_A_NEXT_RX_HP_KEY],
				    "NextRxHpKey must equal RxHpKey: a key update keeps it");
		return -EINVAL;
	}
	return 0;
}

static int qre_read_allowed(struct qre_session_params *p, struct nlattr **attrs,
			    struct netlink_ext_ack *extack)
{
	struct nlattr *nla = attrs[QRE_A_ALLOWED_IPS];
	unsigned int i;

	if (!nla)
		return 0;
	if (nla_len(nla) % sizeof(struct qre_allowed_ip)) {
		NL_SET_ERR_MSG_ATTR(extack, nla, "AllowedIPs has a wrong size");
		return -EINVAL;
	}
	p->allowed_ips = nla_data(nla);
	p->allowed_ip_count = nla_len(nla) / sizeof(struct qre_allowed_ip);
	for (i = 0; i < p->allowed_ip_count; i++) {
		const struct qre_allowed_ip *ip = &p->allowed_ips[i];

		if ((ip->family != 4 && ip->family != 6) ||
		    ip->prefix > (ip->family == 4 ? 32 : 128) || ip->reserved[0] || ip->reserved[1])
			return qre_out_of_range(QRE_A_ALLOWED_IPS, attrs, extack);
	}
	return 0;
}

static void qre_read_keys(struct qre_session_params *p, struct nlattr **attrs)
{
	qre_bytes(p->id, attrs[QRE_A_SESSION_ID], QRE_SESSION_ID_SIZE);
	qre_bytes(p->keys.tx_key, attrs[QRE_A_TX_KEY], QRE_KEY_SIZE);
	qre_bytes(p->keys.rx_key, attrs[QRE_A_RX_KEY], QRE_KEY_SIZE);
	qre_bytes(p->keys.tx_iv, attrs[QRE_A_TX_IV], QRE_IV_SIZE);
	qre_bytes(p->keys.rx_iv, attrs[QRE_A_RX_IV], QRE_IV_SIZE);
	qre_bytes(p->tx_hp, attrs[QRE_A_TX_HP_KEY], QRE_KEY_SIZE);
	qre_bytes(p->rx_hp, attrs[QRE_A_RX_HP_KEY], QRE_KEY_SIZE);
	qre_bytes(p->reset_token, attrs[QRE_A_RESET_TOKEN], QRE_RESET_TOKEN_SIZE);
	p->has_reset_token = attrs[QRE_A_RESET_TOKEN];
	p->key_epoch = nla_get_u64(attrs[QRE_A_KEY_EPOCH]);
}

static void qre_read_numbers(struct qre_session_params *p, const struct qre_device *qdev,
			     struct nlattr **attrs)
{
	if (attrs[QRE_A_PACKET_NUMBER])
		p->packet_number = nla_get_u64(attrs[QRE_A_PACKET_NUMBER]);
	p->idle_ms = attrs[QRE_A_IDLE_MS] ? nla_get_u64(attrs[QRE_A_IDLE_MS]) : 30000;
	p->keepalive_ms = attrs[QRE_A_KEEPALIVE_MS] ? nla_get_u64(attrs[QRE_A_KEEPALIVE_MS])
						    : qdev->config.keepalive * 1000ULL;
	p->ack_delay_exponent =
		attrs[QRE_A_ACK_DELAY_EXPONENT] ? nla_get_u8(attrs[QRE_A_ACK_DELAY_EXPONENT]) : 3;
	p->max_ack_delay_ms =
		attrs[QRE_A_MAX_ACK_DELAY_MS] ? nla_get_u16(attrs[QRE_A_MAX_ACK_DELAY_MS]) : 25;
	p->max_udp_payload = attrs[QRE_A_MAX_UDP_PAYLOAD]
				     ? nla_get_u16(attrs[QRE_A_MAX_UDP_PAYLOAD])
				     : QRE_UDP_PAYLOAD_MAX;
	p->usual_payload = attrs[QRE_A_USUAL_PAYLOAD] ? nla_get_u16(attrs[QRE_A_USUAL_PAYLOAD])
						      : QRE_UDP_PAYLOAD_MAX;
	p->splits = attrs[QRE_A_SPLITS];
	p->rekey_after = attrs[QRE_A_REKEY_AFTER] ? nla_get_u64(attrs[QRE_A_REKEY_AFTER])
						  : QRE_REKEY_AFTER_PACKETS;
	p->sequence = attrs[QRE_A_SEQUENCE] ? nla_get_u64(attrs[QRE_A_SEQUENCE]) : 0;
	p->fd = attrs[QRE_A_FD] ? (int)nla_get_u32(attrs[QRE_A_FD]) : -1;
	p->hold = attrs[QRE_A_HOLD];
}

static int qre_read_session(struct qre_session_params *p, const struct qre_device *qdev,
			    struct nlattr **attrs, bool install, struct netlink_ext_ack *extack)
{
	static const u8 needed[] = {QRE_A_CID, QRE_A_TX_HP_KEY, QRE_A_RX_HP_KEY,
				    QRE_A_PACKET_NUMBER};
	static const u8 hp[] = {QRE_A_TX_HP_KEY, QRE_A_RX_HP_KEY};
	unsigned int i;
	int error;

	for (i = 0; install && i < ARRAY_SIZE(needed); i++)
		if (!attrs[needed[i]])
			return qre_miss(needed[i], extack);
	error = qre_together(attrs, hp, 2, &p->has_hp, extack) ?:
		qre_read_endpoint(p, attrs, extack) ?:
		qre_read_next(p, attrs, extack) ?:
		qre_read_allowed(p, attrs, extack);
	if (error)
		return error;
	if (attrs[QRE_A_CID])
		qre_read_cid(&p->cid, attrs[QRE_A_CID]);
	p->client_cid = p->cid;
	if (attrs[QRE_A_CLIENT_CID]) {
		memset(&p->client_cid, 0, sizeof(p->client_cid));
		qre_read_cid(&p->client_cid, attrs[QRE_A_CLIENT_CID]);
	}
	qre_bytes(p->short_id, attrs[QRE_A_SHORT_ID], QRE_SHORT_ID_SIZE);
	qre_read_keys(p, attrs);
	qre_read_numbers(p, qdev, attrs);
	return 0;
}

static int qre_change_session(struct qre_device *qdev, struct nlattr **attrs,
			      struct netlink_ext_ack *extack, bool install)
{
	struct qre_session_params *p = kzalloc(sizeof(*p), GFP_KERNEL);
	int error;

	if (!p)
		return -ENOMEM;
	error = qre_read_session(p, qdev, attrs, install, extack);
	if (!error)
		error = install ? qre_session_install(qdev, p, extack)
				: qre_session_update(qdev, p, extack);
	kfree_sensitive(p);
	return error;
}

static int qre_install(struct qre_device *qdev, struct nlattr **attrs,
		       struct netlink_ext_ack *extack)
{
	return qre_change_session(qdev, attrs, extack, true);
}

static int qre_update(struct qre_device *qdev, struct nlattr **attrs,
		      struct netlink_ext_ack *extack)
{
	return qre_change_session(qdev, attrs, extack, false);
}

static int qre_delete(struct qre_device *qdev, struct nlattr **attrs,
		      struct netlink_ext_ack *extack)
{
	return qre_session_delete(qdev, nla_data(attrs[QRE_A_SESSION_ID]), attrs[QRE_A_CLOSE],
				  extack);
}

static int qre_send_frames(struct qre_device *qdev, struct nlattr **attrs,
			   struct netlink_ext_ack *extack)
{
	return qre_frame_send(qdev, nla_data(attrs[QRE_A_SESSION_ID]),
			      nla_get_u64(attrs[QRE_A_FRAME_ID]), nla_data(attrs[QRE_A_FRAMES]),
			      nla_len(attrs[QRE_A_FRAMES]), extack);
}

static int qre_prove_path(struct qre_device *qdev, struct nlattr **attrs,
			  struct netlink_ext_ack *extack)
{
	return qre_path_proven(qdev, nla_data(attrs[QRE_A_SESSION_ID]),
			       nla_get_u16(attrs[QRE_A_PROVEN_PAYLOAD]),
			       nla_get_u64(attrs[QRE_A_PROVEN_AGO_MS]), extack);
}

static int qre_give_up(struct qre_device *qdev, struct nlattr **attrs,
		       struct netlink_ext_ack *extack)
{
	return qre_session_give_up(
		qdev, nla_data(attrs[QRE_A_SESSION_ID]), nla_get_u64(attrs[QRE_A_LAST_REPEAT_MS]),
		nla_get_u64(attrs[QRE_A_GIVES_UP_MS]), nla_data(attrs[QRE_A_FRAMES]),
		nla_len(attrs[QRE_A_FRAMES]), extack);
}

static int qre_try_port(struct qre_device *qdev, struct nlattr **attrs,
			struct netlink_ext_ack *extack)
{
	return qre_session_try_port(
		qdev, nla_data(attrs[QRE_A_SESSION_ID]), nla_get_u32(attrs[QRE_A_FD]),
		nla_get_u8(attrs[QRE_A_CHALLENGES]), nla_get_u64(attrs[QRE_A_APART_MS]), extack);
}

static int qre_move(struct qre_device *qdev, struct nlattr **attrs, struct netlink_ext_ack *extack)
{
	return qre_session_move(qdev, nla_data(attrs[QRE_A_SESSION_ID]), extack);
}

static int qre_drop_port(struct qre_device *qdev, struct nlattr **attrs,
			 struct netlink_ext_ack *extack)
{
	return qre_session_drop_port(qdev, nla_data(attrs[QRE_A_SESSION_ID]), extack);
}

static int qre_adopt(struct qre_device *qdev, struct nlattr **attrs, struct netlink_ext_ack *extack)
{
	struct nlattr *id = attrs[QRE_A_SESSION_ID], *sequence = attrs[QRE_A_SEQUENCE];
	struct qre_cid cid = {};

	qre_read_cid(&cid, attrs[QRE_A_CID]);
	return qre_cid_adopt(qdev, id ? nla_data(id) : NULL, &cid,
			     sequence ? nla_get_u64(sequence) : 0, extack);
}

static int qre_release(struct qre_device *qdev, struct nlattr **attrs,
		       struct netlink_ext_ack *extack)
{
	struct nlattr *id = attrs[QRE_A_SESSION_ID];
	struct qre_cid cid = {};

	qre_read_cid(&cid, attrs[QRE_A_CID]);
	return qre_cid_release(qdev, id ? nla_data(id) : NULL, &cid, extack);
}

/* The request lies in a socket buffer that is freed as it is; refused ones held keys, too. */
static void qre_wipe_request(struct nlattr **attrs)
{
	unsigned int i;

	for (i = QRE_A_TX_KEY; i <= QRE_A_NEXT_RX_HP_KEY; i++)
		if (attrs[i])
			memzero_explicit(nla_data(attrs[i]), nla_len(attrs[i]));
	if (attrs[QRE_A_RESET_TOKEN])
		memzero_explicit(nla_data(attrs[QRE_A_RESET_TOKEN]),
				 nla_len(attrs[QRE_A_RESET_TOKEN]));
}

static int qre_cmd_install(struct sk_buff *request, struct genl_info *info)
{
	int error = qre_on_device(info, qre_install);

	qre_wipe_request(info->attrs);
	return error;
}

static int qre_cmd_update(struct sk_buff *request, struct genl_info *info)
{
	int error = qre_on_device(info, qre_update);

	qre_wipe_request(info->attrs);
	return error;
}

static int qre_cmd_delete(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_delete);
}

static int qre_cmd_frames(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_send_frames);
}

static int qre_cmd_path_proven(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_prove_path);
}

static int qre_cmd_give_up(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_give_up);
}

static int qre_cmd_try_port(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_try_port);
}

static int qre_cmd_move(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_move);
}

static int qre_cmd_drop_port(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_drop_port);
}

static int qre_cmd_adopt(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_adopt);
}

static int qre_cmd_release(struct sk_buff *request, struct genl_info *info)
{
	return qre_on_device(info, qre_release);
}

int qre_put_endpoint(struct sk_buff *skb, const struct qre_endpoint *e)
{
	return (e->local.family == AF_INET6
			? nla_put(skb, QRE_A_LOCAL_IPV6, QRE_IPV6_SIZE, &e->local.ip6)
			: nla_put_be32(skb, QRE_A_LOCAL_IP, e->local.ip4)) ?:
	       nla_put_be16(skb, QRE_A_LOCAL_PORT, e->local.port) ?:
	       (e->peer.family == AF_INET6
			? nla_put(skb, QRE_A_PEER_IPV6, QRE_IPV6_SIZE, &e->peer.ip6)
			: nla_put_be32(skb, QRE_A_PEER_IP, e->peer.ip4)) ?:
	       nla_put_be16(skb, QRE_A_PEER_PORT, e->peer.port);
}

static int qre_put_traffic(struct sk_buff *skb, const struct qre_session_info *i)
{
	return nla_put_u64_64bit(skb, QRE_A_AGE_MS, i->age_ms, QRE_A_PAD) ?:
	       (i->received ? nla_put_u64_64bit(skb, QRE_A_LAST_RECEIVE_MS, i->last_receive_ms,
						QRE_A_PAD) :
			      0) ?:
	       (i->client ? nla_put_u64_64bit(skb, QRE_A_UNANSWERED_MS, i->unanswered_ms,
					      QRE_A_PAD)
				    ?: nla_put_u8(skb, QRE_A_SILENT, i->silent)
				    ?: nla_put_u8(skb, QRE_A_TRIES, i->tries)
				    ?: nla_put_u8(skb, QRE_A_BEGUN, i->begun)
				    ?: nla_put_u64_64bit(skb, QRE_A_SEQUENCE, i->sequence, QRE_A_PAD) :
			    0) ?:
	       nla_put_u64_64bit(skb, QRE_A_RX_PACKETS, i->rx_packets, QRE_A_PAD) ?:
	       nla_put_u64_64bit(skb, QRE_A_RX_BYTES, i->rx_bytes, QRE_A_PAD) ?:
	       nla_put_u64_64bit(skb, QRE_A_TX_PACKETS, i->tx_packets, QRE_A_PAD) ?:
	       nla_put_u64_64bit(skb, QRE_A_TX_BYTES, i->tx_bytes, QRE_A_PAD);
}

static int qre_put_session(struct sk_buff *skb, struct qre_device *qdev, struct qre_session *s,
			   u32 portid, u32 seq, int flags)
{
	struct qre_session_info *i = kmalloc(sizeof(*i), GFP_KERNEL);
	void *header;
	int error = -EMSGSIZE;

	if (!i)
		return -ENOMEM;
	qre_session_tell(s, i);
	header = genlmsg_put(skb, portid, seq, &qre_family, flags, QRE_CMD_SESSION_GET);
	if (!header)
		goto free;
	if (nla_put_string(skb, QRE_A_IFNAME, qdev->dev->name) ||
	    nla_put(skb, QRE_A_SESSION_ID, QRE_SESSION_ID_SIZE, i->id) ||
	    nla_put(skb, QRE_A_CID, i->cid.length, i->cid.bytes) ||
	    nla_put(skb, QRE_A_CLIENT_CID, i->client_cid.length, i->client_cid.bytes) ||
	    nla_put(skb, QRE_A_SHORT_ID, QRE_SHORT_ID_SIZE, i->short_id) ||
	    nla_put_u8(skb, QRE_A_STATE, i->state) ||
	    nla_put_u8(skb, QRE_A_CONFIRMED, i->confirmed) ||
	    nla_put_u64_64bit(skb, QRE_A_KEY_EPOCH, i->key_epoch, QRE_A_PAD) ||
	    nla_put_u64_64bit(skb, QRE_A_PACKET_NUMBER, i->packet_number, QRE_A_PAD) ||
	    nla_put_u64_64bit(skb, QRE_A_RX_NUMBER, i->rx_number, QRE_A_PAD) ||
	    (i->has_endpoint && qre_put_endpoint(skb, &i->endpoint)) || qre_put_traffic(skb, i) ||
	    nla_put(skb, QRE_A_CIDS, i->cid_count * sizeof(struct qre_cid), i->cids) ||
	    nla_put(skb, QRE_A_ALLOWED_IPS, i->allowed_ip_count * sizeof(*i->allowed_ips),
		    i->allowed_ips) ||
	    nla_put_string(skb, QRE_A_AEAD_DRIVER, i->aead_driver) ||
	    nla_put_u16(skb, QRE_A_PATH_MTU,
			i->udp_payload + sizeof(struct udphdr) +
				qre_ip_header_size(i->endpoint.peer.family)) ||
	    nla_put_u16(skb, QRE_A_INNER_MTU, i->inner_mtu) ||
	    nla_put_u16(skb, QRE_A_INNER_MTU_IPV6, i->inner_mtu_ipv6) ||
	    nla_put_u16(skb, QRE_A_INNER_MTU_IN_TWO, i->inner_mtu_in_two)) {
		genlmsg_cancel(skb, header);
		goto free;
	}
	genlmsg_end(skb, header);
	error = 0;
free:
	kfree(i);
	return error;
}

static int qre_cmd_session_get(struct sk_buff *request, struct genl_info *info)
{
	struct qre_session *s = NULL;
	struct qre_device *qdev;
	struct sk_buff *reply;
	struct qre_net *qn;
	int error;

	error = qre_check_needed(info->genlhdr->cmd, info->attrs, info->extack);
	if (error)
		return error;
	if (!info->attrs[QRE_A_SESSION_ID])
		return qre_miss(QRE_A_SESSION_ID, info->extack);
	reply = genlmsg_new(QRE_DEVICE_REPLY, GFP_KERNEL);
	if (!reply)
		return -ENOMEM;
	qn = qre_net_begin(info);
	qdev = qre_named(qn->net, info->attrs, info->extack);
	error = PTR_ERR_OR_ZERO(qdev);
	if (!error) {
		s = qre_session_find(qdev, nla_data(info->attrs[QRE_A_SESSION_ID]));
		if (!s) {
			NL_SET_ERR_MSG(info->extack, "SessionId: there is no such session");
			error = -ENOENT;
		}
	}
	if (!error)
		error = qre_put_session(reply, qdev, s, info->snd_portid, info->snd_seq, 0);
	mutex_unlock(&qn->lock);
	if (error) {
		nlmsg_free(reply);
		return error;
	}
	return genlmsg_reply(reply, info);
}

/* Continues behind the number of the last session in the dump. */
static int qre_dump_sessions(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct nlattr **attrs = qre_dump_attrs(cb);
	struct qre_net *qn = qre_net_of(sock_net(skb->sk));
	struct qre_device *qdev;
	struct qre_session *s;
	int error;

	error = qre_check_capable(cb->skb, qn->net, cb->extack)
			?: qre_check_needed(QRE_CMD_SESSION_GET, attrs, cb->extack);
	if (error)
		return error;
	mutex_lock(&qn->lock);
	qdev = qre_named(qn->net, attrs, cb->extack);
	error = PTR_ERR_OR_ZERO(qdev);
	while (!error && (s = qre_session_from(qdev, cb->args[0] + 1))) {
		error = qre_put_session(skb, qdev, s, NETLINK_CB(cb->skb).portid,
					cb->nlh->nlmsg_seq, NLM_F_MULTI);
		if (!error)
			cb->args[0] = qre_session_number(s);
	}
	mutex_unlock(&qn->lock);
	return skb->len ?: error;
}

/* --- what the namespace has once --- */

static int qre_cmd_shared(struct sk_buff *request, struct genl_info *info)
{
	struct nlattr **attrs = info->attrs;
	struct netlink_ext_ack *extack = info->extack;
	struct qre_net *qn;
	int error;

	error = qre_check_needed(info->genlhdr->cmd, attrs, extack);
	if (error)
		return error;
	qn = qre_net_begin(info);
	switch (info->genlhdr->cmd) {
	case QRE_CMD_CID_MAP_REGISTER:
		error = qre_cidmap_register(qn, nla_get_u32(attrs[QRE_A_FD]), extack);
		break;
	case QRE_CMD_CID_MAP_UNREGISTER:
		error = qre_cidmap_unregister(qn, extack);
		break;
	case QRE_CMD_SHARED_SOCKET_REGISTER:
		error = qre_shared_register(qn, nla_get_u32(attrs[QRE_A_FD]), extack);
		break;
	case QRE_CMD_SHARED_SOCKET_UNREGISTER:
		error = qre_shared_unregister(qn, extack);
		break;
	}
	mutex_unlock(&qn->lock);
	return error;
}

static int qre_cmd_loader(struct sk_buff *request, struct genl_info *info)
{
	static const u8 all[] = {QRE_A_LOADER_PROGRAM, QRE_A_LOADER_PIN_DIR,
				 QRE_A_LOADER_CID_LENGTH, QRE_A_LOADER_PID};
	struct qre_loader loader = {};
	struct qre_net *qn;
	unsigned int i;
	int error;

	error = qre_check_needed(info->genlhdr->cmd, info->attrs, info->extack)
			?: qre_together(info->attrs, all, ARRAY_SIZE(all), &loader.set,
					info->extack);
	if (error)
		return error;
	for (i = 0; loader.set && i < 2; i++)
		if (nla_len(info->attrs[all[i]]) <= 1) /* an empty text */
			return qre_out_of_range(all[i], info->attrs, info->extack);
	if (loader.set) {
		qre_text(loader.program, sizeof(loader.program), info->attrs[QRE_A_LOADER_PROGRAM]);
		qre_text(loader.pin_dir, sizeof(loader.pin_dir), info->attrs[QRE_A_LOADER_PIN_DIR]);
		loader.cid_length = nla_get_u8(info->attrs[QRE_A_LOADER_CID_LENGTH]);
		loader.pid = nla_get_u32(info->attrs[QRE_A_LOADER_PID]);
	}
	qn = qre_net_begin(info);
	qn->loader = loader;
	mutex_unlock(&qn->lock);
	return 0;
}

/* --- the family --- */

/*
 * As the family's GENL_ADMIN_PERM, which refuses without a word. Everything needs it but reading a
 * device, of which others see counters.
 */
static int qre_before_command(const struct qre_genl_called *called, struct sk_buff *request,
			      struct genl_info *info)
{
	if (called->cmd == QRE_CMD_DEVICE_GET)
		return 0;
	return qre_check_capable(request, genl_info_net(info), info->extack);
}

#define QRE_CALLED(command, call, taken)                                                           \
	{                                                                                          \
		.cmd = QRE_CMD_##command, .doit = call, .policy = qre_policy_##taken               \
	}

static const struct genl_ops qre_ops[] = {
	{.cmd = QRE_CMD_DEVICE_GET,
	 .doit = qre_cmd_device_get,
	 .start = qre_dump_start,
	 .dumpit = qre_dump_devices,
	 .policy = qre_policy_device},
	{.cmd = QRE_CMD_SESSION_GET,
	 .doit = qre_cmd_session_get,
	 .start = qre_dump_start,
	 .dumpit = qre_dump_sessions,
	 .policy = qre_policy_session},
	QRE_CALLED(DEVICE_SET, qre_cmd_device_set, device_set),
	QRE_CALLED(DEVICE_DEL, qre_cmd_device_del, device_del),
	QRE_CALLED(SESSION_INSTALL, qre_cmd_install, session_set),
	QRE_CALLED(SESSION_UPDATE, qre_cmd_update, session_set),
	QRE_CALLED(SESSION_DEL, qre_cmd_delete, session_del),
	QRE_CALLED(CID_ADOPT, qre_cmd_adopt, cid_adopt),
	QRE_CALLED(CID_RELEASE, qre_cmd_release, cid_release),
	QRE_CALLED(CID_MAP_REGISTER, qre_cmd_shared, descriptor),
	QRE_CALLED(CID_MAP_UNREGISTER, qre_cmd_shared, nothing),
	QRE_CALLED(SHARED_SOCKET_REGISTER, qre_cmd_shared, descriptor),
	QRE_CALLED(SHARED_SOCKET_UNREGISTER, qre_cmd_shared, nothing),
	QRE_CALLED(SHARED_LOADER_SET, qre_cmd_loader, loader),
	QRE_CALLED(DEST_PROFILE_SET, qre_cmd_profile, dest_profile),
	QRE_CALLED(FRAME_SEND, qre_cmd_frames, frame),
	QRE_CALLED(PATH_PROVEN, qre_cmd_path_proven, path_proven),
	QRE_CALLED(SESSION_GIVE_UP, qre_cmd_give_up, give_up),
	QRE_CALLED(SESSION_TRY_PORT, qre_cmd_try_port, try_port),
	QRE_CALLED(SESSION_MOVE, qre_cmd_move, port),
	QRE_CALLED(SESSION_DROP_PORT, qre_cmd_drop_port, port),
};

static const struct genl_multicast_group qre_groups[] = {
	[QRE_GROUP_EVENTS] = {.name = QRE_GENL_EVENTS, .flags = GENL_MCAST_CAP_NET_ADMIN},
	[QRE_GROUP_FRAMES] = {.name = QRE_GENL_FRAMES, .flags = GENL_MCAST_CAP_NET_ADMIN},
};

struct genl_family qre_family __ro_after_init = {
	.name = QRE_GENL_NAME,
	.version = QRE_GENL_VERSION,
	.netnsok = true,
	.parallel_ops = true,
	.maxattr = QRE_A_MAX, /* tells user space what this module knows, too */
	.module = THIS_MODULE,
	.ops = qre_ops,
	.n_ops = ARRAY_SIZE(qre_ops),
	.pre_doit = qre_before_command,
	.resv_start_op = QRE_CMD_UNSPEC + 1,
	.mcgrps = qre_groups,
	.n_mcgrps = ARRAY_SIZE(qre_groups),
};

int __init qre_netlink_init(void)
{
	return genl_register_family(&qre_family);
}

void qre_netlink_exit(void)
{
	genl_unregister_family(&qre_family);
}
