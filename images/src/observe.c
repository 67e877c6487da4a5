// SPDX-License-Identifier: GPL-2.0-only
/*
 * observe - run a workload and note what the system counts meanwhile
 *
 *	observe PROGRAM [ARG...]	one of this directory: it says when it is ready
 *	observe -u PROGRAM [ARG...]	any other: its clock starts when it does,
 *					at once or up to 10 ms later, by $SEED
 *
 * From the environment, in milliseconds after the clock's start:
 *
 *	HOLD=MS=PAGES,...	how many pages to keep from everybody else, from when on
 *	PHASES=NAME=MS,...	parts of the time that are looked at apart
 *	SAMPLE=MS		how often the counters are read
 *
 * Leaves in /run/result: `vmstat`, `meminfo`, `pressure`, `zram` and `kswapd`
 * with `.before` and `.after`, `zoneinfo.after`, `samples` (a table over time,
 * with a row at the start of each phase and at the end) and `sampling` (what
 * that has cost), and `held` (what of HOLD came when). All that watches stays in
 * memory, and is written when the workload is over.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#define TEXT 32768		/* of a file in /proc */
#define LONG_TEXT 131072	/* of zoneinfo, with many CPUs and nodes */
#define MAX_COLUMNS 128
#define MAX_ROWS 2048
#define MAX_KSWAPD 8
#define MAX_HOLDERS 64
#define PHASE 10000000		/* ns: some ticks of the kernel's */

static uint64_t to_ns(const struct timespec *t)
{
	return t->tv_sec * 1000000000ull + t->tv_nsec;
}

static size_t read_from_start(int fd, char *text, size_t size)
{
	size_t length = 0;
	ssize_t got;

	while (fd >= 0 && (got = pread(fd, text + length, size - 1 - length, length)) > 0)
		length += got;
	text[length] = '\0';
	return length;
}

static size_t read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = read_from_start(fd, text, size);

	close(fd);
	return length;
}

/* Of this, only what is used takes memory, and that stays in place. */
static void *room(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || mlock2(memory, size, MLOCK_ONFAULT))
		die("memory");
	return memory;
}

/* --- what is read before and after ------------------------------------------------ */

static struct {
	const char *name, *path;
	int fd;
} watched[] = {
	{ "vmstat", "/proc/vmstat", -1 },
	{ "meminfo", "/proc/meminfo", -1 },
	{ "pressure", "/proc/pressure/memory", -1 },
	{ "zram", "/sys/block/zram0/mm_stat", -1 },
	{ "zoneinfo", "/proc/zoneinfo", -1 },
};
#define WATCHED (sizeof(watched) / sizeof(*watched))
static char (*text)[WATCHED][LONG_TEXT];

static struct {
	char name[16];
	clockid_t clock;
	uint64_t ns[2];
} kswapd[MAX_KSWAPD];
static int kswapds;

