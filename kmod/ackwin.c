// SPDX-License-Identifier: GPL-2.0-only
/*
 * The window of packet numbers that have arrived: a ring of bits that slides in whole words, so
 * that the next number costs a bit, and every 64th of them a cleared word besides.
 */
#include "ackwin.h"

#define WORDS (QRE_ACKWIN_BITS / 64)
/* No number reaches it: RFC 9000 section 12.3. */
#define NUMBER_END (1ULL << 62)

static u64 *word_of(struct qre_ackwin *w, u64 number)
{
	return &w->bits[(number / 64) % WORDS];
}

static u64 bit_of(u64 number)
{
	return 1ULL << (number % 64);
}

/*
 * The highest number from w->floor to @number, inclusive, whose bit is set; or with @flip ~0, whose
 * bit is clear. @number is in the window, and below its end.
 */
static bool find_down(const struct qre_ackwin *w, u64 number, u64 flip, u64 *found)
{
	u64 mask = ~0ULL >> (63 - number % 64);
	u64 word;

	for (;;) {
		word = (w->bits[(number / 64) % WORDS] ^ flip) & mask;
		number &= ~63ULL;
		if (word) {
			*found = number + fls64(word) - 1;
			return *found >= w->floor;
		}
		if (number <= w->floor)
			return false;
		number--;
		mask = ~0ULL;
	}
}

/* Move the floor up to @floor, a multiple of 64. */
static void slide(struct qre_ackwin *w, u64 floor)
{
	u64 missing, at;

	if (floor > w->highest + 1)
		w->run_start = floor;
	else if (find_down(w, floor - 1, ~0ULL, &missing))
		w->run_start = missing + 1;

	if (floor - w->floor >= QRE_ACKWIN_BITS) {
		memset(w->bits, 0, sizeof(w->bits));
	} else {
		/* Below a floor inside a word are bits of the window's other end. */
		for (at = w->floor; at < floor; at = (at | 63) + 1)
			*word_of(w, at) &= bit_of(at) - 1;
	}
	w->floor = floor;
}

void qre_ackwin_init(struct qre_ackwin *w, u64 base)
{
	memset(w, 0, sizeof(*w));
	w->floor = base;
	w->run_start = base;
	w->highest = base - 1; /* so that the base itself is the next one */
}

bool qre_ackwin_arrived(const struct qre_ackwin *w, u64 number)
{
	if (number < w->floor)
		return true;
	return number - w->floor < QRE_ACKWIN_BITS &&
	       w->bits[(number / 64) % WORDS] & bit_of(number);
}

/* Whatever is not the next number with room in the window. */
static noinline enum qre_arrival accept_other(struct qre_ackwin *w, u64 number)
{
	bool next = number == w->highest + 1;
	u64 *word, bit = bit_of(number);

	if (number < w->floor)
		return QRE_ARRIVAL_REPLAYED;
	if (number - w->floor >= QRE_ACKWIN_BITS)
		slide(w, (number - QRE_ACKWIN_BITS + 64) & ~63ULL);
	word = word_of(w, number);
	if (*word & bit)
		return QRE_ARRIVAL_REPLAYED;
	*word |= bit;
	if (!w->any || number > w->highest) {
		w->highest = number;
		w->any = true;
	}
	return next ? QRE_ARRIVAL_NEXT : QRE_ARRIVAL_REORDERED;
}

enum qre_arrival qre_ackwin_accept(struct qre_ackwin *w, u64 number)
{
	if (number == w->highest + 1 && number >= w->floor && number - w->floor < QRE_ACKWIN_BITS) {
		*word_of(w, number) |= bit_of(number);
		w->highest = number;
		w->any = true;
		return QRE_ARRIVAL_NEXT;
	}
	return accept_other(w, number);
}

unsigned int qre_ackwin_ranges(const struct qre_ackwin *w, struct qre_range *out, unsigned int max)
{
	u64 last = w->highest, missing;
	unsigned int count = 0;

	if (!w->any)
		return 0;
	while (count < max) {
		out[count].last = last;
		if (!find_down(w, last, ~0ULL, &missing)) {
			out[count++].first = w->run_start;
			break;
		}
		out[count++].first = missing + 1;
		if (find_down(w, missing, 0, &last))
			continue;
		if (w->run_start < w->floor && count < max) {
			out[count].last = w->floor - 1;
			out[count++].first = w->run_start;
		}
		break;
	}
	return count;
}

u64 qre_number_decode(u64 expected, u32 truncated, unsigned int size)
{
	u64 window = 1ULL << (8 * size);
	u64 half = window / 2;
	u64 candidate = (expected & ~(window - 1)) | truncated;

	if (candidate + half <= expected && candidate < NUMBER_END - window)
		return candidate + window;
	if (candidate > expected + half && candidate >= window)
		return candidate - window;
	return candidate;
}

u8 qre_number_size(u64 number, u64 acked)
{
	u64 behind = number - acked;

	return behind < 64 ? 1 : behind < 1 << 14 ? 2 : 4;
}
