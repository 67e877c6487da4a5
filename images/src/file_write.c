// SPDX-License-Identifier: GPL-2.0-only
/*
 * file_write - tasks that overwrite files, again and again: dirty page cache
 *
 *	file_write tasks=N pages=N ms=N seed=N
 *
 * Each task, spread evenly over the CPUs, has a file of PAGES pages in /mnt, a
 * file system on a RAM disk, and overwrites it in a ring. An operation is one
 * write(2) of a page, into the page cache. Before the clock starts, every file
 * has been written once and is on the disk, which from then on holds TASKS x
 * PAGES pages of memory that cannot be reclaimed and does not grow any more.
 * The rest has to do for the page cache: where that is less than the files, a
 * ring does not fit, and a write needs a page that reclaim has to find among
 * dirty ones.
 *
 * Most writes take a copy. Some wait: for a page (direct reclaim) or because too
 * much is dirty (the kernel puts writers to sleep to match the speed of
 * writeback). The disk has no latency of its own; what is written back costs a
 * copy by the flusher thread.
 *
 * Signature: nr_dirtied and nr_written rise together, pgscan and pgsteal of
 * file pages. The seed decides where in its ring a task starts and when.
 */
#include <sys/types.h>
#include <unistd.h>

#include "load.h"

#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */

static uint64_t tasks = 1, ms = 1000, pages = CHUNK, seed = 1;

static void write_page(int file, const char *page, size_t at)
{
	if (pwrite(file, page, PAGE, at * PAGE) != PAGE)
		die("write");
}

static void be_writer(struct task *task)
{
	uint64_t random = task_seed(seed, task), phase = next(&random) % PHASE_NS, began;
	int file = sparse_file(task->index, pages);
	size_t at = next(&random) % pages;
	char *page = anonymous(1);

	fill(page, &random);
	for (size_t i = 0; i < pages; i++)
		write_page(file, page, i);
	if (fdatasync(file))
		die("fdatasync");
	wait_for_go(task, phase);
	do {
		at = at + 1 == pages ? 0 : at + 1;
		began = now();
		write_page(file, page, at);
	} while (note(task, began, now()) < ms * 1000000);
}

int main(int argc, char **argv)
{
	const struct word words[] = {
		{ "tasks", &tasks, NULL }, { "pages", &pages, NULL }, { "ms", &ms, NULL },
		{ "seed", &seed, NULL }, {}
	};

	read_words(argc, argv, words);
	require(tasks && ms, "tasks and ms");
	require(pages, "pages");
	recruit(tasks);
	for (uint64_t i = 0; i < tasks; i++)
		start("writer", i, be_writer, i);
	fact("pages_per_task", pages);
	run_tasks();
	return finish("file_write", seed);
}
