// SPDX-License-Identifier: GPL-2.0-only
/*
 * A QEMU TCG plugin beside rendezvous.c: count every instruction that a
 * deterministic guest executes while its workload is measured, exactly, and
 * without the guest's knowing.
 *
 * QEMU runs code in blocks. Our callback runs in front of each, in the one thread
 * that executes all vCPUs, and adds the block's number of instructions to a cell:
 * one for each block and context; or, with `stacks`, one for each chain of calls
 * and context. A context is a task, on a vCPU, in a phase of the workload.
 *
 * A block may end early, at a page fault or where it accesses a device in memory.
 * We see that in the place at which its vCPU goes on, and take back what was not
 * executed (see settle()). So the sum is what QEMU's own counter, the guest's time,
 * has moved by in the window, and we say both.
 *
 * The window is from the first call of sample() in images/src/observe.c, where the
 * workload's clock starts, up to snapshot(1), where the counters are read again.
 * These are known by address and code.
 *
 * Where one thread executes all vCPUs, QEMU 10.0 tells a callback the number of the
 * vCPU that the block was translated for, whichever executes it: we ask who it is.
 * (gen_cpu_index() of accel/tcg/plugin-gen.c. Inline operations for each vCPU even
 * multiply that constant, which is the translator's own.)
 *
 * Options: in=N, a file with struct told; out=N, a file for what was counted.
 *
 * Declared here is what is used of QEMU's include/qemu/qemu-plugin.h and of GLib, so
 * that their headers need not be installed.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define unlikely(x) __builtin_expect(!!(x), 0)
#define READ_REGISTERS 1

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_register;
struct bytes { uint8_t *data; unsigned int len; };	/* GByteArray */
struct array { char *data; unsigned int len; };		/* GArray */
struct descriptor { struct qemu_plugin_register *handle; const char *name, *feature; };
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*executed)(unsigned int unsure, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed, int flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, executed, int flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
struct array *qemu_plugin_get_registers(void);
int qemu_plugin_read_register(struct qemu_plugin_register *, struct bytes *);
bool qemu_plugin_read_memory_vaddr(uint64_t, struct bytes *, size_t);
struct bytes *g_byte_array_new(void);
struct bytes *g_byte_array_set_size(struct bytes *, unsigned int);

/* Of include/qemu/timer.h: the guest's time. For instructions that end a block only. */
int64_t qemu_clock_get_ns(int clock);
enum { VIRTUAL = 1 };

/* Of include/hw/core/cpu.h: who executes. */
struct CPUState;
extern __thread struct CPUState *current_cpu __attribute__((tls_model("initial-exec")));
struct CPUState *qemu_get_cpu(int index);

EXPORT int qemu_plugin_version = API;

#define CODE 16
#define MAX_VCPUS 256

/* What we are told of the guest's kernel and of its `observe`. */
static const struct told {
	uint64_t stacks;		/* whether chains of calls are wanted */
	uint64_t pid, comm;		/* offsets in struct task_struct */
	uint64_t switch_to;		/* the address of __switch_to() */
	uint64_t sample, snapshot;	/* addresses in `observe` */
	uint8_t sample_code[CODE], snapshot_code[CODE];
	uint64_t functions, entries;	/* how many */
	/* The addresses of functions, ascending, up to the end of the last; then the entries. */
	uint64_t numbers[];
} *told;

/* Where the kernel is entered. The CPU leaves on the stack where it was, but at system calls. */
enum kind { SYSTEM_CALL, INTERRUPT, FAULT, FAULT_WITH_CODE };

static const struct entry {
	uint64_t start, size, kind;
} *entries;

static void *get(size_t size)
{
	void *memory = calloc(1, size);

	if (!memory)
		abort();
	return memory;
}

static void *room_for(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		abort();
	return memory;
}

static void *more(void *memory, size_t had, size_t wanted)
{
	memory = realloc(memory, wanted);
	if (!memory)
		abort();
	memset((char *)memory + had, 0, wanted - had);
	return memory;
}

/* --- the guest's registers and memory -------------------------------------------- */

enum { RSP, RSI, RDI, REGISTERS };

static uint64_t read_register(int which)
{
	static const char *const names[] = { "rsp", "rsi", "rdi" };
	static struct qemu_plugin_register *handles[REGISTERS];
	static struct bytes *value;

	if (!value) {
		struct array *all = qemu_plugin_get_registers();
		const struct descriptor *d = (void *)all->data;

		for (unsigned int i = 0; i < all->len; i++)
			for (int r = 0; r < REGISTERS; r++)
				if (!strcmp(d[i].name, names[r]))
					handles[r] = d[i].handle;
		value = g_byte_array_new();
	}
	g_byte_array_set_size(value, 0);
	if (!handles[which] || qemu_plugin_read_register(handles[which], value) != 8)
		abort();
	return *(uint64_t *)value->data;
}

static bool read_memory(uint64_t address, void *into, size_t size)
{
	static struct bytes *value;

	if (!value)
		value = g_byte_array_new();
	if (!qemu_plugin_read_memory_vaddr(address, value, size))
		return false;
	memcpy(into, value->data, size);
	return true;
}

/* --- contexts ---------------------------------------------------------------------- */

/* No context, and no node: of what is not counted. */
#define NOBODY UINT32_MAX

struct context {
	unsigned int vcpu, phase;
	int pid;
	char comm[16];
	uint32_t root;			/* of its chains of calls */
};
static struct context *contexts;
static uint32_t known_contexts;

/* When there are so many, further tasks of a name are counted as one, of which the pid is 0. */
#define MANY_CONTEXTS 2048

static uint32_t new_node(uint32_t parent, uint64_t place);

static bool is_context(const struct context *c, unsigned int vcpu, unsigned int phase, int pid,
		       const char *comm)
{
	return c->vcpu == vcpu && c->phase == phase && c->pid == pid && !memcmp(c->comm, comm, 16);
}

static uint32_t context_of(unsigned int vcpu, unsigned int phase, int pid, const char *comm)
{
	struct context *c;

	for (uint32_t i = 0; i < known_contexts; i++)
		if (is_context(&contexts[i], vcpu, phase, pid, comm))
			return i;
	if (known_contexts >= MANY_CONTEXTS && pid)
		return context_of(vcpu, phase, 0, comm);
	if (known_contexts % 256 == 0)
		contexts = more(contexts, known_contexts * sizeof(*c),
				(known_contexts + 256) * sizeof(*c));
	c = &contexts[known_contexts];
	*c = (struct context){ .vcpu = vcpu, .phase = phase, .pid = pid };
	memcpy(c->comm, comm, 16);
	if (told->stacks)
		c->root = new_node(NOBODY, known_contexts);
	return known_contexts++;
}

/* --- chains of calls --------------------------------------------------------------- */

/* A function, or what there is of it, as called by the parent's. */
struct node {
	uint64_t place, insns, calls;
	uint32_t parent, next;
};
static struct node *nodes;
static uint32_t known_nodes, room_for_nodes;
#define HASH_BITS 18
static uint32_t chains[1 << HASH_BITS];	/* of nodes with the same hash: index + 1 */

static uint32_t new_node(uint32_t parent, uint64_t place)
{
	if (known_nodes == room_for_nodes) {
		uint32_t room = room_for_nodes ? 2 * room_for_nodes : 1 << 16;

		nodes = more(nodes, room_for_nodes * sizeof(*nodes), room * sizeof(*nodes));
		room_for_nodes = room;
	}
	nodes[known_nodes] = (struct node){ .place = place, .parent = parent };
	return known_nodes++;
}

static uint32_t child(uint32_t parent, uint64_t place)
{
	uint64_t hash = (place ^ (uint64_t)parent << 32) * 0x9e3779b97f4a7c15ull;
	uint32_t *chain = &chains[hash >> (64 - HASH_BITS)], at;

	for (at = *chain; at; at = nodes[at - 1].next)
		if (nodes[at - 1].place == place && nodes[at - 1].parent == parent)
			return at - 1;
	at = new_node(parent, place);
	nodes[at].next = *chain;
	*chain = at + 1;
	return at;
}

/* What is returned to, ends a frame. Nothing returns to where interrupts and system calls begin. */
struct frame {
	uint64_t place, ret;
	uint32_t node;
};
#define MAX_DEPTH 1024
#define TASK_BITS 16

static struct task {
	uint64_t address;		/* of its struct task_struct */
	int pid;
	char comm[16];
	uint32_t context, depth, room;	/* of it, and of its frames */
	struct frame *frames;
} *tasks[1 << TASK_BITS];		/* by hash */

static struct task *task_at(uint64_t address)
{
	uint32_t at = (address >> 6) * 0x9e3779b97f4a7c15ull >> (64 - TASK_BITS);
	static uint32_t known;

	for (; tasks[at]; at = (at + 1) % (1 << TASK_BITS))
		if (tasks[at]->address == address)
			return tasks[at];
	if (++known == 1 << TASK_BITS)
		abort();		/* 256 MiB of such structures */
	tasks[at] = get(sizeof(*tasks[at]));
	tasks[at]->address = address;
	tasks[at]->context = NOBODY;
	return tasks[at];
}

static uint32_t parent_of(const struct task *task, uint32_t depth)
{
	return depth ? task->frames[depth - 1].node : contexts[task->context].root;
}

static uint32_t node_of(const struct task *task)
{
	return parent_of(task, task->depth);
}

static void push(struct task *task, uint64_t place, uint64_t ret)
{
	/* What is called from there on counts for it. */
	if (task->depth == MAX_DEPTH)
		return;
	uint32_t node = child(node_of(task), place);

	if (task->depth == task->room) {
		uint32_t room = task->room ? 2 * task->room : 32;

		task->frames = more(task->frames, task->room * sizeof(*task->frames),
				    room * sizeof(*task->frames));
		task->room = room;
	}
	task->frames[task->depth++] = (struct frame){ place, ret, node };
	nodes[node].calls++;
}

/* It goes on somewhere else, and will return to where its caller called it. */
static void replace(struct task *task, uint64_t place, bool is_start)
{
	if (!task->depth) {
		push(task, place, 0);
		return;
	}
	struct frame *top = &task->frames[task->depth - 1];

	top->place = place;
	top->node = child(parent_of(task, task->depth - 1), place);
	nodes[top->node].calls += is_start;
}

/*
 * QEMU translates code once that is mapped at several addresses, and tells the first
 * of them: in user space what we know of an address is where in its page it is.
 */
#define PAGE 4096

static bool is_kernel(uint64_t address)
{
	return address >> 63;
}

static bool is_same(uint64_t a, uint64_t b)
{
	return a == b || (!is_kernel(a) && !is_kernel(b) && a && b && (a ^ b) % PAGE == 0);
}

static void pop_to(struct task *task, uint64_t ret)
{
	for (uint32_t depth = task->depth; depth > 0; depth--)
		if (is_same(task->frames[depth - 1].ret, ret)) {
			task->depth = depth - 1;
			return;
		}
}

/* --- blocks ------------------------------------------------------------------------ */

enum end { GOES_ON, CALLS, RETURNS, INTERRUPT_RETURNS };
enum what { ORDINARY, SWITCH, SAMPLE, SNAPSHOT };

struct cell {
	uint32_t runs, undone;		/* undone: instructions that were not executed, of all its runs */
};

/*
 * What every run of a block looks at, in as little memory as can be: what the CPU has to
 * fetch for it is most of what counting costs.
 */
struct hot {
	uint32_t start;			/* the lower half */
	uint32_t runs;			/* in a row, for that context */
	uint16_t context, size;		/* in bytes */
};
/* Contexts of a block that is not counted, and of one that is always looked at. */
enum { UNCOUNTED = UINT16_MAX - 1, RARE };
#define MAX_BLOCKS (1 << 22)		/* translations. QEMU forgets its own when they are too many */
static struct hot *hot;

/* Of the same number. */
static struct block {
	uint64_t start, size, last;	/* in bytes; where its last instruction begins */
	uint32_t insns, context;	/* for which it ran last */
	bool is_rare;			/* one of those that prepare() is for */
	bool repeats;			/* the last instruction, in a block of its own */
	bool into_itself;		/* may go on amid itself */
	uint8_t end, what;
	uint64_t function;
	const struct entry *entry;
	uint16_t *offsets;		/* of its instructions */
	struct cell *cells;		/* by context */
	uint32_t contexts;		/* how many */
} *blocks;
static uint32_t known_blocks;

/* The function that an address of the kernel's is in; of user space nothing is known. */
static uint64_t function_at(uint64_t address)
{
	uint64_t low = 0, high = told->functions;

	if (!high || address < told->numbers[0] || address >= told->numbers[high - 1])
		return 0;
	while (high - low > 1) {
		uint64_t middle = (low + high) / 2;

		if (told->numbers[middle] <= address)
			low = middle;
		else
			high = middle;
	}
	return told->numbers[low];
}

/* --- what is executed -------------------------------------------------------------- */

/* Before its first. */
static struct block nowhere;

static struct vcpu {
	struct CPUState *is;
	struct block *last;
	struct task *task;
	uint32_t context;		/* what is counted for it: the task's, or NOBODY */
	uint32_t counted, node;		/* what @last was counted for; with stacks, its node */
	const struct block *finished;
} vcpus[MAX_VCPUS], *now = vcpus;

enum { BEFORE, WITHIN, AFTER };
static int window;
static unsigned int phase;
static int64_t began_ns, ended_ns;	/* the guest's time */
static bool is_timed;			/* soon: see take_time() */
static unsigned int unsettled;		/* vCPUs */
static FILE *out;

static bool was_counted(const struct vcpu *v)
{
	return v->counted != NOBODY;
}

static void count_for(struct vcpu *v)
{
	v->context = window == WITHIN ? v->task->context : NOBODY;
}

static void enter_context(struct vcpu *v)
{
	struct task *task = v->task;
	uint32_t context = task->context;

	if (context == NOBODY ||
	    !is_context(&contexts[context], v - vcpus, phase, task->pid, task->comm))
		context = context_of(v - vcpus, phase, task->pid, task->comm);
	if (context != task->context) {
		task->context = context;
		for (uint32_t i = 0; i < task->depth; i++)
			task->frames[i].node = child(parent_of(task, i), task->frames[i].place);
	}
	count_for(v);
}

/* The vCPU begins to execute another task. */
static void switch_to(struct vcpu *v, uint64_t address)
{
	struct task *task = task_at(address);
	int32_t pid;

	if (!read_memory(address + told->pid, &pid, sizeof(pid)) ||
	    !read_memory(address + told->comm, task->comm, sizeof(task->comm)))
		abort();
	/* What has the structure now may be another one. */
	if (pid != task->pid)
		task->depth = 0;
	task->pid = pid;
	v->task = task;
	enter_context(v);
}

/* Another vCPU's turn, or its first. */
static struct vcpu *turn(void)
{
	unsigned int vcpu = 0;

	while (qemu_get_cpu(vcpu) != current_cpu)
		vcpu++;
	now = &vcpus[vcpu];
	if (!now->is) {
		now->is = current_cpu;
		/* Of those that run when we begin to look, one for each vCPU. */
		now->task = task_at(1 + vcpu);
		strcpy(now->task->comm, "unknown");
		enter_context(now);
	}
	return now;
}

/* As QEMU numbers them. */
static inline struct vcpu *running(void)
{
	return unlikely(now->is != current_cpu) ? turn() : now;
}

static struct cell *cell_of(struct block *block, uint32_t context)
{
	if (context >= block->contexts) {
		block->cells = more(block->cells, block->contexts * sizeof(struct cell),
				    known_contexts * sizeof(struct cell));
		block->contexts = known_contexts;
	}
	return &block->cells[context];
}

static uint16_t in_short(uint32_t context)
{
	return context == NOBODY ? UNCOUNTED : context < UNCOUNTED ? context : RARE;
}

/* From now on it runs for another context. */
static void change_context(struct block *block, uint32_t context)
{
	struct hot *h = &hot[block - blocks];

	if (block->context != NOBODY)
		cell_of(block, block->context)->runs += h->runs;
	block->context = context;
	h->context = block->is_rare ? RARE : in_short(context);
	h->runs = 0;
}

/* How far a vCPU has come in its last block: the place in it, as an offset. */
static bool settle(struct vcpu *v, uint64_t offset)
{
	uint32_t done = 0, undone;

	while (done < v->last->insns && v->last->offsets[done] < offset)
		done++;
	undone = v->last->insns - done;
	if (!was_counted(v))
		return false;
	if (told->stacks)
		nodes[v->node].insns -= undone;
	else
		cell_of(v->last, v->counted)->undone += undone;
	return false;
}

/*
 * Where a vCPU goes on tells whether it has executed the whole of its last block: it
 * has not if that is amid the block. A string instruction is repeated in a block of
 * its own, and a block may end with a jump into itself: then we have looked whether
 * it came to its end.
 */
static bool has_ended(struct vcpu *v, uint64_t goes_on)
{
	const struct block *last = v->last;
	uint64_t offset = goes_on - last->start;

	if (offset - 1 >= last->size - 1 || v->finished == last || (last->repeats && goes_on == last->last))
		return true;
	return settle(v, offset);
}

/*
 * The same where the CPU has left on the stack what it will go on with: after a fault
 * that is what has caused it, unless that was the fetching of the next block.
 */
static bool has_ended_before(struct vcpu *v, const struct entry *entry, uint64_t *goes_on)
{
	enum { INSTRUCTION_FETCH = 16 };
	const struct block *last = v->last;
	uint64_t frame[2] = {};

	read_memory(read_register(RSP), frame, sizeof(frame));
	*goes_on = frame[entry->kind == FAULT_WITH_CODE];
	if (entry->kind == INTERRUPT)
		return has_ended(v, *goes_on);
	uint64_t offset = *goes_on - last->start;

	if (!is_kernel(last->start))
		offset %= PAGE;
	if (offset >= last->size || (entry->kind == FAULT_WITH_CODE && frame[0] & INSTRUCTION_FETCH))
		return true;
	return settle(v, offset);
}

/*
 * Once it is known how far each vCPU had come in its last block, which it is when
 * that has gone on.
 */
static void print_once(void)
{
	unsigned long long insns, total = 0;

	if (is_timed || unsettled || !out)
		return;
	for (uint32_t i = 0; i < known_contexts; i++) {
		const struct context *c = &contexts[i];

		fprintf(out, "context %u %u %d %.16s\n", c->vcpu, c->phase, c->pid, c->comm);
	}
	for (uint32_t i = 0; i < known_nodes; i++) {
		const struct node *n = &nodes[i];

		total += n->insns;
		fprintf(out, "node %lld %llx %llu %llu\n", n->parent == NOBODY ? -1ll : (long long)n->parent,
			(unsigned long long)n->place, (unsigned long long)n->insns,
			(unsigned long long)n->calls);
	}
	for (struct block *b = blocks; b < blocks + known_blocks; b++) {
		change_context(b, NOBODY);
		for (uint32_t i = 0; i < b->contexts; i++)
			if (b->cells[i].runs) {
				insns = (unsigned long long)b->cells[i].runs * b->insns - b->cells[i].undone;
				total += insns;
				fprintf(out, "block %llx %u %llu %u\n", (unsigned long long)b->start, i,
					insns, b->cells[i].runs);
			}
	}
	fprintf(out, "window %lld %lld %llu\n", (long long)began_ns, (long long)ended_ns, total);
	fclose(out);
	out = NULL;
}

static void finish(unsigned int unsure, void *data)
{
	(void)unsure;
	running()->finished = data;
}

static void take_time(unsigned int unsure, void *data)
{
	const struct block *block = data;
	int64_t *when = window == WITHIN ? &began_ns : &ended_ns;

	(void)unsure;
	if (!is_timed)
		return;
	/* By now it has counted the whole block. */
	*when = qemu_clock_get_ns(VIRTUAL) - block->insns;
	is_timed = false;
	if (window == AFTER)
		print_once();
}

static void open_window(int where)
{
	window = where;
	is_timed = true;
	for (struct vcpu *v = vcpus; v < vcpus + MAX_VCPUS; v++)
		if (v->is)
			count_for(v);
}

/* In `observe`. Its counting is the last thing that counts. */
static void mark(struct vcpu *here, const struct block *block)
{
	unsigned int argument = read_register(RDI);

	if (block->what == SNAPSHOT && window == WITHIN && argument == 1) {
		open_window(AFTER);
		/* This one has gone on. */
		here->counted = NOBODY;
		for (struct vcpu *v = vcpus; v < vcpus + MAX_VCPUS; v++)
			unsettled += was_counted(v);
	} else if (block->what == SAMPLE && window == BEFORE) {
		open_window(WITHIN);
		/* Chains are followed before, too. */
		for (uint32_t i = 0; i < known_nodes; i++)
			nodes[i].calls = 0;
	} else if (block->what == SAMPLE && window == WITHIN && argument != phase) {
		phase = argument;
		for (struct vcpu *v = vcpus; v < vcpus + MAX_VCPUS; v++)
			if (v->is)
				enter_context(v);
	}
}

/* From the end of a block to where it goes on. */
static void follow_calls(struct task *task, const struct block *last, uint64_t start, uint64_t function)
{
	uint64_t place = function ? function : start;

	if (is_kernel(last->start) && !is_kernel(start)) {
		/* All that is left are the frames of user space. */
		while (task->depth && is_kernel(task->frames[task->depth - 1].place))
			task->depth--;
	} else if (last->end == CALLS) {
		push(task, place, last->start + last->size);
	} else if (last->end == RETURNS) {
		pop_to(task, start);
	} else if (last->end == INTERRUPT_RETURNS) {
		pop_to(task, 0);
	}
	/* A jump to another function, or a return to one that has begun before we looked. */
	if (!task->depth || (function && task->frames[task->depth - 1].place != function))
		replace(task, place, place == start);
}

/* What is to be done before a block is counted, and where its vCPU comes from. */
static const struct block *prepare(struct vcpu *v, const struct block *block)
{
	const struct block *last = v->last;

	if (block->entry && block->entry->kind != SYSTEM_CALL) {
		uint64_t ip;

		if (has_ended_before(v, block->entry, &ip) && told->stacks)
			follow_calls(v->task, last, ip, function_at(ip));
	} else if (!has_ended(v, block->start)) {
		last = &nowhere;
	}
	v->finished = NULL;
	if (block->what == SWITCH)
		switch_to(v, read_register(RSI));
	else if (block->what != ORDINARY)
		mark(v, block);
	return last;
}

/* After the window, when it is known how far this one came in it. */
static void settled(struct vcpu *v)
{
	if (!was_counted(v))
		return;
	v->counted = NOBODY;
	unsettled--;
	print_once();
}

/* Of the vCPU that runs, what the next block has to be like to be counted at once. */
static struct {
	struct CPUState *is;		/* nobody if every block has to be looked at */
	const struct hot *last;
	uint32_t start, size, context;	/* of the last one, and for what that was counted */
} quick;

static __attribute__((noinline)) void run_slowly(struct hot *h)
{
	struct block *block = &blocks[h - hot];
	struct vcpu *v = now;

	if (quick.last && &blocks[quick.last - hot] != v->last) {
		v->last = &blocks[quick.last - hot];
		v->counted = v->context;
	}
	v = running();
	if (block->is_rare || block->start - v->last->start < v->last->size)
		prepare(v, block);
	if (unsettled)
		settled(v);
	if (block->context != v->context)
		change_context(block, v->context);
	h->runs++;
	v->last = block;
	v->counted = v->context;
	quick.is = unsettled ? NULL : v->is;
	quick.last = h;
	quick.start = h->start;
	quick.size = h->size;
	/* No block that is quick has this one, if it is RARE. */
	quick.context = in_short(v->context) == RARE ? NOBODY : in_short(v->context);
}

static void run(unsigned int unsure, void *data)
{
	struct hot *h = data;

	(void)unsure;
	if (unlikely(h->context != quick.context || quick.is != current_cpu ||
		     h->start - quick.start < quick.size)) {
		run_slowly(h);
		return;
	}
	h->runs++;
	quick.last = h;
	quick.start = h->start;
	quick.size = h->size;
}

static void run_with_stacks(unsigned int unsure, void *data)
{
	struct vcpu *v = running();
	struct block *block = &blocks[(struct hot *)data - hot];
	const struct block *last = v->last;

	(void)unsure;
	if (unlikely(block->is_rare || block->start - last->start < last->size))
		last = prepare(v, block);
	if (unlikely(unsettled))
		settled(v);
	if (unlikely(block->entry))
		push(v->task, block->function, 0);
	else
		follow_calls(v->task, last, block->start, block->function);
	v->last = block;
	v->counted = v->context;
	if (v->context != NOBODY) {
		v->node = node_of(v->task);
		nodes[v->node].insns += block->insns;
	}
}

/* --- what is translated ------------------------------------------------------------ */

/* How a block ends, by its last instruction (Intel's manual, volume 2, appendix A). */
static void look_at_the_end(struct block *block, const struct qemu_plugin_insn *insn)
{
	uint8_t code[16] = {}, *at = code;
	size_t size = qemu_plugin_insn_data(insn, code, sizeof(code));
	int64_t target = block->start + block->size;

	for (; at < code + size && (*at == 0xf2 || *at == 0xf3 || *at == 0x66 || *at == 0x3e || *at == 0x2e ||
				    (*at & 0xf0) == 0x40); at++)
		/* String instructions: 6c-6f, a4-a7, aa-af. */
		block->repeats |= *at == 0xf2 || *at == 0xf3;
	block->repeats &= (*at & 0xfc) == 0x6c || (*at & 0xfc) == 0xa4 || (*at >= 0xaa && *at <= 0xaf);
	if (*at == 0xe8)
		block->end = CALLS;
	else if (*at == 0xff && (at[1] & 0x38) == 0x10)
		block->end = CALLS;
	else if (*at == 0xc3 || *at == 0xc2)
		block->end = RETURNS;
	else if (*at == 0xcf)
		block->end = INTERRUPT_RETURNS;
	else if (*at == 0xff && (at[1] & 0x38) == 0x20)
		block->into_itself = true;
	else if (*at == 0xeb || (*at & 0xf0) == 0x70 || (*at & 0xfc) == 0xe0)
		target += (int8_t)at[1];
	else if (*at == 0xe9)
		target += *(int32_t *)(at + 1);
	else if (*at == 0x0f && (at[1] & 0xf0) == 0x80)
		target += *(int32_t *)(at + 2);
	block->into_itself |= (uint64_t)target - block->start - 1 < block->size - 1;
}

static const struct entry *entry_at(uint64_t address)
{
	for (uint64_t i = 0; i < told->entries; i++)
		if (address - entries[i].start < entries[i].size)
			return &entries[i];
	return NULL;
}

static bool begins_with(const struct qemu_plugin_tb *tb, const uint8_t *code)
{
	size_t length = 0;

	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb) && length < CODE; i++) {
		uint8_t found[16];
		size_t size = qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i), found, sizeof(found));

		size = size < CODE - length ? size : CODE - length;
		if (memcmp(found, code + length, size))
			return false;
		length += size;
	}
	return true;
}

