/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs of this directory have in common. A workload is tasks that
 * do operations and note how long each takes:
 *
 *	read_words(argc, argv, words);
 *	recruit(number);
 *	for (i = 0; i < number; i++)
 *		start("main", cpu, be_task, i);
 *	run_tasks();
 *	return finish("mmap_test", seed);
 *
 * and in a task's function, which runs in a process of its own:
 *
 *	(set up)
 *	wait_for_go(task);
 *	do {
 *		began = now();
 *		(operate)
 *	} while (note(task, began, now()) < ms);
 *
 * `observe` starts workloads, says when their clock starts, and watches the
 * system meanwhile. By hand, without it, the clock starts at once.
 */
#ifndef LOAD_H
#define LOAD_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>
#include <time.h>

#define PAGE 4096
#define CHUNK 64		/* pages let go at a time */

/*
 * Log-linear, as in HdrHistogram: values up to 255 ns have a bucket each, and
 * from there every octave has 128, so that a bucket is at most 0.8 % wide.
 */
#define SUB 128
#define BUCKETS (34 * SUB + SUB)
#define MAX_PHASES 16

struct task {
	const char *group;
	pid_t pid;
	int index, status;
	uint64_t ops, start_ns, ns, max_ns, minor, major;
	uint32_t *histogram;	/* BUCKETS for each phase */
};

/* An argument KEY=NUMBER or KEY=TEXT; a number is needed unless it has a value. */
struct word {
	const char *key;
	uint64_t *number;
	const char **text;
};

/* Inline: an operation is measured from one call to the next. */
static inline uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

__attribute__((noreturn)) void die(const char *what);
uint64_t next(uint64_t *state);
unsigned int bucket(uint64_t ns);
FILE *result(const char *name);
void *locked(size_t size);
void print_histogram(FILE *out, const uint32_t *histogram);

/* Ends with exit status 2 at a word that is not among these, which end with {}. */
void read_words(int argc, char **argv, const struct word *words);
/* Ends with exit status 2 if it is not so. */
void require(int so, const char *what);

/* So many tasks are to come. */
void recruit(int number);
/* Start one, on that CPU (modulo their number). It gets a seed of its own with task_seed(). */
void start(const char *group, int cpu, void (*function)(struct task *task), int index);
uint64_t task_seed(uint64_t seed, const struct task *task);
void pin(int cpu);

/* Ready: wait for the others and for the clock; then for at most `phase` ns more. */
void wait_for_go(struct task *task, uint64_t phase);
/* Note an operation; gives the ns since the task's first began. */
uint64_t note(struct task *task, uint64_t began, uint64_t ended);

/* Wait until all are ready, open the gate, wait for their end. */
void run_tasks(void);
/* A number that goes with the results. */
void fact(const char *name, uint64_t value);
/* Leave the results: the exit status. */
int finish(const char *workload, uint64_t seed);

/* A quarter of a page is noise, so that it compresses about as data does. */
void fill(char *page, uint64_t *random);
/* Anonymous memory of so many pages. */
char *anonymous(size_t pages);
/* The page of a window after `at`, round and round; its chunk is let go when entered. */
size_t next_page(char *window, size_t window_pages, size_t at);
/* A sparse file of so many pages in /mnt; its descriptor. */
int sparse_file(int index, size_t pages);
/* Free memory in pages, shared among so many tasks. */
size_t free_share(int tasks);

#endif
