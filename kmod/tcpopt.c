// SPDX-License-Identifier: GPL-2.0-only
/* Options of TCP headers: a header has at most 40 bytes of them, so every loop here is short. */
#include "tcpopt.h"

#define FLAG_SYN 0x02
#define FLAG_RST 0x04
#define FLAG_URG 0x20

enum { OPTION_END = 0, OPTION_NOP = 1, OPTION_MSS = 2, OPTION_MD5 = 19, OPTION_AO = 29 };

/* Bytes of the whole header; 0: it is not all there, or impossible. */
static size_t header_size(const u8 *tcp, size_t size)
{
	size_t header;

	if (size < QRE_TCP_HEADER)
		return 0;
	header = (size_t)(tcp[12] >> 4) * 4;
	return header >= QRE_TCP_HEADER && header <= size ? header : 0;
}

/* The next option from *@at on, which moves behind it; NULL: there are no more. *@broken: they do
 * not parse. */
static const u8 *next_option(const u8 **at, const u8 *end, bool *broken)
{
	const u8 *option;

	while (*at < end && **at == OPTION_NOP)
		++*at;
	if (*at == end || **at == OPTION_END)
		return NULL;
	option = *at;
	if (end - option < 2 || option[1] < 2 || option[1] > end - option) {
		*broken = true;
		return NULL;
	}
	*at += option[1];
	return option;
}

/* The checksum after a word of the header has changed: RFC 1624, equation 3. */
static void fix_checksum(u8 *tcp, u32 before, u32 after)
{
	u32 sum = (u32)(tcp[16] << 8 | tcp[17]);

	sum = (~sum & 0xffff) + (~before & 0xffff) + after;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	tcp[16] = (u8)(sum >> 8);
	tcp[17] = (u8)sum;
}

/* As the words of the checksum see a value that begins at an odd byte. */
static u32 swapped(u32 value)
{
	return (value & 0xff) << 8 | value >> 8;
}

bool qre_tcp_clamp_mss(u8 *tcp, size_t size, u16 most, bool partial)
{
	size_t header = header_size(tcp, size), where;
	const u8 *at = tcp + QRE_TCP_HEADER, *option;
	bool broken = false;
	u32 before;

	if (!header || !(tcp[13] & FLAG_SYN))
		return false;
	while ((option = next_option(&at, tcp + header, &broken))) {
		if (option[0] != OPTION_MSS || option[1] != 4)
			continue;
		before = (u32)(option[2] << 8 | option[3]);
		if (before <= most)
			return false;
		where = (size_t)(option - tcp) + 2;
		tcp[where] = (u8)(most >> 8);
		tcp[where + 1] = (u8)most;
		if (partial)
			return true;
		if (where % 2)
			fix_checksum(tcp, swapped(before), swapped(most));
		else
			fix_checksum(tcp, before, most);
		return true;
	}
	return false;
}

bool qre_tcp_divisible(const u8 *tcp, size_t size)
{
	size_t header = header_size(tcp, size);
	const u8 *at = tcp + QRE_TCP_HEADER, *option;
	bool broken = false;

	if (!header || header == size || tcp[13] & (FLAG_SYN | FLAG_RST | FLAG_URG))
		return false;
	while ((option = next_option(&at, tcp + header, &broken)))
		if (option[0] == OPTION_MD5 || option[0] == OPTION_AO)
			return false;
	return !broken;
}
