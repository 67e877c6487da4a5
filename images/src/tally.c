// SPDX-License-Identifier: GPL-2.0-only
/*
 * tally - what a workload's direct reclaims came to, from tracepoints alone
 *
 *	tally PROGRAM [ARG...]
 *
 * Runs PROGRAM and reads, all the while, the events of the tracing instance
 * that init has set up; PROGRAM turns that instance on and off. Of an event
 * nothing is kept but what it changes: some bytes for its task and for each of
 * its pages. Ends as PROGRAM does. Leaves /run/result/tally, as NAME VALUE lines:
 *
 *	lost		events that nobody has seen, or not in their order
 *	tries		order-0 direct reclaims that freed pages
 *	misses		... after which the free lists had none (Linux 6.0 on)
 *	misses_drained	... not even after the drain of the per-CPU lists
 *	repeats		... and the task had to reclaim again
 *	freed		pages freed by such tasks while they reclaimed
 *	thefts		... that somebody else was the next to get
 *	thefts_waiting	... before the one that had freed them got any
 *
 * and /run/result/episodes, as JSON: direct reclaims of any order, from begin
 * to end: a histogram of their durations, how often how many pages were freed
 * (1024: or more), and per task its pid, episodes, pages and ns.
 *
 * See docs/stock-kernels.md.
 *
 * Events are taken in the order of their times. Every CPU has them in order;
 * among CPUs, the earliest is next, and none is taken that is younger than the
 * previous look at the buffers: by then all older ones have been written.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#define INSTANCE "/sys/kernel/tracing/instances/tally/"
#define LOOK_NS 2000000		/* from one look at the buffers to the next */
#define MAX_CPUS 64
#define PIDS (1 << 22)		/* PID_MAX_LIMIT of 64-bit kernels */
#define PFNS (1ul << 25)	/* 128 GiB */

/* Events in interrupts have the pid of the task that was interrupted. */
#define IN_INTERRUPT 0x58	/* TRACE_FLAG_HARDIRQ, _SOFTIRQ, _NMI */

enum { BEGIN, END, RETRY, DRAIN, ALLOC, FREE, KINDS };

struct field {
	unsigned int offset, size;
};

/* What of an event matters: of BEGIN its order, of END how many pages were freed. */
static struct kind {
	const char *path, *first, *second;
	unsigned int id;
	struct field a, b;
} kinds[KINDS] = {
	[BEGIN] = { "vmscan/mm_vmscan_direct_reclaim_begin", "order" },
	[END] = { "vmscan/mm_vmscan_direct_reclaim_end", "nr_reclaimed" },
	[RETRY] = { "oom/reclaim_retry_zone", "order" },
	[DRAIN] = { "kmem/mm_page_pcpu_drain", "pfn" },
	[ALLOC] = { "kmem/mm_page_alloc", "pfn", "order" },
	[FREE] = { "kmem/mm_page_free", "pfn", "order" },
};

static struct field type, flags, pid;	/* of all events */

/* A CPU's events: the page of its buffer that is being read. */
static struct cpu {
	int fd;
	char page[PAGE] __attribute__((aligned(8)));
	const char *at, *end;
	uint64_t time;		/* of the event at @at, if there is one */
	const char *data;	/* ... and its content */
} cpus[MAX_CPUS];
static int nr_cpus;

/* A task from its order-0 direct reclaim on, until it has a page. */
enum {
	RECLAIMS = 1,		/* between begin and end */
	TRIED = 2,		/* has freed pages, and no page yet */
	MISSED = 4,		/* ... nor were there any on the free lists */
	MISSED_DRAINED = 8,	/* ... nor after the drain */
};

static struct claim {
	uint8_t state;
	uint8_t inside;		/* a direct reclaim, of any order */
	uint16_t round;		/* counts the requests that had to reclaim */
	uint32_t episodes, pages;
	uint64_t began, ns;
} *claims;			/* PIDS of them */

