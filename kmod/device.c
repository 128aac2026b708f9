// SPDX-License-Identifier: GPL-2.0-only
/* Network devices of link kind "qre". */
#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/if_arp.h>
#include <linux/rtnetlink.h>
#include <net/ip_tunnels.h>
#include <net/rtnetlink.h>
#include "allowedips.h"
#include "compat.h"
#include "device.h"
#include "gro.h"
#include "namespace.h"
#include "send.h"
#include "session.h"

#define QRE_FEATURES                                                                               \
	(NETIF_F_SG | NETIF_F_FRAGLIST | NETIF_F_HW_CSUM | NETIF_F_RXCSUM | NETIF_F_GSO |          \
	 NETIF_F_GSO_SOFTWARE | NETIF_F_HIGHDMA)

struct qre_device *qre_device_by_name(struct net *net, const char *name)
{
	struct qre_device *qdev;

	list_for_each_entry(qdev, &qre_net_of(net)->devices, entry)
		if (!strncmp(qdev->dev->name, name, IFNAMSIZ))
			return qdev;
	return NULL;
}

struct qre_device *qre_device_by_index(struct net *net, u32 ifindex)
{
	struct qre_device *qdev;

	list_for_each_entry(qdev, &qre_net_of(net)->devices, entry)
		if (qdev->dev->ifindex == ifindex)
			return qdev;
	return NULL;
}

/* --- counters --- */

void qre_count_drop(struct qre_device *qdev, enum qre_drop why, unsigned int packets)
{
	struct qre_counters *counters = get_cpu_ptr(qdev->counters);

	u64_stats_update_begin(&counters->syncp);
	u64_stats_add(&counters->drops[why], packets);
	u64_stats_update_end(&counters->syncp);
	put_cpu_ptr(qdev->counters);
}

void qre_count_session(struct qre_session *s, bool receive, unsigned int packets, u64 bytes)
{
	struct qre_session_counters *own = this_cpu_ptr(s->counters);
	struct qre_counters *all = this_cpu_ptr(s->qdev->counters);

	u64_stats_update_begin(&own->syncp);
	u64_stats_add(receive ? &own->rx_packets : &own->tx_packets, packets);
	u64_stats_add(receive ? &own->rx_bytes : &own->tx_bytes, bytes);
	u64_stats_update_end(&own->syncp);
	u64_stats_update_begin(&all->syncp);
	u64_stats_add(receive ? &all->rx_packets : &all->tx_packets, packets);
	u64_stats_add(receive ? &all->rx_bytes : &all->tx_bytes, bytes);
	u64_stats_update_end(&all->syncp);
}

void qre_device_totals(struct qre_device *qdev, struct qre_totals *totals)
{
	int cpu;

	memset(totals, 0, sizeof(*totals));
	for_each_possible_cpu(cpu) {
		struct qre_counters *counters = per_cpu_ptr(qdev->counters, cpu);
		struct qre_totals one;
		unsigned int start, i;

		do {
			start = u64_stats_fetch_begin(&counters->syncp);
			one.rx_packets = u64_stats_read(&counters->rx_packets);
			one.rx_bytes = u64_stats_read(&counters->rx_bytes);
			one.tx_packets = u64_stats_read(&counters->tx_packets);
			one.tx_bytes = u64_stats_read(&counters->tx_bytes);
			for (i = 0; i <= QRE_DROP_MAX; i++)
				one.drops[i] = u64_stats_read(&counters->drops[i]);
		} while (u64_stats_fetch_retry(&counters->syncp, start));
		totals->rx_packets += one.rx_packets;
		totals->rx_bytes += one.rx_bytes;
		totals->tx_packets += one.tx_packets;
		totals->tx_bytes += one.tx_bytes;
		for (i = 0; i <= QRE_DROP_MAX; i++)
			totals->drops[i] += one.drops[i];
	}
}

static bool qre_drop_is_transmit(enum qre_drop why)
{
	switch (why) {
	case QRE_DROP_NO_SESSION:
	case QRE_DROP_HELD:
	case QRE_DROP_TOO_BIG:
	case QRE_DROP_NO_ROUTE:
	case QRE_DROP_TTL_EXPIRED:
	case QRE_DROP_IPV6_REFUSED:
		return true;
	default:
		return false;
	}
}

