// SPDX-License-Identifier: GPL-2.0-only
/*
 * A QEMU TCG plugin: stop the guest in front of an instruction, exactly, and
 * keep from it all that comes at a moment that the host's clock decides.
 *
 * Where the guest executes the no-op of images/src/meet.h, we tell the host on
 * a socket and wait for its answer before we let it go on. The callback runs in the thread
 * that executes all vCPUs and without QEMU's big lock: no vCPU executes another
 * instruction meanwhile, virtual time stands still, and the main loop serves
 * QMP. A `stop` from outside would end a vCPU's slice at a place that depends
 * on the host's clock. We stop as well before the first instruction of all.
 *
 * Between two such stops the main loop stands still. Whenever it runs, it also
 * runs the guest's timers that are due, which are the vCPUs' thread's to run,
 * and ends a slice early. A signal catches its thread in its wait, where it has
 * no lock that the vCPUs' thread could need, and keeps it there.
 *
 * And the host's clock stands still, for QEMU's timers. It lets no slice be
 * longer than what is left until the next one expires (icount_get_limit()), so
 * many ns, so many instructions. QMP's limit to the rate of events is such a
 * timer, for one second after the balloon has changed; and whether it is running
 * decides if the guest's next change sends an event, which ends a slice, too. So
 * before the guest goes on, we let all such timers expire.
 *
 * Every message on the socket, a SOCK_SEQPACKET, is one struct note. We say
 * where we stand; the answers are any number of breakpoints and then `go`, `step`
 * or `free`.
 *
 * And we tell the guest's time, in memory that the host sees, too: it can look at
 * any moment, and nobody here notices.
 *
 * Options: fd=N, the socket; clock=N, the memory, one number of 64 bits; any=N, if
 * N is 1 the guest can be stopped at any instruction, at any time and step by step,
 * and runs at some part of its speed. Otherwise breakpoints have to be there before
 * their code is translated, and there are no steps.
 *
 * Declared here is what is used of QEMU's include/qemu/qemu-plugin.h, so that
 * its headers need not be installed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
/* QEMU_PLUGIN_CB_R_REGS: what the vCPU has in host registers is written back. */
#define READ_REGISTERS 1

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*executed)(unsigned int vcpu, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, executed,
					    int flags, void *data);

/*
 * Not of the plugin interface (it is include/qemu/timer.h), but seen by whoever
 * QEMU loads if it is built with modules. ns until the next timer of a clock, -1
 * if there is none; whether timers of a clock expire at all; and what it says.
 */
__attribute__((weak))
int64_t qemu_clock_deadline_ns_all(int clock, int attributes);
__attribute__((weak))
void qemu_clock_enable(int clock, bool enabled);
__attribute__((weak))
int64_t qemu_clock_get_ns(int clock);
enum { REALTIME = 0, VIRTUAL = 1, ALL = -1 };

/* Of include/hw/core/cpu.h: who executes. A callback is told another one; see profiler.c. */
struct CPUState;
extern __thread struct CPUState *current_cpu __attribute__((weak));
__attribute__((weak))
struct CPUState *qemu_get_cpu(int index);

EXPORT int qemu_plugin_version = API;

static const unsigned char nop[] = { 0x0f, 0x1f, 0x80, 't', 'b', 'm', 't' };
static const unsigned char pause_insn[] = { 0xf3, 0x90 };

struct __attribute__((packed)) note {
	char what;		/* to the host: 'm'eeting or 'b'reakpoint, on vCPU count */
	uint64_t addr;		/* from it: 'g'o, 's'tep, go 'f'ree, or 'b'reak at addr when it is */
	uint64_t count;		/* executed for the count-th time, or EVERY_TIME */
};
#define EVERY_TIME UINT64_MAX

/* QEMU has no use for it. */
#define SIGNAL (SIGRTMAX - 1)
#define BREAKPOINTS 64

