// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap_test - tasks that together map more than memory and touch it, page by page
 *
 *	mmap_test mode=anon|file|mixed tasks=N pages=N bystanders=N ms=N seed=N
 *
 * After the program of the same name in Shaohua Li's mail of September 2010.
 * Each task, spread evenly over the CPUs, has a window of PAGES pages. In mode
 * `anon` a touch writes to a page of anonymous memory that is not there yet; in
 * mode `file` it reads a page of a mapped sparse file; in mode `mixed` every
 * second task does the one and the others the other. A page is let go just
 * before its turn comes again, so that every touch is one page fault and the
 * footprint stays at TASKS x PAGES once all windows are full. Before the clock
 * starts, the tasks take the memory that is free: it is short from the first
 * measured touch on.
 *
 * A bystander computes most of the time and touches a fresh page every
 * millisecond: what reclaim by others costs those who ask for little.
 *
 * Signature: one page fault per touch; anon: pswpout, file: refaults of file
 * pages and no swap. The seed decides where in its window a task starts and
 * when, and what the pages hold.
 */
#include <string.h>
#include <sys/mman.h>

#include "load.h"

#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */
#define PERIOD_NS 1000000	/* of a bystander's touches */
#define PRIVATE 64		/* pages of a bystander */

static const char *mode = "anon";
static uint64_t tasks = 1, bystanders, ms = 1000, pages = CHUNK, seed = 1;

static void touch(int file, char *page)
{
	if (file)
		(void)*(volatile char *)page;
	else
		*(volatile char *)page = 1;
}

static char *map_window(int file, int index)
{
	if (!file)
		return anonymous(pages);
	char *window = mmap(NULL, pages * PAGE, PROT_READ, MAP_SHARED, sparse_file(index, pages), 0);

	if (window == MAP_FAILED)
		die("mmap");
	return window;
}

static void be_task(struct task *task)
{
	uint64_t random = task_seed(seed, task), began;
	int file = mode[0] == 'f' || (mode[0] == 'm' && task->index % 2);
	char *window = map_window(file, task->index);
	/* At the last page of a chunk, so that the first touch lets one go. */
	size_t at = next(&random) % (pages / CHUNK) * CHUNK + CHUNK - 1;
	uint64_t phase = next(&random) % PHASE_NS;

	for (size_t i = 0; i < pages; i++) {
		at = at + 1 == pages ? 0 : at + 1;
		touch(file, window + at * PAGE);
		if (!file)
			fill(window + at * PAGE, &random);
	}
	wait_for_go(task, phase);
	do {
		at = next_page(window, pages, at);
		began = now();
		touch(file, window + at * PAGE);
		uint64_t ended = now();

		if (!file)
			fill(window + at * PAGE, &random);
		began = note(task, began, ended);
	} while (began < ms * 1000000);
}

static void be_bystander(struct task *task)
{
	uint64_t random = task_seed(seed, task), done, due;
	char *memory = anonymous(PRIVATE);
	size_t at = 0;

	memset(memory, 1, PRIVATE * PAGE);
	wait_for_go(task, next(&random) % PHASE_NS);
	due = now();
	do {
		while (now() < due)
			fill(memory, &random);
		due += PERIOD_NS;
		at = at + 1 == PRIVATE ? 1 : at + 1;
		madvise(memory + at * PAGE, PAGE, MADV_DONTNEED);

		uint64_t began = now();

		touch(0, memory + at * PAGE);
		done = note(task, began, now());
	} while (done < ms * 1000000);
}

int main(int argc, char **argv)
{
	const struct word words[] = {
		{ "mode", NULL, &mode }, { "tasks", &tasks, NULL }, { "pages", &pages, NULL },
		{ "bystanders", &bystanders, NULL }, { "ms", &ms, NULL }, { "seed", &seed, NULL }, {}
	};

	read_words(argc, argv, words);
	require(tasks && ms, "tasks and ms");
	require(pages && pages % CHUNK == 0, "pages that are a multiple of 64");
	require(mode[0] && strchr("afm", mode[0]), "a mode: anon, file or mixed");
	recruit(tasks + bystanders);
	for (uint64_t i = 0; i < tasks; i++)
		start("main", i, be_task, i);
	for (uint64_t i = 0; i < bystanders; i++)
		start("bystander", i, be_bystander, i);
	fact("pages_per_task", pages);
	run_tasks();
	return finish("mmap_test", seed);
}