static void find_kswapd(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	while (proc && (entry = readdir(proc)) && kswapds < MAX_KSWAPD) {
		char path[300], name[64];

		if (!isdigit(entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		if (!read_file(path, name, sizeof(name)) || strncmp(name, "kswapd", 6))
			continue;
		name[strcspn(name, "\n")] = '\0';
		snprintf(kswapd[kswapds].name, sizeof(kswapd->name), "%.15s", name);
		if (!clock_getcpuclockid(atoi(entry->d_name), &kswapd[kswapds].clock))
			kswapds++;
	}
	closedir(proc);
}

static uint64_t cpu_time(clockid_t clock)
{
	struct timespec t = {};

	clock_gettime(clock, &t);
	return to_ns(&t);
}

static uint64_t kswapd_ns(void)
{
	uint64_t ns = 0;

	for (int i = 0; i < kswapds; i++)
		ns += cpu_time(kswapd[i].clock);
	return ns;
}

static void snapshot(int when)
{
	for (size_t i = 0; i < WATCHED; i++)
		read_from_start(watched[i].fd, text[when][i], LONG_TEXT);
	for (int i = 0; i < kswapds; i++)
		kswapd[i].ns[when] = cpu_time(kswapd[i].clock);
}

static void write_snapshots(void)
{
	static const char *const suffix[] = { "before", "after" };

	for (int when = 0; when < 2; when++) {
		char name[64];

		for (size_t i = 0; i < WATCHED; i++) {
			if (!*text[when][i])
				continue;
			snprintf(name, sizeof(name), "%s.%s", watched[i].name, suffix[when]);
			FILE *file = result(name);

			fputs(text[when][i], file);
			fclose(file);
		}
		snprintf(name, sizeof(name), "kswapd.%s", suffix[when]);
		FILE *file = result(name);

		for (int i = 0; i < kswapds; i++)
			fprintf(file, "%s %" PRIu64 "\n", kswapd[i].name, kswapd[i].ns[when]);
		fclose(file);
	}
}

/* --- memory that is kept from everybody else -------------------------------------- */

static struct target {
	uint64_t at, pages;		/* ns after the start */
} *target;
static int targets;

static struct holding {
	uint64_t pages;			/* by all of them, now */
	struct {
		uint64_t holders, ns;	/* who have their part, and when the last of them had */
	} reached[];
} *holding;
static pid_t holder[MAX_HOLDERS];
static int holders;

static uint64_t part(int index, uint64_t pages)
{
	return pages * (index + 1) / holders - pages * index / holders;
}

static void hold_pages(char *memory, int64_t had, int64_t change)
{
	if (change > 0) {
		if (mlock(memory + had * PAGE, change * PAGE))
			die("mlock");
	} else {
		munlock(memory + (had + change) * PAGE, -change * PAGE);
		if (madvise(memory + (had + change) * PAGE, -change * PAGE, MADV_DONTNEED))
			die("madvise");
	}
	__atomic_add_fetch(&holding->pages, change, __ATOMIC_RELAXED);
}

static void note_part(int i, uint64_t start)
{
	if (__atomic_add_fetch(&holding->reached[i].holders, 1, __ATOMIC_RELAXED) == (uint64_t)holders)
		holding->reached[i].ns = now() - start - target[i].at;
}

/* Whether a part that is held now has come to that of a target, from that of the one before. */
static int is_reached(int index, int i, uint64_t had)
{
	uint64_t wanted = part(index, target[i].pages);
	uint64_t before = i ? part(index, target[i - 1].pages) : 0;

	return wanted < before ? had <= wanted : had >= wanted;
}

/* Whether target i leads back, from where the last one that was another led. */
static int turns(int i)
{
	uint64_t from = target[i - 1].pages;

	if (target[i].pages == from)
		return 0;
	for (int j = i - 1; j >= 0; j--) {
		uint64_t before = j ? target[j - 1].pages : 0;

		if (target[j].pages != before)
			return (target[j].pages > before) != (target[i].pages > from);
	}
	return 0;
}

/*
 * In chunks, and always for the latest target. One that was passed on the way to
 * it is reached; one that is not when the next leads back never is.
 */
static void be_holder(int index, uint64_t start)
{
	uint64_t most = 0, had = 0;

	for (int i = 0; i < targets; i++)
		if (most < part(index, target[i].pages))
			most = part(index, target[i].pages);
	char *memory = mmap(NULL, most * PAGE + PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		die("memory");
	/* A kernel may be without them. */
	madvise(memory, most * PAGE, MADV_NOHUGEPAGE);
	for (int i = 0, due = 0; i < targets; i++) {
		uint64_t at = start + target[i].at, wanted = part(index, target[i].pages);
		uint64_t end = i + 1 < targets ? start + target[i + 1].at : UINT64_MAX;
		struct timespec when = { at / 1000000000, at % 1000000000 };

		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL))
			;
		if (i && turns(i))
			due = i;
		do {
			int64_t change = wanted - had;

			change = change > CHUNK ? CHUNK : change < -CHUNK ? -CHUNK : change;
			if (change)
				hold_pages(memory, had, change);
			had += change;
			while (due <= i && is_reached(index, due, had))
				note_part(due++, start);
		} while (had != wanted && now() < end);
	}
	pause();
}

/*
 * One for each CPU, which goes before all others there: where memory is short, who
 * takes some has to reclaim it first. (A balloon's driver sleeps for 200 ms whenever
 * there is no page for it.)
 */
static void start_holders(const int *ready, const int *go, const uint64_t *start)
{
	size_t size = sizeof(*holding) + targets * sizeof(*holding->reached);
	int cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (!targets)
		return;
	holding = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (holding == MAP_FAILED || mlock(holding, size))
		die("memory");
	holders = cpus < MAX_HOLDERS ? cpus : MAX_HOLDERS;
	for (int i = 0; i < holders; i++) {
		char byte;

		holder[i] = fork();
		if (holder[i] < 0)
			die("fork");
		if (holder[i])
			continue;
		/* With ends of its own, nobody would see the end of a file. */
		close(ready[0]);
		close(ready[1]);
		close(go[1]);
		pin(i);
		if (setpriority(PRIO_PROCESS, 0, -20) || read(go[0], &byte, 1) != 0)
			die("holder");
		be_holder(i, *start);
		_exit(0);
	}
}

static void end_holders(void)
{
	for (int i = 0; i < holders; i++) {
		kill(holder[i], SIGKILL);
		waitpid(holder[i], NULL, 0);
	}
}

/* A line for each target: at which ns, how many pages, and how late; -1 if they never were held. */
static void write_held(void)
{
	if (!targets)
		return;
	FILE *file = result("held");

	for (int i = 0; i < targets; i++) {
		int whole = holding->reached[i].holders == (uint64_t)holders;

		fprintf(file, "%" PRIu64 " %" PRIu64 " %" PRId64 "\n", target[i].at, target[i].pages,
			whole ? (int64_t)holding->reached[i].ns : -1);
	}
	fclose(file);
}

/* --- what is read over time ------------------------------------------------------- */

static const char *const wanted[] = {
	"nr_free_pages", "nr_inactive_", "nr_active_", "nr_dirty", "nr_writeback", "nr_zspages",
	"nr_written", "nr_dirtied", "pgscan_", "pgsteal_", "allocstall_", "workingset_", "pswpin",
	"pswpout", "pgfault", "pgmajfault", "pgpgin", "pgpgout", "pgactivate", "pgdeactivate",
	"pageoutrun", "kswapd_", "drop_slab", "oom_kill", "direct_reclaim_", "reclaim_capture",
	"compact_stall", "thp_fault_",
};

static struct {
	int columns;			/* of vmstat */
	int lines[MAX_COLUMNS];		/* in which line of vmstat each is */
	char names[MAX_COLUMNS][48];
	int rows, lost;
	uint64_t *values;		/* by rows: ns, phase, PSI some and full, kswapd, held; then vmstat */
	uint64_t cpu_ns, period_ns, start, booted;
	uint64_t watermarks[3];
} samples;
#define FIXED 6
static char scratch[TEXT];

static uint64_t *row_at(int index)
{
	return samples.values + (size_t)index * (FIXED + samples.columns);
}

static int is_wanted(const char *name)
{
	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
		size_t length = strlen(wanted[i]);
		char end = name[length];

		if (!strncmp(name, wanted[i], length) &&
		    (wanted[i][length - 1] == '_' || end == ' ' || isalpha(end) || end == '_'))
			return 1;
	}
	return 0;
}