/* Direct reclaims from begin to end: how long they took, and how much they freed. */
#define MOST_PAGES 1024
static uint32_t durations[BUCKETS], pages_freed[MOST_PAGES + 1], highest_pid;

/* Who freed a page that nobody has got since: its pid, and in which round. */
#define ROUNDS 1024		/* 10 bits beside 22 of the pid */
static uint32_t *owners;

static struct {
	uint64_t lost, tries, misses, misses_drained, repeats;
	uint64_t freed, thefts, thefts_waiting;
} count;

static void read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t got, length = 0;

	if (fd < 0)
		die(path);
	while ((got = read(fd, text + length, size - 1 - length)) > 0)
		length += got;
	text[length] = 0;
	close(fd);
}

/* --- events ------------------------------------------------------------- */

static struct field find_field(const char *format, const char *name)
{
	char pattern[64];
	struct field field = { 0 };

	snprintf(pattern, sizeof(pattern), " %s;\toffset:", name);
	const char *found = strstr(format, pattern);

	if (!found || sscanf(found + strlen(pattern), "%u;\tsize:%u;",
			     &field.offset, &field.size) != 2) {
		fprintf(stderr, "tally: no field %s in\n%s", name, format);
		exit(1);
	}
	return field;
}

static void read_formats(void)
{
	char path[128], format[PAGE];

	for (struct kind *k = kinds; k < kinds + KINDS; k++) {
		snprintf(path, sizeof(path), INSTANCE "events/%s/format", k->path);
		read_file(path, format, sizeof(format));
		const char *id = strstr(format, "\nID: ");

		k->id = id ? atoi(id + 5) : 0;
		k->a = find_field(format, k->first);
		if (k->second)
			k->b = find_field(format, k->second);
		type = find_field(format, "common_type");
		flags = find_field(format, "common_flags");
		pid = find_field(format, "common_pid");
	}
}

static uint64_t get(const char *data, struct field field)
{
	uint64_t value = 0;

	memcpy(&value, data + field.offset, field.size);
	return value;
}