static int fd = -1;
static bool any;		/* instruction can be one to stop at */
static struct CPUState *stepping;
static _Atomic uint64_t *told, pauses;
static struct breakpoint { uint64_t addr, left; } breakpoints[BREAKPOINTS];
static int known;

static struct breakpoint *breakpoint_at(uint64_t addr)
{
	for (int i = 0; i < known; i++)
		if (breakpoints[i].addr == addr)
			return &breakpoints[i];
	return NULL;
}

/* Of the main loop's thread: free to run, asked to stand still, standing still. */
enum { FREE, ASKED, HELD };
static _Atomic int held = FREE;
static int thaw;		/* an eventfd */
static int vcpus;		/* the thread that executes them */

/* What was asleep in so many looks in a row, so far apart, does not wait for a lock only. */
#define LOOKS 10
#define LOOK_MS 100

static int asleep(int task)
{
	char path[64], text[256] = "", *state;
	int file;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", task);
	file = open(path, O_RDONLY);
	n = file < 0 ? -1 : read(file, text, sizeof(text) - 1);
	if (file >= 0)
		close(file);
	state = n > 0 ? strrchr(text, ')') : NULL;
	return state && state[2] == 'S';
}

/*
 * In the main loop's thread, wherever it was. It goes on when the vCPUs' thread
 * or the host wants it; or needs it without knowing: after the guest has reset
 * itself it is the main loop that ends QEMU, and a console that is full has it
 * wait until there is room.
 */
static void hold(int sig, siginfo_t *info, void *context)
{
	const ucontext_t *interrupted = context;
	struct pollfd whom[] = { { fd, POLLRDHUP, 0 }, { thaw, POLLIN, 0 } };
	struct pollfd console = { STDOUT_FILENO, POLLOUT, 0 };
	int error = errno, looks = 0;

	(void)sig;
	(void)info;
	/* It was not in a wait. */
	if (interrupted->uc_mcontext.gregs[REG_RAX] != -EINTR) {
		held = FREE;
		return;
	}
	held = HELD;
	while (poll(whom, 2, LOOK_MS) == 0 && looks < LOOKS) {
		looks = asleep(vcpus) ? looks + 1 : 0;
		if (poll(&console, 1, 0) == 0)
			break;
	}
	/* In the vCPUs' thread it would end a slice (icount_notify_exit()). */
	qemu_clock_enable(REALTIME, true);
	held = FREE;
	errno = error;
}

static void hold_main_loop(void)
{
	/* Asleep, and so in its wait, with nothing left to do. */
	for (int quiet = 0; quiet < 3; ) {
		usleep(2000);
		quiet = qemu_clock_deadline_ns_all(REALTIME, ALL) < 0 && asleep(getpid()) ? quiet + 1 : 0;
	}
	qemu_clock_enable(REALTIME, false);
	vcpus = gettid();
	while (held != HELD) {
		held = ASKED;
		syscall(SYS_tgkill, getpid(), getpid(), SIGNAL);
		while (held == ASKED)
			usleep(100);
	}
}

static void free_main_loop(void)
{
	uint64_t count = 1;

	if (held != HELD)
		return;
	if (write(thaw, &count, sizeof(count)) != sizeof(count))
		abort();
	while (held == HELD)
		usleep(100);
	if (read(thaw, &count, sizeof(count)) != sizeof(count))
		abort();
}

static uint64_t running(void)
{
	int vcpu = 0;

	while (current_cpu && qemu_get_cpu(vcpu) != current_cpu)
		vcpu++;
	return vcpu;
}

static void stand_still(char what, uint64_t addr)
{
	struct note note = { .what = what, .addr = addr, .count = running() };

	free_main_loop();
	if (write(fd, &note, sizeof(note)) != sizeof(note))
		return;
	/* Nobody there is a `go` as well. */
	while (read(fd, &note, sizeof(note)) == sizeof(note) && note.what == 'b') {
		struct breakpoint *b = breakpoint_at(note.addr);

		/* One that is off makes room, but where code may have it for its data. */
		for (int i = 0; !b && any && i < known; i++)
			b = breakpoints[i].left ? NULL : &breakpoints[i];
		if (!b && known < BREAKPOINTS)
			b = &breakpoints[known++];
		if (b)
			*b = (struct breakpoint){ note.addr, note.count };
	}
	stepping = note.what == 's' ? current_cpu : NULL;
	if (note.what == 'g' || note.what == 's')
		hold_main_loop();
}