static void choose_columns(void)
{
	int line = 0;

	read_file("/proc/vmstat", scratch, TEXT);
	for (char *at = scratch; *at && samples.columns < MAX_COLUMNS; line++) {
		if (is_wanted(at)) {
			snprintf(samples.names[samples.columns], sizeof(samples.names[0]), "%.*s",
				 (int)strcspn(at, " "), at);
			samples.lines[samples.columns++] = line;
		}
		at += strcspn(at, "\n");
		at += !!*at;
	}
	/* All there from the start: whoever fetches memory now and then has to reclaim for it. */
	samples.values = locked(MAX_ROWS * (FIXED + samples.columns) * sizeof(uint64_t));
}

static uint64_t number_after(const char *at, const char *key)
{
	at = strstr(at, key);
	return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static void sum_watermarks(const char *zoneinfo)
{
	static const char *const names[] = { "\n        min ", "\n        low ", "\n        high " };

	for (int i = 0; i < 3; i++) {
		samples.watermarks[i] = 0;
		for (const char *at = zoneinfo; (at = strstr(at, names[i])); at++)
			samples.watermarks[i] += strtoull(at + strlen(names[i]), NULL, 10);
	}
}

static void sample(int phase)
{
	uint64_t began = cpu_time(CLOCK_PROCESS_CPUTIME_ID);

	uint64_t *row = row_at(samples.rows++);
	int line = 0, column = 0;

	row[0] = now();
	row[1] = phase;
	read_file("/proc/vmstat", scratch, TEXT);
	for (const char *at = scratch; *at && column < samples.columns; line++) {
		const char *end = strchr(at, '\n');

		if (line == samples.lines[column])
			row[FIXED + column++] = strtoull(strchr(at, ' '), NULL, 10);
		at = end ? end + 1 : "";
	}
	read_file("/proc/pressure/memory", scratch, TEXT);
	row[2] = number_after(scratch, "total=");
	const char *full = strstr(scratch, "full");

	row[3] = full ? number_after(full, "total=") : 0;
	row[4] = kswapd_ns();
	row[5] = holding ? __atomic_load_n(&holding->pages, __ATOMIC_RELAXED) : 0;
	samples.cpu_ns += cpu_time(CLOCK_PROCESS_CPUTIME_ID) - began;
}

static void write_samples(void)
{
	FILE *file = result("samples");

	fprintf(file, "ns phase psi_some_us psi_full_us kswapd_ns held min low high");
	for (int i = 0; i < samples.columns; i++)
		fprintf(file, " %s", samples.names[i]);
	for (int r = 0; r < samples.rows; r++) {
		const uint64_t *row = row_at(r);

		for (int i = 0; i < FIXED; i++)
			fprintf(file, "%c%" PRIu64, i ? ' ' : '\n', row[i]);
		for (int i = 0; i < 3; i++)
			fprintf(file, " %" PRIu64, samples.watermarks[i]);
		for (int i = 0; i < samples.columns; i++)
			fprintf(file, " %" PRIu64, row[FIXED + i]);
	}
	fprintf(file, "\n");
	fclose(file);
	file = result("sampling");
	fprintf(file, "samples %d\ncpu_ns %" PRIu64 "\nperiod_ns %" PRIu64 "\nlost %d\n",
		samples.rows, samples.cpu_ns, samples.period_ns, samples.lost);
	fprintf(file, "booted_ns %" PRIu64 "\n", samples.booted);
	fclose(file);
}

/* --- what is to happen when ------------------------------------------------------- */

static uint64_t starts[MAX_PHASES + 1];
static int phases;

static void read_times(void)
{
	const char *at = getenv("PHASES");

	/* NAME=MS,NAME=MS,... */
	while (at && (at = strchr(at, '=')) && phases < MAX_PHASES) {
		starts[phases++] = strtoull(at + 1, NULL, 10) * 1000000;
		at = strchr(at, ',');
	}
	phases += !phases;
	for (at = getenv("HOLD"); at && *at; targets++) {
		char *rest;

		target = realloc(target, (targets + 1) * sizeof(*target));
		if (!target)
			die("memory");
		target[targets].at = strtoull(at, &rest, 10) * 1000000;
		target[targets].pages = strtoull(rest + 1, &rest, 10);
		at = rest + !!*rest;
	}
	at = getenv("SAMPLE");
	samples.period_ns = at ? strtoull(at, NULL, 10) * 1000000 : 0;
}

static uint64_t earliest(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Until the child has ended; its exit status. */
static int watch(pid_t child)
{
	int phase = 0, status;
	uint64_t next_sample = samples.period_ns ? samples.start + samples.period_ns : UINT64_MAX;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	while (waitpid(child, &status, WNOHANG) == 0) {
		uint64_t border = phase + 1 < phases ? samples.start + starts[phase + 1] : UINT64_MAX;
		uint64_t due = earliest(next_sample, border), t = now();

		if (due == UINT64_MAX) {
			sigwaitinfo(&set, NULL);
		} else if (t < due) {
			struct timespec left = { (due - t) / 1000000000, (due - t) % 1000000000 };

			sigtimedwait(&set, NULL, &left);
		} else if (border <= t) {
			sample(++phase);
		} else {
			/* The phases' rows and the last one have to find room. */
			if (samples.rows < MAX_ROWS - MAX_PHASES - 1)
				sample(phase);
			else
				samples.lost++;
			while (next_sample <= t)
				next_sample += samples.period_ns;
		}
	}
	sample(phase);
	return status;
}

/* --- the workload ----------------------------------------------------------------- */

#define TRACING "/sys/kernel/tracing/"

/* Of the trace, and of what is tallied; -1 where there is none. */
static int switches[2];

/* Whoever opens a file takes memory for it, and may have to reclaim some. */
static void open_files(void)
{
	for (size_t i = 0; i < WATCHED; i++)
		watched[i].fd = open(watched[i].path, O_RDONLY | O_CLOEXEC);
	switches[0] = open(TRACING "tracing_on", O_WRONLY | O_CLOEXEC);
	switches[1] = open(TRACING "instances/tally/tracing_on", O_WRONLY | O_CLOEXEC);
}

static void record(char on)
{
	for (int i = 0; i < 2; i++)
		if (switches[i] >= 0 && write(switches[i], &on, 1) < 0)
			die("tracing_on");
}

static void export(const char *name, int fd)
{
	char value[16];

	snprintf(value, sizeof(value), "%d", fd);
	setenv(name, value, 1);
}

/*
 * A program may not take a seed, and then every trial would be the same: so it
 * meets timers, and what else goes on by itself, at another moment each time.
 */
static void sleep_by_seed(void)
{
	const char *seed = getenv("SEED");
	uint64_t state = seed ? strtoull(seed, NULL, 10) : 0;
	struct timespec phase = { 0, next(&state) % PHASE };

	nanosleep(&phase, NULL);
}

static pid_t run(char **argv, int user, const int *ready, const int *go, int clock)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return pid;
	/* Our ends: with one of its own, it would see no end of file. */
	close(ready[0]);
	close(go[1]);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (user) {
		/* Whoever may be killed for memory, it is not the one that reports. */
		int fd = open("/proc/self/oom_score_adj", O_WRONLY);
		char byte;

		if (fd < 0 || write(fd, "0", 1) < 0)
			die("oom_score_adj");
		close(fd);
		if (read(go[0], &byte, 1) != 0)
			die("pipe");
		close(go[0]);
		close(ready[1]);
		close(clock);
	} else {
		export("READY_FD", ready[1]);
		export("GO_FD", go[0]);
		export("CLOCK_FD", clock);
	}
	execvp(argv[0], argv);
	die(argv[0]);
}

int main(int argc, char **argv)
{
	int user = argc > 1 && !strcmp(argv[1], "-u"), ready[2], go[2], clock, status;
	sigset_t set;
	char byte;

	if (argc < 2 + user) {
		fprintf(stderr, "usage: observe [-u] PROGRAM [ARG...]\n");
		return 2;
	}
	samples.booted = now();
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	read_times();
	/* What is to run is not to know it: see tell.c. */
	unsetenv("NONCE");
	find_kswapd();
	open_files();
	clock = memfd_create("clock", 0);
	if (clock < 0 || ftruncate(clock, PAGE) || pipe(ready) || pipe(go) || mlockall(MCL_CURRENT))
		die("setup");
	uint64_t *start = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, clock, 0);

	if (start == MAP_FAILED || mlock(start, PAGE))
		die("clock");
	/* Not before mlockall(), which would fill it. */
	text = room(2 * sizeof(*text));
	choose_columns();
	start_holders(ready, go, start);
	pid_t child = run(argv + 1 + user, user, ready, go, clock);

	close(ready[1]);
	close(go[0]);
	if (user)
		sleep_by_seed();
	/* End of file: it has ended before it was ready. */
	if (user || read(ready[0], &byte, 1) == 1) {
		/*
		 * Only what happens between the snapshots is to be in the trace, and be tallied. What is
		 * read a second time takes no memory: nobody reclaims between the switch and the counters.
		 */
		snapshot(0);
		record('1');
		snapshot(0);
		/* So that there is memory for what is read in the end. */
		for (size_t i = 0; i < WATCHED; i++)
			strcpy(text[1][i], text[0][i]);
		sum_watermarks(text[0][WATCHED - 1]);
		*start = samples.start = now();
		sample(0);
		close(go[1]);
		status = watch(child);
		snapshot(1);
		/* What they reclaim for is counted before they end, and is to have its record. */
		end_holders();
		record('0');
		write_snapshots();
		write_samples();
		write_held();
	} else {
		close(go[1]);
		waitpid(child, &status, 0);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