static void qre_get_stats64(struct net_device *dev, struct rtnl_link_stats64 *stats)
{
	struct qre_device *qdev = netdev_priv(dev);
	struct qre_totals totals;
	unsigned int i;

	qre_device_totals(qdev, &totals);
	stats->rx_packets = totals.rx_packets;
	stats->rx_bytes = totals.rx_bytes;
	stats->tx_packets = totals.tx_packets;
	stats->tx_bytes = totals.tx_bytes;
	for (i = 1; i <= QRE_DROP_MAX; i++) {
		if (qre_drop_is_transmit(i))
			stats->tx_dropped += totals.drops[i];
		else
			stats->rx_dropped += totals.drops[i];
	}
}

/* --- the net_device --- */

static int qre_dev_init(struct net_device *dev)
{
	struct qre_device *qdev = netdev_priv(dev);
	struct qre_net *qn = qre_net_of(dev_net(dev));
	int error;

	error = qre_net_begin_devices(qn);
	if (error)
		return error;
	error = -ENOMEM;
	qdev->dev = dev;
	INIT_LIST_HEAD(&qdev->sessions);
	INIT_LIST_HEAD(&qdev->cids);
	qdev->config.max_sessions = QRE_SESSIONS_MAX;
	qdev->counters = __netdev_alloc_pcpu_stats(struct qre_counters, GFP_KERNEL_ACCOUNT);
	if (!qdev->counters)
		return -ENOMEM;
	qdev->allowed_ips = qre_allowed_ips_new();
	if (!qdev->allowed_ips)
		goto free_counters;
	qdev->gro = qre_gro_new(dev);
	if (!qdev->gro)
		goto free_allowed;
	/* RTNL is held. A place is taken; the device is published when it is registered. */
	if (qn->device_count >= QRE_DEVICES_MAX) {
		error = -ENOSPC;
		goto free_gro;
	}
	qn->device_count++;
	return 0;

free_gro:
	qre_gro_free(qdev->gro);
free_allowed:
	qre_allowed_ips_free(qdev->allowed_ips);
free_counters:
	free_percpu(qdev->counters);
	return error;
}

/* It is registered, and takes sessions from now on. RTNL is held. */
static void qre_device_publish(struct qre_device *qdev)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));

	mutex_lock(&qn->lock);
	list_add_tail(&qdev->entry, &qn->devices);
	qdev->published = true;
	mutex_unlock(&qn->lock);
}

static void qre_device_unpublish(struct qre_device *qdev)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));

	mutex_lock(&qn->lock);
	if (qdev->published) {
		list_del(&qdev->entry);
		qdev->published = false;
		qre_device_end_sessions(qdev);
	}
	mutex_unlock(&qn->lock);
}

/* About to go, or registering it failed: nothing of its own holds the device any more. */
static void qre_dev_uninit(struct net_device *dev)
{
	qre_device_unpublish(netdev_priv(dev));
	qre_net_of(dev_net(dev))->device_count--; /* RTNL is held */
}

/* The last reference on the device is gone: no packet is under way. */
static void qre_dev_destructor(struct net_device *dev)
{
	struct qre_device *qdev = netdev_priv(dev);

	qre_gro_free(qdev->gro);
	qre_allowed_ips_free(qdev->allowed_ips);
	kfree(qdev->dest_profile);
	free_percpu(qdev->counters);
}

static const struct net_device_ops qre_netdev_ops = {
	.ndo_init = qre_dev_init,
	.ndo_uninit = qre_dev_uninit,
	.ndo_start_xmit = qre_xmit,
	.ndo_get_stats64 = qre_get_stats64,
};

static void qre_get_drvinfo(struct net_device *dev, struct ethtool_drvinfo *info)
{
	strscpy(info->driver, QRE_LINK_KIND, sizeof(info->driver));
}

static const struct ethtool_ops qre_ethtool_ops = {
	.get_drvinfo = qre_get_drvinfo,
	.get_link = ethtool_op_get_link,
};

static const struct device_type qre_device_type = {.name = QRE_LINK_KIND};

