/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Meet the host: a no-op whose displacement spells "tbmt". The rendezvous plugin
 * (testbed/guest/rendezvous.c) stops QEMU in front of it until the host has done
 * what it has to do; without the plugin, and on a real CPU, it does nothing.
 */
#ifndef MEET_H
#define MEET_H

static inline void meet(void)
{
	asm volatile(".byte 0x0f, 0x1f, 0x80, 't', 'b', 'm', 't'" ::: "memory");
}

#endif
