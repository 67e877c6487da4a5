// SPDX-License-Identifier: GPL-2.0-only
/*
 * file_read - tasks that read files which together are larger than memory
 *
 *	file_read order=sequential|random tasks=N pages=N ms=N seed=N
 *
 * Each task, spread evenly over the CPUs, has a sparse file of PAGES pages in
 * /mnt, a file system on a RAM disk: a hole takes no disk, and reading one into
 * the page cache costs an allocation and a cleared page, but no device. An
 * operation is one read(2): of 64 KiB after 64 KiB, round and round, with the
 * kernel's readahead, or of a random page. Before the clock starts, the tasks
 * fill the free memory with page cache: it is short from the first measured
 * read on.
 *
 * What is let go are clean pages: reclaim is as cheap as it can be, and its own
 * costs show. A read that finds its pages in the cache takes a copy only.
 *
 * Signature: pgscan and pgsteal of file pages, workingset_refault_file where
 * a page comes back (with `random` from the start, with `sequential` when the
 * files have been read once), hardly any pswpout. The seed decides where in its
 * file a task starts and when, and which pages it reads if they are random.
 */
#include <string.h>
#include <unistd.h>

#include "load.h"

#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */
#define BLOCK (16 * PAGE)

static const char *order = "random";
static uint64_t tasks = 1, ms = 1000, pages = CHUNK, seed = 1;
static size_t filled;

static void read_at(int file, char *buffer, size_t size, size_t at)
{
	if (pread(file, buffer, size, at * size) != (ssize_t)size)
		die("read");
}

static void be_reader(struct task *task)
{
	uint64_t random = task_seed(seed, task), phase = next(&random) % PHASE_NS, began;
	int file = sparse_file(task->index, pages), sequential = order[0] == 's';
	size_t size = sequential ? BLOCK : PAGE, blocks = pages * PAGE / BLOCK;
	size_t at = next(&random) % blocks;
	char *buffer = anonymous(BLOCK / PAGE);

	for (size_t i = 0; i < filled; i += BLOCK / PAGE) {
		at = at + 1 == blocks ? 0 : at + 1;
		read_at(file, buffer, BLOCK, at);
	}
	wait_for_go(task, phase);
	do {
		if (sequential)
			at = at + 1 == blocks ? 0 : at + 1;
		else
			at = next(&random) % pages;
		began = now();
		read_at(file, buffer, size, at);
	} while (note(task, began, now()) < ms * 1000000);
}

int main(int argc, char **argv)
{
	const struct word words[] = {
		{ "order", NULL, &order }, { "tasks", &tasks, NULL }, { "pages", &pages, NULL },
		{ "ms", &ms, NULL }, { "seed", &seed, NULL }, {}
	};

	read_words(argc, argv, words);
	require(tasks && ms, "tasks and ms");
	require(pages && pages % CHUNK == 0, "pages that are a multiple of 64");
	require(!strcmp(order, "sequential") || !strcmp(order, "random"), "order=sequential or order=random");
	recruit(tasks);
	filled = free_share(tasks);
	if (filled > pages)
		filled = pages;
	for (uint64_t i = 0; i < tasks; i++)
		start("reader", i, be_reader, i);
	fact("pages_per_task", pages);
	run_tasks();
	return finish("file_read", seed);
}
