// SPDX-License-Identifier: GPL-2.0-only
/*
 * high_order - tasks that touch memory in areas of 2 MiB, which may be huge pages
 *
 *	high_order tasks=N pages=N ms=N seed=N
 *
 * Each task, spread evenly over the CPUs, has a window of PAGES pages of
 * anonymous memory, whole areas of 2 MiB that are aligned and advised to be huge
 * pages. It goes from area to area, round and round: it lets the area go, touches
 * its first page, and then writes to all others. An operation is the first touch
 * alone: with transparent huge pages the kernel looks for 512 free pages in a
 * row, by reclaim and compaction as /sys/kernel/mm/transparent_hugepage/defrag
 * allows; without them, or when it finds none, for one page. Before the clock
 * starts, the windows take the memory that is free.
 *
 * Signature: with THP `always` or `madvise`, thp_fault_alloc and, where none
 * was found, thp_fault_fallback: together one for each operation; with `never`
 * none of them, but 512 page faults for an area. The fact `areas` counts the
 * operations and `huge` those that came as a huge page. The seed decides with
 * which area a task starts and when, and what pages hold.
 */
#include <sys/mman.h>

#include "load.h"

#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */
#define HUGE 512		/* pages */
#define AREA ((size_t)HUGE * PAGE)

static uint64_t tasks = 1, ms = 1000, pages = HUGE, seed = 1;
static size_t filled;
static struct { uint64_t areas, huge; } *found;

static char *map_areas(void)
{
	uintptr_t memory = (uintptr_t)anonymous(pages + HUGE);
	char *window = (char *)((memory + AREA - 1) & -AREA);

	/* A kernel without huge pages refuses; then there are none. */
	madvise(window, pages * PAGE, MADV_HUGEPAGE);
	return window;
}

/* With its page table: where there is one, the kernel does not try for a huge page. */
static void let_go(char *area)
{
	if (mmap(area, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != area)
		die("mmap");
	madvise(area, AREA, MADV_HUGEPAGE);
}

static void be_task(struct task *task)
{
	uint64_t random = task_seed(seed, task), phase = next(&random) % PHASE_NS, began;
	size_t areas = pages / HUGE, at = next(&random) % areas;
	char *window = map_areas();
	unsigned char there;

	for (size_t i = 0; i < filled; i++)
		fill(window + (at * HUGE + i) % pages * PAGE, &random);
	at = (at + filled / HUGE) % areas;
	wait_for_go(task, phase);
	do {
		at = at + 1 == areas ? 0 : at + 1;
		char *area = window + at * AREA;

		let_go(area);
		began = now();
		*(volatile char *)area = 1;
		uint64_t ended = now();

		/* A huge page has brought its neighbours. */
		if (mincore(area + PAGE, PAGE, &there))
			die("mincore");
		__atomic_add_fetch(&found->huge, there & 1, __ATOMIC_RELAXED);
		__atomic_add_fetch(&found->areas, 1, __ATOMIC_RELAXED);
		for (size_t i = 0; i < HUGE; i++)
			fill(area + i * PAGE, &random);
		began = note(task, began, ended);
	} while (began < ms * 1000000);
}

int main(int argc, char **argv)
{
	const struct word words[] = {
		{ "tasks", &tasks, NULL }, { "pages", &pages, NULL }, { "ms", &ms, NULL },
		{ "seed", &seed, NULL }, {}
	};

	read_words(argc, argv, words);
	require(tasks && ms, "tasks and ms");
	require(pages && pages % HUGE == 0, "pages that are a multiple of 512");
	recruit(tasks);
	found = locked(sizeof(*found));
	filled = free_share(tasks);
	if (filled > pages)
		filled = pages;
	for (uint64_t i = 0; i < tasks; i++)
		start("main", i, be_task, i);
	fact("pages_per_task", pages);
	run_tasks();
	fact("areas", found->areas);
	fact("huge", found->huge);
	return finish("high_order", seed);
}
