// SPDX-License-Identifier: GPL-2.0-only
/*
 * TCP headers of any bytes: what is clamped keeps its checksum right, and nothing else of it
 * changes. The input: two bytes of most, then the header.
 */
#include "kmod_check.h"
#include "tcpopt.h"

static u32 sum_of(const u8 *data, size_t size)
{
	u32 sum = 0;

	for (size_t i = 0; i < size; i++)
		sum += i % 2 ? data[i] : (u32)data[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum % 0xffff; /* its two zeros are one */
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	unsigned int changes = 0;
	u8 *before, *after;
	bool changed;
	u16 most;

	if (size < 2)
		return 0;
	most = (u16)(data[0] << 8 | data[1]);
	data += 2;
	size -= 2;
	before = malloc(size);
	after = malloc(size);
	memcpy(before, data, size);
	memcpy(after, data, size);
	qre_tcp_divisible(after, size);
	changed = qre_tcp_clamp_mss(after, size, most, false);
	if (!changed) {
		check(!memcmp(before, after, size));
	} else {
		check(sum_of(before, size) == sum_of(after, size));
		for (size_t i = 0; i < size; i++) {
			if (before[i] == after[i])
				continue;
			changes++;
			check(i == 16 || i == 17 || i >= QRE_TCP_HEADER);
		}
		check(changes && changes <= 4);
		check(!qre_tcp_clamp_mss(after, size, most, false));
	}
	memcpy(after, data, size);
	check(qre_tcp_clamp_mss(after, size, most, true) == changed);
	check(size < 18 || !memcmp(before + 16, after + 16, 2));
	free(before);
	free(after);
	return 0;
}
