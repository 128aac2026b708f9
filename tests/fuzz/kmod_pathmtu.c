// SPDX-License-Identifier: GPL-2.0-only
/*
 * The search for the path's MTU, called by anybody in any order that its header allows, over a path
 * that takes what the input says. The input: two bytes of bound, then an opcode a byte, with bytes
 * of its own where it takes some.
 */
#include "kmod_check.h"
#include "pathmtu.h"

#define REST_MAX 8 /* actions until it is at rest */

static u64 now, number, pto;
static struct qre_pathmtu p;

static bool planned(u16 size)
{
	const u16 *at;

	for (at = p.plan->sizes; *at; at++)
		if (*at == size)
			return true;
	return false;
}

static void check_state(void)
{
	check(p.size <= p.bound);
	check(p.size <= p.plan->base || planned(p.size));
	check(p.size >= p.plan->base || p.size == p.bound);
	check(p.tries <= QRE_PATHMTU_TRIES);
	check(!p.flying || p.tries);
	check(qre_pathmtu_hope(&p) >= p.size && qre_pathmtu_hope(&p) <= p.bound);
	check(p.watched == QRE_PATHMTU_NONE || p.size > p.plan->base);
	check(p.state != QRE_PATHMTU_IDLE || p.quiet);
	check(!p.quiet || p.state != QRE_PATHMTU_SETTLED);
	check(p.state != QRE_PATHMTU_SEARCHING || (p.probed > p.size && p.probed <= p.bound));
	check(p.state != QRE_PATHMTU_CONFIRMING || p.probed == p.size);
}

static void rest(bool memory)
{
	unsigned int actions = 0, probes = 0;
	enum qre_pathmtu_action action;

	while ((action = qre_pathmtu_next(&p, now, pto)) != QRE_PATHMTU_NOTHING) {
		check_state();
		check(++actions < REST_MAX);
		if (action == QRE_PATHMTU_PING) {
			number++;
			continue;
		}
		check(!p.flying && p.probed <= p.bound && ++probes <= 2);
		qre_pathmtu_sent(&p, memory ? number++ : QRE_PATHMTU_NONE, now, pto);
	}
	check(qre_pathmtu_due(&p) > now);
	check_state();
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	const u8 *end = data + size;
	u64 first, last;
	u16 before;
	u8 opcode;

	if (size < 3)
		return 0;
	now = 5;
	number = 65536;
	pto = 1 + data[2];
	qre_pathmtu_init(&p, data[2] % 2 ? &qre_pathmtu_client : &qre_pathmtu_server,
			 (u16)(548 + (data[0] << 8 | data[1]) % 925));
	for (data += 3; data < end;) {
		opcode = *data++;
		check_state();
		before = p.size;
		switch (opcode % 10) {
		case 0:
			qre_pathmtu_begin(&p, now, (u32)(opcode / 8) * 40000);
			check(p.size <= p.plan->base);
			break;
		case 1:
			if (end - data < 2)
				return 0;
			qre_pathmtu_bound(&p, (u16)(548 + (data[0] << 8 | data[1]) % 925), now);
			data += 2;
			break;
		case 2: /* a little later, or much */
			now += opcode & 0x80 ? 700000 : (u64)(opcode / 8) * 7;
			break;
		case 3:
		case 4:
			rest(!(opcode & 0x80));
			check(p.size <= before || before < p.plan->base);
			break;
		case 5: /* a packet of the data path */
			if (qre_pathmtu_watches(&p) && opcode & 0x80)
				qre_pathmtu_watch(&p, number, now, pto);
			number += 1 + opcode % 16;
			break;
		case 6: /* some of what was sent is acknowledged */
		case 7:
			if (end - data < 2)
				return 0;
			last = number - 1 - data[0] % 32;
			first = last - data[1] % 32;
			data += 2;
			if (last < 65536 || last >= number || !qre_pathmtu_listens(&p))
				break;
			qre_pathmtu_acked(&p, first < 65536 ? 65536 : first, last, now);
			qre_pathmtu_heard(&p, last, now);
			/* It grows by what was probed, and falls to the base alone. */
			check(p.size == before || p.size > before || p.size <= p.plan->base);
			break;
		case 8: /* as short as it can be, or as long */
			qre_pathmtu_rtt(&p, opcode & 0x80 ? UINT32_MAX : (u32)(opcode / 10) * 9000);
			check(p.size == before);
			break;
		case 9: /* what somebody else found */
			if (end - data < 2)
				return 0;
			qre_pathmtu_proven(&p, (u16)(data[0] << 8 | data[1]), (u64)opcode * 50,
					   now);
			data += 2;
			check(p.size >= before);
			check(p.size == before || p.state != QRE_PATHMTU_SEARCHING || !p.tries);
			break;
		}
	}
	check_state();
	return 0;
}
