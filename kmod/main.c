// SPDX-License-Identifier: GPL-2.0-only
/* qre.ko: the data path of QRE. Module and namespace begin and end here. */
#include <linux/capability.h>
#include <linux/module.h>
#include <linux/netlink.h>
#include <net/net_namespace.h>
#include <net/netns/generic.h>
#include <net/rtnetlink.h>
#include "compat.h"
#include "device.h"
#include "direct.h"
#include "namespace.h"
#include "netlink.h"
#include "pages.h"
#include "receive.h"
#include "send.h"
#include "session.h"
#include "socket.h"
#include "usedkeys.h"

struct workqueue_struct *qre_wq;
static unsigned int qre_net_id;

struct qre_net *qre_net_of(struct net *net)
{
	return net_generic(net, qre_net_id);
}

static bool userns;
module_param(userns, bool, 0644);
MODULE_PARM_DESC(userns, "Let root of a user namespace use network namespaces that it owns");

bool qre_may(struct sk_buff *request, struct net *net)
{
	return READ_ONCE(userns) ? netlink_ns_capable(request, net->user_ns, CAP_NET_ADMIN)
				 : netlink_capable(request, CAP_NET_ADMIN);
}

bool qre_may_make_links(struct net *net)
{
	return READ_ONCE(userns) ? ns_capable(net->user_ns, CAP_NET_ADMIN) : capable(CAP_NET_ADMIN);
}

/* --- a namespace --- */

static int __net_init qre_net_init(struct net *net)
{
	struct qre_net *qn = qre_net_of(net);

	qn->net = net;
	mutex_init(&qn->lock);
	INIT_LIST_HEAD(&qn->devices);
	INIT_LIST_HEAD(&qn->sockets);
	INIT_LIST_HEAD(&qn->cids);
	init_llist_head(&qn->ended);
	init_llist_head(&qn->tidied);
	INIT_WORK(&qn->reap, qre_sessions_reap);
	return 0;
}

/* Most namespaces never have a device: they cost nothing. */
int qre_net_begin_devices(struct qre_net *qn)
{
	if (!qn->wq)
		qn->wq = alloc_workqueue("qre-net", WQ_UNBOUND, 1);
	if (!qn->used_keys)
		qn->used_keys = qre_key_book_new();
	return qn->wq && qn->used_keys ? 0 : -ENOMEM;
}

/* The devices are gone by now: their link kind's dellink ran. Everything is begun for all
 * namespaces before one is waited for. */
static void __net_exit qre_net_exit_batch(struct list_head *ending)
{
	struct qre_net *qn;
	struct net *net;

	list_for_each_entry(net, ending, exit_list) {
		qn = qre_net_of(net);
		mutex_lock(&qn->lock);
		qre_cidmap_release(qn);
		qre_sockets_release(qn);
		WARN_ON(!list_empty(&qn->devices) || !list_empty(&qn->cids));
		mutex_unlock(&qn->lock);
	}
	list_for_each_entry(net, ending, exit_list) {
		qn = qre_net_of(net);
		qre_sockets_wait(qn);
		if (qn->wq)
			destroy_workqueue(qn->wq);
		if (qn->used_keys)
			qre_key_book_end(qn->used_keys);
	}
}

static struct pernet_operations qre_net_ops = {
	.init = qre_net_init,
	.exit_batch = qre_net_exit_batch,
	.id = &qre_net_id,
	.size = sizeof(struct qre_net),
};

/* --- the module --- */

static int __init qre_init(void)
{
	int error;

	qre_used_keys_init();
	qre_wq = alloc_workqueue("qre", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (!qre_wq)
		return -ENOMEM;
	error = qre_direct_init() ?: qre_work_init();
	if (error)
		goto destroy_wq;
	error = qre_sockets_init();
	if (error)
		goto exit_work;
	error = register_pernet_subsys(&qre_net_ops);
	if (error)
		goto exit_sockets;
	error = rtnl_link_register(&qre_link_ops);
	if (error)
		goto unregister_net;
	error = qre_netlink_init();
	if (error)
		goto unregister_link;
	return 0;

unregister_link:
	rtnl_link_unregister(&qre_link_ops);
unregister_net:
	unregister_pernet_subsys(&qre_net_ops);
exit_sockets:
	qre_sockets_exit();
exit_work:
	qre_send_exit();
	qre_work_exit();
	qre_pages_exit();
destroy_wq:
	destroy_workqueue(qre_wq);
	return error;
}

static void __exit qre_exit(void)
{
	qre_netlink_exit();
	rtnl_link_unregister(&qre_link_ops);
	unregister_pernet_subsys(&qre_net_ops);
	/* What was freed by RCU is queued by then, and what was queued has run. Keys follow their
	 * sessions. */
	rcu_barrier();
	flush_workqueue(qre_wq);
	rcu_barrier();
	destroy_workqueue(qre_wq);
	qre_sockets_exit();
	qre_send_exit();
	qre_work_exit();
	qre_pages_exit();
	qre_used_keys_exit();
}

module_init(qre_init);
module_exit(qre_exit);
MODULE_LICENSE("GPL");
MODULE_AUTHOR("QRE");
MODULE_DESCRIPTION("IP in HTTP/3: the data path of QRE");
MODULE_ALIAS_RTNL_LINK(QRE_LINK_KIND);
MODULE_ALIAS_GENL_FAMILY(QRE_GENL_NAME);
