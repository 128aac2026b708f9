// SPDX-License-Identifier: GPL-2.0-only
/* qre.ko: the data path of QRE. Module and namespace begin and end here. */
#include <linux/module.h>
#include <net/net_namespace.h>
#include <net/netns/generic.h>
#include <net/rtnetlink.h>
#include "compat.h"
#include "crypto.h"
#include "session.h"

struct workqueue_struct *qre_wq;
static unsigned int qre_net_id;

struct qre_net *qre_net_of(struct net *net)
{
	return net_generic(net, qre_net_id);
}

static int __net_init qre_net_init(struct net *net)
{
	struct qre_net *qn = qre_net_of(net);

	qn->net = net;
	mutex_init(&qn->lock);
	INIT_LIST_HEAD(&qn->devices);
	INIT_LIST_HEAD(&qn->sockets);
	INIT_LIST_HEAD(&qn->cids);
	return 0;
}

/* The devices are gone by now: their link kind's dellink ran. */
static void __net_exit qre_net_exit(struct net *net)
{
	struct qre_net *qn = qre_net_of(net);

	mutex_lock(&qn->lock);
	qre_cidmap_release(qn);
	mutex_unlock(&qn->lock);
	qre_sockets_release(qn);
	WARN_ON(!list_empty(&qn->devices) || !list_empty(&qn->cids));
}

static struct pernet_operations qre_net_ops = {
	.init = qre_net_init,
	.exit = qre_net_exit,
	.id = &qre_net_id,
	.size = sizeof(struct qre_net),
};

static int __init qre_init(void)
{
	int error;

	qre_wq = alloc_workqueue("qre", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (!qre_wq)
		return -ENOMEM;
	error = qre_crypto_init();
	if (error)
		goto destroy_wq;
	error = qre_work_init();
	if (error)
		goto exit_crypto;
	error = register_pernet_subsys(&qre_net_ops);
	if (error)
		goto exit_work;
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
exit_work:
	qre_send_exit();
	qre_work_exit();
	qre_pages_exit();
exit_crypto:
	qre_crypto_exit();
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
	qre_send_exit();
	qre_work_exit();
	qre_pages_exit();
	qre_crypto_exit();
}

module_init(qre_init);
module_exit(qre_exit);
MODULE_LICENSE("GPL");
MODULE_AUTHOR("QRE");
MODULE_DESCRIPTION("IP in HTTP/3: the data path of QRE");
MODULE_ALIAS_RTNL_LINK(QRE_LINK_KIND);
MODULE_ALIAS_GENL_FAMILY(QRE_GENL_NAME);
