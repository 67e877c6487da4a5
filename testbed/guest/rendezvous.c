// SPDX-License-Identifier: GPL-2.0-only
/*
 * A QEMU TCG plugin: stop the guest in front of an instruction, exactly.
 *
 * Where the guest executes the no-op of images/src/meet.h, we tell the host on
 * a socket and wait for its answer before we let it go on. The callback runs in the thread
 * that executes all vCPUs and without QEMU's big lock: no vCPU executes another
 * instruction meanwhile, virtual time stands still, and the main loop serves
 * QMP. A `stop` from outside would end a vCPU's slice at a place that depends
 * on the host's clock.
 *
 * We stop as well before the first instruction of all: after `cont`, the main
 * loop may be busy for a while, and as long as it is it may run timers that
 * are the vCPUs' thread's to run, and end a slice early.
 *
 * Every message on the socket, a SOCK_SEQPACKET, is one struct note. We say
 * where we stand; the answers are any number of breakpoints and then `go`.
 *
 * Option: fd=N, the socket.
 *
 * Declared here is what is used of QEMU's include/qemu/qemu-plugin.h, so that
 * its headers need not be installed.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
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

EXPORT int qemu_plugin_version = API;

static const unsigned char nop[] = { 0x0f, 0x1f, 0x80, 't', 'b', 'm', 't' };

struct __attribute__((packed)) note {
	char what;		/* to the host: 'm'eeting or 'b'reakpoint */
	uint64_t addr;		/* from it: 'g'o, or 'b'reak at addr when it is */
	uint64_t count;		/* executed for the count-th time */
};

#define BREAKPOINTS 64

static int fd = -1;
static struct breakpoint { uint64_t addr, left; } breakpoints[BREAKPOINTS];
static int known;

static struct breakpoint *breakpoint_at(uint64_t addr)
{
	for (int i = 0; i < known; i++)
		if (breakpoints[i].addr == addr)
			return &breakpoints[i];
	return NULL;
}

static void stand_still(char what, uint64_t addr)
{
	struct note note = { .what = what, .addr = addr };

	if (write(fd, &note, sizeof(note)) != sizeof(note))
		return;
	/* Nobody there is a `go` as well. */
	while (read(fd, &note, sizeof(note)) == sizeof(note) && note.what == 'b') {
		struct breakpoint *b = breakpoint_at(note.addr);

		if (!b && known < BREAKPOINTS)
			b = &breakpoints[known++];
		if (b)
			*b = (struct breakpoint){ note.addr, note.count };
	}
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
	if (b->left && --b->left == 0)
		stand_still('b', b->addr);
}

static void look(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	static int begun;
	unsigned char code[sizeof(nop)];

	(void)id;
	if (!begun) {
		begun = 1;
		stand_still('m', 0);
	}
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		struct breakpoint *b = breakpoint_at(qemu_plugin_insn_vaddr(insn));

		if (b)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, pass, READ_REGISTERS, b);
		if (qemu_plugin_insn_data(insn, code, sizeof(code)) == sizeof(code) &&
		    !memcmp(code, nop, sizeof(code)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, meet, 0, NULL);
	}
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++)
		if (!strncmp(argv[i], "fd=", 3))
			fd = atoi(argv[i] + 3);
	qemu_plugin_register_vcpu_tb_trans_cb(id, look);
	return 0;
}
