// SPDX-License-Identifier: GPL-2.0-only
/*
 * A QEMU TCG plugin: stop the guest in front of an instruction, exactly.
 *
 * Where the guest executes the no-op of images/src/meet.h, we write a byte to
 * a socket and read one before we let it go on. The callback runs in the thread
 * that executes all vCPUs and without QEMU's big lock: no vCPU executes another
 * instruction meanwhile, virtual time stands still, and the main loop serves
 * QMP. A `stop` from outside would end a vCPU's slice at a place that depends
 * on the host's clock.
 *
 * Options: fd=N, the socket; addr=N and count=N, to stop as well where that
 * address is executed for the count-th time.
 *
 * Declared here is what is used of QEMU's include/qemu/qemu-plugin.h, so that
 * its headers need not be installed.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

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
static int fd = -1;
static uint64_t addr, count;

static void meet(unsigned int vcpu, void *data)
{
	char byte = 'm';

	(void)vcpu;
	(void)data;
	/* Nobody there: go on. */
	if (write(fd, &byte, 1) == 1)
		(void)!read(fd, &byte, 1);
}

static void pass(unsigned int vcpu, void *data)
{
	if (--count == 0)
		meet(vcpu, data);
}

static void look(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	unsigned char code[sizeof(nop)];

	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (addr && qemu_plugin_insn_vaddr(insn) == addr)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, pass, 0, NULL);
		if (qemu_plugin_insn_data(insn, code, sizeof(code)) == sizeof(code) &&
		    !memcmp(code, nop, sizeof(code)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, meet, 0, NULL);
	}
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "fd=", 3))
			fd = atoi(argv[i] + 3);
		else if (!strncmp(argv[i], "addr=", 5))
			addr = strtoull(argv[i] + 5, NULL, 0);
		else if (!strncmp(argv[i], "count=", 6))
			count = strtoull(argv[i] + 6, NULL, 0);
		else
			return 1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, look);
	return 0;
}