static void qre_setup(struct net_device *dev)
{
	dev->netdev_ops = &qre_netdev_ops;
	dev->ethtool_ops = &qre_ethtool_ops;
	dev->header_ops = &ip_tunnel_header_ops;
	dev->priv_destructor = qre_dev_destructor;
	dev->needs_free_netdev = true;
	dev->type = ARPHRD_NONE;
	dev->flags = IFF_POINTOPOINT | IFF_NOARP;
	/* netpoll sends Ethernet frames, and with interrupts off, where no lock of ours is safe */
	dev->priv_flags |= IFF_NO_QUEUE | IFF_DISABLE_NETPOLL;
	dev->features |= QRE_FEATURES;
	dev->hw_features |= QRE_FEATURES;
	dev->hw_enc_features |= QRE_FEATURES;
	qre_netdev_traits(dev);
	netif_keep_dst(
		dev); /* ICMP to a sender is told by the route of the packet that it is about */
	dev->mtu = QRE_MTU_DEFAULT;
	dev->min_mtu = QRE_MTU_MIN;
	dev->max_mtu = QRE_MTU_MAX;
	/* As many packets as one UDP-GSO packet holds. */
	netif_set_tso_max_segs(dev, QRE_GSO_MAX_SEGS);
	SET_NETDEV_DEVTYPE(dev, &qre_device_type);
}

static int qre_make_link(struct net_device *dev, struct netlink_ext_ack *extack)
{
	int error;

	if (!qre_may_make_links(dev_net(dev))) {
		NL_SET_ERR_MSG(extack, QRE_NOT_CAPABLE);
		return -EPERM;
	}
	error = register_netdevice(dev);
	if (!error)
		qre_device_publish(netdev_priv(dev));
	return error;
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 15, 0)
static int qre_newlink(struct net *net, struct net_device *dev, struct nlattr *tb[],
		       struct nlattr *data[], struct netlink_ext_ack *extack)
#else
static int qre_newlink(struct net_device *dev, struct rtnl_newlink_params *params,
		       struct netlink_ext_ack *extack)
#endif
{
	return qre_make_link(dev, extack);
}

struct rtnl_link_ops qre_link_ops __read_mostly = {
	.kind = QRE_LINK_KIND,
	.priv_size = sizeof(struct qre_device),
	.setup = qre_setup,
	.newlink = qre_newlink,
};

/* --- what netlink asks for --- */

struct qre_device *qre_device_create(struct net *net, const char *name,
				     struct netlink_ext_ack *extack)
{
	struct nlattr *none[IFLA_MAX + 1] = {};
	struct net_device *dev;
	int error;

	dev = rtnl_create_link(net, name, NET_NAME_USER, &qre_link_ops, none, extack);
	if (IS_ERR(dev))
		return ERR_CAST(dev);
	error = register_netdevice(dev);
	if (error == -ENOSPC)
		NL_SET_ERR_MSG(extack, "Device: too many qre devices in this namespace");
	if (error) {
		free_netdev(dev);
		return ERR_PTR(error);
	}
	error = rtnl_configure_link(dev, NULL, 0, NULL);
	if (error) {
		unregister_netdevice(dev);
		return ERR_PTR(error);
	}
	qre_device_publish(netdev_priv(dev));
	return netdev_priv(dev);
}

void qre_device_destroy(struct qre_device *qdev)
{
	unregister_netdevice(qdev->dev);
}

int qre_device_configure(struct qre_device *qdev, const struct qre_device_config *config, u32 mtu,
			 struct netlink_ext_ack *extack)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));
	int error;

	if (config->role != qdev->config.role && qdev->session_count) {
		NL_SET_ERR_MSG(extack, "Role cannot change while there are sessions");
		return -EBUSY;
	}
	if (config->max_sessions < qdev->session_count) {
		NL_SET_ERR_MSG(extack, "MaxSessions is less than the sessions that there are");
		return -EBUSY;
	}
	if (mtu && mtu != qdev->dev->mtu) {
		mutex_unlock(&qn->lock); /* notifiers run; RTNL keeps others away */
		error = dev_set_mtu(qdev->dev, mtu);
		mutex_lock(&qn->lock);
		if (error) {
			NL_SET_ERR_MSG(extack, "MTU was refused");
			return error;
		}
	}
	qdev->config = *config;
	WRITE_ONCE(qdev->fwmark, config->fwmark); /* of open sessions, too */
	return 0;
}