static enum what what_is(const struct qemu_plugin_tb *tb, uint64_t start)
{
	if (start == told->switch_to)
		return SWITCH;
	if (start == told->sample && begins_with(tb, told->sample_code))
		return SAMPLE;
	if (start == told->snapshot && begins_with(tb, told->snapshot_code))
		return SNAPSHOT;
	return ORDINARY;
}

static void look(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	struct block *block = &blocks[known_blocks];
	uint32_t insns = qemu_plugin_tb_n_insns(tb);
	struct qemu_plugin_insn *last = qemu_plugin_tb_get_insn(tb, insns - 1);

	(void)id;
	if (known_blocks == MAX_BLOCKS)
		abort();
	block->context = NOBODY;
	block->start = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
	block->last = qemu_plugin_insn_vaddr(last);
	block->size = block->last + qemu_plugin_insn_size(last) - block->start;
	block->insns = insns;
	block->offsets = get(insns * sizeof(*block->offsets));
	for (uint32_t i = 0; i < insns; i++)
		block->offsets[i] = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, i)) - block->start;
	look_at_the_end(block, last);
	block->what = what_is(tb, block->start);
	block->entry = is_kernel(block->start) ? entry_at(block->start) : NULL;
	block->function = is_kernel(block->start) ? function_at(block->start) : 0;
	block->is_rare = block->entry || block->what || block->into_itself;
	hot[known_blocks] = (struct hot){ block->start, 0, block->is_rare ? RARE : UNCOUNTED, block->size };
	qemu_plugin_register_vcpu_tb_exec_cb(tb, told->stacks ? run_with_stacks : run,
					     block->entry || block->what ? READ_REGISTERS : 0,
					     &hot[known_blocks++]);
	if (block->into_itself)
		qemu_plugin_register_vcpu_insn_exec_cb(last, finish, 0, block);
	if (block->what == SAMPLE || block->what == SNAPSHOT)
		qemu_plugin_register_vcpu_insn_exec_cb(last, take_time, 0, block);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	struct stat file;
	int in = -1;

	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "in=", 3))
			in = atoi(argv[i] + 3);
		if (!strncmp(argv[i], "out=", 4))
			out = fdopen(atoi(argv[i] + 4), "w");
	}
	if (!out || fstat(in, &file))
		return -1;
	told = mmap(NULL, file.st_size, PROT_READ, MAP_PRIVATE, in, 0);
	if (told == MAP_FAILED)
		return -1;
	entries = (const void *)(told->numbers + told->functions);
	/* Of this memory only what is used is taken. */
	hot = room_for(MAX_BLOCKS * sizeof(*hot));
	blocks = room_for(MAX_BLOCKS * sizeof(*blocks));
	for (int i = 0; i < MAX_VCPUS; i++)
		vcpus[i] = (struct vcpu){ .last = &nowhere, .context = NOBODY, .counted = NOBODY };
	qemu_plugin_register_vcpu_tb_trans_cb(id, look);
	return 0;
}