static uint32_t word(const char *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

/*
 * Go to the next event of the page: include/linux/ring_buffer.h. A word has
 * 5 bits of type or length and 27 of the time since what came before.
 */
static int next_event(struct cpu *cpu)
{
	while (cpu->at < cpu->end) {
		const char *at = cpu->at;
		uint32_t kind = word(at) & 31, delta = word(at) >> 5;

		switch (kind) {
		case 29:	/* padding, to the end or as long as it says */
			cpu->at = delta ? at + 4 + word(at + 4) : cpu->end;
			break;
		case 30:	/* a longer time */
			cpu->time += delta + ((uint64_t)word(at + 4) << 27);
			cpu->at = at + 8;
			break;
		case 31:	/* a time, all but its highest 5 bits */
			cpu->time = (cpu->time & 31ull << 59) | delta |
				    (uint64_t)word(at + 4) << 27;
			cpu->at = at + 8;
			break;
		default:
			cpu->time += delta;
			cpu->data = at + (kind ? 4 : 8);
			cpu->at = at + 4 + (kind ? 4 * kind : word(at + 4));
			return 1;
		}
	}
	cpu->data = NULL;
	return 0;
}

/* Go to the CPU's next event, in the next page of its buffer if need be. */
static void advance(struct cpu *cpu)
{
	while (!next_event(cpu)) {
		ssize_t got = read(cpu->fd, cpu->page, PAGE);

		if (got < 0 && errno != EAGAIN)
			die("trace_pipe_raw");
		if (got <= 0)
			return;
		/* Flags above; where events are missing is in the statistics, too. */
		cpu->time = *(uint64_t *)cpu->page;
		cpu->at = cpu->page + 16;
		cpu->end = cpu->at + (word(cpu->page + 8) & 0xfffff);
	}
}

/* --- what they mean ------------------------------------------------------ */

static int is_waiting(uint32_t owner)
{
	struct claim *task = &claims[owner % PIDS];

	return task->state && task->round % ROUNDS == owner / PIDS;
}

static void note_pages(uint64_t pfn, uint64_t order, uint32_t owner)
{
	for (uint64_t end = pfn + (1ull << order); pfn < end && pfn < PFNS; pfn++) {
		owners[pfn] = owner;
		count.freed += !!owner;
	}
}

static void note_thefts(uint64_t pfn, uint64_t order, uint32_t thief)
{
	for (uint64_t end = pfn + (1ull << order); pfn < end && pfn < PFNS; pfn++) {
		uint32_t owner = owners[pfn];

		if (owner && owner % PIDS != thief) {
			count.thefts++;
			count.thefts_waiting += is_waiting(owner);
		}
		owners[pfn] = 0;
	}
}

static void miss(struct claim *task)
{
	if ((task->state & (TRIED | MISSED)) == TRIED) {
		task->state |= MISSED;
		count.misses++;
	}
}

static void miss_drained(struct claim *task)
{
	miss(task);
	if ((task->state & (TRIED | MISSED_DRAINED)) == TRIED) {
		task->state |= MISSED_DRAINED;
		count.misses_drained++;
	}
}

static void end_episode(struct claim *task, uint64_t time, uint64_t pages)
{
	if (!task->inside)
		return;
	task->inside = 0;
	task->episodes++;
	task->pages += pages;
	task->ns += time - task->began;
	durations[bucket(time - task->began)]++;
	pages_freed[pages < MOST_PAGES ? pages : MOST_PAGES]++;
	if (task - claims > highest_pid)
		highest_pid = task - claims;
}

static void take(const char *data, uint64_t time)
{
	uint32_t id = get(data, type), who = get(data, pid) % PIDS;
	struct claim *task = &claims[who];
	int interrupt = !!(get(data, flags) & IN_INTERRUPT);
	struct kind *kind = kinds;

	while (kind->id != id)
		if (++kind == kinds + KINDS)
			return;
	uint64_t a = get(data, kind->a), b = kind->second ? get(data, kind->b) : 0;

	switch (kind - kinds) {
	case BEGIN:
		task->inside = 1;
		task->began = time;
		if (task->state & TRIED)
			count.repeats++;
		if (!task->state)
			task->round++;
		task->state = a ? 0 : RECLAIMS;
		break;
	case END:
		end_episode(task, time, a);
		if (task->state & RECLAIMS) {
			count.tries += !!a;
			task->state = a ? TRIED : 0;
		}
		break;
	case RETRY:
		miss_drained(task);
		break;
	case DRAIN:
		if (!interrupt)
			miss(task);
		break;
	case ALLOC:
		if (a + 1)
			note_thefts(a, b, interrupt ? 0 : who);
		/* Reclaim itself may allocate; its caller has no page by that. */
		if (interrupt || task->state & RECLAIMS)
			break;
		if (!(a + 1))
			miss_drained(task);
		task->state = 0;
		break;
	case FREE:
		if (interrupt || !(task->state & RECLAIMS))
			note_pages(a, b, 0);
		else
			note_pages(a, b, task->round % ROUNDS * PIDS | who);
		break;
	}
}

/* Take all events that are older than @until, in their order. */
static void look(uint64_t until)
{
	static uint64_t latest;

	for (int i = 0; i < nr_cpus; i++)
		if (!cpus[i].data)
			advance(&cpus[i]);
	for (;;) {
		struct cpu *first = NULL;

		for (int i = 0; i < nr_cpus; i++)
			if (cpus[i].data && (!first || cpus[i].time < first->time))
				first = &cpus[i];
		if (!first || first->time >= until)
			return;
		if (first->time < latest)
			count.lost++;
		latest = first->time;
		take(first->data, first->time);
		advance(first);
	}
}

/* --- around it ----------------------------------------------------------- */

/* Events for which there was no room, by the kernel's own statistics. */
static uint64_t lost_by_kernel(void)
{
	static const char *const keys[] = {
		"\noverrun: ", "\ncommit overrun: ", "\ndropped events: "
	};
	char path[128], stats[PAGE];
	uint64_t sum = 0;

	for (int i = 0; i < nr_cpus; i++) {
		snprintf(path, sizeof(path), INSTANCE "per_cpu/cpu%d/stats", i);
		read_file(path, stats, sizeof(stats));
		for (size_t k = 0; k < sizeof(keys) / sizeof(*keys); k++) {
			const char *found = strstr(stats, keys[k]);

			if (!found) {
				fprintf(stderr, "tally: %s has no%s\n", path, keys[k]);
				exit(1);
			}
			sum += strtoull(found + strlen(keys[k]), NULL, 10);
		}
	}
	return sum;
}

static void open_cpus(void)
{
	char path[128];

	nr_cpus = sysconf(_SC_NPROCESSORS_CONF);
	if (nr_cpus > MAX_CPUS) {
		errno = E2BIG;
		die("CPUs");
	}
	for (int i = 0; i < nr_cpus; i++) {
		snprintf(path, sizeof(path), INSTANCE "per_cpu/cpu%d/trace_pipe_raw", i);
		cpus[i].fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (cpus[i].fd < 0)
			die(path);
	}
}

/*
 * More than a small guest has, of which next to nothing is used: as part of the
 * program it would keep it from being started.
 */
static void *reserved(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		die("memory");
	return memory;
}

/* Its own memory must stay where it is, and nobody's work keep it waiting. */
static void prepare(void)
{
	struct sched_param param = { .sched_priority = 1 };

	owners = reserved(PFNS * sizeof(*owners));
	claims = reserved(PIDS * sizeof(*claims));
	if (mlockall(MCL_CURRENT | MCL_ONFAULT))
		die("memory");
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param))
		die("sched_setscheduler");
}

