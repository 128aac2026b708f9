// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that packets are sealed and opened into: pieces of pages, which are used again as soon as
 * nothing else refers to them. A hardened kernel zeroes every allocation, which costs as much as an
 * encryption.
 */
#include <linux/mm.h>
#include <linux/percpu.h>
#include "pages.h"

#define QRE_PAGES_KEPT 32

static const unsigned int qre_orders[QRE_POOLS] = {
	[QRE_CIPHERTEXT] = 3, [QRE_PLAINTEXT] = 3, [QRE_SMALL] = 0, [QRE_HEADS] = 3};

struct qre_pages {
	struct page *kept[QRE_PAGES_KEPT];
	unsigned int current_one, oldest;
	unsigned int used, size; /* bytes of the current one */
};

/* Plaintext, ciphertext and heads never share a page. */
static DEFINE_PER_CPU(struct qre_pages[QRE_POOLS], qre_pools);

static bool qre_pages_next(struct qre_pages *p, unsigned int order)
{
	struct page *page;
	unsigned int i;

	for (i = 0; i < QRE_PAGES_KEPT && p->kept[i]; i++) {
		/* Ours is the only reference: no other can be taken. */
		if (page_ref_count(p->kept[i]) == 1)
			goto found;
	}
	page = alloc_pages(
		GFP_ATOMIC | __GFP_COMP | __GFP_NOWARN | __GFP_NORETRY | __GFP_NOMEMALLOC, order);
	if (!page && order)
		page = alloc_page(GFP_ATOMIC | __GFP_NOWARN | __GFP_NOMEMALLOC);
	if (!page)
		return false;
	if (i == QRE_PAGES_KEPT) {
		i = p->oldest;
		p->oldest = (i + 1) % QRE_PAGES_KEPT;
		put_page(p->kept[i]);
	}
	p->kept[i] = page;
found:
	p->current_one = i;
	p->used = 0;
	p->size = page_size(p->kept[i]);
	return true;
}

u8 *qre_piece_take(enum qre_pool pool, unsigned int size, struct page **page)
{
	struct qre_pages *p = &(*this_cpu_ptr(&qre_pools))[pool];
	u8 *at;

	/* The crypto layer works page by page. Ciphertext has to be contiguous. */
	if (pool == QRE_PLAINTEXT && offset_in_page(p->used) + size > PAGE_SIZE)
		p->used = PAGE_ALIGN(p->used);
	if (p->size < p->used + size && (!qre_pages_next(p, qre_orders[pool]) || p->size < size))
		return NULL;
	*page = p->kept[p->current_one];
	at = page_address(*page) + p->used;
	p->used += size;
	get_page(*page);
	return at;
}

void qre_piece_give(enum qre_pool pool, u8 *at, unsigned int size, struct page *page)
{
	struct qre_pages *p = &(*this_cpu_ptr(&qre_pools))[pool];

	/* Unless something was taken behind it */
	if (p->kept[p->current_one] == page && page_address(page) + p->used == at + size)
		p->used -= size;
	put_page(page);
}

void qre_pages_exit(void)
{
	unsigned int cpu, pool, i;

	for_each_possible_cpu(cpu) {
		for (pool = 0; pool < QRE_POOLS; pool++) {
			struct qre_pages *p = &(*per_cpu_ptr(&qre_pools, cpu))[pool];

			for (i = 0; i < QRE_PAGES_KEPT && p->kept[i]; i++)
				put_page(p->kept[i]);
		}
	}
}
