// SPDX-License-Identifier: GPL-2.0-only
/*
 * The mirror of adopted CIDs in the BPF map QRE_CID_ROUTES, by which the reuseport program steers
 * packets to the kernel's socket. bpf_map_get and map->ops ask for no permission: the caller had
 * CAP_NET_ADMIN, and what the map must look like is checked here.
 */
#include <linux/bpf.h>
#include <linux/file.h>
#include <linux/rcupdate.h>
#include "cid.h"
#include "cidmap.h"
#include "compat.h"
#include "device.h"
#include "events.h"
#include "namespace.h"

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
QRE_IMPORT_NS(BPF_INTERNAL);
#endif

#define QRE_KERNEL_SLOT 1
#define QRE_TRIES	8

/* Without migration, as bpf(2) does it: the map's per-CPU state is this CPU's all the while. */
static int qre_map_write(struct bpf_map *map, const struct qre_cid *cid)
{
	u32 slot = QRE_KERNEL_SLOT;
	int error, tries = QRE_TRIES;

	do { /* -EBUSY: this CPU holds the bucket right now */
		migrate_disable();
		rcu_read_lock();
		error = map->ops->map_update_elem(map, (void *)cid, &slot, BPF_ANY);
		rcu_read_unlock();
		migrate_enable();
	} while (error == -EBUSY && --tries);
	return error;
}

static void qre_map_erase(struct bpf_map *map, const struct qre_cid *cid)
{
	int tries = QRE_TRIES;
	long error;

	do {
		migrate_disable();
		rcu_read_lock();
		error = map->ops->map_delete_elem(map, (void *)cid);
		rcu_read_unlock();
		migrate_enable();
	} while (error == -EBUSY && --tries);
}

void qre_cidmap_add(struct qre_net *qn, struct qre_cid_entry *entry)
{
	int error;

	if (!qn->map.map)
		return;
	error = qre_map_write(qn->map.map, &entry->cid);
	if (error) {
		qn->map.failures++;
		qn->map.missing++;
		qre_tell_map_failed(entry->qdev, &entry->cid, -error);
		return;
	}
	entry->mirrored = true;
	qn->map.entries++;
}

void qre_cidmap_del(struct qre_net *qn, struct qre_cid_entry *entry)
{
	if (!qn->map.map)
		return;
	if (!entry->mirrored) {
		qn->map.missing--;
		return;
	}
	qre_map_erase(qn->map.map, &entry->cid);
	entry->mirrored = false;
	qn->map.entries--;
}

/* What @fd is, and whether it may be written through, of one look: another thread can put something
 * else there between two. */
static struct bpf_map *qre_map_by_fd(u32 fd, struct netlink_ext_ack *extack)
{
	struct file *file = fget(fd);
	struct bpf_map *map;

	if (!file) {
		NL_SET_ERR_MSG(extack, "BpfMapFd is not an open descriptor");
		return ERR_PTR(-EBADF);
	}
	map = bpf_map_get(fd);
	if (IS_ERR(map)) {
		NL_SET_ERR_MSG(extack, "BpfMapFd is not a BPF map");
		goto put_file;
	}
	/* A map's file has it there: the one that we hold is the map's, or it is another. */
	if (file->private_data != map || !(file->f_mode & FMODE_WRITE) || READ_ONCE(map->frozen)) {
		NL_SET_ERR_MSG(extack, "BpfMapFd: the map is read-only");
		bpf_map_put(map);
		map = ERR_PTR(-EINVAL);
	}
put_file:
	fput(file);
	return map;
}

int qre_cidmap_register(struct qre_net *qn, u32 fd, struct netlink_ext_ack *extack)
{
	struct qre_cid_entry *entry;
	struct bpf_map *map;

	if (qn->map.map) {
		NL_SET_ERR_MSG(extack, "BpfMapFd: a CID map is registered already");
		return -EBUSY;
	}
	map = qre_map_by_fd(fd, extack);
	if (IS_ERR(map))
		return PTR_ERR(map);
	if (map->map_type != BPF_MAP_TYPE_HASH || map->key_size != sizeof(struct qre_cid) ||
	    map->value_size != sizeof(u32)) {
		NL_SET_ERR_MSG(extack, "BpfMapFd is not a hash map of 21-byte keys and u32 values");
		bpf_map_put(map);
		return -EINVAL;
	}
	qn->map = (struct qre_cidmap){.map = map, .id = map->id};
	list_for_each_entry(entry, &qn->cids, entry)
		qre_cidmap_add(qn, entry);
	return 0;
}

void qre_cidmap_release(struct qre_net *qn)
{
	struct qre_cid_entry *entry;

	if (!qn->map.map)
		return;
	list_for_each_entry(entry, &qn->cids, entry)
		qre_cidmap_del(qn, entry);
	bpf_map_put(qn->map.map);
	qn->map = (struct qre_cidmap){};
}

int qre_cidmap_unregister(struct qre_net *qn, struct netlink_ext_ack *extack)
{
	if (!qn->map.map) {
		NL_SET_ERR_MSG(extack, "no CID map is registered");
		return -ENOENT;
	}
	qre_cidmap_release(qn);
	return 0;
}