/* Before 6.0, the lists of a CPU are drained by a kworker on it. */
static int drains_itself(void)
{
	struct utsname name;

	return !uname(&name) && atoi(name.release) >= 6;
}

static void write_result(void)
{
	FILE *out = result("tally");

	fprintf(out, "lost %" PRIu64 "\ntries %" PRIu64 "\n", count.lost, count.tries);
	if (drains_itself())
		fprintf(out, "misses %" PRIu64 "\n", count.misses);
	fprintf(out, "misses_drained %" PRIu64 "\nrepeats %" PRIu64 "\nfreed %" PRIu64
		"\nthefts %" PRIu64 "\nthefts_waiting %" PRIu64 "\n",
		count.misses_drained, count.repeats, count.freed,
		count.thefts, count.thefts_waiting);
	fclose(out);
	out = result("episodes");
	fprintf(out, "{\"duration\": ");
	print_histogram(out, durations);
	fprintf(out, ",\n\"pages\": [");
	for (int i = 0, some = 0; i <= MOST_PAGES; i++)
		if (pages_freed[i])
			fprintf(out, "%s[%d,%" PRIu32 "]", some++ ? "," : "", i, pages_freed[i]);
	fprintf(out, "],\n\"tasks\": [");
	for (uint32_t i = 0, some = 0; i <= highest_pid; i++)
		if (claims[i].episodes)
			fprintf(out, "%s[%" PRIu32 ",%" PRIu32 ",%" PRIu32 ",%" PRIu64 "]", some++ ? "," : "",
				i, claims[i].episodes, claims[i].pages, claims[i].ns);
	fprintf(out, "]}\n");
	fclose(out);
}

int main(int argc, char **argv)
{
	const struct timespec pause = { .tv_nsec = LOOK_NS };
	uint64_t lost, began, before = 0;
	int status;

	if (argc < 2) {
		fprintf(stderr, "usage: tally PROGRAM [ARG...]\n");
		return 2;
	}
	read_formats();
	open_cpus();
	lost = lost_by_kernel();
	prepare();
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (!child) {
		execvp(argv[1], argv + 1);
		die(argv[1]);
	}
	while (!waitpid(child, &status, WNOHANG)) {
		began = now();
		look(before);
		before = began;
		nanosleep(&pause, NULL);
	}
	look(UINT64_MAX);
	count.lost += lost_by_kernel() - lost;
	write_result();
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
