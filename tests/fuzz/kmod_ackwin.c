// SPDX-License-Identifier: GPL-2.0-only
/*
 * A window of packet numbers against one bit for each number of a span, which forgets nothing. The
 * input: a byte that picks the base, then an opcode a byte, with two bytes of distance where it
 * takes some.
 */
#include "ackwin.h"
#include "kmod_check.h"

#define SPAN	   (1U << 17) /* numbers that the model knows: base to base + SPAN - 1 */
#define RANGES_MAX (QRE_ACKWIN_BITS + 2)

static const u64 bases[] = {
	0, 1, 63, 64, 65, 8191, 65536, (1ULL << 32) - 100, (1ULL << 62) - SPAN, 0ULL - SPAN,
};

static bool arrived[SPAN];
static u32 model_floor, model_end; /* offsets from the base; end: behind the highest */

static enum qre_arrival model_accept(u32 offset, u64 base)
{
	bool next = offset == model_end;
	u64 floor;

	if (offset < model_floor || arrived[offset])
		return QRE_ARRIVAL_REPLAYED;
	arrived[offset] = true;
	if (offset >= model_end)
		model_end = offset + 1;
	if (offset - model_floor >= QRE_ACKWIN_BITS) {
		floor = base + offset - QRE_ACKWIN_BITS + 1;
		while (floor % 64)
			floor++;
		model_floor = (u32)(floor - base);
	}
	return next ? QRE_ARRIVAL_NEXT : QRE_ARRIVAL_REORDERED;
}

/* The ranges are all that the model knows, down to the one that ends at the floor. */
static void check_ranges(const struct qre_ackwin *w, u64 base, unsigned int max)
{
	struct qre_range *ranges = malloc(max * sizeof(*ranges));
	unsigned int count = qre_ackwin_ranges(w, ranges, max), i = 0;
	u32 at = model_end, last;

	check(count <= max);
	while (at && i < max) {
		if (!arrived[--at])
			continue;
		last = at;
		if (last + 1 < model_floor)
			break;
		while (at && arrived[at - 1])
			at--;
		check(i < count);
		check(ranges[i].first == base + at && ranges[i].last == base + last);
		i++;
	}
	check(i == count);
	free(ranges);
}

static void accept(struct qre_ackwin *w, u64 base, u32 offset)
{
	if (offset >= SPAN)
		return;
	check(qre_ackwin_accept(w, base + offset) == model_accept(offset, base));
	check(w->floor == base + model_floor);
	check(w->any && w->highest == base + model_end - 1);
	check(qre_ackwin_accept(w, base + offset) == QRE_ARRIVAL_REPLAYED);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct qre_ackwin *w;
	const u8 *end = data + size;
	u32 distance;
	u8 opcode;
	u64 base;

	if (!size)
		return 0;
	base = bases[*data++ % (sizeof(bases) / sizeof(*bases))];
	w = malloc(sizeof(*w));
	qre_ackwin_init(w, base);
	memset(arrived, 0, sizeof(arrived));
	model_floor = 0;
	model_end = 0;
	while (data < end) {
		opcode = *data++;
		distance = 0;
		if (opcode % 8 > 2 && end - data >= 2) {
			distance = (u32)data[0] << 8 | data[1];
			data += 2;
		}
		switch (opcode % 8) {
		case 0: /* a few in a row */
		case 1:
			for (distance = opcode / 8; distance; distance--)
				accept(w, base, model_end);
			break;
		case 2: /* a short gap */
			accept(w, base, model_end + opcode / 8);
			break;
		case 3: /* up to a whole window ahead, and more */
			accept(w, base, model_end + distance % (2 * QRE_ACKWIN_BITS));
			break;
		case 4: /* behind */
		case 5:
			distance %= QRE_ACKWIN_BITS + 128;
			if (distance < model_end)
				accept(w, base, model_end - 1 - distance);
			break;
		case 6: /* below the base */
			if (base > distance)
				check(qre_ackwin_accept(w, base - 1 - distance) ==
				      QRE_ARRIVAL_REPLAYED);
			break;
		case 7: /* many in a row */
			for (distance %= 512; distance; distance--)
				accept(w, base, model_end);
			break;
		}
		if (opcode & 0x40)
			check_ranges(w, base, opcode & 0x80 ? RANGES_MAX : opcode % 33);
	}
	if (model_end)
		check_ranges(w, base, RANGES_MAX);
	free(w);
	return 0;
}