static void meet(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	stand_still('m', 0);
}

/* A breakpoint that is off has a count of zero. */
static void pass(unsigned int vcpu, void *data)
{
	struct breakpoint *b = data;

	(void)vcpu;
	if (b->left && (b->left == EVERY_TIME || --b->left == 0))
		stand_still('b', b->addr);
}

/* In front of every instruction, if it can be any. */
static void pass_any(unsigned int vcpu, void *data)
{
	uint64_t addr = (uintptr_t)data;
	struct breakpoint *b;

	if (stepping && stepping == current_cpu)
		stand_still('b', addr);
	else if ((b = breakpoint_at(addr)))
		pass(vcpu, b);
}

static bool starts(const struct qemu_plugin_insn *insn, const unsigned char *code, size_t size)
{
	unsigned char found[sizeof(nop)];

	return qemu_plugin_insn_data(insn, found, size) == size && !memcmp(found, code, size);
}

/*
 * The guest's clock, where the host sees it. A thread of its own reads it, and
 * no vCPU notices: a callback on every block that is executed would count the
 * same, and take 13 % more of the host's CPU.
 *
 * What ends in a `pause` counts for more than its nanoseconds, since QEMU leaves
 * the vCPU there and goes round all of them: in a second in which all wait, for
 * work or for a lock, the host works several times as long as in others. That
 * counts for four; a turn of the idle loop has seven instructions and a `pause`.
 */
#define PAUSE_COUNTS 21
#define TELL_US 50000

static void *tell_time(void *unused)
{
	int64_t begin = qemu_clock_get_ns(VIRTUAL);

	(void)unused;
	for (;;) {
		*told = qemu_clock_get_ns(VIRTUAL) - begin + PAUSE_COUNTS * pauses;
		usleep(TELL_US);
	}
	return NULL;
}

static void begin_to_tell_time(void)
{
	pthread_t thread;
	sigset_t all, before;

	/* Signals are for QEMU's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, tell_time, NULL))
		abort();
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Only the vCPUs' thread writes. */
static void count_pause(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	atomic_store_explicit(&pauses, atomic_load_explicit(&pauses, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

static void look(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	static int begun;

	(void)id;
	if (!begun) {
		begun = 1;
		begin_to_tell_time();
		stand_still('m', 0);
	}
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		struct breakpoint *b = breakpoint_at(qemu_plugin_insn_vaddr(insn));

		if (any)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, pass_any, READ_REGISTERS,
							       (void *)qemu_plugin_insn_vaddr(insn));
		else if (b)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, pass, READ_REGISTERS, b);
		if (starts(insn, nop, sizeof(nop)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, meet, 0, NULL);
		if (starts(insn, pause_insn, sizeof(pause_insn)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, count_pause, 0, NULL);
	}
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = hold, .sa_flags = SA_SIGINFO };
	int shared = -1;

	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "fd=", 3))
			fd = atoi(argv[i] + 3);
		if (!strncmp(argv[i], "clock=", 6))
			shared = atoi(argv[i] + 6);
		if (!strncmp(argv[i], "any=", 4))
			any = atoi(argv[i] + 4);
	}
	if (!qemu_clock_deadline_ns_all || !qemu_clock_enable || !qemu_clock_get_ns) {
		fputs("deterministic guests need a QEMU that is built with modules\n", stderr);
		return -1;
	}
	thaw = eventfd(0, EFD_CLOEXEC);
	told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
	if (thaw < 0 || told == MAP_FAILED || sigaction(SIGNAL, &action, NULL))
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, look);
	return 0;
}
