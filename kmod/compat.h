/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between kernels from 6.1 on: tested by feature where the preprocessor can see it. */
#ifndef QRE_COMPAT_H
#define QRE_COMPAT_H

#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/timer.h>
#include <linux/version.h>
#include <net/genetlink.h>

/* del_timer_sync became timer_delete_sync (6.2), and lost its old name later */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define timer_delete_sync(timer) del_timer_sync(timer)
#endif
#ifndef timer_container_of
#define timer_container_of(var, callback_timer, timer_fieldname)                                   \
	container_of(callback_timer, typeof(*var), timer_fieldname)
#endif

/* What is called before a command is given a description of another kind since 6.2 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define qre_genl_called genl_ops
#else
#define qre_genl_called genl_split_ops
#endif

/* AEAD callbacks take the context itself since 6.3 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
#define QRE_CRYPTO_ARG		struct crypto_async_request *
#define QRE_CRYPTO_CONTEXT(arg) ((arg)->data)
#else
#define QRE_CRYPTO_ARG		void *
#define QRE_CRYPTO_CONTEXT(arg) (arg)
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
#define QRE_IMPORT_NS(name) MODULE_IMPORT_NS(name)
#else
#define QRE_IMPORT_NS(name) MODULE_IMPORT_NS(#name)
#endif

/* Segmentation has a header of its own since 6.4.10 (6.5 in the main line) */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 10)
#include <net/gso.h>
#endif

/* udp_tunnel_encap_enable takes a socket or a sock */
#define qre_encap_enable(of)                                                                       \
	udp_tunnel_encap_enable(__builtin_choose_expr(                                             \
		__builtin_types_compatible_p(typeof(&udp_tunnel_encap_enable),                     \
					     void (*)(struct socket *)),                           \
		(of), (of)->sk))

/* A socket that stops counting as a user of its namespace is told to the reference tracker
 * since 6.2 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define qre_track_kernel_socket(net, tracker)
#else
#define qre_track_kernel_socket(net, tracker) __netns_tracker_alloc(net, tracker, false, GFP_KERNEL)
#endif

/* A socket of the kernel keeps the memory of its namespace, though not the namespace, since 6.15
 * and in the stable kernels that took it over: its end gives this back. */
#ifdef QRE_HAS_NET_PASSIVE
#define qre_keep_net_memory(net) net_passive_inc(net)
#else
#define qre_keep_net_memory(net)
#endif

/* Attributes of a dump's request lie in genl_info since 6.6 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
#define qre_dump_attrs(cb) (genl_dumpit_info(cb)->attrs)
#else
#define qre_dump_attrs(cb) (genl_dumpit_info(cb)->info.attrs)
#endif

/* Of several packets ip_select_ident_segs() gives a datagram socket the last one's number where the
 * counter is atomic (6.7 and the stable kernels that took it over), else the first one's */
#define qre_ident_is_the_last                                                                      \
	__builtin_types_compatible_p(typeof(((struct inet_sock *)NULL)->inet_id), atomic_t)

/* No transmit lock, and bound to its namespace */
static inline void qre_netdev_traits(struct net_device *dev)
{
#ifdef NETIF_F_LLTX
	dev->features |= NETIF_F_LLTX;
#else
	dev->lltx = true;
#endif
#ifdef NETIF_F_NETNS_LOCAL
	dev->features |= NETIF_F_NETNS_LOCAL;
#elif defined(QRE_HAS_NETNS_IMMUTABLE)
	dev->netns_immutable = true;
#else
	dev->netns_local = true;
#endif
}

#endif
